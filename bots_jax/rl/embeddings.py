"""Tasks as vectors: what the policy makes of their prompts.

In: a policy and the prompts of the pool. Out: f[E, N] for `reference.TaskFeatures`, by which
strategies and estimators tell tasks that are alike. A prompt is the mean over its tokens of
the last layer's residual stream, as in the code of DOTS (arXiv 2506.05316), where the model is
another one; then come principal components, whitened, so that no few directions decide alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bots_jax.checks import check_count
from bots_jax.rl.policy import GraphDef, Params, prompt_states
from bots_jax.rl.tasks import PAD

Array = jax.Array
_NO_DIRECTION = 1e-6  # of the largest variance: what is smaller is rounding
_ROUNDING = 10  # units in the last place that means over all prompts may be off by


def embed_tasks(
    graphdef: GraphDef,
    params: Params,
    prompts: Array,
    *,
    components: int = 64,
    chunk: int = 256,
) -> Array:
    """Embeddings f[E, N] of prompts i32[N, P], of mean 0 and variance 1; jit it.

    Args:
      components: E at most; the width of the policy if that is less.
      chunk: prompts read at a time.

    Directions in which the prompts do not differ are 0.
    """
    check_count("components", components)
    prompts = jnp.asarray(prompts)

    def one(prompt: Array) -> Array:
        states = prompt_states(graphdef, params, prompt[None])[0]
        real = (prompt != PAD).astype(states.dtype)
        return real @ states / jnp.maximum(jnp.sum(real), 1)

    means = jax.lax.map(one, prompts, batch_size=min(chunk, len(prompts)))
    return _whitened(means.astype(jnp.promote_types(means.dtype, jnp.float32)), components)


def _whitened(x: Array, components: int) -> Array:
    """The first principal components of f[N, D], each of variance 1: f[E, N]."""
    # Of prompts all alike the largest variance is rounding itself, told by the size of x.
    rounding = (_ROUNDING * jnp.finfo(x.dtype).eps) ** 2 * jnp.sum(x**2) / len(x)
    x = x - jnp.mean(x, axis=0)
    with jax.default_matmul_precision("highest"):
        variance, directions = jnp.linalg.eigh(x.T @ x / len(x))
        kept = variance[::-1][:components]
        real = kept > jnp.maximum(_NO_DIRECTION * variance[-1], rounding)
        scale = jnp.where(real, jnp.where(real, kept, 1) ** -0.5, 0)
        return (x @ directions[:, ::-1][:, :components] * scale).T
