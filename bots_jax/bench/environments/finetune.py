"""The finetune loop as an environment: a small policy that really learns, on real rollouts.

In: sizes of `bots_jax.rl.finetune`. Out: for each seed what was learned (held-out pass rate),
what was selected, what it cost in tokens and seconds. A seed is one run of minutes, kept step
by step in a workspace, so that a kill costs one step. The true rates are not known here, so
nothing is said of beliefs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bots_jax import metrics, report
from bots_jax.bench import meter
from bots_jax.bench.environment import (
    Environment,
    Measured,
    Series,
    Strategy,
    only_free,
    reads_truth,
)

_BASE = "uniform"  # stands in where FinetuneConfig wants a strategy's name


class _Quiet:
    """A `finetune.Watcher` that watches nothing."""

    def stage(self, what: str, done: int, total: int) -> None:
        """See `finetune.Watcher`."""

    def step(self, run: str, line: dict[str, Any]) -> None:
        """See `finetune.Watcher`."""

    def stopping(self) -> bool:
        """See `finetune.Watcher`."""
        return False


def finetune_environment(
    *,
    steps: int = 60,
    batch_size: int = 32,
    rollouts: int = 8,
    num_tasks: int = 8192,
    num_held_out: int = 1024,
    eval_every: int = 10,
    eval_rollouts: int = 4,
    reference_rollouts: int = 8,
    warmup_steps: int | None = None,
    workspace: str | None = None,
    cache: str | None = None,
    name: str | None = None,
) -> Environment:
    """Finetune the small policy of `bots-jax finetune`.

    Args:
      steps, batch_size, rollouts, num_tasks, num_held_out, eval_every, eval_rollouts,
        reference_rollouts: as there.
      warmup_steps: of the base policy, the references in proportion; None as there.
      workspace: folder for unfinished runs; None for one that goes with the process.
      cache: folder that keeps the warm-up; None as in `bots-jax finetune`.
      name: for the tables.

    Raises:
      ModuleNotFoundError: where flax or optax are missing.
      ValueError: where a size is out of range.
    """
    from bots_jax.rl import finetune
    from bots_jax.rl.finetune import FinetuneConfig
    from bots_jax.rl.loop import LoopConfig
    from bots_jax.rl.warmup import WarmupConfig

    warmup = WarmupConfig()
    if warmup_steps is not None:
        warmup = WarmupConfig(
            early_steps=max(1, warmup_steps * warmup.early_steps // warmup.base_steps),
            base_steps=warmup_steps,
            late_steps=max(1, warmup_steps * warmup.late_steps // warmup.base_steps),
        )
    config = FinetuneConfig(
        strategies=(_BASE,), steps=steps, batch_size=batch_size, num_tasks=num_tasks,
        num_held_out=num_held_out, eval_every=eval_every, eval_rollouts=eval_rollouts,
        reference_rollouts=reference_rollouts, checkpoint_every=10, warmup=warmup,
        loop=LoopConfig(group_size=rollouts),
    )  # fmt: skip
    about = {k: v for k, v in config.saved().items() if k not in finetune.MAY_DIFFER}
    about = {k: v for k, v in about.items() if k != "first_seed"}
    folder = Path(workspace) if workspace else Path(tempfile.mkdtemp(prefix="bots-jax-bench-"))
    made: list[Any] = []  # prepared once, by whichever strategy comes first

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        sizes = {"batch_size": batch_size, "rollouts": config.loop.group_size}
        selector = only_free(strategy, strategy.make(**sizes))
        if reads_truth(selector):
            raise ValueError(f"strategy {strategy.name} wants the true rates, which nobody knows")
        if not made:
            problem = finetune.prepare(config, _cache(cache), _Quiet())
            made.extend((problem, finetune.compile_pieces(config, problem)))
        return [_train(finetune, config, made, folder, strategy, selector, seed) for seed in seeds]

    return Environment(
        name=name or f"finetuning, {steps} steps",
        run=run,
        about=about,
        chunk=1,
        curve="heldout",
        headline=("heldout", "etr"),
    )


def _cache(folder: str | None) -> Path:
    if folder is not None:
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("BOTS_JAX_CACHE") or str(Path(home) / "bots_jax"))


def _train(
    finetune: Any,
    config: Any,
    made: Sequence[Any],
    folder: Path,
    strategy: Strategy,
    selector: Any,
    seed: int,
) -> Measured:
    """One run, taken up where its last checkpoint is; its folder is removed at the end."""
    from bots_jax.rl.run_folder import RunFolder

    problem, pieces = made
    known = json.dumps(
        [strategy.name, dict(strategy.settings), config.saved(), dict(selector.static)],
        sort_keys=True,
        default=str,
    )
    run = hashlib.sha256(known.encode()).hexdigest()[:16]
    rule = finetune.compiled(selector)
    own = pieces._replace(selectors={run: rule})
    first = finetune.start(config, problem, rule, strategy.name)
    state = finetune.init_loop(problem.base, first, config.loop, seed)
    place = RunFolder(folder / f"{run}-{seed}")
    place.open({"run": run, "seed": seed}, resume=True, overwrite=False)
    lines = finetune.train(config, own, place, run, state, _Quiet())
    shutil.rmtree(place.path)
    return _measure(finetune.as_record(strategy.name, seed, lines), lines[1:], config)


def _measure(record: dict[str, Any], lines: list[dict[str, Any]], config: Any) -> Measured:
    told = report.measure(record)
    values = {key: value for key, value in told.items() if isinstance(value, float)}
    s = np.array([line["successes"] for line in lines], np.float64)
    values["variance"] = metrics.outcome_variance(s, np.full_like(s, config.loop.group_size))
    values["rollouts"] = float(s.size * config.loop.group_size)
    at = [0, *record["step"]]
    tokens = np.interp(record["heldout_step"], at, [0, *record["tokens"]])
    series = {
        "heldout": Series(record["heldout_step"], record["heldout"]),
        "tokens": Series(record["heldout_step"], tokens.tolist()),
        "etr": Series(*meter.blocks(record["etr"])),
    }
    return Measured(values, series)
