"""An online Bayesian logistic regression on the references, with forgetting.

In: references f[K, C] of any K (0 too), domains, and successes and trials of the evaluated
tasks. Out:

    logit p~_k = w . x_k + u_{domain of k},     (w, u) ~ N(m, L^-1)

x_k = (1, the logit of each reference, embeddings if any). A missing logit stands where its
model is on average, moved by how far the task's known ones are from theirs (`features.fill`). A
step is Bayes' rule about the mode (West and Harrison 1997, section 14.4), after forgetting that
lets go of certainty down to the prior's, and of no mean: batches chosen by features say nothing of
some directions, and a mean that returned to the prior would forget those:

    L0' = (1 - f) L + f L0,    m0' = m
    m <- argmax log N(m; m0', L0'^-1) + sum_k w_k log-likelihood of task k
    L <- L0' + sum_k w_k p_k (1 - p_k) x_k x_k'

w_k is the number of independent trials that a task's n are worth (overdispersion). A priori the
policy is a mean of its references: weights 1 / K, uncertain in their sum and, less, each.

How far embeddings are trusted is learned. Their E weights are a priori N(0, s / E) each, and as L
holds its prior in full at every step, what L was told says how likely each s of a grid is (type II
likelihood, MacKay 1992): with a = E / s on the diagonal of the embeddings, and y = L m as told,

    log p(y | s) = (E log a - log |L_a| + y' L_a^-1 y) / 2 + const,    L_a = L + a - (a in force)

log s is then its mean under these, and L is L_a. So embeddings that say nothing soon weigh
nothing, and those that say much are let go. Kinds and numbers are trusted apart (each s is found
while the other is held): noise beside kinds must not cost the trust in those.

Each task has one domain, so the part of L among the u is diagonal, and stays so: with F
features and D domains a step costs F^3 + F^2 (D + tasks evaluated), and no D^2.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.checks import check_number
from bots_jax.implicit import overdispersion
from bots_jax.implicit.contract import Estimator, Inferred, TaskCounts
from bots_jax.implicit.features import (
    FEW_ROWS,
    Levels,
    fill,
    filled_rows,
    learn_levels,
    logistic,
    logits,
    no_levels,
    shrink,
    sum_rows,
)
from bots_jax.implicit.overdispersion import Overdispersion
from bots_jax.numerics import cholesky
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence, domain_sums
from bots_jax.sharding import by_row, mesh_of, totals
from bots_jax.types import Array, Settings


class Prior(NamedTuple):
    """Standard deviations a priori, in logits."""

    intercept: float = 1.5
    total: float = 0.5  # of the sum of the references' weights, about 1
    each: float = 0.25  # of one weight about the mean of all
    domain: float = 1.0  # of what sets a domain apart
    # Of what all embeddings, each of variance 1, say together: what is believed before any
    # evidence. Twice that is the most that is tried.
    embeddings: float = 1.0


class Precision(NamedTuple):
    """L: [[weights, cross], [cross', diag(domains)]]."""

    weights: Array  # f[F, F]
    cross: Array  # f[F, D']; D' = 0 where there is one domain, else D
    domains: Array  # f[D']


class Coefficients(NamedTuple):
    """m, or any vector that L multiplies."""

    weights: Array  # f[F]
    domains: Array  # f[D']


class Regression(NamedTuple):
    """The parameters of a `glm`."""

    mean: Coefficients
    precision: Precision
    covariance: Array  # f[F, F], of the weights: a block of L^-1
    levels: Levels
    dispersion: Overdispersion
    # a, the precision of each embedding's weight: f; f[2], of numbers and of kinds, where it is
    # known which is which; None without any
    trust: Array | None = None
    is_kind: Array | None = None  # bool[E]; None where it is not known


# The variances s that are tried, in `Prior.embeddings` squared. Few above what was given: a few
# successes among many failures say too much in Laplace's form, and s would follow them.
_VARIANCES = np.array([4.0**power for power in range(-4, 2)])
_ITERATIONS = 8


def glm(
    forgetting: float = 0.02,
    prior: Prior | None = None,
) -> Estimator:
    """Regression on all references and domains.

    Args:
      forgetting: f in [0, 1], static: share of the posterior's precision that gives way to the
        prior's at a step; evidence counts for about 1 / f steps. Means stay.
      prior: standard deviations; None for those of `Prior`.
    """
    keep = 1 - check_number("forgetting", forgetting, 0, 1)
    scales = Prior() if prior is None else prior

    def init(reference: Reference, num_domains: int) -> Regression:
        is_kind = None if reference.code is None else reference.code.is_kind
        trust = _first_trust(scales, reference, is_kind)
        each = _of_each(trust, is_kind)
        mean, precision = _prior(scales, reference, num_domains, each)
        return Regression(
            mean,
            precision,
            _covariance(precision),
            no_levels(reference),
            overdispersion.no_overdispersion(reference.rates.dtype),
            trust,
            is_kind,
        )

    def fit(
        params: Regression,
        settings: Settings,
        reference: Reference,
        fused: StepEvidence,
        own: TaskCounts | None = None,
    ) -> Regression:
        each = _of_each(params.trust, params.is_kind)
        _, first = _prior(scales, reference, fused.num_domains, each)
        levels = learn_levels(params.levels, reference, fused.trials > 0)
        x = _features(levels, reference)
        before = params.mean, _forget(params.precision, first, keep)
        after = _learn(before, params.dispersion, levels, x, fused, own)
        if params.trust is None:
            return _if_finite(after, params)
        after = after._replace(trust=params.trust, is_kind=params.is_kind)
        if params.is_kind is None:
            trusts = _trusts(scales, _num_embeddings(reference))
            return _if_finite(_learn_trust(after, trusts), params)
        for kinds in (False, True):
            count = jnp.sum(params.is_kind == kinds).astype(reference.rates.dtype)
            each = jnp.asarray(_trusts(scales, 1), count.dtype)
            after = _learn_trust(after, jnp.maximum(count, 1) * each, kinds)
        return _if_finite(after, params)

    return Estimator(
        "glm",
        0,
        init,
        fit,
        _infer_in_chunks,
        _capability,
        uses_momentum=False,
        infer_roughly=_infer_roughly,
        is_slow=_is_slow,
    )


def _if_finite(after: Regression, before: Regression) -> Regression:
    """The regression after a step, or that before it.

    A billion trials in one direction leave L without a factor in 32 bits, and NaN stays.
    """
    parts = jax.tree.leaves((after.mean, after.covariance, after.dispersion, after.trust))
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts]))
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, before)


