"""GRESO: tasks whose last groups were all alike are skipped, the more surely the longer.

    kept with probability max(p ** c, 0.01), c the number of its last visits in a row that
    were all right (p = p_easy) or all wrong (p = p_hard); c = 0 after a mixed group
    p_easy <- clip(p_easy +- 0.01, 0.05, 0.95), up where the share of all-right groups in
    the step is below its goal, down otherwise; p_hard likewise

The goals are a third and two thirds of a zero-variance share of 0.25, p is 0.5 at first
(arXiv 2506.02177, algorithm 1 and its public code).

Departures: the order is a new shuffle at each step instead of an epoch's; a batch that is
short after the skipping is filled by going through the shuffled pool again, as often as it
takes, and not by more rollouts after it (the published loop refills until B groups are
mixed: see `strategies.oversampling.dynamic_sampling`); the shares are of the step, not of all steps
so far, and move p from the first step, not from the second epoch; a run of all-right
visits that turns into all-wrong starts again at 1.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from bots_jax.checks import check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.numerics.random_bits import open_uniform, random_bits
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import mean_rate, uniform_noise
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.types import Array, ArrayLike, Selector, Settings, State

LEAST_KEPT = 0.01  # every task is tried now and then
LEAST_BASE, MOST_BASE = 0.05, 0.95  # where p_easy and p_hard may go
EASY_SHARE = 1 / 3  # of the zero-variance goal; the rest is for the hard


class Runs(NamedTuple):
    """Visits in a row that were all alike, and how readily such tasks are kept."""

    length: Array  # i32[C]: c of all-right visits, -c of all-wrong ones, 0 after a mixed one
    easy: Array  # f, p_easy
    hard: Array  # f, p_hard

    def restart(self, settings: Settings, rows: Array, active: Array) -> Runs:
        """New tasks have no run."""
        return self._replace(length=self.length.at[rows].set(0, mode="drop"))


@factory
def greso(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    zero_variance: float = 0.25,
    step_size: float = 0.01,
    start: float = 0.5,
    **shared: Unpack[Shared],
) -> Selector:
    """Uniform selection that skips tasks which have been all right or all wrong.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      zero_variance: goal for the share of groups that are not mixed, static.
      step_size: how far p_easy and p_hard move in a step, static.
      start: p_easy and p_hard before the first step, static.
    """
    goal = check_number("zero_variance", zero_variance, 0, 1)
    step = check_number("step_size", step_size, 0, 1)
    first = check_number("start", start, LEAST_BASE, MOST_BASE)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Runs:
        base = jnp.full((), first, reference.rates.dtype)
        return Runs(jnp.zeros((reference.rates.shape[1],), jnp.int32), base, base)

    def remember(
        memory: Runs, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Runs:
        tried = fused.trials > 0
        right = tried & (fused.successes >= fused.trials)
        wrong = tried & (fused.successes <= 0)
        total = jnp.sum(tried)

        def moved(base: Array, alike: Array, aim: float) -> Array:
            share = safe_ratio(jnp.sum(alike).astype(base.dtype), total.astype(base.dtype))
            turn = jnp.where(share >= aim, -step, step).astype(base.dtype)
            next_base = jnp.clip(base + turn, LEAST_BASE, MOST_BASE)
            return jnp.where(total > 0, next_base, base)

        return Runs(
            run_lengths(memory.length, tried, right, wrong),
            moved(memory.easy, right, goal * EASY_SHARE),
            moved(memory.hard, wrong, goal * (1 - EASY_SHARE)),
        )

    return compose(
        name="greso",
        model=counting_with(init, remember),
        choice=Choice(_score),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        static={"zero_variance": goal, "step_size": step, "start": first},
        **shared,
    )


def run_lengths(length: Array, tried: Array, right: Array, wrong: Array) -> Array:
    """i32[C]: the runs after one more visit of the tasks that were tried."""
    longer_right = jnp.maximum(length, 0) + 1
    longer_wrong = jnp.minimum(length, 0) - 1
    seen = jnp.where(right, longer_right, jnp.where(wrong, longer_wrong, 0))
    return jnp.where(tried, seen, length)


def keep_probability(memory: Runs) -> Array:
    """f[C]: max(p ** c, 0.01), which is 1 for c = 0."""
    base = jnp.where(memory.length > 0, memory.easy, memory.hard)
    return jnp.maximum(base ** jnp.abs(memory.length).astype(base.dtype), LEAST_KEPT)


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    """Pass of the shuffled pool in which a task is kept, then its place in the shuffle.

    A task that each pass keeps with probability q is kept in pass floor(log U / log(1 - q)).
    """
    pass_key, place_key = jax.random.split(rng_key)
    keep = keep_probability(state.belief.memory)
    uniform = open_uniform(random_bits(pass_key, keep.shape, keep.dtype), keep.dtype)
    skipped = jnp.where(keep >= 1, 1, jnp.minimum(keep, 1 - 1e-6))
    passes = jnp.floor(jnp.log(uniform) / jnp.log1p(-jnp.where(keep >= 1, 0.5, skipped)))
    return jnp.where(keep >= 1, 0, passes) + uniform_noise(place_key, state.pool), mean_rate(
        model, state
    )
