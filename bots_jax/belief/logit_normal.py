"""The belief of `auto`: what the references tell, and how each task differs from it.

In: the evidence of a step. Out: for every task a success probability, normal in its logit,

    logit p_k ~ N(eta_k + u_k, v_k),    E p_k = p~_k of the estimator, as it is now, if u_k = 0

So eta lies further out than logit p~, by what averaging over v pulls it back: p~ is a mean
already, and a line through logit p~ would be pulled towards 1/2 twice. The offset u_k is the
task's own history: how much easier or harder it proved than the estimator said. When the policy
improves, eta moves and carries visited and unvisited tasks along, so nothing has to be forgotten
for it; what goes stale is the offset alone. It is taken to return to 0 (Ornstein-Uhlenbeck), t
steps since the last visit:

    u <- u e,   v <- V + (min(v, V) - V) e^2,   e = exp(-kappa t),   V_k = 4 / (rho c_k)

with c_k the pseudo-counts that the estimator claims (a Beta of c counts about 1/2 has variance
4 / c in logits), rho how far it is trusted, kappa = -log(1 - lambda). A visit with s of n is
Bayes' rule about the mode (Laplace):  u maximises s log p + (n - s) log(1 - p) - (u - u0)^2 / 2v.

A task that is visited again and again tells how the policy moves, though its own offset says all
there is to say of its level. So the estimator is told a_k, how much of an error of eta the offset
has absorbed: as far as visits have narrowed v_k, less what eta may have moved since then,

    1 - a <- (1 - a) v' / v    at a visit that takes v to v'
    a <- a e (1 - mu)^(t + 1)  until the next

mu is the share of what is uncertain of eta that is new at a step. (A Kalman filter of the
regression's w and of all u_k would keep cov(w, u_k) = -a_k cov(w) x_k. As w moves, cov(w) grows and
that does not.)

rho and lambda are learned: each pair of a grid says how likely the latest evidence was,

    L_j = prod_k integral Binomial(s_k | n_k, logistic(eta_k + u)) N(u; u_jk, v_jk) du

before that evidence is used. The weights follow by fixed share (Herbster and Warmuth 1998), so
that a setting that has become right is found within a few steps, and the filter itself runs
under the weighted means of log rho and log kappa. That costs evaluated tasks times pairs.

If the latest evidence was e^50 times likelier to one who has seen nothing yet, then what was seen
is of another world (a grader was broken, and now is not), and all of it is forgotten. Latest are
the steps for which that ratio is greatest (the CUSUM test, Page 1954):

    S <- max(S + log L(prior) - log L(belief), 0),    a reset where S > 50

A step of time is a step that brought evidence, which is when a policy moves. Nothing is written
for the tasks that were not evaluated: a step costs what its batch does, a look at all tasks one
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.belief.lengths import Lengths, learn_lengths, no_lengths
from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.implicit.contract import Estimator, TaskCounts
from bots_jax.implicit.features import shrink, unshrink
from bots_jax.numerics.arithmetic import masked_mean, safe_ratio
from bots_jax.numerics.control_flow import either, lazy_cond
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import Evaluated, StepEvidence, take
from bots_jax.sharding import totals
from bots_jax.types import Array, Belief, PyTree, Settings, State

# What is tried around `Settings.implicit_weight` and `Settings.forgetting`, as factors.
_TRUSTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_SPEEDS = (0.0625, 0.25, 1.0, 4.0, 16.0)
# Share of the weights that is spread over the whole grid at each step.
_SHARE = 0.01
# Nodes of Gauss-Hermite's rule for L_j.
_NODES = 5
_NEWTON_STEPS = 4
_FAR = 3.0  # logits beyond which so many steps may not arrive
_LONGEST_STEP = 2.0  # logits; a Newton step from the flat end of a logistic may overshoot
_LEAST_RATE = 1e-6  # p~ is kept this far from 0 and 1, where it has no logit
_MOST_VARIANCE = 1e4
# Share of what is uncertain of eta that is new at each step, because the policy moves: `glm`'s own.
_MOVING = 0.02


class Shared(NamedTuple):
    """What the evaluated tasks of all steps have told about all."""

    estimator: PyTree  # the estimator's own parameters
    log_weights: Array  # f[J], of the pairs of the grid; the exponentials sum to 1
    cusum: Array  # f, nats by which the prior predictive has been better of late
    num_resets: Array  # i32, how often all was forgotten


def _nothing_shared(rules: AutoConfig, reference: Reference, num_domains: int) -> Shared:
    """As before any evidence."""
    dtype, size = reference.rates.dtype, _grid_size(rules)
    return Shared(
        rules.estimator.init(reference, num_domains),
        jnp.full((size,), -np.log(size), dtype),
        jnp.zeros((), dtype),
        jnp.zeros((), jnp.int32),
    )


class History(NamedTuple):
    """What is known of each task alone, as of its last visit."""

    offset: Array  # f[C], u in logits; 0 before the first visit
    variance: Array  # f[C], v; huge before the first visit
    visits: Array  # f[C], as of the last one; a visit counts as long as what it told does
    seen: Array  # i32[C], clock after the last visit; for a new task, when it came
    explained_fraction: Array  # f[C], a, as of the last visit

    def restart(self, rows: Array, clock: Array, visits: Array | float = 0.0) -> History:
        """Those of some rows begin anew, with so many visits to their account."""
        fresh = no_history(1, self.offset.dtype)
        fresh = fresh._replace(visits=fresh.visits + visits, seen=clock[None])
        return History(
            *(old.at[rows].set(new[0], mode="drop") for old, new in zip(self, fresh, strict=True))
        )

    def forgotten(self) -> History:
        """As before the first visit, but for when tasks were seen, which the floor goes by."""
        return no_history(self.seen.shape[0], self.offset.dtype)._replace(seen=self.seen)


def no_history(capacity: int, dtype: jnp.dtype) -> History:
    """As before the first visit. An array each, so that a state can be donated."""
    return History(
        jnp.zeros((capacity,), dtype),
        jnp.full((capacity,), _MOST_VARIANCE, dtype),
        jnp.zeros((capacity,), dtype),
        jnp.zeros((capacity,), jnp.int32),
        jnp.zeros((capacity,), dtype),
    )


def was_visited(history: History) -> Array:
    """bool[...]: which tasks were visited, since all was forgotten at least."""
    return history.variance < _MOST_VARIANCE


class AutoBelief(NamedTuple):
    """Shared knowledge, histories, and the clock."""

    shared: Shared
    history: History
    clock: Array  # i32, steps that brought evidence
    lengths: Lengths | None = None  # where choices look at tokens

    def restart(self, settings: Settings, rows: Array, active: Array) -> AutoBelief:
        """New tasks have no history, and the visits of the average task: no rush to them."""
        lengths, history = self.lengths, self.history
        visits = masked_mean(history.visits, active)
        return self._replace(
            lengths=None if lengths is None else lengths.restart(rows),
            history=history.restart(rows, self.clock, visits),
        )

    def inherit(self, rows: Array, fresh: Belief, rate: Array, trust: Array) -> AutoBelief:
        """New tasks begin as after `trust` rollouts at a rate, of which nobody else learns.

        As evidence it would teach the regression, and how far to trust it, what they say already:
        that tasks do not differ, until nothing else is believed.

        Args:
          rows: i32[A], restarted; C and above are dropped.
          fresh: f[A] each, what is believed of them now.
          rate, trust: f[A].
        """
        room = jnp.maximum(fresh.mean * (1 - fresh.mean), _LEAST_RATE)
        most = 1 / (fresh.concentration * room)  # V: see `as_belief`
        line = unshrink(jnp.log(fresh.mean / (1 - fresh.mean)), most)
        expected = Expected(line, jnp.zeros_like(line), most)
        offset, variance = _visited(expected, trust * rate, trust)
        history = self.history
        explained = history.explained_fraction.at[rows].set(1 - variance / most, mode="drop")
        return self._replace(
            history=history._replace(
                offset=history.offset.at[rows].set(offset, mode="drop"),
                variance=history.variance.at[rows].set(variance, mode="drop"),
                explained_fraction=explained,
            )
        )

    def of_rows(self, rows: Array | None) -> AutoBelief:
        """The belief with the histories of some tasks alone, i32[R]; of all for None."""
        if rows is None:
            return self
        lengths = None if self.lengths is None else self.lengths.of_rows(rows)
        history = jax.tree.map(lambda values: values[rows], self.history)
        return self._replace(history=history, lengths=lengths)


class AutoConfig(NamedTuple):
    """What is fixed in the factory."""

    estimator: Estimator
    learn_trust: bool  # rho from the grid; else it is `Settings.implicit_weight`
    learn_speed: bool  # lambda likewise
    batch_size: int
    per_token: bool = False  # whether tokens are learned


class HyperGrid(NamedTuple):
    """Settings of the filter: those of the grid f[J], or those in force f[]."""

    prior_weight: Array  # rho
    decay_rate: Array  # kappa, a step


class Expected(NamedTuple):
    """logit p before a step's evidence, or now."""

    shared: Array  # f[...], eta
    offset: Array  # f[...], u
    variance: Array  # f[...], v
    # f[...], what eta's own uncertainty adds to that of a visited task
    of_line: Array | None = None


