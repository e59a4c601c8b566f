"""Pools that grow and shrink, for the state of any selector.

In: a state, and tasks to add or retire. Out: the state with other rows active. Shapes
stay as they are, so nothing is compiled anew: room is reserved by `init(capacity=...)`. A
grouped pool needs no room; it is changed on the host.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from bots_jax.checks import check_count, host_numbers, is_concrete, whole_numbers
from bots_jax.compose import check_ids
from bots_jax.grouped import selector as grouped
from bots_jax.grouped.groups import find_codes
from bots_jax.pool import visits
from bots_jax.pool.features import encode_as
from bots_jax.pool.reference import (
    UNKNOWN,
    Reference,
    broadcast_trials,
    check_rates,
    stored_like,
    without_nan,
)
from bots_jax.types import Array, ArrayLike, State


def add_tasks(
    state: State,
    reference: ArrayLike | None = None,
    num_tasks: int | None = None,
    reference_trials: ArrayLike | None = None,
    domains: ArrayLike | None = None,
    features: Any = None,
) -> tuple[State, Array]:
    """Add A tasks, each with a fresh belief.

    Args:
      state: with at least A rows that hold no task.
      reference: f[K, A] pass rates of the same K models, NaN where unknown; None if
        nothing is known of these tasks.
      num_tasks: A, where `reference` does not tell it.
      reference_trials: f[K] or f[K, A].
      domains: i32[A], needed if the pool has domains.
      features: of the new tasks, as they were given to `init`; None if nothing is known of them.
        Numbers are taken relative to the mean and deviation of the first tasks, and a kind that
        was not among them says nothing. Of a pool made with `TaskFeatures`: f[E, A], as they are.

    Returns:
      The state, and the i32[A] ids of the new tasks. Ids of retired tasks are used again
      once no fresh ones are left. In traced code an id is -1 where there was no room.

    Raises:
      ValueError: if the shapes do not fit, or there is no room.
    """
    models = state.reference.rates.shape[0]
    if reference is not None and not hasattr(reference, "_fields"):
        reference = host_numbers("reference", reference, copy=False)
    if reference_trials is not None and reference is None:
        raise ValueError("reference_trials was given without reference: give both or neither")
    columns = _encode_new(state.known.reference, features)
    if columns is not None and reference is None and num_tasks is None:
        num_tasks = columns.shape[1]
    count = count_new(reference, num_tasks, models)
    if columns is not None and columns.shape[1] != count:
        raise ValueError(f"features has {columns.shape[1]} rows, expected one for {count} tasks")
    if state.representation == "grouped":
        return _add_grouped(state, reference, reference_trials, domains, count, columns)
    capacity = state.pool.active.shape[0]
    _check_free(state, count)
    has_domains = state.pool.domain is not None
    known = state.pool.domain_sizes.shape[0] if has_domains else None
    domain = _check_domains(domains, count, known)
    bookkeeping, ids = visits.add(state.pool, count, domain)
    rows = jnp.where(ids >= 0, ids, capacity)
    state = state._replace(
        pool=bookkeeping,
        reference=_set_reference(state.reference, rows, reference, reference_trials, columns),
        belief=state.belief.restart(state.settings, rows, state.pool.active),
    )
    return state, ids


def retire(state: State, task_ids: ArrayLike) -> State:
    """Remove tasks from the pool; their evidence, pending or late, is dropped.

    Args:
      state: of any selector.
      task_ids: i32[A]; -1 is padding, and a task that is out already stays out.

    Returns:
      The state. For a grouped pool it is made on the host, by going through all tasks.

    Raises:
      ValueError: if an id is no row of the pool, or a grouped pool is traced.
    """
    if state.representation == "grouped":
        _refuse_traced(state, task_ids)
        ids = np.asarray(grouped.check_task_ids(state, task_ids))
        return grouped.retire(state, ids[ids >= 0])
    return state._replace(pool=visits.retire(state.pool, check_ids(state, task_ids)))


def _refuse_traced(*values: Any) -> None:
    if not is_concrete(*values):
        raise ValueError(
            "a grouped pool grows and shrinks on the host only: call this outside of jit, or "
            "make the pool with bots(representation='dense')"
        )


def _add_grouped(
    state: State,
    reference: ArrayLike | None,
    trials: ArrayLike | None,
    domains: ArrayLike | None,
    count: int,
    columns: np.ndarray | None,
) -> tuple[State, Array]:
    _refuse_traced(state, reference, trials, domains)
    known = state.pool.groups
    most = state.pool.slots.domain_sizes.size
    checked = _check_domains(domains, count, None if known.domain is None else most)
    if (trials is None) != (known.reference.trials is None) and reference is not None:
        raise ValueError("reference_trials must be given to init and to add_tasks, or to neither")
    models = known.reference.rates.shape[0]
    domains = None if checked is None else np.asarray(checked)
    rates = np.full((models, count), np.nan) if reference is None else np.asarray(reference)
    if trials is None and known.reference.trials is not None:
        trials = np.ones(models)
    kinds, values = _kinds_of(known.reference, columns, count)
    codes = find_codes(rates, trials, domains, kinds=kinds)
    if codes is not None and codes.kinds is not None:
        codes = codes._replace(embeddings=values[:, codes.kinds[0]])
    if codes is None:
        raise ValueError("the references of the new tasks take too many values to be grouped")
    return grouped.add_tasks(state, codes)


def _kinds_of(
    known: Reference, columns: np.ndarray | None, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Which of the distinct columns f[E, V] each new task has; nothing where there are none."""
    if known.embeddings is None:
        return [], np.zeros((0, 1))
    if columns is None:
        columns = np.zeros((known.embeddings.shape[0], count), np.float32)
    values, numbers = np.unique(columns, axis=1, return_inverse=True)
    return [numbers.ravel()], values


