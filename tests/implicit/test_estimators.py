"""Estimators of implicit evidence, against float64 NumPy written another way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit as sigmoid

from bots_jax import Evidence, Settings, bots
from bots_jax.implicit import glm, linear_ls, logit, overdispersion
from bots_jax.implicit.contract import Estimator, TaskCounts
from bots_jax.pool.reference import Reference, TaskFeatures
from bots_jax.pool.visits import StepEvidence

SETTINGS = Settings(0.5, 8.0, 0.1, 0.1, 0.9, 0.0, 1.0, 1.0)
Floats = np.ndarray


class Batches:
    """Three batches of 24 tasks with two references, some unknown, in three domains."""

    def __init__(self, seed: int = 0, models: int = 2, missing: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.steps = []
        for _ in range(3):
            rates = rng.integers(0, 9, (models, 24)) / 8
            rates[rng.random(rates.shape) < missing] = np.nan
            trials = rng.integers(0, 9, 24).astype(float)
            rate = rng.beta(1, 2, 24)
            own = rng.integers(0, 6, 24).astype(float)
            explained_fraction = np.random.default_rng(len(self.steps)).random(24)
            counts = np.floor(trials * rate), trials
            self.steps.append(
                (rates, *counts, rng.integers(0, 3, 24), own * rate, own, explained_fraction)
            )

    def fitted(
        self,
        estimator: Estimator,
        domains: bool = True,
        history: bool = True,
        explained_fraction: bool = False,
    ) -> Any:
        """The estimator's parameters after them."""
        count = 3 if domains else 1
        told_of = 3 if explained_fraction else 2

        @jax.jit
        def step(params: Any, rates: Any, s: Any, n: Any, domain: Any, *own: Any) -> Any:
            fused = StepEvidence(s, n, domain if domains else None, count)
            told = TaskCounts(*own[:told_of]) if history else None
            return estimator.fit(params, SETTINGS, Reference(rates, None), fused, told)

        params = estimator.init(Reference(jnp.asarray(self.steps[0][0]), None), count)
        for rates, s, n, domain, *own in self.steps:
            params = step(params, rates, s, n, domain.astype(np.int32), *own)
        return params


# --- oracles ------------------------------------------------------------------------------


class Spread:
    """phi, as overdispersion.py has it."""

    def __init__(self) -> None:
        self.excess, self.room = 0.5, 2.0

    @property
    def phi(self) -> float:
        return float(np.clip(self.excess / self.room, 0.005, 0.95))

    def predict(self, p: Floats, n: Floats, own_s: Floats, own_n: Floats) -> Any:
        c = 1 / self.phi - 1
        q = (c * p + own_s) / (c + own_n)
        worth = n / (1 + np.maximum(n - 1, 0) / (1 / self.phi + own_n))
        return q, c / (c + own_n), worth

    def learn(self, p: Floats, s: Floats, n: Floats, own: Any, keep: float) -> None:
        q, share, _ = self.predict(p, n, *own)
        use = n > 1
        q, share, s, n = q[use], share[use], s[use], n[use]
        variance = np.maximum(q * (1 - q), 1e-3)
        self.excess = keep * self.excess + (1 - keep) * 0.5
        self.room = keep * self.room + (1 - keep) * 2.0
        self.excess += np.sum(share * ((s / n - q) ** 2 - variance / n))
        self.room += np.sum(share**2 * variance * (1 - 1 / n))


def slopes(spread: Spread, p: Floats, s: Floats, n: Floats, own: Any) -> tuple[Floats, Floats]:
    q, share, worth = spread.predict(p, n, *own)
    return weighed(q, share * p * (1 - p), worth, s / np.maximum(n, 1))


def weighed(q: Floats, slope: Floats, worth: Floats, rate: Floats) -> tuple[Floats, Floats]:
    variance = np.maximum(q * (1 - q), 1e-3)
    return worth * (rate - q) * slope / variance, worth * slope**2 / variance


