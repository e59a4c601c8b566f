"""A readable summary of a state, in ten lines.

In: a `State` of any selector. Out: what is in the pool, what is in flight, what is believed.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bots_jax.checks import is_concrete
from bots_jax.choice.worth import chance_of_mixed_group
from bots_jax.settings import group_in_force
from bots_jax.types import Selector, State

_LOOKED_AT = 4096  # tasks that predictions are averaged over, evenly spaced


def summary(state: State, selector: Selector | None = None) -> str:
    """Summarise a state in about ten lines of text.

    Args:
      state: of any selector.
      selector: the one that it is of: then numbers without effect are left out, and a line says
        what a batch of random tasks would bring, pass rate and share of mixed groups. That share is
        averaged over what is not known of each task; the chance at the mean rate would promise too
        much wherever tasks differ. It is what is believed: too high where the policy has improved
        since most tasks were last visited. Batches of random tasks measure it (docs/your_loop.md).

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
    obeyed = None if selector is None else selector.obeys
    shown = {k: v for k, v in state.settings._asdict().items() if obeyed is None or k in obeyed}
    lines.append("settings: " + ", ".join(f"{k} {float(v):.4g}" for k, v in shown.items()))
    lines.append(f"belief: {type(state.belief).__name__}")
    if selector is not None:
        lines.append(_expected(state, selector))
    lines += _spreads(state)
    return "\n".join(lines)


def _expected(state: State, selector: Selector) -> str:
    rate, mixed = expected_of_random_tasks(state, selector)
    group = round(float(group_in_force(state.settings)))
    return f"expected of random tasks: pass rate {rate:.2f}, mixed groups of {group} {mixed:.0%}"


def expected_of_random_tasks(state: State, selector: Selector) -> tuple[float, float]:
    """Expected pass rate and share of mixed groups of tasks drawn at random."""
    ids: Any = range(int(state.capacity))  # of a large pool there is no list
    if state.representation == "dense":
        ids = np.flatnonzero(np.asarray(state.bookkeeping.active))
    if not len(ids):
        return np.nan, np.nan
    places = np.linspace(0, len(ids) - 1, min(len(ids), _LOOKED_AT)).astype(int)
    some = np.array([ids[place] for place in places.tolist()], np.int32)
    some = some[np.asarray(state.column_of(some)) < state.known.num_tasks.shape[0]]  # not retired
    if not some.size:
        return np.nan, np.nan
    mean, counts = selector.predict(state, some)
    group = group_in_force(state.settings)
    mixed = chance_of_mixed_group(mean * counts, (1 - mean) * counts, group)
    rate, share = (np.mean(np.asarray(each), dtype=np.float64) for each in (mean, mixed))
    return float(rate), float(share)


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
