"""The rules that choose which levels to play, behind one interface.

A rule is `init(key, pool) -> state`, which is not traced,
`choose(key, state, update) -> (state, ids i32[64], slots)` and
`tell(state, ids, slots, window, update) -> state`. `learns(update)` is False where the steps of
an update are spent on screening. Environment steps are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxued.level_sampler import LevelSampler
from jaxued.utils import compute_max_returns, max_mc

from bots_jax import levels as bots_levels
from bots_jax.features import of_levels
from bots_jax.strategies import make_strategy

SLOTS, EPISODES = 64, 2


class Rule(NamedTuple):
    """Which levels to play; pure functions."""

    init: Callable[..., Any]
    choose: Callable[..., Any]
    tell: Callable[..., Any]
    learns: Callable[[jax.Array], jax.Array] = lambda update: jnp.array(True)


class Pool(NamedTuple):
    """The levels of one seed, and what can be told of them."""

    levels: Any
    solvable: jax.Array  # bool[N]
    plain: jax.Array  # f[N, 4], see `run.plain_features`: no search for a way
    reach: jax.Array  # f[N, 6], and how many cells can be reached from the start
    way: jax.Array  # f[N, 2], whether there is a way, and the steps of the shortest


def first_episodes(slots: Any, done: jax.Array, outcome: jax.Array) -> Any:
    """Evidence of a window: the first `EPISODES` of each slot, solved or not, or their returns."""
    running = bots_levels.no_running(SLOTS)
    return bots_levels.record(
        running, done, outcome, slots.task_ids, slots.visit, episodes=EPISODES
    )[1]


def jaxued_sampler(capacity: int) -> LevelSampler:
    """jaxued's buffer of levels, with its defaults but for the capacity."""
    return LevelSampler(
        capacity,
        replay_prob=0.8,
        staleness_coeff=0.3,
        minimum_fill_ratio=0.5,
        prioritization="rank",
        prioritization_params={"temperature": 0.3},
        duplicate_check=True,
    )


def with_selector(name: str, told: str = "nothing", graded: bool = False, **numbers: Any) -> Rule:
    """A strategy of bots_jax, told nothing, the levels' arrays, or a field of the pool.

    graded: evidence is the return, 1 - .9 of the share of the steps that a solution took, in place
    of whether the level was solved.
    """
    selector = make_strategy(name, batch_size=SLOTS, rollouts=EPISODES, **numbers)

    def init(key: jax.Array, pool: Pool) -> Any:
        if told == "nothing":
            return selector.init(num_tasks=pool.solvable.shape[0])
        known = of_levels(pool.levels) if told == "arrays" else np.asarray(getattr(pool, told))
        return selector.init(features=known)

    def choose(key: jax.Array, state: Any, update: jax.Array) -> Any:
        state, slots = bots_levels.sample(selector, key, state)
        return state, slots.level_ids, slots

    def tell(state: Any, ids: jax.Array, slots: Any, window: Any, update: jax.Array) -> Any:
        told = window.reward if graded else window.reward > 0
        return selector.update(state, first_episodes(slots, window.done, told))[0]

    return Rule(init, choose, tell)


def half_for_solved(p: jax.Array, m: jax.Array) -> jax.Array:
    """Chance of some success among m, less half of that of nothing else.

    Where the return falls with the steps taken, levels that are always solved still teach.
    """
    return 1 - (1 - p) ** m - 0.5 * p**m


def solvable_alone() -> Rule:
    """The oracle: levels that can be solved, at random."""

    def choose(key: jax.Array, pool: Pool, update: jax.Array) -> Any:
        weights = pool.solvable / jnp.sum(pool.solvable)
        ids = jax.random.choice(key, weights.shape[0], (SLOTS,), p=weights)
        return pool, ids, ()

    return Rule(lambda key, pool: pool, choose, lambda state, *_: state)


def told_after_a_visit(share: float) -> Rule:
    """An oracle that must find the levels: it is told whether one can be solved once it was played.

    A share of the slots plays levels not yet visited, until all were; the others play, at random,
    those that can be solved of the visited ones.
    """
    new = round(share * SLOTS)

    def init(key: jax.Array, pool: Pool) -> Any:
        size = pool.solvable.shape[0]
        return jax.random.permutation(key, size), jnp.zeros((size,), bool), pool.solvable

    def choose(key: jax.Array, state: Any, update: jax.Array) -> Any:
        order, visited, solvable = state
        known = visited & solvable
        weights = jnp.where(jnp.any(known), known, True)
        old = jax.random.choice(key, order.size, (SLOTS,), p=weights / jnp.sum(weights))
        place = update * new + jnp.arange(SLOTS)
        unseen = order[jnp.minimum(place, order.size - 1)]
        ids = jnp.where((jnp.arange(SLOTS) < new) & (place < order.size), unseen, old)
        return (order, visited.at[ids].set(True), solvable), ids, ()

    return Rule(init, choose, lambda state, *_: state)


