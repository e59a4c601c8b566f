"""Implicit evidence: success probabilities inferred without rollouts.

In: the references of all tasks, and the rates at which the evaluated ones were solved.
Out: p~ f[C], where it is known, and what it is worth. `bots(estimator=...)` takes a name from
`ESTIMATORS` or a record of one's own; `implicit/contract.py` says what that is.

| name | from | settings it obeys |
| --- | --- | --- |
| linear | the weakest and the strongest reference, as published | gamma |
| linear_ls | the same line, by least squares | gamma |
| logit | the same line in logits, filtered | |
| glm | all references, domains, or neither | |
| none | nothing | |
"""

from __future__ import annotations

from collections.abc import Callable

from bots_jax.checks import check_choice
from bots_jax.implicit.contract import Estimator, Inferred, TaskCounts
from bots_jax.implicit.glm import glm
from bots_jax.implicit.linear import Capability, linear, linear_ls, none
from bots_jax.implicit.logit import logit

__all__ = [
    "ESTIMATORS",
    "Capability",
    "Estimator",
    "Inferred",
    "TaskCounts",
    "glm",
    "linear",
    "linear_ls",
    "logit",
    "make_estimator",
    "none",
]

ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "linear": linear,
    "linear_ls": linear_ls,
    "logit": logit,
    "glm": glm,
    "none": none,
}


def make_estimator(estimator: str | Estimator) -> Estimator:
    """The estimator of that name, or the given record itself."""
    if isinstance(estimator, Estimator):
        return estimator
    return ESTIMATORS[check_choice("estimator", estimator, tuple(ESTIMATORS))]()
