"""Dimension reduction by whitened principal components with a fixed sign.

In: f[n, D] columns of any scale. Out: f[n, F], each column of mean 0 and variance 1 over the
rows that the components were learned from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg

_NO_DIRECTION = 1e-6  # of the largest variance: what is smaller is rounding
_SAMPLE = 16384  # rows that components are learned from


class Reduction(NamedTuple):
    """A linear map to whitened components."""

    mean: np.ndarray  # f[D]
    directions: np.ndarray  # f[D, F]

    def apply(self, x: np.ndarray) -> np.ndarray:
        """f[n, F] of f[n, D]."""
        return (x - self.mean) @ self.directions


def learn_reduction(x: np.ndarray, components: int) -> Reduction:
    """The first principal components of the standardised columns of f[n, D].

    Constant columns count for nothing; components that the rows do not fill are 0. Each one's
    largest loading is positive, so the sign is that of the data and not of the solver.
    """
    mean = x.mean(axis=0)
    scale = x.std(axis=0)
    differs = scale > 1e-6 * np.abs(x).max(axis=0)
    differs &= x.max(axis=0) > x.min(axis=0)  # a float32 mean of many equal rows may not be theirs
    z = (x - mean)[:, differs] / scale[differs]
    kept = min(components, *z.shape)
    directions = np.zeros((x.shape[1], components), np.float64)
    if not kept:
        return Reduction(mean, directions.astype(x.dtype))
    covariance = (z.T @ z).astype(np.float64) / len(z)
    size = len(covariance)
    values, vectors = linalg.eigh(covariance, subset_by_index=(size - kept, size - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(kept)]
    real = values > _NO_DIRECTION * values[0]
    whiten = np.where(real, np.sign(largest) / np.sqrt(np.where(real, values, 1)), 0)
    directions[differs, :kept] = vectors * whiten / scale[differs][:, None]
    return Reduction(mean, directions.astype(x.dtype))


def sample_rows(size: int) -> np.ndarray:
    """i64[min(size, 16384)]: rows to learn components from, evenly spaced over `size` of them."""
    return np.linspace(0, size - 1, min(size, _SAMPLE)).astype(int)


def reduce_columns(x: np.ndarray, components: int) -> np.ndarray:
    """f[n, components]: the rows of f[n, D] projected on their own components."""
    return learn_reduction(x, components).apply(x)
