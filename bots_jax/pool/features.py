"""What a user knows of each task besides pass rates, as columns for a regression.

In: numbers f[N, F], kinds i[N] or i[N, F], or several of them. Out: f[E, N], finite:

    a number   (x - mean) / standard deviation; 0 where it is missing (NaN)
    a kind     one column for each value, 1 where the task has it, less its share, over the
               square root of that share; so rare kinds are told apart as well as frequent ones
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bots_jax.checks import is_concrete

# Values of one column of kinds: each takes a row and a column of the regression's covariance.
MOST_KINDS = 64


def feature_columns(features: Any) -> np.ndarray:
    """f32[E, N] of one array of features, or of several in a list, tuple or mapping.

    Args:
      features: floats [N] or [N, F], NaN = missing; integers, booleans or strings [N] or [N, F]
        are kinds. A tuple, or a mapping by name, holds several such arrays.

    Raises:
      ValueError: naming what is wrong and the way out.
    """
    if not is_concrete(features):
        raise ValueError("features are traced, and are made ready on the host: give NumPy arrays")
    parts = features.values() if isinstance(features, Mapping) else features
    if not isinstance(features, Mapping | tuple):
        parts = (features,)
    blocks = [_columns(np.asarray(part)) for part in parts]
    sizes = {block.shape[1] for block in blocks}
    if len(sizes) != 1:
        raise ValueError(f"features have {sorted(sizes)} rows, expected one row a task in each")
    return np.concatenate(blocks).astype(np.float32)


def _columns(part: np.ndarray) -> np.ndarray:
    if part.ndim == 1:
        part = part[:, None]
    if part.ndim != 2 or not part.size:
        raise ValueError(f"features has shape {part.shape}, expected [N] or [N, F]: one row a task")
    if part.dtype.kind == "f":
        return _numbers(part.astype(np.float64))
    if part.dtype.kind in "iubUS":
        return np.concatenate([_kinds(column, at) for at, column in enumerate(part.T)])
    raise ValueError(
        f"features has dtype {part.dtype}, expected floats for numbers, integers or strings for "
        "kinds; put arrays of different dtypes into a tuple"
    )


def _numbers(part: np.ndarray) -> np.ndarray:
    if np.isinf(part).any():
        raise ValueError("features holds infinity: give finite numbers, NaN where unknown")
    known = ~np.isnan(part)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, part, 0)
    mean = filled.sum(axis=0) / count
    away = np.where(known, part - mean, 0)
    scale = np.sqrt((away**2).sum(axis=0) / count)
    flat = scale <= 1e-9 * np.maximum(1, np.abs(mean))
    return np.where(flat, 0, away / np.where(flat, 1, scale)).T


def _kinds(column: np.ndarray, at: int) -> np.ndarray:
    values, kind = np.unique(column, return_inverse=True)
    if len(values) > MOST_KINDS:
        raise ValueError(
            f"features column {at} has {len(values)} kinds, at most {MOST_KINDS}: join rare ones, "
            "or give numbers as floats"
        )
    share = np.bincount(kind) / len(kind)
    return ((kind == np.arange(len(values))[:, None]) - share[:, None]) / np.sqrt(share)[:, None]
