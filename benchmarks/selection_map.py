"""The map: in which pools selection pays, from the simulated policy and the worlds.

Run: python -m benchmarks.selection_map [--seeds 20] [--cache FOLDER]

Pools of the calibrated simulator (`bots_jax/simulator`), each trained on for 400 steps of 16 tasks
x 8 rollouts under `uniform` and under `auto` told two references, over

    never     share of the tasks that 8 rollouts of the first policy never solve
    guesses   share of the mixed tasks that are guessed: they need no skill and teach none
    passes    over the pool in the run

Never-solved tasks are out of reach for good ("never solvable"), but for one line at which all of
the pool is made harder instead ("in reach later"). The column near 0 is a pool in which nearly all
is mixed. TTB(100%) is of averages over three evaluations 20 steps apart, as in the worlds, whose
points are read from selection/results/worlds/curves.json. Seeds from 200 on.

Out: bots_jax/evaluate/selection_map.json, which `bots-jax advise` reads, and
selection/results/map/map.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bots_jax.evaluate
from benchmarks.common import where
from bots_jax import auto
from bots_jax.bench.environments.finetune import cache_folder
from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import Curve, Interval
from bots_jax.rl import worlds
from bots_jax.simulator import Config, calibrated, run_simulation
from bots_jax.simulator.world import World, success_rate
from bots_jax.strategies import uniform

NEVER = (0.0, 0.5, 0.75, 0.9, 0.97, 0.99)
GUESSES = (0.0, 0.5)
PASSES = (0.3, 1.0, 5.0)
BATCH, ROLLOUTS, STEPS, EVERY = 16, 8, 400, 20
FIRST_SEED = 200  # those before were used to try things out
SAMPLE = 4096
# Kept, so that each is compiled once a size of pool.
SELECTORS = {
    "uniform": uniform(batch_size=BATCH, rollouts=ROLLOUTS),
    "auto": auto(batch_size=BATCH, rollouts=ROLLOUTS),
}
MAP = Path(bots_jax.evaluate.__file__).with_name("selection_map.json")
RESULTS = Path(__file__).parent / "selection" / "results"
# (world, row) -> what auto was told
TOLD = {"auto + prompts": "prompts", "auto + references": "references"}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the map and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cache", help="folder that keeps the warm-up of the worlds")
    parser.add_argument("--only-worlds", action="store_true", help="keep the simulated cells")
    args = parser.parse_args(argv)
    cells = json.loads(MAP.read_text())["cells"] if args.only_worlds else simulated(args.seeds)
    found = {
        "about": {
            "batch_size": BATCH, "rollouts": ROLLOUTS, "steps": STEPS, "seeds": args.seeds,
            "first_seed": FIRST_SEED, "strategy": "auto, two references", "baseline": "uniform",
        },
        "where": where(),
        "cells": cells,
        "worlds": of_worlds(cache_folder(args.cache)),
    }  # fmt: skip
    MAP.write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "map").mkdir(exist_ok=True)
    plot(found, RESULTS / "map" / "map.png")


# --- the simulator --------------------------------------------------------------------------


def simulated(seeds: int) -> list[dict[str, Any]]:
    """A cell for each place on the map."""
    cells = []
    for passes in PASSES:
        places = [(never, guesses, False) for guesses in GUESSES for never in NEVER]
        if passes == 1:
            places += [(never, 0.0, True) for never in NEVER[1:]]
        for never, guesses, in_reach in places:
            cells.append(cell(never, guesses, passes, in_reach, seeds))
            print(json.dumps(cells[-1]), flush=True)
    return cells


def cell(never: float, guesses: float, passes: float, in_reach: bool, seeds: int) -> dict[str, Any]:
    """Uniform and auto in one pool, paired by seed."""
    config = harder(never) if in_reach else pool_of(never, guesses)
    tasks = round(STEPS * BATCH / passes)
    runs = range(FIRST_SEED, FIRST_SEED + seeds)
    curves = {}
    for name, selector in SELECTORS.items():
        told = run_simulation(
            selector, config, runs, STEPS,
            num_tasks=tasks, rollouts=ROLLOUTS, sample=SAMPLE, seeds_at_once=10,
        )  # fmt: skip
        curves[name] = np.asarray(told.heldout_rate, np.float64)
    at = shares(config)
    return {
        "never": at["never"], "always": at["always"], "mixed": at["mixed"],
        "guesses": at["guesses"], "passes": passes, "in_reach": in_reach, "num_tasks": tasks,
        "asked": [never, guesses],
        **compared(
            [evaluations(one) for one in curves["auto"]],
            [evaluations(one) for one in curves["uniform"]],
        ),
    }  # fmt: skip


def evaluations(rates: np.ndarray) -> Curve:
    """A rate a step -> one every 20, and that after the first."""
    at = np.r_[0, np.arange(EVERY, len(rates) + 1, EVERY)]
    return Curve(at.tolist(), rates[np.maximum(at - 1, 0)].tolist())


def compared(own: Sequence[Curve], base: Sequence[Curve]) -> dict[str, Any]:
    """TTB(100%), and what is gained beyond the baseline's gain, as a share of it."""
    pairs = [(metrics.averaged(a), metrics.averaged(b)) for a, b in zip(own, base, strict=True)]
    times = [metrics.ttb(a, b, 1.0) for a, b in pairs]
    ours, theirs = (np.array([np.asarray(one.scores) for one in of]) for of in (own, base))
    usual = np.mean(theirs[:, -1] - theirs[:, 0])
    return {
        "ttb": as_list(metrics.time_interval(times)),
        "gain": as_list(metrics.mean_interval((ours[:, -1] - theirs[:, -1]) / usual)),
    }


