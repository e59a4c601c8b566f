"""A step of the dense engine against a NumPy reading of the method, in turns.

Run: python -m benchmarks.step
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, save
from bots_jax import Evidence, bots

BATCH, ROLLOUTS = 512, 16


def numpy_step(
    rng: np.random.Generator, alpha: np.ndarray, beta: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Draw, choose, update in place: the method in float64, vectorised, not our code."""
    ids = np.argpartition(np.abs(rng.beta(alpha, beta) - 0.5), BATCH)[:BATCH]
    successes = rng.integers(0, ROLLOUTS + 1, BATCH)
    weak, strong = reference[:, ids].mean(axis=1)
    capability = (successes.mean() / ROLLOUTS - weak) / (strong - weak + 1e-6)
    p = np.clip(reference[0] + capability * (reference[1] - reference[0]), 0, 1)
    gained, lost = 0.1 * ROLLOUTS * p, 0.1 * ROLLOUTS * (1 - p)
    gained[ids], lost[ids] = successes, ROLLOUTS - successes
    alpha[:] = 0.9 * alpha + 0.1 + gained
    beta[:] = 0.9 * beta + 0.1 + lost
    return ids


def main(sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000), rounds: int = 7) -> None:
    """Print and save a row a size."""
    selector = bots(batch_size=BATCH, rollouts=ROLLOUTS)
    select, update = jax.jit(selector.select), jax.jit(selector.update)
    rows = []
    for size in sizes:
        rng = np.random.default_rng(0)
        reference = np.sort(rng.integers(0, 17, (2, size)) / 16, axis=0)
        counts = np.ones((2, size))
        state, key = selector.init(reference.astype(np.float32)), jax.random.key(0)
        chosen_state, selection = select(key, state)
        successes = jnp.full(BATCH, 8.0)
        trials = jnp.full(BATCH, float(ROLLOUTS))
        evidence = Evidence(selection.task_ids, successes, trials, selection.visit)
        sides = {
            "select": partial(select, key, state),
            "update": partial(update, chosen_state, evidence),
            "numpy": partial(numpy_step, rng, counts[0], counts[1], reference),
        }
        times = alternate(sides, rounds)
        ours = times["select"] + times["update"]
        rows.append({"size": size, **times, "numpy/ours": times["numpy"] / ours})
        print({name: round(value, 3) for name, value in rows[-1].items()})
    save("step", rows)


if __name__ == "__main__":
    main()
