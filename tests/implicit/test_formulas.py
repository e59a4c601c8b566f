"""Formulas of the estimators in float64 NumPy, task by task, to nine digits and more."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from bots_jax import Settings
from bots_jax.implicit import features, glm, linear, linear_ls, logit, overdispersion
from bots_jax.implicit.contract import TaskCounts
from bots_jax.implicit.overdispersion import Overdispersion, Predicted
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from tests.implicit.test_estimators import Batches, dense, glm_oracle, trust_of

Floats = np.ndarray
TASKS, DOMAINS = 30, 3


def given(models: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Rates, a third of them unknown and some 0 or 1, and attempts."""
    rng = np.random.default_rng(seed)
    rates = rng.integers(0, 9, (models, TASKS)) / 8
    rates[rng.random(rates.shape) < 0.3] = -1
    return rates, rng.integers(1, 40, (models, TASKS)) + 0.0


def shrunk(rate: float, attempts: float) -> float:
    solved = rate * attempts
    return float(np.log((solved + 0.5) / (attempts - solved + 0.5)))


class Filled:
    """Logits of references, the unknown ones where their model and the task are."""

    def __init__(self, models: int) -> None:
        self.sums, self.counts = np.zeros(models), np.zeros(models)

    def learn(self, rates: Floats, attempts: Floats, evaluated: Floats) -> None:
        for k, task in np.argwhere((rates >= 0) & evaluated):
            self.sums[k] += shrunk(rates[k, task], attempts[k, task])
            self.counts[k] += 1

    def values(self, rates: Floats, attempts: Floats) -> Floats:
        grand = self.sums.sum() / max(self.counts.sum(), 1)
        level = (self.sums + 8 * grand) / (self.counts + 8)
        found = np.zeros(rates.shape)
        for task in range(rates.shape[1]):
            have = np.flatnonzero(rates[:, task] >= 0)
            own = [shrunk(rates[k, task], attempts[k, task]) for k in have]
            found[:, task] = level + (np.sum(own) - level[have].sum()) / (len(have) + 1)
            found[have, task] = own
        return found


@pytest.mark.parametrize(("models", "told"), [(0, False), (1, False), (3, True)])
def test_unknown_references_are_filled(models: int, told: bool) -> None:
    """Before any task was evaluated, and after two steps; all rows at once and one by one."""
    rates, attempts = given(models)
    attempts = attempts if told else np.full(rates.shape, 8.0)
    oracle = Filled(models)
    with jax.enable_x64(True):
        reference = Reference(jnp.asarray(rates), jnp.asarray(attempts) if told else None)

        @jax.jit
        def look(levels: Any, reference: Reference, evaluated: Any) -> tuple[Any, ...]:
            filled = features.fill(levels, *features.logits(reference))
            rows = features.filled_rows(levels, reference)
            return filled, rows, features.learn_levels(levels, reference, evaluated)

        levels = features.no_levels(reference)
        for step in range(3):
            evaluated = np.random.default_rng(step).random(TASKS) < 0.4
            found, rows, levels = look(levels, reference, evaluated)
            np.testing.assert_allclose(found, oracle.values(rates, attempts), rtol=1e-12)
            np.testing.assert_allclose(np.array(rows).reshape(rates.shape), found, rtol=1e-12)
            oracle.learn(rates, attempts, evaluated)


def test_logistic_and_the_curvature_below_it() -> None:
    """tanh(x / 2) / (2 x), 1/4 at 0, and the pull of a variance on a mean and back."""
    x = np.concatenate([-np.logspace(2, -9, 300), [0], np.logspace(-9, 2, 300)])
    v = np.linspace(0, 20, len(x))
    with jax.enable_x64(True):
        at, wide = jnp.asarray(x), jnp.asarray(v)
        np.testing.assert_allclose(features.logistic(at), special.expit(x), rtol=1e-6, atol=1e-15)
        found = np.asarray(features.curvature(at))
        shrink, back = features.shrink(at, wide), features.unshrink(features.shrink(at, wide), wide)
        rows = [np.asarray(features.sum_rows(jnp.ones((size, 4)))) for size in (0, 1, 6, 7)]
    far = np.abs(x) > 1e-3
    np.testing.assert_allclose(found[far], np.tanh(x[far] / 2) / 2 / x[far], rtol=2e-5)
    np.testing.assert_allclose(found[~far], 0.25, rtol=1e-5)
    np.testing.assert_allclose(shrink, x / np.sqrt(1 + np.pi / 8 * v), rtol=1e-12)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    assert [row.tolist() for row in rows] == [[size] * 4 for size in (0.0, 1.0, 6.0, 7.0)]


