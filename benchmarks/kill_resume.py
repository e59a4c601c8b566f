"""kill -9 at random moments of a short comparison; each time it is resumed to its end.

Every trial starts anew, is killed once at a random moment, resumed, and compared number by
number with a run that nothing interrupted.

Run: python -m benchmarks.kill_resume
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import save
from bots_jax.rl.run_folder import RunFolder

SETTINGS = [
    "--strategies", "uniform,bots", "--seeds", "1", "--steps", "20", "--eval-every", "10",
    "--num-tasks", "1024", "--num-held-out", "64", "--warmup-early", "10",
    "--warmup-steps", "20", "--warmup-late", "30", "--reference-rollouts", "2",
]  # fmt: skip
TIMINGS = {"seconds", "select_ms", "step_ms"}


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


def run(out: Path, cache: Path, seconds: float | None = None) -> float:
    """Run to the end, or kill -9 after so many seconds; the time it took."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command(out, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.perf_counter() - begin


def main() -> None:
    """Print and save the outcome of each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    cache, whole = folder / "cache", folder / "whole"
    run(whole, cache)
    shutil.rmtree(whole)
    length = run(whole, cache)
    expected, moments, rows = numbers(whole), random.Random(0), []
    for trial in range(args.trials):
        out = folder / f"trial{trial}"
        moment = moments.uniform(0, length)
        run(out, cache, moment)
        recorded = sum(len(lines) for lines in numbers(out).values())
        run(out, cache)
        same = numbers(out) == expected
        rows.append({"killed_after_s": round(moment, 2), "lines_then": recorded, "same": same})
        print(rows[-1], flush=True)
        shutil.rmtree(out)
        save("kill_resume", {"uninterrupted_s": round(length, 1), "trials": rows})
    print(f"{sum(row['same'] for row in rows)} of {len(rows)} ended with the same numbers")
    shutil.rmtree(folder)
    if not all(row["same"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
