"""What features tell of tasks never tried, without references: kinds of real per-task results.

Run: python -m benchmarks.selection.features_prediction FOLDER [--draws 600] [--files NAME]

In: a folder with rg_scores_easy, rg_scores_hard and swe_rates (`*.npz`). Out: a table, and
benchmarks/results/features_prediction.json. Of each model of a file in turn, 16 batches of 32
random tasks are evaluated, once each; then the success probability of all others is predicted by

    features    auto(), told the kinds (dataset and category, or repository)
    nothing     auto(), told nothing: one mean for all
    kind mean   successes / trials of the evaluated tasks of the same kind (the finest); the mean of
                all evaluated tasks where there is none of that kind
    pulled      the same with two more trials of each kind at the mean of all
    both        the same with one more trial at the mean of the coarser kind, itself with four more
                at that of all: chosen in hindsight, and so near what kinds hold
    kinds known successes / trials of all tasks of the kind: what no evaluation of some can reach
    noise       auto(), told 32 columns of noise
    and noise   auto(), told the kinds and 32 columns of noise

Pearson's r with the observed rate, and the AUC of "never solved". A prediction that is the same for
all tasks has r = 0 and AUC = 1/2. Draws differ in the model, which they take in turn, and in the
tasks that are evaluated. Their intervals are Student's t over draws: of these models and tasks, not
of others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import save
from bots_jax import Evidence, Selector, auto
from bots_jax.evaluate import metrics

STEPS, BATCH = 16, 32
FILES = ("rg_scores_easy", "rg_scores_hard", "swe_rates")
NOISE = 32  # columns
METHODS = (
    "features", "nothing", "kind mean", "pulled", "both", "kinds known", "noise", "and noise"
)  # fmt: skip
# What is compared: the first less the second.
PAIRS = (
    *(("features", other) for other in METHODS[1:4]),
    ("both", "kind mean"),
    ("kinds known", "kind mean"),
    ("noise", "nothing"),
    ("and noise", "features"),
)


class Data(NamedTuple):
    """Models' successes of tasks."""

    successes: np.ndarray  # f[T, M], 0 <= successes <= trials
    trials: np.ndarray  # f[T, M], 0 where the model was not asked
    kinds: tuple[np.ndarray, ...]  # [T] each, from coarse to fine


def load(folder: Path, name: str) -> Data | None:
    """One of the files; None where it is absent."""
    found = sorted(folder.glob(f"{name}*.npz"))
    if not found:
        return None
    arrays = np.load(found[0])
    if name == "swe_rates":
        models = ("qwen3_4b", "other")
        successes, trials = (
            np.stack([arrays[f"{model}_{what}"] for model in models], axis=1).astype(float)
            for what in ("success", "trials")
        )
        return Data(successes, trials, (arrays["repo"],))
    completions = arrays["completions"]
    known = np.isfinite(completions)
    solved = np.where(known, completions >= 0.99, False).sum(axis=2)
    kinds = (arrays["category"], arrays["dataset"])
    return Data(solved.astype(float), known.sum(axis=2).astype(float), kinds)


def told_by_selector(
    selector: Selector, kinds: Any, batches: np.ndarray, solved: np.ndarray, trials: np.ndarray
) -> np.ndarray:
    """f[T]: the mean belief after the batches i32[steps, B]."""
    state = selector.init(num_tasks=len(solved), features=kinds)
    for ids in batches:
        evidence = Evidence(ids, solved[ids].astype(np.float32), trials[ids].astype(np.float32))
        state, _ = selector.update(state, evidence)
    return np.asarray(selector.predict(state).mean, np.float64)


def kind_means(
    kind: np.ndarray, ids: np.ndarray, solved: np.ndarray, trials: np.ndarray, pseudo: float
) -> np.ndarray:
    """f[T]: successes / trials of the evaluated tasks of each task's kind."""
    _, code = np.unique(kind, return_inverse=True)
    size, grand = code.max() + 1, solved[ids].sum() / trials[ids].sum()
    count = np.bincount(code[ids], trials[ids], size) + pseudo
    right = np.bincount(code[ids], solved[ids], size) + pseudo * grand
    return np.where(count > 0, right / np.maximum(count, 1e-9), grand)[code]


