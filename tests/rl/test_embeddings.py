"""What the policy makes of prompts, as vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bots_jax import features
from bots_jax.rl.embeddings import embed_tasks
from bots_jax.rl.policy import PolicyConfig, full_logits, make_policy, prompt_states
from bots_jax.rl.tasks import PAD, generate_tasks

CONFIG = PolicyConfig(width=16, depth=2, heads=2, mlp_width=32)
POOL, _ = generate_tasks(40, 16)
PROMPTS = jnp.asarray(POOL.prompts)


@pytest.fixture(scope="module")
def policy():
    return make_policy(CONFIG, jax.random.key(0))


def test_states_are_those_that_the_logits_are_made_of(policy) -> None:
    graphdef, params = policy
    states = np.asarray(prompt_states(graphdef, params, PROMPTS), np.float64)
    normed = states / np.sqrt(np.mean(states**2, axis=-1, keepdims=True) + 1e-6)
    normed *= np.asarray(params["final_norm"]["scale"])
    wanted = full_logits(graphdef, params, PROMPTS, jnp.zeros((len(PROMPTS), 0), jnp.int32))
    real = np.asarray(PROMPTS) != PAD
    found = normed @ np.asarray(params["embedding"], np.float64).T
    np.testing.assert_allclose(found[real], np.asarray(wanted)[real], atol=1e-4)


def test_embeddings_are_white_and_span_the_means_over_real_tokens(policy) -> None:
    graphdef, params = policy
    z = np.asarray(embed_tasks(graphdef, params, PROMPTS, components=6, chunk=16), np.float64)
    assert z.shape == (6, 40)
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(z @ z.T / 40, np.eye(6), atol=2e-3)
    states = np.asarray(prompt_states(graphdef, params, PROMPTS), np.float64)
    real = (np.asarray(PROMPTS) != PAD)[..., None]
    means = (states * real).sum(axis=1) / real.sum(axis=1)
    left, _, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    cosines = np.linalg.svd(left[:, :6].T @ z.T / np.sqrt(40), compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)  # the same six directions


def test_padding_changes_nothing_and_prompts_all_alike_are_zero(policy) -> None:
    graphdef, params = policy
    short = PROMPTS[:, (np.asarray(PROMPTS) != PAD).any(axis=0)]
    wide = jnp.pad(short, ((0, 0), (CONFIG.max_prompt - short.shape[1], 0)))
    z = [np.asarray(embed_tasks(graphdef, params, each, components=4)) for each in (short, wide)]
    np.testing.assert_allclose(np.abs(z[0]), np.abs(z[1]), atol=1e-2)  # but for the signs
    for tasks in (1, 3, 5, 40):
        same = embed_tasks(graphdef, params, jnp.tile(PROMPTS[:1], (tasks, 1)))
        np.testing.assert_array_equal(same, np.zeros((16, tasks)))  # not whitened rounding
    with pytest.raises(ValueError, match="components=0 must be an integer"):
        embed_tasks(graphdef, params, PROMPTS, components=0)


def test_hidden_states_of_a_model_span_what_embed_tasks_makes_of_it(policy) -> None:
    model = nnx.merge(*policy)
    x = features.hidden_states(model, np.asarray(PROMPTS), pad=PAD, chunk=16)
    assert x.shape == (40, 32)
    z = np.asarray(embed_tasks(*policy, PROMPTS, components=16), np.float64).T
    design = x[:, x.var(axis=0) > 0.5].astype(np.float64)
    assert design.shape[1] >= 10
    fitted = z @ np.linalg.lstsq(z, design, rcond=None)[0]
    np.testing.assert_allclose(fitted, design, atol=2e-2)  # linear in the same means
    longer = np.pad(np.asarray(PROMPTS), ((0, 0), (CONFIG.max_prompt, 0)))
    with pytest.raises(ValueError, match="max_prompt"):
        features.hidden_states(model, longer, pad=PAD)
