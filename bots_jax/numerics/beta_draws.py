"""Exact draws from Beta distributions, whole arrays at once.

In: a key and parameters alpha, beta > 0 of any shape. Out: draws of that shape, as
log-odds, as the pair (x, 1 - x), or as x alone.

The log-odds z of x ~ Beta(a, b) have a log-concave density. With t = z - log(a / b), the
distance from the mode, and p = a / (a + b), it is proportional to exp(h(t)),

    h(t) = a t - (a + b) log(1 + p (e^t - 1)),    h(0) = 0.

Proposals are logistic, but with tails that fall at two rates: u uniform in (0, 1), v = 1 - u,

    t = A^2 log(u / u0) - B^2 log(v / v0),    u0 = A / (A + B),  v0 = B / (A + B),

whose density is g(t) = 1 / (A^2 / u + B^2 / v), highest at t = 0. It is given the curvature
and the skewness that exp(h) has there, but no tail that falls faster than those of exp(h):

    A = max((r + d) / (6 m r)^(1/2), a^(-1/2)),    m = a b / (a + b),  d = (b - a) / (a + b),
    B = max((r - d) / (6 m r)^(1/2), b^(-1/2)),    r = (18 m + d^2)^(1/2),

with at least 1/4 for a and b in m and d. Then exp(h(t)) <= g(t) / g(0) (checked on a grid of
parameters from 1e-3 to 1e6, not proved; for a = b >= 1 it is algorithm BA of Cheng 1978,
Generating beta variates with nonintegral shape parameters), and t is kept with probability
exp(h(t)) g(0) / g(t): .886 to 1 of the proposals if a, b >= 1, never less than 1/2. One
vectorised round decides most lanes; the rest are gathered and redrawn. "Exact" is up to
rounding: about 1e-7 (10 + min(a, b))^(1/2) in the log of the acceptance probability in float32,
and random integers of 32 bits (64 in float64).

A lane's draw is a function of the key, its index and its parameters alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.numerics.random_bits import key_words, lane_bits, open_uniform
from bots_jax.sharding import on_each_device
from bots_jax.types import Array, ArrayLike

# Beyond this, e^t leaves the range of float32; log(1 + p (e^t - 1)) = t + log p there.
_LARGEST_EXPONENT = 80.0
# What a parameter counts as at least, where the proposals' rates are chosen.
_LEAST = 0.25


class BetaDraws(NamedTuple):
    """A draw and its complement, each to full relative precision."""

    value: Array  # x, in [0, 1]
    complement: Array  # 1 - x


def beta(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> Array:
    """Draws x ~ Beta(alpha, beta), of the broadcast shape of the parameters.

    Args:
      rng_key: a `jax.random.key`, consumed.
      alpha, beta: f[...], positive; whole numbers become floats. Those from 0.05 to 1e5 are what
        is tested.

    Returns:
      f[...] between 0 and 1; NaN where a parameter is not a positive number, as in
      `jax.random.beta`.
    """
    return _draw(rng_key, alpha, beta, value_at)


def beta_pair(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> BetaDraws:
    """Draws (x, 1 - x): near 1 a float cannot tell x from 1, but it can hold 1 - x.

    The arguments are those of `beta`.
    """
    alpha, beta = _as_floats(alpha, beta)
    distance = _draw(rng_key, alpha, beta, lambda distance, a, b: distance)
    return BetaDraws(value_at(distance, alpha, beta), value_at(-distance, beta, alpha))


def beta_log_odds(rng_key: Array, alpha: ArrayLike, beta: ArrayLike) -> Array:
    """Draws log(x / (1 - x)) for x ~ Beta(alpha, beta): no draw rounds to 0 or 1.

    The arguments are those of `beta`.
    """
    return _draw(rng_key, alpha, beta, lambda distance, a, b: jnp.log(a / b) + distance)


def value_at(distance: Array, a: Array, b: Array) -> Array:
    """x at that distance of the log-odds from their mode, log(a / b): what `propose` gives."""
    return 1 / (1 + b / a * jnp.exp(-distance))


def _as_floats(alpha: ArrayLike, beta: ArrayLike) -> tuple[Array, Array]:
    with jax.numpy_dtype_promotion("standard"):  # integers and mixed widths are welcome here
        dtype = jnp.result_type(alpha, beta, jnp.float32)
    alpha, beta = jnp.broadcast_arrays(jnp.asarray(alpha, dtype), jnp.asarray(beta, dtype))
    return alpha, beta


# Up to here it is cheaper to redraw all lanes than to gather the rejected ones.
_SMALL = 4096
# Lanes worked on at a time. On a CPU the temporaries of a chunk stay in the caches; those of
# a whole array, above 32 MB, would be handed back by the allocator after each call, and the
# page faults of the next one cost more than the draws.
_CHUNK_ON_CPU, _CHUNK_ELSEWHERE = 2**16, 2**24
# Lanes that share an unsigned integer, a bit each.
_BITS = 32

# What is made of a distance from the mode, and the parameters.
_Form = Callable[[Array, Array, Array], Array]


def _draw(rng_key: Array, alpha: ArrayLike, beta: ArrayLike, form: _Form) -> Array:
    alpha, beta = _as_floats(alpha, beta)

    def draw(first: Array, a: Array, b: Array, words: Array) -> Array:
        return _draw_piece(first, a, b, words, form)

    drawn = on_each_device(draw, (alpha.ravel(), beta.ravel()), (key_words(rng_key),))
    return drawn.reshape(alpha.shape)


def _draw_piece(first: Array, a: Array, b: Array, words: Array, form: _Form) -> Array:
    """Draws of the lanes from `first` on, chunk by chunk.

    The last chunk overlaps the one before it, where it draws the same once more.
    """
    size, origin = a.shape[0], first.astype(jnp.uint32)
    chunk = _CHUNK_ON_CPU if jax.default_backend() == "cpu" else _CHUNK_ELSEWHERE
    if size <= chunk:
        return _draw_chunk(words, a, b, origin, form)

    def draw(index: Array, drawn: Array) -> Array:
        start = jnp.minimum(index * chunk, size - chunk)
        part_a, part_b = (lax.dynamic_slice(x, (start,), (chunk,)) for x in (a, b))
        settled = _draw_chunk(words, part_a, part_b, origin + start.astype(jnp.uint32), form)
        return lax.dynamic_update_slice(drawn, settled, (start,))

    return lax.fori_loop(0, -(-size // chunk), draw, jnp.zeros_like(a))


def _draw_chunk(words: Array, a: Array, b: Array, start: Array, form: _Form) -> Array:
    usable = (a > 0) & (b > 0) & jnp.isfinite(a + b)
    lanes = start + jnp.arange(a.shape[0], dtype=jnp.uint32)
    if a.shape[0] <= _SMALL:
        distance = _settle(words, a, b, lanes, usable)
    else:
        distance = propose(a, b, *lane_bits(words, lanes, jnp.uint32(0), a.dtype))
        # A lane that no redraw could settle would keep the loop going for ever.
        distance = _redraw(words, a, b, start, jnp.where(usable, distance, 0))
    return jnp.where(usable, form(distance, a, b), jnp.nan)


def _settle(words: Array, a: Array, b: Array, lanes: Array, usable: Array) -> Array:
    """Propose to all lanes, round after round, until all are settled."""

    def another(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, attempt = carry
        proposal = propose(a, b, *lane_bits(words, lanes, attempt, a.dtype))
        return jnp.where(is_rejected(drawn), proposal, drawn), attempt + jnp.uint32(1)

    start = jnp.where(usable, _rejected(a.dtype), jnp.asarray(0, a.dtype)), jnp.uint32(0)
    return lax.while_loop(lambda carry: jnp.any(is_rejected(carry[0])), another, start)[0]


class _Queues(NamedTuple):
    """Rejected lanes, redrawn one by one in each of N / 32 columns."""

    drawn: Array  # f[N], `_rejected` where not settled
    waiting: Array  # u32[columns], bit i for a lane of row i that is not settled
    attempt: Array  # u32[columns], at the lane in turn
    proposal: Array  # f[columns], the last one to it


def _redraw(words: Array, a: Array, b: Array, start: Array, drawn: Array) -> Array:
    """Settle the lanes that were rejected in the first round.

    The chunk is laid out in 32 rows, and each column works off its rejected lanes one after
    the other. A turn places the proposals of the turn before and makes new ones: where these
    are used in the same turn, XLA computes them anew for each of their uses.
    """
    size = drawn.shape[0]
    columns = -(-size // _BITS)
    one, none = jnp.uint32(1), jnp.full((columns,), _rejected(a.dtype))
    rejected = jnp.pad(is_rejected(drawn), (0, columns * _BITS - size)).reshape(_BITS, columns)
    bits = one << jnp.arange(_BITS, dtype=jnp.uint32)[:, None]
    waiting = jnp.sum(jnp.where(rejected, bits, 0), axis=0, dtype=jnp.uint32)

    def first_of(waiting: Array) -> tuple[Array, Array]:
        """The lowest bit of each column, and its place in the chunk; beyond it if none is set."""
        bit = waiting & (~waiting + one)
        row = lax.population_count(bit - one).astype(jnp.int32)
        return bit, row * columns + jnp.arange(columns, dtype=jnp.int32)

    def turn(queues: _Queues) -> _Queues:
        drawn, waiting, attempt, proposal = queues
        bit, place = first_of(waiting)
        kept = ~is_rejected(proposal)
        drawn = drawn.at[jnp.where(kept, place, size)].set(proposal, mode="drop")
        waiting = jnp.where(kept, waiting ^ bit, waiting)
        attempt = jnp.where(kept, one, attempt + one)
        place = first_of(waiting)[1]
        its_a, its_b = (x.at[place].get(mode="clip") for x in (a, b))
        numbers = start + place.astype(jnp.uint32)
        proposal = propose(its_a, its_b, *lane_bits(words, numbers, attempt, a.dtype))
        return _Queues(drawn, waiting, attempt, proposal)

    queues = _Queues(drawn, waiting, jnp.zeros_like(waiting), none)
    return lax.while_loop(lambda queues: jnp.any(queues.waiting != 0), turn, queues).drawn


def _rejected(dtype: jnp.dtype) -> Array:
    """In place of a distance. A NaN would trip `jax_debug_nans`, or be what it shows first."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


