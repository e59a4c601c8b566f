"""Tunix's own learners, training its toy transformer on tasks that a selector chooses.

Each run is a process (`toy_run.py`), so that it can be killed. It needs the extra `tunix`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bots_jax import auto, bots
from bots_jax.adapters.host import TaskSampler
from bots_jax.adapters.tunix import TunixTasks
from bots_jax.checkpoint import CheckpointError, found

if importlib.util.find_spec("tunix") is None:
    pytest.skip("tunix is absent: pip install 'bots-jax[tunix]'", allow_module_level=True)

RUN = Path(__file__).with_name("toy_run.py")
STEPS, BATCH, GROUP = 4, 4, 4
CALLS = 2  # of the reward function in a batch: there are two micro-batches
KILLED = -9


def toy(folder: Path, **settings: Any) -> int:
    """Run the process: its exit status."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": os.pathsep.join([str(RUN.parents[3]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(RUN), str(folder), json.dumps({"steps": STEPS, **settings})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, KILLED), done.stderr[-3000:]
    return done.returncode


def lines(folder: Path, mode: str = "train") -> list[dict[str, Any]]:
    told = [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]
    return [line for line in told if line["mode"] == mode]


def batches(folder: Path) -> list[list[str]]:
    """Tasks of each batch that was rewarded."""
    told = [name for line in lines(folder) for name in line["task_id"][::GROUP]]
    return [told[i : i + BATCH] for i in range(0, len(told), BATCH)]


@pytest.fixture(scope="module", params=[0, 2], ids=["delay 0", "delay 2"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(delay, folder) of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert toy(folder, delay=request.param) == 0
    return request.param, folder


def test_it_is_select_update_select(whole: Any) -> None:
    """The batches are those of a sampler that is told the same, the delay later."""
    delay, folder = whole
    rewards = [line["rewards"] for line in lines(folder)]
    reference = np.stack([np.full(24, 0.1), np.linspace(0.2, 0.9, 24)])
    plain = TaskSampler(bots(batch_size=BATCH, rollouts=GROUP), reference, seed=1)
    ahead = [plain.next_batch() for _ in range(delay)]
    for step, told in enumerate(batches(folder)):
        ahead.append(plain.next_batch())
        batch = ahead.pop(0)
        assert told == [f"task-{i}" for i in batch.task_ids]
        given = np.reshape(rewards[step * CALLS : (step + 1) * CALLS], (BATCH, GROUP))
        plain.observe(batch.task_ids, given.sum(axis=1), GROUP, batch.visits)
    assert len(batches(folder)) == STEPS
    assert lines(folder, "eval"), "an evaluation was to take place, and to be ignored"


@pytest.mark.parametrize("call", [3, 6], ids=["within a batch", "before an update"])
def test_killed_and_resumed_it_ends_bit_for_bit(whole: Any, tmp_path: Path, call: int) -> None:
    delay, folder = whole
    assert toy(tmp_path, delay=delay, kill=call) == KILLED
    interrupted = len(lines(tmp_path))
    assert interrupted == call
    assert toy(tmp_path, delay=delay) == 0
    both = lines(tmp_path)
    # What was rewarded but not trained on is done again, and comes out the same.
    trained = (call - 1) // CALLS * CALLS
    assert both[:interrupted] == lines(folder)[:interrupted]
    assert both[interrupted:] == lines(folder)[trained:]
    with np.load(folder / "result.npz") as expected, np.load(tmp_path / "result.npz") as ours:
        assert expected.files == ours.files
        for name in expected.files:
            np.testing.assert_array_equal(expected[name], ours[name])


def test_metrics_are_in_the_log_of_tunix(whole: Any) -> None:
    _, folder = whole
    written = b"".join(path.read_bytes() for path in (folder / "log").rglob("events*"))
    assert b"bots/train/choice_entropy" in written


def test_agentic_learner_reads_ahead_and_resumes(tmp_path: Path) -> None:
    """Its rollouts run on threads of their own, so that only what is selected is looked at."""
    assert toy(tmp_path, agentic=True, kill=2 * BATCH + 1) == KILLED
    assert toy(tmp_path, agentic=True) == 0
    told = lines(tmp_path)
    assert all(len(set(line["task_id"])) == 1 and len(line["task_id"]) == GROUP for line in told)
    trained = STEPS * BATCH
    assert trained <= len(told) <= trained + 5 * BATCH
    assert found(tmp_path / "bots")[-1] >= STEPS


def test_the_page_of_the_documentation_runs(tmp_path: Path) -> None:
    page = RUN.parents[3] / "docs" / "adapters" / "tunix.md"
    assert toy(tmp_path, page=str(page)) == 0
    assert found(tmp_path / "bots") == [1, 2]


# --- without training ------------------------------------------------------------------------


def learner(updates: int = 0, mini: int | None = None, group: int = GROUP) -> Any:
    training = SimpleNamespace(mini_batch_size=mini, train_micro_batch_size=None)
    trainer = SimpleNamespace(train_steps=updates, iter_steps=updates)
    cluster = SimpleNamespace(
        cluster_config=SimpleNamespace(training_config=training), actor_trainer=trainer,
        global_steps=updates,
    )  # fmt: skip
    config = SimpleNamespace(num_generations=group, num_iterations=1)
    return SimpleNamespace(rl_cluster=cluster, algo_config=config)


def make(success: Any = None, directory: Path | None = None) -> TunixTasks:
    sampler = TaskSampler(bots(batch_size=BATCH, rollouts=GROUP), num_tasks=12)
    columns = {"prompts": np.array([str(i) for i in range(12)])}
    return TunixTasks(sampler, columns, success=success, directory=directory)


def halves(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [0.5] * len(prompts)


def call(tasks: TunixTasks, reward: Any, mode: str = "train") -> None:
    batch = {name: np.repeat(column, GROUP) for name, column in next(tasks).items()}
    prompts = batch.pop("prompts")
    reward(prompts=prompts, completions=prompts, mode=mode, **batch)


def test_evaluation_is_ignored_and_rewards_are_counted() -> None:
    tasks = make(success=lambda reward: 2 * reward)
    reward = tasks.reward(halves)
    tasks.attach(learner())
    call(tasks, reward, mode="eval")
    assert tasks.sampler.metrics()["completed"] == 0
    call(tasks, reward)
    tasks.sampler.advance()
    assert tasks.sampler.metrics()["success_rate"] == 1.0
    assert reward.__name__ == "halves"  # Tunix logs under it


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_generations=8"):
        make().attach(learner(group=8))
    with pytest.raises(ValueError, match=r"mini_batch_size=3"):
        make().attach(learner(mini=3))
    with pytest.raises(ValueError, match=r"directory=None"):
        make().attach(learner(updates=2))
    with pytest.raises(ValueError, match=r"middle of a batch"):
        make(directory=tmp_path).attach(learner(updates=3, mini=2))
    with pytest.raises(CheckpointError, match=r"no checkpoint of batch 2"):
        make(directory=tmp_path).attach(learner(updates=2))
    with pytest.raises(RuntimeError, match="attach"):
        next(make())
    wrong = make(success=lambda reward: 3.0)
    reward = wrong.reward(halves)
    wrong.attach(learner())
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        call(wrong, reward)
    sampler = make().sampler
    with pytest.raises(ValueError, match="prompts"):
        TunixTasks(sampler, {"answer": [1] * 12})
    with pytest.raises(ValueError, match="one value a task"):
        TunixTasks(sampler, {"prompts": ["a"] * 12, "image": np.zeros((12, 3))})


def test_prompts_are_found_where_there_are_no_references() -> None:
    columns = {"prompts": np.array([f"hello {i * i}" for i in range(12)])}
    selector = auto(batch_size=BATCH, rollouts=GROUP)
    told, plain = (TaskSampler(selector, num_tasks=12) for _ in range(2))
    tasks = TunixTasks(told, columns)
    TunixTasks(plain, columns, features=None)
    assert told.state.reference.embeddings.shape[0] == 32
    assert plain.prompts_wanted == 12
    tasks.attach(learner())
    call(tasks, tasks.reward(halves))
    assert told.metrics()["completed"] == BATCH
