"""Grouped pools of `bots`: Beta posteriors of slots and groups.

In: evidence and keys. Out: the group model of `grouped/slots.py`. A task's own evidence decays by
(1 - lambda) a step; when less than `tolerance` pseudo-counts of it are left the task returns to
its group.

Poisson thinning (`thinning.py`) finds the nearest draws among slots and groups alike. The rate of a
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

from bots_jax.belief import posterior
from bots_jax.belief.beta import BetaRules, Learned
from bots_jax.belief.posterior import BetaPosterior
from bots_jax.choice import thinning
from bots_jax.choice.thinning import Candidate, Result, Window
from bots_jax.compose import BeliefInfo
from bots_jax.grouped import table
from bots_jax.grouped.groups import Groups, draw_member, group_of
from bots_jax.grouped.slots import GroupModel, Pick, free_slots
from bots_jax.numerics.beta_draws import is_rejected, propose, value_at
from bots_jax.numerics.compiling import SMALL
from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.numerics.random_bits import key_words, lane_bits, open_uniform
from bots_jax.pool import visits
from bots_jax.pool.evidence import PADDING
from bots_jax.pool.visits import StepEvidence
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

    def score(rng_key: Array, state: State) -> Array:
        return rng_key  # thinning looks at rates of all slots in a loop, as long as it must

    def best(
        rng_key: Array, state: State, eligible: Array | None, count: int
    ) -> tuple[GroupedBetas, Array, Array, Array]:
        return (state.belief, *nearest(rng_key, state, eligible, count))

    def fuse(state: State, fused: StepEvidence) -> tuple[GroupedBetas, BeliefInfo]:
        settings, belief, groups = state.settings, state.belief, state.pool.groups
        learned, told = rules.learn(belief.learned, settings, state.reference, fused)
        mine = rules.spread(belief.slots, learned, settings, state.reference, fused)
        nothing = jnp.zeros_like(belief.groups.alpha)
        unvisited = StepEvidence(nothing, nothing, groups.domain, fused.num_domains)
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

    return GroupModel(make, score, best, fuse, left, of_slots, of_groups, most_left, SMALL)


# --- selection ----------------------------------------------------------------------------


def nearest(
    rng_key: Array, state: State, eligible: Array | None, count: int
) -> tuple[Array, Array, Array]:
    """As `thinning.nearest`, among slots and groups: ids, draws, valid.

    Within, a task is named by its *place*: its slot, or T + its id where it has none.
    """
    race_words, rest_words = key_words(rng_key, 2)
    groups, target = state.pool.groups, state.settings.target
    slot_ids, shared = state.pool.slot_ids, state.belief.groups
    alpha, beta = state.belief.slots
    sizes = groups.sizes.astype(alpha.dtype)
    slots = slot_ids.shape[0]
    allowed = free_slots(state.pool, eligible)

    def measure(width: Array) -> tuple[Array, Array]:
        tied = lax.optimization_barrier(
            (state.belief, allowed, sizes, width)
        )  # see choice/thinning.py
        (mine, shared, *_), free, many, _ = tied
        rates = jnp.where(free, thinning.hit_rate(mine.alpha, mine.beta, target, width), 0)
        each = thinning.hit_rate(shared.alpha, shared.beta, target, width)
        each = jnp.where(many > 0, each, 0)
        return jnp.concatenate([rates, each * many]), jnp.maximum(jnp.max(rates), jnp.max(each))

    def identify(bits: Array, window: Window, blocks: Array) -> Candidate:
        """A block is a slot, or a group."""
        in_slots = blocks < slots
        slot, group = jnp.minimum(blocks, slots - 1), jnp.maximum(blocks - slots, 0)
        # Where a slot was hit the same member each time: it is in the caches.
        member = draw_member(jnp.where(in_slots, 0, bits), groups, group)
        runs = table.find(slot_ids, member) == slots
        if eligible is not None:
            runs &= eligible[member]
        rate = window.block_rates[blocks]
        each = thinning.hit_rate(shared.alpha[group], shared.beta[group], target, window.width)
        return Candidate(
            jnp.where(in_slots, slot, slots + member),
            jnp.where(in_slots, alpha[slot], shared.alpha[group]),
            jnp.where(in_slots, beta[slot], shared.beta[group]),
            jnp.where(in_slots, rate, each),
            (rate > 0) & (in_slots | runs),
        )

    guess = jnp.sum(
        thinning.hit_rate(shared.alpha, shared.beta, target, jnp.zeros_like(target)) * sizes
    )
    window = thinning.choose_window(measure, guess, target, count)
    result = thinning.run(race_words, window, identify, target, count)
    finish = partial(_finish, rest_words, state, eligible)
    result = lazy_cond(result.found < count, finish, result)
    place, valid = result.task_ids, result.valid
    ids = jnp.where(place < slots, slot_ids[jnp.clip(place, 0, slots - 1)], place - slots)
    return jnp.where(valid, ids, PADDING), result.draws, valid


# Tasks drawn and compared at a time.
_CHUNK = 1 << 14


class _Tasks(NamedTuple):
    """Some tasks of the pool, those in slots and those in groups alike."""

    alpha: Array  # f[S]
    beta: Array  # f[S]
    free: Array  # bool[S], whether they may be chosen


def _tasks_at(places: Array, state: State, eligible: Array | None) -> _Tasks:
    """Those at places i32[S]."""
    groups, slot_ids = state.pool.groups, state.pool.slot_ids
    slots, shared = state.belief.slots, state.belief.groups
    row = jnp.minimum(places, slot_ids.shape[0] - 1)
    in_slot = places < slot_ids.shape[0]
    ids = jnp.where(in_slot, slot_ids[row], places - slot_ids.shape[0])
    group = group_of(groups, ids)
    apart = table.find(slot_ids, ids) < slot_ids.shape[0]
    free = jnp.where(in_slot, visits.selectable(state.pool.slots, None)[row], ~apart)
    free &= group < groups.sizes.shape[0]
    if eligible is not None:
        free &= eligible[jnp.clip(ids, 0, groups.num_tasks - 1)]
    group = jnp.minimum(group, groups.sizes.shape[0] - 1)
    alpha = jnp.where(in_slot, slots.alpha[row], shared.alpha[group])
    beta = jnp.where(in_slot, slots.beta[row], shared.beta[group])
    # Of any other posterior no draw would ever be accepted.
    free &= (jnp.minimum(alpha, beta) > 0) & jnp.isfinite(alpha + beta)
    return _Tasks(alpha, beta, free)


class _Best(NamedTuple):
    """The nearest so far, in no order."""

    places: Array  # i32[count], -1 where there are not so many
    draws: Array  # f[count]
    lots: Array  # f[count] in (0, 1]: of tasks as near as each other the highest are taken


def _finish(words: Array, state: State, eligible: Array | None, result: Result) -> Result:
    """As `thinning._finish`: draw what was not accepted, slots and then all tasks, in chunks.

    This costs a draw for every task of the pool. It happens where few tasks are anywhere near
    the target, or very few tasks are much nearer to it than all others.
    """
    groups, target = state.pool.groups, state.settings.target
    count, slots = result.task_ids.shape[0], state.pool.slot_ids.shape[0]
    dtype = result.draws.dtype
    accepted = jnp.where(result.valid, result.task_ids, PADDING)

    def distance(places: Array, draws: Array) -> Array:
        return jnp.where(places >= 0, jnp.abs(draws - target), jnp.inf)

    def chunk(carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
        """The nearest among the best so far and some more tasks."""
        start, best = carry
        places = start + jnp.arange(_CHUNK, dtype=jnp.int32)
        lanes = places.astype(jnp.uint32)
        tasks = _tasks_at(places, state, eligible)
        here = jnp.where(accepted >= start, accepted - start, _CHUNK)
        free = tasks.free.at[here].set(False, mode="drop")
        draws = _draw_outside(words, lanes, tasks, free, target, result.explored)
        lots = open_uniform(lane_bits(words, lanes, jnp.uint32(0), dtype)[0], dtype)
        more = _Best(jnp.where(free, places, -1), draws, lots)
        both = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), best, more)
        far = distance(both.places, both.draws)
        last = -jnp.min(lax.top_k(-far, count)[0])
        rank = jnp.where(far < last, 2, jnp.where(far == last, both.lots, 0))
        chosen = lax.top_k(rank, count)[1]
        return start + _CHUNK, jax.tree.map(lambda values: values[chosen], both)

    first = _Best(accepted, result.draws, jnp.zeros_like(result.draws))
    end = slots + groups.num_tasks
    start = jnp.int32(0), first
    best = lax.while_loop(lambda carry: carry[0] < end, chunk, start)[1]
    by_distance = distance(best.places, best.draws), best.places, best.draws
    _, places, draws = lax.sort(by_distance, num_keys=1)
    return result._replace(
        task_ids=places,
        draws=jnp.where(places >= 0, draws, 0),
        found=jnp.sum(places >= 0, dtype=jnp.int32),
    )


def _draw_outside(
    words: Array, lanes: Array, tasks: _Tasks, wanted: Array, target: Array, explored: Array
) -> Array:
    """f[S]: draws of the tasks wanted, given that they are over `explored` from the target.

    What `thinning.draw_outside` does, in one loop instead of three nested ones: for so few tasks
    at a time it is as quick, and a step compiles sooner.
    """

    def another(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        drawn, attempt = carry
        bits = lane_bits(words, lanes, attempt, drawn.dtype)
        distance = propose(tasks.alpha, tasks.beta, *bits)
        draw = value_at(distance, tasks.alpha, tasks.beta)
        good = ~is_rejected(distance) & (jnp.abs(draw - target) > explored)
        return jnp.where((drawn < 0) & good, draw, drawn), attempt + 1

    start = jnp.where(wanted, -1, target), jnp.uint32(1)
    return lax.while_loop(lambda carry: jnp.any(carry[0] < 0), another, start)[0]
