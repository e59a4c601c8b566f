"""A selector against the simulated policy: select, roll out, learn, update, in one scan.

In: a selector, the numbers of the model, seeds. Out: per step what was selected and what
became of the policy. One seed makes one world (tasks, references) and its noise, the same
for every selector: the outcome of task k at step t is decided by uniforms that depend on
(seed, t, k) alone, so comparisons are paired.

A step costs the selector's own time plus O(B + sample): success rates are computed for the
selected tasks and for two fixed samples, the first tasks of the pool and as many held out
(ids from N on, which exist in the world but not in the pool). Tasks are exchangeable, so
the first are as good as any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bots_jax.checks import check_count
from bots_jax.evaluate.meter import belief_error
from bots_jax.simulator.learning import Policy, learn, new_policy, used_up
from bots_jax.simulator.world import (
    Config,
    Tasks,
    World,
    as_config,
    calibrated,
    describe_tasks,
    make_references,
    rates_of,
)
from bots_jax.types import (
    Array,
    ArrayLike,
    Evidence,
    PredictFn,
    SelectFn,
    Selector,
    Settings,
    State,
    UpdateFn,
)

SAMPLE = 4096
ATTEMPTS = (8, 128)  # of the weak and the strong reference, as in the recorded run
# Pools up to this size run all seeds in one vmap. Larger ones take them in turn: a vmap
# would hold every state at once and run both branches of the engine's conditionals.
_LARGEST_TOGETHER = 20_000


class Simulation(NamedTuple):
    """What happened over S seeds and T steps; with P configs or J settings, [P, J, S, ...]."""

    task_ids: npt.NDArray[np.int32]  # [S, T, B]; -1 where fewer than B were eligible
    successes: npt.NDArray[np.float32]  # [S, T, B]
    trials: npt.NDArray[np.float32]  # [S, T, B]; 0 where the id is -1
    etr: npt.NDArray[np.float32]  # [S, T], share of the evaluated groups that are mixed
    breadth: npt.NDArray[np.float32]  # [S, T], exp(entropy of the visits so far)
    pool_rate: npt.NDArray[np.float32]  # [S, T], mean success rate of the pool after the step
    heldout_rate: npt.NDArray[np.float32]  # [S, T], of tasks never trained on
    skills: npt.NDArray[np.float32]  # [S, T, D], theta after the step
    belief_rmse: npt.NDArray[np.float32]  # [S, T], belief mean - success rate, on the sample
    belief_correlation: npt.NDArray[np.float32]  # [S, T], Pearson; NaN if the belief is flat


def run_simulation(
    selector: Selector,
    config: Config | Sequence[Config] | None = None,
    seeds: Sequence[int] = range(8),
    steps: int = 500,
    *,
    num_tasks: int,
    rollouts: int = 8,
    settings: Settings | None = None,
    reference: ArrayLike | None = None,
    attempts: tuple[int, int] = ATTEMPTS,
    domains: bool = False,
    sample: int = SAMPLE,
    seeds_at_once: int | None = None,
) -> Simulation:
    """Train the simulated policy on what a selector chooses.

    Args:
      selector: any; its `rollouts` should be m.
      config: numbers of the model, or a sequence of P such to run together; None for those
        fitted to a recorded run.
      seeds: S seeds. steps: T. num_tasks: N. rollouts: m, of each selected task.
      settings: numbers for `selector.init`; fields of shape [J] are swept over together.
      reference: f[K, N] for `selector.init`; None for the world's weak and strong model.
      attempts: behind the pass rates of the world's two references.
      domains: whether to tell `selector.init` each task's main skill as its domain.
      sample: tasks on which pool, held-out rate and belief are measured (all, if N is less).
      seeds_at_once: runs in one vmap; None: all up to 20,000 tasks, else one at a time.

    Raises:
      ValueError: naming the argument and its value.
    """
    steps, num_tasks = check_count("steps", steps), check_count("num_tasks", num_tasks)
    rollouts, sample = check_count("rollouts", rollouts), check_count("sample", sample)
    if not len(seeds):
        raise ValueError("seeds is empty: give at least one")
    configs = _configs(config)
    plan = _Plan(selector.select, selector.update, selector.predict, rollouts, steps)
    measured = jnp.arange(min(sample, num_tasks), dtype=jnp.int32)
    heldout = num_tasks + jnp.arange(sample, dtype=jnp.int32)
    swept = _swept(settings)
    runs = [
        (numbers, one, seed)
        for numbers in configs
        for one in ([settings] if swept is None else swept)
        for seed in seeds
    ]
    together = len(runs) if num_tasks <= _LARGEST_TOGETHER else 1
    width = check_count("seeds_at_once", together if seeds_at_once is None else seeds_at_once)
    told = []
    for first in range(0, len(runs), width):
        begun = [
            _begin(selector, numbers, seed, num_tasks, one, reference, attempts, domains)
            for numbers, one, seed in runs[first : first + width]
        ]
        told.append(_run(begun, measured, heldout, plan))
    axes = [] if config is None or isinstance(config, Config) else [len(configs)]
    axes += [] if swept is None else [len(swept)]
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *told)
    return jax.tree.map(lambda x: x.reshape(*axes, len(seeds), *x.shape[1:]), whole)


def _configs(config: Config | Sequence[Config] | None) -> list[Config]:
    if config is None:
        return [calibrated()]
    several = [config] if isinstance(config, Config) else list(config)
    if not several:
        raise ValueError("config is an empty sequence: give at least one Config, or None")
    return [as_config(one) for one in several]


class _Plan(NamedTuple):
    """What is static: the functions of a selector can be hashed, so each compiles once."""

    select: SelectFn
    update: UpdateFn
    predict: PredictFn
    rollouts: int
    steps: int


class _Start(NamedTuple):
    """One run before its first step."""

    carry: _Carry
    world: World
    key: Array


class _Carry(NamedTuple):
    """What a step hands to the next."""

    state: State
    policy: Policy
    disorder: Array  # f, sum over tasks of visits log(visits)
    total: Array  # f, visits of all tasks


def _swept(settings: Settings | None) -> list[Settings] | None:
    """One `Settings` a value of the swept fields; None if nothing is swept."""
    sizes = {
        name: np.shape(value)[0]
        for name, value in (settings or Settings())._asdict().items()
        if np.ndim(value) == 1
    }
    if not sizes or settings is None:
        return None
    if len(set(sizes.values())) > 1:
        raise ValueError(f"settings: swept fields differ in length, {sizes}: make them equal")
    count = next(iter(sizes.values()))
    columns = {name: np.asarray(getattr(settings, name)) for name in sizes}
    return [
        settings._replace(**{name: float(column[j]) for name, column in columns.items()})
        for j in range(count)
    ]


def _begin(
    selector: Selector,
    config: Config,
    seed: int,
    num_tasks: int,
    settings: Settings | None,
    reference: ArrayLike | None,
    attempts: tuple[int, int],
    domains: bool,
) -> _Start:
    world, run_key = begin_world(config, seed)
    rates, domain = measure_references(world, num_tasks, attempts)
    state = selector.init(
        rates if reference is None else reference,
        settings=settings,
        reference_trials=np.asarray(attempts, np.float32) if reference is None else None,
        domains=domain if domains else None,
    )
    carry = _Carry(state, new_policy(config, num_tasks), jnp.zeros(()), jnp.zeros(()))
    return _Start(carry, world, run_key)


def begin_world(config: Config, seed: int) -> tuple[World, Array]:
    """The world of a seed, and the key of what happens in it."""
    world_key, run_key = jax.random.split(jax.random.key(seed))
    return World(world_key, config), run_key


measure_references = jax.jit(make_references, static_argnames=("num_tasks", "attempts"))


def _run(begun: list[_Start], measured: Array, heldout: Array, plan: _Plan) -> Simulation:
    """Several runs in one vmap, or a single one without: vmap would make conds selects."""
    alone = len(begun) == 1
    # Copied in either case: leaves may share a buffer, and one can be donated only once.
    join = (lambda leaf: jnp.copy(leaf)) if alone else (lambda *leaves: jnp.stack(leaves))
    carry, world, key = jax.tree.map(join, *begun)
    begun.clear()
    told, _ = _episodes(carry, world, key, measured, heldout, plan, alone)
    return jax.tree.map(lambda x: np.asarray(x)[None] if alone else np.asarray(x), told)


@partial(jax.jit, static_argnames=("plan", "alone"), donate_argnames="carry")
def _episodes(
    carry: _Carry,
    world: World,
    key: Array,
    measured: Array,
    heldout: Array,
    plan: _Plan,
    alone: bool,
) -> tuple[Simulation, _Carry]:
    """What was told, and the last carry, which takes over the donated memory."""

    def one(carry: _Carry, world: World, key: Array) -> tuple[Simulation, _Carry]:
        return _episode(carry, world, key, measured, heldout, plan)

    return one(carry, world, key) if alone else jax.vmap(one)(carry, world, key)


def _episode(
    carry: _Carry, world: World, key: Array, measured: Array, heldout: Array, plan: _Plan
) -> tuple[Simulation, _Carry]:
    """One run: all its steps in one scan."""
    select_key, feedback_key, noise_key = jax.random.split(key, 3)
    config = world.config
    sample = jnp.concatenate([measured, heldout])
    described = describe_tasks(world, sample)

    def step(carry: _Carry, index: Array) -> tuple[_Carry, Simulation]:
        state, selection = plan.select(jax.random.fold_in(select_key, index), carry.state)
        ids = jnp.where(selection.valid, selection.task_ids, 0)
        tasks = describe_tasks(world, ids)
        rates = _rates(tasks, carry.policy, config, ids)
        successes = _feedback(jax.random.fold_in(feedback_key, index), ids, rates, plan.rollouts)
        successes = jnp.where(selection.valid, successes, 0)
        trials = jnp.where(selection.valid, float(plan.rollouts), 0)
        total = carry.total + jnp.sum(selection.valid, dtype=jnp.float32)
        noise = jax.random.fold_in(noise_key, index)
        policy = learn(noise, world, carry.policy, tasks, ids, successes, trials)
        disorder = carry.disorder + _added_disorder(policy.visits[ids], selection.valid)
        evidence = Evidence(selection.task_ids, successes, trials, selection.visit)
        state, _ = plan.update(state, evidence)
        known, out = jnp.split(_rates(described, policy, config, sample), [measured.size])
        rmse, correlation = belief_error(plan.predict(state, measured).mean, known)
        told: dict[str, Any] = {
            "task_ids": selection.task_ids,
            "successes": successes,
            "trials": trials,
            "etr": _mixed_share(successes, trials),
            "breadth": _breadth(disorder, total),
            "pool_rate": jnp.mean(known),
            "heldout_rate": jnp.mean(out),
            "skills": policy.skills,
            "belief_rmse": rmse,
            "belief_correlation": correlation,
        }
        return _Carry(state, policy, disorder, total), Simulation(**told)

    carry, told = jax.lax.scan(step, carry, jnp.arange(plan.steps, dtype=jnp.int32))
    return told, carry


def _rates(tasks: Tasks, policy: Policy, config: Config, task_ids: Array) -> Array:
    own = config.own_gain * used_up(policy, config, task_ids)
    return rates_of(tasks, config, policy.skills, own, policy.step.astype(jnp.float32))


def _feedback(step_key: Array, task_ids: Array, rates: Array, rollouts: int) -> Array:
    """f[B] successes: of each task, a function of the key, its id and its rate alone."""

    def one(task_id: Array, rate: Array) -> Array:
        uniforms = jax.random.uniform(jax.random.fold_in(step_key, task_id), (rollouts,))
        return jnp.sum(uniforms < rate, dtype=jnp.float32)

    return jax.vmap(one)(task_ids, rates)


def _mixed_share(successes: Array, trials: Array) -> Array:
    mixed = jnp.sum((successes > 0) & (successes < trials), dtype=jnp.float32)
    return mixed / jnp.maximum(jnp.sum(trials > 0, dtype=jnp.float32), 1)


def _added_disorder(visits: Array, valid: Array) -> Array:
    """By how much sum v log v has grown with the last visit of each of these tasks."""
    after = jnp.maximum(visits.astype(jnp.float32), 1)
    before = after - 1
    grown = after * jnp.log(after) - before * jnp.log(jnp.maximum(before, 1))
    return jnp.sum(jnp.where(valid, grown, 0))


def _breadth(disorder: Array, total: Array) -> Array:
    """exp(log V - sum v log v / V) of V visits; 0 before the first."""
    visits = jnp.maximum(total, 1)
    return jnp.where(total > 0, jnp.exp(jnp.log(visits) - disorder / visits), 0)
