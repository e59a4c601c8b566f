"""Checks of arguments whose values are known on the host.

In: whatever a user passes. Out: a ValueError that names the argument, its value and the
way out, or nothing. Traced values pass unseen: looking at them would break jit and vmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
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
