"""Binned Thompson: counts by hand, the floor, and what the reversion mass is for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, State
from bots_jax.strategies import binned_thompson
from bots_jax.strategies.binned_thompson import Groups, draw_weights

DOMAINS = np.repeat([0, 1], 4)


def after(reversion: float, steps: int) -> State:
    """Bin 0 brings a mixed group a step, bin 1 one that is all wrong."""
    selector = binned_thompson(batch_size=2, rollouts=8, reversion=reversion)
    state = selector.init(num_tasks=8, domains=DOMAINS)
    for _ in range(steps):
        state, _ = selector.update(state, Evidence([0, 4], [3.0, 0.0], 8))
    return state


def mean_weights(memory: Groups, floor: float, draws: int = 2000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), draws)
    filled = jnp.ones(2, bool)
    return np.asarray(jax.vmap(lambda key: draw_weights(key, memory, filled, floor))(keys))


def test_counts_by_hand() -> None:
    belief = after(2.0, 2).belief.memory
    np.testing.assert_allclose(belief.informative, [0.95 * 2 + 2, 0.95 + 1], rtol=1e-6)
    np.testing.assert_allclose(belief.groups, [0.95 * 3 + 3] * 2, rtol=1e-6)


def test_a_group_is_informative_only_if_mixed() -> None:
    selector = binned_thompson(batch_size=2, rollouts=8, reversion=0.0)
    state = selector.init(num_tasks=8, domains=DOMAINS)
    evidence = Evidence([0, 1, 2, 4, 5], [0.0, 8.0, 1.0, 7.0, 2.0], 8)
    state, _ = selector.update(state, evidence)
    np.testing.assert_array_equal(state.belief.memory.informative, [1, 2])
    np.testing.assert_array_equal(state.belief.memory.groups, [3, 2])
    alike = evidence._replace(differ=np.array([False, False, True, False, True]))
    state, _ = selector.update(selector.init(num_tasks=8, domains=DOMAINS), alike)
    np.testing.assert_array_equal(state.belief.memory.informative, [1, 1])


def test_floor() -> None:
    """A useless bin gets .05 / 2 before the last normalisation, so at least .025 / 1.025."""
    weights = mean_weights(Groups(jnp.array([1e4, 0.0]), jnp.array([1e4, 1e4])), 0.05)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[:, 1], 0.025 / 1.025, rtol=2e-3)


def test_reversion_lets_a_starved_bin_be_tried_again() -> None:
    """The mean weight of a bin that has brought nothing but failures for 100 steps.

    Its share of informative groups settles at (1 + r / 2 / .05) / (2 + (1 + r) / .05), that
    is at 1 / 22 without reversion and 21 / 62 with r = 2; bin 0's at 21 / 22 and 41 / 62.
    """
    starved, tried = (
        mean_weights(after(r, 200).belief.memory, 0.05)[:, 1].mean() for r in (0.0, 2.0)
    )
    assert starved < 0.08
    assert tried == pytest.approx(21 / 62, abs=0.04)


def test_all_tasks_of_a_bin_are_alike_and_empty_bins_get_nothing() -> None:
    selector = binned_thompson(batch_size=1, intervals=4)
    state = selector.init(np.array([[0.9, 0.9, 0.1, 0.9]]))
    runs = 8000
    keys = jax.random.split(jax.random.key(1), runs)
    ids = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0]))(keys)
    counts = np.bincount(np.asarray(ids), minlength=4)
    expected = runs * np.array([1 / 6, 1 / 6, 1 / 2, 1 / 6])  # two bins, equal on average
    # Weights vary, but each pick is one draw: its variance is the binomial one.
    assert np.abs(counts - expected).max() < 5.4 * np.sqrt(runs / 4)  # failure 3e-7


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="reversion=-1 must lie in"):
        binned_thompson(reversion=-1)
