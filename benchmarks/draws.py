"""Beta draws for whole arrays: ours, `jax.random.beta` and NumPy, in turns.

Run: python -m benchmarks.draws
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, save
from bots_jax import draws


def main(sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000), rounds: int = 7) -> None:
    """Print and save a row a size."""
    ours, theirs = jax.jit(draws.beta), jax.jit(jax.random.beta)
    rows = []
    for size in sizes:
        rng = np.random.default_rng(0)
        alpha, beta = rng.uniform(1, 17, (2, size))
        a, b = jnp.asarray(alpha, jnp.float32), jnp.asarray(beta, jnp.float32)
        key = jax.random.key(0)
        sides = {
            "ours": partial(ours, key, a, b),
            "numpy": partial(rng.beta, alpha, beta),
            "jax.random.beta": partial(theirs, key, a, b),
        }
        times = alternate(sides, rounds)
        ratios = {f"{name}/ours": times[name] / times["ours"] for name in list(times)[1:]}
        rows.append({"size": size, **times, **ratios})
        print({name: round(value, 2) for name, value in rows[-1].items()})
    save("draws", rows)


if __name__ == "__main__":
    main()
