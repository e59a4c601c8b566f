"""Explicit evidence: what a user hands over, made uniform and checked.

In: `Evidence` of NumPy, lists or JAX arrays. Out: `Rows` of JAX arrays with an
explicit visit column; on the host, invalid rows are refused before anything is changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import host_numbers, is_concrete, numbers_or_none, whole_numbers
from bots_jax.numerics.compiling import room_beside
from bots_jax.types import Array, ArrayLike, Evidence

UNNUMBERED = -1
PADDING = -1
# Of arrays of JAX, in place of what 32 bits do not hold: of no pool, and of no visit.
_NO_TASK, _NO_VISIT = 2**31 - 1, -2

# Beyond this a float32 does not count by ones, and sums of many rows could overflow.
MOST_TRIALS = 2.0**24

# A success share computed in float32 and multiplied back may exceed its trials by this.
_ROUNDING = 1e-5


class Rows(NamedTuple):
    """Evidence as arrays, with nothing left out."""

    task_ids: Array  # i32[M]
    successes: Array  # f[M]
    trials: Array  # f[M]
    visit: Array  # i32[M], -1 = unnumbered
    attempts: Array | None = None  # f[M]; None: as many as trials
    differ: Array | None = None  # bool[M]; None: not known


def as_ids(name: str, task_ids: ArrayLike, capacity: int) -> Array:
    """Task ids as i32, refused on the host where they are out of range, before they are narrowed.

    Raises:
      ValueError: naming the first id that is no row of a pool of `capacity` rows.
    """
    given = host_numbers(name, task_ids, copy=False)
    if is_concrete(given) and jnp.issubdtype(given.dtype, jnp.integer):
        values = np.asarray(given)
        wrong = values[(values < -1) | (values >= capacity)]
        if wrong.size:
            raise ValueError(
                f"{name} contains {wrong.flat[0]}, this pool has rows 0 to {capacity - 1}"
            )
    return whole_numbers(name, given, beyond=_NO_TASK)


def as_rows(evidence: Evidence, dtype: jnp.dtype) -> Rows:
    """Evidence as JAX arrays of one length, narrowed; see `validate_evidence` before it is.

    Raises:
      ValueError: if the shapes do not agree. `trials` and `visit` may be scalars.
    """
    task_ids = whole_numbers("evidence.task_ids", evidence.task_ids, beyond=_NO_TASK)
    if task_ids.ndim != 1:
        raise ValueError(
            f"evidence.task_ids has shape {task_ids.shape}, expected [M]: one row a task"
        )
    visit: ArrayLike = np.int32(UNNUMBERED)
    if evidence.visit is not None:
        visit = whole_numbers("evidence.visit", evidence.visit, beyond=_NO_VISIT)
    return Rows(
        task_ids=task_ids,
        successes=_column("successes", evidence.successes, task_ids.shape, dtype),
        trials=_column("trials", evidence.trials, task_ids.shape, dtype),
        visit=_column("visit", visit, task_ids.shape, jnp.dtype(jnp.int32)),
        attempts=_given("attempts", evidence.attempts, task_ids.shape, dtype),
        differ=_given("differ", evidence.differ, task_ids.shape, jnp.dtype(bool)),
    )


def _given(
    name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> Array | None:
    return None if value is None else _column(name, value, shape, dtype)


def _column(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    # On the host what is on the host: each operation on a device would be a call of its own.
    of = np if is_concrete(value) and not isinstance(value, jax.Array) else jnp
    column = of.asarray(value, dtype)
    if column.shape not in ((), shape) or (column.shape == () and name == "successes"):
        raise ValueError(
            f"evidence.{name} has shape {column.shape}, expected {shape}, as evidence.task_ids"
        )
    return column if column.shape == shape else of.broadcast_to(column, shape)


def sound_numbers(rows: Rows) -> Array:
    """bool[M]: rows whose successes and trials make sense, whatever their task."""
    s, n = rows.successes, rows.trials
    finite = jnp.isfinite(s) & jnp.isfinite(n)
    return finite & (s >= 0) & (n >= 0) & (n <= MOST_TRIALS) & (s <= n * (1 + _ROUNDING))


def is_unscored(rows: Rows) -> Array:
    """bool[M]: rows of trials that were not scored, or, of none, that nothing will come."""
    return jnp.isnan(rows.successes) & (rows.trials >= 0) & (rows.trials <= MOST_TRIALS)


def take_evidence(evidence: Any) -> Evidence:
    """Evidence whose columns are JAX's, or copies of what is on the host: see `host_numbers`.

    Raises:
      ValueError: if it is none, such as arguments in another order, or holds no numbers.
    """
    if not isinstance(evidence, Evidence):
        raise ValueError(
            f"evidence is a {type(evidence).__name__}, expected a bots_jax.Evidence: the order is "
            "update(state, evidence); make it by batch.evidence(rewards)"
        )
    hints = {"task_ids": ", rows of the pool; adapters.TaskSampler knows tasks by name"}
    columns: dict[str, Any] = {
        name: numbers_or_none(f"evidence.{name}", value, hint=hints.get(name, ""))
        for name, value in evidence._asdict().items()
    }
    rows, tokens = np.shape(columns["task_ids"]), np.shape(columns["tokens"])
    if columns["tokens"] is not None and tokens not in ((), rows):
        raise ValueError(
            f"evidence.tokens has shape {tokens}, expected {rows}, as evidence.task_ids: of the "
            "rollouts of a row together"
        )
    return Evidence(**columns)


def in_few_sizes(evidence: Evidence) -> Evidence:
    """Rows on the host, padded to a power of two; others as they are.

    Each number of rows is compiled for: where rollouts trickle in, no two calls would be alike.

    Args:
      evidence: of `take_evidence`. Shapes that do not agree are left for `as_rows` to refuse.
    """
    columns = {name: value for name, value in evidence._asdict().items() if value is not None}
    shape = np.shape(evidence.task_ids)
    on_host = all(isinstance(value, np.ndarray) for value in columns.values())
    if not on_host or len(shape) != 1 or {np.shape(x) for x in columns.values()} - {(), shape}:
        return evidence
    room = room_beside(shape[0])
    if not room:
        return evidence
    empty = {"task_ids": PADDING, "visit": UNNUMBERED}
    return evidence._replace(
        **{
            name: np.pad(value, (0, room), constant_values=empty.get(name, 0))
            for name, value in columns.items()
            if value.shape == shape
        }
    )


def validate_evidence(evidence: Evidence, capacity: int) -> None:
    """At the host boundary: raise on the first row that makes no sense.

    Only what is on the host is looked at, lists and NumPy arrays: looking at a device's would
    wait for it. Ids first; without them it is not known which rows are padding.

    Args:
      evidence: as given by the user, before `as_rows` rounds and narrows it.
      capacity: rows of the pool.
    """
    if isinstance(evidence.task_ids, jax.Array):
        return
    ids = np.atleast_1d(np.asarray(evidence.task_ids))
    used = ids != PADDING
    inside = (ids >= 0) & (ids < capacity)
    _refuse(used & ~inside, "task_ids", ids, f"is no task of this pool of {capacity} rows")
    if isinstance(evidence.successes, jax.Array) or isinstance(evidence.trials, jax.Array):
        return
    s, n = (np.asarray(x, np.float64) for x in (evidence.successes, evidence.trials))
    if s.shape != ids.shape or n.shape not in ((), ids.shape):
        return  # `as_rows` says so
    n = np.broadcast_to(n, s.shape)
    _refuse(used & np.isinf(s), "successes", s, "is not finite: drop or repair the row")
    _refuse(used & ~(np.isfinite(n) & (n >= 0)), "trials", n, "must be finite and not negative")
    _refuse(used & (n > MOST_TRIALS), "trials", n, f"exceeds {MOST_TRIALS:g}, more than any count")
    _refuse(used & (s < 0), "successes", s, "is negative: map rewards to [0, 1] first")
    _refuse(used & (s > n * (1 + _ROUNDING)), "successes", s, "exceeds the trials of its row")
    if evidence.attempts is None or isinstance(evidence.attempts, jax.Array):
        return
    attempts = np.broadcast_to(np.asarray(evidence.attempts, np.float64), s.shape)
    _refuse(used & ~(attempts >= 0), "attempts", attempts, "must be 0 or more, or infinite")


# Shares of success are held in so many parts, to tell whether those of a task differ.
PARTS = 255


def extremes(rows: Rows) -> tuple[Array, Array]:
    """u8[M] twice: the highest share of failure and of success among a row's rollouts, in parts.

    More than `PARTS` together means that they differ. Of a row of several rollouts that does not
    say whether they do it is taken that they are 0 and 1.
    """
    s, n = rows.successes, rows.trials
    differ = (s > 0) & (s < n) & (n > 1) if rows.differ is None else rows.differ
    share = jnp.clip(s / jnp.where(n > 0, n, 1), 0, 1)
    success = jnp.round(PARTS * jnp.where(jnp.isfinite(share), share, 0)).astype(jnp.uint8)
    whole = jnp.uint8(PARTS)
    return jnp.where(differ, whole, whole - success), jnp.where(differ, whole, success)


def attempts_of(rows: Rows, sound: Array, rollouts: Array) -> Array:
    """f[M]: rollouts that each row brings to its visit, scored or not.

    Of a row that makes no sense it is not known how many it stands for, unless it says so: all.
    """
    countable = (rows.trials > 0) & (rows.trials <= MOST_TRIALS)
    told = jnp.where(sound | countable, rows.trials, rollouts)
    if rows.attempts is None:
        return told
    return jnp.where(rows.attempts >= 0, rows.attempts, told)


def _refuse(wrong: np.ndarray, name: str, values: np.ndarray, why: str) -> None:
    rows = np.flatnonzero(wrong)
    if rows.size:
        row = int(rows[0])
        more = f" (and {rows.size - 1} more rows)" if rows.size > 1 else ""
        raise ValueError(
            f"evidence.{name}[{row}]={values[row]} {why}{more}. "
            "Nothing was changed; task_ids -1 marks padding."
        )
