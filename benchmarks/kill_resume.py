"""kill -9 at random moments of a comparison, a benchmark and a sampler; each goes on to its end.

Three things that save as they go: `finetune` (`bots-jax finetune`), `bench` (`bots-jax bench`) and
`sampler` (a loop over `TaskSampler` that saves at each step, below). A trial begins anew, is killed
so many times, each time at a random moment, goes on, and in the end every number is compared with
those of a run that nothing interrupted. The result file grows by a line a trial: a benchmark that
was itself stopped goes on where it was, as long as neither the package nor the libraries nor the
settings have changed; else it begins anew.

Run: python -m benchmarks.kill_resume --kills sampler=150 bench=30 finetune=20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import bots_jax
from benchmarks.common import RESULTS, save, where
from bots_jax.bench.store import Store
from bots_jax.rl.run_folder import RunFolder

FINETUNE = [
    "--strategies", "uniform,bots", "--seeds", "1", "--steps", "20", "--eval-every", "10",
    "--num-tasks", "1024", "--num-held-out", "64", "--warmup-early", "10",
    "--warmup-steps", "20", "--warmup-late", "30", "--reference-rollouts", "2",
]  # fmt: skip
BENCH = [
    "--strategy=uniform", "--strategy=bots", "--strategy=kgps", "--seeds", "3", "--no-plots",
    "--environment=simulation,num_tasks=200,steps=20",
]  # fmt: skip
SAMPLER_STEPS = 120
TIMINGS = {"seconds", "cell_seconds", "select_ms", "step_ms", "shared_seconds"}
LONGEST = 900.0  # seconds that a run may take before it counts as hung
NAME = "kill_resume"

Rows = dict[str, Any]


class Kind(NamedTuple):
    """One thing that may be killed."""

    command: Callable[[Path, Path], list[str]]  # out, cache: the same for the start and a resume
    numbers: Callable[[Path], Any]  # out: everything that must be the same
    lines: Callable[[Any], int]  # of these numbers, how far a run has come


def _steps(out: Path) -> dict[str, list[dict[str, object]]]:
    """Every recorded number of a comparison but the clock's."""
    folder = RunFolder(out)
    return {
        path.stem: [_timeless(line) for line in folder.lines(path.stem)]
        for path in sorted((out / "steps").glob("*.jsonl"))
    }


def _cells(out: Path) -> dict[str, Any]:
    """Every cell of a benchmark, but the clock's numbers."""
    return {name: _timeless(cell) for name, cell in Store(out / "results.jsonl").read().items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(x) for key, x in value.items() if key not in TIMINGS}
    return [_timeless(x) for x in value] if isinstance(value, list) else value


def _told(out: Path) -> list[str]:
    """The line that a sampler writes at its end, and how far it has come."""
    end = out / "end"
    return [end.read_text()] if end.exists() else [""] * len(list(out.glob("step_*")))


def _cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "bots_jax.cli", *words]


KINDS = {
    "sampler": Kind(
        lambda out, cache: [sys.executable, "-m", "benchmarks.kill_resume", "--sampler", str(out)],
        _told,
        len,
    ),
    "bench": Kind(
        lambda out, cache: _cli("bench", *BENCH, "--out", str(out)),
        _cells,
        len,
    ),
    "finetune": Kind(
        lambda out, cache: _cli(
            "finetune", *FINETUNE, "--out", str(out), "--cache", str(cache), "--resume"
        ),
        _steps,
        lambda found: sum(len(lines) for lines in found.values()),
    ),
}


def run_sampler(out: Path) -> None:
    """A loop that saves at each step; the digest of all that it ends with is in out/end."""
    import numpy as np

    from bots_jax.adapters import TaskSampler

    tasks = [f"task {number}" for number in range(300)]
    reference = np.random.default_rng(0).random((2, 300)).astype(np.float32)
    sampler = TaskSampler(
        bots_jax.auto(batch_size=8, rollouts=4), task_ids=tasks, reference=reference, seed=1
    )
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("step_*")):
        sampler.restore(out)
    while sampler.step < SAMPLER_STEPS:
        batch = sampler.next_batch()
        rng = np.random.default_rng(sampler.step)
        sampler.observe(batch.task_ids, rng.integers(0, 5, 8).astype(float), 4, batch.visits)
        sampler.advance()
        sampler.save(out)
    digest = hashlib.sha256()
    for leaf in (np.asarray(x) for x in bots_jax_leaves(sampler.state)):
        digest.update(leaf.tobytes())
    host = {key: value for key, value in sampler.state_dict().items() if key == "host"}
    (out / "end").write_text(digest.hexdigest() + json.dumps(host, sort_keys=True, default=str))


