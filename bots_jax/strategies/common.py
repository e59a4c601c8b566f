"""What several strategies share: checks of their own numbers, settings, candidate sets.

In: what a user passes to a factory, or scores of all tasks. Out: checked numbers, a full
`Settings`, or the scores with all but a random candidate set moved behind.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.checks import check_count, check_settings, is_concrete
from bots_jax.compose import BeliefInfo, merge_settings
from bots_jax.pool import Fused, selectable
from bots_jax.selector import PRESETS
from bots_jax.types import Array, ArrayLike, Number, Settings, State


def check_number(name: str, value: Number, least: float, most: float) -> Number:
    """A strategy's own number in [least, most]; traced numbers pass."""
    if is_concrete(value) and not (np.shape(value) == () and least <= float(value) <= most):
        raise ValueError(f"{name}={value!r} must be a number in [{least}, {most}]")
    return value


def own_settings(rollouts: ArrayLike, *, keep: Number = 1.0, target: Number = None) -> Settings:
    """The numbers of a strategy without implicit evidence, every field given.

    Args:
      rollouts: m.
      keep: share of a posterior that survives; held as `Settings.forgetting` = 1 - keep,
        so that it can be traced and swept like any other.
      target: p*; None for the default.
    """
    check_number("keep", keep, 0, 1)
    given = Settings(target=target, rollouts=rollouts, forgetting=1 - keep, implicit_weight=0.0)
    check_settings(given)
    return merge_settings(PRESETS["paper"]["settings"], given)


def group_size(name: str, group: int | None, rollouts: ArrayLike) -> int:
    """G, static: `group`, or else the rollouts of a visit, which must then be whole."""
    if group is not None:
        return check_count(name, group, least=2)
    if not is_concrete(rollouts) or float(np.asarray(rollouts)) % 1:
        raise ValueError(f"rollouts={rollouts} is traced or no whole number: give {name} as well")
    return check_count("rollouts", int(np.asarray(rollouts)), least=2)


def no_inference(fused: Fused) -> BeliefInfo:
    """What a belief without implicit evidence has to say about a step."""
    zero = jnp.zeros((), fused.trials.dtype)
    return BeliefInfo(jnp.zeros((fused.num_domains,), fused.trials.dtype), zero, zero)


def candidate_count(ratio: int | None, batch_size: int) -> int | None:
    """Size of the candidate set, `ratio` candidates for each place; None: the whole pool."""
    if ratio is None:
        return None
    return check_count("candidate_ratio", ratio) * check_count("batch_size", batch_size)


def among_candidates(rng_key: Array, scores: Array, state: State, count: int | None) -> Array:
    """Scores in which only a random set of `count` tasks competes.

    Args:
      rng_key: for the set, drawn uniformly from the tasks that exist and are not in flight.
      scores: f[C], lower is better, none above 1.
      state: for the pool.
      count: static; None for all tasks.

    Returns:
      f[C] `scores` of the set; the rest behind it in random order. They are reached only
      where the mask given to `select`, which is not known here, leaves too few of the set.
    """
    if count is None or count >= scores.shape[0]:
        return scores
    free = selectable(state.pool, None)
    lottery = jax.random.uniform(rng_key, scores.shape, scores.dtype)
    lottery = jnp.where(free, lottery, 2)
    last = -jnp.min(lax.top_k(-lottery, count)[0])
    return jnp.where(free & (lottery <= last), scores, 2 + lottery)
