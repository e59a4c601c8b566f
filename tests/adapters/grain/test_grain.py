"""Grain's own pipelines and checkpoints around a selector."""

from __future__ import annotations

import re
from pathlib import Path

import grain
import numpy as np
import pytest

from bots_jax import auto, bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.grain import TaskDataset
from tests.adapters.lives import ROOT, assert_a_kill_changes_nothing

B, M = 4, 8


def make(**more: object) -> TaskSampler:
    return TaskSampler(bots(batch_size=B, rollouts=M), num_tasks=64, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [0, 1])
def test_a_killed_run_goes_on_bit_identically(tmp_path: Path, delay: int) -> None:
    script = Path(__file__).with_name("train.py")
    told = assert_a_kill_changes_nothing(script, tmp_path, delay, die_at=4)
    chosen = [task for line in told for task in line["tasks"]]
    assert len(chosen) == 28


def test_elements_and_transformations() -> None:
    sampler = make()
    source = grain.MapDataset.range(64).map(lambda row: {"square": row * row})
    batch = next(iter(TaskDataset(sampler, source).batch(B)))
    np.testing.assert_array_equal(batch["square"], batch["task_id"] ** 2)
    np.testing.assert_array_equal(batch["visit"], sampler.in_flight().visits)
    alone = next(iter(TaskDataset(sampler)))
    assert set(alone) == {"task_id", "visit"}
    assert next(iter(TaskDataset(sampler, ["text"] * 64)))["record"] == "text"


def test_read_ahead_waits_for_evidence() -> None:
    """Buffers for 500 elements, and yet no task is taken before the evidence that it needs."""
    sampler = make(delay=0)
    batches = iter(
        grain.experimental.ThreadPrefetchIterDataset(
            TaskDataset(sampler).batch(B), prefetch_buffer_size=500
        )
    )
    for step in range(5):
        batch = next(batches)
        assert sampler.step == step
        assert sampler.handed_out == B * (step + 1)
        sampler.observe(batch["task_id"], [2.0] * B, M, batch["visit"])
    sampler.close()
    batches.close()  # the thread was waiting for evidence


def test_the_sampler_is_loaded_first() -> None:
    trained = make()
    batches = iter(TaskDataset(trained))
    first = [next(batches)["task_id"] for _ in range(3)]
    state = batches.get_state()
    with pytest.raises(ValueError, match=r"saved when 3 tasks .* handed out 0: load the sampler"):
        iter(TaskDataset(make())).set_state(state)
    sampler = make()
    sampler.load_state_dict(trained.state_dict())
    resumed = iter(TaskDataset(sampler))
    resumed.set_state(state)
    assert [next(resumed)["task_id"] for _ in range(3)] == first


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/adapters/grain.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "grain.md", "exec"), names)
    names["sampler"].close()
    assert names["sampler"].step >= 5
    assert names["manager"].latest_step() == 5


def test_prompts_are_found_where_there_are_no_references() -> None:
    source = [{"question": f"what is {i} + {i * i}"} for i in range(70)]
    selector = auto(batch_size=B, rollouts=M)
    told, plain = (TaskSampler(selector, num_tasks=64) for _ in range(2))
    batch = next(iter(TaskDataset(told, source).batch(B)))
    TaskDataset(plain, source, features=None)
    assert told.state.reference.embeddings.shape[0] == 32
    assert plain.prompts_wanted == 64
    told.observe(batch["task_id"], np.ones(B), M, batch["visit"])
    assert told.metrics()["completed"] == B
