"""What a user knows of each task besides pass rates, as columns for a regression.

In: numbers f[N, F], kinds i[N] or i[N, F], or several of them. Out: f[E, N], finite:

    a number   (x - mean) / standard deviation; 0 where it is missing (NaN)
    a kind     one column for each value, 1 where the task has it, less its share, over half the
               square root of that share; so rare kinds are told apart as well as frequent ones,
               and up to twice as far as numbers; 0 for a value that was not there at first

and the code by which tasks that come later get theirs.
"""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bots_jax.checks import is_concrete

# Values of one column of kinds: each takes a row and a column of the regression's covariance.
MOST_KINDS = 128
# Columns in all: a step costs their cube, and a state their product with the tasks.
MOST_COLUMNS = 256

# Kinds of tasks differ more than one number tells: logits, where all numbers together have 1.
_KIND_SPREAD = 2.0


class FeatureCode(NamedTuple):
    """How features become columns: (x - center) / scale, x a number or whether it is a kind."""

    source: Any  # i32[E], the column of what was given
    kind: Any  # i32[E], a hash of the value that is marked; 0 for a number
    is_kind: Any  # bool[E]
    center: Any  # f32[2, E], whose sum it is: a date in seconds needs more digits than 7
    scale: Any  # f32[E]; 0: the column is constant, and says nothing


def encode(features: Any) -> tuple[np.ndarray, FeatureCode]:
    """f32[E, N] of one array of features, or of several in a list, tuple or mapping; and the code.

    Args:
      features: floats [N] or [N, F], NaN = missing; integers, booleans or strings [N] or [N, F]
        are kinds. A tuple, a list of arrays, or a mapping by name, holds several such arrays.

    Raises:
      ValueError: naming what is wrong and the way out.
    """
    columns = _columns_of(features)
    code = _code_of_all(columns)
    made = _apply(columns, code)
    _warn_of_outliers(made[~code.is_kind], code.source[~code.is_kind])
    return made, code


# Times that a standard deviation may exceed that of a normal distribution of the same quartiles.
_MOST_SPREAD = 10.0
_ENOUGH = 2**14  # tasks that the quartiles are taken of


