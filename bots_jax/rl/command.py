"""`bots-jax finetune`: its command line, progress bar and table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax

from bots_jax.choice.worth import WORTHS
from bots_jax.evaluate import report
from bots_jax.evaluate.told import HELP
from bots_jax.rl import finetune
from bots_jax.rl.finetune import FinetuneConfig, StoppedError
from bots_jax.rl.loop import LoopConfig
from bots_jax.rl.policy import PolicyConfig
from bots_jax.rl.policy_gradient import Estimator, GradientConfig
from bots_jax.rl.run_folder import Line, RunFolder
from bots_jax.rl.tasks import VerifierError
from bots_jax.rl.worlds import WORLDS


class ProgressBar:
    """A `finetune.Watcher` that draws a bar on a terminal, and prints a line a run elsewhere."""

    def __init__(self, config: finetune.Comparison, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.steps = config.steps
        self.stop = False
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self.total = finetune.total_steps(config)
        self.done = done
        self.task: Any = None
        self.stages: dict[str, Any] = {}

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.console.print(text, highlight=False)

    def stage(self, what: str, done: int, total: int) -> None:
        """See `finetune.Watcher`."""
        if what not in self.stages:
            self.stages[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.stages[what], completed=done)
        if self.stop:
            raise StoppedError

    def step(self, run: str, line: Line) -> None:
        """See `finetune.Watcher`."""
        if self.task is None:
            self.task = self.bar.add_task(run, total=self.total, completed=self.done)
        self.bar.update(self.task, advance=1, description=f"{run}  ETR {line['etr']:.2f}")
        if line["step"] == self.steps:
            self.say(f"{run}: held-out pass rate {line['heldout']:.3f}, {line['seconds']:.0f} s")

    def stopping(self) -> bool:
        """See `finetune.Watcher`."""
        return self.stop

    def request_stop(self) -> None:
        """Stop after this step."""
        self.stop = True
        self.say("stopping after this step; once more to stop at once")


_EPILOG = """\
Results in the --out folder: config.json, steps/ (a line of JSON a step), results.jsonl (a
line a run), summary.md, summary.csv, and plots. Ctrl-C loses nothing but the step in
progress, a kill at most --checkpoint-every steps; --resume continues to the same numbers.

A file of your own tasks has the columns prompt, answer and, if you like, id, domain and
reference (pass rates of a weaker and a stronger model); .jsonl, .parquet and .npz are read,
as data only. --verifier names your own code, which is imported and called: by default
function(prompt, completion) -> reward in [0, 1], both of them text. With
--verifier-kind jax it is function(pool) -> verifier, where verifier(task_ids i32[B],
completions i32[B, G, L]) -> rewards f[B, G] is traced and runs on the device, and pool is a
bots_jax.rl.tasks.TaskPool; see exact_verifier there.

Defaults in brackets with "frontier:" are those of that problem (--world); others have their own
(see bots_jax/rl/worlds.py). With --tasks they are 60 steps of 32 tasks, measured every 10 by 4
rollouts, at a constant rate of 0.0005 after a warm-up of 300, 900 and 1800 steps. For many seeds
and all worlds: bots-jax bench worlds"""

MAIN_WORLD = "frontier"


def add_finetune_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `finetune` to what `ArgumentParser.add_subparsers` returned."""
    base = FinetuneConfig.of_world(MAIN_WORLD)
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "finetune",
        help="finetune a small policy with several strategies and compare what it learns",
        description="Finetune a small transformer by policy gradient on tasks that each "
        "strategy selects, with equal rollouts and paired seeds, and compare.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_compared(parser, base)
    _add_tasks(parser, base)
    _add_policy(parser, base)
    _add_base_policy(parser, base)
    _add_settings(parser)
    _add_results(parser, base)
    parser.set_defaults(run=finetune_command)
    return parser


def _add(group: Any, name: str, default: Any, text: str, **more: Any) -> None:
    kind = more.pop("type", type(default))
    shown = text if default is None else f"{text} [%(default)s]"
    group.add_argument(name, type=kind, default=default, help=shown, **more)


def _of_world(group: Any, name: str, default: Any, text: str) -> None:
    """A number whose default depends on the world, or on there being a file of tasks."""
    text = f"{text} [{MAIN_WORLD}: {default}]"
    group.add_argument(name, type=type(default), metavar="X", help=text)


