"""The grouped representation: the same posteriors and selections as the dense one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax import Evidence, Selector, Settings, State, add_tasks, bots, checkpoint, retire
from bots_jax.grouped import table
from bots_jax.grouped.groups import draw_member, find_codes, group_of, make_groups
from bots_jax.pool.reference import ReferenceCounts, ReferenceGroups
from tests.choice.test_batch import FAILURE, assert_same_rates, brute_force, membership, together
from tests.conftest import OPTIMISED
from tests.test_golden import counts, golden_case

ROLLOUTS = 16


def grid_reference(rng: np.random.Generator, size: int, missing: float = 0.1) -> np.ndarray:
    """f32[2, N] multiples of 1/16, some unknown."""
    rates = np.sort(rng.integers(0, 17, (2, size)), axis=0) / 16
    return np.where(rng.random((2, size)) < missing, np.nan, rates).astype(np.float32)


SIZE = 3000
REFERENCE = grid_reference(np.random.default_rng(0), SIZE)


@cache  # what is compiled for one case serves the others: their numbers are in the states
def grouped(batch_size: int) -> Selector:
    return bots(batch_size=batch_size, representation="grouped")


@cache
def both() -> tuple[Selector, Selector]:
    dense, few = (
        bots(
            batch_size=8,
            rollouts=ROLLOUTS,
            adaptive_implicit_weight=True,
            representation=form,
        )
        for form in ("dense", "grouped")
    )
    return dense, few


def some_evidence(rng: np.random.Generator, size: int, rows: int) -> Evidence:
    ids = rng.integers(0, size, rows)
    trials = rng.integers(1, ROLLOUTS + 3, rows).astype(np.float32)
    return Evidence(ids, np.floor(trials * rng.random(rows)).astype(np.float32), trials)


# --- posteriors ------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit_weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("domains", [False, True])
def test_posteriors_are_those_of_the_dense_engine(implicit_weight: float, domains: bool) -> None:
    """Lambda changes from step to step, from forgetting nothing to nearly everything."""
    rng = np.random.default_rng(0)
    size = 3000
    reference = grid_reference(rng, size)
    domain = rng.integers(0, 3, size) if domains else None
    dense, few = both()
    settings = Settings(implicit_weight=implicit_weight)
    states = [selector.init(reference, settings, domains=domain) for selector in (dense, few)]
    assert [state.representation for state in states] == ["dense", "grouped"]
    for step in range(64):
        evidence = some_evidence(rng, size, 24)
        forgetting = jnp.float32([0.1, 0.01, 0.4, 0.0][step // 4 % 4])
        states = [
            selector.update(
                state._replace(settings=state.settings._replace(forgetting=forgetting)), evidence
            )[0]
            for selector, state in zip((dense, few), states, strict=True)
        ]
    left, right = (counts(s, x) for s, x in zip((dense, few), states, strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=2e-5)
    ids = rng.integers(0, size, (5, 7))
    np.testing.assert_allclose(
        dense.predict(states[0], ids).mean, few.predict(states[1], ids).mean, rtol=1e-5
    )


@pytest.mark.parametrize("case", ["default", "extrapolation", "implicit_only", "explicit_only"])
def test_golden(case: str) -> None:
    golden = golden_case(case)
    rollouts = golden["rollouts"].item()
    of_case = bots(
        batch_size=16,
        rollouts=rollouts,
        representation="grouped",
        forgetting=golden["forgetting"].item(),
        implicit_weight=golden["implicit_weight"].item(),
    )
    state, selector = of_case.init(np.stack([golden["weak"], golden["strong"]])), grouped(16)
    for step, task_ids in enumerate(golden["task_ids"]):
        evidence = Evidence(task_ids, golden["pass_rates"][step] * rollouts, rollouts)
        state, _ = selector.update(state, evidence)
    alpha, beta = counts(selector, state)
    np.testing.assert_allclose(alpha, golden["alpha"][-1], rtol=2e-5)
    np.testing.assert_allclose(beta, golden["beta"][-1], rtol=2e-5)


def test_tasks_return_to_their_group_by_the_tolerance() -> None:
    used = []
    for selector in (
        grouped(8),
        bots(batch_size=8, representation="grouped", tolerance=1e-2),
    ):
        state = selector.init(REFERENCE)
        for step in range(250):
            state, selection = selector.select(jax.random.key(step), state)
            evidence = Evidence(selection.task_ids, np.full(8, 8.0), 16, selection.visit)
            state, _ = selector.update(state, evidence)
        used.append(int(state.pool.slots.active.sum()))
    # 8 a step, for log(32 / tolerance) / lambda steps
    assert used[1] < used[0] <= 8 * np.log(32 / 1e-5) / 0.1


# --- selections ----------------------------------------------------------------------------


def after_steps(selector: Selector, reference: np.ndarray, steps: int, rows: int) -> State:
    """The same evidence for every selector."""
    rng = np.random.default_rng(2)
    state = selector.init(reference)
    for _ in range(steps):
        state, _ = selector.update(state, some_evidence(rng, reference.shape[1], rows))
    return state


# The dense pool is compared with brute force in tests/choice/test_batch.py too.
@pytest.mark.parametrize("form", [pytest.param("dense", marks=pytest.mark.long), "grouped"])
def test_small_pool_inclusions_pairs_and_distance(form: str) -> None:
    rng = np.random.default_rng(3)
    size, batch, runs = 200, 4, 2500
    selector = bots(batch_size=batch, rollouts=ROLLOUTS, representation=form, slots=512)
    state = after_steps(selector, grid_reference(rng, size), 40, 6)
    alpha, beta = counts(selector, state)
    keys = jax.random.split(jax.random.key(0), runs)
    find = jax.jit(
        lambda keys: jax.lax.map(lambda key: selector.select(key, state)[1], keys),
        compiler_options=OPTIMISED,
    )
    chosen = find(keys)
    brute = [brute_force(rng, alpha, beta, batch, 0.5) for _ in range(runs)]
    ours = membership(np.asarray(chosen.task_ids), size)
    theirs = membership(np.array([ids for ids, _ in brute]), size)
    assert np.all(ours.sum(1) == batch)
    assert_same_rates(ours.sum(0), theirs.sum(0), runs)
    assert_same_rates(together(ours), together(theirs), runs)
    last = np.abs(np.asarray(chosen.rate) - 0.5).max(axis=1)
    assert stats.ks_2samp(last, [distance for _, distance in brute]).pvalue > FAILURE


@pytest.mark.long
@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_large_pool_inclusions_by_group_and_distance(form: str) -> None:
    rng = np.random.default_rng(4)
    size, batch, runs = 120_000, 64, 150
    reference = grid_reference(rng, size)
    selector = bots(batch_size=batch, rollouts=ROLLOUTS, representation=form)
    state = after_steps(selector, reference, 60, 256)
    alpha, beta = counts(selector, state)
    kind = np.minimum((alpha + beta).astype(int), 19)  # by how much is known
    ours, theirs = np.zeros((2, 20))
    ours_last, theirs_last = [], []
    for key in jax.random.split(jax.random.key(1), runs):
        _, selection = selector.select(key, state)
        ids = np.asarray(selection.task_ids)
        assert len(set(ids.tolist())) == batch
        ours += np.bincount(kind[ids], minlength=20)
        ours_last.append(float(jnp.abs(selection.rate - 0.5).max()))
        theirs_ids, last = brute_force(rng, alpha, beta, batch, 0.5)
        theirs += np.bincount(kind[theirs_ids], minlength=20)
        theirs_last.append(last)
    assert_same_rates(ours, theirs, runs * batch)
    assert stats.ks_2samp(ours_last, theirs_last).pvalue > FAILURE


def test_members_of_a_group_are_equally_likely() -> None:
    rng = np.random.default_rng(5)
    codes = find_codes(grid_reference(rng, 400, missing=0)[:, :40].repeat(10, axis=1), None, None)
    assert codes is not None
    groups = make_groups(codes, jnp.dtype(jnp.float32))
    group, runs = int(np.argmax(groups.sizes)), 50_000
    bits = jax.random.bits(jax.random.key(0), (2, runs), jnp.uint32)
    ids = np.asarray(draw_member(bits, groups, jnp.full(runs, group, jnp.int32)))
    seen, times = np.unique(ids, return_counts=True)
    np.testing.assert_array_equal(seen, np.flatnonzero(codes.of_task == group))
    assert stats.chisquare(times).pvalue > FAILURE
    np.testing.assert_array_equal(group_of(groups, jnp.arange(400)), codes.of_task)


def test_masked_tasks_and_tasks_in_flight_are_not_chosen() -> None:
    selector = grouped(8)
    state = selector.init(REFERENCE)
    mask = np.arange(SIZE) % 3 == 0
    seen: set[int] = set()
    for step in range(40):
        state, selection = selector.select(jax.random.key(step), state, mask)
        ids = np.asarray(selection.task_ids)
        assert np.all(selection.valid)
        assert np.all(mask[ids])
        assert not seen & set(ids.tolist())
        seen |= set(ids.tolist())
    with pytest.raises(ValueError, match=r"eligible has shape \(2999,\)"):
        selector.select(jax.random.key(0), state, mask[1:])


# --- forms of references ---------------------------------------------------------------------


def test_rates_counts_and_sizes_are_the_same_pool() -> None:
    sizes = np.array([300, 5, 700])
    solved = np.array([[2, 0, -1], [9, 16, 4]])
    rates = np.where(solved < 0, np.nan, solved / 16).astype(np.float32)
    given = (
        np.repeat(rates, sizes, axis=1),
        ReferenceCounts(np.repeat(solved, sizes, axis=1).astype(np.int8), 16),
        ReferenceGroups(rates, sizes),
    )
    rng = np.random.default_rng(7)
    evidence = [some_evidence(rng, 1005, 20) for _ in range(5)]
    results = []
    for form in ("dense", "grouped"):
        selector = bots(batch_size=8, rollouts=16, representation=form)
        for reference in given:
            state = selector.init(reference)
            assert state.representation == form
            for each in evidence:
                state, info = selector.update(state, each)
            results.append((counts(selector, state), float(info.capability)))
    for (alpha, beta), capability in results[1:]:
        np.testing.assert_allclose(alpha, results[0][0][0], rtol=1e-5)
        np.testing.assert_allclose(beta, results[0][0][1], rtol=1e-5)
        assert capability == pytest.approx(results[0][1], rel=1e-4)


def test_auto_takes_the_cheaper_one() -> None:
    rng = np.random.default_rng(8)
    large = grid_reference(rng, 300_000)
    selector = bots(batch_size=8)
    assert selector.init(large).representation == "grouped"
    assert selector.init(large[:, :1000]).representation == "dense"
    assert selector.init(rng.random((2, 300_000)).astype(np.float32)).representation == "dense"
    assert selector.init(large, Settings(forgetting=0.0)).representation == "dense"
    assert selector.init(large, capacity=300_001).representation == "dense"
    assert bots(batch_size=8, choice="mean").init(large).representation == "dense"
    assert bots(batch_size=8, temperature=0.1).init(large).representation == "dense"


# --- the table -------------------------------------------------------------------------------


def test_the_table_finds_what_it_placed_and_makes_room_by_cost() -> None:
    rng = np.random.default_rng(9)
    size = 4 * table.WAYS
    find, place = jax.jit(table.find), jax.jit(table.place, static_argnums=3)
    ids = jnp.asarray(rng.permutation(10_000)[:200], jnp.int32)
    empty = jnp.full(size, table.FREE, jnp.int32)
    free = lambda at: jnp.zeros(at.shape)  # noqa: E731
    placed = place(empty, ids, jnp.ones(200, bool), free)
    assert int(placed.displaced) == 0
    filled = empty.at[placed.slots].set(ids)
    np.testing.assert_array_equal(find(filled, ids), placed.slots)
    assert np.all(np.asarray(find(filled, ids + 20_000)) == size)
    # Full of others; room is made by the cheapest, and never by those that must be kept.
    crowd = jnp.arange(30_000, 30_000 + size, dtype=jnp.int32)
    prices = jnp.where(jnp.arange(size) % 2 == 0, jnp.inf, jnp.arange(size, dtype=jnp.float32))
    crowded = place(crowd, ids[:5], jnp.ones(5, bool), lambda at: prices[at])
    taken = np.asarray(crowded.slots)
    assert int(crowded.displaced) == 5 == len(set(taken.tolist()))
    assert np.all(taken % 2 == 1)
    for slot in taken:
        bucket = slot // table.WAYS * table.WAYS
        assert slot < bucket + 2 * 5  # among the cheapest of its bucket


def test_with_nothing_forgotten_the_table_grows_on_the_host() -> None:
    rng = np.random.default_rng(10)
    size = 20_000
    reference = grid_reference(rng, size)
    dense, few = (
        bots(
            batch_size=512,
            forgetting=0.0,
            implicit_weight=0.0,
            representation=form,
            slots=slots,
        )
        for form, slots in (("dense", None), ("grouped", 2048))
    )
    states = [dense.init(reference), few.init(reference)]
    start = states[1].pool.slot_ids.shape[0]
    for step in range(12):
        ids = rng.integers(0, size, 512)
        evidence = Evidence(ids, rng.integers(0, 17, 512).astype(np.float32), 16)
        states[0], _ = dense.update(states[0], evidence)
        states[1], info = few.update(states[1], evidence)
        assert int(info.displaced) == 0, step
    assert states[1].pool.slot_ids.shape[0] > start
    np.testing.assert_allclose(counts(dense, states[0]), counts(few, states[1]), rtol=1e-5)


def test_in_traced_code_a_full_table_displaces_and_counts() -> None:
    rng = np.random.default_rng(11)
    selector = bots(batch_size=512, forgetting=0.0, representation="grouped", slots=2048)
    state = selector.init(grid_reference(rng, 20_000))

    @jax.jit
    def run(state: State, ids: jax.Array) -> tuple[State, jax.Array]:
        def step(state: State, ids: jax.Array) -> tuple[State, jax.Array]:
            state, info = selector.update(state, Evidence(ids, jnp.full(512, 3.0), 16))
            return state, info.displaced

        return jax.lax.scan(step, state, ids)

    ids = rng.permutation(20_000)[: 8 * 512].reshape(8, 512)
    state, displaced = run(state, jnp.asarray(ids))
    assert int(displaced.sum()) == 8 * 512 - int(state.pool.slots.active.sum()) > 0
    belief = selector.predict(state, ids[-1])  # the newest are kept
    assert np.mean(np.asarray(belief.concentration) > 15) > 0.9


# --- the rest of the contract -------------------------------------------------------------------


def test_open_visits_and_pending_evidence_survive_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    selector = bots(batch_size=8, representation="grouped", expiry=3)
    state = selector.init(grid_reference(rng, 3000))
    state, first = selector.select(jax.random.key(0), state)
    state = selector.observe(state, Evidence(first.task_ids[:3], np.ones(3), 4, first.visit[:3]))
    checkpoint.save(tmp_path, 1, selector, state)
    restored = checkpoint.restore(tmp_path, selector, state).state
    for old, new in ((state, restored),):
        left, right = (
            selector.update(s, Evidence(first.task_ids, np.full(8, 2.0), 8, first.visit))
            for s in (old, new)
        )
        chex.assert_trees_all_equal(left, right)


def test_pools_grow_and_shrink_on_the_host() -> None:
    rng = np.random.default_rng(13)
    reference = grid_reference(rng, 600, missing=0)
    selector = bots(batch_size=20, representation="grouped")
    state = selector.init(reference)
    state, selection = selector.select(jax.random.key(0), state)
    gone = np.asarray(selection.task_ids[:4])
    state = retire(state, gone)
    state, _ = selector.update(
        state, Evidence(selection.task_ids[4:], np.full(16, 8.0), 16, selection.visit[4:])
    )
    state, ids = add_tasks(state, reference[:, :5])
    np.testing.assert_array_equal(ids, [600, 601, 602, 603, 604])
    assert np.all(np.asarray(selector.predict(state, ids).concentration) == 2)  # fresh
    _, info = selector.update(state, Evidence(gone, np.full(4, 1.0), 16))
    assert (int(info.invalid), int(info.evaluated)) == (4, 0)  # rows of tasks that left
    seen: set[int] = set()
    for step in range(40):
        state, selection = selector.select(jax.random.key(step), state)
        taken = np.asarray(selection.task_ids)[np.asarray(selection.valid)]
        seen |= set(taken.tolist())
    assert seen == set(range(605)) - set(gone.tolist())


def test_nothing_is_compiled_twice_and_a_sweep_is_one_call(compilations: list[str]) -> None:
    selector = grouped(8)
    state = selector.init(REFERENCE)

    def step(state: State, rng_key: jax.Array) -> tuple[State, jax.Array]:
        state, selection = selector.select(rng_key, state)
        successes = (selection.task_ids % 17).astype(jnp.float32)
        evidence = Evidence(selection.task_ids, successes, 16, selection.visit)
        return selector.update(state, evidence)[0], selection.task_ids

    keys = jax.random.split(jax.random.key(0), 6)
    by_hand, chosen = state, []
    for index, key in enumerate(keys):
        by_hand, ids = step(by_hand, key)
        selector.predict(by_hand, ids)
        chosen.append(ids)
        if index == 0:
            compilations.clear()
    assert not compilations

    def run(forgetting: jax.Array) -> tuple[State, jax.Array]:
        changed = state._replace(settings=state.settings._replace(forgetting=forgetting))
        return jax.lax.scan(step, changed, keys)

    swept, ids = jax.jit(jax.vmap(run))(jnp.float32([0.0, 0.1, 0.5]))
    np.testing.assert_array_equal(ids[1], chosen)  # which forget 0.1
    middle = jax.tree.map(lambda leaf: leaf[1], swept)
    np.testing.assert_allclose(
        selector.predict(middle).mean, selector.predict(by_hand).mean, rtol=1e-5
    )


def test_bad_input_is_refused() -> None:
    selector = bots(batch_size=4, representation="grouped")
    with pytest.raises(ValueError, match="more than 4096 distinct"):
        selector.init(np.random.default_rng(0).random((2, 9000)))
    with pytest.raises(ValueError, match="needs a reference and no capacity"):
        selector.init(num_tasks=100)
    with pytest.raises(ValueError, match="serves choice='thompson'"):
        bots(choice="mean", representation="grouped")
    with pytest.raises(ValueError, match="representation='sparse' is not known"):
        bots(representation="sparse")
    with pytest.raises(ValueError, match=r"slots=100 must be a multiple of 64"):
        bots(slots=100)
    with pytest.raises(ValueError, match=r"tolerance=0 must be above 0"):
        bots(tolerance=0)
    with pytest.raises(ValueError, match="must lie in"):
        selector.init(ReferenceCounts(np.full((2, 9), 17), 16))
    with pytest.raises(ValueError, match="sum to 1 to"):
        selector.init(ReferenceGroups(np.zeros((2, 1)), np.array([2**31])))
    with pytest.raises(ValueError, match="which holds its own"):
        selector.init(ReferenceCounts(np.full((2, 9), 1), 16), reference_trials=16)


@pytest.mark.filterwarnings("ignore:one pass over the pool")
def test_all_tasks_return_to_their_groups() -> None:
    """From every part of the table: forgotten, they differ from their group no more."""
    selector = bots(batch_size=8, rollouts=8, forgetting=0.9, representation="grouped", slots=512)
    state = selector.init(np.full((2, 4000), 0.5, np.float32))
    ids = np.arange(0, 4000, 40, dtype=np.int32)
    state, _ = selector.update(state, Evidence(ids, np.full(100, 8.0), 8))
    assert int(state.pool.slots.active.sum()) == 100
    for _ in range(24):
        state, _ = selector.advance(state)
    assert int(state.pool.slots.active.sum()) == 0


def test_the_nearest_of_few_that_are_eligible() -> None:
    """Of twelve, which thinning gives up to find, the eight that are known to be half solved."""
    selector, ids = grouped(8), np.random.default_rng(14).permutation(SIZE)[:12]
    solved = np.where(np.arange(12) % 3 < 2, 1000.0, [1990.0, 10.0] * 6)
    state = selector.init(REFERENCE)
    state, _ = selector.update(state, Evidence(ids, solved, 2000))
    mask = np.zeros(SIZE, bool)
    mask[ids] = True
    _, selection = selector.select(jax.random.key(0), state, mask)
    chosen = np.asarray(selection.task_ids).tolist()
    assert sorted(chosen) == sorted(ids[solved == 1000].tolist())