# --- settings -----------------------------------------------------------------------------


def _grid(rules: AutoConfig, settings: Settings) -> HyperGrid:
    """The pairs of the grid, f[J]."""
    dtype = settings.forgetting.dtype
    trusts = _TRUSTS if rules.learn_trust else (1.0,)
    speeds = _SPEEDS if rules.learn_speed else (1.0,)
    pairs = np.array(
        [(prior_weight, decay_rate) for prior_weight in trusts for decay_rate in speeds]
    )
    factors = jnp.asarray(pairs, dtype)
    rate = -jnp.log1p(-jnp.minimum(settings.forgetting, 1 - 1e-6))
    return HyperGrid(settings.implicit_weight * factors[:, 0], rate * factors[:, 1])


def _grid_size(rules: AutoConfig) -> int:
    return (len(_TRUSTS) if rules.learn_trust else 1) * (len(_SPEEDS) if rules.learn_speed else 1)


def in_force(rules: AutoConfig, settings: Settings, shared: Shared) -> HyperGrid:
    """The weighted means of log rho and log kappa over the grid, f[]."""
    grid, weights = _grid(rules, settings), jnp.exp(shared.log_weights)

    def mean(values: Array) -> Array:
        least = jnp.finfo(values.dtype).tiny
        return jnp.exp(jnp.sum(weights * jnp.log(jnp.maximum(values, least))))

    return HyperGrid(mean(grid.prior_weight), mean(grid.decay_rate))


