"""Learning in worlds: the table, the curves with their bands, and the numbers behind both.

Run: bots-jax bench worlds --out runs/bench/worlds
     python -m benchmarks.worlds runs/bench/worlds/results.jsonl
     python -m benchmarks.worlds runs/bench/worlds_free/results.jsonl --table free

In: the cells of the matrix `selection/worlds.toml`. Out, in selection/results/worlds: table.md,
heldout.png (mean and 95% band of the mean over seeds, a panel a world) and curves.json. With
`--table NAME`, for other matrices (`worlds_free`, `worlds_ceiling`): NAME.md alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bots_jax.bench.measures import values_of
from bots_jax.bench.store import Store
from bots_jax.evaluate import metrics

OUT = Path(__file__).parent / "selection" / "results" / "worlds"
BASELINE = "uniform"
# Okabe and Ito's colours and a dash of its own for each row; worlds have rows in other orders.
STYLES = {
    "uniform": ("#000000", "-"),
    "epochs": ("#9a9a9a", "-"),
    "bots + references": ("#d55e00", "--"),
    "auto + references": ("#e69f00", "-."),
    "auto + prompts": ("#0072b2", "-"),
    "auto + prompts and references": ("#009e73", ":"),
    "auto + hidden states": ("#cc79a7", "--"),
    "oracle": ("#56b4e9", "-."),
}
OTHER = ("#000000", ":")
HEAD = (
    "given", "held-out at the end", "minus uniform", "minus epochs", "TTB(100%), uniform",
    "TTB(100%), epochs", "in tokens", "ETR", "effective tasks", "largest fall",
)  # fmt: skip

Records = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three files, or one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", help="results.jsonl of a matrix of worlds")
    parser.add_argument("--table", metavar="NAME", help="write NAME.md alone")
    given = parser.parse_args(argv)
    by_world: dict[str, list[Mapping[str, Any]]] = {}
    for record in Store(given.results).read().values():
        by_world.setdefault(record["environment"], []).append(record)
    OUT.mkdir(parents=True, exist_ok=True)
    parts = [f"## {world}\n\n{table(records)}" for world, records in by_world.items()]
    text = "# Learning in worlds\n\n" + "\n".join(parts)
    (OUT / f"{given.table or 'table'}.md").write_text(text)
    if given.table:
        return
    curves = {world: as_curves(records) for world, records in by_world.items()}
    (OUT / "curves.json").write_text(json.dumps(curves, indent=None, separators=(",", ":")) + "\n")
    plot(curves, OUT / "heldout.png")


def table(records: Records) -> str:
    """A row a strategy, Markdown."""
    check_paired(records)
    values = values_of(list(records), BASELINE)
    lines = ["| choice + " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for name, runs in values.items():
        seeds = [seed for seed in runs if seed in values[BASELINE]]
        cells = [runs[seed] for seed in seeds]
        base = [values[BASELINE][seed] for seed in seeds]
        lines.append(f"| {name} | " + " | ".join(_row(name, cells, base)) + " |")
    seeds = sorted({record["seed"] for record in records})
    return f"Seeds {seeds[0]} to {seeds[-1]}.\n\n" + "\n".join(lines) + "\n"


def check_paired(records: Records) -> None:
    """Refuse runs of one seed that start from different policies."""
    begun: dict[int, set[float]] = {}
    for record in records:
        begun.setdefault(record["seed"], set()).add(round(record["series"]["heldout"]["y"][0], 6))
    if mixed := {seed: sorted(starts) for seed, starts in begun.items() if len(starts) > 1}:
        raise SystemExit(
            f"held-out rates before the first step differ within a seed: {mixed}. These runs start "
            "from base policies of several warm-ups (other machines or numbers of cores), and are "
            "not pairs: run them again with one cache"
        )


def _row(name: str, cells: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> Any:
    def numbers(key: str, of: Sequence[Mapping[str, Any]] = cells) -> np.ndarray:
        return np.array([cell.get(key, np.nan) for cell in of], np.float64)

    def time(key: str) -> str:
        times = [cell.get(key, metrics.Time(np.nan, False)) for cell in cells]
        return metrics.time_interval(times).text(2)

    end, alone = numbers("heldout"), name == BASELINE
    yield metrics.mean_interval(end).text(3)
    yield "" if alone else metrics.paired_interval(end, numbers("heldout", base)).text(3, "+")
    over = numbers("heldout_over_epochs")
    yield "" if np.isnan(over).any() or not over.any() else metrics.mean_interval(over).text(3, "+")
    yield "" if alone else time("ttb_100")
    yield "" if not over.any() else time("ttb_100_epochs")
    yield "" if alone else time("ttb_100_tokens")
    yield f"{numbers('etr').mean():.2f}"
    yield f"{numbers('breadth').mean():,.0f}"
    yield f"{numbers('fall').max():.3f}"


def as_curves(records: Records) -> dict[str, Any]:
    """What the figures are drawn from, and a record of settings; curves rounded to 1e-4."""
    found: dict[str, Any] = {"about": records[0]["about"], "where": records[0]["where"]}
    for record in sorted(records, key=lambda one: one["seed"]):
        series = record["series"]
        own = found.setdefault("strategies", {}).setdefault(
            record["strategy"], {"settings": record["settings"], "seeds": {}, "seconds": []}
        )
        own["seeds"][record["seed"]] = {
            "step": series["heldout"]["x"],
            "heldout": [round(score, 4) for score in series["heldout"]["y"]],
            "tokens": series["tokens"]["y"],
            **{key: record["values"][key] for key in ("etr", "breadth", "fall")},
        }
        own["seconds"].append(record["cell_seconds"])
    return found


def plot(curves: Mapping[str, Any], path: Path) -> None:
    """Held-out pass rate over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    size = (4.6 * columns, 3.6 * rows)
    figure, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axes in panels.ravel()[len(curves) :]:
        axes.set_visible(False)
    for axes, (world, found) in zip(panels.ravel(), curves.items(), strict=False):
        for name, own in found["strategies"].items():
            colour, dash = STYLES.get(name, OTHER)
            runs = list(own["seeds"].values())
            y = np.array([run["heldout"] for run in runs])
            mean = y.mean(axis=0)
            half = y.std(axis=0, ddof=1) * metrics.t_quantile(len(y) - 1) / len(y) ** 0.5
            axes.plot(runs[0]["step"], mean, dash, color=colour, label=name, linewidth=1.4)
            axes.fill_between(runs[0]["step"], mean - half, mean + half, color=colour, alpha=0.15)
        axes.set_title(world, fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("held-out pass rate")
    lines = {line.get_label(): line for axes in panels.ravel() for line in axes.get_lines()}
    names = sorted(lines, key=[*STYLES, *lines].index)
    figure.legend(
        [lines[name] for name in names],
        names,
        loc="lower center",
        ncol=4,
        fontsize=8,
        frameon=False,
    )
    figure.suptitle("mean over seeds and 95% band", fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
