"""`auto`, our method, and its steps in order: more accurate beliefs, one number to choose.

In: what is known of the tasks (references, features, domains, or nothing), then rewards. Out:
the tasks to train on next.

    selector = auto(batch_size=32, rollouts=8)
    state = selector.init(num_tasks=10_000)
    for rng_key in ...:
        state, batch = selector.select(rng_key, state)
        rewards = ...                       # roll out batch.task_ids, train
        state, info = selector.update(state, batch.evidence(rewards))

    1 choose likely mixed groups, spread over the pool         choice/mixed.py
    2 roll out, train, collect successes and trials            the user; pool/visits.py
    3 a logistic regression on references and features         implicit/glm.py
    4 each task's own offset from the regression               belief/logit_normal.py
    5 how far to trust the regression, how fast to forget,
      learned from how well they predict                       belief/logit_normal.py

In large pools steps 1 and 4 are done by groups of tasks alike (`grouped/`). docs/auto.md has
the equations and what was measured.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

from bots_jax.belief.lengths import add_tokens
from bots_jax.belief.logit_normal import AutoConfig, logit_normal_belief
from bots_jax.checks import check_choice, check_number
from bots_jax.choice.mixed import mixed_groups
from bots_jax.choice.nearest import nearest_target
from bots_jax.choice.worth import Worth, WorthFn, find_worth
from bots_jax.compose import Choice, Shared, admit_rows, compose, factory, plan_of
from bots_jax.grouped.logit_normal import AUTO_TOLERANCE, group_auto
from bots_jax.grouped.representation import REPRESENTATIONS, Grouping, with_grouped
from bots_jax.grouped.selector import check_slots, check_tolerance
from bots_jax.implicit import Estimator, make_estimator
from bots_jax.pool.evidence import in_few_sizes, take_evidence
from bots_jax.pool.visits import admit
from bots_jax.settings import (
    AUTO_DEFAULTS,
    check_settings,
    first_given,
    having,
    is_noisy,
    merge_settings,
)
from bots_jax.sharding import beside
from bots_jax.types import ArrayLike, Evidence, Info, Selector, Settings, State

CHOICES = ("mixed", "thompson", "mean")
_FLOOR = 100.0  # passes


@factory
def auto(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike | None = None,
    breadth: ArrayLike | None = None,
    group: ArrayLike | None = None,
    forgetting: ArrayLike | None = None,
    implicit_weight: ArrayLike | None = None,
    temperature: ArrayLike | None = None,
    estimator: str | Estimator = "glm",
    choice: str = "mixed",
    worth: str | WorthFn = "mixed",
    target: ArrayLike | None = None,
    floor: float | None = None,
    spread: float | None = None,
    per_token: bool = False,
    representation: str = "auto",
    tolerance: float | None = None,
    slots: int | None = None,
    features_dtype: str | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """Self-tuning task selection: regression on references and features, own histories.

    Numbers marked * go into `Settings` inside the state: they may be traced, and
    `init(settings=...)` overrides them for one state. None is the value in brackets.

    Args:
      batch_size: B, tasks a step.
      rollouts: * m, rollouts that each selected task is meant to get; its visit ends with them
        [16].
      breadth: * c >= 0, what a task's recent visits cost it: more spreads the choice over more
        tasks; for choice="mixed" [0.1].
      group: * G, at least 2: a task is worth the probability that G rollouts are not all alike, for
        choice="mixed" [m; 2 where m is 1, such as a slot that plays a level once].
      forgetting: * lambda, share of what sets a task apart from the regression that is forgotten
        in a step of training [learned, around 0.004]. Given here it is fixed; given to `init`
        alone it is still learned, around that value.
      implicit_weight: * rho, how far the regression is trusted [learned, around 1]; likewise.
      temperature: * tau, Gumbel noise in the choice; 0 takes the best [0]. To be changed later it
        must be above 0 here.
      estimator: a name from `implicit.ESTIMATORS` or a record; static.
      choice: "mixed", tasks whose group of rollouts is likely mixed; "thompson" and "mean", those
        whose draw or mean is nearest `target`, as BOTS does; static.
      worth: what a task is worth to your gradient, for choice="mixed": "mixed", the probability
        of a mixed group (advantages over the group's standard deviation, as in GRPO); "variance",
        4 p (1 - p) (advantages as they are, as in RLOO); "pass_gain", 1 - (1 - p)^G - p over its
        maximum (advantages over the group's mean, as in MaxRL); or a function of arrays p f[...]
        and G f[] that returns f[...] in [0, 1]. See `choice/worth.py`; static ["mixed"].
      target: * p*, for choice="thompson" and "mean" [0.5].
      floor: passes over the pool within which every task is visited again, for choice="mixed";
        static [100].
      spread: s >= 0, standard deviations of what is not known of a task within which its rate is
        drawn at each step, for choice="mixed"; 0: none is drawn, of what is not known the best is
        hoped; static [1 where there are references, features or domains, in dense pools, else 0].
      per_token: divide what a task is worth by the tokens that it is expected to generate,
        learned from `Evidence.tokens`, for choice="mixed"; static.
      representation: "dense", "grouped" or "auto", as in `bots`.
      tolerance: grouped only: logits of its offset, and visits, that a task may lose when it
        returns to its group [1e-3].
      slots: grouped only: tasks that may differ from their group at a time, a multiple of 64.
      features_dtype: what features are stored in: "float32", "float16", or "int8" in
        steps of the largest of its column / 127; static [the state's dtype, float16 from 200,000
        tasks on].
      shared: exploration, quotas, num_domains, expiry, keep_open, dtype; see `compose.Shared`.

    Raises:
      ValueError: naming the argument and its value.

    >>> import jax, bots_jax
    >>> selector = bots_jax.auto(batch_size=2, rollouts=4)
    >>> state = selector.init(num_tasks=100)
    >>> state, batch = selector.select(jax.random.key(0), state)
    >>> state, info = selector.update(state, batch.evidence([[1, 0, 0, 1], [0, 0, 0, 0]]))
    >>> int(info.evaluated)
    2
    """
    given = Settings(
        target=target, rollouts=rollouts, forgetting=forgetting, implicit_weight=implicit_weight,
        temperature=temperature, breadth=breadth, group=group,
    )  # fmt: skip
    check_settings(given)
    value = find_worth(worth)
    _refuse_unused(choice, given, value, floor=floor, per_token=per_token, spread=spread)
    settings = merge_settings(AUTO_DEFAULTS, given)
    noisy = is_noisy(settings)
    floor = check_number("floor", first_given(floor, _FLOOR), 1, 1e9)
    spread = None if spread is None else check_number("spread", spread, 0, 100)
    plan = plan_of(batch_size, shared)
    config = _config(estimator, given, plan.batch_size, per_token)
    dense = compose(
        name="auto",
        model=logit_normal_belief(config),
        choice=_choice(config, choice, noisy, floor, value, spread),
        settings=settings,
        batch_size=batch_size,
        static=_described(config, choice, noisy, floor, value, spread),
        obeys=_obeyed(config.estimator, choice, noisy),
        features_dtype=features_dtype,
        **shared,
    )
    grouping = Grouping(
        representation=check_choice("representation", representation, REPRESENTATIONS),
        model=group_auto(config, floor, value),
        settings=settings,
        plan=plan,
        can_group=choice == "mixed" and not noisy and not per_token and not spread,
        serves="choice='mixed' without temperature, spread, per_token",
        tolerance=check_tolerance(first_given(tolerance, AUTO_TOLERANCE)),
        slots=check_slots(slots),
        shared=shared,
    )
    return with_grouped(_with_tokens(dense) if per_token else dense, grouping)


def _obeyed(estimator: Estimator, choice: str, noisy: bool) -> list[str]:
    """Fields of `Settings` that have an effect, besides those that always have."""
    mixed = choice == "mixed"
    return having(
        implicit_weight=True,
        target=not mixed,
        breadth=mixed,
        group=mixed,
        temperature=noisy,
        capability_momentum=estimator.uses_momentum,
    )


def _config(
    estimator: str | Estimator, given: Settings, batch_size: int, per_token: bool
) -> AutoConfig:
    return AutoConfig(
        make_estimator(estimator),
        learn_trust=given.implicit_weight is None,
        learn_speed=given.forgetting is None,
        batch_size=batch_size,
        per_token=bool(per_token),
    )


def _described(
    config: AutoConfig,
    choice: str,
    noisy: bool,
    floor: float,
    worth: Worth,
    spread: float | None,
) -> dict[str, Any]:
    """The static settings."""
    return {
        "estimator": config.estimator.name,
        "choice": choice,
        "worth": worth.name,
        "noisy": noisy,
        "floor": floor,
        "spread": spread,
        "learn_trust": config.learn_trust,
        "learn_speed": config.learn_speed,
        "per_token": config.per_token,
    }


def _refuse_unused(choice: str, given: Settings, worth: Worth, **of_mixed: Any) -> None:
    """A choice that is not known, and arguments that this one has no use for."""
    check_choice("choice", choice, CHOICES)
    own = None if worth.name == "mixed" else worth.name
    of_mixed |= {"worth": own, "breadth": given.breadth, "group": given.group}
    if choice == "mixed" and given.target is not None:
        raise ValueError(
            f"target={given.target} has no effect with choice='mixed', which takes likely mixed "
            "groups: leave it out, or use choice='thompson'"
        )
    for name, value in of_mixed.items():
        if choice != "mixed" and value is not None and value is not False:
            raise ValueError(
                f"{name}={value} has no effect with choice={choice!r}: leave it out, or use "
                "choice='mixed'"
            )


def _with_tokens(selector: Selector) -> Selector:
    """`selector`, whose `observe` takes note of tokens too."""

    def observe(state: State, evidence: Evidence) -> State:
        if getattr(evidence, "tokens", None) is None:
            return selector.observe(state, evidence)
        evidence = in_few_sizes(take_evidence(evidence))
        rows = admit_rows(state, evidence)
        counts = admit(state.pool, rows).counts
        tokens = beside(evidence.tokens, state.pool.trials)
        lengths = add_tokens(state.belief.lengths, rows, tokens, counts)
        state = selector.observe(state, evidence)
        return state._replace(belief=state.belief._replace(lengths=lengths))

    def update(state: State, evidence: Evidence) -> tuple[State, Info]:
        return selector.advance(observe(state, evidence))

    return dataclasses.replace(selector, observe=observe, update=update)


def _choice(
    config: AutoConfig,
    choice: str,
    noisy: bool,
    floor: float,
    worth: Worth,
    spread: float | None,
) -> Choice:
    if choice == "mixed":
        return mixed_groups(config, floor, noisy, worth, spread)
    return nearest_target(choice, noisy)
