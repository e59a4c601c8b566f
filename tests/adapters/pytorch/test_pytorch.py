"""PyTorch's and torchdata's own loaders around a selector."""

from __future__ import annotations

import multiprocessing
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from bots_jax import auto, bots, features
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.pytorch import TaggedDataset, TaskIndex, TaskIndices, mean_states
from tests.adapters.lives import ROOT, assert_a_kill_changes_nothing

B, M, N = 4, 8, 64
# Not forked from this process, which has JAX's threads, but from one that has imported all.
WORKERS = multiprocessing.get_context("forkserver")
WORKERS.set_forkserver_preload(["bots_jax.adapters.pytorch"])


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


def _loader(sampler: TaskSampler, workers: int, batches: int | None = 6) -> StatefulDataLoader:
    return StatefulDataLoader(
        TaggedDataset(range(N)),
        batch_size=B,
        sampler=TaskIndices(sampler, num_batches=batches, whole=not workers),
        num_workers=workers,
        multiprocessing_context=WORKERS if workers else None,
    )


def _report(sampler: TaskSampler, batch: dict) -> None:
    sampler.observe(batch["task_id"], torch.full((B,), 3.0), M, batch["visit"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("twice", [False, True])
def test_an_epoch_is_as_long_wherever_it_is_resumed(workers: int, twice: bool) -> None:
    """After each of its batches, the last one too; saved once more before it goes on."""
    sampler = make()
    loader = _loader(sampler, workers)
    saved = []
    for batch in loader:
        _report(sampler, batch)
        saved.append((sampler.state_dict(), loader.state_dict()))
    for done, (tasks, state) in enumerate(saved, start=1):
        if workers and done % 2:
            continue  # processes take long to start
        other = make()
        resumed = _loader(other, workers)
        for _ in range(1 + twice):
            other.load_state_dict(tasks)
            resumed.load_state_dict(state)
            if twice and not workers:
                tasks, state = other.state_dict(), resumed.state_dict()
        lengths = []
        for _ in range(2):
            epoch = [_report(other, batch) for batch in resumed]
            lengths.append(len(epoch))
        assert lengths == [len(saved) - done, len(saved)]
        assert len(other.in_flight().rows) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_iterators_left_before_their_end_leak_nothing(workers: int) -> None:
    """The pool has 16 batches: so many loops that are left would have used it up."""
    sampler = make()
    loader = _loader(sampler, workers, None)
    turns = 6 if workers else 20
    for _ in range(turns):
        for turn, batch in enumerate(loader):
            _report(sampler, batch)
            if turn == 1:
                break
        next(iter(loader))
    ahead = 2 * workers + 1
    assert len(sampler.in_flight().rows) <= 2 * ahead * B
    epochs = TaskIndices(make(), num_batches=3, batch_size=2)
    next(iter(epochs))
    assert len(list(epochs)) == 6  # another epoch, not the rest of the one that was left


def test_what_was_reported_late_is_not_handed_out_again() -> None:
    sampler = make()
    indices = TaskIndices(sampler, num_batches=2)
    first = [(int(index), index.visit) for index in indices]  # all of it, reported later
    again = [(int(index), index.visit) for index in indices]
    assert not set(first) & set(again)
    broken = iter(indices)
    drawn = [next(broken) for _ in range(B)]
    sampler.observe([int(drawn[0])], [0], 1, [drawn[0].visit])  # a piece has come: it is trained on
    kept = {(int(index), index.visit) for index in drawn[1:]}
    third = [(int(index), index.visit) for index in indices]
    assert set(third[: B - 1]) == kept
    assert (int(drawn[0]), drawn[0].visit) not in third


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_tensors_of_any_precision_are_taken(dtype: torch.dtype) -> None:
    told = []
    for kind in (dtype, None):
        sampler = make()
        batch = sampler.next_batch()
        ids, visits = torch.tensor(batch.task_ids), torch.tensor(batch.visits)
        solved = torch.tensor([0.0, 3.0, 8.0, 1.0])
        if kind is not None:
            solved = solved.to(kind)
            solved.requires_grad_(kind.is_floating_point)
        trials = torch.full((B,), 8, dtype=kind)
        assert sampler.observe(ids, solved, trials, visits).all()
        told.append(float(sampler.advance().success_rate))
    assert told[0] == told[1] == 12 / 32
    sampler = make()
    batch = sampler.next_batch()
    rewards = [torch.tensor(0.5, dtype=torch.bfloat16)] * B
    assert sampler.observe([torch.tensor(int(row)) for row in batch.rows], rewards).all()


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
    # Six steps that end with an epoch: the second run begins after its last batch.
    exec(compile(code.replace("num_batches=100", "num_batches=3"), "pytorch.md", "exec"), names)
    assert names["sampler"].handed_out == 6 * 8
    assert names["sampler"].step == 5


def test_prompts_are_found_where_there_are_no_references() -> None:
    data = [{"prompt": f"what is {i} + {i * i}"} for i in range(N)]
    prompts = [item["prompt"] for item in data]
    selector = auto(batch_size=B, rollouts=M)
    told, plain = (TaskSampler(selector, num_tasks=N) for _ in range(2))
    indices = TaskIndices(told, num_batches=1, prompts=prompts)
    TaskIndices(plain, prompts=prompts, features=None)
    assert told.state.reference.embeddings.shape[0] == 32
    assert plain.prompts_wanted == N
    (batch,) = DataLoader(TaggedDataset(data), batch_size=B, sampler=indices)
    told.observe(batch["task_id"], np.ones(B), M, batch["visit"])
    assert told.metrics()["completed"] == B


@pytest.mark.parametrize("whole", [True, False])
def test_an_epoch_goes_on_with_the_data_in_another_order(whole: bool) -> None:
    """More data, and sorted otherwise: what is out is handed out again, the epoch is as long."""
    names = [f"task-{row}" for row in range(N + 8)]

    def of(listed: list[str]) -> tuple[TaskSampler, TaskIndices, StatefulDataLoader]:
        sampler = TaskSampler(
            bots(batch_size=B, rollouts=M), num_tasks=len(listed), task_ids=listed, capacity=N + 8
        )
        indices = TaskIndices(sampler, num_batches=3, whole=whole)
        data = TaggedDataset([{"name": name} for name in listed], listed)
        return sampler, indices, StatefulDataLoader(data, batch_size=B, sampler=indices)

    sampler, _, loader = of(names[:N])
    before = sampler.next_batch(2)  # out before the epoch begins, and no part of it
    turns = iter(loader)
    first = next(turns)
    sampler.observe(first["task_id"], torch.full((B,), 3.0), M, first["visit"])
    second = next(turns)  # not reported when the run ends
    states = loader.state_dict(), sampler.state_dict()
    other, indices, resumed = of(names[::-1])
    if not whole:
        other.load_state_dict(states[1])
    resumed.load_state_dict(states[0])
    left = []
    for batch in resumed:
        assert batch["task_id"] == batch["name"]
        left += batch["task_id"]
        other.observe(batch["task_id"], torch.full((B,), 3.0), M, batch["visit"])
    assert left[:2] == before.task_ids.tolist()
    assert left[2 : 2 + B] == second["task_id"]
    assert len(left) == 2 * B  # of three batches one was done
    assert len(list(indices)) == 3 * B


class Reader(torch.nn.Module):
    """Called as a language model of Hugging Face's is; its states are embeddings of tokens."""

    def __init__(self, with_body: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 7)
        self.dropout = torch.nn.Dropout(0.5)
        self.asked: list[tuple[int, ...]] = []
        if with_body:
            self.base_model = self.body

    def body(self, input_ids, attention_mask):
        self.asked.append(tuple(input_ids.shape))
        last = self.dropout(self.embedding(input_ids)).to(torch.bfloat16)
        return SimpleNamespace(last_hidden_state=last)

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        last = self.body(input_ids, attention_mask).last_hidden_state
        hidden = (last * 0, last) if output_hidden_states else None
        return SimpleNamespace(logits=None, hidden_states=hidden)


def tokenize(texts, return_tensors, padding, **cut):
    """One token a character, 0 to the right of short ones."""
    rows = [[1 + ord(c) % 10 for c in text][: cut.get("max_length")] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("with_body", [True, False])
def test_mean_states_of_a_model_are_means_over_real_tokens(with_body: bool) -> None:
    model = Reader(with_body).train()
    texts = ["abc", "q", "hello there"]
    found = mean_states(model, tokenize)(texts)
    table = model.embedding.weight.detach().to(torch.bfloat16).float().numpy()
    wanted = [table[[1 + ord(c) % 10 for c in text]].mean(axis=0) for text in texts]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.dtype == np.float32
    assert model.training  # as it was
    cut = mean_states(model, tokenize, max_length=1)(texts)
    np.testing.assert_allclose(cut, [table[1 + ord(text[0]) % 10] for text in texts], atol=1e-5)
    ids = np.array([[0, 2, 3], [4, 5, 6]])
    by_ids = mean_states(model, pad=0)(ids)
    np.testing.assert_allclose(by_ids[0], table[[2, 3]].mean(axis=0), atol=1e-5)


def test_hidden_states_of_a_model_are_features_of_a_pool() -> None:
    texts = [f"{i} + {i * 7 % 13} =" for i in range(40)]
    x = features.hidden_states(mean_states(Reader(True), tokenize), texts, chunk=16)
    assert x.shape == (40, 32)
    selector = auto(batch_size=B, rollouts=M)
    _, batch = selector.select(jax.random.key(0), selector.init(features=x))
    assert np.all(np.asarray(batch.task_ids) >= 0)