def _capability(params: Regression) -> Array:
    """Where the policy stands, in (0, 1): logistic of the logits above its references' mean."""
    intercept = params.mean.weights[0]
    domains = params.mean.domains
    logits = intercept + domains if domains.shape[0] else intercept[None]
    return jax.nn.sigmoid(lax.optimization_barrier(logits))  # or it changes the fit's last bits


# --- features and prior ---------------------------------------------------------------------


def _features(levels: Levels, reference: Reference) -> Array:
    """x, f[F, C]: 1, K logits, E embeddings."""
    values = fill(levels, *logits(reference))
    parts = [jnp.ones((1, values.shape[1]), values.dtype), values]
    if reference.embeddings is not None:
        parts.append(reference.described())
    return jnp.concatenate(parts)


def _feature_rows(levels: Levels, reference: Reference) -> list[Array] | Array:
    """The same, a few of them as a list of rows."""
    if 1 + reference.rates.shape[0] + _num_embeddings(reference) > FEW_ROWS:
        return _features(levels, reference)
    ones = jnp.ones(reference.rates.shape[1:], reference.rates.dtype)
    return [ones, *filled_rows(levels, reference), *reference.described_rows()]


def _prior(
    scales: Prior, reference: Reference, num_domains: int, trust: Array | None
) -> tuple[Coefficients, Precision]:
    models, dtype = reference.rates.shape[0], reference.rates.dtype
    more = _num_embeddings(reference)
    size, known = 1 + models + more, 1 + models
    covariance, mean = np.zeros((known, known)), np.zeros(size)
    covariance[0, 0] = scales.intercept**2
    if models:
        covariance[1:, 1:] = (scales.total / models) ** 2 + scales.each**2 * np.eye(models)
        mean[1:known] = 1 / models
    weights = jnp.asarray(np.pad(np.linalg.inv(covariance), (0, more)), dtype)
    if trust is not None:
        each = trust if trust.ndim == 0 else jnp.pad(trust, (known, 0))[None]
        weights += each * _on_embeddings(size, more, dtype)
    effects = num_domains if num_domains > 1 else 0
    return (
        Coefficients(jnp.asarray(mean, dtype), jnp.zeros((effects,), dtype)),
        Precision(
            weights,
            jnp.zeros((size, effects), dtype),
            jnp.full((effects,), scales.domain**-2, dtype),
        ),
    )


