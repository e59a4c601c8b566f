"""A step (select 512, then update) of `auto` beside one of `bots`.

Dense and grouped run in turns of ten steps in one process, on the same pool: two reference models,
counts out of 16, 16 rollouts; above 1e7 tasks groups with sizes, and no dense pool. Medians after
`--warm` steps.

Run: python -m benchmarks.auto_step [--sizes 1e6 1e7 1e9]
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.common import save
from benchmarks.step import LARGEST, in_turns, our_step, timed

FORMS = ("dense", "grouped")


def main() -> None:
    """Print and save a row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e5, 1e6, 1e7, 1e9))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--out", default="auto_step", help="name of the JSON file")
    parser.add_argument("--warm", type=int, default=100, help="steps before the measured ones")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes):
        sides = {
            f"{method} {form}": our_step(form, size, None, method)
            for method in ("bots", "auto")
            for form in args.forms
            if size <= LARGEST[form]
        }
        first = {name: timed(run) / 1e3 for name, run in sides.items()}
        for run in sides.values():
            for _ in range(args.warm):
                run()
        ms = {name: statistics.median(t) for name, t in in_turns(sides, args.rounds).items()}
        ratios = {
            f"auto/bots {form}": ms[f"auto {form}"] / ms[f"bots {form}"]
            for form in args.forms
            if f"auto {form}" in ms
        }
        rows.append({"size": size, "first_s": first, "ms": ms, **ratios})
        print(rows[-1], flush=True)
    save(args.out, rows)


if __name__ == "__main__":
    main()
