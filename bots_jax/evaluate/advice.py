"""`bots-jax advise`: an estimate of what selection would gain in your pool.

In: a file of how often the first policy solves your tasks (`outcomes.py`), and the length of the
run. Out: the shares mixed, solved and hopeless, TTB(100%) of `auto` against uniform at that
place of the map (`selection_map.json`, made by `benchmarks/selection_map.py`), and settings.

Between the map's cells log TTB is interpolated: in a straight line over the share never solved
(on a scale that gives the hard end room), the share of guesses, and the log of the passes. The
simulated policy gains more by selection than a real one did: in the worlds, told the prompts, log
TTB was a fraction b of the map's, fitted to all of them. What is told is b times the map's. The
interval (Student's t) holds two errors: that of the map's cells over seeds, and how far the worlds
were from their fit.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from bots_jax.checks import check_count
from bots_jax.evaluate import metrics
from bots_jax.evaluate.outcomes import Outcomes, Shares, read_outcomes, shares_of

PASSES = (0.3, 1.0, 5.0)  # shown where it is not said how long the run is
_NORMAL = 1.96
_TOLD = "prompts"  # what auto was told in the worlds that the map is fitted to

_DESCRIPTION = """\
Estimate, from how often your policy solves your tasks before training (pass rates, counts, or the
rewards of the first steps), which share of them is mixed, solved and hopeless, and what task
selection would gain according to the map of docs/when_selection_pays.md. Recommends settings."""

_EPILOG = """\
FILE is .npz, .parquet or .jsonl with one of: pass_rate; successes and trials; rewards (a list a
row); reward (a row a rollout, with id). Optional columns: id (rows with one id are one task) and
domain or family (to find domains that are solved by guessing). Rows must be a random sample of
the pool, so rewards of a run that selected its tasks do not qualify.

bots-jax advise rates.jsonl --steps 400 --batch-size 64 --rollouts 8
bots-jax advise first_steps.parquet --num-tasks 40000 --steps 1000 --batch-size 128 --json"""


class Estimate(NamedTuple):
    """TTB(100%) of `auto` against uniform, with a 95% interval."""

    value: float
    low: float
    high: float


def add_advise_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `advise` to what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "advise",
        help="estimate what selection would gain in your pool, and recommend settings",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="outcomes of your tasks, see below")
    add("--rollouts", type=int, default=8, help="rollouts of a task in a step [%(default)s]")
    add("--steps", type=int, help="number of steps of the planned run")
    add("--batch-size", type=int, default=32, help="tasks a step [%(default)s]")
    add("--num-tasks", type=int, help="number of tasks in the whole pool [as in the file]")
    add("--trials", type=int, metavar="N", help="rollouts behind each pass_rate [exact]")
    add(
        "--solved-at",
        type=float,
        metavar="R",
        help="least reward that is a success [rewards: 0, 1]",
    )
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=advise_command)
    return parser


def advise_command(args: argparse.Namespace) -> int:
    """Run `bots-jax advise`; returns the exit status."""
    try:
        for name in ("rollouts", "steps", "batch_size", "num_tasks", "trials"):
            if getattr(args, name) is not None:
                check_count(f"--{name.replace('_', '-')}", getattr(args, name))
        if args.rollouts < 2:
            raise ValueError("--rollouts 1: a group of one is never mixed: give at least 2")
        outcomes = read_outcomes(args.file, trials=args.trials, solved_at=args.solved_at)
        found = advise(outcomes, args.rollouts, args.steps, args.batch_size, args.num_tasks)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        sys.stderr.write(f"bots-jax advise: {error}\n")
        return 2
    sys.stdout.write((json.dumps(found, indent=1) if args.json else as_text(found)) + "\n")
    return 0


def advise(
    outcomes: Outcomes,
    rollouts: int = 8,
    steps: int | None = None,
    batch_size: int = 32,
    num_tasks: int | None = None,
) -> dict[str, Any]:
    """Shares, estimated gain and recommended settings, as JSON values.

    Args:
      outcomes: of a random sample of the pool, by the policy before training.
      rollouts: m. steps: of the run; None: unknown. batch_size: B.
      num_tasks: in the pool; None: those of `outcomes`.

    Raises:
      ValueError: where the pool is smaller than the sample.
    """
    seen = len(outcomes.successes)
    tasks = seen if num_tasks is None else num_tasks
    if tasks < seen:
        raise ValueError(f"--num-tasks {tasks} is below the {seen} tasks of the file")
    shares = shares_of(outcomes, rollouts)
    if shares.rollouts < 2:
        raise ValueError(
            "some task has a single rollout, by which no group is mixed: leave out tasks with "
            "less than two, or put rows of one task together by a column id"
        )
    told = {name: _interval(getattr(shares, name)) for name in ("mixed", "always", "never")}
    guessed = guessed_domains(outcomes, shares)
    share = None if guessed is None else sum(one["share_of_mixed"] for one in guessed)
    passes = None if steps is None else steps * batch_size / tasks
    never = told["never"]["value"]
    estimates = [
        {"passes": at, "guesses": guesses, **look_up(never, guesses, at)._asdict()}
        for at in (PASSES if passes is None else (passes,))
        for guesses in ((0.0, 0.5) if share is None else (min(share, 1.0),))
    ]
    return {
        "tasks": seen,
        "num_tasks": tasks,
        "rollouts": shares.rollouts,
        "shares": told,
        "guessed_domains": guessed,
        "passes": passes,
        "ttb": estimates,
        "advice": _advice(told, passes, tasks, rollouts, shares.rollouts, guessed),
    }


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean over the tasks of the sample, with the error of a sample."""
    found = metrics.mean_interval(values) if len(values) > 1 else None
    if found is None:
        return {"value": float(values[0]), "low": 0.0, "high": 1.0}
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    return {"value": float(found.value), "low": float(low), "high": float(high)}


