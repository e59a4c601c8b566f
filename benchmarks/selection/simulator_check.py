"""The simulator against the recorded run it was calibrated on, on seeds it was not.

1. Trace: simulated visits in shuffled passes (1,209 tasks, 128 a step) beside the recorded
   ones. Kolmogorov-Smirnov distances of the successes a visit in windows of steps and of
   the changes between visits; correlations between visits; means. `ks_between_seeds` is
   the distance of two simulated runs of the recorded size: what chance alone makes.
2. Ranking: each strategy in the simulator and in the replay of the recorded run at the same
   sizes (455 tasks, 32 a step, 8 rollouts); Spearman's correlation of their ETR.
3. Learning: held-out success rate at the end against uniform, paired by seed, in that small
   pool and in one of 8,000 tasks.

Run: python -m benchmarks.selection.simulator_check FILE
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.common import save
from bots_jax.bench.runner import make_room
from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import paired_interval
from bots_jax.evaluate.replay import load_recording, measure, run_replay
from bots_jax.simulator import Simulation, calibrated, run_simulation
from bots_jax.simulator.calibrate import (
    LAGS,
    WINDOWS,
    Summary,
    Visits,
    read_visits,
    simulate_visits,
    summarise,
)
from bots_jax.strategies import STRATEGIES, configure

EARLY = 50
# Steps and tasks of the pool in which breadth is plentiful, as in the small finetune runs.
LARGE = {"num_tasks": 8000, "steps": 200}


def ks(one: Any, other: Any) -> list[float]:
    """Largest difference of cumulative histograms, along the last axis."""
    apart = np.abs(np.cumsum(one, axis=-1) - np.cumsum(other, axis=-1)).max(axis=-1)
    return np.round(np.atleast_1d(apart), 4).tolist()


def check_trace(recorded: Visits, seeds: range) -> dict[str, Any]:
    """Part 1."""
    target = summarise(recorded)
    runs = simulate_visits([calibrated()], seeds, rollouts=recorded.rollouts)[0]
    each = [summarise(visits) for visits in runs]
    mean = Summary(*(np.mean([getattr(s, name) for s in each], axis=0) for name in Summary._fields))
    size = len(recorded.successes)
    few = [summarise(_first_tasks(visits, size)) for visits in runs[:2]]
    level = np.arange(recorded.rollouts + 1) / recorded.rollouts
    change = np.arange(-recorded.rollouts, recorded.rollouts + 1) / recorded.rollouts
    return {
        "windows": WINDOWS,
        "mean_recorded": np.round(target.levels @ level, 4).tolist(),
        "mean_simulated": np.round(mean.levels @ level, 4).tolist(),
        "ks_levels": ks(mean.levels, target.levels),
        "ks_levels_between_seeds": ks(few[0].levels, few[1].levels),
        "lags_in_visits": LAGS,
        "change_sd_recorded": np.round(np.sqrt(target.changes @ change**2), 4).tolist(),
        "change_sd_simulated": np.round(np.sqrt(mean.changes @ change**2), 4).tolist(),
        "ks_changes": ks(mean.changes, target.changes),
        "ks_changes_between_seeds": ks(few[0].changes, few[1].changes),
        "correlation_recorded": np.round(target.correlations, 4).tolist(),
        "correlation_simulated": np.round(mean.correlations, 4).tolist(),
        "strong_ks": ks(mean.strong, target.strong)[0],
        "strong_correlations_recorded": np.round(target.strong_correlations, 4).tolist(),
        "strong_correlations_simulated": np.round(mean.strong_correlations, 4).tolist(),
    }


def _first_tasks(visits: Visits, count: int) -> Visits:
    s, step, strong, rollouts = visits
    return Visits(s[:count], step[:count], strong[:count], rollouts)


def figures(run: Simulation) -> dict[str, list[float]]:
    """Those of each seed."""
    values = {
        "etr": run.etr.mean(axis=1),
        "etr_early": run.etr[:, :EARLY].mean(axis=1),
        "breadth": run.breadth[:, -1],
        "belief_rmse": run.belief_rmse.mean(axis=1),
        "belief_correlation": np.nanmean(run.belief_correlation, axis=1),
        "pool_rate": run.pool_rate[:, -1],
        "heldout_rate": run.heldout_rate[:, -1],
        "heldout_gain": run.heldout_rate[:, -1] - run.heldout_rate[:, 0],
    }
    return {name: np.asarray(value, float).tolist() for name, value in values.items()}


def simulate(name: str, seeds: range, num_tasks: int, steps: int = 500) -> dict[str, Any]:
    """One strategy in the simulator; figures by seed."""
    begun = time.perf_counter()
    selector = configure(name, {}, batch_size=32, rollouts=8)
    told = figures(run_simulation(selector, None, seeds, steps, num_tasks=num_tasks))
    make_room()
    print(f"{name}: {num_tasks} tasks, {time.perf_counter() - begun:.0f} s", flush=True)
    return told


def check_ranking(file: str, names: list[str], seeds: range) -> tuple[dict, dict]:
    """Part 2, and the simulator's figures by seed."""
    recording = load_recording(file)
    size = recording.success_rate.shape[1]
    simulated = {name: simulate(name, seeds, size) for name in names}
    replayed = {}
    for name in names:
        selector = configure(name, {}, batch_size=32, rollouts=recording.rollouts)
        replayed[name] = measure(run_replay(selector, recording, range(5)), size)
        make_room()
    keys = ("etr", "etr_early", "breadth", "belief_rmse", "belief_correlation")
    table = {
        name: {
            key: {
                "replay": round(float(np.mean([run[key] for run in replayed[name]])), 4),
                "simulator": round(float(np.mean(simulated[name][key])), 4),
            }
            for key in keys
        }
        for name in names
    }
    spearman = {
        key: round(
            float(
                metrics.spearman(
                    np.array([table[name][key]["replay"] for name in names]),
                    np.array([table[name][key]["simulator"] for name in names]),
                )
            ),
            3,
        )
        for key in ("etr", "etr_early", "breadth", "belief_rmse")
    }
    return {"strategies": table, "spearman": spearman}, simulated


def learning(simulated: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Part 3, of one pool: held-out rate at the end, and how it differs from uniform's."""
    base = simulated["uniform"]["heldout_rate"]
    return {
        name: {
            "etr": round(float(np.mean(told["etr"])), 4),
            "breadth": round(float(np.mean(told["breadth"])), 1),
            "heldout": round(float(np.mean(told["heldout_rate"])), 4),
            "pool": round(float(np.mean(told["pool_rate"])), 4),
            "heldout_gain": round(float(np.mean(told["heldout_gain"])), 4),
            "against_uniform": "baseline"
            if name == "uniform"
            else paired_interval(told["heldout_rate"], base).text(digits=4, sign="+"),
        }
        for name, told in simulated.items()
    }


def main() -> None:
    """Print and save all three parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="the trace, .npz")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="[%(default)s]")
    parser.add_argument("--seeds", type=int, default=8, help="of the simulator [%(default)s]")
    args = parser.parse_args()
    names, seeds = args.strategies.split(","), range(args.seeds)
    trace = check_trace(read_visits(args.file), range(2000, 2000 + args.seeds))
    print(trace)
    ranking, small = check_ranking(args.file, names, seeds)
    print(ranking)
    told = {"trace": trace, "ranking": ranking, "learning": {"recorded_size": learning(small)}}
    save("simulator_check", told)
    large = {name: simulate(name, seeds, **LARGE) for name in names}
    told["learning"]["large_pool"] = learning(large)
    save("simulator_check", told)


if __name__ == "__main__":
    main()
