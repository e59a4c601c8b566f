"""The simulated learning policy as an environment: a thin adapter of `bots_jax.simulator`.

In: sizes of the pool and the run. Out: for each seed what was selected (ETR, breadth), what
was learned (success rate on tasks that were never trained on) and how good the belief was.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bots_jax.bench.environment import (
    Environment,
    Measured,
    Series,
    Strategy,
    only_free,
    reads_truth,
)
from bots_jax.bench.measures import SHARED_SECONDS
from bots_jax.evaluate import meter, metrics


def simulation_environment(
    *,
    num_tasks: int = 2000,
    steps: int = 500,
    batch_size: int = 32,
    rollouts: int = 8,
    domains: bool = False,
    name: str | None = None,
) -> Environment:
    """Train the simulated policy on what a strategy selects.

    Args:
      num_tasks: N. steps: T. batch_size: B. rollouts: m.
      domains: whether the selector is told each task's main skill as its domain.
      name: for the tables.

    Raises:
      ValueError: where this installation has no simulator.
    """
    try:
        simulator: Any = importlib.import_module("bots_jax.simulator")
    except ModuleNotFoundError as error:
        raise ValueError(f"the simulation needs {error.name}, which is missing") from None

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        selector = only_free(strategy, strategy.make(batch_size=batch_size, rollouts=rollouts))
        if reads_truth(selector):
            raise ValueError(
                f"strategy {strategy.name} wants the true rates, which depend on what it selects"
            )
        begin = time.perf_counter()
        simulation = simulator.run_simulation(
            selector, None, seeds, steps, num_tasks=num_tasks, rollouts=rollouts, domains=domains
        )
        seconds = (time.perf_counter() - begin) / len(seeds)
        return [_measure(simulation, i, num_tasks, seconds) for i in range(len(seeds))]

    about = {
        "num_tasks": num_tasks, "steps": steps, "batch_size": batch_size, "rollouts": rollouts,
        "domains": domains,
    }  # fmt: skip
    return Environment(
        name=name or f"simulation of {num_tasks} tasks",
        run=run,
        about=about,
        curve="heldout",
        headline=("etr", "heldout", "rmse"),
    )


def _measure(simulation: Any, index: int, num_tasks: int, seconds: float) -> Measured:
    s, n = simulation.successes[index], simulation.trials[index]
    ids = simulation.task_ids[index]
    heldout = np.asarray(simulation.heldout_rate[index], np.float64)
    values = {
        **metrics.selection_metrics(ids, s, n, num_tasks),
        "variance": metrics.outcome_variance(s, n),
        "heldout": float(heldout[-1]),
        "rmse": float(np.mean(simulation.belief_rmse[index], dtype=np.float64)),
        "pearson": metrics.known_mean(simulation.belief_correlation[index]),
        "rollouts": float(n.sum()),
        SHARED_SECONDS: seconds,
    }
    series = {
        "etr": Series(*meter.blocks(metrics.effective_task_ratio(s, n))),
        "heldout": Series(*meter.blocks(heldout)),
        "rmse": Series(*meter.blocks(simulation.belief_rmse[index])),
    }
    return Measured(values, series)
