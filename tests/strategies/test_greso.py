"""GRESO: runs by hand, the share of tasks kept, and how the bases move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import greso
from bots_jax.strategies.greso import Runs, keep_probability


def test_runs_of_visits_that_were_all_alike():
    selector = greso(batch_size=1, rollouts=8)
    state = selector.init(num_tasks=3)
    for solved, expected in ((8, 1), (8, 2), (0, -1), (0, -2), (0, -3), (5, 0), (8, 1)):
        state, _ = selector.update(state, Evidence([1], [float(solved)], 8))
        np.testing.assert_array_equal(state.belief.memory.length, [0, expected, 0])


def test_keep_probability_is_the_power_with_a_floor():
    runs = Runs(jnp.array([0, 1, 3, -2, -30]), jnp.float32(0.5), jnp.float32(0.4))
    np.testing.assert_allclose(keep_probability(runs), [1, 0.5, 0.125, 0.16, 0.01], 1e-5)


def test_skipped_tasks_come_as_often_as_the_published_filter_lets_them_through():
    """60 mixed and 60 solved tasks, one of which is drawn at a time.

    Going through a shuffled pool, the first that is kept is a solved one with probability
    q / (1 + q) = .2 for q = p_easy^2 = .25 exactly; 4000 draws: 6 standard errors are .038.
    """
    selector = greso(batch_size=1, rollouts=8)
    state = selector.init(num_tasks=120)
    memory = state.belief.memory._replace(length=jnp.repeat(jnp.array([0, 2]), 60))
    state = state._replace(belief=state.belief._replace(memory=memory))
    keys = jax.random.split(jax.random.key(0), 4000)
    ids = jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0])(keys)
    # A pass keeps every mixed task, so the first kept has pass 0: solved ones are in it
    # with q each, and the first of the shuffle is one of them with 60 q / (60 q + 60).
    assert np.mean(np.asarray(ids) >= 60) == pytest.approx(0.2, abs=0.038)


def test_bases_move_by_a_hundredth_towards_their_goals():
    selector = greso(batch_size=1, rollouts=8)
    state = selector.init(num_tasks=20)
    # 1 of 10 all right: above 1/12, so p_easy falls; 1 of 10 all wrong: below 1/6, p_hard rises.
    solved = np.array([8, 0, *[4] * 8], np.float32)
    state, _ = selector.update(state, Evidence(np.arange(10), solved, 8))
    assert float(state.belief.memory.easy) == pytest.approx(0.49)
    assert float(state.belief.memory.hard) == pytest.approx(0.51)
    state, _ = selector.advance(state)
    assert float(state.belief.memory.easy) == pytest.approx(0.49)


def test_bases_stay_within_their_bounds():
    selector = greso(batch_size=1, rollouts=8, step_size=0.2)
    state = selector.init(num_tasks=20)
    for _ in range(5):
        state, _ = selector.update(state, Evidence([1, 2], [8.0, 8.0], 8))
    assert float(state.belief.memory.easy) == pytest.approx(0.05)
    assert float(state.belief.memory.hard) == pytest.approx(0.95)


def test_tasks_that_are_all_kept_come_in_any_order() -> None:
    """Of a hundred fresh tasks the first ten, twice: both agree with probability below 1e-13."""
    selector = greso(batch_size=10, rollouts=8)
    state = selector.init(num_tasks=100)
    first, again = (
        np.asarray(selector.select(jax.random.key(seed), state)[1].task_ids) for seed in (0, 1)
    )
    assert set(first) != set(again)
    assert max(first.max(), again.max()) >= 10
