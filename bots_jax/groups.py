"""Pools whose references take few distinct values: which tasks share theirs, and which don't.

In: references on a grid (pass rates are k / m), as rates, as counts, or as groups with
sizes. Out: `Groups`, tasks by group: 6 bytes a task, or none where the ids of each group are
consecutive. Made on the host, once; looked up by traced code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bots_jax.numerics import random_below
from bots_jax.reference import Reference, ReferenceCounts, ReferenceGroups
from bots_jax.types import Array

# Above this a pool is not worth grouping; group numbers are held in 16 bits.
MOST_GROUPS = 4096
_CHUNK = 1 << 24  # tasks looked at at a time, so that temporaries stay small beside the pool


class Groups(NamedTuple):
    """Tasks by what is known of them: references with their missingness, and domain."""

    sizes: Array  # i32[G], tasks of each group
    starts: Array  # i32[G], where its tasks begin in `order`
    order: Array | None  # i32[N], tasks by group; None: 0, 1, 2, ...
    of_task: Array | None  # u16[N], group of each task, G for a retired one; None: by starts
    reference: Reference  # rates f[K, G], trials f[K, G]
    domain: Array | None  # i32[G]
    num_tasks: int | Array  # i32, N: rows that ids may name


def group_of(groups: Groups, task_ids: Array) -> Array:
    """i32[M]: the group of each task, G where there is no such task."""
    none = groups.sizes.shape[0]
    inside = (task_ids >= 0) & (task_ids < groups.num_tasks)
    ids = jnp.where(inside, task_ids, 0)
    if groups.of_task is None:
        found = jnp.searchsorted(groups.starts, ids, side="right").astype(jnp.int32) - 1
    else:
        found = groups.of_task[ids].astype(jnp.int32)
    return jnp.where(inside, found, none)


def draw_member(bits: Array, groups: Groups, group: Array) -> Array:
    """i32[M]: a task of each group, each as likely as any other, from u[2, M] random bits."""
    size = jnp.maximum(groups.sizes[group], 1)
    place = groups.starts[group] + random_below(bits[0], bits[1], size)
    return place if groups.order is None else groups.order[place]


def group_by_codes(codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes i32[G], starts i32[G] and order i32[N] of tasks with u16[N] group numbers.

    A counting sort by chunks: it needs the result and little else.
    """
    sizes = np.zeros(count, np.int64)
    parts = range(0, len(codes), _CHUNK)
    for start in parts:
        sizes += np.bincount(codes[start : start + _CHUNK], minlength=count)[:count]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    order, filled = aligned_empty(int(sizes.sum()), np.int32), starts.copy()
    for start in parts:
        part = codes[start : start + _CHUNK]
        here = np.argsort(part, kind="stable")
        here = here[: np.count_nonzero(part < count)]  # retired tasks have number `count`
        counts = np.bincount(part, minlength=count)[:count]
        within = np.arange(len(here)) - np.repeat(np.cumsum(counts) - counts, counts)
        order[np.repeat(filled, counts) + within] = here + start
        filled += counts
    return sizes.astype(np.int32), starts.astype(np.int32), order


