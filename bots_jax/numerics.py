"""Small numerical tricks, each with the failure that it prevents.

In: arrays of any float dtype. Out: arrays of the same dtype, finite where the input is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.sharding import total
from bots_jax.types import Array, PyTree


def safe_ratio(numerator: Array, denominator: Array, otherwise: float = 0.0) -> Array:
    """numerator / denominator, and `otherwise` where the denominator is 0.

    Prevents 0 / 0 = NaN for tasks without trials. The denominator is replaced before
    the division, not after it, so that gradients stay finite too.
    """
    empty = denominator == 0
    return jnp.where(empty, otherwise, numerator / jnp.where(empty, 1, denominator))


def open_uniform(bits: Array, dtype: jnp.dtype) -> Array:
    """Uniforms in the open interval (0, 1) from integers that are not negative.

    The usual float uniform is a multiple of 2^-23: it can be 0, whose log is -inf, and
    it is too coarse for events rarer than 1e-6. (bits + 1/2) / 2^32 is never 0 and keeps
    a spacing of 2^-32 towards 0. For the same care towards 1, use `~bits`. Signed integers have
    a bit less, and are converted many at a time.
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
    largest float32 value that many of 1e7 tasks share.
    """
    small = open_uniform(random_bits(rng_key, shape, dtype), dtype)
    return -jnp.log(-jnp.log1p(-small))


def masked_mean(values: Array, mask: Array) -> Array:
    """Mean of `values` where `mask`, and 0 where nothing is."""
    sum_of = total(jnp.where(mask, values, 0))
    return safe_ratio(sum_of, jnp.sum(mask).astype(sum_of.dtype))


def zero_after(done: PyTree, dtype: jnp.dtype) -> Array:
    """0, computed after every array of `done`, all of them finite.

    Prevents copies: XLA overwrites an array in place only if whatever else reads it is known
    to come first. `x * zero_after(y, dtype)` clears x after y was made from it. (The compiler
    may not replace a float times 0, which could be NaN, by 0.)
    """
    firsts = [jnp.ravel(leaf)[0].astype(dtype) for leaf in jax.tree.leaves(done) if leaf.size]
    return jnp.sum(jnp.stack(firsts) * 0)


def rarely(needed: Array, repair: Callable[[PyTree], PyTree], value: PyTree) -> PyTree:
    """`repair(value)` where `needed`, else `value`; not computed where it is not needed.

    `lax.cond` under vmap computes both branches for every lane. A loop of at most one turn
    is left alone as long as no lane needs it.
    """

    def turn(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        with jax.named_scope("rarely"):  # to be told apart in a compiled program
            return jnp.zeros_like(carry[0]), repair(carry[1])

    return lax.while_loop(lambda carry: carry[0], turn, (needed, value))[1]


# Stirling's series for log Gamma is used from here on; smaller parameters are raised to it.
_STIRLING = 8.0


def log_beta_density(alpha: Array, beta: Array, target: Array, offset: Array) -> Array:
    """log of the Beta(alpha, beta) density at x = target + offset, in (0, 1).

    Differences of `lgamma` in float32 err by 4e-4 at 160 pseudo-counts and .6 at 1e5. Here,
    with p = a / (a + b) and everything measured from p,

        log f = a log(x / p) + b log((1 - x) / (1 - p)) + log(a b / (2 pi (a + b))) / 2
                - log(x (1 - x)) - S(a) - S(b) + S(a + b),

    S the remainder of Stirling's series, and the first two terms as
    a phi((x - p) / p) + b phi((p - x) / (1 - p)), phi(u) = log(1 + u) - u, whose linear parts
    cancel. Parameters below 8 are raised by f_{a,b}(x) = f_{a+1,b}(x) a / ((a + b) x).
    """
    x = target + offset
    a, log_a = _raised(alpha, beta, x)
    b, log_b = _raised(beta, a, 1 - x)
    total = a + b
    p, q = a / total, b / total
    away = ((target * b - (1 - target) * a) / total) + offset
    entropy = a * _log1p_minus(away / p) + b * _log1p_minus(-away / q)
    scale = 0.5 * jnp.log(a * q / (2 * jnp.pi)) - jnp.log(x * (1 - x))
    remainder = _stirling(a) + _stirling(b) - _stirling(total)
    return entropy + scale - remainder + log_a + log_b


def _raised(a: Array, b: Array, x: Array) -> tuple[Array, Array]:
    """a + 8 where a < 8, and the log of what that does to the density."""
    small = a < _STIRLING
    base = jnp.where(small, a, 1)  # where it is not raised nothing may overflow
    log_factor = jnp.zeros_like(base)
    for start in (0, 4):  # in two products, or a tiny a with a large b would underflow
        factor = jnp.ones_like(base)
        for step in range(start, start + 4):
            factor *= (base + step) / ((base + b + step) * x)
        log_factor += jnp.log(factor)
    return jnp.where(small, a + _STIRLING, a), jnp.where(small, log_factor, 0)


def _stirling(z: Array) -> Array:
    """log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2, for z >= 8."""
    inverse = 1 / z
    square = inverse * inverse
    series = 1 / 1260 - square * (1 / 1680 - square * (1 / 1188 - square * (691 / 360360)))
    return inverse * (1 / 12 - square * (1 / 360 - square * series))


def _log1p_minus(u: Array) -> Array:
    """log(1 + u) - u for u > -1, without the cancellation at small u.

    With s = u / (2 + u), log(1 + u) = 2 (s + s^3 / 3 + s^5 / 5 + ...), and 2 s - u = -u s.
    """
    near = jnp.abs(u) < 0.5
    small = jnp.where(near, u, 0)
    s = small / (2 + small)
    square = s * s
    tail = jnp.zeros_like(s)
    for power in range(33 if s.dtype == jnp.float64 else 17, 1, -2):
        tail = square * (tail + 1 / power)
    far = jnp.where(near, 0, u)
    return jnp.where(near, s * (2 * tail - small), jnp.log1p(far) - far)
