"""Settings of selectors: defaults of `bots` and `auto`, and the range of each number.

In: numbers that a user gives. Out: a full `Settings`, or a ValueError that names the number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bots_jax.checks import is_concrete
from bots_jax.types import Array, Settings

# As published (arXiv 2510.26374).
BOTS_DEFAULTS = Settings(
    target=0.5,
    rollouts=16,
    forgetting=0.1,
    implicit_weight=0.1,
    capability_momentum=0.9,
    temperature=0.0,
    prior_successes=1.0,
    prior_failures=1.0,
    breadth=0.0,
    group=0.0,
)
# forgetting and implicit_weight are the centres of the grid that is searched. The breadth is what
# a policy learns most with where few tasks are solvable (docs/worlds.md, docs/auto.md).
AUTO_DEFAULTS = BOTS_DEFAULTS._replace(forgetting=0.004, implicit_weight=1.0, breadth=0.1)


def merge_settings(base: Settings, override: Settings) -> Settings:
    """`base`, overridden by every number that `override` gives."""
    pairs = zip(base, override, strict=True)
    return Settings(*(old if new is None else new for old, new in pairs))


# Obeyed by every selector: when a visit ends, and the belief that its choice or `predict` rests on.
ALWAYS_OBEYED = ("rollouts", "forgetting", "prior_successes", "prior_failures")


def having(**effects: bool) -> list[str]:
    """The names of the numbers that have an effect, for `compose(obeys=...)`."""
    return [name for name, has_one in effects.items() if has_one]


def refuse_ignored(
    given: Settings | Mapping[str, Any] | None, obeys: frozenset[str] | None, strategy: str
) -> None:
    """Raise for numbers that would have no effect on a selector.

    Args:
      given: names and values; None is not given, unknown names are told elsewhere.
      obeys: the names that have one; None: not known.
    """
    if obeys is None or given is None:
        return
    numbers = given._asdict() if isinstance(given, Settings) else given
    for name, value in numbers.items():
        if name in Settings._fields and name not in obeys and value is not None:
            also = " (noise needs a temperature given to the factory)" * (name == "temperature")
            raise ValueError(
                f"{name}={value} has no effect on this {strategy!r}, which obeys "
                f"{', '.join(sorted(obeys))}{also}: leave it out, or give the factory what uses it"
            )


def is_noisy(settings: Settings) -> bool:
    """Whether the choice adds noise: the temperature is traced, or not 0."""
    temperature = settings.temperature
    return not (is_concrete(temperature) and float(np.asarray(temperature)) == 0)


def group_in_force(settings: Settings) -> Array:
    """The group size G in use: at least 2, because a group of one rollout is never mixed."""
    follows = jnp.maximum(settings.rollouts, 2)
    return jnp.where(settings.group > 0, settings.group, follows)


def first_given(value: Any, otherwise: Any) -> Any:
    """`value`, or `otherwise` if it is None."""
    return otherwise if value is None else value


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
    "group": (0, math.inf, True, False),
}


def check_settings(settings: Settings) -> None:
    """Raise for numbers out of range; None and traced numbers pass."""
    group = settings.group
    if group is not None and is_concrete(group) and np.shape(group) == () and 0 < float(group) < 2:
        raise ValueError(f"group={float(group)} must be at least 2: one rollout is never mixed")
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
