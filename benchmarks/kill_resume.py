"""kill -9 at random moments of a short comparison; each time it is resumed to its end.

In each trial a comparison starts anew, is killed once at a random moment, resumed, and
compared number by number with one that nothing interrupted. The result file grows by a line
a trial: a benchmark that was itself stopped goes on where it was, as long as neither the
package nor the libraries nor the settings have changed; else it begins anew.

Run: python -m benchmarks.kill_resume
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bots_jax
from benchmarks.common import RESULTS, save, where
from bots_jax.rl.run_folder import RunFolder

SETTINGS = [
    "--strategies", "uniform,bots", "--seeds", "1", "--steps", "20", "--eval-every", "10",
    "--num-tasks", "1024", "--num-held-out", "64", "--warmup-early", "10",
    "--warmup-steps", "20", "--warmup-late", "30", "--reference-rollouts", "2",
]  # fmt: skip
TIMINGS = {"seconds", "select_ms", "step_ms"}
LONGEST = 900.0  # seconds that a run may take before it counts as hung
NAME = "kill_resume"

Rows = dict[str, Any]


def command(out: Path, cache: Path) -> list[str]:
    """The same command for the first start and for every resume."""
    return [
        sys.executable, "-m", "bots_jax.cli", "finetune", *SETTINGS,
        "--out", str(out), "--cache", str(cache), "--resume",
    ]  # fmt: skip


def numbers(out: Path) -> dict[str, list[dict[str, object]]]:
    """Every recorded number but the clock's."""
    folder = RunFolder(out)
    return {
        path.stem: [
            {key: value for key, value in line.items() if key not in TIMINGS}
            for line in folder.lines(path.stem)
        ]
        for path in sorted((out / "steps").glob("*.jsonl"))
    }


def run(out: Path, cache: Path, seconds: float = LONGEST) -> int | None:
    """Run to the end: its exit status; or kill -9 after so many seconds: None."""
    process = subprocess.Popen(
        command(out, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()  # also where this benchmark is interrupted; a no-op after the end
        process.wait()


def uninterrupted(folder: Path) -> float:
    """Leave a whole run in folder/whole, everything cached: the seconds that it took."""
    cache, whole = folder / "cache", folder / "whole"
    for _ in range(2):  # the first compiles and warms up
        shutil.rmtree(whole, ignore_errors=True)
        begin = time.perf_counter()
        if run(whole, cache) != 0:
            raise SystemExit(f"the whole run failed; try: {' '.join(command(whole, cache))}")
    return time.perf_counter() - begin


def try_once(folder: Path, moment: float) -> Rows | None:
    """Kill at this moment and resume; None where the run had ended before."""
    out, cache = folder / "trial", folder / "cache"
    shutil.rmtree(out, ignore_errors=True)
    if run(out, cache, moment) is not None:
        return None
    recorded = sum(len(lines) for lines in numbers(out).values())
    status = run(out, cache)
    same = status == 0 and numbers(out) == numbers(folder / "whole")
    return {"killed_after_s": round(moment, 2), "lines_then": recorded, "same": same}


def identity() -> str:
    """What the trials of one result file have in common: code, libraries, settings."""
    digest = hashlib.sha256(json.dumps(SETTINGS).encode())
    for path in sorted(Path(bots_jax.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    versions = {key: value for key, value in where().items() if key != "commit"}
    digest.update(json.dumps(versions, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def recorded(same_as: str) -> Rows:
    """The rows of the result file, or none of them if they are of something else."""
    try:
        rows = json.loads((RESULTS / f"{NAME}.json").read_text())["rows"]
    except (OSError, ValueError, KeyError):
        rows = {}
    known = rows.get("identity") == same_as
    return rows if known else {"identity": same_as, "trials": []}


def main() -> None:
    """Print and save the outcome of each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="in all, with those recorded")
    parser.add_argument("--work", default="runs/kill_resume", help="folder to work in")
    args = parser.parse_args()
    rows = recorded(identity())
    folder = Path(args.work).absolute() / rows["identity"]
    done = len(rows["trials"])
    print(f"{done} of {args.trials} trials are recorded")
    if done < args.trials and not (rows.get("uninterrupted_s") and (folder / "done").exists()):
        rows["uninterrupted_s"] = round(uninterrupted(folder), 1)
        (folder / "done").touch()
    attempt = 0
    while len(rows["trials"]) < args.trials:
        trial = len(rows["trials"])
        moment = random.Random(f"{trial} {attempt}").uniform(0, rows["uninterrupted_s"])
        row = try_once(folder, moment)
        attempt = attempt + 1 if row is None else 0
        if row is not None:
            rows["trials"].append(row)
            save(NAME, rows)
            print(f"{trial + 1} of {args.trials}: {row}", flush=True)
    same = sum(row["same"] for row in rows["trials"])
    print(f"{same} of {len(rows['trials'])} ended with the same numbers")
    if same < len(rows["trials"]):
        raise SystemExit(1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
