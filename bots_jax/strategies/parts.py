"""Parts that several strategies share: counts beside a memory of one's own, and small rules.

In: what a strategy remembers of each task besides its counts (`Memory`). Out: a belief
that counts and remembers (`counting_with`), and the equations that more than one strategy
uses: mean absolute advantage, static difficulty, the chance of a mixed group, drawing
without replacement, and the balance of visits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.numerics import gumbel, masked_mean, safe_ratio
from bots_jax.pool import NO_VISIT, Fused, PoolState
from bots_jax.reference import Reference
from bots_jax.beta_belief import BotsBelief
from bots_jax.strategies.counting import COUNTING
from bots_jax.types import Array, Belief, Settings


class Memory(Protocol):
    """A pytree of what a strategy remembers."""

    def restart(self, settings: Settings, rows: Array) -> Any:
        """Rows that now hold a new task begin anew; rows >= C are dropped."""


class Remembering(NamedTuple):
    """Counts, for the belief, and a memory, for the choice."""

    counted: BotsBelief
    memory: Any

    def restart(self, settings: Settings, rows: Array) -> Remembering:
        """Both parts begin anew."""
        return Remembering(
            self.counted.restart(settings, rows), self.memory.restart(settings, rows)
        )


InitMemory = Callable[[Settings, Reference, int], Any]
Remember = Callable[[Any, Settings, Reference, Fused], Any]


def counting_with(
    init_memory: InitMemory, remember: Remember, counts: BeliefModel = COUNTING
) -> BeliefModel:
    """A belief that counts successes and failures, and remembers something besides.

    Args:
      init_memory: (settings, reference, num_domains) -> memory.
      remember: (memory, settings, reference, fused) -> memory; once a step.
      counts: the belief that counts; by default nothing is forgotten.
    """

    def init(settings: Settings, reference: Reference, num_domains: int) -> Remembering:
        memory = init_memory(settings, reference, num_domains)
        return Remembering(counts.init(settings, reference, num_domains), memory)

    def fuse(
        belief: Remembering, settings: Settings, reference: Reference, fused: Fused
    ) -> tuple[Remembering, BeliefInfo]:
        counted, info = counts.fuse(belief.counted, settings, reference, fused)
        memory = remember(belief.memory, settings, reference, fused)
        return Remembering(counted, memory), info

    def predict(belief: Remembering, settings: Settings, reference: Reference, rows: Any) -> Belief:
        return counts.predict(belief.counted, settings, reference, rows)

    def draw(
        rng_key: Array, belief: Remembering, settings: Settings, reference: Reference
    ) -> Array:
        return counts.draw(rng_key, belief.counted, settings, reference)

    return BeliefModel(init, fuse, predict, draw)


# --- static numbers of a factory -----------------------------------------------------------


def check_number(name: str, value: Any, least: float, most: float) -> float:
    """A static number in [least, most].

    Raises:
      ValueError: naming the argument and its value.
    """
    number = float(value)
    if not least <= number <= most:
        raise ValueError(f"{name}={value!r} must lie in [{least}, {most}]")
    return number


# --- equations -----------------------------------------------------------------------------


def group_rate(fused: Fused) -> Array:
    """f[C], s/n of this step; 0 where nothing was tried."""
    return safe_ratio(fused.successes, fused.trials)


def mean_abs_advantage(rate: Array) -> Array:
    """Mean |A| in a group of 0/1 rewards with mean p: 2 sqrt(p (1 - p)).

    A = (R - p) / sd R with sd R = sqrt(p (1 - p)); a share p of the rewards has
    |A| = (1 - p) / sd R, the others p / sd R. 0 in a group that is not mixed. Of graded
    rewards only the mean is known here, and this is an upper bound.
    """
    return 2 * jnp.sqrt(jnp.maximum(rate * (1 - rate), 0))


def static_difficulty(reference: Reference) -> Array:
    """f[C] in [0, 100]: 100 (1 - mean pass rate of the references that are known).

    A task of which nothing is known stands in the middle, at 50.
    """
    known = ~jnp.isnan(reference.rates)
    total = jnp.sum(jnp.where(known, reference.rates, 0), axis=0)
    mean = safe_ratio(total, jnp.sum(known, axis=0).astype(total.dtype), 0.5)
    return 100 * (1 - mean)


def chance_of_mixed(alpha: Array, beta: Array, rollouts: Array) -> Array:
    """E V = 1 - E p^m - E (1 - p)^m for p ~ Beta(alpha, beta): chance of a mixed group.

    For whole m, E p^m = prod over i < m of (alpha + i) / (alpha + beta + i), which keeps
    the precision that differences of lgamma lose at large counts. m is rounded.

    Args:
      alpha, beta: f[C].
      rollouts: f, m.
    """

    def times(i: Array, products: tuple[Array, Array]) -> tuple[Array, Array]:
        right, wrong = products
        step = i.astype(alpha.dtype)
        total = alpha + beta + step
        return right * (alpha + step) / total, wrong * (beta + step) / total

    tries = jnp.round(rollouts).astype(jnp.int32)
    one = jnp.ones_like(alpha)
    right, wrong = lax.fori_loop(jnp.int32(0), tries, times, (one, one))
    return 1 - right - wrong


def mixed_chance(rate: Array, rollouts: Array) -> Array:
    """V = 1 - p^m - (1 - p)^m: chance that m rollouts at rate p are not all alike."""
    return 1 - rate**rollouts - (1 - rate) ** rollouts


# --- drawing -------------------------------------------------------------------------------


def drawn_by(rng_key: Array, log_weights: Array) -> Array:
    """Scores whose B lowest are B draws without replacement, probability ~ exp(log_weights).

    Gumbel top-B (Kool et al. 2019). Weights of 0 (-inf) come last, in random order.
    """
    last = jnp.maximum(log_weights, _LEAST_LOG_WEIGHT)
    return -(last + gumbel(rng_key, log_weights.shape, log_weights.dtype))


# Far below any weight that can matter, and small enough for the noise to be seen beside it.
_LEAST_LOG_WEIGHT = -1e4


def free_rows(pool: PoolState) -> Array:
    """bool[C]: tasks that exist and are not in flight."""
    return pool.active & (pool.visit == NO_VISIT)


# --- the balance of visits -----------------------------------------------------------------


class Visits(NamedTuple):
    """How often each task was evaluated of late."""

    discounted: Array  # f[C], sum over its visits of keep ** (steps since)

    def restart(self, settings: Settings, rows: Array) -> Visits:
        """New tasks stand where the average task stands: no rush to visit them all."""
        mean = jnp.mean(self.discounted)
        return Visits(self.discounted.at[rows].set(mean, mode="drop"))


def no_visits(reference: Reference) -> Visits:
    """Nothing visited yet."""
    return Visits(jnp.zeros((reference.rates.shape[1],), reference.rates.dtype))


def count_visits(visits: Visits, fused: Fused, keep: float) -> Visits:
    """One step: discount, then add the visits of this step."""
    new = (fused.trials > 0).astype(visits.discounted.dtype)
    return Visits(keep * visits.discounted + new)


def excess_of_visits(visits: Visits, active: Array) -> Array:
    """f[C]: log((visits + 1) / (mean visits + 1)), the mean over the active tasks.

    The 1 keeps the logarithm of a task that was never visited finite.
    """
    mean = masked_mean(visits.discounted, active)
    return jnp.log1p(visits.discounted) - jnp.log1p(mean)


def uniform_noise(rng_key: Array, pool: PoolState) -> Array:
    """f[C] uniforms in [0, 1) of the pool's dtype."""
    return jax.random.uniform(rng_key, pool.active.shape, pool.trials.dtype)
