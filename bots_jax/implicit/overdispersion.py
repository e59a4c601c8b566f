"""How far the tasks themselves are from what an estimator says of them.

In: predicted and observed rates of the evaluated tasks. Out: phi, and with it what p~ is worth.
A task's rate is taken to be spread about the estimate like a Beta of c pseudo-counts,

    p_k ~ Beta(c p~_k, c (1 - p~_k)),    phi = 1 / (c + 1)

so n rollouts of one task carry the information of n / (1 + (n - 1) phi) rollouts of as many
tasks, and E (s/n - p~)^2 = p~ (1 - p~) (1/n + (1 - 1/n) phi). That moment gives phi from
discounted sums over the evaluated tasks. One trial a task tells nothing of phi: the prior stays.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from bots_jax.implicit.contract import TaskCounts
from bots_jax.implicit.features import curvature, logistic
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.sharding import total
from bots_jax.types import Array

# phi before any evidence: c = 3 pseudo-counts; and the tasks that this is worth, times p (1 - p).
_PRIOR_PHI, _PRIOR_WEIGHT = 0.25, 2.0
# phi is kept in here: c from 1/19 to 199.
_LEAST_PHI, _MOST_PHI = 0.005, 0.95
_FLOOR = 1e-3  # of p (1 - p), so that one surprise at p~ = 0 is not all there is
_LEAST_MEAN = 1e-6  # predictions are kept this far from 0 and 1, where they have no logit
KEEP = 0.98  # share of earlier steps' evidence of phi that still counts


class Overdispersion(NamedTuple):
    """Discounted sums over evaluated tasks."""

    excess: Array  # f, squared error beyond that of a binomial
    room: Array  # f, what that would be at phi = 1


def no_overdispersion(dtype: jnp.dtype) -> Overdispersion:
    """Before any evidence."""
    return Overdispersion(
        jnp.asarray(_PRIOR_PHI * _PRIOR_WEIGHT, dtype), jnp.asarray(_PRIOR_WEIGHT, dtype)
    )


def phi_of(dispersion: Overdispersion) -> Array:
    """phi in (0, 1)."""
    return jnp.clip(dispersion.excess / dispersion.room, _LEAST_PHI, _MOST_PHI)


class Predicted(NamedTuple):
    """What p~ and a task's own counts say together of its next rollouts."""

    mean: Array  # f[R], (c p~ + s_own) / (c + n_own)
    share: Array  # f[R], c / (c + n_own): d mean / d p~
    information: Array  # f[R], n / (1 + (n - 1) phi'): independent trials that n are worth
    slope: Array  # f[R], d mean / d logit p~


def predict(
    dispersion: Overdispersion, mean: Array, trials: Array, own: TaskCounts | None
) -> Predicted:
    """The prediction of new counts, as an estimator fits them.

    Args:
      mean: f[R], p~.
      trials: f[R], of the new counts.
      own: counts before them; None for none.
    """
    phi = phi_of(dispersion)
    if own is None:
        share, predicted, spread = jnp.ones_like(mean), mean, phi
    else:
        strength = 1 / phi - 1
        share = strength / (strength + own.trials)
        predicted = share * mean + own.successes / (strength + own.trials)
        spread = phi / (1 + phi * own.trials)
    worth = trials / (1 + jnp.maximum(trials - 1, 0) * spread)
    return Predicted(predicted, share, worth, share * mean * (1 - mean))


def follow(predicted: Predicted, explained_fraction: Array, change: Array) -> Predicted:
    """The prediction after logit p~ has changed, where the history tells how much shows of it.

    A history that was gathered under an error of p~ hides that error, as it would
    have made up for another; what p~ has moved since then shows in full. So the logit of the
    prediction goes with p~ by the rest, 1 - `explained_fraction`.
    """
    q = jnp.clip(predicted.mean, _LEAST_MEAN, 1 - _LEAST_MEAN)
    moved = logistic(jnp.log(q / (1 - q)) + (1 - explained_fraction) * change)
    return predicted._replace(mean=moved, slope=(1 - explained_fraction) * moved * (1 - moved))


def derivatives(predicted: Predicted, rate: Array) -> tuple[Array, Array]:
    """Of the log-likelihood in logit p~: the first, and minus the expected second, f[R]."""
    q = predicted.mean
    variance = jnp.maximum(q * (1 - q), _FLOOR)
    scaled = predicted.information * predicted.slope / variance
    return scaled * (rate - q), scaled * predicted.slope


def bound(eta: Array, predicted: Predicted) -> Array:
    """The curvature of a parabola below the log-likelihood in logit p~ = eta, f[R]."""
    return predicted.information * predicted.share * curvature(eta)


def curvature_towards_mode(bound: Array, bend: Array) -> Array:
    """Curvature to divide by on the way to the mode, f[R]: no step overshoots.

    Half way between the second derivative and that of a parabola below the likelihood. Going by
    the parabola alone never falls short of the likelihood it had, and neither does going up to
    twice as far (Wu and Lange 2010); Newton's step may.
    """
    return 0.5 * (bend + jnp.maximum(bound, bend))


def learn(
    dispersion: Overdispersion,
    predicted: Predicted,
    successes: Array,
    trials: Array,
    keep: Array | float,
) -> Overdispersion:
    """phi one step on, from how the new counts differ from what was predicted.

    Args:
      keep: share of the earlier evidence that still counts.
    """
    seen = trials > 0
    q, share = predicted.mean, predicted.share
    error = safe_ratio(successes, trials) - q
    variance = jnp.maximum(q * (1 - q), _FLOOR)
    inverse = safe_ratio(jnp.ones_like(trials), trials)
    excess = jnp.where(trials > 1, share * (error * error - variance * inverse), 0)
    room = jnp.where(trials > 1, share * share * variance * (1 - inverse), 0)
    prior = no_overdispersion(q.dtype)
    return Overdispersion(
        keep * dispersion.excess + (1 - keep) * prior.excess + total(jnp.where(seen, excess, 0)),
        keep * dispersion.room + (1 - keep) * prior.room + total(jnp.where(seen, room, 0)),
    )


def concentration(dispersion: Overdispersion, mean: Array, variance: Array) -> Array:
    """Pseudo-counts f[C] that p~ is worth.

    Args:
      mean: f[C], p~.
      variance: f[C], of logit p~, from what is uncertain of the estimator's parameters.

    A Beta of c counts has variance about 1 / (c p (1 - p)) in logits, so parameters alone
    would give 1 / (p (1 - p) v) + 1 (a uniform at v = pi^2 / 3); variances of independent
    causes add up, and so do the inverses of counts.
    """
    phi = phi_of(dispersion)
    scaled = mean * (1 - mean) * variance
    return 1 / (phi / (1 - phi) + scaled / (1 + scaled))
