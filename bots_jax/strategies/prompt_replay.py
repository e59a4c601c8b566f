"""Prompt replay: three quarters of the batch from a buffer of tasks that were half solved.

    in the buffer     0.25 <= s/n <= 0.75 at the last visit, reused fewer than 15 times
    ready             10 steps or more since the last visit
    0.75 of the batch the ready tasks with s/n nearest p* = 0.5
    the rest          uniformly from all other tasks

(arXiv 2603.21177, by a note on it.) Departures: the fresh part is drawn uniformly from a
finite pool, so it may visit a task of the buffer, which counts as a reuse; a task that was
reused 15 times never comes back through the buffer; places that the buffer cannot fill are
drawn uniformly too.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_count, check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import mean_rate, uniform_noise
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.worth import group_rate
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Buffer(NamedTuple):
    """The tasks kept for reuse."""

    rate: Array  # f[C], s/n of the last visit
    inside: Array  # bool[C]
    last: Array  # i32[C], the step of the last visit
    reuses: Array  # i32[C], visits made while in the buffer
    step: Array  # i32, steps so far

    def restart(self, settings: Settings, rows: Array, active: Array) -> Buffer:
        """New tasks are not in the buffer and were never reused."""
        return self._replace(
            inside=self.inside.at[rows].set(False, mode="drop"),
            reuses=self.reuses.at[rows].set(0, mode="drop"),
        )


@factory
def prompt_replay(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    target: ArrayLike = 0.5,
    share: float = 0.75,
    low: float = 0.25,
    high: float = 0.75,
    cooldown: int = 10,
    max_reuses: int = 15,
    **shared: Unpack[Shared],
) -> Selector:
    """Half-solved tasks again after a while, mixed with uniform selection.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: p*, the pass rate that is reused first.
      share: of the batch that comes from the buffer, static.
      low, high: pass rates that enter the buffer, static.
      cooldown: steps between two visits through the buffer, static.
      max_reuses: of a task, static.
    """
    share = check_number("share", share, 0, 1)
    least = check_number("low", low, 0, 1)
    most = check_number("high", high, least, 1)
    wait = check_count("cooldown", cooldown, least=0)
    limit = check_count("max_reuses", max_reuses, least=0)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Buffer:
        capacity, dtype = reference.rates.shape[1], reference.rates.dtype
        never = jnp.zeros((capacity,), jnp.int32)
        outside = jnp.zeros((capacity,), bool)
        step = jnp.zeros((), jnp.int32)
        return Buffer(jnp.zeros((capacity,), dtype), outside, never, never, step)

    def remember(
        memory: Buffer, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Buffer:
        tried, step = fused.trials > 0, memory.step + 1
        rate = jnp.where(tried, group_rate(fused), memory.rate)
        reuses = memory.reuses + (tried & memory.inside).astype(jnp.int32)
        medium = (rate >= least) & (rate <= most)
        inside = jnp.where(tried, medium, memory.inside) & (reuses < limit)
        return Buffer(rate, inside, jnp.where(tried, step, memory.last), reuses, step)

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        memory: Buffer = state.belief.memory
        # `step` steps are over and the next is step + 1: it is `wait` after the last visit.
        ready = memory.inside & (memory.step + 1 - memory.last >= wait)
        distance = jnp.abs(memory.rate - state.settings.target)
        otherwise = 1 + uniform_noise(rng_key, state.pool)
        return jnp.where(ready, distance, otherwise), mean_rate(model, state)

    if "exploration" in shared:
        raise ValueError(
            f"exploration={shared['exploration']} is 1 - share={1 - share} here: give share"
        )
    shared["exploration"] = 1 - share
    return compose(
        name="prompt-replay",
        model=counting_with(init, remember),
        choice=Choice(score),
        settings=counting_settings(rollouts, target=target),
        batch_size=batch_size,
        obeys=("target",),
        static={
            "share": share,
            "low": least,
            "high": most,
            "cooldown": wait,
            "max_reuses": limit,
        },
        **shared,
    )
