"""Table and figure of the levels: what `benchmarks.levels.run` has measured.

python -m benchmarks.levels.report     # benchmarks/results/levels.md, .json and .png

Final: mean of the last three evaluations; AUC: mean of all; hard and hand-made: solve rates at the
end, of the held-out levels with the longest ways and of jaxued's own mazes (only of runs that
measured them); k steps: thousands of environment steps until a running mean over three evaluations
gets to .45. Differences are paired by seed, with 95% intervals of Student's t. Of two runs of one
seed the later counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import no_options
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
    "auto-reach": "`auto`, told these four and how many cells can be reached",
    "auto-way": "`auto`, told the shortest way",
    "auto-way-half": "`auto`, told the shortest way, solved levels worth half",
    "auto-arrays": "`auto`, told the levels' arrays (`features.of_levels`)",
    "auto-.3": "`auto`, told nothing, breadth .3",
    "auto-half": "`auto`, told nothing, solved levels worth half",
    "auto-features-half": "`auto`, told four plain features, solved levels worth half",
    "auto-returns": "`auto`, told nothing, evidence the returns",
    "auto-features-returns": "`auto`, told four plain features, evidence the returns",
    "oracle": "oracle: solvable levels alone",
    "oracle-after": "oracle told after a visit: half of the slots find, half play what was found",
    "randomisation": "domain randomisation: new levels at each update",
    "robust-plr": "robust PLR, jaxued's",
    "accel": "ACCEL, jaxued's",
    "auto-new": "`auto` with `insert`: new levels",
    "auto-mutated": "`auto` with `insert`: new and mutated levels",
    "auto-mutated-features": "`auto` with `insert`, new and mutated, told four plain features",
    "auto-mutated-way": "`auto` with `insert`, new and mutated, told the shortest way",
}
BASES = {"open": "randomisation"}  # elsewhere uniform
OPEN = "open"
Pool = float | str
Runs = dict[int, dict[str, Any]]  # by seed
Found = dict[tuple[Pool, str], Runs]
MEASURES = ("final", "auc", "hard", "hand_made")


def load(*paths: Path) -> Found:
    """The records of each pool and rule, by seed."""
    found: Found = {}
    for path in paths:
        for record in map(json.loads, path.read_text().splitlines()):
            record["solved"] = np.array(record["solved"])
            found.setdefault((record["pool"], record["rule"]), {})[record["seed"]] = record
    return found


def measure(name: str, run: dict[str, Any]) -> float:
    """One of `MEASURES`; NaN where it was not measured."""
    if name == "final":
        return final(run["solved"])
    return float(run["solved"].mean()) if name == "auc" else run.get(name, float("nan"))


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95% interval; without what was not measured."""
    known = np.array([value for value in values if not np.isnan(value)])
    if known.size < 2:
        return (float(known.mean()) if known.size else float("nan")), float("nan")
    found = metrics.mean_interval(known)
    return found.value, found.high - found.value


def final(curve: np.ndarray) -> float:
    """Mean of the last three evaluations."""
    return float(curve[-3:].mean())


def steps_to(curve: np.ndarray, steps: int) -> float:
    """Environment steps until the smoothed curve reaches the threshold; infinite if never."""
    smooth = np.convolve(curve, np.ones(SMOOTH) / SMOOTH, "valid")
    reached = np.flatnonzero(smooth >= THRESHOLD)
    return (reached[0] + SMOOTH) * steps if reached.size else float("inf")


def less(name: str, runs: Runs, base: Runs) -> tuple[float, float]:
    """Paired difference and half of its interval."""
    common = sorted(set(runs) & set(base))
    return interval([measure(name, runs[s]) - measure(name, base[s]) for s in common])


def summarize(runs: Runs, base: Runs) -> dict[str, Any]:
    """The figures of one rule, and its paired differences from the base."""
    told: dict[str, Any] = {"seeds": sorted(runs)}
    for name in MEASURES:
        told[name] = interval([measure(name, run) for run in runs.values()])
        told[f"{name}_less"] = less(name, runs, base)
    reached = [steps_to(run["solved"], run["steps"]) for run in runs.values()]
    return told | {"steps": float(np.median(reached))}