def _reweighted(log_weights: Array, told: Array) -> Array:
    """Bayes' rule, then a share for every pair."""
    log_weights = jax.nn.log_softmax(log_weights + told)
    size = log_weights.shape[0]
    return jnp.log((1 - _SHARE) * jnp.exp(log_weights) + _SHARE / size)


# --- one look at some tasks, or all -------------------------------------------------------


class _Prior(NamedTuple):
    """What the estimator says of some tasks."""

    line: Array  # f[R], eta
    mean: Array  # f[R], p~
    counts: Array  # f[R], c
    variance: Array | None  # f[R], of eta, as far as it is shared


def _infer(
    rules: AutoConfig,
    params: PyTree,
    settings: Settings,
    reference: Reference,
    domain: Array | None,
    roughly: bool = False,
) -> _Prior:
    """eta and c; where the estimator knows nothing, those of Beta(alpha0, beta0)."""
    quick = rules.estimator.infer_roughly if roughly else None
    inferred = (quick or rules.estimator.infer)(params, reference, domain)
    prior = settings.prior_successes + settings.prior_failures
    mean = jnp.where(inferred.known, inferred.mean, settings.prior_successes / prior)
    mean = jnp.clip(mean, _LEAST_RATE, 1 - _LEAST_RATE)
    if inferred.concentration is None:
        counts = jnp.broadcast_to(prior, mean.shape)
    else:
        counts = jnp.where(inferred.known, inferred.concentration, prior)
    # As trusted as claimed: at rho = 1, or eta would be another for each pair of the grid.
    variance = _most_variance(1.0, counts)
    line = unshrink(jnp.log(mean / (1 - mean)), variance)
    return _Prior(line, mean, counts, inferred.variance)


