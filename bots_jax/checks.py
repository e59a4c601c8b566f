"""The host boundary: checks of values that can be looked at.

In: whatever a user passes. Out: a ValueError that names the argument, its value and the
way out, or nothing. Traced values pass unseen: looking at them would break jit and vmap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bots_jax.types import Settings


def is_concrete(*values: Any) -> bool:
    """Whether every array in `values` can be looked at on the host."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_count(name: str, value: Any, least: int = 1) -> int:
    """A static size: an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    return int(value)


def check_number(name: str, value: Any, least: float, most: float) -> float:
    """A static number in [least, most]."""
    if not is_concrete(value):
        raise ValueError(f"{name} is traced, and is fixed when a selector is made: give a number")
    if isinstance(value, str) or np.shape(value) != () or not least <= float(value) <= most:
        raise ValueError(f"{name}={value!r} must lie in [{least}, {most}]")
    return float(value)


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
    """A static name: one of those known."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: choose one of {', '.join(known)}")
    return value


# name: (least, most, whether least itself, whether most itself is allowed)
_RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "target": (0, 1, False, False),
    "rollouts": (0, math.inf, False, False),
    "forgetting": (0, 1, True, True),
    "implicit_weight": (0, 1, True, True),
    "capability_momentum": (0, 1, True, False),
    "temperature": (0, math.inf, True, False),
    "prior_successes": (0, math.inf, False, False),
    "prior_failures": (0, math.inf, False, False),
    "breadth": (0, math.inf, True, False),
}


def check_settings(settings: Settings) -> None:
    """Refuse numbers out of range; None and traced numbers pass."""
    for name, value in settings._asdict().items():
        if value is not None and np.shape(value) != ():
            raise ValueError(
                f"{name} has shape {np.shape(value)}, expected a scalar: to sweep it, "
                "jax.vmap over init"
            )
        if value is not None and is_concrete(value):
            _check_range(name, float(value))


def _check_range(name: str, value: float) -> None:
    least, most, with_least, with_most = _RANGES[name]
    above = value >= least if with_least else value > least
    below = value <= most if with_most else value < most
    if not (above and below):
        opening, closing = "[" if with_least else "(", "]" if with_most else ")"
        raise ValueError(f"{name}={value} must lie in {opening}{least}, {most}{closing}")
