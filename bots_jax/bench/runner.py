"""Run the missing cells of a plan.

In: a `matrix.Plan` and a `store.Store`. Out: a record of every cell of the plan, in the
store and in memory. All missing seeds of a strategy in an environment run at once, in chunks
of the environment's size; each chunk's cells are on disk before the next begins, so a kill
costs at most one chunk, and the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bots_jax.bench.environment import Measured
from bots_jax.bench.matrix import Job, Plan, plain
from bots_jax.bench.store import Record, Store


class Outcome(NamedTuple):
    """The records of a plan, and what failed."""

    records: list[Record]  # with "strategy" and "environment" as the plan labels them
    failed: list[str]  # a line for each strategy that an environment could not run


Told = Callable[[str, int, int], None]  # (what is going on, cells done, cells in all)


def run_plan(plan: Plan, store: Store, tell: Told) -> Outcome:
    """Run the missing cells and return the records of all.

    Args:
      plan: what is wanted.
      store: what is there already, and where the rest goes.
      tell: is told how far it is.

    What an environment raises is raised, but for ValueError; what was finished is in the store.
    """
    have = store.read()
    cells = {(i, seed): job.cell(seed) for i, job in enumerate(plan.jobs) for seed in job.seeds}
    total = len(cells)
    done = sum(cell in have for cell in cells.values())
    failed: list[str] = []
    for i, job in enumerate(plan.jobs):
        what = f"{job.environment.name}: {job.strategy.name}"
        missing = [seed for seed in job.seeds if cells[i, seed] not in have]
        tell(what, done, total)
        if missing:
            make_room()
        try:
            for chunk in _chunks(missing, job.environment.chunk):
                records = run_chunk(job, chunk)
                store.append(records)
                have |= {record["cell"]: record for record in records}
                done += len(chunk)
                tell(what, done, total)
        except ValueError as error:
            failed.append(f"{what}: {error}")
    records = [
        _labelled(have[cells[i, seed]], job)
        for i, job in enumerate(plan.jobs)
        for seed in job.seeds
        if cells[i, seed] in have
    ]
    return Outcome(records, failed)


def run_chunk(job: Job, seeds: Sequence[int]) -> list[Record]:
    """Run some seeds of a job; returns a record for each."""
    begin = time.perf_counter()
    measured = job.environment.run(job.strategy, seeds)
    seconds = time.perf_counter() - begin
    if len(measured) != len(seeds):
        raise ValueError(
            f"the environment returned {len(measured)} results for {len(seeds)} seeds: return "
            "one a seed"
        )
    share = round(seconds / len(seeds), 4)
    return [_record(job, seed, one, share) for seed, one in zip(seeds, measured, strict=True)]


def make_room() -> None:
    """Drop compiled programs if they use half of the memory maps allowed to a process.

    A program holds about a thousand, Linux allows 65,530 (vm.max_map_count), and a process that
    asks for more dies.
    """
    if share_of_maps() > 0.5:
        jax.clear_caches()


def share_of_maps() -> float:
    """Share of the allowed memory maps in use; 0 where Linux's /proc is missing."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        return Path("/proc/self/maps").read_bytes().count(b"\n") / limit
    except (OSError, ValueError):
        return 0.0


def _record(job: Job, seed: int, measured: Measured, seconds: float) -> Record:
    """All of a cell, as JSON values."""
    told = {key: value for key, value in dataclasses.asdict(measured).items() if value}
    told["series"] = {key: {"x": x, "y": y} for key, (x, y) in measured.series.items()}
    record: Record = plain(
        {
            "cell": job.cell(seed),
            "environment": job.environment.name,
            "about": dict(job.environment.about),
            "strategy": job.strategy.name,
            "settings": dict(job.strategy.settings),
            "origin": job.origin,
            "seed": seed,
            **told,
            "cell_seconds": seconds,
            "where": where(),
        }
    )
    return record


def where() -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    return {
        "machine": platform.machine(),
        "device": jax.devices()[0].device_kind,
        **{name: metadata.version(name) for name in ("jax", "numpy")},
    }


def _labelled(record: Record, job: Job) -> Record:
    return {**record, "strategy": job.strategy.name, "environment": job.environment.name}


def _chunks(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(seeds), max(size, 1)):
        yield seeds[first : first + max(size, 1)]