def follows(spread: Spread, at_first: Floats, eta: Floats, s: Any, n: Any, own: Any) -> Any:
    """`slopes` where the history says how much of an error of p~ it has absorbed."""
    *own, explained_fraction = own
    q, _, worth = spread.predict(sigmoid(at_first), n, *own)
    q = sigmoid(np.log(q / (1 - q)) + (1 - explained_fraction) * (eta - at_first))
    return weighed(q, (1 - explained_fraction) * q * (1 - q), worth, s / np.maximum(n, 1))


def shrunk_logit(rates: Floats) -> Floats:
    return np.log((8 * rates + 0.5) / (8 * (1 - rates) + 0.5))


def mode(x: Floats, start: Floats, prior: Floats, spread: Spread, s: Any, n: Any, own: Any) -> Any:
    """Damped Newton to the mode of a dense problem, and the precision there."""

    def gradient(w: Floats) -> tuple[Floats, Floats]:
        if len(own) > 2:
            slope, bend = follows(spread, start @ x, w @ x, s, n, own)
        else:
            slope, bend = slopes(spread, sigmoid(w @ x), s, n, own)
        return x @ slope - prior @ (w - start), prior + (x * bend) @ x.T

    w = start.copy()
    for _ in range(100):
        pull, curved = gradient(w)
        w = w + 0.3 * np.linalg.solve(curved, pull)
    return w, gradient(w)[1]


def glm_oracle(
    batches: Batches, domains: bool, explained_fraction: bool, keep: float
) -> tuple[Floats, Floats, float]:
    """Mean and covariance with every domain as a feature of its own, and phi."""
    models = len(batches.steps[0][0])
    size = 1 + models + (3 if domains else 0)
    covariance = np.eye(size)
    covariance[0, 0] = 1.5**2
    inner = slice(1, 1 + models)
    covariance[inner, inner] = 0.25**2 * np.eye(models) + (0.5 / models) ** 2
    first, first_mean = np.linalg.inv(covariance), np.zeros(size)
    first_mean[inner] = 1 / models
    mean, precision, spread = first_mean, first, Spread()
    sums, counts = np.zeros(models), np.zeros(models)
    for rates, s, n, domain, *told in batches.steps:
        own = told if explained_fraction else told[:2]
        known = np.isfinite(rates)
        values = np.where(known, shrunk_logit(np.where(known, rates, 0.5)), 0)
        sums += (values * (n > 0)).sum(1)
        counts += (known & (n > 0)).sum(1)
        level = (sums + 8 * sums.sum() / counts.sum()) / (counts + 8)
        for k in range(rates.shape[1]):
            have = known[:, k]
            moved = (values[have, k] - level[have]).sum() / (have.sum() + 1)
            values[~have, k] = level[~have] + moved
        x = np.concatenate([np.ones((1, len(s))), values])
        if domains:
            x = np.concatenate([x, (domain == np.arange(3)[:, None]).astype(float)])
        mixed, start = keep * precision + (1 - keep) * first, mean
        mean, precision = mode(x, start, mixed, spread, s, n, own)
        spread.learn(sigmoid(start @ x), s, n, own[:2], 0.98)
    return mean, np.linalg.inv(precision), spread.phi


