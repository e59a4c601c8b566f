"""SEC: categories are the arms of a bandit that is paid in absolute advantage.

    Q_c <- (1 - a) Q_c + a mean |A| of the tasks of c in the batch,  Q_c = 0 at first
    categories by softmax(Q / tau), tasks uniformly within a category

with a = 0.1 and tau = 1 (arXiv 2505.14970, Self-Evolving Curriculum). The categories are
the domains; where there is one domain, equal bins of static difficulty, 5 by default, as
the paper's levels. |A| is that of group-normalised advantages.

Departures: the batch is drawn without replacement from the tasks, each with probability
softmax(Q / tau)_c / (free tasks of c), so a category empties as it is drawn from; a category
without tasks in the batch keeps its Q.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_count, check_number
from bots_jax.compose import BeliefModel, Shared, compose, factory
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.bins import bin_sums, sample_bins, static_difficulty
from bots_jax.strategies.choices import among_allowed, mean_rate
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.worth import group_rate, mean_abs_advantage
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Arms(NamedTuple):
    """What each category is worth."""

    value: Array  # f[categories], Q

    def restart(self, settings: Settings, rows: Array, active: Array) -> Arms:
        """New tasks join a category; its value stays."""
        return self


@factory
def sec(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    temperature: ArrayLike = 1.0,
    learning_rate: float = 0.1,
    bins: int = 5,
    **shared: Unpack[Shared],
) -> Selector:
    """Categories of the largest absolute advantage, by a Boltzmann policy.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      temperature: tau; 0 takes the category of largest Q.
      learning_rate: a in [0, 1], static.
      bins: of difficulty, where the pool has a single domain; static.
    """
    rate = check_number("learning_rate", learning_rate, 0, 1)
    count = check_count("bins", bins)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Arms:
        if num_domains == 1 and not reference.rates.shape[0]:
            raise ValueError("sec needs categories: give init(domains=...) or a reference")
        arms = num_domains if num_domains > 1 else count
        return Arms(jnp.zeros((arms,), reference.rates.dtype))

    def remember(
        memory: Arms, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Arms:
        category = categories(reference, fused.domain, fused.num_domains, memory.value.shape[0])
        tried = (fused.trials > 0).astype(fused.trials.dtype)
        gain = tried * mean_abs_advantage(group_rate(fused))
        seen, total = (bin_sums(each, category, memory.value.shape[0]) for each in (tried, gain))
        moved = memory.value + rate * (safe_ratio(total, seen) - memory.value)
        return Arms(jnp.where(seen > 0, moved, memory.value))

    return compose(
        name="sec",
        model=counting_with(init, remember),
        choice=among_allowed(_score),
        settings=counting_settings(rollouts, temperature=temperature),
        batch_size=batch_size,
        obeys=("temperature",),
        static={"learning_rate": rate, "bins": count},
        **shared,
    )


def categories(reference: Reference, domain: Array | None, num_domains: int, arms: int) -> Array:
    """i32[C]: the domain of each task, or its bin of static difficulty, easiest first."""
    if domain is not None and num_domains > 1:
        return domain
    share = static_difficulty(reference) / 100
    return jnp.clip(jnp.floor(share * arms), 0, arms - 1).astype(jnp.int32)


def _score(rng_key: Array, model: BeliefModel, state: State, allowed: Array) -> tuple[Array, Array]:
    value = state.belief.memory.value
    num_domains, arms = state.pool.domain_sizes.shape[0], value.shape[0]
    category = categories(state.reference, state.pool.domain, num_domains, arms)
    some = bin_sums(allowed.astype(jnp.int32), category, arms) > 0
    # At tau = 0 the others are so far below that only an empty best category lets them in.
    tau = jnp.maximum(state.settings.temperature, 1e-6)
    best = jnp.max(jnp.where(some, value, -jnp.inf), initial=-1)
    log_weight = jnp.where(some, (value - best) / tau, -jnp.inf)
    return sample_bins(rng_key, log_weight, category, allowed), mean_rate(model, state)
