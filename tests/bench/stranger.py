"""What a stranger brings: a strategy and an environment in a file of their own."""

import jax
import jax.numpy as jnp

from bots_jax.bench import Environment, Measured
from bots_jax.compose import Choice, compose
from bots_jax.strategies.counting import COUNTING, counting_settings
from bots_jax.types import Evidence


def least_seen(*, batch_size=32, rollouts=16, power=1.0):
    """The tasks with the fewest trials, ties at random."""

    def score(rng_key, model, state):
        belief = model.predict(state, slice(None))
        return belief.concentration ** jnp.asarray(power, jnp.float32), belief.mean

    return compose(
        name="least-seen",
        model=COUNTING,
        choice=Choice(score),
        settings=counting_settings(rollouts),
        batch_size=batch_size,
    )


def plain(*, tasks=20):
    """Numbers at once, from the seed alone; what the strategy makes is not run."""

    def run(strategy, seeds):
        selector = strategy.make(batch_size=4, rollouts=2)
        if selector.static["strategy"] == "easy-to-hard":
            raise ValueError("reference is None")
        return [Measured({"etr": 1 / (3 + seed)}) for seed in seeds]

    return Environment("plain", run, {"tasks": tasks}, chunk=2)


def coin(*, tasks=20, rate=0.5):
    """Every task is solved at one rate."""

    def run(strategy, seeds):
        selector = strategy.make(batch_size=4, rollouts=2)
        told = []
        for seed in seeds:
            state, key = selector.init(num_tasks=tasks), jax.random.key(seed)
            state, selection = selector.select(key, state)
            solved = jax.random.binomial(key, 2.0, rate, (4,))
            state, info = selector.update(state, Evidence(selection.task_ids, solved, 2.0))
            told.append(Measured({"etr": float(info.effective_task_ratio), "luck": 0.5 + seed}))
        return told

    return Environment("coin", run, {"tasks": tasks, "rate": rate}, chunk=2)
