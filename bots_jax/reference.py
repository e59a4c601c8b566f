"""Pass rates of reference models: where the belief about an unvisited task comes from.

In: f[K, N] pass rates, ordered weak to strong, NaN where unknown. Out: `Reference`, the
same padded to the C rows of the state.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bots_jax.checks import is_concrete
from bots_jax.types import Array, ArrayLike


class Reference(NamedTuple):
    """What is known of each task before the policy has tried it."""

    rates: Array  # f[K, C] in [0, 1], NaN = unknown; K = 0 without references
    trials: Array | None  # f[K, C], attempts behind each rate; None if not told

    def take(self, rows: Array | None) -> Reference:
        """The reference of some tasks, i32[R] in [0, C); of all for None."""
        if rows is None:
            return self
        return Reference(self.rates[:, rows], None if self.trials is None else self.trials[:, rows])


def make_reference(
    rates: ArrayLike | None,
    trials: ArrayLike | None,
    num_tasks: int | None,
    capacity: int | None,
    dtype: jnp.dtype,
) -> tuple[Reference, int]:
    """Check the references and pad them to capacity.

    Returns:
      The reference of C rows, and N.

    Raises:
      ValueError: naming the argument, its value and the way out.
    """
    num_tasks = _num_tasks(rates, num_tasks)
    capacity = num_tasks if capacity is None else capacity
    if capacity < num_tasks:
        raise ValueError(f"capacity={capacity} is below the {num_tasks} tasks given: raise it")
    if rates is None:
        if trials is not None:
            raise ValueError("reference_trials was given without reference: give both or neither")
        return Reference(jnp.zeros((0, capacity), dtype), None), num_tasks
    check_rates(rates)
    padding = ((0, 0), (0, capacity - num_tasks))
    rates = jnp.pad(jnp.asarray(rates, dtype), padding, constant_values=np.nan)
    if trials is not None:
        trials = jnp.pad(broadcast_trials(trials, rates.shape[0], num_tasks, dtype), padding)
    return Reference(rates, trials), num_tasks


def _num_tasks(rates: ArrayLike | None, num_tasks: int | None) -> int:
    if rates is None:
        if num_tasks is None:
            raise ValueError("reference is None and num_tasks is None: give one of them")
        if num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks} must be at least 1")
        return num_tasks
    shape = np.shape(rates)
    if len(shape) != 2:
        raise ValueError(
            f"reference has shape {shape}, expected [K, N]: one row a reference model, "
            "ordered weak to strong, one column a task"
        )
    if num_tasks not in (None, shape[1]):
        raise ValueError(f"num_tasks={num_tasks}, but reference has {shape[1]} columns: drop one")
    if shape[1] < 1:
        raise ValueError(f"reference has shape {shape}: it holds no task")
    return shape[1]


def check_rates(rates: ArrayLike, name: str = "reference") -> None:
    """Refuse pass rates outside [0, 1]; NaN stands for unknown. Traced values pass."""
    if not is_concrete(rates):
        return
    values = np.asarray(rates)
    wrong = np.argwhere((values < 0) | (values > 1))
    if wrong.size:
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name}{list(at)}={values[at]} is not a pass rate in [0, 1]: "
            "divide successes by trials, and use NaN where it is unknown"
        )


def broadcast_trials(trials: ArrayLike, models: int, num_tasks: int, dtype: jnp.dtype) -> Array:
    """reference_trials as f[K, N], from f[K] or f[K, N]."""
    shape = np.shape(trials)
    if shape not in ((models,), (models, num_tasks)):
        raise ValueError(
            f"reference_trials has shape {shape}, expected ({models},) or ({models}, {num_tasks})"
        )
    if is_concrete(trials) and not np.all(np.asarray(trials) > 0):
        raise ValueError("reference_trials must be positive: the attempts behind each pass rate")
    trials = jnp.asarray(trials, dtype)
    return jnp.broadcast_to(trials[:, None] if trials.ndim == 1 else trials, (models, num_tasks))
