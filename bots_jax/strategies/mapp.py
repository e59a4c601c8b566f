"""MaPP: tasks in proportion to their chance of a mixed group (arXiv 2609.34990).

Belief: a Beta posterior of visited tasks, discounted at each visit (keep .5 is the
authors' best). Choice: with alpha, beta the posterior of a task and G the group size,

    V = 1 - B(alpha + G, beta) / B(alpha, beta) - B(alpha, beta + G) / B(alpha, beta)

is the chance that a group of G is neither all right nor all wrong, and tasks are drawn
with probability proportional to V.

A batch is drawn without replacement, as the B largest of log V + Gumbel noise. This is
the sequential-draws form (Plackett and Luce): draw one with probability V / sum V, take it
out, draw the next from what is left. The chance that a task is in the batch is therefore
close to B V / sum V for small V only; it saturates for large ones, as it must below 1.

Departure: V is of the evidence fused so far; how the published sampler treats several
draws of one task in a batch is not known to us.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp

from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.strategies.choices import drawn_by
from bots_jax.strategies.counting import counting_settings, group_size
from bots_jax.strategies.discounted import discounted_beta
from bots_jax.strategies.worth import chance_of_mixed_group
from bots_jax.types import Array, ArrayLike, Number, Selector, State


@factory
def mapp(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    keep: Number = 0.5,
    group: int | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """Draws without replacement, in proportion to the chance of a mixed group.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      keep: share of a task's posterior that survives its next visit; `Settings.forgetting`
        is 1 - keep.
      group: G, at least 2; None: m, which must then be whole and not traced. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    group = group_size("group", group, rollouts)
    return compose(
        name="mapp",
        model=discounted_beta(),
        choice=_in_proportion(group),
        settings=counting_settings(rollouts, keep=keep),
        batch_size=batch_size,
        obeys=(),
        static={"group": group},
        **shared,
    )


def _in_proportion(group: int) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        alpha, beta = state.belief
        log_chance = jnp.log(chance_of_mixed_group(alpha, beta, group))
        return drawn_by(rng_key, log_chance), alpha / (alpha + beta)

    return Choice(score)
