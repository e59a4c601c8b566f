"""Calls of `select` and `update` beside one jitted step: what a user's own code gets.

Run: python -m benchmarks.eager [--size 1e6]

All sides take turns in one process: `select` then `update` as two plain calls; as two calls in
place, `jax.jit(selector.select, donate_argnums=1)` and `jax.jit(selector.update,
donate_argnums=0)`; `next_batch` and `observe` of a `TaskSampler`; and both in one jitted function
whose state is donated. Prints the ratios to the last and writes results/eager.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import save
from bots_jax import Evidence, State, auto, bots
from bots_jax.adapters import TaskSampler

BATCH, ROLLOUTS = 512, 16
ONE_STEP = "one step"


def sides(method: Callable[..., Any], size: int) -> dict[str, Callable[[], Any]]:
    """A step of each side; each keeps a state of its own."""
    selector = method(batch_size=BATCH, rollouts=ROLLOUTS, representation="dense")
    reference = np.sort(np.random.default_rng(0).random((2, size), np.float32), axis=0)
    solved = jnp.full((BATCH,), ROLLOUTS / 2)
    keys = iter(jax.random.split(jax.random.key(0), 10_000))

    def step_of(select: Any, update: Any) -> Callable[[State, jax.Array], State]:
        def step(state: State, key: jax.Array) -> State:
            state, batch = select(key, state)
            evidence = Evidence(batch.task_ids, solved, ROLLOUTS, batch.visit)
            new: State = update(state, evidence)[0]
            return new

        return step

    def turns(step: Callable[[State, jax.Array], State]) -> Callable[[], None]:
        state = selector.init(reference)

        def turn() -> None:
            nonlocal state
            state = jax.block_until_ready(step(state, next(keys)))

        return turn

    plain = step_of(selector.select, selector.update)
    in_place = step_of(
        jax.jit(selector.select, donate_argnums=1), jax.jit(selector.update, donate_argnums=0)
    )
    sampler = TaskSampler(selector, reference)

    def by_sampler() -> None:
        batch = sampler.next_batch()  # ends the step before
        sampler.observe(batch.task_ids, np.full(BATCH, ROLLOUTS / 2), ROLLOUTS, batch.visits)

    return {
        "plain calls": turns(plain),
        "calls in place": turns(in_place),
        "TaskSampler": by_sampler,
        ONE_STEP: turns(jax.jit(plain, donate_argnums=0)),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1e6)
    parser.add_argument("--turns", type=int, default=40)
    args = parser.parse_args()
    told: dict[str, Any] = {"size": int(args.size)}
    for method in (bots, auto):
        steps = sides(method, int(args.size))
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(args.turns + 3):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if turn >= 3:  # compiled, and past the first steps
                    times[name].append(1e3 * (time.perf_counter() - start))
        ms = {name: statistics.median(values) for name, values in times.items()}
        ratios = {name: ms[name] / ms[ONE_STEP] for name in ms if name != ONE_STEP}
        told[method.__name__] = {"ms": ms, "ratios": ratios}
        print(f"{method.__name__}: one jitted step {ms[ONE_STEP]:.2f} ms")
        for name, ratio in ratios.items():
            print(f"  {name}: {ms[name]:.2f} ms, ratio {ratio:.2f}")
    save("eager", told)


if __name__ == "__main__":
    main()
