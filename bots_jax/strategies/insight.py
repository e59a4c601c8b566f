"""INSIGHT: weighted mutual information (arXiv 2603.01907).

Belief: a Beta posterior of visited tasks, discounted at each visit. Choice: the B tasks
with the largest

    w(f) I,    w(f) = f (1 - f) exp(-eta (f - mu)^2)

where f is the posterior mean, which beat a Thompson draw in the authors' ablation, and I
the mutual information between the success rate and the next K rewards:

    I = H(r_1, ..., r_K) - K E[h(p)],    h(p) = -p log p - (1 - p) log(1 - p)

Only the number s of successes matters. Its sequences have the probability
exp(L_s) = B(alpha + s, beta + K - s) / B(alpha, beta) each, so the first entropy is
-sum_s binom(K, s) exp(L_s) L_s; the second has the closed form

    E[h] = psi(n + 1) - (alpha psi(alpha + 1) + beta psi(beta + 1)) / n,    n = alpha + beta.

Departures: w is taken at the posterior mean, not averaged over the posterior. The paper's
eta, mu and discount are not known to us; the defaults here are ours. All tasks compete
unless `candidate_ratio` is given. In float32, I errs by about 1e-6 K nats.
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import jax.numpy as jnp
from jax.scipy.special import digamma

from bots_jax.checks import check_choice, check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics import beta_draws
from bots_jax.strategies.choices import among_candidates, candidate_count
from bots_jax.strategies.counting import counting_settings, group_size
from bots_jax.strategies.discounted import discounted_beta
from bots_jax.types import Array, ArrayLike, Number, Selector, State


@factory
def insight(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    target: ArrayLike = 0.5,
    keep: Number = 0.5,
    eta: float = 1.0,
    horizon: int | None = None,
    base: str = "mean",
    candidate_ratio: int | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """The tasks whose next rewards tell most, weighted by their difficulty.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: mu, the success rate that is preferred; a number of `Settings`.
      keep: share of a task's posterior that survives its next visit; `Settings.forgetting`
        is 1 - keep.
      eta: how sharply; at least 0. Static.
      horizon: K, the rewards looked ahead, at least 2; None: m, which must then be whole
        and not traced. Static.
      base: f is the posterior "mean" or a "thompson" draw. Static.
      candidate_ratio: candidates for each place in the batch; None: all tasks. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    eta = check_number("eta", eta, 0, math.inf)
    check_choice("base", base, ("mean", "thompson"))
    horizon = group_size("horizon", horizon, rollouts)
    count = candidate_count(candidate_ratio, batch_size)
    return compose(
        name="insight",
        model=discounted_beta(),
        choice=_most_informative(eta, horizon, base, count),
        settings=counting_settings(rollouts, keep=keep, target=target),
        batch_size=batch_size,
        obeys=("target",),
        static={
            "eta": eta,
            "horizon": horizon,
            "base": base,
            "candidate_ratio": candidate_ratio,
        },
        **shared,
    )


def _most_informative(eta: float, horizon: int, base: str, count: int | None) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State, rows: Any) -> tuple[Array, Array]:
        alpha, beta = state.belief.alpha[rows], state.belief.beta[rows]
        rate = alpha / (alpha + beta)
        if base == "thompson":
            rate = beta_draws.beta(rng_key, alpha, beta)
        weight = rate * (1 - rate) * jnp.exp(-eta * (rate - state.settings.target) ** 2)
        return -weight * mutual_information(alpha, beta, horizon), rate

    return among_candidates(score, count)


def mutual_information(alpha: Array, beta: Array, horizon: int) -> Array:
    """I of the module docstring, in nats.

    Args:
      alpha, beta: f[...], both positive.
      horizon: K >= 1, static.
    """
    return jnp.maximum(
        _sequence_entropy(alpha, beta, horizon) - horizon * _mean_entropy(alpha, beta), 0
    )


def _sequence_entropy(alpha: Array, beta: Array, horizon: int) -> Array:
    """H(r_1, ..., r_K), with L_s by recursion from L_0 up."""
    total, entropy = alpha + beta, jnp.zeros_like(alpha)
    log_chance = jnp.zeros_like(alpha)
    for i in range(horizon):
        log_chance += jnp.log((beta + i) / (total + i))
    for s in range(horizon + 1):
        ways = math.log(math.comb(horizon, s))
        entropy -= jnp.exp(log_chance + ways) * log_chance
        if s < horizon:
            log_chance += jnp.log((alpha + s) / (beta + (horizon - s - 1)))
    return entropy


def _mean_entropy(alpha: Array, beta: Array) -> Array:
    total = alpha + beta
    inside = alpha * digamma(alpha + 1) + beta * digamma(beta + 1)
    return digamma(total + 1) - inside / total
