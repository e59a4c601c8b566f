"""KGPS: the filter against plain NumPy, moments against quadrature, and the two choices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence
from bots_jax.strategies import kgps
from bots_jax.strategies.kalman import SCALES, moments


def plain_filter(x, variance, drift, noise, solved, trials):
    """One step of ARCUS' equations for one task with s of n solved."""
    x, variance = x + drift, variance + noise
    if solved in (0, trials):
        z, r = (0.0 if solved == 0 else np.pi / 2), 1 / (2 * trials)
    else:
        z = np.arcsin(np.sqrt((solved + 3 / 8) / (trials + 3 / 4)))
        r = 1 / (4 * trials + 2)
    gain = variance / (variance + r)
    return x + gain * (z - x), (1 - gain) * variance


def test_filter_agrees_with_numpy():
    selector = kgps(batch_size=1, rollouts=8, noise=0.002, adaptation=0.0)
    state = selector.init(num_tasks=2)
    x, variance = np.pi / 4, np.pi**2 / 48
    for solved in (0, 3, 5, 8, 6):
        state, _ = selector.update(state, Evidence([1], [float(solved)], 8))
        # No task is known less well than a new one: Q does not count before the first visit.
        grown = 0.002 if variance < np.pi**2 / 48 else 0.0
        x, variance = plain_filter(x, variance, 0.0, grown, solved, 8)
        assert float(state.belief.mean[1]) == pytest.approx(x, abs=1e-5)
        assert float(state.belief.variance[1]) == pytest.approx(variance, rel=1e-4)
    assert float(state.belief.mean[0]) == pytest.approx(np.pi / 4)


@pytest.mark.parametrize("scale", ["arcsine", "logit"])
@pytest.mark.parametrize(("x", "variance"), [(0.5, 0.02), (1.2, 0.1), (0.8, 0.2)])
def test_moments_agree_with_quadrature(scale, x, variance):
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    rate = np.asarray(SCALES[scale].rate(jnp.asarray(x + np.sqrt(variance) * nodes)))
    weights = weights / weights.sum()
    # Exact on the arcsine scale; MacKay's approximation on the logit scale.
    tolerance = 1e-5 if scale == "arcsine" else 0.01
    mean = float(SCALES[scale].expected(jnp.float32(x), jnp.float32(variance)))
    spread = float(SCALES[scale].spread(jnp.float32(x), jnp.float32(variance)))
    assert mean == pytest.approx(weights @ rate, abs=tolerance)
    assert spread == pytest.approx(weights @ (rate * (1 - rate)), abs=tolerance)


def test_moments_of_a_beta_come_back():
    belief = moments(jnp.float32(0.3), jnp.float32(0.3 * 0.7 * 20 / 21))
    assert float(belief.mean) == pytest.approx(0.3)
    assert float(belief.concentration) == pytest.approx(20, rel=1e-3)


def test_drift_and_noise_are_learned():
    """Rates that rise by .002 a step on the arcsine scale, m = 400 for little noise."""
    selector = kgps(batch_size=50, rollouts=400, adaptation=0.1, noise=0.0)
    state = selector.init(num_tasks=50)
    rng = np.random.default_rng(0)
    psi = rng.uniform(0.3, 0.6, 50)
    drifts = []
    for step in range(200):
        solved = rng.binomial(400, np.sin(psi + 0.002 * step) ** 2).astype(np.float32)
        state, _ = selector.update(state, Evidence(np.arange(50), solved, 400))
        drifts.append(float(state.belief.drift))
    # Noise of z is .025; over 50 tasks and the last 100 steps the mean drift is good to 5%.
    assert np.mean(drifts[100:]) == pytest.approx(0.002, abs=0.0004)
    assert float(state.belief.noise) < 1e-4


def test_expected_takes_the_half_solved():
    selector = kgps(batch_size=2, rollouts=8)
    state = selector.init(num_tasks=6)
    solved = np.array([0, 1, 4, 5, 7, 8], np.float32)
    for _ in range(3):
        state, _ = selector.update(state, Evidence(np.arange(6), solved, 8))
    _, selection = selector.select(jax.random.key(0), state)
    assert set(np.asarray(selection.task_ids)) == {2, 3}


def test_paced_moves_from_the_easy_to_the_target():
    selector = kgps(
        batch_size=1, rollouts=64, choice="paced", temperature=0.0, start=0.9, pace=3, target=0.5
    )
    state = selector.init(num_tasks=5)
    solved = 64 * np.array([0.1, 0.3, 0.5, 0.7, 0.9], np.float32)
    first = []
    for _ in range(4):
        state, _ = selector.update(state, Evidence(np.arange(5), solved, 64))
        first.append(int(selector.select(jax.random.key(0), state)[1].task_ids[0]))
    assert first == [3, 3, 2, 2]  # targets .767, .633, .5 and .5


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="scale='cubic' is not known"):
        kgps(scale="cubic")
    with pytest.raises(ValueError, match="pace=0 must be an integer"):
        kgps(pace=0)
