"""The belief of `auto` step by step against its equations in NumPy float64, looped over pairs.

The estimator is a stand-in of which every number is known, so that nothing else is tested here; it
adds up what it is told. Grid, weights, CUSUM, histories and predictions are those of the oracle
to nine digits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit as sigmoid
from scipy.special import logit

from bots_jax import Settings, auto
from bots_jax.belief import logit_normal
from bots_jax.belief.logit_normal import AutoBelief, AutoConfig, Expected, logit_normal_belief
from bots_jax.compose import BeliefInfo
from bots_jax.implicit.contract import Estimator, Inferred
from bots_jax.implicit.overdispersion import phi_of
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.types import State

Floats = np.ndarray
TASKS, DOMAINS = 24, 3
RHO, LAMBDA, PRIOR = 0.7, 0.05, (2.0, 3.0)
TRUSTS, SPEEDS = (0.25, 0.5, 1, 2, 4, 8), (1 / 16, 1 / 4, 1, 4, 16)


class Told(NamedTuple):
    """Parameters of the stand-in: how far p~ has moved, and sums of what its fits were told."""

    shift: jax.Array
    sums: jax.Array  # f[5]


def stand_in() -> Estimator:
    def init(reference: Reference, num_domains: int) -> Told:
        return Told(jnp.zeros((), jnp.float64), jnp.zeros(5, jnp.float64))

    def fit(params: Told, settings: Any, reference: Any, fused: Any, own: Any = None) -> Told:
        n, rate = fused.trials, reference.rates[1]
        place = fused.domain.astype(n.dtype)
        sums = [own.successes, own.trials, own.explained_fraction, place, rate]
        told = jnp.stack([jnp.sum(part * n) for part in sums])
        shift = params.shift + jnp.sum(fused.successes - 0.5 * n) / 200
        return Told(shift, params.sums + told)

    def infer(params: Told, reference: Reference, domain: Any) -> Inferred:
        rate, width = reference.rates[0], reference.rates[1]
        known = rate >= 0
        rate = jnp.where(known, rate, 0.25)
        line = jnp.log(rate / (1 - rate)) + params.shift + 0.3 * domain.astype(rate.dtype)
        return Inferred(jax.nn.sigmoid(line), known, 20 * width, 0.2 + width)

    return Estimator("stand-in", 1, init, fit, infer, lambda params: params.shift[None])


# --- the oracle -----------------------------------------------------------------------------


class Oracle:
    """The docstring of belief/logit_normal.py, and what its constants are said to be."""

    def __init__(self, rates: Floats, domain: Floats, pairs: list[tuple[float, float]]) -> None:
        self.rates, self.domain = rates, domain
        self.pairs = [(RHO * a, -np.log(1 - LAMBDA) * b) for a, b in pairs]
        self.num_resets, self.clock, self.seen = 0, 0, np.zeros(TASKS)
        self.forget()

    def forget(self) -> None:
        self.weights = np.full(len(self.pairs), 1 / len(self.pairs))
        self.cusum, self.shift, self.sums = 0.0, 0.0, np.zeros(5)
        self.u, self.v = np.zeros(TASKS), np.full(TASKS, 1e4)
        self.visits, self.a = np.zeros(TASKS), np.zeros(TASKS)

    def prior(self) -> tuple[Floats, Floats, Floats]:
        """eta, p~ and c."""
        rate, width = self.rates
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = sigmoid(logit(rate) + self.shift + 0.3 * self.domain)
        mean = np.where(rate >= 0, mean, PRIOR[0] / sum(PRIOR))
        counts = np.where(rate >= 0, 20 * width, sum(PRIOR))
        mean = np.clip(mean, 1e-6, 1 - 1e-6)
        return logit(mean) * np.sqrt(1 + np.pi / 8 * self.most(1, counts)), mean, counts

    def most(self, rho: float, counts: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            return np.minimum(4 / (rho * counts), 1e4)

    def in_force(self) -> tuple[float, float]:
        rho, kappa = (np.exp(self.weights @ np.log(x)) for x in np.transpose(self.pairs))
        return float(rho), float(kappa)

    def kept(self, kappa: float) -> Floats:
        return np.exp(-kappa * (self.clock - self.seen))

    def aged(self, rho: float, kappa: float) -> tuple[Floats, Floats]:
        e, most = self.kept(kappa), self.most(rho, self.prior()[2])
        return self.u * e, most + (np.minimum(self.v, most) - most) * e**2

    def explained(self, kappa: float) -> Floats:
        return self.a * self.kept(kappa) * 0.98 ** (self.clock - self.seen + 1)

    def likelihood(self, rho: float, kappa: float, s: Floats, n: Floats) -> float:
        """Of all tasks, by Gauss and Hermite's rule of five points (here in its other form)."""
        node, weight = np.polynomial.hermite.hermgauss(5)
        u, v = self.aged(rho, kappa)
        z = (self.prior()[0] + u)[:, None] + np.sqrt(2 * v)[:, None] * node
        each = s[:, None] * z - n[:, None] * np.logaddexp(0, z) + np.log(weight / np.sqrt(np.pi))
        return float(np.sum(np.logaddexp.reduce(each, axis=1)[n > 0]))

    def step(self, s: Floats, n: Floats, listed: Floats) -> tuple[float, float]:
        """The error of p~ and rho in force; `listed` are the tasks that all is learned from."""
        few_s, few_n = s * listed, n * listed
        fresh = Oracle(self.rates, self.domain, [(1, 1)])
        fresh.pairs, fresh.weights, fresh.clock, fresh.seen = (
            self.pairs, np.full(len(self.pairs), 1 / len(self.pairs)), self.clock, self.seen,
        )  # fmt: skip
        better = fresh.likelihood(*fresh.in_force(), few_s, few_n)
        better -= self.likelihood(*self.in_force(), few_s, few_n)
        self.cusum = max(self.cusum + better, 0)
        self.most_cusum = self.cusum
        if self.cusum > 50:
            self.forget()
            self.num_resets += 1
        tried = few_n > 0
        error = 0.0
        if tried.any():
            rate = few_s[tried] / few_n[tried]
            error = float(np.mean(np.abs(self.prior()[1][tried] - rate)))
            self.learn(few_s, few_n)
        self.remember(s, n)
        self.clock += int(tried.any())
        rho = self.in_force()[0]
        return error, rho / (1 + rho)

    def learn(self, s: Floats, n: Floats) -> None:
        told = np.array([self.likelihood(*pair, s, n) for pair in self.pairs])
        posterior = self.weights * np.exp(told - told.max())
        self.weights = 0.99 * posterior / posterior.sum() + 0.01 / len(posterior)
        eta, mean, counts = self.prior()
        rho, kappa = self.in_force()
        u, v = self.aged(rho, kappa)
        p = sigmoid((eta + u) / np.sqrt(1 + np.pi / 8 * v))
        more = np.maximum(1 / v - 1 / self.most(rho, counts), 0) / np.maximum(p * (1 - p), 1e-6)
        own = (counts + more) * p - counts * mean, more, self.explained(kappa)
        self.sums = self.sums + [float(np.sum(x * n)) for x in (*own, self.domain, self.rates[1])]
        self.shift += np.sum(s - n / 2) / 200

    def remember(self, s: Floats, n: Floats) -> None:
        rho, kappa = self.in_force()
        eta, (start, v) = self.prior()[0], self.aged(rho, kappa)
        u = np.array([self.begin(*task) for task in zip(eta, start, v, s, n, strict=True)])
        for _ in range(4):  # Newton's steps, none of more than two logits
            p = sigmoid(eta + u)
            step = (s - n * p - (u - start) / v) / (n * p * (1 - p) + 1 / v)
            u = u + np.clip(step, -2, 2)
        p = sigmoid(eta + u)
        after = 1 / (n * p * (1 - p) + 1 / v)
        a = 1 - np.clip((1 - self.explained(kappa)) * after / v, 0, 1)
        visits, tried = self.visits * self.kept(kappa) + 1, n > 0
        new = zip((u, after, visits, a), (self.u, self.v, self.visits, self.a), strict=True)
        self.u, self.v, self.visits, self.a = (np.where(tried, x, old) for x, old in new)
        self.seen = np.where(tried, self.clock + 1, self.seen)

    @staticmethod
    def begin(eta: float, u: float, v: float, s: float, n: float) -> float:
        """Where Newton's steps begin: nearer to what was seen, if it is far away and likelier."""
        if n == 0:
            return u
        if 0 < s < n:
            seen, weight = logit((s + 0.5) / (n + 1)), n * (s + 0.5) * (n - s + 0.5) / (n + 1) ** 2
            near = (u / v + weight * (seen - eta)) / (1 / v + weight)
        else:
            sign = 1 if s == 0 else -1
            level = max(np.log(n * v) + sign * (eta + u), 1)
            near = u - sign * (level - np.log(level))
        far = u + v * (s - n * sigmoid(eta + u))
        near = float(np.clip(near, min(u, far), max(u, far)))

        def height(x: float) -> float:
            return float(s * (eta + x) - n * np.logaddexp(0, eta + x) - (x - u) ** 2 / (2 * v))

        return near if abs(near - u) > 3 and height(near) > height(u) else u

    def expected(self) -> tuple[Floats, Floats, Floats, Floats]:
        """eta, u, v, and what is uncertain of eta and shows."""
        rho, kappa = self.in_force()
        eta, _, counts = self.prior()
        u, v = self.aged(rho, kappa)
        shows = (1 - self.explained(kappa)) ** 2 * np.clip(1 - v / self.most(rho, counts), 0, 1)
        return eta, u, v, shows * (0.2 + self.rates[1])