# --- how far embeddings are trusted ---------------------------------------------------------


def _num_embeddings(reference: Reference) -> int:
    return 0 if reference.embeddings is None else reference.embeddings.shape[0]


def _on_embeddings(size: int, more: int, dtype: jnp.dtype) -> Array:
    """1 on the diagonal of the last `more` of `size` weights."""
    return jnp.asarray(np.diag(np.arange(size) >= size - more), dtype)


def _trusts(scales: Prior, count: int) -> np.ndarray:
    """The grid of a, from much trust to little, for so many embeddings."""
    return count / (scales.embeddings**2 * _VARIANCES)


def _first_trust(scales: Prior, reference: Reference, is_kind: Array | None) -> Array | None:
    """Before any evidence: s as given. Noise is found out within a step or two all the same, and
    features that tell much are not held back while most is to be learned."""
    more, dtype = _num_embeddings(reference), reference.rates.dtype
    if not more:
        return None
    if is_kind is None:
        return jnp.asarray(more / scales.embeddings**2, dtype)
    each = jnp.maximum(jnp.stack([jnp.sum(~is_kind), jnp.sum(is_kind)]), 1).astype(dtype)
    return each / jnp.asarray(scales.embeddings**2, dtype)


def _of_each(trust: Array | None, is_kind: Array | None) -> Array | None:
    """f[] or f[E]: the trust in each embedding."""
    return trust if trust is None or is_kind is None else trust[is_kind.astype(jnp.int32)]


def _learn_trust(
    params: Regression, grid: Array | np.ndarray, kinds: bool | None = None
) -> Regression:
    """The regression under the mean of log a over the grid, by its likelihood.

    Args:
      kinds: whether it is the a of the kinds or of the numbers; None: of all embeddings.
    """
    mean, precision, trusted = params.mean, params.precision, params.trust
    assert trusted is not None
    before = trusted if kinds is None else trusted[int(kinds)]
    dtype, size = mean.weights.dtype, mean.weights.shape[0]
    count: int | Array = size - 1 - params.levels.sums.shape[0]
    diagonal = _on_embeddings(size, size - 1 - params.levels.sums.shape[0], dtype)
    if kinds is not None and params.is_kind is not None:
        mine = params.is_kind == kinds
        diagonal *= jnp.pad(mine.astype(dtype), (size - mine.shape[0], 0))[None]
        count = jnp.sum(mine).astype(dtype)
    told = _apply(precision, mean)
    rest = told.weights - precision.cross @ (told.domains / precision.domains)

    def trusting(trust: Array) -> Precision:
        return precision._replace(weights=precision.weights + (trust - before) * diagonal)

    def log_likelihood(trust: Array) -> Array:
        factor = _factor(trusting(trust))
        scaled = jax.scipy.linalg.solve_triangular(factor, rest, lower=True)
        room = 0.5 * count * jnp.log(trust) - jnp.sum(jnp.log(jnp.diagonal(factor)))
        return room + 0.5 * jnp.sum(scaled * scaled)

    trusts = jnp.asarray(grid, dtype)
    weights = jax.nn.softmax(jax.vmap(log_likelihood)(trusts))
    trust = jnp.exp(jnp.sum(weights * jnp.log(trusts)))
    after = trusting(trust)
    found = trust if kinds is None else trusted.at[int(kinds)].set(trust)
    return params._replace(
        mean=_solve(after, told), precision=after, covariance=_covariance(after), trust=found
    )


# --- L as a block of weights with a diagonal one of domains ---------------------------------


def _apply(precision: Precision, x: Coefficients) -> Coefficients:
    """L x."""
    weights, cross, domains = precision
    return Coefficients(
        weights @ x.weights + cross @ x.domains, cross.T @ x.weights + domains * x.domains
    )


