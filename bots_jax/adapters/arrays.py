"""Convert what trainers pass (tensors, lists) to NumPy.

In: lists, arrays, and tensors of torch on any device, in any precision, with or without a gradient.
Out: the same on the host, where NumPy can read it. Torch itself is not imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bots_jax.checks import without_mask


def as_host(value: Any) -> Any:
    """`value`, with tensors, alone or in a list, as NumPy arrays; floats as float64, exactly.

    What a masked array hides is NaN.

    Raises:
      ValueError: if what it hides are no numbers.
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value) and value.dtype.kind not in "biuf":
            raise ValueError(f"a masked array of {value.dtype} hides entries: leave them out")
        return without_mask(value)
    if isinstance(value, list | tuple):
        return [as_host(part) for part in value] if any(map(_is_tensor, value)) else value
    if not _is_tensor(value):
        return value
    tensor = value.detach().cpu()  # NumPy knows neither bfloat16 nor gradients
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "is_floating_point")
