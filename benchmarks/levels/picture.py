"""A picture of the levels that `auto` chooses as training goes, drawn by jaxued's renderer.

python -m benchmarks.levels.picture     # benchmarks/results/levels_chosen.png

One run in the pool of which 5% can be solved, as in `benchmarks.levels.run`. Above, every sixth
level of the batch at some updates, in the order of what is believed; below, shares of all batches.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxued.environments.maze import MazeRenderer

from benchmarks.levels import run
from benchmarks.levels.rules import EPISODES, SLOTS, first_episodes
from bots_jax import levels as bots_levels
from bots_jax.strategies import make_strategy

SHOWN, AT = 10, (0, 7, 23, 63, 191)  # levels a row; updates
maze = run.maze


def history(seed: int, updates: int) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """The pool, i32[updates, 64] rows played, bool[...] solved at least once, f[...] believed."""
    pool, _ = run.pools_of(seed, 0.05)
    selector = make_strategy("auto", batch_size=SLOTS, rollouts=EPISODES)

    def update(carry: Any, key: jax.Array) -> Any:
        student, state = carry
        select_key, play_key = jax.random.split(key)
        state, slots = bots_levels.sample(selector, select_key, state)
        believed = selector.predict(state, slots.level_ids).mean
        levels = bots_levels.take(pool.levels, slots.level_ids)
        window, last = maze.play(play_key, maze.train_env, student, levels, maze.WINDOW)
        student = maze.learn(student, window, maze.advantages_of(window, last))
        evidence = first_episodes(slots, window.done, window.reward > 0)
        state = selector.update(state, evidence)[0]
        return (student, state), (slots.level_ids, evidence.successes, believed)

    key, student_key = jax.random.split(jax.random.key(seed + 10_000))
    carry = maze.new_student(student_key, updates), selector.init(num_tasks=run.LEVELS)
    go = jax.jit(lambda carry, keys: jax.lax.scan(update, carry, keys)[1])
    rows, won, believed = go(carry, jax.random.split(key, updates))
    return pool, np.asarray(rows), np.asarray(won), np.asarray(believed)


def draw(pool: Any, rows: np.ndarray, won: np.ndarray, believed: np.ndarray, path: Path) -> None:
    """Rows of levels over updates, and curves of what the batches consist of."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    renderer = MazeRenderer(maze.maze, tile_size=8, render_border=True)
    image = jax.jit(lambda level: renderer.render_level(level, maze.params_of_env))
    at = [update for update in AT if update < len(rows)]
    can = np.asarray(pool.solvable)
    figure = plt.figure(figsize=(SHOWN, len(at) * 1.15 + 2.4))
    grid = figure.add_gridspec(
        len(at) + 1, SHOWN, height_ratios=[1.0] * len(at) + [2.0], hspace=0.35, wspace=0.08
    )
    for line, update in enumerate(at):
        order = np.argsort(-believed[update], kind="stable")[:: SLOTS // SHOWN][:SHOWN]
        for column, slot in enumerate(order):
            axis = figure.add_subplot(grid[line, column])
            level = jax.tree.map(lambda x, row=rows[update, slot]: x[row], pool.levels)
            axis.imshow(np.asarray(image(level)))
            axis.set_xticks([])
            axis.set_yticks([])
            color = "tab:green" if can[rows[update, slot]] else "tab:red"
            axis.set_xlabel(f"{won[update, slot]:.0f} of {EPISODES}", fontsize=7, color=color)
            if not column:
                axis.set_ylabel(f"update {update + 1}", fontsize=8)
    axis = figure.add_subplot(grid[len(at), :])
    shares = {
        "can be solved": can[rows].mean(1),
        "solved in one of two episodes": (won == 1).mean(1),
        "solved in both": (won == EPISODES).mean(1),
    }
    for name, share in shares.items():
        smooth = np.convolve(share, np.full(8, 1 / 8), "valid")
        axis.plot(np.arange(smooth.size) + 8, smooth, label=name)
    axis.set(xlabel="update", ylabel="share of the batch", ylim=(0, 1))
    axis.legend(fontsize=7, ncol=3)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=run.UPDATES)
    parser.add_argument(
        "--out", type=Path, default=run.RESULTS.with_name("levels_chosen.png"), help="a PNG"
    )
    args = parser.parse_args()
    draw(*history(args.seed, args.updates), args.out)


if __name__ == "__main__":
    main()
