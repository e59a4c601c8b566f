"""Features of prompts from a model's hidden states, averaged and reduced.

In: a model, or a function that reads prompts, and N prompts. Out: f32[N, F]. A prompt is the mean
over its tokens of the last layer's states, as in DOTS (arXiv 2506.05316), where the model is
another one; then come standardised columns and whitened principal components, as in `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import check_count
from bots_jax.features.reduction import learn_reduction, sample_rows
from bots_jax.types import Array, ArrayLike

ReadFn = Callable[[Any], ArrayLike]  # a block of n prompts -> f[n, D], a mean of states each
ProgressFn = Callable[[int, int], None]  # prompts read, and all


def hidden_states(
    model: Any,
    prompts: Sequence[str] | ArrayLike,
    *,
    pad: int = 0,
    components: int = 32,
    chunk: int = 64,
    progress: ProgressFn | None = None,
) -> np.ndarray:
    """Features f32[N, components] of prompts from a model's states, mean 0 and variance 1.

    Args:
      model: a function from a block of n prompts to f[n, D], such as `mean_states` of
        `adapters.pytorch` and `adapters.tunix` makes; or a Flax NNX model whose method
        `prompt_states` takes token ids i32[n, P] to states f[n, P, D], as those of `rl` have.
      prompts: N of them, whatever the function reads: strings, or token ids i32[N, P].
      pad: token id that fills short rows, left out of the mean; of a model alone.
      components: columns; those that the prompts do not fill are 0.
      chunk: prompts read at a time.
      progress: is called with the number of prompts read and N, after each block.

    Raises:
      ValueError: no prompts, or states that are not finite numbers f[n, D].

    >>> import numpy as np
    >>> from bots_jax import features
    >>> ids = np.arange(24).reshape(8, 3) % 5
    >>> features.hidden_states(lambda block: np.eye(5)[block].mean(axis=1), ids).shape
    (8, 32)
    """
    check_count("components", components)
    check_count("chunk", chunk)
    total = len(prompts)  # type: ignore[arg-type]
    if not total:
        raise ValueError("prompts is empty: give one for each task")
    read = _of_model(model, pad) if hasattr(model, "prompt_states") else model
    if not callable(read):
        raise ValueError(
            f"model of type {type(model).__name__} cannot be read: give a function from prompts to "
            "f[n, D] (adapters.pytorch.mean_states, adapters.tunix.mean_states), or a model with "
            "a method prompt_states"
        )
    blocks = []
    for start in range(0, total, chunk):
        blocks.append(_checked(read, prompts[start : start + chunk], chunk))  # type: ignore[index]
        if progress is not None:
            progress(min(start + chunk, total), total)
    if len({block.shape[1] for block in blocks}) > 1:
        raise ValueError(f"model gives states of widths {[block.shape[1] for block in blocks]}")
    means = np.concatenate(blocks)
    reduction = learn_reduction(means[sample_rows(total)], components)
    return np.concatenate([reduction.apply(block) for block in blocks]).astype(np.float32)


def _checked(read: ReadFn, block: Any, chunk: int) -> np.ndarray:
    """f32[n, D] of a block; arrays are filled up to `chunk` rows, so that one size is compiled."""
    count = len(block)
    if hasattr(block, "dtype"):
        block = np.asarray(block)
        block = np.concatenate([block, np.repeat(block[-1:], chunk - count, axis=0)])
    states = np.asarray(read(block), np.float32)
    if states.ndim != 2 or len(states) != len(block):
        raise ValueError(
            f"model gave shape {states.shape} for {len(block)} prompts, expected "
            f"[{len(block)}, D]: the mean over the tokens of each"
        )
    if not np.isfinite(states).all():
        raise ValueError("model gave NaN or infinity: are there prompts without a token?")
    return states[:count]


def _of_model(model: Any, pad: int) -> ReadFn:
    """The function of a Flax NNX model with a method `prompt_states`."""
    from flax import nnx  # there, for the model is one of its

    graphdef, params = nnx.split(model)

    @jax.jit
    def read(params: Any, prompts: Array) -> Array:
        return mean_over_tokens(nnx.merge(graphdef, params).prompt_states(prompts), prompts != pad)

    return lambda prompts: read(params, jnp.asarray(prompts))


def mean_over_tokens(states: Array, real: Array) -> Array:
    """f32[n, D]: the mean of states f[n, P, D] over the tokens bool[n, P] that are real."""
    weights = real.astype(jnp.float32)
    total = jnp.einsum("np,npd->nd", weights, states.astype(jnp.float32))
    return total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
