"""Pools over several devices and processes: the same, bit for bit, and little that crosses."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.sharding import crossings
from bots_jax import Evidence, State, auto, bots
from bots_jax.pool.visits import domain_sums
from bots_jax.sharding import gather_evidence, padded_capacity, shard, task_mesh, totals
from tests import sharding_run
from tests.conftest import EVERY_BIT, REPOSITORY
from tests.sharding_run import make_reference

SIZE = 64 * 8 * 4
run = partial(sharding_run.run, compiler_options=EVERY_BIT)


def over(state: State, devices: int) -> State:
    """On the first few of the devices; 0: not spread at all."""
    return shard(state, task_mesh(jax.devices()[:devices])) if devices else state


def assert_same(result: Any, expected: Any) -> None:
    """Every bit of every array."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), jax.tree_util.keystr(path)


# What leads to other code: 2048 tasks are raced for batches of up to 64.
MANY = Evidence(np.arange(0, SIZE, 4), np.arange(SIZE // 4) % 7 / 3, 2)
CASES: dict[str, dict[str, Any]] = {
    "race": {},
    "draws of all": {"batch_size": 100},
    "masks and domains": {
        "eligible": lambda step: jnp.arange(SIZE) % 3 == step % 3,
        "domains": 5,
        "adaptive_implicit_weight": True,
    },
    "too few, noise": {
        "eligible": lambda step: jnp.arange(SIZE) < 3,
        "temperature": 0.1,
        "exploration": 0.25,
        "expiry": 3,
    },
    "fallback": {"prior": (60.0, 1.0), "forgetting": 1.0, "implicit_weight": 0.0},
    "quotas": {"domains": 2, "quotas": (5, 11)},
    "much evidence, mean": {"more": MANY, "choice": "mean"},
    "much evidence in domains": {"more": MANY, "domains": 5},
    "auto": {
        "method": auto,
        "eligible": lambda step: jnp.arange(SIZE) % 3 == step % 3,
        "domains": 5,
    },
}
# Compared with one device. Not spread at all, sums by domain over very many rows are taken in
# another order, and the regression of auto is compiled to other code.
AGAINST_ONE = {"much evidence in domains", "auto"}


# On all eight; the races on fewer too. `long`: a choice and a belief of the same two kinds.
QUICK = ("race", "auto")
SPREAD = [(case, 8) for case in CASES] + [("race", 1), ("race", 2)]


@pytest.mark.parametrize(
    ("case", "devices"),
    [
        pytest.param(case, n, marks=() if case in QUICK and n == 8 else pytest.mark.long)
        for case, n in SPREAD
    ],
)
def test_devices_select_and_believe_the_same(case: str, devices: int) -> None:
    options = {"batch_size": 16, "rollouts": 16, "representation": "dense"}
    options |= CASES[case]
    eligible, more = options.pop("eligible", None), options.pop("more", None)
    count = options.pop("domains", None)
    domains = None if count is None else np.arange(SIZE) % count
    selector = options.pop("method", bots)(**options)
    start = selector.init(make_reference(SIZE), domains=domains)
    plain = over(start, 1 if case in AGAINST_ONE else 0)
    expected = run(selector, plain, eligible=eligible, more=more)
    _, (selection, info) = expected
    assert np.asarray(info.evaluated).min() > 0
    if case == "fallback":  # no race goes so far
        assert np.abs(np.asarray(selection.rate) - 0.5).min(axis=1).max() > 0.125
    # Four devices: of processes, below.
    assert_same(run(selector, over(start, devices), eligible=eligible, more=more), expected)


@pytest.mark.long
def test_features_are_spread_with_their_tasks() -> None:
    """So many tasks that all are scored roughly first."""
    size = 64 * 8 * 80
    known = np.random.default_rng(0).standard_normal((size, 8))
    selector = auto(batch_size=16, rollouts=16, features_dtype="int8")
    start = selector.init(features=known)
    spread = over(start, 8)
    assert spread.reference.embeddings.addressable_shards[0].data.shape == (8, size // 8)
    assert_same(run(selector, spread, steps=2), run(selector, over(start, 1), steps=2))


def test_a_grouped_pool_is_the_same_on_all_devices() -> None:
    selector = bots(batch_size=16, representation="grouped", slots=64 * 32)
    start = selector.init(make_reference(SIZE))
    expected = run(selector, start)
    spread = over(start, 8)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread))
    assert_same(run(selector, spread), expected)


def test_a_sum_that_depends_on_devices_is_caught() -> None:
    """The tests above can fail: block sums left to the compiler give other bits."""
    values = np.random.default_rng(0).gamma(0.1, size=64 * 8 * 64).astype(np.float32)
    mesh = task_mesh()
    spread = jax.device_put(values, jax.NamedSharding(mesh, jax.P("tasks")))
    assert float(jax.jit(jnp.sum)(spread)) != float(jax.jit(jnp.sum)(values))


def test_sums_of_several_at_once_do_not_depend_on_devices() -> None:
    """Ten draws: of sums of five rows by one reduction most differ in their last bits."""
    domain = jnp.arange(SIZE, dtype=jnp.int32) % 5

    def sums(values: jax.Array, domain: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_domain = domain_sums(1.1 * values, domain, 5)
        return by_domain, totals(jnp.stack([values * power for power in (1.1, 1.2, 1.3)]))

    for seed in range(10):
        values = np.random.default_rng(seed).gamma(0.1, size=SIZE).astype(np.float32)
        found = []
        for devices in (1, 8):
            place = jax.NamedSharding(task_mesh(jax.devices()[:devices]), jax.P("tasks"))
            given = jax.device_put((values, domain), place)
            found.append(jax.jit(sums, compiler_options=EVERY_BIT)(*given))
        assert_same(*found)


def test_a_state_stays_where_it_was_put() -> None:
    selector = bots(batch_size=16, rollouts=16, representation="dense")
    start = over(selector.init(make_reference(SIZE)), 8)
    where = jax.tree.map(lambda leaf: leaf.sharding, start)
    assert start.belief.posterior.alpha.addressable_shards[0].data.shape == (SIZE // 8,)
    assert start.reference.rates.addressable_shards[0].data.shape == (2, SIZE // 8)
    state, selection = selector.select(jax.random.key(0), start)
    after = [state, selector.abandon(state, selection.task_ids)]
    after.append(selector.update(state, Evidence(selection.task_ids, np.full(16, 3.0), 16))[0])
    for result in after:
        same = jax.tree.map(
            lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim),
            result,
            where,
        )
        assert all(jax.tree.leaves(same))
    assert_same(over(over(start, 2), 8), start)


def test_no_array_of_the_pool_crosses_devices() -> None:
    """In anything that is compiled, the rare branches included."""
    batch, size = 4, 64 * 8 * 512
    selector = bots(batch_size=batch, rollouts=16, representation="dense", exploration=0.25)
    state = over(selector.init(make_reference(size)), 8)
    evidence = Evidence(*jnp.ones((3, batch), jnp.int32))
    evidence = evidence._replace(successes=jnp.ones(batch), trials=jnp.ones(batch))
    programs = {
        "select": jax.jit(selector.select).lower(jax.random.key(0), state),
        "update": jax.jit(selector.update).lower(state, evidence),
    }
    for name, program in programs.items():
        found = crossings(program.compile().as_text())
        assert found
        largest = max(max(crossing.sizes) for crossing in found)
        # A task that is hit brings its block; the first window is guessed from a few thousand.
        hits = (2 * batch + 64) * 64
        assert largest <= max(size // 64, hits, 8192), (name, largest)
        assert largest < size // 16
    sort = jax.jit(jnp.sort).lower(state.belief.posterior.alpha).compile()
    assert max(max(crossing.sizes) for crossing in crossings(sort.as_text())) >= size // 64 * 8


def test_any_mesh_and_traced_placing() -> None:
    selector = bots(batch_size=16, representation="dense")
    reference = make_reference(SIZE)
    model_mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    placed = shard(selector.init(reference), model_mesh)
    made_there = jax.jit(lambda rates: shard(selector.init(rates), model_mesh))(reference)
    assert made_there.pool.visit.addressable_shards[0].data.shape == (SIZE // 8,)
    assert_same(made_there, placed)


def test_capacity_must_fill_the_devices() -> None:
    state = bots(batch_size=4).init(make_reference(1000))
    with pytest.raises(ValueError, match=r"capacity 1000 .* 8 devices.*capacity=1024"):
        shard(state)
    assert padded_capacity(1000) == 1024
    assert padded_capacity(1024, 2) == 1024
    with pytest.raises(ValueError, match="num_tasks=0"):
        padded_capacity(0)
    padded = bots(batch_size=4).init(make_reference(1000), capacity=padded_capacity(1000))
    assert shard(padded).pool.active.shape == (1024,)


def test_one_host_gathers_its_own_evidence() -> None:
    evidence = gather_evidence(Evidence([3, 4], [1.0, 2.0], 8, [0, 0]))
    np.testing.assert_array_equal(evidence.trials, [8, 8])
    np.testing.assert_array_equal(evidence.task_ids, [3, 4])


# --- processes ---------------------------------------------------------------------------------

DEVICES, PATIENCE = 4, 200  # seconds: on a busy machine processes take long to start


def start_processes(
    folder: Path, processes: int, devices: int = DEVICES
) -> list[dict[str, np.ndarray]]:
    """What each of some processes, with so many devices between them, came to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    files = [folder / f"{processes}-{process}.npz" for process in range(processes)]
    # As users run it: without the flags for quick compiling that the other tests have.
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sharding_run", address]
            + [str(n) for n in (processes, process, devices // processes)]
            + [str(file)],
            cwd=REPOSITORY,
            env=plain,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for process, file in enumerate(files)
    ]
    try:
        for child in children:
            error = child.communicate(timeout=PATIENCE)[1].decode()
            assert child.returncode == 0, error[-2000:]
    finally:
        for child in children:
            child.kill()
    return [dict(np.load(file)) for file in files]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process with two devices comes to, which the others must equal."""
    return start_processes(tmp_path_factory.mktemp("alone"), 1, devices=2)[0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_select_and_believe_the_same(
    processes: int, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """And four devices what two do."""
    each = start_processes(tmp_path, processes)
    for name, expected in alone.items():
        if name in ("alpha", "beta"):  # each process holds its part
            joined = np.concatenate([result[name] for result in each])
            np.testing.assert_array_equal(joined, expected)
        else:
            for result in each:
                np.testing.assert_array_equal(result[name], expected)


@pytest.mark.parametrize("method", [auto, bots])
def test_arrays_on_the_mesh_of_a_model_are_taken(method: Any) -> None:
    """Rewards, masks and ids that lie on another mesh, whose axes may be explicit."""
    mesh = jax.make_mesh((4,), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    selector = method(batch_size=8, rollouts=8)
    for state in (selector.init(make_reference(64)), over(selector.init(make_reference(SIZE)), 2)):
        rows = state.pool.active.shape[0]
        mask = jax.device_put(jnp.ones(rows, bool), spread)
        state, batch = selector.select(jax.random.key(0), state, mask)
        there = jax.device_put(jnp.full((8,), 3.0), spread)
        after, info = selector.update(state, Evidence(batch.task_ids, there, 8.0, batch.visit))
        assert float(info.trials) == 64
        ids = jax.device_put(batch.task_ids, spread)
        assert np.isfinite(selector.predict(after, ids).mean).all()
        assert int(selector.abandon(state, ids).pool.in_flight) == 0


@pytest.mark.parametrize(
    "representation", ["dense", pytest.param("grouped", marks=pytest.mark.long)]
)
def test_arrays_of_a_model_s_explicit_mesh_in_traced_code(representation: str) -> None:
    """Within the user's own jit, under `set_mesh` or not; their type alone tells of the mesh."""
    mesh = jax.make_mesh((4,), ("data",))
    selector = bots(batch_size=8, rollouts=4, representation=representation)
    rates = np.tile([[0.25, 0.5], [0.5, 0.75]], 16)
    start = selector.init(rates)

    def spread(x: Any) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @jax.jit
    def step(key: jax.Array, state: State, mask: Any, rewards: Any) -> Any:
        state, batch = selector.select(key, state, mask)
        state, info = selector.update(state, batch.evidence(rewards))
        return batch.task_ids, info, selector.abandon(state, rewards[:, 0].astype(jnp.int32))

    mask, rewards = jnp.arange(32) % 2 == 0, jnp.tile(jnp.array([1.0, 0, 1, 1]), (8, 1))
    expected = step(jax.random.key(0), start, mask, rewards)
    for context in (contextlib.nullcontext(), jax.set_mesh(mesh)):
        with context:
            found = step(jax.random.key(0), start, spread(mask), spread(rewards))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_domains_of_an_explicit_mesh() -> None:
    mesh = jax.make_mesh((4,), ("data",))
    domains = jax.device_put(np.arange(32) % 2, NamedSharding(mesh, PartitionSpec("data")))
    state = bots(batch_size=8).init(num_tasks=32, domains=domains)
    assert state.pool.domain_sizes.tolist() == [16, 16]
