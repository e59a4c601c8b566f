"""Forgetting and fusion: the Beta posterior of every task, one step on.

In: pseudo-counts alpha, beta f[C] and the evidence of a step. Out: the pseudo-counts
after it (arXiv 2510.26374, eq. 5 and 6 in one):

    alpha <- (1 - lambda) alpha + lambda alpha0 + s + rho max(m - n, 0) p~
    beta  <- (1 - lambda) beta  + lambda beta0  + (n - s) + rho max(m - n, 0) (1 - p~)

For n = m and n = 0 this is the paper's rule; in between, the trials that are missing
from a visit are filled with implicit evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from bots_jax.types import Array, Belief, Settings


class BetaPosterior(NamedTuple):
    """Pseudo-counts of each task's Beta posterior."""

    alpha: Array  # f[C], successes
    beta: Array  # f[C], failures


def prior(settings: Settings, capacity: int) -> BetaPosterior:
    """Every task at Beta(alpha0, beta0)."""
    return BetaPosterior(
        jnp.broadcast_to(settings.prior_successes, (capacity,)),
        jnp.broadcast_to(settings.prior_failures, (capacity,)),
    )


def fuse(
    posterior: BetaPosterior,
    settings: Settings,
    successes: Array,
    trials: Array,
    implicit: Array,
    implicit_weight: Array,
) -> BetaPosterior:
    """One step of the equation above.

    Args:
      settings: for lambda, the prior and m.
      successes, trials: f[C], the explicit evidence of this step.
      implicit: f[C], p~ in [0, 1].
      implicit_weight: f[C], rho, and 0 where p~ is unknown.
    """
    keep, forget = 1 - settings.forgetting, settings.forgetting
    inferred = implicit_weight * jnp.maximum(settings.rollouts - trials, 0)
    gained = successes + inferred * implicit
    lost = (trials - successes) + inferred * (1 - implicit)
    return BetaPosterior(
        keep * posterior.alpha + forget * settings.prior_successes + gained,
        keep * posterior.beta + forget * settings.prior_failures + lost,
    )


def belief(alpha: Array, beta: Array) -> Belief:
    """Mean and concentration of Beta(alpha, beta)."""
    total = alpha + beta
    return Belief(alpha / total, total)
