"""The frontier: an oracle's ETR at each breadth (effective number of tasks).

In: the true rates f[T, N], given as reference. At each step the B tasks are chosen with the
largest

    V_k - c log((v_k + 1) / (mean v + 1)),   V = 1 - p^m - (1 - p)^m

v being the visits so far. c = 0 takes the likeliest mixed groups; the larger c, the more
evenly the tasks are visited. Over c this traces a curve in the plane of ETR and breadth: a
strategy is as far below it as its beliefs, or its way of spreading, are worse. It is no bound: as
breadth is counted over the whole run, who foresees which tasks will soon be solved does better.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bots_jax.strategies.oracle import oracle
from bots_jax.types import ArrayLike, Selector


def frontier(
    *, batch_size: int = 32, rollouts: ArrayLike = 8, cost: float = 0.1, dtype: Any = None
) -> Selector:
    """Oracles that choose by the true rates and spread over the tasks, forgetting no visit.

    Args:
      batch_size: B. rollouts: m. cost: c >= 0. dtype: as in `bots`.

    Raises:
      ValueError: where a number is out of range.
    """
    return _spreading("frontier", "all", batch_size, rollouts, cost, dtype)


def finder(
    *, batch_size: int = 32, rollouts: ArrayLike = 8, cost: float = 0.1, dtype: Any = None
) -> Selector:
    """The same, told each rate as it was at the task's last visit: what finding the tasks costs."""
    return _spreading("finder", "visited", batch_size, rollouts, cost, dtype)


def _spreading(
    name: str, sees: str, batch_size: int, rollouts: ArrayLike, cost: float, dtype: Any
) -> Selector:
    if not cost >= 0:
        raise ValueError(f"cost={cost} must be at least 0")
    made = oracle(
        batch_size=batch_size,
        rollouts=rollouts,
        choice="mixed",
        breadth=cost,
        keep=1.0,
        sees=sees,
        dtype=dtype,
    )
    return dataclasses.replace(
        made,
        recipe=None,
        static={**made.static, "strategy": name, "reads": "truth", "cost": float(cost)},
    )
