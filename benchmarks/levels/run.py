"""Levels of jaxued's maze: every rule at equal environment steps. Resumable.

    python -m benchmarks.levels.run --pools 0.05 0.3 --rules uniform auto --seeds 100-109

A line of benchmarks/results/levels.jsonl for each pool, rule and seed; what is there already is
not run again. `python -m benchmarks.levels.report` makes the table and the figure of them.
Held-out levels are evaluated over the whole run; at its end also hard ones, whose ways are the
longest tenth, and jaxued's eight hand-made mazes of 13 x 13, ten tries of 250 steps each.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import append, module_at, seeds_of
from benchmarks.levels.rules import RULES, Pool, Rule

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "levels.jsonl"
LEVELS, HELD_OUT, UPDATES, EVERY = 4000, 400, 192, 8
HAND_MADE = (
    *("SixteenRooms", "SixteenRooms2", "Labyrinth", "LabyrinthFlipped", "Labyrinth2"),
    *("StandardMaze", "StandardMaze2", "StandardMaze3"),
)
TRIES, LONG = 10, 250  # of a hand-made maze, and steps of a try


# the environment, the student and PPO
maze: Any = module_at(ROOT / "examples" / "jaxued_maze.py")
from jaxued.environments import Maze  # noqa: E402  the example mends what jaxued imports
from jaxued.environments.maze.level import Level  # noqa: E402
from jaxued.environments.maze.level import prefabs as PREFABS  # noqa: E402
from jaxued.wrappers import AutoReplayWrapper  # noqa: E402

large_env = AutoReplayWrapper(Maze(max_height=13, max_width=13, agent_view_size=5))
large_params = maze.params_of_env.replace(max_steps_in_episode=LONG)


class HeldOut(NamedTuple):
    """Levels to evaluate on, which all can be solved."""

    levels: Any  # 400 as they come
    hard: Any  # 400 of the longest ways among 4,000
    hand_made: Any  # jaxued's, each ten times


def make_pools(key: jax.Array, share: float, size: int = LEVELS) -> tuple[Pool, HeldOut]:
    """The pool of a seed, and its held-out levels."""
    pool_key, held_key = jax.random.split(key)
    levels, solvable = maze.make_pool(pool_key, size, share)
    held_out, _ = maze.make_pool(held_key, HELD_OUT, 1.0)
    many, _ = maze.make_pool(jax.random.fold_in(held_key, 1), 10 * HELD_OUT, 1.0)
    _, longest = jax.lax.top_k(jax.vmap(maze.distance)(many), HELD_OUT)
    made = jax.tree.map(lambda x: jnp.tile(x, (TRIES,) + (1,) * (x.ndim - 1)), hand_made())
    plain, reach = jax.vmap(plain_features)(levels), jax.vmap(cells_reached)(levels)[:, None]
    known = (
        plain,
        jnp.concatenate([plain, reach, jnp.log(reach)], axis=1),
        jax.vmap(maze.shortest_way)(levels),
    )
    held = HeldOut(held_out, jax.tree.map(lambda x: x[longest], many), made)
    return Pool(levels, solvable, *known), held


def hand_made() -> Any:
    """jaxued's mazes of 13 x 13, stacked."""
    made = [Level.from_str(PREFABS[name]) for name in HAND_MADE]
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *made)


def plain_features(level: Any) -> jax.Array:
    """f[4]: walls, straight distance, and closed sides of the start and of the goal."""
    apart = level.agent_pos.astype(jnp.int32) - level.goal_pos.astype(jnp.int32)
    closed = jnp.pad(level.wall_map, 1, constant_values=True)

    def sides(at: jax.Array) -> jax.Array:
        x, y = at[0] + 1, at[1] + 1
        return jnp.sum(
            jnp.stack([closed[y - 1, x], closed[y + 1, x], closed[y, x - 1], closed[y, x + 1]])
        )

    told = [
        jnp.sum(level.wall_map),
        jnp.sum(jnp.abs(apart)),
        sides(level.agent_pos),
        sides(level.goal_pos),
    ]
    return jnp.stack(told).astype(jnp.float32)