def means_in_kinds(
    kinds: tuple[np.ndarray, ...], ids: np.ndarray, solved: np.ndarray, trials: np.ndarray
) -> np.ndarray:
    """f[T]: means of the finest kind, pulled to those of the coarsest by one trial."""
    coarse = kind_means(kinds[0], ids, solved, trials, 4.0)
    if len(kinds) == 1:
        return coarse
    _, code = np.unique(kinds[-1], return_inverse=True)
    size = code.max() + 1
    first = np.unique(code, return_index=True)[1]
    right = np.bincount(code[ids], solved[ids], size) + coarse[first]
    return (right / (np.bincount(code[ids], trials[ids], size) + 1))[code]


def draw(data: Data, selector: Selector, seed: int) -> dict[str, dict[str, float]]:
    """Pearson and AUC of each method, on the tasks that were not evaluated."""
    model = seed % data.trials.shape[1]
    asked = data.trials[:, model] > 0
    solved, trials = data.successes[asked, model], data.trials[asked, model]
    kinds = tuple(kind[asked] for kind in data.kinds)
    order = np.random.default_rng(seed).permutation(len(solved))
    ids, rest = order[: STEPS * BATCH], order[STEPS * BATCH :]
    batches = ids.reshape(STEPS, BATCH).astype(np.int32)
    noise = np.random.default_rng([1, seed]).normal(size=(len(solved), NOISE))
    told = {
        "features": told_by_selector(selector, kinds, batches, solved, trials),
        "nothing": told_by_selector(selector, None, batches, solved, trials),
        "kind mean": kind_means(kinds[-1], ids, solved, trials, 0.0),
        "pulled": kind_means(kinds[-1], ids, solved, trials, 2.0),
        "both": means_in_kinds(kinds, ids, solved, trials),
        "kinds known": kind_means(kinds[-1], np.arange(len(solved)), solved, trials, 0.0),
        "noise": told_by_selector(selector, noise, batches, solved, trials),
        "and noise": told_by_selector(selector, (*kinds, noise), batches, solved, trials),
    }
    rate, never = (solved / trials)[rest], solved[rest] == 0
    scores = {}
    for name, predicted in told.items():
        there = predicted[rest]
        varied = np.ptp(there) > 1e-6
        pearson = float(metrics.pearson(there, rate)) if varied else 0.0
        scores[name] = {
            "pearson": pearson,
            "auc": metrics.auc(-there, never) if varied else 0.5,
            "rmse": float(metrics.rmse(there, rate)),
        }
    return scores


def interval(values: Any, baseline: Any = None) -> list[float]:
    """[mean, low, high], of a difference where there is a baseline."""
    found = (
        metrics.mean_interval(values)
        if baseline is None
        else metrics.paired_interval(values, baseline)
    )
    return [round(float(number), 4) for number in found[:3]]


def measure(data: Data, draws: int) -> dict[str, Any]:
    """Means over draws, and differences of pairs, with 95% intervals."""
    selector = auto(batch_size=BATCH, rollouts=int(np.median(data.trials[data.trials > 0])))
    runs = [draw(data, selector, seed) for seed in range(draws)]
    found: dict[str, Any] = {"draws": draws, "models": data.trials.shape[1]}
    for measured in ("pearson", "auc", "rmse"):
        values = {name: [run[name][measured] for run in runs] for name in METHODS}
        found[measured] = {name: interval(values[name]) for name in METHODS}
        found[f"{measured}, differences"] = {
            f"{one} less {other}": interval(values[one], values[other]) for one, other in PAIRS
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=600)
    parser.add_argument("--files", nargs="*", choices=FILES)
    parser.add_argument("--out", default="features_prediction")
    options = parser.parse_args(argv)
    rows = {}
    for name in options.files or FILES:
        data = load(options.folder, name)
        if data is None:
            print(f"{name}: not in {options.folder}, skipped")
            continue
        rows[name] = measure(data, options.draws)
        for measured in ("pearson", "auc", "rmse"):
            print(name, measured, rows[name][measured], rows[name][f"{measured}, differences"])
    if rows:
        save(options.out, rows)


if __name__ == "__main__":
    main()
