"""MoPPS: counting at keep 1, BOTS without inference where all tasks are candidates."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, bots
from bots_jax.strategies import make_strategy, mopps
from bots_jax.types import Array
from tests.choice.test_batch import assert_same_rates, membership


def told(selector: Selector, state: State, rounds: int, seed: int = 0) -> tuple[State, list]:
    """A state after random evidence of a few tasks a step, and that evidence."""
    rng, size = np.random.default_rng(seed), state.pool.active.shape[0]
    given = []
    for _ in range(rounds):
        ids = rng.choice(size, 4, replace=False)
        given.append((ids, rng.binomial(8, rng.random(4))))
        state, _ = selector.update(state, Evidence(*given[-1], 8))
    return state, given


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_belief_against_the_equation(keep: float) -> None:
    selector = mopps(batch_size=4, rollouts=8, keep=keep)
    state, given = told(selector, selector.init(num_tasks=10), 20)
    alpha, beta = np.ones(10), np.ones(10)
    for ids, won in given:
        for task, s in zip(ids, won, strict=True):
            alpha[task] = keep * alpha[task] + (1 - keep) + s
            beta[task] = keep * beta[task] + (1 - keep) + 8 - s
    belief = selector.predict(state)
    np.testing.assert_allclose(belief.mean, alpha / (alpha + beta), rtol=1e-5)
    np.testing.assert_allclose(belief.concentration, alpha + beta, rtol=1e-5)


def test_keep_1_is_beta_counting() -> None:
    selector, counting = mopps(batch_size=4, rollouts=8), make_strategy("uniform", batch_size=4)
    state, _ = told(selector, selector.init(num_tasks=10), 20)
    counted, _ = told(counting, counting.init(num_tasks=10), 20)
    for ours, theirs in zip(selector.predict(state), counting.predict(counted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def inclusions(selector: Selector, state: State, runs: int) -> np.ndarray:
    def chosen(key: Array) -> Array:
        return selector.select(key, state)[1].task_ids

    ids = jax.jit(jax.vmap(chosen))(jax.random.split(jax.random.key(7), runs))
    return membership(np.asarray(ids), state.pool.active.shape[0])


def test_all_candidates_is_bots_without_forgetting_and_inference() -> None:
    """The paper's limit case: same inclusions of tasks and of pairs (failure 1e-6 each)."""
    runs, size = 8000, 20
    ours = mopps(batch_size=3, rollouts=8, candidate_ratio=None)
    theirs = bots(batch_size=3, rollouts=8, forgetting=0.0, implicit_weight=0.0)
    sets = [
        inclusions(selector, told(selector, selector.init(num_tasks=size), 15)[0], runs)
        for selector in (ours, theirs)
    ]
    assert_same_rates(sets[0].sum(0), sets[1].sum(0), runs)
    pairs = [(one.T @ one)[np.triu_indices(size, 1)] for one in sets]
    assert_same_rates(*pairs, runs)


def test_candidate_set() -> None:
    """B candidates are a uniform batch whatever is believed; 5 B leave others out."""
    runs, size = 4000, 20
    state_of = mopps(batch_size=2, rollouts=8)
    state, _ = told(state_of, state_of.init(num_tasks=size), 40)
    drawn = inclusions(mopps(batch_size=2, candidate_ratio=1), state, runs).sum(0)
    expected = runs * 2 / size
    spread = np.sqrt(expected * (1 - 2 / size))
    assert np.abs(drawn - expected).max() < 5.9 * spread  # 20 two-sided z tests: 7e-8
    wide = inclusions(mopps(batch_size=2, candidate_ratio=5), state, runs).sum(0)
    assert wide.max() < runs * (0.5 + 5.9 * 0.5 / np.sqrt(runs))  # a candidate half the time
    assert wide.max() > drawn.max() + 5.9 * spread


def test_a_mask_that_leaves_no_candidates_still_fills_the_batch() -> None:
    selector = mopps(batch_size=2, candidate_ratio=1)
    eligible = np.arange(40) >= 37
    for seed in range(5):
        _, chosen = selector.select(jax.random.key(seed), selector.init(num_tasks=40), eligible)
        assert np.all(chosen.valid)
        assert np.all(np.asarray(chosen.task_ids) >= 37)


def test_band() -> None:
    """Sharp posteriors: those in the band alike, then the nearest to it."""
    alpha = np.array([100, 1200, 1500, 1800, 2950]) * 10.0
    selector = mopps(batch_size=2, band=(0.35, 0.65), rollouts=30_000)
    state, _ = selector.update(selector.init(num_tasks=5), Evidence(np.arange(5), alpha, 30_000))
    counts = inclusions(selector, state, 2000).sum(0)
    assert counts[0] == counts[4] == 0
    assert np.abs(counts[1:4] - 2000 * 2 / 3).max() < 5.9 * np.sqrt(2000 * 2 / 9)
    four = mopps(batch_size=4, band=(0.35, 0.65))
    assert set(np.flatnonzero(inclusions(four, state, 50).sum(0))) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 1.5}, r"keep=1.5 must lie in \[0, 1\]"),
        ({"band": (0.7, 0.3)}, r"band=\(0.7, 0.3\) must be \(low, high\)"),
        ({"candidate_ratio": 0}, "candidate_ratio=0 must be an integer"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mopps(**settings)