def count_new(reference: Any, num_tasks: int | None, models: int) -> int:
    """The number A of tasks to add to a pool with a given number of reference models."""
    if num_tasks is not None:
        num_tasks = check_count("num_tasks", num_tasks)
    if reference is None:
        if num_tasks is None:
            raise ValueError("num_tasks is None: give reference, or how many tasks to add")
        return num_tasks
    if hasattr(reference, "_fields"):  # counts or groups, as `init` takes them
        raise ValueError(
            f"reference is a {type(reference).__name__}: to a pool that is there give pass rates "
            f"f[{models}, A], successes over trials, and reference_trials"
        )
    shape = np.shape(reference)
    if models == 0:
        raise ValueError(
            f"reference has shape {shape}, and the pool was made without references: drop it, and "
            "give num_tasks"
        )
    if len(shape) != 2 or shape[0] != models or num_tasks not in (None, shape[1]):
        raise ValueError(
            f"reference has shape {shape}, expected [{models}, {num_tasks or 'A'}]: "
            "the models that the pool was made with"
        )
    check_rates(reference)
    return shape[1]


def _check_free(state: State, count: int) -> None:
    if is_concrete(state.pool.active):
        free = int(np.sum(~np.asarray(state.pool.active)))
        if free < count:
            raise ValueError(
                f"{count} tasks do not fit into {free} free rows: retire tasks, "
                "or make the pool with a larger init(capacity=...)"
            )


def _check_domains(domains: ArrayLike | None, count: int, known: int | None) -> Array | None:
    """i32[A], in [0, known), of the new tasks; None where the pool has no domains, nor `known`."""
    if (domains is None) != (known is None):
        has = "has no" if known is None else "has"
        raise ValueError(f"domains={domains}, but the pool {has} domains: give them to both")
    if domains is None or known is None:
        return None
    array = whole_numbers("domains", domains, beyond=-1)
    if array.shape != (count,):
        raise ValueError(f"domains has shape {array.shape}, expected ({count},)")
    if is_concrete(array) and not np.all((np.asarray(array) >= 0) & (np.asarray(array) < known)):
        raise ValueError(f"domains must lie in [0, {known}): raise num_domains in the factory")
    return jnp.clip(array, 0, known - 1)


def _encode_new(known: Reference, features: Any) -> np.ndarray | None:
    """f[E, A] columns of the new tasks."""
    if features is None:
        return None
    if known.embeddings is None:
        raise ValueError("features was given, but the pool was made without: drop it")
    if known.code is not None:
        if not is_concrete(known.code):
            raise ValueError(
                "features of new tasks are made ready on the host: call outside of jit"
            )
        return encode_as(features, known.code)
    columns = np.asarray(features)
    size = known.embeddings.shape[0]
    if columns.ndim != 2 or columns.shape[0] != size or not np.isfinite(columns).all():
        raise ValueError(
            f"features has shape {columns.shape}, expected finite [{size}, A]: embeddings like "
            "those of the TaskFeatures that the pool was made with"
        )
    return columns


def _set_reference(
    known: Reference,
    rows: Array,
    rates: ArrayLike | None,
    trials: ArrayLike | None,
    columns: np.ndarray | None,
) -> Reference:
    models, dtype = known.rates.shape[0], known.rates.dtype
    if (trials is not None) and known.trials is None:
        raise ValueError("reference_trials was given, but the pool was made without: drop it")
    new = UNKNOWN if rates is None else without_nan(rates, dtype)
    known = known._replace(rates=known.rates.at[:, rows].set(new, mode="drop"))
    if known.embeddings is not None:
        described = 0 if columns is None else stored_like(known, columns)
        embeddings = known.embeddings.at[:, rows].set(described, mode="drop")
        known = known._replace(embeddings=embeddings)
    if known.trials is None:
        return known
    if trials is None and rates is not None:
        raise ValueError("reference_trials is missing: the pool was made with them")
    attempts = 1 if trials is None else broadcast_trials(trials, models, rows.shape[0], dtype)
    return known._replace(trials=known.trials.at[:, rows].set(attempts, mode="drop"))