def pool() -> tuple[Floats, Floats]:
    """Rates and widths [2, N], some unknown, one of 0, one of no counts to speak of."""
    rng = np.random.default_rng(0)
    rates = np.stack([rng.uniform(0.05, 0.95, TASKS), rng.uniform(0.05, 0.9, TASKS)])
    rates[0, [3, 11]], rates[0, 5], rates[1, 7] = -1, 0, 1e-6
    return rates, rng.integers(0, DOMAINS, TASKS)


def steps(rates: Floats) -> list[tuple[Floats, Floats, Floats]]:
    """s, n and whether listed, of each task: a grader that fails from the fourth step to the tenth.

    The second and the last but one overflow, the third brings nothing, the last has half rewards.
    """
    rng, told = np.random.default_rng(1), []
    true = np.clip(np.abs(rates[0]) + rng.normal(0, 0.2, TASKS), 0.02, 0.98)
    for at in range(16):
        n = rng.integers(1, 17, TASKS) * (rng.random(TASKS) < 0.5) * (at != 2) + 0.0
        world = true * (0 if 3 <= at < 10 else 0.25 if at == 10 else 1)
        s = np.minimum(rng.binomial(n.astype(int), world) + 0.5 * (at == 15), n)
        told.append((s, n, np.arange(TASKS) < TASKS - 6 * (at in (1, 14))))
    return told


