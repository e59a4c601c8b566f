"""The frontier: how much ETR there is at a breadth, for one who knows the true rates.

In: the true rates f[T, N], given as reference. At each step the B tasks are chosen with the
largest

    V_k - c log((v_k + 1) / (mean v + 1)),   V = 1 - p^m - (1 - p)^m

v being the visits so far. c = 0 takes the likeliest mixed groups; the larger c, the more
evenly the tasks are visited. Over c this traces a curve in the plane of ETR and breadth: a
strategy is as far below it as its beliefs, or its way of spreading, are worse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax.checks import check_settings
from bots_jax.compose import BeliefInfo, BeliefModel, Choice, compose, merge_settings
from bots_jax.pool import Fused
from bots_jax.reference import Reference
from bots_jax.selection import make_plan
from bots_jax.selector import PRESETS
from bots_jax.types import Array, ArrayLike, Belief, Selector, Settings, State


class Truth(NamedTuple):
    """What is known is the reference's row of the present step."""

    step: Array  # i32, steps taken
    visits: Array  # f[C]

    def restart(self, settings: Settings, rows: Array) -> Truth:
        """New tasks have had no visits."""
        return self._replace(visits=self.visits.at[rows].set(0, mode="drop"))


def frontier(
    *, batch_size: int = 32, rollouts: ArrayLike = 8, cost: float = 0.1, dtype: Any = None
) -> Selector:
    """Choice by the true rates, spread over the tasks.

    Args:
      batch_size: B. rollouts: m. cost: c >= 0. dtype: as in `bots`.

    Raises:
      ValueError: where a number is out of range.
    """
    if not cost >= 0:
        raise ValueError(f"cost={cost} must be at least 0")
    given = Settings(rollouts=rollouts)
    check_settings(given)

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        rate, m = _now(state.belief, state.reference), state.settings.rollouts
        value = 1 - rate**m - (1 - rate) ** m
        visits = state.belief.visits + 1
        excess = jnp.log(visits / jnp.mean(visits))
        return jnp.asarray(cost, rate.dtype) * excess - value, rate

    return compose(
        name="frontier",
        model=BeliefModel(_init, _fuse, _predict, _draw),
        choice=Choice(score),
        settings=merge_settings(PRESETS["paper"]["settings"], given),
        plan=make_plan(batch_size, 0.0, None),
        dtype=dtype,
        static={"reads": "truth", "cost": float(cost)},
    )


def _init(settings: Settings, reference: Reference, num_domains: int) -> Truth:
    steps, capacity = reference.rates.shape
    if not steps:
        raise ValueError("reference is None: frontier takes the true rates f[T, N] there")
    return Truth(jnp.zeros((), jnp.int32), jnp.zeros((capacity,), reference.rates.dtype))


def _fuse(
    belief: Truth, settings: Settings, reference: Reference, fused: Fused
) -> tuple[Truth, BeliefInfo]:
    zero = jnp.zeros((), fused.trials.dtype)
    visits = belief.visits + (fused.trials > 0).astype(belief.visits.dtype)
    info = BeliefInfo(jnp.zeros((fused.num_domains,), zero.dtype), zero, zero)
    return Truth(belief.step + 1, visits), info


def _now(belief: Truth, reference: Reference) -> Array:
    return reference.rates[jnp.minimum(belief.step, reference.rates.shape[0] - 1)]


def _predict(belief: Truth, settings: Settings, reference: Reference, rows: Any) -> Belief:
    mean = _now(belief, reference)[rows]
    return Belief(mean, jnp.full_like(mean, jnp.inf))


def _draw(rng_key: Array, belief: Truth, settings: Settings, reference: Reference) -> Array:
    return _now(belief, reference)
