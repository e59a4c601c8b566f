"""Strategies with extra rollouts: what they train on, what they count, what they tell."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.evaluate.replay import Recording, run_replay
from bots_jax.strategies import uniform
from bots_jax.strategies.oversampling import (
    Rolled,
    dynamic_sampling,
    learnability,
    no_oversampling,
    speed,
)

TASKS = 40


def rolls(pattern):
    """Rewards by task alone: pattern[task] of each group are right, the first ones."""
    right = jnp.asarray(pattern, jnp.float32)

    def roll(phase, task_ids, count):
        share = right[jnp.maximum(task_ids, 0)]
        place = jnp.arange(count, dtype=jnp.float32)[None, :]
        rewards = (place < jnp.round(share * count)[:, None]).astype(jnp.float32)
        # What was generated tells the task, the phase and the place, and 3 tokens each.
        data = jnp.broadcast_to(task_ids[:, None], rewards.shape) * 100 + phase
        return Rolled(rewards, jnp.full(rewards.shape, 3, jnp.int32), data)

    return roll


def rolls_or_nothing(pattern):
    """The same, without rewards where the pattern is NaN."""

    def roll(phase, task_ids, count):
        rolled = rolls(np.nan_to_num(pattern))(phase, task_ids, count)
        scored = jnp.asarray(~np.isnan(pattern))[jnp.maximum(task_ids, 0)][:, None]
        return rolled._replace(rewards=jnp.where(scored, rolled.rewards, jnp.nan))

    return roll


def collect(extra, pattern, seed=0):
    state = extra.selector.init(num_tasks=TASKS)
    state, made = jax.jit(lambda key, state: extra.collect(key, state, rolls(pattern)))(
        jax.random.key(seed), state
    )
    return *extra.selector.advance(state), made


def test_free_is_select_roll_update():
    extra = no_oversampling(uniform(batch_size=6, rollouts=8), 8)
    _, info, made = collect(extra, np.full(TASKS, 0.5))
    assert int(made.generated) == 48
    assert int(made.tokens) == 144
    assert (int(info.evaluated), float(info.trials), int(info.in_flight)) == (6, 48, 0)
    np.testing.assert_array_equal(made.rolled.data[:, 0], made.task_ids * 100)


@pytest.mark.parametrize(
    "extra",
    [
        no_oversampling(uniform(batch_size=6, rollouts=8), 8),
        dynamic_sampling(batch_size=6, rollouts=8, max_rounds=2),
        learnability(batch_size=3, rollouts=8, candidates=2),
    ],
)
def test_graded_groups_are_mixed_where_their_rewards_differ(extra):
    """A quarter of the tasks; the rewards of the others are all .5."""

    def roll(phase, task_ids, count):
        apart = (task_ids % 4 == 0)[:, None] & (jnp.arange(count) == 0)[None, :]
        rewards = jnp.where(apart, 0.75, 0.5)
        return Rolled(rewards, jnp.ones(rewards.shape, jnp.int32), task_ids[:, None])

    state = extra.selector.init(num_tasks=TASKS)
    state, made = extra.collect(jax.random.key(0), state, roll)
    _, info = extra.selector.advance(state)
    tried = np.flatnonzero(np.asarray(state.pool.trials) > 0)
    assert float(info.effective_task_ratio) == pytest.approx(np.mean(tried % 4 == 0))
    if extra.static["strategy"] == "dynamic-sampling":
        assert np.all(np.asarray(made.task_ids)[np.asarray(made.valid)] % 4 == 0)


def test_dynamic_sampling_fills_the_batch_with_mixed_groups():
    pattern = np.where(np.arange(TASKS) % 2, 0.5, 1.0)
    extra = dynamic_sampling(batch_size=5, rollouts=8, max_rounds=8)
    _, info, made = collect(extra, pattern)
    ids = np.asarray(made.task_ids)
    assert np.all(made.valid)
    assert np.all(ids % 2 == 1)
    assert len(set(ids.tolist())) == 5
    rewards = np.asarray(made.rolled.rewards)
    np.testing.assert_array_equal(rewards.sum(axis=1), 4)
    np.testing.assert_array_equal(made.rolled.data // 100, np.repeat(ids[:, None], 8, axis=1))
    rounds = int(made.generated) // 40
    assert rounds >= 2  # ten tasks hold five mixed ones at least once in two
    # Every rollout is evidence, the dropped ones too, and every visit is closed.
    assert float(info.trials) == int(made.generated)
    assert int(info.evaluated) == 5 * rounds
    assert (int(info.in_flight), int(info.stale)) == (0, 0)


def test_dynamic_sampling_stops_at_its_cap_and_marks_what_is_missing():
    pattern = np.zeros(TASKS)
    extra = dynamic_sampling(batch_size=5, rollouts=8, max_rounds=3)
    _, info, made = collect(extra, pattern)
    assert not np.any(made.valid)
    np.testing.assert_array_equal(made.task_ids, -1)
    assert int(made.generated) == 3 * 40
    assert int(info.evaluated) == 15


def test_one_round_is_enough_where_all_are_mixed():
    for extra in (
        dynamic_sampling(batch_size=5, rollouts=8),
        speed(batch_size=5, rollouts=8),
    ):
        _, info, made = collect(extra, np.full(TASKS, 0.5))
        assert int(made.generated) == 40  # SPEED: 4 and 4 of each
        assert float(info.trials) == 40
        assert made.rolled.rewards.shape == (5, 8)
        assert np.all(made.valid)


def test_speed_finishes_only_what_was_mixed_in_the_screening():
    pattern = np.where(np.arange(TASKS) % 2, 0.5, 0.0)
    extra = speed(batch_size=5, rollouts=16, max_rounds=8)
    state, info, made = collect(extra, pattern)
    assert np.all(np.asarray(made.task_ids) % 2 == 1)
    assert made.rolled.rewards.shape == (5, 16)
    screened = int(made.generated) - 5 * 8
    assert screened % 40 == 0
    assert float(info.trials) == int(made.generated)
    assert (int(info.in_flight), int(info.stale)) == (0, 0)
    concentration = np.asarray(extra.selector.predict(state, made.task_ids).concentration)
    np.testing.assert_array_equal(concentration, 2 + 16)


def test_learnability_takes_the_largest_variance_of_its_candidates():
    pattern = np.linspace(0, 1, TASKS)
    extra = learnability(batch_size=5, rollouts=16, screening=8, candidates=8)
    _, info, made = collect(extra, pattern)  # all 40 are candidates
    screened = np.round(np.float32(pattern) * 8) / 8
    worst = min((screened * (1 - screened))[np.asarray(made.task_ids)])
    others = np.delete(screened * (1 - screened), np.asarray(made.task_ids))
    assert worst >= others.max() - 1e-6
    assert int(made.generated) == 40 * 8 + 5 * 16
    assert float(info.trials) == int(made.generated)
    np.testing.assert_array_equal(made.rolled.data % 100, 1)  # fresh ones are trained on


def test_learnability_marks_what_is_missing():
    """Two of forty candidates have rewards at all, for a batch of five."""
    extra = learnability(batch_size=5, rollouts=16, screening=8, candidates=8)
    pattern = np.where(np.arange(TASKS) < 2, 0.5, np.nan)
    _, made = extra.collect(
        jax.random.key(0), extra.selector.init(num_tasks=TASKS), rolls_or_nothing(pattern)
    )
    assert sorted(np.asarray(made.task_ids).tolist()) == [-1, -1, -1, 0, 1]
    missing = ~np.asarray(made.valid)
    np.testing.assert_array_equal(missing, np.asarray(made.task_ids) < 0)
    np.testing.assert_array_equal(np.asarray(made.draws)[missing], 0)


def test_the_replay_counts_what_was_generated():
    rng = np.random.default_rng(1)
    rates = np.tile(rng.uniform(0, 1, TASKS).round(), (6, 1)).astype(np.float32)
    rates[:, ::4] = 0.5
    recording = Recording(rates, None, 8, "made up")
    plain = run_replay(uniform(batch_size=4, rollouts=8), recording, [0, 1])
    np.testing.assert_array_equal(plain.generated, 32)
    filled = run_replay(dynamic_sampling(batch_size=4, rollouts=8), recording, [0, 1])
    assert filled.generated.mean() > 1.5 * 32
    mixed = (filled.successes > 0) & (filled.successes < filled.trials)
    np.testing.assert_array_equal(mixed, filled.trials > 0)
    np.testing.assert_array_equal(filled.task_ids >= 0, filled.trials > 0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: speed(rollouts=8, screening=8), "screening=8 must be below rollouts=8"),
        (lambda: dynamic_sampling(max_rounds=0), "max_rounds=0 must be an integer"),
        (lambda: learnability(candidates=0), "candidates=0 must be an integer"),
        (lambda: dynamic_sampling(base="best"), "strategy='best' is not known"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
