"""Levels of JAX RL environments as tasks: pools of levels for a selector.

In: a pool of levels, a pytree [N, ...]; rollout windows [T, S] of S environment slots. Out: the
levels to play next, and evidence of how they went. Pure functions: jit, scan and vmap throughout.
docs/adapters/levels.md shows them in a training loop.
"""

from bots_jax.levels import plr
from bots_jax.levels.pool import (
    Slots,
    evict,
    insert,
    pool_metrics,
    sample,
    staleness,
    take,
    usefulness,
)
from bots_jax.levels.queue import Playing, Queue, left, no_playing, open_queue, pop
from bots_jax.levels.record import Running, episode_returns, no_running, record
from bots_jax.levels.sampler import LevelSampler, success_rate

__all__ = [
    "LevelSampler",
    "Playing",
    "Queue",
    "Running",
    "Slots",
    "episode_returns",
    "evict",
    "insert",
    "left",
    "no_playing",
    "no_running",
    "open_queue",
    "plr",
    "pool_metrics",
    "pop",
    "record",
    "sample",
    "staleness",
    "success_rate",
    "take",
    "usefulness",
]
