"""Levels: episodes of a window as evidence, against a loop; sampling, inserting, evicting."""

from __future__ import annotations

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import levels
from bots_jax.strategies import make_strategy
from bots_jax.types import Evidence

T, S = 7, 3


def loop(start, dones, outcomes, played, episodes, unfinished, limit):
    """The episodes that count, one after another: (step, slot, level, share)."""
    found, end = [], []
    most = episodes if episodes is not None else 10**9
    for slot in range(dones.shape[1]):
        level, steps, count, failed = start[slot]
        for t in range(dones.shape[0]):
            if played[t, slot] != level:
                level, steps, count, failed = int(played[t, slot]), 0, 0, False
            steps += 1
            late = limit is not None and steps >= limit and not dones[t, slot]
            if (dones[t, slot] or late) and level >= 0 and not failed and count < most:
                found.append((t, slot, level, outcomes[t, slot] if dones[t, slot] else 0.0))
                count += 1
            failed = (failed or late) and not dones[t, slot]
            steps = 0 if dones[t, slot] else steps
        if unfinished == "fail" and steps and level >= 0 and not failed and count < most:
            found.append((dones.shape[0] - 1, slot, level, 0.0))
        end.append((level, steps, count, failed) if unfinished == "carry" else (-1, 0, 0, False))
    return found, end


# Each is compiled: of `episodes`, `unfinished`, `limit` and `by_step` every pair occurs.
RULES = [
    (None, "carry", None, True), (None, "fail", 1, False), (None, "drop", 3, True),
    (None, "carry", 9, False), (1, "fail", None, False), (1, "drop", 1, True),
    (1, "carry", 3, False), (1, "fail", 9, True), (2, "drop", None, False),
    (2, "carry", 1, True), (2, "fail", 3, True), (2, "drop", 9, False),
]  # fmt: skip
windows = st.fixed_dictionaries(
    {
        "dones": st.lists(st.booleans(), min_size=2 * T * S, max_size=2 * T * S),
        "outcomes": st.lists(st.integers(0, 4), min_size=2 * T * S, max_size=2 * T * S),
        "levels": st.lists(st.integers(-1, 2), min_size=2 * T * S, max_size=2 * T * S),
        "rule": st.sampled_from(RULES),
    }
)
compiled = jax.jit(levels.record, static_argnames=("episodes", "unfinished", "limit"))


def totals(evidence):
    """Successes and trials of each level, from rows in any order."""
    ids = np.asarray(evidence.task_ids)
    return {
        level: (
            float(np.asarray(evidence.successes)[ids == level].sum()),
            float(np.asarray(evidence.trials)[ids == level].sum()),
        )
        for level in range(3)
    }


@settings(max_examples=300, deadline=None)
@given(windows)
def test_record_is_a_loop_over_episodes(case):
    """Two windows one after another: any dones, level changes, empty slots, limits."""
    dones = np.reshape(case["dones"], (2, T, S))
    outcomes = np.reshape(case["outcomes"], (2, T, S)).astype(np.float32) / 4
    played = np.reshape(case["levels"], (2, T, S))
    episodes, unfinished, limit, by_step = case["rule"]
    if not by_step:
        played = np.broadcast_to(played[:, :1], played.shape)
    rule = {"episodes": episodes, "unfinished": unfinished, "limit": limit}
    running, slots = levels.no_running(S), [(-1, 0, 0, False)] * S
    for window in range(2):
        ids = played[window] if by_step else played[window, 0]
        running, evidence = compiled(running, dones[window], outcomes[window], ids, **rule)
        found, slots = loop(slots, dones[window], outcomes[window], played[window], **rule)
        told = totals(evidence)
        if not by_step:
            for slot in range(S):
                shares = [share for _, at, _, share in found if at == slot]
                assert bool(evidence.differ[slot]) == (len(set(shares)) > 1)
        for level in range(3):
            shares = [share for _, _, one, share in found if one == level]
            assert told[level] == pytest.approx((sum(shares), len(shares)))
        kept = [np.asarray(field).tolist() for field in running]
        assert list(zip(*kept, strict=True)) == [(a, b, c, d) for a, b, c, d in slots]


