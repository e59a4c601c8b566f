"""How near a dense step comes to the time of moving its bytes.

The floor is a copy of as many bytes as a step must read and write: pseudo-counts (read and
written), references, pending evidence, visits and the mask (read). Both in turns.

Run: python -m benchmarks.floor
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp

from benchmarks.common import alternate, save
from benchmarks.step import our_step

# Read: alpha, beta twice (update, then the next select), two references, successes, trials,
# visit twice, visit_trials: 4 bytes each; the mask: 1. Written: alpha, beta, visit.
BYTES_A_TASK = 4 * (2 * 2 + 2 + 2 + 2 + 1) + 1 + 4 * 3


class Copy:
    """Reads an array and writes it back, in place."""

    def __init__(self, words: jax.Array) -> None:
        self.words = words
        self.add_one = jax.jit(lambda x: x + 1, donate_argnums=0)

    def __call__(self) -> jax.Array:
        """One pass."""
        self.words = self.add_one(self.words)
        return self.words


def main() -> None:
    """Print and save a row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e6, 1e7))
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes):
        words = jnp.ones((BYTES_A_TASK * size // 8,), jnp.float32)  # half is read, half written
        move = Copy(words)
        step = our_step("dense", size, 0.1)
        for _ in range(20):
            step()
        times = alternate({"step": step, "copy": move}, args.rounds)
        rows.append({"size": size, "bytes_a_task": BYTES_A_TASK, **times,
                     "step/copy": times["step"] / times["copy"]})  # fmt: skip
        print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
        del words, move
    save("floor", rows)


if __name__ == "__main__":
    main()
