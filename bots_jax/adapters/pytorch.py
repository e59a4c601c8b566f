"""PyTorch: a sampler of data set indices that a selector chooses.

In: a `TaskSampler` whose row i is item i of the data set. Out: a `torch.utils.data.Sampler`
for any DataLoader, with a state for torchdata's `StatefulDataLoader`.

    indices = TaskIndices(sampler)
    loader = StatefulDataLoader(TaggedDataset(data), batch_size=32, sampler=indices)
    for batch in loader:
        ...                                  # batch["task_id"], batch["visit"]
        sampler.observe(batch["task_id"], successes, trials, batch["visit"])

JAX beside torch: the selector needs no accelerator. Set JAX_PLATFORMS=cpu before JAX is first
imported and it takes no GPU memory; where JAX needs the GPU as well, `TaskSampler(device="cpu")`
keeps the selector off it, and XLA_PYTHON_CLIENT_PREALLOCATE=false keeps JAX from taking most of
the memory at once. The arrays that go in and out are NumPy's; CPU tensors may be passed as well.

Loaders with worker processes draw indices ahead, 2 batches a worker: evidence then reaches the
selector that many steps later. Their state holds the sampler as it was when it drew, before
evidence that has come since: with workers give `TaskIndices(whole=False)` and save
`sampler.state_dict()` beside the model, at the same time.

An iterator that is left before its end has perhaps drawn tasks that nobody trained on. When the
next one begins, those of its tasks that have brought nothing are handed out again, first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.adapters.host import TaskSampler
from bots_jax.adapters.prompts import TEXT, wants_text
from bots_jax.checks import check_count

Visit = tuple[int, int]  # a row and the number of its visit


class _Epoch:
    """How far an epoch is, in tasks.

    Args:
      position: tasks drawn, less those that are to be drawn again.
      before: visits that were out when it began, and not drawn in it.
      drawn: visits drawn in it, of those that are still out.
    """

    def __init__(
        self, position: int = 0, before: Iterable[Visit] = (), drawn: Iterable[Visit] = ()
    ):
        self.position, self.before, self.drawn = position, set(before), set(drawn)

    def draw(self, visits: list[Visit], out: set[Visit]) -> None:
        """Tasks were handed out; `out` are in flight now."""
        self.position += len(visits)
        self.before = (self.before & out) - set(visits)
        self.drawn = (self.drawn | set(visits)) & out


class TaskIndex(int):
    """An index of the data set, with the visit that it was drawn for."""

    visit: int = -1


class TaskIndices(Sampler):
    """Indices of the tasks to train on next.

    Args:
      sampler: hands out the tasks.
      batch_size: tasks asked for at a time [the selector's].
      repeats: times that each index comes in a row, such as the rollouts of a group.
      rounds: times that a batch comes, for trainers that make several steps with it.
      num_batches: of an epoch; None: an epoch never ends. Resumed after its last batch an epoch
        yields nothing more, as with torch's own samplers; the next iterator begins another.
      whole: whether `state_dict` holds the task sampler as well. False for loaders with
        workers: load the task sampler first, then the loader.
      prompts: column of the data set, texts or messages, such as `data["prompt"]`.
      features: "text": where the sampler knows nothing of its tasks, `features.text` is made of
        the prompts, and a log line says so; None: it is not. With `whole=False` give the prompts
        to the task sampler, which is loaded first.
    """

    def __init__(
        self,
        sampler: TaskSampler,
        *,
        batch_size: int | None = None,
        repeats: int = 1,
        rounds: int = 1,
        num_batches: int | None = None,
        whole: bool = True,
        prompts: Any = None,
        features: str | None = TEXT,
    ):
        self.sampler = sampler
        if wants_text(features) and prompts is not None:
            sampler.read_prompts(prompts)
        self.batch_size = sampler.batch_size
        if batch_size is not None:
            self.batch_size = check_count("batch_size", batch_size)
        self.repeats, self.rounds = check_count("repeats", repeats), check_count("rounds", rounds)
        self.num_batches = num_batches
        self.whole = whole
        self._epoch = _Epoch()
        self._resumed = False  # whether the next iterator goes on with the epoch

    def __iter__(self) -> Iterator[int]:
        if not self._resumed:
            self._begin()
        epoch, self._resumed = self._epoch, False
        while self.num_batches is None or epoch.position < self.num_batches * self.batch_size:
            batch = self.sampler.next_batch(self.batch_size)
            visits = list(zip(batch.rows.tolist(), batch.visits.tolist(), strict=True))
            epoch.draw(visits, self._in_flight())
            indices = []
            for row, visit in visits:
                index = TaskIndex(row)
                index.visit = visit
                indices.extend([index] * self.repeats)
            for _ in range(self.rounds):
                yield from indices
        if epoch is self._epoch:
            self._epoch = _Epoch()

    def _begin(self) -> None:
        """A new epoch; what an iterator that was left has drawn in vain comes first."""
        self.sampler.redeliver(self._epoch.drawn)
        self._epoch = _Epoch(before=self._in_flight())

    def _in_flight(self) -> set[Visit]:
        out = self.sampler.in_flight()
        return set(zip(out.rows.tolist(), out.visits.tolist(), strict=True))

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("an endless TaskIndices has no length: give num_batches")
        return self.num_batches * self.batch_size * self.repeats * self.rounds

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: safe for `torch.load` as it is."""
        epoch = self._epoch
        again = [visit for visit in self.sampler.waiting_again() if visit not in epoch.before]
        state: dict[str, Any] = {
            "position": epoch.position,
            "again": len(again),
            "before": sorted(map(list, epoch.before)),
            "handed_out": self.sampler.handed_out,
        }
        if self.whole:
            flat = flatten(self.sampler.state_dict())
            state["sampler"] = {name: torch.from_numpy(array) for name, array in flat.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume; tasks in flight are given out again, first and in the same order.

        Raises:
          ValueError: if the task sampler was to be loaded first, and was not.
        """
        if "sampler" in state:
            flat = {name: tensor.numpy() for name, tensor in state["sampler"].items()}
            self.sampler.load_state_dict(unflatten(flat))
        elif state["handed_out"] > self.sampler.handed_out:
            raise ValueError(
                f"the loader was saved when {state['handed_out']} tasks had been handed out, the "
                f"sampler has handed out {self.sampler.handed_out}: load the sampler first"
            )
        else:
            self.sampler.redeliver()
        # What the epoch had come to when the task sampler was saved, which is perhaps later, less
        # what is handed out again. Tasks that were out before the epoch began are no part of it.
        saved = [(int(row), int(number)) for row, number in state["before"]]
        before = set(self.sampler.placed(saved))
        out = self._in_flight() - before
        since = self.sampler.handed_out - int(state["handed_out"])
        begun = int(state["position"]) + int(state["again"]) + since
        self._epoch = _Epoch(max(0, begun - len(out)), before, out)
        self._resumed = True


class TaggedDataset(Dataset):
    """A map-style data set whose items carry `task_id` and `visit`; works in worker processes.

    Args:
      data: `data[i]` is a mapping, or anything else, which becomes "item".
      task_ids: the name of each item; None: its index.
    """

    def __init__(self, data: Any, task_ids: Sequence[Any] | None = None):
        self._data, self._task_ids = data, task_ids

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(index)
        name = row if self._task_ids is None else self._task_ids[row]
        tags = {"task_id": name, "visit": getattr(index, "visit", -1)}
        item = self._data[row]
        return {**tags, **item} if isinstance(item, Mapping) else {**tags, "item": item}


def mean_states(
    model: Any, tokenizer: Any = None, *, pad: int | None = None, max_length: int | None = None
) -> Callable[[Any], np.ndarray]:
    """Make the function that `features.hidden_states` takes, from a torch model.

    Args:
      model: called as Hugging Face's are, with `input_ids` and `attention_mask`, and without
        gradients; of a language model the part below its head, where it says which that is.
      tokenizer: from a list of strings to those two, as Hugging Face's; None: the prompts are
        token ids i[n, P].
      pad: token id that fills short rows, without a tokenizer; None: each counts.
      max_length: tokens read of a prompt, with a tokenizer; None for all.

    >>> read = mean_states(model, tokenizer)  # doctest: +SKIP
    >>> state = selector.init(features=features.hidden_states(read, prompts))  # doctest: +SKIP
    """

    def tokens(prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if tokenizer is None:
            ids = torch.as_tensor(np.asarray(prompts), dtype=torch.long)
            return ids, torch.ones_like(ids) if pad is None else (ids != pad).long()
        cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        found = tokenizer(list(prompts), return_tensors="pt", padding=True, **cut)
        return found["input_ids"], found["attention_mask"]

    def read(prompts: Any) -> np.ndarray:
        device = next(model.parameters()).device
        ids, real = (part.to(device) for part in tokens(prompts))
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                states = _last_states(model, ids, real).float()
                weights = real[..., None].float()
                means = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        finally:
            model.train(training)
        return means.cpu().numpy()

    return read


def _last_states(model: Any, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """f[n, P, D], without the logits where the model can be asked without."""
    body = getattr(model, "base_model", model)
    out = body(input_ids=ids, attention_mask=real)
    last = getattr(out, "last_hidden_state", None)
    if last is None:
        last = model(input_ids=ids, attention_mask=real, output_hidden_states=True).hidden_states[
            -1
        ]
    return last
