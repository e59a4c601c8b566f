"""`bots-jax bench`: the command line, the progress, and the files of a report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bots_jax.bench import matrix as matrices
from bots_jax.bench.matrix import Matrix, Plan
from bots_jax.bench.runner import Outcome, Told, run_plan
from bots_jax.bench.store import Store
from bots_jax.evaluate import report

SOME_FAILED = 1

_DESCRIPTION = """\
Run a matrix of strategies x environments x settings x seeds, and report on it. Seeds are
paired: a strategy meets the same randomness as every other. MATRIX is a TOML file or the
name of one that comes with the package; --strategy and --environment add to it, or stand
alone.

A spec is NAME,key=value,...; a value may list alternatives (0|0.01|0.1), each of which is a
row of its own. NAME is a name of the package or of an entry point (groups
bots_jax.strategies, bots_jax.environments), file.py:factory or module:factory. The strategy
"*" is every one of the package without extra rollouts and true rates; an environment may also
be an .npz file: a recorded run, or a matrix of tasks x models."""

_EPILOG = """\
Written to the --out folder: results.jsonl (a line a cell, as soon as it is finished),
summary.md, summary.csv, verdicts.csv and, with matplotlib, plots. The same command resumes a
run that was stopped, killed or extended; finished cells are not run again.

