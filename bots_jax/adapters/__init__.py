"""Adapters to training frameworks: `host.py` first, then one file a framework.

Nothing here is imported before it is named, and a framework only by its own file. Mutation
(locks, iterators, queues) lives in this folder alone.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bots_jax.adapters.host import Batch, ClosedError, NotEnoughTasksError, TaskSampler

__all__ = ["Batch", "ClosedError", "NotEnoughTasksError", "TaskSampler"]

_FRAMEWORKS = ("grain", "pytorch", "trinity", "tunix")

if TYPE_CHECKING:
    from bots_jax.adapters import grain as grain
    from bots_jax.adapters import pytorch as pytorch
    from bots_jax.adapters import trinity as trinity
    from bots_jax.adapters import tunix as tunix
else:

    def __getattr__(name: str) -> ModuleType:
        if name in _FRAMEWORKS:
            return import_module(f"bots_jax.adapters.{name}")
        raise AttributeError(f"module 'bots_jax.adapters' has no attribute {name!r}")
