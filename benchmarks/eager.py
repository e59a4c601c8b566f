"""Plain calls beside a jitted step whose state is donated: what a user's own code gets.

Run: python -m benchmarks.eager [--size 1e6]

Both sides alternate in one process: `select` then `update` as two calls, and as one jitted
function with `donate_argnums`. Prints the ratio and writes results/eager.json.
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

BATCH, ROLLOUTS = 512, 16


def sides(method: Callable[..., Any], size: int) -> dict[str, Callable[[], None]]:
    """A step of each side; each keeps a state of its own."""
    selector = method(batch_size=BATCH, rollouts=ROLLOUTS, representation="dense")
    reference = np.sort(np.random.default_rng(0).random((2, size), np.float32), axis=0)
    states = {"plain": selector.init(reference), "donated": selector.init(reference)}
    solved = jnp.full((BATCH,), ROLLOUTS / 2)

    def step(state: State, key: jax.Array) -> State:
        state, batch = selector.select(key, state)
        evidence = Evidence(batch.task_ids, solved, ROLLOUTS, batch.visit)
        return selector.update(state, evidence)[0]

    donated = jax.jit(step, donate_argnums=0)
    keys = iter(jax.random.split(jax.random.key(0), 10_000))

    def run(name: str, one: Callable[[State, jax.Array], State]) -> Callable[[], None]:
        def turn() -> None:
            states[name] = jax.block_until_ready(one(states[name], next(keys)))

        return turn

    return {"plain": run("plain", step), "donated": run("donated", donated)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=1e6)
    parser.add_argument("--turns", type=int, default=40)
    args = parser.parse_args()
    told: dict[str, Any] = {"size": int(args.size)}
    for method in (bots, auto):
        both = sides(method, int(args.size))
        times: dict[str, list[float]] = {name: [] for name in both}
        for turn in range(args.turns + 3):
            for name, step in both.items():
                start = time.perf_counter()
                step()
                if turn >= 3:  # compiled, and past the first steps
                    times[name].append(1e3 * (time.perf_counter() - start))
        ms = {name: statistics.median(values) for name, values in times.items()}
        ratio = ms["plain"] / ms["donated"]
        told[method.__name__] = {**ms, "ratio": ratio}
        print(
            f"{method.__name__}: plain calls {ms['plain']:.2f} ms, "
            f"jitted and donated {ms['donated']:.2f} ms, ratio {ratio:.2f}"
        )
    save("eager", told)


if __name__ == "__main__":
    main()