def _aged(history: History, clock: Array, pairs: HyperGrid, counts: Array) -> tuple[Array, Array]:
    """u and v of tasks not seen for a while. Histories and counts must broadcast to pairs."""
    kept = _kept(history, clock, pairs)
    most = _most_variance(pairs.prior_weight, counts)
    at_visit = jnp.minimum(history.variance, most)
    variance = most + (at_visit - most) * kept * kept
    # What is known to 1e-7 of V would be rounded to 0, and the next visit divides by it.
    return history.offset * kept, jnp.maximum(variance, at_visit)


def _most_variance(prior_weight: Array | float, counts: Array) -> Array:
    """V, that of a task without a history."""
    return jnp.minimum(4 / (prior_weight * counts), _MOST_VARIANCE)


def _kept(history: History, clock: Array, pairs: HyperGrid) -> Array:
    """e, the share of a history that is not forgotten yet."""
    return jnp.exp(-pairs.decay_rate * (clock - history.seen).astype(history.offset.dtype))


def _explained_fraction(history: History, clock: Array, pairs: HyperGrid) -> Array:
    """f[...]: a, how much of an error of eta the offset makes up for."""
    age = (clock - history.seen).astype(history.offset.dtype)
    return history.explained_fraction * _kept(history, clock, pairs) * (1 - _MOVING) ** (age + 1)


def recent_visits(history: History, clock: Array, pairs: HyperGrid) -> Array:
    """f[...]: visits, each for as much as is left of what it told."""
    return history.visits * _kept(history, clock, pairs)


def expect(
    rules: AutoConfig,
    belief: AutoBelief,
    settings: Settings,
    reference: Reference,
    domain: Array | None,
    rows: Any = slice(None),
    roughly: bool = False,
) -> Expected:
    """logit p of some tasks, i32[R] rows, or of all.

    Args:
      roughly: as near as is needed to tell which tasks may be among the best.
    """
    known = reference.take(None if isinstance(rows, slice) else rows)
    where = domain if domain is None or isinstance(rows, slice) else domain[rows]
    prior = _infer(rules, belief.shared.estimator, settings, known, where, roughly)
    history = jax.tree.map(lambda values: values[rows], belief.history)
    return _with_history(rules, belief, settings, prior, history)


def expect_of_groups(
    rules: AutoConfig,
    belief: AutoBelief,
    settings: Settings,
    reference: Reference,
    domain: Array | None,
    group: Array,
) -> Expected:
    """logit p of all tasks, of which each has the reference and domain of its group, i32[C]."""
    of_groups = _infer(rules, belief.shared.estimator, settings, reference, domain)
    prior = jax.tree.map(lambda values: values[group], of_groups)
    return _with_history(rules, belief, settings, prior, belief.history)


def _with_history(
    rules: AutoConfig, belief: AutoBelief, settings: Settings, prior: _Prior, history: History
) -> Expected:
    pairs = in_force(rules, settings, belief.shared)
    offset, variance = _aged(history, belief.clock, pairs, prior.counts)
    of_line = _variance_of_line(history, belief.clock, pairs, prior, variance)
    return Expected(prior.line, offset, variance, of_line)


