"""What a user gave to a sampler and goes on to change, hides by a mask, or counts beyond floats."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from bots_jax import auto, bots
from bots_jax.adapters import TaskSampler

SELECTOR = bots(batch_size=4, rollouts=4)
RATES = np.random.default_rng(0).random((2, 12)).astype(np.float32)
NAMES = [f"task {row}" for row in range(12)]


def test_names_that_are_shuffled_later() -> None:
    """They were saved in the new order, beside the rows of the old."""
    names = list(NAMES)
    sampler = TaskSampler(SELECTOR, RATES, task_ids=names)
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, [4, 0, 4, 0], 4, batch.visits)
    sampler.advance()
    expected = sampler.predict(NAMES).mean
    names.reverse()
    saved = sampler.state_dict()
    fewer = TaskSampler(SELECTOR, RATES[:, :9], task_ids=NAMES[:9])
    for other, told in ((TaskSampler(SELECTOR, RATES, task_ids=NAMES), 12), (fewer, 9)):
        other.load_state_dict(saved)
        np.testing.assert_array_equal(other.predict(NAMES[:told]).mean, expected[:told])
    sampler.load_state_dict(saved)  # its own
    np.testing.assert_array_equal(sampler.predict(NAMES).mean, expected)


@pytest.mark.parametrize("what", ["reference", "reference_trials", "domains", "features"])
def test_arrays_that_are_filled_anew_later(what: str) -> None:
    """A run of other tasks is loaded into a sampler by making its first state once more."""
    given: dict[str, Any] = {
        "reference": RATES.copy(),
        "reference_trials": np.full((2, 12), 8.0),
        "domains": np.arange(12) % 2,
        "features": np.random.default_rng(1).normal(size=(12, 2)),
    }
    part = {name: x[..., :8] if name != "features" else x[:8] for name, x in given.items()}
    part = copy.deepcopy(part)
    selector = auto(batch_size=4, rollouts=4)
    sampler = TaskSampler(selector, **given, task_ids=NAMES)
    given[what][:] = 0
    saved = TaskSampler(selector, **part, task_ids=NAMES[:8]).state_dict()
    sampler.load_state_dict(saved)  # raised: the references of 8 of 8 tasks were others
    assert len(sampler.next_batch().rows) == 4


def test_names_that_can_be_read_once() -> None:
    sampler = TaskSampler(SELECTOR, task_ids=iter(NAMES))  # type: ignore[arg-type]
    sampler.load_state_dict(sampler.state_dict())
    assert set(sampler.next_batch(12).task_ids.tolist()) == set(NAMES)


def test_masks() -> None:
    """What they hide is not scored; of ids there is nothing to be made."""
    sampler = TaskSampler(SELECTOR, RATES)
    batch = sampler.next_batch()
    ids, visits = np.repeat(batch.task_ids, 4), np.repeat(batch.visits, 4)
    with pytest.raises(ValueError, match="task_ids"):
        sampler.observe(np.ma.array(ids, mask=ids == ids[0]), np.ones(16), 1, visits)
    assert sampler.metrics()["completed"] == 0
    sampler.observe(ids, np.ma.array(np.ones(16), mask=[1, 0, 0, 0] * 4), 1, visits)
    info = sampler.advance()
    assert (float(info.trials), float(info.in_flight)) == (12, 0)
    names = np.ma.array(NAMES[:2], mask=[1, 0])
    with pytest.raises(ValueError, match="a masked array of <U6 hides entries"):
        TaskSampler(SELECTOR, RATES, task_ids=NAMES).observe(names, [1, 1])


def test_more_trials_than_floats_count() -> None:
    """Rows that are sound came to more than that together: the step raised, and lost them all."""
    sampler = TaskSampler(SELECTOR, RATES)
    batch = sampler.next_batch()
    ids, visits = np.repeat(batch.task_ids, 4), np.repeat(batch.visits, 4)
    assert sampler.observe(ids, np.full(16, 2.0**22), 2.0**24, visits).all()
    info = sampler.advance()
    assert float(info.success_rate) == 0.25
    assert (float(info.trials), int(info.evaluated)) == (4 * 2**24, 4)
    assert len(sampler.in_flight().rows) == 0


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_what_cannot_be_copied_says_so(way: Any) -> None:
    with pytest.raises(TypeError, match="make one in each process and hand over state_dict"):
        way(TaskSampler(SELECTOR, RATES))
