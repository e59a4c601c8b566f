"""The tasks of a large pool that differ from their group, in a hash table on the device.

In: task ids. Out: the slots in which what is known of them alone is kept. A table of T slots
has T / 64 buckets; a task may stand in any slot of the bucket that its id hashes to. Kept
little over half full, a bucket of 64 overflows once in a million; then the task with the
least of its own evidence makes room, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.numerics.short_lists import (
    bits_of_places,
    columns,
    hash_bits,
    of_part,
    part_sums,
    pass_by,
    sort_with_places,
    times_before,
    total_of,
    which_lane,
)
from bots_jax.types import Array

WAYS = 64  # slots of a bucket
FREE = -1


class Placed(NamedTuple):
    """Where new tasks were put."""

    slots: Array  # i32[M], T where there was no room
    displaced: Array  # i32, tasks that had to make room


def bucket_of(ids: Array, buckets: int) -> Array:
    """i32[M]: a bucket for each id."""
    return (hash_bits(ids) % jnp.uint32(buckets)).astype(jnp.int32)


def find(slot_ids: Array, ids: Array) -> Array:
    """i32[M]: the slot of each task, T where it has none.

    Args:
      slot_ids: i32[T], the task in each slot, or FREE. ids: i32[M]; negative ones have none.
    """
    size = slot_ids.shape[0]
    bucket = bucket_of(ids, size // WAYS)
    way = which_lane(slot_ids.reshape(-1, WAYS)[bucket] == ids[:, None], jnp.dtype(jnp.float32))
    return jnp.where((way < WAYS) & (ids >= 0), bucket * WAYS + way, size)


def place(slot_ids: Array, ids: Array, new: Array, cost: Callable[[Array], Array]) -> Placed:
    """Choose slots for tasks that have none.

    Args:
      slot_ids: i32[T]. ids: i32[M], distinct where `new`. new: bool[M].
      cost: i32[...] slots -> f[...], at least 0: what would be lost with the task in each;
        infinite for those that must be kept.
    """
    size = slot_ids.shape[0]
    bucket = jnp.where(new, bucket_of(ids, size // WAYS), -1)
    turn = _turn(bucket, size // WAYS)
    row = jnp.maximum(bucket, 0)
    free = slot_ids.reshape(-1, WAYS)[row] == FREE
    way = _nth(free, turn)
    fits = new & (way < WAYS)
    slots = jnp.where(fits, row * WAYS + way, size)

    def displace(placed: Placed) -> Placed:
        """The free ones first, then the least costly; one that must be kept never."""
        at = row[:, None] * WAYS + jnp.arange(WAYS, dtype=jnp.int32)[None]
        price = jnp.where(free, -1, cost(at))
        rank = jnp.minimum(turn, WAYS - 1)[:, None]
        order = jnp.argsort(price, axis=1).astype(jnp.int32)  # int64 under x64
        chosen = jnp.take_along_axis(order, rank, axis=1)
        paid = jnp.take_along_axis(price, chosen, axis=1)[:, 0]
        room = new & (turn < WAYS) & jnp.isfinite(paid)
        crowded = jnp.sum(room & (paid >= 0), dtype=jnp.int32)
        return Placed(jnp.where(room, row * WAYS + chosen[:, 0], size), crowded)

    return lazy_cond(jnp.any(new & ~fits), displace, Placed(slots, jnp.int32(0)))


# Entries of one bucket that are counted side by side.
_CROWD = 8


def _turn(bucket: Array, buckets: int) -> Array:
    """i32[M]: how many earlier entries name the same bucket; negative ones name none.

    Sorted, the entries of a bucket stand side by side.
    """
    size = bucket.shape[0]
    if buckets >> (32 - bits_of_places(size)):
        return times_before(bucket)
    key = jnp.where(bucket < 0, buckets, bucket).astype(jnp.uint32)
    ranked, place = sort_with_places(key)
    here = ranked.astype(jnp.int32)
    padded = jnp.concatenate([jnp.full(_CROWD, -1, jnp.int32), here])

    def shared(by: int) -> Array:
        return padded[_CROWD - by : _CROWD - by + size] == here

    turn = sum((shared(by).astype(jnp.int32) for by in range(1, _CROWD)), jnp.zeros_like(here))
    crowded = jnp.any(shared(_CROWD) & (here < buckets))
    turn = jnp.zeros_like(turn).at[place].set(turn, unique_indices=True)
    return lazy_cond(
        crowded, lambda turn: times_before(lax.optimization_barrier((bucket, turn))[0]), turn
    )


_STEP = 8


def _nth(mask: Array, n: Array) -> Array:
    """i32[M]: the index of the n-th True (from 0) of each row [M, WAYS]; WAYS if there is none."""
    true = mask.astype(jnp.float32)
    parts = columns(part_sums(true, _STEP))
    wanted = n.astype(jnp.float32)
    part, left = pass_by(parts, wanted)
    way = part * _STEP + pass_by(columns(of_part(true, part, _STEP)), left)[0]
    return jnp.where(wanted < total_of(parts), way, WAYS)
