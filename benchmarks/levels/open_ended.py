"""Mazes that are generated as training goes: randomisation, PLR, ACCEL and `auto` with `insert`.

    python -m benchmarks.levels.open_ended --seeds 100-104   # benchmarks/results/levels_open.jsonl

The student, PPO, the evaluation and the environment steps are those of `benchmarks.levels.run`,
which this continues; a line for each rule and seed, and what is there already is not run again.
PLR and ACCEL are jaxued's: its LevelSampler and mutator, and the order of new, replayed and mutated
levels of its maze_plr.py. Where they do not learn from new levels (robust PLR, ACCEL), the steps
spent on these count all the same. `auto` spends none: levels that are new take the rows of the
least useful ones, and are played when it selects them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxued.environments.maze import make_level_generator, make_level_mutator_minimax
from jaxued.utils import compute_max_returns, max_mc

from benchmarks.common import append, seeds_of
from benchmarks.levels import run
from benchmarks.levels.rules import EPISODES, SLOTS, first_episodes, jaxued_sampler
from bots_jax import levels as bots_levels
from bots_jax.strategies import make_strategy

RESULTS = run.RESULTS.with_name("levels_open.jsonl")
CAPACITY, WALLS, EDITS = 1000, 25, 5
NEW, REPLAY, MUTATE = 0, 1, 2
maze = run.maze


class OpenRule(NamedTuple):
    """Which levels to play, and where new ones come from; pure functions.

    `init(key)`, not traced; `choose(key, state) -> (state, levels [64], slots, learns bool[])`;
    `tell(key, state, levels, slots, window) -> state`.
    """

    init: Callable[..., Any]
    choose: Callable[..., Any]
    tell: Callable[..., Any]


def generate(key: jax.Array, count: int) -> Any:
    """Random mazes, as those of the fixed pools before the choice of what can be solved."""
    make = jax.vmap(make_level_generator(maze.SIZE, maze.SIZE, WALLS))
    return jax.tree.map(jnp.asarray, make(jax.random.split(key, count)))


def mutate(key: jax.Array, parents: Any) -> Any:
    """jaxued's edits of mazes: walls flipped, the goal moved."""
    count = jax.tree.leaves(parents)[0].shape[0]
    edit = jax.vmap(make_level_mutator_minimax(EDITS), (0, 0, None))
    return edit(jax.random.split(key, count), parents, EDITS)


def randomisation() -> OpenRule:
    """New levels at each update."""

    def choose(key: jax.Array, state: Any) -> Any:
        return state, generate(key, SLOTS), (), jnp.array(True)

    return OpenRule(lambda key: (), choose, lambda key, state, *_: state)


def replay(robust: bool, accel: bool) -> OpenRule:
    """jaxued's PLR with MaxMC, robust PLR (no learning on new levels), or ACCEL.

    Its defaults, and a capacity of 1,000 for 190 updates instead of 4,000 for 30,000.
    """
    sampler = jaxued_sampler(CAPACITY)

    def init(key: jax.Array) -> Any:
        one = jax.tree.map(lambda x: x[0], generate(key, 1))
        buffer = sampler.initialize(one, {"max_return": jnp.zeros(())})
        buffer = jax.tree.map(jnp.asarray, buffer)
        return buffer, jnp.array(NEW), generate(key, SLOTS)  # the last: what was replayed last

    def choose(key: jax.Array, state: Any) -> Any:
        buffer, before, parents = state
        coin_key, level_key = jax.random.split(key)
        decided = sampler.sample_replay_decision(buffer, coin_key).astype(jnp.int32)
        branch = jnp.where(accel & (before == REPLAY), MUTATE, decided)
        none = jnp.zeros((SLOTS,), jnp.int32)

        def replayed(buffer: Any) -> Any:
            buffer, (places, old) = sampler.sample_replay_levels(buffer, level_key, SLOTS)
            return buffer, places.astype(jnp.int32), old

        buffer, places, chosen = jax.lax.switch(
            branch,
            [
                lambda buffer: (buffer, none, generate(level_key, SLOTS)),
                replayed,
                lambda buffer: (buffer, none, mutate(level_key, parents)),
            ],
            buffer,
        )
        parents = jax.tree.map(lambda a, b: jnp.where(branch == REPLAY, a, b), chosen, parents)
        learns = (branch == REPLAY) | (not robust)
        return (buffer, branch, parents), chosen, places, learns

    def tell(key: jax.Array, state: Any, chosen: Any, places: Any, window: Any) -> Any:
        buffer, branch, parents = state
        best = compute_max_returns(window.done, window.reward)
        known = sampler.get_levels_extra(buffer, places)["max_return"]
        best = jnp.maximum(best, jnp.where(branch == REPLAY, known, 0))
        scores, more = max_mc(window.done, window.value, best), {"max_return": best}
        buffer = jax.lax.cond(
            branch == REPLAY,
            lambda buffer: sampler.update_batch(buffer, places, scores, more),
            lambda buffer: sampler.insert_batch(buffer, chosen, scores, more)[0],
            buffer,
        )
        return buffer, branch, parents

    return OpenRule(init, choose, tell)


