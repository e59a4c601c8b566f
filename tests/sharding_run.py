"""A short run on a pool that is spread over devices; and over processes, as a program.

Run by `test_sharding.py`:
    python -m tests.sharding_run ADDRESS PROCESSES PROCESS DEVICES OUT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import Evidence, Selection, Selector, State, bots
from bots_jax.sharding import gather_evidence, shard, task_mesh

ROLLOUTS = 16


def make_reference(size: int, seed: int = 0) -> np.ndarray:
    """f32[2, size], weak below strong, multiples of 1/16; one in eight unknown."""
    rng = np.random.default_rng(seed)
    rates = np.sort(rng.integers(0, 17, (2, size)) / 16, axis=0).astype(np.float32)
    return np.where(rng.random(size) < 1 / 8, np.nan, rates)


def grade(selection: Selection) -> Evidence:
    """Successes that differ from task to task; thirds, so that sums are rounded."""
    successes = ((selection.task_ids * 7) % 48).astype(jnp.float32) / 3
    return Evidence(selection.task_ids, successes, float(ROLLOUTS), selection.visit)


def run(
    selector: Selector,
    state: State,
    steps: int = 10,
    eligible: Callable[[jax.Array], jax.Array] | None = None,
    more: Evidence | None = None,
    compiler_options: dict[str, Any] | None = None,
) -> tuple[State, Any]:
    """One jitted call of `steps` steps: the state, and what each step selected and told.

    Args:
      eligible: step -> bool[C].
      more: evidence that comes at every step beside that of the selected tasks.
      compiler_options: of `jax.jit`.
    """

    def step(state: State, index: jax.Array) -> tuple[State, Any]:
        mask = None if eligible is None else eligible(index)
        state, selection = selector.select(jax.random.fold_in(rng_key, index), state, mask)
        state = selector.observe(state, grade(selection))
        if more is not None:
            state = selector.observe(state, more)
        state, info = selector.advance(state)
        return state, (selection, info)

    rng_key = jax.random.key(3)
    turns = jnp.arange(steps, dtype=jnp.int32)
    scan = lambda state: jax.lax.scan(step, state, turns)  # noqa: E731
    return jax.jit(scan, compiler_options=compiler_options)(state)


def main(address: str, processes: int, process: int, devices: int, out: str) -> None:
    """Steps as a trainer on several hosts takes them; each process grades part of the batch."""
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, processes, process, initialization_timeout=150)
    assert jax.device_count() == processes * devices
    selector = bots(batch_size=16, rollouts=ROLLOUTS, representation="dense")
    state = shard(selector.init(make_reference(64 * 8 * 4)), task_mesh())
    select, update = jax.jit(selector.select), jax.jit(selector.update)
    told = []
    for index in range(10):
        state, selection = select(jax.random.fold_in(jax.random.key(3), index), state)
        here = Selection(*(np.asarray(column)[process::processes] for column in selection))
        state, info = update(state, gather_evidence(grade(here)))
        told += [np.asarray(selection.task_ids), np.asarray(selection.rate)]
        told += [np.asarray(info.capability), np.asarray(info.success_rate)]
    ids = np.asarray(selection.task_ids)
    mean = selector.predict(state, ids).mean  # on the host: checks, then a jitted look-up
    posterior = [
        np.concatenate([np.asarray(piece.data) for piece in pieces])
        for counts in state.belief.posterior
        for pieces in [sorted(counts.addressable_shards, key=lambda piece: piece.index[0].start)]
    ]
    np.savez(out, *told, np.asarray(mean), alpha=posterior[0], beta=posterior[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
