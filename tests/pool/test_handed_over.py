"""What users hand over: numbers of any width, with holes, in buffers that they fill anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, auto, bots
from bots_jax.checks import host_numbers, whole_numbers
from bots_jax.levels import no_running, record
from bots_jax.pool.graded import evidence_of_rewards

SELECTORS = {
    "dense": bots(batch_size=4, rollouts=4, representation="dense"),
    "grouped": bots(batch_size=4, rollouts=4, representation="grouped"),
    "auto": auto(batch_size=4, rollouts=4),
}
RATES = np.tile([[0.25], [0.75]], 64).astype(np.float32)


def begun(name: str = "dense") -> tuple[Selector, State, Any]:
    selector = SELECTORS[name]
    return selector, *selector.select(jax.random.key(0), selector.init(RATES))


WIDTHS = [np.bool_, np.int8, np.uint8, np.int64, np.float16, np.float32, np.float64]
NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]


@pytest.mark.parametrize("dtype", [*WIDTHS, *NARROW])
@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_rewards_of_any_width(dtype: Any, of: Any) -> None:
    """Of 600 rollouts: of 16 bits, failures alone came to 0 / 0, and 257 was 256."""
    solved = np.array([0, 1, 257, 600])
    for rows in (solved, solved[:1], solved[3:]):  # of one row, a batch that is all alike
        rewards = (np.arange(600) < rows[:, None]).astype(dtype)
        told = evidence_of_rewards(np.arange(len(rows)), of(rewards))
        np.testing.assert_allclose(told.trials, 600, rtol=1e-5)
        np.testing.assert_allclose(told.successes, rows, rtol=1e-5)
        assert jnp.asarray(told.trials).dtype == jnp.float32


ENDS = [(0, 1), (1e9, 1e9 + 1), (0, 1e-42), (0, 1e39), (-3e38, 3e38), (-1e-30, 1e-30), (-5, 15)]


@pytest.mark.parametrize("ends", ENDS)
def test_rewards_of_any_scale(ends: tuple[float, float]) -> None:
    low, high = ends
    rewards = np.array([[low, high, high, high], [low, low, low, np.nan]])
    told = evidence_of_rewards([0, 1], rewards, low, high)
    np.testing.assert_allclose(told.trials, [4, 3], rtol=1e-5)
    np.testing.assert_allclose(told.successes, [3, 0], rtol=1e-5)
    if ends in ENDS[-2:] + ENDS[:1]:
        again = evidence_of_rewards([0, 1], jnp.asarray(rewards), low, high)
        np.testing.assert_allclose(again.successes, told.successes, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"cannot be told apart, or are too far|is outside"):
            evidence_of_rewards([0, 1], jnp.asarray(rewards), low, high)


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (np.nan, 1), (-np.inf, 0), (-1.7e308, 1.7e308)])
def test_scales_without_a_length(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"low=.* must be below high=.*, and both finite"):
        evidence_of_rewards([0], np.zeros((1, 4)), *ends)


def test_holes() -> None:
    """None and a mask are NaN, in rewards and in rows."""
    selector, state, batch = begun()
    hidden = np.ma.array([[0, 1, 1, 1]] * 4, mask=[[0, 0, 0, 1]] * 4)
    for rewards in ([[0, 1, 1, None]] * 4, hidden, np.array([[0, 1, 1, np.nan]] * 4)):
        info = selector.update(state, batch.evidence(rewards))[1]
        assert float(info.trials) == 12
        assert float(info.success_rate) == pytest.approx(2 / 3)
    ids = np.asarray(batch.task_ids)
    for successes in ([4.0, 1, 3, None], np.ma.array([4.0, 1, 3, 4], mask=[0, 0, 0, 1])):
        after, info = selector.update(state, Evidence(ids, successes, 4.0))
        assert (float(info.trials), int(info.invalid), int(after.in_flight)) == (12, 1, 0)
    none_hidden = np.ma.array([4.0, 1, 3, 4], mask=False)
    assert float(selector.update(state, Evidence(ids, none_hidden, 4.0))[1].trials) == 16


@pytest.mark.parametrize("name", SELECTORS)
def test_an_unscored_group_ends_its_visit_with_or_without_its_number(name: str) -> None:
    """Without one its task stayed in flight for ever."""
    selector, state, batch = begun(name)
    none = np.full(4, np.nan)
    for trials in (4.0, 0.0):  # that many were not scored; nothing will come
        for visit in (None, batch.visit):
            after, info = selector.update(state, Evidence(batch.task_ids, none, trials, visit))
            assert (int(after.in_flight), float(info.trials), int(info.invalid)) == (0, 0, 4)
    part = selector.observe(state, Evidence(batch.task_ids, none, 3.0))
    assert int(part.in_flight) == 4
    assert int(selector.observe(part, Evidence(batch.task_ids, none, 1.0)).in_flight) == 0


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[1, 0, 1], [1, 0], [1], []], "rewards is no array of numbers: .*Give rows of one length"),
        ([["1"] * 4] * 4, "rewards has dtype <U1, expected numbers"),
        (np.ones((4, 4), complex), "rewards has dtype complex128, expected numbers"),
    ],
)
def test_no_numbers(rewards: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begun()[2].evidence(rewards)


def test_empty_lists() -> None:
    for name, selector in SELECTORS.items():
        info = selector.update(begun(name)[1], Evidence([], [], 4))[1]
        assert int(info.evaluated) == int(info.invalid) == 0


FAR = [2**32, 2**32 + 1, -(2**32), 2**31, 2**63 - 1]


@pytest.mark.parametrize("far", FAR)
def test_visits_are_not_narrowed(far: int) -> None:
    """2**32 was visit 0."""
    for name in SELECTORS:
        selector, state, batch = begun(name)
        for visit in (np.full(4, far), [far] * 4, far):
            evidence = Evidence(batch.task_ids, [1.0] * 4, 4.0, visit)
            with pytest.raises(ValueError, match=rf"evidence\.visit contains {far}, expected"):
                selector.update(state, evidence)
        for visit in ([0.7] * 4, [np.nan] * 4):
            with pytest.raises(ValueError, match=r"evidence\.visit has dtype float64"):
                selector.update(state, Evidence(batch.task_ids, [1.0] * 4, 4.0, visit))


def test_what_is_on_a_device_is_not_narrowed() -> None:
    """The last of 32 bits without a sign was -1: unnumbered, or padding."""
    for name in SELECTORS:
        selector, state, batch = begun(name)
        ids = jnp.asarray(batch.task_ids)

        last, update = jnp.full(4, 2**32 - 1, jnp.uint32), jax.jit(selector.update)
        for told, visit, expected in (
            (ids, jnp.zeros(4, jnp.uint32), (16, 0, 0)),
            (ids, last, (0, 4, 0)),
            (last, None, (0, 0, 4)),
        ):
            info = update(state, Evidence(told, jnp.ones(4), 4.0, visit))[1]
            assert (float(info.trials), int(info.stale), int(info.invalid)) == expected
    with jax.enable_x64(True):
        for far in FAR:
            wide = jnp.array([5, far])
            assert whole_numbers("ids", wide, beyond=-2).tolist() == [5, -2]
            assert jax.jit(lambda x: whole_numbers("ids", x, -2))(wide).tolist() == [5, -2]


def test_nothing_is_a_view_of_what_was_given() -> None:
    for given in (np.arange(4), np.arange(4.0), np.ma.array(np.arange(4.0), mask=False)):
        assert not np.shares_memory(host_numbers("x", given), given)
    given = np.arange(4.0)
    assert host_numbers("x", given, copy=False) is given


def test_evidence_holds_no_buffer_of_the_user() -> None:
    """It may be kept until other rewards are in; the buffers by then are of other tasks."""
    ids, visit, tokens = np.arange(4), np.arange(4, dtype=np.int32), np.arange(4.0)
    dones, slots = np.ones((1, 4), bool), no_running(4)
    for told in (
        evidence_of_rewards(ids, np.ones((4, 2)), visit=visit, tokens=tokens),
        begun()[2].evidence(np.ones((4, 4)), tokens=tokens),
        record(slots, dones, dones, ids, visit)[1],
    ):
        for column in told:
            assert not any(np.shares_memory(column, x) for x in (ids, visit, tokens))


def test_a_mask_may_be_filled_anew_at_once() -> None:
    """JAX reads NumPy arrays while it computes, after the call has returned."""
    tasks = 320_000
    rates = np.tile(RATES, tasks // 64)
    for name in ("dense", "grouped"):
        selector = SELECTORS[name]
        state = selector.init(rates)
        mask = np.zeros(tasks, bool)
        for step in range(20):
            mask[:] = np.arange(tasks) % 20 == step
            state, batch = selector.select(jax.random.key(step), state, mask)
            mask[:] = ~mask
            assert np.all(np.asarray(batch.task_ids) % 20 == step)


@pytest.mark.parametrize("shape", [(3,), (4, 4), (5,)])
def test_tokens_of_another_shape(shape: tuple[int, ...]) -> None:
    """Of each rollout, say; whatever the selector makes of them."""
    for selector in (SELECTORS["dense"], auto(batch_size=4, rollouts=4, per_token=True)):
        state, batch = selector.select(jax.random.key(0), selector.init(RATES))
        for tokens in (np.ones(shape), jnp.ones(shape)):
            evidence = batch.evidence(np.ones((4, 4)), tokens=tokens)
            with pytest.raises(ValueError, match=r"evidence\.tokens has shape .*, expected \(4,\)"):
                selector.update(state, evidence)
        hidden = np.ma.array(np.full(4, 9.0), mask=[1, 0, 0, 0])
        after, _ = selector.update(state, batch.evidence(np.ones((4, 4)), tokens=hidden))
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(after))
