"""MoPPS, model predictive prompt selection (arXiv 2507.04632; the authors' verl recipe).

Belief: Beta(1, 1) at first; a visited task is updated, no other,

    alpha <- keep alpha + (1 - keep) alpha0 + s,    beta <- keep beta + (1 - keep) beta0 + n - s

Choice: a random candidate set of 16 B tasks; draw p^ ~ Beta(alpha, beta) for each and take
the B nearest to the target. With a band, take B at random of those whose draw lies in it,
and if they are too few, those nearest to it.

Departures: the set is drawn at random at every step, from the tasks that may be selected,
where the authors take the next chunk of a shuffled epoch. Ties are broken at random.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax.numpy as jnp

from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics import beta_draws
from bots_jax.strategies.choices import among_candidates, candidate_count
from bots_jax.strategies.counting import counting_settings
from bots_jax.strategies.discounted import discounted_beta
from bots_jax.types import Array, ArrayLike, Number, Selector, State


@factory
def mopps(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    target: ArrayLike = 0.5,
    keep: Number = 1.0,
    candidate_ratio: int | None = 16,
    band: tuple[float, float] | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """Thompson sampling among random candidates, nearest the target or within a band.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: p*, a number of `Settings`. Not used with a band.
      keep: share of a task's posterior that survives its next visit; `Settings.forgetting`
        is 1 - keep. The authors use 1 for mathematics and .5 to 1 elsewhere.
      candidate_ratio: candidates for each place in the batch; None: all tasks. Static.
      band: (low, high) in [0, 1]; None: nearest the target. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    return compose(
        name="mopps",
        model=discounted_beta(),
        choice=_nearest(candidate_count(candidate_ratio, batch_size), _check_band(band)),
        settings=counting_settings(rollouts, keep=keep, target=target),
        batch_size=batch_size,
        obeys=("target",) if band is None else (),
        static={"candidate_ratio": candidate_ratio, "band": band},
        **shared,
    )


def _check_band(band: tuple[float, float] | None) -> tuple[float, float] | None:
    if band is None:
        return None
    if len(band) != 2 or not 0 <= band[0] <= band[1] <= 1:
        raise ValueError(f"band={band!r} must be (low, high) with 0 <= low <= high <= 1")
    return float(band[0]), float(band[1])


def _nearest(count: int | None, band: tuple[float, float] | None) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State, rows: Any) -> tuple[Array, Array]:
        drawn = beta_draws.beta(rng_key, state.belief.alpha[rows], state.belief.beta[rows])
        low, high = (state.settings.target,) * 2 if band is None else band
        return jnp.maximum(jnp.maximum(low - drawn, drawn - high), 0), drawn

    return among_candidates(score, count)
