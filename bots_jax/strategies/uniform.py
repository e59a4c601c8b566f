"""Uniform selection: every eligible task is equally likely. The baseline of all others.

It believes what it has counted (Beta(alpha0 + s, beta0 + n - s), nothing forgotten), so
that its belief can be compared too; the choice does not look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from bots_jax.choice.batch import make_plan
from bots_jax.compose import BeliefModel, Choice, compose, factory
from bots_jax.strategies.counting import COUNTING, counting_settings
from bots_jax.types import Array, ArrayLike, Selector, State


@factory
def uniform(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    quotas: Sequence[int] | None = None,
    num_domains: int | None = None,
    expiry: int | None = None,
    dtype: Any = None,
) -> Selector:
    """Tasks drawn uniformly without replacement, independently at each step.

    Args:
      batch_size: B. rollouts: m. quotas, num_domains, expiry, dtype: as in `bots`.
    """
    return compose(
        name="uniform",
        model=COUNTING,
        choice=Choice(_score),
        settings=counting_settings(rollouts),
        plan=make_plan(batch_size, 0.0, quotas),
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
    )


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    scores = jax.random.uniform(rng_key, state.pool.active.shape, state.pool.trials.dtype)
    mean = model.predict(state.belief, state.settings, state.reference, slice(None)).mean
    return scores, mean
