"""PyTorch's and torchdata's own loaders around a selector."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.pytorch import TaggedDataset, TaskIndex, TaskIndices
from tests.adapters.lives import ROOT, assert_a_kill_changes_nothing

B, M, N = 4, 8, 64


def make() -> TaskSampler:
    return TaskSampler(bots(batch_size=B, rollouts=M), num_tasks=N)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_bit_identically(tmp_path: Path, workers: int) -> None:
    """With worker processes, too, which draw two batches ahead."""
    script = Path(__file__).with_name("train.py")
    told = assert_a_kill_changes_nothing(script, tmp_path, workers, die_at=4)
    assert len({task for line in told for task in line["tasks"]}) > 8


def test_items_know_their_visit() -> None:
    sampler = make()
    names = [f"task-{row}" for row in range(N)]
    data = TaggedDataset([{"square": row * row} for row in range(N)], names)
    loader = DataLoader(data, batch_size=B, sampler=TaskIndices(sampler, num_batches=2))
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    out = sampler.in_flight()
    assert [name for batch in batches for name in batch["task_id"]] == [names[r] for r in out.rows]
    visits = torch.cat([batch["visit"] for batch in batches])
    np.testing.assert_array_equal(visits, out.visits)
    assert TaggedDataset(["text"] * 3)[2] == {"task_id": 2, "visit": -1, "item": "text"}
    index = TaskIndex(3)
    index.visit = 7
    assert pickle.loads(pickle.dumps(index)).visit == 7


def test_groups_and_rounds() -> None:
    """As trainers of groups want them: each index in a row, each batch several times."""
    indices = TaskIndices(make(), batch_size=2, repeats=3, rounds=2, num_batches=1)
    drawn = [int(index) for index in indices]
    assert len(drawn) == len(indices) == 12
    assert drawn[:6] == drawn[6:] == [drawn[0]] * 3 + [drawn[3]] * 3
    assert len(set(drawn)) == 2
    with pytest.raises(TypeError, match="endless"):
        len(TaskIndices(make()))


def test_epochs_go_on_where_they_were() -> None:
    def loader_of(sampler: TaskSampler) -> StatefulDataLoader:
        indices = TaskIndices(sampler, num_batches=5)
        return StatefulDataLoader(TaggedDataset(range(N)), batch_size=B, sampler=indices)

    sampler = make()
    loader = loader_of(sampler)
    seen = []
    for turn, batch in enumerate(loader):
        seen.append(batch["task_id"].tolist())
        if turn == 2:
            state = loader.state_dict()  # the third batch is not reported yet
        sampler.observe(batch["task_id"], torch.full((B,), 3.0), M, batch["visit"])
    other = make()
    resumed = loader_of(other)
    resumed.load_state_dict(state)
    again = []
    for batch in resumed:
        again.append(batch["task_id"].tolist())
        other.observe(batch["task_id"], torch.full((B,), 3.0), M, batch["visit"])
    assert again == seen[2:]


def test_the_sampler_is_loaded_first() -> None:
    trained = TaskIndices(make(), whole=False)
    next(iter(trained))
    with pytest.raises(ValueError, match=r"4 tasks had been handed out, the sampler .* 0: load"):
        TaskIndices(make(), whole=False).load_state_dict(trained.state_dict())


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/adapters/pytorch.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "pytorch.md", "exec"), names)
    assert names["sampler"].step >= 3
