"""The policy and its sampler: cached equals full, and log-probabilities are those drawn from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.rl import policy as policies
from bots_jax.rl import policy_gradient, rollouts
from bots_jax.rl.policy import PolicyConfig, make_policy
from bots_jax.rl.rollouts import pass_rates
from bots_jax.rl.tasks import EOS, PAD, encode_prompts

CONFIG = PolicyConfig(width=16, depth=2, heads=2, mlp_width=32)
GROUP, LENGTH = 3, 6
# Jitted, as they are used: operation by operation hundreds of small programs would be compiled.
full_logits = jax.jit(policies.full_logits, static_argnums=0)
prefill = jax.jit(policies.prefill, static_argnums=(0, 3, 4))
extend = jax.jit(policies.extend, static_argnums=0)
rollout = jax.jit(
    rollouts.rollout,
    static_argnums=0,
    static_argnames=("group_size", "max_new_tokens", "temperature"),
)
completion_logprobs = jax.jit(policy_gradient.completion_logprobs, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    graphdef, params = make_policy(CONFIG, jax.random.key(0))
    # Sharper logits than at initialisation, so that a wrong position would show.
    return graphdef, jax.tree.map(lambda leaf: 2.0 * leaf, params)


@pytest.fixture(scope="module")
def prompts() -> jax.Array:
    return jnp.asarray(encode_prompts(["12+34", "7?9", "s5120", "r1"], 9))


def after_prompt(policy: tuple[Any, Any], prompts: jax.Array) -> jax.Array:
    """f[B, V], the logits of the first token of an answer."""
    nothing = jnp.zeros((len(prompts), 0), jnp.int32)
    return full_logits(*policy, prompts, nothing)[:, -1]


def test_cached_logits_equal_full_logits(policy: tuple[Any, Any], prompts: jax.Array) -> None:
    """Token by token, and all at once, after prompts of different lengths."""
    completions = jax.random.randint(jax.random.key(1), (4, GROUP, LENGTH), 3, 90)
    cache = prefill(*policy, prompts, GROUP, LENGTH)
    last = jnp.broadcast_to(prompts[:, -1:], (4, GROUP))
    steps = []
    for t in range(LENGTH):
        logits, cache = extend(*policy, cache, last[..., None])
        steps.append(logits[..., 0, :])
        last = completions[..., t]
    one_by_one = jnp.stack(steps, axis=2)
    repeated = jnp.repeat(prompts[:, None], GROUP, axis=1)
    full = full_logits(
        *policy, repeated.reshape(4 * GROUP, -1), completions.reshape(4 * GROUP, -1)
    )[:, prompts.shape[1] - 1 : -1]
    full = full.reshape(4, GROUP, LENGTH, -1)
    np.testing.assert_allclose(one_by_one, full, rtol=2e-4, atol=2e-4)
    assert np.std(full) > 0.1


def test_padding_does_not_matter(policy: tuple[Any, Any]) -> None:
    """More padding on the left changes nothing; a token in its place does."""
    prompt = jnp.asarray(encode_prompts(["7?9"], 9))
    assert int(prompt[0, 0]) == PAD
    logits = after_prompt(policy, prompt)
    longer = after_prompt(policy, jnp.asarray(encode_prompts(["7?9"], 14)))
    np.testing.assert_allclose(logits, longer, rtol=2e-4, atol=2e-4)
    seen = after_prompt(policy, prompt.at[0, 0].set(40))
    assert float(jnp.abs(seen - logits).max()) > 1e-3


def test_logprobs_are_of_the_distribution_drawn_from(
    policy: tuple[Any, Any], prompts: jax.Array
) -> None:
    for temperature in (1.0, 0.7):
        found = rollout(
            *policy, prompts, jax.random.key(2),
            group_size=GROUP, max_new_tokens=LENGTH, temperature=temperature,
        )  # fmt: skip
        again = completion_logprobs(*policy, prompts, found.tokens, temperature)
        mask = np.asarray(found.mask)
        np.testing.assert_allclose(np.asarray(again)[mask], found.logprobs[mask], atol=2e-4)
        assert np.all(np.asarray(found.logprobs)[~mask] == 0)


def test_masks_end_at_eos(policy: tuple[Any, Any], prompts: jax.Array) -> None:
    graphdef, params = policy
    eager = jax.tree.map(lambda leaf: leaf, params)
    eager["embedding"] = params["embedding"].at[EOS].mul(3.0)  # EOS becomes likely
    found = rollout(
        graphdef, eager, prompts, jax.random.key(3), group_size=64, max_new_tokens=LENGTH
    )
    tokens, mask = np.asarray(found.tokens), np.asarray(found.mask)
    ended = 0
    for row, kept, length in zip(
        tokens.reshape(-1, LENGTH), mask.reshape(-1, LENGTH), found.lengths.ravel(), strict=True
    ):
        ends = np.flatnonzero(row == EOS)
        expected = int(ends[0]) + 1 if ends.size else LENGTH
        ended += ends.size > 0
        assert kept.sum() == length == expected
        assert np.all(row[expected:] == PAD)
    assert ended > 0


def test_sampling_has_the_right_distribution(policy: tuple[Any, Any], prompts: jax.Array) -> None:
    """First tokens of 4,000 completions against the softmax: a z test that fails by chance 1e-6."""
    group = 4000
    found = rollout(*policy, prompts[:1], jax.random.key(4), group_size=group, max_new_tokens=1)
    expected = np.asarray(jax.nn.softmax(after_prompt(policy, prompts[:1])[0]))
    counts = np.bincount(np.asarray(found.tokens).ravel(), minlength=len(expected))
    likely = expected * group > 20
    z = (counts - group * expected) / np.sqrt(group * expected * (1 - expected))
    assert likely.sum() >= 3
    assert np.abs(z[likely]).max() < 5.6


def test_greedy_takes_the_best(policy: tuple[Any, Any], prompts: jax.Array) -> None:
    found = rollout(
        *policy, prompts, jax.random.key(5), group_size=1, max_new_tokens=1, temperature=0.0
    )
    best = jnp.argmax(after_prompt(policy, prompts), axis=-1)
    np.testing.assert_array_equal(found.tokens[:, 0, 0], best)


def test_pass_rates_in_chunks_are_each_task_s_own(
    policy: tuple[Any, Any], prompts: jax.Array
) -> None:
    """Four prompts in chunks of three: rows that fill the last one up are not counted."""
    best = jnp.argmax(after_prompt(policy, prompts), axis=-1)
    assert len(np.unique(best)) == 4

    def is_the_task_s_own(task_ids: jax.Array, completions: jax.Array) -> jax.Array:
        return (completions[..., 0] == best[task_ids][:, None]) * (task_ids[:, None] + 1) / 4

    asked = {"rollouts": 5, "max_new_tokens": 1, "temperature": 0.0, "chunk": 3}
    rates = pass_rates(*policy, prompts, is_the_task_s_own, jax.random.key(6), **asked)
    np.testing.assert_array_equal(rates.successes, 5 * np.arange(1, 5) / 4)
    assert int(rates.tokens) == 4 * 5


@pytest.mark.parametrize(
    ("sizes", "message"), [({"width": 0}, "width=0"), ({"heads": 5}, "heads=5 does not divide")]
)
def test_bad_sizes(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**sizes)
