"""The oracle: choice by the true rates, which only a replay or a simulator can tell.

    "nearest"  the smallest |p - p*|
    "mixed"    the largest V - c log((visits + 1) / (mean visits + 1)),
               V = 1 - p^m - (1 - p)^m or another worth, visits discounted by `keep` a step

It sees them all, or (`sees="visited"`) the rate that each task had at its last visit, as told by
a visit of endlessly many rollouts; tasks never visited count as p = 1/2. What is between the two is
the price of finding the tasks.

No strategy that sees what it has rolled out can beat "mixed" with c = 0 in the share of
mixed groups; with growing c it traces how much of it breadth costs. It is no strategy for
training: its `init` takes the true rates f[T, N] as `reference`, row t for step t + 1, and it
is therefore not in `STRATEGIES` but in `ORACLES`. Where the rates are of a policy that learns
meanwhile (`rl.seeds`), T is 1 and that row is written anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_choice, check_number
from bots_jax.choice.nearest import nearest_target
from bots_jax.choice.worth import WorthFn, find_worth
from bots_jax.compose import BeliefInfo, BeliefModel, Choice, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.settings import group_in_force
from bots_jax.strategies.counting import counting_settings, no_inference
from bots_jax.strategies.worth import (
    Visits,
    count_visits,
    excess_of_visits,
    no_visits,
)
from bots_jax.types import Array, ArrayLike, Belief, Selector, Settings, State


class Truth(NamedTuple):
    """The belief of the oracle is the reference's row of the present step."""

    step: Array  # i32, steps taken
    visits: Visits
    seen: Array | None  # f[C], the rates at the last visits; None: it sees the present ones

    def restart(self, settings: Settings, rows: Array, active: Array) -> Truth:
        """New tasks bring their own rates, in the reference."""
        seen = None if self.seen is None else self.seen.at[rows].set(UNSEEN, mode="drop")
        return self._replace(visits=self.visits.restart(settings, rows, active), seen=seen)


UNSEEN = 0.5  # a task that was never visited is worth a visit


@factory
def oracle(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 8,
    target: ArrayLike = 0.5,
    choice: str = "nearest",
    worth: str | WorthFn = "mixed",
    breadth: float = 0.0,
    keep: float = 0.98,
    sees: str = "all",
    **shared: Unpack[Shared],
) -> Selector:
    """Choice by the true rates.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: p*, for "nearest".
      choice: "nearest" or "mixed", as above.
      worth: what a task is worth to the gradient, for "mixed", as in `auto`; static.
      breadth: c >= 0, for "mixed"; static.
      keep: share of the visits that is still counted a step later, static.
      sees: "all" rates of the present step, or those of "visited" tasks at their last visit.
    """
    chosen = check_choice("choice", choice, ("nearest", "mixed"))
    cost = check_number("breadth", breadth, 0, 1e6)
    kept = check_number("keep", keep, 0, 1)
    value = find_worth(worth)
    finds = check_choice("sees", sees, ("all", "visited")) == "visited"
    if chosen == "nearest" and value.name != "mixed":
        raise ValueError(f"worth={value.name!r} has no effect with choice='nearest'")

    def init(settings: Settings, reference: Reference, num_domains: int) -> Truth:
        if not reference.rates.shape[0]:
            raise ValueError("reference is None: the oracle takes the true rates f[T, N] there")
        seen = jnp.full_like(reference.rates[0], UNSEEN) if finds else None
        return Truth(jnp.zeros((), jnp.int32), no_visits(reference), seen)

    def fuse(
        belief: Truth, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[Truth, BeliefInfo]:
        visits = count_visits(belief.visits, fused, kept)
        seen = belief.seen
        if seen is not None:
            seen = jnp.where(fused.trials > 0, _row(belief.step, reference), seen)
        return Truth(belief.step + 1, visits, seen), no_inference(fused)

    def mixed(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        rate = _now(state.belief, state.reference)
        lack = value.lack(rate, group_in_force(state.settings))
        return cost * excess_of_visits(state.belief.visits, state.pool.active) + lack, rate

    return compose(
        name="oracle",
        model=BeliefModel(init, fuse, _predict, _draw),
        choice=nearest_target("mean") if chosen == "nearest" else Choice(mixed),
        settings=counting_settings(rollouts, target=target),
        batch_size=batch_size,
        obeys=("target",) if chosen == "nearest" else ("group",),
        static={"choice": chosen, "worth": value.name, "breadth": cost, "keep": kept, "sees": sees},
        **shared,
    )


def _now(belief: Truth, reference: Reference) -> Array:
    return _row(belief.step, reference) if belief.seen is None else belief.seen


def _row(step: Array, reference: Reference) -> Array:
    return reference.rates[jnp.minimum(step, reference.rates.shape[0] - 1)]


def _predict(state: State, rows: Any) -> Belief:
    mean = _now(state.belief, state.reference)[rows]
    return Belief(mean, jnp.full_like(mean, jnp.inf))


def _draw(rng_key: Array, state: State) -> Array:
    return _now(state.belief, state.reference)
