"""`auto` by groups: the beliefs and selections of the dense one, a sweep for the floor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, add_tasks, auto, checkpoint, retire
from bots_jax.grouped.groups import group_of
from bots_jax.grouped.logit_normal import _QUICK_SLOTS
from bots_jax.grouped.mixed import sweep_credit
from bots_jax.grouped.selector import enlarge
from bots_jax.pool.reference import ReferenceGroups
from tests.choice.test_batch import assert_same_rates, membership
from tests.conftest import OPTIMISED

BATCH, ROLLOUTS = 8, 8
# At first all but one are raced: those with at least 4 x 42 tasks without a slot.
PAIRS = np.array([(0.25, 0.5), (0.5, 0.5), (0.5, 0.75), (0, 0.25), (0.75, 1)], np.float32)
SIZES = np.array([700, 700, 600, 150, 250])
TASKS = int(SIZES.sum())
TURN = np.random.default_rng(0).permutation(TASKS)
REFERENCE = np.ascontiguousarray(PAIRS[np.repeat(np.arange(5), SIZES)][TURN].T)


def make(form: str, **settings: Any) -> Selector:
    given = {"batch_size": BATCH, "rollouts": ROLLOUTS, **settings}
    return auto(representation=form, **given)


DENSE, FEW = make("dense", spread=0), make("grouped", slots=2048)


def evidence_of(rng: np.random.Generator, rows: int, ids: Any = None) -> Evidence:
    ids = rng.choice(TASKS, rows, replace=False) if ids is None else np.asarray(ids)
    trials = rng.integers(1, ROLLOUTS + 3, len(ids)).astype(np.float32)
    return Evidence(ids, np.floor(trials * rng.random(len(ids))).astype(np.float32), trials)


def same_tasks(state: State) -> None:
    """The tasks of each group that have slots are counted right."""
    slots = np.asarray(state.pool.slot_ids)
    group = np.asarray(group_of(state.pool.groups, jnp.asarray(slots[slots >= 0])))
    counted = np.bincount(group, minlength=state.belief.apart.shape[0])
    np.testing.assert_array_equal(state.belief.apart, counted)


# --- beliefs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgetting", [None, pytest.param(0.3, marks=pytest.mark.long)])
def test_beliefs_are_those_of_the_dense_pool(forgetting: float | None) -> None:
    """With domains, lambda learned, and one so large that tasks return to their groups.

    At most a batch a step: of more, which are compared by the pairs depends on their order.
    """
    rng, settings = np.random.default_rng(1), {"forgetting": forgetting, "tolerance": 1e-4}
    domains = rng.integers(0, 2, TASKS)
    known = np.where(rng.random(REFERENCE.shape) < 0.1, np.nan, REFERENCE).astype(np.float32)
    pair = [make(form, batch_size=24, **settings) for form in ("dense", "grouped")]
    states = [selector.init(known, domains=domains) for selector in pair]
    assert [state.representation for state in states] == ["dense", "grouped"]
    for _ in range(50):
        evidence = evidence_of(rng, 24)
        states, infos = zip(
            *(s.update(x, evidence) for s, x in zip(pair, states, strict=True)), strict=True
        )
    for told in ("capability", "implicit_weight", "implicit_error"):
        left, right = (getattr(info, told) for info in infos)
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    left, right = (s.predict(x) for s, x in zip(pair, states, strict=True))
    np.testing.assert_allclose(left.mean, right.mean, atol=1e-4)
    np.testing.assert_allclose(left.concentration, right.concentration, rtol=2e-3)
    ids = rng.integers(0, TASKS, (5, 7))
    some = pair[1].predict(states[1], ids)
    np.testing.assert_allclose(some.mean, np.asarray(left.mean)[ids], atol=1e-4)
    same_tasks(states[1])
    # 24 tasks a step, for log(4 / 1e-4) / .36 = 30 steps and 8 until they are looked at
    assert (int(states[1].pool.slots.active.sum()) <= 24 * 38) == (forgetting is not None)


# --- selections ----------------------------------------------------------------------------------


@cache
def select_often(selector: Selector) -> Callable[..., jax.Array]:
    """The tasks selected by each key, compiled once for all states."""

    def find(keys: jax.Array, state: State, mask: jax.Array) -> jax.Array:
        return jax.lax.map(lambda key: selector.select(key, state, mask)[1].task_ids, keys)

    return jax.jit(find, compiler_options=OPTIMISED)


@pytest.mark.parametrize("crowded", [False, pytest.param(True, marks=pytest.mark.long)])
def test_selections_have_the_same_distribution(crowded: bool) -> None:
    """Inclusions in the batch and in its better half of each task, with a mask and tasks in flight.

    Nearly no price on visits, so that slots and groups compete. `crowded`: of two large groups
    few tasks have no slot, so these are walked through. Each test fails by chance with
    probability FAILURE.
    """
    rng = np.random.default_rng(2)
    runs, settings = 4000, {"breadth": 2e-4}
    states = [s.init(REFERENCE, settings) for s in (DENSE, FEW)]
    often = np.flatnonzero(np.isin(REFERENCE.sum(axis=0), (0.75, 1.0)))  # of two large groups
    parts = np.array_split(rng.permutation(often)[:1360], 170) if crowded else [None] * 80
    for ids in parts:
        evidence = evidence_of(rng, BATCH, ids)
        states = [s.update(x, evidence)[0] for s, x in zip((DENSE, FEW), states, strict=True)]
    flying = rng.choice(TASKS, 40, replace=False).astype(np.int32)
    mask = jnp.asarray(rng.random(TASKS) < 0.6)
    states = [
        s.select(jax.random.key(0), x, jnp.zeros(TASKS, bool).at[flying].set(True))[0]
        for s, x in zip((DENSE, FEW), states, strict=True)
    ]
    busy = np.flatnonzero(np.asarray(states[0].pool.visit) >= 0)
    found = []
    for selector, state in zip((DENSE, FEW), states, strict=True):
        keys = jax.random.split(jax.random.key(3), runs)
        if selector is FEW:  # which eight of the forty are in flight is drawn: take the same
            slots = state.pool.slots
            state = FEW.abandon(state, state.pool.slot_ids[slots.visit >= 0])
            again = jnp.zeros(TASKS, bool).at[busy].set(True)
            state = FEW.select(jax.random.key(1), state, again)[0]
        found.append(np.asarray(select_often(selector)(keys, state, mask)))
    for ids in found:
        assert np.all(np.asarray(mask)[ids])
        assert not np.isin(ids, busy).any()
    ours, theirs = (membership(ids, TASKS).sum(0) for ids in found)
    assert ours.sum() == theirs.sum() == runs * BATCH
    assert_same_rates(ours, theirs, runs)
    front = [membership(ids[:, : BATCH // 2], TASKS).sum(0) for ids in found]
    assert_same_rates(*front, runs)


def test_hardly_anyone_is_eligible() -> None:
    state = FEW.init(REFERENCE)
    for step, count in enumerate((0, 5, 40)):
        mask = np.zeros(TASKS, bool)
        mask[np.random.default_rng(step).choice(TASKS, count, replace=False)] = True
        _, selection = FEW.select(jax.random.key(step), state, mask)
        ids = np.asarray(selection.task_ids)[np.asarray(selection.valid)]
        assert len(ids) == len(set(ids.tolist())) == min(count, BATCH)
        assert np.all(mask[ids])


def test_two_programs_of_a_plain_call_choose_what_one_does() -> None:
    """Scores and the rest are compiled apart in a plain call, together within a user's `jit`."""
    assert FEW.init(REFERENCE).pool.slot_ids.shape[0] <= _QUICK_SLOTS
    state, mask, jitted = FEW.init(REFERENCE), jnp.arange(TASKS) % 3 > 0, jax.jit(FEW.select)
    for step in range(2):
        key = jax.random.key(step)
        (after, batch), (other, same) = FEW.select(key, state, mask), jitted(key, state, mask)
        np.testing.assert_array_equal(batch.task_ids, same.task_ids)
        chex.assert_trees_all_close(after, other, rtol=1e-5)
        rewards = np.eye(BATCH, ROLLOUTS, step)
        state, _ = FEW.update(after, batch.evidence(rewards))


