"""The quick compiler: the same values, in every kind of call, and only where it is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import bots
from bots_jax.numerics import compiling
from bots_jax.numerics.compiling import SMALL, jit_by_size, jit_changes


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


def test_what_does_not_change_is_not_copied() -> None:
    """Also within an outer jit, and beside fields that are None."""

    @jit_changes
    def add(state: tuple[Any, ...], more: jax.Array) -> tuple[tuple[Any, ...], jax.Array]:
        kept, changed, nothing = state
        return (kept, changed + more, nothing), 2 * more

    state = jnp.arange(4.0), jnp.ones(4), None
    (kept, changed, nothing), twice = add(state, jnp.float32(3))
    assert kept is state[0]
    assert nothing is None
    np.testing.assert_array_equal(changed, np.full(4, 4.0))
    assert float(twice) == 6
    (inner, _, _), _ = jax.jit(add)(state, jnp.float32(3))
    np.testing.assert_array_equal(inner, state[0])


@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_a_plain_call_copies_only_what_it_changes(form: str) -> None:
    """`select` opens visits; references, posteriors and pending evidence stay where they are."""
    selector = bots(batch_size=2, representation=form)
    state = selector.init(np.full((2, 8), 0.5, np.float32))
    after, batch = selector.select(jax.random.key(0), state)
    assert after.bookkeeping.trials is state.bookkeeping.trials
    assert after.known.reference.rates is state.known.reference.rates
    assert after.bookkeeping.visit is not state.bookkeeping.visit
    assert selector.abandon(after, batch.task_ids).bookkeeping.trials is state.bookkeeping.trials


def test_options_that_another_version_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_QUICK", {"no_such_option": 1})
    values = jnp.linspace(-1, 1, 64)
    function = jit_by_size(bent)
    for _ in range(2):
        np.testing.assert_allclose(function(values), bent(values), rtol=1e-5)
