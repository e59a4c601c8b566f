"""Control flow and sequencing that XLA compiles to what was meant.

In: pytrees of arrays. Out: the same, computed only where and when needed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.types import Array, PyTree


def sequencing_zero(done: PyTree, dtype: jnp.dtype) -> Array:
    """0, computed after every array of `done`, all of them finite.

    Prevents copies: XLA overwrites an array in place only if whatever else reads it is known
    to come first. `x * sequencing_zero(y, dtype)` clears x after y was made from it. (The compiler
    may not replace a float times 0, which could be NaN, by 0.)
    """
    firsts = [jnp.ravel(leaf)[0].astype(dtype) for leaf in jax.tree.leaves(done) if leaf.size]
    return jnp.sum(jnp.stack(firsts) * 0)


def lazy_cond(needed: Array, repair: Callable[[PyTree], PyTree], value: PyTree) -> PyTree:
    """`repair(value)` where `needed`, else `value`; not computed where it is not needed.

    `lax.cond` under vmap computes both branches for every lane. A loop of at most one turn
    is left alone as long as no lane needs it.
    """

    def turn(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        with jax.named_scope("rarely"):  # to be told apart in a compiled program
            return jnp.zeros_like(carry[0]), repair(carry[1])

    return lax.while_loop(lambda carry: carry[0], turn, (needed, value))[1]


def either(which: Array, first: PyTree, second: PyTree) -> PyTree:
    """`first` where the scalar `which`, else `second`, both at hand already.

    Copied, not computed: XLA on CPU compiles a function for each array that `jnp.where` makes.
    """
    return lax.cond(which, lambda pair: pair[0], lambda pair: pair[1], (first, second))
