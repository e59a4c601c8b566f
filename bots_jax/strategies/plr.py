"""PLR, prioritised level replay: tasks of large advantage, or not seen for long.

    P(seen task)   = replay ((1 - c) w_s + c w_c),   P(unseen task) = (1 - replay) / unseen
    w_s proportional to (1 / rank) ** (1 / tau), rank 1 for the largest |A| of its last visit
    w_c proportional to the steps since its last visit

(arXiv 2010.03934, Prioritized Level Replay, eq. 1 to 4; settings of jaxued's maze example:
replay = 0.8, c = 0.3, tau = 0.3). The score is the mean |A| of the last group, in place of
the absolute temporal-difference errors of an episode.

Departures: the levels are the tasks of the pool, so the buffer holds all that were seen;
while nothing was seen all are new, and once everything was, all are replayed; a batch is
drawn without replacement; ties of |A| (all groups that are not mixed) are ranked at random.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.checks import check_settings
from bots_jax.compose import BeliefModel, Choice, compose, merge_settings
from bots_jax.numerics import safe_ratio
from bots_jax.pool import Fused
from bots_jax.reference import Reference
from bots_jax.selection import make_plan
from bots_jax.strategies.counting import counting_settings
from bots_jax.strategies.parts import (
    check_number,
    counting_with,
    drawn_by,
    free_rows,
    group_rate,
    mean_abs_advantage,
    uniform_noise,
)
from bots_jax.types import Array, ArrayLike, Selector, Settings, State


class Levels(NamedTuple):
    """What the last visit of each task came to, and when it was."""

    score: Array  # f[C], mean |A| of the last visit
    last: Array  # i32[C], the step of it; 0 for tasks never seen
    step: Array  # i32, steps so far

    def restart(self, settings: Settings, rows: Array) -> Levels:
        """New tasks are unseen."""
        return self._replace(last=self.last.at[rows].set(0, mode="drop"))


def plr(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    temperature: ArrayLike = 0.3,
    staleness: float = 0.3,
    replay: float = 0.8,
    num_domains: int | None = None,
    expiry: int | None = None,
    dtype: Any = None,
) -> Selector:
    """Replay of the tasks with the largest absolute advantage, mixed with new ones.

    Args:
      batch_size: B. rollouts: m. num_domains, expiry, dtype: as in `bots`.
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

    def remember(memory: Levels, settings: Settings, reference: Reference, fused: Fused) -> Levels:
        tried, step = fused.trials > 0, memory.step + 1
        score = jnp.where(tried, mean_abs_advantage(group_rate(fused)), memory.score)
        return Levels(score, jnp.where(tried, step, memory.last), step)

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        rank_key, draw_key = jax.random.split(rng_key)
        ties = uniform_noise(rank_key, state.pool)
        tau = state.settings.temperature
        chance = replay_chances(state.belief.memory, free_rows(state.pool), ties, tau, stale, again)
        mean = model.predict(state.belief, state.settings, state.reference, slice(None)).mean
        return drawn_by(draw_key, jnp.log(chance)), mean

    given = Settings(temperature=temperature)
    check_settings(given)
    return compose(
        name="plr",
        model=counting_with(init, remember),
        choice=Choice(score),
        settings=merge_settings(counting_settings(rollouts), given),
        plan=make_plan(batch_size, 0.0, None),
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
        static={"staleness": stale, "replay": again},
    )


def replay_chances(
    memory: Levels, free: Array, ties: Array, tau: Array, staleness: float, replay: float
) -> Array:
    """f[C]: the probability with which each task is drawn first; 0 where not free.

    Args:
      memory: scores and times.
      free: bool[C], tasks that may be drawn.
      ties: f[C], random numbers that order equal scores.
      tau: temperature of the ranks.
      staleness: c. replay: share of the draws for tasks that were seen.
    """
    seen, unseen = free & (memory.last > 0), free & (memory.last == 0)
    w_score = _shares(_rank_weights(memory.score, seen, ties, tau))
    age = jnp.where(seen, memory.step - memory.last, 0).astype(w_score.dtype)
    # Where all were seen in the last step nobody is stale: all alike, as in jaxued.
    age = jnp.where(jnp.sum(age) > 0, age, seen.astype(age.dtype))
    w_again = (1 - staleness) * w_score + staleness * _shares(age)
    share = jnp.where(jnp.any(unseen), replay, 1.0).astype(w_again.dtype)
    share = jnp.where(jnp.any(seen), share, 0)
    return share * w_again + (1 - share) * _shares(unseen.astype(w_again.dtype))


def _rank_weights(score: Array, seen: Array, ties: Array, tau: Array) -> Array:
    """(1 / rank) ** (1 / tau) of the seen tasks, 0 of the others."""
    order = jnp.lexsort((ties, jnp.where(seen, -score, jnp.inf)))
    place = jnp.arange(1, score.shape[0] + 1).astype(score.dtype)
    rank = jnp.zeros_like(score).at[order].set(place)
    weights = rank ** (-1 / jnp.maximum(tau, 1e-3))
    return jnp.where(seen, weights, 0)


def _shares(weights: Array) -> Array:
    return safe_ratio(weights, jnp.broadcast_to(jnp.sum(weights), weights.shape))
