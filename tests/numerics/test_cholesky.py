"""Inverses of small matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.numerics import cholesky


@pytest.mark.parametrize("size", [1, 2, 33, 64])
def test_inverse_agrees_with_lapack(size: int) -> None:
    """Of matrices as a regression has them, some directions told much of and some little."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=(size, 3 * size)) * np.geomspace(1, 30, size)[:, None]
    matrix = x @ x.T + np.eye(size)
    expected = np.linalg.inv(matrix)
    found = jax.jit(cholesky.inverse)(jnp.linalg.cholesky(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
