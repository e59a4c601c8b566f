"""Lesson weights: lessons solved half the time most often (marin's curriculum, from its code).

For each lesson, a group of tasks, an exponential average p of the outcomes of its rollouts
(from .5, by .1 a rollout) and their number n; then

    w = max(0, 4 p - 4 p^2) (1 + exp(-.01 n)),    w <- w / (1 + sum w)

each at least .1, normalised again. A place in the batch is given to a lesson by w, and
then to any of its tasks.

Departures: which of a step's rollouts came last is not known, so p takes the mean over all
orders, p <- .9^n p + (1 - .9^n) s / n. A reward counts as it is, where marin counts any
reward above 0 as a success. Lessons do not unlock or graduate: that takes dependencies
and an evaluation, which the contract has no place for. Lessons are domains, or intervals
of the reference pass rate: see `bins.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_count, check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies import bins
from bots_jax.strategies.choices import among_allowed, mean_rate
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Lessons(NamedTuple):
    """The average of each lesson."""

    solved: Array  # f[bins], p
    rollouts: Array  # f[bins], n

    def restart(self, settings: Settings, rows: Array, active: Array) -> Lessons:
        """A new task changes nothing about its lesson."""
        return self


@factory
def lesson_weights(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    intervals: int = 5,
    smoothing: float = 0.1,
    floor: float = 0.1,
    **shared: Unpack[Shared],
) -> Selector:
    """Lessons by 4 p (1 - p) and newness, tasks of a lesson at random.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      intervals: lessons by reference pass rate, where there is only one domain. Static.
      smoothing: weight of one rollout in p, in [0, 1]. Static.
      floor: least probability of a lesson before the last normalisation, in [0, 1]. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    intervals = check_count("intervals", intervals)
    smoothing = check_number("smoothing", smoothing, 0, 1)
    floor = check_number("floor", floor, 0, 1)
    return compose(
        name="lesson-weights",
        model=_averages(intervals, smoothing),
        choice=_by_weight(intervals, floor),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        static={"intervals": intervals, "smoothing": smoothing, "floor": floor},
        **shared,
    )


def _averages(intervals: int, smoothing: float) -> BeliefModel:
    def init(settings: Settings, reference: Reference, num_domains: int) -> Lessons:
        count, dtype = bins.count_bins(reference, num_domains, intervals), reference.rates.dtype
        return Lessons(jnp.full((count,), 0.5, dtype), jnp.zeros((count,), dtype))

    def remember(
        memory: Lessons, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Lessons:
        lesson, count = bins.bin_of(reference, fused.domain, fused.num_domains, intervals)
        trials = bins.bin_sums(fused.trials, lesson, count)
        seen = safe_ratio(bins.bin_sums(fused.successes, lesson, count), trials)
        keep = (1 - smoothing) ** trials
        solved = keep * memory.solved + (1 - keep) * seen
        return Lessons(solved, memory.rollouts + trials)

    return counting_with(init, remember)


def weigh(solved: Array, rollouts: Array, filled: Array, floor: float) -> Array:
    """f[bins] probability of each lesson, by the equation above."""
    worth = jnp.maximum(4 * solved - 4 * solved**2, 0) * (1 + jnp.exp(-0.01 * rollouts))
    worth = jnp.where(filled, worth, 0)
    return bins.floored(worth / (1 + jnp.sum(worth)), filled, floor)


def _by_weight(intervals: int, floor: float) -> Choice:
    def score(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array
    ) -> tuple[Array, Array]:
        memory: Lessons = state.belief.memory
        lesson, count = bins.bins_of_state(state, intervals)
        filled = bins.filled_bins(state, lesson, count)
        weights = weigh(memory.solved, memory.rollouts, filled, floor)
        scores = bins.sample_bins(rng_key, jnp.log(weights), lesson, allowed)
        return scores, mean_rate(model, state)

    return among_allowed(score)
