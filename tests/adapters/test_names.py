"""What a sampler hands out comes back: names of every kind."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.names import RETIRED, TaskNames

NAME = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([1, "1", 0, "0", -1, "-1", 2**63, 2**63 - 1, -(2**63), 2**64 - 1, "True"]),
    st.text(max_size=4),
    st.text(st.sampled_from(["a", "\0"]), max_size=3),
    st.integers(-(2**31), 2**31 - 1).map(np.int32),
    st.text(max_size=2).map(np.str_),
)


def same(left: Any, right: Any) -> bool:
    return list(map(type, left)) == list(map(type, right)) and list(left) == list(right)


@given(st.lists(NAME, min_size=1, max_size=12, unique=True), st.data())
@settings(deadline=None, max_examples=300)
def test_round_trip(names: list[Any], data: st.DataObject) -> None:
    plain = [str(name) if isinstance(name, str) else int(name) for name in names]
    first = data.draw(st.integers(1, len(plain)))
    held = TaskNames(first, names[:first])
    if first < len(plain):
        held.check_new(names[first:], len(plain) - first)
        held.add(np.arange(first, len(plain)), names[first:])
    rows = np.array(data.draw(st.permutations(range(len(plain)))))
    out = held.names_of(rows)
    assert same(out.tolist(), [plain[row] for row in rows])
    np.testing.assert_array_equal(held.rows_of(out), rows)
    np.testing.assert_array_equal(held.rows_of(out.tolist()), rows)
    twice = np.concatenate([out[:1], held.names_of(rows[1:])])  # of two batches
    np.testing.assert_array_equal(held.rows_of(twice), rows)
    gone = rows[: data.draw(st.integers(0, len(rows) - 1))]
    held.retire(gone)
    np.testing.assert_array_equal(held.rows_of(out), np.where(np.isin(rows, gone), RETIRED, rows))
    other = TaskNames(first, names[:first])
    other.replay(json.loads(json.dumps(held.changes())))
    left = np.setdiff1d(rows, gone)
    assert same(other.names_of(left).tolist(), held.names_of(left).tolist())
    assert other.names_of(left).dtype.kind == held.names_of(left).dtype.kind
    assert other.changes() == held.changes()


@pytest.mark.parametrize("name", [True, 1.0, None, b"a", ("a",), np.float32(1), np.bool_(True)])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="names are strings or whole numbers"):
        TaskNames(1, [name])
    with pytest.raises(ValueError, match="names are strings or whole numbers"):
        TaskNames(1, ["a"]).rows_of([name])


def test_bytes_are_no_list_of_numbers() -> None:
    with pytest.raises(ValueError, match="names are strings or whole numbers"):
        TaskNames(2, [97, 98]).rows_of(b"ab")


def test_a_number_and_its_spelling_are_two_tasks() -> None:
    names = [name for number in range(32) for name in (number, str(number))]
    sampler = TaskSampler(bots(batch_size=64, rollouts=8), num_tasks=64, task_ids=names)
    batch = sampler.next_batch()
    assert sampler.observe(batch.task_ids, [8] * 64, 8).all()
    assert len(sampler.in_flight().rows) == 0


def test_numbers_are_not_narrowed() -> None:
    sampler = TaskSampler(bots(batch_size=4, rollouts=8), num_tasks=64)
    batch = sampler.next_batch()
    wide = batch.visits.astype(np.int64) + 2**32
    with pytest.raises(ValueError, match=r"visits contains 42949.*whole numbers of 32 bits"):
        sampler.observe(batch.task_ids, 8, 8, wide)
    with pytest.raises(ValueError, match="visits contains 42949"):
        sampler.abandon(batch.task_ids, wide)
    with pytest.raises(ValueError, match=r"visits contains 0\.5"):
        sampler.observe(batch.task_ids, 8, 8, batch.visits + 0.5)
    with pytest.raises(ValueError, match="pieces contains 4294967296"):
        sampler.observe(batch.task_ids, 8, 8, batch.visits, pieces=np.full(4, 2**32))
    with pytest.raises(ValueError, match="contains 4294967301"):
        sampler.observe([2**32 + 5], 8, 8)
    assert sampler.observe(batch.task_ids, 8, 8, batch.visits).all()


def test_what_is_gone_is_listed_in_one_order_only() -> None:
    """1 beside "1": sets that were filled in another order list alike."""
    names = [-1, "-1", 1, "1", 0, "0"]
    there, back = (TaskNames(6, names) for _ in range(2))
    there.retire(np.arange(6))
    back.retire(np.arange(6)[::-1])
    assert there.changes()["gone"] == back.changes()["gone"]


@given(st.lists(NAME, min_size=2, max_size=12, unique=True), st.data())
@settings(deadline=None, max_examples=200)
def test_another_list_finds_its_tasks(names: list[Any], data: st.DataObject) -> None:
    """Added, retired and saved in between: each task is where its name says, of its own type."""
    first = data.draw(st.integers(1, len(names) - 1))
    held = TaskNames(first, names[:first])
    gone = data.draw(st.integers(0, first - 1))
    held.retire(np.arange(gone))
    held.add(np.arange(len(names) - first) + first, names[first:])
    again = data.draw(st.booleans()) and gone > 0
    if again:  # one comes back, in another row
        held.add(np.array([len(names)]), names[:1])
    changes = json.loads(json.dumps(held.changes()))
    rows = {TaskNames(1, [name]).by_row[0]: at for at, name in enumerate(names) if at >= gone}
    if again:
        rows[TaskNames(1, [names[0]]).by_row[0]] = len(names)
    listed = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
    other = TaskNames(len(listed), listed)
    plain = [other.by_row[at] for at in range(len(listed))]
    if other.began(changes):
        assert other.follow(changes) is None
        assert other.changes() == held.changes()
        return
    kept = [name for name in plain if name in rows]
    if not kept:
        with pytest.raises(ValueError, match="none of the"):
            other.follow(changes)
        return
    moves = other.follow(changes)
    assert moves.source.tolist() == [rows.get(name, -1) for name in plain]
    assert (moves.kept, moves.added) == (len(kept), len(plain) - len(kept))
    assert moves.gone == len(rows) - len(kept)
    left = [name for name in rows if name not in plain]
    assert (other.rows_of(left) == RETIRED).all()
    assert same(other.names_of(np.arange(len(plain))).tolist(), plain)
