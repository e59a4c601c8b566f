"""The race of large groups takes of each as many tasks as if every task had been scored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import auto
from bots_jax.belief.logit_normal import AutoConfig
from bots_jax.choice.mixed import LOTTERY
from bots_jax.grouped.groups import group_of
from bots_jax.grouped.mixed import _Scores, mixed_in_groups
from bots_jax.implicit import glm
from tests.choice.test_batch import assert_same_rates, membership
from tests.conftest import OPTIMISED

BATCH, RUNS = 8, 4000
PAIRS = np.array([(0.25, 0.5), (0.5, 0.5), (0.5, 0.75)], np.float32)
SIZES = np.array([500, 1400, 800])  # all are raced: at least 4 x 42 tasks without a slot
TASKS = int(SIZES.sum())
# s_g in units of what the best eight of all span: one group begins later than two that are equal.
BEGINS = np.array([0.0, 0.0, 0.5]) * LOTTERY * BATCH / TASKS


def test_large_groups_are_taken_as_if_each_task_were_scored() -> None:
    """How many of the batch are of each group, and of which group and hundred tasks they are.

    Three two-sample tests, each of which fails by chance with probability FAILURE.
    """
    selector = auto(batch_size=BATCH, rollouts=8, representation="grouped", slots=512)
    state = selector.init(np.repeat(PAIRS, SIZES, axis=0).T)
    np.testing.assert_array_equal(state.pool.groups.sizes, SIZES)
    rules = AutoConfig(glm(), True, True, BATCH)
    best = mixed_in_groups(rules, None)
    no_slots = jnp.zeros(state.pool.slot_ids.shape)

    def select(key: jax.Array) -> jax.Array:
        race_key, walk_key = jax.random.split(key)
        begins = jnp.asarray(BEGINS, no_slots.dtype)
        scores = _Scores(no_slots, begins, jnp.zeros(3), race_key, walk_key)
        return best(scores, state, None, BATCH)[1]

    draw = jax.jit(lambda keys: jax.lax.map(select, keys), compiler_options=OPTIMISED)
    ours = np.asarray(draw(jax.random.split(jax.random.key(0), RUNS)))
    group = np.asarray(group_of(state.pool.groups, jnp.arange(TASKS)))
    lottery = np.random.default_rng(1).exponential(LOTTERY, (RUNS, TASKS))
    score = BEGINS[group] + lottery
    theirs = np.argpartition(score, BATCH - 1, axis=1)[:, :BATCH]
    place = np.argsort(np.take_along_axis(score, theirs, axis=1), axis=1)
    theirs = np.take_along_axis(theirs, place, axis=1)  # in order, as the race gives them
    assert ours.min() >= 0
    of_group = [group[ids][:, :, None] == np.arange(3) for ids in (ours, theirs)]
    counts = [  # of runs with at least so many of a group
        (held.sum(1)[:, :, None] > np.arange(BATCH)).sum(0).ravel() for held in of_group
    ]
    assert_same_rates(*counts, RUNS)
    assert_same_rates(*(held.sum(0).ravel() for held in of_group), RUNS)  # of each place
    hundreds = [  # of runs with any of each hundred tasks
        membership(ids, TASKS).reshape(RUNS, -1, 100).any(axis=2).sum(0) for ids in (ours, theirs)
    ]
    assert_same_rates(*hundreds, RUNS)
