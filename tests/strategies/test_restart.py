"""What is believed of a new task is what is believed in a fresh pool, or what the others share."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.strategies import ORACLES, STRATEGIES
from bots_jax.strategies.dots import predicted_selector

TASKS, ROWS, NEW = 7, 10, np.array([8, 2, 10])  # the last is no row: dropped
RATES = np.random.default_rng(0).uniform(0.1, 0.9, (2, TASKS)).astype(np.float32)
FACTORIES = {**STRATEGIES, **ORACLES}
FACTORIES["dots"] = partial(predicted_selector, rollouts=4, target=0.5, temperature=0.1, static=())


def junk(leaf: Any) -> Any:
    """Other numbers in the rows of all tasks; what all share stays."""
    values = np.asarray(leaf)
    if values.ndim == 0 or ROWS not in (values.shape[0], values.shape[-1]):
        return leaf
    rng = np.random.default_rng(values.size)
    return jnp.asarray(values + rng.integers(1, 6, values.shape).astype(values.dtype))


# Of a task that was never seen, or is not in the buffer, nobody looks at these.
UNSEEN = {("advantage-replay", ".memory.score"), *(
    ("prompt-replay", f".memory.{leaf}") for leaf in ("rate", "last")
)}  # fmt: skip


def expected(path: str, fresh: Any, before: Any, active: np.ndarray, clock: Any) -> Any:
    """The row of a new task."""
    told = path.rsplit(".", 1)[-1]
    if told in ("discounted", "visits"):  # of the average task, so that there is no rush
        return np.mean(before[active])
    if told == "passes":  # the latest pass
        return np.max(before[active])
    if told == "rank":  # the hardest
        return ROWS
    if told == "seen":
        return clock
    return fresh


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_new_tasks_begin_anew(name: str) -> None:
    selector = FACTORIES[name](batch_size=4)
    reference = RATES if name not in ORACLES else np.tile(RATES, (4, 1))
    state = selector.init(reference, capacity=ROWS)
    active = np.arange(ROWS) < TASKS - 1  # one has left
    clock = jnp.int32(17)
    lived = jax.tree_util.tree_map_with_path(
        lambda key, leaf: clock if jax.tree_util.keystr(key).endswith(".clock") else junk(leaf),
        state.belief,
    )
    after = lived.restart(state.settings, jnp.asarray(NEW, jnp.int32), jnp.asarray(active))
    leaves = jax.tree_util.tree_leaves_with_path(after)
    others = (jax.tree.leaves(tree) for tree in (lived, state.belief))
    for (key, leaf), before, fresh in zip(leaves, *others, strict=True):
        path, now = jax.tree_util.keystr(key), np.asarray(leaf)
        before, fresh = np.asarray(before), np.asarray(fresh)
        if now.ndim == 0 or ROWS not in (now.shape[0], now.shape[-1]):
            np.testing.assert_array_equal(now, before, err_msg=path)
            continue
        if now.shape[0] != ROWS:
            now, before, fresh = now.T, before.T, fresh.T
        rest = np.setdiff1d(np.arange(ROWS), NEW)
        np.testing.assert_array_equal(now[rest], before[rest], err_msg=path)
        if (name, path) not in UNSEEN:
            wanted = expected(path, fresh[8], before, active, clock)
            for row in NEW[:2]:
                np.testing.assert_allclose(now[row], wanted, rtol=1e-6, err_msg=path)
