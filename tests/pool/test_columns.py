"""What is made of numbers and kinds, by the equations, whatever their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bots_jax.pool.features import MOST_COLUMNS, MOST_KINDS, encode, encode_as, encode_kinds

TASKS = 77
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 0.1, 1.0, 1 / 3, 1e6 / 7, 1.7e9 / 3, 1e14 / 3])
def test_constants_say_nothing_and_small_differences_count(size: float) -> None:
    """Also where rounding gives a constant a deviation; as deep as 1e-6 of the number."""
    known = RNG.random(TASKS) < 0.8
    same = np.where(known, size, np.nan)
    columns, code = encode(same)
    np.testing.assert_array_equal(columns, 0)
    np.testing.assert_array_equal(code.scale, 0)
    x = np.where(known, size + max(size, 1) * 1e-6 * RNG.normal(size=TASKS), np.nan)
    columns, code = encode(x)
    mean, deviation = np.nanmean(x), np.nanstd(x)
    expected = np.where(known, (x - mean) / deviation, 0)[None]
    np.testing.assert_allclose(columns, expected, atol=1e-3)
    np.testing.assert_allclose(code.center.astype(float).sum(0), mean, rtol=1e-12)
    np.testing.assert_allclose(code.scale, deviation, rtol=1e-6)
    later = np.array([mean, mean + deviation, np.nan])
    np.testing.assert_allclose(encode_as(later, code), [[0, 1, 0]], atol=1e-3)


def kinds_of(values: Any, told: Any) -> np.ndarray:
    """(whether - share) / (sqrt(share) / 2), a row for each value; 0 for one that is not known."""
    rows = []
    for value in sorted(set(values)):
        share = np.mean(np.asarray(values) == value)
        rows.append((np.asarray(told) == value) - share)
        rows[-1] = rows[-1] / (np.sqrt(share) / 2) * np.isin(told, values)
    return np.array(rows)


@pytest.mark.parametrize("kind", [np.array(["b", "a", "ccc", "d"]), np.array([3, -1, 7, 10**9])])
def test_kinds_are_told_apart_by_their_share(kind: Any) -> None:
    values = kind[np.minimum(RNG.geometric(0.4, TASKS) - 1, 2)]
    columns, code = encode(values)
    np.testing.assert_allclose(columns, kinds_of(values, values), rtol=1e-5)
    assert code.is_kind.tolist() == [True] * len(columns)
    np.testing.assert_allclose(encode_as(kind, code), kinds_of(values, kind), rtol=1e-5)
    # The same a value at a time, as groups of tasks hold them; several columns side by side.
    other = RNG.integers(0, 2, TASKS)
    whole, _ = encode((values, other))
    kinds = encode_kinds((values, other))
    assert kinds is not None
    np.testing.assert_array_equal(kinds.columns(np.stack(kinds.numbers)), whole)
    np.testing.assert_allclose(whole[len(columns) :], kinds_of(other, other), rtol=1e-5)
    assert encode_kinds((values, RNG.random(TASKS))) is None
    assert encode((values, other))[1].source.tolist() == [0] * len(columns) + [1, 1]


def test_as_many_as_may_be_and_one_more() -> None:
    assert len(encode(np.arange(MOST_KINDS))[0]) == MOST_KINDS
    assert len(encode(np.ones((3, MOST_COLUMNS)))[0]) == MOST_COLUMNS
    with pytest.raises(ValueError, match=f"column 0 has {MOST_KINDS + 1} categories"):
        encode(np.arange(MOST_KINDS + 1))
    with pytest.raises(ValueError, match=f"features make {MOST_COLUMNS + 1} columns"):
        encode(np.ones((3, MOST_COLUMNS + 1)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.float64(1), r"features has shape \(\), expected"),
        (np.ones((2, 3, 4)), r"features has shape \(2, 3, 4\)"),
        (np.ones((3, 0)), r"features has shape \(3, 0\)"),
        (np.array([1.0, np.inf]), "features holds infinity"),
        (np.array([1.0, -np.inf]), "features holds infinity"),
        (np.array([1j, 2]), "features has dtype complex128"),
        ((np.ones(3), np.ones(4)), r"features have \[3, 4\] rows"),
    ],
)
def test_refused(features: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(features)


def test_later_tasks_need_columns_of_the_same_types() -> None:
    _, code = encode((np.ones(4), np.arange(4)))
    for wrong in (np.ones(4), (np.arange(4), np.ones(4)), (np.ones(4), np.arange(4), np.ones(4))):
        with pytest.raises(ValueError, match=r"expected those .*: numbers \(1\), categories \(1\)"):
            encode_as(wrong, code)
