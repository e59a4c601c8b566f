"""`jax.jit` that spends less on compiling programs of small arrays.

In: a function of arrays. Out: the same, jitted. Nearly all that XLA on CPU takes to compile a
step is LLVM's optimisation of some hundred loops. Over thousands of numbers these take
microseconds however they are compiled, so there they are compiled as they stand: three times
sooner, and a step called by itself takes one to four milliseconds more. In a caller's own `jit`,
`scan` or `vmap` everything is compiled as usual. In grouped pools what counts is not the tasks,
which a step does not look at one by one, but the slots.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import numpy as np

from bots_jax.checks import is_concrete

# Programs whose arrays are at most so long are compiled quickly.
SMALL = 2**15
_QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

P = ParamSpec("P")
R = TypeVar("R")


def jit_by_size(
    function: Callable[P, R], small: Callable[[tuple[object, ...]], bool] | None = None
) -> Callable[P, R]:
    """`jax.jit`; on a CPU, small concrete arrays get a program that is compiled quickly.

    Args:
      small: whether these arguments are, and none of them is traced; None: `is_small`.
    """
    small = is_small if small is None else small
    usual = jax.jit(function)
    quick = jax.jit(function, compiler_options=_QUICK)
    refused = False

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal refused
        if refused or jax.default_backend() != "cpu" or not small((*args, *kwargs.values())):
            return usual(*args, **kwargs)
        try:
            return quick(*args, **kwargs)
        except ValueError:  # no options inside of an outer jit that traces none of the arguments
            return usual(*args, **kwargs)
        except jax.errors.JaxRuntimeError:  # another jaxlib, which has other options
            refused = True
            return usual(*args, **kwargs)

    return call


def is_small(arguments: object) -> bool:
    """Whether all arrays are concrete and none is longer than `SMALL`."""
    leaves = jax.tree.leaves(arguments)
    return is_concrete(leaves) and all(max(np.shape(leaf), default=0) <= SMALL for leaf in leaves)


S = TypeVar("S")


def jit_changes(
    function: Callable[..., tuple[S, R]],
    small: Callable[[tuple[object, ...]], bool] | None = None,
) -> Callable[..., tuple[S, R]]:
    """`jit_by_size` of a function (state, ...) -> (state, more), which copies no array in vain.

    A program that returns an argument copies it, if it is not donated. Arrays that come out as they
    went in, the same objects, are not returned by the program but put back beside what is.
    """

    def changes(state: S, *rest: object) -> tuple[S, R]:
        after, more = function(state, *rest)
        kept = jax.tree.map(lambda new, old: None if new is old else new, after, state)
        return kept, more

    program = jit_by_size(functools.wraps(function)(changes), small)

    @functools.wraps(function)
    def call(state: S, *rest: object) -> tuple[S, R]:
        changed, more = program(state, *rest)
        return _put_back(changed, state), more

    return call


def _put_back(changed: S, state: S) -> S:
    """What changed, and the rest of the state."""
    whole: S = jax.tree.map(
        lambda new, old: old if new is None else new, changed, state, is_leaf=lambda x: x is None
    )
    return whole


def room_beside(count: int) -> int:
    """What is missing to the next power of two, so that few sizes are compiled for; of 0, none."""
    return (1 << (count - 1).bit_length()) - count if count else 0