def _factor(precision: Precision) -> Array:
    """Cholesky factor of L's Schur complement, the inverse covariance of the weights."""
    weights, cross, domains = precision
    return jnp.linalg.cholesky(weights - (cross / domains[None]) @ cross.T)


def _solve(precision: Precision, y: Coefficients) -> Coefficients:
    """L^-1 y."""
    _, cross, domains = precision
    rest = y.weights - cross @ (y.domains / domains)
    weights = jax.scipy.linalg.cho_solve((_factor(precision), True), rest)
    return Coefficients(weights, (y.domains - cross.T @ weights) / domains)


def _covariance(precision: Precision) -> Array:
    return cholesky.inverse(_factor(precision))


def _plus(a: Coefficients, b: Coefficients, scale: Array | float = 1) -> Coefficients:
    return Coefficients(a.weights + scale * b.weights, a.domains + scale * b.domains)


def _observed(x: Array, weight: Array, domain: Array | None, effects: int) -> Precision:
    """sum_k weight_k x_k x_k', with domains."""
    weighted = x * weight[None]
    return Precision(
        _sums(x, weighted),
        _to_domains(weighted, domain, effects),
        _to_domains(weight[None], domain, effects)[0],
    )


def _sums(x: Array, y: Array) -> Array:
    """x y', added up in one order on any number of devices."""
    if mesh_of(x) is None:
        return x @ y.T
    return lax.map(lambda row: totals(row[None] * y), x)


def _to_domains(values: Array, domain: Array | None, effects: int) -> Array:
    """[A, R] -> [A, D']."""
    if domain is None or not effects:
        return jnp.zeros((values.shape[0], effects), values.dtype)
    return by_row(lambda row: domain_sums(row, domain, effects), values)


# --- a step ---------------------------------------------------------------------------------


def _forget(precision: Precision, first: Precision, keep: float) -> Precision:
    """L0', between that of the posterior and that of the prior."""
    return jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, precision, first)


def _line(mean: Coefficients, x: Array | list[Array], domain: Array | None) -> Array:
    if isinstance(x, list):
        eta = reduce(jnp.add, [weight * row for weight, row in zip(mean.weights, x, strict=True)])
    else:
        eta = sum_rows(mean.weights[:, None] * x)
    return eta if domain is None or not mean.domains.shape[0] else eta + mean.domains[domain]


def _learn(
    before: tuple[Coefficients, Precision],
    spread: Overdispersion,
    levels: Levels,
    x: Array,
    fused: StepEvidence,
    own: TaskCounts | None,
) -> Regression:
    """Bayes' rule about the mode."""
    start, prior = before
    effects = start.domains.shape[0]
    trials, domain = fused.trials, fused.domain
    rate = safe_ratio(fused.successes, trials)

    line = _line(start, x, domain)
    expected = overdispersion.predict(spread, logistic(line), trials, own)
    explained_fraction = None if own is None else own.explained_fraction

    def at(mean: Coefficients) -> tuple[overdispersion.Predicted, Array]:
        """What is predicted, and a curvature of the log-likelihood that it does not exceed."""
        eta = _line(mean, x, domain)
        if explained_fraction is None:
            told = overdispersion.predict(spread, logistic(eta), trials, own)
            return told, overdispersion.bound(eta, told)
        told = overdispersion.follow(expected, explained_fraction, eta - line)
        return told, 0.25 * told.information * jnp.square(1 - explained_fraction)

    def closer(_: int, mean: Coefficients) -> Coefficients:
        told, bound = at(mean)
        slope, bend = overdispersion.derivatives(told, rate)
        pull = _apply(prior, _plus(mean, start, -1))
        gradient = Coefficients(
            _sums(x, slope[None])[:, 0], _to_domains(slope[None], domain, effects)[0]
        )
        towards = overdispersion.curvature_towards_mode(bound, bend)
        seen = _observed(x, towards, domain, effects)
        curved = jax.tree.map(jnp.add, prior, seen)
        return _plus(mean, _solve(curved, _plus(gradient, pull, -1)))

    mean = lax.fori_loop(0, _ITERATIONS, closer, start)
    _, bend = overdispersion.derivatives(at(mean)[0], rate)
    precision: Precision = jax.tree.map(jnp.add, prior, _observed(x, bend, domain, effects))
    learned = overdispersion.learn(spread, expected, fused.successes, trials, overdispersion.KEEP)
    return Regression(mean, precision, _covariance(precision), levels, learned)