def settings() -> Settings:
    numbers = Settings(
        implicit_weight=RHO, forgetting=LAMBDA, prior_successes=PRIOR[0], prior_failures=PRIOR[1]
    )
    return jax.tree.map(jnp.float64, numbers)


def rules_of(trust: bool = True, speed: bool = True) -> AutoConfig:
    return AutoConfig(stand_in(), trust, speed, batch_size=TASKS)


def stepper(form: str, rules: AutoConfig, rates: Floats, domain: Floats) -> Any:
    """fuse(belief, s, n, listed) of all rows, or of a list of them that may be incomplete."""
    fuse = logit_normal_belief(rules).fuse
    reference, place = Reference(jnp.asarray(rates), None), jnp.asarray(domain, jnp.int32)

    @jax.jit
    def run(belief: AutoBelief, s: Any, n: Any, rows: Any, overflow: Any) -> Any:
        fused = StepEvidence(s, n, place, DOMAINS, rows, overflow)
        return fuse(belief, settings(), reference, fused)

    def step(belief: AutoBelief, s: Floats, n: Floats, listed: Floats) -> Any:
        if form == "all":
            return run(belief, s, n, None, None)
        rows = np.where((n > 0) & listed, np.arange(TASKS), TASKS)
        overflow = jnp.asarray(bool(np.any((n > 0) & ~listed)))
        return run(belief, s, n, jnp.asarray(np.sort(rows)[:20], jnp.int32), overflow)

    return step