def with_insert(
    fresh: int, mutated: int, told: Callable[[Any], jax.Array] | None = None
) -> OpenRule:
    """`auto` over 1,000 rows; at each update random and mutated levels take the least useful.

    Parents are the levels of the batch that are believed to be nearest to .5 after it. `told` gives
    what it is told of a level, f[F].
    """
    selector = make_strategy("auto", batch_size=SLOTS, rollouts=EPISODES, representation="dense")
    features = None if told is None else jax.vmap(told)

    def init(key: jax.Array) -> Any:
        pool = generate(key, CAPACITY)
        if features is not None:
            return selector.init(features=np.asarray(features(pool))), pool
        return selector.init(num_tasks=CAPACITY), pool

    def choose(key: jax.Array, both: Any) -> Any:
        state, pool = both
        state, slots = bots_levels.sample(selector, key, state)
        levels = bots_levels.take(pool, slots.level_ids)
        return (state, pool), levels, slots, jnp.array(True)

    def tell(key: jax.Array, both: Any, chosen: Any, slots: Any, window: Any) -> Any:
        state, pool = both
        evidence = first_episodes(slots, window.done, window.reward > 0)
        state = selector.update(state, evidence)[0]
        new_key, edit_key = jax.random.split(key)
        born, parents = generate(new_key, fresh), jnp.full((fresh,), -1)
        if mutated:
            worth = bots_levels.usefulness(selector, state)[slots.level_ids]
            rows = slots.level_ids[jax.lax.top_k(worth, mutated)[1]]
            children = mutate(edit_key, bots_levels.take(pool, rows))
            born = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), born, children)
            parents = jnp.concatenate([parents, rows])
        known = None if features is None else features(born)
        state, pool, _ = bots_levels.insert(
            selector, state, pool, born, parents=parents, features=known
        )
        return state, pool

    return OpenRule(init, choose, tell)


RULES: dict[str, Callable[[], OpenRule]] = {
    "randomisation": randomisation,
    "plr": partial(replay, robust=False, accel=False),
    "robust-plr": partial(replay, robust=True, accel=False),
    "accel": partial(replay, robust=True, accel=True),
    "auto-new": partial(with_insert, fresh=32, mutated=0),
    "auto-mutated": partial(with_insert, fresh=8, mutated=24),
    "auto-mutated-features": partial(with_insert, fresh=8, mutated=24, told=run.plain_features),
    "auto-mutated-way": partial(with_insert, fresh=8, mutated=24, told=maze.shortest_way),
}


def train(rule: OpenRule, key: jax.Array, state: Any, held_out: Any, updates: int) -> Any:
    """The student, and f[updates / 8] each: solve rates on held-out levels; of the levels played,
    the share that can be solved, and the mean way of those.
    """
    student_key, key = jax.random.split(key)
    carry = maze.new_student(student_key, updates), state

    def update(carry: Any, key: jax.Array) -> Any:
        student, state = carry
        choose_key, play_key, tell_key = jax.random.split(key, 3)
        state, levels, slots, learns = rule.choose(choose_key, state)
        window, last = maze.play(play_key, maze.train_env, student, levels, maze.WINDOW)
        learnt = maze.learn(student, window, maze.advantages_of(window, last))
        student = jax.tree.map(lambda a, b: jnp.where(learns, a, b), learnt, student)
        state = rule.tell(tell_key, state, levels, slots, window)
        way = jax.vmap(maze.distance)(levels)
        can = way < maze.SIZE**2 - 1
        return (student, state), (jnp.mean(can), jnp.sum(way * can) / jnp.maximum(can.sum(), 1))

    def stretch(carry: Any, keys: jax.Array) -> Any:
        carry, (share, way) = jax.lax.scan(update, carry, keys)
        rate = maze.solve_rate(jax.random.fold_in(keys[0], 1), carry[0], held_out)
        return carry, (rate, share.mean(), way.mean())

    keys = jax.random.split(key, updates).reshape(updates // run.EVERY, run.EVERY)
    (student, _), told = jax.lax.scan(stretch, carry, keys)
    return student, *told


def run_seed(rule: OpenRule, go: Any, name: str, seed: int, updates: int) -> dict[str, Any]:
    """The record of one run; held-out levels are those of the fixed pools of the seed."""
    held_out = run.pools_of(seed, 0.05)[1]
    key, rule_key = jax.random.split(jax.random.key(seed + 20_000))
    start = time.process_time()
    student, rates, shares, ways = go(key, rule.init(rule_key), held_out.levels)
    end_key = jax.random.fold_in(key, 1)
    hard, made = jax.block_until_ready(run.at_the_end(end_key, student, held_out))
    seconds = round(time.process_time() - start, 1)
    print(name, seed, rates[-3:].mean(), hard, f"{seconds} s of processor time", flush=True)
    return {
        "pool": "open",
        "rule": name,
        "seed": seed,
        "updates": updates,
        "steps": maze.SLOTS * maze.WINDOW * run.EVERY,
        "solved": [round(float(x), 4) for x in rates],
        "solvable_share": [round(float(x), 4) for x in shares],
        "way": [round(float(x), 2) for x in ways],
        "hard": round(float(hard), 4),
        "hand_made": round(float(made), 4),
        "seconds": seconds,
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", default="100-104")
    parser.add_argument("--updates", type=int, default=run.UPDATES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(r["rule"], r["seed"]) for r in map(json.loads, lines)}
    for name in args.rules:
        missing = [seed for seed in seeds_of(args.seeds) if (name, seed) not in done]
        if missing:
            rule = RULES[name]()
            go = jax.jit(partial(train, rule, updates=args.updates))
        for seed in missing:
            append(args.out, run_seed(rule, go, name, seed, args.updates))


if __name__ == "__main__":
    main()
