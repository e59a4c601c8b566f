"""Shuffled epochs: every task once a pass, every order as likely as any other."""

from __future__ import annotations

import jax
import numpy as np
from scipy import stats

from bots_jax import Evidence, Selection, Selector, State
from bots_jax.strategies import epochs

FAILURE = 1e-6  # chance that a right strategy fails a test of this file


def evidence(selection: Selection) -> Evidence:
    trials = np.where(selection.valid, 4, 0)
    return Evidence(selection.task_ids, trials / 2, trials, selection.visit)


def run(selector: Selector, state: State, seed: int, steps: int) -> np.ndarray:
    """i32[steps, B] ids."""
    ids = []
    for key in jax.random.split(jax.random.key(seed), steps):
        state, selection = selector.select(key, state)
        state, _ = selector.update(state, evidence(selection))
        ids.append(np.asarray(selection.task_ids))
    return np.array(ids)


def test_each_task_once_a_pass_in_a_new_order() -> None:
    selector = epochs(batch_size=4)
    passes = run(selector, selector.init(num_tasks=12), 0, 9).reshape(3, 12)
    for one in passes:
        assert sorted(one.tolist()) == list(range(12))
    # Two orders of 12 agree with probability 1 / 12! = 2e-9.
    assert len({tuple(one) for one in passes.tolist()}) == 3


def test_a_batch_over_the_end_of_a_pass_takes_the_rest_first() -> None:
    selector = epochs(batch_size=5)
    ids = run(selector, selector.init(num_tasks=12), 1, 5).ravel()
    counts = np.stack([np.bincount(ids[:end], minlength=12) for end in (5, 10, 15, 20, 25)])
    assert np.all(np.ptp(counts, axis=1) <= 1)


def test_the_first_batch_of_any_pass_is_uniform() -> None:
    """Inclusions in the first and in the third batch of passes of two batches."""
    selector, runs = epochs(batch_size=3), 3000
    state = selector.init(num_tasks=6)

    def batches(key: jax.Array) -> jax.Array:
        def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
            state, chosen = selector.select(key, state)
            told = Evidence(chosen.task_ids, np.full(3, 2.0), 4, chosen.visit)
            return selector.update(state, told)[0], chosen.task_ids

        return jax.lax.scan(step, state, jax.random.split(key, 3))[1]

    ids = np.asarray(jax.jit(jax.vmap(batches))(jax.random.split(jax.random.key(2), runs)))
    for place in (0, 2):
        sets = np.sort(ids[:, place], axis=1) @ [36, 6, 1]
        counts = np.unique(sets, return_counts=True)[1]
        assert len(counts) == 20  # all sets of 3 of 6
        assert stats.chisquare(counts).pvalue > FAILURE / 2


def test_an_abandoned_task_is_still_due() -> None:
    selector = epochs(batch_size=4)
    state = selector.init(num_tasks=8)
    state, first = selector.select(jax.random.key(0), state)
    state = selector.abandon(state, first.task_ids[:1])
    state, _ = selector.update(state, evidence(first))  # unnumbered would count, this is stale
    state, second = selector.select(jax.random.key(1), state)
    state, _ = selector.update(state, evidence(second))
    due = (set(range(8)) | {int(first.task_ids[0])}) - set(np.asarray(second.task_ids).tolist())
    due -= set(np.asarray(first.task_ids[1:]).tolist())
    _, third = selector.select(jax.random.key(2), state)
    assert due <= set(np.asarray(third.task_ids).tolist())
    assert len(due) == 1
