"""Digests that distinguish one pool from another of the same size.

In: the state that a sampler begins with. Out: digests of what its tasks are: references, domains,
features. They are saved, so that a run does not go on with the beliefs of other tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bots_jax.checkpoint import CheckpointError
from bots_jax.types import State

_MOST = 2**24  # entries of one array that are looked at
_TOLERANCE = 1e-3  # of features, which are the same up to rounding only


def describe(state: State) -> dict[str, Any]:
    """Digests of a fresh state's pool, as JSON values; None for parts that are absent."""
    reference, domain, sizes = state.known
    if state.representation == "grouped":
        groups, rows = state.pool.groups, sizes.shape[0]
        told = [sizes, groups.starts, groups.of_task]
    else:
        rows = int(state.bookkeeping.next_fresh)  # room for more tasks does not count
        told = []
    return {
        "reference": _digest(reference.rates, rows),
        "reference_trials": _digest(reference.trials, rows),
        "domains": _digest(domain, rows),
        "groups": [_digest(part, None) for part in told],
        "features": _sketch(reference.embeddings, reference.step, rows),
    }


def check_same(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise if the saved pool is another one.

    Raises:
      CheckpointError: naming what differs.
    """
    for name, ours in here.items():
        theirs = saved[name]
        alike = _near(theirs, ours) if name == "features" else theirs == ours
        if not alike:
            raise CheckpointError(
                f"the saved run began with other {_SPELLED[name]} than this sampler: it belongs to "
                "another data set, or they were measured or ordered anew. Give those of the saved "
                "run, in the same order (what was saved is what counts), or begin anew"
            )


_SPELLED = {
    "reference": "references (reference=...)",
    "reference_trials": "counts behind its references (reference_trials=...)",
    "domains": "domains (domains=...)",
    "groups": "groups of tasks (reference=...)",
    "features": "features (features=..., prompts=...)",
}


def _host(array: Any, rows: int | None) -> np.ndarray | None:
    """[..., rows] on the host; None where this process holds a part of it only."""
    if array is None or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return None
    whole = np.asarray(array)
    return whole if rows is None else whole[..., :rows]


def _digest(array: Any, rows: int | None) -> str | None:
    values = _host(array, rows)
    if values is None or not values.size:
        return None
    if values.dtype.kind not in "iub":
        values = np.where(np.isnan(values), np.asarray(-1, values.dtype), values)
    step = -(-values.size // _MOST)
    looked_at = np.ascontiguousarray(values.reshape(-1)[::step])
    name = f"{values.dtype.name}{values.shape}".encode()
    return hashlib.blake2b(name + looked_at.tobytes(), digest_size=16).hexdigest()


def _sketch(array: Any, step: Any, rows: int) -> list[list[float]] | None:
    """Two fixed weighted means of each feature: they differ little by rounding, else much."""
    values = _host(array, rows)
    if values is None:
        return None
    turn = np.arange(values.shape[-1])
    weights = np.stack([np.cos(1 + 2.4 * turn), np.cos(2 + 0.7 * turn * turn)])
    found = values.astype(np.float64) @ weights.T / max(1.0, np.sqrt(values.shape[-1]))
    if step is not None:
        found *= np.asarray(step)[:, None]
    return [[float(value) for value in row] for row in found]


def _near(saved: Any, here: Any) -> bool:
    if saved is None or here is None:
        return saved is here
    return np.shape(saved) == np.shape(here) and np.allclose(saved, here, _TOLERANCE, _TOLERANCE)
