"""Uniform selection: every eligible task is equally likely. The baseline of all others.

It believes what it has counted (Beta(alpha0 + s, beta0 + n - s), nothing forgotten), so
that its belief can be compared too; the choice does not look at it.
"""

from __future__ import annotations

from typing import Unpack

import jax

from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.strategies.counting import COUNTING, counting_settings
from bots_jax.types import Array, ArrayLike, Selector, State


@factory
def uniform(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    **shared: Unpack[Shared],
) -> Selector:
    """Tasks drawn uniformly without replacement, independently at each step.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
    """
    return compose(
        name="uniform",
        model=COUNTING,
        choice=Choice(_score),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
        obeys=(),
        **shared,
    )


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    scores = jax.random.uniform(rng_key, state.pool.active.shape, state.pool.trials.dtype)
    mean = model.predict(state, slice(None)).mean
    return scores, mean
