"""A step on 1, 2, 4 and 8 devices, and the bytes that cross between them.

On a machine with fewer cores than devices nothing gets faster: the devices are simulated, and
share the cores. What this shows there is what spreading a pool costs.

Run: python -m benchmarks.sharding
"""

from __future__ import annotations

import math
import os
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import alternate, no_options, save
from bots_jax import Evidence, bots
from bots_jax.sharding import shard, task_mesh

BATCH, ROLLOUTS = 512, 16
_CROSSES = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    r"|collective-broadcast)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+)\[([0-9,]*)\]")


class Crossing(NamedTuple):
    """One operation that moves arrays between devices."""

    operation: str
    sizes: tuple[int, ...]  # entries of each array that it returns
    bytes: int
    rare: bool  # only where all tasks must be drawn, or evidence is of very many


def crossings(compiled: str) -> list[Crossing]:
    """What crosses devices in a compiled program; each operation once, loops or not."""
    found = []
    for line in compiled.splitlines():
        match = _CROSSES.search(line)
        if match is None:
            continue
        arrays = [
            (kind, math.prod(int(n) for n in shape.split(",") if n))
            for kind, shape in _ARRAY.findall(match[1])
        ]
        moved = sum(size * _width(kind) for kind, size in arrays)
        rare = "/rarely/" in line or "branch_1_fun" in line  # the latter breaks ties
        found.append(Crossing(match[2], tuple(size for _, size in arrays), moved, rare))
    return found


def _width(kind: str) -> int:
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8


def main(sizes: tuple[int, ...] = (1_024_000, 10_240_000), rounds: int = 5) -> None:
    """Print and save a row a size and a number of devices."""
    selector = bots(batch_size=BATCH, rollouts=ROLLOUTS, representation="dense")
    print(f"{os.cpu_count()} cores: more devices than that share them, and no speed-up is expected")
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rng = np.random.default_rng(0)
        rates = np.sort(rng.integers(0, 17, (2, size), dtype=np.int8), axis=0)
        start = selector.init(rates.astype(np.float32) / 16)
        sides, moved = {}, {}
        for devices in (1, 2, 4, 8):
            state = shard(start, task_mesh(jax.devices()[:devices]))
            sides[str(devices)], moved[devices] = _step(selector, state)
        times = alternate(sides, rounds)
        for devices in (1, 2, 4, 8):
            row = {
                "size": size,
                "devices": devices,
                "ms": times[str(devices)],
                "times one device": times[str(devices)] / times["1"],
                **moved[devices],
            }
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
            rows.append(row)
    save("sharding", rows)


def _step(selector: Any, state: Any) -> tuple[Any, dict[str, int]]:
    """A step to time, warm, and what crosses devices in it."""
    key = jax.random.key(0)
    graded = jnp.full(BATCH, 8.0), jnp.full(BATCH, float(ROLLOUTS))

    def step(rng_key: jax.Array, state: Any) -> Any:
        state, selection = selector.select(rng_key, state)
        return selector.update(state, Evidence(selection.task_ids, *graded, selection.visit))

    compiled = jax.jit(step).lower(key, state).compile()
    for index in range(5):
        state, _ = compiled(jax.random.fold_in(key, index), state)
    found = crossings(compiled.as_text() or "")
    usual = [crossing for crossing in found if not crossing.rare]
    return partial(compiled, key, state), {
        "bytes crossing in a usual step": sum(crossing.bytes for crossing in usual),
        "operations in a usual step": len(usual),
        "largest array crossing": max((max(c.sizes) for c in found), default=0),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    no_options(__doc__)
    main()