@pytest.mark.parametrize(
    ("models", "domains", "missing", "explained_fraction"),
    [(2, True, 0.3, False), (4, False, 0.0, False), (2, True, 0.0, True)],
)
def test_glm_is_the_posterior_of_a_dense_regression(
    models: int, domains: bool, missing: float, explained_fraction: bool
) -> None:
    batches = Batches(models, models, missing)
    with jax.enable_x64(True):
        params = batches.fitted(glm(forgetting=0.1), domains, explained_fraction=explained_fraction)
        got = np.concatenate([params.mean.weights, params.mean.domains])
        mean, covariance, phi = glm_oracle(batches, domains, explained_fraction, 0.9)
        # A few steps towards the mode leave it by less than a tenth of what is uncertain.
        assert np.all(np.abs(got - mean) < 0.1 * np.sqrt(np.diag(covariance)))
        size = 1 + models
        np.testing.assert_allclose(params.covariance, covariance[:size, :size], rtol=0.1, atol=0.01)
        assert abs(float(overdispersion.phi_of(params.dispersion)) - phi) < 0.01
        # The variance of a prediction, by blocks, is that of the dense covariance.
        rates = np.random.default_rng(5).random((models, 6))
        domain = jnp.arange(6, dtype=jnp.int32) % 3 if domains else None
        told = jax.jit(glm().infer)(params, Reference(jnp.asarray(rates), None), domain)
        x = np.concatenate([np.ones((1, 6)), shrunk_logit(rates)])
        if domains:
            x = np.concatenate([x, np.eye(3)[:, np.arange(6) % 3]])
        variance = np.einsum("fi,fg,gi->i", x, covariance, x)
        p = sigmoid(mean @ x / np.sqrt(1 + np.pi / 8 * variance))
        scaled = p * (1 - p) * variance
        np.testing.assert_allclose(told.mean, p, atol=0.02)
        expected = 1 / (phi / (1 - phi) + scaled / (1 + scaled))
        np.testing.assert_allclose(told.concentration, expected, rtol=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("domains", [False, True])
def test_steps_that_tell_nothing_widen_and_move_nothing(seed: int, domains: bool) -> None:
    """What is known of the tasks goes back to the prior's certainty, and what is believed stays."""
    batches, estimator = Batches(seed), glm(forgetting=0.1)
    rates, *_, domain, _, _, _ = batches.steps[0]
    count = 3 if domains else 1
    none = jnp.zeros(24)
    fused = StepEvidence(none, none, jnp.asarray(domain, jnp.int32) if domains else None, count)
    reference = Reference(jnp.asarray(rates, jnp.float32), None)
    start = batches.fitted(estimator, domains)
    first = estimator.init(reference, count)

    def step(_: int, params: Any) -> Any:
        return estimator.fit(params, SETTINGS, reference, fused)

    @jax.jit
    def later(params: Any) -> Any:
        return jax.lax.fori_loop(0, 20, step, params)

    params, widths = start, [np.diag(start.covariance)]
    for _ in range(4):
        params = later(params)
        widths.append(np.diag(params.covariance))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params.mean, start.mean
        )
    assert np.all(np.diff(widths, axis=0) > -1e-5)
    np.testing.assert_allclose(widths[-1], np.diag(first.covariance), rtol=1e-2)


def trust_of(told: Floats, precision: Floats, before: float, mine: Floats) -> float:
    """The mean of log a over the grid by the likelihood of each a, for the weights `mine`.

    The integral over all weights and domains of exp(h w - w J w / 2) N(w; m0, P_a^-1), for the
    (J, h) that the evidence told, by dense determinants.
    """
    count = mine.sum()
    grid = max(count, 1) / 4.0 ** np.arange(-4, 2)
    values = []
    for a in grid:
        whole = precision + np.diag((a - before) * mine)
        _, log_whole = np.linalg.slogdet(whole)
        values.append((count * np.log(a) - log_whole + told @ np.linalg.solve(whole, told)) / 2)
    weights = np.exp(np.array(values) - max(values))
    return float(np.exp(weights @ np.log(grid) / weights.sum()))


def trusted(told: Floats, precision: Floats, trust: float, size: int) -> tuple[Floats, float]:
    """Mean and a after the prior of the embeddings, which come last, was weighed anew."""
    block = np.zeros(len(told))
    block[-size:] = 1
    new = trust_of(told, precision, trust, block)
    after = precision + np.diag((new - trust) * block)
    return np.linalg.solve(after, told), new


