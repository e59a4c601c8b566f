"""Samplers that are told prompts make features of them, unless told not to."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import bots_jax
from bots_jax import auto, features
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.prompts import as_texts, prompt_column

PROMPTS = [f"add {i} and {7 * i % 11}" if i % 2 else f"sort {i * i} {i}" for i in range(24)]
SELECTOR = auto(batch_size=4, rollouts=2)


def columns(sampler: TaskSampler) -> Any:
    """f[E, N] that the state holds; None without."""
    found = sampler.state.reference.embeddings if sampler.state.representation == "dense" else None
    return None if found is None else np.asarray(found)[:, : len(PROMPTS)]


def test_text_features_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="bots_jax")
    told = TaskSampler(SELECTOR, prompts=PROMPTS)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "features: 32 numbers made of 24 prompts; features=None turns this off"
    by_hand = TaskSampler(SELECTOR, features=features.text(PROMPTS))
    np.testing.assert_allclose(columns(told), columns(by_hand), atol=1e-6)
    assert len(set(told.next_batch().rows.tolist())) == 4
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    np.testing.assert_array_equal(columns(TaskSampler(SELECTOR, prompts=messages)), columns(told))


def test_not_where_told_not_to_or_known_otherwise() -> None:
    rates = np.full((1, 24), 0.5, np.float32)
    numbers = np.arange(24.0)
    assert columns(TaskSampler(SELECTOR, prompts=PROMPTS, features=None)) is None
    assert columns(TaskSampler(SELECTOR, rates, prompts=PROMPTS)) is None
    given = TaskSampler(SELECTOR, prompts=PROMPTS, features=numbers)
    assert columns(given).shape == (1, 24)
    without = TaskSampler(bots_jax.bots(batch_size=4, rollouts=2), prompts=PROMPTS)
    assert columns(without) is None
    with pytest.raises(ValueError, match="features='words': give 'text'"):
        TaskSampler(SELECTOR, prompts=PROMPTS, features="words")


def test_prompts_read_before_it_begins_and_not_later() -> None:
    sampler = TaskSampler(SELECTOR, num_tasks=24, capacity=30)
    sampler.set_settings(breadth=0.4)
    with pytest.raises(ValueError, match="23 prompts for 24 tasks"):
        sampler.read_prompts(PROMPTS[1:])
    assert sampler.read_prompts(PROMPTS)
    assert float(sampler.state.settings.breadth) == pytest.approx(0.4)
    assert not sampler.read_prompts(PROMPTS)
    np.testing.assert_array_equal(columns(sampler), columns(TaskSampler(SELECTOR, prompts=PROMPTS)))
    begun = TaskSampler(SELECTOR, num_tasks=24)
    begun.next_batch()
    assert not begun.read_prompts(PROMPTS)
    assert not TaskSampler(SELECTOR, num_tasks=24, features=None).read_prompts(PROMPTS)


def test_later_prompts_on_the_same_components() -> None:
    sampler = TaskSampler(SELECTOR, prompts=PROMPTS, capacity=30)
    (new, other) = sampler.add_tasks(prompts=[PROMPTS[3], "what is this"])
    held = np.asarray(sampler.state.reference.embeddings)
    np.testing.assert_allclose(held[:, new], held[:, 3], atol=1e-6)
    assert np.abs(held[:, other] - held[:, 3]).max() > 0.1
    with pytest.raises(ValueError, match="must be strings"):
        sampler.add_tasks(prompts=np.ones((2, 3), np.int32))
    with pytest.raises(ValueError, match="features has 1 rows, expected one for 2 tasks"):
        sampler.add_tasks(num_tasks=2, prompts=PROMPTS[:1])
    with pytest.raises(ValueError, match="both given"):
        sampler.add_tasks(prompts=PROMPTS[:1], features=np.zeros((1, 32)))


def test_prompts_that_would_be_ignored_are_refused() -> None:
    """Whatever the reason why no features were made of the first ones' prompts."""
    rates = np.full((2, 24), 0.5, np.float32)
    without = bots_jax.bots(batch_size=4, rollouts=2)
    for selector, told in (
        (SELECTOR, {"prompts": PROMPTS, "reference": rates}),
        (SELECTOR, {"prompts": PROMPTS, "features": None}),
        (SELECTOR, {"prompts": PROMPTS, "features": np.arange(24.0)}),
        (SELECTOR, {"num_tasks": 24}),
        (without, {"prompts": PROMPTS}),
    ):
        sampler = TaskSampler(selector, capacity=30, **told)
        before = sampler.state.pool.active.sum()
        with pytest.raises(ValueError, match=r"prompts were given, and .* made no features of"):
            sampler.add_tasks(prompts=PROMPTS[:1])
        assert sampler.state.pool.active.sum() == before
    with pytest.raises(ValueError, match="prompts has 23 entries, the pool 24 tasks"):
        TaskSampler(SELECTOR, rates, prompts=PROMPTS[1:])


