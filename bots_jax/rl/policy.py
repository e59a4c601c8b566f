"""A decoder-only transformer in Flax NNX that reads a prompt once for a whole group.

In: tokens. Out: logits of the next token. Layer by layer, with x the residual stream,

    x <- x + Attention(RMSNorm(x));  x <- x + MLP(RMSNorm(x));  logits = RMSNorm(x) E^T,

E the token embedding (tied). Positions are learned and count from the answer's first token,
backwards into the prompt: padding on the left, however wide, changes nothing.

The G completions of a prompt share its keys and values (`Prefix`), which are never copied:
attention looks at the prefix [B, P] and at the completion's own tokens [B, G, T] side by
side. One function, `extend`, serves training (T = L tokens at once) and sampling (T = 1).

`prefill` and `extend` serve any module with the methods of `Transformer` and of its layers:
`llm.llama` is one. Its attention may have fewer heads of keys than of queries.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bots_jax.rl.tasks import ANSWER_LENGTH, PAD, PROMPT_LENGTH, VOCAB_SIZE

Array = jax.Array
Params = Any  # a nested dict of arrays
GraphDef = Any  # nnx.GraphDef[Transformer], static and hashable
HIDDEN = -1e9  # score of a hidden key; finite, so that a row with nothing to see is no NaN


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Sizes of the transformer.

    Raises:
      ValueError: where a size is not positive or `heads` does not divide `width`.
    """

    width: int = 64  # of the residual stream
    depth: int = 2  # layers
    heads: int = 2  # of attention, each width / heads wide
    mlp_width: int = 256
    max_prompt: int = PROMPT_LENGTH  # columns of the longest prompt
    max_answer: int = ANSWER_LENGTH  # tokens of the longest completion
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide width={self.width}; choose a divisor"
            )


class Prefix(NamedTuple):
    """What a layer keeps of the prompts, shared by the G completions of each."""

    keys: Array  # f[B, P, K, D], K heads, of which each serves H / K heads of queries
    values: Array  # f[B, P, K, D]


class Cache(NamedTuple):
    """All that is needed to go on from B prompts with G completions each."""

    prefix: tuple[Prefix, ...]  # one a layer
    visible: Array  # bool[B, P], False on padding
    keys: tuple[Array, ...]  # one a layer, f[B, G, L, K, D]; columns from `used` on are empty
    values: tuple[Array, ...]  # likewise
    used: Array  # i32, columns of `keys` that are filled


class Layer(nnx.Module):
    """One pre-norm block. Tokens are rows: x is f[B, G, T, width]."""

    def __init__(self, config: PolicyConfig, rngs: nnx.Rngs) -> None:
        width, self.heads = config.width, config.heads
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, config.mlp_width, rngs=rngs)
        self.down = nnx.Linear(config.mlp_width, width, rngs=rngs)

    def project(self, x: Array, columns: Array) -> tuple[Array, Array, Array]:
        """Queries (already scaled), keys and values, f[B, G, T, H, D] each.

        `columns` i32[T] is for layers that encode positions; here the embedding does.
        """
        qkv = self.qkv(self.attention_norm(x))
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, -1)
        queries, keys, values = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        return queries * queries.shape[-1] ** -0.5, keys, values

    def finish(self, x: Array, attended: Array) -> Array:
        """The rest of the block, after attention."""
        x = x + self.out(attended.reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x))))


class Readable(nnx.Module):
    """What every policy has: a way to read prompts, for `features.hidden_states`."""

    max_prompt: int

    def prompt_states(self, prompts: Array) -> Array:
        """The last layer's residual stream f[B, P, width] over left-padded prompts i32[B, P]."""
        _check_room("max_prompt", prompts.shape[1], self.max_prompt)
        return _read(self, prompts, prompts.shape[1])[0][:, 0]


class Transformer(Readable):
    """The policy's parameters. Use through `prefill`, `extend` and `full_logits`."""

    def __init__(self, config: PolicyConfig, rngs: nnx.Rngs) -> None:
        self.max_prompt, self.max_answer = config.max_prompt, config.max_answer
        init = nnx.initializers.normal(config.width**-0.5)
        columns = config.max_prompt + config.max_answer
        self.embedding = nnx.Param(init(rngs.params(), (config.vocab_size, config.width)))
        self.positions = nnx.Param(init(rngs.params(), (columns, config.width)))
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.depth)])
        self.final_norm = nnx.RMSNorm(config.width, rngs=rngs)

    def embed(self, tokens: Array, columns: Array) -> Array:
        """Tokens and columns, scaled so that layers start from entries of size 1."""
        total = self.embedding[...][tokens] + self.positions[...][columns]
        return total * total.shape[-1] ** 0.5

    def unembed(self, x: Array) -> Array:
        """Residual stream f[..., width] -> logits f[..., V]."""
        return self.final_norm(x) @ self.embedding[...].T


def make_policy(config: PolicyConfig, rng_key: Array) -> tuple[GraphDef, Params]:
    """A policy with random parameters: (static graph, nested dict of f32 arrays)."""
    graphdef, state = nnx.split(Transformer(config, nnx.Rngs(params=rng_key)))
    return graphdef, nnx.to_pure_dict(state)


def full_logits(graphdef: GraphDef, params: Params, prompts: Array, completions: Array) -> Array:
    """Logits f[B, P + L, V] after every token of i32[B, P] prompts and i32[B, L] after them.

    Without a cache: what `prefill` and `extend` must agree with.
    """
    model = _merge(graphdef, params, prompts.shape[1], completions.shape[1])
    tokens = jnp.concatenate([prompts, completions], axis=1)
    x, _ = _read(model, tokens, prompts.shape[1])
    return model.unembed(x)[:, 0]