def _add_compared(parser: argparse.ArgumentParser, base: FinetuneConfig) -> None:
    from bots_jax.strategies import STRATEGIES

    what = parser.add_argument_group("what is compared")
    names = ",".join(base.strategies)
    _of_world(what, "--strategies", names,
        f"separated by commas; any of {', '.join(STRATEGIES)}, each {HELP}")  # fmt: skip
    _of_world(what, "--seeds", base.seeds, "number of seeds; intervals need several")
    _add(what, "--first-seed", base.first_seed, "the first seed")
    _of_world(what, "--steps", base.steps, "training steps of each run")
    _of_world(what, "--batch-size", base.batch_size, "tasks selected a step")
    _of_world(what, "--rollouts", base.loop.group_size, "completions of each selected task")
    _of_world(what, "--eval-every", base.eval_every, "steps between held-out measurements")
    _of_world(what, "--eval-rollouts", base.eval_rollouts,
        "completions of each held-out task; 0: its exact pass rate")  # fmt: skip


def _add_tasks(parser: argparse.ArgumentParser, base: FinetuneConfig) -> None:
    warmup = base.warmup
    data = parser.add_argument_group("tasks")
    data.add_argument("--world", choices=tuple(WORLDS), metavar="NAME",
        help=f"problem (tasks and base policy): {', '.join(WORLDS)} [{MAIN_WORLD}]")  # fmt: skip
    _of_world(data, "--num-tasks", base.num_tasks, "number of generated tasks to train on")
    _add(data, "--num-held-out", base.num_held_out, "largest number of held-out tasks")
    _of_world(data, "--data-seed", base.data_seed, "seed of the generated tasks")
    none = {"type": str, "metavar": "FILE"}
    _add(data, "--tasks", None, "file of your own tasks, an eighth of them held out", **none)
    none["metavar"] = "MODULE:FUNCTION"
    _add(data, "--verifier", None, "your verifier of completions, instead of exact match", **none)
    kinds = finetune.VERIFIER_KINDS
    _add(data, "--verifier-kind", base.verifier_kind, "its kind, see below", choices=kinds)
    _add(data, "--max-prompt-tokens", warmup.policy.max_prompt,
        "longest prompt: one token a character and one more")  # fmt: skip
    _add(data, "--max-answer-tokens", warmup.policy.max_answer,
        "longest answer: one token a character and one more")  # fmt: skip


def _add_policy(parser: argparse.ArgumentParser, base: FinetuneConfig) -> None:
    loop, gradient = base.loop, base.loop.gradient
    policy = parser.add_argument_group("policy gradient")
    _add(policy, "--estimator", gradient.estimator, "of advantages", choices=get_args(Estimator))
    _of_world(policy, "--learning-rate", gradient.learning_rate, "AdamW's learning rate")
    policy.add_argument("--lr-decay", type=int, metavar="X",
        help="steps to decay it to 0; 0: constant [worlds: --steps, else 0]")  # fmt: skip
    _add(policy, "--weight-decay", gradient.weight_decay, "AdamW's weight decay")
    _add(policy, "--lr-warmup", gradient.lr_warmup, "steps over which the learning rate rises")
    _add(policy, "--max-grad-norm", gradient.max_grad_norm, "gradients are clipped to this norm")
    _add(policy, "--clip", gradient.clip_low, "probability ratios are clipped to 1 -+ this")
    policy.add_argument("--clip-high", type=float, metavar="X",
        help="upper clip range: 1 + this [as --clip]")  # fmt: skip
    _add(policy, "--kl-weight", gradient.kl_weight, "weight of the KL from the base policy")
    _add(policy, "--temperature-of-sampling", loop.temperature, "of rollouts, when sampling")


def _add_base_policy(parser: argparse.ArgumentParser, base: FinetuneConfig) -> None:
    warmup = base.warmup
    base_policy = parser.add_argument_group("base policy and references")
    _of_world(
        base_policy, "--warmup-early", warmup.early_steps, "supervised steps to the weak reference"
    )
    _of_world(
        base_policy, "--warmup-steps", warmup.base_steps, "supervised steps to the base policy"
    )
    _of_world(
        base_policy, "--warmup-late", warmup.late_steps, "supervised steps to the strong reference"
    )
    _add(
        base_policy,
        "--reference-rollouts",
        base.reference_rollouts,
        "rollouts of each task by each reference",
    )
    _add(base_policy, "--cache", default_cache(), "of the warm-up", metavar="FOLDER")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from bots_jax.strategies import SETTINGS

    selectors = parser.add_argument_group(
        "settings of the strategies", "applied to strategies that have them and do not fix them"
    )
    for name, text in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        selectors.add_argument(flag, type=float, metavar="X", help=text)
    text = "how auto values a task; pass_gain goes with --estimator maxrl [mixed]"
    selectors.add_argument("--worth", choices=WORTHS, help=text)
    selectors.add_argument("--by-domain", action="store_true",
        help="a separate capability for each domain, or family of ours")  # fmt: skip


