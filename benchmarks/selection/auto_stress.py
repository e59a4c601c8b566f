"""auto() where something is wrong: references that mislead, rewards that fail at first.

In: a recorded run. Out: results/auto_stress.json and a table.

1. References: as recorded, shuffled between the tasks (another permutation at each seed),
   reversed (1 - r) and far stronger than the policy (1 - (1 - r)^8), each against none at all,
   in the second pass over the pool and in all later ones. Paired by seed, 95% intervals.
2. Rewards: all 0 in the first 20 steps, as with a broken verifier. Visits of each tenth of
   the pool in steps 21 to 220, as a share of what the same seeds give it in a clean run. Tenths
   by the weak reference, the strong one and the true rate.

Run: python -m benchmarks.selection.auto_stress FILE [--seeds 10]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import save
from bots_jax import auto
from bots_jax.evaluate.metrics import breadth, effective_task_ratio, paired_interval, visit_counts
from bots_jax.evaluate.replay import Recording, Replay, load_recording, run_replay

BATCH = 32
BROKEN, WATCHED = 20, 220  # steps
Floats = npt.NDArray[Any]


def distort(kind: str, reference: Floats, seed: int) -> Floats | None:
    """The references that a run of this seed is told."""
    if kind == "none":
        return None
    if kind == "shuffled":
        return np.random.default_rng(seed).permutation(reference, axis=1)
    if kind == "reversed":
        return 1 - reference
    return reference if kind == "recorded" else 1 - (1 - reference) ** 8


KINDS = ("none", "recorded", "shuffled", "reversed", "far stronger")


def mislead(recording: Recording, reference: Floats, seeds: range) -> list[dict[str, Any]]:
    """Part 1: a row for each kind of references and part of the run."""
    tasks = recording.success_rate.shape[1]
    pass_over = -(-tasks // BATCH)
    parts = {"second pass": slice(pass_over, 2 * pass_over), "after": slice(2 * pass_over, None)}
    selector = auto(batch_size=BATCH, rollouts=recording.rollouts)
    values: dict[tuple[str, str, str], list[float]] = {}
    for kind in KINDS:
        for seed in seeds:
            told = recording._replace(reference=distort(kind, reference, seed))
            run = run_replay(selector, told, [seed])
            etr = effective_task_ratio(run.successes[0], run.trials[0])
            for part, steps in parts.items():
                values.setdefault((kind, part, "etr"), []).append(float(np.nanmean(etr[steps])))
                rmse = float(np.mean(run.belief_rmse[0][steps]))
                values.setdefault((kind, part, "rmse"), []).append(rmse)
                chosen = visit_counts(run.task_ids[0][steps], tasks)
                values.setdefault((kind, part, "breadth"), []).append(float(breadth(chosen)))
    rows = []
    for (kind, part, measure), own in values.items():
        less = paired_interval(own, values["none", part, measure])
        row = {"references": kind, "steps": part, "measure": measure, "mean": float(np.mean(own))}
        row |= {"less_none": [less.value, less.low, less.high]}
        digits = 0 if measure == "breadth" else 3
        shown = f"{row['mean']:.{digits}f}  less none {less.text(digits, '+')}"
        print(f"{kind:>12} {part:>11} {measure:>7} {shown}")
        rows.append(row)
    return rows


def starve(recording: Recording, reference: Floats, seeds: range) -> list[dict[str, Any]]:
    """Part 2: a row for each way of dividing the pool into tenths."""
    selector = auto(batch_size=BATCH, rollouts=recording.rollouts)
    broken = recording.success_rate.copy()
    broken[:BROKEN] = 0
    clean, after = (
        _visits(
            run_replay(selector, recording._replace(success_rate=rates), seeds, steps=WATCHED),
            rates.shape[1],
        )
        for rates in (recording.success_rate, broken)
    )
    by = {
        "weak reference": reference[0],
        "strong reference": reference[1],
        "true rate": recording.success_rate[:WATCHED].mean(axis=0),
    }
    rows = []
    for name, values in by.items():
        tenths = np.array_split(np.argsort(values, kind="stable"), 10)
        before = np.array([clean[tasks].sum() for tasks in tenths])
        kept = np.array([after[tasks].sum() for tasks in tenths]) / before
        print(f"tenths by {name}: least {kept.min():.2f} of a clean run's visits")
        rows.append({"tenths_by": name, "share": kept.tolist(), "clean_visits": before.tolist()})
    return rows


def _visits(replay: Replay, num_tasks: int) -> npt.NDArray[np.int64]:
    """i64[N], of all seeds after the broken steps."""
    return visit_counts(replay.task_ids[:, BROKEN:], num_tasks)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", help="a recorded run, .npz")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    recording = load_recording(args.file)
    if recording.reference is None:
        raise SystemExit(f"{args.file} has no references: nothing to distort")
    seeds = range(args.seeds)
    given = recording, recording.reference, seeds
    rows = {"references": mislead(*given), "rewards": starve(*given)}
    save("auto_stress", rows, recording=recording.name, seeds=args.seeds, batch_size=BATCH)


if __name__ == "__main__":
    main()
