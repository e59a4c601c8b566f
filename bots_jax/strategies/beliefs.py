"""Beliefs that several strategies share: a Beta posterior that forgets at visits.

In: the evidence of a step. Out: pseudo-counts alpha, beta f[C] after it. With keep
k = 1 - forgetting at a visit and k' at every step, alpha0 the prior,

    visited:      alpha <- alpha0 + k k' (alpha - alpha0) + s
    not visited:  alpha <- alpha0 + k' (alpha - alpha0)

and alike beta with failures. k' = 1 is MoPPS (arXiv 2507.04632): a task that is not
visited keeps its posterior. k = k' = 1 counts. BOTS is k = 1 with forgetting at k'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax import draws
from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.pool import Fused
from bots_jax.reference import Reference
from bots_jax.strategies.common import no_inference
from bots_jax.types import Array, Belief, Settings


class Discounted(NamedTuple):
    """Pseudo-counts of each task's Beta posterior."""

    alpha: Array  # f[C], successes
    beta: Array  # f[C], failures

    def restart(self, settings: Settings, rows: Array) -> Discounted:
        """Rows that now hold a new task begin at the prior."""
        return Discounted(
            self.alpha.at[rows].set(settings.prior_successes, mode="drop"),
            self.beta.at[rows].set(settings.prior_failures, mode="drop"),
        )


def discounted_beta(keep_step: float = 1.0) -> BeliefModel:
    """A Beta posterior with two time scales of forgetting, as in the module docstring.

    Args:
      keep_step: k', static. k is 1 - `Settings.forgetting`.
    """

    def fuse(
        belief: Discounted, settings: Settings, reference: Reference, fused: Fused
    ) -> tuple[Discounted, BeliefInfo]:
        keep = jnp.where(fused.trials > 0, 1 - settings.forgetting, 1) * keep_step
        lost = fused.trials - fused.successes
        alpha = keep * belief.alpha + (1 - keep) * settings.prior_successes + fused.successes
        beta = keep * belief.beta + (1 - keep) * settings.prior_failures + lost
        return Discounted(alpha, beta), no_inference(fused)

    return BeliefModel(_init, fuse, _predict, _draw)


def _init(settings: Settings, reference: Reference, num_domains: int) -> Discounted:
    shape = (reference.rates.shape[1],)
    return Discounted(
        jnp.broadcast_to(settings.prior_successes, shape),
        jnp.broadcast_to(settings.prior_failures, shape),
    )


def _predict(belief: Discounted, settings: Settings, reference: Reference, rows: Any) -> Belief:
    alpha, beta = belief.alpha[rows], belief.beta[rows]
    return Belief(alpha / (alpha + beta), alpha + beta)


def _draw(rng_key: Array, belief: Discounted, settings: Settings, reference: Reference) -> Array:
    return draws.beta(rng_key, belief.alpha, belief.beta)


Predict = Callable[[Any, Settings, Reference, Any], Belief]
Draw = Callable[[Array, Any, Settings, Reference], Array]


def by_rate(model: BeliefModel) -> tuple[Predict, Draw]:
    """`predict` and `draw` of a belief that holds that of `model` in its field `rate`.

    For strategies whose choice rests on something else than success rates: they count
    beside it, so that their belief can be compared too.
    """

    def predict(belief: Any, settings: Settings, reference: Reference, rows: Any) -> Belief:
        return model.predict(belief.rate, settings, reference, rows)

    def draw(rng_key: Array, belief: Any, settings: Settings, reference: Reference) -> Array:
        return model.draw(rng_key, belief.rate, settings, reference)

    return predict, draw


def chance_of_mixed_group(alpha: Array, beta: Array, group: int) -> Array:
    """Chance that a group of `group` rollouts is neither all right nor all wrong.

        V = 1 - B(alpha + G, beta) / B(alpha, beta) - B(alpha, beta + G) / B(alpha, beta)

    For whole G both quotients are products, B(a + G, b) / B(a, b) = prod (a + i) / (a + b + i)
    over i = 0, ..., G - 1. The larger of the two is near 1 where V is small, so what it
    lacks to 1 is summed up by itself; 1 minus the product would be noise in float32.

    Args:
      alpha, beta: f[...], both positive.
      group: G >= 2, static.

    Returns:
      f[...] in (0, 1): positive, so that it has a logarithm.
    """
    rare, total = jnp.minimum(alpha, beta), alpha + beta
    all_rare, some_rare = jnp.ones_like(total), jnp.zeros_like(total)
    for i in range(group):
        all_rare *= (rare + i) / (total + i)
        some_rare += rare / (total + i) * (1 - some_rare)
    return jnp.maximum(some_rare - all_rare, jnp.finfo(total.dtype).tiny)
