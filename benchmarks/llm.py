"""Does selection pay for a pretrained language model? SmolLM2-135M on two cores.

Short lines (`rl.llm.lines`), the upper layers trained, a rate that falls to 0: uniform,
shuffled epochs, auto told the prompts, BOTS with measured references, under paired seeds. The
strong reference is the model after some steps on uniformly chosen tasks, as a user would make it.

What is done is kept in `--runs`, so a second call goes on; `--report` only writes the table and
the figure of the runs that are whole, with the number of seeds that each has.

Run: python -m benchmarks.llm     (needs the extras `llm` and `plots`, and the weights)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, save
from bots_jax.evaluate import metrics
from bots_jax.rl import finetune
from bots_jax.rl.finetune import StoppedError
from bots_jax.rl.llm.finetune import LlmConfig, prepare
from bots_jax.rl.llm.gguf_file import installed_weights
from bots_jax.rl.loop import LoopConfig
from bots_jax.rl.policy_gradient import GradientConfig
from bots_jax.rl.run_folder import Line, RunFolder

STEPS = 60
CONFIG = LlmConfig(
    weights="-",  # those that are installed
    strategies=("uniform", "epochs", "auto+prompts", "bots+references"),
    seeds=3,
    steps=STEPS,
    batch_size=8,
    eval_every=20,
    eval_rollouts=0,
    num_tasks=900,
    num_held_out=180,
    tasks="lines",
    reference_steps=30,
    reference_rollouts=8,
    max_prompt=40,
    checkpoint_every=20,
    loop=LoopConfig(
        group_size=8,
        max_new_tokens=8,
        gradient=GradientConfig(
            learning_rate=1e-4, lr_warmup=3, lr_decay=STEPS, upper_layers=10, mixed_chunk=2
        ),
    ),
)

_GPU_STEPS = 150
SIZES = {
    "cores": CONFIG,
    # One GPU: all layers, batches and a pool four and ten times as large.
    "gpu": dataclasses.replace(
        CONFIG,
        steps=_GPU_STEPS,
        batch_size=32,
        eval_every=15,
        num_tasks=9000,
        num_held_out=900,
        reference_steps=75,
        dtype="bfloat16",
        loop=dataclasses.replace(
            CONFIG.loop,
            gradient=GradientConfig(
                learning_rate=1e-5, lr_warmup=5, lr_decay=_GPU_STEPS, mixed_chunk=8
            ),
        ),
    ),
    # A layer and two steps: whether the command runs.
    "dry": dataclasses.replace(
        CONFIG, seeds=1, steps=2, eval_every=2, num_tasks=45, num_held_out=45, reference_steps=1,
        batch_size=2, depth=1,
        loop=dataclasses.replace(CONFIG.loop, group_size=2,
                                 gradient=GradientConfig(lr_warmup=0, mixed_chunk=1)),
    ),
}  # fmt: skip


class Printer:
    """A `finetune.Watcher` that prints a line a step."""

    def stage(self, what: str, done: int, total: int) -> None:
        """See `finetune.Watcher`."""
        print(f"{what}: {done}/{total}", flush=True)

    def step(self, run: str, line: Line) -> None:
        """See `finetune.Watcher`."""
        told = {
            key: round(line[key], 3) for key in ("etr", "mean_reward", "heldout") if key in line
        }
        print(f"{run} step {line['step']}: {told}, {line['step_ms'] / 1e3:.1f} s", flush=True)

    def stopping(self) -> bool:
        """See `finetune.Watcher`."""
        return False


def main() -> None:
    """Train what is not trained yet, then write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="cores")
    parser.add_argument("--runs", help="folder of the runs [runs/llm-SIZE]")
    parser.add_argument("--seeds", type=int, help="[3]")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    config = SIZES[args.size]
    config = dataclasses.replace(config, seeds=args.seeds or config.seeds)
    folder = RunFolder(Path(args.runs or f"runs/llm-{args.size}"))
    if not args.report:
        config = dataclasses.replace(config, weights=str(installed_weights()))
        folder.open(config.saved(), resume=True, overwrite=False, may_differ=finetune.MAY_DIFFER)
        watcher = Printer()
        try:
            finetune.compare(config, prepare(config, folder.path, watcher), folder, watcher)
        except (KeyboardInterrupt, StoppedError):
            print("stopped: the same command goes on from the last checkpoint", flush=True)
    report(config, folder, "llm" if args.size == "cores" else f"llm_{args.size}")