def cells_reached(level: Any) -> jax.Array:
    """f: how many cells can be reached from the start."""
    return jnp.sum(maze.flood(level)[-1]).astype(jnp.float32)


def train(
    rule: Rule, key: jax.Array, state: Any, pool: Pool, held_out: Any, updates: int
) -> tuple[Any, jax.Array, jax.Array]:
    """The student, solve rates f[updates / 8], and the share of slots on solvable levels."""
    student_key, key = jax.random.split(key)
    carry = maze.new_student(student_key, updates), state

    def update(carry: Any, now: Any) -> Any:
        key, index = now
        student, state = carry
        choose_key, play_key = jax.random.split(key)
        state, ids, slots = rule.choose(choose_key, state, index)
        levels = jax.tree.map(lambda x: x[ids], pool.levels)
        window, last = maze.play(play_key, maze.train_env, student, levels, maze.WINDOW)
        learnt = maze.learn(student, window, maze.advantages_of(window, last))
        learns = rule.learns(index)
        student = jax.tree.map(lambda a, b: jnp.where(learns, a, b), learnt, student)
        state = rule.tell(state, ids, slots, window, index)
        return (student, state), jnp.mean(pool.solvable[ids])

    def stretch(carry: Any, now: Any) -> Any:
        carry, share = jax.lax.scan(update, carry, now)
        rate = maze.solve_rate(jax.random.fold_in(now[0][0], 1), carry[0], held_out)
        return carry, (rate, share.mean())

    keys = jax.random.split(key, updates).reshape(updates // EVERY, EVERY)
    indices = jnp.arange(updates).reshape(updates // EVERY, EVERY)
    (student, _), (rates, shares) = jax.lax.scan(stretch, carry, (keys, indices))
    return student, rates, shares


@jax.jit
def at_the_end(key: jax.Array, student: Any, held_out: HeldOut) -> tuple[jax.Array, jax.Array]:
    """Solve rates of hard and of hand-made levels."""
    hard_key, made_key = jax.random.split(key)
    hard = maze.solve_rate(hard_key, student, held_out.hard)
    made = maze.solve_rate(made_key, student, held_out.hand_made, large_env, large_params)
    return hard, made


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=float, nargs="+", default=[0.05, 0.3, 0.6])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", default="100-109")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(r["pool"], r["rule"], r["seed"]) for r in map(json.loads, lines)}
    runs: dict[str, Any] = {}
    for share in args.pools:
        for name in args.rules:
            for seed in seeds_of(args.seeds):
                if (share, name, seed) in done:
                    continue
                if name not in runs:
                    rule = RULES[name]()
                    runs[name] = rule, jax.jit(partial(train, rule, updates=args.updates))
                rule, run = runs[name]
                append(args.out, run_seed(rule, run, share, name, seed, args.updates))


@lru_cache(maxsize=16)
def pools_of(seed: int, share: float) -> tuple[Pool, HeldOut]:
    """The pool and held-out levels of a seed."""
    return jax.jit(make_pools, static_argnums=1)(jax.random.key(seed), share)


def run_seed(
    rule: Rule, run: Any, share: float, name: str, seed: int, updates: int
) -> dict[str, Any]:
    """The record of one run. One seed at a time: five at once take longer a seed on a CPU."""
    pool, held_out = pools_of(seed, share)
    key, rule_key = jax.random.split(jax.random.key(seed + 10_000))
    start = time.process_time()
    student, rates, shares = run(key, rule.init(rule_key, pool), pool, held_out.levels)
    hard, made = jax.block_until_ready(at_the_end(jax.random.fold_in(key, 1), student, held_out))
    seconds = round(time.process_time() - start, 1)
    print(share, name, seed, rates[-3:].mean(), f"{seconds} s of processor time", flush=True)
    return {
        "pool": share,
        "rule": name,
        "seed": seed,
        "updates": updates,
        "steps": maze.SLOTS * maze.WINDOW * EVERY,
        "solved": [round(float(x), 4) for x in rates],
        "solvable_share": [round(float(x), 4) for x in shares],
        "hard": round(float(hard), 4),
        "hand_made": round(float(made), 4),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
