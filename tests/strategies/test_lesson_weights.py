"""Lesson weights: the exponential average and the weights, by hand; sampling by lesson."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import lesson_weights
from bots_jax.strategies.bins import bin_of
from bots_jax.strategies.lesson_weights import weigh
from bots_jax.types import Array

DOMAINS = np.repeat([0, 1, 2], [10, 5, 3])


def test_average_is_that_of_one_rollout_after_another() -> None:
    """Exact where all rollouts of a step agree; else the mean over their orders."""
    selector = lesson_weights(batch_size=1)
    state = selector.init(num_tasks=18, domains=DOMAINS)
    state, _ = selector.update(state, Evidence([0, 3, 10], [4.0, 2.0, 0.0], [4.0, 2.0, 5.0]))
    state, _ = selector.update(state, Evidence([17], [1.0], 2))
    averages = [0.5, 0.5, 0.5]
    for _ in range(6):
        averages[0] = 0.9 * averages[0] + 0.1
    for _ in range(5):
        averages[1] = 0.9 * averages[1]
    orders = [0.9 * (0.9 * 0.5 + 0.1 * a) + 0.1 * (1 - a) for a in (0, 1)]
    averages[2] = np.mean(orders)
    np.testing.assert_allclose(state.belief.memory.solved, averages, rtol=1e-6)
    np.testing.assert_array_equal(state.belief.memory.rollouts, [6, 5, 2])


def test_weights_by_hand() -> None:
    solved, rollouts = np.array([0.5, 0.9, 1.0, 0.2]), np.array([0, 100, 500, 0.0])
    filled = np.array([True, True, True, False])
    w = np.array([2.0, 0.36 * (1 + np.exp(-1)), 0.0])
    w = np.maximum(w / (1 + w.sum()), 0.1)
    ours = weigh(*(jnp.asarray(a, jnp.float32) for a in (solved, rollouts)), filled, 0.1)
    np.testing.assert_allclose(ours, [*(w / w.sum()), 0], rtol=1e-5)


def test_lessons_are_sampled_by_weight_and_tasks_alike() -> None:
    runs = 20_000
    selector = lesson_weights(batch_size=1)
    state = selector.init(num_tasks=18, domains=DOMAINS)
    state, _ = selector.update(state, Evidence([0, 10], [40.0, 20.0], [40.0, 40.0]))
    weights = np.asarray(
        weigh(state.belief.memory.solved, state.belief.memory.rollouts, jnp.ones(3, bool), 0.1),
        float,
    )

    def chosen(key: Array) -> Array:
        return selector.select(key, state)[1].task_ids[0]

    ids = np.asarray(jax.jit(jax.vmap(chosen))(jax.random.split(jax.random.key(0), runs)))
    expected = runs * (weights / [10, 5, 3])[DOMAINS]
    z = (np.bincount(ids, minlength=18) - expected) / np.sqrt(expected)
    assert np.abs(z).max() < 5.7  # 18 two-sided z tests: 2e-7


def test_bins() -> None:
    """Intervals of the mean reference rate, a last bin for unknown ones; domains if any."""
    selector = lesson_weights(batch_size=1, intervals=4)
    nan = np.nan
    rates = np.array([[0.0, 0.2, 1.0, nan, nan, 0.5], [0.2, 0.4, 1.0, 0.6, nan, 0.5]])
    reference = selector.init(rates).reference
    at, count = bin_of(reference, None, 1, 4)
    np.testing.assert_array_equal(at, [0, 1, 3, 2, 4, 2])
    assert count == 5
    domain = jnp.array([0, 1, 2, 2, 1, 0])
    at, count = bin_of(reference, domain, 3, 4)
    np.testing.assert_array_equal(at, domain)
    assert count == 3
    at, count = bin_of(selector.init(num_tasks=6).reference, None, 1, 4)
    np.testing.assert_array_equal(at, 0)
    assert count == 1


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"floor=2 must lie in \[0, 1\]"):
        lesson_weights(floor=2)
    with pytest.raises(ValueError, match="intervals=0 must be an integer"):
        lesson_weights(intervals=0)
