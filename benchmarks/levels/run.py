"""Levels of jaxued's maze: every rule at equal environment steps. Resumable.

    python -m benchmarks.levels.run --pools 0.05 0.3 --rules uniform auto --seeds 100-104

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
    walls = jnp.sum(levels.wall_map, (1, 2)).astype(jnp.float32)
    apart = levels.agent_pos.astype(jnp.int32) - levels.goal_pos.astype(jnp.int32)
    return Pool(levels, solvable, walls, jnp.sum(jnp.abs(apart), 1).astype(jnp.float32)), held_out


def train(rule: Rule, key: jax.Array, pool: Pool, held_out: Any, updates: int) -> Any:
    """Solve rates f[updates / 8] on held-out levels, and the share of slots on solvable levels."""
    student_key, rule_key, key = jax.random.split(key, 3)
    carry = maze.new_student(student_key, updates), rule.init(rule_key, pool)

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
    parser.add_argument("--seeds", default="100-104")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--batch", type=int, default=5, help="seeds run as one program")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(r["pool"], r["rule"], r["seed"]) for r in map(json.loads, lines)}
    runs: dict[str, Any] = {}
    for share in args.pools:
        for name in args.rules:
            missing = [seed for seed in seeds_of(args.seeds) if (share, name, seed) not in done]
            for start in range(0, len(missing), args.batch):
                seeds = missing[start : start + args.batch]
                if name not in runs:
                    runs[name] = compiled(RULES[name](), args.updates)
                append(args.out, run_seeds(runs[name], share, name, seeds, args.updates))


def compiled(rule: Rule, updates: int) -> Any:
    """A run of several seeds as one program."""
    return jax.jit(jax.vmap(lambda key, pool, held: train(rule, key, pool, held, updates)))


@lru_cache(maxsize=4)
def pools_of(seeds: tuple[int, ...], share: float) -> tuple[Pool, Any]:
    """The pools and held-out levels of several seeds, [seeds, ...]."""
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    return jax.jit(jax.vmap(partial(make_pools, share=share)))(keys)


def run_seeds(
    run: Any, share: float, name: str, seeds: list[int], updates: int
) -> list[dict[str, Any]]:
    """A record a seed."""
    pool, held_out = pools_of(tuple(seeds), share)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds) + 10_000)
    start = time.perf_counter()
    rates, shares = jax.block_until_ready(run(keys, pool, held_out))
    seconds = round((time.perf_counter() - start) / len(seeds), 1)
    print(share, name, seeds, rates[:, -3:].mean(1), f"{seconds} s a seed", flush=True)
    return [
        {
            "pool": share,
            "rule": name,
            "seed": seed,
            "updates": updates,
            "steps": maze.SLOTS * maze.WINDOW * EVERY,
            "solved": [round(float(x), 4) for x in rates[row]],
            "solvable_share": [round(float(x), 4) for x in shares[row]],
            "seconds": seconds,
        }
        for row, seed in enumerate(seeds)
    ]


def append(path: Path, records: list[dict[str, Any]]) -> None:
    """A line of JSON each."""
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    main()
