"""The side information a strategy of a command gets, by its name's ending: "auto+prompts".

In: a name. Out: its strategy, and one of `TOLD`. Without an ending a strategy gets references if
there are any, or else prompts (or other features) if it can use them, as in the adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bots_jax.checks import check_choice
from bots_jax.compose import can_use_features
from bots_jax.types import Selector

TOLD = ("nothing", "prompts", "references", "everything")
HELP = (
    "with an ending for the side information it gets: +nothing, +prompts, +references or "
    "+everything; without one: references if there are any, else prompts"
)


def rule_of(name: str) -> str:
    """The strategy that a name stands for, without its ending."""
    return name.partition("+")[0]


def ending_of(name: str) -> str | None:
    """The side information that a name ends with, or None.

    Raises:
      ValueError: where the ending is not one of `TOLD`.
    """
    _, plus, told = name.partition("+")
    return check_choice("told", told, TOLD) if plus else None


def resolve(told: str | None, selector: Selector, *, references: bool, prompts: bool) -> str:
    """One of `TOLD`: as given, or by what is available.

    Args:
      told: what was said; None for nothing.
      references, prompts: whether there are any pass rates, and any prompts or features.
    """
    if told is not None:
        return told
    usable = prompts and not references and can_use_features(selector.static)
    return "prompts" if usable else "references"


def say_who_is_told(names: Iterable[str], columns: int) -> str:
    """A line of the strategies that got prompts without being asked, for people; or none."""
    listed = list(names)
    if not listed:
        return ""
    return (
        f"no references: {', '.join(listed)} told {columns} numbers of each prompt; "
        f"{listed[0]}+nothing turns this off"
    )


def read_features(
    name: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    size: int,
    kept: npt.NDArray[np.bool_] | None = None,
) -> Any:
    """What a file says of each task, for `selector.init(features=...)`; None: nothing.

    Args:
      name: of the file, for what is said of errors.
      arrays: those of the file.
      size: N, rows that `prompts` and `features` have. kept: bool[N], those that are wanted.

    Raises:
      ValueError: naming the file and the array that is misshapen.
    """
    from bots_jax.features import text  # SciPy takes a while to import

    found: list[npt.NDArray[Any]] = []
    for key, axes in (("prompts", (1,)), ("features", (1, 2))):
        if key not in arrays:
            continue
        array = arrays[key]
        if (
            array.ndim not in axes
            or len(array) != size
            or (key == "prompts") > (array.dtype.kind == "U")
        ):
            raise ValueError(
                f"{name}: {key} is {array.dtype} of shape {list(array.shape)}, expected "
                + ("strings" if key == "prompts" else "numbers or categories")
                + f" [{size}{', F' * (key == 'features')}]: one row a task"
            )
        array = array if kept is None else array[kept]
        found.append(text(array.tolist()) if key == "prompts" else array)
    return tuple(found) if found else None
