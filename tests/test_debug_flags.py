"""JAX's own checks tell of mistakes alone: a step of every selector under `jax_debug_nans` and
`jax_debug_key_reuse`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import State, add_tasks, auto, bots, draws, retire
from bots_jax.strategies import STRATEGIES, make_strategy
from bots_jax.types import Selector


@pytest.fixture(autouse=True)
def checked() -> Iterator[None]:
    with jax.debug_nans(True), jax.debug_key_reuse(True):
        yield


def references(tasks: int) -> np.ndarray:
    """Two models, some tasks unknown to one or both; on a grid, so that pools may be grouped."""
    rates = np.round(np.random.default_rng(0).random((2, tasks)), 1).astype(np.float32)
    rates[0, ::3] = np.nan
    rates[:, 5] = np.nan
    return rates


def a_step(selector: Selector, state: State) -> None:
    """Within one program, whose outputs, the whole state too, are looked at."""

    @jax.jit
    def step(rng_key: jax.Array, state: State) -> tuple[State, Any]:
        state, batch = selector.select(rng_key, state)
        rewards = jnp.arange(4)[None, :] < (batch.task_ids % 5)[:, None]
        state, info = selector.update(state, batch.evidence(rewards.astype(jnp.float32)))
        return state, (info, selector.predict(state, batch.task_ids))

    state, told = step(jax.random.key(0), state)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves((state, told)))


# Most strategies are made of the same parts; these have others.
QUICK = ("auto", "bots", "kgps", "learning-progress", "uniform")


@pytest.mark.parametrize(
    "name", [pytest.param(s, marks=() if s in QUICK else pytest.mark.long) for s in STRATEGIES]
)
def test_a_step_with_room_and_unknown_references(name: str) -> None:
    selector = make_strategy(name, batch_size=4, rollouts=4)
    state = selector.init(references(40), domains=np.arange(40) % 2, capacity=48)
    a_step(selector, state)


MANY = 20_000  # draws are made for some of so many tasks, not for all
BOTH = {"quotas": (3, 1)}, {"domains": np.arange(MANY) % 2}
LARGE = {
    "bots": (bots, {}, {}),
    "bots, quotas": (bots, *BOTH),
    "bots, exploration": (bots, {"exploration": 0.3}, {}),
    "bots, grouped": (bots, {"representation": "grouped"}, {}),
    "auto, quotas": (auto, *BOTH),
    "auto, grouped": (auto, {"representation": "grouped"}, {}),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "bots" else pytest.mark.long) for case in LARGE],
)
def test_a_step_of_a_large_pool(case: str) -> None:
    factory, build, given = LARGE[case]
    selector = factory(batch_size=4, rollouts=4, **{"representation": "dense", **build})
    a_step(selector, selector.init(references(MANY), **given))


def test_pools_that_change_and_draws() -> None:
    selector = auto(batch_size=4, rollouts=4)
    state = selector.init(references(40), capacity=48)
    state, _ = add_tasks(state, references(8)[:, :4])
    state, _ = add_tasks(retire(state, [0, 1]), num_tasks=2)
    state, batch = selector.select(jax.random.key(0), state)
    state, _ = selector.update(state, batch.evidence([[1, 0, 1, 0]] * 4))
    selector.predict(selector.abandon(state, batch.task_ids))
    draws.beta(jax.random.key(1), jnp.full(9000, 0.5), jnp.full(9000, 3.0))