def jaxued_plr() -> Rule:
    """PLR as jaxued has it: its LevelSampler and its defaults, MaxMC, learning on new levels too.

    Capacity 1,000; new levels are drawn from the pool.
    """
    sampler = jaxued_sampler(1000)
    extra = {"max_return": jnp.zeros(())}

    def init(key: jax.Array, pool: Pool) -> Any:
        state = sampler.initialize(jnp.zeros((), jnp.int32), extra)
        state = jax.tree.map(lambda x: jnp.asarray(x), state)
        return state, jnp.asarray(pool.solvable.shape[0])

    def choose(key: jax.Array, state: Any, update: jax.Array) -> Any:
        buffer, size = state
        coin_key, new_key, old_key = jax.random.split(key, 3)
        replay = sampler.sample_replay_decision(buffer, coin_key)
        played, (places, old) = sampler.sample_replay_levels(buffer, old_key, SLOTS)
        buffer = jax.tree.map(lambda a, b: jnp.where(replay, a, b), played, buffer)
        new = jax.random.randint(new_key, (SLOTS,), 0, size)
        return (buffer, size), jnp.where(replay, old, new), (replay, places)

    def tell(state: Any, ids: jax.Array, slots: Any, window: Any, update: jax.Array) -> Any:
        buffer, size = state
        replay, places = slots
        best = compute_max_returns(window.done, window.reward)
        known = jnp.where(replay, sampler.get_levels_extra(buffer, places)["max_return"], 0)
        best = jnp.maximum(best, known)
        scores = max_mc(window.done, window.value, best)
        more = {"max_return": best}
        old = sampler.update_batch(buffer, places, scores, more)
        new, _ = sampler.insert_batch(buffer, ids, scores, more)
        return jax.tree.map(lambda a, b: jnp.where(replay, a, b), old, new), size

    return Rule(init, choose, tell)


def sfl(cycle: int = 16, screening: int = 4, keep: int = 64) -> Rule:
    """Sampling for learnability, its screening counted: a quarter of the steps.

    In each cycle the first updates play levels drawn from the pool without learning; those of
    highest p (1 - p) are kept, and half of each later batch is drawn from them.
    """
    room = screening * SLOTS

    def init(key: jax.Array, pool: Pool) -> Any:
        zeros = jnp.zeros((room,))
        return zeros.astype(jnp.int32), zeros, jnp.asarray(pool.solvable.shape[0])

    def choose(key: jax.Array, state: Any, update: jax.Array) -> Any:
        ids, worth, size = state
        new_key, pick_key = jax.random.split(key)
        new = jax.random.randint(new_key, (SLOTS,), 0, size)
        best = ids[jnp.argsort(-worth)[:keep]]
        kept = jax.random.choice(pick_key, best, (SLOTS,))
        from_kept = (jnp.arange(SLOTS) < SLOTS // 2) & learns(update)
        return state, jnp.where(from_kept, kept, new), ()

    def tell(state: Any, ids: jax.Array, slots: Any, window: Any, update: jax.Array) -> Any:
        known, worth, size = state
        wins = jnp.sum(window.done & (window.reward > 0), 0)
        rate = wins / jnp.maximum(jnp.sum(window.done, 0), 1)
        at = (update % cycle) * SLOTS
        screens = ~learns(update)
        at = jnp.where(screens, at, 0)
        put = partial(jax.lax.dynamic_update_slice, start_indices=(at,))
        known = jnp.where(screens, put(known, ids.astype(jnp.int32)), known)
        worth = jnp.where(screens, put(worth, rate * (1 - rate)), worth)
        return known, worth, size

    def learns(update: jax.Array) -> jax.Array:
        return update % cycle >= screening

    return Rule(init, choose, tell, learns)


RULES: dict[str, Callable[[], Rule]] = {
    "uniform": partial(with_selector, "uniform"),
    "plr": jaxued_plr,
    "sfl": sfl,
    "mopps": partial(with_selector, "mopps"),
    "bots": partial(with_selector, "bots"),
    "auto": partial(with_selector, "auto"),
    "auto-features": partial(with_selector, "auto", told="plain"),
    "auto-reach": partial(with_selector, "auto", told="reach"),
    "auto-way": partial(with_selector, "auto", told="way"),
    "auto-arrays": partial(with_selector, "auto", told="arrays"),
    "auto-half": partial(with_selector, "auto", worth=half_for_solved),
    "auto-features-half": partial(with_selector, "auto", told="plain", worth=half_for_solved),
    "auto-way-half": partial(with_selector, "auto", told="way", worth=half_for_solved),
    "auto-returns": partial(with_selector, "auto", graded=True),
    "auto-features-returns": partial(with_selector, "auto", told="plain", graded=True),
    "auto-.3": partial(with_selector, "auto", breadth=0.3),
    "oracle": solvable_alone,
    "oracle-after": partial(told_after_a_visit, share=0.5),
}
