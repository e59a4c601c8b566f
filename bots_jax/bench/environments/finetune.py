"""The finetune loop as an environment: a small policy that really learns, on real rollouts.

In: sizes of `bots_jax.rl.finetune`. Out: for each seed what was learned (held-out pass rate),
what was selected, what it cost in tokens and seconds. A seed is one run of minutes, kept step
by step in a workspace, so that a kill costs a few steps. The true rates are not known here,
so nothing is said of beliefs.

Strategies with extra rollouts take the same number of steps and show all that they generated;
`measures` reads their score also at the rollouts and tokens that every strategy had spent by
then. Their runs are not kept unfinished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.bench.environment import (
    Environment,
    Measured,
    Series,
    Strategy,
    reads_truth,
)
from bots_jax.evaluate import meter, metrics, report
from bots_jax.evaluate.told import TOLD
from bots_jax.pool.reference import TaskFeatures
from bots_jax.strategies.oversampling import Oversampling
from bots_jax.types import Selector

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
      steps, batch_size, rollouts, num_tasks, num_held_out, eval_every: as there.
      eval_rollouts, reference_rollouts: as there.
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

    config = FinetuneConfig(
        strategies=(_BASE,), steps=steps, batch_size=batch_size, num_tasks=num_tasks,
        num_held_out=num_held_out, eval_every=eval_every, eval_rollouts=eval_rollouts,
        reference_rollouts=reference_rollouts, checkpoint_every=10, warmup=_warmup(warmup_steps),
        loop=LoopConfig(group_size=rollouts),
    )  # fmt: skip
    about = {k: v for k, v in config.saved().items() if k not in finetune.MAY_DIFFER}
    about = {k: v for k, v in about.items() if k != "first_seed"}
    folder = Path(workspace) if workspace else Path(tempfile.mkdtemp(prefix="bots-jax-bench-"))
    made: list[Any] = []  # prepared once, by whichever strategy comes first
    embedded: list[TaskFeatures] = []  # references and embeddings, for who asks for them
    steppers: dict[str, Callable[..., Any]] = {}  # of strategies with extra rollouts, compiled

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        sizes = {"batch_size": batch_size, "rollouts": config.loop.group_size}
        rule = strategy.make(**sizes)
        if reads_truth(rule):
            raise ValueError(f"strategy {strategy.name} wants the true rates, which nobody knows")
        if not made:
            problem = finetune.prepare(config, cache_folder(cache), _Quiet())
            made.extend((problem, finetune.compile_pieces(config, problem)))
        shared = made
        if rule.static.get("reads") == "embeddings":
            embedded[:] = embedded or [_embedded(made[0])]
            shared = [made[0]._replace(reference=embedded[0]), made[1]]
        if isinstance(rule, Selector):
            return [_train(finetune, config, shared, folder, strategy, rule, s) for s in seeds]
        known = _identity(config, strategy, rule)
        step = steppers.setdefault(known, _stepper(config, made[0], rule))
        return [_train_extra(finetune, config, shared, strategy, rule, step, s) for s in seeds]

    return Environment(
        name=name or f"finetuning, {steps} steps",
        run=run,
        about=about,
        chunk=1,
        curve="heldout",
        headline=("heldout", "etr"),
        tells=TOLD,
    )


def _warmup(base_steps: int | None) -> Any:
    """A `WarmupConfig` of that many steps to the base policy, the references in proportion."""
    from bots_jax.rl.warmup import WarmupConfig

    usual = WarmupConfig()
    if base_steps is None:
        return usual
    return WarmupConfig(
        early_steps=max(1, base_steps * usual.early_steps // usual.base_steps),
        base_steps=base_steps,
        late_steps=max(1, base_steps * usual.late_steps // usual.base_steps),
    )


def cache_folder(folder: str | None) -> Path:
    """Where the warm-up is kept; None: as in `bots-jax finetune`."""
    from bots_jax.rl.command import default_cache

    return Path(default_cache() if folder is None else folder)


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
    run = _identity(config, strategy, selector)
    rule = finetune.compiled(selector)
    own = pieces._replace(selectors={run: rule})
    first = finetune.start(config, problem, rule, strategy.name, strategy.told or "references")
    state = finetune.init_loop(problem.base, first, config.loop, seed)
    place = RunFolder(folder / f"{run}-{seed}")
    place.open({"run": run, "seed": seed}, resume=True, overwrite=False)
    lines = finetune.train(config, own, place, run, state, _Quiet())
    shutil.rmtree(place.path)
    return _measure(finetune.as_record(strategy.name, seed, lines), lines[1:], config)


def _identity(config: Any, strategy: Strategy, rule: Selector | Oversampling) -> str:
    """A name of the run that no other strategy or setting has."""
    parts = [strategy.name, dict(strategy.settings), config.saved(), dict(rule.static)]
    parts += [] if strategy.told is None else [strategy.told]
    known = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def _stepper(config: Any, problem: Any, extra: Oversampling) -> Callable[..., Any]:
    """The step of a strategy with extra rollouts, to be compiled once for all seeds."""
    from bots_jax.rl.extra_loop import make_extra_step

    prompts = jnp.asarray(problem.pool.prompts)
    return jax.jit(
        make_extra_step(
            extra, problem.graphdef, prompts, problem.verifier, config.loop, problem.base
        )
    )


def _train_extra(
    finetune: Any,
    config: Any,
    made: Sequence[Any],
    strategy: Strategy,
    extra: Oversampling,
    step: Callable[..., Any],
    seed: int,
) -> Measured:
    """One run with extra rollouts, from its first step to its last."""
    problem, pieces = made
    first = finetune.start(
        config, problem, extra.selector, strategy.name, strategy.told or "references"
    )
    state = finetune.init_loop(problem.base, first, config.loop, seed)
    line = {"step": 0, "heldout": finetune.held_out(pieces, state), "tokens": 0, "seconds": 0.0}
    lines = [line]
    for number in range(1, config.steps + 1):
        begin = time.perf_counter()
        state, told = step(state, None)
        told = jax.device_get(told)
        line = {
            "step": number,
            "etr": float(told.step.effective_task_ratio),
            "tokens": lines[-1]["tokens"] + int(told.step.generated_tokens),
            "seconds": lines[-1]["seconds"] + time.perf_counter() - begin,
            "rollouts": int(told.generated),
            "task_ids": told.step.task_ids.tolist(),
            "successes": told.step.successes.tolist(),
        }
        if number % config.eval_every == 0 or number == config.steps:
            line["heldout"] = finetune.held_out(pieces, state)
        lines.append(line)
    return _measure(finetune.as_record(strategy.name, seed, lines), lines[1:], config)


def _embedded(problem: Any) -> TaskFeatures:
    """The references, and what the base policy makes of each task."""
    from bots_jax.rl.embeddings import embed_tasks

    prompts = jnp.asarray(problem.pool.prompts)
    embed = jax.jit(lambda params: embed_tasks(problem.graphdef, params, prompts))
    return TaskFeatures(problem.reference, np.asarray(embed(problem.base)))


def _measure(record: dict[str, Any], lines: list[dict[str, Any]], config: Any) -> Measured:
    """Lines without `rollouts` trained on all that they generated."""
    told = report.measure(record)
    values = {key: value for key, value in told.items() if isinstance(value, float)}
    group = config.loop.group_size
    s = np.array([line["successes"] for line in lines], np.float64)
    n = np.where(np.array([line["task_ids"] for line in lines]) >= 0, group, 0)
    generated = [line.get("rollouts", int(own.sum())) for line, own in zip(lines, n, strict=True)]
    made = np.cumsum(generated, dtype=np.float64)
    values["variance"] = metrics.outcome_variance(s, n)
    values["rollouts"] = float(made[-1])
    mixed = np.array([line["etr"] for line in lines]) * n.sum(axis=1)  # rewards may be graded
    values["useful"] = float(np.sum(mixed) / np.sum(generated))
    at = [0, *record["step"]]
    spent = {"tokens": record["tokens"], "rollouts": made.tolist()}
    series = {
        "heldout": Series(record["heldout_step"], record["heldout"]),
        "etr": Series(*meter.blocks(record["etr"])),
    }
    for key, sums in spent.items():
        series[key] = Series(
            record["heldout_step"], np.interp(record["heldout_step"], at, [0, *sums]).tolist()
        )
    return Measured(values, series)
