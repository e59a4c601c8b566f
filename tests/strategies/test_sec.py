"""SEC: values by hand, and categories drawn by their softmax."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import sec

DOMAINS = np.repeat([0, 1, 2], 40)


def test_value_moves_by_a_tenth_towards_the_mean_absolute_advantage():
    selector = sec(batch_size=3, rollouts=8)
    state = selector.init(num_tasks=120, domains=DOMAINS)
    # Domain 0: rates 1/2 and 1, |A| = 1 and 0; domain 1: 1/4, |A| = 2 sqrt(3/16); 2: nothing.
    state, _ = selector.update(state, Evidence([0, 1, 40], [4.0, 8.0, 2.0], 8))
    np.testing.assert_allclose(state.belief.memory.value, [0.05, 0.1 * np.sqrt(3) / 2, 0], 1e-5)
    state, _ = selector.update(state, Evidence([2], [8.0], 8))
    np.testing.assert_allclose(state.belief.memory.value[0], 0.045, 1e-5)


def test_absolute_advantage_is_that_of_the_rewards():
    rewards = np.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    advantage = (rewards - rewards.mean()) / rewards.std()
    selector = sec(batch_size=1, rollouts=8, learning_rate=1)
    state = selector.init(num_tasks=120, domains=DOMAINS)
    state, _ = selector.update(state, Evidence([0], [3.0], 8))
    assert float(state.belief.memory.value[0]) == pytest.approx(np.abs(advantage).mean(), rel=1e-5)


def test_categories_are_drawn_by_their_softmax():
    """First task of 3000 batches; a chi-squared of 2 degrees beyond 27.6: once in 1e6."""
    selector = sec(batch_size=1, rollouts=8, temperature=0.5)
    state = selector.init(num_tasks=63, domains=np.repeat([0, 1, 2], [3, 20, 40]))
    value = np.array([0.0, 0.2, 0.5], np.float32)
    memory = state.belief.memory._replace(value=jax.numpy.asarray(value))
    state = state._replace(belief=state.belief._replace(memory=memory))
    keys = jax.random.split(jax.random.key(0), 3000)
    first = jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0])(keys)
    seen = np.bincount(np.digitize(first, [3, 23]), minlength=3)
    expected = 3000 * np.exp(value / 0.5) / np.exp(value / 0.5).sum()
    assert ((seen - expected) ** 2 / expected).sum() < 27.6


def test_one_domain_is_cut_into_bins_of_difficulty():
    selector = sec(batch_size=1, rollouts=8, bins=4)
    state = selector.init(np.array([[1.0, 0.8, 0.6, 0.3, 0.0]], np.float32))
    state, _ = selector.update(state, Evidence([4], [4.0], 8))
    np.testing.assert_allclose(state.belief.memory.value, [0, 0, 0, 0.1], 1e-5)


def test_without_categories_it_says_what_to_give():
    with pytest.raises(ValueError, match=r"give init\(domains=\.\.\.\) or a reference"):
        sec(batch_size=1).init(num_tasks=4)
