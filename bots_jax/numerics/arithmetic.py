"""Ratios and means that stay finite, and whether numbers differ.

In: arrays of any float dtype. Out: arrays of the same dtype, finite where the input is.
"""

from __future__ import annotations

import jax.numpy as jnp

from bots_jax.sharding import total
from bots_jax.types import Array


def safe_ratio(numerator: Array, denominator: Array, otherwise: float = 0.0) -> Array:
    """numerator / denominator, and `otherwise` where the denominator is 0.

    Prevents 0 / 0 = NaN for tasks without trials. The denominator is replaced before
    the division, not after it, so that gradients stay finite too.
    """
    empty = denominator == 0
    return jnp.where(empty, otherwise, numerator / jnp.where(empty, 1, denominator))


def differ(values: Array) -> Array:
    """bool[...]: whether f[..., n] are not all alike, such as the rewards of a group."""
    return jnp.max(values, axis=-1) > jnp.min(values, axis=-1)


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` where `mask`, and 0 where nothing is."""
    sum_of = total(jnp.where(mask, values, 0))
    return safe_ratio(sum_of, jnp.sum(mask).astype(sum_of.dtype))
