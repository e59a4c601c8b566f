"""`short_lists.py` and `grouped/table.py` against plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax.grouped import table
from bots_jax.numerics import short_lists

# Few compilations: every example has the same shape.
SIZE = 48
ids = st.lists(st.integers(-1, 40), min_size=SIZE, max_size=SIZE)


def seen_before_by_loop(values: np.ndarray) -> list[bool]:
    return [value in values[:at] for at, value in enumerate(values)]


@settings(deadline=None, max_examples=100)
@given(values=ids, where=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE))
def test_repeats_and_seen_before(values: list[int], where: list[bool]) -> None:
    array, mask = np.array(values, np.int32), np.array(where)
    seen = jax.jit(short_lists.seen_before)(jnp.asarray(array))
    assert np.asarray(seen).tolist() == seen_before_by_loop(array)
    again = jax.jit(short_lists.repeats)(jnp.asarray(array), jnp.asarray(mask))
    assert bool(again) == (len(set(array[mask].tolist())) < mask.sum())


def test_seen_before_where_values_share_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_lists, "hash_bits", lambda values: values.astype(jnp.uint32) & 1)
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 300):
        values = rng.integers(0, size, size).astype(np.int32)
        seen = short_lists.seen_before(jnp.asarray(values))
        assert np.asarray(seen).tolist() == seen_before_by_loop(values)


def test_seen_before_of_many() -> None:
    values = np.random.default_rng(1).integers(0, 9000, 6000).astype(np.int32)
    seen = short_lists.seen_before(jnp.asarray(values))
    assert np.asarray(seen).tolist() == seen_before_by_loop(values)


@jax.jit
def put(slot_ids: jax.Array, entries: jax.Array, wanted: jax.Array) -> tuple[jax.Array, ...]:
    wanted &= table.find(slot_ids, entries) == slot_ids.shape[0]
    placed = table.place(slot_ids, entries, wanted, lambda at: at.astype(jnp.float32))
    slot_ids = slot_ids.at[placed.slots].set(entries, mode="drop")
    return slot_ids, placed.slots, placed.displaced, table.find(slot_ids, entries)


@settings(deadline=None, max_examples=60)
@given(
    new=st.lists(st.integers(0, 2**31 - 1), min_size=SIZE, max_size=SIZE, unique=True),
    held=st.lists(st.integers(0, 2**31 - 1), max_size=90, unique=True),
)
def test_a_placed_task_is_found_and_nobody_is_lost(new: list[int], held: list[int]) -> None:
    """Two buckets of 64 for up to 138 tasks: some must make room for others."""
    free = jnp.full((2 * table.WAYS,), table.FREE, jnp.int32)
    before = np.array([entry for entry in held if entry not in new], np.int32)
    padded = np.pad(before, (0, 90 - len(before)), constant_values=-1)
    slot_ids, *_ = put(free, jnp.asarray(padded), jnp.asarray(padded >= 0))
    kept = {entry for entry in np.asarray(slot_ids).tolist() if entry != table.FREE}
    wanted = jnp.ones(SIZE, bool)
    slot_ids, slots, displaced, found = put(slot_ids, jnp.asarray(new, jnp.int32), wanted)
    there = np.asarray(slots) < free.shape[0]
    np.testing.assert_array_equal(np.asarray(found)[there], np.asarray(slots)[there])
    assert len(set(np.asarray(slots)[there].tolist())) == there.sum()
    left = {entry for entry in np.asarray(slot_ids).tolist() if entry != table.FREE}
    assert len(kept - left) == int(displaced)
    assert len(left) == len(kept) - int(displaced) + there.sum()


def test_the_nth_free_slot() -> None:
    rng = np.random.default_rng(2)
    mask = rng.random((400, table.WAYS)) < rng.random((400, 1))
    n = rng.integers(0, table.WAYS, 400).astype(np.int32)
    way = np.asarray(table._nth(jnp.asarray(mask), jnp.asarray(n)))
    for row, wanted, found in zip(mask, n, way, strict=True):
        places = np.flatnonzero(row)
        assert found == (places[wanted] if wanted < len(places) else table.WAYS)
