"""The engine for pools whose references take few distinct values: a step costs what is new.

In and out: as in `compose.py`; the same contract, the same distribution of selections.

A task that has not been evaluated for long is believed exactly what every other task with
the same references, domain and prior is. So one posterior a *group* is kept, and one for each
task that differs from its group: its own evidence decays by (1 - lambda) a step, and when
less than `tolerance` pseudo-counts of it are left the task returns to its group. Those tasks
stand in the *slots* of a hash table (`table.py`), with their visits and pending evidence. On
the T slots everything works as in a dense pool of T tasks: `pool.py` and `beta_belief.py` are
the same code. A step costs O(T + G), whatever N.

The race (`race.py`) for the nearest draws is run among slots and groups alike. The rate of a
group is that of its tasks times their number, and a hit falls on any of them; it is void if
that task has a slot, is not eligible, or was hit before. That is exact.

What is approximate: a returning task forgets up to `tolerance` pseudo-counts of its own. With
lambda = 0 nothing returns: the table is made larger between steps, on the host; in traced
code it cannot grow, and the tasks with the least evidence of their own make room, counted in
`Info.displaced`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax import pool, posterior, race, table
from bots_jax.beta_belief import BetaRules, Learned
from bots_jax.checks import is_concrete
from bots_jax.compose import check_key, make_info
from bots_jax.evidence import PADDING, UNNUMBERED, Rows, as_rows, refuse_poison, sound_numbers
from bots_jax.groups import Codes, Groups, draw_member, group_of, with_tasks, without_tasks
from bots_jax.numerics import rarely, zero_after
from bots_jax.pool import NO_VISIT, Fused, PoolState, first_of_each
from bots_jax.posterior import BetaPosterior
from bots_jax.race import FANOUT, Course, Result, Runner
from bots_jax.reference import Reference
from bots_jax.selection import Plan, lowest
from bots_jax.short_lists import repeats
from bots_jax.types import Array, ArrayLike, Belief, Evidence, Info, Selection, Settings, State

DEFAULT_TOLERANCE = 1e-5  # pseudo-counts
# At this load a bucket of the table overflows once in a million.
_SLOTS_PER_TASK = 1.8
_FULL = 0.65  # share of the slots in use from which the table is made larger
_LEAST_BUCKETS = 32


def check_tolerance(tolerance: float) -> float:
    """Pseudo-counts, above 0."""
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be above 0: pseudo-counts, such as 1e-5")
    return float(tolerance)


def check_slots(slots: int | None) -> int | None:
    """A multiple of a bucket, or None."""
    if slots is not None and (slots < table.WAYS or slots % table.WAYS):
        raise ValueError(f"slots={slots} must be a multiple of {table.WAYS}")
    return slots


class GroupedPool(NamedTuple):
    """Bookkeeping of T slots, and the groups of all tasks."""

    slot_ids: Array  # i32[T], the task in each slot, or -1
    slots: PoolState  # of T rows
    groups: Groups
    displaced: Array  # i32, since the last advance

    @property
    def capacity(self) -> int | Array:
        """Rows that ids may name."""
        return self.groups.num_tasks


class GroupedBelief(NamedTuple):
    """Posteriors of slots and groups."""

    slots: BetaPosterior  # f[T]
    groups: BetaPosterior  # f[G]
    own: Array  # f[T], an upper bound on the pseudo-counts that a slot has and its group not
    learned: Learned


def slots_needed(
    batch_size: int, rollouts: float, forgetting: float, tolerance: float, num_tasks: int
) -> int:
    """T: twice the tasks that differ from their group in the long run, rounded up."""
    steps = math.inf
    if forgetting > 0:
        decay = -math.log1p(-min(forgetting, 1 - 1e-9))
        steps = 1 + max(0.0, math.log(2 * rollouts / tolerance)) / decay
    tasks = min(batch_size * steps, num_tasks)
    buckets = math.ceil(_SLOTS_PER_TASK * tasks / table.WAYS)
    return max(buckets, _LEAST_BUCKETS) * table.WAYS


def make_grouped(
    settings: Settings,
    groups: Groups,
    rules: BetaRules,
    num_domains: int,
    size: int,
    room: int,
    ages: bool,
) -> State:
    """The state of a new grouped pool with `size` slots."""
    dtype = groups.reference.rates.dtype
    domain = None if groups.domain is None else jnp.zeros((0,), jnp.int32)
    slots = pool.make_pool(0, size, domain, num_domains, dtype, room, ages)
    belief = GroupedBelief(
        posterior.prior(settings, size),
        posterior.prior(settings, groups.sizes.shape[0]),
        jnp.zeros((size,), dtype),
        rules.start(groups.reference, num_domains),
    )
    known = groups.reference
    reference = Reference(
        jnp.full((known.rates.shape[0], size), jnp.nan, dtype),
        None if known.trials is None else jnp.ones((known.trials.shape[0], size), dtype),
    )
    free = jnp.full((size,), table.FREE, jnp.int32)
    return State(settings, GroupedPool(free, slots, groups, jnp.int32(0)), reference, belief)


# --- slots ------------------------------------------------------------------------------


def give_slots(state: State, task_ids: Array, wanted: Array) -> tuple[State, Array]:
    """Give a slot to each wanted task that has none yet; i32[M] slots, T where there is none."""
    own_pool, belief = state.pool, state.belief
    size, none = own_pool.slot_ids.shape[0], belief.groups.alpha.shape[0]
    group = group_of(own_pool.groups, task_ids)
    present = table.find(own_pool.slot_ids, task_ids)
    new = wanted & (present == size) & (group < none)
    new &= first_of_each(jnp.where(new, task_ids, PADDING), repeats(task_ids, new))
    slots = own_pool.slots

    def cost(at: Array) -> Array:
        """What is lost with the task in a slot; infinite while it is needed."""
        needed = (slots.visit[at] != NO_VISIT) | (slots.trials[at] > 0)
        return jnp.where(needed, jnp.inf, belief.own[at])

    placed = table.place(own_pool.slot_ids, task_ids, new, cost)
    rows, group = placed.slots, jnp.minimum(group, none - 1)
    if slots.domain is not None:
        own = own_pool.groups.domain[group]
        slots = slots._replace(domain=slots.domain.at[rows].set(own, mode="drop"))
    active = slots.active.at[rows].set(True, mode="drop")
    own_pool = own_pool._replace(
        slot_ids=own_pool.slot_ids.at[rows].set(task_ids, mode="drop"),
        slots=slots._replace(active=active),
        displaced=own_pool.displaced + placed.displaced,
    )
    belief = belief._replace(
        slots=BetaPosterior(
            *(
                mine.at[rows].set(shared[group], mode="drop")
                for mine, shared in zip(belief.slots, belief.groups, strict=True)
            )
        ),
        own=belief.own.at[rows].set(0, mode="drop"),
    )
    reference = _copy_reference(state.reference, rows, own_pool.groups.reference, group)
    state = state._replace(pool=own_pool, belief=belief, reference=reference)
    return state, jnp.where(new, rows, present)


def _copy_reference(into: Reference, rows: Array, known: Reference, group: Array) -> Reference:
    rates = into.rates.at[:, rows].set(known.rates[:, group], mode="drop")
    if into.trials is None or known.trials is None:
        return Reference(rates, None)
    return Reference(rates, into.trials.at[:, rows].set(known.trials[:, group], mode="drop"))


# Each step looks through one of so many parts of the table for tasks to return.
_PARTS = 8


def return_to_groups(state: State, tolerance: float) -> State:
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
    leaves = active & (slice_of(state.belief.own) < tolerance) & (slice_of(slots.visit) == NO_VISIT)
    return state._replace(
        pool=state.pool._replace(
            slot_ids=written(slot_ids, jnp.where(leaves, table.FREE, ids)),
            slots=slots._replace(active=written(slots.active, active & ~leaves)),
        )
    )


def enlarge(state: State) -> State:
    """On the host: the same state with twice the slots."""
    old = jax.tree.map(np.asarray, (state.pool, state.reference, state.belief))
    used = np.flatnonzero(old[0].slot_ids != table.FREE)
    ids, size = jnp.asarray(old[0].slot_ids[used]), 2 * old[0].slot_ids.shape[0]
    empty = jnp.full((size,), table.FREE, jnp.int32)
    placed = table.place(empty, ids, jnp.ones(ids.shape, bool), lambda at: jnp.zeros(at.shape))
    rows = np.asarray(placed.slots)
    kept = rows < size

    def move(leaf: Any) -> Any:
        if leaf.ndim == 0 or leaf.shape[-1] != size // 2:
            return jnp.asarray(leaf)
        fill = np.nan if leaf.dtype.kind == "f" and leaf.ndim == 2 else 0
        moved = np.full((*leaf.shape[:-1], size), fill, leaf.dtype)
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
    alpha, beta = (move(x) for x in old[2].slots)
    return state._replace(
        pool=state.pool._replace(slot_ids=jnp.asarray(slot_ids), slots=moved),
        reference=jax.tree.map(move, old[1]),
        belief=state.belief._replace(slots=BetaPosterior(alpha, beta), own=move(old[2].own)),
    )


def retire(state: State, task_ids: np.ndarray) -> State:
    """On the host, at a pass over the pool: take tasks out of it."""
    ids = jnp.asarray(task_ids, jnp.int32)
    rows = table.find(state.pool.slot_ids, ids)
    own_pool = state.pool._replace(
        slot_ids=state.pool.slot_ids.at[rows].set(table.FREE, mode="drop"),
        slots=pool.retire(state.pool.slots, rows),
        groups=without_tasks(state.pool.groups, np.asarray(ids)),
    )
    return state._replace(pool=own_pool)


def add_tasks(state: State, codes: Codes) -> tuple[State, Array]:
    """On the host, at a pass over the pool: more tasks, whose belief begins at the prior.

    They form groups of their own, even where others have the same references: those have
    seen implicit evidence, the new ones have not.
    """
    before, fresh = int(state.pool.groups.num_tasks), codes.rates.shape[1]
    groups = with_tasks(state.pool.groups, codes, state.belief.own.dtype)
    shared = BetaPosterior(
        *(
            jnp.concatenate([old, new])
            for old, new in zip(
                state.belief.groups, posterior.prior(state.settings, fresh), strict=True
            )
        )
    )
    ids = jnp.arange(before, before + codes.num_tasks, dtype=jnp.int32)
    state = state._replace(
        pool=state.pool._replace(groups=groups), belief=state.belief._replace(groups=shared)
    )
    return state, ids


# --- selection ----------------------------------------------------------------------------


def nearest(
    rng_key: Array, state: State, eligible: Array | None, count: int
) -> tuple[Array, Array, Array]:
    """As `race.nearest`, among slots and groups: ids, draws, valid."""
    race_key, rest_key = jax.random.split(rng_key)
    groups, target = state.pool.groups, state.settings.target
    slot_ids, shared = state.pool.slot_ids, state.belief.groups
    alpha, beta = state.belief.slots
    sizes = groups.sizes.astype(alpha.dtype)
    blocks_of_slots = slot_ids.shape[0] // FANOUT
    allowed = _free_slots(state.pool, eligible)

    def measure(width: Array) -> tuple[Array, Array, Array]:
        a, b, free, _ = lax.optimization_barrier((alpha, beta, allowed, width))  # see race.py
        rates = jnp.where(free, race.hit_rate(a, b, target, width), 0)
        each = race.hit_rate(shared.alpha, shared.beta, target, width)
        each = jnp.where(groups.sizes > 0, each, 0)
        blocks = jnp.concatenate([race.block_sums(rates), each * sizes])
        return blocks, rates, jnp.maximum(jnp.max(rates), jnp.max(each))

    def identify(bits: Array, course: Course, blocks: Array) -> Runner:
        in_slots = blocks < blocks_of_slots
        block = jnp.minimum(blocks, blocks_of_slots - 1)
        lane, rate = race.pick_lane(course.detail.reshape(-1, FANOUT)[block], bits[0])
        slot = block * FANOUT + lane
        group = jnp.maximum(blocks - blocks_of_slots, 0)
        # Where a slot was hit the same member each time: it is in the caches.
        member = draw_member(jnp.where(in_slots, 0, bits), groups, group)
        apart = table.find(slot_ids, member) < slot_ids.shape[0]
        runs = ~apart if eligible is None else ~apart & eligible[member]
        each = race.hit_rate(shared.alpha[group], shared.beta[group], target, course.width)
        return Runner(
            jnp.where(in_slots, slot_ids[slot], member),
            jnp.where(in_slots, alpha[slot], shared.alpha[group]),
            jnp.where(in_slots, beta[slot], shared.beta[group]),
            jnp.where(in_slots, rate, each),
            jnp.where(in_slots, rate > 0, runs),
        )

    guess = jnp.sum(
        race.hit_rate(shared.alpha, shared.beta, target, jnp.zeros_like(target)) * sizes
    )
    course = race.lay_out(measure, guess, target, count)
    result = race.run(race_key, course, identify, target, count)
    finish = partial(_finish, rest_key, state, eligible)
    result = rarely(result.found < count, finish, result)
    return result.task_ids, result.draws, jnp.arange(count) < result.found


def _free_slots(own_pool: GroupedPool, eligible: Array | None) -> Array:
    free = pool.selectable(own_pool.slots, None)
    return free if eligible is None else free & eligible[jnp.maximum(own_pool.slot_ids, 0)]


# Tasks compared at a time, and those drawn at a time: few enough that they are drawn in one
# loop (see draws.py), which makes a step quicker to compile.
_CHUNK, _DRAWN = 1 << 16, 1 << 12


class _Tasks(NamedTuple):
    """Some tasks of the pool, those in slots and those in groups alike."""

    ids: Array  # i32[S]
    alpha: Array  # f[S]
    beta: Array  # f[S]
    free: Array  # bool[S], whether they may be chosen


def _tasks_from(start: Array, size: int, state: State, eligible: Array | None) -> _Tasks:
    """Tasks start to start + size, where those in slots come first, then all by their id."""
    groups, slot_ids = state.pool.groups, state.pool.slot_ids
    slots, shared = state.belief.slots, state.belief.groups
    turn = start + jnp.arange(size, dtype=jnp.int32)
    row = jnp.minimum(turn, slot_ids.shape[0] - 1)
    in_slot = turn < slot_ids.shape[0]
    ids = jnp.where(in_slot, slot_ids[row], turn - slot_ids.shape[0])
    group = group_of(groups, ids)
    apart = table.find(slot_ids, ids) < slot_ids.shape[0]
    free = jnp.where(in_slot, pool.selectable(state.pool.slots, None)[row], ~apart)
    free &= group < groups.sizes.shape[0]
    if eligible is not None:
        free &= eligible[jnp.clip(ids, 0, groups.num_tasks - 1)]
    group = jnp.minimum(group, groups.sizes.shape[0] - 1)
    alpha = jnp.where(in_slot, slots.alpha[row], shared.alpha[group])
    beta = jnp.where(in_slot, slots.beta[row], shared.beta[group])
    return _Tasks(ids, alpha, beta, free)


def _finish(rng_key: Array, state: State, eligible: Array | None, result: Result) -> Result:
    """As `race._finish`: draw what was not accepted, slots and then all tasks, in chunks.

    This costs a draw for every task of the pool. It happens where few tasks are anywhere near
    the target, or very few tasks are much nearer to it than all others.
    """
    groups, target = state.pool.groups, state.settings.target
    count, slots = result.task_ids.shape[0], state.pool.slot_ids.shape[0]
    drawn, parts = _DRAWN, _CHUNK // _DRAWN
    if groups.of_task is not None:
        everything = slots + groups.of_task.shape[0]
        drawn, parts = min(drawn, everything), min(parts, -(-everything // drawn))
    size = parts * drawn
    accepted = jnp.where(jnp.arange(count) < result.found, result.task_ids, PADDING)
    slot = table.find(state.pool.slot_ids, accepted)
    turn = jnp.where(slot < slots, slot, slots + accepted)

    def chunk(carry: tuple[Array, Result]) -> tuple[Array, Result]:
        """The nearest among the best so far and some more tasks."""
        index, best = carry
        start = index * size
        more = _tasks_from(start, size, state, eligible)
        draw_key, tie_key = jax.random.split(jax.random.fold_in(rng_key, index))
        draws = lax.map(
            lambda part: race.draw_outside(part[0], part[1], part[2], target, result.explored),
            (
                jax.random.split(draw_key, parts),
                more.alpha.reshape(parts, drawn),
                more.beta.reshape(parts, drawn),
            ),
        ).ravel()
        here = (accepted >= 0) & (turn >= start) & (turn - start < size)
        draws = draws.at[jnp.where(here, turn - start, size)].set(result.draws, mode="drop")
        all_ids = jnp.concatenate([best.task_ids, more.ids])
        all_draws = jnp.concatenate([best.draws, draws])
        usable = jnp.concatenate([best.task_ids >= 0, more.free])
        chosen, valid = lowest(tie_key, jnp.abs(all_draws - target), usable, count)
        best = best._replace(
            task_ids=jnp.where(valid, all_ids[chosen], -1),
            draws=jnp.where(valid, all_draws[chosen], 0),
            found=jnp.sum(valid, dtype=jnp.int32),
        )
        return index + 1, best

    nobody = result._replace(
        task_ids=jnp.full_like(result.task_ids, -1), draws=jnp.zeros_like(result.draws)
    )
    last = (slots + groups.num_tasks - 1) // size
    return lax.while_loop(lambda carry: carry[0] <= last, chunk, (jnp.int32(0), nobody))[1]


# --- the contract ---------------------------------------------------------------------------


class GroupedFunctions(NamedTuple):
    """What a selector does with a grouped state; each function checked and jitted."""

    select: Callable[..., tuple[State, Selection]]
    observe: Callable[[State, Evidence], State]
    advance: Callable[[State], tuple[State, Info]]
    update: Callable[[State, Evidence], tuple[State, Info]]
    abandon: Callable[[State, ArrayLike], State]
    predict: Callable[..., Belief]


def grouped_functions(
    rules: BetaRules, plan: Plan, expiry: int | None, tolerance: float
) -> GroupedFunctions:
    """The functions of the contract for grouped states."""

    @jax.jit
    def select_arrays(
        rng_key: Array, state: State, eligible: Array | None
    ) -> tuple[State, Selection]:
        ids, draws, valid = nearest(rng_key, state, eligible, plan.batch_size)
        state, rows = give_slots(state, ids, valid)
        valid &= rows < state.pool.slot_ids.shape[0]
        slots, visit = pool.open_visits(state.pool.slots, rows, valid)
        selection = Selection(
            jnp.where(valid, ids, PADDING), jnp.where(valid, draws, 0), valid, visit
        )
        return state._replace(pool=state.pool._replace(slots=slots)), selection

    @jax.jit
    def observe_arrays(state: State, rows: Rows) -> State:
        return _observe(state, rows)

    @jax.jit
    def advance_arrays(state: State) -> tuple[State, Info]:
        return _advance(state, rules, expiry, tolerance)

    @jax.jit
    def update_arrays(state: State, rows: Rows) -> tuple[State, Info]:
        return advance_arrays(observe_arrays(state, rows))

    @jax.jit
    def abandon_arrays(state: State, task_ids: Array) -> State:
        rows = table.find(state.pool.slot_ids, task_ids)
        slots = pool.abandon(state.pool.slots, rows)
        return state._replace(pool=state.pool._replace(slots=slots))

    def select(
        rng_key: Array, state: State, eligible: ArrayLike | None = None
    ) -> tuple[State, Selection]:
        mask = None if eligible is None else _as_mask(eligible, state)
        return select_arrays(check_key(rng_key), _with_room(state), mask)

    def observe(state: State, evidence: Evidence) -> State:
        return observe_arrays(_with_room(state), _admit(state, evidence))

    def update(state: State, evidence: Evidence) -> tuple[State, Info]:
        return update_arrays(_with_room(state), _admit(state, evidence))

    def abandon(state: State, task_ids: ArrayLike) -> State:
        return abandon_arrays(state, check_task_ids(state, task_ids))

    def predict(state: State, task_ids: ArrayLike | None = None) -> Belief:
        if task_ids is None:
            return _predict_all(state, _group_of_all(state.pool.groups))
        return _predict(state, check_task_ids(state, task_ids))

    return GroupedFunctions(select, observe, advance_arrays, update, abandon, predict)


def _observe(state: State, rows: Rows) -> State:
    own_pool = state.pool
    none, size = own_pool.groups.sizes.shape[0], own_pool.slot_ids.shape[0]
    exists = group_of(own_pool.groups, rows.task_ids) < none
    found = table.find(own_pool.slot_ids, rows.task_ids)
    sound = sound_numbers(rows)
    asked = exists & sound & (rows.visit == UNNUMBERED) & (rows.trials > 0)
    ids = jnp.where(exists, rows.task_ids, PADDING)

    def give(carry: tuple[State, Array]) -> tuple[State, Array]:
        state = give_slots(carry[0], ids, asked)[0]
        return state, table.find(state.pool.slot_ids, rows.task_ids)

    state, found = rarely(jnp.any(asked & (found == size)), give, (state, found))
    slot = jnp.where(exists, found, size)
    # A sound row of a task that still has no slot is empty, or late: its visit was closed. Any
    # other row without a slot is poison, and refused under the number of no slot.
    idle = exists & sound & (slot == size)
    late = idle & (rows.visit != UNNUMBERED)
    slot = jnp.where((rows.task_ids == PADDING) | idle, PADDING, slot)
    slots = pool.observe(state.pool.slots, rows._replace(task_ids=slot), state.settings.rollouts)
    slots = slots._replace(stale=slots.stale + jnp.sum(late, dtype=jnp.int32))
    return state._replace(pool=state.pool._replace(slots=slots))


def _advance(
    state: State, rules: BetaRules, expiry: int | None, tolerance: float
) -> tuple[State, Info]:
    settings, belief, groups = state.settings, state.belief, state.pool.groups
    closed, fused, counts = pool.close_step(state.pool.slots, expiry)
    learned, told = rules.learn(belief.learned, settings, state.reference, fused)
    mine = rules.spread(belief.slots, learned, settings, state.reference, fused)
    nothing = jnp.zeros_like(belief.groups.alpha)
    unvisited = Fused(nothing, nothing, groups.domain, fused.num_domains)
    shared = rules.spread(belief.groups, learned, settings, groups.reference, unvisited)
    # Evidence of n trials sets a task apart by at most n and the implicit evidence it replaces.
    apart = jnp.where(fused.trials > 0, fused.trials + settings.rollouts, 0)
    own = (1 - settings.forgetting) * belief.own + apart
    info = make_info(fused, counts, told)._replace(displaced=state.pool.displaced)
    done = zero_after((closed.visit, mine, own, info), info.trials.dtype)
    slots = pool.clear_pending(closed, fused, done)
    state = state._replace(
        pool=state.pool._replace(slots=slots, displaced=jnp.zeros((), jnp.int32)),
        belief=GroupedBelief(mine, shared, own, learned),
    )
    return return_to_groups(state, tolerance), info


@jax.jit
def _predict(state: State, task_ids: Array) -> Belief:
    flat = task_ids.ravel()
    slot = table.find(state.pool.slot_ids, flat)
    group = group_of(state.pool.groups, flat)
    own = slot < state.pool.slot_ids.shape[0]

    def value(mine: Array, shared: Array) -> Array:
        kept = mine[jnp.minimum(slot, mine.shape[0] - 1)]
        return jnp.where(own, kept, shared[jnp.minimum(group, shared.shape[0] - 1)])

    pairs = zip(state.belief.slots, state.belief.groups, strict=True)
    alpha, beta = (value(mine, shared).reshape(task_ids.shape) for mine, shared in pairs)
    return posterior.belief(alpha, beta)


@jax.jit
def _predict_all(state: State, group: Array) -> Belief:
    group = jnp.minimum(group.astype(jnp.int32), state.pool.groups.sizes.shape[0] - 1)
    rows = jnp.where(state.pool.slots.active, state.pool.slot_ids, group.shape[0])
    pairs = zip(state.belief.slots, state.belief.groups, strict=True)
    alpha, beta = (shared[group].at[rows].set(mine, mode="drop") for mine, shared in pairs)
    return posterior.belief(alpha, beta)


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


@jax.jit
def _exists(groups: Groups, task_ids: Array) -> Array:
    return group_of(groups, task_ids) < groups.sizes.shape[0]


def _as_mask(eligible: ArrayLike, state: State) -> Array:
    mask = jnp.asarray(eligible)
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
    return mask


def _admit(state: State, evidence: Evidence) -> Rows:
    rows = as_rows(evidence, state.pool.slots.trials.dtype)
    if is_concrete(evidence, state.pool.groups.num_tasks):
        with jax.ensure_compile_time_eval():
            exists = np.asarray(_exists(state.pool.groups, rows.task_ids))
        refuse_poison(evidence, exists, int(state.pool.groups.num_tasks))
    return rows


def check_task_ids(state: State, task_ids: ArrayLike) -> Array:
    """Task ids as i32; refused on the host where they are out of range."""
    ids, tasks = jnp.asarray(task_ids), state.pool.groups.num_tasks
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"task_ids has dtype {ids.dtype}, expected integers")
    if is_concrete(ids, tasks):
        wrong = np.asarray(ids)[(np.asarray(ids) < -1) | (np.asarray(ids) >= int(tasks))]
        if wrong.size:
            raise ValueError(
                f"task_ids contains {wrong.flat[0]}, this pool has rows 0 to {int(tasks) - 1}"
            )
    return ids.astype(jnp.int32)
