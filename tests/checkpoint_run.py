"""Saving from two processes: a program, run by `test_checkpoint.py`.

python -m tests.checkpoint_run ADDRESS PROCESS FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bots_jax import checkpoint
from bots_jax.orbax_files import is_spread
from bots_jax.sharding import shard, task_mesh
from bots_jax.strategies import make_strategy


def say(what: str) -> None:
    """To the test."""
    sys.stdout.write(what + "\n")


def same(ours: Any, theirs: Any) -> bool:
    """What this process holds of both, bit for bit, and where."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(
        a.sharding == b.sharding
        and all(
            np.array_equal(np.asarray(x.data), np.asarray(y.data))
            for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True)
        )
        for a, b in pairs
    )


def damage(folder: Path) -> None:
    """Other bytes in the middle of every file of arrays that are spread."""
    for path in (folder / "step_00000003" / "spread").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 255
            path.write_bytes(bytes(data))


def main(address: str, process: int, folder: str) -> None:
    """Process 0 saves alone what it holds whole; what is spread is saved by both."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process, initialization_timeout=150)
    selector = make_strategy("mopps", batch_size=4)
    whole = selector.init(num_tasks=128)
    begin = time.monotonic()
    if process == 0:  # process 1 is not asked
        checkpoint.save(folder, 1, selector, whole)
        assert checkpoint.restore(folder, selector, whole).step == 1
    say(f"waited {time.monotonic() - begin > 20}")
    multihost_utils.sync_global_devices("saved whole")
    state = shard(whole, task_mesh())
    found = checkpoint.restore(folder, selector, state)
    say(f"whole to spread {found.step} {same(found.state, state)}")

    state, selection = jax.jit(selector.select)(jax.random.key(0), state)
    assert any(map(is_spread, jax.tree.leaves(state)))
    for step in (2, 3):
        checkpoint.save(folder, step, selector, state, trainer={"w": selection.task_ids})
    found = checkpoint.restore(folder, selector, state, trainer={"w": selection.task_ids})
    say(f"spread to spread {found.step} {same(found.state, state)}")
    gathered = multihost_utils.process_allgather(state, tiled=True)
    if process == 0:  # alone, whole
        found = checkpoint.restore(folder, selector, whole, trainer={"w": np.zeros(4, np.int32)})
        equal = jax.tree.map(np.array_equal, gathered, found.state)
        say(f"spread to whole {found.step} {all(jax.tree.leaves(equal))}")
        damage(Path(folder))
    multihost_utils.sync_global_devices("damaged")
    found = checkpoint.restore(folder, selector, state, trainer={"w": selection.task_ids})
    say(f"the one before {found.step} {same(found.state, state)}")
    larger = shard(selector.init(num_tasks=256), task_mesh())
    try:
        checkpoint.restore(folder, selector, larger, step=2, trainer={"w": selection.task_ids})
    except checkpoint.CheckpointError as error:
        say(str(error))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