def _variance_of_line(
    history: History, clock: Array, pairs: HyperGrid, prior: _Prior, variance: Array
) -> Array | None:
    """f[...]: of an error of eta what the offset does not make up for, (1 - a)^2 var eta.

    v is the variance of the offset given eta. V of a task without a history holds that of eta
    already, and v as much of it as is left of V.
    """
    if prior.variance is None:
        return None
    shows = 1 - _explained_fraction(history, clock, pairs)
    share = 1 - variance / _most_variance(pairs.prior_weight, prior.counts)
    return jnp.square(shows) * jnp.clip(share, 0, 1) * prior.variance


def expect_unvisited(
    rules: AutoConfig,
    shared: Shared,
    settings: Settings,
    reference: Reference,
    domain: Array | None,
) -> Expected:
    """logit p of tasks without a history, such as most of a large pool."""
    prior = _infer(rules, shared.estimator, settings, reference, domain)
    variance = _most_variance(in_force(rules, settings, shared).prior_weight, prior.counts)
    return Expected(prior.line, jnp.zeros_like(prior.line), variance)


def what_is_left(
    rules: AutoConfig, belief: AutoBelief, settings: Settings, pick: Callable[[Array], Array]
) -> Array:
    """f[...]: how far the histories that `pick` picks still differ from none: e max(|u|, visits).

    In logits and visits; 0 before the first visit. (Of a there is less left than of visits.)
    """
    history = jax.tree.map(pick, belief.history)
    kept = _kept(history, belief.clock, in_force(rules, settings, belief.shared))
    size = jnp.maximum(jnp.abs(history.offset), history.visits)
    return jnp.where(history.visits > 0, kept * size, 0)


def moderated(expected: Expected) -> Array:
    """The logit of E p."""
    return shrink(expected.shared + expected.offset, expected.variance)


def mean_rate(expected: Expected) -> Array:
    """E p, in (0, 1)."""
    return jax.nn.sigmoid(moderated(expected))


_OPTIMISM = 2.0


def optimistic_rate(expected: Expected, best: Array | None = None) -> Array:
    """A p nearer to 1/2 than E p, the less is known the more: of logit mean / sqrt(1 + 2 v).

    E p divides by sqrt(1 + pi v / 8), nearly.

    Args:
      best: f[], the logit to come nearer to, where it is not that of 1/2.
    """
    scale = lax.rsqrt(1 + _OPTIMISM * expected.variance)
    logit = expected.shared + expected.offset
    return jax.nn.sigmoid(logit * scale if best is None else best + (logit - best) * scale)


def draw_rate(rng_key: Array, expected: Expected) -> Array:
    """One draw of each p."""
    noise = jax.random.normal(rng_key, expected.shared.shape, expected.shared.dtype)
    spread = jnp.sqrt(_whole_variance(expected))
    return jax.nn.sigmoid(expected.shared + expected.offset + noise * spread)


def _whole_variance(expected: Expected) -> Array:
    if expected.of_line is None:
        return expected.variance
    return expected.variance + expected.of_line


def as_belief(expected: Expected) -> Belief:
    """Mean, and the pseudo-counts of the Beta whose logit is as uncertain."""
    mean = mean_rate(expected)
    room = jnp.maximum(mean * (1 - mean), _LEAST_RATE)
    return Belief(mean, 1 / (_whole_variance(expected) * room))


# --- a step -------------------------------------------------------------------------------


