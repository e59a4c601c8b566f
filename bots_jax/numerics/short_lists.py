"""Sums and picks in many short rows, and repeats in a short list, as a CPU does them fast.

In and out: arrays of a few hundred or thousand entries, whose steps cost more by their number
than by their size. Rows are taken apart into columns, or summed as a product of matrices: a
loop without an inner loop. Repeats are found by sorting single words.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.types import Array


def columns(rows: Array) -> list[Array]:
    """Of [P, W]: W arrays [P]."""
    return [rows[:, lane] for lane in range(rows.shape[1])]


def total_of(weights: list[Array]) -> Array:
    """[P]: their sum, from the first on."""
    running = weights[0]
    for weight in weights[1:]:
        running = running + weight
    return running


def part_sums(rows: Array, size: int) -> Array:
    """f[P, W / size]: of f[P, W], sums over so many entries each."""
    width = rows.shape[1]
    ones = np.repeat(np.eye(width // size, dtype=rows.dtype), size, axis=0)
    return jnp.matmul(rows, ones, precision=lax.Precision.HIGHEST)


def of_part(rows: Array, part: Array, size: int) -> Array:
    """[P, size]: of [P, W], in each row the entries of one part, from part x size on."""
    count, width = rows.shape
    number = np.arange(count, dtype=np.int32) * np.int32(width // size) + part
    return rows.reshape(-1, size)[number]


def which_lane(same: Array, dtype: jnp.dtype) -> Array:
    """i32[P]: the lane that is True in each row of bool[P, W], of which at most one is; or W."""
    width = same.shape[1]
    back = np.arange(-width, 0, dtype=dtype)
    found = jnp.matmul(same.astype(dtype), back, precision=lax.Precision.HIGHEST)
    return width + found.astype(jnp.int32)


def pass_by(weights: list[Array], threshold: Array) -> tuple[Array, Array]:
    """i32[P]: how many of a few columns add up to the threshold; and what of it is over, [P].

    At most all but the last, also where rounding has made the threshold as large as all.
    """
    index, running = jnp.zeros(threshold.shape, jnp.int32), weights[0]
    before = jnp.zeros_like(running)
    for weight in weights[1:]:
        passed = running <= threshold
        index, before = index + passed.astype(jnp.int32), jnp.where(passed, running, before)
        running = running + weight
    return index, threshold - before


# --- repeats ----------------------------------------------------------------------------------


def repeats(values: Array, where: Array) -> Array:
    """bool: whether any two of i32[M] `values`, at least -1, are the same, among those `where`."""
    others = -2 - jnp.arange(values.shape[0], dtype=values.dtype)
    ranked = jnp.sort(jnp.where(where, values, others))
    return jnp.any(ranked[1:] == ranked[:-1])


def earlier(values: Array) -> Array:
    """bool[M, M]: whether entry j comes before entry i and is the same."""
    same = values[:, None] == values[None, :]
    return same & jnp.tri(values.shape[0], k=-1, dtype=bool)


def times_before(values: Array) -> Array:
    """i32[M]: how many earlier entries are the same, by comparing all pairs."""
    return jnp.sum(earlier(values), axis=1, dtype=jnp.int32)


# Up to this many values enough bits are left beside their places.
_MOST_BY_WORD = 4096


def bits_of_places(size: int) -> int:
    """How many bits it takes to number so many entries."""
    return max(1, (size - 1).bit_length())


def sort_with_places(keys: Array) -> tuple[Array, Array]:
    """u32[M] keys in order, and the i32[M] places they had; equals in the order of their places.

    Key and place stand in one word of 32 bits, which a CPU sorts several times faster than words
    beside places: keys must be below 2 ** (32 - `bits_of_places(M)`).
    """
    size = keys.shape[0]
    places = bits_of_places(size)
    ranked = jnp.sort((keys << places) | jnp.arange(size, dtype=jnp.uint32))
    return ranked >> places, (ranked & jnp.uint32((1 << places) - 1)).astype(jnp.int32)


# How far back values of the same hash are compared one by one.
_NEAR = 4


def seen_before(values: Array) -> Array:
    """bool[M]: whether an earlier entry of i32[M], none of them the least, is the same.

    Few values are sorted by a hash: what is the same then stands side by side, but for values
    that share it.
    """
    size = values.shape[0]
    if size > _MOST_BY_WORD:
        return _seen_before_by_place(values)
    mixed, place = sort_with_places(hash_bits(values) >> bits_of_places(size))
    value = values[place]

    def same(entries: Array, by: int) -> Array:
        """Whether each is the same as the one that stands so far in front of it."""
        none = jnp.iinfo(entries.dtype)
        before = jnp.full(_NEAR, none.min if none.min < 0 else none.max, entries.dtype)
        return jnp.concatenate([before, entries])[_NEAR - by :][:size] == entries

    near = same(value, 1) | same(value, 2) | same(value, 3)
    unsettled = jnp.any(same(mixed, _NEAR) & ~near)
    before = jnp.zeros(size, bool).at[place].set(near, unique_indices=True)
    return lazy_cond(
        unsettled,
        lambda before: jnp.any(earlier(lax.optimization_barrier((values, before))[0]), axis=1),
        before,
    )


def _seen_before_by_place(values: Array) -> Array:
    order = jnp.argsort(values, stable=True)
    inner = values[order]
    same = jnp.concatenate([jnp.zeros(1, bool), inner[1:] == inner[:-1]])
    return jnp.zeros(values.shape, bool).at[order].set(same, unique_indices=True)


def hash_bits(values: Array) -> Array:
    """u32[M] that look random. Multiply and xor-shift (the finaliser of MurmurHash3)."""
    x = values.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
