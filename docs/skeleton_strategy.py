"""A strategy of your own, to copy: a belief, a choice, and the factory of both.

It remembers a moving average of each task's success rate and takes the tasks whose average
is nearest to a half, those tried least first among equals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.compose import BeliefModel, Choice, compose
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.strategies.counting import counting_settings, no_inference
from bots_jax.types import Belief


class Average(NamedTuple):
    """What is remembered of each task: arrays with one row a task, nothing else."""

    rate: jax.Array  # f[C], moving average of successes / trials
    trials: jax.Array  # f[C], so far

    def restart(self, settings, rows, active):
        """Rows that now hold a new task (`add_tasks`)."""
        rate = self.rate.at[rows].set(0.5, mode="drop")
        return Average(rate, self.trials.at[rows].set(0, mode="drop"))


def init(settings, reference, num_domains):
    """Before anything was seen; `reference.rates` is f[K, C], -1 where unknown."""
    like = jnp.zeros(reference.rates.shape[1], reference.rates.dtype)
    return Average(like + 0.5, like)


def fuse(belief, settings, reference, fused):
    """One time step; `fused.trials` f[C] is 0 for tasks without evidence."""
    keep = jnp.where(fused.trials > 0, 1 - settings.forgetting, 1)
    seen = safe_ratio(fused.successes, fused.trials)
    rate = keep * belief.rate + (1 - keep) * seen
    return Average(rate, belief.trials + fused.trials), no_inference(fused)


def predict(state, rows):
    """What is believed of `rows`, i32[...] or a slice."""
    return Belief(state.belief.rate[rows], state.belief.trials[rows] + 2)


def draw(rng_key, state):
    """One draw of each success rate, for rules that explore by drawing; here the mean."""
    return state.belief.rate


def score(rng_key, model, state):
    """f[C] scores, finite, lower is better, and f[C] rates to report beside them."""
    rate = model.draw(rng_key, state)
    novelty = 0.01 / (1 + state.belief.trials)
    return jnp.abs(rate - state.settings.target) - novelty, rate


def skeleton(*, batch_size=32, rollouts=16, keep=0.5, target=0.5, **pool):
    """Keyword arguments `batch_size` and `rollouts` are given by the tools; the rest is yours."""
    return compose(
        name="skeleton",
        model=BeliefModel(init, fuse, predict, draw),
        choice=Choice(score),
        settings=counting_settings(rollouts, keep=keep, target=target),
        batch_size=batch_size,
        **pool,  # num_domains, expiry, dtype
    )
