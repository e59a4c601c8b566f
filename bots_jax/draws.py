"""Exact draws from Beta distributions, whole arrays at once.

In: a key and parameters alpha, beta > 0 of any shape. Out: draws of that shape, as
log-odds, as the pair (x, 1 - x), or as x alone.

The log-odds z of x ~ Beta(a, b) have the density

    f(z)  proportional to  exp(a z - (a + b) log(1 + e^z)),

which is log-concave for every a, b > 0, also below 1 where the density of x itself is
unbounded. With t = z - log(a / b), the distance from the mode, and p = a / (a + b),

    h(t) = log f(t) / f(0) = a t - (a + b) log(1 + p (e^t - 1)),
    h'(t) = -a (1 - p) (e^t - 1) / (1 + p (e^t - 1)).

A log-concave density lies below the constant at its mode and below the tangents of its
logarithm: exponential tail, plateau, exponential tail. Rejection from this envelope is
exact wherever the tangents touch, and wastes least where h = -1 (Devroye, Non-Uniform
Random Variate Generation, 1986, ch. VII.2): .88 of the proposals are kept for large a
and b, nearly all for small ones, never less than 1 - 1/e but for the touching points
being approximate. One vectorised round decides most lanes; the rest are gathered and
redrawn. "Exact" is up to rounding: about 1e-7 (max(a, b))^(1/2) in the log of the
acceptance probability in float32, and random integers of 32 bits (64 in float64).

A lane's draw is a function of the key, its index and its parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.numerics import open_uniform, random_bits
from bots_jax.types import Array, ArrayLike

# Beyond this, e^t leaves the range of float32; log(1 + p (e^t - 1)) = t + log p there.
_LARGEST_EXPONENT = 80.0
# Beyond this the density has long become its tail, so a tangent there is as good.
_LARGEST_LOGARITHM = 40.0


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


class _Envelope(NamedTuple):
    """Plateau and two exponential tails above f(t) / f(0), for a <= b."""

    a: Array
    total: Array  # a + b
    p: Array  # a / (a + b)
    left: Array  # where the left tail begins, < 0
    right: Array  # where the right tail begins, > 0
    left_rate: Array
    right_rate: Array


# Up to here it is cheaper to redraw all lanes than to gather the rejected ones.
_SMALL = 4096


def _draw_flat(rng_key: Array, alpha: Array, beta: Array) -> Array:
    usable = (alpha > 0) & (beta > 0) & jnp.isfinite(alpha + beta)
    # A NaN would never be accepted and the loops below never end.
    a, b = jnp.where(usable, alpha, 1), jnp.where(usable, beta, 1)
    log_odds = _draw_small(rng_key, a, b) if a.size <= _SMALL else _draw_large(rng_key, a, b)
    return jnp.where(usable, log_odds, jnp.nan)


def _draw_small(rng_key: Array, a: Array, b: Array) -> Array:
    def bits(attempt: Array) -> tuple[Array, Array]:
        return _array_bits(jax.random.fold_in(rng_key, attempt), a)

    return _settle(a, b, jnp.ones(a.shape, bool), bits)


def _draw_large(rng_key: Array, a: Array, b: Array) -> Array:
    """One round for all; then gather the rejected, at most an eighth of all at a time."""
    size = a.shape[0]
    room = size // 8

    def redraw(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, accepted = carry
        lanes = jnp.nonzero(~accepted, size=room, fill_value=size)[0]

        def bits(attempt: Array) -> tuple[Array, Array]:
            return _lane_bits(jax.random.fold_in(rng_key, attempt + 1), lanes, a.dtype)

        parameters = a.at[lanes].get(mode="clip"), b.at[lanes].get(mode="clip")
        settled = _settle(*parameters, lanes < size, bits)
        drawn = drawn.at[lanes].set(settled, mode="drop")
        return drawn, accepted.at[lanes].set(True, mode="drop")

    first = _propose(a, b, *_array_bits(jax.random.fold_in(rng_key, 0), a))
    return lax.while_loop(lambda carry: ~jnp.all(carry[1]), redraw, first)[0]


def _settle(
    a: Array, b: Array, pending: Array, bits: Callable[[Array], tuple[Array, Array]]
) -> Array:
    """Propose for all these lanes, round after round, until each has accepted once."""

    def another(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        drawn, pending, attempt = carry
        proposal, kept = _propose(a, b, *bits(attempt))
        return jnp.where(pending, proposal, drawn), pending & ~kept, attempt + 1

    start = (jnp.zeros_like(a), pending, jnp.int32(0))
    return lax.while_loop(lambda carry: jnp.any(carry[1]), another, start)[0]


def _array_bits(rng_key: Array, like: Array) -> tuple[Array, Array]:
    """Bits for position and height of each lane, a function of key and index."""
    position_key, height_key = jax.random.split(rng_key)
    return (
        random_bits(position_key, like.shape, like.dtype),
        random_bits(height_key, like.shape, like.dtype),
    )


def _lane_bits(rng_key: Array, lanes: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Bits that depend on the lane, not on its place among the gathered."""
    keys = jax.vmap(lambda lane: jax.random.fold_in(rng_key, lane))(lanes)
    bits = jax.vmap(lambda key: random_bits(key, (2,), dtype))(keys)
    return bits[:, 0], bits[:, 1]


