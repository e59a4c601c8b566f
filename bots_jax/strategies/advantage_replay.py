"""Replay of distinct tasks of large advantage, or not seen for long: after PLR.

    P(seen task)   = replay ((1 - c) w_s + c w_c),   P(unseen task) = (1 - replay) / unseen
    w_s proportional to (1 / rank) ** (1 / tau), rank 1 for the largest |A| of its last visit
    w_c proportional to the steps since its last visit

(arXiv 2010.03934, Prioritized Level Replay, eq. 1 to 4; settings of jaxued's maze example:
replay = 0.8, c = 0.3, tau = 0.3). The score is the mean |A| of the last group, in place of
the absolute temporal-difference errors of an episode.

Not PLR itself, which draws levels with replacement from a buffer of bounded size, so that few
levels fill a batch: that is `bots_jax.levels.plr`. Departures: the levels are the tasks of the
pool, so the buffer holds all that were seen; while nothing was seen all are new, and once
everything was, all are replayed; a batch is drawn without replacement; ties of |A| (all groups
that are not mixed) are ranked at random.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from bots_jax.checks import check_number
from bots_jax.compose import BeliefModel, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import among_allowed, drawn_by, mean_rate, uniform_noise
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.worth import group_rate, mean_abs_advantage
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Levels(NamedTuple):
    """What the last visit of each task came to, and when it was."""

    score: Array  # f[C], mean |A| of the last visit
    last: Array  # i32[C], the step of it; 0 for tasks never seen
    step: Array  # i32, steps so far

    def restart(self, settings: Settings, rows: Array, active: Array) -> Levels:
        """New tasks are unseen."""
        return self._replace(last=self.last.at[rows].set(0, mode="drop"))


@factory
def advantage_replay(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    temperature: ArrayLike = 0.3,
    staleness: float = 0.3,
    replay: float = 0.8,
    **shared: Unpack[Shared],
) -> Selector:
    """Replay of the tasks with the largest absolute advantage, mixed with new ones.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      temperature: tau of the ranks; 0 takes the largest score.
      staleness: c in [0, 1], static.
      replay: share of the draws that go to tasks seen before, static.
    """
    stale = check_number("staleness", staleness, 0, 1)
    again = check_number("replay", replay, 0, 1)

    def init(settings: Settings, reference: Reference, num_domains: int) -> Levels:
        capacity, dtype = reference.rates.shape[1], reference.rates.dtype
        never = jnp.zeros((capacity,), jnp.int32)
        return Levels(jnp.zeros((capacity,), dtype), never, jnp.zeros((), jnp.int32))

    def remember(
        memory: Levels, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> Levels:
        tried, step = fused.trials > 0, memory.step + 1
        score = jnp.where(tried, mean_abs_advantage(group_rate(fused)), memory.score)
        return Levels(score, jnp.where(tried, step, memory.last), step)

    def score(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array
    ) -> tuple[Array, Array]:
        rank_key, draw_key = jax.random.split(rng_key)
        ties = uniform_noise(rank_key, state.pool)
        tau = state.settings.temperature
        memory: Levels = state.belief.memory
        log_chance = log_replay_chances(memory, allowed, ties, tau, stale, again)
        return drawn_by(draw_key, log_chance), mean_rate(model, state)

    return compose(
        name="advantage-replay",
        model=counting_with(init, remember),
        choice=among_allowed(score),
        settings=counting_settings(rollouts, temperature=temperature),
        batch_size=batch_size,
        obeys=("temperature",),
        static={"staleness": stale, "replay": again},
        **shared,
    )


def log_replay_chances(
    memory: Levels, free: Array, ties: Array, tau: Array, staleness: float, replay: float
) -> Array:
    """f[C]: log of the probability with which each task is drawn first; -inf where not free.

    In logs, so that at small tau the second rank is still told from the third.

    Args:
      memory: scores and times.
      free: bool[C], tasks that may be drawn.
      ties: f[C], random numbers that order equal scores.
      tau: temperature of the ranks.
      staleness: c. replay: share of the draws for tasks that were seen.
    """
    seen, unseen = free & (memory.last > 0), free & (memory.last == 0)
    by_score = _log_shares(_log_rank_weights(memory.score, ties, tau, seen), seen)
    age = jnp.where(seen, memory.step - memory.last, 0).astype(by_score.dtype)
    # Where all were seen in the last step nobody is stale: all alike, as in jaxued.
    age = jnp.where(jnp.sum(age) > 0, age, 1)
    by_age = _log_shares(jnp.log(age), seen)
    again = jnp.logaddexp(_log(1 - staleness) + by_score, _log(staleness) + by_age)
    anew = _log_shares(jnp.zeros_like(again), unseen)
    share = jnp.where(jnp.any(unseen), replay, 1.0).astype(again.dtype)
    share = jnp.where(jnp.any(seen), share, 0)
    return jnp.where(seen, jnp.log(share) + again, jnp.log1p(-share) + anew)


def _log_rank_weights(score: Array, ties: Array, tau: Array, seen: Array) -> Array:
    """log (1 / rank) ** (1 / tau), rank 1 for the largest score of the seen tasks."""
    order = jnp.lexsort((ties, jnp.where(seen, -score, jnp.inf)))
    place = jnp.arange(1, score.shape[0] + 1, dtype=jnp.int32).astype(score.dtype)
    rank = jnp.zeros_like(score).at[order].set(place)
    return -jnp.log(rank) / jnp.maximum(tau, 1e-3)


def _log_shares(log_weights: Array, among: Array) -> Array:
    """Logs of weights normalised over some tasks; -inf elsewhere, and where there are none."""
    inside = jnp.where(among, log_weights, -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(jnp.any(among), inside, 0))
    return inside - total


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