# --- overdispersion -------------------------------------------------------------------------


def counts(seed: int = 1) -> tuple[Floats, ...]:
    """p~, s, n with some of 0 and 1, own s, own n, and what is explained."""
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 9, TASKS) + 0.0
    own = rng.integers(0, 30, TASKS) + 0.0
    p = np.where(rng.random(TASKS) < 0.2, rng.integers(0, 2, TASKS), rng.random(TASKS))
    return (
        p,
        rng.binomial(n.astype(int), 0.4) + 0.0,
        n,
        own * rng.random(TASKS),
        own,
        rng.random(TASKS),
    )


def predicted(phi: float, p: Floats, n: Floats, own: Any) -> list[Floats]:
    """q, share, information and slope: p~ is a Beta of c counts beside a task's own."""
    own_s, own_n = own if own is not None else (np.zeros(TASKS), np.zeros(TASKS))
    c = (1 - phi) / phi
    total = c + own_n
    q, share = (c * p + own_s) / total, c / total
    each = 1 / (total + 1)  # phi of what is left uncertain
    information = np.where(n > 1, n / (1 + (n - 1) * each), n)
    return [q, share, information, share * p * (1 - p)]


@pytest.mark.parametrize("sums", [(0.5, 2.0), (0.6, 8.0), (1e-5, 3.0), (9.0, 2.0), (-1.0, 2.0)])
@pytest.mark.parametrize("with_history", [False, True])
def test_overdispersion(sums: tuple[float, float], with_history: bool) -> None:
    p, s, n, own_s, own_n, explained = counts()
    phi = float(np.clip(sums[0] / sums[1], 0.005, 0.95))
    own = (own_s, own_n) if with_history else None
    q, share, worth, slope = expected = predicted(phi, p, n, own)
    variance = np.maximum(q * (1 - q), 1e-3)
    rate = s / np.maximum(n, 1)
    with jax.enable_x64(True):
        spread = Overdispersion(*map(jnp.float64, sums))
        told = overdispersion.predict(
            spread, jnp.asarray(p), jnp.asarray(n), None if own is None else TaskCounts(*own)
        )
        assert float(overdispersion.phi_of(spread)) == pytest.approx(phi, rel=1e-12)
        for found, right in zip(told, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12)
        first, second = overdispersion.derivatives(told, jnp.asarray(rate))
        np.testing.assert_allclose(first, worth * (rate - q) * slope / variance, rtol=1e-12)
        np.testing.assert_allclose(second, worth * slope**2 / variance, rtol=1e-12)
        # One step of phi.
        after = overdispersion.learn(spread, told, jnp.asarray(s), jnp.asarray(n), 0.9)
        many = n > 1
        excess = share * ((rate - q) ** 2 - variance / np.maximum(n, 1))
        room = share**2 * variance * (1 - 1 / np.maximum(n, 1))
        np.testing.assert_allclose(after.excess, 0.9 * sums[0] + 0.05 + excess[many].sum())
        np.testing.assert_allclose(after.room, 0.9 * sums[1] + 0.2 + room[many].sum())
        # Where p~ has moved and the history tells how much of that shows.
        change = np.linspace(-3, 3, TASKS)
        moved = overdispersion.follow(told, jnp.asarray(explained), jnp.asarray(change))
        inner = np.clip(q, 1e-6, 1 - 1e-6)
        new = special.expit(special.logit(inner) + (1 - explained) * change)
        np.testing.assert_allclose(moved.mean, new, rtol=1e-9)
        np.testing.assert_allclose(moved.slope, (1 - explained) * new * (1 - new), rtol=1e-9)
        np.testing.assert_allclose(moved.information, worth, rtol=1e-12)
        # Pseudo-counts of independent causes.
        wide = np.linspace(0, 9, TASKS)
        scaled = p * (1 - p) * wide
        claimed = 1 / (phi / (1 - phi) + scaled / (1 + scaled))
        found = overdispersion.concentration(spread, jnp.asarray(p), jnp.asarray(wide))
        np.testing.assert_allclose(found, claimed, rtol=1e-12)
        check_parabola(told)