@pytest.mark.parametrize(("useful", "domains"), [(True, False), (False, True)])
def test_trust_in_embeddings_is_their_likelihood(useful: bool, domains: bool) -> None:
    """Four steps with 5 embeddings, a weighed after each by a dense oracle."""
    rng = np.random.default_rng(int(useful))
    estimator, count = glm(), 3 if domains else 1
    with jax.enable_x64(True):
        reference = Reference(jnp.zeros((0, 24)), None, jnp.zeros((5, 24)))
        params = estimator.init(reference, count)

        @jax.jit
        def fit(params: Any, x: Any, solved: Any, domain: Any) -> Any:
            fused = StepEvidence(solved, jnp.full(24, 8.0), domain, count)
            known = Reference(jnp.zeros((0, 24)), None, x)
            return estimator.fit(params, SETTINGS, known, fused)

        first = float(params.trust)
        assert first == pytest.approx(5)  # a variance of 1 in all
        for _ in range(4):
            x = rng.standard_normal((5, 24))
            rate = sigmoid(1.5 * x[0] - x[2]) if useful else rng.beta(1, 1, 24)
            domain = jnp.asarray(rng.integers(0, 3, 24), jnp.int32) if domains else None
            solved = jnp.asarray(rng.binomial(8, rate).astype(float))
            before = float(params.trust)
            params = fit(params, jnp.asarray(x), solved, domain)
            got = dense(params)
            # Undo the last change of a: what was told stays, the prior alone differs.
            block = np.zeros(len(got[0]))
            block[1:6] = 1
            told = got[1] @ got[0]
            old = got[1] + np.diag((before - float(params.trust)) * block)
            order = np.argsort(block, kind="stable")
            mean, trust = trusted(told[order], old[np.ix_(order, order)], before, 5)
            assert float(params.trust) == pytest.approx(trust, rel=1e-6)
            np.testing.assert_allclose(got[0][order], mean, rtol=1e-6, atol=1e-9)
            covariance = np.linalg.inv(got[1])[:6, :6]
            np.testing.assert_allclose(params.covariance, covariance, rtol=1e-6, atol=1e-12)
    assert (float(params.trust) < first) == useful


@pytest.mark.parametrize("tasks", [8192, 9001])
def test_large_pools_are_looked_at_in_chunks(tasks: int) -> None:
    """All at once, and each chunk by itself, say the same."""
    rng = np.random.default_rng(0)
    estimator = glm()
    rates = rng.random((2, tasks)).astype(np.float32)
    embeddings = rng.standard_normal((8, tasks)).astype(np.float32)
    reference = Reference(*(jnp.asarray(part) for part in (rates, rates * 0 + 8, embeddings)))
    domain = jnp.asarray(rng.integers(0, 3, tasks), jnp.int32)
    few = jnp.arange(24)
    fused = StepEvidence(jnp.arange(24.0) % 9, jnp.full(24, 8.0), domain[few], 3)
    fit = jax.jit(lambda params, known: estimator.fit(params, SETTINGS, known, fused))
    params = fit(estimator.init(reference, 3), reference.take(few))
    infer = jax.jit(estimator.infer)
    told = infer(params, reference, domain)
    for start in range(0, tasks, 3000):
        rows = np.arange(start, min(start + 3000, tasks))
        part = infer(params, reference.take(jnp.asarray(rows)), domain[rows])
        for one, other in zip(told, part, strict=True):
            np.testing.assert_allclose(np.asarray(one)[rows], other, rtol=1e-5)


def dense(params: Any) -> tuple[Floats, Floats]:
    """Mean and precision of weights and domains as one vector and one matrix."""
    weights, cross, domains = (np.asarray(part) for part in params.precision)
    whole = np.block([[weights, cross], [cross.T, np.diag(domains)]])
    return np.concatenate([np.asarray(part) for part in params.mean]), whole


def test_logit_is_filtered_in_each_domain() -> None:
    batches = Batches(1)
    theta, variance, spread = np.full(3, 0.5), np.ones(3), Spread()
    for rates, s, n, domain, *own, _ in batches.steps:
        lo, hi = shrunk_logit(rates)
        before = sigmoid(lo + theta[domain] * (hi - lo))
        for d in range(3):
            at = domain == d
            # The line as a regression with an offset: one more feature, of weight 1.
            x = np.stack([lo, hi - lo])[:, at]
            prior = np.diag([1e9, 1 / min(variance[d] + 1e-3, 1)])
            history = [counts[at] for counts in own]
            mean, precision = mode(x, np.array([1, theta[d]]), prior, spread, s[at], n[at], history)
            theta[d], variance[d] = mean[1], 1 / precision[1, 1]
        spread.learn(before, s, n, own, 0.98)
    with jax.enable_x64(True):
        params = batches.fitted(logit())
        np.testing.assert_allclose(params.mean, theta, atol=0.03)
        np.testing.assert_allclose(params.variance, variance, rtol=0.05)
        np.testing.assert_allclose(overdispersion.phi_of(params.dispersion), spread.phi, atol=0.01)


