"""Binned Thompson: bins by a draw of their share of mixed groups (MarinSkyRL, from its code).

For each bin of tasks, the informative (mixed) groups u and all groups v, both decayed at
every step, with r the reversion mass, pseudo-groups of which half are informative:

    u <- .95 u + informative + r / 2,    v <- .95 v + groups + r

A weight is drawn for each bin, theta ~ Beta(1 + u, 1 + v - u); the weights are normalised,
raised to at least .05 / bins, and normalised again. A place in the batch is given to a bin
by weight, and then to any of its tasks. r = 2 lets a bin at the floor be tried again; with
r = 0 the few groups that it gets confirm for ever that it is useless.

Departures: a group is what a task brought in one step. Weights are drawn anew at each
`select`, not once a step. Bins are domains, or intervals of the reference pass rate: see
`bins.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from bots_jax.checks import check_count, check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics import beta_draws
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence, is_mixed
from bots_jax.strategies import bins
from bots_jax.strategies.choices import among_allowed, mean_rate
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Groups(NamedTuple):
    """The groups of each bin."""

    informative: Array  # f[bins], u
    groups: Array  # f[bins], v

    def restart(self, settings: Settings, rows: Array, active: Array) -> Groups:
        """A new task changes nothing about its bin."""
        return self


@factory
def binned_thompson(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    intervals: int = 5,
    keep: float = 0.95,
    floor: float = 0.05,
    reversion: float = 2.0,
    **shared: Unpack[Shared],
) -> Selector:
    """Bins by Thompson draws of their share of mixed groups, tasks of a bin at random.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      intervals: bins by reference pass rate, where there is only one domain. Static.
      keep: share of a bin's counts that survives a step, in [0, 1]. Static.
      floor: probability shared out among all bins whatever they are worth, in [0, 1]. Static.
      reversion: r, pseudo-groups a step; 0 or 2 in the published runs. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    intervals = check_count("intervals", intervals)
    keep = check_number("keep", keep, 0, 1)
    floor = check_number("floor", floor, 0, 1)
    reversion = check_number("reversion", reversion, 0, math.inf)
    return compose(
        name="binned-thompson",
        model=_decayed_groups(intervals, keep, reversion),
        choice=_by_draw(intervals, floor),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        static={"intervals": intervals, "keep": keep, "floor": floor, "reversion": reversion},
        **shared,
    )


def _decayed_groups(intervals: int, keep: float, reversion: float) -> BeliefModel:
    def init(settings: Settings, reference: Reference, num_domains: int) -> Groups:
        count = bins.count_bins(reference, num_domains, intervals)
        none = jnp.zeros((count,), reference.rates.dtype)
        return Groups(none, none)

    def remember(
        memory: Groups, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Groups:
        at, count = bins.bin_of(reference, fused.domain, fused.num_domains, intervals)
        dtype = fused.trials.dtype
        informative = bins.bin_sums(is_mixed(fused).astype(dtype), at, count)
        groups = bins.bin_sums((fused.trials > 0).astype(dtype), at, count)
        informative += keep * memory.informative + reversion / 2
        return Groups(informative, keep * memory.groups + groups + reversion)

    return counting_with(init, remember)


def draw_weights(rng_key: Array, memory: Groups, filled: Array, floor: float) -> Array:
    """f[bins] probability of each bin, by the rule above."""
    dull = memory.groups - memory.informative
    theta = beta_draws.beta(rng_key, 1 + memory.informative, 1 + dull)
    theta = bins.floored(theta, filled, 0)
    least = floor / jnp.maximum(jnp.sum(filled.astype(theta.dtype)), 1)
    return bins.floored(theta, filled, least)


def _by_draw(intervals: int, floor: float) -> Choice:
    def score(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array
    ) -> tuple[Array, Array]:
        weight_key, task_key = jax.random.split(rng_key)
        at, count = bins.bins_of_state(state, intervals)
        filled = bins.filled_bins(state, at, count)
        weights = draw_weights(weight_key, state.belief.memory, filled, floor)
        scores = bins.sample_bins(task_key, jnp.log(weights), at, allowed)
        return scores, mean_rate(model, state)

    return among_allowed(score)
