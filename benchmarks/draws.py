"""Beta draws for whole arrays: ours, `jax.random.beta`, NumPy, torch and numpyro, in turns.

Run: python -m benchmarks.draws     (torch and numpyro are left out where not installed)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, save
from benchmarks.peers import missing
from bots_jax import draws

# name: low and high of alpha and beta
RANGES = {"1 to 17": (1.0, 17.0), "0.1 to 2": (0.1, 2.0), "100 to 300": (100.0, 300.0)}


def make_sides(alpha: np.ndarray, beta: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What draws an array of these parameters."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    a, b = jnp.asarray(alpha, jnp.float32), jnp.asarray(beta, jnp.float32)
    sides: dict[str, Callable[[], Any]] = {
        "ours": partial(jax.jit(draws.beta), key, a, b),
        "numpy": partial(rng.beta, alpha, beta),
        "jax.random.beta": partial(jax.jit(jax.random.beta), key, a, b),
    }
    if not missing("torch"):
        import torch

        of_torch = torch.distributions.Beta(*(torch.from_numpy(x).float() for x in (alpha, beta)))
        sides["torch"] = of_torch.sample
    if not missing("numpyro"):
        import numpyro.distributions as dist

        sides["numpyro"] = partial(jax.jit(lambda k, a, b: dist.Beta(a, b).sample(k)), key, a, b)
    return sides


def main() -> None:
    """Print and save a row a size and range of parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e4, 1e5, 1e6))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes):
        for name, (low, high) in RANGES.items():
            alpha, beta = np.random.default_rng(0).uniform(low, high, (2, size))
            times = alternate(make_sides(alpha, beta), args.rounds)
            ratios = {f"{side}/ours": times[side] / times["ours"] for side in list(times)[1:]}
            rows.append({"size": size, "parameters": name, "ms": times, "ratios": ratios})
            print(size, name, {k: round(v, 2) for k, v in {**times, **ratios}.items()}, flush=True)
    save("draws", rows, ("torch", "numpyro"))


if __name__ == "__main__":
    main()
