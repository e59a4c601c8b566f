"""A selector with the interface of jaxued's LevelSampler.

In: success rates where jaxued hands over regrets. Out: the same calls and the same dict,
`{levels, state, timestamps, episode_count, levels_extra}`, through jit and scan. Three lines of a
training loop change: the sampler that is made, and the two scores, which become success rates
(`success_rate(dones, rewards)`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bots_jax.checks import wide_float
from bots_jax.levels.pool import NO_LEVEL, insert, sample, take
from bots_jax.levels.record import no_running, record
from bots_jax.types import Array, ArrayLike, Evidence, PyTree, Selector

Sampler = dict[str, Any]


def success_rate(dones: ArrayLike, rewards: ArrayLike, episodes: int | None = 1) -> Array:
    """f[S]: share of the first `episodes` of each slot that were solved, NaN where none ended.

    Args:
      dones: bool[T, S].
      rewards: f[T, S]; an episode is solved if its last reward is positive.
      episodes: as in `record`; as many as always fit into the window, or the first alone.
    """
    dones, solved = jnp.asarray(dones), jnp.asarray(rewards) > 0
    slots = jnp.arange(dones.shape[1], dtype=jnp.int32)
    _, told = record(no_running(dones.shape[1]), dones, solved, slots, episodes=episodes)
    trials = jnp.asarray(told.trials)
    return jnp.where(trials > 0, told.successes / jnp.maximum(trials, 1), jnp.nan)


class LevelSampler:
    """Level replay chosen by a selector, with the methods of jaxued's LevelSampler.

    Args:
      selector: of batches of as many levels as `sample_replay_levels` is asked for.
      capacity: C, rows of the buffer.
      replay_prob: chance that `sample_replay_decision` says replay, once filled enough.
      minimum_fill_ratio: share of the rows that must be filled before.
      trials: episodes behind each success rate.
    """

    def __init__(
        self,
        selector: Selector,
        capacity: int,
        replay_prob: float = 0.95,
        minimum_fill_ratio: float = 1.0,
        trials: float = 1.0,
    ) -> None:
        """See the class."""
        self.selector, self.capacity = selector, capacity
        self.replay_prob, self.minimum_fill_ratio = replay_prob, minimum_fill_ratio
        self.trials = trials

    def initialize(self, pholder_level: PyTree, pholder_level_extra: PyTree = None) -> Sampler:
        """An empty buffer of rows shaped as the placeholder."""

        def rows(x: ArrayLike) -> Array:
            return jnp.repeat(jnp.asarray(x)[None], self.capacity, 0)

        state = self.selector.init(num_tasks=self.capacity)
        pool = state.pool._replace(
            active=jnp.zeros_like(state.pool.active),
            domain_sizes=jnp.zeros_like(state.pool.domain_sizes),
            next_fresh=jnp.zeros_like(state.pool.next_fresh),
        )
        return {
            "levels": jax.tree.map(rows, pholder_level),
            "state": state._replace(pool=pool),
            "timestamps": jnp.zeros((self.capacity,), jnp.int32),
            "episode_count": jnp.zeros((), jnp.int32),
            "levels_extra": jax.tree.map(rows, pholder_level_extra),
        }

    def sample_replay_decision(self, sampler: Sampler, rng: Array) -> Array:
        """bool: whether to replay; else play new levels."""
        filled = jnp.mean(sampler["state"].pool.active.astype(jnp.float32))
        return (filled >= self.minimum_fill_ratio) & (jax.random.uniform(rng) < self.replay_prob)

    def sample_replay_levels(
        self, sampler: Sampler, rng: Array, num: int
    ) -> tuple[Sampler, tuple[Array, PyTree]]:
        """The sampler, i32[num] rows and their levels, in flight until `update_batch`.

        Raises:
          ValueError: if `num` is not a multiple of the selector's batch size.
        """
        batch = self.selector.static["batch_size"]
        if num % batch:
            raise ValueError(f"num={num} is no multiple of the selector's batch_size={batch}")
        state, slots = sample(self.selector, rng, sampler["state"], num // batch)
        count = sampler["episode_count"] + num
        played = sampler["timestamps"].at[slots.level_ids].set(count)
        sampler = {**sampler, "state": state, "timestamps": played, "episode_count": count}
        return sampler, (slots.level_ids, take(sampler["levels"], slots.level_ids))

    def update_batch(
        self, sampler: Sampler, level_inds: Array, scores: Array, level_extras: PyTree = None
    ) -> Sampler:
        """Report success rates f[num] of replayed levels; NaN: no episode ended.

        What is no rate in [0, 1], such as a regret, is taken for NaN.
        """
        evidence = self._evidence(level_inds, scores)
        state, _ = self.selector.update(sampler["state"], evidence)
        return self._set_extra({**sampler, "state": state}, level_inds, level_extras)

    def insert_batch(
        self, sampler: Sampler, levels: PyTree, scores: Array, level_extras: PyTree = None
    ) -> tuple[Sampler, Array]:
        """Insert new levels and their success rates, in free rows or those of the least useful.

        A level is worth p (1 - p) of (successes + 1) / (trials + 2), and is inserted where that is
        more than what the level whose row it takes is believed to be worth. i32[num] rows, -1
        where not.
        """
        wins, trials = self._counts(scores)
        rate = (wins + 1) / (trials + 2)
        state, pool, rows = insert(
            self.selector, sampler["state"], sampler["levels"], levels, worth=rate * (1 - rate)
        )
        state, _ = self.selector.update(state, self._evidence(rows, scores))
        count = sampler["episode_count"] + rows.shape[0]
        at = jnp.where(rows >= 0, rows, self.capacity)
        played = sampler["timestamps"].at[at].set(count, mode="drop")
        sampler = {
            **sampler,
            "levels": pool,
            "state": state,
            "timestamps": played,
            "episode_count": count,
        }
        return self._set_extra(sampler, rows, level_extras), rows

    def get_levels(self, sampler: Sampler, level_idx: ArrayLike) -> PyTree:
        """The levels of some rows."""
        return take(sampler["levels"], level_idx)

    def get_levels_extra(self, sampler: Sampler, level_idx: ArrayLike) -> PyTree:
        """The extra data stored with the levels of some rows."""
        return take(sampler["levels_extra"], level_idx)

    def _evidence(self, rows: Array, scores: Array) -> Evidence:
        wins, trials = self._counts(scores)
        ids = jnp.where(rows >= 0, rows, NO_LEVEL)
        # A replay is over with its window, whether an episode ended in it or not.
        over = jnp.full_like(trials, jnp.inf)
        return Evidence(ids, wins, trials, attempts=over)

    def _counts(self, scores: Array) -> tuple[Array, Array]:
        """Successes and trials behind success rates."""
        scores = jnp.asarray(scores)
        scores = scores.astype(wide_float(scores.dtype))
        rates = (scores >= 0) & (scores <= 1)
        trials = jnp.where(rates, self.trials, 0.0).astype(scores.dtype)
        return jnp.where(rates, scores, 0) * trials, trials

    def _set_extra(self, sampler: Sampler, rows: Array, extras: PyTree) -> Sampler:
        if extras is None:
            return sampler
        at = jnp.where(rows >= 0, rows, self.capacity)
        kept = jax.tree.map(
            lambda old, new: old.at[at].set(new, mode="drop"), sampler["levels_extra"], extras
        )
        return {**sampler, "levels_extra": kept}