def difference(pair: tuple[float, float]) -> str:
    """Mean and interval, as text."""
    mean, half = pair
    return "" if np.isnan(half) else f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def row(name: str, told: dict[str, Any], is_base: bool) -> str:
    """A line of the table."""
    thousand = "never" if np.isinf(told["steps"]) else f"{told['steps'] / 1000:.0f}"
    means = ["" if np.isnan(told[m][0]) else f"{told[m][0]:.3f}" for m in MEASURES]
    pairs = ["", ""] if is_base else [difference(told[f"{m}_less"]) for m in MEASURES[:2]]
    cells = [NAMES[name], str(len(told["seeds"])), *means, *pairs, thousand]
    return "| " + " | ".join(cells) + " |"


def against(found: Found, pool: Pool, order: list[str]) -> list[str]:
    """Each variant of auto less every other rule, AUC and hard levels."""
    ours = [name for name in order if name.startswith("auto")]
    lines = ["| | less | final | AUC | hard |", "| --- | --- | --- | --- | --- |"]
    for mine in ours:
        for other in [name for name in order if name not in ours]:
            pairs = [less(m, found[pool, mine], found[pool, other]) for m in MEASURES[:3]]
            cells = [NAMES[mine], NAMES[other], *map(difference, pairs)]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def table(found: Found) -> tuple[str, dict[str, Any]]:
    """All pools in markdown, and the figures."""
    lines, numbers = [], {}
    for pool in sorted({pool for pool, _ in found}, key=str):
        base = BASES.get(str(pool), "uniform")
        rows = {
            name: summarize(runs, found.get((pool, base), {}))
            for (p, name), runs in found.items()
            if p == pool
        }
        numbers[str(pool)] = rows
        order = sorted(rows, key=lambda name: -rows[name]["auc"][0])
        title = "Generated as training goes" if pool == OPEN else f"{pool:.0%} can be solved"
        lines += [
            f"## {title}",
            "",
            f"| rule | seeds | final | AUC | hard | hand-made | final less {base} "
            f"| AUC less {base} | k steps |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(row(name, rows[name], name == base) for name in order),
            "",
            *against(found, pool, order),
        ]
    return "\n".join(lines), numbers


def figure(found: Found, path: Path) -> None:
    """Solve rate over environment steps, mean and 95% band, a panel a pool."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    pools = [pool for pool in (0.05, 0.3) if any(p == pool for p, _ in found)]
    drawn = ["oracle", "auto-way", "auto", "plr", "sfl", "mopps", "bots", "uniform"]
    panels = plt.subplots(1, len(pools), figsize=(5.5 * len(pools), 4), squeeze=False)
    for panel, pool in zip(panels[1][0], pools, strict=True):
        for name in [name for name in drawn if (pool, name) in found]:
            runs = list(found[pool, name].values())
            curves = np.stack([run["solved"] for run in runs])
            mean, half = np.array([interval(column) for column in curves.T.tolist()]).T
            at = (np.arange(mean.size) + 1) * runs[0]["steps"] / 1000
            color = f"C{drawn.index(name)}"  # the same in every panel
            panel.plot(at, mean, label=NAMES[name].replace("`", ""), color=color)
            panel.fill_between(at, mean - half, mean + half, alpha=0.15, color=color)
        panel.set(title=f"{pool:.0%} solvable", xlabel="thousand environment steps")
        panel.set(ylabel="held-out levels solved", ylim=(0, 1))
    panels[1][0][-1].legend(fontsize=7, loc="lower right")
    panels[0].tight_layout()
    panels[0].savefig(path, dpi=110)


def main() -> None:
    """Write the table, the numbers and the figure."""
    sources = [RESULTS / "levels.jsonl", RESULTS / "levels_open.jsonl"]
    found = load(*[path for path in sources if path.exists()])
    text, numbers = table(found)
    (RESULTS / "levels.md").write_text(f"# Levels: which mazes to train on\n\n{text}")
    # numbers alone are JSON: what was not measured or reached is null
    told = json.loads(json.dumps(numbers), parse_constant=lambda _: None)
    (RESULTS / "levels.json").write_text(json.dumps(told, indent=1) + "\n")
    figure(found, RESULTS / "levels.png")
    print(text)


if __name__ == "__main__":
    no_options(__doc__)
    main()