@pytest.mark.parametrize("form", ["all", "listed"])
def test_every_number_of_a_step_is_the_oracles(form: str) -> None:
    rates, domain = pool()
    oracle = Oracle(rates, domain, [(a, b) for a in TRUSTS for b in SPEEDS])
    highest, at_reset = 0.0, []
    with jax.enable_x64(True):
        rules = rules_of()
        step, model = stepper(form, rules, rates, domain), logit_normal_belief(rules)
        belief = model.init(settings(), Reference(jnp.asarray(rates), None), DOMAINS)
        for s, n, listed in steps(rates):
            before = oracle.num_resets
            error, weight = oracle.step(s, n, listed | (form == "all"))
            belief, info = step(belief, s, n, listed)
            assert_same(belief, info, oracle)
            np.testing.assert_allclose(info.implicit_error, error, rtol=1e-9)
            np.testing.assert_allclose(info.implicit_weight, weight, rtol=1e-9)
            if oracle.num_resets > before:
                at_reset.append(oracle.most_cusum)
            else:
                highest = max(highest, oracle.most_cusum)
        check_predictions(rules, belief, rates, domain, oracle)
    assert highest > 25  # or half of the limit would do as well
    assert len(at_reset) == 1
    assert at_reset[0] < 100  # and here twice as much


