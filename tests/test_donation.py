"""States may be donated: each owns its buffers, and steps in place are those of plain calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import auto, bots
from bots_jax.strategies import STRATEGIES, make_strategy

TASKS = 64
RATES = np.sort(np.random.default_rng(0).random((2, TASKS)), axis=0).astype(np.float32)


def buffers(tree: Any) -> dict[int, str]:
    """Address of each array, and where it is; an address that occurs twice is an error."""
    found: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.size:
            address, name = leaf.unsafe_buffer_pointer(), jax.tree_util.keystr(path)
            assert address not in found, f"{name} is the array of {found.get(address)}"
            found[address] = name
    return found


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_fresh_state_owns_its_buffers(name: str) -> None:
    """Neither two fields, two states, the factory nor the user hold one of them."""
    given = {
        "reference": jnp.asarray(RATES),
        "reference_trials": jnp.full(2, 8.0),
        "domains": jnp.arange(TASKS, dtype=jnp.int32) % 3,
        "settings": {"rollouts": jnp.float32(4)},
    }
    rollouts = jnp.float32(4)
    selector = make_strategy(name, batch_size=8, rollouts=rollouts)
    states = [selector.init(**given), selector.init(given["reference"])]
    buffers((given, rollouts, states))
    del given["settings"]
    buffers((given, rollouts, selector.init(**given)))


@pytest.mark.parametrize(("method", "form"), [(bots, "dense"), (bots, "grouped"), (auto, "dense")])
def test_steps_in_place_are_those_of_plain_calls(method: Any, form: str) -> None:
    selector = method(batch_size=4, rollouts=4, representation=form)
    select = jax.jit(selector.select, donate_argnums=1)
    update = jax.jit(selector.update, donate_argnums=0)
    plain = selector.init(RATES.round(1))
    in_place = selector.init(RATES.round(1))
    for step in range(3):
        old, key = in_place, jax.random.key(step)
        plain, batch = selector.select(key, plain)
        in_place, same = select(key, in_place)
        np.testing.assert_array_equal(batch.task_ids, same.task_ids)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        rewards = np.tile([0.0, 1.0], (4, 2))
        plain, info = selector.update(plain, batch.evidence(rewards))
        in_place, told = update(in_place, same.evidence(rewards))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), info, told)
    believed = [selector.predict(state).mean for state in (plain, in_place)]
    np.testing.assert_allclose(*believed, rtol=1e-5)
