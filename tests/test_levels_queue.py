"""The queue of levels against a plain loop; a pool is sampled, evicted and filled by rule."""

from __future__ import annotations

from collections import deque
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import levels
from bots_jax.strategies import make_strategy
from bots_jax.types import Evidence, Selection

T, S, Q = 6, 3, 7


@jax.jit
def window(playing, chosen, done, dones):
    """The levels of T steps, from a selection; `done` of the last step of the window before."""

    def step(carry, now):
        queue, playing, done = carry
        queue, playing = levels.pop(queue, playing, done)
        return (queue, playing, now), playing

    begin = (levels.open_queue(chosen), playing, done)
    (queue, playing, done), seen = jax.lax.scan(step, begin, dones)
    return queue, playing, done, seen, levels.left(queue)


def loop(slots, waiting, done, dones):
    """The same, slot by slot: (level, task, visit) of each step."""
    waiting, steps = deque(waiting), []
    for now in dones:
        for slot in range(S):
            if done[slot]:
                if waiting:
                    task, visit = waiting.popleft()
                    slots[slot] = (task, task, visit)
                else:
                    slots[slot] = (slots[slot][0], -1, -1)
        steps.append(list(slots))
        done = now
    return slots, list(waiting), done, steps


cases = st.fixed_dictionaries(
    {
        "dones": st.lists(st.booleans(), min_size=2 * T * S, max_size=2 * T * S),
        "valid": st.lists(st.booleans(), min_size=2 * Q, max_size=2 * Q),
    }
)


@settings(max_examples=100, deadline=None)
@given(cases)
def test_the_queue_is_a_loop_over_slots(case):
    """Two windows: any pattern of dones, holes in the selection, queues that run out."""
    dones = np.reshape(case["dones"], (2, T, S))
    valid = np.reshape(case["valid"], (2, Q))
    playing, slots, done = levels.no_playing(S), [(0, -1, -1)] * S, np.ones(S, bool)
    done_there = done
    for part in range(2):
        ids = np.where(valid[part], np.arange(Q) + Q * part, -1).astype(np.int32)
        visit = np.where(valid[part], ids + 100, -1).astype(np.int32)
        chosen = Selection(jnp.asarray(ids), jnp.zeros(Q), jnp.asarray(valid[part]), visit)
        queue, playing, done_there, seen, rest = window(playing, chosen, done_there, dones[part])
        waiting = [(int(i), int(v)) for i, v in zip(ids, visit, strict=True) if i >= 0]
        slots, waiting, done, steps = loop(slots, waiting, done, dones[part])
        found = np.stack([np.asarray(field) for field in seen], -1)
        assert found.tolist() == [[list(slot) for slot in step] for step in steps]
        assert [i for i in rest.tolist() if i >= 0] == [task for task, _ in waiting]
        assert int(queue.taken) == valid[part].sum() - len(waiting)
        assert done_there.tolist() == np.asarray(done).tolist()


