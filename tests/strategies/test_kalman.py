"""The Kalman filter of all tasks in NumPy float64, on both scales, while drift and noise move."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from bots_jax import Settings
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.kalman import SCALES, kalman_belief

TASKS, NOISE, ADAPTATION = 12, 0.03, 0.2


class Filter:
    """The docstring of strategies/kalman.py, task by task."""

    def __init__(self, scale: str) -> None:
        self.scale = scale
        arcsine = scale == "arcsine"
        self.start = (np.pi / 4, np.pi**2 / 48) if arcsine else (0.0, np.pi**2 / 3)
        self.low, self.high = (0.0, np.pi / 2) if arcsine else (-12.0, 12.0)
        self.x, self.variance = (np.full(TASKS, value) for value in self.start)
        self.last, self.step, self.drift, self.noise = np.zeros(TASKS, int), 0, 0.0, NOISE

    def observe(self, s: float, n: float) -> tuple[float, float]:
        if self.scale == "logit":
            z = np.log((s + 0.5) / (n - s + 0.5))
            return float(z), 1 / (s + 0.5) + 1 / (n - s + 0.5)
        if 0 < s < n:
            return float(np.arcsin(np.sqrt((s + 3 / 8) / (n + 3 / 4)))), 1 / (4 * n + 2)
        return (0.0 if s == 0 else np.pi / 2), 1 / (2 * n)

    def update(self, s: np.ndarray, n: np.ndarray) -> None:
        self.step += 1
        self.x = np.clip(self.x + self.drift, self.low, self.high)
        self.variance = np.minimum(self.variance + self.noise, self.start[1])
        sums = np.zeros(4)
        for task in np.flatnonzero(n > 0):
            z, r = self.observe(s[task], n[task])
            error, total = z - self.x[task], self.variance[task] + r
            if self.last[task]:
                d = self.step - self.last[task]
                sums += [error * d / total, d**2 / total,
                         (error**2 - total) * d / total**2, d**2 / total**2]  # fmt: skip
            gain = self.variance[task] / total
            self.x[task] = np.clip(self.x[task] + gain * error, self.low, self.high)
            self.variance[task] *= 1 - gain
            self.last[task] = self.step
        if sums[1]:
            self.drift += ADAPTATION * sums[0] / sums[1]
            self.noise = max(self.noise + ADAPTATION * sums[2] / sums[3], 0)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """E p and E p (1 - p)."""
        if self.scale == "arcsine":
            return (
                (1 - np.exp(-2 * self.variance) * np.cos(2 * self.x)) / 2,
                (1 - np.exp(-8 * self.variance) * np.cos(4 * self.x)) / 8,
            )
        k = 1 / np.sqrt(1 + np.pi * self.variance / 8)
        p = sigmoid(k * self.x)
        return p, k * p * (1 - p)


@pytest.mark.parametrize("scale", ["arcsine", "logit"])
def test_every_number_of_a_step_is_the_oracles(scale: str) -> None:
    """Of tasks visited at all steps, at some and at none, with all and nothing solved."""
    rng, oracle = np.random.default_rng(0), Filter(scale)
    with jax.enable_x64(True):
        model = kalman_belief(SCALES[scale], NOISE, ADAPTATION)
        settings, reference = Settings(), Reference(jnp.zeros((0, TASKS), jnp.float64), None)
        belief = model.init(settings, reference, 1)
        fuse = jax.jit(
            lambda belief, s, n: model.fuse(
                belief, settings, reference, StepEvidence(s, n, None, 1)
            )
        )
        noises = []
        for step in range(14):
            n = rng.integers(1, 9, TASKS) * (rng.random(TASKS) < 0.5) * (step != 4) + 0.0
            n[0], n[1] = 8, 0
            rate = np.linspace(0, 1, TASKS) if step < 9 else np.linspace(1, 0.3, TASKS)
            s = rng.binomial(n.astype(int), rate) + 0.0
            oracle.update(s, n)
            belief, _ = fuse(belief, jnp.asarray(s), jnp.asarray(n))
            pairs = [
                (belief.mean, oracle.x), (belief.variance, oracle.variance),
                (belief.last, oracle.last), (belief.drift, oracle.drift),
                (belief.noise, oracle.noise), (belief.step, oracle.step),
            ]  # fmt: skip
            for found, expected in pairs:
                np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
            noises.append(oracle.noise)
        state: Any = SimpleNamespace(belief=belief)
        check_beliefs(model, state, oracle)
    assert min(noises) == 0 < max(noises)  # the bound was met, and left


def check_beliefs(model: Any, state: Any, oracle: Filter) -> None:
    """Means and counts of all and of some, and draws."""
    mean, spread = oracle.moments()
    mean = np.clip(mean, 1e-6, 1 - 1e-6)
    bound = mean * (1 - mean)
    counts = np.maximum(spread, 1e-6 * bound) / np.maximum(bound - spread, 1e-6 * bound)
    for rows in (slice(None), np.array([[3, 0], [11, 5]])):
        told = model.predict(state, rows)
        np.testing.assert_allclose(told.mean, mean[rows], rtol=1e-10)
        np.testing.assert_allclose(told.concentration, counts[rows], rtol=1e-8)
    key = jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (TASKS,), jnp.float64))
    x = np.clip(oracle.x + np.sqrt(oracle.variance) * noise, oracle.low, oracle.high)
    rate = np.sin(x) ** 2 if oracle.scale == "arcsine" else sigmoid(x)
    np.testing.assert_allclose(model.draw(key, state), rate, rtol=1e-10, atol=1e-15)
