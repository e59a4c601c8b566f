"""One compilation a shape, sweeps in one call, and the same on several devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bots_jax import (
    Evidence,
    Selector,
    Settings,
    State,
    add_tasks,
    bots,
    evidence_of_rewards,
    retire,
)


def one_step(selector: Selector, state: State, seed: int) -> State:
    state, selection = selector.select(jax.random.key(seed), state)
    evidence = Evidence(selection.task_ids, np.full(4, 3.0), 8, selection.visit)
    state, _ = selector.update(selector.observe(state, evidence), evidence)
    return selector.abandon(state, selection.task_ids)


def test_nothing_is_compiled_twice(reference: np.ndarray, compilations: list[str]) -> None:
    """Steps, other numbers, masks, growth and other domains after the first step are free."""
    selector = bots(batch_size=4, rollouts=8, num_domains=3)
    domains = np.arange(60, dtype=np.int32) % 3
    state = selector.init(reference, domains=domains, capacity=64)
    mask = jnp.arange(64) % 2 == 0

    def everything(state: State, seed: int) -> None:
        state = one_step(selector, state, seed)
        selector.select(jax.random.key(seed), state, mask)
        state, _ = add_tasks(retire(state, [seed]), np.full((2, 1), 0.5), domains=[1])
        one_step(selector, state, seed)

    everything(state, 0)
    assert compilations  # the listener hears
    compilations.clear()
    other = Settings(forgetting=0.3, implicit_weight=0.5, rollouts=4.0, target=0.4)
    everything(selector.init(reference, other, domains=(domains + 1) % 3, capacity=64), 1)
    assert not compilations


def test_rows_that_trickle_in_compile_few_programs(
    reference: np.ndarray, compilations: list[str]
) -> None:
    """Each number of rows was compiled for; now each power of two is, of what is on the host."""
    selector = bots(batch_size=4, rollouts=8)
    start = selector.init(reference)
    rng = np.random.default_rng(0)

    def observe(size: int) -> tuple[State, Evidence]:
        ids = rng.choice(60, size, replace=False)
        evidence = evidence_of_rewards(ids, rng.integers(0, 2, (size, 8)).astype(float))
        assert np.shape(evidence.successes) == np.shape(evidence.task_ids) == (size,)
        return selector.observe(start, evidence), evidence

    for size in (1, 2, 4, 8, 16, 32):
        observe(size)
    assert compilations
    compilations.clear()
    told = [observe(size) for size in range(1, 33)]
    assert not compilations
    for size, (state, evidence) in enumerate(told, start=1):
        found = np.asarray(state.pool.successes)[np.asarray(evidence.task_ids)]
        np.testing.assert_array_equal(found, evidence.successes)
        assert int(np.sum(np.asarray(state.pool.trials) > 0)) == size


def test_one_compilation_of_a_whole_run(reference: np.ndarray, compilations: list[str]) -> None:
    selector = bots(batch_size=4, rollouts=8)
    state = selector.init(reference)

    @jax.jit
    def run(state: State, rng_key: jax.Array) -> State:
        def step(state: State, key: jax.Array) -> tuple[State, None]:
            state, selection = selector.select(key, state)
            evidence = Evidence(selection.task_ids, jnp.full(4, 3.0), 8, selection.visit)
            return selector.update(state, evidence)[0], None

        return jax.lax.scan(step, state, jax.random.split(rng_key, 20))[0]

    keys = [jax.random.key(seed) for seed in range(3)]
    state = run(state, keys[0])
    compilations.clear()
    run(run(state, keys[1]), keys[2])
    assert not compilations


def test_a_sweep_over_settings_is_one_call(reference: np.ndarray) -> None:
    """vmap over eight pairs of lambda and rho equals eight runs."""
    selector = bots(batch_size=4, rollouts=8)
    forgetting = jnp.repeat(jnp.asarray([0.0, 0.05, 0.1, 0.5]), 2)
    weight = jnp.tile(jnp.asarray([0.0, 0.3]), 4)

    def run(forgetting: jax.Array, weight: jax.Array) -> tuple[State, jax.Array]:
        settings = Settings(forgetting=forgetting, implicit_weight=weight)
        state = selector.init(reference, settings)

        def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
            state, selection = selector.select(key, state)
            successes = (selection.task_ids % 9).astype(jnp.float32)
            evidence = Evidence(selection.task_ids, successes, 8, selection.visit)
            return selector.update(state, evidence)[0], selection.task_ids

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(0), 10))

    swept, ids = jax.jit(jax.vmap(run))(forgetting, weight)
    single = jax.jit(run)
    for row in range(8):
        alone, chosen = single(forgetting[row], weight[row])
        np.testing.assert_array_equal(ids[row], chosen)
        mean = selector.predict(jax.tree.map(lambda x, row=row: x[row], swept)).mean
        np.testing.assert_allclose(mean, selector.predict(alone).mean, rtol=1e-5)
    assert len(np.unique(np.asarray(ids), axis=0)) == 8


def test_numbers_may_be_traced_in_the_factory(reference: np.ndarray) -> None:
    def first(forgetting: jax.Array) -> jax.Array:
        selector = bots(batch_size=4, rollouts=8, forgetting=forgetting)
        state, _ = selector.update(selector.init(reference), Evidence([0], [8.0], 8))
        return selector.predict(state, np.array([0])).concentration[0]

    both = jax.vmap(first)(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(both, [10.0, 10.0], rtol=1e-5)


def test_a_pool_spread_over_devices_selects_the_same(reference: np.ndarray) -> None:
    """Rows of the state on 1 and on 4 devices: the same ids, the same posteriors."""
    selector = bots(batch_size=4, rollouts=8)
    start = selector.init(reference)
    mesh = Mesh(np.array(jax.devices()[:4]), ("tasks",))

    def place(leaf: jax.Array) -> jax.Array:
        spread = leaf.ndim and leaf.shape[-1] == 60
        spec = PartitionSpec(*[None] * (leaf.ndim - 1), "tasks") if spread else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    results = []
    for state in (start, jax.tree.map(place, start)):
        chosen = []
        for seed in range(5):
            state, selection = selector.select(jax.random.key(seed), state)
            evidence = Evidence(np.asarray(selection.task_ids), np.full(4, 3.0), 8)
            state, _ = selector.update(state, evidence)
            chosen.append(np.asarray(selection.task_ids))
        results.append((chosen, np.asarray(selector.predict(state).mean)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