def seeds_of(config: LlmConfig) -> range:
    """All that are asked for."""
    return range(config.first_seed, config.first_seed + config.seeds)


def whole_runs(config: LlmConfig, folder: RunFolder) -> dict[str, dict[int, list[Line]]]:
    """The lines of the runs that came to their end, by strategy and seed."""
    found: dict[str, dict[int, list[Line]]] = {}
    for name in config.strategies:
        for seed in seeds_of(config):
            lines = folder.lines(f"{name}-{seed}")
            if len(lines) == config.steps + 1:
                found.setdefault(name, {})[seed] = lines
    return found


def curve(lines: list[Line]) -> np.ndarray:
    """Held-out pass rates."""
    return np.array([line["heldout"] for line in lines if "heldout" in line])


def report(config: LlmConfig, folder: RunFolder, out: str) -> None:
    """Write results/OUT.json and OUT.png, and print the table."""
    runs = whole_runs(config, folder)
    rows: dict[str, Any] = {}
    base = runs.get("uniform", {})
    for name, seeds in runs.items():
        ends = np.array([curve(lines)[-1] for lines in seeds.values()])
        shared = [seed for seed in seeds if seed in base]
        over = np.array([curve(seeds[s])[-1] - curve(base[s])[-1] for s in shared])
        area = np.array([np.mean(curve(seeds[s]) - curve(base[s])) for s in shared])
        rows[name] = {
            "seeds": sorted(seeds),
            "end": interval(ends),
            "end_over_uniform": interval(over) if name != "uniform" else None,
            "mean_over_uniform": interval(area) if name != "uniform" else None,
            "etr": float(np.mean([line["etr"] for ls in seeds.values() for line in ls[1:]])),
            "tokens": float(np.mean([lines[-1]["tokens"] for lines in seeds.values()])),
            "seconds": float(np.mean([lines[-1]["seconds"] for lines in seeds.values()])),
            "breadth": float(np.mean([breadth(lines) for lines in seeds.values()])),
            "curves": {seed: curve(lines).round(4).tolist() for seed, lines in seeds.items()},
        }
        print(name, {k: v for k, v in rows[name].items() if k != "curves"})
    steps = [line["step"] for line in next(iter(base.values()), []) if "heldout" in line]
    settings = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(config, weights="-"))))
    part = {
        run: {"steps": len(lines) - 1, "heldout": curve(lines).round(4).tolist()}
        for run in (f"{name}-{seed}" for name in config.strategies for seed in seeds_of(config))
        if 0 < len(lines := folder.lines(run)) <= config.steps
    }
    save(out, rows, ("flax", "optax"), steps=steps, settings=settings, unfinished=part)
    if steps:
        plot(steps, rows, out)


def breadth(lines: list[Line]) -> int:
    """Distinct tasks selected."""
    return len({task for line in lines[1:] for task in line["task_ids"]})


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Mean and half of the 95% interval by Student's t; None for fewer than two."""
    if not len(values):
        return {"mean": None, "half": None}
    found = metrics.mean_interval(values)
    return {"mean": found.value, "half": found.high - found.value if len(values) > 1 else None}


def plot(steps: list[int], rows: dict[str, Any], out: str) -> None:
    """Held-out pass rate over the steps, a line a strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.4, 3.6))
    for name, row in rows.items():
        curves = np.array(list(row["curves"].values()))
        (line,) = axes.plot(steps, curves.mean(axis=0), label=f"{name} ({len(curves)})")
        for one in curves:
            axes.plot(steps, one, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out pass rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, title="mean (seeds); thin: each", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{out}.png", dpi=110)


if __name__ == "__main__":
    main()
