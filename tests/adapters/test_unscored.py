"""What the adapters of trainers do with rollouts that were not scored: NaN and None."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.tunix import TunixTasks

GROUP = 4
NAN = float("nan")


SELECTOR = bots(batch_size=2, rollouts=GROUP)  # kept, or all is compiled anew for each sampler


def make() -> TaskSampler:
    return TaskSampler(SELECTOR, num_tasks=12)


def tunix(rewards: list[Any], success: Any) -> tuple[float, float]:
    """Trials and success rate of a batch of which each group has these rewards."""
    training = SimpleNamespace(mini_batch_size=None, train_micro_batch_size=None)
    learner = SimpleNamespace(
        rl_cluster=SimpleNamespace(
            cluster_config=SimpleNamespace(training_config=training),
            actor_trainer=SimpleNamespace(train_steps=0, iter_steps=0),
        ),
        algo_config=SimpleNamespace(num_generations=GROUP, num_iterations=1),
    )
    tasks = TunixTasks(make(), {"prompts": np.array([str(i) for i in range(12)])}, success=success)
    reward = tasks.reward(lambda prompts, completions, **columns: rewards * 2)
    batch = {name: np.repeat(column, GROUP) for name, column in next(tasks.attach(learner)).items()}
    prompts = batch.pop("prompts")
    assert reward(prompts=prompts, completions=prompts, mode="train", **batch) == rewards * 2
    return settled(tasks.sampler)


def settled(sampler: TaskSampler) -> tuple[float, float]:
    assert len(sampler.in_flight().rows) == 0  # every visit has ended
    info = sampler.advance()
    return float(info.trials) / 2, float(info.success_rate)


def reporting() -> Callable[..., Any]:
    """The function of the example for TRL, without the libraries that the example imports."""
    source = Path(__file__).parents[2] / "examples/trl_grpo.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "reporting"]
    future = "from __future__ import annotations"
    tree.body.insert(0, ast.parse(future).body[0])
    names: dict[str, Any] = {"np": np, "gather_object": lambda values: values}
    exec(compile(tree, str(source), "exec"), names)
    found: Callable[..., Any] = names["reporting"]
    return found


@pytest.mark.parametrize("success", [None, lambda reward: float(reward)])
def test_tunix(success: Any) -> None:
    for rewards in itertools.permutations([NAN, 1.0, 0.0, 0.5]):
        assert tunix(list(rewards), success) == (3, 0.5)
    assert tunix([1.0, None, 0.0, None], success) == (2, 0.5)
    assert tunix([None] * GROUP, success)[0] == 0
    for bad in (2.0, np.inf, -np.inf, -1.0):
        with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
            tunix([1.0, NAN, bad, 0.0], success)


def test_trl() -> None:
    for rewards in itertools.permutations([NAN, 2.0, 0.0, None]):
        sampler = make()
        ids = np.repeat(sampler.next_batch().task_ids, GROUP).tolist()
        told = reporting()(lambda r=rewards, **_: list(r) * 2, sampler)
        told(prompts=[""] * 8, completions=[""] * 8, task_id=ids)
        assert settled(sampler) == (2, 0.5)


def test_nothing_yet_is_not_lost() -> None:
    """0 of 0 of a slot that still runs leaves its visit open; NaN of 0 ends it."""
    sampler = make()
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, [0, NAN], 0, batch.visits)
    assert sampler.in_flight().rows.tolist() == [batch.rows[0]]
    assert sampler.observe(batch.task_ids, [2, 2], GROUP, batch.visits).tolist() == [True, False]
    assert float(sampler.advance().trials) == GROUP
