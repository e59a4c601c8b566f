"""Exact draws from Beta distributions, whole arrays at once.

In: a key and parameters alpha, beta > 0 of any shape. Out: draws of that shape, as
log-odds, as the pair (x, 1 - x), or as x alone.

The log-odds z of x ~ Beta(a, b) have a log-concave density. With t = z - log(a / b), the
distance from the mode, and p = a / (a + b), it is proportional to exp(h(t)),

    h(t) = a t - (a + b) log(1 + p (e^t - 1)),    h(0) = 0.

It lies below four times a logistic density of the right scale 1 / lambda,

    exp(h(t)) <= 4 u (1 - u),  u = 1 / (1 + e^(-lambda t)),
    lambda = min(a, b) if that is at most 1, else ((2 a b - a - b) / (a + b - 2))^(1/2)

(Cheng 1978, Generating beta variates with nonintegral shape parameters, algorithm BA), so a
logistic t is kept with probability exp(h(t)) / (4 u (1 - u)): .68 to 1 of the proposals if
a, b >= 1, never less than 1/4. Two vectorised rounds decide most lanes; the rest are
gathered and redrawn. "Exact" is up to rounding: about 1e-7 (max(a, b))^(1/2) in the log of
the acceptance probability in float32, and random integers of 32 bits (64 in float64).

A lane's draw is a function of the key, its index and its parameters alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.numerics import key_words, lane_bits, open_uniform
from bots_jax.sharding import on_each_device
from bots_jax.types import Array, ArrayLike

# Beyond this, e^t leaves the range of float32; log(1 + p (e^t - 1)) = t + log p there.
_LARGEST_EXPONENT = 80.0
_LOG_4 = float(np.log(4.0))


class BetaDraws(NamedTuple):
    """A draw and its complement, each to full relative precision."""

    value: Array  # x, in [0, 1]
    complement: Array  # 1 - x


def beta(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> Array:
    """Draws x ~ Beta(alpha, beta), of the broadcast shape of the parameters.

    Parameters from 0.05 to 1e5 are what is tested. A parameter that is not a positive
    number gives NaN, as in `jax.random.beta`.
    """
    return jax.nn.sigmoid(beta_log_odds(rng_key, alpha, beta))


def beta_pair(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> BetaDraws:
    """Draws (x, 1 - x): near 1 a float cannot tell x from 1, but it can hold 1 - x."""
    log_odds = beta_log_odds(rng_key, alpha, beta)
    return BetaDraws(jax.nn.sigmoid(log_odds), jax.nn.sigmoid(-log_odds))


def beta_log_odds(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> Array:
    """Draws log(x / (1 - x)) for x ~ Beta(alpha, beta): no draw rounds to 0 or 1."""
    alpha, beta = jnp.broadcast_arrays(*_as_floats(alpha, beta))
    drawn = _draw_flat(rng_key, alpha.ravel(), beta.ravel())
    return drawn.reshape(alpha.shape)


def _as_floats(alpha: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    with jax.numpy_dtype_promotion("standard"):  # integers and mixed widths are welcome here
        dtype = jnp.result_type(alpha, beta, jnp.float32)
    return jnp.asarray(alpha, dtype), jnp.asarray(beta, dtype)


# Up to here it is cheaper to redraw all lanes than to gather the rejected ones.
_SMALL = 4096
# Rounds over all lanes before those left over are gathered.
_ROUNDS = 2
# Lanes worked on at a time. On a CPU the temporaries of a chunk stay in the caches; those of
# a whole array, above 32 MB, would be handed back by the allocator after each call, and the
# page faults of the next one cost more than the draws.
_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 2**16, 2**24


def _draw_flat(rng_key: Array, alpha: Array, beta: Array) -> Array:
    usable = (alpha > 0) & (beta > 0) & jnp.isfinite(alpha + beta)
    # A NaN would never be accepted and the loops below never end.
    a, b = jnp.where(usable, alpha, 1), jnp.where(usable, beta, 1)
    drawn = on_each_device(_draw_piece, (a, b), (key_words(rng_key),))
    return jnp.where(usable, drawn, jnp.nan)


def _draw_piece(first: Array, a: Array, b: Array, words: Array) -> Array:
    """Draws of the lanes from `first` on, chunk by chunk.

    The last chunk overlaps the one before it, where it draws the same once more.
    """
    size, origin = a.shape[0], first.astype(jnp.uint32)
    chunk = _CHUNK_ON_CPU if jax.default_backend() == "cpu" else _CHUNK_ELSEWHERE
    if size <= chunk:
        return _draw_chunk(words, a, b, origin)

    def draw(index: Array, drawn: Array) -> Array:
        start = jnp.minimum(index * chunk, size - chunk)
        part_a, part_b = (lax.dynamic_slice(x, (start,), (chunk,)) for x in (a, b))
        settled = _draw_chunk(words, part_a, part_b, origin + start.astype(jnp.uint32))
        return lax.dynamic_update_slice(drawn, settled, (start,))

    return lax.fori_loop(0, -(-size // chunk), draw, jnp.zeros_like(a))


def _draw_chunk(words: Array, a: Array, b: Array, start: Array) -> Array:
    """Rounds for all; then gather the rejected, at most a sixteenth of all at a time."""
    size = a.shape[0]
    drawn = jnp.full((size,), jnp.nan, a.dtype)
    lanes = start + jnp.arange(size, dtype=jnp.uint32)
    if size <= _SMALL:
        return _settle(words, a, b, lanes, drawn, jnp.uint32(0))

    def propose_all(attempt: Array, drawn: Array) -> Array:
        proposal = propose(a, b, *lane_bits(words, lanes, attempt.astype(jnp.uint32), a.dtype))
        return jnp.where(jnp.isnan(drawn), proposal, drawn)

    drawn = lax.fori_loop(0, _ROUNDS, propose_all, drawn)

    def redraw(drawn: Array) -> Array:
        rows = jnp.nonzero(jnp.isnan(drawn), size=size // 16, fill_value=size)[0]
        row_a, row_b = (x.at[rows].get(mode="clip") for x in (a, b))
        pending = jnp.where(rows < size, jnp.asarray(jnp.nan, a.dtype), 0)
        numbers = start + rows.astype(jnp.uint32)
        settled = _settle(words, row_a, row_b, numbers, pending, jnp.uint32(_ROUNDS))
        return drawn.at[rows].set(settled, mode="drop")

    return lax.while_loop(lambda drawn: jnp.any(jnp.isnan(drawn)), redraw, drawn)


def _settle(words: Array, a: Array, b: Array, lanes: Array, drawn: Array, attempt: Array) -> Array:
    """Propose, round after round, until no lane of `drawn` is NaN."""

    def another(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, attempt = carry
        proposal = propose(a, b, *lane_bits(words, lanes, attempt, a.dtype))
        return jnp.where(jnp.isnan(drawn), proposal, drawn), attempt + jnp.uint32(1)

    return lax.while_loop(lambda carry: jnp.any(jnp.isnan(carry[0])), another, (drawn, attempt))[0]


def propose(a: Array, b: Array, position: Array, height: Array) -> Array:
    """One proposal a lane, as log-odds; NaN where it was rejected.

    Args:
      a, b: f[...], positive and finite.
      position, height: u[...], independent random integers, as wide as the floats.
    """
    swapped = a > b  # Beta(a, b) mirrored is Beta(b, a); a <= b loses no digits
    low, high = jnp.where(swapped, b, a), jnp.where(swapped, a, b)
    total = low + high
    log_u = jnp.log(open_uniform(position, a.dtype))
    log_v = jnp.log(open_uniform(~position, a.dtype))  # of 1 - u, fine where that is small
    distance = (log_u - log_v) / _scale(low, high)
    log_density = low * distance - total * _log_growth(distance, low / total)
    log_height = jnp.log(open_uniform(height, a.dtype))
    accepted = log_height <= log_density - _LOG_4 - (log_u + log_v)
    log_odds = jnp.log(low / high) + distance
    return jnp.where(accepted, jnp.where(swapped, -log_odds, log_odds), jnp.nan)


def _scale(low: Array, high: Array) -> Array:
    """Cheng's lambda, for low <= high."""
    wide = jnp.maximum(low, 1)  # where low <= 1 the root is not used, but must not be NaN
    # 2 a b - a - b and a + b - 2 without cancellation, by a = 1 + (a - 1)
    excess, more = wide - 1, jnp.maximum(high - 1, jnp.finfo(low.dtype).tiny)
    root = jnp.sqrt((2 * excess * more + excess + more) / (excess + more))
    return jnp.where(low <= 1, low, root)


def _log_growth(distance: Array, p: Array) -> Array:
    """log(1 + p (e^t - 1)), also where e^t overflows."""
    bounded = jnp.minimum(distance, _LARGEST_EXPONENT)
    return jnp.log1p(p * jnp.expm1(bounded)) + (distance - bounded)
