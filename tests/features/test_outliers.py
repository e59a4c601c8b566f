"""A warning where a few tasks far away leave nothing of a column of numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import bots_jax

NUMBERS = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)


def init(features: np.ndarray) -> None:
    bots_jax.auto(batch_size=8, rollouts=4).init(features=features)


@pytest.mark.parametrize("columns", [slice(0, 1), slice(None)])
def test_a_placeholder_is_told(columns: slice) -> None:
    numbers = NUMBERS.copy()
    numbers[0, columns] = -999
    with pytest.warns(RuntimeWarning, match=r"column 0 has a task 20 standard deviations"):
        init(numbers)


def test_ordinary_columns_are_not() -> None:
    """Nor missing numbers, flags, constants, and one odd column among many."""
    missing, flag, many = NUMBERS.copy(), np.zeros(400, np.float32), np.tile(NUMBERS, 3)
    missing[::2], flag[3], many[0, 4] = np.nan, 1, 999
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for features in (NUMBERS, missing, flag, np.ones(400, np.float32), many):
            init(features)
        init(bots_jax.features.text([f"{a} + {b} =" for a in range(20) for b in range(20)]))
