"""A belief that follows each task with a Kalman filter on a transformed success rate.

In: the evidence of a step. Out: mean x and variance P of x_k = g(p_k) for every task, the
shared drift v and the shared noise Q. One step, with s of n solved:

    x <- x + v,  P <- P + Q                              every task
    K = P / (P + R),  x <- x + K (z - x),  P <- (1 - K) P     tasks with evidence

Arcsine scale, g(p) = arcsin sqrt p, on which the noise does not depend on p:

    z = arcsin sqrt((s + 3/8) / (n + 3/4)), R = 1 / (4n + 2) for a mixed group;
    z = 0 for all wrong, z = pi/2 for all right, R = 1 / (2n);   x at first N(pi/4, pi^2/48)
    E p = (1 - e^(-2P) cos 2x) / 2,   E p(1 - p) = (1 - e^(-8P) cos 4x) / 8

Logit scale, g(p) = log p / (1 - p), with the counts shrunk by 1/2:

    z = log((s + 1/2) / (n - s + 1/2)), R = 1 / (s + 1/2) + 1 / (n - s + 1/2);
    x at first N(0, pi^2/3), which has the variance that a uniform p has on this scale
    E p = sigmoid(k x), E p(1 - p) = k sigmoid'(k x), k = 1 / sqrt(1 + pi P / 8) (MacKay 1992)

v and Q come from the innovations e = z - x of tasks visited before, d steps ago: e has mean
(drift error) d and variance about S = P + R where Q is right, so by weighted least squares

    v <- v + g sum(e d / S) / sum(d^2 / S)
    Q <- max(Q + g sum((e^2 - S) d / S^2) / sum(d^2 / S^2), 0)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.counting import no_inference
from bots_jax.types import Array, Belief, Settings, State


class Scale(NamedTuple):
    """A transformation g of the success rate, and what is known on its scale."""

    mean: float  # x of a new task
    variance: float  # P of a new task
    low: float  # x is kept in [low, high]
    high: float
    observe: Callable[[Array, Array], tuple[Array, Array]]  # (s, n) -> (z, R)
    rate: Callable[[Array], Array]  # g^-1
    expected: Callable[[Array, Array], Array]  # (x, P) -> E p
    spread: Callable[[Array, Array], Array]  # (x, P) -> E p (1 - p)


def _arcsine_observe(successes: Array, trials: Array) -> tuple[Array, Array]:
    mixed = (successes > 0) & (successes < trials)
    shrunk = jnp.arcsin(jnp.sqrt((successes + 3 / 8) / (trials + 3 / 4)))
    end = jnp.where(successes > 0, math.pi / 2, 0.0).astype(trials.dtype)
    noise = jnp.where(mixed, 1 / (4 * trials + 2), 1 / (2 * jnp.maximum(trials, 1)))
    return jnp.where(mixed, shrunk, end), noise


def _logit_observe(successes: Array, trials: Array) -> tuple[Array, Array]:
    solved, failed = successes + 0.5, trials - successes + 0.5
    return jnp.log(solved / failed), 1 / solved + 1 / failed


def _shrunk_logit(x: Array, variance: Array) -> tuple[Array, Array]:
    scale = 1 / jnp.sqrt(1 + math.pi / 8 * variance)
    return jax.nn.sigmoid(scale * x), scale


def _logit_spread(x: Array, variance: Array) -> Array:
    mean, scale = _shrunk_logit(x, variance)
    return scale * mean * (1 - mean)


SCALES: dict[str, Scale] = {
    "arcsine": Scale(
        math.pi / 4,
        math.pi**2 / 48,
        0.0,
        math.pi / 2,
        _arcsine_observe,
        lambda x: jnp.sin(x) ** 2,
        lambda x, variance: (1 - jnp.exp(-2 * variance) * jnp.cos(2 * x)) / 2,
        lambda x, variance: (1 - jnp.exp(-8 * variance) * jnp.cos(4 * x)) / 8,
    ),
    "logit": Scale(
        0.0,
        math.pi**2 / 3,
        -12.0,
        12.0,
        _logit_observe,
        jax.nn.sigmoid,
        lambda x, variance: _shrunk_logit(x, variance)[0],
        _logit_spread,
    ),
}


class Tracked(NamedTuple):
    """The filter of every task, and what they share."""

    mean: Array  # f[C], x
    variance: Array  # f[C], P
    last: Array  # i32[C], the step of the last visit; 0 for none
    drift: Array  # f, v a step
    noise: Array  # f, Q a step
    step: Array  # i32, steps so far
    start: Array  # f[2], x and P of a new task

    def restart(self, settings: Settings, rows: Array, active: Array) -> Tracked:
        """New tasks begin at the prior."""
        return self._replace(
            mean=self.mean.at[rows].set(self.start[0], mode="drop"),
            variance=self.variance.at[rows].set(self.start[1], mode="drop"),
            last=self.last.at[rows].set(0, mode="drop"),
        )


def kalman_belief(scale: Scale, noise: float, adaptation: float) -> BeliefModel:
    """The filter above as a belief.

    Args:
      scale: one of `SCALES`.
      noise: Q before anything is learned about it.
      adaptation: g in [0, 1], how much of an estimate of v and Q a step takes over.
    """

    def init(settings: Settings, reference: Reference, num_domains: int) -> Tracked:
        capacity, dtype = reference.rates.shape[1], reference.rates.dtype
        start = jnp.array([scale.mean, scale.variance], dtype)
        return Tracked(
            jnp.full((capacity,), scale.mean, dtype),
            jnp.full((capacity,), scale.variance, dtype),
            jnp.zeros((capacity,), jnp.int32),
            jnp.zeros((), dtype),
            jnp.full((), noise, dtype),
            jnp.zeros((), jnp.int32),
            start,
        )

    def fuse(
        belief: Tracked, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[Tracked, BeliefInfo]:
        tried, step = fused.trials > 0, belief.step + 1
        x = jnp.clip(belief.mean + belief.drift, scale.low, scale.high)
        # No task is ever known less well than a new one.
        prior = jnp.maximum(belief.start[1], belief.variance)
        variance = jnp.minimum(belief.variance + belief.noise, prior)
        z, noise_of_z = scale.observe(fused.successes, fused.trials)
        error, total = z - x, variance + noise_of_z
        gain = jnp.where(tried, variance / total, 0)
        age = jnp.where(tried & (belief.last > 0), step - belief.last, 0).astype(x.dtype)
        drift, shared = _learned(belief, error, total, age, adaptation)
        updated = Tracked(
            jnp.clip(x + gain * error, scale.low, scale.high),
            (1 - gain) * variance,
            jnp.where(tried, step, belief.last),
            drift,
            shared,
            step,
            belief.start,
        )
        return updated, no_inference(fused)

    def predict(state: State, rows: Any) -> Belief:
        belief: Tracked = state.belief
        x, variance = belief.mean[rows], belief.variance[rows]
        return moments(scale.expected(x, variance), scale.spread(x, variance))

    def draw(rng_key: Array, state: State) -> Array:
        belief: Tracked = state.belief
        noise = jax.random.normal(rng_key, belief.mean.shape, belief.mean.dtype)
        x = belief.mean + jnp.sqrt(belief.variance) * noise
        return scale.rate(jnp.clip(x, scale.low, scale.high))

    return BeliefModel(init, fuse, predict, draw)


def _learned(
    belief: Tracked, error: Array, total: Array, age: Array, adaptation: float
) -> tuple[Array, Array]:
    """v and Q after the innovations of a step; `age` is 0 for tasks that tell nothing."""
    drift = safe_ratio(jnp.sum(error * age / total), jnp.sum(age**2 / total))
    excess = jnp.sum((error**2 - total) * age / total**2)
    noise = safe_ratio(excess, jnp.sum(age**2 / total**2))
    return (
        belief.drift + adaptation * drift,
        jnp.maximum(belief.noise + adaptation * noise, 0),
    )


def moments(mean: Array, spread: Array) -> Belief:
    """The Beta of that E p and E p(1 - p): E p(1 - p) = m (1 - m) nu / (nu + 1)."""
    mean = jnp.clip(mean, 1e-6, 1 - 1e-6)
    bound = mean * (1 - mean)
    variance = jnp.maximum(bound - spread, 1e-6 * bound)
    return Belief(mean, jnp.maximum(spread, 1e-6 * bound) / variance)
