"""READ FIRST. A selector, and the steps of the BOTS method in order.

In: reference pass rates, then rewards. Out: the tasks to train on next.

    selector = bots(batch_size=32, rollouts=16)
    state = selector.init(reference)
    for rng_key in ...:
        state, selection = selector.select(rng_key, state)
        successes = ...                     # roll out selection.task_ids, train
        state, info = selector.update(state, Evidence(selection.task_ids, successes, 16))

A selector is put together (`compose.py`) from three parts: the *pool* (visits, eligibility,
pending evidence, growth: `pool/visits.py`, shared by all), a *belief* (`BeliefModel`) and a
*choice* (`Choice`). A new strategy writes a belief or a choice, seldom both.

The method of `preset="paper"` (arXiv 2510.26374), and where each step stands:

    1 draw p^ ~ Beta(alpha, beta), take the B nearest p*   nearest_target, choice/thinning.py
    2 roll out, train, collect successes and trials        the user; pool.observe
    3 capability of the batch, smoothed                    Estimator.fit      (implicit/)
    4 p~ by interpolation between the references           Estimator.infer    (implicit/)
    6 halve rho where p~ was wrong on the batch            beta_belief.learn
    5 forget, add explicit and implicit evidence           posterior.fuse     (belief/posterior.py)

`preset="auto"`, the default, has the same steps with other insides (`auto_selector.py`): the regression of
step 3 takes any number of references, what a task differs from it is its own to remember
(`belief/logit_normal.py`), and likely mixed groups are chosen, spread over the pool (`choice/mixed.py`).

Steps 3 and 6 look at the evaluated tasks, step 5 at every task. Step 1 draws only the tasks
that may be chosen, and a large pool whose references are on a grid is kept by groups
(`grouped/representation.py`, `grouped/selector.py`): both change what a step costs, not what comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.auto_selector import auto_selector
from bots_jax.belief.beta import beta_belief, beta_rules
from bots_jax.checks import check_choice, check_settings, is_concrete
from bots_jax.choice import thinning
from bots_jax.choice.batch import make_plan
from bots_jax.compose import BeliefModel, Choice, compose, merge_settings
from bots_jax.grouped.beta import DEFAULT_TOLERANCE, group_betas
from bots_jax.grouped.representation import REPRESENTATIONS, Grouping, with_grouped
from bots_jax.grouped.selector import check_slots, check_tolerance
from bots_jax.implicit import Estimator, glm, make_estimator
from bots_jax.numerics.random_bits import gumbel
from bots_jax.types import Array, ArrayLike, Selector, Settings, State

# Values of `choice` by preset; the first is what a name without one means.
CHOICES = {"paper": ("thompson", "mean"), "auto": ("mixed", "thompson", "mean")}

AUTO_ONLY = frozenset(
    {"breadth", "floor", "per_token"}
)  # arguments that preset="paper" has no use for

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "batch_size": 32,
        "settings": Settings(
            target=0.5,
            rollouts=16,
            forgetting=0.1,
            implicit_weight=0.1,
            capability_momentum=0.9,
            temperature=0.0,
            prior_successes=1.0,
            prior_failures=1.0,
            breadth=0.0,
        ),
        "adaptive_implicit_weight": False,
        "estimator": "linear",
        "choice": "thompson",
        "exploration": 0.0,
        "representation": "auto",
    },
    "auto": {
        "batch_size": 32,
        "settings": Settings(
            target=0.5,
            rollouts=16,
            forgetting=0.004,
            implicit_weight=1.0,
            capability_momentum=0.9,
            temperature=0.0,
            prior_successes=1.0,
            prior_failures=1.0,
            breadth=0.3,
        ),
        "adaptive_implicit_weight": False,
        "estimator": "glm",
        "choice": "mixed",
        "floor": 100.0,
        "exploration": 0.0,
        "representation": "auto",
    },
}


def bots(
    *,
    preset: str = "auto",
    batch_size: int | None = None,
    rollouts: ArrayLike | None = None,
    target: ArrayLike | None = None,
    forgetting: ArrayLike | None = None,
    implicit_weight: ArrayLike | None = None,
    capability_momentum: ArrayLike | None = None,
    adaptive_implicit_weight: bool | None = None,
    temperature: ArrayLike | None = None,
    prior: tuple[ArrayLike, ArrayLike] | None = None,
    estimator: str | Estimator | None = None,
    choice: str | None = None,
    breadth: ArrayLike | None = None,
    floor: float | None = None,
    per_token: bool = False,
    exploration: float | None = None,
    quotas: Sequence[int] | None = None,
    num_domains: int | None = None,
    expiry: int | None = None,
    representation: str | None = None,
    tolerance: float | None = None,
    slots: int | None = None,
    dtype: Any = None,
) -> Selector:
    """Bayesian online task selection (arXiv 2510.26374).

    None leaves a setting to the preset. Numbers marked * go into `Settings` inside the
    state: they may be traced, and `init(settings=...)` overrides them for one state.

    Args:
      preset: "auto", better beliefs with nothing to tune, and a choice with one knob (`auto_selector.py`,
        docs/auto.md); "paper", the published method. Defaults in brackets below are the paper's;
        those of auto, where they differ, stand after "auto:".
      batch_size: B, tasks a step [32].
      rollouts: * m, rollouts that each selected task is meant to get [16].
      target: * p*, success probability worth training on [0.5].
      forgetting: * lambda, share of the posterior pulled to the prior a step [0.1]. auto: share
        of what sets a task apart from its references that is forgotten in a step of training;
        learned unless given here (`init` then sets where the search is centred) [0.004].
      implicit_weight: * rho, weight of implicit evidence [0.1]. auto: the factor on the
        pseudo-counts that the estimator claims; learned unless given, likewise [1].
      capability_momentum: * gamma, smoothing of the capability [0.9].
      adaptive_implicit_weight: halve rho after each step in which implicit evidence was
        wrong by 0.25 or more on average over the evaluated tasks [False].
      temperature: * tau; above 0, tasks are drawn without replacement from
        softmax(-|p^ - p*| / tau), as Gumbel top-B, instead of taking the nearest [0].
        Whether it is 0 is fixed here, unless the value is traced.
      prior: * (alpha0, beta0), pseudo-counts [(1, 1)].
      estimator: of implicit evidence: a name of `implicit.ESTIMATORS`, or an
        `implicit.Estimator` ["linear"; auto: "glm"].
      choice: "thompson" compares a draw from each posterior with the target, "mean" its
        mean ["thompson"]. auto only: "mixed", the likeliest mixed groups spread over the
        pool ["mixed"].
      breadth: * auto only: c >= 0, what a task's recent visits cost it: larger spreads over
        more tasks, at fewer mixed groups [0.3].
      floor: auto only: passes over the pool within which every eligible task is chosen,
        whatever is expected of it, the first time within 16; static [100].
      per_token: auto only: divide what a task is worth by the tokens that it is expected to
        generate, learned from `Evidence.tokens`; static [False].
      exploration: share of the batch drawn uniformly [0].
      quotas: tasks of each domain in a batch, summing to B [None: no quotas].
      num_domains: D, where `init` cannot count the domains because they are traced.
      expiry: close visits older than this many steps [None: never].
      representation: "dense", a belief each task; "grouped", one for all tasks alike and
        one for each evaluated lately, so that a step does not cost more in a larger pool;
        "auto", what is cheaper ["auto"]. `State.representation` tells which it became.
      tolerance: grouped only: what a task may lose when it returns to its group: pseudo-counts
        of its own [1e-5]; auto: logits of its offset, and visits [1e-3].
      slots: grouped only: tasks that may differ from their group at a time, a multiple of 64
        [twice as many as will by lambda; auto: by the lambda that the search is centred on].
        The table grows between steps, not in traced code.
      dtype: float32 or float64; None follows the reference, float32 without one.

    Raises:
      ValueError: naming the argument and its value.
    """
    known = PRESETS[check_choice("preset", preset, tuple(PRESETS))]
    given = Settings(
        target=target,
        rollouts=rollouts,
        forgetting=forgetting,
        implicit_weight=implicit_weight,
        capability_momentum=capability_momentum,
        temperature=temperature,
        prior_successes=None if prior is None else prior[0],
        prior_failures=None if prior is None else prior[1],
        breadth=breadth,
    )
    check_settings(given)
    settings = merge_settings(known["settings"], given)
    chosen = check_choice("choice", _first(choice, known["choice"]), CHOICES[preset])
    noisy = not (is_concrete(settings.temperature) and float(np.asarray(settings.temperature)) == 0)
    model_of = _first(estimator, known["estimator"])
    adaptive = bool(_first(adaptive_implicit_weight, known["adaptive_implicit_weight"]))
    plan = make_plan(
        _first(batch_size, known["batch_size"]), _first(exploration, known["exploration"]), quotas
    )
    form = check_choice(
        "representation", _first(representation, known["representation"]), REPRESENTATIONS
    )
    tolerance = None if tolerance is None else check_tolerance(tolerance)
    slots = check_slots(slots)
    if preset == "auto":
        _refuse_of_paper(adaptive)
        return auto_selector(
            settings=settings,
            plan=plan,
            estimator=glm(least_counts=0.0) if model_of == "glm" else make_estimator(model_of),
            choice=chosen,
            noisy=noisy,
            floor=_first(floor, known["floor"]),
            learn_trust=implicit_weight is None,
            learn_speed=forgetting is None,
            per_token=bool(per_token),
            num_domains=num_domains,
            expiry=expiry,
            representation=form,
            tolerance=tolerance,
            slots=slots,
            dtype=dtype,
        )
    _refuse_of_auto(breadth, floor, per_token)
    rules = beta_rules(make_estimator(model_of), adaptive)
    dense = compose(
        name="bots",
        model=beta_belief(rules),
        choice=nearest_target(chosen, noisy, of_betas=True),
        settings=settings,
        plan=plan,
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
        static={
            "estimator": model_of if isinstance(model_of, str) else model_of.name,
            "adaptive_implicit_weight": adaptive,
            "choice": chosen,
            "noisy": noisy,
        },
    )
    grouping = Grouping(
        representation=form,
        model=group_betas(rules),
        settings=settings,
        plan=plan,
        can_group=chosen == "thompson" and not noisy,
        serves="choice='thompson' without temperature",
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
        tolerance=_first(tolerance, DEFAULT_TOLERANCE),
        slots=slots,
    )
    return with_grouped(dense, grouping)


def _refuse_of_auto(breadth: Any, floor: float | None, per_token: bool) -> None:
    """What `preset="paper"` has no use for."""
    for name, value in (("breadth", breadth), ("floor", floor), ("per_token", per_token or None)):
        if value is not None:
            raise ValueError(
                f"{name}={value} belongs to choice='mixed' of preset='auto'; with preset='paper' "
                "tasks are chosen by |p^ - p*| alone"
            )


def _refuse_of_paper(adaptive: bool) -> None:
    """What `preset="auto"` has no use for."""
    if adaptive:
        raise ValueError(
            "adaptive_implicit_weight=True belongs to preset='paper': preset='auto' learns how "
            "far to trust implicit evidence"
        )


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


# --- the choice of BOTS: nearest the target ------------------------------------------------


def _drawn(rng_key: Array, model: BeliefModel, state: State) -> Array:
    return model.draw(rng_key, state.belief, state.settings, state.reference)


def _mean(rng_key: Array, model: BeliefModel, state: State) -> Array:
    return model.predict(state.belief, state.settings, state.reference, slice(None)).mean


_BASES: dict[str, Callable[[Array, BeliefModel, State], Array]] = {
    "thompson": _drawn,
    "mean": _mean,
}


def nearest_target(base: str = "thompson", noisy: bool = False, of_betas: bool = False) -> Choice:
    """Step 1: |p^ - p*|, with Gumbel noise where the temperature is not 0.

    Where the belief is a `BotsBelief`, `of_betas`, not every task needs a draw.

    Taking the B largest of -|p^ - p*| / tau + Gumbel is drawing B without replacement
    from the softmax (Kool et al. 2019, Stochastic beams); multiplied by -tau it has a
    meaning at tau = 0 too.
    """

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        draw_key, noise_key = jax.random.split(rng_key)
        draws = _BASES[base](draw_key, model, state)
        distance = jnp.abs(draws - state.settings.target)
        if noisy:
            noise = gumbel(noise_key, distance.shape, distance.dtype)
            distance = distance - state.settings.temperature * noise
        return distance, draws

    races = of_betas and base == "thompson" and not noisy
    return Choice(score, _nearest_draws if races else None)


# From this many tasks to a place in the batch on, a race finds the nearest draws sooner than
# drawing all; below, it would seldom get far enough.
_TASKS_TO_RACE = 32


def _nearest_draws(
    rng_key: Array, model: BeliefModel, state: State, allowed: Array, count: int
) -> tuple[Array, Array, Array]:
    """Step 1 for Beta posteriors, without drawing every task's."""
    alpha, beta = state.belief.posterior
    find = thinning.nearest if alpha.shape[0] >= _TASKS_TO_RACE * count else thinning.nearest_of_all
    return find(rng_key, alpha, beta, allowed, state.settings.target, count)
