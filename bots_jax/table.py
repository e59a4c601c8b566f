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

from bots_jax.numerics import rarely
from bots_jax.types import Array

WAYS = 64  # slots of a bucket
FREE = -1


class Placed(NamedTuple):
    """Where new tasks were put."""

    slots: Array  # i32[M], T where there was no room
    displaced: Array  # i32, tasks that had to make room


def bucket_of(ids: Array, buckets: int) -> Array:
    """i32[M]: a bucket for each id. Multiply and xor-shift (the finaliser of MurmurHash3)."""
    x = ids.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return ((x ^ (x >> 16)) % jnp.uint32(buckets)).astype(jnp.int32)


def find(slot_ids: Array, ids: Array) -> Array:
    """i32[M]: the slot of each task, T where it has none.

    Args:
      slot_ids: i32[T], the task in each slot, or FREE. ids: i32[M]; negative ones have none.
    """
    size = slot_ids.shape[0]
    bucket = bucket_of(ids, size // WAYS)
    same = slot_ids.reshape(-1, WAYS)[bucket] == ids[:, None]
    way = jnp.argmax(same, axis=1).astype(jnp.int32)
    present = jnp.any(same, axis=1) & (ids >= 0)
    return jnp.where(present, bucket * WAYS + way, size)


def place(slot_ids: Array, ids: Array, new: Array, cost: Callable[[Array], Array]) -> Placed:
    """Choose slots for tasks that have none.

    Args:
      slot_ids: i32[T]. ids: i32[M], distinct where `new`. new: bool[M].
      cost: i32[...] slots -> f[...], at least 0: what would be lost with the task in each;
        infinite for those that must be kept.
    """
    size = slot_ids.shape[0]
    bucket = jnp.where(new, bucket_of(ids, size // WAYS), -1)
    turn = _turn(bucket)
    row = jnp.maximum(bucket, 0)
    free = slot_ids.reshape(-1, WAYS)[row] == FREE
    way = _nth(free, turn)
    fits = new & (way < WAYS)
    slots = jnp.where(fits, row * WAYS + way, size)

    def displace(placed: Placed) -> Placed:
        """The free ones first, then the least costly; one that must be kept never."""
        at = row[:, None] * WAYS + jnp.arange(WAYS, dtype=jnp.int32)[None]
        price = jnp.where(free, -1, cost(at))
        ranked = jnp.argsort(price, axis=1).astype(jnp.int32)
        chosen = jnp.take_along_axis(ranked, jnp.minimum(turn, WAYS - 1)[:, None], axis=1)
        paid = jnp.take_along_axis(price, chosen, axis=1)[:, 0]
        room = new & (turn < WAYS) & jnp.isfinite(paid)
        crowded = jnp.sum(room & (paid >= 0), dtype=jnp.int32)
        return Placed(jnp.where(room, row * WAYS + chosen[:, 0], size), crowded)

    return rarely(jnp.any(new & ~fits), displace, Placed(slots, jnp.int32(0)))


def _turn(bucket: Array) -> Array:
    """i32[M]: how many earlier entries name the same bucket."""
    same = bucket[:, None] == bucket[None, :]
    earlier = jnp.tri(bucket.shape[0], k=-1, dtype=bool)
    return jnp.sum(same & earlier, axis=1, dtype=jnp.int32)


def _nth(mask: Array, n: Array) -> Array:
    """i32[M]: the index of the n-th True (from 0) of each row; its length if there is none."""
    seen = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    return jnp.sum(seen <= n[:, None], axis=1, dtype=jnp.int32)