def _warn_of_outliers(numbers: np.ndarray, sources: np.ndarray) -> None:
    """Warn where a few tasks far away leave the others nearly alike, in a quarter of the columns.

    Fewer are no loss: prompts give a column or two to one that is like no other.
    """
    some = numbers[:, :: -(-numbers.shape[1] // _ENOUGH)]
    known = [row[row != 0] for row in some]  # missing ones are 0
    quartiles = [np.percentile(row, [25, 75]) if row.size else (0.0, 0.0) for row in known]
    low, high = np.array(quartiles).reshape(-1, 2).T
    narrow = (high > low) & (numbers.std(axis=1) > _MOST_SPREAD * (high - low) / 1.349)
    if narrow.any() and narrow.sum() >= len(sources) / 4:
        at = int(np.flatnonzero(narrow)[0])
        warnings.warn(
            f"features column {sources[at]} has a task {np.abs(numbers[at]).max():.0f} standard "
            "deviations from the mean, beside which the others are nearly alike, so it tells next "
            "to nothing of them: give logarithms or ranks, and NaN where a number is unknown",
            RuntimeWarning,
            stacklevel=2,
        )


def _code_of_all(columns: list[np.ndarray]) -> FeatureCode:
    codes = [_code_of(column, at) for at, column in enumerate(columns)]
    size = sum(len(code.scale) for code in codes)
    if size > MOST_COLUMNS:
        raise ValueError(
            f"features make {size} columns (one a number, one a category), at most {MOST_COLUMNS}: "
            "join rare categories, or reduce numbers to their first principal components"
        )
    return FeatureCode(*(np.concatenate(parts, axis=-1) for parts in zip(*codes, strict=True)))


class Kinds(NamedTuple):
    """Features that are all kinds, for pools in which tasks of the same kinds are alike."""

    numbers: list[np.ndarray]  # i[N] each, which value a task has in each column
    tables: list[np.ndarray]  # f32[E_j, V_j] each, what is made of each value
    code: FeatureCode

    def columns(self, numbers: np.ndarray) -> np.ndarray:
        """f32[E, G]: those of combinations of values, i[J, G]."""
        rows = [table[:, own] for table, own in zip(self.tables, numbers, strict=True)]
        return np.concatenate(rows)


def encode_kinds(features: Any) -> Kinds | None:
    """The same code as `encode`, nothing written a task and column; None where a column is numbers.

    Raises:
      ValueError: as `encode`.
    """
    columns = _columns_of(features)
    if any(column.dtype.kind == "f" for column in columns):
        return None
    values, numbers = zip(*(np.unique(x, return_inverse=True) for x in columns), strict=True)
    code = _code_of_all(columns)
    tables = [_kinds_as(own, code, at) for at, own in enumerate(values)]
    return Kinds(list(numbers), tables, code)


def encode_as(features: Any, code: FeatureCode) -> np.ndarray:
    """f32[E, A] of tasks that came later, by the code of the first.

    Raises:
      ValueError: if the features are not columns of the same types.
    """
    code = FeatureCode(*(np.asarray(part) for part in code))
    columns = _columns_of(features)
    expected = dict(zip(code.source.tolist(), code.is_kind.tolist(), strict=True))
    given = {at: column.dtype.kind != "f" for at, column in enumerate(columns)}
    if given != expected:
        raise ValueError(
            f"features are columns of {_runs(given)}, expected those that the pool was made with: "
            f"{_runs(expected)}"
        )
    return _apply(columns, code)


def _runs(are_kinds: Mapping[int, bool]) -> str:
    """How many columns of numbers, and of kinds, follow each other."""
    return ", ".join(
        f"{'categories' if kind else 'numbers'} ({len(list(run))})"
        for kind, run in itertools.groupby(are_kinds.values())
    )


def feature_columns(features: Any) -> np.ndarray:
    """The columns of `encode` alone."""
    return encode(features)[0]


def _columns_of(features: Any) -> list[np.ndarray]:
    """[N] each: floats in f64, or kinds."""
    if not is_concrete(features):
        raise ValueError("features are traced, and are made ready on the host: give NumPy arrays")
    if isinstance(features, Mapping):
        parts = list(features.values())
    elif isinstance(features, tuple) or _holds_arrays(features):
        parts = list(features)
    else:
        parts = [features]
    blocks = [_checked(_unmasked(part)) for part in parts]
    sizes = {len(block) for block in blocks}
    if len(sizes) != 1:
        raise ValueError(f"features have {sorted(sizes)} rows, expected one row a task in each")
    return [column for block in blocks for column in np.ascontiguousarray(block.T)]


def _holds_arrays(features: Any) -> bool:
    """Of a list: whether it holds arrays of tasks, not tasks."""
    return isinstance(features, list) and any(len(getattr(x, "shape", ())) for x in features)


def _unmasked(part: Any) -> np.ndarray:
    """On the host, in a float that NumPy knows; None, and what a masked array hides, is NaN."""
    array = np.asarray(part)
    if array.dtype == object and all(x is None or isinstance(x, float) for x in array.flat):
        return array.astype(np.float64)
    if np.ma.is_masked(part):
        if array.dtype.kind != "f":
            raise ValueError(
                f"features of dtype {array.dtype} hide entries by a mask: give those a kind of "
                "their own"
            )
        return np.ma.filled(part, np.nan)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _checked(part: np.ndarray) -> np.ndarray:
    if part.ndim == 1:
        part = part[:, None]
    if part.ndim != 2 or not part.size:
        raise ValueError(f"features has shape {part.shape}, expected [N] or [N, F]: one row a task")
    if part.dtype.kind == "f":
        if np.isinf(part).any():
            raise ValueError("features holds infinity: give finite numbers, NaN where unknown")
        if part.dtype == np.float64 and (np.abs(part) > np.finfo(np.float32).max).any():
            raise ValueError("features holds numbers beyond 3e38: give their logarithms")
        return part.astype(np.float64)
    if part.dtype.kind in "iubUS":
        return part
    raise ValueError(
        f"features has dtype {part.dtype}, expected floats for numbers, integers or strings for "
        "kinds; put arrays of different dtypes into a tuple"
    )


def _code_of(column: np.ndarray, at: int) -> FeatureCode:
    if column.dtype.kind == "f":
        center, scale = _moments(column)
        return _as_code(at, np.zeros(1, np.int32), False, center[None], scale[None])
    values, count = np.unique(column, return_counts=True)
    if len(values) > MOST_KINDS:
        raise ValueError(
            f"features column {at} has {len(values)} categories, at most {MOST_KINDS}: join rare "
            "ones, give numbers as floats, or prompts as features.text(prompts)"
        )
    share = count / len(column)
    return _as_code(at, _hashes(values), True, share, np.sqrt(share) / _KIND_SPREAD)


def _as_code(
    at: int, kind: np.ndarray, is_kind: bool, center: np.ndarray, scale: np.ndarray
) -> FeatureCode:
    coarse = center.astype(np.float32)
    fine = (center - coarse).astype(np.float32)
    size = len(kind)
    return FeatureCode(
        np.full(size, at, np.int32),
        kind,
        np.full(size, is_kind),
        np.stack([coarse, fine]),
        scale.astype(np.float32),
    )


def _moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of what is known; 0 for that of a constant."""
    known = ~np.isnan(column)
    count = max(int(known.sum()), 1)
    mean = np.where(known, column, 0).sum() / count
    away = np.where(known, column - mean, 0)
    scale = np.sqrt((away**2).sum() / count)
    rounding = 1e-9 * np.max(np.abs(column), where=known, initial=0)
    return np.asarray(mean), np.where(scale <= max(rounding, _LEAST), 0, scale)


_LEAST = float(np.finfo(np.float32).tiny)


def _hashes(values: np.ndarray) -> np.ndarray:
    """i32[...] of kinds, the same in every process and on every machine."""
    hashes = [zlib.crc32(str(value).encode()) for value in values.tolist()]
    return np.array(hashes, np.uint32).view(np.int32)


def _apply(columns: list[np.ndarray], code: FeatureCode) -> np.ndarray:
    rows = []
    center = code.center.astype(np.float64).sum(axis=0)
    scale = code.scale.astype(np.float64)
    for at, column in enumerate(columns):
        mine = np.flatnonzero(code.source == at)
        if column.dtype.kind == "f":
            usable = ~np.isnan(column) & (scale[mine] > 0)
            away = np.where(usable, column - center[mine], 0)
            rows.append((away / max(scale[mine[0]], np.finfo(np.float32).tiny))[None])
            continue
        # Of the values first, of which there are few: an array of all tasks is large.
        values, which = np.unique(column, return_inverse=True)
        rows.append(_kinds_as(values, code, at)[:, which])
    return np.concatenate([row.astype(np.float32) for row in rows])


def _kinds_as(values: np.ndarray, code: FeatureCode, at: int) -> np.ndarray:
    """f32[E_j, V]: what is made of each of some values of column `at`."""
    mine = np.flatnonzero(code.source == at)
    center = code.center.astype(np.float64).sum(axis=0)[mine]
    same = _hashes(values)[:, None] == code.kind[mine]
    scale = code.scale.astype(np.float64)[mine]
    table = np.where(same.any(axis=1, keepdims=True), same - center, 0) / scale
    return table.astype(np.float32).T
