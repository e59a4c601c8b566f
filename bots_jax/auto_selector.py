"""`preset="auto"`: nothing to tune but how widely to choose.

In: the settings of `bots(preset="auto", ...)`. Out: a `Selector` of the belief of
`belief/logit_normal.py` (a regression on the references, each task's own offset from it, trust and
forgetting learned from how well they predict) and the choice of `choice/mixed.py` (likely mixed
groups, spread over the pool); in large pools, of both by groups (`grouped/logit_normal.py`,
`grouped/mixed.py`). docs/auto.md says it in words, with what was measured.
"""

from __future__ import annotations

from typing import Any

from bots_jax.belief.lengths import add_tokens
from bots_jax.belief.logit_normal import AutoConfig, logit_normal_belief
from bots_jax.checks import check_number
from bots_jax.choice.batch import Plan
from bots_jax.choice.mixed import mixed_groups, nearest_draws
from bots_jax.compose import Choice, compose
from bots_jax.grouped.logit_normal import AUTO_TOLERANCE, group_auto
from bots_jax.grouped.representation import Grouping, with_grouped
from bots_jax.implicit.contract import Estimator
from bots_jax.types import Evidence, Info, Selector, Settings, State


def auto_selector(
    *,
    settings: Settings,
    plan: Plan,
    estimator: Estimator,
    choice: str,
    noisy: bool,
    floor: float | None,
    learn_trust: bool,
    learn_speed: bool,
    per_token: bool,
    num_domains: int | None,
    expiry: int | None,
    representation: str,
    tolerance: float | None,
    slots: int | None,
    dtype: Any,
) -> Selector:
    """The selector; arguments as `bots` has checked and merged them.

    Raises:
      ValueError: if `floor` is below 1.
    """
    floor = None if floor is None else check_number("floor", floor, 1, 1e9)
    rules = AutoConfig(estimator, learn_trust, learn_speed, plan.batch_size, per_token)
    selector = compose(
        name="bots-auto",
        model=logit_normal_belief(rules),
        choice=_choice(rules, choice, noisy, floor),
        settings=settings,
        plan=plan,
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
        static={
            "estimator": estimator.name,
            "choice": choice,
            "noisy": noisy,
            "floor": floor,
            "learn_trust": learn_trust,
            "learn_speed": learn_speed,
            "per_token": per_token,
        },
    )
    plain = choice == "mixed" and not noisy and not per_token
    grouping = Grouping(
        representation=representation,
        model=group_auto(rules, floor),
        settings=settings,
        plan=plan,
        can_group=plain,
        serves="choice='mixed' without temperature, per_token",
        num_domains=num_domains,
        expiry=expiry,
        dtype=dtype,
        tolerance=AUTO_TOLERANCE if tolerance is None else tolerance,
        slots=slots,
    )
    return with_grouped(_with_tokens(selector) if per_token else selector, grouping)


def _with_tokens(selector: Selector) -> Selector:
    """`selector`, whose `observe` takes note of tokens too."""

    def observe(state: State, evidence: Evidence) -> State:
        state = selector.observe(state, evidence)
        lengths = add_tokens(state.belief.lengths, evidence)
        return state._replace(belief=state.belief._replace(lengths=lengths))

    def update(state: State, evidence: Evidence) -> tuple[State, Info]:
        return selector.advance(observe(state, evidence))

    return selector._replace(observe=observe, update=update)


def _choice(rules: AutoConfig, choice: str, noisy: bool, floor: float | None) -> Choice:
    if choice == "mixed":
        return mixed_groups(rules, floor, noisy)
    return nearest_draws(rules, choice, noisy)