def check_parabola(told: Predicted) -> None:
    """Its curvature, and half way from the likelihood's to that."""
    eta = np.linspace(-6, 6, TASKS)
    bound = overdispersion.bound(jnp.asarray(eta), told)
    right = np.asarray(told.information * told.share) * np.tanh(eta / 2) / (2 * eta)
    np.testing.assert_allclose(bound, right, rtol=1e-9)
    bend = jnp.asarray(np.linspace(0, 2, TASKS))
    towards = overdispersion.curvature_towards_mode(bound, bend)
    half = (np.asarray(bend) + np.maximum(right, np.asarray(bend))) / 2
    np.testing.assert_allclose(towards, half, rtol=1e-9)


# --- lines ----------------------------------------------------------------------------------


def settings(gamma: float) -> Settings:
    return jax.tree.map(jnp.float64, Settings(capability_momentum=gamma))


def line_steps(domains: bool) -> list[Any]:
    """Rates with unknown ones, s, n, domain; one domain is met late, one has no gap at first."""
    steps = []
    for step in range(4):
        rng = np.random.default_rng(10 + step)
        rates, _ = given(3, seed=20 + step)
        domain = rng.integers(0, DOMAINS, TASKS)
        n = rng.integers(0, 9, TASKS) + 0.0
        if step < 2:
            n[domain == 2] = 0
            rates[2, domain == 1] = rates[0, domain == 1]
        s = rng.binomial(n.astype(int), 0.6) + 0.0
        steps.append((rates, s, n, domain if domains else np.zeros(TASKS, int)))
    return steps


def step_of(estimator: Any, count: int) -> Any:
    """fit and infer in one."""

    @jax.jit
    def step(params: Any, rates: Any, s: Any, n: Any, place: Any, own: Any = None) -> Any:
        reference = Reference(rates, None)
        fused = StepEvidence(s, n, place, count)
        params = estimator.fit(params, settings(0.7), reference, fused, own)
        return params, estimator.infer(params, reference, place)

    return step


@pytest.mark.parametrize("domains", [False, True])
def test_linear_is_the_published_ratio(domains: bool) -> None:
    """Of means over the evaluated whose references are known, domain by domain."""
    estimator, count = linear(), DOMAINS if domains else 1
    step = step_of(estimator, count)
    value, known = np.zeros(count), np.zeros(count, bool)
    with jax.enable_x64(True):
        steps = line_steps(domains)
        params = estimator.init(Reference(jnp.asarray(steps[0][0]), None), count)
        for rates, s, n, domain in steps:
            lo, hi, both = rates[0], rates[2], (rates[0] >= 0) & (rates[2] >= 0)
            for d in range(count):
                use = both & (n > 0) & (domain == d)
                gap = (hi - lo)[use].mean() if use.any() else 0.0
                if abs(gap) < 1e-3:
                    continue
                seen = ((s[use] / n[use]).mean() - lo[use].mean()) / (gap + 1e-6)
                value[d] = 0.7 * value[d] + 0.3 * seen if known[d] else seen
                known[d] = True
            place = jnp.asarray(domain, jnp.int32) if domains else None
            params, told = step(params, rates, s, n, place)
            np.testing.assert_allclose(params.value, value, rtol=1e-12)
            np.testing.assert_array_equal(params.known, known)
            right = np.clip(lo + value[domain] * (hi - lo), 0, 1)
            sure = both & known[domain]
            np.testing.assert_array_equal(told.known, sure)
            np.testing.assert_allclose(np.asarray(told.mean)[sure], right[sure], rtol=1e-12)
            np.testing.assert_allclose(estimator.capability(params), value, rtol=1e-12)


