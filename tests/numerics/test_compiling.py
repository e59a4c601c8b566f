"""The quick compiler: the same values, in every kind of call, and only where it is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.numerics import compiling
from bots_jax.numerics.compiling import SMALL, jit_by_size


def bent(x: jax.Array) -> jax.Array:
    return jnp.cumsum(jnp.tanh(x) * jnp.exp(-x * x))


def kinds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two programs are called from here on: "usual" and "quick"."""
    called: list[str] = []
    real = jax.jit

    def jit(function: Any, **options: Any) -> Callable[..., Any]:
        kind = "quick" if "compiler_options" in options else "usual"
        made = real(function, **options)

        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(kind)
            return made(*args, **kwargs)

        return call

    monkeypatch.setattr(compiling.jax, "jit", jit)
    return called


@pytest.mark.parametrize(("size", "kind"), [(SMALL, "quick"), (SMALL + 1, "usual")])
def test_by_size(monkeypatch: pytest.MonkeyPatch, size: int, kind: str) -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("the quick compiler is for CPUs")
    called = kinds(monkeypatch)
    values = jnp.linspace(-3, 3, size)
    got = jit_by_size(bent)(values)
    assert called == [kind]
    np.testing.assert_allclose(got, bent(values), rtol=1e-4, atol=1e-4)


def test_inside_of_other_transformations() -> None:
    """Also where an outer jit traces none of the arguments, in which no options are allowed."""
    function, values = jit_by_size(bent), jnp.linspace(-1, 1, 64)
    want = bent(values)
    np.testing.assert_allclose(jax.jit(function)(values), want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda: function(values))(), want, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(function)(values[None])[0], want, rtol=1e-5)


def test_options_that_another_version_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_QUICK", {"no_such_option": 1})
    values = jnp.linspace(-1, 1, 64)
    function = jit_by_size(bent)
    for _ in range(2):
        np.testing.assert_allclose(function(values), bent(values), rtol=1e-5)