# --- the map ----------------------------------------------------------------------------------


@functools.cache
def read_map() -> dict[str, Any]:
    """The map that comes with the package."""
    text = resources.files("bots_jax.evaluate").joinpath("selection_map.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def look_up(
    never: float, guesses: float, passes: float, the_map: Mapping[str, Any] | None = None
) -> Estimate:
    """TTB(100%) at a place of the map; the nearest edge beyond it.

    Args:
      never: share of the tasks that a group never solves.
      guesses: share of the mixed tasks that are guessed.
      passes: over the pool in the run.
      the_map: None for the package's.
    """
    the_map = read_map() if the_map is None else the_map
    share, off, points = fit(the_map)
    middle, error = _log_ttb(the_map["cells"], never, guesses, passes)
    half = metrics.t_quantile(points - 1) * math.hypot(share * error, off)
    middle *= share
    return Estimate(*(round(math.exp(middle + by), 3) for by in (0.0, -half, half)))


def fit(the_map: Mapping[str, Any]) -> tuple[float, float, int]:
    """b of log TTB in the worlds = b log TTB of the map, its residual error, and how many."""
    points = [point for point in the_map["worlds"] if point["told"] == _TOLD]
    real = np.log([point["ttb"]["value"] for point in points])
    mapped = np.array([
        _log_ttb(the_map["cells"], point["never"], point["guesses"], point["passes"])[0]
        for point in points
    ])  # fmt: skip
    share = float(real @ mapped / (mapped @ mapped))
    off = math.sqrt(float(np.sum((real - share * mapped) ** 2)) / (len(points) - 1))
    return share, off, len(points)


def _log_ttb(
    cells: Sequence[Mapping[str, Any]], never: float, guesses: float, passes: float
) -> tuple[float, float]:
    """log TTB and its standard error over seeds, interpolated."""
    lines: dict[float, dict[float, tuple[float, float]]] = {}
    # Where uniform gains nothing there is no TTB: the nearest cell with one stands in.
    cells = [c for c in cells if not c["in_reach"] and c["ttb"]["value"] is not None]
    for one, asked in {(c["passes"], c["asked"][1]) for c in cells}:
        line = [c for c in cells if (c["passes"], c["asked"][1]) == (one, asked)]
        line.sort(key=lambda c: c["never"])
        at = [_stretch(c["never"]) for c in line]
        logs = [math.log(c["ttb"]["value"]) for c in line]
        errors = [
            (math.log(c["ttb"]["high"]) - math.log(c["ttb"]["low"])) / (2 * _NORMAL) for c in line
        ]
        place = _stretch(never)
        lines.setdefault(one, {})[asked] = (
            float(np.interp(place, at, logs)), float(np.interp(place, at, errors))
        )  # fmt: skip
    by_passes = {}
    for one, two in lines.items():
        asked = sorted(two)
        by_passes[math.log(one)] = [
            float(np.interp(guesses, asked, [two[g][i] for g in asked])) for i in (0, 1)
        ]
    at = sorted(by_passes)
    value, error = (
        float(np.interp(math.log(passes), at, [by_passes[x][i] for x in at])) for i in (0, 1)
    )
    return value, error


def _stretch(share: float) -> float:
    """The hard end takes as much room as the easy one."""
    return -math.log10(max(1.01 - share, 1e-3))


# --- guesses ----------------------------------------------------------------------------------