def _add_results(parser: argparse.ArgumentParser, base: FinetuneConfig) -> None:
    out = parser.add_argument_group("results")
    _add(out, "--out", "runs/finetune", "folder for results", metavar="FOLDER")
    out.add_argument("--resume", action="store_true", help="resume the run in the folder")
    out.add_argument("--overwrite", action="store_true", help="delete the run in the folder")
    _of_world(
        out, "--checkpoint-every", base.checkpoint_every, "at most so many steps are lost by a kill"
    )


def default_cache() -> str:
    """Where the warm-up is kept unless `--cache` says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return os.environ.get("BOTS_JAX_CACHE") or str(Path(home) / "bots_jax")


def make_config(args: argparse.Namespace) -> FinetuneConfig:
    """The settings of the command line, checked."""
    from bots_jax.strategies import SETTINGS

    base = _defaults(args)

    def given(name: str, default: Any) -> Any:
        value = getattr(args, name)
        return default if value is None else value

    names = given("strategies", ",".join(base.strategies))
    settings = {name: getattr(args, name) for name in (*SETTINGS, "worth")}
    return dataclasses.replace(
        base,
        strategies=tuple(name.strip() for name in names.split(",") if name.strip()),
        seeds=given("seeds", base.seeds),
        first_seed=args.first_seed,
        steps=given("steps", base.steps),
        batch_size=given("batch_size", base.batch_size),
        eval_every=given("eval_every", base.eval_every),
        eval_rollouts=given("eval_rollouts", base.eval_rollouts),
        num_tasks=given("num_tasks", base.num_tasks),
        num_held_out=args.num_held_out,
        data_seed=given("data_seed", base.data_seed),
        tasks=args.tasks,
        verifier=args.verifier,
        verifier_kind=args.verifier_kind,
        by_domain=args.by_domain,
        reference_rollouts=args.reference_rollouts,
        checkpoint_every=given("checkpoint_every", base.checkpoint_every),
        settings={name: value for name, value in settings.items() if value is not None},
        loop=LoopConfig(
            group_size=given("rollouts", base.loop.group_size),
            max_new_tokens=args.max_answer_tokens,
            temperature=args.temperature_of_sampling,
            gradient=_gradient(args, base.loop.gradient),
        ),
        warmup=dataclasses.replace(
            base.warmup,
            policy=PolicyConfig(
                max_prompt=args.max_prompt_tokens, max_answer=args.max_answer_tokens
            ),
            early_steps=given("warmup_early", base.warmup.early_steps),
            base_steps=given("warmup_steps", base.warmup.base_steps),
            late_steps=given("warmup_late", base.warmup.late_steps),
        ),
    )


def _defaults(args: argparse.Namespace) -> FinetuneConfig:
    """What holds where the command line says nothing: a world's, or that for tasks of a file."""
    if args.tasks is not None and args.world is not None:
        raise ValueError(f"--world {args.world} and --tasks {args.tasks}: give one of them")
    if args.tasks is not None or args.verifier is not None:
        return FinetuneConfig()
    changes = {} if args.steps is None else {"steps": args.steps}
    return FinetuneConfig.of_world(args.world or MAIN_WORLD, **changes)


def _gradient(args: argparse.Namespace, base: GradientConfig) -> GradientConfig:
    """The policy gradient of the command line."""
    rate = base.learning_rate if args.learning_rate is None else args.learning_rate
    return GradientConfig(
        estimator=args.estimator,
        learning_rate=rate,
        lr_warmup=min(args.lr_warmup, base.lr_warmup) if base.lr_decay else args.lr_warmup,
        lr_decay=base.lr_decay if args.lr_decay is None else args.lr_decay,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        clip_low=args.clip,
        clip_high=args.clip if args.clip_high is None else args.clip_high,
        kl_weight=args.kl_weight,
        mixed_chunk=0 if args.kl_weight else base.mixed_chunk,
    )


