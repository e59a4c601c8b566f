"""Ways to choose that several strategies share.

In: weights of all tasks, or a score that asks which tasks may be chosen. Out: scores whose
B lowest are draws by these weights, or a `Choice` that knows the mask of `select`: one that
scores the allowed tasks, or a random candidate set of them and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bots_jax.checks import check_count
from bots_jax.choice.batch import lowest
from bots_jax.compose import BeliefModel, Choice
from bots_jax.numerics.random_bits import gumbel
from bots_jax.pool.visits import PoolState, selectable
from bots_jax.types import Array, State

# Far below any weight that can matter, and small enough for the noise to be seen beside it.
_LEAST_LOG_WEIGHT = -1e4


def drawn_by(rng_key: Array, log_weights: Array) -> Array:
    """Scores whose B lowest are B draws without replacement, probability ~ exp(log_weights).

    Gumbel top-B (Kool et al. 2019), which is to draw one, take it out, and draw the next
    from what is left. Weights of 0 (-inf) come last, in random order.
    """
    log_weights = jnp.maximum(log_weights, _LEAST_LOG_WEIGHT)
    return -(log_weights + gumbel(rng_key, log_weights.shape, log_weights.dtype))


def uniform_noise(rng_key: Array, pool: PoolState) -> Array:
    """f[C] uniforms in [0, 1) of the pool's dtype."""
    return jax.random.uniform(rng_key, pool.active.shape, pool.trials.dtype)


def mean_rate(model: BeliefModel, state: State) -> Array:
    """f[C], the mean of the belief: what is reported beside scores that look at other things."""
    return model.predict(state, slice(None)).mean


def among_allowed(
    score: Callable[[Array, BeliefModel, State, Array], tuple[Array, Array]],
) -> Choice:
    """The lowest of scores that depend on which tasks may be chosen.

    Args:
      score: (rng_key, model, state, allowed bool[C]) -> (f[C] scores, f[C] draws to report).
    """

    def of_all(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        return score(rng_key, model, state, selectable(state.pool, None))

    def best(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array, count: int
    ) -> tuple[Array, Array, Array]:
        score_key, tie_key = jax.random.split(rng_key)
        scores, draws = score(score_key, model, state, allowed)
        ids, valid = lowest(tie_key, scores, allowed, count)
        return ids, draws[ids], valid

    return Choice(of_all, best)


# --- candidate sets --------------------------------------------------------------------------


def candidate_count(ratio: int | None, batch_size: int) -> int | None:
    """Size of the candidate set, `ratio` candidates for each place; None: the whole pool."""
    if ratio is None:
        return None
    return check_count("candidate_ratio", ratio) * check_count("batch_size", batch_size)


def among_candidates(
    score: Callable[[Array, BeliefModel, State, Any], tuple[Array, Array]], size: int | None
) -> Choice:
    """The lowest scores of a candidate set drawn uniformly from the allowed tasks.

    Only the candidates are scored; where fewer are allowed than the set has places, all of
    them are candidates.

    Args:
      score: (rng_key, model, state, rows) -> (f[R] scores, f[R] draws to report), for
        rows i32[R] or slice(None).
      size: of the set, static; None: all allowed tasks.
    """

    def of_all(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        return score(rng_key, model, state, slice(None))

    if size is None:
        return Choice(of_all)

    def best(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array, count: int
    ) -> tuple[Array, Array, Array]:
        set_key, score_key, tie_key = jax.random.split(rng_key, 3)
        lottery_key, spare_key = jax.random.split(set_key)
        places = min(size, allowed.shape[0])
        lottery = uniform_noise(lottery_key, state.pool)
        rows, inside = lowest(spare_key, lottery, allowed, places)
        scores, draws = score(score_key, model, state, rows)
        at, valid = lowest(tie_key, scores, inside, count)
        return rows[at], draws[at], valid

    return Choice(of_all, best)