def assert_same(belief: AutoBelief, info: BeliefInfo, oracle: Oracle) -> None:
    """Shared knowledge, histories and clock."""
    shared, history = belief.shared, belief.history
    pairs = [
        (np.exp(shared.log_weights), oracle.weights), (shared.cusum, oracle.cusum),
        (shared.num_resets, oracle.num_resets), (shared.estimator.shift, oracle.shift),
        (shared.estimator.sums, oracle.sums), (history.offset, oracle.u),
        (history.variance, oracle.v), (history.visits, oracle.visits),
        (history.seen, oracle.seen), (history.explained_fraction, oracle.a),
        (belief.clock, oracle.clock), (info.capability, [oracle.shift]),
    ]  # fmt: skip
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def check_predictions(
    rules: AutoConfig, belief: AutoBelief, rates: Floats, domain: Floats, oracle: Oracle
) -> None:
    """Of all tasks and of some, and what choices ask for besides."""
    place, reference = jnp.asarray(domain, jnp.int32), Reference(jnp.asarray(rates), None)
    model, at = logit_normal_belief(rules), settings()

    class Pool(NamedTuple):
        domain: Any

    state, rows = State(at, Pool(place), reference, belief), np.array([[5, 0], [7, 3]], np.int32)
    eta, u, v, of_line = oracle.expected()
    mean = sigmoid((eta + u) / np.sqrt(1 + np.pi / 8 * v))
    counts = 1 / ((v + of_line) * np.maximum(mean * (1 - mean), 1e-6))
    for pick in (slice(None), rows):
        told = model.predict(state, pick)
        np.testing.assert_allclose(told.mean, mean[pick], rtol=1e-9)
        np.testing.assert_allclose(told.concentration, counts[pick], rtol=1e-9)
    key = jax.random.key(0)
    noise = np.asarray(jax.random.normal(key, (TASKS,), jnp.float64))
    expected = sigmoid(eta + u + noise * np.sqrt(v + of_line))
    np.testing.assert_allclose(model.draw(key, state), expected, rtol=1e-9)
    rho, kappa = oracle.in_force()
    left = oracle.kept(kappa) * np.maximum(np.abs(oracle.u), oracle.visits) * (oracle.visits > 0)
    found = logit_normal.what_is_left(rules, belief, at, lambda values: values)
    np.testing.assert_allclose(found, left, rtol=1e-9)
    fresh = logit_normal.expect_unvisited(rules, belief.shared, at, reference, place)
    most = oracle.most(rho, oracle.prior()[2])
    for part, right in zip(fresh, (eta, 0 * eta, most), strict=False):
        np.testing.assert_allclose(part, right, rtol=1e-9)
    # Of groups, here each task its own: the same.
    own = jnp.arange(TASKS, dtype=jnp.int32)
    grouped = logit_normal.expect_of_groups(rules, belief, at, reference, place, own)
    for part, right in zip(grouped, (eta, u, v, of_line), strict=True):
        np.testing.assert_allclose(part, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("speed", [False, True])
def test_what_is_given_is_not_learned(trust: bool, speed: bool) -> None:
    """The grid is over what was left open; its middle by weight is in force."""
    pairs = [(a, b) for a in (TRUSTS if trust else (1,)) for b in (SPEEDS if speed else (1,))]
    rates, domain = pool()
    oracle = Oracle(rates, domain, pairs)
    with jax.enable_x64(True):
        rules = rules_of(trust, speed)
        model = logit_normal_belief(rules)
        shared = model.init(settings(), Reference(jnp.asarray(rates), None), DOMAINS).shared
        assert shared.log_weights.shape == (len(pairs),)
        found = logit_normal._grid(rules, settings())
        np.testing.assert_allclose(np.transpose(found), oracle.pairs, rtol=1e-12)
        oracle.weights = np.random.default_rng(2).dirichlet(np.ones(len(pairs)))
        shared = shared._replace(log_weights=jnp.asarray(np.log(oracle.weights)))
        force = logit_normal.in_force(rules, settings(), shared)
        np.testing.assert_allclose(force, oracle.in_force(), rtol=1e-12)


def test_hopes_lie_between_the_mean_and_the_best() -> None:
    """logit mean / sqrt(1 + 2 v), about 0 or the logit of another best rate."""
    rng = np.random.default_rng(3)
    eta, u, v = rng.normal(size=50), rng.normal(size=50), rng.exponential(3, 50)
    with jax.enable_x64(True):
        expected = Expected(*map(jnp.asarray, (eta, u, v)))
        for best, given in ((0.0, None), (-1.3, jnp.float64(-1.3))):
            hoped = sigmoid(best + (eta + u - best) / np.sqrt(1 + 2 * v))
            found = logit_normal.optimistic_rate(expected, given)
            np.testing.assert_allclose(found, hoped, rtol=1e-12)


@pytest.mark.parametrize("rows", [1, 100, 128, 255, 256, 1000, 4095, 4096, 8192, 20_000])
def test_pairs_are_compared_on_evenly_spaced_tasks(rows: int) -> None:
    """All of a batch below 256, then at least 128 and fewer than 256; of all rows 4096 to 8191."""
    trials = np.zeros(rows)

    def picked(at: Any, batch_size: int) -> list[int]:
        rules = rules_of()._replace(batch_size=batch_size)
        step = logit_normal._stride(rules, logit_normal.Evaluated(at, trials, trials))
        return list(range(rows))[step]

    for batch_size, at, least in ((rows, trials, 128), (300, trials, 128), (8, None, 4096)):
        first = rows if at is None else min(rows, batch_size)
        found = picked(at, batch_size)
        gaps = np.diff(found) if len(found) > 1 else np.ones(1, int)
        assert found[0] == 0
        assert np.all(gaps == gaps[0])
        assert found[-1] < first <= found[-1] + gaps[0]
        assert min(first, least) <= len(found) < 2 * least


def test_what_is_chosen_by_features_does_not_unlearn_them() -> None:
    """Batches of likely mixed tasks alone: phi and the trust in features stay near the truth's.

    Tasks without a history once had counts of their own, by which phi ran to its bound of .95 and
    the features were given up; and forgetting pulled the weights to 0 that such batches say
    nothing of. 8 runs; the log loss of the belief is .39 on average, of one rate for all .69.
    """
    losses, phis = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(3000, 8))
        rates = sigmoid(2.5 * x[:, 0] - 1.5 * x[:, 1] + rng.normal(0, 1, 3000))
        rule = auto(batch_size=16, rollouts=8, spread=0)
        state, told = rule.init(features=x), jax.jit(rule.update)
        select = jax.jit(rule.select)
        for step in range(80):
            state, batch = select(jax.random.key(step), state)
            rewards = rng.random((16, 8)) < rates[np.asarray(batch.task_ids)][:, None]
            state, _ = told(state, batch.evidence(rewards))
        mean = np.clip(rule.predict(state).mean, 1e-6, 1 - 1e-6)
        losses.append(-np.mean(rates * np.log(mean) + (1 - rates) * np.log(1 - mean)))
        phis.append(float(phi_of(state.belief.shared.estimator.dispersion)))
    assert np.mean(losses) < 0.45
    assert max(phis) < 0.5


