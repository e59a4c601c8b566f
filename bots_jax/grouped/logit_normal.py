"""Grouped pools of `auto`: the histories of slots, and what their groups tell.

In: evidence and keys. Out: the group model of `grouped/slots.py`. A task without a slot has no
history, so its belief is what the estimator says of its group, made when it is asked for: nothing
is kept a group but how many of its tasks have slots. A task returns to its group when less than
`tolerance` is left of its history: e max(|u|, visits), in logits and visits (`belief/`).

On the T slots the belief is that of a dense pool of T tasks, and the same code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bots_jax.belief.logit_normal import (
    AutoBelief,
    AutoConfig,
    Shared,
    as_belief,
    expect,
    expect_unvisited,
    logit_normal_belief,
    no_history,
    what_is_left,
)
from bots_jax.choice.worth import MIXED, Worth
from bots_jax.compose import BeliefInfo
from bots_jax.grouped import table
from bots_jax.grouped.groups import Groups
from bots_jax.grouped.mixed import mixed_in_groups, score_all, slot_reference, sweep_credit
from bots_jax.grouped.slots import GroupModel, Pick
from bots_jax.pool.visits import StepEvidence
from bots_jax.types import Array, Belief, PyTree, Settings, State

AUTO_TOLERANCE = 1e-3  # logits, visits
# Beyond, what is not compiled for speed would take milliseconds of each step.
_QUICK_SLOTS = 2**18
# What is left of a history right after a visit, as a rule at most.
_MOST_LEFT = 4.0


class GroupedAuto(NamedTuple):
    """Histories of slots, and where the sweep of the floor stands."""

    slots: AutoBelief  # of T rows
    group: Array  # i32[T], of the task in each slot
    apart: Array  # i32[G], tasks of each group that have a slot
    cursor: Array  # i32, the task that the sweep looks at next
    credit: Array  # f, tasks that it is behind by

    @property
    def shared(self) -> Shared:
        """What the evaluated tasks have told about all, as a dense `AutoBelief` has it."""
        return self.slots.shared

    @property
    def clock(self) -> Array:
        """i32, steps that brought evidence."""
        return self.slots.clock

    def per_slot(self) -> PyTree:
        """As `GroupedBelief` says."""
        return self.slots.history, self.group

    def with_per_slot(self, values: PyTree) -> GroupedAuto:
        """As `GroupedBelief` says."""
        history, group = values
        return self._replace(slots=self.slots._replace(history=history), group=group)

    def begin(self, rows: Array, group: Array, slot_ids: Array) -> GroupedAuto:
        """As `GroupedBelief` says."""
        size, none = slot_ids.shape[0], self.apart.shape[0]
        given, at = rows < size, jnp.minimum(rows, size - 1)
        lost = jnp.where(given & (slot_ids[at] != table.FREE), self.group[at], none)
        apart = self.apart.at[jnp.where(given, group, none)].add(1, mode="drop")
        history = self.slots.history.restart(rows, self.slots.clock)
        return self._replace(
            slots=self.slots._replace(history=history),
            group=self.group.at[rows].set(group, mode="drop"),
            apart=apart.at[lost].add(-1, mode="drop"),
        )

    def release(self, pick: Pick, leaves: Array) -> GroupedAuto:
        """As `GroupedBelief` says."""
        left = jnp.where(leaves, pick(self.group), self.apart.shape[0])
        return self._replace(apart=self.apart.at[left].add(-1, mode="drop"))

    def add_groups(self, settings: Settings, count: int) -> GroupedAuto:
        """As `GroupedBelief` says."""
        return self._replace(apart=jnp.pad(self.apart, (0, count)))

    def recount(self, slot_ids: np.ndarray) -> GroupedAuto:
        """As `GroupedBelief` says."""
        used = np.asarray(self.group)[slot_ids != table.FREE]
        apart = np.bincount(used, minlength=self.apart.shape[0])
        return self._replace(apart=jnp.asarray(apart, jnp.int32))


def group_auto(rules: AutoConfig, floor: float | None, worth: Worth = MIXED) -> GroupModel:
    """The beliefs of a dense pool under these rules, and choice="mixed"."""
    dense = logit_normal_belief(rules)

    def make(settings: Settings, groups: Groups, num_domains: int, size: int) -> GroupedAuto:
        dtype = groups.reference.rates.dtype
        belief = dense.init(settings, groups.reference, num_domains)
        return GroupedAuto(
            belief._replace(history=no_history(size, dtype)),
            jnp.zeros((size,), jnp.int32),
            jnp.zeros(groups.sizes.shape, jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), dtype),
        )

    def fuse(state: State, fused: StepEvidence) -> tuple[GroupedAuto, BeliefInfo]:
        belief = state.belief
        slots, told = dense.fuse(belief.slots, state.settings, slot_reference(state), fused)
        belief = belief._replace(slots=slots)
        if floor is not None:
            moved = slots.clock > state.belief.slots.clock
            more = sweep_credit(rules.batch_size, floor, belief, state.pool.groups)
            belief = belief._replace(credit=jnp.where(moved, more, belief.credit))
        return belief, told

    def left(state: State, pick: Pick) -> Array:
        return what_is_left(rules, state.belief.slots, state.settings, pick)

    def of_slots(state: State, rows: Any) -> Belief:
        domain = state.pool.slots.domain
        belief, settings = state.belief.slots, state.settings
        return as_belief(expect(rules, belief, settings, slot_reference(state), domain, rows))

    def of_groups(state: State) -> Belief:
        shared, groups = state.belief.slots.shared, state.pool.groups
        return as_belief(
            expect_unvisited(rules, shared, state.settings, groups.reference, groups.domain)
        )

    def most_left(rollouts: float) -> float:
        return _MOST_LEFT

    score, best = score_all(rules, worth), mixed_in_groups(rules, floor)
    return GroupModel(
        make,
        score,
        best,
        fuse,
        left,
        of_slots,
        of_groups,
        most_left,
        _QUICK_SLOTS,
        keeps_features=False,
    )
