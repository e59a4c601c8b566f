"""VADE: decay on two scales, and Thompson sampling on p (1 - p)^2."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import vade
from bots_jax.types import Array
from tests.choice.test_batch import assert_same_rates, membership


def test_decay_on_two_scales() -> None:
    """One visit of 6 of 8, three steps without, one visit of 2 of 8: by hand."""
    selector = vade(batch_size=1, rollouts=8, keep=0.5, keep_step=0.9)
    state, _ = selector.update(selector.init(num_tasks=2), Evidence([0], [6.0], 8))
    for _ in range(3):
        state, _ = selector.advance(state)
    belief = selector.predict(state)
    alpha, beta = 1 + 6 * 0.9**3, 1 + 2 * 0.9**3
    np.testing.assert_allclose(belief.mean, [alpha / (alpha + beta), 0.5], rtol=1e-6)
    state, _ = selector.update(state, Evidence([0], [2.0], 8))
    alpha, beta = 1 + 0.45 * (alpha - 1) + 2, 1 + 0.45 * (beta - 1) + 6
    belief = selector.predict(state)
    np.testing.assert_allclose(belief.concentration, [alpha + beta, 2], rtol=1e-6)
    np.testing.assert_allclose(belief.mean[0], alpha / (alpha + beta), rtol=1e-6)


def test_prefers_a_third() -> None:
    """Sharp posteriors at .1, .2, ..., .9: p (1 - p)^2 ranks .3, .4, .2 first."""
    selector = vade(batch_size=3, rollouts=100_000, keep_step=1.0)
    rates = np.arange(1, 10) / 10
    evidence = Evidence(np.arange(9), rates * 1e5, 100_000)
    state, _ = selector.update(selector.init(num_tasks=9), evidence)
    _, chosen = selector.select(jax.random.key(0), state)
    np.testing.assert_array_equal(chosen.task_ids, [2, 3, 1])


def test_selects_as_brute_force_thompson() -> None:
    size, batch, runs = 10, 3, 10_000
    rng = np.random.default_rng(3)
    won, tried = rng.integers(0, 9, size).astype(float), np.full(size, 8.0)
    selector = vade(batch_size=batch, rollouts=8, keep_step=1.0)
    state, _ = selector.update(selector.init(num_tasks=size), Evidence(np.arange(size), won, tried))

    def chosen(key: Array) -> Array:
        return selector.select(key, state)[1].task_ids

    ids = jax.jit(jax.vmap(chosen))(jax.random.split(jax.random.key(0), runs))
    p = rng.beta(1 + won, 9 - won, (runs, size))
    best = np.argsort(-p * (1 - p) ** 2, axis=1)[:, :batch]
    ours, theirs = membership(np.asarray(ids), size), membership(best, size)
    assert_same_rates(ours.sum(0), theirs.sum(0), runs)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"keep_step=1.1 must lie in \[0, 1\]"):
        vade(keep_step=1.1)
