"""A Llama-style model takes the policy's place: cached equals full, gradients in chunks equal."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.rl.llm.llama import LlamaConfig, make_llama, rotate
from bots_jax.rl.policy import full_logits
from bots_jax.rl.policy_gradient import completion_logprobs
from bots_jax.rl.rollouts import rollout

CONFIG = LlamaConfig(
    width=12, depth=2, heads=4, key_heads=2, head_width=6, mlp_width=16, vocab_size=40,
    max_prompt=9, max_answer=5,
)  # fmt: skip
GROUP, LENGTH = 3, 5


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    graphdef, params = make_llama(CONFIG, jax.random.key(0))
    return graphdef, jax.tree.map(lambda leaf: 2.0 * leaf, params)


@pytest.fixture(scope="module")
def prompts() -> jax.Array:
    rows = np.random.default_rng(0).integers(3, 40, (2, 7))
    rows[1, :4] = 0  # padding
    return jnp.asarray(rows, jnp.int32)


def test_logprobs_equal_those_without_a_cache(model: Any, prompts: jax.Array) -> None:
    """Rotation, shared heads, padding and the cache, against one pass over each row alone."""
    tokens = jax.random.randint(jax.random.key(2), (2, GROUP, LENGTH), 3, 40)
    cached = jax.jit(completion_logprobs, static_argnums=0)(*model, prompts, tokens)
    full = jax.jit(full_logits, static_argnums=0)
    for b, prompt in enumerate(np.asarray(prompts)):
        bare = jnp.asarray(prompt[prompt != 0])[None]
        rows = jnp.broadcast_to(bare, (GROUP, bare.shape[1]))
        logits = full(*model, rows, tokens[b])[:, bare.shape[1] - 1 : -1]
        logprobs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logprobs, tokens[b][..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(chosen, cached[b], rtol=1e-3, atol=1e-4)


def test_sampled_logprobs_are_those_that_training_computes(model: Any, prompts: jax.Array) -> None:
    """One token at a time, and all at once."""
    sample = jax.jit(rollout, static_argnums=0, static_argnames=("group_size", "max_new_tokens"))
    found = sample(*model, prompts, jax.random.key(1), group_size=GROUP, max_new_tokens=LENGTH)
    again = jax.jit(completion_logprobs, static_argnums=0)(*model, prompts, found.tokens)
    expected = jnp.where(found.mask, again, 0.0)
    np.testing.assert_allclose(found.logprobs, expected, rtol=1e-3, atol=1e-4)


def test_gradients_in_chunks_are_the_same(model: Any, prompts: jax.Array) -> None:
    tokens = jax.random.randint(jax.random.key(2), (2, GROUP, LENGTH), 3, 40)
    weights = jax.random.normal(jax.random.key(3), tokens.shape)

    @jax.jit
    def gradients(params: Any) -> tuple[Any, Any]:
        def loss(params: Any, chunk: int) -> jax.Array:
            logprobs = completion_logprobs(model[0], params, prompts, tokens, chunk=chunk)
            return jnp.sum(weights * logprobs)

        return jax.grad(loss)(params, 0), jax.grad(loss)(params, 1)

    whole, parts = gradients(model[1])
    chex.assert_trees_all_close(whole, parts, rtol=1e-3, atol=1e-4)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(whole)) > 0.1


def test_rotation_keeps_products_of_equal_distances() -> None:
    query, key = np.random.default_rng(1).normal(size=(2, 1, 1, 8)).astype(np.float32)

    def product(i: int, j: int) -> float:
        return float(
            jnp.sum(rotate(query, jnp.array([i]), 100.0) * rotate(key, jnp.array([j]), 100.0))
        )

    assert product(5, 2) == pytest.approx(product(9, 6), rel=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-2)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"key_heads=3 does not divide heads=4"):
        LlamaConfig(heads=4, key_heads=3)
    with pytest.raises(ValueError, match=r"depth=0"):
        LlamaConfig(depth=0)