bots-jax bench learning
bots-jax bench trace --data FOLDER
bots-jax bench --environment run.npz --strategy uniform --strategy bots,forgetting=0.01|0.1
bots-jax bench trace --strategy my_rules.py:greedy,keep=0.9 --environment my_env.py:noisy"""


def add_bench_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `bench` to what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="run a matrix of strategies x environments x settings x seeds",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("matrix", metavar="MATRIX", nargs="?", help="a TOML file or a name (see --list)")
    add("--strategy", action="append", default=[], metavar="SPEC", help="add one; repeatable")
    add("--environment", action="append", default=[], metavar="SPEC", help="add one; repeatable")
    add(
        "--seeds",
        type=int,
        metavar="N",
        help="use at most N seeds in each environment [mostly 10]",
    )
    add("--baseline", metavar="LABEL", help="compare with this [the matrix's, or the first]")
    add("--data", default=".", metavar="FOLDER", help="another folder to look for data files in")
    add("--out", metavar="FOLDER", help="folder for results [runs/bench/MATRIX]")
    add("--only", metavar="TEXT", help="use only environments whose spec contains TEXT")
    add("--fresh", action="store_true", help="delete the results that the folder holds")
    add("--no-plots", action="store_true", help="write tables only")
    add("--list", action="store_true", help="list matrices, strategies and environments, and exit")
    parser.set_defaults(run=bench_command)
    return parser


def bench_command(args: argparse.Namespace) -> int:
    """Run `bots-jax bench`; returns the exit status."""
    try:
        return _list() if args.list else _bench(args)
    except KeyboardInterrupt:
        _say("stopped; what is finished is saved: the same command goes on")
        return report.INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "bots_jax":
            raise
        _say(f"bots-jax bench: needs {error.name}: pip install 'bots-jax[cli,plots]'")
        return 2
    except (ValueError, OSError) as error:
        _say(f"bots-jax bench: {error}")
        return 2


def asked_for(args: argparse.Namespace) -> Matrix:
    """The matrix of the command line.

    Raises:
      ValueError: where there is none of that name.
    """
    given = Matrix("Benchmark", None, 10, (), ())
    if args.matrix is not None:
        given = matrices.find_matrix(args.matrix)
    environments = [*given.environments, *args.environment]
    if args.only is not None:
        there_are, environments = environments, [s for s in environments if args.only in s]
        if there_are and not environments:
            raise ValueError(f"--only {args.only!r} is in none of {'; '.join(there_are)}")
    return given._replace(
        baseline=args.baseline or given.baseline,
        environments=tuple(environments),
        strategies=(*given.strategies, *args.strategy),
    )


def _bench(args: argparse.Namespace) -> int:
    matrix = asked_for(args)
    title = Path(args.matrix).stem if args.matrix else "custom"
    folder = Path(args.out or Path("runs") / "bench" / title)
    plan = limited(
        matrices.make_plan(matrix, data=args.data, workspace=folder / "work"), args.seeds
    )
    for line in plan.absent:
        _say(f"left out: {line}")
    if not plan.jobs:
        raise ValueError("no environment has its data: see what was left out above")
    report.make_folder(folder)
    store = Store(folder / "results.jsonl")
    if args.fresh:
        store.path.unlink(missing_ok=True)
    with progress() as tell:
        outcome = run_plan(plan, store, tell)
    for line in outcome.failed:
        _say(f"could not be run: {line}")
    write_report(folder, matrix.title, plan, outcome, plots=not args.no_plots)
    return SOME_FAILED if outcome.failed else 0


def limited(plan: Plan, seeds: int | None) -> Plan:
    """The plan with at most `seeds` seeds in each environment."""
    if seeds is None:
        return plan
    if seeds < 1:
        raise ValueError(f"--seeds {seeds} must be at least 1")
    return plan._replace(jobs=tuple(job._replace(seeds=job.seeds[:seeds]) for job in plan.jobs))


def write_report(
    folder: Path, title: str, plan: Plan, outcome: Outcome, *, plots: bool = True
) -> None:
    """Write summary.md, summary.csv, verdicts.csv and the plots."""
    from bots_jax.bench import tables

    if not outcome.records:
        _say("nothing was run, so there is nothing to report")
        return
    environments = {job.environment.name: job.environment for job in plan.jobs}
    sections = tables.make_sections(outcome.records, plan.baseline, environments)
    notes = [f"left out: {line}" for line in plan.absent]
    notes += [f"could not be run: {line}" for line in outcome.failed]
    report.write_text(folder / "summary.md", tables.markdown(title, sections, notes))
    report.write_text(folder / "summary.csv", tables.summary_csv(sections))
    report.write_text(folder / "verdicts.csv", tables.verdicts_csv(sections))
    files = ["results.jsonl", "summary.md", "summary.csv", "verdicts.csv"]
    if plots:
        files += _plots(folder, sections)
    for section in sections:
        keys = section.headline or section.keys
        columns = [column for row in section.rows[:1] for column in _columns(row, keys)]
        rows = [row for row in section.rows if row.strategy not in section.oracles]
        report.print_table(rows, columns, section.environment)
    _say(report.terminal_caption(plan.baseline))
    _say(f"results are in {folder}: {', '.join(files)}")


def _columns(row: report.Row, keys: Sequence[str]) -> list[report.Column]:
    from bots_jax.bench.measures import measure_of

    extra = [key for key in ("breadth",) if key in row.cells and key not in keys]
    return [measure_of(key).column for key in [*keys, *extra]]


def _plots(folder: Path, sections: Sequence[Any]) -> list[str]:
    from bots_jax.bench import plots

    try:
        return [path.name for path in plots.write_plots(folder, sections)]
    except ModuleNotFoundError as error:
        _say(f"no plots: {error}")
        return []


def _list() -> int:
    from bots_jax.bench import registry
    from bots_jax.bench.environments import ENVIRONMENTS

    offered = {
        "matrices": list(matrices.named_matrices()),
        "strategies": [*registry.strategies(), *registry.offered(registry.STRATEGY_GROUP)],
        "environments": [*ENVIRONMENTS, *registry.offered(registry.ENVIRONMENT_GROUP)],
    }
    sys.stdout.write(json.dumps(offered, indent=1) + "\n")
    return 0


@contextmanager
def progress() -> Iterator[Told]:
    """Show progress: a bar on a terminal if rich is installed, else a line a strategy."""
    bar = _bar()
    if bar is None:
        yield _lines()
        return
    with bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell


def _bar() -> Any:
    try:
        from rich import progress as parts
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        parts.TextColumn("{task.description}"), parts.BarColumn(), parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(), parts.TimeRemainingColumn(),
    )  # fmt: skip
    return parts.Progress(*columns, console=console)


def _lines() -> Callable[[str, int, int], None]:
    last = [-1]

    def tell(what: str, done: int, total: int) -> None:
        if done != last[0]:  # something was finished
            _say(f"[{done}/{total}] {what}")
        last[0] = done

    return tell


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