_GUESS = (0.1, 0.75)  # mean rates between which a domain may be one of guesses
_ALIKE = 0.1  # standard deviation of the rates of its tasks, at most
_LEAST_TASKS = 20


def guessed_domains(outcomes: Outcomes, shares: Shares) -> list[dict[str, Any]] | None:
    """Domains whose tasks all have about one rate in between: right by chance, perhaps.

    Where tasks differ in difficulty their rates differ. The variance of rates is that of the
    measured ones less what n rollouts make. None where there are no domains.
    """
    if outcomes.domains is None:
        return None
    domains = np.array(outcomes.domains)
    total = float(shares.mixed.sum())
    found = []
    for name in dict.fromkeys(outcomes.domains):
        own = domains == name
        rates = outcomes.rates[own]
        if own.sum() < _LEAST_TASKS or not _GUESS[0] <= rates.mean() <= _GUESS[1]:
            continue
        noise = 0.0
        if outcomes.trials is not None:
            n = np.maximum(outcomes.trials[own], 2)
            noise = float(np.mean(rates * (1 - rates) / (n - 1)))
        spread = math.sqrt(max(float(rates.var(ddof=1)) - noise, 0.0))
        if spread <= _ALIKE:
            part = float(shares.mixed[own].sum()) / total if total else 0.0
            found.append({"domain": name, "rate": float(rates.mean()), "spread": spread,
                          "share_of_mixed": part})  # fmt: skip
    return found


# --- settings ---------------------------------------------------------------------------------


def _advice(
    shares: Mapping[str, Mapping[str, float]],
    passes: float | None,
    tasks: int,
    rollouts: int,
    measured: int,
    guessed: Sequence[Mapping[str, Any]] | None,
) -> list[str]:
    """Recommendations, a line each; docs/when_selection_pays.md says what each rests on."""
    lines = []
    mixed, never = shares["mixed"]["value"], shares["never"]["value"]
    if mixed < 1e-3:
        lines.append(
            "hardly any group is mixed, so no choice can help yet: train on easier tasks first, "
            "or give more rollouts a task"
        )
    elif mixed > 0.8:
        lines.append("nearly every group is mixed: selection has little to add; shuffle")
    elif shares["always"]["value"] > 0.5 and never < 0.2:
        lines.append("most tasks are solved: harder tasks would add more than selection")
    breadth = ", breadth as it is (0.1)"
    if tasks < 1000 and passes is None:
        breadth = "; breadth=0.3 if the run goes over so small a pool more than 10 times (--steps)"
    elif tasks < 1000 and passes is not None and passes > 10:
        breadth = "; breadth=0.3, as the pool is small and is seen many times"
    lines.append(f"auto(batch_size=B, rollouts={rollouts}){breadth}")
    if passes is not None and passes < 1.5:
        lines.append(
            "no task comes back often: give init(features=bots_jax.features.text(prompts)) or "
            "hidden states; without them or references there is little to go by"
        )
    if guessed:
        names = ", ".join(str(one["domain"]) for one in guessed)
        lines.append(
            f"tasks of {names} may be guessed, mixed for ever and teach little: look at them, and "
            "keep out what is (select(..., eligible=mask))"
        )
    lines.append(
        "worth as it is ('mixed'), under MaxRL too: 'pass_gain' ended lower there (docs/worlds.md)"
    )
    if measured < rollouts:
        lines.append(
            f"only {measured} rollouts were measured of some task: in groups of {rollouts} more "
            "are mixed than is said here"
        )
    return lines


def as_text(found: Mapping[str, Any]) -> str:
    """The advice as text for a terminal."""
    words = {"mixed": "mixed", "always": "solved", "never": "hopeless"}
    lines = [f"{found['tasks']:,} tasks, in groups of {found['rollouts']} rollouts:"]
    for key, word in words.items():
        one = found["shares"][key]
        lines.append(f"  {word:9}{one['value']:7.1%}  [{one['low']:.1%}, {one['high']:.1%}]")
    lines.append("")
    lines.append("Steps that auto needs for what uniform learns, of uniform's (95%):")
    for one in found["ttb"]:
        lines.append(
            f"  {one['passes']:.2g} passes, {one['guesses']:.0%} of the mixed are guesses: "
            f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        )
    if found["guessed_domains"] is None:
        lines.append("  (a column domain would tell which may be guesses)")
    lines += ["", *(f"- {line}" for line in found["advice"])]
    lines.append("")
    _, _, worlds = fit(read_map())
    lines.append(
        f"By a simulated policy, fitted to {worlds} small worlds: docs/when_selection_pays.md."
    )
    return "\n".join(lines)
