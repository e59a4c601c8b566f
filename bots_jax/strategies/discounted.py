"""A belief that several strategies share: a Beta posterior that forgets at visits.

In: the evidence of a step. Out: pseudo-counts alpha, beta f[C] after it. With keep
k = 1 - forgetting at a visit and k' at every step, alpha0 the prior,

    visited:      alpha <- alpha0 + k k' (alpha - alpha0) + s
    not visited:  alpha <- alpha0 + k' (alpha - alpha0)

and alike beta with failures. k' = 1 is MoPPS (arXiv 2507.04632): a task that is not
visited keeps its posterior. k = k' = 1 counts. BOTS is k = 1 with forgetting at k'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.numerics import beta_draws
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.counting import no_inference
from bots_jax.types import Array, Belief, Settings, State


class Discounted(NamedTuple):
    """Pseudo-counts of each task's Beta posterior."""

    alpha: Array  # f[C], successes
    beta: Array  # f[C], failures

    def restart(self, settings: Settings, rows: Array, active: Array) -> Discounted:
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
        belief: Discounted, settings: Settings, reference: Reference, fused: StepEvidence
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


def _predict(state: State, rows: Any) -> Belief:
    belief: Discounted = state.belief
    alpha, beta = belief.alpha[rows], belief.beta[rows]
    return Belief(alpha / (alpha + beta), alpha + beta)


def _draw(rng_key: Array, state: State) -> Array:
    return beta_draws.beta(rng_key, state.belief.alpha, state.belief.beta)
