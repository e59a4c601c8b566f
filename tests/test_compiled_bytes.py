"""Reading what a compiled program moves: small programs whose bytes can be counted by hand."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled_bytes import moved
from bots_jax.numerics.control_flow import lazy_cond

SIZE = 4096
WORDS = np.ones(SIZE, np.float32)


def bytes_of(function: Any, *arguments: Any) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is given away is not always of use
        compiled = jax.jit(function, donate_argnums=0).lower(*arguments).compile()
    return moved(compiled.as_text() or "").bytes


def test_a_pass_reads_and_writes_once() -> None:
    assert bytes_of(lambda x: 2 * x + 1, WORDS) == 2 * 4 * SIZE


def test_what_seldom_runs_does_not_count() -> None:
    """A repair of all tasks that is needed once in a while, and the same where it always runs."""

    def always(x: jax.Array) -> jax.Array:
        return jnp.sort(x) * 2

    def seldom(x: jax.Array) -> jax.Array:
        return lazy_cond(x[0] < 0, always, x)

    assert bytes_of(always, WORDS) >= 2 * 4 * SIZE
    assert bytes_of(seldom, WORDS) < 4 * SIZE


def test_a_loop_counts_as_often_as_it_turns() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 5, lambda i, y: jnp.cumsum(y[::-1]), x)

    once = bytes_of(lambda x: jnp.cumsum(x[::-1]), WORDS)
    assert 4 * once <= bytes_of(loop, WORDS) <= 8 * once


def test_rows_that_are_picked_or_put_count_alone() -> None:
    """In place, where the argument is given away."""
    ids = jnp.arange(4, dtype=jnp.int32)
    few = 64 * 4
    assert bytes_of(lambda x, i: x[i], WORDS, ids) < few
    assert bytes_of(lambda x, i: x.at[i].add(1.0, mode="drop"), WORDS, ids) < few


def test_collectives_are_named_with_their_bytes() -> None:
    mesh = jax.make_mesh((4,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(WORDS, jax.NamedSharding(mesh, jax.P("tasks")))
    whole = jax.NamedSharding(mesh, jax.P())
    text = jax.jit(jnp.sort, out_shardings=whole).lower(spread).compile().as_text() or ""
    found = moved(text)
    assert max(size for _, size, _ in found.collectives) >= 4 * SIZE
    assert {name for name, _, _ in found.collectives} <= set(found.largest)
    assert all(usual for _, _, usual in found.collectives)