def test_every_finished_episode_is_fused_and_nothing_stays_open():
    """Episodes of 4 steps, windows of 6: they cross the windows, and each visit is told once."""
    selector = make_strategy("uniform", batch_size=Q, rollouts=1)
    state = selector.init(num_tasks=40)
    playing, running, done = levels.no_playing(S), levels.no_running(S), jnp.ones(S, bool)
    step, fused = 0, 0
    for key in jax.random.split(jax.random.key(0), 6):
        dones = np.zeros((T, S), bool)
        for t in range(T):
            step += 1
            dones[t] = step % 4 == 0
        state, chosen = selector.select(key, state)
        _, playing, done, seen, rest = window(playing, chosen, done, jnp.asarray(dones))
        running, evidence = levels.record(
            running, dones, dones, seen.task_ids, seen.visit, episodes=None, unfinished="carry"
        )
        state = selector.abandon(state, rest)
        state, info = selector.update(state, evidence)
        assert int(info.stale) == 0
        fused += int(info.trials)
        open_now = int(np.sum(np.asarray(playing.task_ids) >= 0) - np.sum(np.asarray(done)))
        assert int(state.pool.in_flight) == open_now
    assert fused == (step // 4) * S


masks = st.lists(st.booleans(), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(masks, masks, st.integers(0, 100))
def test_only_eligible_levels_are_played(eligible, in_flight, seed):
    """levels[-1] is never the stand-in for a level that is missing."""
    selector, state = taught()
    first, second = jax.random.split(jax.random.key(seed))
    state, _ = selector.select(first, state, np.array(in_flight))
    busy = np.asarray(state.pool.visit) >= 0
    may = np.array(eligible) & ~busy
    _, slots = levels.sample(selector, second, state, 2, np.array(eligible))
    ids, played = np.asarray(slots.task_ids), np.asarray(slots.weight) > 0
    assert (played == (ids >= 0)).all()
    assert played.all() == may.any()
    assert played.any() == may.any()
    assert may[ids[played]].all()
    assert len(set(ids[played].tolist())) == min(may.sum(), 4)


@cache  # or the selector goes with the state, and all is compiled anew in each example
def taught():
    selector = make_strategy("bots", batch_size=4, rollouts=2, representation="dense")
    state = selector.init(num_tasks=8)
    rates = np.array([1, 0.9, 0.8, 0.1, 0.5, 0.6, 0, 0.3])
    return selector, selector.update(state, Evidence(np.arange(8), 64 * rates, np.full(8, 64.0)))[0]


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 8))
def test_evict_takes_the_worst_of_those_that_may_leave(in_flight, count):
    selector, state = taught()
    state, _ = selector.select(jax.random.key(0), state, np.array(in_flight))
    busy = np.asarray(state.pool.visit) >= 0
    worth = np.asarray(levels.usefulness(selector, state))
    after, rows = levels.evict(selector, state, count)
    free = [row for row in np.argsort(worth, kind="stable") if not busy[row]]
    expected = free[:count] + [-1] * (count - len(free[:count]))
    assert rows.tolist() == expected
    assert set(np.flatnonzero(~np.asarray(after.pool.active))) == set(free[:count])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=8, max_size=8), st.lists(st.integers(0, 5), min_size=5))
def test_insert_only_if_better_is_a_loop(scores, worth):
    """The best new level against the worst old one, and so on, until no gain is left."""
    selector, state = taught()
    worth = worth[:5]
    pool, rows = np.arange(8), np.full(5, -1)
    order = np.argsort(-np.array(worth), kind="stable")
    for new, old in zip(order, np.argsort(scores, kind="stable"), strict=False):
        if worth[new] > scores[old]:
            pool[old], rows[new] = 100 + new, old
    _, found, at = levels.insert(
        selector,
        state,
        jnp.arange(8),
        jnp.arange(100, 105),
        worth=np.array(worth, np.float32),
        scores=np.array(scores, np.float32),
    )
    assert at.tolist() == rows.tolist()
    assert found.tolist() == pool.tolist()


def test_histogram_and_staleness_stand_in_the_metrics():
    selector, state = taught()
    last = np.array([0, 1, 2, 3, 4, 4, 4, 4])
    told = levels.pool_metrics(selector, state, last_played=last, now=4)
    assert int(told["histogram"].sum()) == 8
    mean = np.asarray(selector.predict(state).mean)
    expected = np.histogram(mean * (1 - mean), bins=10, range=(0, 0.25))[0]
    assert told["histogram"].tolist() == expected.tolist()
    assert float(told["staleness_mean"]) == pytest.approx(10 / 8)
    assert int(told["staleness_max"]) == 4
    scored = levels.pool_metrics(selector, state, scores=np.arange(8.0), span=(0, 8), bins=2)
    assert scored["histogram"].tolist() == [4, 4]


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"span": (1, 1)}, {"last_played": np.zeros(8)}])
def test_metrics_refuse_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        levels.pool_metrics(*taught(), **wrong)