def as_list(interval: Interval) -> dict[str, Any]:
    """An interval as JSON values; null where the baseline of some seed gained nothing."""
    numbers = {key: getattr(interval, key) for key in ("value", "low", "high")}
    told = {key: None if np.isnan(x) else round(x, 4) for key, x in numbers.items()}
    return {**told, "open_value": interval.open_value, "open_high": interval.open_high}


def pool_of(never: float, guesses: float) -> Config:
    """The calibrated policy in a pool with these shares.

    Of the rest n are never and v sometimes solved, of the guessed n' and v'. With g guessed, u out
    of reach and r = 1 - u - g of the rest: u + r n + g n' = never, g v' = guesses (r v + g v').
    """
    base = calibrated()._replace(unsolvable=0.0)
    if never == 0:  # nearly all are mixed
        base = base._replace(difficulty=-1.0, difficulty_above=0.8, difficulty_below=0.8)
    rest, guessed = shares(base), shares(base._replace(guessed=1.0))
    ratio = guesses / (1 - guesses) * rest["mixed"] / guessed["mixed"]  # g / r
    lost = rest["never"] + ratio * guessed["never"]
    solvable = max((1 - never) / (1 + ratio - lost), 0.0)  # r
    out_of_reach = 1 - solvable * (1 + ratio)
    if never == 0:
        solvable, out_of_reach = 1 / (1 + ratio), 0.0
    if out_of_reach < -1e-6:
        raise ValueError(f"never={never} is below the {rest['never']:.2f} of the pool itself")
    return base._replace(unsolvable=out_of_reach, guessed=solvable * ratio)


def harder(never: float) -> Config:
    """All difficulties moved up until so many are never solved; none is out of reach for good."""
    base = calibrated()._replace(unsolvable=0.0)
    low, high = -5.0, 20.0
    for _ in range(20):
        middle = (low + high) / 2
        enough = shares(base._replace(difficulty=middle))["never"] > never
        low, high = (low, middle) if enough else (middle, high)
    return base._replace(difficulty=low)


@jax.jit
def _first_rates(config: Config) -> jax.Array:
    """f[M] rates of the untrained policy."""
    world, ids = World(jax.random.key(1), config), jnp.arange(65_536)
    skills, zero = jnp.zeros_like(config.speed), jnp.zeros(ids.shape)
    return success_rate(world, ids, skills, zero, jnp.zeros(()))


def shares(config: Config) -> dict[str, float]:
    """Of a pool of the simulator, in 8 rollouts of the untrained policy."""
    numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), config)
    told = of_rates(np.asarray(_first_rates(numbers), np.float64))
    if float(config.guessed) in (0.0, 1.0):
        return {**told, "guesses": float(config.guessed)}
    alone = of_rates(np.asarray(_first_rates(numbers._replace(
        unsolvable=jnp.float32(0), guessed=jnp.float32(1))), np.float64))  # fmt: skip
    return {**told, "guesses": float(config.guessed) * alone["mixed"] / told["mixed"]}


def of_rates(rates: np.ndarray, rollouts: int = ROLLOUTS) -> dict[str, float]:
    """Shares never, always and sometimes solved in so many rollouts."""
    never, always = np.mean((1 - rates) ** rollouts), np.mean(rates**rollouts)
    return {"never": float(never), "always": float(always), "mixed": float(1 - never - always)}


# --- the worlds -----------------------------------------------------------------------------


