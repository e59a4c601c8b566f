"""The engine for pools whose references take few distinct values: a step costs what is new.

In and out: as in `compose.py`; the same contract, the same distribution of selections.

A task that has not been evaluated for long is believed exactly what every other task with
the same references, domain and prior is. So one belief a *group* is kept, and one for each
task that differs from its group, until its own history has faded to less than `tolerance`; then
the task returns to its group. Those tasks stand in the *slots* of a hash table (`table.py`), with
their visits and pending evidence. On the T slots everything works as in a dense pool of T tasks:
`pool/visits.py` and the beliefs are the same code. A step costs O(T + G), whatever N.

    grouped/slots.py         slots given and taken back, a larger table: bookkeeping
    grouped/beta.py          `bots`: Beta posteriors, and thinning for the nearest draws
    grouped/logit_normal.py  `auto`: histories, and their groups
    grouped/mixed.py         its choice, as a race of lotteries

What is approximate: a returning task forgets up to `tolerance` of its own. Where nothing is
forgotten nothing returns: the table is made larger between steps, on the host; in traced
code it cannot grow, and the tasks with the least evidence of their own make room, counted in
`Info.displaced`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import host_numbers, is_concrete
from bots_jax.choice.batch import Plan
from bots_jax.compose import check_key, check_no_batch, make_info
from bots_jax.grouped import table
from bots_jax.grouped.groups import Groups, group_of
from bots_jax.grouped.slots import (
    GroupedPool,
    GroupModel,
    add_tasks,
    enlarge,
    give_slots,
    retire,
    return_to_groups,
)
from bots_jax.numerics.compiling import jit_changes
from bots_jax.numerics.control_flow import lazy_cond, sequencing_zero
from bots_jax.pool import visits
from bots_jax.pool.evidence import (
    PADDING,
    UNNUMBERED,
    Rows,
    as_ids,
    as_rows,
    sound_numbers,
    take_evidence,
    validate_evidence,
)
from bots_jax.pool.reference import UNKNOWN, Reference
from bots_jax.sharding import beside
from bots_jax.types import (
    Array,
    ArrayLike,
    Belief,
    Evidence,
    Info,
    PyTree,
    Selection,
    Settings,
    State,
)

__all__ = [
    "GroupedFunctions",
    "add_tasks",
    "check_slots",
    "check_task_ids",
    "check_tolerance",
    "enlarge",
    "grouped_functions",
    "make_grouped",
    "retire",
]

_FULL = 0.65  # share of the slots in use from which the table is made larger


def check_tolerance(tolerance: float) -> float:
    """What a task may lose when it returns to its group, above 0."""
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be above 0: pseudo-counts, such as 1e-5")
    return float(tolerance)


def check_slots(slots: int | None) -> int | None:
    """A multiple of a bucket, or None."""
    if slots is not None and (slots < table.WAYS or slots % table.WAYS):
        raise ValueError(f"slots={slots} must be a multiple of {table.WAYS}")
    return slots


def make_grouped(
    settings: Settings,
    groups: Groups,
    model: GroupModel,
    num_domains: int,
    size: int,
    touched_capacity: int,
    track_expiry: bool,
) -> State:
    """The state of a new grouped pool with `size` slots."""
    dtype = groups.reference.rates.dtype
    domain = None if groups.domain is None else jnp.zeros((0,), jnp.int32)
    slots = visits.make_pool(0, size, domain, num_domains, dtype, touched_capacity, track_expiry)
    belief = model.make(settings, groups, num_domains, size)
    known = groups.reference
    features = known.embeddings if model.keeps_features else None
    reference = Reference(
        jnp.full((known.rates.shape[0], size), UNKNOWN, dtype),
        None if known.trials is None else jnp.ones((known.trials.shape[0], size), dtype),
        None if features is None else jnp.zeros((features.shape[0], size), dtype),
    )
    free = jnp.full((size,), table.FREE, jnp.int32)
    return State(settings, GroupedPool(free, slots, groups, jnp.int32(0)), reference, belief)


# --- the contract ---------------------------------------------------------------------------


class GroupedFunctions(NamedTuple):
    """What a selector does with a grouped state; each function checked and jitted."""

    select: Callable[..., tuple[State, Selection]]
    observe: Callable[[State, Evidence], State]
    advance: Callable[[State], tuple[State, Info]]
    update: Callable[[State, Evidence], tuple[State, Info]]
    abandon: Callable[[State, ArrayLike], State]
    predict: Callable[..., Belief]


class _Arrays(NamedTuple):
    """The same over arrays alone, each function jitted."""

    score: Callable[[Array, State], PyTree]
    select: Callable[[State, PyTree, Array | None], tuple[State, Selection]]
    select_at_once: Callable[[State, Array, Array | None], tuple[State, Selection]]
    observe: Callable[[State, Rows], tuple[State, None]]
    advance: Callable[[State], tuple[State, Info]]
    update: Callable[[State, Rows], tuple[State, Info]]


def _is_quick(model: GroupModel, state: Any) -> bool:
    """Whether programs of this state are to be compiled quickly; not where it is traced."""
    slot_ids = state.pool.slot_ids
    return is_concrete(slot_ids) and slot_ids.shape[0] <= model.quick_slots


def _arrays(
    model: GroupModel, plan: Plan, expiry: int | None, keep_open: bool, tolerance: float
) -> _Arrays:
    quickly = partial(jit_changes, small=lambda given: _is_quick(model, given[0]))

    @quickly
    def select(state: State, scores: PyTree, eligible: Array | None) -> tuple[State, Selection]:
        belief, ids, draws, valid = model.best(scores, state, eligible, plan.batch_size)
        present = table.find(state.pool.slot_ids, ids)
        state, rows = give_slots(model, state._replace(belief=belief), ids, valid, present)
        valid &= rows < state.pool.slot_ids.shape[0]
        slots, visit = visits.open_visits(state.pool.slots, rows, valid)
        selection = Selection(
            jnp.where(valid, ids, PADDING), jnp.where(valid, draws, 0), valid, visit
        )
        return state._replace(pool=state.pool._replace(slots=slots)), selection

    @jit_changes
    def select_at_once(
        state: State, rng_key: Array, eligible: Array | None
    ) -> tuple[State, Selection]:
        return select(state, model.score(rng_key, state), eligible)

    @quickly
    def observe(state: State, rows: Rows) -> tuple[State, None]:
        return _observe(model, state, rows), None

    @quickly
    def advance(state: State) -> tuple[State, Info]:
        closed = visits.close_step(state.pool.slots, expiry, keep_open)
        return _advance(model, state, closed, tolerance)

    @quickly
    def update(state: State, rows: Rows) -> tuple[State, Info]:
        return advance(observe(state, rows)[0])

    return _Arrays(jax.jit(model.score), select, select_at_once, observe, advance, update)


def grouped_functions(
    model: GroupModel, plan: Plan, expiry: int | None, keep_open: bool, tolerance: float
) -> GroupedFunctions:
    """The functions of the contract for grouped states."""
    arrays = _arrays(model, plan, expiry, keep_open, tolerance)

    @jit_changes
    def abandon_arrays(state: State, task_ids: Array) -> tuple[State, None]:
        rows = table.find(state.pool.slot_ids, task_ids)
        slots = visits.abandon(state.pool.slots, rows)
        return state._replace(pool=state.pool._replace(slots=slots)), None

    @jax.jit
    def predict_arrays(state: State, task_ids: Array) -> Belief:
        return _predict(model, state, task_ids)

    @jax.jit
    def predict_all(state: State, group: Array) -> Belief:
        return _predict_all(model, state, group)

    def select(
        rng_key: Array, state: State, eligible: ArrayLike | None = None
    ) -> tuple[State, Selection]:
        mask = None if eligible is None else _as_mask(eligible, state)
        mask = beside(mask, state.pool.slots.trials)
        rng_key, state = check_key(rng_key), _with_room(state)
        if not _is_quick(model, state):
            return arrays.select_at_once(state, rng_key, mask)
        # The program that looks at every slot is compiled for speed, the rest quickly.
        return arrays.select(state, arrays.score(rng_key, state), mask)

    def observe(state: State, evidence: Evidence) -> State:
        return arrays.observe(_with_room(state), _admit(state, evidence))[0]

    def update(state: State, evidence: Evidence) -> tuple[State, Info]:
        return arrays.update(_with_room(state), _admit(state, evidence))

    def abandon(state: State, task_ids: ArrayLike) -> State:
        return abandon_arrays(state, check_task_ids(state, task_ids))[0]

    def predict(state: State, task_ids: ArrayLike | None = None) -> Belief:
        if task_ids is None:
            return predict_all(state, _group_of_all(state.pool.groups))
        return predict_arrays(state, check_task_ids(state, task_ids))

    return GroupedFunctions(select, observe, arrays.advance, update, abandon, predict)


def _observe(model: GroupModel, state: State, rows: Rows) -> State:
    own_pool = state.pool
    none, size = own_pool.groups.sizes.shape[0], own_pool.slot_ids.shape[0]
    exists = group_of(own_pool.groups, rows.task_ids) < none
    found = table.find(own_pool.slot_ids, rows.task_ids)
    sound = sound_numbers(rows)
    asked = exists & sound & (rows.visit == UNNUMBERED) & (rows.trials > 0)
    ids = jnp.where(exists, rows.task_ids, PADDING)

    def give(carry: tuple[State, Array]) -> tuple[State, Array]:
        state = give_slots(model, carry[0], ids, asked, carry[1])[0]
        return state, table.find(state.pool.slot_ids, rows.task_ids)

    state, found = lazy_cond(jnp.any(asked & (found == size)), give, (state, found))
    slot = jnp.where(exists, found, size)
    # A sound row of a task that still has no slot is empty, or late: its visit was closed. Any
    # other row without a slot is invalid, and refused under the number of no slot.
    idle = exists & sound & (slot == size)
    late = idle & (rows.visit != UNNUMBERED)
    slot = jnp.where((rows.task_ids == PADDING) | idle, PADDING, slot)
    slots = visits.observe(state.pool.slots, rows._replace(task_ids=slot), state.settings.rollouts)
    slots = slots._replace(stale=slots.stale + jnp.sum(late, dtype=jnp.int32))
    return state._replace(pool=state.pool._replace(slots=slots))


def _advance(
    model: GroupModel,
    state: State,
    step: tuple[visits.PoolState, visits.StepEvidence, visits.Counts],
    tolerance: float,
) -> tuple[State, Info]:
    closed, fused, counts = step
    belief, told = model.fuse(state, fused)
    info = make_info(fused, counts, told)._replace(displaced=state.pool.displaced)
    done = sequencing_zero((closed.visit, belief.per_slot(), info), info.trials.dtype)
    slots = visits.clear_pending(closed, fused, done)
    state = state._replace(
        pool=state.pool._replace(slots=slots, displaced=jnp.zeros((), jnp.int32)), belief=belief
    )
    return return_to_groups(model, state, tolerance), info


def _predict(model: GroupModel, state: State, task_ids: Array) -> Belief:
    flat = task_ids.ravel()
    slot = table.find(state.pool.slot_ids, flat)
    group = group_of(state.pool.groups, flat)
    size = state.pool.slot_ids.shape[0]
    mine = model.of_slots(state, jnp.minimum(slot, size - 1))

    def value(mine: Array, shared: Array) -> Array:
        of_group = shared[jnp.minimum(group, shared.shape[0] - 1)]
        return jnp.where(slot < size, mine, of_group).reshape(task_ids.shape)

    return jax.tree.map(value, mine, model.of_groups(state))


def _predict_all(model: GroupModel, state: State, group: Array) -> Belief:
    group = jnp.minimum(group.astype(jnp.int32), state.pool.groups.sizes.shape[0] - 1)
    rows = jnp.where(state.pool.slots.active, state.pool.slot_ids, group.shape[0])
    mine = model.of_slots(state, slice(None))
    return jax.tree.map(
        lambda mine, shared: shared[group].at[rows].set(mine, mode="drop"),
        mine,
        model.of_groups(state),
    )


def _group_of_all(groups: Groups) -> Array:
    if groups.of_task is not None:
        return groups.of_task
    if not is_concrete(groups.num_tasks):
        raise ValueError("task_ids=None: in traced code a pool given by sizes needs the ids")
    return group_of(groups, jnp.arange(int(groups.num_tasks), dtype=jnp.int32))


# --- the host boundary ------------------------------------------------------------------------


def _with_room(state: State) -> State:
    """On the host, a larger table where this one is nearly full; traced states pass."""
    if not is_concrete(state.pool.slot_ids):
        return state
    used = np.count_nonzero(np.asarray(state.pool.slots.active))
    return enlarge(state) if used > _FULL * state.pool.slot_ids.shape[0] else state


def _as_mask(eligible: ArrayLike, state: State) -> Array:
    mask = host_numbers("eligible", eligible)
    groups = state.pool.groups
    shape = mask.shape
    if groups.of_task is not None:
        shape = groups.of_task.shape
    elif is_concrete(groups.num_tasks):
        shape = (int(groups.num_tasks),)
    if mask.shape != shape or mask.dtype != np.bool_:
        raise ValueError(
            f"eligible has shape {mask.shape} and dtype {mask.dtype}, expected bool{list(shape)}"
        )
    return jnp.asarray(mask)


def _admit(state: State, evidence: Evidence) -> Rows:
    slots, tasks = state.pool.slots, _num_tasks(state)
    evidence = take_evidence(evidence)
    validate_evidence(evidence, tasks)
    return as_rows(beside(evidence, slots.trials), slots.trials.dtype)


def check_task_ids(state: State, task_ids: ArrayLike) -> Array:
    """Task ids as i32; refused on the host where they are out of range."""
    check_no_batch(task_ids)
    return as_ids("task_ids", beside(task_ids, state.pool.slots.trials), _num_tasks(state))


def _num_tasks(state: State) -> int:
    """N, or the most there can be where it is traced."""
    tasks = state.pool.groups.num_tasks
    return int(tasks) if is_concrete(tasks) else 2**31 - 1
