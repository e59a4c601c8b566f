"""What is known of tasks besides pass rates: columns for the regression, and their worth."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import bots_jax
from bots_jax.pool.features import feature_columns
from bots_jax.strategies import make_strategy


def test_numbers_are_standardised_and_missing_ones_say_nothing() -> None:
    x = np.random.default_rng(0).normal(3, 5, (50, 4))
    x[::7, 1] = np.nan
    x[:, 3] = 2.0
    found = feature_columns(x)
    assert found.shape == (4, 50)
    np.testing.assert_allclose(found[0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), rtol=1e-4)
    known = ~np.isnan(x[:, 1])
    expected = (x[known, 1] - x[known, 1].mean()) / x[known, 1].std()
    np.testing.assert_allclose(found[1, known], expected, rtol=1e-4, atol=1e-6)
    assert not found[1, ~known].any()
    assert not found[3].any()


def test_kinds_get_a_column_each() -> None:
    kind = np.arange(60) % 3
    found = feature_columns((kind, np.array(["a", "b"])[kind // 2], np.ones((60, 1))))
    assert found.shape == (3 + 2 + 1, 60)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)
    apart = [found[:, kind == one] for one in range(3)]
    assert all(np.ptp(part, axis=1).max() < 1e-6 for part in apart)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.arange(200), "has 200 kinds, at most 64"),
        (np.zeros((4, 4, 4)), "expected"),
        (np.full((9, 2), np.inf), "holds infinity"),
        ((np.zeros((9, 1)), np.zeros((8, 1))), "one row a task"),
        (np.array([object()] * 5), "has dtype object"),
    ],
)
def test_refused(features: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_columns(features)


def test_who_cannot_use_features_says_so() -> None:
    for selector in (bots_jax.bots(batch_size=2), make_strategy("uniform", batch_size=2)):
        with pytest.raises(ValueError, match="features are of no use to"):
            selector.init(num_tasks=9, features=np.zeros((9, 1)))


def error_after(features: str | None, seed: int, steps: int = 24) -> float:
    """RMSE over unvisited tasks whose rate follows two numbers, after some steps."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(800, 2))
    rate = 1 / (1 + np.exp(-known @ np.array([1.5, -1.0])))
    given = {"told": known, "noise": rng.normal(size=(800, 32)), None: None}[features]
    selector = bots_jax.auto(batch_size=16, rollouts=8)
    state = selector.init(num_tasks=800, features=given)
    visited = np.zeros(800, bool)
    for step in range(steps):
        state, batch = selector.select(jax.random.key(seed * 100 + step), state)
        ids = np.asarray(batch.task_ids)
        visited[ids] = True
        rewards = rng.random((16, 8)) < rate[ids][:, None]
        state, _ = selector.update(state, batch.evidence(rewards))
    away = np.asarray(selector.predict(state).mean) - rate
    return float(np.sqrt(np.mean(away[~visited] ** 2)))


def test_features_tell_of_tasks_never_tried() -> None:
    """Means of four pools. 32 columns of noise cost .004 after 24 batches, and .07 if trusted."""
    told, noise, none = (
        np.mean([error_after(what, seed) for seed in range(4)]) for what in ("told", "noise", None)
    )
    assert told < 0.5 * none
    assert noise < none + 0.02
