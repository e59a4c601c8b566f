"""Random integers and uniforms that are fine enough, as functions of key and counter.

In: keys or counters. Out: bits, uniforms above 0, Gumbel noise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.types import Array


def open_uniform(bits: Array, dtype: jnp.dtype) -> Array:
    """Uniforms in (0, 1] from integers that are not negative.

    The usual float uniform is a multiple of 2^-23: it can be 0, whose log is -inf, and
    it is too coarse for events rarer than 1e-6. (bits + 1/2) / 2^32 is never 0 and keeps
    a spacing of 2^-32 towards 0. The largest integers, one in 3e7 in float32, round to 1: where
    1 minus it is wanted, use `~bits`. Signed integers have a bit less, and are converted many at
    a time.
    """
    width = int(jnp.iinfo(bits.dtype).max).bit_length()
    return (bits.astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-width, dtype)


def random_bits(rng_key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Unsigned random integers as wide as the floats of `dtype` deserve."""
    wide = jnp.finfo(dtype).bits == 64
    return jax.random.bits(rng_key, shape, jnp.uint64 if wide else jnp.uint32)


def key_words(rng_key: Array, count: int | None = None) -> Array:
    """u32[2] made from a key of any kind, for `lane_bits`; or u32[count, 2], independent ones."""
    shape = (2,) if count is None else (count, 2)
    data = jax.random.key_data(rng_key)
    if data.shape != (2,):  # not a Threefry key
        return jax.random.bits(rng_key, shape, jnp.uint32)
    # Counters that `jax.random` has no use for, so that these words are nobody else's.
    pair = threefry(data, jnp.arange(count or 1, dtype=jnp.uint32), jnp.uint32(0xFFFFFFFF))
    return jnp.stack(pair, axis=-1).reshape(shape)


def lane_bits(words: Array, lanes: Array, attempt: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Two independent random integers a lane, a function of key, lane and attempt alone.

    `jax.random.bits` throws one of the two words of a Threefry block away and counts by
    position, so that a gathered lane would need a key of its own. Here the counter is
    (lane, attempt), wherever the lane stands, and both words are used.

    Args:
      words: u32[2], from `key_words`.
      lanes: u32[M], number of each lane.
      attempt: u32, or u32[M], in [0, 2^31).
      dtype: float32 for 32 bits, float64 for 64.
    """

    if jnp.finfo(dtype).bits == 32:
        return threefry(words, lanes, attempt)
    twice = attempt * jnp.uint32(2)
    parts = (*threefry(words, lanes, twice), *threefry(words, lanes, twice + jnp.uint32(1)))
    high_a, low_a, high_b, low_b = (part.astype(jnp.uint64) for part in parts)
    wide = jnp.uint64(32)
    return (high_a << wide) | low_a, (high_b << wide) | low_b


def turn_bits(words: Array, turn: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Random integers u[shape], others at each turn of a loop.

    Args:
      words: u32[2], from `key_words`.
      turn: i32, in [0, 2^31).
      dtype: as in `lane_bits`.
    """
    size = math.prod(shape)
    lanes = jnp.arange(-(-size // 2), dtype=jnp.uint32)
    words, turn = lax.optimization_barrier((words, turn))  # all of it in the loop, in one place
    pair = lane_bits(words, lanes, turn.astype(jnp.uint32), dtype)
    # One array of both, and no part of it from one alone: XLA on CPU would work out each part
    # anew for each reader.
    return jnp.stack(pair, axis=-1).ravel()[:size].reshape(shape)


_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)


def threefry(words: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 (Salmon et al. 2011): two random u32[...] of a key u32[2] and two counters.

    The same numbers as `jax.extend.random.threefry_2x32`, whose loop over rounds a CPU takes
    three times as long to compile and to run as the rounds one by one.
    """
    keys = words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA)
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << bits) | (y >> (32 - bits)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def random_below(bits: Array, more_bits: Array, size: Array) -> Array:
    """i32[M] in [0, size), each as likely as any other, from random integers.

    64 bits times the size, less the lowest 64 of the product: no value is favoured by more
    than size / 2^64. (A float32 uniform times a billion would reach one value in 60; 32 bits
    alone would give some values 5 chances and others 4.)

    Args:
      bits, more_bits: u32[M] or u64[M]. size: i32[M], at least 1.
    """
    n = size.astype(jnp.uint32)
    upper, low = _wide_product(bits.astype(jnp.uint32), n)
    carried = _wide_product(more_bits.astype(jnp.uint32), n)[0]
    overflows = (low + carried < low).astype(jnp.uint32)
    return (upper + overflows).astype(jnp.int32)


def _wide_product(x: Array, y: Array) -> tuple[Array, Array]:
    """High and low word of the product of u32: without x64 there is no wider integer."""
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    x_low, x_high, y_low, y_high = x & mask, x >> half, y & mask, y >> half
    inner = x_low * y_low
    middle = x_high * y_low + (inner >> half)
    other = x_low * y_high + (middle & mask)
    return x_high * y_high + (middle >> half) + (other >> half), x * y


def gumbel(rng_key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Standard Gumbel noise, -log(-log U).

    -log U is taken as -log1p(-V) with V = 1 - U: large Gumbels, the ones that win a
    top-B, come from small V, where `open_uniform` is finest. `jax.random.gumbel` has a
    largest float32 value that many of 1e7 tasks share. Finite: a V of 1 would give -inf, and NaN
    at a temperature of 0.
    """
    small = open_uniform(random_bits(rng_key, shape, dtype), dtype)
    small = jnp.minimum(small, 1 - jnp.finfo(dtype).epsneg)
    return -jnp.log(-jnp.log1p(-small))