@given(st.floats(1e-5, 1 - 1e-5), st.floats(0.05, 1e3), st.floats(0.05, 20), st.floats(0, 1))
def test_a_task_has_the_counts_of_its_history_alone(
    rate: float, counts: float, trust: float, narrowed: float
) -> None:
    """None without one, however far the regression is trusted; more, the more it has narrowed."""
    most = min(4 / (trust * counts), logit_normal._MOST_VARIANCE)
    with jax.enable_x64(True):
        line, mean, claimed = (jnp.full(1, x) for x in (float(logit(rate)), rate, counts))
        prior = logit_normal._Prior(line, mean, claimed, None)
        told = [
            logit_normal._own(
                prior,
                Expected(line, jnp.zeros(1), jnp.full(1, most * share)),
                jnp.asarray(trust),
                jnp.zeros(1),
            )
            for share in (1, 0.9, 0.9 * (0.99 * narrowed + 1e-3))
        ]
        nothing, less, more = (float(own.trials[0]) for own in told)
    assert nothing < 1e-9 * counts
    assert 1e-3 * less > nothing
    assert less < more


@pytest.mark.parametrize("line", [-40.0, -17.0, -3.0, 0.0, 9.0, 40.0])
@pytest.mark.parametrize("variance", [0.05, 1.3, 20.0, 80.0, 300.0])
@pytest.mark.parametrize("solved", [0, 1, 4, 8])
def test_a_visit_arrives_at_the_mode(line: float, variance: float, solved: int) -> None:
    """From however far: steps are short, and half of the rollouts solved left a rate of 1e-4."""
    s, n = jnp.float32(solved), jnp.float32(8)
    expected = Expected(jnp.float32(line), jnp.float32(0.2), jnp.float32(variance))
    offset, after = logit_normal._visited(expected, s, n)
    u = np.linspace(-60, 60, 480_001)
    height = solved * (line + u) - 8 * np.logaddexp(0, line + u) - (u - 0.2) ** 2 / (2 * variance)
    mode = u[height.argmax()]
    assert float(offset) == pytest.approx(mode, abs=0.15)
    rate = sigmoid(line + float(offset))
    assert float(after) == pytest.approx(1 / (8 * rate * (1 - rate) + 1 / variance), rel=1e-3)
