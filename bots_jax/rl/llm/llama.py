"""A Llama-style transformer in Flax NNX that the policy's sampler and trainer take as theirs.

In: tokens. Out: logits of the next token, float32. Layer by layer, with x the residual stream,

    x <- x + W_o Attention(RMSNorm(x));  x <- x + W_down (silu(W_gate y) * W_up y),  y = RMSNorm(x);
    logits = RMSNorm(x) E^T,  E the token embedding, or a matrix of its own.

Queries and keys are rotated by their column (Su et al., arXiv 2104.09864): the pair (i, i + D/2)
of a head's D numbers by the angle column * base^(-2 i / D). Only differences of columns
matter, so padding on the left changes nothing. H heads of queries share K heads of keys
(Ainslie et al., arXiv 2305.13245); `policy.prefill` and `policy.extend` see to that.

Two relatives differ by a setting each: in Qwen2 queries, keys and values have biases (`biased`,
Yang et al., arXiv 2407.10671); in Qwen3 each head of queries and of keys is RMS-normed before
it is rotated (`normed`, Yang et al., arXiv 2505.09388).

Parameters are float32; `dtype` is that of the matrix products, bfloat16 on accelerators.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bots_jax.rl.policy import GraphDef, Readable

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the model; those of SmolLM2-135M by default.

    Raises:
      ValueError: where a size is not positive or heads do not share keys evenly.
    """

    width: int = 576  # of the residual stream
    depth: int = 30  # layers
    heads: int = 9  # H, of queries
    key_heads: int = 3  # K, of keys and values
    head_width: int = 64  # D
    mlp_width: int = 1536
    vocab_size: int = 49152
    rotary_base: float = 100000.0
    epsilon: float = 1e-5  # of RMSNorm
    tied: bool = True  # the embedding gives the logits too
    biased: bool = False  # queries, keys and values have biases
    normed: bool = False  # queries and keys are RMS-normed, head by head
    max_prompt: int = 256  # columns of the longest prompt
    max_answer: int = 256  # tokens of the longest completion
    dtype: str = "float32"  # of the matrix products

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool | str) and not value > 0:
                raise ValueError(f"{field.name}={value} must be above 0")
        if self.heads % self.key_heads:
            raise ValueError(
                f"key_heads={self.key_heads} does not divide heads={self.heads}; choose a divisor"
            )
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even: its halves are rotated")


def _linear(
    config: LlamaConfig, n_in: int, n_out: int, rngs: nnx.Rngs, biased: bool = False
) -> nnx.Linear:
    return nnx.Linear(n_in, n_out, use_bias=biased, dtype=jnp.dtype(config.dtype), rngs=rngs)


def _norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)


def _head_norm(config: LlamaConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    dtype = jnp.dtype(config.dtype)
    return nnx.RMSNorm(config.head_width, epsilon=config.epsilon, dtype=dtype, rngs=rngs)


class LlamaLayer(nnx.Module):
    """One block; see `policy.Layer` for what is asked of it."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.head_width, self.rotary_base = config.head_width, config.rotary_base
        keys, queries = config.key_heads * config.head_width, config.heads * config.head_width
        self.attention_norm = _norm(config, rngs)
        self.query = _linear(config, config.width, queries, rngs, config.biased)
        self.key = _linear(config, config.width, keys, rngs, config.biased)
        self.value = _linear(config, config.width, keys, rngs, config.biased)
        self.query_norm = _head_norm(config, rngs) if config.normed else None
        self.key_norm = _head_norm(config, rngs) if config.normed else None
        self.out = _linear(config, queries, config.width, rngs)
        self.mlp_norm = _norm(config, rngs)
        self.gate = _linear(config, config.width, config.mlp_width, rngs)
        self.up = _linear(config, config.width, config.mlp_width, rngs)
        self.down = _linear(config, config.mlp_width, config.width, rngs)

    def project(self, x: Array, columns: Array) -> tuple[Array, Array, Array]:
        """Queries (scaled) f[B, G, T, H, D], keys and values f[B, G, T, K, D]."""
        normed = self.attention_norm(x)
        query, key, value = (
            part(normed).reshape(*x.shape[:-1], -1, self.head_width)
            for part in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query = rotate(query, columns, self.rotary_base) * self.head_width**-0.5
        return query, rotate(key, columns, self.rotary_base), value

    def finish(self, x: Array, attended: Array) -> Array:
        """The rest of the block, after attention."""
        x = x + self.out(attended.reshape(*x.shape[:-1], -1)).astype(x.dtype)
        normed = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(normed)) * self.up(normed)).astype(x.dtype)


class Llama(Readable):
    """The model's parameters. Use through `policy.prefill`, `extend` and `full_logits`."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.max_prompt, self.max_answer = config.max_prompt, config.max_answer
        self.dtype = config.dtype
        init = nnx.initializers.normal(config.width**-0.5)
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(init(rngs.params(), shape))
        self.logits = None if config.tied else nnx.Param(init(rngs.params(), shape))
        self.layers = nnx.List([LlamaLayer(config, rngs) for _ in range(config.depth)])
        self.final_norm = _norm(config, rngs)

    def embed(self, tokens: Array, columns: Array) -> Array:
        """Tokens f[..., width]; the layers see to the columns."""
        return self.embedding[...][tokens]

    def unembed(self, x: Array) -> Array:
        """Residual stream f[..., width] -> logits f32[..., V]."""
        matrix = self.embedding if self.logits is None else self.logits
        return jnp.einsum(
            "...w,vw->...v",
            self.final_norm(x).astype(self.dtype),
            matrix[...].astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


def rotate(x: Array, columns: Array, base: float) -> Array:
    """Rotate f[..., T, H, D] by columns i32[T]; the angles in float32 whatever the dtype."""
    half = x.shape[-1] // 2
    speed = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (columns.astype(jnp.float32)[:, None] * speed)[:, None, :]  # [T, 1, D / 2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def abstract_llama(config: LlamaConfig) -> tuple[GraphDef, Any]:
    """(static graph, nested dict of shapes): what a file of weights has to fill."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def make_llama(config: LlamaConfig, rng_key: Array) -> tuple[GraphDef, Any]:
    """A model with random parameters: (static graph, nested dict of f32 arrays)."""
    graphdef, state = nnx.split(Llama(config, nnx.Rngs(params=rng_key)))
    return graphdef, nnx.to_pure_dict(state)