def test_first_episodes_are_not_biased_to_quick_wins():
    """Wins take 2 steps, failures 12: all episodes of a window overcount wins, the first do not."""
    wins = np.random.default_rng(0).random((2000, 24)) < 0.5
    dones, won = np.zeros((24, 2000), bool), np.zeros((24, 2000), bool)
    for slot in range(2000):
        t = -1
        for win in wins[slot]:
            t += 2 if win else 12
            if t >= 24:
                break
            dones[t, slot], won[t, slot] = True, win
    rate = {}
    for episodes in (1, 2, None):
        _, evidence = levels.record(
            levels.no_running(2000), dones, won, np.arange(2000), episodes=episodes
        )
        rate[episodes] = float(evidence.successes.sum() / evidence.trials.sum())
    assert rate[1] == pytest.approx(0.5, abs=0.04)
    assert rate[2] == pytest.approx(0.5, abs=0.04)
    assert rate[None] > 0.57


def test_rows_close_visits_only_where_the_window_ends_them():
    dones = np.zeros((4, 2), bool)
    dones[1, 0] = True
    _, dropped = levels.record(levels.no_running(2), dones, dones, np.array([5, 6]))
    assert dropped.task_ids.tolist() == [5, 6]
    assert dropped.trials.tolist() == [1, 0]
    assert dropped.attempts.tolist() == [1, np.inf]
    _, kept = levels.record(
        levels.no_running(2), dones, dones, np.array([5, 6]), unfinished="carry"
    )
    assert kept.task_ids.tolist() == [5, -1]


def test_levels_told_step_by_step_are_ended_by_the_window_too():
    """What the window cut off stayed in flight for ever."""
    dones = np.zeros((4, 2), bool)
    dones[1, 0] = True
    played = np.array([[5, 6], [5, 6], [7, 8], [7, -1]])  # 6 was left without an end, as 7 and 8
    for unfinished, ended in (("drop", {5: 1, 6: np.inf, 7: np.inf, 8: np.inf}), ("carry", {5: 1})):
        _, told = levels.record(
            levels.no_running(2), dones, dones, played, played, unfinished=unfinished
        )
        rows = zip(*(np.asarray(x).tolist() for x in (told.task_ids, told.attempts)), strict=True)
        assert {level: attempts for level, attempts in rows if level >= 0} == ended
        assert float(told.trials.sum()) == 1


def test_graded_outcomes_are_put_on_the_scale():
    dones = np.ones((1, 3), bool)
    _, evidence = levels.record(
        levels.no_running(3), dones, np.array([[-1.0, 0.0, 9.0]]), np.arange(3), low=-1, high=1
    )
    assert evidence.successes.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_episodes_that_were_not_scored_are_left_out(dtype, by_step):
    """One NaN took the slot's other episodes with it, and an infinity was a failure."""
    outcomes = jnp.array([[1, 1, np.nan], [np.nan, 0, np.inf], [0, -np.inf, np.nan]], dtype)
    dones = jnp.ones((3, 3), bool)
    played = jnp.broadcast_to(jnp.arange(3), (3, 3)) if by_step else jnp.arange(3)
    for unfinished in ("carry", "fail", "drop"):
        _, told = levels.record(
            levels.no_running(3), dones, outcomes, played, episodes=None, unfinished=unfinished
        )
        assert totals(told) == {0: (1, 2), 1: (1, 2), 2: (0, 0)}
        ids, attempts = np.asarray(told.task_ids), np.asarray(told.attempts)
        assert [attempts[ids == level].sum() for level in range(3)] == [3, 3, 3]


def test_outcomes_of_narrow_numbers_and_scales():
    """Sums of 16 bits stop at 257, or at 2049; a scale at 1e9 has no room in 32."""
    dones = np.ones((3000, 1), bool)
    for dtype in (jnp.bfloat16, jnp.float16, np.int8, bool):
        won = jnp.ones((3000, 1), dtype)
        _, told = levels.record(levels.no_running(1), dones, won, [0], episodes=None)
        assert totals(told)[0] == (3000, 3000)
    scale = {"low": 1e9, "high": 1e9 + 1}
    _, told = levels.record(levels.no_running(1), dones[:1], np.full((1, 1), 1e9 + 1), [0], **scale)
    assert totals(told)[0] == (1, 1)
    with pytest.raises(ValueError, match="cannot be told apart"):
        levels.record(levels.no_running(1), dones[:1], jnp.full((1, 1), 1e9 + 1), [0], **scale)
    with pytest.raises(ValueError, match="level_ids contains 4294967301"):
        levels.record(levels.no_running(1), dones, dones, np.array([2**32 + 5]))


