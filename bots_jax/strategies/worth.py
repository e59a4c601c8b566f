"""What a task is worth: equations that more than one strategy uses.

In: counts, rates or visits. Out: the chance of a mixed group, the mean absolute advantage,
and how much more than others a task was visited of late.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from bots_jax.choice.worth import chance_of_mixed_group as chance_of_mixed_group
from bots_jax.numerics.arithmetic import masked_mean, safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.types import Array, Settings

# --- advantages ------------------------------------------------------------------------------


def group_rate(fused: StepEvidence) -> Array:
    """f[C], s/n of this step; 0 where nothing was tried."""
    return safe_ratio(fused.successes, fused.trials)


def mean_abs_advantage(rate: Array) -> Array:
    """Mean |A| in a group of 0/1 rewards with mean p: 2 sqrt(p (1 - p)).

    A = (R - p) / sd R with sd R = sqrt(p (1 - p)); a share p of the rewards has
    |A| = (1 - p) / sd R, the others p / sd R. 0 in a group that is not mixed. Of graded
    rewards only the mean is known here, and this is an upper bound.
    """
    return 2 * jnp.sqrt(jnp.maximum(rate * (1 - rate), 0))


# --- the balance of visits -------------------------------------------------------------------


class Visits(NamedTuple):
    """How often each task was evaluated of late."""

    discounted: Array  # f[C], sum over its visits of keep ** (steps since)

    def restart(self, settings: Settings, rows: Array, active: Array) -> Visits:
        """New tasks stand where the average task stands: no rush to visit them all."""
        mean = masked_mean(self.discounted, active)
        return Visits(self.discounted.at[rows].set(mean, mode="drop"))


def no_visits(reference: Reference) -> Visits:
    """Nothing visited yet."""
    return Visits(jnp.zeros((reference.rates.shape[1],), reference.rates.dtype))


def count_visits(visits: Visits, fused: StepEvidence, keep: float) -> Visits:
    """One step: discount, then add the visits of this step."""
    new = (fused.trials > 0).astype(visits.discounted.dtype)
    return Visits(keep * visits.discounted + new)


def excess_of_visits(visits: Visits, active: Array) -> Array:
    """f[C]: log((visits + 1) / (mean visits + 1)), the mean over the active tasks.

    The 1 keeps the logarithm of a task that was never visited finite.
    """
    mean = masked_mean(visits.discounted, active)
    return jnp.log1p(visits.discounted) - jnp.log1p(mean)
