"""What a new task takes from the others is theirs: empty rows have no say in it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import auto, bots
from bots_jax.strategies import STRATEGIES, make_strategy

TASKS, LEFT, NEW = 8, 3, 8  # tasks at first, the one that has left, the row of a new one
RATES = np.random.default_rng(0).uniform(size=(2, TASKS)).astype(np.float32)
NAMES = sorted({"bots", "auto", *STRATEGIES} - {"uniform"})


def lived(name: str, room: int) -> Any:
    """A pool of that many rows of which every task has its own past; that of one was wild."""
    factories = {"bots": bots, "auto": auto}
    selector = factories[name](batch_size=4) if name in factories else make_strategy(
        name, batch_size=4
    )  # fmt: skip
    state = selector.init(RATES, capacity=room)
    rng = np.random.default_rng(1)

    def past(leaf: Any) -> Any:
        own = np.array(leaf)
        if room not in own.shape:
            return leaf
        rows = np.moveaxis(own, own.shape.index(room), 0)
        size = (TASKS, *rows.shape[1:])
        rows[:TASKS] = rng.integers(0, 2 if own.dtype == bool else 9, size)
        rows[LEFT] = np.asarray(1000, np.float64).astype(own.dtype)
        return jnp.asarray(own)

    return state._replace(belief=jax.tree.map(past, state.belief))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_task_is_the_same_whatever_room_there_is(name: str) -> None:
    told = []
    for room in (TASKS + 1, 101):
        state = lived(name, room)
        active = state.pool.active.at[LEFT].set(False)
        belief = state.belief.restart(state.settings, jnp.array([NEW]), active)
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(belief), jax.tree.leaves(state.belief), strict=True
        )
        rows = {}
        for (path, leaf), before in pairs:
            values = np.asarray(leaf)
            if room in values.shape:
                own = np.moveaxis(values, values.shape.index(room), 0)
                rows[jax.tree_util.keystr(path)] = own[NEW]
                np.testing.assert_array_equal(
                    own[:TASKS],
                    np.moveaxis(np.asarray(before), values.shape.index(room), 0)[:TASKS],
                )
        told.append(rows)
    assert told[0].keys() == told[1].keys()
    for path, value in told[0].items():
        if not path.endswith(".rank"):  # the last of all: the number of rows
            np.testing.assert_allclose(value, told[1][path], rtol=1e-6, err_msg=path)
            assert np.all(np.abs(value) < 500) or path.endswith("variance"), path
