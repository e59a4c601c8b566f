"""Weights out of a folder of safetensors: as models are published, and as transformers saves them.

    config.json                    sizes and architecture: Llama, Qwen2 or Qwen3
    model.safetensors              the tensors; or model.safetensors.index.json and its shards
    tokenizer.json                 the vocabulary
    tokenizer_config.json          which tokens are special, and the chat template
    chat_template.jinja            the template, where it is not in the former

In: the folder. Out: a `Weights`. Matrices are transposed, from [out, in] to [in, out]; halves
of heads lie as `llama.rotate` has them. What changes the numbers and is not implemented is
refused: scaled rotation, sliding windows, biases of other matrices than query, key and value.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bots_jax.rl.llm.llama import LlamaConfig
from bots_jax.rl.llm.weights import Place, Vocabulary

# model_type: (queries, keys and values have biases, queries and keys are normed)
_KINDS = {"llama": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
_QWEN3_HEAD_WIDTH = 128  # where its config does not say

# Our name of each part of a layer, and that of the file.
_LAYER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_WHOLE = {
    "embedding": "model.embed_tokens.weight",
    "logits": "lm_head.weight",
    "final_norm": "model.norm.weight",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_NEEDED = (
    "num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size",
    "rms_norm_eps",
)  # fmt: skip


class SafetensorsFolder:
    """A folder of weights; tensors are read when they are asked for.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: if the architecture, or something in it, is not implemented.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._sizes = _read_json(self.path / "config.json")
        kind = self._sizes.get("model_type")
        if kind not in _KINDS:
            raise ValueError(
                f"{self.path}: model_type is {kind!r}, and only {', '.join(_KINDS)} can be loaded"
            )
        self._biased, self._normed = _KINDS[kind]
        self._refuse_unknown()
        self._shards = self._find_shards()
        self._refuse_unread()

    def _refuse_unknown(self) -> None:
        sizes = self._sizes
        kind, rotation = sizes["model_type"], self._rotation()
        scaled = rotation.get("rope_type", rotation.get("type", "default")) != "default"
        sliding = sizes.get("use_sliding_window") or "sliding_attention" in (
            sizes.get("layer_types") or ()
        )
        found = {
            "scaled rotation": scaled or float(sizes.get("partial_rotary_factor") or 1) != 1,
            "sliding windows": sliding,
            "attention_bias": kind != "qwen2" and sizes.get("attention_bias"),
            "mlp_bias": sizes.get("mlp_bias"),
            "quantization_config": sizes.get("quantization_config"),
            f"hidden_act={sizes.get('hidden_act')!r}": sizes.get("hidden_act", "silu") != "silu",
        }
        for what in (name for name, there in found.items() if there):
            raise ValueError(f"{self.path}: config.json asks for {what}, which is not implemented")
        missing = [name for name in _NEEDED if name not in sizes]
        if missing:
            raise ValueError(f"{self.path}: config.json does not say {', '.join(missing)}")

    def _refuse_unread(self) -> None:
        """A tensor that would be left out, because the numbers would then be another model's."""
        parts = [part for part in _LAYER if self._normed or part not in ("query_norm", "key_norm")]
        known = set(_WHOLE.values())
        for layer in range(self._sizes["num_hidden_layers"]):
            begin = f"model.layers.{layer}."
            known |= {f"{begin}{_LAYER[part]}.weight" for part in parts}
            if self._biased:
                known |= {f"{begin}{_LAYER[p]}.bias" for p in ("query", "key", "value")}
        # Old files keep the frequencies of the rotation, which follow from its base.
        left = [n for n in self._shards if n not in known and not n.endswith("rotary_emb.inv_freq")]
        if left:
            raise ValueError(
                f"{self.path}: {len(left)} tensors have no place in the model of config.json, "
                f"such as {min(left)!r}: use the config.json that belongs to the weights"
            )

    def _rotation(self) -> dict[str, Any]:
        return self._sizes.get("rope_parameters") or self._sizes.get("rope_scaling") or {}

    def _find_shards(self) -> dict[str, Path]:
        """The file of each tensor."""
        index, single = (self.path / f"model.safetensors{end}" for end in (".index.json", ""))
        if index.exists():
            told = _read_json(index).get("weight_map")
            if not told:
                raise ValueError(f"{index} has no weight_map: fetch it again")
            return {name: self.path / file for name, file in told.items()}
        return dict.fromkeys(_open(single).keys(), single)

    def config(self) -> LlamaConfig:
        """See `weights.Weights`."""
        sizes = self._sizes
        heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
        head_width = _QWEN3_HEAD_WIDTH if sizes["model_type"] == "qwen3" else width // heads
        base = self._rotation().get("rope_theta", sizes.get("rope_theta"))
        head = _WHOLE["logits"]
        return LlamaConfig(
            width=width,
            depth=sizes["num_hidden_layers"],
            heads=heads,
            key_heads=sizes.get("num_key_value_heads") or heads,
            head_width=sizes.get("head_dim") or head_width,
            mlp_width=sizes["intermediate_size"],
            vocab_size=sizes["vocab_size"],
            rotary_base=10000.0 if base is None else float(base),
            epsilon=sizes["rms_norm_eps"],
            tied=bool(sizes.get("tie_word_embeddings", head not in self._shards)),
            biased=self._biased,
            normed=self._normed,
        )

    def leaf(self, place: Place, config: LlamaConfig) -> tuple[str, np.ndarray]:
        """See `weights.Weights`."""
        if place[0] != "layers":
            name = _WHOLE[place[0]]
            return name, self._tensor(name)
        _, layer, part, leaf = place
        end = "bias" if leaf == "bias" else "weight"
        name = f"model.layers.{layer}.{_LAYER[part]}.{end}"
        found = self._tensor(name)
        return name, found.T if leaf == "kernel" else found

    def _tensor(self, name: str) -> np.ndarray:
        if name not in self._shards:
            raise ValueError(f"{self.path}: there is no tensor {name!r}: it is cut or foreign")
        file = _open(self._shards[name])
        if name not in file.keys():  # noqa: SIM118, it is no dict
            raise ValueError(
                f"{self._shards[name]}: there is no tensor {name!r}, although the index says so"
            )
        dtype = file.get_slice(name).get_dtype()
        if dtype not in _FLOATS:
            raise ValueError(
                f"{self.path}: {name} is {dtype}, and only {', '.join(_FLOATS)} can be read: "
                "use weights that are not quantised"
            )
        return np.asarray(file.get_tensor(name), np.float32)

    def vocabulary(self) -> Vocabulary:
        """See `weights.Weights`."""
        return self._vocabulary

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        from tokenizers import Tokenizer

        path = self.path / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file: the vocabulary is missing")
        model, told = (
            Tokenizer.from_file(str(path)),
            _read_json(path.parent / "tokenizer_config.json"),
        )
        special = {name: _content(told.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
        numbers = {
            name: None if text is None else model.token_to_id(text)
            for name, text in special.items()
        }
        if numbers["eos"] is None:
            raise ValueError(f"{path.parent}: tokenizer_config.json names no eos_token")
        added = model.get_added_tokens_decoder()
        return Vocabulary(
            model=model,
            size=self._sizes["vocab_size"],
            names={i: special[name] or "" for name, i in numbers.items() if i is not None},
            control=tuple(sorted(i for i, token in added.items() if token.special)),
            start=numbers["bos"],
            end=numbers["eos"],
            padding=numbers["pad"],
            template=self._template(told.get("chat_template")),
        )

    def _template(self, told: Any) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.exists():
            return file.read_text(encoding="utf-8")
        if isinstance(told, list):  # several, by name
            told = {entry["name"]: entry["template"] for entry in told}.get("default")
        return told

    def digest(self) -> str:
        """See `weights.Weights`."""
        total = hashlib.sha256()
        for file in [self.path / "config.json", *sorted(set(self._shards.values()))]:
            with open(file, "rb") as opened:
                total.update(hashlib.file_digest(opened, "sha256").digest())
        return total.hexdigest()


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is cut or no safetensors, fetch it again: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file, so this is no model") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _content(token: Any) -> str | None:
    """The text of a special token, which may be written with its properties."""
    return token["content"] if isinstance(token, dict) else token