@pytest.mark.parametrize("dtype", [bool, np.int8, jnp.bfloat16, jnp.float16, jnp.float32])
def test_returns_are_summed_in_numbers_that_are_wide_enough(dtype):
    rewards, dones = jnp.ones((1000, 2), dtype), np.arange(1000)[:, None] % [500, 400] == 399
    ends, left = levels.episode_returns(rewards, dones, jnp.full(2, 0.5))
    expected = [[399.5, 399.5], [400.5, 400.5], [400, 400], [100, 200]]
    np.testing.assert_array_equal(np.asarray(ends)[[398, 399, 799, 999]], expected)
    np.testing.assert_array_equal(left, [100, 200])


def test_insert_forgets_what_was_pending_of_the_level_before():
    selector = make_strategy("bots", batch_size=4, rollouts=2)
    state = selector.observe(selector.init(num_tasks=8), Evidence(np.arange(8), np.ones(8), 2.0))
    state, _, rows = levels.insert(selector, state, jnp.zeros(8), jnp.zeros(4))
    state, info = selector.update(state, Evidence(rows, [2.0] * 4, 2.0))
    assert (int(info.evaluated), float(info.trials)) == (8, 16)
    assert float(info.effective_task_ratio) == pytest.approx(0.5, abs=1 / 255)  # the other four


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -1.0, 2.0])
def test_what_is_no_success_rate_ends_the_visit_and_tells_nothing(wrong):
    """Regrets, handed over by mistake, left their levels in flight for ever."""
    sampler = levels.LevelSampler(make_strategy("bots", batch_size=4, rollouts=1), 8)
    empty = sampler.initialize(jnp.zeros(2))
    held, _ = sampler.insert_batch(empty, jnp.ones((8, 2)), jnp.full(8, 0.5))
    held, (ids, _) = sampler.sample_replay_levels(held, jax.random.key(0), 4)
    before = sampler.selector.predict(held["state"]).mean
    held = sampler.update_batch(held, ids, jnp.full(4, wrong))
    assert int(held["state"].in_flight) == 0
    after = sampler.selector.predict(held["state"]).mean
    assert np.all(np.sign(after - 0.5) == np.sign(before - 0.5))
    again, _ = sampler.insert_batch(held, jnp.ones((2, 2)), jnp.full(2, wrong))
    assert np.all(np.isfinite(sampler.selector.predict(again["state"]).mean))


def test_episode_returns_sum_within_an_episode_and_over_windows():
    rewards = np.array([[1.0], [2.0], [4.0]])
    dones = np.array([[False], [True], [False]])
    returns, left = levels.episode_returns(rewards, dones, jnp.array([10.0]))
    assert returns[:, 0].tolist() == [11.0, 13.0, 4.0]
    assert left.tolist() == [4.0]


@pytest.mark.parametrize(
    "wrong", [{"unfinished": "keep"}, {"episodes": 0}, {"limit": 0}, {"low": 1.0}]
)
def test_record_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        levels.record(levels.no_running(1), np.ones((2, 1)), np.ones((2, 1)), [0], **wrong)


@cache  # kept, or it is compiled for each test
def selector_of(name):
    dense = {} if name == "mopps" else {"representation": "dense"}
    return make_strategy(name, batch_size=4, rollouts=2, **dense)


def make(tasks=8, capacity=None, name="auto"):
    selector = selector_of(name)
    return selector, selector.init(num_tasks=tasks, capacity=capacity)


def test_sample_never_plays_the_last_level_for_want_of_others():
    selector, state = make()
    eligible = np.zeros(8, bool)
    eligible[[2, 5]] = True
    state, slots = levels.sample(selector, jax.random.key(0), state, 2, eligible)
    assert sorted(set(slots.level_ids.tolist())) == [2, 5]
    assert slots.level_ids.tolist() == slots.task_ids.tolist()
    assert slots.weight.tolist() == [1.0] * 8
    assert (slots.visit >= 0).all()
    _, none = levels.sample(selector, jax.random.key(0), state, 2, np.zeros(8, bool))
    assert none.task_ids.tolist() == [-1] * 8
    assert none.weight.sum() == 0
    assert none.level_ids.tolist() == [0] * 8


