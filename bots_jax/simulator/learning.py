"""How the simulated policy changes with what it trains on.

In: the outcome of a batch. Out: new skills, and how far each trained task is used up. For
task k of the batch with s_k of n_k rollouts solved,

    signal  g_k = 2 sqrt(f (1 - f)),  f = s_k / n_k        0 unless the group is mixed
    fresh   h_k = g_k (1 - u_k)                            what it teaches beyond itself
    skills  theta_d += v_d (D / B) sum_k w_kd h_k (1 - theta_d / ceiling)
                       - phi theta_d + noise
    task    u_k <- u_k + a g_k (1 - u_k),  e_k = E u_k,  u_k <- u_k exp(-1 / tau_u) a step

g is the mean absolute advantage of a group under GRPO, scaled to 1 at f = 1/2. A task
trained on again and again is used up (u near 1): its groups may stay mixed, but they teach
little. It recovers slowly. u is kept as of the task's last visit and decayed when it is
read, so a step writes B rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.simulator.world import Config, Tasks, World
from bots_jax.types import Array


class Policy(NamedTuple):
    """What the policy can do, and what it has been trained on."""

    skills: Array  # f[D], theta
    used: Array  # f[N, 2], u as of the task's last visit, and the step of that visit
    visits: Array  # i32[N]
    step: Array  # i32, batches trained on


def new_policy(config: Config, num_tasks: int) -> Policy:
    """Before training: no skill beyond what the difficulties already count."""
    return Policy(
        skills=jnp.zeros_like(config.speed),
        used=jnp.zeros((num_tasks, 2), jnp.float32),
        visits=jnp.zeros((num_tasks,), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def used_up(policy: Policy, config: Config, task_ids: Array) -> Array:
    """f[M], u now; 0 for ids beyond the pool, which are never trained on."""
    inside = task_ids < policy.used.shape[0]
    used, last = jnp.moveaxis(policy.used[jnp.where(inside, task_ids, 0)], -1, 0)
    age = policy.step.astype(jnp.float32) - last
    return jnp.where(inside, used * jnp.exp(-age / config.recovery), 0)


def learn(
    rng_key: Array,
    world: World,
    policy: Policy,
    tasks: Tasks,
    task_ids: Array,
    successes: Array,
    trials: Array,
) -> Policy:
    """One step of training.

    Args:
      rng_key: for the noise of the skills.
      tasks: of the batch. task_ids: i32[B], distinct where trials > 0.
      successes, trials: f[B]; rows with trials 0 are padding.
    """
    config = world.config
    share = safe_ratio(successes, trials)
    signal = 2 * jnp.sqrt(share * (1 - share))
    used = used_up(policy, config, task_ids)
    evaluated = trials > 0
    skills = _grow(rng_key, policy.skills, config, tasks.loadings, signal * (1 - used), evaluated)
    used = used + config.absorption * signal * (1 - used)
    rows = jnp.where(evaluated, task_ids, policy.used.shape[0])
    # One array: what is written to it depends on what was read from it. XLA would copy
    # an array of N that it may write before it has read it.
    now = jnp.broadcast_to(policy.step.astype(jnp.float32), used.shape)
    return Policy(
        skills=skills,
        used=policy.used.at[rows].set(jnp.stack([used, now], axis=-1), mode="drop"),
        visits=policy.visits.at[rows].add(1, mode="drop"),
        step=policy.step + 1,
    )


def _grow(
    rng_key: Array, skills: Array, config: Config, loadings: Array, fresh: Array, evaluated: Array
) -> Array:
    size = jnp.maximum(jnp.sum(evaluated), 1).astype(jnp.float32)
    taught = (fresh @ loadings) * (skills.shape[0] / size)
    grown = config.speed * taught * jnp.maximum(1 - skills / config.ceiling, 0)
    noise = config.skill_noise * jax.random.normal(rng_key, skills.shape)
    return skills + grown - config.skill_forgetting * skills + noise
