"""The command `bots-jax`: finetune | finetune-llm | replay | bench | advise."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import bots_jax
from bots_jax.evaluate.report import INTERRUPTED


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
    try:
        status: int = args.run(args)
    except KeyboardInterrupt:  # `bench` and `finetune` save what is finished, and say so themselves
        sys.stderr.write("bots-jax: stopped\n")
        return INTERRUPTED
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
        if error.name is None or error.name.partition(".")[0] == "bots_jax":
            raise
        _add_absent(commands, "finetune", "cli,plots", error.name)
        _add_absent(commands, "finetune-llm", "llm", error.name)
        return
    add_finetune_parser(commands)
    add_finetune_llm_parser(commands)


def _add_absent(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    extra: str,
    missing: str,
) -> None:
    """A command whose libraries are missing: whatever it is given, it says what to install."""
    told = f"needs {missing}, which is not installed: pip install 'bots-jax[{extra}]'"
    absent = commands.add_parser(
        name, help=told, description=f"{name} {told}", prefix_chars="\0", add_help=False
    )
    absent.add_argument("given", nargs="*", help=argparse.SUPPRESS)

    def run(args: argparse.Namespace) -> int:
        sys.stderr.write(f"bots-jax {name}: {told}\n")
        return 2

    absent.set_defaults(run=run)


def _quiet_libraries() -> None:
    """Silence log lines of libraries that a user can do nothing about."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import logging

    for name in ("absl", "jax._src.callback"):  # failures reach us as exceptions
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    raise SystemExit(main())
