"""Balanced: the chance of a mixed group, less what the task has had of late.

    choose the largest  E V - c log((visits + 1) / (mean visits + 1))
    V = 1 - p^m - (1 - p)^m,  p ~ Beta(alpha, beta) counts what was seen and forgets lambda

E V is exact: see `worth.chance_of_mixed_group`. Visits are discounted by `keep` a step. V is flat
in the middle, so the nearest p* is more choosy than it is worth; the second term buys
breadth with one knob c and gives every task a floor. No paper: an idea of this package,
to be compared with the others.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp

from bots_jax.belief.beta import beta_belief, beta_rules
from bots_jax.checks import check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.implicit import Estimator, make_estimator
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.settings import group_in_force
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.worth import (
    Visits,
    chance_of_mixed_group,
    count_visits,
    excess_of_visits,
    no_visits,
)
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


@factory
def balanced(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    forgetting: ArrayLike = 0.01,
    implicit_weight: ArrayLike = 0.0,
    estimator: str | Estimator = "none",
    breadth: float = 0.1,
    keep: float = 0.98,
    **shared: Unpack[Shared],
) -> Selector:
    """Likely mixed groups, spread over the tasks.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      forgetting: lambda.
      implicit_weight: rho, weight of implicit evidence; needs an estimator.
      estimator: of implicit evidence, as in `bots`; "none" counts only.
      breadth: c >= 0, static; 0 looks at V alone.
      keep: share of the visits that is still counted a step later, static.
    """
    cost = check_number("breadth", breadth, 0, 1e6)
    kept = check_number("keep", keep, 0, 1)
    made = make_estimator(estimator)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Visits:
        return no_visits(reference)

    def remember(
        memory: Visits, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Visits:
        return count_visits(memory, fused, kept)

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        belief = model.predict(state, slice(None))
        alpha = belief.mean * belief.concentration
        beta = belief.concentration - alpha
        value = chance_of_mixed_group(alpha, jnp.maximum(beta, 0), group_in_force(state.settings))
        excess = excess_of_visits(state.belief.memory, state.pool.active)
        return cost * excess - value, belief.mean

    return compose(
        name="balanced",
        model=counting_with(init, remember, beta_belief(beta_rules(made))),
        choice=Choice(score),
        settings=counting_settings(
            rollouts, forgetting=forgetting, implicit_weight=implicit_weight
        ),
        batch_size=batch_size,
        obeys=("group",) if made.name == "none" else ("group", "implicit_weight"),
        static={"estimator": made.name, "breadth": cost, "keep": kept},
        **shared,
    )
