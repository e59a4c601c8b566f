"""The plots of a report: PNGs, one set an environment.

In: `tables.Section`s. Out: for each environment, as far as it has the numbers,

    dots         the headline measures with 95% intervals, a line a strategy
    curves       learning over the steps, mean and 95% band, a panel a strategy
    plane        ETR against breadth, with the frontier of the true rates
    calibration  predicted against true rates, a panel a strategy
    beliefs      a map of the posterior means over a run, tasks from hard to easy
    visits       when each of these tasks was selected

Colours are Okabe and Ito's, and no plot needs them to be told apart: panels and points are
labelled where they stand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bots_jax.bench.labels import place_labels
from bots_jax.bench.measures import measure_of, series_of
from bots_jax.bench.tables import Section
from bots_jax.evaluate import report
from bots_jax.evaluate.report import Row

Floats = npt.NDArray[np.float64]
BLACK, BLUE, VERMILION, GREY = "#000000", "#0072B2", "#D55E00", "#9A9A9A"
SERIES_TITLES = {
    "etr": "Effective task ratio",
    "heldout": "Held-out pass rate",
    "pearson": "Pearson, tasks not evaluated",
}


def write_plots(folder: str | Path, sections: Sequence[Section]) -> list[Path]:
    """Write all plots; the files.

    Raises:
      ModuleNotFoundError: where matplotlib is missing.
    """
    report.pyplot()
    written = []
    for section in sections:
        for name, plot in PLOTS.items():
            path = Path(folder) / f"{slug(section.environment)}-{name}.png"
            if plot(path, section):
                written.append(path)
    return written


def slug(text: str) -> str:
    """A file name made from a text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# --- dots ---------------------------------------------------------------------------------


def plot_dots(path: Path, section: Section) -> bool:
    """The headline measures of every strategy, best on top."""
    keys = section.headline
    rows = [row for row in _honest(section) if keys and not _missing(row, keys[0])]
    if not rows:
        return False
    rows = sorted(rows, key=lambda row: _value(row, keys[0]) * measure_of(keys[0]).better)
    size = (2.2 + 2.6 * len(keys), 1.3 + 0.27 * len(rows))
    figure, panels = _grid(1, len(keys), size, sharey=True)
    for axes, key in zip(panels, keys, strict=True):
        _dots(axes, rows, key, section.baseline)
    panels[0].set_yticks(range(len(rows)), [row.strategy for row in rows])
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    return _save(figure, path, section, "mean over seeds, 95% interval")


def _dots(axes: Any, rows: Sequence[Row], key: str, baseline: str) -> None:
    for y, row in enumerate(rows):
        interval = row.cells[key].value
        if math.isnan(interval.value):
            continue
        colour = BLACK if row.strategy == baseline else BLUE
        if not math.isnan(interval.low):
            axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=2)
        axes.plot(interval.value, y, "o", color=colour, markersize=5)
        if row.strategy == baseline:
            axes.axvline(interval.value, color=BLACK, linestyle=":", linewidth=1, zorder=0)
    arrow = {1: "\nmore is better", -1: "\nless is better", 0: ""}[measure_of(key).better]
    axes.set_xlabel(f"{_heading(key)}{arrow}")
    axes.margins(x=0.08)
    _tidy(axes)


# --- curves -------------------------------------------------------------------------------


def plot_learning(path: Path, section: Section) -> bool:
    """The environment's curve, a panel a strategy; the others grey, the baseline dashed."""
    key = section.curve
    curves = {row.strategy: _curves(section, row.strategy, key) for row in _honest(section)}
    found = {name: curve for name, curve in curves.items() if curve is not None}
    if not found:
        return False
    names = [name for name in found if name != section.baseline] or list(found)
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        for other, (x, y) in found.items():
            if other not in (name, section.baseline):
                axes.plot(x, _mean(y), color=GREY, linewidth=0.6, alpha=0.5)
        for one, colour, style in ((section.baseline, BLACK, "--"), (name, BLUE, "-")):
            if one in found:
                _band(axes, *found[one], colour, style)
        axes.set_title(_wrapped(name), fontsize=9)
        _tidy(axes)
    label = SERIES_TITLES.get(key, key.replace("_", " "))
    _outer(figure, "Step", label)
    told = f"blue: the strategy, dashed: {section.baseline}, grey: the others; 95% bands"
    return _save(figure, path, section, told)


