"""Linear interpolation between the weakest and the strongest reference.

In: references f[K, C], K >= 2, and the rates of the evaluated tasks. Out:

    p~ = clip(lo + mu (hi - lo), 0, 1)

with lo the first and hi the last model, and the capability mu, one a domain, either from the
ratio of means over the batch (`linear`, as published) or by least squares (`linear_ls`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax.implicit import overdispersion
from bots_jax.implicit.contract import Estimator, Inferred, TaskCounts
from bots_jax.implicit.overdispersion import Overdispersion
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference, is_known
from bots_jax.pool.visits import StepEvidence, by_task, domain_sums
from bots_jax.types import Array, Settings


class Capability(NamedTuple):
    """Where the policy stands between the weak (0) and the strong (1) reference."""

    value: Array  # f[D], mu; 0 until it is known
    known: Array  # bool[D]


class LeastSquares(NamedTuple):
    """Discounted normal equations of mu, and how well the line fits."""

    square: Array  # f[D], sum of w (hi - lo)^2
    product: Array  # f[D], sum of w (hi - lo) (s/n - lo)
    dispersion: Overdispersion


# The authors' guard against a zero gap, part of the published rule.
_GAP_GUARD = 1e-6
# Our one departure: below this gap the ratio is noise and mu stays as it is.
_LEAST_GAP = 1e-3
# A rate of 0 or 1 is no certainty: p~ is kept off by so much where its variance is asked for.
_EDGE = 0.01
# Prior of the least-squares mu, N(1/2, 1), as a sum of squares over p (1 - p) = 1/4.
_PRIOR_MU, _PRIOR_SQUARE = 0.5, 0.25


def linear() -> Estimator:
    """The published estimator (arXiv 2510.26374, eq. 7 to 9), separately in each domain.

        c  = (mean s/n - mean lo) / (mean hi - mean lo + 1e-6)   over the evaluated tasks
        mu <- c at first, then gamma mu + (1 - gamma) c

    It claims no concentration.
    """
    return Estimator("linear", 2, _init_capability, _fit_linear, _infer_linear, _value)


def linear_ls() -> Estimator:
    """The same line, mu by weighted least squares, with what it is worth.

        mu = (mu0 q0 + sum w x (s/n - lo)) / (q0 + sum w x^2),   x = hi - lo

    over all evaluated tasks, those of t steps ago counted gamma^t; w is the number of
    independent trials that a task's n are worth (overdispersion). The ratio of means divides by
    a gap that may be near 0; this weighs each task by its gap. Prior: mu ~ N(1/2, 1).
    """
    return Estimator("linear_ls", 2, _init_squares, _fit_squares, _infer_squares, _mu)


def ends(reference: Reference) -> tuple[Array, Array, Array]:
    """lo, hi (0 where unknown) and where both are known."""
    lo, hi = reference.rates[0], reference.rates[-1]
    known = is_known(lo) & is_known(hi)
    return jnp.where(known, lo, 0), jnp.where(known, hi, 0), known


# --- as published ---------------------------------------------------------------------------


def _init_capability(reference: Reference, num_domains: int) -> Capability:
    zeros = jnp.zeros((num_domains,), reference.rates.dtype)
    return Capability(zeros, jnp.zeros((num_domains,), bool))


def _value(params: Capability) -> Array:
    return params.value


def _fit_linear(
    params: Capability,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
    own: TaskCounts | None = None,
) -> Capability:
    lo, hi, known = ends(reference)
    used = known & (fused.trials > 0)
    rate = safe_ratio(fused.successes, fused.trials)

    def total(values: Array) -> Array:
        return domain_sums(jnp.where(used, values, 0), fused.domain, fused.num_domains)

    def mean(values: Array) -> Array:
        return safe_ratio(total(values), count)

    count = total(jnp.ones_like(rate))
    weak = mean(lo)
    gap = mean(hi) - weak
    usable = (count > 0) & (jnp.abs(gap) >= _LEAST_GAP)
    observed = (mean(rate) - weak) / jnp.where(usable, gap + _GAP_GUARD, 1)
    momentum = settings.capability_momentum
    smoothed = momentum * params.value + (1 - momentum) * observed
    value = jnp.where(params.known, smoothed, observed)
    return Capability(jnp.where(usable, value, params.value), params.known | usable)


def _infer_linear(params: Capability, reference: Reference, domain: Array | None) -> Inferred:
    lo, hi, known = ends(reference)
    mean = jnp.clip(lo + by_task(params.value, domain) * (hi - lo), 0, 1)
    return Inferred(mean, known & by_task(params.known, domain))


# --- by least squares -----------------------------------------------------------------------


def _init_squares(reference: Reference, num_domains: int) -> LeastSquares:
    dtype = reference.rates.dtype
    zeros = jnp.zeros((num_domains,), dtype)
    return LeastSquares(zeros, zeros, overdispersion.no_overdispersion(dtype))


def _mu(params: LeastSquares) -> Array:
    return (_PRIOR_MU * _PRIOR_SQUARE + params.product) / (_PRIOR_SQUARE + params.square)


def _fit_squares(
    params: LeastSquares,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
    own: TaskCounts | None = None,
) -> LeastSquares:
    lo, hi, known = ends(reference)
    trials = jnp.where(known, fused.trials, 0)
    before, _ = _line(params, reference, fused.domain)
    told = overdispersion.predict(params.dispersion, before, trials, own)
    # What remains of s/n once the task's own history has had its share.
    rate = safe_ratio(fused.successes, trials) - (told.mean - told.share * before)
    gap = hi - lo
    weight = told.information

    def total(values: Array) -> Array:
        return domain_sums(values, fused.domain, fused.num_domains)

    keep = settings.capability_momentum
    product = total(weight * told.share * gap * (rate - told.share * lo))
    return LeastSquares(
        keep * params.square + total(weight * jnp.square(told.share * gap)),
        keep * params.product + product,
        overdispersion.learn(params.dispersion, told, fused.successes, trials, keep),
    )


def _line(params: LeastSquares, reference: Reference, domain: Array | None) -> tuple[Array, Array]:
    lo, hi, known = ends(reference)
    return jnp.clip(lo + by_task(_mu(params), domain) * (hi - lo), 0, 1), known


def _infer_squares(params: LeastSquares, reference: Reference, domain: Array | None) -> Inferred:
    lo, hi, _ = ends(reference)
    mean, known = _line(params, reference, domain)
    inner = jnp.clip(mean, _EDGE, 1 - _EDGE)
    slope = (hi - lo) / (inner * (1 - inner))  # of logit p~ in mu
    of_mu = by_task(0.25 / (_PRIOR_SQUARE + params.square), domain)
    variance = jnp.square(slope) * of_mu
    return Inferred(
        mean, known, overdispersion.concentration(params.dispersion, inner, variance), variance
    )


def none() -> Estimator:
    """No implicit evidence."""

    def infer(params: Any, reference: Reference, domain: Array | None) -> Inferred:
        capacity = reference.rates.shape[1]
        half = jnp.full((capacity,), 0.5, reference.rates.dtype)
        return Inferred(half, jnp.zeros((capacity,), bool))

    def fit(params: Any, *_: Any, **__: Any) -> Any:
        return params

    return Estimator(
        "none",
        0,
        lambda reference, num_domains: (),
        fit,
        infer,
        lambda params: jnp.zeros((1,)),
        uses_momentum=False,
    )
