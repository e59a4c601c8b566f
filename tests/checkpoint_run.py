"""Saving from one of two processes: a program, run by `test_checkpoint.py`.

python -m tests.checkpoint_run ADDRESS PROCESS FOLDER
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from bots_jax import checkpoint
from bots_jax.sharding import shard, task_mesh
from bots_jax.strategies import make_strategy


def main(address: str, process: int, folder: str) -> None:
    """Process 0 saves alone what it holds whole; of what is spread it is told what to do."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process, initialization_timeout=150)
    selector = make_strategy("mopps", batch_size=4)
    whole = selector.init(num_tasks=128)
    state = shard(whole, task_mesh())
    begin = time.monotonic()
    if process == 0:  # process 1 is not asked
        checkpoint.save(folder, 1, selector, whole)
        try:
            checkpoint.save(folder, 2, selector, state)
        except checkpoint.CheckpointError as error:
            sys.stdout.write(f"{error}\n")
    assert checkpoint.restore(folder, selector, whole).step == 1 if process == 0 else True
    sys.stdout.write(f"waited {time.monotonic() - begin > 20}\n")
    gathered = multihost_utils.process_allgather(state, tiled=True)
    if process == 0:
        checkpoint.save(folder, 3, selector, gathered)
    multihost_utils.sync_global_devices("saved")
    found = checkpoint.restore(folder, selector, whole)
    again = multihost_utils.process_allgather(shard(found.state, task_mesh()), tiled=True)
    same = jax.tree.map(np.array_equal, gathered, again)
    sys.stdout.write(f"restored {found.step} {all(jax.tree.leaves(same))}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