def _curves(section: Section, strategy: str, key: str) -> tuple[Floats, Floats] | None:
    """x f[T] and y f[S, T]; None where no seed has it."""
    own = [record for record in section.records if record["strategy"] == strategy]
    found = [series for record in own if (series := series_of(record, key)) is not None]
    if not found or all(np.isnan(y).all() for _, y in found):
        return None
    shortest = min(len(x) for x, _ in found)
    y = np.stack([y[:shortest] for _, y in found])
    # Single steps of ETR say little: they are averaged over a twentieth of the run.
    return found[0][0][:shortest], report.smooth(y, max(1, shortest // 20)) if key == "etr" else y


def _mean(y: Floats) -> Floats:
    known = ~np.isnan(y)
    total = np.where(known, y, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _band(axes: Any, x: Floats, y: Floats, colour: str, style: str) -> None:
    if len(y) > 1:
        axes.fill_between(x, *report.band(y), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, _mean(y), color=colour, linestyle=style, linewidth=1.6)


# --- plane --------------------------------------------------------------------------------


def plot_plane(path: Path, section: Section) -> bool:
    """Plot ETR against breadth: a point a strategy, a line for the oracle."""
    rows = [row for row in section.rows if not _missing(row, "etr", "breadth")]
    if not rows:
        return False
    edge = _frontier(section)
    figure, (axes,) = _grid(1, 1, (8.5, 6.0))
    line = sorted((_point(row) for row in rows if row.strategy in edge), key=lambda at: at[0])
    if line:
        axes.plot(*zip(*line, strict=True), "--", color=VERMILION, linewidth=1.4, zorder=1)
        axes.plot(*zip(*line, strict=True), "D", color=VERMILION, markersize=4, zorder=1)
    points, texts, taken = [], [], _along(line)
    for row in rows:
        if row.strategy in edge:
            continue
        points.append(_point(row))
        texts.append(row.strategy)
        _cross(axes, row, BLACK if row.strategy == section.baseline else BLUE)
        taken += _bars(row)
    if line:
        points.append(line[len(line) // 2])
        texts.append(FRONTIER)
    axes.set_xlabel("Breadth: effective number of tasks trained on")
    axes.set_ylabel(measure_of("etr").column.title)
    axes.margins(0.08)
    _tidy(axes)
    _title(figure, section, "means over seeds, 95% intervals")
    place_labels(figure, axes, points, texts, taken=taken, colours={FRONTIER: VERMILION})
    return _write(figure, path)


FRONTIER = "chosen by the true rates"


def _along(line: Sequence[tuple[float, float]], count: int = 120) -> list[tuple[float, float]]:
    """Points close together on a polygon, for labels to keep clear of it."""
    if len(line) < 2:
        return list(line)
    at = np.linspace(0, len(line) - 1, count)
    x, y = (np.interp(at, np.arange(len(line)), column) for column in zip(*line, strict=True))
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _frontier(section: Section) -> set[str]:
    """Strategies that are points of the frontier."""
    return {
        record["strategy"]
        for record in section.records
        if record.get("truth") and str(record.get("origin", "")).startswith("frontier ")
    }


def _point(row: Row) -> tuple[float, float]:
    return _value(row, "breadth"), _value(row, "etr")


def _bars(row: Row) -> list[tuple[float, float]]:
    """Points along the error bars of a row."""
    x, y = row.cells["breadth"].value, row.cells["etr"].value
    if math.isnan(x.low) or math.isnan(y.low):
        return []
    across = _along([(x.low, y.value), (x.high, y.value)], 9)
    return across + _along([(x.value, y.low), (x.value, y.high)], 9)


def _cross(axes: Any, row: Row, colour: str) -> None:
    x, y = row.cells["breadth"].value, row.cells["etr"].value
    if not math.isnan(x.low):
        axes.plot([x.low, x.high], [y.value, y.value], color=colour, linewidth=1, alpha=0.6)
        axes.plot([x.value, x.value], [y.low, y.high], color=colour, linewidth=1, alpha=0.6)
    axes.plot(x.value, y.value, "o", color=colour, markersize=6)


# --- calibration --------------------------------------------------------------------------


def plot_calibration(path: Path, section: Section) -> bool:
    """Mean true rate against mean prediction in each tenth; area shows how many predictions."""
    found = [(row, bins) for row in _honest(section) if (bins := _bins(section, row)) is not None]
    if not found:
        return False
    figure, panels = _panels(len(found), square=True)
    for axes, (row, (weight, predicted, happened)) in zip(panels, found, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
        total = weight.sum(axis=0)
        there = total > 1e-3 * total.sum()
        x = (weight * predicted).sum(axis=0)[there] / total[there]
        y = (weight * happened).sum(axis=0)[there] / total[there]
        axes.plot(x, y, color=BLUE, linewidth=1)
        axes.scatter(x, y, s=6 + 160 * total[there] / total.sum(), color=BLUE, alpha=0.8)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_title(_wrapped(row.strategy), fontsize=9)
        axes.text(0.04, 0.9, f"error {_value(row, 'ece'):.3f}", fontsize=8)
        _tidy(axes)
    _outer(figure, "Predicted success rate", "True success rate")
    return _save(figure, path, section, "calibration of the belief; area: how many predictions")


def _bins(section: Section, row: Row) -> list[Floats] | None:
    """[S, bins] each: weights, mean predictions, mean true rates; None where none were kept."""
    own = [r for r in section.records if r["strategy"] == row.strategy]
    told = [record["calibration"] for record in own if record.get("calibration")]
    if not told:
        return None
    keys = ("weight", "predicted", "happened")
    return [np.array([one[key] for one in told], np.float64) for key in keys]


# --- maps ---------------------------------------------------------------------------------


def plot_beliefs(path: Path, section: Section) -> bool:
    """Posterior means over one run, beside the truth."""
    maps = _maps(section)
    if not maps:
        return False
    truth = next(iter(maps.values()))["truth"]
    panels_of = [("the true rates", truth), *((name, one["belief"]) for name, one in maps.items())]
    step = next(iter(maps.values()))["step"]
    told = "posterior means over one run"
    return _heat(path, section, panels_of, step, told, "Success rate, %", "cividis", 100)


def plot_visits(path: Path, section: Section) -> bool:
    """How often each task was selected in each block of steps of one run."""
    maps = _maps(section)
    if not maps:
        return False
    step = next(iter(maps.values()))["step"]
    panels_of = [(name, one["visits"]) for name, one in maps.items()]
    most = max(1, *(int(np.quantile(one, 0.999)) for _, one in panels_of))
    told = "selections over one run"
    return _heat(path, section, panels_of, step, told, "Visits in a block", "Greys", most)


def _maps(section: Section) -> dict[str, Any]:
    return {
        record["strategy"]: record["map"]
        for record in section.records
        if record.get("map") and not record.get("truth")
    }


def _heat(
    path: Path,
    section: Section,
    panels_of: Sequence[tuple[str, Any]],
    step: Sequence[float],
    told: str,
    scale: str,
    colours: str,
    most: float,
) -> bool:
    figure, panels = _panels(len(panels_of))
    image: Any = None
    for axes, (name, values) in zip(panels, panels_of, strict=True):
        image = axes.imshow(
            np.asarray(values), aspect="auto", origin="lower", cmap=colours, vmin=0, vmax=most,
            extent=(step[0], step[-1], 0, 1), interpolation="nearest",
        )  # fmt: skip
        axes.set_yticks((0.05, 0.95), ("hard", "easy"))
        axes.set_title(_wrapped(name), fontsize=9)
    figure.colorbar(image, ax=list(panels), shrink=0.6, label=scale)
    _outer(figure, "Step", "Tasks, by their mean true rate")
    return _save(figure, path, section, told)


PLOTS: dict[str, Callable[[Path, Section], bool]] = {
    "dots": plot_dots,
    "curves": plot_learning,
    "plane": plot_plane,
    "calibration": plot_calibration,
    "beliefs": plot_beliefs,
    "visits": plot_visits,
}


# --- shared -------------------------------------------------------------------------------


def _honest(section: Section) -> list[Row]:
    """Rows of the strategies that were not told the truth."""
    return [row for row in section.rows if row.strategy not in section.oracles]


def _value(row: Row, key: str) -> float:
    return row.cells[key].value.value if key in row.cells else math.nan


def _missing(row: Row, *keys: str) -> bool:
    return any(math.isnan(_value(row, key)) for key in keys)


def _heading(key: str) -> str:
    column = measure_of(key).column
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _wrapped(name: str, width: int = 26) -> str:
    """A label on several lines, broken at its commas and spaces."""
    lines = [""]
    for word in name.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _grid(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Any, Any]:
    plt = report.pyplot()
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, **shared
    )
    return figure, list(axes.ravel())


def _panels(count: int, square: bool = False) -> tuple[Any, Any]:
    """Small multiples with shared axes; those left over are hidden."""
    columns = min(count, 3 if count <= 6 else 4 if count <= 12 else 6)
    rows = -(-count // columns)
    width, height = (2.1, 2.3) if square else (2.6, 2.1)
    size = (max(width * columns, 5.5) + 0.6, height * rows + 1.1)
    figure, panels = _grid(rows, columns, size, sharex=True, sharey=True)
    for i, axes in enumerate(panels):
        if i >= count:
            axes.set_visible(False)
        elif i + columns >= count:
            axes.xaxis.set_tick_params(labelbottom=True)
    return figure, panels[:count]


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _outer(figure: Any, x_label: str, y_label: str) -> None:
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)


def _title(figure: Any, section: Section, told: str) -> None:
    figure.suptitle(f"{section.environment}\n{told}", fontsize=10)


def _save(figure: Any, path: Path, section: Section, told: str) -> bool:
    _title(figure, section, told)
    return _write(figure, path)


def _write(figure: Any, path: Path) -> bool:
    try:
        figure.savefig(path, dpi=130)
    finally:
        report.pyplot().close(figure)
    return True
