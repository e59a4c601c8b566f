"""AdaRFT: the sequence of targets by hand, and the tasks nearest to them."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import adarft

RATES = np.array([[0.9, 0.7, 0.5, 0.3, 0.1]], np.float32)  # difficulty 10, 30, 50, 70, 90


def test_target_follows_the_reward_as_by_hand():
    selector = adarft(batch_size=2, rollouts=8)
    state = selector.init(RATES)
    expected = 0.0
    for rate in (1.0, 1.0, 0.75, 0.5, 0.0, 0.0, 0.0):
        expected += 50 * math.tanh(2 * (rate - 0.5))
        expected = min(max(expected, 0.0), 100.0)
        state, _ = selector.update(state, Evidence([0, 1], [8 * rate, 8 * rate], 8))
        assert float(state.belief.memory.difficulty) == pytest.approx(expected, abs=1e-4)
    assert expected == 0.0  # 38.1, 76.2, 99.3, 99.3, 61.2, 23.1, 0: clipped at the end


def test_takes_the_nearest_difficulty():
    selector = adarft(batch_size=2, rollouts=8, start=62)
    _, selection = selector.select(jax.random.key(0), selector.init(RATES))
    assert set(np.asarray(selection.task_ids)) == {2, 3}


def test_no_evidence_leaves_the_target():
    selector = adarft(batch_size=2, start=40)
    state, _ = selector.advance(selector.init(RATES))
    assert float(state.belief.memory.difficulty) == 40


def test_an_unknown_task_stands_in_the_middle():
    selector = adarft(batch_size=1, start=50)
    state = selector.init(np.array([[0.9, np.nan, 0.1], [1.0, np.nan, 0.4]], np.float32))
    _, selection = selector.select(jax.random.key(0), state)
    assert int(selection.task_ids[0]) == 1


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"start=-1 must lie in \[0, 100\]"):
        adarft(start=-1)
    with pytest.raises(ValueError, match="adarft needs pass rates"):
        adarft(batch_size=1).init(num_tasks=4)
