"""Balanced: the chance of a mixed group exactly, its limits, and the floor of visits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betaln

from bots_jax import Evidence
from bots_jax.settings import BOTS_DEFAULTS
from bots_jax.strategies import balanced
from bots_jax.strategies.worth import Visits, chance_of_mixed_group


@pytest.mark.parametrize("rollouts", [1, 8, 16])
def test_chance_of_a_mixed_group_agrees_with_beta_functions(rollouts):
    alpha = np.array([1, 0.3, 5, 80, 4000], np.float32)
    beta = np.array([1, 7.0, 5, 2, 3000], np.float32)
    a, b = alpha.astype(float), beta.astype(float)
    right = np.exp(betaln(a + rollouts, b) - betaln(a, b))
    wrong = np.exp(betaln(a, b + rollouts) - betaln(a, b))
    found = chance_of_mixed_group(jnp.asarray(alpha), jnp.asarray(beta), jnp.float32(rollouts))
    np.testing.assert_allclose(found, 1 - right - wrong, atol=2e-6)


def test_without_the_second_term_the_likeliest_mixed_groups_are_taken():
    selector = balanced(batch_size=2, rollouts=8, breadth=0.0)
    state = selector.init(num_tasks=5)
    solved = np.array([0, 4, 8, 3, 1], np.float32)
    for _ in range(4):
        state, _ = selector.update(state, Evidence(np.arange(5), solved, 8))
    _, selection = selector.select(jax.random.key(0), state)
    assert set(np.asarray(selection.task_ids)) == {1, 3}


def test_a_large_second_term_visits_all_alike():
    selector = balanced(batch_size=4, rollouts=8, breadth=100.0)
    state = selector.init(num_tasks=20)
    visits = np.zeros(20)
    for step in range(50):
        state, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        visits[ids] += 1
        evidence = Evidence(ids, np.where(ids % 2, 0.0, 4.0).astype(np.float32), 8)
        state, _ = selector.update(state, evidence)
    np.testing.assert_array_equal(visits, 10)


def test_visits_are_discounted():
    selector = balanced(batch_size=1, rollouts=8, keep=0.5)
    state = selector.init(num_tasks=3)
    for ids in ([0, 1], [0], []):
        evidence = Evidence(np.array([*ids, -1]), np.zeros(len(ids) + 1, np.float32), 8)
        state, _ = selector.update(state, evidence)
    np.testing.assert_allclose(state.belief.memory.discounted, [0.75, 0.25, 0])


def test_implicit_evidence_may_be_added():
    selector = balanced(batch_size=1, rollouts=8, implicit_weight=0.1, estimator="linear")
    state = selector.init(np.array([[0.2, 0.9], [0.4, 1.0]], np.float32))
    state, _ = selector.update(state, Evidence([0], [2.0], 8))
    assert float(selector.predict(state, np.array(1)).mean) > 0.55


def test_new_tasks_stand_where_the_average_stands() -> None:
    before = Visits(jnp.array([4.0, 0.0, 2.0, 0.0]))
    after = before.restart(BOTS_DEFAULTS, jnp.array([3, 4]), jnp.ones(4, bool))  # 4 is no row
    np.testing.assert_allclose(after.discounted, [4, 0, 2, 1.5])
