"""Checks of arguments whose values are known on the host.

In: whatever a user passes. Out: a ValueError that names the argument, its value and the
way out, or nothing. Traced values pass unseen: looking at them would break jit and vmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(*values: Any) -> bool:
    """Whether every array in `values` is concrete, not traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Check a static size: an integer of at least `least`."""
    if not is_concrete(value):
        raise ValueError(
            f"{name} is traced, and sizes are fixed when a program is compiled: give a Python "
            "number, or make it static (static_argnums of jax.jit)"
        )
    if isinstance(value, jax.Array | np.ndarray) and np.shape(value) == ():
        value = np.asarray(value)[()]
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    return int(value)


def check_number(name: str, value: Any, least: float, most: float) -> float:
    """Check a static number: it must be in [least, most]."""
    if not is_concrete(value):
        raise ValueError(f"{name} is traced, and is fixed when a selector is made: give a number")
    if isinstance(value, str) or np.shape(value) != () or not least <= float(value) <= most:
        raise ValueError(f"{name}={value!r} must lie in [{least}, {most}]")
    return float(value)


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
    """Check a static name: it must be one of the known names."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(known)}")
    return value


def host_numbers(name: str, value: Any, *, copy: bool = True, hint: str = "") -> Any:
    """What a user gives as a NumPy array of numbers; arrays of JAX, traced ones too, as they are.

    JAX reads NumPy arrays after a call has returned, so a buffer that is filled anew at once would
    be read half changed: hence the copy. None, and what a masked array hides, is NaN.

    Args:
      copy: whether the array must be no view of what was given.
      hint: what to do where it holds no numbers.

    Raises:
      ValueError: naming the argument, if it holds no numbers, or rows of several lengths.
    """
    if isinstance(value, jax.Array):
        return value
    if not is_concrete(value):
        return jnp.asarray(value)
    try:
        value = without_mask(value) if isinstance(value, np.ma.MaskedArray) else value
        array = np.array(value) if copy else np.asarray(value)
        array = array.astype(np.float64) if array.dtype == object else array
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} is no array of numbers: {error}. Give rows of one length, NaN where nothing "
            "is known"
        ) from None
    real = array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.integer)
    if not real and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected numbers{hint}")
    return array


def numbers_or_none(name: str, value: Any, *, copy: bool = True, hint: str = "") -> Any:
    """`host_numbers` of what a user may leave out."""
    return None if value is None else host_numbers(name, value, copy=copy, hint=hint)


def without_mask(value: Any) -> np.ndarray:
    """A masked array of numbers as a plain one; where it hides any, in float64, and those NaN."""
    hides = np.ma.is_masked(value)
    return np.ma.filled(value.astype(np.float64), np.nan) if hides else value.data


def wide_float(dtype: Any) -> Any:
    """A float dtype to sum in: 64 bits for those of 64, where JAX has them, else 32."""
    wide = dtype == np.float64 and jax.config.read("jax_enable_x64")
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def whole_numbers(name: str, value: Any, beyond: int) -> jax.Array:
    """Whole numbers as i32, refused on the host where they are no such.

    Args:
      beyond: what arrays of JAX have in place of what 32 bits do not hold.

    Raises:
      ValueError: naming the argument, and the first that is too large or too small.
    """
    given = host_numbers(name, value)
    if not given.size and isinstance(given, np.ndarray):
        given = given.astype(np.int32)  # of an empty list
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {given.dtype}, expected integers")
    if given.dtype.itemsize < 4 or given.dtype == np.int32:
        return jnp.asarray(given).astype(jnp.int32)
    least, most = (0 if given.dtype.kind == "u" else -(2**31)), 2**31 - 1
    if isinstance(given, np.ndarray):
        wrong = given[(given < least) | (given > most)]
        if wrong.size:
            raise ValueError(f"{name} contains {wrong.flat[0]}, expected integers of 32 bits")
        return jnp.asarray(given.astype(np.int32))
    inside = given <= given.dtype.type(most)
    if least:
        inside &= given >= given.dtype.type(least)
    return jnp.where(inside, given.astype(jnp.int32), jnp.int32(beyond))
