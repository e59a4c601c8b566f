"""Cost of a step against the size of the pool, log-log, from results/step.json.

Run: python -m benchmarks.plot_step
"""

from __future__ import annotations

import json

from benchmarks.common import RESULTS, no_options

# Label, marker and colour (of the palette of Okabe and Ito, told apart by everyone).
STYLES = {
    "authors": ("authors' code (NumPy, torch)", "s", "#d55e00"),
    "numpy": ("plain NumPy", "^", "#cc79a7"),
    "dense": ("bots_jax, dense", "o", "#0072b2"),
    "grouped": ("bots_jax, grouped", "D", "#009e73"),
}


def main() -> None:
    """Write results/step.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads((RESULTS / "step.json").read_text())["rows"]
    settings = sorted({row["forgetting"] for row in rows}, reverse=True)
    figure, axes = pyplot.subplots(1, len(settings), figsize=(9, 3.8), sharey=True, squeeze=False)
    for axis, forgetting in zip(axes[0], settings, strict=True):
        mine = [row for row in rows if row["forgetting"] == forgetting]
        for side, (label, marker, color) in STYLES.items():
            points = [(row["size"], row[side]["warm_ms"]) for row in mine if side in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker=marker, color=color, label=label)
        axis.set(xscale="log", yscale="log", xlabel="tasks in the pool")
        axis.set_title(f"forgetting lambda = {forgetting:g}", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("ms a step (select 512, update)")
    axes[0, -1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(RESULTS / "step.png", dpi=110)
    print(f"written to {RESULTS / 'step.png'}")


if __name__ == "__main__":
    no_options(__doc__)
    main()
