"""Tables and plots of a comparison of strategies over seeds.

In: one record a run (`summarise`), or a number a strategy, seed and metric (`tabulate`).
Out: rows of estimates with 95% intervals, each beside its paired comparison with the
baseline; as Markdown, CSV or a table in the terminal; and PNG plots.

A run is a mapping with these keys; those marked * may be left out, and what needs them is
then "n/a":

    strategy, seed    str and int; strategies are compared on the seeds they share
    step, etr         [T] each: steps from 1, effective task ratio of each step
    heldout_step,     [E] each: steps at which the held-out score was measured (0 is
    heldout           before training) and the score
    tokens *          [T] tokens generated up to and including each step
    seconds *         [T] seconds since the start; the last entry is the run's
    select_ms *,      [T] milliseconds of selecting, and of the whole step with selecting
    step_ms *
    visit_counts *    [N] visits of each task, or instead
    task_ids *        [T, B] the tasks selected, -1 for padding

Time is compared by its median or total over the steps after the first, which compiles.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import Curve, Interval, Time

Run = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
Value = float | Time
Values = Mapping[str, Mapping[int, Mapping[str, Value]]]  # [strategy][seed][metric key]


class Column(NamedTuple):
    """A metric and how it is shown and compared.

    kind: "difference" and "ratio" are means, compared with the baseline's by the paired
    difference or ratio; "relative" is a ratio to the baseline already, "time" such a
    ratio that may be censored.
    """

    key: str
    title: str
    unit: str
    digits: int
    kind: str


class Cell(NamedTuple):
    """A strategy's metric."""

    value: Interval
    against: Interval | None  # paired with the baseline's; None where there is no pairing


class Row(NamedTuple):
    """All that is said of a strategy."""

    strategy: str
    cells: dict[str, Cell]  # by metric key


TERMINAL_WIDTH = 100
_NAME_WIDTH = 36  # of a strategy in the terminal

ETR = Column("etr", "ETR, all steps", "", 3, "difference")
BREADTH = Column("breadth", "Breadth", "effective tasks", 0, "ratio")
FINETUNE_COLUMNS = (
    Column("etr_early", "ETR, first third", "", 3, "difference"),
    ETR,
    BREADTH,
    Column("heldout", "Held-out at the end", "", 3, "difference"),
    Column("ttb_50", "TTB(50%)", "", 2, "time"),
    Column("ttb_100", "TTB(100%)", "", 2, "time"),
    Column("bsf_25", "BSF(25%)", "", 3, "relative"),
    Column("bsf_100", "BSF(100%)", "", 3, "relative"),
    Column("tokens", "Generated", "tokens", 0, "ratio"),
    Column("seconds", "Time", "s", 1, "ratio"),
    Column("select_ms", "Selecting a step", "ms", 2, "difference"),
    Column("select_share", "Selecting, of a step", "%", 2, "difference"),
)
# What a terminal has room for: first whether the policy learned more, then why.
FINETUNE_SHOWN = tuple(
    {column.key: column for column in FINETUNE_COLUMNS}[key]
    for key in ("heldout", "ttb_100", "etr", "breadth", "tokens", "select_share")
)


# --- from runs to rows -------------------------------------------------------------------


def summarise(runs: Sequence[Run], baseline: str = "uniform") -> list[Row]:
    """One row a strategy with the metrics of `FINETUNE_COLUMNS`.

    Args:
      runs: records as described above, in any order.
      baseline: the strategy that the others are compared with.

    Raises:
      ValueError: where the baseline or a key is missing, or a strategy has a seed twice.
    """
    by_strategy = _by_strategy(runs)
    _check_baseline(by_strategy, baseline)
    values = {
        strategy: {
            seed: measure(run, by_strategy[baseline].get(seed)) for seed, run in seeds.items()
        }
        for strategy, seeds in by_strategy.items()
    }
    return tabulate(values, FINETUNE_COLUMNS, baseline)