def test_sample_repeats_levels_where_floats_are_wide():
    """Under x64 counts, ranges and sorts tell int64, beside the int32 of a state."""
    with jax.enable_x64(True):
        selector = make_strategy("uniform", batch_size=4, rollouts=2)
        state = selector.init(num_tasks=6)
        eligible = np.array([True, True, False, False, False, False])
        _, slots = levels.sample(selector, jax.random.key(0), state, copies=2, eligible=eligible)
    assert slots.task_ids.dtype == slots.visit.dtype == jnp.int32
    np.testing.assert_array_equal(np.bincount(slots.task_ids, minlength=6), [4, 4, 0, 0, 0, 0])


def test_a_level_in_several_slots_has_one_visit():
    selector, state = make()
    state, slots = levels.sample(selector, jax.random.key(0), state, 2)
    ids = slots.task_ids.reshape(4, 2)
    assert (ids[:, 0] == ids[:, 1]).all()
    assert len(set(ids[:, 0].tolist())) == 4
    dones = np.ones((1, 8), bool)
    _, evidence = levels.record(levels.no_running(8), dones, dones, slots.task_ids, slots.visit)
    state, info = selector.update(state, evidence)
    assert (int(info.evaluated), float(info.trials), int(info.stale)) == (4, 8.0, 0)


def taught(name="auto"):
    """Levels 0 to 3 of 8 are always solved, 4 and 5 half, 6 and 7 never."""
    selector, state = make(name=name)
    rates = np.array([1, 1, 1, 1, 0.5, 0.5, 0, 0])
    state, _ = selector.update(state, Evidence(np.arange(8), 64 * rates, np.full(8, 64.0)))
    return selector, state


@pytest.mark.parametrize("name", ["auto", "bots", "mopps"])
def test_insert_takes_the_rows_of_the_least_useful_inside_jit(name):
    selector, state = taught(name)
    pool = {"seed": jnp.arange(8), "map": jnp.zeros((8, 3))}
    new = {"seed": jnp.array([100, 101]), "map": jnp.ones((2, 3))}
    put = jax.jit(lambda s, p, n: levels.insert(selector, s, p, n))
    state, pool, rows = put(state, pool, new)
    assert set(rows.tolist()).isdisjoint({4, 5})
    assert len(set(rows.tolist())) == 2
    assert pool["seed"][rows].tolist() == [100, 101]
    assert pool["map"].sum() == 6
    untouched = [row for row in range(8) if row not in rows.tolist()]
    assert pool["seed"][jnp.array(untouched)].tolist() == untouched


def test_insert_starts_a_child_from_its_parent():
    selector, state = taught("bots")
    pool, new = jnp.arange(8), jnp.array([100, 101])
    state, _, rows = levels.insert(selector, state, pool, new, parents=[4, -1])
    state, info = selector.advance(state)
    assert (float(info.trials), int(info.evaluated), int(info.invalid)) == (0.0, 0, 0)
    child, orphan = selector.predict(state, rows).concentration.tolist()
    assert child > orphan + 2


def test_a_child_teaches_nobody_else():
    """As evidence its parent's rate taught `auto` that levels do not differ: all became alike."""
    selector, state = taught("auto")
    before = selector.predict(state)
    rows = levels.usefulness(selector, state).argsort()[:2]
    inserted, _, children = levels.insert(
        selector, state, jnp.arange(8), jnp.array([100, 101]), parents=[4, -1]
    )
    assert children.tolist() == rows.tolist()
    told, orphan = selector.predict(inserted, children).concentration.tolist()
    assert told > orphan + 2  # at once
    after, info = selector.advance(inserted)
    assert int(info.evaluated) == 0
    chex.assert_trees_all_equal(after.belief.shared, state.belief.shared)
    others = np.setdiff1d(np.arange(8), children)
    np.testing.assert_array_equal(selector.predict(after).mean[others], before.mean[others])


@pytest.mark.parametrize("name", ["auto", "mopps"])
def test_info_counts_the_levels_played_and_no_children(name):
    """A child told a rate between 0 and 1 was counted among the mixed groups."""
    selector = make_strategy(name, batch_size=4, rollouts=2)
    state, pool = selector.init(num_tasks=8, capacity=16), jnp.arange(16)
    for step in range(3):
        state, batch = selector.select(jax.random.key(step), state)
        state, info = selector.update(state, batch.evidence([[1, 1], [1, 0], [0, 0], [0, 0]]))
        assert (int(info.evaluated), float(info.effective_task_ratio)) == (4, 0.25)
        if name == "auto":  # others fuse a parent's episodes with those of a child played at once
            assert (float(info.trials), float(info.success_rate)) == (8.0, 0.375)
        parents = batch.task_ids[1:3]
        state, pool, _ = levels.insert(selector, state, pool, jnp.arange(2), parents=parents)


