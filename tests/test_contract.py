"""One contract for every registered selector, and the rules of visits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import Evidence, Info, Selection, Selector, State, add_tasks, bots, retire, summary
from bots_jax.strategies import STRATEGIES, make_strategy
from bots_jax.types import (
    AbandonFn,
    AdvanceFn,
    InitFn,
    ObserveFn,
    PredictFn,
    SelectFn,
    UpdateFn,
)

BATCH, ROLLOUTS, TASKS = 5, 8, 60
GROUPED = "bots, grouped"  # another representation behind the same contract
EVERYONE = np.ones(TASKS, bool)
# Pool, visits and checks of values are shared by all that `compose` makes; these stand for it:
# the dense pool, the grouped one, the one that wraps `compose`, and a belief of another shape.
THOROUGH = ("bots", GROUPED, "auto", "kgps")
PROTOCOLS = {
    "init": InitFn,
    "select": SelectFn,
    "observe": ObserveFn,
    "advance": AdvanceFn,
    "update": UpdateFn,
    "abandon": AbandonFn,
    "predict": PredictFn,
}


# Most of what this file takes is compiling: one mask, one number of rows and one size of pool
# throughout, so that each selector compiles `select` and `update` once.
@cache
def selector_of(name: str) -> Selector:
    if name == GROUPED:
        return bots(batch_size=BATCH, rollouts=ROLLOUTS, expiry=3, representation="grouped")
    return make_strategy(name, batch_size=BATCH, rollouts=ROLLOUTS, expiry=3)


SELECTORS = [*sorted(STRATEGIES), GROUPED]


@pytest.fixture(scope="module", params=SELECTORS)
def selector(request: pytest.FixtureRequest) -> Selector:
    return selector_of(request.param)


@pytest.fixture
def state(selector: Selector, reference: np.ndarray) -> State:
    return selector.init(reference)


def rewards(selection: Selection, share: float = 0.5) -> Evidence:
    successes = np.where(selection.valid, share * ROLLOUTS, 0)
    trials = np.where(selection.valid, ROLLOUTS, 0)
    return Evidence(selection.task_ids, successes, trials, selection.visit)


def leaves_equal(left: object, right: object) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def shapes(tree: object) -> list[tuple[tuple[int, ...], object, bool]]:
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


# --- every selector ------------------------------------------------------------------------


def test_argument_names(selector: Selector) -> None:
    for name, protocol in PROTOCOLS.items():
        expected = list(inspect.signature(protocol.__call__).parameters)[1:]
        assert list(inspect.signature(getattr(selector, name)).parameters) == expected, name


def test_selects_distinct_valid_tasks_not_in_flight(selector: Selector, state: State) -> None:
    seen: set[int] = set()
    for step in range(TASKS // BATCH):
        state, selection = selector.select(jax.random.key(step), state, EVERYONE)
        ids = np.asarray(selection.task_ids)
        assert ids.dtype == np.int32
        assert np.all(selection.valid)
        assert np.all(np.asarray(selection.visit) == selection.visit[0])
        assert np.all((ids >= 0) & (ids < TASKS))
        assert not seen & set(ids.tolist())  # nothing came back, so all are still in flight
        seen |= set(ids.tolist())
    assert len(seen) == TASKS
    state, selection = selector.select(jax.random.key(99), state, EVERYONE)
    assert not np.any(selection.valid)
    np.testing.assert_array_equal(selection.task_ids, -1)
    np.testing.assert_array_equal(selection.visit, -1)
    assert np.all(np.isfinite(selection.rate))


def test_mask_and_padding(selector: Selector, state: State) -> None:
    eligible = np.zeros(TASKS, bool)
    eligible[[3, 40, 41]] = True
    state, selection = selector.select(jax.random.key(0), state, eligible)
    ids = np.asarray(selection.task_ids)[np.asarray(selection.valid)]
    assert sorted(ids.tolist()) == [3, 40, 41]
    np.testing.assert_array_equal(np.asarray(selection.task_ids)[~selection.valid], -1)
    state, info = selector.update(state, rewards(selection))
    assert int(info.evaluated) == 3
    assert int(info.invalid) == int(info.stale) == 0


# Other numbers than any strategy has by default.
NUMBERS = {
    "target": 0.2, "rollouts": 3.0, "forgetting": 0.3, "implicit_weight": 0.35,
    "capability_momentum": 0.2, "temperature": 0.7, "prior_successes": 5.0,
    "prior_failures": 3.0, "breadth": 1.3, "group": 3.0,
}  # fmt: skip


def test_numbers_without_effect_are_refused(
    selector: Selector, state: State, reference: np.ndarray
) -> None:
    """`init(settings={"target": ...})` was taken by strategies that look at no target, silently."""
    assert selector.obeys is not None
    ignored = {name: value for name, value in NUMBERS.items() if name not in selector.obeys}
    for name, value in ignored.items():
        with pytest.raises(ValueError, match=f"{name}={value} has no effect on this"):
            selector.init(reference, settings={name: value})
    selector.init(reference, settings={name: NUMBERS[name] for name in selector.obeys})
    # and they have none indeed
    other = state._replace(settings=state.settings._replace(**{
        name: jnp.asarray(value, state.settings.target.dtype) for name, value in ignored.items()
    }))  # fmt: skip
    for step in range(3):
        state, selection = selector.select(jax.random.key(step), state, EVERYONE)
        other, same = selector.select(jax.random.key(step), other, EVERYONE)
        assert leaves_equal(selection, same)
        state, _ = selector.update(state, rewards(selection, step / 2))
        other, _ = selector.update(other, rewards(same, step / 2))
    assert leaves_equal(selector.predict(state), selector.predict(other))
    assert all(name not in summary(state, selector).split("settings: ")[1].splitlines()[0]
               for name in ignored)  # fmt: skip


def test_one_path_whatever_the_representation(
    selector: Selector, state: State, reference: np.ndarray
) -> None:
    """Properties of a state, and `summary`, say the same of dense and grouped pools."""

    def told(state: State) -> tuple[int, ...]:
        numbers = state.num_tasks, state.step, state.in_flight, state.num_batches
        return tuple(map(int, numbers))

    assert state.representation == ("grouped" if selector is selector_of(GROUPED) else "dense")
    assert (*told(state), int(state.capacity), state.num_domains) == (TASKS, 0, 0, 0, TASKS, 1)
    rates = np.asarray(state.known.reference.rates)
    np.testing.assert_array_equal(rates[:, state.column_of(np.arange(TASKS))], reference)
    assert int(state.known.num_tasks.sum()) == TASKS
    state, selection = selector.select(jax.random.key(0), state, EVERYONE)
    assert told(state) == (TASKS, 0, BATCH, 1)
    state, _ = selector.update(state, rewards(selection))
    assert told(state) == (TASKS, 1, 0, 1)
    state = retire(state, [7])
    assert told(state)[0] == int(state.known.num_tasks.sum()) == TASKS - 1
    gone = int(state.column_of(7))
    assert gone == rates.shape[1]
    assert int(state.column_of(TASKS)) == gone
    assert summary(state).startswith(f"{TASKS - 1} tasks, {state.representation}, step 1")


def test_deterministic_and_keeps_structure(selector: Selector, state: State) -> None:
    first, chosen = selector.select(jax.random.key(5), state, EVERYONE)
    again, same = selector.select(jax.random.key(5), state, EVERYONE)
    assert leaves_equal((first, chosen), (again, same))
    after, _ = selector.update(first, rewards(chosen))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert shapes(after) == shapes(state) == shapes(first)
    assert shapes(selector.abandon(first, chosen.task_ids)) == shapes(state)


def test_reports_what_happened(selector: Selector, state: State) -> None:
    state, selection = selector.select(jax.random.key(0), state, EVERYONE)
    successes = np.array([0.0, 8.0, 4.0, 1.0, 0.0])
    evidence = Evidence(selection.task_ids, successes, ROLLOUTS, selection.visit)
    state, info = selector.update(state, evidence)
    assert isinstance(info, Info)
    assert int(info.evaluated) == BATCH
    assert float(info.effective_task_ratio) == pytest.approx(0.4)
    assert float(info.success_rate) == pytest.approx(successes.sum() / (BATCH * ROLLOUTS))
    assert int(info.in_flight) == 0


def test_belief_follows_evidence(selector: Selector, state: State) -> None:
    """Many successes of one task and failures of another move the belief apart."""
    padded = np.pad([7, 8], (0, BATCH - 2), constant_values=-1)
    for _ in range(5):
        state, _ = selector.update(state, Evidence(padded, 8.0 * (padded == 7), 8))
    belief = selector.predict(state, np.array([7, 8]))
    assert float(belief.mean[0]) > 0.8
    assert float(belief.mean[1]) < 0.2
    everything = selector.predict(state)
    assert everything.mean.shape == everything.concentration.shape == (TASKS,)
    np.testing.assert_array_equal(everything.mean[7], belief.mean[0])


def test_a_step_without_evidence(selector: Selector, state: State) -> None:
    state, selection = selector.select(jax.random.key(0), state, EVERYONE)
    nothing = rewards(selection._replace(task_ids=np.full(BATCH, -1), valid=np.zeros(BATCH, bool)))
    state, info = selector.update(state, nothing)
    assert (int(info.evaluated), int(info.invalid), int(info.in_flight)) == (0, 0, BATCH)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state.belief, info)))


@pytest.mark.parametrize(
    "selector",
    [pytest.param(name, marks=() if name in THOROUGH else pytest.mark.long) for name in SELECTORS],
    indirect=True,
    scope="module",
)
def test_runs_in_scan_and_vmap(selector: Selector, state: State) -> None:
    """A whole run inside jit, over four seeds at once, equals the run step by step."""

    def step(state: State, rng_key: jax.Array) -> tuple[State, jax.Array]:
        state, selection = selector.select(rng_key, state, EVERYONE)
        successes = (selection.task_ids % 3).astype(jnp.float32)
        evidence = Evidence(selection.task_ids, successes, ROLLOUTS, selection.visit)
        return selector.update(state, evidence)[0], selection.task_ids

    def run(rng_key: jax.Array) -> tuple[State, jax.Array]:
        return jax.lax.scan(step, state, jax.random.split(rng_key, 6))

    seeds = jax.random.split(jax.random.key(1), 4)
    _, batched = jax.jit(jax.vmap(run))(seeds)
    by_hand, carried = [], state
    for rng_key in jax.random.split(seeds[2], 6):
        carried, ids = step(carried, rng_key)
        by_hand.append(ids)
    np.testing.assert_array_equal(batched[2], by_hand)


def test_grows_and_shrinks(selector: Selector, reference: np.ndarray) -> None:
    if selector.static.get("representation") == "grouped":
        pytest.skip("grouped pools grow without room: tests/test_grouped.py")
    state = selector.init(reference[:, : TASKS - 3], capacity=TASKS)
    before = shapes(state)
    state = retire(state, [0, 1])
    state, ids = add_tasks(state, np.array([[0.2] * 4, [0.6] * 4]))
    assert shapes(state) == before
    np.testing.assert_array_equal(ids, [57, 58, 59, 0])  # fresh rows before used ones
    seen: list[int] = []
    for step in range(12):
        state, selection = selector.select(jax.random.key(step), state, EVERYONE)
        seen += np.asarray(selection.task_ids)[np.asarray(selection.valid)].tolist()
    assert sorted(seen) == [0, *range(2, TASKS)]


# --- what `compose` and the pool do for every selector ------------------------------------

thorough = pytest.mark.parametrize("selector", THOROUGH, indirect=True, scope="module")


@thorough
def test_update_is_observe_then_advance(selector: Selector, state: State) -> None:
    state, selection = selector.select(jax.random.key(0), state, EVERYONE)
    whole, info = selector.update(state, rewards(selection))
    parts, told = selector.advance(selector.observe(state, rewards(selection)))
    assert leaves_equal((whole, info), (parts, told))


@thorough
def test_traced_code_ignores_and_counts_poison(selector: Selector, state: State) -> None:
    evidence = Evidence(
        np.array([-1, 0, 1, 2, 3, 4, TASKS, -7], np.int32),
        np.array([np.nan, np.nan, np.inf, -1, 9, 4, 4, 4], np.float32),
        np.array([8, 8, 8, 8, 8, -1, 8, 8], np.float32),
    )
    poisoned, info = jax.jit(selector.update)(state, evidence)
    clean, _ = selector.advance(state)
    assert int(info.invalid) == 7  # all but the padding
    assert int(info.evaluated) == 0
    assert leaves_equal(clean, poisoned)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((poisoned.belief, info)))


@thorough
def test_numbered_poison_closes_its_visit(selector: Selector, state: State) -> None:
    """Nothing is learned, nobody waits for what cannot come, and the tasks come back."""
    observe = jax.jit(selector.observe)
    state, selection = selector.select(jax.random.key(0), state, EVERYONE)
    successes = np.array([np.nan, np.inf, -1, 9, 4], np.float32)
    trials = np.array([8, 8, 8, 8, np.nan], np.float32)
    ids, visit = selection.task_ids, selection.visit
    clean = selector.abandon(state, ids)
    other = observe(state, Evidence(ids, successes, trials, visit + 1))
    other, info = selector.advance(observe(other, Evidence(ids, successes, trials)))
    # Without a number the first row alone, which was not scored, is of the open visit.
    assert (int(info.invalid), int(info.stale), int(info.in_flight)) == (2 * BATCH, 0, BATCH - 1)
    poisoned = observe(state, Evidence(ids, successes, trials, visit))
    late = observe(poisoned, Evidence(ids, np.full(BATCH, 4.0), 8.0, visit))
    poisoned, info = selector.advance(poisoned)
    assert (int(info.invalid), int(info.evaluated), int(info.in_flight)) == (BATCH, 0, 0)
    assert leaves_equal(selector.advance(clean)[0], poisoned)
    _, info = selector.advance(late)
    assert (int(info.stale), int(info.evaluated)) == (BATCH, 0)
    eligible = np.isin(np.arange(TASKS), ids)
    _, again = selector.select(jax.random.key(1), poisoned, eligible)
    assert sorted(again.task_ids.tolist()) == sorted(ids.tolist())


@thorough
def test_host_refuses_poison(selector: Selector, state: State) -> None:
    with pytest.raises(ValueError, match=r"evidence.successes\[1\]=9.0 exceeds the trials"):
        selector.observe(state, Evidence([3, 4], [8.0, 9.0], 8))
    with pytest.raises(ValueError, match=r"evidence.successes\[0\]=inf is not finite"):
        selector.update(state, Evidence([3], [np.inf], 8))
    with pytest.raises(ValueError, match=r"evidence.task_ids\[0\]=60 is no task of this pool"):
        selector.update(state, Evidence([60], [1.0], 8))


@pytest.mark.parametrize("x64", [False, True])
def test_dtype_follows_the_reference(x64: bool) -> None:
    with jax.enable_x64(x64):
        selector = bots(batch_size=2)
        for given_type in (np.float32, np.float64):
            state = selector.init(np.full((2, 9), 0.5, given_type))
            expected = given_type if x64 else np.float32
            assert selector.predict(state).mean.dtype == expected


# --- visits --------------------------------------------------------------------------------


@cache
def bots_of_four(**settings: object) -> Selector:
    return bots(batch_size=4, rollouts=8, **settings)  # type: ignore[arg-type]


def bots_state(**settings: object) -> tuple[Selector, State, Selection]:
    selector = bots_of_four(**settings)
    state = selector.init(num_tasks=20)
    state, selection = selector.select(jax.random.key(0), state)
    return selector, state, selection


def concentration(selector: Selector, state: State, task: int) -> float:
    return float(selector.predict(state, np.array(task)).concentration)


def test_late_evidence_counts_while_its_visit_is_open() -> None:
    selector, state, selection = bots_state(forgetting=0.0)
    for _ in range(4):
        state, info = selector.advance(state)
    assert int(info.in_flight) == 4
    state, info = selector.update(state, rewards(selection))
    assert (int(info.evaluated), int(info.stale), int(info.in_flight)) == (4, 0, 0)


def test_pieces_count_until_the_trials_are_complete() -> None:
    selector, state, selection = bots_state(forgetting=0.0)
    task, visit = selection.task_ids[:1], selection.visit[:1]
    for _ in range(3):
        state = selector.observe(state, Evidence(task, [2.0], 4, visit))
    state, info = selector.advance(state)
    assert float(info.trials) == 8
    assert int(info.stale) == 1
    assert concentration(selector, state, int(task[0])) == 10


def test_the_step_ends_a_visit_that_brought_something() -> None:
    selector, state, selection = bots_state(forgetting=0.0)
    task, visit = selection.task_ids[:1], selection.visit[:1]
    state, info = selector.update(state, Evidence(task, [2.0], 3, visit))
    assert int(info.in_flight) == 3
    state, info = selector.update(state, Evidence(task, [2.0], 5, visit))
    assert (int(info.evaluated), int(info.stale)) == (0, 1)
    assert concentration(selector, state, int(task[0])) == 5


def test_unnumbered_evidence_always_counts() -> None:
    selector, state, selection = bots_state(forgetting=0.0)
    task = int(selection.task_ids[0])
    other = next(k for k in range(20) if k not in np.asarray(selection.task_ids))
    state, info = selector.update(state, Evidence([task, other], [2.0, 3.0], 8))
    assert (int(info.evaluated), int(info.unsolicited), int(info.in_flight)) == (2, 1, 3)


@pytest.mark.parametrize(
    "lost",
    [
        {"successes": [0.0], "trials": 0, "attempts": np.inf},
        {"successes": [0.0], "trials": 0, "attempts": 8},
        {"successes": [np.nan], "trials": 0},
        {"successes": [np.nan], "trials": 8},
    ],
)
def test_a_visit_told_to_be_lost_or_abandoned_is_stale(lost: dict[str, object]) -> None:
    selector, state, selection = bots_state(forgetting=0.0)
    ids, visit = selection.task_ids, selection.visit
    state = selector.observe(state, Evidence(task_ids=ids[:1], visit=visit[:1], **lost))
    state = selector.abandon(state, ids[1:2])
    state, info = selector.update(state, rewards(selection))
    assert (int(info.evaluated), int(info.stale)) == (2, 2)
    assert concentration(selector, state, int(ids[0])) == 2


def test_evidence_of_an_older_visit_does_not_count_for_a_newer() -> None:
    selector = bots(batch_size=20, rollouts=8)
    state = selector.init(num_tasks=20)
    state, old = selector.select(jax.random.key(0), state)
    state = selector.abandon(state, old.task_ids)
    state, new = selector.select(jax.random.key(1), state)
    _, info = selector.update(state, rewards(old))
    assert (int(info.evaluated), int(info.stale), int(info.in_flight)) == (0, 20, 20)
    _, info = selector.update(state, rewards(new))
    assert (int(info.evaluated), int(info.stale)) == (20, 0)


def test_visits_expire() -> None:
    selector, state, selection = bots_state(expiry=2)
    expired = []
    for _ in range(4):
        state, info = selector.advance(state)
        expired.append(int(info.expired))
    assert expired == [0, 0, 4, 0]
    _, info = selector.update(state, rewards(selection))
    assert int(info.stale) == 4


def test_late_evidence_for_a_retired_task_finds_nobody() -> None:
    selector = bots(batch_size=3, rollouts=8)
    state = selector.init(num_tasks=3, capacity=3)
    state, selection = selector.select(jax.random.key(0), state)
    state, _ = add_tasks(retire(state, [1]), num_tasks=1)
    state, info = selector.update(state, rewards(selection))
    assert (int(info.evaluated), int(info.stale)) == (2, 1)


def _state_after(selector: Selector, state: State, batches: list[Evidence]) -> State:
    for evidence in batches:
        state = selector.observe(state, evidence)
    return selector.advance(state)[0]


COMMUTING = bots(batch_size=8, rollouts=8)


@given(seed=st.integers(0, 2**32 - 1), whole_numbers=st.booleans(), numbered=st.booleans())
def test_observes_commute(seed: int, whole_numbers: bool, numbered: bool) -> None:
    """One call, 32 calls, and random orders: the same state after `advance`."""
    rng = np.random.default_rng(seed)
    selector = COMMUTING
    state = selector.init(rng.random((2, 30)).astype(np.float32))
    state, selection = selector.select(jax.random.key(seed), state)
    pieces = np.repeat(np.arange(8), 4)  # four pieces of two rollouts for each task
    ids = np.asarray(selection.task_ids)[pieces]
    successes = rng.integers(0, 3, 32) if whole_numbers else 2 * rng.random(32)
    successes = successes.astype(np.float32)
    visit = np.asarray(selection.visit)[pieces] if numbered else None

    def rows(order: np.ndarray) -> Evidence:
        return Evidence(ids[order], successes[order], 2, None if visit is None else visit[order])

    together = _state_after(selector, state, [rows(np.arange(32))])
    singly = _state_after(selector, state, [rows(np.array([k])) for k in rng.permutation(32)])
    shuffled = _state_after(selector, state, [rows(rng.permutation(32))])
    compare: Callable[..., None] = np.testing.assert_array_equal
    if not whole_numbers:
        compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    jax.tree.map(compare, together, singly)
    jax.tree.map(compare, together, shuffled)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from([-1, 0, 5])),
        max_size=12,
    )
)
def test_rows_of_one_call_count_the_same_in_any_order(rows: list[tuple[int, int, int]]) -> None:
    """Over-complete, empty, unnumbered and stale rows too: none is late to another."""
    selector = COMMUTING
    state = selector.init(num_tasks=12)
    state, selection = selector.select(jax.random.key(0), state)
    padded = rows + [(-9, 0, -1)] * (12 - len(rows))
    ids = np.array([-1 if task < 0 else int(selection.task_ids[task]) for task, _, _ in padded])
    trials = np.array([n for _, n, _ in padded], np.float32)
    visit = np.array([v for _, _, v in padded])
    together = selector.observe(state, Evidence(ids, trials / 2, trials, visit))
    turned = (x[::-1] for x in (ids, trials / 2, trials, visit))
    backwards = selector.observe(state, Evidence(*turned))
    assert leaves_equal(selector.advance(together), selector.advance(backwards))


# --- visits that stay open over steps -------------------------------------------------------

# The small pool, the one that keeps a list of rows, and the grouped one.
KEPT = {"small": (12, "dense"), "listed": (9000, "dense"), "grouped": (12, "grouped")}


@cache
def kept_open(kind: str) -> tuple[Selector, State, Selection]:
    tasks, representation = KEPT[kind]
    selector = bots(
        batch_size=8, rollouts=8, forgetting=0.0, representation=representation, keep_open=True
    )
    state = selector.init(np.full((2, tasks), 0.5, np.float32))
    return selector, *selector.select(jax.random.key(0), state)


@pytest.mark.parametrize("kind", KEPT)
@given(
    steps=st.lists(
        st.lists(
            st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(0, 5), st.booleans()),
            max_size=6,
        ),
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
def test_attempts_of_an_open_visit_may_straddle_steps(
    kind: str, steps: list[list[tuple[int, int, int, bool]]]
) -> None:
    """Against a ledger: each visit ends when its attempts are in, and nothing before is lost.

    Rows are (task, trials, unscored rollouts, whether its slot says "nothing yet").
    """
    selector, state, selection = kept_open(kind)
    ids, visit = np.asarray(selection.task_ids), np.asarray(selection.visit)
    attempts = np.zeros(8)
    for rows in steps:
        padded = rows + [(-1, 0, 0, True)] * (6 - len(rows))
        place, trials, unscored, silent = (np.array(column) for column in zip(*padded, strict=True))
        trials, unscored = np.where(silent, 0, trials), np.where(silent, 0, unscored)
        was_open = attempts < 8
        stale = np.sum(~was_open[place[place >= 0]])
        counted = np.where((place >= 0) & was_open[place], trials, 0).sum()
        np.add.at(attempts, place[place >= 0], (trials + unscored)[place >= 0])
        evidence = Evidence(
            np.where(place >= 0, ids[place], -1),
            trials / 2,
            trials.astype(np.float32),
            visit[place],
            attempts=(trials + unscored).astype(np.float32),
        )
        state, info = selector.update(state, evidence)
        assert float(info.trials) == counted
        assert (int(info.stale), int(info.in_flight)) == (stale, np.sum(attempts < 8))
    state, info = selector.advance(selector.abandon(state, ids))
    assert int(info.in_flight) == 0


def test_kept_visits_grow_old_and_leave_nothing_behind() -> None:
    selector = bots_of_four(expiry=1, keep_open=True)
    everyone = np.arange(20)
    state, old = selector.select(jax.random.key(0), selector.init(num_tasks=20))
    half = Evidence(old.task_ids, np.full(4, 2.0), 4, old.visit)
    for expired in (0, 4):
        state, info = selector.update(state, half)
        half = half._replace(trials=1, successes=np.zeros(4))
        assert int(info.expired) == expired
    state, new = selector.select(jax.random.key(1), state, np.isin(everyone, old.task_ids))
    assert sorted(new.task_ids.tolist()) == sorted(old.task_ids.tolist())
    state, info = selector.update(state, half._replace(task_ids=new.task_ids, visit=new.visit))
    assert (int(info.in_flight), int(info.stale)) == (4, 0)  # nothing of the old visit counts


@pytest.mark.parametrize("kind", KEPT)
def test_by_default_a_step_ends_visits_of_which_something_came(kind: str) -> None:
    """Scored or not, in any form of the pool; a row of nothing yet is not something."""
    tasks, representation = KEPT[kind]
    selector = bots(batch_size=8, rollouts=8, forgetting=0.0, representation=representation)
    state = selector.init(np.full((2, tasks), 0.5, np.float32))
    state, batch = selector.select(jax.random.key(0), state)
    ids, visit = np.asarray(batch.task_ids)[:3], np.asarray(batch.visit)[:3]
    part = Evidence(ids, np.array([1.0, np.nan, 0.0]), np.array([2.0, 2.0, 0.0]), visit)
    state, info = selector.update(state, part)
    assert (int(info.in_flight), int(info.evaluated)) == (6, 1)
    rest = Evidence(ids, np.array([1.0, 1.0, 1.0]), np.array([6.0, 6.0, 8.0]), visit)
    state, info = selector.update(state, rest)
    assert (int(info.stale), float(info.trials), int(info.in_flight)) == (2, 8, 5)
