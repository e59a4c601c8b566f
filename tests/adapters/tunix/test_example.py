"""examples/tunix_grpo.py on a tiny checkpoint of random weights: it trains, and goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("tunix") is None:
    pytest.skip("tunix is absent: pip install 'bots-jax[tunix]'", allow_module_level=True)

ROOT = Path(__file__).parents[3]
WIDTH, HEADS, KEYS, MLP, VOCABULARY = 16, 2, 1, 32, 64


def write_checkpoint(folder: Path) -> None:
    """What the Hugging Face library would write of a Llama model."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    rng = np.random.default_rng(0)
    depth = WIDTH // HEADS
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS * depth, WIDTH),
        "self_attn.v_proj": (KEYS * depth, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (MLP, WIDTH), "mlp.up_proj": (MLP, WIDTH), "mlp.down_proj": (WIDTH, MLP),
        "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    }  # fmt: skip
    named = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    arrays = {k: rng.normal(0, 0.3, shape).astype(np.float32) for k, shape in named.items()}
    save_file(arrays, folder / "model.safetensors")
    config = {
        "num_hidden_layers": 1, "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": MLP, "num_attention_heads": HEADS, "num_key_value_heads": KEYS,
        "rope_theta": 1e4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "model_type": "llama",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def test_the_example_trains_and_goes_on(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_checkpoint(model)
    lines = [{"prompt": f"w{i} w{i + 1}", "answer": f"w{i}", "id": f"t{i}"} for i in range(12)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [
        sys.executable, str(ROOT / "examples" / "tunix_grpo.py"), "--model", str(model),
        "--tasks", str(tmp_path / "tasks.jsonl"), "--out", str(tmp_path / "run"),
        "--batch-size", "4", "--micro-batch-size", "2", "--rollouts", "2", "--save-every", "1",
        "--max-prompt-tokens", "8", "--max-answer-tokens", "4", "--steps",
    ]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    for steps in (1, 2):
        done = subprocess.run(
            [*command, str(steps)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    kept = sorted(path.name for path in (tmp_path / "run" / "bots").iterdir())
    assert kept == ["step_00000001", "step_00000002"]