def prompt_states(graphdef: GraphDef, params: Params, prompts: Array) -> Array:
    """The last layer's residual stream f[B, P, width] over prompts i32[B, P]."""
    return _merge(graphdef, params, prompts.shape[1], 0).prompt_states(prompts)


def prefill(graphdef: GraphDef, params: Params, prompts: Array, group: int, room: int) -> Cache:
    """Read prompts i32[B, P] once; make room for `group` completions of `room` tokens.

    The last token of a prompt is left to `extend`, whose first logits are the answer's.

    Raises:
      ValueError: where the prompts or the completions are longer than the policy can take.
    """
    model = _merge(graphdef, params, prompts.shape[1], room)
    _, prefix = _read(model, prompts[:, :-1], prompts.shape[1])
    heads, depth = prefix[0].keys.shape[2:]
    empty = tuple(
        jnp.zeros((len(prompts), group, room, heads, depth), layer.keys.dtype) for layer in prefix
    )
    return Cache(prefix, prompts[:, :-1] != PAD, empty, empty, jnp.zeros((), jnp.int32))


def _merge(graphdef: GraphDef, params: Params, prompt: int, answer: int) -> Transformer:
    model: Transformer = nnx.merge(graphdef, params)
    _check_room("max_prompt", prompt, model.max_prompt)
    _check_room("max_answer", answer, model.max_answer)
    return model


def _check_room(name: str, length: int, most: int) -> None:
    if length > most:
        raise ValueError(
            f"{length} columns are more than the policy's {name}={most}; shorten them or "
            f"make the policy with a larger {name}"
        )


def extend(graphdef: GraphDef, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
    """Append tokens i32[B, G, T] to every completion.

    Returns:
      Logits f[B, G, T, V] of what follows each of them, and the longer cache. The caller sees
      to it that `used` + T <= L.
    """
    model: Transformer = nnx.merge(graphdef, params)
    count, start = tokens.shape[-1], model.max_prompt - 1
    columns = cache.used + jnp.arange(count, dtype=jnp.int32)
    causal = jnp.arange(cache.keys[0].shape[2])[None, :] <= columns[:, None]  # [T, L]
    places = start + columns
    x, keys, values = model.embed(tokens, places), list(cache.keys), list(cache.values)
    for i, layer in enumerate(model.layers):
        query, key, value = layer.project(x, places)
        keys[i] = jax.lax.dynamic_update_slice_in_dim(keys[i], key, cache.used, axis=2)
        values[i] = jax.lax.dynamic_update_slice_in_dim(values[i], value, cache.used, axis=2)
        own = Prefix(keys[i], values[i])
        x = layer.finish(x, _attend(query, cache.prefix[i], cache.visible, own, causal))
    cache = cache._replace(keys=tuple(keys), values=tuple(values), used=cache.used + count)
    return model.unembed(x), cache


def _read(model: Any, tokens: Array, prompt_length: int) -> tuple[Array, tuple[Prefix, ...]]:
    """All layers over left-padded tokens i32[B, T]: x f[B, 1, T, width], keys and values."""
    columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    causal = columns[None, :] <= columns[:, None]
    seen = causal[None] & (tokens != PAD)[:, None, :]  # [B, T, S]
    places = columns + model.max_prompt - prompt_length
    x = model.embed(tokens, places)[:, None]
    kept = []
    for layer in model.layers:
        query, key, value = layer.project(x, places)
        scores = jnp.einsum("bgtkrd,bgskd->bkrgts", _by_key(query, key), key)
        weights = _softmax(jnp.where(seen[:, None, None, None], scores, HIDDEN))
        x = layer.finish(x, jnp.einsum("bkrgts,bgskd->bgtkrd", weights, value))
        kept.append(Prefix(key[:, 0], value[:, 0]))
    return x, tuple(kept)


def _by_key(query: Array, key: Array) -> Array:
    """Queries f[B, G, T, H, D] as f[B, G, T, K, H / K, D], beside the keys that they look at."""
    heads, depth = key.shape[-2:]
    return query.reshape(*query.shape[:3], heads, -1, depth)


def _softmax(scores: Array) -> Array:
    """Over the last axis; a sum in half precision would lose what is small in it."""
    return jax.nn.softmax(scores.astype(precise(scores.dtype)), axis=-1).astype(scores.dtype)


def precise(dtype: Any) -> Any:
    """float32, or `dtype` where that is wider: what probabilities are computed in."""
    return jnp.promote_types(dtype, jnp.float32)


def _attend(query: Array, prefix: Prefix, visible: Array, own: Prefix, causal: Array) -> Array:
    """softmax over prefix and own tokens together: f[B, G, T, K, H / K, D]."""
    query = _by_key(query, own.keys)
    shared = jnp.einsum("bgtkrd,bpkd->bkrgtp", query, prefix.keys)
    shared = jnp.where(visible[:, None, None, None, None], shared, HIDDEN)
    recent = jnp.einsum("bgtkrd,bgskd->bkrgts", query, own.keys)
    recent = jnp.where(causal[None, None, None, None], recent, HIDDEN)
    weights = _softmax(jnp.concatenate([shared, recent], axis=-1))
    past, present = jnp.split(weights, [shared.shape[-1]], axis=-1)
    attended = jnp.einsum("bkrgtp,bpkd->bgtkrd", past, prefix.values)
    return attended + jnp.einsum("bkrgts,bgskd->bgtkrd", present, own.values)