def _propose(a: Array, b: Array, position: Array, height: Array) -> tuple[Array, Array]:
    """One proposal a lane, as log-odds, and whether it is accepted."""
    swapped = a > b  # Beta(a, b) mirrored is Beta(b, a); a <= b loses no digits
    low, high = jnp.where(swapped, b, a), jnp.where(swapped, a, b)
    envelope = _envelope(low, high)
    distance, log_envelope = _sample_envelope(envelope, position)
    log_height = jnp.log(open_uniform(height, a.dtype))
    accepted = log_height + log_envelope <= _log_density(envelope, distance)
    log_odds = jnp.log(low / high) + distance
    return jnp.where(swapped, -log_odds, log_odds), accepted


def _log_density(at: _Envelope, distance: Array) -> Array:
    """h(t), the log density relative to its mode."""
    bounded = jnp.minimum(distance, _LARGEST_EXPONENT)
    beyond = distance - bounded
    return at.a * distance - at.total * (jnp.log1p(at.p * jnp.expm1(bounded)) + beyond)


def _envelope(a: Array, b: Array) -> _Envelope:
    total = a + b
    p = a / total
    spread = jnp.sqrt(2 * total / a / b)  # where h would be -1 if it were a parabola
    left, left_rate = _left_tangent(a, b, total, p, spread)
    right, right_rate = _right_tangent(a, b, total, p, spread)
    return _Envelope(a, total, p, left, right, left_rate, right_rate)


def _left_tangent(a: Array, b: Array, total: Array, p: Array, spread: Array) -> tuple[Array, Array]:
    """Where the left tangent meets the plateau, and its slope."""
    touch = -(1 / a + spread)
    growth = jnp.expm1(touch)
    logarithm = jnp.log1p(p * growth)
    slope = -b * p * growth / (1 + p * growth)
    return touch - (a * touch - total * logarithm) / slope, slope


def _right_tangent(
    a: Array, b: Array, total: Array, p: Array, spread: Array
) -> tuple[Array, Array]:
    """The same on the right, where h(t) = -1 is solved for the logarithm in h.

    log(1 + p (e^t - 1)) = (1 + a t) / (a + b), with t on the right hand guessed.
    """
    logarithm = jnp.minimum((1 + a * (spread + 1 / b)) / total, _LARGEST_LOGARITHM)
    scaled = jnp.expm1(logarithm)  # p (e^t - 1)
    touch = jnp.log1p(scaled / p)
    slope = b * scaled / (1 + scaled)  # -h'
    return touch + (a * touch - total * logarithm) / slope, slope


def _sample_envelope(at: _Envelope, position: Array) -> tuple[Array, Array]:
    """A point of the envelope by inversion, and the log height of the envelope there."""
    dtype = at.a.dtype
    left_area, right_area = 1 / at.left_rate, 1 / at.right_rate
    area = left_area + (at.right - at.left) + right_area
    from_left = open_uniform(position, dtype) * area
    from_right = open_uniform(~position, dtype) * area  # fine where it is small
    in_left, in_right = from_left < left_area, from_right < right_area
    fall = jnp.where(in_left, from_left * at.left_rate, from_right * at.right_rate)
    log_fall = jnp.log(jnp.where(in_left | in_right, fall, 1))
    plateau = at.left + (from_left - left_area)
    left_tail = at.left + log_fall / at.left_rate
    right_tail = at.right - log_fall / at.right_rate
    distance = jnp.where(in_left, left_tail, jnp.where(in_right, right_tail, plateau))
    return distance, log_fall
