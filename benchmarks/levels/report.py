"""Table and figure of the levels: what `benchmarks.levels.run` has measured.

python -m benchmarks.levels.report     # benchmarks/results/levels.md, .json and .png

Final: mean of the last three evaluations; AUC: mean of all; steps to .45: environment steps until
a running mean over three evaluations gets there. Differences are paired by seed, with 95%
intervals of Student's t.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bots_jax.evaluate import metrics

RESULTS = Path(__file__).parents[1] / "results"
THRESHOLD, SMOOTH = 0.45, 3
NAMES = {
    "uniform": "domain randomisation (uniform)",
    "plr": "PLR, jaxued's",
    "sfl": "SFL, screening counted",
    "mopps": "MoPPS",
    "bots": "`bots`, as published, no references",
    "auto": "`auto`, told nothing",
    "auto-features": "`auto`, told four plain features",
    "auto-arrays": "`auto`, told the levels' arrays (`features.of_levels`)",
    "auto-.3": "`auto`, told nothing, breadth .3",
    "oracle": "oracle: solvable levels alone",
}
Curves = dict[int, np.ndarray]


def load(path: Path) -> dict[tuple[float, str], Curves]:
    """The held-out curves of each pool and rule, by seed."""
    found: dict[tuple[float, str], Curves] = {}
    for record in map(json.loads, path.read_text().splitlines()):
        curves = found.setdefault((record["pool"], record["rule"]), {})
        curves[record["seed"]] = np.array(record["solved"])
    return found


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half of the 95% interval."""
    found = metrics.mean_interval(values)
    return found.value, found.high - found.value


def final(curve: np.ndarray) -> float:
    """Mean of the last three evaluations."""
    return float(curve[-3:].mean())


def steps_to(curve: np.ndarray, steps: int) -> float:
    """Environment steps until the smoothed curve reaches the threshold; infinite if never."""
    smooth = np.convolve(curve, np.ones(SMOOTH) / SMOOTH, "valid")
    reached = np.flatnonzero(smooth >= THRESHOLD)
    return (reached[0] + SMOOTH) * steps if reached.size else float("inf")


def summarize(curves: Curves, base: Curves, steps: int) -> dict[str, Any]:
    """The figures of one rule, and its paired differences from the base."""
    common = sorted(set(curves) & set(base))
    told: dict[str, Any] = {"seeds": sorted(curves)}
    for name, measure in (("final", final), ("auc", lambda curve: float(curve.mean()))):
        told[name] = interval(np.array([measure(c) for c in curves.values()]))
        pairs = np.array([measure(curves[s]) - measure(base[s]) for s in common])
        told[f"{name}_less"] = interval(pairs) if common else (float("nan"),) * 2
    told["steps"] = float(np.median([steps_to(c, steps) for c in curves.values()]))
    return told


def row(name: str, told: dict[str, Any]) -> str:
    """A line of the table."""

    def difference(pair: tuple[float, float]) -> str:
        mean, half = pair
        return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"

    thousand = "never" if np.isinf(told["steps"]) else f"{told['steps'] / 1000:.0f}"
    cells = [NAMES[name], len(told["seeds"]), f"{told['final'][0]:.3f}", f"{told['auc'][0]:.3f}"]
    if name == "uniform":
        cells += ["", ""]
    else:
        cells += [difference(told["final_less"]), difference(told["auc_less"])]
    return "| " + " | ".join(str(cell) for cell in [*cells, thousand]) + " |"


def table(found: dict[tuple[float, str], Curves], steps: int) -> tuple[str, dict[str, Any]]:
    """All pools in markdown, and the figures."""
    lines, numbers = [], {}
    for pool in sorted({pool for pool, _ in found}):
        base = found.get((pool, "uniform"), {})
        rows = {name: summarize(c, base, steps) for (p, name), c in found.items() if p == pool}
        numbers[str(pool)] = rows
        lines += [
            f"## {pool:.0%} of the levels can be solved",
            "",
            "| rule | seeds | final | AUC | final less uniform | AUC less uniform | k steps |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(row(name, rows[name]) for name in sorted(rows, key=lambda n: -rows[n]["auc"][0])),
            "",
        ]
    return "\n".join(lines), numbers


def figure(found: dict[tuple[float, str], Curves], steps: int, path: Path) -> None:
    """Solve rate over environment steps, mean and 95% band, a panel a pool."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    pools = [pool for pool in (0.05, 0.3) if any(p == pool for p, _ in found)]
    drawn = ["oracle", "auto-features", "auto", "plr", "sfl", "mopps", "bots", "uniform"]
    panels = plt.subplots(1, len(pools), figsize=(5.5 * len(pools), 4), squeeze=False)
    for panel, pool in zip(panels[1][0], pools, strict=True):
        for name in [name for name in drawn if (pool, name) in found]:
            curves = np.stack(list(found[pool, name].values()))
            told = [interval(column) for column in curves.T]
            mean, half = np.array(told).T
            at = (np.arange(mean.size) + 1) * steps / 1000
            color = f"C{drawn.index(name)}"  # the same in every panel
            panel.plot(at, mean, label=NAMES[name].replace("`", ""), color=color)
            panel.fill_between(at, mean - half, mean + half, alpha=0.15, color=color)
        panel.set(title=f"{pool:.0%} solvable", xlabel="thousand environment steps")
        panel.set(ylabel="held-out levels solved", ylim=(0, 1))
    panels[1][0][0].legend(fontsize=7)
    panels[0].tight_layout()
    panels[0].savefig(path, dpi=110)


def main() -> None:
    """Write the table, the numbers and the figure."""
    source = RESULTS / "levels.jsonl"
    found = load(source)
    steps = json.loads(source.read_text().splitlines()[0])["steps"]
    text, numbers = table(found, steps)
    (RESULTS / "levels.md").write_text(f"# Levels: which mazes to train on\n\n{text}")
    (RESULTS / "levels.json").write_text(json.dumps(numbers, indent=1) + "\n")
    figure(found, steps, RESULTS / "levels.png")
    print(text)


if __name__ == "__main__":
    main()
