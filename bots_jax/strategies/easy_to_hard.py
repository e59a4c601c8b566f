"""Easy to hard: a fixed curriculum by the references' pass rates.

Tasks are taken in the order of the strong, then the weak reference's pass rate, both
descending, ties at random; each once in a pass, then the next pass begins. The order is
that of Trinity-RFT's easy-to-hard selector. Departure: tasks without references come last.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.compose import BeliefModel, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import among_allowed, mean_rate
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.epochs import latest_pass
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Curriculum(NamedTuple):
    """How hard each task is, and how often it was evaluated."""

    rank: Array  # i32[C], place in the order from easy to hard
    passes: Array  # i32[C], steps in which the task was evaluated

    def restart(self, settings: Settings, rows: Array, active: Array) -> Curriculum:
        """New tasks join the next pass, as its hardest: the order was fixed at the start."""
        return Curriculum(
            self.rank.at[rows].set(self.rank.shape[0], mode="drop"),
            self.passes.at[rows].set(latest_pass(self.passes, active), mode="drop"),
        )


@factory
def easy_to_hard(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    **shared: Unpack[Shared],
) -> Selector:
    """Tasks in order of difficulty, from the easiest, pass after pass.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
    """
    return compose(
        name="easy-to-hard",
        model=counting_with(_init, _remember),
        choice=among_allowed(_score),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        **shared,
    )


def _init(settings: Settings, reference: Reference, num_domains: int) -> Curriculum:
    models, capacity = reference.rates.shape
    if not models:
        raise ValueError("reference is None: easy-to-hard orders tasks by reference pass rates")
    strong, weak = reference.rates[-1], reference.rates[0]  # the unknown are below 0, and last
    order = jnp.lexsort((-weak, -strong))
    same = (jnp.diff(strong[order]) == 0) & (jnp.diff(weak[order]) == 0)
    ranks = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(~same, dtype=jnp.int32)])
    rank = jnp.zeros(capacity, jnp.int32).at[order].set(ranks)
    return Curriculum(rank, jnp.zeros(capacity, jnp.int32))


def _remember(
    memory: Curriculum, settings: Settings, reference: Reference, fused: StepEvidence
) -> Curriculum:
    return memory._replace(passes=memory.passes + (fused.trials > 0).astype(jnp.int32))


# Ranks are dense, so there are only as many as distinct pairs of pass rates: a float32
# holds them exactly up to here, and one pass more beside them.
_MOST_RANKS = 2**23


def _score(rng_key: Array, model: BeliefModel, state: State, allowed: Array) -> tuple[Array, Array]:
    """Fewest passes first, then the easiest."""
    memory: Curriculum = state.belief.memory
    fewest = jnp.min(jnp.where(allowed, memory.passes, jnp.iinfo(jnp.int32).max))
    rank = jnp.minimum(memory.rank, _MOST_RANKS - 1).astype(state.pool.trials.dtype)
    later = jnp.where(memory.passes > fewest, _MOST_RANKS, 0)
    return rank + later, mean_rate(model, state)
