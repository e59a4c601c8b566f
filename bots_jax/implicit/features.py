"""References as numbers that add up: logits.

In: pass rates f[K, C], -1 where unknown. Out: logits f[K, C], finite.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from bots_jax.pool.reference import Reference, is_known
from bots_jax.sharding import totals
from bots_jax.types import Array

# Attempts behind a rate where nobody has said.
_TRIALS = 8.0


def logits(reference: Reference) -> tuple[Array, Array]:
    """logit of the rates shrunk to (c + 1/2) / (n + 1), c of n solved; and where known.

    0 where unknown. n is `reference.trials`, or 8 where it was not told: rates of 0 and 1
    are then +-2.8 and not +-inf.
    """
    return _shrunk_logit(reference.rates, reference.trials)


def _shrunk_logit(rates: Array, trials: Array | None) -> tuple[Array, Array]:
    known = is_known(rates)
    rates = jnp.where(known, rates, 0.5)
    attempts: Array | float = _TRIALS if trials is None else trials
    return jnp.log((attempts * rates + 0.5) / (attempts * (1 - rates) + 0.5)), known


class Levels(NamedTuple):
    """Mean logit of each model over the tasks evaluated so far, as sums."""

    sums: Array  # f[K]
    counts: Array  # f[K]


# A model's level counts so many tasks at the level of all models.
_PRIOR_TASKS = 8.0


def no_levels(reference: Reference) -> Levels:
    """Before any task was evaluated."""
    models, dtype = reference.rates.shape[:1], reference.rates.dtype
    return Levels(jnp.zeros(models, dtype), jnp.zeros(models, dtype))


def learn_levels(levels: Levels, reference: Reference, evaluated: Array) -> Levels:
    """The levels with the evaluated tasks, bool[R], added.

    They are learned from what was evaluated, not from the pool: so they are the same for a
    dense and a grouped pool, and for one that grows.
    """
    values, known = logits(reference)
    used = known & evaluated[None]
    return Levels(
        levels.sums + totals(jnp.where(used, values, 0)),
        levels.counts + totals(used.astype(values.dtype)),
    )


def fill(levels: Levels, values: Array, known: Array) -> Array:
    """f[K, C]: unknown logits at their model's level, moved by the task's known ones.

    x_jk = level_j + sum over known i of (x_ik - level_i) / (number known + 1)

    The one more in the denominator is a task effect with the variance of the noise about it.
    """
    if not values.shape[0]:
        return values
    level = _mean_levels(levels)
    number = sum_rows(known.astype(values.dtype))
    moved = sum_rows(jnp.where(known, values - level[:, None], 0)) / (number + 1)
    return jnp.where(known, values, level[:, None] + moved[None])


def _mean_levels(levels: Levels) -> Array:
    grand = jnp.sum(levels.sums) / jnp.maximum(jnp.sum(levels.counts), 1)
    return (levels.sums + _PRIOR_TASKS * grand) / (levels.counts + _PRIOR_TASKS)


def filled_rows(levels: Levels, reference: Reference) -> list[Array]:
    """`fill(levels, *logits(reference))` row by row, f[C] each.

    Of a few models: what is made of single rows XLA fuses into one pass over the tasks, where
    an array of all rows would be written and read again.
    """
    trials = reference.trials
    pairs = [
        _shrunk_logit(row, None if trials is None else trials[model])
        for model, row in enumerate(rows_of(reference.rates))
    ]
    if not pairs:
        return []
    level = _mean_levels(levels)
    number = reduce(jnp.add, [known.astype(values.dtype) for values, known in pairs])
    above = [
        jnp.where(known, values - level[model], 0) for model, (values, known) in enumerate(pairs)
    ]
    moved = reduce(jnp.add, above) / (number + 1)
    return [
        jnp.where(known, values, level[model] + moved)
        for model, (values, known) in enumerate(pairs)
    ]


FEW_ROWS = 6  # of a matrix, up to which each is an array of its own


def rows_of(values: Array) -> list[Array]:
    """f[C] each, of f[F, C]."""
    return [lax.index_in_dim(values, i, keepdims=False) for i in range(values.shape[0])]


def sum_rows(values: Array) -> Array:
    """f[C], over the rows of f[F, C]; of a few, one by one, which XLA fuses with what follows."""
    if not 0 < values.shape[0] <= FEW_ROWS:
        return jnp.sum(values, axis=0)
    return reduce(jnp.add, rows_of(values))


def logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + jnp.tanh(0.5 * x))


def curvature(eta: Array) -> Array:
    """tanh(eta / 2) / (2 eta): the curvature of a parabola below log logistic that touches it.

    At least p (1 - p) (Jaakkola and Jordan 2000): steps towards the mode that divide by this
    never overshoot, where Newton's do if one batch is far from what was expected.
    """
    size = jnp.abs(eta)
    near = size < 1e-2
    return jnp.where(near, 0.25, jnp.tanh(0.5 * size) / (2 * jnp.where(near, 1, size)))


def shrink(eta: Array, variance: Array) -> Array:
    """The logit of E logistic(N(eta, variance)), nearly (MacKay 1992, eq. 5.2)."""
    return eta / _pull(variance)


def unshrink(logit: Array, variance: Array) -> Array:
    """The mean of a normal logit whose `shrink` is `logit`."""
    return logit * _pull(variance)


def _pull(variance: Array) -> Array:
    return jnp.sqrt(1 + (jnp.pi / 8) * variance)
