"""Levels of jaxued's maze: every rule at equal environment steps. Resumable.

    python -m benchmarks.levels.run --pools 0.05 0.3 --rules uniform auto --seeds 100-109

A line of benchmarks/results/levels.jsonl for each pool, rule and seed; what is there already is
not run again. `python -m benchmarks.levels.report` makes the table and the figure of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.levels.rules import RULES, Pool, Rule, seeds_of

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "levels.jsonl"
LEVELS, HELD_OUT, UPDATES, EVERY = 4000, 400, 192, 8


def _example() -> Any:
    """examples/jaxued_maze.py: the environment, the student and PPO."""
    spec = importlib.util.spec_from_file_location("maze", ROOT / "examples" / "jaxued_maze.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maze = _example()


def make_pools(key: jax.Array, share: float, size: int = LEVELS) -> tuple[Pool, Any]:
    """The pool of a seed, and its held-out levels, which all can be solved."""
    pool_key, held_key = jax.random.split(key)
    levels, solvable = maze.make_pool(pool_key, size, share)
    held_out, _ = maze.make_pool(held_key, HELD_OUT, 1.0)
    return Pool(levels, solvable, jax.vmap(plain_features)(levels)), held_out


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


def train(
    rule: Rule, key: jax.Array, state: Any, pool: Pool, held_out: Any, updates: int
) -> tuple[jax.Array, jax.Array]:
    """Solve rates f[updates / 8] on held-out levels, and the share of slots on solvable levels."""
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
    return jax.lax.scan(stretch, carry, (keys, indices))[1]


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
def pools_of(seed: int, share: float) -> tuple[Pool, Any]:
    """The pool and held-out levels of a seed."""
    return jax.jit(make_pools, static_argnums=1)(jax.random.key(seed), share)


def run_seed(
    rule: Rule, run: Any, share: float, name: str, seed: int, updates: int
) -> dict[str, Any]:
    """The record of one run. One seed at a time: five at once take longer a seed on a CPU."""
    pool, held_out = pools_of(seed, share)
    key, rule_key = jax.random.split(jax.random.key(seed + 10_000))
    start = time.process_time()
    rates, shares = jax.block_until_ready(run(key, rule.init(rule_key, pool), pool, held_out))
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
        "seconds": seconds,
    }


def append(path: Path, record: dict[str, Any]) -> None:
    """A line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
