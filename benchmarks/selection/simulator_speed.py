"""What the simulator costs a step, alone and with strategies.

Alone: a selector that picks 512 tasks at random without looking at the pool. With
strategies: the whole run, 1e6 tasks, 500 steps, 8 seeds each, with `--full`; else one seed
and 20 steps, from which the time of the whole is only estimated.

Run: python -m benchmarks.selection.simulator_speed [--full]
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import save
from bots_jax.simulator import run_simulation
from bots_jax.simulator.calibrate import blind_selector
from bots_jax.strategies import configure
from bots_jax.types import Selection, Selector

BATCH = 512


def scattered(num_tasks: int, batch_size: int) -> Selector:
    """Tasks at equal distances from a random one: O(B), for measuring the rest."""

    def init(*args: Any, **kwargs: Any) -> Any:
        return jnp.zeros(())

    def select(rng_key: Any, state: Any, eligible: Any = None) -> Any:
        first = jax.random.randint(rng_key, (), 0, num_tasks)
        places = jnp.arange(batch_size, dtype=jnp.int32) * (num_tasks // batch_size)
        ids = (first + places) % num_tasks
        zeros, valid = jnp.zeros(batch_size), jnp.ones(batch_size, bool)
        return state, Selection(ids, zeros, valid, jnp.zeros_like(ids))

    return blind_selector(init, select)


def seconds(selector: Selector, num_tasks: int, steps: int, seeds: range) -> tuple[float, float]:
    """Of a run, its world and references included: on the clock, and of all cores."""
    begun, busy = time.perf_counter(), time.process_time()
    run_simulation(selector, None, seeds, steps, num_tasks=num_tasks)
    return time.perf_counter() - begun, time.process_time() - busy


def alone(num_tasks: int, steps: int = 2000) -> dict[str, Any]:
    """Milliseconds a step, and seconds to make world, references and state.

    `cpu` is the time of all cores, which other work on the machine disturbs less.
    """
    selector = scattered(num_tasks, BATCH)
    times = {}
    for count in (1, steps):
        seconds(selector, num_tasks, count, range(1))  # compile
        several = [seconds(selector, num_tasks, count, range(1)) for _ in range(3)]
        times[count] = [min(column) for column in zip(*several, strict=True)]
    (start, busy), (whole, whole_busy) = times[1], times[steps]
    row = {
        "tasks": num_tasks,
        "start_s": start,
        "start_cpu_s": busy,
        "step_ms": 1e3 * (whole - start) / (steps - 1),
        "step_cpu_ms": 1e3 * (whole_busy - busy) / (steps - 1),
    }
    row = {name: round(value, 4) for name, value in row.items()}
    print(row, flush=True)
    return row


def together(name: str, num_tasks: int, steps: int, seeds: range) -> dict[str, Any]:
    """A strategy's whole run, compilation included."""
    selector = configure(name, {}, batch_size=BATCH, rollouts=8)
    row: dict[str, Any] = {
        "strategy": name,
        "tasks": num_tasks,
        "steps": steps,
        "seeds": len(seeds),
    }
    clock, busy = seconds(selector, num_tasks, steps, seeds)
    row |= {"seconds": round(clock, 1), "cpu_seconds": round(busy, 1)}
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(row, flush=True)
    return row


def main() -> None:
    """Print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="500 steps, 8 seeds")
    parser.add_argument("--strategies", default="uniform,bots,bots-explicit,bots-mean")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [alone(size) for size in (512, args.tasks, 10 * args.tasks)]
    steps, seeds = (500, range(8)) if args.full else (20, range(1))
    rows += [together(name, args.tasks, steps, seeds) for name in args.strategies.split(",")]
    save("simulator_speed", rows)


if __name__ == "__main__":
    main()
