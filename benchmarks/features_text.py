"""What features cost: making them of prompts, a pool of a million tasks with them, and a step.

Run: python -m benchmarks.features_text [--tasks 1000000] [--prompts 100000] [--rounds 15]

Out: a table, and results/features_text.json. Prompts are made of the words of a small vocabulary,
some 40 a prompt. Steps of auto (select and update, batch 64) with 32
features and without alternate, so that a busy machine hits both alike; medians of the time on the
wall and of the processor's (all threads), which does not depend on who else is running.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.common import save
from bots_jax import Selector, auto, features
from bots_jax.pool.reference import FEATURES_DTYPES

BATCH, ROLLOUTS, COLUMNS = 64, 8, 32


def make_prompts(count: int) -> list[str]:
    """Prompts of words drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 5000)])
    share = 1 / np.arange(1, 5001)
    lengths = rng.integers(20, 60, count)
    drawn = words[rng.choice(5000, lengths.sum(), p=share / share.sum())]
    parts = np.split(drawn, np.cumsum(lengths)[:-1])
    return [" ".join(part) for part in parts]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    begin = time.perf_counter()
    found = jax.block_until_ready(run())
    return time.perf_counter() - begin, found


def stepper(selector: Selector, state: Any) -> Callable[[], Any]:
    """One step from the same state: select, and update by outcomes drawn beforehand."""
    rewards = np.random.default_rng(1).random((BATCH, ROLLOUTS)) < 0.5

    def step() -> Any:
        opened, batch = selector.select(jax.random.key(0), state)
        return selector.update(opened, batch.evidence(rewards))

    return step


def measure(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each side, on the wall and of the processor, in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in sides.values():
        jax.block_until_ready(run())  # compile
    for _ in range(rounds):
        for name, run in sides.items():
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            end = time.perf_counter(), time.process_time()
            times[name].append((1e3 * (end[0] - begin[0]), 1e3 * (end[1] - begin[1])))
    return {
        name: (statistics.median(x for x, _ in pairs), statistics.median(x for _, x in pairs))
        for name, pairs in times.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    prompts = make_prompts(options.prompts)
    before = time.process_time()
    seconds, columns = timed(lambda: features.text(prompts))
    text = {"text_s": seconds, "text_cpu_s": time.process_time() - before}
    text = {what: round(value, 2) for what, value in text.items()}
    rows: list[dict[str, Any]] = [
        {"prompts": len(prompts), **text, "text_shape": list(columns.shape)}
    ]
    numbers = np.random.default_rng(0).standard_normal((options.tasks, COLUMNS), np.float32)
    held: dict[str, dict[str, Any]] = {}
    sides = {}
    for stored_in in (None, *FEATURES_DTYPES):
        name = stored_in or "without"
        selector = auto(batch_size=BATCH, rollouts=ROLLOUTS, features_dtype=stored_in)
        given: dict[str, Any] = {} if stored_in is None else {"features": numbers}
        before = time.process_time()
        seconds, state = timed(partial(selector.init, num_tasks=options.tasks, **given))
        mib = sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20
        init = {"init_s": seconds, "init_cpu_s": time.process_time() - before, "state_mib": mib}
        held[name] = {what: round(value, 2) for what, value in init.items()}
        sides[name] = stepper(selector, state)
    times = measure(sides, options.rounds)
    for name, (wall, processor) in times.items():
        row = {"tasks": options.tasks, "columns": COLUMNS, "features": name, **held[name]}
        row |= {"step_ms": round(wall, 2), "step_cpu_ms": round(processor, 2)}
        row |= {
            "ratio": round(wall / times["without"][0], 2),
            "ratio_cpu": round(processor / times["without"][1], 2),
        }
        rows.append(row)
        print(row)
    save("features_text", rows)


if __name__ == "__main__":
    main()
