"""Seconds of the first select and the first update, each in a fresh process without a cache.

After import and `init`, `bots()` and `auto()` as they come, on two reference models, counts out
of 16, a batch of 32. Beside them what a reader would write instead: `jax.jit` of a plain
`jax.random.beta` of all tasks, the B nearest the target, and `alpha.at[ids].add`. `compile_s` is
XLA's part, `programs` what it compiled. The sides run in turns; the median of `--rounds` is kept.

Run: python -m benchmarks.compile
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import save

SIDES = ("plain", "bots", "auto")
SIZES = (4_000, 1_000_000)
BATCH, ROLLOUTS = 32, 16
_COMPILED = "/jax/core/compile/backend_compile_duration"


def plain(size: int) -> Any:
    """Draw all, sort, add: a function of two that are compiled when they are first called."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def select(rng_key: Any, alpha: Any, beta: Any) -> Any:
        draws = jax.random.beta(rng_key, alpha, beta)
        return jnp.argsort(jnp.abs(draws - 0.5))[:BATCH]

    @jax.jit
    def update(alpha: Any, beta: Any, ids: Any, successes: Any) -> Any:
        forgotten = 0.9 * alpha + 0.1, 0.9 * beta + 0.1
        return forgotten[0].at[ids].add(successes), forgotten[1].at[ids].add(ROLLOUTS - successes)

    alpha, beta, successes = jnp.ones(size), jnp.ones(size), jnp.full(BATCH, 8.0)
    key = jax.random.key(0)
    jax.block_until_ready((key, alpha, beta, successes))
    return lambda: select(key, alpha, beta), lambda ids: update(alpha, beta, ids, successes)


def ours(method: str, size: int) -> Any:
    """The same two, of a selector."""
    import jax
    import numpy as np

    import bots_jax

    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(0, ROLLOUTS + 1, (2, size)), axis=0)
    rates = (counts / ROLLOUTS).astype(np.float32)
    selector = getattr(bots_jax, method)(batch_size=BATCH, rollouts=ROLLOUTS)
    state = selector.init(rates)
    rewards = rng.integers(0, 2, (BATCH, ROLLOUTS)).astype(np.float32)
    key = jax.random.key(0)
    jax.block_until_ready((key, state))

    def update(selected: Any) -> Any:
        state, batch = selected
        return selector.update(state, batch.evidence(rewards))

    return lambda: selector.select(key, state), update


def measure(side: str, size: int) -> dict[str, float]:
    """In this process, which is to be a fresh one."""
    begin = time.perf_counter()
    import jax

    compiled: list[float] = []

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            compiled.append(duration_secs)

    select, update = plain(size) if side == "plain" else ours(side, size)
    ready, spent = time.perf_counter(), time.process_time()
    jax.monitoring.register_event_duration_secs_listener(hear)
    selected = jax.block_until_ready(select())
    between = time.perf_counter()
    jax.block_until_ready(update(selected))
    end = time.perf_counter()
    return {
        "init_s": ready - begin,
        "select_s": between - ready,
        "update_s": end - between,
        "both_s": end - ready,
        "processor_s": time.process_time() - spent,
        "compile_s": sum(compiled),
        "programs": len(compiled),
    }


def in_fresh_process(side: str, size: int) -> dict[str, float]:
    """`measure` in a process of its own, whatever cache this one has."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "benchmarks.compile", "--side", side, "--size", str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Print and save a row a size and side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="compile", help="name of the JSON file; empty: none")
    parser.add_argument("--side", choices=SIDES, help="measure this alone, in this process")
    parser.add_argument("--size", type=int, default=SIZES[0])
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.size)))
        return
    rows = []
    for size in map(int, args.sizes):
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in args.sides}
        load = os.getloadavg()[0]
        for _ in range(args.rounds):
            for side in args.sides:
                runs[side].append(in_fresh_process(side, size))
        medians = {
            side: {name: statistics.median(run[name] for run in of_side) for name in of_side[0]}
            for side, of_side in runs.items()
        }
        for side, entry in medians.items():
            both = [run["both_s"] for run in runs[side]]
            row = {"size": size, "side": side, **entry, "least_s": min(both), "most_s": max(both)}
            if "plain" in medians:
                row["over_plain"] = entry["both_s"] / medians["plain"]["both_s"]
            row["load"] = load  # runnable processes in the minute before
            rows.append(row)
            figures = {k: round(v, 2) for k, v in row.items() if isinstance(v, float)}
            print(size, side, figures, flush=True)
    if args.out:
        save(args.out, rows)


if __name__ == "__main__":
    main()
