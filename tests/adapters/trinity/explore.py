"""Trinity's own scheduler, reader and task formatter around the selector, saved every step.

What is missing of Trinity is what needs GPUs: workflows and the trainer. The rewards of a task
are a function of its index and the step.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from trinity.buffer.task_scheduler import get_taskset_scheduler
from trinity.common.config import DataSelectorConfig, TasksetConfig
from trinity.common.constants import SELECTOR_METRIC

from tests.adapters.lives import die, tell

TASKS, BATCH, STEPS = 40, 4, 7
OURS = "bots_jax.adapters.trinity.BotsSelector"
SETTINGS = {"m": 8, "lamb": 0.1, "rho": 0.1, "target_reward": 0.5, "tau": 0.1}


def pass_rates() -> np.ndarray:
    """f64[2, TASKS], weak and strong."""
    rng = np.random.default_rng(1)
    weak = rng.uniform(0, 0.5, TASKS)
    return np.stack([weak, np.clip(weak + rng.uniform(0.1, 0.5, TASKS), 0, 1)])


def write_tasks(folder: Path) -> None:
    """A taskset with columns of reference pass rates, as Trinity reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    weak, strong = pass_rates()
    rows = [
        {"question": f"{i} + 1 =", "answer": str(i + 1), "weak": weak[i], "strong": strong[i]}
        for i in range(TASKS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_scheduler(folder: Path, state: dict, kind: str = OURS, **settings: Any) -> Any:
    """Trinity's scheduler over one taskset, from its own configuration classes."""
    selector = DataSelectorConfig(
        selector_type=kind,
        feature_keys=["weak", "strong"],
        seed=3,
        kwargs={**SETTINGS, **settings},
    )
    taskset = TasksetConfig(
        name="sums",
        path=str(folder / "tasks"),
        default_workflow_type="math_workflow",
        data_selector=selector,
        batch_size=BATCH,
        total_steps=1000,
    )
    taskset.format.prompt_key, taskset.format.response_key = "question", "answer"
    explorer_input = SimpleNamespace(tasksets=[taskset])
    buffer = SimpleNamespace(
        batch_size=BATCH, total_steps=1000, total_epochs=1, explorer_input=explorer_input
    )
    return get_taskset_scheduler(state, SimpleNamespace(buffer=buffer))


def explore(scheduler: Any) -> list[int]:
    """Indices of the tasks of one step."""
    return [task.index["index"] for task in asyncio.run(scheduler.read())]


def reward(scheduler: Any, indices: list[int], step: int) -> None:
    """What Trinity's pipeline hands to the scheduler."""
    values = [((7 * index + 3 * step) % 9) / 8 for index in indices]
    scheduler.feedback({SELECTOR_METRIC: {0: {"indices": indices, "values": values}}})


def main(folder: Path, die_at: int) -> None:
    """Explore to the end, or die in the middle of step `die_at`."""
    write_tasks(folder / "tasks")
    path = folder / "explorer.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    scheduler = make_scheduler(folder, state, state_dir=str(folder / "side"))
    for step in range(state.get("latest_iteration", 0), STEPS):
        indices = explore(scheduler)
        if step == die_at:
            die()
        reward(scheduler, indices, step)
        state = {"latest_iteration": step + 1, "taskset_states": scheduler.state_dict()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=2))
        os.replace(partial, path)
        belief = scheduler.tasksets[0].reader.selector._sampler.predict()
        tell(step=step, tasks=indices, mean=belief.mean.tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
