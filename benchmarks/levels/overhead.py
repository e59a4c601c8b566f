"""What selecting and recording cost, beside an update of the student on the same levels.

python -m benchmarks.levels.overhead     # benchmarks/results/levels_overhead.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import no_options
from benchmarks.levels.rules import RULES
from benchmarks.levels.run import RESULTS, make_pools, maze

NAMES = ("uniform", "auto", "auto-features", "bots", "mopps", "plr")


def median_ms(step: Callable[[Any], Any], carry: Any, times: int) -> float:
    """Median milliseconds of a step, compiled before."""
    carry = jax.block_until_ready(step(carry))
    took = []
    for _ in range(times):
        start = time.perf_counter()
        carry = jax.block_until_ready(step(carry))
        took.append(time.perf_counter() - start)
    return round(1000 * float(np.median(took)), 3)


def main() -> None:
    """Measure and write."""
    pool, _ = jax.jit(make_pools, static_argnums=1)(jax.random.key(0), 0.05)
    student = maze.new_student(jax.random.key(1), 100)
    some = jax.tree.map(lambda x: x[: maze.SLOTS], pool.levels)
    window, _ = jax.jit(
        lambda student: maze.play(jax.random.key(2), maze.train_env, student, some, maze.WINDOW)
    )(student)

    @jax.jit
    def train(student: Any) -> Any:
        window, last = maze.play(jax.random.key(2), maze.train_env, student, some, maze.WINDOW)
        return maze.learn(student, window, maze.advantages_of(window, last))

    told = {"train": median_ms(train, student, 20)}
    for name in NAMES:
        rule = RULES[name]()

        @jax.jit
        def select(carry: Any, rule: Any = rule) -> Any:
            key, state, update = carry
            key, choose_key = jax.random.split(key)
            state, ids, slots = rule.choose(choose_key, state, update)
            state = rule.tell(state, ids, slots, window, update)
            return key, state, update + 1

        carry = jax.random.key(3), rule.init(jax.random.key(4), pool), jnp.zeros((), jnp.int32)
        told[name] = median_ms(select, carry, 100)
        print(name, told[name], "ms;", f"{told[name] / told['train']:.1%} of an update", flush=True)
    (RESULTS.parent / "levels_overhead.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    no_options(__doc__)
    main()