@pytest.fixture(scope="module")
def described():
    """A selector of two levels a step, and a pool of eight levels told by two numbers each."""
    selector = make_strategy("auto", batch_size=2, rollouts=2, representation="dense")
    told = np.stack([np.arange(8.0), np.full(8, 3.0)], 1)
    return selector, selector.init(features=told), told


def test_insert_takes_numbers_of_any_type_and_none():
    """Of numbers without a sign the best new level was taken for the worst."""
    selector = make_strategy("uniform", batch_size=2, rollouts=4)
    state = selector.init(num_tasks=4, capacity=6)
    pool, full = jnp.arange(6), state._replace(pool=state.pool._replace(active=jnp.ones(6, bool)))
    for dtype in (np.uint8, np.int32, np.float16):
        worth, scores = np.array([0, 5], dtype), np.array([1, 2, 3, 4, 6, 6], dtype)
        told = {"worth": worth, "scores": scores}
        rows = levels.insert(selector, full, pool, jnp.arange(2), **told)[2]
        assert rows.tolist() == [-1, 0]
    assert levels.insert(selector, state, pool, jnp.arange(0))[2].shape == (0,)


def test_a_row_without_a_level_is_no_parent():
    """The last row stood for those beyond it, and 2**32 for 0."""
    selector = make_strategy("uniform", batch_size=2, rollouts=4)
    state, pool = selector.init(num_tasks=4, capacity=6), jnp.arange(6)
    after, _, rows = levels.insert(selector, state, pool, jnp.arange(2), parents=[9, 5])
    assert rows.tolist() == [4, 5]
    assert int(selector.advance(after)[1].evaluated) == 0
    with pytest.raises(ValueError, match=r"parents contains 4294967296, expected integers of 32"):
        levels.insert(selector, state, pool, jnp.arange(1), parents=np.array([2**32]))


def test_insert_describes_new_levels_as_init_described_the_first(described):
    """Inside jit; a constant column says nothing, and neither does what is missing."""
    selector, state, told = described
    new = jnp.array([[7.0, 3.0], [jnp.nan, 9.0]])
    put = jax.jit(lambda s, f: levels.insert(selector, s, jnp.arange(8), jnp.arange(2), features=f))
    after, _, rows = put(state, new)
    first = selector.init(features=told).reference.embeddings
    np.testing.assert_allclose(
        after.reference.embeddings[:, rows[0]], first[:, 7], rtol=1e-6, atol=1e-6
    )
    assert after.reference.embeddings[:, rows[1]].tolist() == [0.0, 0.0]
    others = np.setdiff1d(np.arange(8), rows)
    assert (after.reference.embeddings[:, others] == first[:, others]).all()


def test_a_new_level_does_not_keep_the_features_of_the_old_one(described):
    selector, state, _ = described
    after, _, rows = levels.insert(selector, state, jnp.arange(8), jnp.arange(2))
    assert not after.reference.embeddings[:, rows].any()


@pytest.mark.parametrize("features", [np.ones((2, 3)), np.ones(2)])
def test_insert_refuses_features_of_another_shape(described, features):
    selector, state, _ = described
    with pytest.raises(ValueError, match=r"features has shape .*expected \[A, 2\]"):
        levels.insert(selector, state, jnp.arange(8), jnp.arange(2), features=features)


def test_insert_refuses_levels_of_other_rows_than_the_states():
    selector, state = make(tasks=4, capacity=8)
    with pytest.raises(ValueError, match=r"levels has leading sizes \[4\], expected 8"):
        levels.insert(selector, state, jnp.arange(4), jnp.arange(2))


def test_insert_refuses_features_where_there_were_none():
    selector, state = make()
    with pytest.raises(ValueError, match="made without: drop it"):
        levels.insert(selector, state, jnp.arange(8), jnp.arange(2), features=np.ones((2, 1)))


