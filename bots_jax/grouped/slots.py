"""Slots for the tasks that differ from their group, and their way back: bookkeeping alone.

In: a state, and tasks that are selected or evaluated. Out: the state in which they have slots
of the hash table (`table.py`), or have returned to their groups, or with a larger table. What a
slot and a group hold is the business of a *group model*: Beta posteriors (`grouped/beta.py`)
or the histories of `auto` (`grouped/logit_normal.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.compose import BeliefInfo
from bots_jax.grouped import table
from bots_jax.grouped.groups import Codes, Groups, group_of, with_tasks, without_tasks
from bots_jax.numerics.short_lists import repeats
from bots_jax.pool import visits
from bots_jax.pool.evidence import PADDING
from bots_jax.pool.reference import UNKNOWN, Reference
from bots_jax.pool.visits import NO_VISIT, PoolState, StepEvidence, first_of_each
from bots_jax.types import Array, ArrayLike, Belief, Known, PyTree, Settings, State

Pick = Callable[[Array], Array]  # [T] -> [...], some of the slots


class GroupedPool(NamedTuple):
    """Bookkeeping of T slots, and the groups of all tasks."""

    slot_ids: Array  # i32[T], the task in each slot, or -1
    slots: PoolState  # of T rows
    groups: Groups
    displaced: Array  # i32, since the last advance

    # As `types.Pool` says.
    @property
    def representation(self) -> str:
        """Tasks alike share a group."""
        return "grouped"

    @property
    def num_tasks(self) -> Array:
        """i32, tasks of all groups."""
        return jnp.sum(self.groups.sizes, axis=-1, dtype=jnp.int32)

    @property
    def capacity(self) -> int | Array:
        """All tasks that there were, retired ones too."""
        return self.groups.num_tasks

    @property
    def bookkeeping(self) -> PoolState:
        """That of the slots."""
        return self.slots

    def known(self, reference: Any) -> Known:
        """A column a group; `reference` is of slots."""
        return Known(self.groups.reference, self.groups.domain, self.groups.sizes)

    def column_of(self, task_ids: ArrayLike) -> Array:
        """The group."""
        ids = jnp.asarray(task_ids, jnp.int32)
        return group_of(self.groups, ids.ravel()).reshape(ids.shape)


class GroupedBelief(Protocol):
    """What is believed of slots and groups: a pytree with these methods."""

    def per_slot(self) -> PyTree:
        """The part with an entry a slot, arrays [T]."""

    def with_per_slot(self, values: PyTree) -> Any:
        """The same with another such part, of another T maybe."""

    def begin(self, rows: Array, group: Array, slot_ids: Array) -> Any:
        """New tasks in i32[M] slots (T and above: none) begin as their groups are.

        `slot_ids` i32[T] still tells whose the slots were.
        """

    def release(self, pick: Pick, leaves: Array) -> Any:
        """Of the slots that `pick` picks, those that leave return to their groups."""

    def add_groups(self, settings: Settings, count: int) -> Any:
        """On the host: so many more groups, without a history."""

    def recount(self, slot_ids: np.ndarray) -> Any:
        """On the host, after tasks have lost their slots in other ways."""


class GroupModel(NamedTuple):
    """What slots and groups hold; pure functions.

    make(settings, groups, num_domains, size) -> GroupedBelief of `size` slots
    score(rng_key, state) -> pytree: what a selection works out of every slot, one by one
    best(scores, state, eligible bool[N] or None, count) -> (GroupedBelief, i32[count] ids,
      f[count] draws, bool[count] valid): the rest of it, from what `score` returned
    fuse(state, fused) -> (GroupedBelief, BeliefInfo): one step; `fused` is of the slots
    left(state, pick) -> f[...] at least 0: what a slot holds that its group does not
    of_slots(state, rows) -> Belief of slots, i32[...] or slice(None)
    of_groups(state) -> Belief, f[G]
    most_left(rollouts) -> what `left` is right after a visit, as a rule at most
    quick_slots: up to so many slots all but `score` is compiled quickly (`jit_by_size`)
    keeps_features: whether slots hold features, or they are looked up at their groups
    """

    make: Callable[[Settings, Groups, int, int], GroupedBelief]
    score: Callable[[Array, State], PyTree]
    best: Callable[[PyTree, State, Array | None, int], tuple[GroupedBelief, Array, Array, Array]]
    fuse: Callable[[State, StepEvidence], tuple[GroupedBelief, BeliefInfo]]
    left: Callable[[State, Pick], Array]
    of_slots: Callable[[State, Any], Belief]
    of_groups: Callable[[State], Belief]
    most_left: Callable[[float], float]
    quick_slots: int
    keeps_features: bool = True


# At this load a bucket of the table overflows once in a million.
_SLOTS_PER_TASK = 1.8
_LEAST_BUCKETS = 32


def slots_needed(
    batch_size: int, forgetting: float, most_left: float, tolerance: float, num_tasks: int
) -> int:
    """T: twice the tasks that differ from their group in the long run, a multiple of a bucket."""
    steps = math.inf
    if forgetting > 0:
        decay = -math.log1p(-min(forgetting, 1 - 1e-9))
        steps = 1 + max(0.0, math.log(most_left / tolerance)) / decay
    tasks = min(batch_size * steps, num_tasks)
    return max(math.ceil(_SLOTS_PER_TASK * tasks / table.WAYS), _LEAST_BUCKETS) * table.WAYS


def free_slots(own_pool: GroupedPool, eligible: Array | None) -> Array:
    """bool[T]: slots whose tasks may be chosen."""
    free = visits.selectable(own_pool.slots, None)
    return free if eligible is None else free & eligible[jnp.maximum(own_pool.slot_ids, 0)]


def give_slots(
    model: GroupModel, state: State, task_ids: Array, wanted: Array, present: Array
) -> tuple[State, Array]:
    """Give a slot to each wanted task that has none yet; i32[M] slots, T where there is none.

    Args:
      present: i32[M], the slots that the tasks have, from `table.find`.
    """
    own_pool = state.pool
    size, none = own_pool.slot_ids.shape[0], own_pool.groups.sizes.shape[0]
    group = group_of(own_pool.groups, task_ids)
    new = wanted & (present == size) & (group < none)
    new &= first_of_each(jnp.where(new, task_ids, PADDING), repeats(task_ids, new))
    slots = own_pool.slots

    def cost(at: Array) -> Array:
        """What is lost with the task in a slot; infinite while it is needed."""
        needed = (slots.visit[at] != NO_VISIT) | (slots.trials[at] > 0)
        return jnp.where(needed, jnp.inf, model.left(state, lambda values: values[at]))

    placed = table.place(own_pool.slot_ids, task_ids, new, cost)
    rows, group = placed.slots, jnp.minimum(group, none - 1)
    if slots.domain is not None:
        own = own_pool.groups.domain[group]
        slots = slots._replace(domain=slots.domain.at[rows].set(own, mode="drop"))
    active = slots.active.at[rows].set(True, mode="drop")
    belief = state.belief.begin(rows, group, own_pool.slot_ids)
    own_pool = own_pool._replace(
        slot_ids=own_pool.slot_ids.at[rows].set(task_ids, mode="drop"),
        slots=slots._replace(active=active),
        displaced=own_pool.displaced + placed.displaced,
    )
    reference = _copy_reference(state.reference, rows, own_pool.groups.reference, group)
    state = state._replace(pool=own_pool, belief=belief, reference=reference)
    return state, jnp.where(new, rows, present)


def _copy_reference(into: Reference, rows: Array, known: Reference, group: Array) -> Reference:
    def put(old: Array | None, new: Array | None) -> Array | None:
        if old is None or new is None:
            return None
        return old.at[:, rows].set(new[:, group], mode="drop")

    rates = into.rates.at[:, rows].set(known.rates[:, group], mode="drop")
    return Reference(rates, put(into.trials, known.trials), put(into.embeddings, known.embeddings))


# Each step looks through one of so many parts of the table for tasks to return.
_PARTS = 8


def return_to_groups(model: GroupModel, state: State, tolerance: float) -> State:
    """Free slots whose tasks differ from their group by less than the tolerance.

    Part by part, step by step: a task keeps its slot for up to `_PARTS` steps more, which
    costs less than looking at every slot at every step.
    """
    slots, slot_ids = state.pool.slots, state.pool.slot_ids
    part = -(-slot_ids.shape[0] // _PARTS)
    start = jnp.minimum(slots.step % _PARTS * part, slot_ids.shape[0] - part)

    def slice_of(values: Array) -> Array:
        return lax.dynamic_slice(values, (start,), (part,))

    def written(into: Array, values: Array) -> Array:
        return lax.dynamic_update_slice(into, values, (start,))

    active, ids = slice_of(slots.active), slice_of(slot_ids)
    alike = model.left(state, slice_of) < tolerance
    leaves = active & alike & (slice_of(slots.visit) == NO_VISIT)
    return state._replace(
        belief=state.belief.release(slice_of, leaves),
        pool=state.pool._replace(
            slot_ids=written(slot_ids, jnp.where(leaves, table.FREE, ids)),
            slots=slots._replace(active=written(slots.active, active & ~leaves)),
        ),
    )


def enlarge(state: State) -> State:
    """On the host: the same state with twice the slots."""
    per_slot = state.belief.per_slot()
    old = jax.tree.map(np.asarray, (state.pool, state.reference, per_slot))
    used = np.flatnonzero(old[0].slot_ids != table.FREE)
    ids, size = jnp.asarray(old[0].slot_ids[used]), 2 * old[0].slot_ids.shape[0]
    empty = jnp.full((size,), table.FREE, jnp.int32)
    placed = table.place(empty, ids, jnp.ones(ids.shape, bool), lambda at: jnp.zeros(at.shape))
    rows = np.asarray(placed.slots)
    kept = rows < size

    def move(leaf: Any) -> Any:
        if leaf.ndim == 0 or leaf.shape[-1] != size // 2:
            return jnp.asarray(leaf)
        moved = np.zeros((*leaf.shape[:-1], size), leaf.dtype)
        moved[..., rows[kept]] = leaf[..., used[kept]]
        return jnp.asarray(moved)

    slots = old[0].slots
    touched = slots.touched
    place_of = np.full(size // 2 + 1, size, np.int32)
    place_of[used[kept]] = rows[kept]
    moved = jax.tree.map(move, slots._replace(touched=np.zeros((), np.int32)))
    visit = np.full(size, NO_VISIT, np.int32)
    visit[rows[kept]] = slots.visit[used[kept]]
    moved = moved._replace(touched=jnp.asarray(place_of[touched]), visit=jnp.asarray(visit))
    slot_ids = np.full(size, table.FREE, np.int32)
    slot_ids[rows[kept]] = np.asarray(ids)[kept]
    belief = state.belief.with_per_slot(jax.tree.map(move, old[2]))
    reference = jax.tree.map(move, old[1])
    rates = jnp.where(jnp.asarray(slot_ids == table.FREE)[None], UNKNOWN, reference.rates)
    return state._replace(
        pool=state.pool._replace(slot_ids=jnp.asarray(slot_ids), slots=moved),
        reference=reference._replace(rates=rates),
        belief=belief.recount(slot_ids),
    )


def retire(state: State, task_ids: np.ndarray) -> State:
    """On the host, at a pass over the pool: take tasks out of it."""
    ids = jnp.asarray(task_ids, jnp.int32)
    rows = table.find(state.pool.slot_ids, ids)
    own_pool = state.pool._replace(
        slot_ids=state.pool.slot_ids.at[rows].set(table.FREE, mode="drop"),
        slots=visits.retire(state.pool.slots, rows),
        groups=without_tasks(state.pool.groups, np.asarray(ids)),
    )
    return state._replace(pool=own_pool, belief=state.belief.recount(np.asarray(own_pool.slot_ids)))


def add_tasks(state: State, codes: Codes) -> tuple[State, Array]:
    """On the host, at a pass over the pool: more tasks, whose belief begins anew.

    They form groups of their own, even where others have the same references: those have
    seen implicit evidence, the new ones have not.
    """
    before, fresh = int(state.pool.groups.num_tasks), codes.rates.shape[1]
    groups = with_tasks(state.pool.groups, codes, state.reference.rates.dtype)
    belief = state.belief.add_groups(state.settings, fresh)
    ids = jnp.arange(before, before + codes.num_tasks, dtype=jnp.int32)
    state = state._replace(pool=state.pool._replace(groups=groups), belief=belief)
    return state, ids
