"""GRPO with Tunix on a Llama checkpoint over a mesh, on tasks that BOTS selects.

    python examples/tunix_grpo.py --model DIR --tasks tasks.jsonl --out runs/tunix --mesh 4,2

DIR holds a Hugging Face checkpoint of the Llama family: config.json, *.safetensors and the
tokenizer. For Qwen, take `tunix.models.qwen2` or `qwen3` in `load_model`: the rest stays.
tasks.jsonl has a line a task: prompt, answer and, if you have them, id and reference (pass
rates of a weaker and a stronger model). Run again with the same --out, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.metrics_logger import MetricsLoggerOptions

from bots_jax import auto
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.tunix import TunixTasks
from bots_jax.evaluate.task_files import read_tasks


def correct(prompts: Any, completions: Any, answer: Any, **others: Any) -> list[float]:
    """1 where the last word of a completion is the answer. Put your own judge here."""
    return [
        float(text.strip().rstrip(".").endswith(str(wanted)))
        for text, wanted in zip(completions, answer, strict=True)
    ]


def load_model(folder: Path, mesh: Mesh) -> llama.Llama3:
    """The checkpoint, sharded over the mesh."""
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = given["num_attention_heads"]
    rotation = given.get("rope_parameters") or given
    config = llama.ModelConfig(
        num_layers=given["num_hidden_layers"],
        vocab_size=given["vocab_size"],
        embed_dim=given["hidden_size"],
        hidden_dim=given["intermediate_size"],
        num_heads=heads,
        head_dim=given.get("head_dim") or given["hidden_size"] // heads,
        num_kv_heads=given["num_key_value_heads"],
        rope_theta=rotation["rope_theta"],
        norm_eps=given["rms_norm_eps"],
        weight_tying=given["tie_word_embeddings"],
    )
    return llama_params.create_model_from_safe_tensors(str(folder), config, mesh)


def make_cluster(args: argparse.Namespace, mesh: Mesh, tokenizer: Any) -> RLCluster:
    """Training and rollouts on one mesh."""
    training = RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(args.learning_rate)
        ),
        eval_every_n_steps=max(args.steps, 1),
        max_steps=args.steps,
        mini_batch_size=args.batch_size,
        train_micro_batch_size=args.micro_batch_size,
        checkpoint_root_directory=str((args.out / "model").absolute()),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=args.save_every, max_to_keep=2
        ),
        metrics_logging_options=MetricsLoggerOptions(log_dir=str(args.out / "log")),
    )
    rollout = RolloutConfig(
        max_prompt_length=args.max_prompt_tokens,
        max_tokens_to_generate=args.max_answer_tokens,
        kv_cache_size=args.max_prompt_tokens + args.max_answer_tokens + 64,
        temperature=1.0,
    )
    config = ClusterConfig(
        role_to_mesh={Role.ACTOR: mesh, Role.ROLLOUT: mesh, Role.REFERENCE: mesh},
        training_config=training,
        rollout_config=rollout,
    )
    model = load_model(args.model, mesh)
    return RLCluster(actor=model, tokenizer=tokenizer, cluster_config=config)


def main() -> None:
    """Train, or go on."""
    args = parse()
    shape = tuple(int(n) for n in args.mesh.split(","))
    mesh = Mesh(np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape), ("fsdp", "tp"))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    file = read_tasks(args.tasks)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in file.prompts
    ]
    sampler = TaskSampler(
        auto(batch_size=args.batch_size, rollouts=args.rollouts),
        file.reference,
        num_tasks=len(prompts) if file.reference is None else None,
        task_ids=file.ids,
        seed=args.seed,
    )
    # Where the file has no references, features are made of the prompts.
    tasks = TunixTasks(
        sampler,
        {"prompts": prompts, "answer": file.answers},
        directory=args.out / "bots",
        save_every=args.save_every,
    )
    learner = GRPOLearner(
        rl_cluster=make_cluster(args, mesh, tokenizer),
        algo_config=GRPOConfig(num_generations=args.rollouts, beta=0.0),
        reward_fns=[tasks.reward(correct)],
        metric_fns=[tasks.metrics],
    )
    with mesh:
        learner.train(tasks.attach(learner))
    tasks.close()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--tasks", type=Path, required=True, help="JSON lines")
    parser.add_argument("--out", type=Path, default=Path("runs/tunix"))
    parser.add_argument("--mesh", default="1,1", help="devices along fsdp,tp [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    for name, value, text in (
        ("steps", 200, "updates"),
        ("batch-size", 32, "tasks a step"),
        ("micro-batch-size", 8, "tasks whose gradient is computed at a time"),
        ("rollouts", 8, "completions of each task"),
        ("save-every", 20, "steps that a kill may cost"),
        ("max-prompt-tokens", 256, "room for a prompt"),
        ("max-answer-tokens", 512, "room for a completion"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} [%(default)s]")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