def aligned_empty(size: int, dtype: Any) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which JAX on CPU takes over as it is."""
    item = np.dtype(dtype).itemsize
    raw = np.empty(size * item + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size * item].view(dtype)


class Codes(NamedTuple):
    """Group numbers on the host, before they are sorted."""

    of_task: np.ndarray  # u16[N]
    rates: np.ndarray  # f64[K, G], NaN unknown
    trials: np.ndarray | None  # f64[K, G]
    domain: np.ndarray | None  # i32[G]


def find_codes(
    reference: Any, reference_trials: Any, domains: Any, most: int = MOST_GROUPS
) -> Codes | None:
    """Group numbers of references given as rates f[K, N] or as counts; None if too many."""
    columns: list[np.ndarray] = []  # of each model, small integers
    values: list[np.ndarray] = []  # and the rate that each integer stands for
    if isinstance(reference, ReferenceCounts):
        counts = np.asarray(reference.successes)
        attempts = np.broadcast_to(np.asarray(reference.trials), (counts.shape[0],))
        for row, tries in zip(counts, attempts, strict=True):
            columns.append(row)
            grid = np.arange(int(tries) + 1) / float(tries)
            values.append(np.concatenate([grid, [np.nan]]))  # -1, unknown, is the last one
        trials: np.ndarray | None = attempts.astype(np.float64)
    else:
        rates = np.asarray(reference)
        for row in rates:
            if len(_distinct(row[: 16 * most])) > most:
                return None
            grid = _distinct(row)
            if len(grid) > most:
                return None
            columns.append(_places(grid, row))
            values.append(grid.astype(np.float64))
        trials = None if reference_trials is None else np.asarray(reference_trials, np.float64)
        if trials is not None and trials.ndim != 1:
            return None  # attempts that differ from task to task are not on a grid
    if domains is not None:
        columns.append(np.asarray(domains))
        values.append(np.arange(int(np.max(domains)) + 1))
    return _combine(columns, values, trials, domains is not None, most)


def _distinct(row: np.ndarray) -> np.ndarray:
    """Sorted distinct values, NaN last and once."""
    return np.unique(row)


def _places(grid: np.ndarray, row: np.ndarray) -> np.ndarray:
    places = np.empty(len(row), np.uint16)
    for start in range(0, len(row), _CHUNK):
        part = row[start : start + _CHUNK]
        places[start : start + _CHUNK] = np.searchsorted(grid, part)  # NaN sorts last, too
    return places


def _combine(
    columns: list[np.ndarray],
    values: list[np.ndarray],
    trials: np.ndarray | None,
    with_domains: bool,
    most: int,
) -> Codes | None:
    """One number for each combination that occurs."""
    radix = [len(grid) for grid in values]
    total = int(np.prod(radix, dtype=np.int64)) if radix else 1
    if total > 2**26:
        return None
    size = len(columns[0]) if columns else 0
    seen = np.zeros(total, bool)
    for start in range(0, size, _CHUNK):
        seen[_mix(columns, radix, start)] = True
    present = np.flatnonzero(seen)
    if len(present) > most:
        return None
    number = np.zeros(total, np.uint16)
    number[present] = np.arange(len(present))
    codes = aligned_empty(size, np.uint16)
    for start in range(0, size, _CHUNK):
        codes[start : start + _CHUNK] = number[_mix(columns, radix, start)]
    digits = np.stack(np.unravel_index(present, radix)) if radix else np.zeros((0, 1), int)
    models = len(columns) - with_domains
    rates = np.stack([values[k][digits[k]] for k in range(models)]) if models else np.zeros((0, 1))
    domain = digits[-1].astype(np.int32) if with_domains else None
    each = None if trials is None else np.broadcast_to(trials[:, None], rates.shape)
    return Codes(codes, rates, each, domain)


def _mix(columns: list[np.ndarray], radix: list[int], start: int) -> np.ndarray:
    mixed = np.zeros(min(_CHUNK, len(columns[0]) - start), np.int64)
    for column, base in zip(columns, radix, strict=True):
        part = column[start : start + _CHUNK].astype(np.int64)
        mixed = mixed * base + np.where(part < 0, base - 1, part)
    return mixed


def make_groups(codes: Codes, dtype: jnp.dtype) -> Groups:
    """`Groups` of tasks with these numbers."""
    sizes, starts, order = group_by_codes(codes.of_task, codes.rates.shape[1])
    return Groups(
        sizes=jnp.asarray(sizes),
        starts=jnp.asarray(starts),
        order=jnp.asarray(order),
        of_task=jnp.asarray(codes.of_task),
        reference=_as_reference(codes.rates, codes.trials, dtype),
        domain=None if codes.domain is None else jnp.asarray(codes.domain),
        num_tasks=jnp.asarray(len(codes.of_task), jnp.int32),
    )


def groups_of_sizes(given: ReferenceGroups, domains: Any, dtype: jnp.dtype) -> Groups:
    """`Groups` whose tasks are numbered group after group; nothing is stored per task.

    Args:
      domains: i32[G], of each group, or None.
    """
    sizes = np.asarray(given.sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    trials = None
    if given.trials is not None:
        attempts = np.asarray(given.trials, np.float64)
        trials = np.broadcast_to(attempts[:, None], np.shape(given.rates))
    return Groups(
        sizes=jnp.asarray(sizes, jnp.int32),
        starts=jnp.asarray(starts, jnp.int32),
        order=None,
        of_task=None,
        reference=_as_reference(np.asarray(given.rates), trials, dtype),
        domain=None if domains is None else jnp.asarray(domains, jnp.int32),
        num_tasks=jnp.asarray(int(sizes.sum()), jnp.int32),
    )


def _as_reference(rates: np.ndarray, trials: np.ndarray | None, dtype: jnp.dtype) -> Reference:
    known = None if trials is None else jnp.asarray(trials, dtype)
    return Reference(jnp.asarray(rates, dtype), known)


def with_tasks(groups: Groups, codes: Codes, dtype: jnp.dtype) -> Groups:
    """On the host: more tasks, in groups of their own, numbered after those there are."""
    old, shift = codes_of(groups), groups.sizes.shape[0]
    new_trials, new_domain = codes.trials, codes.domain
    joined = Codes(
        np.concatenate([old.of_task, codes.of_task + np.uint16(shift)]),
        np.concatenate([old.rates, codes.rates], axis=1),
        None if old.trials is None or new_trials is None else np.hstack([old.trials, new_trials]),
        None if old.domain is None or new_domain is None else np.hstack([old.domain, new_domain]),
    )
    none = shift + codes.rates.shape[1]
    joined.of_task[: len(old.of_task)][old.of_task == shift] = none  # stay retired
    return make_groups(joined, dtype)


def without_tasks(groups: Groups, task_ids: np.ndarray) -> Groups:
    """On the host: the same with some tasks retired."""
    codes = codes_of(groups)
    codes.of_task[task_ids] = groups.sizes.shape[0]
    return make_groups(codes, groups.reference.rates.dtype)


def codes_of(groups: Groups) -> Codes:
    """What `make_groups` made them of, as copies."""
    size = groups.sizes.shape[0]
    of_task = np.repeat(np.arange(size, dtype=np.uint16), np.asarray(groups.sizes))
    if groups.of_task is not None:
        of_task = np.array(groups.of_task)
    rates, trials = groups.reference
    return Codes(
        of_task,
        np.asarray(rates, np.float64),
        None if trials is None else np.asarray(trials, np.float64),
        None if groups.domain is None else np.asarray(groups.domain),
    )
