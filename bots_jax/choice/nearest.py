"""The choice of BOTS, one of `auto`'s too: the tasks whose draw, or mean, is nearest the target.

In: a belief. Out: step 1 of the method, |p^ - p*|, lower is better.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bots_jax.choice import thinning
from bots_jax.compose import BeliefModel, Choice
from bots_jax.numerics.random_bits import gumbel
from bots_jax.types import Array, State


def _drawn(rng_key: Array, model: BeliefModel, state: State) -> Array:
    return model.draw(rng_key, state)


def _mean(rng_key: Array, model: BeliefModel, state: State) -> Array:
    return model.predict(state, slice(None)).mean


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
# Up to this many tasks all are drawn in any case: sooner compiled, and in less than a millisecond.
_FEW_TASKS = 2**14


def _nearest_draws(
    rng_key: Array, model: BeliefModel, state: State, allowed: Array, count: int
) -> tuple[Array, Array, Array]:
    """Step 1 for Beta posteriors, without drawing every task's."""
    alpha, beta = state.belief.posterior
    races = alpha.shape[0] >= max(_TASKS_TO_RACE * count, _FEW_TASKS)
    find = thinning.nearest if races else thinning.nearest_of_all
    return find(rng_key, alpha, beta, allowed, state.settings.target, count)
