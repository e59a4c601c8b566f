"""What an estimator of implicit evidence is.

In: the references of all tasks, and how often the evaluated ones were solved. Out: p~ f[C],
where it is known, and how many pseudo-counts it is worth as a prior. An estimator is a record
of pure functions over a small pytree that holds nothing of a single task, so `infer` serves a
dense pool, a few rows, and groups of tasks alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.types import Array, Settings


class Inferred(NamedTuple):
    """Implicit evidence for every task."""

    mean: Array  # f[C], p~ in [0, 1]; finite everywhere
    known: Array  # bool[C], where p~ may be used
    # f[C] > 0, pseudo-counts that p~ may claim as a prior recomputed every step; None: the
    # estimator cannot tell
    concentration: Array | None = None
    # f[C], variance of logit p~ that is in the estimator's parameters, and all tasks share; None:
    # the estimator cannot tell
    variance: Array | None = None


class TaskCounts(NamedTuple):
    """A task's own counts, discounted, before the evidence of this step.

    A task is often chosen for what its own history says. Told of it, a fit asks how well
    p~ and that history together predicted the new counts, and is not misled by the choice.
    """

    successes: Array  # f[R]
    trials: Array  # f[R]
    # f[R] in [0, 1]: how much of an error of logit p~ the history has made up for, so that it no
    # longer shows. Fewer than its weight if p~ has moved since; None: by its weight
    explained_fraction: Array | None = None


class InitEstimator(Protocol):
    """Makes the parameters."""

    def __call__(self, reference: Reference, num_domains: int) -> Any:
        """Parameters before any evidence: a function of shapes and dtype alone."""


class FitEstimator(Protocol):
    """Learns from a step."""

    def __call__(
        self,
        params: Any,
        settings: Settings,
        reference: Reference,
        fused: StepEvidence,
        own: TaskCounts | None = None,
    ) -> Any:
        """Parameters after a step; rows with 0 trials are padding.

        Args:
          reference, fused: of the evaluated tasks.
          own: their own counts before the step; None where the belief keeps none.
        """


class InferFn(Protocol):
    """Says what the parameters tell of any tasks."""

    def __call__(self, params: Any, reference: Reference, domain: Array | None) -> Inferred:
        """p~ of each column of the reference."""


def _never(params: Any, reference: Reference) -> bool:
    return False


class Estimator(NamedTuple):
    """How implicit evidence is made.

    init(reference, num_domains) -> params
    fit(params, settings, reference, fused, own=None) -> params, from the evaluated tasks
    infer(params, reference, domain) -> Inferred
    capability(params) -> f[D], or f[1] for all domains alike; for `Info`
    infer_roughly: as `infer`, for telling from all tasks those that may be among the best, where
      is_slow(params, reference) says that `infer` costs much more; static
    """

    name: str
    models: int  # reference models needed at least
    init: InitEstimator
    fit: FitEstimator
    infer: InferFn
    capability: Any  # Callable[[params], Array]
    uses_momentum: bool = True  # whether it obeys `Settings.capability_momentum`
    infer_roughly: InferFn | None = None
    is_slow: Callable[[Any, Reference], bool] = _never
