"""An independent NumPy float64 reading of the method, written from the paper's equations.

Slow and plain on purpose: loops over tasks, no code shared with the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Oracle:
    """The posterior of every task and the capability of every domain."""

    reference: np.ndarray  # [2, N], NaN = unknown
    rollouts: float = 16
    forgetting: float = 0.1
    implicit_weight: float = 0.1
    momentum: float = 0.9
    adaptive: bool = False
    prior: tuple[float, float] = (1.0, 1.0)
    domains: np.ndarray | None = None
    capability: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_tasks = self.reference.shape[1]
        self.alpha = np.full(self.num_tasks, self.prior[0])
        self.beta = np.full(self.num_tasks, self.prior[1])
        if self.domains is None:
            self.domains = np.zeros(self.num_tasks, int)

    def _domain(self, task: int) -> int:
        assert self.domains is not None
        return int(self.domains[task])

    def _has_reference(self, task: int) -> bool:
        return bool(np.all(np.isfinite(self.reference[:, task])))

    def _update_capability(self, rates: dict[int, float]) -> None:
        for domain in {self._domain(task) for task in rates}:
            mine = [k for k in rates if self._domain(k) == domain and self._has_reference(k)]
            if not mine:
                continue
            weak, strong = self.reference[:, mine].mean(axis=1)
            if abs(strong - weak) < 1e-3:
                continue
            seen = (np.mean([rates[k] for k in mine]) - weak) / (strong - weak + 1e-6)
            before = self.capability.get(domain)
            smooth = self.momentum
            self.capability[domain] = (
                seen if before is None else smooth * before + (1 - smooth) * seen
            )

    def implicit(self, task: int) -> float | None:
        """p~ of a task, None where unknown."""
        at = self.capability.get(self._domain(task))
        if at is None or not self._has_reference(task):
            return None
        weak, strong = self.reference[:, task]
        return float(np.clip(weak + at * (strong - weak), 0, 1))

    def update(self, task_ids: np.ndarray, successes: np.ndarray, trials: np.ndarray) -> None:
        """One time step with this evidence."""
        s, n = np.zeros(self.num_tasks), np.zeros(self.num_tasks)
        for task, won, tried in zip(task_ids, successes, trials, strict=True):
            s[task] += won
            n[task] += tried
        rates = {k: s[k] / n[k] for k in range(self.num_tasks) if n[k] > 0}
        self._update_capability(rates)
        guesses = {k: self.implicit(k) for k in rates}
        errors = [abs(p - rates[k]) for k, p in guesses.items() if p is not None]
        if self.adaptive and errors and np.mean(errors) >= 0.25:
            self.implicit_weight /= 2
        for task in range(self.num_tasks):
            p = self.implicit(task)
            more = 0.0
            if p is not None:
                more = self.implicit_weight * max(self.rollouts - n[task], 0)
            gained, lost = s[task], n[task] - s[task]
            if p is not None:
                gained, lost = gained + more * p, lost + more * (1 - p)
            keep, forget = 1 - self.forgetting, self.forgetting
            self.alpha[task] = keep * self.alpha[task] + forget * self.prior[0] + gained
            self.beta[task] = keep * self.beta[task] + forget * self.prior[1] + lost
