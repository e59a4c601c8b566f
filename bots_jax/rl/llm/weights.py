"""Weights of a pretrained model, whatever the format of their file.

In: a GGUF file, or a folder with `config.json` and safetensors. Out: (static graph, nested
dict of float32 arrays) as `llama.make_llama` gives, and the vocabulary that belongs to it.

A format is a class with the methods of `Weights`. Each brings its tensors into our shape; what
they have in common is here: which token is padding, and the check of every shape.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.rl.llm.llama import LlamaConfig, abstract_llama
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.tasks import EOS, PAD

Place = tuple[Any, ...]  # of a leaf in the nested dict: ("layers", 3, "query", "kernel")


class Vocabulary(NamedTuple):
    """The tokenizer of a file of weights, in the file's own numbers."""

    model: Any  # a tokenizer of the package `tokenizers`
    size: int  # V, rows of the embedding; some may stand for no token
    names: dict[int, str]  # of the tokens below
    control: tuple[int, ...]  # tokens that no text turns into
    start: int | None
    end: int  # of a turn
    padding: int | None
    template: str | None  # of a chat, in Jinja


class Weights(Protocol):
    """A file or folder of weights."""

    path: Path

    def config(self) -> LlamaConfig:
        """The sizes."""

    def leaf(self, place: Place, config: LlamaConfig) -> tuple[str, np.ndarray]:
        """The file's name of a leaf, and the leaf in our shape, its tokens in the file's order."""

    def vocabulary(self) -> Vocabulary:
        """The tokenizer."""

    def digest(self) -> str:
        """A checksum of what is in it, wherever it lies."""


def open_weights(path: str | Path) -> Weights:
    """What is at the path, by its kind.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it is neither or of an architecture that is not known.
    """
    from bots_jax.rl.llm.gguf_file import GgufFile
    from bots_jax.rl.llm.safetensors_folder import SafetensorsFolder

    path = Path(path)
    return SafetensorsFolder(path) if path.is_dir() else GgufFile(path)


def load_weights(weights: str | Path | Weights, **changes: Any) -> tuple[GraphDef, Params]:
    """The model of a file: (static graph, nested dict of f32 arrays on the default device).

    Args:
      changes: `max_prompt`, `max_answer` and `dtype` of `LlamaConfig`; or a smaller `depth`,
        for the first layers alone.

    Raises:
      FileNotFoundError, ValueError: if the file is absent, foreign or does not fit.
    """
    file = open_weights(weights) if isinstance(weights, str | Path) else weights
    config = dataclasses.replace(file.config(), **changes)
    order = token_order(file.vocabulary(), file.path)
    graphdef, shapes = abstract_llama(config)

    def read(path: tuple[Any, ...], wanted: jax.ShapeDtypeStruct) -> jax.Array:
        place = tuple(part.key for part in path)
        name, array = file.leaf(place, config)
        if array.shape != wanted.shape:
            raise ValueError(f"{file.path}: {name} is {array.shape}, expected {wanted.shape}")
        return jnp.asarray(array[order] if len(place) == 1 else array, jnp.float32)

    return graphdef, jax.tree_util.tree_map_with_path(read, shapes)


def token_order(vocabulary: Vocabulary, path: Path) -> np.ndarray:
    """i32[V]: the file's number of each of our tokens.

    Padding and end of turn are where the loop looks for them. A file whose padding is its
    end of turn too is given the first control token that is neither start nor end, or else a
    row that stands for no token.
    """
    start, end, padding = vocabulary.start, vocabulary.end, vocabulary.padding
    if padding is None or padding == end:
        unnamed = range(vocabulary.model.get_vocab_size(), vocabulary.size)
        free = [i for i in (*vocabulary.control, *unnamed) if i not in (start, end)]
        if not free:
            raise ValueError(f"{path}: no token is left for padding")
        padding = free[0]
    order = np.arange(vocabulary.size, dtype=np.int32)
    for ours, theirs in ((PAD, padding), (EOS, end)):
        place = int(np.flatnonzero(order == theirs)[0])
        order[[ours, place]] = order[[place, ours]]
    return order
