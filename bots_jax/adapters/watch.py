"""Metrics of recent selections: which tasks were chosen, and which groups were starved.

In: the rows handed out, step by step. Out: numbers for a logger.

    entropy of the choice  -sum_k q_k log q_k, q = shares of the tasks handed out in the window
    starved group          has tasks, none of which was handed out in the window

A *group* is a domain where the pool has several; else tasks whose references have the same
mean pass rate, in tenths, and one more group of those without references.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.grouped.groups import group_of
from bots_jax.types import Info, State

_UNKNOWN = 10  # label of tasks without references; below it, tenths of the mean rate


class ChoiceWatch:
    """The rows given out in the last `window` steps."""

    def __init__(self, window: int):
        self.steps: deque[list[int]] = deque([[]], maxlen=window)

    def hand_out(self, rows: list[int]) -> None:
        """Record rows given out in the current step."""
        self.steps[-1].extend(rows)

    def end_step(self) -> None:
        """End the step; the oldest step may leave the window."""
        self.steps.append([])

    def rows(self) -> np.ndarray:
        """i32[...]: all rows in the window, with repeats."""
        return np.array([row for step in self.steps for row in step], np.int32)

    def measure(self, labels: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
        """Entropy and starvation.

        Args:
          labels: i32[...], the group of each of `rows()`.
          sizes: i64[G], tasks of each group.
        """
        rows = self.rows()
        _, counts = np.unique(rows, return_counts=True)
        shares = counts / max(len(rows), 1)
        entropy = float(-np.sum(shares * np.log(shares)))
        starved = (sizes > 0) & (np.bincount(labels, minlength=len(sizes)) == 0)
        return {
            "choice_entropy": entropy,
            "breadth": math.exp(entropy) if len(rows) else 0.0,
            "starved_groups": float(np.sum(starved)),
            "starved_share": float(np.sum(sizes[starved]) / max(np.sum(sizes), 1)),
        }


class StepNotes:
    """Metrics of the last step, and totals over all steps."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.totals = {"total_evaluated": 0.0, "total_trials": 0.0, "total_successes": 0.0}

    def note(self, info: Info, ages: list[int]) -> None:
        """Record the metrics of a step that has ended.

        Args:
          info: of `advance`.
          ages: steps between selecting each evaluated task and fusing its evidence.
        """
        told = jax.device_get(info)
        trials = float(told.trials)
        self.totals["total_evaluated"] += float(told.evaluated)
        self.totals["total_trials"] += trials
        self.totals["total_successes"] += trials * float(told.success_rate)
        self.last = {name: float(getattr(told, name)) for name in _TOLD}
        capability = np.atleast_1d(told.capability)
        several = len(capability) > 1
        for domain, value in enumerate(capability):
            self.last[f"capability/{domain}" if several else "capability"] = float(value)
        self.last["staleness_mean"] = float(np.mean(ages)) if ages else 0.0
        self.last["staleness_max"] = float(max(ages, default=0))

    def as_json(self) -> dict[str, Any]:
        """Both, as JSON values."""
        return {"last": dict(self.last), "totals": dict(self.totals)}

    def resume(self, saved: dict[str, Any]) -> None:
        """Resume from the values of `as_json`."""
        self.last, self.totals = dict(saved["last"]), dict(saved["totals"])


_TOLD = ("effective_task_ratio", "success_rate", "evaluated", "implicit_weight",
         "implicit_error", "displaced")  # fmt: skip


class PoolGroups:
    """The groups of a state's tasks; made anew when the pool changes."""

    def __init__(self, state: State):
        known = state.known
        self._groups = state.pool.groups if state.representation == "grouped" else None
        single = known.domain is None or state.num_domains == 1
        labels = _tenths(np.asarray(known.reference.rates)) if single else known.domain
        self._labels = np.asarray(labels, np.int32)
        weights = np.asarray(known.num_tasks)
        self.sizes = np.bincount(self._labels, weights=weights).astype(np.int64)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """i32[M]: the group of each row."""
        if self._groups is not None:
            rows = np.asarray(group_of(self._groups, jnp.asarray(rows, jnp.int32)))
            rows = np.minimum(rows, len(self._labels) - 1)  # a retired task has no group
        return self._labels[rows]


def _tenths(rates: np.ndarray) -> np.ndarray:
    """i8[C] from f[K, C] pass rates, -1 where unknown."""
    known = rates >= 0
    total = np.sum(np.where(known, rates, 0), axis=0, dtype=np.float64)
    mean = total / np.maximum(np.sum(known, axis=0), 1)
    tenth = np.minimum(10 * mean, 9).astype(np.int8)
    return np.where(known.any(axis=0), tenth, np.int8(_UNKNOWN))
