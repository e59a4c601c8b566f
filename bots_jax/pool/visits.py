"""The pool: which tasks exist, which are in flight, what evidence is pending, growth.

In: selections, evidence, tasks added and retired. Out: a mask of tasks that may be
selected, and at each `advance` the evidence to fuse. Written once for every selector.

A visit is one group of rollouts of a selected task. It is open from `select` until its m attempts
are in, scored or not, `abandon` closes it, or it grows older than `expiry` steps. An `advance`
after some of them came closes it too, unless visits are kept open: then a step may fuse a part, and
the next step the rest. A row of 0 trials says that nothing has come yet. Numbers of visits are
unique, so evidence that arrives after the end is recognised as stale.

A step brings evidence of few of the C rows. They are listed in `touched`, so that means
over the batch cost what the batch does, and are summed in one order on any number of
devices; if more than its R places are needed, all rows are gone through instead. Small pools
are gone through in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.numerics.short_lists import repeats, seen_before, times_before
from bots_jax.pool.evidence import (
    PADDING,
    PARTS,
    UNNUMBERED,
    Rows,
    attempts_of,
    extremes,
    is_unscored,
    sound_numbers,
)
from bots_jax.sharding import mesh_of, top_k, total
from bots_jax.types import Array, ArrayLike, Known, PyTree

NO_VISIT = -1
# Pools of so many rows at most are gone through at each step: the list of rows with pending
# evidence, and what is needed where it is incomplete, would be most of what is compiled.
_SMALL = 2**13


class PoolState(NamedTuple):
    """Bookkeeping of C rows."""

    active: Array  # bool[C], the tasks that exist
    domain: Array | None  # i32[C] in [0, D); None if there is only one
    domain_sizes: Array  # i32[D], active tasks of each domain; its shape is what tells D
    visit: Array  # i32[C], number of the open visit, or -1
    opened: Array | None  # i32[C], step at which the last visit was opened; for expiry only
    visit_trials: Array  # f[C], attempts that the open visit has brought so far
    successes: Array  # f[C], pending
    trials: Array  # f[C], pending
    most_failed: Array  # u8[C], pending: the highest share of failure among them, in 255ths
    most_solved: Array  # u8[C], of success; together above 255 where the rewards differ
    touched: Array  # i32[R], rows with pending evidence or attempts, C beyond; in no order
    num_touched: Array  # i32; above R the list is incomplete
    in_flight: Array  # i32, open visits
    step: Array  # i32, calls of advance so far
    next_visit: Array  # i32
    next_fresh: Array  # i32, rows from here on have never held a task
    stale: Array  # i32, rows dropped since the last advance
    unsolicited: Array  # i32, rows counted without an open visit since then
    invalid: Array  # i32, rows that make no sense, ignored since then

    # As `types.Pool` says.
    @property
    def representation(self) -> str:
        """Each task has a row."""
        return "dense"

    @property
    def num_tasks(self) -> Array:
        """i32, active rows."""
        return jnp.sum(self.domain_sizes, axis=-1, dtype=jnp.int32)

    @property
    def capacity(self) -> int:
        """C."""
        return int(self.active.shape[-1])

    @property
    def bookkeeping(self) -> PoolState:
        """Itself."""
        return self

    def known(self, reference: Any) -> Known:
        """A column a row."""
        return Known(reference, self.domain, self.active.astype(jnp.int32))

    def column_of(self, task_ids: ArrayLike) -> Array:
        """The row."""
        ids = jnp.asarray(task_ids, jnp.int32)
        inside = (ids >= 0) & (ids < self.capacity)
        exists = inside & self.active[jnp.where(inside, ids, 0)]
        return jnp.where(exists, ids, self.capacity)


class StepEvidence(NamedTuple):
    """What one step brought, for the belief to fuse."""

    successes: Array  # f[C]
    trials: Array  # f[C]; 0 for tasks without explicit evidence
    domain: Array | None  # i32[C]
    num_domains: int  # D, static
    # i32[R], the tasks with trials, among others maybe, ascending, C beyond; None: any
    rows: Array | None = None
    # bool, whether `rows` is incomplete; None: nobody knows, and all rows are gone through
    overflow: Array | None = None
    most_failed: Array | None = None  # u8[C], see `PoolState`; None: nobody knows
    most_solved: Array | None = None  # u8[C]


class Evaluated(NamedTuple):
    """The tasks that a step brought evidence of, and rows without any as padding."""

    rows: Array | None  # i32[R]; None for all C rows in order
    successes: Array  # f[R]
    trials: Array  # f[R], 0 in padding
    mixed: Array | None = None  # bool[R], tasks whose rewards differ
    rolled_out: Array | None = None  # bool[R], tasks of which some trials were rollouts


def is_mixed(fused: StepEvidence, rows: Any = slice(None)) -> Array:
    """bool[...]: the tasks whose rewards differ, as far as is known: see `Evidence.differ`."""
    if fused.most_failed is None or fused.most_solved is None:
        return (fused.successes[rows] > 0) & (fused.successes[rows] < fused.trials[rows])
    return fused.most_failed[rows] > PARTS - fused.most_solved[rows]


def is_rolled_out(fused: StepEvidence, rows: Any = slice(None)) -> Array:
    """bool[...]: the tasks of which some trials were rollouts.

    The shares of failure and success of a rollout add up to `PARTS` at least. Both are 0 of what a
    new level takes over from its parent (`levels.insert`).
    """
    if fused.most_failed is None or fused.most_solved is None:
        return fused.trials[rows] > 0
    return (fused.most_failed[rows] > 0) | (fused.most_solved[rows] > 0)


def over_evaluated(fused: StepEvidence, measure: Callable[[Evaluated], PyTree]) -> PyTree:
    """`measure` of the tasks with evidence: small numbers, such as means over the batch."""
    capacity = fused.trials.shape[0]
    if fused.rows is None or fused.overflow is None:
        told = is_mixed(fused), is_rolled_out(fused)
        return measure(Evaluated(None, fused.successes, fused.trials, *told))
    at = jnp.minimum(fused.rows, capacity - 1)
    present = fused.rows < capacity
    few = Evaluated(
        at,
        jnp.where(present, fused.successes[at], 0),
        jnp.where(present, fused.trials[at], 0),
        present & is_mixed(fused, at),
        present & is_rolled_out(fused, at),
    )

    def all_rows(measured: PyTree) -> PyTree:
        # Tied to what is replaced, or XLA moves it in front of the loop that seldom turns.
        told = fused._replace(domain=None, rows=None, overflow=None, num_domains=0)
        tied = lax.optimization_barrier((told, measured))[0]
        both = is_mixed(tied), is_rolled_out(tied)
        return measure(Evaluated(None, tied.successes, tied.trials, *both))

    return lazy_cond(fused.overflow, all_rows, measure(few))


class Counts(NamedTuple):
    """What `close_step` counted, for `Info`."""

    stale: Array
    unsolicited: Array
    invalid: Array
    expired: Array
    in_flight: Array


# One program: each array by itself would be compiled anew for each size of pool.
@partial(jax.jit, static_argnums=(0, 1, 3, 4, 5, 6))
def make_pool(
    num_tasks: int,
    capacity: int,
    domain: Array | None,
    num_domains: int,
    dtype: jnp.dtype,
    touched_capacity: int,
    track_expiry: bool,
) -> PoolState:
    """A pool in which the first `num_tasks` of `capacity` rows are active.

    Args:
      touched_capacity: R, distinct tasks of which a step may bring evidence before it costs more.
      track_expiry: whether visits expire.
    """

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    def zeros() -> Array:
        return jnp.zeros((capacity,), dtype)

    if domain is not None:
        domain = jnp.pad(domain, (0, capacity - num_tasks))
    active = jnp.arange(capacity, dtype=jnp.int32) < num_tasks
    return PoolState(
        active=active,
        domain=domain,
        domain_sizes=_domain_sizes(active, domain, num_domains),
        visit=jnp.full((capacity,), NO_VISIT, jnp.int32),
        opened=jnp.zeros((capacity,), jnp.int32) if track_expiry else None,
        visit_trials=zeros(),
        successes=zeros(),
        trials=zeros(),
        most_failed=jnp.zeros((capacity,), jnp.uint8),
        most_solved=jnp.zeros((capacity,), jnp.uint8),
        touched=jnp.full((min(touched_capacity, capacity),), capacity, jnp.int32),
        num_touched=zero(),
        in_flight=zero(),
        step=zero(),
        next_visit=zero(),
        next_fresh=jnp.full((), num_tasks, jnp.int32),
        stale=zero(),
        unsolicited=zero(),
        invalid=zero(),
    )


def _domain_sizes(active: Array, domain: Array | None, num_domains: int) -> Array:
    counts = active.astype(jnp.int32)
    return domain_sums(counts, domain, num_domains)


def selectable(pool: PoolState, eligible: Array | None) -> Array:
    """bool[C]: tasks that exist, are eligible and not in flight."""
    free = pool.active & (pool.visit == NO_VISIT)
    return free if eligible is None else free & eligible


def open_visits(pool: PoolState, task_ids: Array, valid: Array) -> tuple[PoolState, Array]:
    """Open a visit of each valid task; i32[B] visit numbers, -1 where invalid."""
    rows = jnp.where(valid, task_ids, pool.active.shape[0])
    number = pool.next_visit
    opened = pool.opened
    if opened is not None:
        opened = opened.at[rows].set(pool.step, mode="drop")
    pool = pool._replace(
        visit=pool.visit.at[rows].set(number, mode="drop"),
        opened=opened,
        in_flight=pool.in_flight + _count(valid),
        next_visit=number + 1,
    )
    return pool, jnp.where(valid, number, NO_VISIT)


class Admitted(NamedTuple):
    """What becomes of each row of evidence, bool[M]."""

    exists: Array  # its task is in the pool
    sound: Array  # and its numbers make sense
    attached: Array  # it is of the visit that is open
    counts: Array  # its trials are learned from


def admit(pool: PoolState, evidence: Rows) -> Admitted:
    """Which rows count in a call that begins with this pool."""
    capacity = pool.active.shape[0]
    ids = evidence.task_ids
    at = jnp.clip(ids, 0, capacity - 1)
    exists = (ids >= 0) & (ids < capacity) & pool.active[at]
    sound = exists & sound_numbers(evidence)
    numbered = evidence.visit != UNNUMBERED
    is_open = exists & (pool.visit[at] != NO_VISIT)
    # Without a number what makes no sense is of no visit; what was not scored is of the open one.
    told = sound | is_unscored(evidence)
    attached = is_open & jnp.where(numbered, pool.visit[at] == evidence.visit, told)
    counts = sound & (evidence.trials > 0) & (attached | ~numbered)
    return Admitted(exists, sound, attached, counts)


def observe(pool: PoolState, evidence: Rows, rollouts: Array) -> PoolState:
    """Add evidence to what is pending.

    A row counts if it is unnumbered, or if its visit was open when this call began: rows of one
    call are never late to each other, so their order does not matter. A row that is not scored
    (successes NaN) or makes no sense brings no evidence, but its trials are attempts of its
    visit like any others: a visit of which nothing is scored ends as one that is, and does not
    keep its task in flight for ever.
    """
    ids = evidence.task_ids
    exists, sound, attached, counts = admit(pool, evidence)
    attempts = jnp.where(attached, attempts_of(evidence, sound, rollouts), 0)
    again = None if _is_small(pool) else repeats(ids, exists)
    pool = _add_counts(pool, evidence, counts, counts | (attempts > 0), again)
    pool = _add_to_visits(pool, ids, attempts, attached, rollouts, again)
    stale = sound & (evidence.visit != UNNUMBERED) & ~attached
    return pool._replace(
        stale=pool.stale + _count(stale),
        unsolicited=pool.unsolicited + _count(counts & ~attached),
        invalid=pool.invalid + _count((ids != PADDING) & ~sound),
    )


def _count(mask: Array) -> Array:
    return jnp.sum(mask, dtype=jnp.int32)


# Up to this many rows all pairs are compared; that is quicker than sorting them.
_FEW_ROWS = 1024


@jax.jit  # a loop outside of traced code would be compiled at every call
def first_of_each(values: Array, again: Array | None) -> Array:
    """bool[M]: whether no earlier entry of i32[M] is the same.

    Args:
      again: bool, whether any two entries that matter are the same; None: they are not.
    """
    all_are = jnp.ones(values.shape, bool)
    if again is None:
        return all_are

    def look(first: Array) -> Array:
        tied = lax.optimization_barrier((values, first))[0]
        few = tied.shape[0] <= _FEW_ROWS
        return times_before(tied) == 0 if few else ~seen_before(tied)

    return lazy_cond(again, look, all_are)


def _is_small(pool: PoolState) -> bool:
    """Whether going through all rows costs less than compiling what would spare it.

    Not in domains: their sums over all rows are taken in another order when spread over devices.
    """
    return pool.domain is None and pool.active.shape[0] <= _SMALL


def _add_counts(
    pool: PoolState, evidence: Rows, counts: Array, listed: Array, again: Array | None
) -> PoolState:
    """Add what counts, and list the rows that this step has to look at."""
    capacity = pool.active.shape[0]
    touched, num_touched = pool.touched, pool.num_touched
    if again is None:
        # The list is not kept: incomplete, if the pool should grow before the next step.
        num_touched = jnp.full_like(num_touched, touched.shape[0] + 1)
    else:
        looked_at = jnp.where(listed, evidence.task_ids, capacity)
        before = pool.trials[jnp.minimum(looked_at, capacity - 1)]
        new = listed & (before == 0) & first_of_each(looked_at, again)
        counts &= before >= 0  # always: read first, then written in place
        place = num_touched + jnp.cumsum(new, dtype=jnp.int32) - 1
        place = jnp.where(new, place, touched.shape[0])
        touched = touched.at[place].set(looked_at, mode="drop")
        num_touched = num_touched + _count(new)
    rows = jnp.where(counts, evidence.task_ids, capacity)
    failed, solved = extremes(evidence)
    successes = jnp.minimum(evidence.successes, evidence.trials)  # rounding, see sound_numbers
    return pool._replace(
        successes=pool.successes.at[rows].add(successes, mode="drop"),
        trials=pool.trials.at[rows].add(evidence.trials, mode="drop"),
        most_failed=pool.most_failed.at[rows].max(failed, mode="drop"),
        most_solved=pool.most_solved.at[rows].max(solved, mode="drop"),
        touched=touched,
        num_touched=num_touched,
    )


def _add_to_visits(
    pool: PoolState,
    ids: Array,
    attempts: Array,
    attached: Array,
    rollouts: Array,
    again: Array | None,
) -> PoolState:
    capacity = pool.active.shape[0]
    rows = jnp.where(attached, ids, capacity)
    visit_trials = pool.visit_trials.at[rows].add(attempts, mode="drop")
    done = attached & (visit_trials[jnp.clip(ids, 0, capacity - 1)] >= rollouts)
    pool = pool._replace(visit_trials=visit_trials)
    return _close(pool, jnp.where(done, ids, capacity), again)


def _close(pool: PoolState, rows: Array, again: Array | None) -> PoolState:
    """End the open visits of these rows; C and above, and rows without a visit, are skipped.

    Args:
      again: bool, whether a row may be named twice; None: it is not.
    """
    capacity = pool.active.shape[0]
    is_open = (rows < capacity) & (pool.visit[jnp.minimum(rows, capacity - 1)] != NO_VISIT)
    rows = jnp.where(is_open, rows, capacity)
    visit = pool.visit.at[rows].set(NO_VISIT, mode="drop")
    if _is_small(pool):
        in_flight = _count(visit != NO_VISIT)
    else:
        in_flight = pool.in_flight - _count(is_open & first_of_each(rows, again))
    return pool._replace(
        visit=visit,
        visit_trials=pool.visit_trials.at[rows].set(0, mode="drop"),
        in_flight=in_flight,
    )


def abandon(pool: PoolState, task_ids: Array) -> PoolState:
    """Close the visits of these tasks; what they have brought stays pending."""
    rows = _rows(task_ids, pool.active.shape[0])
    return _close(pool, rows, repeats(rows, rows < pool.active.shape[0]))


def _rows(task_ids: Array, capacity: int) -> Array:
    """Row numbers to write to, with every id out of range turned into one that is dropped."""
    return jnp.where((task_ids >= 0) & (task_ids < capacity), task_ids, capacity)


def close_step(
    pool: PoolState, expiry: int | None, keep_open: bool
) -> tuple[PoolState, StepEvidence, Counts]:
    """Hand over what is pending, and end the visits that brought it or are too old.

    What was handed over is still in the pool until `clear_pending`.

    Args:
      keep_open: whether a visit that brought some of it waits for the rest of its attempts.
    """
    capacity, step = pool.active.shape[0], pool.step + 1
    fused = StepEvidence(
        pool.successes, pool.trials, pool.domain, pool.domain_sizes.shape[0],
        most_failed=pool.most_failed, most_solved=pool.most_solved,
    )  # fmt: skip
    if pool.touched.shape[0] < capacity and _is_small(pool):
        first = top_k((pool.trials > 0).astype(jnp.float32), pool.touched.shape[0])[1]
        rows = jnp.where(pool.trials[first] > 0, first.astype(jnp.int32), capacity)
        fused = fused._replace(rows=rows)
    elif pool.touched.shape[0] < capacity:
        rows = jnp.sort(pool.touched)
        repeated = jnp.concatenate([jnp.zeros(1, bool), rows[1:] == rows[:-1]])
        fused = fused._replace(
            rows=jnp.where(repeated, capacity, rows),
            overflow=pool.num_touched > pool.touched.shape[0],
        )
    if not keep_open:
        pool = _close_evaluated(pool, fused)
    expired = jnp.zeros((), jnp.int32)
    if expiry is not None and pool.opened is not None:
        too_old = (pool.visit != NO_VISIT) & (step - pool.opened > expiry)
        expired = _count(too_old)
        visit = jnp.where(too_old, NO_VISIT, pool.visit)
        pool = pool._replace(visit=visit, in_flight=pool.in_flight - expired)
        if keep_open:
            none = jnp.where(too_old, 0, pool.visit_trials)
            pool = pool._replace(visit_trials=none)
    counts = Counts(pool.stale, pool.unsolicited, pool.invalid, expired, pool.in_flight)
    zero = jnp.zeros((), jnp.int32)
    return pool._replace(step=step, stale=zero, unsolicited=zero, invalid=zero), fused, counts


def _close_evaluated(pool: PoolState, fused: StepEvidence) -> PoolState:
    """End the open visits of which some attempts are in; only rows that are listed can have one."""

    def close_all(visits: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        visit, trials, in_flight = visits
        done = (visit != NO_VISIT) & (trials > 0)
        visit = jnp.where(done, NO_VISIT, visit)
        return visit, jnp.zeros_like(trials), in_flight - _count(done)

    if fused.rows is None or fused.overflow is None:
        visits = close_all((pool.visit, pool.visit_trials, pool.in_flight))
    else:
        capacity = pool.active.shape[0]
        tried = pool.visit_trials[jnp.minimum(fused.rows, capacity - 1)] > 0
        few = _close(pool, jnp.where(tried, fused.rows, capacity), None)
        visits = lazy_cond(fused.overflow, close_all, (few.visit, few.visit_trials, few.in_flight))
    visit, visit_trials, in_flight = visits
    return pool._replace(visit=visit, visit_trials=visit_trials, in_flight=in_flight)


def clear_pending(pool: PoolState, fused: StepEvidence, zero: Array) -> PoolState:
    """Forget what was handed over.

    Args:
      zero: from `sequencing_zero` all that reads what is pending, so that it is done in place.
    """
    if fused.rows is None or fused.overflow is None:
        return _clear_all(pool)
    rows = fused.rows + zero.astype(jnp.int32)
    few = without_pending(pool, rows)._replace(
        touched=jnp.full_like(pool.touched, pool.active.shape[0]),
        num_touched=jnp.zeros_like(pool.num_touched),
    )
    return lazy_cond(fused.overflow, _clear_all, few)


def without_pending(pool: PoolState, rows: Array) -> PoolState:
    """Nothing is pending of these rows; they may still be listed."""
    return pool._replace(
        successes=pool.successes.at[rows].set(0, mode="drop"),
        trials=pool.trials.at[rows].set(0, mode="drop"),
        most_failed=pool.most_failed.at[rows].set(0, mode="drop"),
        most_solved=pool.most_solved.at[rows].set(0, mode="drop"),
    )


def _clear_all(pool: PoolState) -> PoolState:
    return pool._replace(
        successes=jnp.zeros_like(pool.successes),
        trials=jnp.zeros_like(pool.trials),
        most_failed=jnp.zeros_like(pool.most_failed),
        most_solved=jnp.zeros_like(pool.most_solved),
        touched=jnp.full_like(pool.touched, pool.active.shape[0]),
        num_touched=jnp.zeros_like(pool.num_touched),
    )


def take(values: Array, rows: Array | None) -> Array:
    """[..., R]: the columns of some rows of the pool; all of them, untouched, for None."""
    return values if rows is None else values[..., rows]


def retire(pool: PoolState, task_ids: Array) -> PoolState:
    """Take tasks out of the pool: their visits end and pending evidence is dropped."""
    rows = _rows(task_ids, pool.active.shape[0])
    active = pool.active.at[rows].set(False, mode="drop")
    again = repeats(rows, rows < pool.active.shape[0])
    return without_pending(_close(pool, rows, again), rows)._replace(
        active=active,
        domain_sizes=_domain_sizes(active, pool.domain, pool.domain_sizes.shape[0]),
    )


def add(pool: PoolState, count: int, domain: Array | None) -> tuple[PoolState, Array]:
    """Activate `count` free rows; i32[count] task ids, -1 where there was no room.

    Rows that never held a task come first, so that late evidence for a retired task
    finds its row empty for as long as possible.
    """
    capacity = pool.active.shape[0]
    rows = jnp.arange(capacity, dtype=jnp.int32)
    turn = jnp.where(rows >= pool.next_fresh, rows - capacity, rows)
    turn = jnp.where(pool.active, capacity, turn)
    order = jnp.argsort(turn)[:count].astype(jnp.int32)
    order = jnp.pad(order, (0, count - order.shape[0]), constant_values=capacity)
    placed = (order < capacity) & ~pool.active[jnp.clip(order, 0, capacity - 1)]
    target = jnp.where(placed, order, capacity)
    if domain is not None and pool.domain is not None:
        pool = pool._replace(domain=pool.domain.at[target].set(domain, mode="drop"))
    last = jnp.max(jnp.where(placed, order + 1, 0), initial=0)
    active = pool.active.at[target].set(True, mode="drop")
    pool = pool._replace(
        active=active,
        domain_sizes=_domain_sizes(active, pool.domain, pool.domain_sizes.shape[0]),
        next_fresh=jnp.maximum(pool.next_fresh, last),
    )
    return pool, jnp.where(placed, order, PADDING)


def domain_sums(values: Array, domain: Array | None, num_domains: int) -> Array:
    """[D]: sums of [C] `values` over the tasks of each domain."""
    if domain is None:
        return total(values).astype(values.dtype)[None]
    if mesh_of(values) is None or jnp.issubdtype(values.dtype, jnp.integer):
        return jax.ops.segment_sum(values, domain, num_domains).astype(values.dtype)
    # Over devices, domain by domain: sums by index would be added up in another order, and so
    # would be several domains' sums at once (`sharding.totals`).
    return lax.map(
        lambda index: total(jnp.where(domain == index, values, 0)),
        jnp.arange(num_domains, dtype=jnp.int32),
    )


def by_task(values: Array, domain: Array | None) -> Array:
    """f[C] or f[1], to be broadcast: the entry of f[D] `values` that belongs to each task."""
    return values if domain is None else values[domain]
