"""Graded rewards: the scale, and how many flips they are worth."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import Evidence, Selection, Selector, State, bots
from bots_jax.adapters import TaskSampler
from bots_jax.pool.graded import MOST_WORTH, evidence_of_rewards
from bots_jax.pool.visits import StepEvidence, is_mixed


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


# --- which groups have a gradient: those whose rewards differ ---------------------------------

GROUP = 4
KINDS = {"small": (12, "dense"), "listed": (9000, "dense"), "grouped": (12, "grouped")}


@cache
def begun(kind: str) -> tuple[Selector, State, Selection]:
    tasks, representation = KINDS[kind]
    selector = bots(batch_size=4, rollouts=GROUP, representation=representation)
    state = selector.init(np.full((2, tasks), 0.5, np.float32))
    return selector, *selector.select(jax.random.key(0), state)


REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, float("nan")]), min_size=4, max_size=4),
    min_size=4,
    max_size=4,
).map(np.array)


def share_that_differ(rewards: np.ndarray) -> float:
    scored = ~np.isnan(rewards)
    tried = scored.any(axis=1)
    with np.errstate(invalid="ignore"):
        apart = np.where(scored, rewards, -1).max(1) > np.where(scored, rewards, 2).min(1)
    return float(np.sum(apart & tried) / max(np.sum(tried), 1))


@pytest.mark.parametrize("kind", KINDS)
@given(rewards=REWARDS, order=st.permutations(range(16)))
@settings(max_examples=40, deadline=None)
def test_mixed_are_the_groups_whose_rewards_differ(
    kind: str, rewards: np.ndarray, order: list[int]
) -> None:
    """Told a batch at a time, or a row a rollout in any order."""
    selector, state, batch = begun(kind)
    wanted = pytest.approx(share_that_differ(rewards))
    assert float(selector.update(state, batch.evidence(rewards))[1].effective_task_ratio) == wanted
    ids, visit = (np.repeat(x, GROUP)[np.array(order)] for x in (batch.task_ids, batch.visit))
    rows = Evidence(ids, rewards.ravel()[np.array(order)], 1, visit)
    assert float(selector.update(state, rows)[1].effective_task_ratio) == wanted


@given(rewards=REWARDS)
@settings(max_examples=20, deadline=None)
def test_a_sampler_tells_mixed_groups_by_their_rewards(rewards: np.ndarray) -> None:
    sampler = TaskSampler(begun("small")[0], np.full((2, 12), 0.5, np.float32))
    batch = sampler.next_batch()
    ids, visits = np.repeat(batch.task_ids, GROUP), np.repeat(batch.visits, GROUP)
    for part in (slice(0, 7), slice(7, 16)):
        sampler.observe(ids[part], rewards.ravel()[part], 1, visits[part])
        if part.start == 0:
            sampler.load_state_dict(sampler.state_dict(), in_flight="keep")
    info = sampler.advance()
    assert float(info.effective_task_ratio) == pytest.approx(share_that_differ(rewards))


def test_sums_alone_say_no_more_than_they_did() -> None:
    """Of rows of several rollouts that do not say whether they differ, 0 < successes < trials."""
    selector, state, batch = begun("small")
    told = Evidence(batch.task_ids, [0.0, 4.0, 1.0, 2.0], GROUP, batch.visit)
    assert float(selector.update(state, told)[1].effective_task_ratio) == 0.5
    told = told._replace(differ=np.array([False, False, True, False]))
    assert float(selector.update(state, told)[1].effective_task_ratio) == 0.25


@pytest.mark.parametrize("known", [False, True])
def test_mixed_is_what_has_both(known: bool) -> None:
    """By successes and trials; or by the least and the most reward, where those are known."""
    successes, trials = np.array([0.0, 4, 2, 0, 0.5]), np.array([4.0, 4, 4, 0, 1])
    fused = StepEvidence(successes, trials, None, 1)
    mixed = [False, False, True, False, True]
    if known:  # of the last task all rewards were one half
        failed, solved = [255, 0, 255, 0, 128], [0, 255, 255, 0, 127]
        fused = fused._replace(
            most_failed=np.array(failed, np.uint8), most_solved=np.array(solved, np.uint8)
        )
        mixed[4] = False
    np.testing.assert_array_equal(is_mixed(fused), mixed)
    np.testing.assert_array_equal(is_mixed(fused, np.array([4, 2])), [mixed[4], mixed[2]])
