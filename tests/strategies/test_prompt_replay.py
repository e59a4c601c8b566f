"""Prompt replay: who enters the buffer, when it is ready again, and how often."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import prompt_replay


def visit(selector, state, ids, solved, idle=0):
    state, _ = selector.update(state, Evidence(ids, np.asarray(solved, np.float32), 8))
    for _ in range(idle):
        state, _ = selector.advance(state)
    return state


def chosen(selector, state):
    _, selection = selector.select(jax.random.key(0), state)
    return np.asarray(selection.task_ids).tolist()


def test_the_buffer_holds_the_half_solved_and_gives_the_nearest_first():
    selector = prompt_replay(batch_size=4, rollouts=8, cooldown=1)
    state = selector.init(num_tasks=40)
    state = visit(selector, state, np.arange(6), [0, 2, 4, 5, 7, 8])
    np.testing.assert_array_equal(
        np.asarray(state.belief.memory.inside)[:6], [False, True, True, True, False, False]
    )
    assert chosen(selector, state)[:3] == [2, 3, 1]  # .75 of 4 places; the last is uniform


def test_a_task_rests_for_the_cooldown():
    selector = prompt_replay(batch_size=1, rollouts=8, share=1.0, cooldown=10)
    state = visit(selector, selector.init(num_tasks=2000), [7], [4], idle=8)
    # 9 steps after its visit it is one of 2000; 10 steps after, the first.
    assert chosen(selector, state) != [7]
    state, _ = selector.advance(state)
    assert chosen(selector, state) == [7]


def test_a_task_leaves_the_buffer_when_solved_and_when_used_up():
    selector = prompt_replay(batch_size=1, rollouts=8, max_reuses=2)
    state = visit(selector, selector.init(num_tasks=9), [1], [4])
    assert bool(state.belief.memory.inside[1])
    state = visit(selector, state, [1], [8])
    assert not bool(state.belief.memory.inside[1])
    state = visit(selector, state, [1], [4])  # found again by chance
    assert bool(state.belief.memory.inside[1])
    state = visit(selector, state, [1], [4])  # the second reuse
    assert int(state.belief.memory.reuses[1]) == 2
    assert not bool(state.belief.memory.inside[1])


def test_an_empty_buffer_is_uniform():
    """First of 2000 batches over 4 tasks; chi-squared of 3 degrees above 30.7: once in 1e6."""
    selector = prompt_replay(batch_size=1, rollouts=8)
    state = selector.init(num_tasks=4)
    keys = jax.random.split(jax.random.key(1), 2000)
    ids = jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0])(keys)
    seen = np.bincount(ids, minlength=4)
    assert ((seen - 500) ** 2 / 500).sum() < 30.7


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="cooldown=-1 must be an integer of at least 0"):
        prompt_replay(cooldown=-1)
    with pytest.raises(ValueError, match=r"high=0.1 must lie in \[0.25, 1\]"):
        prompt_replay(high=0.1)