def finetune_command(args: argparse.Namespace) -> int:
    """Run `bots-jax finetune`: the exit status."""

    def run(config: FinetuneConfig, folder: RunFolder) -> list[dict[str, Any]]:
        try:
            return _run(config, folder, Path(args.cache))
        except jax.errors.JaxRuntimeError as error:
            if (told := _of_the_verifier(error)) is None:
                raise
            raise ValueError(f"{told}; every step before is saved") from error

    return comparison_command("finetune", "all", args, make_config, run)


def comparison_command(
    program: str,
    extra: str,
    args: argparse.Namespace,
    make: Callable[[argparse.Namespace], Any],
    run: Callable[[Any, RunFolder], list[dict[str, Any]]],
) -> int:
    """Run a comparison in the folder that was asked for: the exit status.

    Args:
      program, extra: its name, and what of the package has all that it needs.
      make: args -> a `finetune.Comparison`. run: its runs, as `finetune.compare` returns them.
    """
    try:
        if args.rollouts is not None and args.rollouts < 2:
            raise ValueError(
                f"--rollouts {args.rollouts} must be at least 2: advantages compare the "
                "completions of a group"
            )
        config = make(args)
        folder = RunFolder(args.out)
        folder.open(
            config.saved(),
            resume=args.resume,
            overwrite=args.overwrite,
            may_differ=finetune.MAY_DIFFER,
        )
        write_results(folder.path, config, run(config, folder))
    except StoppedError:
        say(f"stopped; everything is saved: the same command with --resume goes on ({args.out})")
        return report.INTERRUPTED
    except ImportError as error:
        say(f"bots-jax {program}: {error}: pip install 'bots-jax[{extra}]' has all that it needs")
        return 2
    except (ValueError, OSError) as error:
        say(f"bots-jax {program}: {error}")
        return 2
    return 0


def _of_the_verifier(error: Exception) -> str | None:
    """What a user's Python verifier failed with, out of JAX's report of a failed callback."""
    _, found, told = str(error).rpartition(f"{VerifierError.__name__}: ")
    return told.strip().splitlines()[0] if found and told.strip() else None


def _run(config: FinetuneConfig, folder: RunFolder, cache: Path) -> list[dict[str, Any]]:
    done = finetune.steps_done(config, folder)
    with ProgressBar(config, done) as bar, finetune.stop_signals(bar.request_stop):
        problem = finetune.prepare(config, cache, bar)
        never, always = finetune.spread(problem.reference[0])
        late_never, late_always = finetune.spread(problem.reference[-1])
        bar.say(
            f"{problem.reference.shape[1]} tasks; never | always solved by the weak reference "
            f"{never:.0%} | {always:.0%}, by the strong one {late_never:.0%} | {late_always:.0%}"
        )
        if line := finetune.told_by_default(config, problem):
            bar.say(line)
        return finetune.compare(config, problem, folder, bar)


def write_results(folder: Path, config: finetune.Comparison, runs: list[dict[str, Any]]) -> None:
    """results.jsonl, tables and plots; the table on stdout."""
    baseline = "uniform" if "uniform" in config.strategies else config.strategies[0]
    lines = [json.dumps(_scalars(run)) + "\n" for run in runs]
    report.write_text(folder / "results.jsonl", "".join(lines))
    try:
        rows = report.write_report(folder, runs, baseline)
    except ModuleNotFoundError as error:
        say(f"no plots: {error}")
        rows = report.summarise(runs, baseline)
    report.print_table(rows, report.FINETUNE_SHOWN)
    say(report.terminal_caption(baseline))
    plots = sorted(path.name for path in folder.glob("*.png"))
    say(f"results are in {folder}: results.jsonl, summary.md, summary.csv, {', '.join(plots)}")


def _scalars(run: dict[str, Any]) -> dict[str, Any]:
    """A run in one line: what it ended with, and the held-out curve."""
    about = {"strategy": run["strategy"], "seed": run["seed"], "steps": len(run["step"])}
    measured = {**report.measure(run), "final_heldout": run["heldout"][-1]}
    # Last, for `measure` calls the final score "heldout" too.
    return {**about, **measured, "heldout_step": run["heldout_step"], "heldout": run["heldout"]}


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
