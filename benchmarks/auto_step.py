"""A step (select 512, then update) of `preset="auto"` beside one of `preset="paper"`.

Dense and grouped run in turns of ten steps in one process, on the same pool: two reference models,
counts out of 16, 16 rollouts; above 1e7 tasks groups with sizes, and no dense pool. Medians after
`--warm` steps.

Run: python -m benchmarks.auto_step [--sizes 1e6 1e7 1e9]
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import save
from benchmarks.step import (
    BATCH,
    LARGEST,
    NOISE,
    ROLLOUTS,
    Step,
    in_turns,
    reference_counts,
    reference_groups,
    timed,
)
from bots_jax import Evidence, State, bots
from bots_jax.groups import group_of
from bots_jax.reference import ReferenceCounts

FORMS = ("dense", "grouped")
MOST_COUNTS = 10**7  # larger pools are given by groups


def step_of(preset: str, form: str, size: int) -> Step:
    """A step with the state donated, as in a user's own loop."""
    selector = bots(preset=preset, batch_size=BATCH, rollouts=ROLLOUTS, representation=form)
    reference: Any = reference_groups(size)
    if size <= MOST_COUNTS:
        reference = ReferenceCounts(reference_counts(size), ROLLOUTS)

    def truth(state: State, task_ids: jax.Array) -> jax.Array:
        if form == "grouped":
            rates = jnp.mean(state.pool.groups.reference.rates, axis=0)
            return rates[group_of(state.pool.groups, task_ids)]
        return jnp.mean(state.reference.rates[:, task_ids], axis=0)

    @partial(jax.jit, donate_argnums=1)
    def step(rng_key: jax.Array, state: State) -> tuple[State, Any]:
        select_key, rollout_key = jax.random.split(rng_key)
        state, selection = selector.select(select_key, state)
        rate = truth(state, selection.task_ids)
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
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e5, 1e6, 1e7, 1e9))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--out", default="auto_step", help="name of the JSON file")
    parser.add_argument("--warm", type=int, default=100, help="steps before the measured ones")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes):
        sides = {
            f"{preset} {form}": step_of(preset, form, size)
            for preset in ("paper", "auto")
            for form in args.forms
            if size <= LARGEST[form]
        }
        first = {name: timed(run) / 1e3 for name, run in sides.items()}
        for run in sides.values():
            for _ in range(args.warm):
                run()
        ms = {name: statistics.median(t) for name, t in in_turns(sides, args.rounds).items()}
        ratios = {
            f"auto/paper {form}": ms[f"auto {form}"] / ms[f"paper {form}"]
            for form in args.forms
            if f"auto {form}" in ms
        }
        rows.append({"size": size, "first_s": first, "ms": ms, **ratios})
        print(rows[-1], flush=True)
    save(args.out, rows)


if __name__ == "__main__":
    main()
