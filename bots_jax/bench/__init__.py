"""The benchmark suite: strategies x environments x settings x seeds.

Start reading at `environment.py`, the contract of what a strategy is run in. The command
is `bots-jax bench` (`command.py`); its parts, in the order in which a run meets them:

    registry.py      strategies and environments by name, path or entry point
    matrix.py        what is to be run: cells with an identity, from TOML or a command line
    runner.py        running what is missing; store.py keeps a line a finished cell
    environments/    replay, predict, simulation, finetune
    measures.py      which numbers there are, how they are shown, which way is better
    verdicts.py      wins, draws and losses after Holm's correction
    tables.py        Markdown and CSV; plots.py the PNGs
"""

from bots_jax.bench.environment import Environment, Measured, Strategy

__all__ = ["Environment", "Measured", "Strategy"]
