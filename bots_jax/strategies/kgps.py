"""KGPS / ARCUS: a Kalman filter on each task's success rate, and the choice it suggests.

    "expected"  the largest E p(1 - p) under the filter
    "paced"     tau > 0: Gumbel top-B of -|E p - p_t| / tau, around a target that moves from
                the easy to p*:  p_t = p* + (start - p*) max(1 - t / pace, 0)

The filter is `kalman.py`: on the arcsine scale (ARCUS) or on the logit scale (KGPS, arXiv
2607.27610, of which only the abstract was read). Departures: for ARCUS no paper was found,
only its formulas, so how v and Q are learned from the innovations and how the target is
paced is ours; evidence in several pieces of one step is fused as one group.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp

from bots_jax.checks import check_choice, check_count, check_number
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.numerics.random_bits import gumbel
from bots_jax.strategies.choices import mean_rate
from bots_jax.strategies.counting import counting_settings
from bots_jax.strategies.kalman import SCALES, Scale, kalman_belief
from bots_jax.types import Array, ArrayLike, Selector, State


@factory
def kgps(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    target: ArrayLike = 0.5,
    temperature: ArrayLike = 0.05,
    scale: str = "arcsine",
    choice: str = "expected",
    noise: float = 1e-3,
    adaptation: float = 0.01,
    start: float = 0.75,
    pace: int = 100,
    **shared: Unpack[Shared],
) -> Selector:
    """Tasks that a Kalman filter expects to be half solved.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      target: p*, where the "paced" target ends.
      temperature: tau of "paced"; 0 takes the nearest.
      scale: "arcsine" or "logit".
      choice: "expected" or "paced".
      noise: Q before anything is learned about it, static.
      adaptation: g in [0, 1], how fast v and Q are learned; 0 keeps them; static.
      start: p_0 of "paced", static. pace: steps until it reaches p*, static.
    """
    on = SCALES[check_choice("scale", scale, tuple(SCALES))]
    check_choice("choice", choice, ("expected", "paced"))
    first = check_number("noise", noise, 0, 1e6)
    gain = check_number("adaptation", adaptation, 0, 1)
    easy = check_number("start", start, 0, 1)
    steps = check_count("pace", pace)
    return compose(
        name="kgps",
        model=kalman_belief(on, first, gain),
        choice=_expected(on) if choice == "expected" else _paced(easy, steps),
        settings=counting_settings(rollouts, target=target, temperature=temperature),
        batch_size=batch_size,
        obeys=("target", "temperature") if choice == "paced" else (),
        static={
            "scale": scale,
            "choice": choice,
            "noise": first,
            "adaptation": gain,
            "start": easy,
            "pace": steps,
        },
        **shared,
    )


def _expected(scale: Scale) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        x, variance = state.belief.mean, state.belief.variance
        return -scale.spread(x, variance), scale.expected(x, variance)

    return Choice(score)


def _paced(start: float, pace: int) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        mean = mean_rate(model, state)
        left = jnp.maximum(1 - state.belief.step.astype(mean.dtype) / pace, 0)
        target = state.settings.target + (start - state.settings.target) * left
        noise = gumbel(rng_key, mean.shape, mean.dtype)
        return jnp.abs(mean - target) - state.settings.temperature * noise, mean

    return Choice(score)
