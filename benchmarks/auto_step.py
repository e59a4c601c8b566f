"""A step (select 512, then update) of `preset="auto"` beside one of `preset="paper"`, dense.

Both run in turns of ten steps in one process, on the same pool: two reference models, counts
out of 16, 16 rollouts. Medians after `--warm` steps.

Run: python -m benchmarks.auto_step
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import save
from benchmarks.step import BATCH, NOISE, ROLLOUTS, Step, in_turns, reference_counts, timed
from bots_jax import Evidence, Selector, State, bots


def step_of(selector: Selector, size: int) -> Step:
    """A step with the state donated, as in a user's own loop."""
    reference: Any = reference_counts(size).astype("float32") / ROLLOUTS

    @partial(jax.jit, donate_argnums=1)
    def step(rng_key: jax.Array, state: State) -> tuple[State, Any]:
        select_key, rollout_key = jax.random.split(rng_key)
        state, selection = selector.select(select_key, state)
        rate = jnp.mean(state.reference.rates[:, selection.task_ids], axis=0)
        rate = rate + NOISE * jax.random.normal(rollout_key, rate.shape)
        successes = jnp.round(ROLLOUTS * jnp.clip(rate, 0, 1))
        evidence = Evidence(selection.task_ids, successes, float(ROLLOUTS), selection.visit)
        return selector.update(state, evidence)

    keys = iter(jax.random.split(jax.random.key(0), 100_000))
    box = [selector.init(reference)]

    def run() -> Any:
        box[0], info = step(next(keys), box[0])
        return jax.block_until_ready(info)

    return run


def main() -> None:
    """Print and save a row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e5, 1e6))
    parser.add_argument("--warm", type=int, default=100, help="steps before the measured ones")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes):
        sides = {
            preset: step_of(
                bots(preset=preset, batch_size=BATCH, rollouts=ROLLOUTS, representation="dense"),
                size,
            )
            for preset in ("paper", "auto")
        }
        first = {name: timed(run) / 1e3 for name, run in sides.items()}
        for run in sides.values():
            for _ in range(args.warm):
                run()
        ms = {name: statistics.median(t) for name, t in in_turns(sides, args.rounds).items()}
        rows.append(
            {"size": size, "first_s": first, "ms": ms, "auto/paper": ms["auto"] / ms["paper"]}
        )
        print(rows[-1], flush=True)
    save("auto_step", rows)


if __name__ == "__main__":
    main()