def bots_jax_leaves(state: Any) -> list[Any]:
    """The arrays of a state, keys as numbers."""
    import jax

    return [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]


def run(kind: Kind, out: Path, cache: Path, seconds: float = LONGEST) -> int | None:
    """Run to the end: its exit status; or kill -9 after so many seconds: None."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache / "jax")}
    process = subprocess.Popen(
        kind.command(out, cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()  # also where this benchmark is interrupted; a no-op after the end
        process.wait()


def uninterrupted(kind: Kind, folder: Path) -> float:
    """Leave a whole run in folder/whole, everything cached: the seconds that it took."""
    cache, whole = folder / "cache", folder / "whole"
    for _ in range(2):  # the first compiles and warms up
        shutil.rmtree(whole, ignore_errors=True)
        begin = time.perf_counter()
        if run(kind, whole, cache) != 0:
            raise SystemExit(f"the whole run failed: {' '.join(kind.command(whole, cache))}")
    return time.perf_counter() - begin


def try_once(kind: Kind, folder: Path, moments: list[float]) -> Rows:
    """Kill at these moments of successive runs, then let it end: what came of it."""
    out, cache = folder / "trial", folder / "cache"
    shutil.rmtree(out, ignore_errors=True)
    killed, reached = [], []
    for moment in moments:
        if run(kind, out, cache, moment) is not None:
            break  # it had ended before
        killed.append(round(moment, 2))
        reached.append(kind.lines(kind.numbers(out)))
    status = run(kind, out, cache)
    same = status == 0 and kind.numbers(out) == kind.numbers(folder / "whole")
    return {"killed_after_s": killed, "lines_then": reached, "same": same}


def identity() -> str:
    """What the trials of one result file have in common: code, libraries, settings."""
    digest = hashlib.sha256(json.dumps([FINETUNE, BENCH, SAMPLER_STEPS]).encode())
    for path in sorted(Path(bots_jax.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    versions = {key: value for key, value in where().items() if key != "commit"}
    digest.update(json.dumps(versions, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def recorded(same_as: str, result: str) -> Rows:
    """The rows of the result file, or none of them if they are of something else."""
    try:
        rows = json.loads((RESULTS / f"{result}.json").read_text())["rows"]
    except (OSError, ValueError, KeyError):
        rows = {}
    known = rows.get("identity") == same_as
    return rows if known else {"identity": same_as, "kinds": {}}


def kills(trials: list[Rows]) -> int:
    """How many there were."""
    return sum(len(trial["killed_after_s"]) for trial in trials)


def try_kind(name: str, rows: Rows, wanted: int, a_trial: int, folder: Path, result: str) -> None:
    """Trials of one kind until there were so many kills."""
    kind = KINDS[name]
    told = rows["kinds"].setdefault(name, {"trials": []})
    trials = told["trials"]
    if kills(trials) < wanted and not (folder / "done").exists():
        told["uninterrupted_s"] = round(uninterrupted(kind, folder), 1)
        (folder / "done").touch()
    attempt = 0
    while kills(trials) < wanted:
        rng = random.Random(f"{name} {len(trials)} {attempt}")
        count = min(a_trial, wanted - kills(trials))
        moments = [rng.uniform(0, told["uninterrupted_s"]) for _ in range(count)]
        row = try_once(kind, folder, moments)
        attempt = 0 if row["killed_after_s"] else attempt + 1
        if row["killed_after_s"]:
            trials.append(row)
            save(result, rows)
            print(f"{name}: {kills(trials)} of {wanted} kills: {row}", flush=True)


def main() -> None:
    """Print and save the outcome of each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", nargs="+", default=["sampler=150", "bench=30", "finetune=20"],
        metavar="KIND=N", help="in all, with those recorded",
    )  # fmt: skip
    parser.add_argument("--a-trial", type=int, default=5, help="kills before a run is compared")
    parser.add_argument("--work", default="runs/kill_resume", help="folder to work in")
    parser.add_argument("--result", default=NAME, help="name of the result file")
    parser.add_argument("--sampler", metavar="FOLDER", help="be the sampler that is killed")
    args = parser.parse_args()
    if args.sampler:
        run_sampler(Path(args.sampler))
        return
    rows = recorded(identity(), args.result)
    folder = Path(args.work).absolute() / rows["identity"]
    for name, count in (words.split("=") for words in args.kills):
        (folder / name).mkdir(parents=True, exist_ok=True)
        try_kind(name, rows, int(count), args.a_trial, folder / name, args.result)
    trials = [trial for told in rows["kinds"].values() for trial in told["trials"]]
    same = sum(trial["same"] for trial in trials)
    print(f"{kills(trials)} kills; {same} of {len(trials)} trials ended with the same numbers")
    if same < len(trials):
        raise SystemExit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
