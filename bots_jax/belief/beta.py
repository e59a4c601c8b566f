"""The belief of BOTS: a Beta posterior of each task, from explicit and implicit evidence.

In: the evidence of a step. Out: the posterior after it, steps 3 to 6 of the method:

    3 capability of the batch, smoothed                    Estimator.fit      (implicit/)
    4 p~ by interpolation between the references           Estimator.infer    (implicit/)
    6 halve rho where p~ was wrong on the batch            learn
    5 forget, add explicit and implicit evidence           posterior.fuse     (belief/posterior.py)

`learn` looks at the evaluated tasks alone, `spread` at every task: so the dense engine
spreads over all tasks, and the grouped one over groups and the tasks that differ from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from bots_jax import implicit
from bots_jax.belief import posterior
from bots_jax.belief.posterior import BetaPosterior
from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.implicit import Estimator
from bots_jax.numerics.arithmetic import masked_mean, safe_ratio
from bots_jax.numerics.beta_draws import beta as draw_beta
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import Evaluated, StepEvidence, over_evaluated, take
from bots_jax.types import Array, Belief, PyTree, Settings, State


class Learned(NamedTuple):
    """What the evaluated tasks of all steps have told about the others."""

    estimator: PyTree  # the estimator's own parameters
    implicit_scale: Array  # f, what adaptive_implicit_weight has made of rho = 1


class BotsBelief(NamedTuple):
    """Posterior of every task, and what was learned."""

    posterior: BetaPosterior
    learned: Learned

    def restart(self, settings: Settings, rows: Array, active: Array) -> BotsBelief:
        """Rows that now hold a new task begin at the prior."""
        alpha, beta = self.posterior
        fresh = BetaPosterior(
            alpha.at[rows].set(settings.prior_successes, mode="drop"),
            beta.at[rows].set(settings.prior_failures, mode="drop"),
        )
        return self._replace(posterior=fresh)


class BetaRules(NamedTuple):
    """Steps 3 to 6 in two parts.

    start(reference, num_domains) -> Learned
    learn(learned, settings, reference, fused) -> (Learned, BeliefInfo)
    spread(posterior, learned, settings, reference, fused) -> BetaPosterior
    """

    start: Callable[[Reference, int], Learned]
    learn: Callable[[Learned, Settings, Reference, StepEvidence], tuple[Learned, BeliefInfo]]
    spread: Callable[[BetaPosterior, Learned, Settings, Reference, StepEvidence], BetaPosterior]


# Mean absolute error of p~ at which the authors' rule halves rho.
_ERROR_TO_HALVE = 0.25


def beta_rules(estimator: Estimator, adaptive_implicit_weight: bool = False) -> BetaRules:
    """The rules for this estimator of implicit evidence."""

    def start(reference: Reference, num_domains: int) -> Learned:
        models = reference.rates.shape[0]
        if 0 < models < estimator.models:
            raise ValueError(
                f"reference has {models} row(s), estimator={estimator.name!r} needs "
                f"{estimator.models}: add a model, or use estimator='none'"
            )
        params = estimator.init(reference, num_domains)
        return Learned(params, jnp.ones((), reference.rates.dtype))

    def learn(
        learned: Learned, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[Learned, BeliefInfo]:
        params, scale = learned
        error = jnp.zeros((), reference.rates.dtype)
        if _informs(estimator, reference):
            params, error = over_evaluated(
                fused, _from_batch(estimator, learned, settings, reference, fused)
            )
        if adaptive_implicit_weight:
            scale = jnp.where(error >= _ERROR_TO_HALVE, scale / 2, scale)
        weight = settings.implicit_weight * scale
        return Learned(params, scale), BeliefInfo(estimator.capability(params), weight, error)

    def spread(
        before: BetaPosterior,
        learned: Learned,
        settings: Settings,
        reference: Reference,
        fused: StepEvidence,
    ) -> BetaPosterior:
        source = estimator if _informs(estimator, reference) else implicit.none()
        inferred = source.infer(learned.estimator, reference, fused.domain)
        weight = settings.implicit_weight * learned.implicit_scale
        return posterior.fuse(
            before,
            settings,
            fused.successes,
            fused.trials,
            inferred.mean,
            jnp.where(inferred.known, weight, 0),
        )

    return BetaRules(start, learn, spread)


def _informs(estimator: Estimator, reference: Reference) -> bool:
    """Whether there is something to infer from."""
    return estimator.name != "none" and reference.rates.shape[0] >= estimator.models


def _from_batch(
    estimator: Estimator,
    learned: Learned,
    settings: Settings,
    reference: Reference,
    fused: StepEvidence,
) -> Callable[[Evaluated], tuple[PyTree, Array]]:
    """Step 3, and the mean |p~ - s/n| over the evaluated tasks with references."""

    def measure(batch: Evaluated) -> tuple[PyTree, Array]:
        known = reference.take(batch.rows)
        domain = None if fused.domain is None else take(fused.domain, batch.rows)
        few = StepEvidence(batch.successes, batch.trials, domain, fused.num_domains)
        params = estimator.fit(learned.estimator, settings, known, few)
        inferred = estimator.infer(params, known, domain)
        rate = safe_ratio(batch.successes, batch.trials)
        off = jnp.abs(inferred.mean - rate)
        return params, masked_mean(off, inferred.known & (batch.trials > 0))

    return measure


def beta_belief(rules: BetaRules) -> BeliefModel:
    """The same as the belief of a dense selector."""

    def init(settings: Settings, reference: Reference, num_domains: int) -> BotsBelief:
        learned = rules.start(reference, num_domains)
        return BotsBelief(posterior.prior(settings, reference.rates.shape[1]), learned)

    def fuse(
        belief: BotsBelief, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[BotsBelief, BeliefInfo]:
        learned, info = rules.learn(belief.learned, settings, reference, fused)
        after = rules.spread(belief.posterior, learned, settings, reference, fused)
        return BotsBelief(after, learned), info

    def predict(state: State, rows: Any) -> Belief:
        alpha, beta = state.belief.posterior
        return posterior.belief(alpha[rows], beta[rows])

    def draw(rng_key: Array, state: State) -> Array:
        return draw_beta(rng_key, *state.belief.posterior)

    return BeliefModel(init, fuse, predict, draw)
