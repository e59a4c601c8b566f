"""Ratios and means where there is nothing to divide by, and rewards that differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.numerics.arithmetic import differ, masked_mean, safe_ratio


def test_ratios_and_their_gradients_are_finite() -> None:
    above, below = jnp.asarray([3.0, 0.0, 5.0, -1.0]), jnp.asarray([2.0, 0.0, 0.0, -4.0])
    np.testing.assert_array_equal(safe_ratio(above, below), [1.5, 0, 0, 0.25])
    np.testing.assert_array_equal(safe_ratio(above, below, 7.0), [1.5, 7, 7, 0.25])
    slope = jax.grad(lambda x: jnp.sum(safe_ratio(above, x)))(below)
    np.testing.assert_allclose(slope, [-0.75, 0, 0, 1 / 16])


def test_means_are_over_the_mask() -> None:
    values = jnp.asarray([1.0, np.nan, 4.0, 100.0])
    mask = jnp.asarray([True, False, True, False])
    assert float(masked_mean(values, mask)) == 2.5
    assert float(masked_mean(values, jnp.zeros(4, bool))) == 0


def test_rewards_differ() -> None:
    rewards = jnp.asarray([[0.0, 0, 0], [1, 1, 1], [0, 0, 1], [0.5, 0.5, 0.4], [-1, -1, -1]])
    assert differ(rewards).tolist() == [False, False, True, True, False]
