"""A model trained through Grain with read-ahead, saved with Orbax at every step."""

from __future__ import annotations

import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.adapters.grain import TaskDataset
from tests.adapters.lives import die, tell

TASKS, BATCH, ROLLOUTS, STEPS = 80, 4, 8, 7


def make(delay: int) -> tuple[TaskSampler, Any, np.ndarray]:
    """The sampler, the iterator over batches, and where the weights begin."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(TASKS, 3)).astype(np.float32)
    reference = np.stack([rng.uniform(0, 0.4, TASKS), rng.uniform(0.5, 1, TASKS)])
    names = [f"task-{row}" for row in range(TASKS)]
    sampler = TaskSampler(
        bots(batch_size=BATCH, rollouts=ROLLOUTS),
        reference,
        task_ids=names,
        delay=delay,
    )
    dataset = TaskDataset(sampler, [{"features": row} for row in features]).batch(BATCH)
    ahead = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=20)
    return sampler, iter(ahead), np.zeros(3, np.float32)


@jax.jit
def train_step(weights: jax.Array, features: jax.Array, key: jax.Array) -> tuple:
    """Roll out, and follow the gradient of the success of the sampled answers."""
    logits = features @ weights
    chance = jax.nn.sigmoid(logits)
    solved = jax.random.uniform(key, (ROLLOUTS, BATCH)) < chance
    successes = jnp.sum(solved, axis=0)
    slope = (successes - ROLLOUTS * chance) @ features
    return weights + 0.01 * slope + 0.05, successes


def main(folder: str, die_at: int, delay: int) -> None:
    """Train to the end, or die in the middle of step `die_at`."""
    sampler, batches, weights = make(delay)
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2))
    first, latest = 0, manager.latest_step()
    if latest is not None:
        read = ocp.args.StandardRestore
        found = manager.restore(latest, args=ocp.args.Composite(model=read(), selector=read()))
        weights, first = found["model"]["weights"], latest
        sampler.load_state_dict(unflatten(found["selector"]))
        manager.restore(
            latest, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(batches))
        )
    for step in range(first, STEPS):
        batch = next(batches)
        weights, successes = train_step(weights, batch["features"], jax.random.key(step))
        half = BATCH // 2  # reported in two parts, by name
        for part in (slice(half), slice(half, None)):
            if step == die_at and part.start:
                die()
            sampler.observe(
                batch["task_id"][part], np.asarray(successes)[part], ROLLOUTS, batch["visit"][part]
            )
        save = ocp.args.StandardSave
        manager.save(
            step + 1,
            args=ocp.args.Composite(
                model=save({"weights": np.asarray(weights)}),
                selector=save(flatten(sampler.state_dict())),
                data=grain.checkpoint.CheckpointSave(batches),
            ),
        )
        manager.wait_until_finished()
        tell(step=step, tasks=batch["task_id"].tolist(), weights=np.asarray(weights).tolist())
    sampler.close()  # first: the reading thread waits for evidence
    batches.close()
    manager.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
