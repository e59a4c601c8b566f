"""Going on from what was saved: the same run, or a refusal that changes nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import auto, bots, checkpoint
from bots_jax.adapters import TaskSampler
from bots_jax.checkpoint import CheckpointError
from bots_jax.pool.reference import ReferenceCounts

B, M, N = 4, 8, 48
RATES = np.random.default_rng(3).uniform(size=(2, N)).astype(np.float32)
SELECTOR = bots(batch_size=B, rollouts=M, quotas=(3, 1), exploration=0.25)


def make(**more: Any) -> TaskSampler:
    given = {"reference": RATES, "domains": np.arange(N) % 2, **more}
    return TaskSampler(given.pop("selector", SELECTOR), **given)


def told(sampler: TaskSampler) -> tuple[str, list[bytes]]:
    """All that a sampler is."""
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sampler.state)]
    return json.dumps(sampler.state_dict()["host"], sort_keys=True), leaves


def refused(sampler: TaskSampler, saved: dict[str, Any], message: str, **how: Any) -> None:
    before = told(sampler)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(saved, **how)
    assert told(sampler) == before
    sampler.next_batch()


# --- the same run --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 11), st.integers(0, 2**16))
@settings(deadline=None, max_examples=25)
def test_resumed_anywhere_it_is_the_same_run(moves: list[int], cut: int, seed: int) -> None:
    """Any calls, saved in between: both end alike, bookkeeping included."""

    def move(sampler: TaskSampler, what: int, rng: np.random.Generator) -> list[int]:
        if what == 0 or not len(sampler.in_flight().rows):
            if len(sampler.in_flight().rows) > N // 2:
                sampler.abandon(sampler.in_flight().task_ids)
            return list(sampler.next_batch(int(rng.integers(1, 7))).rows)
        out = sampler.in_flight()
        some = rng.random(len(out.rows)) < 0.7
        if what == 1:
            brought = rng.choice([0.0, 1.0, 0.5, np.nan], len(out.rows))[some]
            sampler.observe(out.task_ids[some], brought * M, M, out.visits[some])
        elif what == 2:
            piece = rng.integers(0, M)
            sampler.observe(out.task_ids, rng.random(len(out.rows)), 1, out.visits, pieces=piece)
        elif what == 3:
            sampler.abandon(out.task_ids[some], out.visits[some])
        else:
            sampler.advance()
        return []

    one, rng = make(seed=seed % 7), np.random.default_rng(seed)
    for what in moves[:cut]:
        move(one, what, rng)
    two = make(seed=99)
    saved = one.state_dict()
    two.load_state_dict({**saved, "host": json.loads(json.dumps(saved["host"]))}, in_flight="keep")
    assert told(one) == told(two)
    other = copy.deepcopy(rng)
    for what in [*moves[cut:], 0, 0]:
        assert move(one, what, rng) == move(two, what, other)
    assert told(one) == told(two)


# --- group sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["state_dict", "orbax"])
def test_another_group_size(tmp_path: Path, way: str) -> None:
    saved = make()
    saved.next_batch()
    saved.save(tmp_path)

    def load(sampler: TaskSampler, **how: Any) -> None:
        if way == "orbax":
            sampler.restore(tmp_path, **how)
        else:
            sampler.load_state_dict(saved.state_dict(), **how)

    larger = bots(batch_size=B, rollouts=16, quotas=(3, 1), exploration=0.25)
    before = told(unsure := make(selector=larger))
    with pytest.raises(CheckpointError, match=r"waits for rollouts=8 .* rollouts=16: make it"):
        load(unsure)
    assert told(unsure) == before
    on_purpose, all_given = make(rollouts=16), make(selector=larger)
    load(on_purpose, in_flight="abandon")
    load(all_given, in_flight="abandon", settings="given")
    for sampler in (on_purpose, all_given):
        assert float(sampler.state.settings.rollouts) == 16
        batch = sampler.next_batch()
        visits = np.repeat(batch.visits, 16)
        assert sampler.observe(np.repeat(batch.task_ids, 16), np.ones(64), 1, visits).all()
        assert float(sampler.advance().trials) == 64
    back = make(selector=larger, rollouts=M)
    load(back)
    assert float(back.state.settings.rollouts) == M


# --- another choice ------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [bots, auto])
def test_another_choice(factory: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is chosen by may change; what was believed, or only scheduled, stays."""

    def of(**more: Any) -> TaskSampler:
        given = {"choice": "thompson", "temperature": 0.5, **more}
        return TaskSampler(factory(batch_size=B, rollouts=M, **given), RATES)

    saved = of()
    batch = saved.next_batch()
    saved.observe(batch.task_ids, [8, 4, 0, 2], M, batch.visits)
    saved.advance()
    saved.set_settings(temperature=0.25)  # a schedule
    kept = saved.state_dict()
    for other in (of(target=0.75), of(target=0.75, choice="mean")):
        with caplog.at_level("INFO"):
            other.load_state_dict(kept)
        assert "'target': 0.75} in place of the saved {'target': 0.5" in caplog.text
        assert float(other.state.settings.target) == 0.75
        assert float(other.state.settings.temperature) == 0.25
        for ours, theirs in zip(other.predict(), saved.predict(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert len(other.next_batch().rows) == B
    back = of()  # as given at first: what was asked for last is what was saved
    back.load_state_dict(kept)
    assert told(back) == told(saved)
    old = {name: value for name, value in kept["host"].items() if name != "asked"}
    (before := of()).load_state_dict({**kept, "host": old})  # of an earlier version
    assert float(before.state.settings.temperature) == 0.25


# --- generators ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("second", ["threefry2x32", "rbg"])
def test_the_saved_generator_is_the_one_that_draws(first: str, second: str) -> None:
    with jax.default_prng_impl(first):
        saved = make()
    saved.next_batch()
    host = json.loads(json.dumps(saved.state_dict()["host"]))
    with jax.default_prng_impl(second):
        other = make()
    other.load_state_dict({**saved.state_dict(), "host": host}, in_flight="keep")
    np.testing.assert_array_equal(saved.next_batch().rows, other.next_batch().rows)


def test_an_unknown_generator_is_refused() -> None:
    saved = make().state_dict()
    for impl, key in (("dice", [0, 1]), ("rbg", [0, 1])):
        damaged = copy.deepcopy(saved)
        damaged["host"]["engine"].update(impl=impl, key=key)
        refused(make(), damaged, f"drew from the generator '{impl}'")


def test_keys_of_the_trainer(tmp_path: Path) -> None:
    state = make().state
    checkpoint.save(tmp_path, 1, SELECTOR, state, trainer={"key": jax.random.key(1, impl="rbg")})
    like = {"key": jax.random.key(0, impl="rbg")}
    found = checkpoint.restore(tmp_path, SELECTOR, state, trainer=like)
    assert str(jax.random.key_impl(found.trainer["key"])) == "rbg"
    for impl in ("threefry2x32", "unsafe_rbg"):
        like = {"key": jax.random.key(0, impl=impl)}
        with pytest.raises(CheckpointError, match=rf"generator 'rbg', expected '{impl}'"):
            checkpoint.restore(tmp_path, SELECTOR, state, trainer=like)


# --- another batch, more tasks -------------------------------------------------------------


@pytest.mark.parametrize("way", ["state_dict", "orbax"])
def test_batches_made_up_otherwise_and_room_for_more_tasks(tmp_path: Path, way: str) -> None:
    names = [f"task-{i}" for i in range(N)]
    saved = make(task_ids=names)
    for _ in range(3):
        batch = saved.next_batch()
        saved.observe(batch.task_ids, [8, 4, 0, 2], M, batch.visits)
    out = saved.next_batch(3)  # one is left over
    saved.save(tmp_path)
    other = make(
        task_ids=names, capacity=80, selector=bots(batch_size=6, rollouts=M, quotas=(2, 4))
    )
    if way == "orbax":
        other.restore(tmp_path, in_flight="keep")
    else:
        other.load_state_dict(saved.state_dict(), in_flight="keep")
    assert other.observe(out.task_ids, [1, 2, 3], M, out.visits).all()
    believed = saved.predict().mean
    np.testing.assert_allclose(other.predict(names).mean, believed[:N], rtol=1e-6)
    added = other.add_tasks([f"new-{i}" for i in range(20)], RATES[:, :20], domains=[0, 1] * 10)
    assert len(added) == 20
    other.next_batch(2)  # the one left over, and another
    other.advance()
    batch = other.next_batch()
    assert np.bincount(batch.rows % 2).tolist() == [2, 4]
    assert other.observe(batch.task_ids, [1] * 6, M, batch.visits).all()
    again = make(
        task_ids=names, capacity=80, selector=bots(batch_size=6, rollouts=M, quotas=(2, 4))
    )
    again.load_state_dict(other.state_dict(), in_flight="keep")
    assert told(again) == told(other)
    with pytest.raises(
        CheckpointError, match=r"has 68 rows, .* room for 48: .*capacity=68 or more"
    ):
        make(task_ids=names).load_state_dict(other.state_dict())
    advised = make(task_ids=names, capacity=68)
    advised.load_state_dict(other.state_dict(), in_flight="keep")
    for ours, theirs in zip(advised.predict(names), other.predict(names), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert advised.observe(added[:1], [1], M, unsolicited=True).all()


# --- other tasks ---------------------------------------------------------------------------


def test_another_data_set_of_the_same_size_is_refused(tmp_path: Path) -> None:
    saved = make(reference_trials=[8, 8])
    saved.next_batch()
    kept = saved.state_dict()
    swapped = RATES.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    unknown = RATES.copy()
    unknown[1, 7] = np.nan
    for rates in (1 - RATES, swapped, unknown, RATES + np.float32(1e-6) * (RATES < 0.5)):
        refused(make(reference=rates, reference_trials=[8, 8]), kept, "began with other references")
    refused(make(reference_trials=[8, 16]), kept, "other counts behind its references")
    refused(make(), kept, "other counts behind its references|belongs to another pool")
    moved = make(domains=(np.arange(N) + 1) % 2, reference_trials=[8, 8])
    refused(moved, kept, r"other domains \(domains=")
    same = make(reference=RATES.copy(), reference_trials=np.array([8, 8]))
    same.load_state_dict(kept)
    saved.save(tmp_path)
    before = told(other := make(reference=1 - RATES, reference_trials=[8, 8]))
    with pytest.raises(CheckpointError, match="began with other references"):
        other.restore(tmp_path)
    assert told(other) == before


def test_other_features_are_refused_and_rounding_is_not() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(200, 3))
    selector = auto(batch_size=B, rollouts=M)

    def of(columns: np.ndarray) -> TaskSampler:
        return TaskSampler(selector, num_tasks=200, features=columns)

    kept = of(columns).state_dict()
    of(columns * (1 + 1e-6 * rng.normal(size=columns.shape))).load_state_dict(kept)
    refused(of(columns[::-1]), kept, "began with other features")
    refused(of(columns + 0.1 * rng.normal(size=columns.shape)), kept, "began with other features")


def test_other_groups_are_refused() -> None:
    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(0, 9, (2, 3000), dtype=np.uint8), axis=0)
    selector = bots(batch_size=B, rollouts=M, representation="grouped")
    kept = TaskSampler(selector, ReferenceCounts(counts, 8)).state_dict()
    TaskSampler(selector, ReferenceCounts(counts.copy(), 8)).load_state_dict(kept)
    refused(TaskSampler(selector, ReferenceCounts(counts[:, ::-1], 8)), kept, "began with other")
    refused(TaskSampler(selector, ReferenceCounts(8 - counts, 8)), kept, "began with other")


# --- all or nothing ------------------------------------------------------------------------


def test_a_damaged_state_changes_nothing(tmp_path: Path) -> None:
    sampler = make()
    sampler.next_batch()
    saved = sampler.state_dict()
    for part in saved["host"].keys() - {"asked"}:  # which earlier versions did not save
        less = {name: value for name, value in saved["host"].items() if name != part}
        refused(make(), {**saved, "host": less}, "cannot be read|belongs to another pool")
        refused(
            make(), {**saved, "host": {**saved["host"], part: None}}, "cannot be read|another pool"
        )
    refused(make(), {**saved, "host": {**saved["host"], "asked": None}}, "cannot be read")
    old = {**saved, "version": 1}
    refused(make(), old, "has format version 1, this bots_jax reads 2: go on with the bots_jax")
    refused(make(), {**saved, "version": 99}, "version 99, .* upgrade")
    checkpoint.save(tmp_path, 1, SELECTOR, sampler.state)
    with pytest.raises(CheckpointError, match="holds a state, and no sampler"):
        make().restore(tmp_path)
