"""A sampler's `state_dict` as a few flat arrays, for checkpoint libraries that take only arrays.

In: what `TaskSampler.state_dict` returns. Out: one array a dtype and a header of bytes (JSON:
all that is not an array, and how to cut the arrays), and back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

HEADER = "header"


def flatten(saved: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flatten to {"header": u8[...], "float32": f32[...], ...}, one array for each dtype."""
    parts: dict[str, list[np.ndarray]] = {}
    leaves = []
    for path, array in saved["arrays"].items():
        parts.setdefault(array.dtype.name, []).append(array.ravel())
        leaves.append([path, array.dtype.name, list(array.shape)])
    header = {**saved, "arrays": leaves}
    flat = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return {**flat, HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8).copy()}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; arrays may be anything that NumPy converts."""
    header = json.loads(np.asarray(flat[HEADER], np.uint8).tobytes().decode())
    offsets: dict[str, int] = {}
    arrays = {}
    for path, dtype, shape in header["arrays"]:
        start = offsets.get(dtype, 0)
        offsets[dtype] = start + int(np.prod(shape))
        arrays[path] = np.asarray(flat[dtype])[start : offsets[dtype]].reshape(shape)
    return {**header, "arrays": arrays}