def is_rejected(distance: Array) -> Array:
    """bool[...]: what `propose` did not accept."""
    return distance == _rejected(distance.dtype)


def propose(a: Array, b: Array, position: Array, height: Array) -> Array:
    """One proposal a lane, as distance of the log-odds from log(a / b); see `is_rejected`.

    Args:
      a, b: f[...], positive and finite.
      position, height: u[...], independent random integers, as wide as the floats.
    """
    swapped = a > b  # Beta(a, b) mirrored is Beta(b, a); a <= b loses no digits
    low, high = jnp.where(swapped, b, a), jnp.where(swapped, a, b)
    left, right = _spreads(low, high)
    root_left, root_right = jnp.sqrt(left), jnp.sqrt(right)
    width = root_left + root_right
    u = open_uniform(position, a.dtype) * (width / root_left)  # over u0
    v = open_uniform(~position, a.dtype) * (width / root_right)  # 1 - u, also where it is small
    distance = left * jnp.log(u) - right * jnp.log(v)
    offered = width * u * v / (root_left * v + root_right * u)  # g(t) / g(0)
    total = low + high
    log_density = low * distance - total * _log_growth(distance, low / total)
    accepted = jnp.log(open_uniform(height, a.dtype) * offered) <= log_density
    return jnp.where(accepted, jnp.where(swapped, -distance, distance), _rejected(a.dtype))


