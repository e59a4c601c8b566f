"""CartPoles of many kinds, gymnax's, as levels: the pool is a pytree of its parameters.

    pip install bots-jax gymnax six optax
    python examples/gymnax_cartpole.py --method auto

A level is a pole, a force and a gravity; most push so weakly that no policy balances them. The
student is a linear policy with REINFORCE, an episode is solved after 100 steps. What selects
levels is marked with ###.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import optax

import bots_jax
from bots_jax import levels as bots_levels
from bots_jax.strategies import make_strategy

LEVELS, BATCH, COPIES, STEPS = 1000, 16, 4, 100
env, standard = gymnax.make("CartPole-v1")


def make_pool(key: jax.Array, size: int = LEVELS) -> Any:
    """Parameters of `size` CartPoles, each leaf [size]; the force is spread over decades."""
    force_key, length_key, gravity_key = jax.random.split(key, 3)
    pool = jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (size,)), standard)
    return pool.replace(
        force_mag=10 ** jax.random.uniform(force_key, (size,), minval=-2.0, maxval=1.2),
        length=jax.random.uniform(length_key, (size,), minval=0.2, maxval=1.0),
        gravity=jax.random.uniform(gravity_key, (size,), minval=5.0, maxval=15.0),
    )


def play(key: jax.Array, weights: jax.Array, level: Any) -> Any:
    """One episode: observations f[T, 4], actions i32[T], whether the pole still stood bool[T]."""
    reset_key, key = jax.random.split(key)
    obs, state = env.reset_env(reset_key, level)

    def step(carry: Any, key: jax.Array) -> Any:
        obs, state, standing = carry
        act_key, env_key = jax.random.split(key)
        action = jax.random.bernoulli(act_key, jax.nn.sigmoid(obs @ weights)).astype(jnp.int32)
        following, state, _, done, _ = env.step_env(env_key, state, action, level)
        return (following, state, standing & ~done), (obs, action, standing)

    keys = jax.random.split(key, STEPS)
    (_, _, standing), seen = jax.lax.scan(step, (obs, state, jnp.array(True)), keys)
    return *seen, standing


def train(selector: bots_jax.Selector, key: jax.Array, pool: Any, updates: int) -> Any:
    """A run as one scan: the share of all levels that is solved after each update's batch."""
    optimizer = optax.adam(0.05)
    weights = jnp.zeros(4)
    state = selector.init(num_tasks=LEVELS)  ###

    def update(carry: Any, key: jax.Array) -> Any:
        weights, moments, state = carry
        select_key, play_key = jax.random.split(key)
        state, slots = bots_levels.sample(selector, select_key, state, copies=COPIES)  ###
        chosen = bots_levels.take(pool, slots.level_ids)  ###
        keys = jax.random.split(play_key, BATCH * COPIES)
        obs, action, alive, solved = jax.vmap(play, (0, None, 0))(keys, weights, chosen)

        length = alive.sum(1) / STEPS  # compared within the copies of a level
        groups = length.reshape(BATCH, COPIES)
        better = (groups - groups.mean(1, keepdims=True)).reshape(-1, 1)

        def loss(weights: jax.Array) -> jax.Array:
            logit = obs @ weights
            chosen_log = jax.nn.log_sigmoid(jnp.where(action == 1, logit, -logit))
            return -jnp.mean(jnp.sum(chosen_log * alive * better, 1))

        step, moments = optimizer.update(jax.grad(loss)(weights), moments)
        _, evidence = bots_levels.record(  ### an episode a slot, and its window is the episode
            bots_levels.no_running(BATCH * COPIES),
            jnp.ones((1, BATCH * COPIES), bool),
            solved[None],
            slots.task_ids,
            slots.visit,
        )
        state, info = selector.update(state, evidence)  ###
        weights = optax.apply_updates(weights, step)
        return (weights, moments, state), info.effective_task_ratio

    carry = weights, optimizer.init(weights), state
    (weights, _, state), mixed = jax.lax.scan(update, carry, jax.random.split(key, updates))
    solved = jax.vmap(play, (0, None, 0))(jax.random.split(key, LEVELS), weights, pool)[3]
    return solved.mean(), mixed, bots_levels.pool_metrics(selector, state)


def main(arguments: list[str] | None = None) -> None:
    """Train and print how many levels are solved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="auto", help="a strategy, see bots_jax.strategies")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    selector = make_strategy(args.method, batch_size=BATCH, rollouts=COPIES)
    pool_key, key = jax.random.split(jax.random.key(args.seed))
    pool = make_pool(pool_key)
    run = jax.jit(lambda key: train(selector, key, pool, args.updates))
    solved, mixed, metrics = run(key)
    print(f"{float(solved):.3f} of the levels solved, {float(mixed.mean()):.2f} groups mixed")
    histogram = metrics.pop("histogram").tolist()
    print({name: round(float(value), 3) for name, value in metrics.items()}, histogram)


if __name__ == "__main__":
    main()
