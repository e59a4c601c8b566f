"""Learning progress: tasks whose believed rate has changed, whether up or down.

    ALP_k = |p_k - slow_k|,    slow_k <- slow_k + (p_k - slow_k) / horizon    at each step
    P(k) proportional to (1 - novelty) ALP_k / sum ALP + novelty / N

p_k is the mean of the belief of `auto`: the regression on references, domains and features, and
the task's own offset from it (`of="task"`), or the regression alone (`of="kind"`). What is solved
already, out of reach, or guessed for ever does not change; what is being learned does, and what
is being forgotten.

Absolute learning progress is ALP-GMM's (arXiv 1910.07224), which compares a task's last return with
that of its nearest neighbour and draws a fifth of the tasks at random; its prediction from what
is known of a task is MAGELLAN's (arXiv 2502.07709), which compares a learned estimate of success
with the estimate some time ago. Departures: there is no mixture of Gaussians and no network, but
the belief that the package has; "some time ago" is an average over `horizon` steps; a batch is
drawn without replacement. While nothing has changed all tasks are alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.belief.logit_normal import (
    AutoBelief,
    AutoConfig,
    Expected,
    expect,
    logit_normal_belief,
    mean_rate,
)
from bots_jax.checks import check_choice, check_number
from bots_jax.compose import BeliefInfo, BeliefModel, Choice, Shared, compose, factory, plan_of
from bots_jax.implicit import Estimator, make_estimator
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.settings import AUTO_DEFAULTS, check_settings, merge_settings
from bots_jax.strategies.choices import among_allowed, drawn_by
from bots_jax.types import Array, ArrayLike, Belief, Selector, Settings, State

OF = ("task", "kind")
_UNKNOWN = -1.0  # a slow rate before the first step
_NO_CHANGE = 1e-4  # taken off each change, so that what is left of rounding is none


class Progress(NamedTuple):
    """The belief of `auto`, and what it was."""

    now: AutoBelief
    slow: Array  # f[C], average of the believed rate; below 0 where there is none yet

    def restart(self, settings: Settings, rows: Array, active: Array) -> Progress:
        """New tasks have made no progress."""
        slow = self.slow.at[rows].set(_UNKNOWN, mode="drop")
        return Progress(self.now.restart(settings, rows, active), slow)


@factory
def learning_progress(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    horizon: float = 25.0,
    novelty: float = 0.2,
    of: str = "task",
    estimator: str | Estimator = "glm",
    **shared: Unpack[Shared],
) -> Selector:
    """Tasks drawn in proportion to the absolute change of their believed success rate.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      horizon: steps over which the change is looked at, at least 1, static.
      novelty: share of the draws that is uniform, in [0, 1], static.
      of: "task", the whole belief; "kind", what references, domains and features tell; static.
      estimator: of what they tell, a name from `implicit.ESTIMATORS` or a record; static.

    Raises:
      ValueError: naming the argument and its value.
    """
    steps = check_number("horizon", horizon, 1, 1e6)
    share = check_number("novelty", novelty, 0, 1)
    alone = check_choice("of", of, OF) == "kind"
    made = make_estimator(estimator)
    given = Settings(rollouts=rollouts)
    check_settings(given)
    config = AutoConfig(made, True, True, plan_of(batch_size, shared).batch_size)
    return compose(
        name="learning-progress",
        model=_remembering(config, 1 / steps, alone),
        choice=_choice(config, share, alone),
        settings=merge_settings(AUTO_DEFAULTS, given),
        batch_size=batch_size,
        obeys=("implicit_weight",),
        static={"estimator": made.name, "horizon": steps, "novelty": share, "of": of},
        **shared,
    )


def _rate(expected: Expected, alone: bool) -> Array:
    """f[...]: the believed rate, of the kind alone if asked for."""
    if alone:
        expected = expected._replace(offset=jnp.zeros_like(expected.offset))
    return mean_rate(expected)


def _remembering(config: AutoConfig, pace: float, alone: bool) -> BeliefModel:
    """The belief of `auto`, with the average of its rates."""
    base = logit_normal_belief(config)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Progress:
        rates = reference.rates
        slow = jnp.full((rates.shape[1],), _UNKNOWN, rates.dtype)
        return Progress(base.init(settings, reference, num_domains), slow)

    def fuse(
        belief: Progress, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[Progress, BeliefInfo]:
        now, told = base.fuse(belief.now, settings, reference, fused)
        rate = _rate(expect(config, now, settings, reference, fused.domain), alone)
        moved = belief.slow + pace * (rate - belief.slow)
        slow = jnp.where(belief.slow < 0, rate, moved)
        # A step without evidence is none: the policy was not trained.
        return Progress(now, jnp.where(now.clock > belief.now.clock, slow, belief.slow)), told

    def predict(state: State, rows: Any) -> Belief:
        return base.predict(state._replace(belief=state.belief.now), rows)

    def draw(rng_key: Array, state: State) -> Array:
        return base.draw(rng_key, state._replace(belief=state.belief.now))

    return BeliefModel(init, fuse, predict, draw)


def _choice(config: AutoConfig, novelty: float, alone: bool) -> Choice:
    def score(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array
    ) -> tuple[Array, Array]:
        belief, domain = state.belief, state.pool.domain
        expected = expect(config, belief.now, state.settings, state.reference, domain)
        progress = absolute_progress(_rate(expected, alone), belief.slow, allowed)
        weights = jnp.where(
            jnp.sum(progress) > 0,
            (1 - novelty) * progress + novelty * _shares(allowed.astype(progress.dtype)),
            1,
        )
        return drawn_by(rng_key, jnp.log(weights)), mean_rate(expected)

    return among_allowed(score)


def absolute_progress(rate: Array, slow: Array, among: Array) -> Array:
    """f[C]: |p - slow| as shares of those that may be chosen; 0 where nothing is known."""
    change = jnp.maximum(jnp.abs(rate - slow) - _NO_CHANGE, 0)
    return _shares(jnp.where(among & (slow >= 0), change, 0))


def _shares(weights: Array) -> Array:
    return safe_ratio(weights, jnp.sum(weights))
