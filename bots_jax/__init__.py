"""bots_jax: selection of the tasks to train on next in RL finetuning, in JAX.

The stable names are these; everything else may move. Start reading at `bots_selector.py`.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bots_jax.auto_selector import auto
from bots_jax.bots_selector import bots
from bots_jax.growth import add_tasks, retire
from bots_jax.pool.graded import evidence_of_rewards
from bots_jax.summary import summary
from bots_jax.types import Belief, Evidence, Info, Selection, Selector, Settings, State

__all__ = [
    "Belief",
    "Evidence",
    "Info",
    "Selection",
    "Selector",
    "Settings",
    "State",
    "add_tasks",
    "auto",
    "bots",
    "evidence_of_rewards",
    "retire",
    "summary",
]

__version__ = "0.2.0"

# What a user names after `import bots_jax` alone; imported when it is asked for.
_ROOMS = ("adapters", "checkpoint", "draws", "features", "levels", "simulator", "strategies")

if TYPE_CHECKING:
    from bots_jax import adapters as adapters
    from bots_jax import checkpoint as checkpoint
    from bots_jax import draws as draws
    from bots_jax import features as features
    from bots_jax import levels as levels
    from bots_jax import simulator as simulator
    from bots_jax import strategies as strategies
else:

    def __getattr__(name: str) -> ModuleType:
        if name in _ROOMS:
            return import_module(f"bots_jax.{name}")
        raise AttributeError(f"module 'bots_jax' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_ROOMS})