def test_a_billion_tasks_by_groups() -> None:
    sizes = np.array([3 * 10**8, 1, 10**9 - 3 * 10**8 - 1])
    rates = np.array([[0.25, 0.5, 0.9], [0.5, 0.5, 1.0]], np.float32)
    selector = auto(batch_size=BATCH, rollouts=ROLLOUTS)
    state = selector.init(ReferenceGroups(rates, sizes))
    assert state.representation == "grouped"
    seen: list[int] = []
    for step in range(4):
        state, selection = selector.select(jax.random.key(step), state)
        assert np.all(selection.valid)
        seen += np.asarray(selection.task_ids).tolist()
        evidence = Evidence(selection.task_ids, np.full(BATCH, 4.0), ROLLOUTS, selection.visit)
        state, _ = selector.update(state, evidence)
    assert len(set(seen)) == 4 * BATCH
    assert 3 * 10**8 in seen[:BATCH]  # the only one of its group, which is the most mixed
    assert np.mean(np.array(seen) < 3 * 10**8) > 0.9


def test_every_task_is_visited_within_the_floor() -> None:
    tasks, batch, floor = 240, 10, 4
    selector = make("grouped", batch_size=batch, floor=floor, breadth=0.0)
    rng = np.random.default_rng(4)
    state = selector.init((rng.integers(0, 5, (2, tasks)) / 4).astype(np.float32))
    rates = np.where(np.arange(tasks) < tasks // 3, 0.5, 0.0)
    chosen = np.zeros((9 * tasks // batch, tasks), bool)
    for step in range(len(chosen)):
        state, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        solved = rng.binomial(ROLLOUTS, rates[ids]).astype(np.float32)
        state, _ = selector.update(state, Evidence(ids, solved, ROLLOUTS, selection.visit))
        chosen[step, ids] = True
    waits = [np.diff(np.flatnonzero(np.r_[True, seen, True])).max() for seen in chosen.T]
    assert max(waits) <= floor * tasks // batch + 1
    # Only that is spent on the hopeless: two thirds of the pool, each once in floor / 2 passes.
    late = chosen[len(chosen) // 2 :]
    assert late[:, tasks // 3 :].sum() <= 1.2 * late.sum() * 2 / floor


@pytest.mark.long
def test_every_task_is_tried_within_sixteen_passes() -> None:
    """By a sweep that begins after eight, whatever is thought of the task."""
    tasks, batch = 240, 10
    selector = make("grouped", batch_size=batch, breadth=0.0)
    rates = np.where(np.arange(tasks) < tasks // 3, 0.5, 0.0)
    state = selector.init(np.stack([rates, rates]).astype(np.float32))
    first = np.full(tasks, np.inf)
    for step in range(17 * tasks // batch):
        state, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        solved = (ROLLOUTS * rates[ids]).astype(np.float32)
        state, _ = selector.update(state, Evidence(ids, solved, ROLLOUTS, selection.visit))
        first[ids] = np.minimum(first[ids], step * batch / tasks)
    assert first.max() <= 16.1
    assert np.sum(first > 8) > tasks // 2  # not before


@pytest.mark.parametrize(
    ("passes", "gained"), [(0, 0), (7.9, 0), (8, 2.5), (15.9, 2.5), (16, 0), (24, 0), (25, 0.8)]
)
def test_the_sweep_gains_only_in_its_turns(passes: float, gained: float) -> None:
    """2 B / 16 a step from pass 8 to 16, of first visits, and 2 B / floor from floor / 2 on."""
    batch, tasks = 20, 2000
    clock, groups = jnp.int32(passes * tasks / batch), SimpleNamespace(num_tasks=tasks)
    for credit in (0.0, 3.25, 19.5):
        belief = SimpleNamespace(credit=jnp.float32(credit), slots=SimpleNamespace(clock=clock))
        found = sweep_credit(batch, 50.0, belief, groups)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(min(credit + gained, batch))


def test_a_new_start_leaves_only_the_last_step() -> None:
    """Of ten steps of nothing but failures, after one that refutes them (`test_auto.py`)."""
    rng, selector = np.random.default_rng(9), make("grouped", batch_size=24, slots=2048)
    state = selector.init(REFERENCE)
    for _ in range(10):
        ids = rng.choice(TASKS, 24, replace=False)
        state, _ = selector.update(state, Evidence(ids, np.zeros(24), ROLLOUTS))
    ids = rng.choice(TASKS, 24, replace=False)
    mended = Evidence(ids, np.round(ROLLOUTS * REFERENCE[0, ids]), ROLLOUTS)
    state, _ = selector.update(state, mended)
    assert state.belief.shared.num_resets == 1  # as of a dense state
    beginner, _ = selector.update(selector.init(REFERENCE), mended)
    np.testing.assert_allclose(
        selector.predict(state).mean, selector.predict(beginner).mean, rtol=1e-5
    )
    for _ in range(40):  # the slots of what was forgotten become free
        state, _ = selector.advance(state)
    assert int(state.pool.slots.active.sum()) <= 24
    same_tasks(state)


# --- slots ---------------------------------------------------------------------------------------


def test_grows_shrinks_and_survives_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    state, selection = FEW.select(jax.random.key(0), FEW.init(REFERENCE))
    state, _ = FEW.update(state, evidence_of(rng, 24))
    larger = enlarge(state)
    assert larger.pool.slot_ids.shape[0] == 2 * state.pool.slot_ids.shape[0]
    same_tasks(larger)
    for x in (state, larger):
        np.testing.assert_array_equal(FEW.predict(x).mean, FEW.predict(state).mean)
    checkpoint.save(tmp_path, 1, FEW, larger)
    restored = checkpoint.restore(tmp_path, FEW, FEW.init(REFERENCE), resized=True).state
    chex.assert_trees_all_equal(restored, larger)

    gone = np.asarray(selection.task_ids[:4])
    idle = np.arange(TASKS)  # tasks without a slot, as new ones are
    idle[np.asarray(state.pool.slot_ids)[np.asarray(state.pool.slots.active)]] = -1
    state = retire(state, gone)
    same_tasks(state)
    state, ids = add_tasks(state, REFERENCE[:, :3])
    np.testing.assert_array_equal(ids, [TASKS, TASKS + 1, TASKS + 2])
    alike = int(np.flatnonzero((REFERENCE[:, :1] == REFERENCE).all(axis=0) & (idle >= 0))[-1])
    np.testing.assert_array_equal(
        FEW.predict(state, ids[:1]).mean, FEW.predict(state, [alike]).mean
    )
    mask = np.zeros(TASKS + 3, bool)
    mask[[*gone, *np.asarray(ids)]] = True
    state, last = FEW.select(jax.random.key(1), state, mask)
    assert set(np.asarray(last.task_ids).tolist()) == {-1, *np.asarray(ids).tolist()}
    same_tasks(state)


def test_auto_takes_groups_where_they_are_cheaper() -> None:
    large = np.tile(REFERENCE, (1, 200))
    assert auto(batch_size=4).init(large).representation == "grouped"
    assert auto(batch_size=256).init(large).representation == "dense"
    for settings in ({"per_token": True}, {"choice": "mean"}, {"temperature": 0.1}):
        assert auto(batch_size=4, **settings).init(large).representation == "dense"
        with pytest.raises(ValueError, match="serves choice='mixed' without temperature"):
            auto(representation="grouped", **settings)