def _log_likelihood(expected: Expected, successes: Array, trials: Array) -> Array:
    """log L of each task, up to what all pairs share, by Gauss-Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    spread = jnp.sqrt(expected.variance)
    terms = []
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        z = expected.shared + expected.offset + float(node) * spread
        terms.append(successes * z - trials * jax.nn.softplus(z) + float(np.log(weight)))
    top = terms[0]
    for term in terms[1:]:
        top = jnp.maximum(top, term)
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


# Evaluated tasks that the pairs of the grid are compared on, so that a step stays cheap.
_ENOUGH = 128
_ENOUGH_ROWS = 4096  # where they stand scattered among all rows


def _stride(rules: AutoConfig, batch: Evaluated) -> slice:
    """Some of the tasks of a batch, evenly: the evaluated come first, one batch as a rule."""
    rows = batch.trials.shape[0]
    if batch.rows is None:
        return slice(0, rows, max(1, rows // _ENOUGH_ROWS))
    first = min(rows, rules.batch_size)
    return slice(0, first, max(1, first // _ENOUGH))


def _log_predictive(
    rules: AutoConfig,
    pairs: HyperGrid,
    history: History,
    clock: Array,
    prior: _Prior,
    batch: Evaluated,
) -> Array:
    """f[J]: the log-likelihood of a step's evidence under each of the pairs, f[J]."""
    step = _stride(rules, batch)
    history, prior, batch = jax.tree.map(lambda values: values[step], (history, prior, batch))
    column = jax.tree.map(lambda values: values[:, None], history)
    each_pair = jax.tree.map(lambda values: values[None], pairs)
    aged = _aged(column, clock, each_pair, prior.counts[:, None])
    expected = Expected(prior.line[:, None], *aged)
    each = _log_likelihood(expected, batch.successes[:, None], batch.trials[:, None])
    return totals(jnp.where(batch.trials[:, None] > 0, each, 0).T)


def _own(
    prior: _Prior, expected: Expected, prior_weight: Array, explained_fraction: Array
) -> TaskCounts:
    """The history as counts beside the c of p~, for the fit of the estimator.

    What it has added to the information about logit p, over that of one trial, p (1 - p). A task
    without a history has none: counts that it does not have would make every error of p~ look like
    a spread of the tasks, phi would grow, and the more it grows the more such counts there were.
    """
    mean = mean_rate(expected)
    told = 1 / expected.variance - 1 / _most_variance(prior_weight, prior.counts)
    own = jnp.maximum(told, 0) / jnp.maximum(mean * (1 - mean), _LEAST_RATE)
    return TaskCounts(
        (prior.counts + own) * mean - prior.counts * prior.mean, own, explained_fraction
    )


def _visited(expected: Expected, successes: Array, trials: Array) -> tuple[Array, Array]:
    """u and v after s of n."""
    line, start, variance, _ = expected
    offset = _begin(expected, successes, trials)
    for _ in range(_NEWTON_STEPS):
        rate = jax.nn.sigmoid(line + offset)
        slope = successes - trials * rate - (offset - start) / variance
        bend = trials * rate * (1 - rate) + 1 / variance
        offset += jnp.clip(slope / bend, -_LONGEST_STEP, _LONGEST_STEP)
    rate = jax.nn.sigmoid(line + offset)
    return offset, 1 / (trials * rate * (1 - rate) + 1 / variance)


def _begin(expected: Expected, successes: Array, trials: Array) -> Array:
    """Where the steps towards the mode begin: at u, or nearer to what was seen where that is far.

    Steps are few and short. In a pool of hopeless tasks V is wide and eta far below, and from u
    they left a task of which half was solved at a rate of 1e-4.
    """
    line, start, variance, _ = expected
    rate = (successes + 0.5) / (trials + 1)
    told = trials * rate * (1 - rate) * variance
    seen = jnp.log(rate / (1 - rate)) - line
    between = (start + told * seen) / (1 + told)
    # Of none or all: rates fall off as e^z, and w e^w = n v e^z says where the pull of u stops it.
    side = jnp.where(successes > 0, -1.0, 1.0).astype(start.dtype)
    level = jnp.maximum(jnp.log(trials * variance + 1e-30) + side * (line + start), 1.0)
    alike = (successes <= 0) | (successes >= trials)
    nearer = jnp.where(alike, start - side * (level - jnp.log(level)), between)
    # The slope falls, so the mode is no further than it would be at that of the start.
    furthest = start + variance * (successes - trials * jax.nn.sigmoid(line + start))
    nearer = jnp.clip(nearer, jnp.minimum(start, furthest), jnp.maximum(start, furthest))

    def log_posterior(offset: Array) -> Array:
        z, away = line + offset, offset - start
        return successes * z - trials * jax.nn.softplus(z) - away * away / (2 * variance)

    is_far = jnp.abs(nearer - start) > _FAR
    better = log_posterior(nearer) > log_posterior(start)
    return jnp.where(is_far & better, nearer, start)


