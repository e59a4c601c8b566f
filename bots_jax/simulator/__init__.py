"""A learning policy made of numbers: an environment in which selection changes what is learned.

In: a selector and the numbers of the model (`Config`). Out: what was selected, what it came
to, and how well the policy solves the pool and tasks that it never trained on.

    world.py      tasks, success rates, references: functions of (key, task id), not arrays
    learning.py   how the policy changes with the batch that it trained on
    run.py        one `lax.scan` over the steps, for several seeds and settings
    calibrate.py  fits the numbers to the visits of a recorded run

`docs/simulator.md` has the equations, where each number comes from, and the limits.
"""

from bots_jax.simulator.learning import Policy, learn, new_policy
from bots_jax.simulator.run import Simulation, run_simulation
from bots_jax.simulator.world import Config, World, calibrated, make_references, success_rate

__all__ = [
    "Config",
    "Policy",
    "Simulation",
    "World",
    "calibrated",
    "learn",
    "make_references",
    "new_policy",
    "run_simulation",
    "success_rate",
]
