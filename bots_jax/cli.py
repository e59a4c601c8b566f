"""The command `bots-jax`: finetune | finetune-llm | replay | bench | advise."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import bots_jax


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run its command, and return the exit status."""
    _quiet_libraries()
    parser = argparse.ArgumentParser(
        prog="bots-jax",
        description="Select the tasks that RL finetuning trains on next, in JAX.",
    )
    parser.add_argument("--version", action="version", version=f"bots-jax {bots_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_commands(parser, commands)
    args = parser.parse_args(arguments)
    status: int = args.run(args)
    return status


def _add_commands(
    parser: argparse.ArgumentParser,
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    from bots_jax.bench.command import add_bench_parser
    from bots_jax.evaluate.advice import add_advise_parser
    from bots_jax.evaluate.replay import add_replay_parser

    add_replay_parser(commands)
    add_bench_parser(commands)
    add_advise_parser(commands)
    try:
        from bots_jax.rl.command import add_finetune_parser
        from bots_jax.rl.llm.command import add_finetune_llm_parser
    except ModuleNotFoundError as error:
        missing = error.name
        absent = commands.add_parser("finetune", help=f"not available: {missing} is missing")
        absent.set_defaults(
            run=lambda args: parser.error(
                f"finetune needs {missing}: pip install 'bots-jax[cli,plots]'"
            )
        )
        return
    add_finetune_parser(commands)
    add_finetune_llm_parser(commands)


def _quiet_libraries() -> None:
    """Silence log lines of libraries that a user can do nothing about."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import logging

    for name in ("absl", "jax._src.callback"):  # failures reach us as exceptions
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    raise SystemExit(main())
