"""VADE: Thompson sampling on p (1 - p)^2, with decay on two scales (arXiv 2511.18902).

Belief: a Beta posterior of each task that decays to its prior on two scales, slowly at
every step, as the policy moves, and faster where the task is visited, as newer evidence
takes the place of older:

    visited:      alpha <- alpha0 + keep keep_step (alpha - alpha0) + s
    not visited:  alpha <- alpha0 + keep_step (alpha - alpha0)

Choice: draw p^ ~ Beta(alpha, beta) for every task and take the B largest p^ (1 - p^)^2,
which favours hard tasks: its maximum, 4/27, is at p^ = 1/3.

Departures: the paper's text was not at hand. That both decays are geometric, where each
applies, and their rates are our reading of its summary.
"""

from __future__ import annotations

from typing import Unpack

from bots_jax.checks import check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.strategies.counting import counting_settings
from bots_jax.strategies.discounted import discounted_beta
from bots_jax.types import Array, ArrayLike, Number, Selector, State


@factory
def vade(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    keep: Number = 0.9,
    keep_step: float = 0.99,
    **shared: Unpack[Shared],
) -> Selector:
    """The tasks with the largest p (1 - p)^2 of a draw from their posteriors.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      keep: share of a task's posterior that survives its next visit; `Settings.forgetting`
        is 1 - keep.
      keep_step: share that survives each step, in [0, 1]. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    keep_step = check_number("keep_step", keep_step, 0, 1)
    return compose(
        name="vade",
        model=discounted_beta(keep_step),
        choice=Choice(_score),
        settings=counting_settings(rollouts, keep=keep),
        batch_size=batch_size,
        obeys=(),
        static={"keep_step": keep_step},
        **shared,
    )


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    draws = model.draw(rng_key, state)
    return -draws * (1 - draws) ** 2, draws
