"""TRL's own GRPOTrainer on a toy model, saved at every step, on tasks that BOTS selects."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig

from examples.trl_grpo import BotsGRPOTrainer, SaveSampler, load, make_sampler, reporting, right
from tests.adapters.lives import die, tell

TASKS, ROLLOUTS, STEPS = 40, 4, 5
WORDS = ["<pad>", "<eos>", "<unk>", *[str(i) for i in range(8)]]


def toy() -> tuple[Any, Any]:
    """A model of one small layer, and a tokenizer of ten words."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config), tokenizer


class Watch(TrainerCallback):
    """Tells of each step, and dies in the middle of one."""

    def __init__(self, sampler: Any, model: Any, die_at: int):
        self.sampler, self.model, self.die_at = sampler, model, die_at

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        step = state.global_step - 1
        if step == self.die_at:
            die()
        weights = next(iter(self.model.parameters())).detach()
        trained = self.sampler.metrics()["completed"]
        tell(step=step, weight=weights.double().sum().item(), completed=trained)


def main(folder: str, die_at: int) -> None:
    """Train to the end, or die when step `die_at` is not saved yet."""
    rows = [{"prompt": str(i % 8), "answer": str(i % 8), "task_id": i} for i in range(TASKS)]
    sampler = make_sampler(rows, 2, ROLLOUTS, seed=0)
    saved = sorted(Path(folder).glob("checkpoint-*/bots.npz"), key=os.path.getmtime)
    resume = str(saved[-1].parent) if saved else None
    load(sampler, resume)
    model, tokenizer = toy()
    trainer = BotsGRPOTrainer(
        model,
        reward_funcs=reporting(right, sampler),
        args=GRPOConfig(
            output_dir=folder, num_generations=ROLLOUTS, per_device_train_batch_size=2 * ROLLOUTS,
            generation_batch_size=2 * ROLLOUTS, max_completion_length=4, max_steps=STEPS,
            save_steps=1, logging_steps=1, report_to=[], use_cpu=True, learning_rate=1e-2,
            ignore_data_skip=True, disable_tqdm=True, bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        task_sampler=sampler,
    )  # fmt: skip
    trainer.add_callback(Watch(sampler, model, die_at))
    trainer.add_callback(SaveSampler(sampler))
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