def measure(run: Run, baseline: Run | None = None) -> dict[str, Value]:
    """The metrics of one run; those relative to a baseline need the run of the same seed."""
    etr = np.asarray(_field(run, "etr"), np.float64)
    third = -(-len(etr) // 3)
    values: dict[str, Value] = {
        "etr": float(np.nanmean(etr)),
        "etr_early": float(np.nanmean(etr[:third])),
        "breadth": _breadth(run),
        "heldout": float(_field(run, "heldout")[-1]),
        "tokens": _last(run, "tokens"),
        "seconds": _last(run, "seconds"),
        **_selecting(run),
    }
    if baseline is not None:
        curve, base = _heldout(run), _heldout(baseline)
        values |= {f"ttb_{x}": metrics.ttb(curve, base, x / 100) for x in (50, 100)}
        values |= {f"bsf_{x}": metrics.bsf(curve, base, x / 100) for x in (25, 100)}
    return values


def tabulate(values: Values, columns: Sequence[Column], baseline: str) -> list[Row]:
    """Estimates and intervals over seeds, the baseline's row first.

    Args:
      values: a number for each strategy, seed and metric key; a key that is missing is NaN.
      columns: the metrics to show.
      baseline: the strategy that the others are compared with, over shared seeds.
    """
    _check_baseline(values, baseline)
    order = [baseline, *(name for name in values if name != baseline)]
    return [
        Row(name, {column.key: _cell(values, name, column, baseline) for column in columns})
        for name in order
    ]


def _cell(values: Values, strategy: str, column: Column, baseline: str) -> Cell:
    own, base = values[strategy], values[baseline]
    shared = [seed for seed in own if seed in base]
    if column.kind in ("relative", "time"):
        times = [_as_time(own[seed].get(column.key, math.nan)) for seed in shared or own]
        return Cell(metrics.time_interval(times), None)
    mean = metrics.mean_interval([_as_time(own[seed].get(column.key, math.nan))[0] for seed in own])
    if strategy == baseline or not shared:
        return Cell(mean, None)
    compare = metrics.ratio_interval if column.kind == "ratio" else metrics.paired_interval
    pairs = [
        [_as_time(one[seed].get(column.key, math.nan))[0] for seed in shared] for one in (own, base)
    ]
    return Cell(mean, compare(pairs[0], pairs[1]))


def _as_time(value: Value) -> Time:
    return value if isinstance(value, Time) else Time(float(value), False)


def _by_strategy(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    grouped: dict[str, dict[int, Run]] = {}
    for run in runs:
        strategy, seed = _field(run, "strategy"), _field(run, "seed")
        if grouped.setdefault(strategy, {}).setdefault(seed, run) is not run:
            raise ValueError(f"runs has strategy={strategy!r} with seed={seed} twice; keep one")
    return grouped


def _check_baseline(values: Mapping[str, Any], baseline: str) -> None:
    if baseline not in values:
        known = ", ".join(values) or "nothing"
        raise ValueError(f"baseline={baseline!r} was not run: choose one of {known}")


def _field(run: Run, key: str) -> Any:
    if key not in run:
        raise ValueError(
            f"the run strategy={run.get('strategy')!r} seed={run.get('seed')!r} has no {key!r}: "
            f"give it, see bots_jax.evaluate.report"
        )
    return run[key]


def _heldout(run: Run) -> Curve:
    return Curve(_field(run, "heldout_step"), _field(run, "heldout"))


def _breadth(run: Run) -> float:
    if "visit_counts" in run:
        return float(metrics.breadth(run["visit_counts"]))
    if "task_ids" in run:
        ids = np.asarray(run["task_ids"])
        return float(metrics.breadth(metrics.visit_counts(ids, int(ids.max(initial=0)) + 1)))
    return math.nan


def _last(run: Run, key: str) -> float:
    return float(np.atleast_1d(run[key])[-1]) if key in run else math.nan


def _selecting(run: Run) -> dict[str, Value]:
    if "select_ms" not in run or "step_ms" not in run:
        return {}
    select, step = (np.asarray(run[key], np.float64) for key in ("select_ms", "step_ms"))
    if len(select) > 1:  # the first step compiles
        select, step = select[1:], step[1:]
    share = 100 * select.sum() / step.sum() if step.sum() > 0 else math.nan
    return {"select_ms": float(np.median(select)), "select_share": float(share)}


# --- tables --------------------------------------------------------------------------------


def cell_text(column: Column, cell: Cell) -> tuple[str, str]:
    """The estimate, and its comparison with the baseline ("" where there is none)."""
    value = cell.value.text(column.digits)
    if cell.against is None or math.isnan(cell.against.value):
        return value, ""
    if column.kind == "ratio":
        return value, "×" + cell.against.text(2)  # noqa: RUF001  a ratio, not the letter
    return value, cell.against.text(column.digits, sign="+")


def table_cells(rows: Sequence[Row], columns: Sequence[Column], joint: str) -> list[list[str]]:
    """The table as text, headings included; the longer list goes down.

    Args:
      joint: what stands between an estimate and its comparison in one cell.
    """
    table = [["", *(_heading(column) for column in columns)]]
    for row in rows:
        pairs = [cell_text(column, row.cells[column.key]) for column in columns]
        table.append([row.strategy, *(joint.join(filter(None, pair)) for pair in pairs)])
    if len(columns) > len(rows):
        table = [list(line) for line in zip(*table, strict=True)]
    return table


def _heading(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def caption(baseline: str, columns: Sequence[Column] = FINETUNE_COLUMNS) -> str:
    """What the numbers of a table are."""
    text = (
        f"Mean over seeds [95% interval, Student's t]; after it the paired comparison with "
        f"{baseline}: difference (+/-) or ratio (×, t on logs)."  # noqa: RUF001
    )
    if not any(column.kind == "time" for column in columns):
        return text
    return (
        f"{text} TTB below 1 and BSF above 1 are better than {baseline}: geometric means. Where "
        f"a run never reached its goal, TTB is the median with a sign-test interval, its level "
        f"in brackets if below 95%; > marks a bound that the runs were too short to close."
    )


def markdown_table(rows: Sequence[Row], columns: Sequence[Column] = FINETUNE_COLUMNS) -> str:
    """The rows as a Markdown table."""
    head, *body = table_cells(rows, columns, "<br>")
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def terminal_table(
    rows: Sequence[Row], columns: Sequence[Column] = FINETUNE_COLUMNS, width: int = TERMINAL_WIDTH
) -> str:
    """The rows as aligned text of at most `width` characters a line: a line a strategy.

    Each column has its mean. The first one, and those after it as long as there is room, has its
    paired comparison with the baseline too, or its 95% interval where there is none. Columns
    without room are left out, the last ones first; long names are cut.
    """
    columns = list(columns)
    names = [_shorten(row.strategy, _NAME_WIDTH) for row in rows]

    def lines(detailed: int) -> list[str]:
        baseline = rows[0].strategy
        blocks = [_block(rows, c, baseline, i < detailed) for i, c in enumerate(columns)]
        return _lay_out([["", *names], *(text for block in blocks for text in block)])

    def fits(detailed: int) -> bool:
        return max(map(len, lines(detailed))) <= width

    while len(columns) > 1 and not fits(1):
        columns.pop()
    detailed = 1
    while detailed < len(columns) and fits(detailed + 1):
        detailed += 1
    return "\n".join(lines(detailed)) + "\n"


def _block(rows: Sequence[Row], column: Column, baseline: str, detailed: bool) -> list[list[str]]:
    """A column's texts, heading first: means, and where `detailed` what they are compared by."""
    pairs = [cell_text(column, row.cells[column.key]) for row in rows]
    title = _heading(column) if len(column.unit) < 3 else column.title
    if column.kind in ("relative", "time"):
        own = [value if detailed else value.partition(" [")[0] for value, _ in pairs]
        return [[title, *own]]
    means = [title, *(value.partition(" [")[0] for value, _ in pairs)]
    if not detailed:
        return [means]
    if not any(against for _, against in pairs):
        return [[title, *(value for value, _ in pairs)]]
    heading = f"of {baseline}'s" if column.kind == "ratio" else f"less {baseline}'s"
    return [means, [_shorten(heading, _NAME_WIDTH), *(against for _, against in pairs)]]


def _lay_out(texts: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns of text: headings broken into lines, a rule, the rest."""
    widths, heads = [], []
    for heading, *cells in texts:
        words = [len(word) for word in heading.split()]
        widths.append(max([len(cell) for cell in cells] + words))
        heads.append(textwrap.wrap(heading, max(widths[-1], 1)))
    depth = max(map(len, heads))
    head = [[""] * (depth - len(lines)) + lines for lines in heads]
    table = [*zip(*head, strict=True), [], *zip(*(cells[1:] for cells in texts), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        if line
        else rule
        for line in table
    ]


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def print_table(
    rows: Sequence[Row],
    columns: Sequence[Column] = FINETUNE_COLUMNS,
    title: str = "",
    write: Callable[[str], Any] | None = None,
) -> None:
    """Print `terminal_table` under its title.

    Args:
      write: where the text goes; None is the standard output.
    """
    heading = f"{_shorten(title, TERMINAL_WIDTH)}\n" if title else ""
    (write or _write_out)(f"\n{heading}{terminal_table(rows, columns)}")


def terminal_caption(baseline: str) -> str:
    """What the numbers of `terminal_table` are."""
    return (
        f"Means over seeds; beside them the paired comparison with {baseline}, a difference (+/-)\n"
        "or a ratio (×), or else the mean's interval [95%, Student's t]. Where shown, TTB, the\n"  # noqa: RUF001
        "steps to its level as a share of its own, is better below 1, and BSF, the best score\n"
        "over its own, above 1. Every figure with its interval is in summary.md."
    )


def _write_out(text: str) -> None:
    sys.stdout.write(text)


def csv_text(rows: Sequence[Row], columns: Sequence[Column], baseline: str) -> str:
    """The rows as CSV: one line a strategy and metric."""
    ends = ("value", "low", "high", "level", "seeds", "open_value", "open_high", "method")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    against = [f"against_{end}" for end in ends]
    writer.writerow(["strategy", "metric", "unit", *ends, "baseline", "compared_by", *against])
    for row in rows:
        for column in columns:
            cell = row.cells[column.key]
            line = [row.strategy, column.key, column.unit, *(getattr(cell.value, e) for e in ends)]
            if cell.against is not None:
                line += [baseline, column.kind, *(getattr(cell.against, end) for end in ends)]
            writer.writerow(line)
    return file.getvalue()


def write_csv(
    path: str | Path, rows: Sequence[Row], columns: Sequence[Column] = FINETUNE_COLUMNS
) -> None:
    """Write `csv_text`, the first row being the baseline's."""
    write_text(path, csv_text(rows, columns, rows[0].strategy))


INTERRUPTED = 130  # exit status that a shell expects of a command stopped by Ctrl-C


def make_folder(path: str | Path) -> None:
    """Make the folder of results that a command was given.

    Raises:
      ValueError: naming `--out`, where there can be none or nothing may be written to it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {path} cannot be made a folder ({error.strerror}): name another"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"--out {path} may not be written to: name another")


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file or none: what was there before stays until the new one is done."""
    write_bytes(Path(path), text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    part = path.with_name(path.name + ".tmp")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


# --- plots ---------------------------------------------------------------------------------

# Okabe and Ito's palette, without its yellow, which is faint on white; then grey. Line and
# marker styles differ too, so that no one has to tell colours apart.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_LINES = ("--", "-", "-", "-", "-.", "-.", ":", ":")
_MARKERS = "osD^vP*X"
BANDS = " (mean over seeds with 95% band)"


def _style(index: int) -> tuple[str, str, str]:
    """Colour, line and marker; no pair of the first 32 is alike in colour and line or marker."""
    turn, place = divmod(index, len(_COLOURS))
    kinds = ("-", "--", "-.", ":")
    line = kinds[(kinds.index(_LINES[place]) + turn) % len(kinds)]
    return _COLOURS[place], line, _MARKERS[(place + turn) % len(_MARKERS)]


class Curves(NamedTuple):
    """The curves of one strategy."""

    x: npt.ArrayLike  # f[T]
    y: npt.ArrayLike  # f[S, T], a row a seed


def plot_curves(
    path: str | Path,
    curves: Mapping[str, Curves],
    x_label: str,
    y_label: str,
    title: str = "",
    *,
    single_seeds: bool | None = None,
) -> None:
    """Mean curves with 95% t bands over seeds, and where there are few curves the seeds, faint.

    Args:
      path: of the PNG.
      curves: by strategy, drawn in this order, the first (the baseline) dashed in black.
      x_label, y_label: with units.
      single_seeds: whether to draw the seeds; None for up to three curves, for beyond that
        they hide more than they show.
    """
    single_seeds = len(curves) <= 3 if single_seeds is None else single_seeds
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    for index, (name, (x, y)) in enumerate(curves.items()):
        x, y = np.asarray(x, np.float64), np.atleast_2d(np.asarray(y, np.float64))
        colour, line, _ = _style(index)
        if single_seeds and len(y) > 1:
            axes.plot(x, y.T, color=colour, alpha=0.18, linewidth=0.8)
        if len(y) > 1:
            axes.fill_between(x, *band(y), color=colour, alpha=0.14, linewidth=0)
        axes.plot(x, y.mean(axis=0), color=colour, linestyle=line, linewidth=2, label=name)
    _finish(plt, figure, axes, path, x_label, y_label, title)


def plot_plane(
    path: str | Path, rows: Sequence[Row], x: Column = BREADTH, y: Column = ETR, title: str = ""
) -> None:
    """Strategies as points with 95% error bars: by default breadth across, ETR up."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    for index, row in enumerate(rows):
        colour, _, marker = _style(index)
        across, up = row.cells[x.key].value, row.cells[y.key].value
        if math.isnan(across.value) or math.isnan(up.value):
            continue
        axes.errorbar(
            across.value,
            up.value,
            xerr=_bars(across),
            yerr=_bars(up),
            fmt=marker,
            color=colour,
            markersize=9,
            capsize=3,
            label=row.strategy,
        )
    axes.set_xlim(left=0)
    _finish(plt, figure, axes, path, _heading(x), y.title, title)


def _bars(interval: Interval) -> list[list[float]] | None:
    if math.isnan(interval.low):
        return None
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _finish(
    plt: Any,
    figure: Any,
    axes: Any,
    path: str | Path,
    x_label: str,
    y_label: str,
    title: str,
) -> None:
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", frameon=False)  # beside the data, never on it
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=150)
    finally:
        plt.close(figure)
    write_bytes(Path(path), _fewer_colours(picture))


def _fewer_colours(picture: io.BytesIO) -> bytes:
    """The same PNG with 256 colours, which bands of shades do with: a third of the size."""
    image = importlib.import_module("PIL.Image")  # comes with matplotlib
    small = io.BytesIO()
    with image.open(picture) as full:
        full.convert("RGB").quantize(256, dither=image.Dither.NONE).save(small, "PNG")
    return small.getvalue()


def _short(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{value:g}"


def pyplot() -> Any:
    """Matplotlib's pyplot, without a display; imported only here, as it is slow.

    Raises:
      ModuleNotFoundError: saying what to install.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'bots-jax[plots]'") from None


def band(y: Floats) -> tuple[Floats, Floats]:
    """Ends f[T] of the 95% t interval of the mean of f[S, T], S > 1."""
    half = metrics.t_quantile(len(y) - 1) * y.std(axis=0, ddof=1) / math.sqrt(len(y))
    mean = y.mean(axis=0)
    return mean - half, mean + half


def smooth(y: npt.ArrayLike, window: int) -> Floats:
    """Centred moving average of f[..., T] over `window` steps, shorter at the ends."""
    array = np.asarray(y, np.float64)
    steps = np.arange(array.shape[-1])
    low = np.maximum(steps - (window - 1) // 2, 0)
    high = np.minimum(steps + window // 2 + 1, len(steps))
    total = np.concatenate([np.zeros((*array.shape[:-1], 1)), np.cumsum(array, axis=-1)], axis=-1)
    return np.asarray((total[..., high] - total[..., low]) / (high - low))


def etr_curves(etr: Mapping[str, npt.ArrayLike]) -> tuple[dict[str, Curves], int]:
    """Smoothed curves of [S, T] effective task ratios, and the window they were smoothed by."""
    steps = min(np.shape(values)[-1] for values in etr.values())
    window = max(1, steps // 20)
    smoothed = {name: smooth(values, window) for name, values in etr.items()}
    return {
        name: Curves(np.arange(1, values.shape[-1] + 1), values)
        for name, values in smoothed.items()
    }, window


def write_report(folder: str | Path, runs: Sequence[Run], baseline: str = "uniform") -> list[Row]:
    """Write summary.md, summary.csv and the plots of finetuning runs into a folder.

    Plots: heldout.png, etr.png, plane.png and, where tokens were counted,
    heldout_by_tokens.png. Raises as `summarise`; OSError where the disk is full;
    ModuleNotFoundError, after the tables are written, where matplotlib is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = summarise(runs, baseline)
    write_csv(folder / "summary.csv", rows)
    write_text(folder / "summary.md", f"{markdown_table(rows)}\n{caption(baseline)}\n")
    _plot_runs(folder, runs, rows)
    return rows


def _plot_runs(folder: Path, runs: Sequence[Run], rows: Sequence[Row]) -> None:
    grouped = _by_strategy(runs)
    by_strategy = {row.strategy: list(grouped[row.strategy].values()) for row in rows}
    heldout = {
        name: _on_a_grid([(run["heldout_step"], run["heldout"]) for run in of])
        for name, of in by_strategy.items()
    }
    score = "Held-out pass rate"
    plot_curves(folder / "heldout.png", heldout, "Step", score, f"Learning{BANDS}")
    etr = {name: _stack([run["etr"] for run in of]) for name, of in by_strategy.items()}
    curves, window = etr_curves(etr)
    label = f"Effective task ratio (mean over {window} steps)"
    plot_curves(folder / "etr.png", curves, "Step", label, f"Mixed outcomes{BANDS}")
    plot_plane(folder / "plane.png", rows, title="Useful tasks and their variety")
    if all("tokens" in run for run in runs):
        tokens = {
            name: _on_a_grid([(_tokens_at(run), run["heldout"]) for run in of])
            for name, of in by_strategy.items()
        }
        path = folder / "heldout_by_tokens.png"
        plot_curves(path, tokens, "Generated tokens", score, f"Learning by tokens{BANDS}")


def _tokens_at(run: Run) -> Floats:
    """Tokens generated by each held-out measurement."""
    steps = np.concatenate([[0.0], np.asarray(run["step"], np.float64)])
    tokens = np.concatenate([[0.0], np.asarray(run["tokens"], np.float64)])
    return np.interp(np.asarray(run["heldout_step"], np.float64), steps, tokens)


def _on_a_grid(pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> Curves:
    """Seeds measured at different x, joined by straight lines and read off at shared ones."""
    xs, ys = zip(
        *((np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs), strict=True
    )
    start, end = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = xs[0][(xs[0] >= start) & (xs[0] <= end)]
    if any(not np.array_equal(x, xs[0]) for x in xs):
        grid = np.linspace(start, end, 100)
    return Curves(grid, np.stack([np.interp(grid, *curve) for curve in zip(xs, ys, strict=True)]))


def _stack(series: Sequence[Any]) -> Floats:
    shortest = min(len(one) for one in series)
    return np.stack([np.asarray(one, np.float64)[:shortest] for one in series])