def _spreads(low: Array, high: Array) -> tuple[Array, Array]:
    """A^2 and B^2 of the proposals, for low <= high."""
    a, b = jnp.maximum(low, _LEAST), jnp.maximum(high, _LEAST)
    total = a + b
    m, d = a * (b / total), (b - a) / total
    r = jnp.sqrt(18 * m + d * d)
    scale = 1 / (6 * m * r)
    left = jnp.maximum((r + d) * (r + d) * scale, 1 / low)
    return left, jnp.maximum((r - d) * (r - d) * scale, 1 / high)


def _log_growth(distance: Array, p: Array) -> Array:
    """log(1 + p (e^t - 1)) to full relative precision, also where e^t overflows.

    With w = 1 + y rounded, log(1 + y) = log w + (y - (w - 1)) / w + ... The terms stand as
    they do because XLA replaces (1 + y) - 1 by y. `jnp.log1p` and `jnp.expm1` would take
    longer than all the rest of a proposal.
    """
    bounded = jnp.minimum(distance, _LARGEST_EXPONENT)
    y = p * _exp_minus_1(bounded)
    w = 1 + y
    return jnp.log(w) + ((1 - w) + y) / w + (distance - bounded)


def _exp_minus_1(t: Array) -> Array:
    """e^t - 1 to full relative precision."""
    terms = 8 if t.dtype == jnp.float32 else 16
    series = jnp.full_like(t, 1 / math.factorial(terms))
    for power in range(terms - 1, 0, -1):
        series = series * t + 1 / math.factorial(power)
    return jnp.where(jnp.abs(t) < 0.5, t * series, jnp.exp(t) - 1)
