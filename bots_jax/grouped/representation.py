"""Dense or grouped: which representation a pool gets, and the functions that go with it.

In: what `init` is given. Out: a selector whose `init` decides, and whose other functions do
what the state they are handed calls for. `State.representation` says which it is.

A pool is grouped where that is cheaper: large, with references on a grid or features that are kinds
alone, selected by a choice
that has a grouped form, and with a lambda that lets evaluated tasks return to their groups
soon enough that they are a small part of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bots_jax.checks import is_concrete
from bots_jax.choice.batch import Plan
from bots_jax.compose import (
    TOUCHED_PER_SELECTED,
    Shared,
    can_use_features,
    check_state,
    settings_of,
)
from bots_jax.grouped import selector as grouped
from bots_jax.grouped.groups import MOST_GROUPS, Groups, find_codes, groups_of_sizes, make_groups
from bots_jax.grouped.slots import GroupModel, slots_needed
from bots_jax.pool.features import Kinds, encode_kinds
from bots_jax.pool.reference import (
    ReferenceCounts,
    ReferenceGroups,
    TaskFeatures,
    as_given,
    expand_reference,
    most_domains,
    reference_dtype,
)
from bots_jax.settings import refuse_ignored
from bots_jax.types import Array, ArrayLike, Evidence, Selection, Selector, Settings, State

REPRESENTATIONS = ("auto", "dense", "grouped")
# Below this a dense step costs less than the fixed part of a grouped one.
_LEAST_TASKS = 200_000
# Slots may be at most this share of the tasks, or dense is as cheap.
_LARGEST_TABLE = 0.5


class Grouping(NamedTuple):
    """What grouped states of a selector are made with; static."""

    representation: str  # auto | dense | grouped
    model: GroupModel
    settings: Settings  # the factory's
    plan: Plan
    can_group: bool  # whether the choice has a grouped form
    serves: str  # and which choices have one, in words: "... without this, that"
    shared: Shared
    tolerance: float
    slots: int | None

    @property
    def possible(self) -> bool:
        """Whether the choice has a grouped form, and is all there is to a batch."""
        return self.can_group and not self.plan.exploration and self.plan.quotas is None


def with_grouped(dense: Selector, grouping: Grouping) -> Selector:
    """`dense`, whose `init` may make grouped states, which the other functions then serve."""
    if grouping.representation == "grouped" and not grouping.possible:
        raise ValueError(
            f"representation='grouped' serves {grouping.serves}, exploration and quotas: use "
            "representation='dense' or 'auto' for the others"
        )
    shared = grouping.shared
    few = grouped.grouped_functions(
        grouping.model,
        grouping.plan,
        shared.get("expiry"),
        shared.get("keep_open", False),
        grouping.tolerance,
    )

    def init(
        reference: Any = None,
        settings: Settings | Mapping[str, ArrayLike] | None = None,
        num_tasks: int | None = None,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
        capacity: int | None = None,
        features: Any = None,
    ) -> State:
        reference, reference_trials, domains = as_given(reference, reference_trials, domains)
        numbers = settings_of(
            grouping.settings, settings, reference_dtype(grouping.shared.get("dtype"), reference)
        )
        refuse_ignored(settings, dense.obeys, dense.static["strategy"])
        if capacity is None and (reference is not None or features is not None):
            given = _what_tells_apart(reference, reference_trials, domains, features, dense.static)
            state = _try_grouped(grouping, numbers, given, num_tasks)
            if state is not None:
                return state
        elif grouping.representation == "grouped":
            raise ValueError(
                f"representation='grouped' needs a reference and no capacity, got "
                f"capacity={capacity}: pools that grow are dense"
            )
        return dense.init(
            reference, settings, num_tasks, reference_trials, domains, capacity, features
        )

    def select(
        rng_key: Array, state: State, eligible: ArrayLike | None = None
    ) -> tuple[State, Selection]:
        return _of(state, dense, few).select(rng_key, state, eligible)

    def observe(state: State, evidence: Evidence) -> State:
        return _of(state, dense, few).observe(state, evidence)

    def advance(state: State) -> Any:
        return _of(state, dense, few).advance(state)

    def update(state: State, evidence: Evidence) -> Any:
        return _of(state, dense, few).update(state, evidence)

    def abandon(state: State, task_ids: ArrayLike) -> State:
        return _of(state, dense, few).abandon(state, task_ids)

    def predict(state: State, task_ids: ArrayLike | None = None) -> Any:
        return _of(state, dense, few).predict(state, task_ids)

    static = {**dense.static, "representation": grouping.representation}
    functions = (init, select, observe, advance, update, abandon, predict)
    return Selector(*functions, static, obeys=dense.obeys)


def _of(state: State, dense: Selector, few: Any) -> Any:
    check_state(state)
    return few if state.representation == "grouped" else dense


class _Given(NamedTuple):
    """What is known of tasks, by which they may be alike."""

    reference: Any
    trials: Any
    domains: Any
    kinds: Kinds | None
    numbers: bool  # whether something is known that sets every task apart


def _what_tells_apart(
    reference: Any, trials: Any, domains: Any, features: Any, static: Mapping[str, Any]
) -> _Given:
    if features is None or isinstance(reference, TaskFeatures) or not can_use_features(static):
        return _Given(reference, trials, domains, None, isinstance(reference, TaskFeatures))
    kinds = encode_kinds(features)
    if isinstance(reference, ReferenceGroups):  # of features there is one row a task
        reference, trials, domains = expand_reference(reference, trials, domains)
    return _Given(reference, trials, domains, kinds, kinds is None)


def _are_domains(domains: np.ndarray, reference: Any, tasks: int) -> bool:
    """Whether there is one for each task, or group of tasks, and they are small numbers."""
    of_groups = isinstance(reference, ReferenceGroups)
    entries = np.shape(reference.sizes)[0] if of_groups else tasks
    if domains.shape != (entries,) or domains.dtype.kind not in "iu" or domains.min() < 0:
        return False
    return int(domains.max()) < most_domains(tasks)


def _try_grouped(
    grouping: Grouping, settings: Settings, given: _Given, num_tasks: int | None
) -> State | None:
    """A grouped state, or None where dense is called for."""
    forced = grouping.representation == "grouped"
    reference, trials, domains, kinds, numbers = given
    if numbers:
        _refuse(forced, "embeddings, and features that are numbers, set every task apart")
        return None
    if grouping.representation == "dense" or not grouping.possible:
        return None
    if not is_concrete(reference, trials, domains):
        _refuse(forced, "the reference is traced, and groups are made on the host")
        return None
    on_a_grid = isinstance(reference, ReferenceCounts | ReferenceGroups)
    if reference is None and kinds is None:
        return None  # refused on the way to a dense state: features are of no use here
    if not on_a_grid and reference is not None and np.ndim(reference) != 2:
        return None  # refused, with its shape, on the way to a dense state
    tasks = _count_tasks(given)
    if kinds is not None and {len(x) for x in kinds.numbers} | {num_tasks or tasks} != {tasks}:
        return None  # likewise
    if domains is not None and not _are_domains(domains, reference, tasks):
        return None  # likewise
    if tasks < _LEAST_TASKS and not forced:
        return None
    size = grouping.slots
    if size is None:
        size = _table_size(grouping, settings, tasks)
    if not forced and size > _LARGEST_TABLE * tasks:
        return None
    dtype = settings.target.dtype
    groups = _make_groups(given, dtype)
    if groups is None:
        _refuse(forced, f"references and categories take more than {MOST_GROUPS} distinct values")
        return None
    if tasks < grouping.plan.batch_size:
        raise ValueError(f"batch_size={grouping.plan.batch_size} exceeds the pool of {tasks} tasks")
    count = 1 if groups.domain is None else int(jnp.max(groups.domain)) + 1
    count = grouping.shared.get("num_domains") or count
    touched_capacity = TOUCHED_PER_SELECTED * grouping.plan.batch_size
    track_expiry = grouping.shared.get("expiry") is not None
    return grouped.make_grouped(
        settings, groups, grouping.model, count, size, touched_capacity, track_expiry
    )


def _refuse(forced: bool, why: str) -> None:
    if forced:
        raise ValueError(f"representation='grouped': {why}; use 'dense' or 'auto'")


def _table_size(grouping: Grouping, settings: Settings, tasks: int) -> int:
    """Slots for the settings in force, or for all tasks if lambda is traced."""
    forgetting, rollouts = settings.forgetting, settings.rollouts
    if not is_concrete(forgetting, rollouts):
        forgetting, rollouts = 0.0, 1.0
    most = grouping.model.most_left(float(rollouts))
    return slots_needed(
        grouping.plan.batch_size, float(forgetting), most, grouping.tolerance, tasks
    )


def _count_tasks(given: _Given) -> int:
    reference = given.reference
    if isinstance(reference, ReferenceGroups):
        return int(np.sum(np.asarray(reference.sizes), dtype=np.int64))
    if isinstance(reference, ReferenceCounts):
        return int(np.shape(reference.successes)[1])
    if reference is None and given.kinds is not None:
        return len(given.kinds.numbers[0])
    return int(np.shape(reference)[1])


def _make_groups(given: _Given, dtype: jnp.dtype) -> Groups | None:
    reference, kinds = given.reference, given.kinds
    if isinstance(reference, ReferenceGroups):
        return groups_of_sizes(reference, given.domains, dtype)
    if kinds is None:
        codes = find_codes(reference, given.trials, given.domains)
        return None if codes is None else make_groups(codes, dtype)
    if reference is None:
        reference = np.zeros((0, _count_tasks(given)))
    codes = find_codes(reference, given.trials, given.domains, kinds=kinds.numbers)
    if codes is None or codes.kinds is None:
        return None
    codes = codes._replace(embeddings=kinds.columns(codes.kinds))
    return make_groups(codes, dtype, kinds.code)
