"""Easy to hard, against a loop that sorts the tasks anew for each pass."""

from __future__ import annotations

import jax
import numpy as np

from bots_jax import Evidence
from bots_jax.strategies import easy_to_hard

# Columns are tasks: ties of the strong reference, a full tie (2 and 6), and the last is unknown.
WEAK = np.array([0.1, 0.5, 0.2, 0.0, 0.4, 0.3, 0.2, 0.1, 0.9, 0.3, 0.6, np.nan], np.float32)
STRONG = np.array([0.9, 0.5, 0.7, 0.2, 0.7, 0.8, 0.7, 0.1, 0.9, 0.2, 0.6, np.nan], np.float32)
ORDER = [8, 0, 5, 4, {2, 6}, 10, 1, 9, 3, 7, 11]


def flat(order: list) -> list:
    """The order with a full tie as the set of its tasks, at each of its places."""
    return [x for x in order for _ in range(len(x) if isinstance(x, set) else 1)]


def taken(steps: int, batch_size: int = 4, skipped: int | None = None, seed: int = 0) -> list[int]:
    selector = easy_to_hard(batch_size=batch_size, rollouts=2)
    state, ids = selector.init(np.stack([WEAK, STRONG])), []
    allowed = np.ones(WEAK.size, bool)
    if skipped is not None:
        allowed[skipped] = False
    for key in jax.random.split(jax.random.key(seed), steps):
        state, batch = selector.select(key, state, allowed)
        ids += np.asarray(batch.task_ids)[np.asarray(batch.valid)].tolist()
        told = Evidence(batch.task_ids, np.ones(batch_size), 2, batch.visit)
        state, _ = selector.update(state, told)
    return ids


def test_each_pass_goes_from_easy_to_hard() -> None:
    """The strong reference first, then the weak; the unknown last; then again from the start."""
    ids = taken(6)
    for found, meant in zip(ids, flat(ORDER) * 2, strict=True):
        assert found == meant or (isinstance(meant, set) and found in meant)
    assert sorted(ids) == sorted(2 * list(range(12)))


def test_ties_are_broken_at_random() -> None:
    """Of two tasks tied the batch has room for one. 20 runs agree with probability 2^-19."""
    assert {taken(1, batch_size=5, seed=seed)[4] for seed in range(20)} == {2, 6}


def test_a_pass_is_over_when_all_that_may_be_chosen_are_through() -> None:
    """One task is never eligible, and is not waited for."""
    ids = taken(5, skipped=0)
    assert ids.count(0) == 0
    assert sorted(ids[:11]) == sorted(set(range(12)) - {0})
    assert ids[11] == 8  # the next pass begins within the batch
    assert ids[12:15] == [5, 4, ids[14]]
