"""Grouped pools of `preset="paper"`: Beta posteriors of slots and groups.

In: evidence and keys. Out: the group model of `grouped_slots.py`. A task's own evidence decays by
(1 - lambda) a step; when less than `tolerance` pseudo-counts of it are left the task returns to
its group.

The race (`race.py`) for the nearest draws is run among slots and groups alike. The rate of a
group is that of its tasks times their number, and a hit falls on any of them; it is void if
that task has a slot, is not eligible, or was hit before. That is exact.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax import pool, posterior, race, table
from bots_jax.beta_belief import BetaRules, Learned
from bots_jax.compose import BeliefInfo
from bots_jax.evidence import PADDING
from bots_jax.grouped_slots import GroupModel, Pick, free_slots
from bots_jax.groups import Groups, draw_member, group_of
from bots_jax.numerics import rarely
from bots_jax.pool import Fused
from bots_jax.posterior import BetaPosterior
from bots_jax.race import FANOUT, Course, Result, Runner
from bots_jax.selection import lowest
from bots_jax.types import Array, Belief, PyTree, Settings, State

DEFAULT_TOLERANCE = 1e-5  # pseudo-counts


class GroupedBetas(NamedTuple):
    """Posteriors of slots and groups."""

    slots: BetaPosterior  # f[T]
    groups: BetaPosterior  # f[G]
    own: Array  # f[T], an upper bound on the pseudo-counts that a slot has and its group not
    learned: Learned

    def per_slot(self) -> PyTree:
        """As `GroupedBelief` says."""
        return self.slots, self.own

    def with_per_slot(self, values: PyTree) -> GroupedBetas:
        """As `GroupedBelief` says."""
        slots, own = values
        return self._replace(slots=slots, own=own)

    def begin(self, rows: Array, group: Array, slot_ids: Array) -> GroupedBetas:
        """As `GroupedBelief` says."""
        slots = BetaPosterior(
            *(
                mine.at[rows].set(shared[group], mode="drop")
                for mine, shared in zip(self.slots, self.groups, strict=True)
            )
        )
        return self._replace(slots=slots, own=self.own.at[rows].set(0, mode="drop"))

    def release(self, pick: Pick, leaves: Array) -> GroupedBetas:
        """As `GroupedBelief` says."""
        return self

    def add_groups(self, settings: Settings, count: int) -> GroupedBetas:
        """As `GroupedBelief` says."""
        fresh = posterior.prior(settings, count)
        pairs = zip(self.groups, fresh, strict=True)
        shared = BetaPosterior(*(jnp.concatenate([old, new]) for old, new in pairs))
        return self._replace(groups=shared)

    def recount(self, slot_ids: np.ndarray) -> GroupedBetas:
        """As `GroupedBelief` says."""
        return self


def group_betas(rules: BetaRules) -> GroupModel:
    """The same posteriors and selections as those of a dense pool under these rules."""

    def make(settings: Settings, groups: Groups, num_domains: int, size: int) -> GroupedBetas:
        return GroupedBetas(
            posterior.prior(settings, size),
            posterior.prior(settings, groups.sizes.shape[0]),
            jnp.zeros((size,), groups.reference.rates.dtype),
            rules.start(groups.reference, num_domains),
        )

    def best(
        rng_key: Array, state: State, eligible: Array | None, count: int
    ) -> tuple[GroupedBetas, Array, Array, Array]:
        return (state.belief, *nearest(rng_key, state, eligible, count))

    def fuse(state: State, fused: Fused) -> tuple[GroupedBetas, BeliefInfo]:
        settings, belief, groups = state.settings, state.belief, state.pool.groups
        learned, told = rules.learn(belief.learned, settings, state.reference, fused)
        mine = rules.spread(belief.slots, learned, settings, state.reference, fused)
        nothing = jnp.zeros_like(belief.groups.alpha)
        unvisited = Fused(nothing, nothing, groups.domain, fused.num_domains)
        shared = rules.spread(belief.groups, learned, settings, groups.reference, unvisited)
        # Evidence of n trials sets a task apart by at most n and the implicit evidence it replaces.
        apart = jnp.where(fused.trials > 0, fused.trials + settings.rollouts, 0)
        own = (1 - settings.forgetting) * belief.own + apart
        return GroupedBetas(mine, shared, own, learned), told

    def left(state: State, pick: Pick) -> Array:
        return pick(state.belief.own)

    def of_slots(state: State, rows: Any) -> Belief:
        alpha, beta = state.belief.slots
        return posterior.belief(alpha[rows], beta[rows])

    def of_groups(state: State) -> Belief:
        return posterior.belief(*state.belief.groups)

    def most_left(rollouts: float) -> float:
        return 2 * rollouts  # its evidence, and the implicit evidence that this replaced

    return GroupModel(make, best, fuse, left, of_slots, of_groups, most_left)


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
    allowed = free_slots(state.pool, eligible)

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
