"""Features of levels: the arrays of a pytree, flattened, standardised and reduced."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from bots_jax.checks import check_count
from bots_jax.features.reduction import reduce_columns


def of_levels(levels: Any, *, components: int = 32) -> np.ndarray:
    """Features f32[N, components] of levels: a pytree of arrays [N, ...], mean 0, variance 1.

    Columns that the levels do not fill are 0.

    Raises:
      ValueError: no arrays, arrays that disagree on N, or values that are not finite.
    """
    check_count("components", components)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(levels)]
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"levels has leading sizes {sizes}: give arrays [N, ...] of one N >= 1")
    flat = np.hstack([leaf.reshape(len(leaf), -1).astype(np.float64) for leaf in leaves])
    if not np.isfinite(flat).all():
        raise ValueError("levels holds NaN or infinity: give finite numbers")
    return reduce_columns(flat, components).astype(np.float32)
