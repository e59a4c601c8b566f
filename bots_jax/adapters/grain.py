"""Grain: a data set whose next element is a task that the selector chose.

In: a `TaskSampler` and the records of the tasks. Out: a `grain.IterDataset` of dictionaries,
one a task, with `task_id` and `visit` beside the record; batch, map and prefetch it like any
other, and report with `sampler.observe`.

A pipeline that reads ahead takes tasks before the evidence of earlier ones is in. Give the
sampler a `delay` (0 for a trainer that is up to date): then reading ahead waits for evidence,
however large the buffers are, and a run can be repeated.

The iterator's own state is small, and does not hold the sampler's: Grain takes it when an
element is made, which with read-ahead is before evidence that has come since. Save the sampler
beside the model (`flatten(sampler.state_dict())`), and load it before the iterator: what was in
the buffers is then handed out again, first and in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from bots_jax.adapters.host import ClosedError, TaskSampler
from bots_jax.adapters.prompts import TEXT, prompt_column, wants_text


class TaskDataset(grain.IterDataset):
    """A data set of selected tasks: {"task_id", "visit", **record}, or "record" if not a mapping.

    They end when the sampler is closed. Do that before an iterator that reads ahead is closed:
    its thread may be waiting for evidence, and would be waited for.

    Args:
      sampler: hands out the tasks; give it a `delay` if anything reads ahead.
      source: `source[row]` is the record of a task, such as a `grain.MapDataset` or a list;
        None for elements of task and visit alone.
      features: "text": where the sampler knows nothing of its tasks and its records have a
        prompt (`prompt`, `prompts`, `question` or `problem`), each record is read once,
        `features.text` is made of the prompts, and a log line says so; None: it is not.
    """

    def __init__(self, sampler: TaskSampler, source: Any = None, *, features: str | None = TEXT):
        super().__init__()
        if wants_text(features) and sampler.prompts_wanted and source is not None:
            column = prompt_column(source[0])
            if column is not None:
                rows = range(sampler.prompts_wanted)
                sampler.read_prompts([source[row][column] for row in rows])
        self._sampler, self._source = sampler, source

    def __iter__(self) -> TaskIterator:
        return TaskIterator(self._sampler, self._source)


class TaskIterator(grain.DatasetIterator):
    """The iterator of a `TaskDataset`; its state counts the elements given out."""

    def __init__(self, sampler: TaskSampler, source: Any):
        super().__init__()
        self._sampler, self._source = sampler, source

    def __next__(self) -> dict[str, Any]:
        try:
            batch = self._sampler.next_batch(1)
        except ClosedError:
            raise StopIteration from None
        tags = {"task_id": batch.task_ids[0], "visit": np.int32(batch.visits[0])}
        if self._source is None:
            return tags
        record = self._source[int(batch.rows[0])]
        return {**tags, **record} if isinstance(record, Mapping) else {**tags, "record": record}

    def get_state(self) -> dict[str, Any]:
        """The iterator's state as JSON values; cheap, because Grain asks at every element."""
        return {"handed_out": self._sampler.handed_out}

    def set_state(self, state: dict[str, Any]) -> None:
        """Give out again what was not reported; the sampler must be loaded first.

        Raises:
          ValueError: if the sampler is behind this iterator, so that it was not loaded.
        """
        if state["handed_out"] > self._sampler.handed_out:
            raise ValueError(
                f"the iterator was saved when {state['handed_out']} tasks had been handed out, "
                f"the sampler has handed out {self._sampler.handed_out}: load the sampler first, "
                "sampler.load_state_dict(unflatten(...)), then the iterator"
            )
        self._sampler.redeliver()

    def __str__(self) -> str:
        return f"TaskIterator(step={self._sampler.step})"
