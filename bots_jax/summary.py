"""A state in ten lines, for people.

In: a `State` of any selector. Out: what is in the pool, what is in flight, what is believed.
"""

from __future__ import annotations

import jax
import numpy as np

from bots_jax.checks import is_concrete
from bots_jax.types import State


def summary(state: State) -> str:
    """What a state holds, in about ten lines.

    Raises:
      ValueError: inside traced code, where there is nothing to look at yet.

    >>> import bots_jax
    >>> print(bots_jax.summary(bots_jax.auto(batch_size=2).init(num_tasks=4)).splitlines()[0])
    4 tasks, dense, step 0
    """
    if not is_concrete(state):
        raise ValueError("state is traced: call summary outside of jit, scan and vmap")
    tasks, rows = int(state.num_tasks), state.bookkeeping
    used, room = int(np.sum(np.asarray(rows.active))), rows.active.shape[0]
    lines = [f"{tasks} tasks, {state.representation}, step {int(state.step)}"]
    if state.representation == "dense":
        lines.append(f"rows: {room}, of which {used} hold a task")
    else:
        groups = state.known.num_tasks.shape[0]
        lines.append(f"groups: {groups}; slots: {used} of {room} in use")
    lines.append(f"domains: {state.num_domains}")
    lines.append(_references(state))
    lines.append(f"in flight: {int(state.in_flight)} visits of {int(state.num_batches)} batches")
    pending = np.asarray(rows.trials)
    lines.append(f"pending: {float(pending.sum()):g} trials of {int((pending > 0).sum())} tasks")
    shown = state.settings._asdict().items()
    lines.append("settings: " + ", ".join(f"{name} {float(value):.4g}" for name, value in shown))
    lines.append(f"belief: {type(state.belief).__name__}")
    lines += _spreads(state)
    return "\n".join(lines)


def _references(state: State) -> str:
    rates = np.asarray(state.known.reference.rates)
    if not rates.shape[0]:
        return "references: none"
    known = (rates >= 0).mean(axis=1)
    means = [f"{row[row >= 0].mean():.2f}" if (row >= 0).any() else "unknown" for row in rates]
    return f"references: {rates.shape[0]}, mean rates {', '.join(means)}, known {known.min():.0%}"


_MOST_LINES = 6


def _spreads(state: State) -> list[str]:
    """The least, middle and greatest of what is held of each row."""
    rows = state.reference.rates.shape[1]
    lines = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.belief)[0]:
        if np.shape(leaf) != (rows,) or not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            continue
        low, middle, high = np.quantile(np.asarray(leaf), [0, 0.5, 1])
        name = jax.tree_util.keystr(path).lstrip(".")
        lines.append(f"  {name}: {low:.3g} to {high:.3g}, median {middle:.3g}")
    return lines[:_MOST_LINES]