def test_least_squares_weighs_tasks_by_their_gap() -> None:
    batches = Batches(2)
    square, product, spread = np.zeros(3), np.zeros(3), Spread()
    for rates, s, n, domain, *_ in batches.steps:
        lo, hi = rates
        none = (np.zeros(24), np.zeros(24))
        mu = (0.125 + product) / (0.25 + square)
        before = np.clip(lo + mu[domain] * (hi - lo), 0, 1)
        _, _, worth = spread.predict(before, n, *none)
        rate, gap = s / np.maximum(n, 1), hi - lo
        for d in range(3):
            at = domain == d
            square[d] = 0.9 * square[d] + np.sum((worth * gap**2)[at])
            product[d] = 0.9 * product[d] + np.sum((worth * gap * (rate - lo))[at])
        spread.learn(before, s, n, none, 0.9)
    with jax.enable_x64(True):
        estimator = linear_ls()
        params = batches.fitted(estimator, history=False)
        mu = (0.125 + product) / (0.25 + square)
        np.testing.assert_allclose(estimator.capability(params), mu, rtol=1e-9)
        np.testing.assert_allclose(overdispersion.phi_of(params.dispersion), spread.phi, rtol=1e-9)


# --- what they are for --------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.05, 0.3])
def test_misfit_is_learned_and_one_trial_tells_nothing(phi: float) -> None:
    """400 tasks of 8 trials: phi within four standard errors, fails once in 1e4."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0.2, 0.8, 400)
    c = 1 / phi - 1
    s = rng.binomial(8, rng.beta(c * mean, c * (1 - mean))).astype(np.float32)
    start = overdispersion.no_overdispersion(jnp.dtype(jnp.float32))

    def learned(successes: Floats, trials: float) -> float:
        n = jnp.full(400, trials, jnp.float32)
        told = overdispersion.predict(start, jnp.asarray(mean, jnp.float32), n, None)
        after = overdispersion.learn(start, told, jnp.asarray(successes, jnp.float32), n, 1.0)
        return float(overdispersion.phi_of(after))

    # The error of a squared residual is about sqrt(2) of what is expected of it.
    error = (phi + (1 - phi) / 8) / (7 / 8) * np.sqrt(2 / 400)
    assert abs(learned(s, 8.0) - phi) < 4 * error + 2 / (400 * 0.2)
    assert learned(np.minimum(s, 1), 1.0) == pytest.approx(0.25)


def test_a_choice_by_the_tasks_history_does_not_mislead_the_fit() -> None:
    """Tasks are chosen again for being solved half the time, so p~ must not become 1/2.

    Half the pool is solved 0.9 of the time a priori and the rest 0.1; only tasks whose own
    counts say 1/2 come again. Told of those counts, the regression keeps the difference of
    4.4 logits; not told, it loses most of it. Both statements by margins far beyond noise.
    """
    rng = np.random.default_rng(0)
    size = 2000
    rates = np.where(np.arange(size) % 2, 0.9, 0.1)
    truth = rng.beta(3 * rates, 3 * (1 - rates))
    own_s, own_n = rng.binomial(8, truth).astype(np.float32), np.full(size, 8, np.float32)
    chosen = np.abs(own_s / own_n - 0.5) <= 0.125
    reference = Reference(jnp.asarray(rates[None, chosen], jnp.float32), None)
    estimator = glm()

    def slope(own: TaskCounts | None) -> float:
        @jax.jit
        def fit(params: Any, s: Any) -> Any:
            fused = StepEvidence(s, jnp.full(s.shape, 8, jnp.float32), None, 1)
            return estimator.fit(params, SETTINGS, reference, fused, own)

        params = estimator.init(reference, 1)
        for _ in range(4):
            s = rng.binomial(8, truth[chosen]).astype(np.float32)
            params = fit(params, s)
        both = Reference(jnp.asarray([[0.1, 0.9]], jnp.float32), None)
        low, high = np.asarray(estimator.infer(params, both, None).mean)
        return float(np.log(high / (1 - high)) - np.log(low / (1 - low)))

    history = TaskCounts(jnp.asarray(own_s[chosen]), jnp.asarray(own_n[chosen]))
    assert slope(history) > 2 * slope(None)


@pytest.mark.parametrize("models", [0, 1, 3])
def test_extremes_stay_finite_in_float32(models: int) -> None:
    rates = jnp.asarray([[0, 1, np.nan, np.nan]] * models, jnp.float32).reshape(models, 4)
    if models:
        rates = rates.at[0, 2].set(1.0)
    reference, estimator = Reference(rates, None), glm()
    fused = StepEvidence(jnp.asarray([0, 0, 1e6, 0.0]), jnp.asarray([1e6, 1e6, 1e6, 0.0]), None, 1)
    params = estimator.init(reference, 1)
    fit = jax.jit(lambda params: estimator.fit(params, SETTINGS, reference, fused))
    for _ in range(30):
        params = fit(params)
    told = estimator.infer(params, reference, None)
    assert np.all(np.isfinite(jax.tree.leaves(told)[0]))
    assert np.all((np.asarray(told.mean) > 0) & (np.asarray(told.mean) < 1))
    assert np.all(np.asarray(told.concentration) > 0)
    assert np.all(told.known)


# --- in a selector --------------------------------------------------------------------------


def test_grouped_is_dense() -> None:
    rng = np.random.default_rng(0)
    reference = (rng.integers(0, 5, (2, 3000)) / 4).astype(np.float32)
    reference[:, rng.random(3000) < 0.1] = np.nan
    domain = rng.integers(0, 3, 3000)
    means = []
    for form in ("dense", "grouped"):
        selector = bots(batch_size=16, rollouts=8, estimator="glm", representation=form)
        state = selector.init(reference, domains=domain)
        for step in range(6):
            ids = np.random.default_rng(step).permutation(3000)[:16]
            solved = np.random.default_rng(step).integers(0, 9, 16).astype(np.float32)
            state, info = selector.update(state, Evidence(ids, solved, 8.0))
        means.append(np.asarray(selector.predict(state).mean))
        assert np.all(np.isfinite(np.asarray(info.capability)))
    np.testing.assert_allclose(*means, rtol=2e-4)


def test_without_references_domains_tell() -> None:
    selector = bots(batch_size=8, rollouts=8, estimator="glm", implicit_weight=1.0)
    domain = np.arange(200) % 2
    state = selector.init(num_tasks=200, domains=domain)
    for step in range(5):
        ids = np.arange(8) + 8 * step
        state, _ = selector.update(state, Evidence(ids, 6.0 * (ids % 2), 8.0))
    mean = np.asarray(selector.predict(state).mean)[100:]
    assert mean[domain[100:] == 0].max() < 0.3 < 0.6 < mean[domain[100:] == 1].min()


def test_embeddings_tell_without_references() -> None:
    """Each task of 4 embeddings, one of which decides; correlation of the rest with the truth."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((4, 400)).astype(np.float32)
    rate = sigmoid(2 * embeddings[1])
    selector = bots(batch_size=16, rollouts=8, estimator="glm", implicit_weight=1.0)
    state = selector.init(TaskFeatures(None, embeddings))
    for step in range(6):
        ids = np.arange(16) + 16 * step
        solved = rng.binomial(8, rate[ids]).astype(np.float32)
        state, _ = selector.update(state, Evidence(ids, solved, 8.0))
    mean = np.asarray(selector.predict(state).mean)[96:]
    # 768 rollouts place a slope of 2 within .3 at four standard errors: failure below 1e-3.
    assert np.corrcoef(mean, rate[96:])[0, 1] > 0.9
    with pytest.raises(ValueError, match="NaN"):
        selector.init(TaskFeatures(None, embeddings * np.nan))
