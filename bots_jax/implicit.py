"""Implicit evidence: success probabilities inferred without rollouts.

In: the references of all tasks, and the rates at which the evaluated ones were solved.
Out: p~ f[C] and where it is known. An estimator is a record of three pure functions over
a pytree of its own; `bots(estimator=...)` takes a name from `ESTIMATORS` or a record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax.checks import check_choice
from bots_jax.numerics import safe_ratio
from bots_jax.pool import Fused, by_task, domain_sums
from bots_jax.reference import Reference
from bots_jax.types import Array, Settings


class Inferred(NamedTuple):
    """Implicit evidence for every task."""

    mean: Array  # f[C], p~ in [0, 1]; finite everywhere
    known: Array  # bool[C], where p~ may be used
    # f[C], pseudo-counts that p~ may claim as a prior; None: the estimator cannot tell
    concentration: Array | None = None


class Estimator(NamedTuple):
    """How implicit evidence is made.

    init(num_domains, dtype) -> params
    fit(params, settings, reference, fused) -> params, from the evaluated tasks
    infer(params, reference, domain) -> Inferred
    capability(params) -> f[D], for `Info`
    """

    name: str
    models: int  # reference models needed at least
    init: Callable[[int, jnp.dtype], Any]
    fit: Callable[[Any, Settings, Reference, Fused], Any]
    infer: Callable[[Any, Reference, Array | None], Inferred]
    capability: Callable[[Any], Array]


class Capability(NamedTuple):
    """Where the policy stands between the weak (0) and the strong (1) reference."""

    value: Array  # f[D], mu; 0 until it is known
    known: Array  # bool[D]


# The authors' guard against a zero gap, part of the published rule.
_GAP_GUARD = 1e-6
# Our one departure: below this gap the ratio is noise and mu stays as it is.
_LEAST_GAP = 1e-3


def linear() -> Estimator:
    """Linear interpolation between the weakest and the strongest reference.

        c  = (mean s/n - mean lo) / (mean hi - mean lo + 1e-6)   over the evaluated tasks
        mu <- c at first, then gamma mu + (1 - gamma) c
        p~ = clip(lo + mu (hi - lo), 0, 1)

    (arXiv 2510.26374, eq. 7 to 9), separately in each domain. With more than two
    references, lo is the first and hi the last.
    """
    return Estimator("linear", 2, _init_capability, _fit_linear, _infer_linear, _value)


def none() -> Estimator:
    """No implicit evidence: for pools without references."""

    def infer(params: tuple[()], reference: Reference, domain: Array | None) -> Inferred:
        capacity = reference.rates.shape[1]
        half = jnp.full((capacity,), 0.5, reference.rates.dtype)
        return Inferred(half, jnp.zeros((capacity,), bool))

    return Estimator(
        "none",
        0,
        lambda num_domains, dtype: (),
        lambda params, settings, reference, fused: (),
        infer,
        lambda params: jnp.zeros((1,)),
    )


ESTIMATORS: dict[str, Callable[[], Estimator]] = {"linear": linear, "none": none}


def make_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, or the given record itself."""
    if isinstance(estimator, Estimator):
        return estimator
    return ESTIMATORS[check_choice("estimator", estimator, tuple(ESTIMATORS))]()


def _init_capability(num_domains: int, dtype: jnp.dtype) -> Capability:
    return Capability(jnp.zeros((num_domains,), dtype), jnp.zeros((num_domains,), bool))


def _value(params: Capability) -> Array:
    return params.value


def _ends(reference: Reference) -> tuple[Array, Array, Array]:
    """lo, hi (0 where unknown) and where both are known."""
    lo, hi = reference.rates[0], reference.rates[-1]
    known = jnp.isfinite(lo) & jnp.isfinite(hi)
    return jnp.where(known, lo, 0), jnp.where(known, hi, 0), known


def _fit_linear(
    params: Capability, settings: Settings, reference: Reference, fused: Fused
) -> Capability:
    lo, hi, known = _ends(reference)
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
    lo, hi, known = _ends(reference)
    mean = jnp.clip(lo + by_task(params.value, domain) * (hi - lo), 0, 1)
    return Inferred(mean, known & by_task(params.known, domain))