def of_worlds(cache: Path) -> list[dict[str, Any]]:
    """Each world's place, and what auto does there."""
    curves = json.loads((RESULTS / "worlds" / "curves.json").read_text())
    found = []
    for label, told in curves.items():
        world = worlds.find_world(label.partition(",")[0])
        data = worlds.make_world(world, cache)
        base = (data.start.base,)
        rates = worlds.exact_rates(data.start.graphdef, base, data.pool)[0].astype(np.float64)
        mixed = 1 - rates**world.rollouts - (1 - rates) ** world.rollouts
        guesses = float(mixed[~worlds.teaches(data.pool)].sum() / mixed.sum())
        place = {
            "world": world.name, **of_rates(rates, world.rollouts), "guesses": guesses,
            "passes": world.steps * world.batch_size / len(rates),
        }  # fmt: skip
        for row, name in TOLD.items():
            if row in told["strategies"]:
                own, base_runs = (told["strategies"][key]["seeds"] for key in (row, "uniform"))
                both = [seed for seed in own if seed in base_runs]
                pairs = [[_curve(runs[seed]) for seed in both] for runs in (own, base_runs)]
                found.append({**place, "told": name, **compared(*pairs)})
                print(json.dumps(found[-1]), flush=True)
    return found


def _curve(run: Mapping[str, Any]) -> Curve:
    return Curve(run["step"], run["heldout"])


# --- the figure -----------------------------------------------------------------------------

COLOURS = {0.0: "#0072b2", 0.5: "#d55e00"}


def plot(found: Mapping[str, Any], path: Path) -> None:
    """TTB over the share never solved, a panel for each number of passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PASSES), figsize=(14, 4.6), sharey=True)
    for axes, passes in zip(panels, PASSES, strict=True):
        here = [cell for cell in found["cells"] if cell["passes"] == passes]
        for guesses in GUESSES:
            line = [c for c in here if c["asked"][1] == guesses and not c["in_reach"]]
            label = f"simulator, {guesses:.0%} of the mixed are guesses"
            _line(axes, line, COLOURS[guesses], "-", label)
        reach = [cell for cell in here if cell["in_reach"]]
        if reach:
            _line(axes, reach, "#009e73", "--", "simulator, never solved but in reach later")
        points = [point for point in found["worlds"] if _nearest(point["passes"]) == passes]
        for point in points:
            _point(axes, point)
        _names(axes, [point for point in points if point["told"] == "prompts"])
        axes.axhline(1, color="#9a9a9a", linewidth=0.8)
        axes.set_title(f"{passes:g} passes over the pool", fontsize=10)
        axes.set_xlabel("share of tasks never solved in 8 rollouts")
        axes.set_xscale("function", functions=(_stretch, _shrink))
        axes.set_xticks([0, 0.5, 0.75, 0.9, 0.97, 0.99], ["0", ".5", ".75", ".9", ".97", ".99"])
        axes.set_yscale("log")
        axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], [".05", ".1", ".2", ".5", "1", "2"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("TTB(100%) of auto against uniform; 1: no faster")
    shown: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(list(shown.values()), list(shown), loc="lower center", ncol=3, fontsize=8,
                  frameon=False)  # fmt: skip
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=110)


def _stretch(share: np.ndarray) -> np.ndarray:
    """The hard end of the axis takes as much room as the easy one."""
    return -np.log10(np.maximum(1.01 - share, 1e-3))


def _shrink(place: np.ndarray) -> np.ndarray:
    return 1.01 - 10 ** (-place)


def _line(axes: Any, cells: Sequence[Mapping[str, Any]], colour: str, dash: str, name: str) -> None:
    cells = [cell for cell in cells if cell["ttb"]["value"] is not None]
    x = [cell["never"] for cell in cells]
    y = [cell["ttb"]["value"] for cell in cells]
    axes.plot(x, y, dash, marker="o", markersize=3, color=colour, label=name)
    low, high = ([cell["ttb"][key] for cell in cells] for key in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.18)


def _nearest(passes: float) -> float:
    """That of PASSES, in proportion."""
    return min(PASSES, key=lambda one: abs(np.log(one / passes)))


def _point(axes: Any, point: Mapping[str, Any]) -> None:
    told = {"prompts": ("s", "#000000"), "references": ("^", "#9a9a9a")}
    marker, colour = told[point["told"]]
    ttb = point["ttb"]
    bars = [[ttb["value"] - ttb["low"]], [ttb["high"] - ttb["value"]]]
    axes.errorbar([point["never"]], [ttb["value"]], yerr=np.maximum(bars, 0), fmt=marker,
                  color=colour, markersize=4, linewidth=0.8,
                  label=f"worlds, auto given the {point['told']}")  # fmt: skip


_DECADE = 90  # points of a decade of the figure, about
_LINE = 9  # points between two names


def _names(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """The names of the worlds beside their points, none over another."""
    lowest = np.inf
    for point in sorted(points, key=lambda one: -one["ttb"]["value"]):
        at = _DECADE * np.log10(point["ttb"]["value"])
        lowest = min(at, lowest - _LINE)
        axes.annotate(point["world"], (point["never"], point["ttb"]["value"]), fontsize=7,
                      xytext=(5, lowest - at - 3), textcoords="offset points")  # fmt: skip


if __name__ == "__main__":
    main()
