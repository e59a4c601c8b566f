"""A line between two references in logits, its capability filtered.

In: references f[K, C], K >= 2, and successes and trials of the evaluated tasks. Out:

    logit p~ = logit lo + theta (logit hi - logit lo)

the two-parameter logistic model of test theory (Birnbaum 1968; Rasch 1960 is the case of equal
gaps) with tasks placed by their references and theta, one a domain, the policy's ability. theta
drifts as a random walk and is filtered, as ratings of players are (Glickman 1999, eq. 9-13):

    P <- P + Q,   1/P' = 1/P + sum w x^2 p (1 - p),   theta <- theta + P' sum w x (s/n - p)

with x the gap of a task, w the number of independent trials that its n are worth
(overdispersion). The curve saturates, so nothing is clipped, and a policy outside its references
is extrapolated to, not cut off.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from bots_jax.implicit import overdispersion
from bots_jax.implicit.contract import Estimator, Inferred, TaskCounts
from bots_jax.implicit.features import logistic, logits, shrink
from bots_jax.implicit.overdispersion import Overdispersion
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence, by_task, domain_sums
from bots_jax.types import Array, Settings


class Ability(NamedTuple):
    """theta ~ N(mean, variance) in each domain, and how well the curve fits."""

    mean: Array  # f[D]
    variance: Array  # f[D]
    dispersion: Overdispersion


# theta ~ N(1/2, 1) at first; Q a step.
_PRIOR_MEAN, _PRIOR_VARIANCE, _DRIFT = 0.5, 1.0, 1e-3
# Steps towards the mode; each cannot overshoot.
_ITERATIONS = 8


def logit() -> Estimator:
    """The line in logits, with a filtered, uncertain capability."""
    return Estimator(
        "logit", 2, _init, _fit, _infer, lambda params: params.mean, uses_momentum=False
    )


def _init(reference: Reference, num_domains: int) -> Ability:
    dtype = reference.rates.dtype
    ones = jnp.ones((num_domains,), dtype)
    return Ability(
        _PRIOR_MEAN * ones, _PRIOR_VARIANCE * ones, overdispersion.no_overdispersion(dtype)
    )


def _line(reference: Reference) -> tuple[Array, Array, Array]:
    """logit lo, the gap to logit hi, and where both are known."""
    values, known = logits(reference)
    return values[0], values[-1] - values[0], known[0] & known[-1]


def _fit(
    params: Ability,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
    own: TaskCounts | None = None,
) -> Ability:
    lo, gap, known = _line(reference)
    trials = jnp.where(known, fused.trials, 0)
    rate = safe_ratio(fused.successes, trials)
    prior = params.mean
    precision = 1 / jnp.minimum(params.variance + _DRIFT, _PRIOR_VARIANCE)

    def total(values: Array) -> Array:
        return domain_sums(values, fused.domain, fused.num_domains)

    def at(theta: Array) -> tuple[overdispersion.Predicted, Array]:
        """What p~ predicts together with a task's own history, and logit p~."""
        eta = lo + by_task(theta, fused.domain) * gap
        return overdispersion.predict(params.dispersion, logistic(eta), trials, own), eta

    def closer(_: int, theta: Array) -> Array:
        told, eta = at(theta)
        slope, bend = overdispersion.derivatives(told, rate)
        curved = overdispersion.curvature_towards_mode(overdispersion.bound(eta, told), bend)
        gradient = total(gap * slope) - precision * (theta - prior)
        return theta + gradient / (precision + total(gap * gap * curved))

    theta = lax.fori_loop(0, _ITERATIONS, closer, prior)
    told, _ = at(theta)
    _, bend = overdispersion.derivatives(told, rate)
    before, _ = at(prior)
    return Ability(
        theta,
        1 / (precision + total(gap * gap * bend)),
        overdispersion.learn(
            params.dispersion, before, fused.successes, trials, overdispersion.KEEP
        ),
    )


def _infer(params: Ability, reference: Reference, domain: Array | None) -> Inferred:
    lo, gap, known = _line(reference)
    eta = lo + by_task(params.mean, domain) * gap
    variance = by_task(params.variance, domain) * gap * gap
    mean = logistic(shrink(eta, variance))
    return Inferred(
        mean, known, overdispersion.concentration(params.dispersion, mean, variance), variance
    )
