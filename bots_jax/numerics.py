"""Small numerical tricks, each with the failure that it prevents.

In: arrays of any float dtype. Out: arrays of the same dtype, finite where the input is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from bots_jax.types import Array


def safe_ratio(numerator: Array, denominator: Array, otherwise: float = 0.0) -> Array:
    """numerator / denominator, and `otherwise` where the denominator is 0.

    Prevents 0 / 0 = NaN for tasks without trials. The denominator is replaced before
    the division, not after it, so that gradients stay finite too.
    """
    empty = denominator == 0
    return jnp.where(empty, otherwise, numerator / jnp.where(empty, 1, denominator))


def open_uniform(bits: Array, dtype: jnp.dtype) -> Array:
    """Uniforms in the open interval (0, 1) from unsigned integers.

    The usual float uniform is a multiple of 2^-23: it can be 0, whose log is -inf, and
    it is too coarse for events rarer than 1e-6. (bits + 1/2) / 2^32 is never 0 and keeps
    a spacing of 2^-32 towards 0. For the same care towards 1, use `~bits`.
    """
    width = jnp.iinfo(bits.dtype).bits
    return (bits.astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-width, dtype)


def random_bits(rng_key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Unsigned random integers as wide as the floats of `dtype` deserve."""
    wide = jnp.finfo(dtype).bits == 64
    return jax.random.bits(rng_key, shape, jnp.uint64 if wide else jnp.uint32)


def key_words(rng_key: Array) -> Array:
    """u32[2] made from a key of any kind, for `lane_bits`."""
    return jax.random.bits(rng_key, (2,), jnp.uint32)


def lane_bits(
    words: Array, lanes: Array, attempt: Array, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Two independent random integers a lane, a function of key, lane and attempt alone.

    `jax.random.bits` throws one of the two words of a Threefry block away and counts by
    position, so that a gathered lane would need a key of its own. Here the counter is
    (lane, attempt), wherever the lane stands, and both words are used.

    Args:
      words: u32[2], from `key_words`.
      lanes: u32[M], number of each lane.
      attempt: u32, in [0, 2^31).
      dtype: float32 for 32 bits, float64 for 64.
    """

    def block(attempt: Array) -> tuple[Array, Array]:
        counts = jnp.concatenate([lanes, jnp.broadcast_to(attempt, lanes.shape)])
        mixed = threefry_2x32(words, counts)
        return mixed[: lanes.shape[0]], mixed[lanes.shape[0] :]

    if jnp.finfo(dtype).bits == 32:
        return block(attempt)
    twice = attempt * jnp.uint32(2)
    parts = (*block(twice), *block(twice + jnp.uint32(1)))
    high_a, low_a, high_b, low_b = (part.astype(jnp.uint64) for part in parts)
    wide = jnp.uint64(32)
    return (high_a << wide) | low_a, (high_b << wide) | low_b


def gumbel(rng_key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Standard Gumbel noise, -log(-log U).

    -log U is taken as -log1p(-V) with V = 1 - U: large Gumbels, the ones that win a
    top-B, come from small V, where `open_uniform` is finest. `jax.random.gumbel` has a
    largest float32 value that many of 1e7 tasks share.
    """
    small = open_uniform(random_bits(rng_key, shape, dtype), dtype)
    return -jnp.log(-jnp.log1p(-small))


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` where `mask`, and 0 where nothing is."""
    total = jnp.sum(jnp.where(mask, values, 0))
    return safe_ratio(total, jnp.sum(mask).astype(total.dtype))
