"""GRPO with TRL on tasks that BOTS selects.

    JAX_PLATFORMS=cpu accelerate launch examples/trl_grpo.py --model Qwen/Qwen2.5-0.5B-Instruct \
        --data tasks.jsonl --out runs/trl

`tasks.jsonl` has a line a task: {"prompt": ..., "answer": ..., "weak": 0.1, "strong": 0.6}, the
last two the pass rates of two reference models, where they are known. Where none are, features
are made of the prompts, unless `--features none`. What to take over into a
trainer of your own: `BotsGRPOTrainer`, `reporting` and `SaveSampler`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bots_jax import auto
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.adapters.pytorch import TaskIndices


class BotsGRPOTrainer(GRPOTrainer):
    """A GRPOTrainer whose batches are chosen by a `TaskSampler`; row i of it is row i of the data.

    Each process draws with the same seed and is told the same, so all draw the same indices.
    """

    def __init__(self, *args: Any, task_sampler: TaskSampler, **more: Any):
        self.task_sampler = task_sampler
        super().__init__(*args, **more)

    def _get_train_sampler(self, dataset: Any = None) -> TaskIndices:
        args = self.args
        tasks = args.generation_batch_size // self.num_generations
        return TaskIndices(
            self.task_sampler,
            batch_size=tasks,
            repeats=self.num_generations,
            rounds=self.num_iterations * args.steps_per_generation,
            num_batches=max(1, len(self.train_dataset) // tasks),
            whole=False,
        )

    def get_train_dataloader(self) -> Any:
        """With a generator of its own for the seed that PyTorch draws at the start of an epoch.

        On resume the trainer restores the global one first, which this draw would then move on.
        """
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()
        return loader

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """TRL's own numbers and the selection's."""
        told = self.task_sampler.metrics()
        super().log({**logs, **{f"bots/{name}": told[name] for name in told}}, *args, **more)


def reporting(reward: Callable[..., list[float]], sampler: TaskSampler) -> Callable[..., Any]:
    """A reward function that also reports: solved is a reward above 0, None or NaN not scored.

    Leave `task_id` out of the evaluation data, and evaluation reports nothing.
    """

    def rewarded(prompts: list, completions: list, **columns: Any) -> list[float]:
        rewards = reward(prompts=prompts, completions=completions, **columns)
        if "task_id" in columns:
            ids = gather_object(list(columns["task_id"]))  # of all processes, to each of them
            values = gather_object([float("nan" if v is None else v) for v in rewards])
            solved = np.where(np.isnan(values), np.nan, np.asarray(values) > 0)
            sampler.observe(ids, solved, trials=1)
        return rewards

    return rewarded


class SaveSampler(TrainerCallback):
    """Saves the sampler inside each checkpoint of the trainer."""

    def __init__(self, sampler: TaskSampler):
        self.sampler = sampler

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Beside the model that has just been written."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            arrays: dict[str, Any] = flatten(self.sampler.state_dict())
            np.savez(folder / "bots.npz", **arrays)


def load(sampler: TaskSampler, checkpoint: str | None) -> None:
    """What `SaveSampler` wrote; tasks that were drawn ahead are drawn again first."""
    if checkpoint:
        with np.load(Path(checkpoint) / "bots.npz") as flat:
            sampler.load_state_dict(unflatten(flat))


def right(completions: list, answer: list, **_: Any) -> list[float]:
    """1 where the answer stands in the completion; plain text or messages."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(str(a) in text) for text, a in zip(texts, answer, strict=True)]


def make_sampler(
    rows: list[dict[str, Any]],
    tasks: int,
    rollouts: int,
    seed: int,
    features: str | None = "text",
) -> TaskSampler:
    """A sampler of these rows, with their reference pass rates, or else told their prompts."""
    rates = np.array([[row.get(k, np.nan) for row in rows] for k in ("weak", "strong")], np.float32)
    return TaskSampler(
        auto(batch_size=tasks, rollouts=rollouts),
        None if np.isnan(rates).all() else rates,
        prompts=[row["prompt"] for row in rows],
        features=features,
        seed=seed,
        expiry=50,
        device="cpu",
    )


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default="runs/trl")
    parser.add_argument("--tasks", type=int, default=16, help="tasks of a batch")
    parser.add_argument("--rollouts", type=int, default=8, help="completions of a task")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--features", choices=("text", "none"), default="text")
    parser.add_argument("--resume", help="a checkpoint of an earlier run")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in Path(asked.data).read_text().splitlines()]
    data = Dataset.from_list([{**row, "task_id": i} for i, row in enumerate(rows)])
    features = None if asked.features == "none" else asked.features
    sampler = make_sampler(rows, asked.tasks, asked.rollouts, 0, features)
    load(sampler, asked.resume)
    trainer = BotsGRPOTrainer(
        asked.model,
        reward_funcs=reporting(right, sampler),
        args=GRPOConfig(
            output_dir=asked.out,
            num_generations=asked.rollouts,
            # One step a batch. With more, TRL keeps completions that a checkpoint does not hold.
            per_device_train_batch_size=asked.tasks * asked.rollouts,
            generation_batch_size=asked.tasks * asked.rollouts,
            max_steps=asked.steps,
            ignore_data_skip=True,  # the sampler knows by itself where it was
        ),
        train_dataset=data,
        callbacks=[SaveSampler(sampler)],
        task_sampler=sampler,
    )
    trainer.train(resume_from_checkpoint=asked.resume)


if __name__ == "__main__":
    main()
