"""What features cost: making them of prompts, a pool of a million tasks with them, and a step.

Run: python -m benchmarks.features_text [--tasks 1000000] [--prompts 100000] [--rounds 9]

Out: a table, and results/features_text.json. Prompts are made of the words of a small vocabulary,
some 40 a prompt. Steps of auto (select and update, batch 64) with 32
features and without alternate, so that a busy machine hits both alike; medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.common import alternate, save
from bots_jax import Selector, auto, features

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


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    prompts = make_prompts(options.prompts)
    seconds, columns = timed(lambda: features.text(prompts))
    row: dict[str, Any] = {"prompts": len(prompts), "text_s": round(seconds, 2)}
    row["text_shape"] = list(columns.shape)
    numbers = np.random.default_rng(0).standard_normal((options.tasks, COLUMNS), np.float32)
    selector = auto(batch_size=BATCH, rollouts=ROLLOUTS)
    seconds, told = timed(lambda: selector.init(features=numbers, num_tasks=options.tasks))
    row |= {"tasks": options.tasks, "columns": COLUMNS, "init_s": round(seconds, 2)}
    plain = selector.init(num_tasks=options.tasks)
    for name, state in (("told", told), ("plain", plain)):
        row[f"{name}_mib"] = round(sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20, 1)
    sides = {"told": stepper(selector, told), "plain": stepper(selector, plain)}
    times = alternate(sides, options.rounds)
    row |= {f"{name}_ms": round(value, 2) for name, value in times.items()}
    row["ratio"] = round(times["told"] / times["plain"], 2)
    print(row)
    save("features_text", [row])


if __name__ == "__main__":
    main()
