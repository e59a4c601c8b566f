"""Few numbers out of many: principal directions with a fixed sign, standardised."""

from __future__ import annotations

from typing import Any

import numpy as np

_SEED = 0  # of the random directions; no result is to depend on it
_NO_DIRECTION = 1e-6  # of the largest singular value: what is smaller is rounding


def reduce_columns(x: Any, components: int) -> np.ndarray:
    """The first left singular vectors of f[N, D], dense or SciPy sparse: f64[N, components].

    Columns that the data do not fill are 0. Each direction's largest loading is positive, so
    the sign is that of the data and not of the solver.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, by scikit-learn.
    """
    extmath = scikit_learn("utils.extmath")
    kept = min(components, *x.shape)
    u, s, vt = extmath.randomized_svd(
        x, kept, n_iter=4, power_iteration_normalizer="QR", random_state=_SEED, flip_sign=False
    )
    largest = vt[np.arange(kept), np.argmax(np.abs(vt), axis=1)]
    real = s > _NO_DIRECTION * s[0] if s[0] > 0 else np.zeros(kept, bool)
    found = np.zeros((x.shape[0], components))
    found[:, :kept] = u * np.where(real, np.where(largest < 0, -1.0, 1.0), 0.0)
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
