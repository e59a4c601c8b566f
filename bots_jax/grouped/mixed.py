"""The choice of `auto` in grouped pools: the first of all lotteries, not all of them.

In: the belief of `logit_normal.py`. Out: the B tasks of lowest score, distributed as if each task
of the pool had been given its score, as in `choice/mixed.py` with spread 0,

    1 - V + c log(1 + (1 - .8 q) visits) + lottery,    lottery ~ exponential of mean delta

Slots are scored one by one. The tasks of group g without a slot share s_g = 1 - V_g, and wait an
exponential time from there: so each is *hit* at rate 1 / delta from s_g on, and its score is the
time of its first hit. With n_g of them, hits come in total as a Poisson process with

    M(t) = sum_g n_g max(t - s_g, 0) / delta

of them expected up to t, a line with G bends: unit exponentials, added up and sent through the
inverse of M, are the times of the next hits of all groups together. A hit falls on group g in
proportion to n_g among those with s_g <= t, on any of its tasks without a slot, and is void if
that task is not eligible, or was hit before. This is the *race*. It takes the large groups.

Small groups, and those of which few tasks are without a slot, are *walked* through, in the order
of s_g, as long as s_g is below the B-th best score so far. So is what the race has left where it
got too few, because of a mask: a task that was not hit up to t waits from t on as if it had
just begun. Both are exact. A walk costs as much as there are tasks in such groups. Tasks
are hidden behind slots only where groups are used up, so without a mask those are O(T).

Scores are kept less the least s_g: hits are 1e-8 apart where a group is large.

**The floor.** Without a memory of every task there is a sweep: once floor / 2 passes have gone by,
it goes through all tasks by their number, once each floor / 2 passes, and takes those that were
not visited for floor / 4 passes before all else. So each eligible task is chosen within `floor`
passes, for at most 2 / floor of the visits; one that is ineligible or in flight at its turn waits
for the next. Before that it goes through all once from the 8th to the 16th pass, and takes those
that were never visited (or so little or so long ago that they have no slot any more).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.belief.logit_normal import (
    AutoConfig,
    expect,
    expect_of_groups,
    expect_unvisited,
    mean_rate,
)
from bots_jax.choice.batch import lowest
from bots_jax.choice.mixed import (
    LOTTERY,
    exponential,
    first_visit,
    weigh_tasks,
)
from bots_jax.choice.worth import MIXED, Worth, optimistic
from bots_jax.grouped import table
from bots_jax.grouped.groups import Groups, OfGroups, draw_member, group_of
from bots_jax.grouped.slots import free_slots
from bots_jax.numerics.random_bits import open_uniform, random_bits
from bots_jax.numerics.short_lists import seen_before
from bots_jax.pool import visits
from bots_jax.pool.reference import Reference
from bots_jax.settings import group_in_force
from bots_jax.types import Array, State

# A group takes part in the race if of its tasks without a slot there are so many times more than
# hits drawn at a time, so that few are hit twice, and if they are at least one in `_RARE` of all
# its tasks, so that they are soon found. Else a walk costs less.
_LARGE, _RARE = 4, 16
_ROUNDS = 4  # of hits, after which what is left is walked
_MOST_TRIES = 1 << 10  # to find a task without a slot: (15 / 16) ** 1024 is 1e-29
_CHUNK = 1 << 13  # tasks walked at a time
_NEVER = 4.0  # above every 1 - V


class _Groups(NamedTuple):
    """The tasks without a slot, as they stand in the race."""

    score: Array  # f[G], s_g less the least
    free: Array  # i32[G], n_g
    raced: Array  # bool[G]


class _Best(NamedTuple):
    """The best so far, in order."""

    ids: Array  # i32[count]
    scores: Array  # f[count], infinite where there are not so many


class _Race(NamedTuple):
    """Hits so far."""

    turn: Array  # i32, rounds
    expected: Array  # f, M at the last hit
    end: Array  # f, its time; every hit up to there is known
    ids: Array  # i32[_ROUNDS * K], -1 where there is none
    times: Array  # f[_ROUNDS * K]
    counts: Array  # bool[_ROUNDS * K], whether it is the first of an eligible task


class _Scores(NamedTuple):
    """What all slots and groups are worth, and the keys for the rest of a selection."""

    slots: Array  # f[T], less the least s_g
    groups: Array  # f[G], s_g less the least
    rate: Array  # f[G], the mean rate
    race_key: Array
    walk_key: Array


def score_all(rules: AutoConfig, worth: Worth = MIXED) -> Callable[[Array, State], _Scores]:
    """`GroupModel.score` for choice="mixed" without noise."""

    def score(rng_key: Array, state: State) -> _Scores:
        slots_key, race_key, walk_key = jax.random.split(rng_key, 3)
        cost, rate = _score_groups(rules, worth, state)
        free = state.pool.groups.sizes - state.belief.apart
        least = jnp.min(jnp.where(free > 0, cost, _NEVER))
        slots = _score_slots(slots_key, rules, worth, state, least)
        return _Scores(slots, cost - least, rate, race_key, walk_key)

    return score


def mixed_in_groups(
    rules: AutoConfig, floor: float | None
) -> Callable[[_Scores, State, Array | None, int], tuple[Any, Array, Array, Array]]:
    """`GroupModel.best` for choice="mixed" without noise."""

    def best(
        scores: _Scores, state: State, eligible: Array | None, count: int
    ) -> tuple[Any, Array, Array, Array]:
        swept, belief = _sweep(state, eligible, floor, count)
        sizes = state.pool.groups.sizes
        free = sizes - belief.apart
        raced = (free >= _LARGE * _hits_at_a_time(count)) & (free >= sizes // _RARE)
        line = _Groups(scores.groups, free, raced)
        of_slots = _best_slots(scores.slots, state, eligible, swept, count)
        race = _run(scores.race_key, state, eligible, line, swept, of_slots, count)
        met = jnp.where(race.counts, race.times, jnp.inf)
        found = _first(race.ids, met, of_slots)
        found = _walk(scores.walk_key, state, eligible, line, swept, race, found)
        ids = jnp.concatenate([swept, found.ids])
        valid = jnp.concatenate([swept >= 0, jnp.isfinite(found.scores)])
        place = jnp.where(valid, jnp.cumsum(valid, dtype=jnp.int32) - 1, count)
        ids = jnp.full((count,), -1, jnp.int32).at[place].set(ids, mode="drop")
        return belief, ids, _rates_of(rules, state, scores.rate, ids), ids >= 0

    return best


def _first(ids: Array, scores: Array, best: _Best) -> _Best:
    """The best of both; equals stand in this order."""
    all_ids, all_scores = jnp.concatenate([ids, best.ids]), jnp.concatenate([scores, best.scores])
    negated, at = lax.top_k(-all_scores, best.ids.shape[0])
    return _Best(all_ids[at], -negated)


# --- scores -------------------------------------------------------------------------------------


def _score_groups(rules: AutoConfig, worth: Worth, state: State) -> tuple[Array, Array]:
    """f[G]: s_g, and the mean rate."""
    groups, shared = state.pool.groups, state.belief.slots.shared
    expected = expect_unvisited(rules, shared, state.settings, groups.reference, groups.domain)
    group = group_in_force(state.settings)
    cost = worth.lack(optimistic(worth, expected, group), group)
    return cost, mean_rate(expected)


def _score_slots(
    rng_key: Array, rules: AutoConfig, worth: Worth, state: State, least: Array
) -> Array:
    """f[T], less `least`."""
    belief, settings, slot_ids = state.belief.slots, state.settings, state.pool.slot_ids
    groups = state.pool.groups
    if groups.reference.embeddings is None:
        expected = expect(rules, belief, settings, state.reference, state.pool.slots.domain)
    else:  # of groups there are fewer than of slots, and what costs are the features
        expected = expect_of_groups(
            rules, belief, settings, groups.reference, groups.domain, state.belief.group
        )
    return weigh_tasks(rng_key, rules, worth, belief, settings, expected, slot_ids, least)


def _best_slots(
    score: Array, state: State, eligible: Array | None, swept: Array, count: int
) -> _Best:
    slot_ids = state.pool.slot_ids
    taken = table.find(slot_ids, swept)
    allowed = free_slots(state.pool, eligible).at[taken].set(False, mode="drop")
    rows, valid = lowest(None, score, allowed, count)
    return _Best(slot_ids[rows], jnp.where(valid, score[rows], jnp.inf))


def slot_reference(state: State) -> Reference:
    """That of the tasks in slots."""
    groups = state.pool.groups
    if groups.reference.embeddings is None:
        return state.reference
    return cast(Reference, OfGroups(groups.reference, state.belief.group))


def _rates_of(rules: AutoConfig, state: State, rate: Array, task_ids: Array) -> Array:
    """f[M]: the mean rates of tasks, f[G] `rate` being those of groups."""
    slot, size = table.find(state.pool.slot_ids, task_ids), state.pool.slot_ids.shape[0]
    domain, belief = state.pool.slots.domain, state.belief.slots
    row = jnp.minimum(slot, size - 1)
    own = mean_rate(expect(rules, belief, state.settings, slot_reference(state), domain, row))
    group = jnp.minimum(group_of(state.pool.groups, task_ids), rate.shape[0] - 1)
    return jnp.where(slot < size, own, rate[group])


# --- the race -----------------------------------------------------------------------------------


def _hits_at_a_time(count: int) -> int:
    """K: enough if one hit in eight is void."""
    return math.ceil(1.125 * count + 6 * math.sqrt(count)) + 16


def _run(
    rng_key: Array,
    state: State,
    eligible: Array | None,
    line: _Groups,
    swept: Array,
    slots: _Best,
    count: int,
) -> _Race:
    """Hits until `count` tasks are known that come first, slots among them, or rounds are over."""
    hits, dtype = _hits_at_a_time(count), line.score.dtype
    begins = jnp.where(line.raced, line.score, _NEVER)
    order = jnp.argsort(begins).astype(jnp.int32)
    bend = begins[order]
    upto = jnp.cumsum(jnp.where(line.raced, line.free, 0)[order].astype(dtype))
    expected = jnp.cumsum(upto[:-1] * (bend[1:] - bend[:-1])) / LOTTERY
    expected = jnp.concatenate([jnp.zeros(1, dtype), expected])  # M at the bends

    def another(race: _Race) -> _Race:
        time_key, member_key = jax.random.split(jax.random.fold_in(rng_key, race.turn))
        bits = random_bits(time_key, (2, hits), dtype)
        reached = race.expected + jnp.cumsum(-jnp.log(open_uniform(bits[0], dtype)))
        last = jnp.searchsorted(expected, reached, side="right").astype(jnp.int32) - 1
        times = bend[last] + (reached - expected[last]) * LOTTERY / upto[last]
        threshold = open_uniform(bits[1], dtype) * upto[last]
        which = jnp.searchsorted(upto, threshold, side="right").astype(jnp.int32)
        ids = _members(member_key, state, order[jnp.minimum(which, last)])
        start = race.turn * hits
        ids = lax.dynamic_update_slice(race.ids, ids, (start,))
        times = lax.dynamic_update_slice(race.times, times, (start,))
        first = ~seen_before(jnp.concatenate([swept, ids]))[swept.shape[0] :]
        counts = first & (ids >= 0)
        if eligible is not None:
            counts &= eligible[jnp.maximum(ids, 0)]
        end = times[start + hits - 1]
        return _Race(race.turn + 1, reached[-1], end, ids, times, counts)

    def goes_on(race: _Race) -> Array:
        known = jnp.sum(race.counts, dtype=jnp.int32)
        known += jnp.sum(slots.scores <= race.end, dtype=jnp.int32)
        return (known < count) & (race.turn < _ROUNDS) & jnp.any(line.raced)

    zero, room = jnp.zeros((), dtype), _ROUNDS * hits
    nobody = jnp.full((room,), -1, jnp.int32), jnp.zeros((room,), dtype), jnp.zeros((room,), bool)
    return lax.while_loop(goes_on, another, _Race(jnp.int32(0), zero, zero, *nobody))


def _members(rng_key: Array, state: State, group: Array) -> Array:
    """i32[K]: of each group a task without a slot, each as likely as any other."""
    slot_ids = state.pool.slot_ids

    def redraw(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ids, tries = carry
        bits = jax.random.bits(jax.random.fold_in(rng_key, tries), (2, group.shape[0]), jnp.uint32)
        drawn = draw_member(bits, state.pool.groups, group)
        drawn = jnp.where(table.find(slot_ids, drawn) < slot_ids.shape[0], -1, drawn)
        return jnp.where(ids < 0, drawn, ids), tries + 1

    def goes_on(carry: tuple[Array, Array]) -> Array:
        return jnp.any(carry[0] < 0) & (carry[1] < _MOST_TRIES)

    return lax.while_loop(goes_on, redraw, (jnp.full_like(group, -1), jnp.int32(0)))[0]


# --- the walk -----------------------------------------------------------------------------------


def _walk(
    rng_key: Array,
    state: State,
    eligible: Array | None,
    line: _Groups,
    swept: Array,
    race: _Race,
    best: _Best,
) -> _Best:
    """Go through groups, those that begin first, as long as they may hold one of the best."""
    groups, slot_ids = state.pool.groups, state.pool.slot_ids
    begins = jnp.where(line.raced, jnp.maximum(line.score, race.end), line.score)
    begins = jnp.where(line.free > 0, begins, _NEVER)
    order = jnp.argsort(begins).astype(jnp.int32)
    begins, size = begins[order], jnp.where(line.free > 0, groups.sizes, 0)[order]
    ends = jnp.cumsum(size, dtype=jnp.int32)
    taken = jnp.concatenate([jnp.where(race.counts, race.ids, -1), swept])
    taken = jnp.sort(taken)

    def group_at(place: Array) -> Array:
        at = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
        return jnp.minimum(at, ends.shape[0] - 1)

    def goes_on(carry: tuple[Array, _Best]) -> Array:
        index, best = carry
        more = index <= (ends[-1] - 1) // _CHUNK  # of 0 tasks: -1
        return more & (begins[group_at(index * _CHUNK)] < best.scores[-1])

    def chunk(carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
        index, best = carry
        place = index * _CHUNK + jnp.arange(_CHUNK, dtype=jnp.int32)
        inside = (place >= 0) & (place < ends[-1])  # above 2^31 it is negative
        at = group_at(place)
        rank = groups.starts[order[at]] + jnp.where(inside, place - (ends[at] - size[at]), 0)
        ids = rank if groups.order is None else groups.order[rank]
        free = inside & (table.find(slot_ids, ids) == slot_ids.shape[0])
        free &= taken[jnp.minimum(jnp.searchsorted(taken, ids), taken.shape[0] - 1)] != ids
        if eligible is not None:
            free &= eligible[ids]
        bits = jax.random.bits(jax.random.fold_in(rng_key, index), (_CHUNK,), jnp.uint32)
        scores = begins[at] + exponential(bits, begins.dtype)
        return index + 1, _first(ids, jnp.where(free, scores, jnp.inf), best)

    return lax.while_loop(goes_on, chunk, (jnp.int32(0), best))[1]


# --- the floor ----------------------------------------------------------------------------------


def _passes(steps: Array, batch_size: int, groups: Groups, dtype: jnp.dtype) -> Array:
    """f: passes over the pool that so many steps are."""
    return steps.astype(dtype) * (batch_size / jnp.asarray(groups.num_tasks, dtype))


def sweep_credit(batch_size: int, floor: float, belief: Any, groups: Groups) -> Array:
    """f: how many tasks the sweep is behind by, after a step that brought evidence."""
    credit, first = belief.credit, first_visit(floor)
    passes = _passes(belief.slots.clock, batch_size, groups, credit.dtype)
    rate = jnp.where(passes >= floor / 2, 2 * batch_size / floor, 0)
    rate = jnp.where((passes >= first / 2) & (passes < first), 2 * batch_size / first, rate)
    return jnp.where(rate > 0, jnp.minimum(credit + rate, batch_size), credit)


def _sweep(
    state: State, eligible: Array | None, floor: float | None, count: int
) -> tuple[Array, Any]:
    """i32[S]: the tasks whose turn it is, -1 beyond; and the belief with the sweep moved on."""
    belief, groups, slot_ids = state.belief, state.pool.groups, state.pool.slot_ids
    if floor is None:
        return jnp.zeros((0,), jnp.int32), belief
    most = min(count, math.ceil(2.5 * count / first_visit(floor)) + 1)
    moves = jnp.minimum(jnp.floor(belief.credit).astype(jnp.int32), most)
    turn, tasks = jnp.arange(most, dtype=jnp.int32), jnp.asarray(groups.num_tasks, jnp.int32)

    def wrapped(steps: Array) -> Array:
        past_end = belief.cursor - tasks + steps
        return jnp.where(past_end >= 0, past_end, past_end + tasks)

    ids = wrapped(turn)
    slot = table.find(slot_ids, ids)
    row, own = jnp.minimum(slot, slot_ids.shape[0] - 1), slot < slot_ids.shape[0]
    history, clock = belief.slots.history, belief.slots.clock
    waited = _passes(clock - history.seen[row], count, groups, belief.credit.dtype)
    due = ~own | (history.visits[row] == 0) | (waited >= floor / 4)
    free = ~own | visits.selectable(state.pool.slots, None)[row]
    free &= group_of(groups, ids) < groups.sizes.shape[0]
    if eligible is not None:
        free &= eligible[ids]
    swept = jnp.where((turn < moves) & due & free, ids, -1)
    credit = belief.credit - moves.astype(belief.credit.dtype)
    return swept, belief._replace(cursor=wrapped(moves), credit=credit)
