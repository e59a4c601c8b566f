"""Default features from a column of prompts; `features=None` turns them off.

In: prompts (strings, chat messages or token ids), and what else is known. Out: the features of
`features.text`, for a selector that can use them and a pool of which nothing else is known.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bots_jax.compose import can_use_features
from bots_jax.types import Selector

if TYPE_CHECKING:
    from bots_jax.features.text import TextCode

_LOG = logging.getLogger(__name__)
TEXT = "text"
COLUMNS = ("prompts", "prompt", "question", "problem")  # where a record keeps its prompt


def wants_text(features: Any) -> bool:
    """Whether `features` is "text", the default.

    Raises:
      ValueError: of any other word.
    """
    if isinstance(features, str) and features != TEXT:
        raise ValueError(
            f"features={features!r}: give 'text' (made of prompts), None, or columns of numbers "
            "and kinds"
        )
    return isinstance(features, str)


def text_features(
    prompts: Any, selector: Selector, reference: Any
) -> tuple[np.ndarray | None, TextCode | None]:
    """f32[N, F] and their code; None, with a log line, if the selector cannot use them."""
    if reference is not None:
        _LOG.debug("features: none made of the prompts, references are given")
        return None, None
    if not can_use_features(selector.static):
        strategy = selector.static.get("strategy")
        _LOG.info("features: none made of the prompts, strategy=%r uses none", strategy)
        return None, None
    from bots_jax.features.text import learn_text  # SciPy takes a while to import

    columns, code = learn_text(as_texts(prompts))
    _LOG.info(
        "features: %d numbers made of %d prompts; features=None turns this off",
        columns.shape[1], len(columns),
    )  # fmt: skip
    return columns, code


def pack_text(code: TextCode) -> dict[str, Any]:
    """The code as JSON values, about 300 kB, needed to resume with other prompts."""
    arrays = (code.reduction.mean, code.reduction.directions)
    packed = [
        [str(array.dtype), list(array.shape), base64.b64encode(array.tobytes()).decode()]
        for array in arrays
    ]
    return {"reduction": packed, "ids": code.ids, "pad": code.pad}


def unpack_text(packed: Mapping[str, Any]) -> TextCode:
    """The inverse of `pack_text`."""
    from bots_jax.features.reduction import Reduction  # SciPy takes a while to import
    from bots_jax.features.text import TextCode

    arrays = [
        np.frombuffer(base64.b64decode(data), dtype).reshape(shape)
        for dtype, shape, data in packed["reduction"]
    ]
    return TextCode(Reduction(*arrays), bool(packed["ids"]), packed["pad"])


def as_texts(prompts: Any) -> Any:
    """Prompts as strings: of chat messages their contents; token ids are unchanged."""
    if hasattr(prompts, "dtype") and np.asarray(prompts).dtype.kind in "iu":
        return np.asarray(prompts)
    return [_as_text(prompt) for prompt in prompts]


def _as_text(prompt: Any) -> Any:
    if isinstance(prompt, bytes):
        return prompt.decode("utf-8", "replace")
    if isinstance(prompt, list | tuple) and all(isinstance(part, Mapping) for part in prompt):
        return "\n".join(_content(part.get("content")) for part in prompt)
    return prompt


def _content(content: Any) -> str:
    """The text of a message; of one in parts that of its parts, without images and the like."""
    if isinstance(content, list | tuple):
        told = [part["text"] for part in content if isinstance(part, Mapping) and "text" in part]
        return "\n".join(map(_content, told))
    return "" if content is None else str(content)


def prompt_column(record: Any) -> str | None:
    """The key of a record's prompt (text or messages), or None."""
    if not isinstance(record, Mapping):
        return None
    for name in COLUMNS:
        if isinstance(_as_text(record.get(name)), str):
            return name
    return None
