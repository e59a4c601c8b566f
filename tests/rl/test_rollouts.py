"""The sampler against a plain one without cache or early stop; gradients against differences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bots_jax
from bots_jax.rl import loop
from bots_jax.rl.policy import PolicyConfig, full_logits, make_policy
from bots_jax.rl.policy_gradient import Batch, GradientConfig, completion_logprobs, surrogate
from bots_jax.rl.rollouts import _invert, rollout
from bots_jax.rl.tasks import BOS, EOS, PAD, decode, encode_prompts, generate_split
from bots_jax.rl.tasks import python_verifier as from_python

WIDTH = 16
CONFIG = PolicyConfig(width=WIDTH, depth=2, heads=2, mlp_width=32)
TINY = PolicyConfig(width=8, depth=1, heads=2, mlp_width=8)
sample = jax.jit(rollout, static_argnums=0, static_argnames=("group_size", "max_new_tokens"))


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    """A random policy that ends with probability of about 1/2 at every token."""
    graphdef, params = make_policy(CONFIG, jax.random.key(1))
    direction = jnp.ones(WIDTH) / WIDTH**0.5
    # The last layer adds a large constant vector, so the final norm is close to it ...
    bias = params["layers"][1]["down"]["bias"]
    params["layers"][1]["down"]["bias"] = bias + 12.0 * direction
    # ... and EOS reads it off as a logit of about log(97) against the others' 0.
    embedding = params["embedding"] - (params["embedding"] @ direction)[:, None] * direction
    params["embedding"] = embedding.at[EOS].set(np.log(97) / WIDTH**0.5 * direction)
    return graphdef, params


@pytest.fixture(scope="module")
def prompts() -> jax.Array:
    return jnp.asarray(encode_prompts(["12+34=", "7?9=", "s5120=", "r1="]))


def plain_rollout(policy: Any, prompts: jax.Array, key: jax.Array, group: int, length: int) -> Any:
    """All `length` tokens, each from a forward pass over everything; PAD after EOS at the end."""
    rows, columns = jnp.repeat(prompts, group, axis=0), prompts.shape[1] - 1
    tokens = np.full((len(rows), length), PAD, np.int32)
    forward = jax.jit(full_logits, static_argnums=0)
    for step in range(length):
        logits = forward(*policy, rows, tokens)[:, columns + step]
        logprobs = jax.nn.log_softmax(logits).reshape(len(prompts), group, -1)
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logprobs)
        tokens[:, step] = np.asarray(drawn).reshape(-1)
    ended = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS)
    return np.where(ended > 0, PAD, tokens).reshape(len(prompts), group, length)


def test_tokens_of_a_large_vocabulary_are_drawn_by_one_number_each() -> None:
    """The distribution function, inverted in two steps, against one step in float64."""
    rng = np.random.default_rng(0)
    logits = 4.0 * rng.normal(size=(2, 3, 5000)).astype(np.float32)
    logits[..., ::7] = -np.inf
    logits[0, 0, :4900] = -np.inf  # the blocks before the last are empty
    logprobs = jax.nn.log_softmax(jnp.asarray(logits))
    upto = np.cumsum(np.exp(np.asarray(logprobs, np.float64)), axis=-1)
    for uniform in (*rng.random((40, 2, 3)), np.zeros((2, 3)), np.full((2, 3), 1 - 2**-24)):
        token = np.asarray(_invert(jnp.asarray(uniform, jnp.float32), logprobs))
        at = np.take_along_axis(upto, token[..., None], -1)[..., 0]
        chance = np.exp(np.take_along_axis(np.asarray(logprobs), token[..., None], -1)[..., 0])
        assert np.all(chance > 0)
        place = uniform * upto[..., -1]
        assert np.all((at > place - 1e-5) & (at - chance < place + 1e-5))


def test_stopping_early_changes_nothing(policy: Any, prompts: jax.Array) -> None:
    stopped_early = 0
    for seed in range(3):
        key = jax.random.key(seed)
        found = sample(*policy, prompts, key, group_size=2, max_new_tokens=8)
        np.testing.assert_array_equal(found.tokens, plain_rollout(policy, prompts, key, 2, 8))
        stopped_early += int(found.lengths.max()) < 8
    assert stopped_early > 0, "no batch ended early: the policy of this test is too long-winded"


def test_fewer_columns_of_room_cut_the_same_completions(policy: Any, prompts: jax.Array) -> None:
    long = sample(*policy, prompts, jax.random.key(5), group_size=4, max_new_tokens=8)
    short = sample(*policy, prompts, jax.random.key(5), group_size=4, max_new_tokens=3)
    np.testing.assert_array_equal(short.tokens, long.tokens[..., :3])
    np.testing.assert_allclose(short.logprobs, long.logprobs[..., :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "dr_grpo", "maxrl"])
def test_gradient_agrees_with_central_differences(prompts: jax.Array, estimator: str) -> None:
    """Along random directions, in float64, clipping and divergence included."""
    graphdef, params = make_policy(TINY, jax.random.key(2))
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 98, (4, 3, 5))
    config = GradientConfig(estimator=estimator, kl_weight=0.2)  # type: ignore[arg-type]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        forward = jax.jit(completion_logprobs, static_argnums=0)
        now = forward(graphdef, params, prompts, jnp.asarray(tokens))
        batch = Batch(
            prompts, jnp.asarray(tokens), jnp.asarray(rng.random((4, 3, 5)) < 0.8),
            now + rng.normal(0, 0.3, now.shape), jnp.asarray(rng.random((4, 3))),
            jnp.asarray([True, True, False, True]), now + rng.normal(0, 0.3, now.shape),
        )  # fmt: skip

        def loss(params: Any) -> jax.Array:
            logprobs = completion_logprobs(graphdef, params, prompts, batch.tokens)
            return surrogate(logprobs, batch, config)[0]

        loss = jax.jit(loss)
        gradient = jax.jit(jax.grad(loss))(params)
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        ahead, behind = (
            loss(jax.tree.map(lambda leaf, d, s=sign: leaf + s * 1e-6 * d, params, way))
            for sign in (1, -1)
        )
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, way)
        slope = sum(float(product) for product in jax.tree.leaves(products))
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4)


def test_python_verifier_inside_the_scanned_loop(policy: Any) -> None:
    """The reward of a plain function reaches selector and policy from inside one scan."""
    pool = generate_split("train", 40, seed=1)
    texts = decode(pool.prompts)
    wanted = {text: index % 2 for index, text in enumerate(texts)}
    verifier = from_python(lambda prompt, text: float(wanted[prompt]), pool.prompts)
    config = loop.LoopConfig(group_size=2, max_new_tokens=3)
    selector = bots_jax.bots(batch_size=8, rollouts=2)
    step = loop.make_step(selector, policy[0], jnp.asarray(pool.prompts), verifier, config)
    state = loop.init_loop(policy[1], selector.init(num_tasks=40), config, seed=0)
    _, metrics = jax.jit(lambda state: jax.lax.scan(step, state, length=3))(state)
    np.testing.assert_array_equal(metrics.successes, 2.0 * (metrics.task_ids % 2))


def test_padding_and_start_are_no_text() -> None:
    assert decode([[PAD, BOS, 40, 41], [PAD, PAD, PAD, BOS]]) == ["EF", ""]