def test_what_a_pool_was_made_without_is_refused() -> None:
    rates = np.full((2, 24), 0.5, np.float32)
    new = {"reference": rates[:, :1], "reference_trials": [8, 8], "domains": [0],
           "features": np.zeros((1, 3)), "prompts": PROMPTS[:1]}  # fmt: skip
    pools = {
        "reference": {"num_tasks": 24},
        "reference_trials": {"reference": rates},
        "domains": {"reference": rates},
        "features": {"reference": rates},
        "prompts": {"reference": rates},
    }
    for name, made in pools.items():
        sampler = TaskSampler(SELECTOR, **made, capacity=30)
        more = {"reference": rates[:, :1]} if "reference" in made else {}
        if name != "reference":
            more["num_tasks"] = 1
        with pytest.raises(ValueError, match=rf"{name}.*(pool|sampler) (was|has|made)"):
            sampler.add_tasks(**{**more, name: new[name]})
    sampler = TaskSampler(SELECTOR, rates, reference_trials=[8, 8], capacity=30)
    with pytest.raises(ValueError, match="reference_trials was given without reference"):
        sampler.add_tasks(num_tasks=1, reference_trials=[8, 8])
    with pytest.raises(ValueError, match=r"reference is a ReferenceCounts: .* pass rates f.2, A"):
        sampler.add_tasks(reference=bots_jax.pool.reference.ReferenceCounts(np.ones((2, 1)), 8))


def test_a_restored_sampler_has_them() -> None:
    first = TaskSampler(SELECTOR, prompts=PROMPTS)
    batch = first.next_batch()
    first.observe(batch.task_ids, np.ones(4), 2, batch.visits)
    saved = first.state_dict()
    second = TaskSampler(SELECTOR, prompts=PROMPTS)
    second.load_state_dict(saved)
    np.testing.assert_array_equal(second.next_batch().rows, first.next_batch().rows)
    with pytest.raises(bots_jax.checkpoint.CheckpointError, match="features=None goes with a run"):
        TaskSampler(SELECTOR, num_tasks=24).load_state_dict(saved)


def test_the_column_that_holds_the_prompt() -> None:
    assert prompt_column({"answer": "4", "prompt": "2 + 2 ="}) == "prompt"
    assert prompt_column({"problem": [{"role": "user", "content": "x"}]}) == "problem"
    assert prompt_column({"prompt": 3.0}) is None
    assert prompt_column(("prompt",)) is None


def test_messages_in_parts() -> None:
    """An image in a message became text, as Python shows it."""
    image = {"type": "image", "image": "iVBORw0KGgo="}
    parts = [{"type": "text", "text": "count"}, image, {"type": "text", "text": "the dots"}]
    chats = [
        [{"role": "system", "content": None}, {"role": "user", "content": parts}],
        [{"role": "user", "content": "count\nthe dots"}, {"role": "tool"}],
    ]
    assert as_texts(chats) == ["\ncount\nthe dots", "count\nthe dots\n"]


def test_token_ids_of_several_lengths_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"prompts are rows of several lengths: .*pad=\.\.\."):
        TaskSampler(auto(batch_size=4), prompts=[[1, 2], [3], [4, 5, 6], [7]])