# Tasks looked at together where features are many: 32 numbers of each stay in a core's cache, so a
# million take a tenth of the time that they take at once.
_CHUNK = 4096


# Tasks up to which `infer` is quick enough.
_FEW_TASKS = 2**15


def _is_slow(params: Regression, reference: Reference) -> bool:
    """Whether features are many, and of many tasks."""
    return params.mean.weights.shape[0] > FEW_ROWS and reference.rates.shape[1] > _FEW_TASKS


def _infer_in_chunks(params: Regression, reference: Reference, domain: Array | None) -> Inferred:
    """`_infer`, a chunk after the other where all at once would be moved through memory."""
    tasks = reference.rates.shape[1]
    whole = tasks // _CHUNK
    few = params.mean.weights.shape[0] <= FEW_ROWS
    if few or whole < 2 or mesh_of(reference.rates) is not None:
        return _infer(params, reference, domain)

    def part(start: Array | int, size: int) -> Inferred:
        def cut(values: Array) -> Array:
            return lax.dynamic_slice_in_dim(values, start, size, axis=-1)

        return _infer(params, reference.each(cut), None if domain is None else cut(domain))

    starts = _CHUNK * jnp.arange(whole, dtype=jnp.int32)
    chunks = lax.map(lambda start: part(start, _CHUNK), starts)
    told = jax.tree.map(jnp.ravel, chunks)
    rest = tasks - whole * _CHUNK
    if not rest:
        return told
    return jax.tree.map(lambda *x: jnp.concatenate(x), told, part(whole * _CHUNK, rest))


def _infer_roughly(params: Regression, reference: Reference, domain: Array | None) -> Inferred:
    """`_infer` with a variance that leaves out what the weights of embeddings have in common.

    So it costs two products a feature and not F, in one pass over the tasks. Intercept,
    references and domain are in full. Where embeddings are uncorrelated over the tasks, as
    principal components are, the mean over the tasks is the same.
    """
    embeddings = reference.described_rows()
    known = [jnp.ones(reference.rates.shape[1:], reference.rates.dtype)]
    known += filled_rows(params.levels, reference)
    first = len(known)
    eta = _line(params.mean, [*known, *embeddings], domain)
    corner = params._replace(
        covariance=params.covariance[:first, :first],
        precision=params.precision._replace(cross=params.precision.cross[:first]),
    )
    variance = _variance(corner, known, domain)
    for at, row in enumerate(embeddings, start=first):
        variance += params.covariance[at, at] * row * row
    return _told(params, eta, variance)


def _infer(params: Regression, reference: Reference, domain: Array | None) -> Inferred:
    x = _feature_rows(params.levels, reference)
    eta = _line(params.mean, x, domain)
    return _told(params, eta, _variance(params, x, domain))


def _told(params: Regression, eta: Array, variance: Array) -> Inferred:
    mean = logistic(shrink(eta, variance))
    known = jnp.ones(mean.shape, bool)
    counts = overdispersion.concentration(params.dispersion, mean, variance)
    return Inferred(mean, known, counts, variance)


def _variance(params: Regression, x: Array | list[Array], domain: Array | None) -> Array:
    """Of w . x + u: (x - c)' S (x - c) + 1 / l, S the covariance of the weights, l and
    c = cross / l those of the domain."""
    _, cross, domains = params.precision
    rest = jnp.zeros((), domains.dtype)
    by_domain = domain is not None and domains.shape[0]
    if by_domain:
        rest = (1 / domains)[domain]
    if not isinstance(x, list):
        if by_domain:
            x = x - (cross / domains[None])[:, domain]
        return jnp.sum(x * (params.covariance @ x), axis=0) + rest
    if by_domain:
        x = [row - (own / domains)[domain] for own, row in zip(cross, x, strict=True)]
    # A product of matrices would write f[F, C] and read it again, for a few sums a task.
    spread = [
        reduce(jnp.add, [one * row for one, row in zip(weights, x, strict=True)])
        for weights in params.covariance
    ]
    return reduce(jnp.add, [a * b for a, b in zip(x, spread, strict=True)]) + rest
