"""Adapters to training frameworks: `host.py` first, then one file a framework.

Nothing here is imported by `import bots_jax`, and each file imports its framework only
when its class is made. Mutation (locks, iterators, queues) lives in this folder alone.
"""

from bots_jax.adapters.host import Batch, ClosedError, NotEnoughTasksError, TaskSampler

__all__ = ["Batch", "ClosedError", "NotEnoughTasksError", "TaskSampler"]