def logit_normal_belief(rules: AutoConfig) -> BeliefModel:
    """The belief under these rules."""

    def init(settings: Settings, reference: Reference, num_domains: int) -> AutoBelief:
        models, capacity = reference.rates.shape
        if 0 < models < rules.estimator.models:
            raise ValueError(
                f"reference has {models} row(s), estimator={rules.estimator.name!r} needs "
                f"{rules.estimator.models}: add a model, or use estimator='glm'"
            )
        dtype = reference.rates.dtype
        return AutoBelief(
            _nothing_shared(rules, reference, num_domains),
            no_history(capacity, dtype),
            jnp.zeros((), jnp.int32),
            no_lengths(capacity, dtype) if rules.per_token else None,
        )

    def fuse(
        belief: AutoBelief, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[AutoBelief, BeliefInfo]:
        batch = _evaluated(fused)
        belief = _reset_on_changepoint(rules, belief, settings, reference, fused, batch)
        learned, error, anything = _learn(rules, belief, settings, reference, fused, batch)
        history = _remember(rules, belief, learned, settings, reference, fused)
        prior_weight = in_force(rules, settings, learned).prior_weight
        shown = lax.optimization_barrier(prior_weight)  # or it changes the belief's last bits
        level = rules.estimator.capability(learned.estimator)
        info = BeliefInfo(level, shown / (1 + shown), error)
        clock = belief.clock + anything.astype(jnp.int32)
        lengths = belief.lengths
        if lengths is not None:
            line = _infer(rules, learned.estimator, settings, reference, fused.domain).line
            lengths = learn_lengths(lengths, line, fused.trials > 0)
        return AutoBelief(learned, history, clock, lengths), info

    def look(state: State, rows: Any = slice(None)) -> Expected:
        belief, domain = state.belief, state.pool.domain
        return expect(rules, belief, state.settings, state.reference, domain, rows)

    def predict(state: State, rows: Any) -> Belief:
        if isinstance(rows, slice):
            return as_belief(look(state))
        flat = as_belief(look(state, rows.ravel()))
        return jax.tree.map(lambda values: values.reshape(rows.shape), flat)

    def draw(rng_key: Array, state: State) -> Array:
        return draw_rate(rng_key, look(state))

    return BeliefModel(init, fuse, predict, draw)


def _evaluated(fused: StepEvidence) -> Evaluated:
    """The tasks to learn of all from.

    As many as are listed: if a step brings evidence of more, the others move their own histories
    alone. Going through all rows instead would have the loop hold on to all of the state.
    """
    if fused.rows is None:
        return Evaluated(None, fused.successes, fused.trials)
    capacity = fused.trials.shape[0]
    at, present = jnp.minimum(fused.rows, capacity - 1), fused.rows < capacity
    successes, trials = (jnp.where(present, x[at], 0) for x in (fused.successes, fused.trials))
    return Evaluated(at, successes, trials)


def _take(
    belief: AutoBelief, reference: Reference, fused: StepEvidence, rows: Array | None
) -> tuple[Reference, Array | None, History]:
    """References, domains and histories of some rows, or of all."""
    domain = None if fused.domain is None else take(fused.domain, rows)
    history = jax.tree.map(lambda values: take(values, rows), belief.history)
    return reference.take(rows), domain, history


# Nats by which the prior predictive must have been better. A belief that is merely wrong, under
# references that mislead, stays below; after 20 steps of a grader that fails, a step brings
# hundreds.
_CUSUM_LIMIT = 50.0


def _reset_on_changepoint(
    rules: AutoConfig,
    belief: AutoBelief,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
    batch: Evaluated,
) -> AutoBelief:
    """The belief, or the prior where its predictive foresaw the latest evidence better."""
    known, domain, history = _take(belief, reference, fused, batch.rows)

    def foresight(shared: Shared, history: History) -> Array:
        prior = _infer(rules, shared.estimator, settings, known, domain)
        pair = jax.tree.map(lambda value: value[None], in_force(rules, settings, shared))
        return _log_predictive(rules, pair, history, belief.clock, prior, batch)[0]

    old, fresh = belief.shared, _nothing_shared(rules, reference, fused.num_domains)
    better = foresight(fresh, history.forgotten()) - foresight(old, history)
    cusum = jnp.maximum(old.cusum + better, 0)
    begin = cusum > _CUSUM_LIMIT
    shared = either(begin, fresh._replace(num_resets=old.num_resets + 1), old._replace(cusum=cusum))
    return belief._replace(
        shared=shared, history=lazy_cond(begin, History.forgotten, belief.history)
    )


def _learn(
    rules: AutoConfig,
    belief: AutoBelief,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
    batch: Evaluated,
) -> tuple[Shared, Array, Array]:
    """The weights of the pairs, then the estimator; and the error of p~, and whether any came."""
    shared, clock = belief.shared, belief.clock
    known, domain, history = _take(belief, reference, fused, batch.rows)
    prior = _infer(rules, shared.estimator, settings, known, domain)
    told = _log_predictive(rules, _grid(rules, settings), history, clock, prior, batch)
    log_weights = _reweighted(shared.log_weights, told)
    shared = shared._replace(log_weights=log_weights)
    pairs = in_force(rules, settings, shared)
    before = Expected(prior.line, *_aged(history, clock, pairs, prior.counts))
    few = StepEvidence(batch.successes, batch.trials, domain, fused.num_domains)
    explained = _explained_fraction(history, clock, pairs)
    own = _own(prior, before, pairs.prior_weight, explained)
    params = rules.estimator.fit(shared.estimator, settings, known, few, own)
    tried = batch.trials > 0
    off = jnp.abs(prior.mean - safe_ratio(batch.successes, batch.trials))
    anything = jnp.any(tried)  # if not, no policy was trained, and nothing is forgotten
    after = either(anything, shared._replace(estimator=params), belief.shared)
    return after, masked_mean(off, tried), anything


def _remember(
    rules: AutoConfig,
    belief: AutoBelief,
    learned: Shared,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
) -> History:
    """The histories of the evaluated tasks after this step; the others as they were."""
    clock = belief.clock
    pairs = in_force(rules, settings, learned)

    def after(history: History, rows: Array | None, successes: Array, trials: Array) -> History:
        domain = None if fused.domain is None else take(fused.domain, rows)
        prior = _infer(rules, learned.estimator, settings, reference.take(rows), domain)
        expected = Expected(prior.line, *_aged(history, clock, pairs, prior.counts))
        offset, variance = _visited(expected, successes, trials)
        visits = recent_visits(history, clock, pairs) + 1
        rest = 1 - _explained_fraction(history, clock, pairs)
        left = jnp.clip(rest * variance / expected.variance, 0, 1)
        return History(offset, variance, visits, jnp.full_like(history.seen, 1) + clock, 1 - left)

    def all_rows(history: History) -> History:
        """Those that are not done yet."""
        # Tied to what is replaced, or XLA moves it in front of the loop that seldom turns.
        s, n, history = lax.optimization_barrier((fused.successes, fused.trials, history))
        new = after(history, None, s, n)
        tried = (n > 0) & (history.seen <= clock)
        return jax.tree.map(lambda fresh, old: jnp.where(tried, fresh, old), new, history)

    capacity = fused.trials.shape[0]
    if fused.rows is None or fused.overflow is None:
        return all_rows(belief.history)
    at = jnp.minimum(fused.rows, capacity - 1)
    tried = (fused.rows < capacity) & (fused.trials[at] > 0)
    before = jax.tree.map(lambda values: values[at], belief.history)
    new = after(before, at, fused.successes[at], fused.trials[at])
    rows = jnp.where(tried, fused.rows, capacity)
    few = jax.tree.map(lambda old, fresh: old.at[rows].set(fresh, mode="drop"), belief.history, new)
    return lazy_cond(fused.overflow, all_rows, few)
