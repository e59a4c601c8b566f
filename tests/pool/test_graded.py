"""Graded rewards: the scale, and how many flips they are worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots_jax.pool.graded import MOST_WORTH, evidence_of_rewards


@given(st.integers(0, 1000), st.integers(2, 12))
def test_rewards_of_0_and_1_are_flips(seed: int, rollouts: int) -> None:
    rewards = np.random.default_rng(seed).integers(0, 2, (7, rollouts)).astype(np.float32)
    told = evidence_of_rewards(np.arange(7), rewards)
    np.testing.assert_allclose(told.trials, rollouts, rtol=1e-5)
    np.testing.assert_allclose(told.successes, rewards.sum(axis=1), rtol=1e-5)


def test_counts_match_the_variance_of_the_mean() -> None:
    """Beta(2, 2) rewards have a fifth of a flip's variance: five times the flips.

    Over 2000 tasks the factor has a standard error of about 1%; 6% is 1e-8 away.
    """
    rewards = np.random.default_rng(0).beta(2, 2, (2000, 8))
    told = evidence_of_rewards(np.arange(2000), rewards)
    np.testing.assert_allclose(told.trials, 8 * 5, rtol=0.06)
    np.testing.assert_allclose(told.successes / told.trials, rewards.mean(axis=1), rtol=1e-4)


def test_scale() -> None:
    rewards = np.array([[-1.0, 1.0, 0.0, 1.0]], np.float32)
    told = evidence_of_rewards([0], rewards, low=-1, high=1)
    np.testing.assert_allclose(told.successes / told.trials, 0.625, rtol=1e-6)
    with pytest.raises(ValueError, match=r"rewards\[0, 0\]=-1.0 is outside"):
        evidence_of_rewards([0], rewards)
    with pytest.raises(ValueError, match="low=1 must be below high=1"):
        evidence_of_rewards([0], rewards, low=1, high=1)
    padded = evidence_of_rewards([-1], rewards)  # padding may hold anything
    assert np.all(np.isfinite(padded.successes))


def test_all_alike_is_worth_no_more_than_the_bound() -> None:
    told = evidence_of_rewards([0, 1], np.full((2, 4), 0.5, np.float32))
    np.testing.assert_allclose(told.trials, 4 * MOST_WORTH, rtol=1e-3)


def test_each_column_stands_in_its_own_place() -> None:
    visit, tokens = np.array([3, 4]), np.array([50.0, 60.0])
    told = evidence_of_rewards(np.array([7, 8]), np.eye(2), visit=visit, tokens=tokens)
    np.testing.assert_array_equal(told.visit, visit)
    np.testing.assert_array_equal(told.tokens, tokens)
    np.testing.assert_array_equal(told.task_ids, [7, 8])
    np.testing.assert_array_equal(told.trials, [2, 2])
    np.testing.assert_array_equal(told.successes, [1, 1])
