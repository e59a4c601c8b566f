"""Folders of safetensors of Llama, Qwen2 and Qwen3 shapes, against transformers.

Tiny models with random parameters, as transformers itself makes and saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import load, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Base

from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.llm.weights import load_weights, open_weights, token_order
from bots_jax.rl.policy import full_logits
from bots_jax.rl.tasks import EOS, PAD

TOLERANCE = 1e-4  # of the spread of the logits
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}  # fmt: skip
# The class of transformers, and what is not as by default.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "llama, tied, wide heads": ("Llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3, tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16, "rope_theta": 1e6}),
    "qwen3, untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 8}),
}
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE with one merge, and two special tokens that are not the first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "th"])}
    base = Base(models.BPE(vocabulary, [("t", "h")]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    base.add_special_tokens([AddedToken(name, special=True) for name in names])
    base.save(str(folder / "tokenizer.json"))
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    padding = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True, **flags}
    told = {"eos_token": "<|im_end|>", "pad_token": padding, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def make_model(kind: str, settings: dict[str, Any], dtype: Any = torch.float32) -> Any:
    """Random parameters, biases and scales of norms too, which are 0 and 1 else."""
    settings = dict(settings)
    base = settings.pop("rope_theta", 10000.0)
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


@pytest.fixture(params=SHAPES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    model = make_model(*SHAPES[request.param])
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    save_tokenizer(tmp_path)
    return model, tmp_path


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    """Ours f[B, T, V], of the file's numbers i[B, T] and in the file's order."""
    weights = open_weights(path)
    graphdef, params = load_weights(weights, max_prompt=32, max_answer=1)
    order = token_order(weights.vocabulary(), weights.path)
    ours = np.argsort(order).astype(np.int32)
    nothing = jnp.zeros((len(ids), 0), jnp.int32)
    run = jax.jit(full_logits, static_argnums=0)
    found = np.asarray(run(graphdef, params, jnp.asarray(ours[ids]), nothing))
    return found[..., ours]


def test_logits_are_those_of_transformers(saved: tuple[Any, Path]) -> None:
    model, path = saved
    assert (path / "model.safetensors.index.json").exists()
    ids = np.random.default_rng(0).integers(0, 256, (2, 20))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits_of(path, ids), expected, rtol=0,
                               atol=TOLERANCE * expected.std())  # fmt: skip


def test_half_precision_and_one_file(tmp_path: Path) -> None:
    model = make_model("Qwen2", {"tie_word_embeddings": True}, torch.bfloat16)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    ids = np.random.default_rng(0).integers(0, 256, (2, 20))
    # Computed in full, from parameters that were rounded.
    full = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = full(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits_of(tmp_path, ids), expected, rtol=0,
                               atol=TOLERANCE * expected.std())  # fmt: skip


def test_tokens_and_the_chat(tmp_path: Path) -> None:
    make_model("Qwen3", {"head_dim": 16}).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    weights = open_weights(tmp_path)
    tokenizer, order = Tokenizer(weights), token_order(weights.vocabulary(), tmp_path)
    names = weights.vocabulary().model
    assert names.id_to_token(int(order[EOS])) == "<|im_end|>"
    assert names.id_to_token(int(order[PAD])) == "<|endoftext|>"
    text = tokenizer.chat("What is that?", "Say it.")
    other = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    told = [{"role": "system", "content": "Say it."}, {"role": "user", "content": "What is that?"}]
    assert text == other.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(text)
    assert order[tokens].tolist() == other(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokenizer.encode("that<|im_end|>never read")) == "that"


def change(path: Path, **values: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_what_is_not_implemented_is_refused(tmp_path: Path) -> None:
    make_model("Llama", {}).save_pretrained(tmp_path)
    kept = (tmp_path / "config.json").read_text()
    for values, told in (
        ({"model_type": "gpt2"}, "'gpt2'.*llama, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "scaled rotation"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding windows"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"num_hidden_layers": 1}, "have no place.*layers.1"),
    ):
        change(tmp_path, **values)
        with pytest.raises(ValueError, match=told):
            open_weights(tmp_path)
        (tmp_path / "config.json").write_text(kept)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_weights(tmp_path)
    save_tokenizer(tmp_path)
    change(tmp_path, hidden_size=16)
    with pytest.raises(ValueError, match=r"is .*, expected"):
        load_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        open_weights(tmp_path.parent)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    make_model("Llama", {"tie_word_embeddings": False}).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    file, index = (tmp_path / f"model.safetensors{end}" for end in ("", ".index.json"))
    kept, up = file.read_bytes(), "model.layers.0.mlp.up_proj.weight"
    tensors = load(kept)  # not mapped: the file is written over below

    def refused(told: str) -> None:
        with pytest.raises(ValueError, match=told):
            load_weights(tmp_path)

    file.write_bytes(kept[: len(kept) // 2])
    refused("model.safetensors is cut")
    for dtype, name in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        save_file({**tensors, up: torch.ones(48, 32).to(dtype)}, file)
        refused(f"up_proj.weight is {name}")
    save_file({**tensors, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, file)
    refused("have no place.*q_norm")
    save_file({name: tensor for name, tensor in tensors.items() if name != up}, file)
    refused("there is no tensor.*up_proj")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, file.name)}))
    refused("there is no tensor.*up_proj.*index")
    index.write_text("{}")
    refused("no weight_map")
    index.unlink()
    file.write_bytes(kept)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rms_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("does not say rms_norm_eps")
