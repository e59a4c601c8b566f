"""Mixed groups at equal breadth: how far strategies are above the line of the true rates.

Run: bots-jax bench auto_trace --data FOLDER
     python -m benchmarks.selection.equal_breadth runs/bench/auto_trace/results.jsonl [--only auto]

In: the cells of a matrix of recorded runs with rows `frontier,cost=...`, which choose by the true
rates of the moment. Out: for each strategy its breadth, and its ETR minus that of the line through
those rows at the same breadth, in all steps and the first 50: paired by seed, with 95% intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bots_jax.bench.store import Store
from bots_jax.evaluate import metrics

ORACLE, RATIOS = "frontier", ("etr", "etr_early")
Runs = Mapping[int, Mapping[str, float]]  # values by seed


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row a strategy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", help="results.jsonl of a matrix with rows of `frontier`")
    parser.add_argument("--only", default="", help="strategies whose name begins so")
    given = parser.parse_args(argv)
    by_recording: dict[str, dict[str, dict[int, Any]]] = {}
    for record in Store(given.results).read().values():
        rows = by_recording.setdefault(record["environment"], {})
        rows.setdefault(record["strategy"], {})[record["seed"]] = record["values"]
    for recording, rows in by_recording.items():
        line = [runs for name, runs in rows.items() if name.startswith(ORACLE)]
        print(f"{recording}: breadth, ETR minus the line, in the first 50 steps")
        for name, runs in rows.items():
            if name.startswith(given.only) and not name.startswith(ORACLE):
                breadth = np.mean([values["breadth"] for values in runs.values()])
                print(f"  {name:24s} {breadth:5.0f}", *(_told(runs, line, of) for of in RATIOS))


def _told(runs: Runs, line: Sequence[Runs], ratio: str) -> str:
    found = metrics.mean_interval([values[ratio] - at_breadth(line, seed, values, ratio)
                                   for seed, values in runs.items()])  # fmt: skip
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def at_breadth(line: Sequence[Runs], seed: int, values: Mapping[str, float], ratio: str) -> float:
    """The line's ratio in a seed, at the breadth of `values`; beyond its ends that of the end."""
    points = sorted((runs[seed]["breadth"], runs[seed][ratio]) for runs in line)
    breadths, ratios = np.array(points).T
    return float(np.interp(values["breadth"], breadths, ratios))


if __name__ == "__main__":
    main()
