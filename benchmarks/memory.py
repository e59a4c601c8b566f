"""Bytes a task: what a state holds, and the peak of a process that makes and steps it.

Each row runs in a process of its own, whose peak resident memory is read at its end, the
inputs (reference counts, or groups with sizes) included.

Run: python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import save
from benchmarks.step import BATCH, ROLLOUTS, reference_groups
from bots_jax import Evidence, State, bots
from bots_jax.pool.reference import ReferenceCounts

CASES = (
    ("dense", "counts", 10**6), ("dense", "counts", 10**7), ("grouped", "counts", 10**7),
    ("grouped", "counts", 10**8), ("grouped", "counts", 10**9), ("grouped", "sizes", 10**9),
)  # fmt: skip
_CHUNK = 1 << 24


def counts_by_chunk(size: int) -> np.ndarray:
    """u8[2, N], made without temporaries of that size."""
    rng, counts = np.random.default_rng(0), np.empty((2, size), np.uint8)
    for start in range(0, size, _CHUNK):
        width = min(_CHUNK, size - start)
        part = rng.integers(0, ROLLOUTS + 1, (2, width), dtype=np.uint8)
        part.sort(axis=0)
        counts[:, start : start + width] = part
    return counts


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_case(form: str, kind: str, size: int) -> dict[str, Any]:
    """Make a pool and step it, in this process."""
    selector = bots(batch_size=BATCH, rollouts=ROLLOUTS, representation=form)
    before = peak_bytes()
    reference: Any = reference_groups(size)
    if kind == "counts":
        reference = ReferenceCounts(counts_by_chunk(size), ROLLOUTS)
    begin = time.perf_counter()
    state = jax.block_until_ready(selector.init(reference))
    seconds = time.perf_counter() - begin
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))

    @partial(jax.jit, donate_argnums=1)
    def step(rng_key: jax.Array, state: State) -> State:
        state, selection = selector.select(rng_key, state)
        successes = jnp.full(BATCH, ROLLOUTS / 2)
        evidence = Evidence(selection.task_ids, successes, float(ROLLOUTS), selection.visit)
        return selector.update(state, evidence)[0]

    for rng_key in jax.random.split(jax.random.key(0), 20):
        state = step(rng_key, state)
    jax.block_until_ready(state)
    return {
        "representation": form, "reference": kind, "size": size, "init_s": seconds,
        "state_bytes_a_task": held / size, "peak_bytes_a_task": peak_bytes() / size,
        "peak_gb": peak_bytes() / 1e9, "of_which_libraries_gb": before / 1e9,
    }  # fmt: skip


def main() -> None:
    """Print and save a row a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, help="run one case here and print it as JSON")
    parser.add_argument("--largest", type=float, default=1e9)
    args = parser.parse_args()
    if args.case:
        form, kind, size = args.case
        print(json.dumps(run_case(form, kind, int(size))))
        return
    rows = []
    for form, kind, cases_size in CASES:
        if cases_size > args.largest:
            continue
        command = [sys.executable, "-m", "benchmarks.memory", "--case", form, kind, str(cases_size)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(ran.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
        save("memory", rows)


if __name__ == "__main__":
    main()
