"""Advantage replay: the replay distribution against plain NumPy, and its limit cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import advantage_replay
from bots_jax.strategies.advantage_replay import Levels, log_replay_chances


def replay_chances(*args, **kwargs) -> np.ndarray:
    return np.exp(np.asarray(log_replay_chances(*args, **kwargs)))


def test_chances_agree_with_numpy():
    score = np.array([0.2, 0.9, 0.5, 0.0, 0.0], np.float32)
    last = np.array([3, 8, 1, 0, 0])
    levels = Levels(jnp.asarray(score), jnp.asarray(last), jnp.int32(10))
    found = replay_chances(
        levels, jnp.ones(5, bool), jnp.zeros(5), jnp.float32(0.5), staleness=0.3, replay=0.8
    )
    rank = np.array([3.0, 1.0, 2.0])
    by_score = (1 / rank) ** 2 / ((1 / rank) ** 2).sum()
    by_age = np.array([7.0, 2.0, 9.0]) / 18
    expected = [*0.8 * (0.7 * by_score + 0.3 * by_age), 0.1, 0.1]
    np.testing.assert_allclose(found, expected, 1e-5)


def test_all_are_new_at_first_and_all_replayed_at_last():
    score, tau = jnp.array([0.1, 0.4, 0.3]), jnp.float32(1.0)
    free, ties = jnp.ones(3, bool), jnp.zeros(3)
    new = Levels(score, jnp.zeros(3, jnp.int32), jnp.int32(0))
    np.testing.assert_allclose(replay_chances(new, free, ties, tau, 0.5, 0.9), 1 / 3, 1e-6)
    seen = Levels(score, jnp.full(3, 4, jnp.int32), jnp.int32(4))
    expected = 0.5 * np.array([2, 6, 3]) / 11 + 0.5 / 3
    np.testing.assert_allclose(replay_chances(seen, free, ties, tau, 0.5, 0.9), expected, 1e-5)


def test_a_task_in_flight_has_no_chance():
    levels = Levels(jnp.array([0.9, 0.1]), jnp.array([1, 1]), jnp.int32(2))
    free = jnp.array([False, True])
    found = replay_chances(levels, free, jnp.zeros(2), jnp.float32(1.0), 0.3, 0.8)
    np.testing.assert_allclose(found, [0, 1], atol=1e-6)


def test_the_most_advantageous_comes_back_in_the_cold_limit():
    selector = advantage_replay(
        batch_size=2, rollouts=8, temperature=0.0, staleness=0.0, replay=1.0
    )
    state = selector.init(num_tasks=5)
    solved = np.array([0.0, 1, 4, 3, 8], np.float32)
    state, _ = selector.update(state, Evidence(np.arange(5), solved, 8))
    for seed in range(20):
        _, selection = selector.select(jax.random.key(seed), state)
        np.testing.assert_array_equal(selection.task_ids, [2, 3])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"replay=1.5 must lie in \[0, 1\]"):
        advantage_replay(replay=1.5)