@pytest.mark.parametrize(("domains", "with_history"), [(False, True), (True, False)])
def test_least_squares_and_what_it_is_worth(domains: bool, with_history: bool) -> None:
    estimator, count = linear_ls(), DOMAINS if domains else 1
    step = step_of(estimator, count)
    square, product, sums = np.zeros(count), np.zeros(count), (0.5, 2.0)
    with jax.enable_x64(True):
        steps = line_steps(domains)
        params = estimator.init(Reference(jnp.asarray(steps[0][0]), None), count)
        for rates, s, n, domain in steps:
            both = (rates[0] >= 0) & (rates[2] >= 0)
            lo, gap = np.where(both, rates[0], 0), np.where(both, rates[2] - rates[0], 0)
            mu = (0.125 + product) / (0.25 + square)
            before, used = np.clip(lo + mu[domain] * gap, 0, 1), np.where(both, n, 0)
            phi = float(np.clip(sums[0] / sums[1], 0.005, 0.95))
            own = counts(3)[3:5] if with_history else None
            q, share, worth, _ = predicted(phi, before, used, own)
            rate = s / np.maximum(n, 1)
            x, rest = share * gap, rate - q + share * (before - lo)
            for d in range(count):
                at = domain == d
                square[d] = 0.7 * square[d] + np.sum((worth * x * x)[at])
                product[d] = 0.7 * product[d] + np.sum((worth * x * rest)[at])
            many, variance = used > 1, np.maximum(q * (1 - q), 1e-3)
            excess = share * ((rate - q) ** 2 - variance / np.maximum(n, 1))
            room = share**2 * variance * (1 - 1 / np.maximum(n, 1))
            sums = (
                0.7 * sums[0] + 0.15 + excess[many].sum(),
                0.7 * sums[1] + 0.6 + room[many].sum(),
            )
            place = jnp.asarray(domain, jnp.int32) if domains else None
            history = None if own is None else TaskCounts(*own)
            params, told = step(params, rates, s, n, place, history)
            np.testing.assert_allclose(params.square, square, rtol=1e-10)
            np.testing.assert_allclose(params.product, product, rtol=1e-10)
            np.testing.assert_allclose(params.dispersion, sums, rtol=1e-10)
            mean = np.clip(lo + ((0.125 + product) / (0.25 + square))[domain] * gap, 0, 1)
            inner = np.clip(mean, 0.01, 0.99)
            wide = (gap / (inner * (1 - inner))) ** 2 * (0.25 / (0.25 + square))[domain]
            np.testing.assert_array_equal(told.known, both)
            np.testing.assert_allclose(told.mean, mean, rtol=1e-10)
            np.testing.assert_allclose(told.variance, wide, rtol=1e-10)
            np.testing.assert_allclose(
                told.concentration, claimed_by(sums, inner, wide), rtol=1e-10
            )


def claimed_by(sums: Any, mean: Floats, variance: Floats) -> Floats:
    phi = float(np.clip(sums[0] / sums[1], 0.005, 0.95))
    scaled = mean * (1 - mean) * variance
    return 1 / (phi / (1 - phi) + scaled / (1 + scaled))


@pytest.mark.parametrize("domains", [False, True])
def test_logit_infers_with_its_uncertainty(domains: bool) -> None:
    rates, attempts = given(3)
    rng = np.random.default_rng(4)
    domain = rng.integers(0, DOMAINS, TASKS) if domains else np.zeros(TASKS, int)
    count = DOMAINS if domains else 1
    theta, wide, sums = rng.normal(size=count), rng.exponential(size=count), (0.4, 3.0)
    both = (rates[0] >= 0) & (rates[2] >= 0)
    with jax.enable_x64(True):
        estimator = logit()
        reference = Reference(jnp.asarray(rates), jnp.asarray(attempts))
        params = estimator.init(reference, count)
        assert params.mean.tolist() == [0.5] * count
        assert params.variance.tolist() == [1.0] * count
        params = params._replace(
            mean=jnp.asarray(theta), variance=jnp.asarray(wide), dispersion=Overdispersion(*sums)
        )
        told = estimator.infer(
            params, reference, jnp.asarray(domain, jnp.int32) if domains else None
        )
    np.testing.assert_array_equal(told.known, both)
    for task in np.flatnonzero(both):
        lo, hi = (shrunk(rates[k, task], attempts[k, task]) for k in (0, 2))
        variance = wide[domain[task]] * (hi - lo) ** 2
        eta = lo + theta[domain[task]] * (hi - lo)
        p = special.expit(eta / np.sqrt(1 + np.pi / 8 * variance))
        assert told.variance[task] == pytest.approx(variance, rel=1e-10)
        assert told.mean[task] == pytest.approx(p, rel=1e-10)
        assert told.concentration[task] == pytest.approx(
            claimed_by(sums, np.asarray(p), np.asarray(variance)), rel=1e-9
        )


