"""Replay of a recorded run as an environment; see `bots_jax.evaluate.replay` for how it works.

In: an .npz recording. Out: for each seed the ETR, breadth and mean p(1-p) of what was
selected, and how good the belief over all tasks was before each step (`evaluate.meter`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bots_jax.bench.environment import Environment, Measured, Series, Strategy, reads_truth
from bots_jax.bench.measures import SHARED_SECONDS
from bots_jax.evaluate import meter, metrics
from bots_jax.evaluate.replay import Recording, Replay, load_recording, run_replay
from bots_jax.evaluate.told import TOLD

SERIES = ("log_loss", "rmse", "pearson", "auc_unsolved")


def replay_environment(
    *,
    path: str,
    batch_size: int = 32,
    rollouts: int | None = None,
    steps: int | None = None,
    name: str | None = None,
) -> Environment:
    """Run strategies against a recording.

    Args:
      path: of the .npz file.
      batch_size: B.
      rollouts: m; None for that of the recording.
      steps: the first steps of the recording; None for all.
      name: for the tables; None for the file's.

    Raises:
      ValueError: where the file is not a recording, or a size is out of range.
    """
    recording = load_recording(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return of_recording(
        recording,
        batch_size=batch_size,
        rollouts=rollouts,
        steps=steps,
        name=name or f"replay of {Path(path).stem}",
        digest=digest,
    )


def of_recording(
    recording: Recording,
    *,
    batch_size: int = 32,
    rollouts: int | None = None,
    steps: int | None = None,
    name: str = "replay",
    digest: str = "",
) -> Environment:
    """The environment of a recording in memory; arguments as in `replay_environment`."""
    recorded, tasks = recording.success_rate.shape
    steps = min(steps or recorded, recorded)
    rollouts = recording.rollouts if rollouts is None else rollouts
    rates = recording.success_rate[:steps]
    rows = meter.rows_of_map(rates)
    watch = meter.watcher(rollouts, rows)

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        selector = strategy.make(batch_size=batch_size, rollouts=rollouts)
        truth = recording.success_rate if reads_truth(selector) else None
        begin = time.perf_counter()
        replay = run_replay(
            selector,
            recording,
            seeds,
            steps=steps,
            rollouts=rollouts,
            reference=truth,
            told=strategy.told,
            watch=watch,
        )
        seconds = (time.perf_counter() - begin) / len(seeds)
        told = [_measure(replay, i, rates, rows, s == 0) for i, s in enumerate(seeds)]
        return [
            dataclasses.replace(
                one, values={**one.values, SHARED_SECONDS: seconds}, truth=truth is not None
            )
            for one in told
        ]

    about = {
        "recording": recording.name, "digest": digest, "tasks": tasks, "steps": steps,
        "batch_size": batch_size, "rollouts": rollouts,
    }  # fmt: skip
    headline = ("etr", "etr_early", "log_loss", "rmse")
    return Environment(name, run, about, curve="etr", headline=headline, tells=TOLD)


def _measure(
    replay: Replay,
    index: int,
    rates: np.ndarray,
    rows: tuple[int, ...],
    mapped: bool,
) -> Measured:
    """One seed; with a map of the posteriors where `mapped`."""
    readings, means = meter.of_seed(replay.watched, index)
    ids, trials = replay.task_ids[index], replay.trials[index]
    successes, generated = replay.successes[index], replay.generated[index]
    values = {
        **metrics.selection_metrics(ids, successes, trials, rates.shape[1]),
        **meter.averages(readings),
        "rollouts": float(np.sum(generated, dtype=np.float64)),
        "useful": metrics.useful_share(successes, trials, generated),
    }
    series = {"etr": Series(*meter.blocks(metrics.effective_task_ratio(successes, trials)))}
    series |= {key: Series(*meter.blocks(getattr(readings, key))) for key in SERIES}
    posteriors = meter.as_map(means, rates[:, list(rows)], ids, rows) if mapped else None
    return Measured(values, series, meter.calibration(readings), posteriors)
