"""Pools whose references take few distinct values: which tasks share theirs, and which don't.

In: references on a grid (pass rates are k / m), as rates, as counts, or as groups with
sizes. Out: `Groups`, tasks by group: 6 bytes a task, or none where the ids of each group are
consecutive. Made on the host, once; looked up by traced code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.numerics.random_bits import random_below
from bots_jax.pool.features import FeatureCode
from bots_jax.pool.reference import Reference, ReferenceCounts, ReferenceGroups, without_nan
from bots_jax.types import Array

# Above this a pool is not worth grouping; group numbers are held in 16 bits.
MOST_GROUPS = 4096
_CHUNK = 1 << 24  # tasks looked at at a time, so that temporaries stay small beside the pool


class Groups(NamedTuple):
    """Tasks by what is known of them: references with their missingness, kinds, and domain."""

    sizes: Array  # i32[G], tasks of each group
    starts: Array  # i32[G], where its tasks begin in `order`
    order: Array | None  # i32[N], tasks by group; None: 0, 1, 2, ...
    of_task: Array | None  # u16[N], group of each task, G for a retired one; None: by starts
    reference: Reference  # rates f[K, G], trials f[K, G], embeddings f[E, G]
    domain: Array | None  # i32[G]
    num_tasks: int | Array  # i32, N: rows that ids may name


class OfGroups(NamedTuple):
    """The reference of slots, each that of its group: looked up where `take` asks for it.

    For who takes rows of a `Reference`, or asks it for numbers of rows and dtype.
    """

    known: Reference  # of G groups
    group: Array  # i32[T]

    @property
    def rates(self) -> Array:
        """f[K, G]."""
        return self.known.rates

    @property
    def embeddings(self) -> Array | None:
        """[E, G]."""
        return self.known.embeddings

    @property
    def code(self) -> FeatureCode | None:
        """How they were made."""
        return self.known.code

    def take(self, rows: Array | None) -> Reference:
        """As that of a `Reference`."""
        return self.known.take(self.group if rows is None else self.group[rows])


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


class Codes(NamedTuple):
    """Group numbers on the host, chunk by chunk: for a billion tasks they are never all there."""

    num_tasks: int
    part: Callable[[int], np.ndarray]  # start -> u16[<= _CHUNK], of the tasks from there on
    rates: np.ndarray  # f64[K, G], NaN or -1 unknown
    trials: np.ndarray | None  # f64[K, G]
    domain: np.ndarray | None  # i32[G]
    kinds: np.ndarray | None = None  # i[J, G], values of columns of kinds
    embeddings: np.ndarray | None = None  # f32[E, G], what is made of them

    @property
    def of_task(self) -> np.ndarray:
        """u16[N], all of them."""
        parts = [self.part(start) for start in range(0, self.num_tasks, _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)


def find_codes(
    reference: Any,
    reference_trials: Any,
    domains: Any,
    most: int = MOST_GROUPS,
    kinds: Sequence[np.ndarray] = (),
) -> Codes | None:
    """Group numbers of references given as rates f[K, N] or as counts; None if too many.

    Args:
      kinds: further columns that tell tasks apart, small integers from 0 on, [N] each.
    """
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
    columns += kinds
    values += [np.arange(int(np.max(column)) + 1) for column in kinds]
    if domains is not None:
        columns.append(np.asarray(domains))
        values.append(np.arange(int(np.max(domains)) + 1))
    return _combine(columns, values, trials, len(kinds), domains is not None, most)


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
    num_kinds: int,
    with_domains: bool,
    most: int,
) -> Codes | None:
    """One number for each combination that occurs."""
    radix = [len(grid) for grid in values]
    total = math.prod(radix)
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
    digits = np.stack(np.unravel_index(present, radix)) if radix else np.zeros((0, 1), int)
    models = len(columns) - with_domains - num_kinds
    rates = np.zeros((0, len(present)))
    if models:
        rates = np.stack([values[k][digits[k]] for k in range(models)])
    kinds = digits[models : models + num_kinds] if num_kinds else None
    domain = digits[-1].astype(np.int32) if with_domains else None
    each = None if trials is None else np.broadcast_to(trials[:, None], rates.shape)
    return Codes(
        size, lambda start: number[_mix(columns, radix, start)], rates, each, domain, kinds
    )


def _mix(columns: list[np.ndarray], radix: list[int], start: int) -> np.ndarray:
    mixed = np.zeros(min(_CHUNK, len(columns[0]) - start), np.int64)
    for column, base in zip(columns, radix, strict=True):
        part = column[start : start + _CHUNK].astype(np.int64)
        mixed = mixed * base + np.where(part < 0, base - 1, part)
    return mixed


def make_groups(codes: Codes, dtype: jnp.dtype, code: FeatureCode | None = None) -> Groups:
    """`Groups` of tasks with these numbers: a counting sort, chunk by chunk, on the device.

    Args:
      code: how embeddings were made of features.

    It needs the result and a chunk; arrays made on the host would have to be copied to be
    owned by the device, or to be donated.
    """
    count = codes.rates.shape[1]
    starts_of_parts = range(0, codes.num_tasks, _CHUNK)
    of_task = jnp.zeros((codes.num_tasks,), jnp.uint16)
    sizes = np.zeros(count, np.int64)
    for start in starts_of_parts:
        part = codes.part(start)
        of_task = _write(of_task, part, start)
        sizes += np.bincount(part, minlength=count)[:count]  # retired tasks have number `count`
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    order, filled = jnp.zeros((int(sizes.sum()),), jnp.int32), starts.copy()
    for start in starts_of_parts:
        part = codes.part(start)
        here = np.argsort(part, kind="stable").astype(np.int32)
        here = here[: np.count_nonzero(part < count)]
        counts = np.bincount(part, minlength=count)[:count]
        shift = np.repeat(filled - (np.cumsum(counts) - counts), counts).astype(np.int32)
        places = np.arange(len(here), dtype=np.int32) + shift
        order = _place(order, places, here + np.int32(start))
        filled += counts
    return Groups(
        sizes=jnp.asarray(sizes, jnp.int32),
        starts=jnp.asarray(starts, jnp.int32),
        order=order,
        of_task=of_task,
        reference=_as_reference(codes.rates, codes.trials, dtype)._replace(
            embeddings=None if codes.embeddings is None else jnp.asarray(codes.embeddings, dtype),
            code=None if code is None else FeatureCode(*map(jnp.asarray, code)),
        ),
        domain=None if codes.domain is None else jnp.asarray(codes.domain),
        num_tasks=jnp.asarray(codes.num_tasks, jnp.int32),
    )


@partial(jax.jit, donate_argnums=0)
def _write(into: Array, part: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice(into, part, (start,))


@partial(jax.jit, donate_argnums=0)
def _place(into: Array, places: Array, values: Array) -> Array:
    return into.at[places].set(values, unique_indices=True)


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
    return Reference(without_nan(rates, dtype), known)


def with_tasks(groups: Groups, codes: Codes, dtype: jnp.dtype) -> Groups:
    """On the host: more tasks, in groups of their own, numbered after those there are."""
    old, shift = codes_of(groups), groups.sizes.shape[0]
    before = old.of_task
    before[before == shift] = shift + codes.rates.shape[1]  # stay retired
    grown = _stored(
        np.concatenate([before, codes.of_task + np.uint16(shift)]),
        np.hstack([old.rates, codes.rates]),
        _joined(old.trials, codes.trials),
        _joined(old.domain, codes.domain),
        _joined(old.embeddings, codes.embeddings),
    )
    return make_groups(grown, dtype, groups.reference.code)


def _joined(first: np.ndarray | None, then: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or then is None else np.hstack([first, then])


def without_tasks(groups: Groups, task_ids: np.ndarray) -> Groups:
    """On the host: the same with some tasks retired."""
    codes = codes_of(groups)
    of_task = codes.of_task
    of_task[task_ids] = groups.sizes.shape[0]
    kept = _stored(of_task, codes.rates, codes.trials, codes.domain, codes.embeddings)
    return make_groups(kept, groups.reference.rates.dtype, groups.reference.code)


def codes_of(groups: Groups) -> Codes:
    """What `make_groups` made them of."""
    size = groups.sizes.shape[0]
    of_task = np.repeat(np.arange(size, dtype=np.uint16), np.asarray(groups.sizes))
    if groups.of_task is not None:
        of_task = np.asarray(groups.of_task)
    rates, trials, embeddings, *_ = groups.reference
    return _stored(
        of_task,
        np.asarray(rates, np.float64),
        None if trials is None else np.asarray(trials, np.float64),
        None if groups.domain is None else np.asarray(groups.domain),
        None if embeddings is None else np.asarray(embeddings),
    )


def _stored(
    of_task: np.ndarray,
    rates: np.ndarray,
    trials: np.ndarray | None,
    domain: np.ndarray | None,
    embeddings: np.ndarray | None,
) -> Codes:
    def part(start: int) -> np.ndarray:
        return of_task[start : start + _CHUNK]

    return Codes(len(of_task), part, rates, trials, domain, embeddings=embeddings)
