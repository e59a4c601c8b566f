"""64 selectors over 1e5 tasks in one vmapped call, against 64 calls of the same function.

A grid of 4 forgetting rates, 4 implicit weights and 4 seeds; each selector selects, is told
successes, and updates, for some steps in one scan.

Run: python -m benchmarks.sweep
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, no_options, save
from bots_jax import Evidence, Settings, bots

TASKS, BATCH, ROLLOUTS, STEPS = 100_000, 64, 16, 3


def main(tasks: int = TASKS, rounds: int = 3) -> None:
    """Print and save the times of both, for whole steps and for each half of one."""
    rng = np.random.default_rng(0)
    reference = np.sort(rng.integers(0, 17, (2, tasks)) / 16, axis=0).astype(np.float32)
    selector = bots(batch_size=BATCH, rollouts=ROLLOUTS, representation="dense")
    trials = jnp.full(BATCH, float(ROLLOUTS))

    def start(forgetting: jax.Array, weight: jax.Array) -> Any:
        return selector.init(reference, Settings(forgetting=forgetting, implicit_weight=weight))

    def select(key: jax.Array, state: Any) -> Any:
        return selector.select(key, state)

    def update(key: jax.Array, state: Any) -> Any:
        ids = jax.random.randint(key, (BATCH,), 0, tasks, jnp.int32)
        return selector.update(state, Evidence(ids, (ids % 17).astype(jnp.float32), trials))

    def steps(key: jax.Array, state: Any) -> Any:
        def step(state: Any, key: jax.Array) -> Any:
            state, selection = selector.select(key, state)
            successes = (selection.task_ids % 17).astype(jnp.float32)
            evidence = Evidence(selection.task_ids, successes, trials, selection.visit)
            return selector.update(state, evidence)[0], selection.task_ids

        return jax.lax.scan(step, state, jax.random.split(key, STEPS))

    grid = np.meshgrid([0.01, 0.05, 0.1, 0.3], [0.0, 0.1, 0.3, 1.0], np.arange(4), indexing="ij")
    forgetting, weight = (jnp.asarray(x.ravel(), jnp.float32) for x in grid[:2])
    keys = jax.vmap(jax.random.key)(jnp.asarray(grid[2].ravel(), jnp.uint32))
    states = jax.jit(jax.vmap(start))(forgetting, weight)
    _, states = _warm(steps, keys, states)
    rows = []
    for name, function in {"select": select, "update": update, "steps": steps}.items():
        sides, same = _sides(function, keys, states)
        times = alternate(sides, rounds)
        row = {
            "what": name,
            **times,
            "calls/vmap": times["64 calls"] / times["vmap"],
            "same tasks": same,
        }
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
        rows.append(row)
    save("sweep", {"tasks": tasks, "batch": BATCH, "selectors": len(keys), "times in ms": rows})


def _warm(steps: Any, keys: jax.Array, states: Any) -> tuple[Any, Any]:
    states, ids = jax.jit(jax.vmap(steps))(keys, states)
    return ids, states


def _sides(function: Any, keys: jax.Array, states: Any) -> tuple[dict[str, Any], bool]:
    """Both ways to time, and whether they come to the same integers."""
    swept, one = jax.jit(jax.vmap(function)), jax.jit(function)
    single = [jax.tree.map(lambda x, row=row: x[row], states) for row in range(len(keys))]
    pairs = list(zip(keys, single, strict=True))

    def calls() -> list[Any]:
        return [one(key, state) for key, state in pairs]

    together, apart = swept(keys, states), calls()
    same = all(
        bool(jnp.array_equal(jax.tree.leaves(together)[i][row], jax.tree.leaves(alone)[i]))
        for row, alone in enumerate(apart)
        for i, leaf in enumerate(jax.tree.leaves(alone))
        if leaf.dtype == jnp.int32
    )
    return {"vmap": lambda: swept(keys, states), "64 calls": calls}, same


if __name__ == "__main__":
    no_options(__doc__)
    main()
