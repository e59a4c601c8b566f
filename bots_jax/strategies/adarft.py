"""AdaRFT: tasks whose static difficulty is nearest a target that follows the reward.

    T <- clip(T + eta tanh(a (r - p*)), 0, 100),  T = 0 at first;  choose the smallest |d - T|

with r the success rate of the step, d in [0, 100] a task's difficulty, eta = 50, a = 2 and
p* = 0.5 (arXiv 2504.05520, section 3 and its public code). Departures: d is 100 times one
minus the mean pass rate of the references that are known (the paper: of one model, or of
a rater), 50 where nothing is known; ties of |d - T| are broken at random.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.bins import static_difficulty
from bots_jax.strategies.choices import mean_rate
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Target(NamedTuple):
    """What the next batch should be like."""

    difficulty: Array  # f, T in [0, 100]

    def restart(self, settings: Settings, rows: Array, active: Array) -> Target:
        """New tasks do not move the target."""
        return self


@factory
def adarft(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    target: ArrayLike = 0.5,
    step_size: float = 50.0,
    sensitivity: float = 2.0,
    start: float = 0.0,
    **shared: Unpack[Shared],
) -> Selector:
    """Tasks nearest a target difficulty that rises with success.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: p*, the success rate at which the target difficulty rests.
      step_size: eta, largest move of T in a step; static.
      sensitivity: a, static.
      start: T before the first step, static; the paper begins with the easiest.
    """
    eta = check_number("step_size", step_size, 0, 100)
    slope = check_number("sensitivity", sensitivity, 0, 1e6)
    first = check_number("start", start, 0, 100)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Target:
        if not reference.rates.shape[0]:
            raise ValueError("reference is None: adarft needs pass rates to tell difficulty")
        return Target(jnp.full((), first, reference.rates.dtype))

    def remember(
        memory: Target, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Target:
        trials = jnp.sum(fused.trials)
        rate = safe_ratio(jnp.sum(fused.successes), trials)
        moved = memory.difficulty + eta * jnp.tanh(slope * (rate - settings.target))
        return Target(jnp.where(trials > 0, jnp.clip(moved, 0, 100), memory.difficulty))

    return compose(
        name="adarft",
        model=counting_with(init, remember),
        choice=Choice(_score),
        settings=counting_settings(rollouts, target=target),
        batch_size=batch_size,
        obeys=("target",),
        static={"step_size": eta, "sensitivity": slope, "start": first},
        **shared,
    )


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    distance = jnp.abs(static_difficulty(state.reference) - state.belief.memory.difficulty)
    return distance, mean_rate(model, state)
