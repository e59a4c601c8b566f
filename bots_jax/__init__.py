"""bots_jax: selection of the tasks to train on next in RL finetuning, in JAX.

The stable names are these; everything else may move. Start reading at `bots_selector.py`.
"""

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
