"""Train Tunix's toy transformer on tasks that a selector chooses; as a process, to be killed.

    python toy_run.py FOLDER '{"steps": 4, "delay": 0, "kill": null, "agentic": false}'

FOLDER/lines.jsonl has a line a call of the reward function, FOLDER/result.npz the parameters
and the selector's state at the end. Run again on the same folder, it goes on.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from tunix.rl import rl_cluster as cluster_lib
from tunix.rl.agentic.agentic_grpo_learner import GRPOConfig as AgenticConfig
from tunix.rl.agentic.agentic_grpo_learner import GRPOLearner as AgenticLearner
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout
from tunix.sft import metrics_logger
from tunix.tests import test_common

from bots_jax import bots
from bots_jax.adapters.host import TaskSampler
from bots_jax.adapters.tunix import TunixTasks

TASKS, BATCH, GROUP, LENGTH = 24, 4, 4, 6
AGENTIC = {"max_response_length": LENGTH, "off_policy_steps": 1, "max_concurrency": 4}
WORDS = [word for word in test_common.MockVocab.DEFAULT_MAPPING if "<" not in word]


def make_cluster(folder: Path, steps: int, agentic: bool) -> Any:
    """One toy model on one device; a checkpoint after every update."""
    vocab = test_common.MockVocab()
    config = test_common.ModelConfig(num_layers=1, vocab_size=vocab.GetPieceSize())
    model, base = (test_common.ToyTransformer(config=config, rngs=nnx.Rngs(0)) for _ in range(2))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (cluster_lib.Role.ACTOR, cluster_lib.Role.REFERENCE, cluster_lib.Role.ROLLOUT)
    training = cluster_lib.RLTrainingConfig(
        actor_optimizer=optax.adam(1e-2),
        eval_every_n_steps=2,
        max_steps=steps,
        mini_batch_size=BATCH,
        train_micro_batch_size=BATCH // 2,
        checkpoint_root_directory=str(folder / "model"),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=1, max_to_keep=2, enable_async_checkpointing=False
        ),
        metrics_logging_options=metrics_logger.MetricsLoggerOptions(log_dir=str(folder / "log")),
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=LENGTH,
        max_prompt_length=4,
        kv_cache_size=16,
        temperature=1.0,
        return_logprobs=agentic,
    )
    return cluster_lib.RLCluster(
        actor=model,
        reference=base,
        tokenizer=vocab,
        cluster_config=cluster_lib.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=rollout,
        ),
    )


class Words:
    """A chat template for the toy vocabulary: what was said, without marks."""

    assistant_token = ""

    def parse(self, messages: Any, **options: Any) -> str:
        """One text of all messages; Tunix hands over a prompt as an array of one."""
        return " ".join(str(np.ravel(message["content"])[0]) for message in messages)


class Judge:
    """Whether the asked-for word was said; writes down every call, and kills after one."""

    def __init__(self, folder: Path, kill: int | None) -> None:
        self.file, self.kill, self.calls = folder / "lines.jsonl", kill, 0
        self.__name__ = "said"

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        rewards = [
            float(word in text) for word, text in zip(columns["word"], completions, strict=True)
        ]
        line = {"mode": columns["mode"], "rewards": rewards}
        if "task_id" in columns:
            line |= {name: np.asarray(columns[name]).tolist() for name in ("task_id", "visit")}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.calls += columns["mode"] == "train"
        return rewards

    def fall(self, **columns: Any) -> dict[str, Any]:
        """Given to Tunix as a function of metrics: called when rewards are in, before training."""
        if self.calls == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def main(folder: Path, steps: int, delay: int, kill: int | None, agentic: bool) -> None:
    """One run, from the folder's last checkpoint to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    words = np.array([WORDS[i % len(WORDS)] for i in range(TASKS)])
    columns = {"prompts": np.array([f"hello {word}" for word in words]), "word": words}
    reference = np.stack([np.full(TASKS, 0.1), np.linspace(0.2, 0.9, TASKS)])
    sampler = TaskSampler(
        bots(batch_size=BATCH, rollouts=GROUP), reference, seed=1,
        task_ids=[f"task-{i}" for i in range(TASKS)], delay=1 if agentic else None,
    )  # fmt: skip
    tasks = TunixTasks(sampler, columns, delay=delay, directory=folder / "bots")
    cluster = make_cluster(folder, steps, agentic)
    fields = {"num_generations": GROUP, "num_iterations": 1, "beta": 0.0}
    made, config = (
        (AgenticLearner, AgenticConfig(**fields, **AGENTIC)) if agentic
        else (GRPOLearner, GRPOConfig(**fields))
    )  # fmt: skip
    more = {"chat_parser": Words()} if agentic else {}
    judge = Judge(folder, kill)
    learner = made(
        rl_cluster=cluster,
        algo_config=config,
        reward_fns=[tasks.reward(judge)],
        metric_fns=[tasks.metrics, judge.fall],
        **more,
    )
    held_out = [{name: column[:2] for name, column in columns.items()}]
    learner.train(tasks.attach(learner), None if agentic else held_out)
    tasks.close()
    params = jax.tree.leaves(nnx.state(cluster.actor_trainer.model, nnx.Param))
    leaves = [np.asarray(leaf) for leaf in (*params, *jax.tree.leaves(sampler.state))]
    np.savez(folder / "result.npz", *leaves)


def documented(folder: Path, page: str) -> None:
    """The example of the page of the documentation, as it stands there."""
    folder.mkdir(parents=True, exist_ok=True)
    (code,) = re.findall(r"```python\n(.*?)```", Path(page).read_text("utf-8"), re.DOTALL)
    names = {"folder": folder, "cluster": make_cluster(folder, steps=2, agentic=False),
             "GRPOLearner": GRPOLearner, "GRPOConfig": GRPOConfig}  # fmt: skip
    exec(compile(code, page, "exec"), names)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if "page" in given:
        documented(Path(sys.argv[1]), given["page"])
    else:
        asked = {"steps": 4, "delay": 0, "kill": None, "agentic": False, **given}
        main(Path(sys.argv[1]), **asked)