# --- the regression -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "domains", "missing", "explained"),
    [(2, True, 0.3, True), (4, False, 0.3, False)],
)
def test_enough_steps_reach_the_mode(
    monkeypatch: pytest.MonkeyPatch, models: int, domains: bool, missing: float, explained: bool
) -> None:
    """Then mean and covariance are those of the dense regression to six digits."""
    monkeypatch.setattr(import_module("bots_jax.implicit.glm"), "_ITERATIONS", 600)
    batches = Batches(models, models, missing)
    size = 1 + models
    with jax.enable_x64(True):
        estimator = glm(forgetting=0.1)
        params = batches.fitted(estimator, domains, explained_fraction=explained)
        mean, covariance, phi = glm_oracle(batches, domains, explained, 0.9)
        whole, precision = dense(params)
        np.testing.assert_allclose(whole, mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(np.linalg.inv(precision), covariance, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            params.covariance, covariance[:size, :size], rtol=1e-6, atol=1e-8
        )
        sums = params.dispersion
        assert float(sums.excess / sums.room) == pytest.approx(phi, rel=1e-6)
        level = mean[0] + (mean[size:] if domains else np.zeros(1))
        np.testing.assert_allclose(estimator.capability(params), special.expit(level), rtol=1e-6)


@pytest.mark.parametrize(("more", "domains"), [(0, False), (2, True), (9, True)])
def test_the_regression_infers(more: int, domains: bool) -> None:
    """Mean, variance and counts by dense matrices, of few features and of many.

    Roughly, what the weights of embeddings have in common is left out.
    """
    rng, models, count = np.random.default_rng(5), 3, DOMAINS if domains else 1
    rates, attempts = given(models)
    extra = rng.normal(size=(more, TASKS))
    domain = rng.integers(0, count, TASKS)
    with jax.enable_x64(True):
        embeddings = jnp.asarray(extra) if more else None
        reference = Reference(jnp.asarray(rates), jnp.asarray(attempts), embeddings)
        estimator, place = glm(), jnp.asarray(domain, jnp.int32)
        params = some_regression(1 + models + more, count if domains else 0, models)
        told = estimator.infer(params, reference, place if domains else None)
        assert estimator.infer_roughly is not None
        rough = estimator.infer_roughly(params, reference, place if domains else None)
        whole, precision = dense(params)
    level = Filled(models)
    level.sums, level.counts = (np.asarray(x) for x in params.levels)
    x = [np.ones((1, TASKS)), level.values(rates, attempts), extra]
    if domains:
        x.append(np.eye(DOMAINS)[:, domain])
    x, covariance = np.concatenate(x), np.linalg.inv(precision)
    variance = np.einsum("fi,fg,gi->i", x, covariance, x)
    first, last = 1 + models, 1 + models + more
    few = np.ones(len(x), bool)
    few[first:last] = False
    sparse = covariance * np.outer(few, few)
    if domains:  # of those, references and domain as if embeddings were held
        sparse = rough_covariance(params, first, last)
    sparse[range(first, last), range(first, last)] = np.diag(np.asarray(params.covariance))[
        first:last
    ]
    roughly = np.einsum("fi,fg,gi->i", x, sparse, x)
    for found, wide in ((told, variance), (rough, roughly)):
        mean = special.expit(whole @ x / np.sqrt(1 + np.pi / 8 * wide))
        np.testing.assert_allclose(found.variance, wide, rtol=1e-9)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(
            found.concentration, claimed_by(params.dispersion, mean, wide), rtol=1e-9
        )
        assert np.all(found.known)


def some_regression(size: int, effects: int, models: int) -> Any:
    """Parameters as of some evidence: any mean, precision, levels and phi."""
    rng, module = np.random.default_rng(7), import_module("bots_jax.implicit.glm")
    factor = rng.normal(size=(size + effects, 2 * size))
    whole = np.eye(size + effects) + factor @ factor.T / size
    cross, effect = whole[:size, size:], np.diag(whole)[size:]
    mean = rng.normal(0, 0.5, size + effects)
    schur = whole[:size, :size] - (cross / effect) @ cross.T + 3 * np.eye(size)
    return module.Regression(
        module.Coefficients(*map(jnp.asarray, (mean[:size], mean[size:]))),
        module.Precision(*map(jnp.asarray, (schur + (cross / effect) @ cross.T, cross, effect))),
        jnp.asarray(np.linalg.inv(schur)),
        features.Levels(*map(jnp.asarray, (rng.normal(size=models), np.arange(models) + 2.0))),
        Overdispersion(jnp.float64(0.4), jnp.float64(3.0)),
    )


def rough_covariance(params: Any, first: int, last: int) -> Floats:
    """That of intercept, references and domains from their block of the weights' covariance."""
    own, cross, effect = params.covariance[:first, :first], *params.precision[1:]
    own, slope = np.asarray(own), -np.asarray(cross)[:first].T / np.asarray(effect)[:, None]
    size = last + len(effect)
    found = np.zeros((size, size))
    at = np.r_[0:first, last:size]
    low = slope @ own
    block = np.block([[own, low.T], [low, low @ slope.T + np.diag(1 / np.asarray(effect))]])
    found[np.ix_(at, at)] = block
    return found


@pytest.mark.parametrize(("models", "kinds"), [(0, None), (3, [True, False, True, True])])
def test_the_prior_is_what_it_is_said_to_be(models: int, kinds: Any) -> None:
    """Of other deviations than the defaults: by the dense covariance they mean."""
    module, count = import_module("bots_jax.implicit.glm"), DOMAINS
    scales = module.Prior(intercept=2.0, total=0.7, each=0.4, domain=0.6, embeddings=1.5)
    size = 1 + models
    with jax.enable_x64(True):
        code = None
        if kinds is not None:
            code = SimpleNamespace(is_kind=jnp.asarray(kinds))
        reference: Any = Reference(jnp.zeros((models, TASKS)), None, jnp.ones((4, TASKS)))._replace(
            code=code
        )
        params = glm(prior=scales).init(reference, count)
        whole, precision = dense(params)
        grid = module._trusts(scales, 4)
    trust = np.full(4, 4 / 1.5**2)
    if kinds is not None:
        trust = np.where(kinds, 3, 1) / 1.5**2
        np.testing.assert_allclose(params.trust, [1 / 1.5**2, 3 / 1.5**2])
    covariance = np.zeros((size + 4 + count,) * 2)
    covariance[0, 0] = 4
    covariance[1:size, 1:size] = 0.4**2 * np.eye(models) + (0.7 / max(models, 1)) ** 2
    covariance[size : size + 4, size : size + 4] = np.diag(1 / trust)
    covariance[size + 4 :, size + 4 :] = 0.36 * np.eye(count)
    np.testing.assert_allclose(np.linalg.inv(precision), covariance, atol=1e-12)
    np.testing.assert_allclose(params.covariance, covariance[: size + 4, : size + 4], atol=1e-12)
    mean = [0.0, *[1 / max(models, 1)] * models, *[0.0] * (4 + count)]
    np.testing.assert_allclose(whole, mean)
    np.testing.assert_allclose(grid, 4 / (1.5**2 * 4.0 ** np.arange(-4, 2)))


def test_kinds_and_numbers_are_trusted_apart() -> None:
    """First numbers while the trust in kinds is held, then kinds, by dense determinants."""
    rng = np.random.default_rng(6)
    is_kind = np.array([True, False, True, True, False])
    with jax.enable_x64(True):
        estimator = glm()
        code: Any = SimpleNamespace(is_kind=jnp.asarray(is_kind))
        first: Any = Reference(jnp.zeros((1, TASKS)), None, jnp.zeros((5, TASKS)))
        params = estimator.init(first._replace(code=code), DOMAINS)

        @jax.jit
        def fit(params: Any, x: Any, rates: Any, s: Any, place: Any) -> Any:
            fused = StepEvidence(s, jnp.full(TASKS, 8.0), place, DOMAINS)
            return estimator.fit(params, settings(0.9), Reference(rates, None, x), fused)

        for _ in range(3):
            x = rng.normal(size=(5, TASKS))
            place = jnp.asarray(rng.integers(0, DOMAINS, TASKS), jnp.int32)
            solved = rng.binomial(8, special.expit(1.5 * x[0] - x[2] + 0.2 * x[1])) + 0.0
            before = np.asarray(params.trust)
            rates = rng.integers(0, 9, (1, TASKS)) / 8
            params = fit(params, *(jnp.asarray(part) for part in (x, rates, solved)), place)
            mean, precision = dense(params)
            told, trust = precision @ mean, before.copy()
            mine = [np.pad(0.0 + (is_kind == kinds), (2, len(mean) - 7)) for kinds in (False, True)]
            for at in range(2):  # before trust was weighed anew
                change = before[at] - float(params.trust[at])
                precision = precision + np.diag(change * mine[at])
            for at in range(2):
                trust[at] = trust_of(told, precision, before[at], mine[at])
                precision = precision + np.diag((trust[at] - before[at]) * mine[at])
            np.testing.assert_allclose(params.trust, trust, rtol=1e-6)
            np.testing.assert_allclose(mean, np.linalg.solve(precision, told), rtol=1e-6)
            covariance = np.linalg.inv(precision)[:7, :7]
            np.testing.assert_allclose(params.covariance, covariance, rtol=1e-6, atol=1e-9)
