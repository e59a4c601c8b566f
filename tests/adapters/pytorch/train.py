"""A torch model trained through torchdata's StatefulDataLoader, saved at every step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.adapters.pytorch import TaggedDataset, TaskIndices
from tests.adapters.lives import die, tell

TASKS, BATCH, ROLLOUTS, STEPS = 80, 4, 8, 8


class Features:
    """Item i of the data: what the model sees of task i."""

    def __init__(self) -> None:
        self.rows = np.random.default_rng(0).normal(size=(TASKS, 3)).astype(np.float32)

    def __len__(self) -> int:
        return TASKS

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"features": self.rows[row]}


def save(path: Path, values: dict) -> None:
    partial = path.with_suffix(".partial")
    torch.save(values, partial)
    os.replace(partial, path)


def main(folder: str, die_at: int, workers: int) -> None:
    """Train to the end, or die in the middle of step `die_at`."""
    path = Path(folder) / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    reference = np.stack([np.full(TASKS, 0.2), np.linspace(0.3, 1, TASKS)])
    sampler = TaskSampler(bots(batch_size=BATCH, rollouts=ROLLOUTS), reference, device="cpu")
    loader = StatefulDataLoader(
        TaggedDataset(Features()),
        batch_size=BATCH,
        sampler=TaskIndices(sampler, whole=not workers),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    model = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    first = 0
    if path.exists():
        found = torch.load(path)  # weights only: no objects
        first = found["step"]
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        if workers:
            flat = {name: tensor.numpy() for name, tensor in found["tasks"].items()}
            sampler.load_state_dict(unflatten(flat))
        loader.load_state_dict(found["loader"])
    step = first
    for batch in loader:
        torch.manual_seed(step)
        chance = torch.sigmoid(model(batch["features"]).squeeze(-1))
        successes = torch.binomial(torch.full((BATCH,), float(ROLLOUTS)), chance.detach())
        loss = -(successes * chance.log() + (ROLLOUTS - successes) * (1 - chance).log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for part in (slice(2), slice(2, None)):  # reported in two parts
            if step == die_at and part.start:
                die()
            sampler.observe(batch["task_id"][part], successes[part], ROLLOUTS, batch["visit"][part])
        step += 1
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if workers:
            flat = flatten(sampler.state_dict())
            state["tasks"] = {name: torch.from_numpy(array) for name, array in flat.items()}
        save(path, {**state, "loader": loader.state_dict()})
        tell(step=step - 1, tasks=batch["task_id"].tolist(), loss=loss.item())
        if step == STEPS:
            break


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
