"""How large tables are, what takes a slot in them, and that nothing else is touched."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, auto, bots, retire
from bots_jax.belief.beta import beta_rules
from bots_jax.grouped import table
from bots_jax.grouped.beta import group_betas
from bots_jax.grouped.slots import slots_needed
from bots_jax.implicit import make_estimator

SIZE = 6000
REFERENCE = (np.random.default_rng(0).integers(0, 5, (2, SIZE)) / 4).astype(np.float32)


def slots_of(batch: int, forgetting: float, most: float, tolerance: float, tasks: int) -> int:
    """Steps are counted until what a visit leaves is below the tolerance, one by one."""
    steps, left = 1.0, most
    while forgetting > 0 and left * (1 - forgetting) >= tolerance:
        steps, left = steps + 1, left * (1 - forgetting)
    if forgetting > 0 and most > tolerance:
        steps += np.log(left / tolerance) / -np.log(1 - forgetting)  # of the last one a part
    differ = min(batch * steps, tasks) if forgetting > 0 else tasks
    return max(int(np.ceil(1.8 * differ / 64)), 32) * 64


@pytest.mark.parametrize("forgetting", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("tasks", [100, 5000, 10**6])
def test_slots_for_the_tasks_that_differ(forgetting: float, tasks: int) -> None:
    for batch, most, tolerance in ((8, 32.0, 1e-5), (512, 8.0, 1e-3), (64, 1e-4, 1e-3)):
        found = slots_needed(batch, forgetting, most, tolerance, tasks)
        assert found == slots_of(batch, forgetting, most, tolerance, tasks)


def test_tables_of_new_pools() -> None:
    """Of BOTS, a visit leaves its evidence and what implicit evidence it replaced: 2 m."""
    rollouts = 100
    for selector, forgetting, most, tolerance in (
        (bots(batch_size=32, rollouts=rollouts, representation="grouped"), 0.1, 2 * rollouts, 1e-5),
        (auto(batch_size=32, rollouts=rollouts, representation="grouped", forgetting=0.05),
         0.05, 4, 1e-3),
    ):  # fmt: skip
        state = selector.init(REFERENCE)
        slots = slots_of(32, forgetting, most, tolerance, SIZE)
        assert state.pool.slot_ids.shape == (slots,)
    model = group_betas(beta_rules(make_estimator("linear"), False))
    assert model.most_left(float(rollouts)) == 2 * rollouts


def leaves(state: State) -> dict[str, Any]:
    """All arrays but the counts of rows, and of a list that small pools do not keep, by name."""
    counts = (".stale", ".invalid", ".unsolicited", ".num_touched")
    paths = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}
    return {name: leaf for name, leaf in named.items() if not name.endswith(counts)}


def test_rows_that_bring_nothing_change_nothing() -> None:
    """Padding, 0 trials, late, of a task that has left, or impossible: counted at most."""
    selector: Selector = bots(batch_size=8, rollouts=4, representation="grouped")
    state = retire(selector.init(REFERENCE), [77, 78])
    fill = [0.0] * 7
    state = selector.observe(  # two tasks of which something is known
        state, Evidence(jnp.asarray([5, 90, *[-1] * 7], jnp.int32), jnp.asarray([1.0, 2, *fill]),
                        jnp.full(9, 4.0), jnp.full(9, -1, jnp.int32)),
    )  # fmt: skip
    before = leaves(state)
    state = selector.observe(
        state,
        Evidence(
            jnp.asarray([-1, 90, 91, 77, 78, 92, 93, 94, 5], jnp.int32),
            jnp.asarray([1.0, 0, 1, 1, 1, 5, -1, 1, 1]),
            jnp.asarray([4.0, 0, 4, 4, 4, 4, 4, np.inf, 4]),
            jnp.asarray([-1, -1, 999, -1, 3, -1, -1, -1, 999], jnp.int32),
        ),
    )
    state = selector.observe(state, Evidence(
        jnp.asarray([95, *range(200, 208)], jnp.int32), jnp.zeros(9), jnp.zeros(9),
        jnp.full(9, -1, jnp.int32),
    ))  # fmt: skip
    after = leaves(state)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    told = state.pool.bookkeeping
    assert (int(told.stale), int(told.unsolicited), int(told.invalid)) == (2, 2, 5)


@jax.jit
def place(slot_ids: jax.Array, ids: jax.Array, price: jax.Array) -> table.Placed:
    return table.place(slot_ids, ids, jnp.ones(ids.shape, bool), lambda at: price[at])


@pytest.mark.parametrize("free", [0, 1, 30, 64])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_of_slots_that_must_make_room_the_cheapest_go(free: int, kept: float) -> None:
    """One bucket for more tasks than it holds; some of those in it must be kept."""
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.permutation(10**6)[:80], jnp.int32)
    held = 10**7 + np.arange(table.WAYS, dtype=np.int32)
    held[rng.permutation(table.WAYS)[:free]] = table.FREE
    price = np.where(rng.random(table.WAYS) < kept, np.inf, rng.permutation(table.WAYS))
    room = np.flatnonzero((held == table.FREE) | np.isfinite(price))
    placed = place(jnp.asarray(held), ids, jnp.asarray(price, jnp.float32))
    slots = np.asarray(placed.slots)
    given = slots[slots < table.WAYS]
    assert sorted(given.tolist()) == room.tolist()
    np.testing.assert_array_equal(slots[len(room) :], table.WAYS)
    assert int(placed.displaced) == np.sum(held[given] != table.FREE)
    # The free first, then those that cost least.
    paid = np.where(held == table.FREE, -1, price)[given]
    assert np.all(np.diff(paid) >= 0)


def test_slots_make_room_where_floats_are_wide() -> None:
    """Under x64 a sort tells places in int64, which the rest of a state does not have."""
    with jax.enable_x64(True):
        held = jnp.arange(table.WAYS, dtype=jnp.int32)
        ids = jnp.arange(10**6, 10**6 + 3, dtype=jnp.int32)
        placed = jax.jit(
            lambda price: table.place(held, ids, jnp.ones(3, bool), lambda at: price[at])
        )(jnp.linspace(1.0, 0.0, table.WAYS))
    assert placed.slots.dtype == jnp.int32
    np.testing.assert_array_equal(placed.slots, table.WAYS - 1 - np.arange(3))
    assert int(placed.displaced) == 3