def test_insert_only_if_better_and_never_over_a_level_in_flight():
    selector, state = taught()
    scores = jnp.arange(8.0)
    pool = jnp.arange(8)
    state, pool, rows = levels.insert(
        selector, state, pool, jnp.array([100, 101, 102]), worth=[0.5, -1.0, 9.0], scores=scores
    )
    assert rows.tolist() == [-1, -1, 0]  # 9 beats 0; .5 does not beat 1; -1 beats nothing
    state, _slots = levels.sample(selector, jax.random.key(1), state, eligible=np.arange(8) >= 4)
    _, pool, rows = levels.insert(selector, state, pool, jnp.arange(200, 208))
    assert set(rows.tolist()) == {0, 1, 2, 3, -1}
    assert pool[4:].tolist() == [4, 5, 6, 7]


def test_insert_fills_free_rows_first_and_they_can_be_selected():
    selector, state = make(tasks=4, capacity=8)
    pool = jnp.arange(8)
    state, pool, rows = levels.insert(selector, state, pool, jnp.array([100, 101]))
    assert rows.tolist() == [4, 5]
    assert int(state.pool.next_fresh) == 6
    _, batch = selector.select(jax.random.key(0), state, np.arange(8) >= 4)
    assert sorted(batch.task_ids.tolist()) == [-1, -1, 4, 5]


def test_evict_takes_out_the_worst():
    selector, state = taught()
    state, rows = levels.evict(selector, state, 2)
    assert set(rows.tolist()).isdisjoint({4, 5})
    assert int(state.pool.active.sum()) == 6


def test_pool_metrics_count_shares():
    selector, state = taught("bots")
    told = levels.pool_metrics(selector, state)
    assert float(told["solved"]) == 0.5
    assert float(told["learnable"]) == 0.25
    assert float(told["hopeless"]) == 0.25
    assert float(told["in_flight"]) == 0


def test_levels_without_a_score_are_in_no_bin():
    selector, state = taught("bots")
    scores = jnp.linspace(0.0, 0.25, 8).at[3].set(jnp.nan)
    counts = levels.pool_metrics(selector, state, scores=scores, bins=4)["histogram"]
    assert counts.tolist() == [2, 1, 2, 2]


def test_staleness_is_the_age_of_the_last_visit():
    told = levels.staleness(np.array([0, 4, 2]), 4)
    assert float(told["staleness_mean"]) == 2.0
    assert int(told["staleness_max"]) == 4


def test_success_rate_is_of_the_first_episodes():
    dones = np.array([[True, False, False], [True, True, False]])
    rewards = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rate = levels.success_rate(dones, rewards)
    assert rate[:2].tolist() == [1.0, 0.0]
    assert bool(jnp.isnan(rate[2]))


def test_level_sampler_in_one_scan():
    """A buffer fills with new levels, then replays those that are sometimes solved."""
    selector = make_strategy("auto", batch_size=4, rollouts=4, representation="dense")
    sampler = levels.LevelSampler(selector, 16, replay_prob=1.0, trials=4)
    rates = jnp.where(jnp.arange(64) % 4 == 0, 0.5, 0.0)  # of each level there is

    @jax.jit
    def fill(buffer):
        def new(buffer, ids):
            return sampler.insert_batch(buffer, ids, rates[ids])

        return jax.lax.scan(new, buffer, jnp.arange(64).reshape(16, 4))

    @jax.jit
    def replay(buffer, key):
        def step(buffer, key):
            buffer, (rows, chosen) = sampler.sample_replay_levels(buffer, key, 8)
            # Of one level no episode ended; it is not in play any more all the same.
            scores = jnp.where(rows == rows[0], jnp.nan, rates[chosen])
            return sampler.update_batch(buffer, rows, scores), chosen

        return jax.lax.scan(step, buffer, jax.random.split(key, 10))

    buffer = sampler.initialize(jnp.zeros((), jnp.int32))
    assert not sampler.sample_replay_decision(buffer, jax.random.key(0))
    buffer, _ = fill(buffer)
    assert sampler.sample_replay_decision(buffer, jax.random.key(0))
    held = sampler.get_levels(buffer, jnp.arange(16))
    assert len(set(held.tolist())) == 16
    assert float(jnp.mean(rates[held] > 0)) >= 0.5  # .25 of what came
    buffer, chosen = replay(buffer, jax.random.key(1))
    assert float(jnp.mean(rates[chosen] > 0)) > 0.6
    assert int(buffer["state"].pool.in_flight) == 0
    with pytest.raises(ValueError, match="num=6"):
        sampler.sample_replay_levels(buffer, jax.random.key(0), 6)
