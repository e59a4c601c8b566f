"""Shuffled epochs: each task once a pass, in a random order drawn anew for each pass.

What a data loader with shuffling does. Taking, at each step, a random batch of those
tasks that the present pass has not had yet gives every order the same probability, so no
order needs to be kept. A batch that reaches the end of a pass begins the next one with
tasks that are not in it already.

A pass is over for a task once it has brought evidence: a task that was selected and then
abandoned, or whose visit expired, is still due. Tasks in flight, or kept
out by the mask of `select`, are left out of the count.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.compose import BeliefModel, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import among_allowed, mean_rate, uniform_noise
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Passes(NamedTuple):
    """How often each task was evaluated."""

    passes: Array  # i32[C], steps in which the task was evaluated

    def restart(self, settings: Settings, rows: Array, active: Array) -> Passes:
        """New tasks join the next pass."""
        return Passes(self.passes.at[rows].set(latest_pass(self.passes, active), mode="drop"))


def latest_pass(passes: Array, active: Array) -> Array:
    """i32: of i32[C] passes, the one that some of the tasks that there are have reached."""
    return jnp.max(jnp.where(active, passes, 0), initial=0)


@factory
def epochs(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    **shared: Unpack[Shared],
) -> Selector:
    """Each task once a pass, at random and without replacement.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
    """
    return compose(
        name="epochs",
        model=counting_with(_init, _remember),
        choice=among_allowed(_score),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        **shared,
    )


def _init(settings: Settings, reference: Reference, num_domains: int) -> Passes:
    return Passes(jnp.zeros(reference.rates.shape[1], jnp.int32))


def _remember(
    memory: Passes, settings: Settings, reference: Reference, fused: StepEvidence
) -> Passes:
    return Passes(memory.passes + (fused.trials > 0).astype(jnp.int32))


# Passes that a task may be ahead and still be told apart: a float32 between 7 and 8 keeps
# a random order among 4 million tasks.
_MOST_AHEAD = 7


def _score(rng_key: Array, model: BeliefModel, state: State, allowed: Array) -> tuple[Array, Array]:
    """Fewest passes first, at random among equals."""
    passes, dtype = state.belief.memory.passes, state.pool.trials.dtype
    fewest = jnp.min(jnp.where(allowed, passes, jnp.iinfo(jnp.int32).max))
    ahead = jnp.clip(passes - fewest, 0, _MOST_AHEAD).astype(dtype)
    return ahead + uniform_noise(rng_key, state.pool), mean_rate(model, state)
