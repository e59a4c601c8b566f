"""Few numbers out of many: principal directions with a fixed sign, standardised."""

from __future__ import annotations

from typing import Any

import numpy as np

_SEED = 0  # of the random directions; no result is to depend on it
_ROWS = 16384  # from which directions are learned at most
_NO_DIRECTION = 1e-6  # of the largest singular value: what is smaller is rounding


def reduce_columns(x: Any, components: int) -> np.ndarray:
    """f[N, D], dense or SciPy sparse, on its first right singular vectors: f64[N, components].

    Columns that the data do not fill are 0. Each direction's largest loading is positive, so
    the sign is that of the data and not of the solver. Of many rows the directions are those of
    16,384 evenly spaced ones.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, by scikit-learn.
    """
    extmath = scikit_learn("utils.extmath")
    rows = x.shape[0]
    sample = x if rows <= _ROWS else x[np.linspace(0, rows - 1, _ROWS).astype(np.int64)]
    kept = min(components, *sample.shape)
    _, s, vt = extmath.randomized_svd(
        sample, kept, n_iter=4, power_iteration_normalizer="QR", random_state=_SEED, flip_sign=False
    )
    largest = vt[np.arange(kept), np.argmax(np.abs(vt), axis=1)]
    real = s > _NO_DIRECTION * s[0] if s[0] > 0 else np.zeros(kept, bool)
    directions = vt.T * np.where(real, np.where(largest < 0, -1.0, 1.0), 0.0)
    found = np.zeros((rows, components))
    found[:, :kept] = x @ directions
    return found


def standardise(x: np.ndarray) -> np.ndarray:
    """Columns of f[N, D] with mean 0 and variance 1; constant columns become 0."""
    x = x - x.mean(axis=0)
    scale = x.std(axis=0)
    differs = scale > _NO_DIRECTION * np.maximum(scale.max(initial=0), 1e-30)
    return np.where(differs, x / np.where(differs, scale, 1), 0)


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn, or an error that names the extra."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            "bots_jax.features needs scikit-learn: pip install 'bots-jax[features]'"
        ) from error
