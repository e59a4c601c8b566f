"""Inverses of small matrices that are positive definite.

In: the Cholesky factor L f[F, F] of one. Out: (L L')^-1. LAPACK's solver for triangular matrices
is handed to several threads by the library that jaxlib brings, however small they are: from 33
columns on it takes tens of milliseconds on a busy machine, and forward substitution some
microseconds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.types import Array


@jax.jit  # or a loop that is called by itself is compiled anew each time
def inverse(factor: Array) -> Array:
    """f[F, F]: the inverse of L L', of L f[F, F]."""
    size = factor.shape[0]
    places = jnp.arange(size, dtype=jnp.int32)

    def next_row(at: Array, done: Array) -> Array:
        row = lax.dynamic_index_in_dim(factor, at, keepdims=False)
        before = jnp.sum(jnp.where(places < at, row, 0)[:, None] * done, axis=0)
        new = (jnp.where(places == at, 1, 0) - before) / row[at]
        return lax.dynamic_update_index_in_dim(done, new, at, 0)

    inverted = lax.fori_loop(0, size, next_row, jnp.zeros_like(factor))
    return jnp.matmul(inverted.T, inverted, precision=lax.Precision.HIGHEST)
