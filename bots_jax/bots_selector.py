"""READ FIRST. BOTS as published, and the steps of the method in order.

In: pass rates of reference models, then rewards. Out: the tasks to train on next.

    selector = bots(batch_size=32, rollouts=16)
    state = selector.init(reference)
    for rng_key in ...:
        state, batch = selector.select(rng_key, state)
        rewards = ...                       # roll out batch.task_ids, train
        state, info = selector.update(state, batch.evidence(rewards))

A selector is put together (`compose.py`) from three parts: the *pool* (visits, eligibility,
pending evidence: `pool/`, shared by all), a *belief* (`belief/`) and a *choice* (`choice/`).
A new strategy writes a belief or a choice, seldom both.

The steps (arXiv 2510.26374), and where each is:

    1 draw p^ ~ Beta(alpha, beta), take the B nearest p*   choice/nearest.py, thinning.py
    2 roll out, train, collect successes and trials        the user; pool/visits.py
    3 capability of the batch, smoothed                    implicit/   Estimator.fit
    4 p~ by interpolation between the references           implicit/   Estimator.infer
    5 forget, add explicit and implicit evidence           belief/posterior.py
    6 halve rho where p~ was wrong on the batch            belief/beta.py

Steps 3 and 6 look at the evaluated tasks, step 5 at every task. Step 1 draws only the tasks
that may be chosen, and a large pool whose references are on a grid is kept by groups
(`grouped/`): both change what a step costs, not what comes out of it.

`auto` (`auto_selector.py`) has the same steps with other insides.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any, Unpack

from bots_jax.belief.beta import beta_belief, beta_rules
from bots_jax.checks import check_choice, is_concrete
from bots_jax.choice.nearest import nearest_target
from bots_jax.compose import Shared, compose, factory, plan_of
from bots_jax.grouped.beta import DEFAULT_TOLERANCE, group_betas
from bots_jax.grouped.representation import REPRESENTATIONS, Grouping, with_grouped
from bots_jax.grouped.selector import check_slots, check_tolerance
from bots_jax.implicit import Estimator, make_estimator
from bots_jax.settings import (
    BOTS_DEFAULTS,
    check_settings,
    first_given,
    having,
    is_noisy,
    merge_settings,
)
from bots_jax.types import ArrayLike, Selector, Settings, State

CHOICES = ("thompson", "mean")


@factory
def bots(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike | None = None,
    target: ArrayLike | None = None,
    forgetting: ArrayLike | None = None,
    implicit_weight: ArrayLike | None = None,
    capability_momentum: ArrayLike | None = None,
    adaptive_implicit_weight: bool = False,
    temperature: ArrayLike | None = None,
    prior: tuple[ArrayLike, ArrayLike] | None = None,
    estimator: str | Estimator = "linear",
    choice: str = "thompson",
    representation: str = "auto",
    tolerance: float | None = None,
    slots: int | None = None,
    features_dtype: str | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """Bayesian online task selection as published (arXiv 2510.26374).

    Numbers marked * go into `Settings` inside the state: they may be traced, and
    `init(settings=...)` overrides them for one state. None is the paper's value, in brackets.

    Args:
      batch_size: B, tasks a step.
      rollouts: * m, rollouts that each selected task is meant to get [16].
      target: * p*, success probability worth training on [0.5].
      forgetting: * lambda, share of the posterior pulled to the prior a step [0.1]. `init` warns
        where 1 / lambda is far below N / B, the steps of one pass over the pool.
      implicit_weight: * rho, weight of implicit evidence [0.1].
      capability_momentum: * gamma, smoothing of the capability [0.9]; for the estimators
        "linear" and "linear_ls" only.
      adaptive_implicit_weight: halve rho when implicit evidence errs by 0.25 or more; static.
      temperature: * tau, noise in the choice; 0 takes the nearest [0].
      prior: * (alpha0, beta0), pseudo-counts of a new task [(1, 1)].
      estimator: of implicit evidence: a name from `implicit.ESTIMATORS` or a record; static.
      choice: "thompson" draws p^ from the posterior, "mean" takes its mean; static.
      representation: "dense", a posterior each task; "grouped", one for all tasks alike and
        one for each evaluated lately; "auto", what is cheaper. `State.representation` tells.
      tolerance: grouped only: pseudo-counts of its own that a task may lose when it returns to
        its group [1e-5].
      slots: grouped only: tasks that may differ from their group at a time, a multiple of 64
        [twice as many as will by lambda]. The table grows between steps, not in traced code.
      features_dtype: what features are stored in, as in `auto`; for estimator="glm"; static.
      shared: exploration, quotas, num_domains, expiry, keep_open, dtype; see `compose.Shared`.

    Raises:
      ValueError: naming the argument and its value.

    >>> import jax, bots_jax
    >>> selector = bots_jax.bots(batch_size=2, rollouts=4)
    >>> state = selector.init([[0.0, 0.1, 0.2, 0.5], [0.3, 0.6, 0.9, 1.0]])
    >>> state, batch = selector.select(jax.random.key(0), state)
    >>> state, info = selector.update(state, batch.evidence([[1, 0, 0, 1], [0, 0, 0, 0]]))
    >>> float(info.effective_task_ratio)
    0.5
    """
    given = Settings(
        target=target,
        rollouts=rollouts,
        forgetting=forgetting,
        implicit_weight=implicit_weight,
        capability_momentum=capability_momentum,
        temperature=temperature,
        prior_successes=None if prior is None else prior[0],
        prior_failures=None if prior is None else prior[1],
    )
    check_settings(given)
    settings = merge_settings(BOTS_DEFAULTS, given)
    model_of = make_estimator(estimator)
    _refuse_unused(model_of, capability_momentum, implicit_weight, adaptive_implicit_weight)
    noisy = is_noisy(settings)
    adaptive = bool(adaptive_implicit_weight)
    rules = beta_rules(model_of, adaptive)
    described = {"choice": check_choice("choice", choice, CHOICES), "noisy": noisy}
    dense = compose(
        name="bots",
        model=beta_belief(rules),
        choice=nearest_target(choice, noisy, of_betas=True),
        settings=settings,
        batch_size=batch_size,
        static={"estimator": model_of.name, "adaptive_implicit_weight": adaptive, **described},
        obeys=_obeyed(model_of, noisy),
        features_dtype=features_dtype,
        **shared,
    )
    grouping = Grouping(
        representation=check_choice("representation", representation, REPRESENTATIONS),
        model=group_betas(rules),
        settings=settings,
        plan=plan_of(batch_size, shared),
        can_group=choice == "thompson" and not noisy,
        serves="choice='thompson' without temperature",
        tolerance=check_tolerance(first_given(tolerance, DEFAULT_TOLERANCE)),
        slots=check_slots(slots),
        shared=shared,
    )
    return _with_warning(with_grouped(dense, grouping))


# Passes over the pool in units of 1 / lambda from which a warning is due: of what a visit told
# exp(-4), a fiftieth, is left when the task's turn comes again.
_FAR_ABOVE = 4.0


def _with_warning(selector: Selector) -> Selector:
    """`selector`, whose `init` warns where tasks are forgotten before they come again."""

    @functools.wraps(selector.init)
    def init(*args: Any, **given: Any) -> State:
        state = selector.init(*args, **given)
        tasks = state.num_tasks
        if is_concrete(tasks, state.settings.forgetting):
            forgetting = float(state.settings.forgetting)
            count, size = int(tasks), int(selector.static["batch_size"])
            if count / size * forgetting >= _FAR_ABOVE:
                warnings.warn(_forgets(count, size, forgetting), RuntimeWarning, stacklevel=2)
        return state

    return dataclasses.replace(selector, init=init)


def _forgets(tasks: int, batch_size: int, forgetting: float) -> str:
    steps = tasks / batch_size
    return (
        f"one pass over the pool takes N / B = {tasks} / {batch_size} = {steps:.0f} steps, and "
        f"forgetting={forgetting:.3g} forgets a task's rollouts in 1 / lambda = "
        f"{1 / forgetting:.0f}: {steps * forgetting:.0f} times sooner, so that no task is known "
        "when its turn comes again, but by its references. That is BOTS as published; "
        f"set forgetting={batch_size / tasks:.1g} or less, or use bots_jax.auto, which learns it"
    )


def _obeyed(estimator: Estimator, noisy: bool) -> list[str]:
    """Fields of `Settings` that have an effect, besides those that always have."""
    return having(
        target=True,
        temperature=noisy,
        implicit_weight=estimator.name != "none",
        capability_momentum=estimator.uses_momentum,
    )


def _refuse_unused(
    estimator: Estimator, momentum: ArrayLike | None, weight: ArrayLike | None, adaptive: bool
) -> None:
    """Arguments that this estimator has no use for."""
    if momentum is not None and not estimator.uses_momentum:
        raise ValueError(
            f"capability_momentum={momentum} smooths the capability of estimator='linear'; "
            f"estimator={estimator.name!r} has none: leave it out"
        )
    if estimator.name == "none" and (weight is not None or adaptive):
        raise ValueError(
            f"estimator='none' infers nothing, so implicit_weight={weight} and "
            f"adaptive_implicit_weight={adaptive} have no effect: leave them out"
        )
