"""The records that pass between the parts of a selector, and the words for them.

Legend, used in every docstring of the package:

====== ================== ============================================================
symbol name               meaning
====== ================== ============================================================
N      num_tasks          tasks in the pool
C      capacity           rows of the state, C >= N; the others wait for `add_tasks`
B      batch_size         tasks selected a step
M                         rows of evidence handed over in one call, padding included
m      rollouts           rollouts that a selected task is meant to get (one visit)
K                         reference models, ordered weak to strong
D      num_domains        domains, each with its own capability
lambda forgetting         share of the posterior pulled back to the prior at a step
rho    implicit_weight    weight of implicit evidence
mu     capability         where the policy stands between weak (0) and strong (1)
gamma  capability_momentum  smoothing of mu
p*     target             success probability worth training on
p^     draw               a draw from (or the mean of) a task's posterior
p~     implicit           success probability inferred without rollouts
====== ================== ============================================================

Every record is a `NamedTuple`, hence a pytree: it passes through jit, scan, vmap,
donation, sharding and checkpointing without special code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
PyTree = Any
# A float, a scalar array or a traced scalar; None where a default is to hold.
Number = Any


class Settings(NamedTuple):
    """The numbers of a selector: free to be traced, scheduled or vmapped.

    A field left at None keeps the value that the factory was given. In a state every
    field is a scalar array of the state's dtype.
    """

    target: Number = None  # p*, in (0, 1)
    rollouts: Number = None  # m > 0, rollouts a visit
    forgetting: Number = None  # lambda, in [0, 1] a step
    implicit_weight: Number = None  # rho, in [0, 1]
    capability_momentum: Number = None  # gamma, in [0, 1)
    temperature: Number = None  # tau >= 0; 0 takes the best, without noise
    prior_successes: Number = None  # alpha0 > 0, pseudo-counts
    prior_failures: Number = None  # beta0 > 0, pseudo-counts


class Evidence(NamedTuple):
    """Explicit evidence: what the rollouts of some tasks came to.

    Rows may come in any order, in several pieces, padded (`task_ids` -1) and repeated.
    """

    task_ids: ArrayLike  # i32[M]; -1 is padding
    successes: ArrayLike  # f[M], 0 <= successes <= trials; fractions for graded rewards
    trials: ArrayLike  # f[M]; 0 closes the task's visit with nothing learned
    visit: ArrayLike | None = None  # i32[M], from Selection.visit; None or -1: unnumbered


class Selection(NamedTuple):
    """The tasks to roll out next: distinct, eligible, and not in flight already."""

    task_ids: Array  # i32[B]; -1 where valid is False
    draws: Array  # f[B], the p^ that each was chosen by; 0 where valid is False
    valid: Array  # bool[B], False where fewer than B tasks were eligible
    visit: Array  # i32[B], the number to send back with the evidence; -1 where invalid


class Belief(NamedTuple):
    """What a selector holds of the success probability of each task."""

    mean: Array  # f[...], in (0, 1)
    concentration: Array  # f[...], alpha + beta of the Beta posterior, pseudo-counts


class Info(NamedTuple):
    """What happened in one `advance`. Counts are of this step alone."""

    evaluated: Array  # i32, tasks with explicit evidence
    trials: Array  # f, trials fused
    success_rate: Array  # f, successes / trials, 0 where there were none
    effective_task_ratio: Array  # f, share of the evaluated with 0 < successes < trials
    stale: Array  # i32, rows dropped because their visit was closed
    unsolicited: Array  # i32, rows counted for tasks that had no open visit
    invalid: Array  # i32, poison rows ignored
    expired: Array  # i32, visits closed by age
    in_flight: Array  # i32, visits still open
    capability: Array  # f[] or f[D]: mu; 0 as long as it is unknown
    implicit_weight: Array  # f: rho in force (`adaptive_implicit_weight` lowers it)
    implicit_error: Array  # f: mean |p~ - s/n| over the evaluated; 0 where unknown
    displaced: Array  # i32, tasks whose own evidence was lost: the grouped table was full


class State(NamedTuple):
    """All that a selector needs for its next step, and nothing else."""

    settings: Settings
    pool: Any  # pool.PoolState: visits, eligibility, pending evidence, growth
    reference: Any  # reference.Reference: pass rates of reference models
    belief: Any  # the pytree of a compose.BeliefModel, or grouped.GroupedBelief

    @property
    def representation(self) -> str:
        """ "grouped" where tasks alike share a posterior, else "dense"."""
        return "grouped" if hasattr(self.pool, "groups") else "dense"


class InitFn(Protocol):
    def __call__(
        self,
        reference: ArrayLike | None = None,
        settings: Settings | Mapping[str, ArrayLike] | None = None,
        num_tasks: int | None = None,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
        capacity: int | None = None,
    ) -> State:
        """Make the state of a new pool.

        Args:
          reference: f[K, N] pass rates in [0, 1] of K reference models, ordered weak to
            strong; NaN where unknown. Or `reference.ReferenceCounts`, integers, or
            `reference.ReferenceGroups`, groups with sizes, for very large pools. None if
            there are none: then give `num_tasks`.
          settings: numbers that override the factory's, for this state.
          num_tasks: N, where `reference` does not tell it.
          reference_trials: f[K] or f[K, N], attempts behind each pass rate; kept for
            estimators that weigh references by them.
          domains: i32[N] in [0, D), the domain of each task; None for a single one.
          capacity: C >= N, rows to keep for `add_tasks`; None for exactly N.

        Raises:
          ValueError: naming the argument, its value and the way out.
        """


class SelectFn(Protocol):
    def __call__(
        self, rng_key: Array, state: State, eligible: ArrayLike | None = None
    ) -> tuple[State, Selection]:
        """Choose up to B tasks and open a visit of each.

        Args:
          rng_key: a `jax.random.key`, consumed.
          state: as returned by any function of this selector.
          eligible: bool[C]; False keeps a task out of this batch.
        """


class ObserveFn(Protocol):
    def __call__(self, state: State, evidence: Evidence) -> State:
        """Add evidence to what is pending; `advance` fuses it. Calls commute."""


class AdvanceFn(Protocol):
    def __call__(self, state: State) -> tuple[State, Info]:
        """One time step: fuse what was observed, forget, infer the rest."""


class UpdateFn(Protocol):
    def __call__(self, state: State, evidence: Evidence) -> tuple[State, Info]:
        """`observe`, then `advance`."""


class AbandonFn(Protocol):
    def __call__(self, state: State, task_ids: ArrayLike) -> State:
        """Close the open visits of tasks from which no evidence will come."""


class PredictFn(Protocol):
    def __call__(self, state: State, task_ids: ArrayLike | None = None) -> Belief:
        """The belief about `task_ids` i32[...], or about all C rows."""


class Selector(NamedTuple):
    """A rule of task selection: a record of pure functions.

    The BOTS engine, every baseline and every later idea is one, so they can be
    exchanged, swept and tested alike. A batch is `select`, roll out, `update`.
    """

    init: InitFn
    select: SelectFn
    observe: ObserveFn
    advance: AdvanceFn
    update: UpdateFn
    abandon: AbandonFn
    predict: PredictFn
    static: Mapping[str, Any] = {}  # what was fixed in the factory
