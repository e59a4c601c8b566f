"""XLand-MiniGrid: how wide to choose where levels are of several kinds. Resumable.

    python -m benchmarks.levels.xland             # what is missing of seeds 100 to 109
    python -m benchmarks.levels.xland --table     # the table

Environment, student and PPO are those of examples/xland_rulesets.py: 2,000 rulesets, of which a
tenth can be solved, and a quarter of these ask for an object that a rule must make first. 200
updates of 64 rulesets, 819,200 environment steps. A line of results/levels_xland.jsonl for each arm
and seed: solve rates on 400 held-out rulesets that can all be solved, ten times on the way; and at
the end on those among 4,000 held out whose object must be made ("made"). Arms:

    uniform
    oracle                  rulesets that can be solved, at random
    auto-C                  `auto(breadth=C)`, told nothing
    auto-C-kind             told two kinds: whether the object is to be held, and whether the
                            ruleset's rule makes it
    auto-C-there            told also whether the object is there, or is made: which can be solved
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import append, module_at, seeds_of
from benchmarks.levels.report import difference, interval, less, measure
from bots_jax import levels as bots_levels
from bots_jax.strategies import make_strategy

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "levels_xland.jsonl"
LEVELS, SOLVABLE, HELD_OUT, UPDATES, EVERY = 2000, 0.1, 400, 200, 20
ARMS = (
    *("uniform", "auto-.1", "auto-.5", "auto-.1-kind", "oracle", "auto-.3", "auto-.5-kind"),
    "auto-.1-there",
)
MEASURES = ("final", "auc", "made")


# the environment, the student and PPO
xland: Any = module_at(ROOT / "examples" / "xland_rulesets.py")


def kinds_of(pool: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """bool[N] each: the object is to be held; is made by the rule; is there at first."""
    goal = pool.goal[:, None, 1:3]
    made = jnp.all(pool.rules[:, :, 3:5] == goal, -1).any(1)
    return pool.goal[:, 0] == xland.HOLD, made, jnp.all(pool.init_tiles == goal, -1).any(1)


def known_of(arm: str, pool: Any) -> np.ndarray | None:
    """Kinds i32[N, F] that an arm is told of."""
    hold, made, there = kinds_of(pool)
    columns = {"kind": [hold, made], "there": [hold, made, there]}.get(arm.split("-")[-1])
    return None if columns is None else np.stack(columns, 1).astype(np.int32)


def selector_of(arm: str) -> Any:
    """The selector of an arm; the oracle is uniform over those that can be solved."""
    name, *rest = arm.split("-")
    numbers = {"breadth": float(rest[0])} if rest else {}
    rule = "uniform" if name == "oracle" else name
    return make_strategy(rule, batch_size=xland.SLOTS, rollouts=xland.EPISODES, **numbers)


def train(arm: str, key: jax.Array, state: Any, pool: Any, held_out: Any) -> Any:
    """The student, f[10] solve rates, and f[10], the share of slots on objects that are made."""
    selector = selector_of(arm)
    init_key, key = jax.random.split(key)
    student = xland.new_student(init_key, UPDATES)
    _, made, there = kinds_of(pool)
    eligible = made | there if arm == "oracle" else jnp.ones_like(made)

    def update(carry: Any, key: jax.Array) -> Any:
        student, state = carry
        select_key, play_key = jax.random.split(key)
        state, slots = bots_levels.sample(selector, select_key, state, eligible=eligible)
        rulesets = bots_levels.take(pool, slots.level_ids)
        window, last_value = xland.play(play_key, student, rulesets, xland.WINDOW)
        student = xland.learn(student, window, last_value)
        _, evidence = bots_levels.record(
            bots_levels.no_running(xland.SLOTS),
            window.done,
            window.reward > 0,
            slots.task_ids,
            slots.visit,
            episodes=xland.EPISODES,
        )
        state, _ = selector.update(state, evidence)
        return (student, state), jnp.mean(made[slots.level_ids])

    def stretch(carry: Any, key: jax.Array) -> Any:
        carry, share = jax.lax.scan(update, carry, jax.random.split(key, EVERY))
        rate = xland.solve_rate(jax.random.fold_in(key, 1), carry[0], held_out)
        return carry, (rate, share.mean())

    keys = jax.random.split(key, UPDATES // EVERY)
    (student, _), (rates, shares) = jax.lax.scan(stretch, (student, state), keys)
    return student, rates, shares


@jax.jit
def solved_made(key: jax.Array, student: Any, many: Any) -> jax.Array:
    """The solve rate of rulesets whose object must be made."""
    solved, made = xland.solved(key, student, many), kinds_of(many)[1]
    return jnp.sum(solved & made) / jnp.maximum(jnp.sum(made), 1)


def run_seed(arm: str, go: Any, seed: int) -> dict[str, Any]:
    """The record of one run."""
    pool_key, held_key, many_key, key = jax.random.split(jax.random.key(seed), 4)
    pool = xland.make_pool(pool_key, LEVELS, SOLVABLE)
    held_out = xland.make_pool(held_key, HELD_OUT, 1.0)
    many = xland.make_pool(many_key, 10 * HELD_OUT, 1.0)
    state = selector_of(arm).init(num_tasks=LEVELS, features=known_of(arm, pool))
    start = time.process_time()
    student, rates, shares = jax.block_until_ready(go(key, state, pool, held_out))
    seconds = round(time.process_time() - start, 1)
    made = float(solved_made(jax.random.fold_in(key, 1), student, many))
    print(arm, seed, float(rates[-1]), made, f"{seconds} s of processor time", flush=True)
    return {
        "arm": arm,
        "seed": seed,
        "solved": [round(float(x), 4) for x in rates],
        "made": round(made, 4),
        "share_made": [round(float(x), 4) for x in shares],
        "seconds": seconds,
    }


def table(path: Path) -> str:
    """In markdown: means, and differences from uniform paired by seed, with 95% intervals."""
    found: dict[str, dict[int, Any]] = {}
    for record in map(json.loads, path.read_text().splitlines()):
        record["solved"] = np.array(record["solved"])
        found.setdefault(record["arm"], {})[record["seed"]] = record
    head = ["arm", "seeds", *MEASURES, *(f"{name} less uniform" for name in MEASURES)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for arm in [arm for arm in ARMS if arm in found]:
        runs, base = found[arm], found.get("uniform", {})
        cells = [arm, str(len(runs))]
        cells += [f"{interval([measure(m, r) for r in runs.values()])[0]:.3f}" for m in MEASURES]
        cells += [difference(less(m, runs, base)) if arm != "uniform" else "" for m in MEASURES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", default="100-109")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(r["arm"], r["seed"]) for r in map(json.loads, lines)}
    for arm in args.arms:
        go = jax.jit(partial(train, arm))
        for seed in seeds_of(args.seeds):
            if (arm, seed) not in done:
                append(args.out, run_seed(arm, go, seed))


if __name__ == "__main__":
    main()
