"""The XLand-MiniGrid example: its rulesets, and a run as one scan."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("xminigrid")
EXAMPLE = Path(__file__).parents[3] / "examples" / "xland_rulesets.py"


@pytest.fixture(scope="module")
def xland():
    spec = importlib.util.spec_from_file_location("xland_rulesets", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_trains_and_prints(xland, capsys):
    xland.main(["--updates", "4", "--levels", "128", "--solvable", "0.5"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[3].strip().startswith("16384 steps")  # 4 updates of 64 rulesets for 64 steps
    assert "learnable" in printed[4]


def test_only_what_can_be_solved_is_solved(xland):
    """A policy of random actions solves some of the one kind, and none of the other."""
    student = xland.new_student(jax.random.key(0), 1)
    for share in (0.0, 1.0):
        pool = xland.make_pool(jax.random.key(1), xland.SLOTS, share)
        window, _ = xland.play(jax.random.key(2), student, pool, xland.WINDOW)
        assert bool(jnp.any(window.reward > 0)) == (share > 0)


def test_two_episodes_always_fit_into_a_window(xland):
    """The wrapper starts a new episode, in the same ruleset, at the step that ends one."""
    pool = xland.make_pool(jax.random.key(1), xland.SLOTS, 0.0)
    student = xland.new_student(jax.random.key(0), 1)
    window, _ = xland.play(jax.random.key(2), student, pool, xland.WINDOW)
    ended = np.flatnonzero(np.asarray(window.done).any(1)).tolist()
    assert ended == [xland.MAX_STEPS - 1, 2 * xland.MAX_STEPS - 1]
    assert bool(window.done[jnp.array(ended)].all())
