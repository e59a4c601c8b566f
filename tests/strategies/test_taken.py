"""Tasks that were taken since the last measurement come last, however much noise there is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.strategies.dots import predicted_selector

TASKS = 40


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0, 30.0])
def test_taken_tasks_come_last(temperature: float) -> None:
    """At any temperature, far from the target or near; of both halves the best come first."""
    selector = predicted_selector(
        batch_size=TASKS, rollouts=4, target=0.5, temperature=temperature, static=()
    )
    rates = np.random.default_rng(0).random(TASKS).astype(np.float32)
    state = selector.init(rates[None])
    taken = np.abs(rates - 0.5) < np.median(np.abs(rates - 0.5))
    belief = state.belief._replace(rate=jnp.asarray(rates), taken=jnp.asarray(taken))
    state = state._replace(belief=belief)
    for seed in range(20):
        ids = np.asarray(selector.select(jax.random.key(seed), state)[1].task_ids)
        assert not taken[ids[: TASKS // 2]].any()
        assert taken[ids[TASKS // 2 :]].all()
        if not temperature:
            away = np.abs(rates - 0.5)[ids]
            assert np.all(np.diff(away[: TASKS // 2]) >= 0)
            assert np.all(np.diff(away[TASKS // 2 :]) >= 0)
