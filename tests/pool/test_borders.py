"""At the borders of what a pool takes: each half of each check, and rows judged one by one."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, State, add_tasks, auto, bots
from bots_jax.growth import count_new
from bots_jax.pool.evidence import (
    MOST_TRIALS,
    Rows,
    as_ids,
    as_rows,
    attempts_of,
    extremes,
    sound_numbers,
    validate_evidence,
)
from bots_jax.pool.graded import evidence_of_rewards
from bots_jax.pool.reference import (
    ReferenceCounts,
    ReferenceGroups,
    TaskFeatures,
    broadcast_trials,
    check_given,
    check_rates,
    expand_reference,
    make_reference,
)

N, F32 = 40, jnp.dtype("float32")
RATES = np.full((2, N), 0.5, np.float32)
WIDE = np.zeros((3, N), np.float32)


def integers(*shape: int, fill: int = 1) -> np.ndarray:
    return np.full(shape, fill, np.int32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((TaskFeatures(None, WIDE[0]),), r"embeddings has shape \(40,\), expected \[E, None\]"),
        ((TaskFeatures(None, WIDE), None, 39), r"embeddings has shape \(3, 40\), expected \[E, 39"),
        ((TaskFeatures(None, WIDE[0]), None, 40), r"embeddings has shape \(40,\)"),
        ((TaskFeatures(None, WIDE + np.inf),), "embeddings holds NaN or infinity"),
        ((TaskFeatures(RATES[:, 1:], WIDE),), "embeddings are of 40 tasks, but reference has 39"),
        (
            (TaskFeatures(np.zeros((161, 40)), WIDE[:, :39]),),
            "are of 39 tasks, but reference has 40",
        ),
        ((np.zeros((2, 0)),), r"reference has shape \(2, 0\): it holds no task"),
        ((np.zeros((33, 8)),), r"33 models of 8 tasks look transposed"),
        ((np.zeros((161, 40)),), r"161 models of 40 tasks look transposed"),
        ((np.zeros((2, 3, 4)),), r"reference has shape \(2, 3, 4\), expected \[K, N\]"),
        ((RATES, None, 41), "num_tasks=41, but reference has 40 columns"),
        ((RATES, None, None, 39), "capacity=39 is below the 40 tasks"),
        ((None, [8.0], 40), "reference_trials was given without reference"),
        ((None, None, None), "reference, features and num_tasks are None: give one of them"),
        ((RATES, [8.0]), r"reference_trials has shape \(1,\), expected \(2,\) or \(2, 40\)"),
        ((RATES, [8.0, 0.0]), "reference_trials must be positive"),
        ((RATES, [8.0, -1.0]), "reference_trials must be positive"),
    ],
)
def test_references_refused(given: tuple, message: str) -> None:
    reference, trials, tasks, capacity = (*given, *[None] * (4 - len(given)))
    with pytest.raises(ValueError, match=message):
        make_reference(reference, trials, tasks, capacity, F32)


def test_references_at_the_border_are_taken() -> None:
    """As many models as may be; each model as it is padded; the number of tasks said twice."""
    for rates in (np.zeros((32, 8)), np.zeros((160, 40)), np.zeros((1, 1))):
        known, tasks = make_reference(rates, None, None, None, F32)
        assert (known.rates.shape, tasks) == (rates.shape, rates.shape[1])
    known, tasks = make_reference(np.zeros((33, 8)), None, 8, None, F32)  # said, not guessed
    assert tasks == 8
    known, tasks = make_reference(TaskFeatures(RATES, WIDE), [4.0, 8.0], N, N + 2, F32)
    assert tasks == N
    np.testing.assert_array_equal(known.rates[:, N:], -1)
    np.testing.assert_array_equal(known.trials, [[4.0] * N + [0, 0], [8.0] * N + [0, 0]])
    assert known.embeddings.shape == (3, N + 2)
    none, _ = make_reference(None, None, 5, 7, F32)
    assert none.rates.shape == (0, 7)
    check_rates(np.array([[0.0, 1.0, np.nan]]))
    each = np.arange(1, 2 * N + 1, dtype=float).reshape(2, N)
    np.testing.assert_array_equal(broadcast_trials(each, 2, N, F32), each)


@pytest.mark.parametrize("wrong", [-1e-6, 1 + 1e-6, -np.inf, np.inf])
def test_rates_outside_are_named_where_they_stand(wrong: float) -> None:
    rates = np.zeros((2, 5))
    rates[1, 3] = wrong
    with pytest.raises(ValueError, match=r"reference\[1, 3\]="):
        check_rates(rates)


@pytest.mark.parametrize(
    ("reference", "trials", "message"),
    [
        (ReferenceCounts(integers(2, 9), 16), [16, 16], "ReferenceCounts, which holds its own"),
        (ReferenceGroups(RATES, integers(N)), [16, 16], "ReferenceGroups, which holds its own"),
        (ReferenceCounts(integers(9), 16), None, r"successes has shape \(9,\)"),
        (ReferenceCounts(np.ones((2, 9)), 16), None, "successes has shape .* dtype float64"),
        (ReferenceCounts(integers(2, 9), 16.0), None, r"trials=16.0 must be one whole number"),
        (ReferenceCounts(integers(2, 9), [16] * 3), None, "must be one whole number, or one a"),
        (ReferenceCounts(integers(2, 9, fill=0), 0), None, "trials=0 must be at least 1"),
        (ReferenceCounts(integers(2, 9, fill=-2), 16), None, "but go from -2 to -2"),
        (ReferenceCounts(integers(2, 9, fill=17), 16), None, "but go from 0 to 17"),
        (ReferenceCounts(np.array([[3], [5]]), [4, 4]), None, "but go from 0 to 5"),
        (ReferenceGroups(RATES[0], integers(N)), None, r"rates have shape \(40,\)"),
        (ReferenceGroups(RATES, integers(N - 1)), None, r"sizes \(39,\)"),
        (ReferenceGroups(RATES, np.ones(N)), None, "dtype float64"),
        (ReferenceGroups(RATES[:, :2], np.array([-1, 5])), None, "must not be negative"),
        (ReferenceGroups(RATES[:, :2], np.array([0, 0])), None, "sum to 1 to"),
        (ReferenceGroups(RATES[:, :2], np.array([2**30, 2**30])), None, "not 2147483648"),
        (ReferenceGroups(RATES + 1, integers(N)), None, r"ReferenceGroups.rates\[0, 0\]=1.5"),
    ],
)
def test_counts_and_groups_refused(reference: Any, trials: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_given(reference, trials)


def test_counts_and_groups_at_the_border_are_taken() -> None:
    """And mean the rates that they say."""
    counts = ReferenceCounts(np.array([[0, 3, -1], [4, 1, 8]]), [4, 8])
    sizes = ReferenceGroups(RATES[:, :2], np.array([2**31 - 2, 1]))
    for given in (counts, sizes, ReferenceCounts(integers(2, 9, fill=1), 1)):
        check_given(given, None)
    rates, attempts, _ = expand_reference(counts, None, None)
    np.testing.assert_array_equal(rates, [[0, 0.75, np.nan], [0.5, 0.125, 1]])
    np.testing.assert_array_equal(attempts, [4, 8])
    grouped = ReferenceGroups(np.array([[0.25, 1.0]]), np.array([2, 1]), [16])
    rates, attempts, domains = expand_reference(grouped, None, np.array([3, 1]))
    np.testing.assert_array_equal(rates, [[0.25, 0.25, 1]])
    np.testing.assert_array_equal(domains, [3, 3, 1])
    assert attempts == [16]


@pytest.mark.parametrize(
    ("reference", "tasks", "models", "message"),
    [
        (None, None, 2, "num_tasks is None"),
        (RATES, 39, 2, r"reference has shape \(2, 40\), expected \[2, 39\]"),
        (RATES, None, 3, r"expected \[3, A\]"),
        (RATES[0], None, 40, r"reference has shape \(40,\), expected \[40, A\]"),
        (RATES, None, 0, "the pool was made without references"),
        (ReferenceCounts(integers(2, 9), 16), None, 2, "reference is a ReferenceCounts"),
        (RATES - 1, None, 2, r"reference\[0, 0\]=-0.5"),
    ],
)
def test_new_tasks_refused(reference: Any, tasks: Any, models: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_new(reference, tasks, models)


@cache
def pool(of: str) -> State:
    """With room for three more tasks."""
    given: dict[str, Any] = {
        "plain": {"num_tasks": N},
        "domains": {"num_tasks": N, "domains": integers(N)},
        "rates": {"reference": RATES},
        "attempts": {"reference": RATES, "reference_trials": [8.0, 8]},
        "embeddings": {"reference": TaskFeatures(None, WIDE)},
    }
    return auto(batch_size=4).init(capacity=N + 3, **given[of])


@pytest.mark.parametrize(
    ("of_pool", "of_tasks", "message"),
    [
        ("plain", {"reference_trials": [8.0]}, "reference_trials was given without reference"),
        ("plain", {"num_tasks": 1, "features": WIDE}, "features was given, but the pool was"),
        ("plain", {"num_tasks": 1, "domains": [0]}, "but the pool has no domains"),
        ("domains", {"num_tasks": 1}, "domains=None, but the pool has domains"),
        ("domains", {"num_tasks": 2, "domains": [0]}, r"domains has shape \(1,\)"),
        ("domains", {"num_tasks": 1, "domains": [2]}, r"must lie in \[0, 2\)"),
        ("domains", {"num_tasks": 1, "domains": [-1]}, r"must lie in \[0, 2\)"),
        ("plain", {"num_tasks": 4}, "4 tasks do not fit into 3 free rows"),
        ("rates", {"reference": RATES[:, :1], "reference_trials": [8.0, 8]},
         "reference_trials was given, but the pool was made without"),
        ("attempts", {"reference": RATES[:, :1]},
         "reference_trials is missing"),
        ("embeddings", {"features": WIDE[:2, :1]}, r"finite \[3, A\]"),
        ("embeddings", {"features": WIDE[:, 0]}, r"finite \[3, A\]"),
        ("embeddings", {"features": WIDE[:, :1] + np.inf}, "finite"),
        ("embeddings", {"num_tasks": 2, "features": WIDE[:, :1]},
         "features has 1 rows, expected one for 2 tasks"),
    ],
)  # fmt: skip
def test_growth_refused(of_pool: str, of_tasks: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_tasks(pool(of_pool), **of_tasks)


# --- evidence -------------------------------------------------------------------------------

NUMBERS = [0.0, 1.0, 3.0, 4.0, 4.0001, -1.0, np.nan, np.inf, MOST_TRIALS, 2 * MOST_TRIALS]
PAIRS = list(itertools.product(NUMBERS, NUMBERS))


def is_sound(s: float, n: float) -> bool:
    """Finite, 0 <= s <= n but for rounding, and n a number that floats can count to."""
    return bool(np.isfinite(s) and np.isfinite(n) and 0 <= s <= n * 1.00001 and 0 <= n <= 2**24)


def test_rows_are_judged_alike_on_the_host_and_on_a_device() -> None:
    """But for successes that are NaN: a row that was not scored is no mistake."""
    s, n = (np.array(x, np.float32) for x in zip(*PAIRS, strict=True))
    ids = np.arange(len(s), dtype=np.int32)
    rows = as_rows(Evidence(ids, s, n), F32)
    judged = [is_sound(*map(float, pair)) for pair in zip(s, n, strict=True)]
    np.testing.assert_array_equal(sound_numbers(rows), judged)
    for at, sound in enumerate(judged):
        one = Evidence([0], s[at : at + 1], n[at : at + 1])
        padding = Evidence([-1], s[at : at + 1], n[at : at + 1])
        validate_evidence(padding, 3)
        if (np.isnan(s[at]) and np.isfinite(n[at]) and 0 <= n[at] <= MOST_TRIALS) or sound:
            validate_evidence(one, 3)
        else:
            with pytest.raises(ValueError, match=r"evidence\.(successes|trials)\[0\]"):
                validate_evidence(one, 3)


@pytest.mark.parametrize("wrong", [-2, 3, 2**40])
def test_ids_outside(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"task_ids.* {wrong}, this pool has rows 0 to 2"):
        as_ids("task_ids", np.array([0, wrong]), 3)
    with pytest.raises(ValueError, match=rf"task_ids\[1\]={wrong} is no task of this pool of 3"):
        validate_evidence(Evidence([0, wrong], [0.0, 0.0], 1), 3)
    np.testing.assert_array_equal(as_ids("task_ids", np.array([-1, 0, 2]), 3), [-1, 0, 2])


@pytest.mark.parametrize("attempts", [[-1.0], [np.nan], -1.0])
def test_attempts_that_are_none(attempts: Any) -> None:
    with pytest.raises(ValueError, match=r"evidence.attempts\[0\]=.* must be 0 or more"):
        validate_evidence(Evidence([0], [1.0], [4.0], attempts=attempts), 3)
    validate_evidence(Evidence([0, 1], [1.0, 1], 4.0, attempts=[0.0, np.inf]), 3)


def test_attempts_and_extremes_row_by_row() -> None:
    """What a row stands for, and the shares that tell whether its rewards differ."""
    s, n = (np.array(x, np.float32) for x in zip(*PAIRS, strict=True))
    ids, visit = np.zeros(len(s), np.int32), np.full(len(s), -1, np.int32)
    options = (None, np.float32(-1.0), np.float32(0.0), np.float32(7.0), np.float32(np.inf))
    for told, differ in itertools.product(options, (None, False, True)):
        attempts = None if told is None else jnp.full(len(s), told)
        kinds = None if differ is None else jnp.full(len(s), differ)
        rows = Rows(*map(jnp.asarray, (ids, s, n, visit)), attempts, kinds)
        sound = sound_numbers(rows)
        stands_for = np.asarray(attempts_of(rows, sound, jnp.float32(16)))
        failed, solved = (np.asarray(x).astype(int) for x in extremes(rows))
        for at, (won, tried) in enumerate(zip(s.tolist(), n.tolist(), strict=True)):
            countable = is_sound(won, tried) or 0 < tried <= MOST_TRIALS
            expected = tried if countable else 16
            if told is not None and told >= 0:
                expected = told
            assert stands_for[at] == expected, (won, tried, told)
            if not is_sound(won, tried):
                continue
            share = min(won / tried, 1) if tried > 0 else min(won, 1)
            mixed = 0 < won < tried and tried > 1 if differ is None else differ
            success = round(255 * share)
            pair = (255, 255) if mixed else (255 - success, success)
            assert (failed[at], solved[at]) == pair, (won, tried, differ)


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (Evidence(np.array([0.0]), [1.0], 4), "task_ids has dtype float64, expected integers"),
        (Evidence(np.array([[0]]), [[1.0]], 4), r"task_ids has shape \(1, 1\), expected \[M\]"),
        (Evidence([0], 1.0, 4), r"evidence.successes has shape \(\), expected \(1,\)"),
        (Evidence([0, 1], [1.0], 4), r"evidence.successes has shape \(1,\), expected \(2,\)"),
        (Evidence([0, 1], [1.0, 1], [4.0]), r"evidence.trials has shape \(1,\), expected \(2,\)"),
        (Evidence([0, 1], [1.0, 1], 4, [0]), r"evidence.visit has shape \(1,\)"),
        (Evidence([0, 1], [1.0, 1], 4, attempts=[1.0]), r"evidence.attempts has shape \(1,\)"),
        (Evidence([0, 1], [1.0, 1], 4, differ=[True]), r"evidence.differ has shape \(1,\)"),
    ],
)
def test_columns_that_do_not_fit(evidence: Evidence, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rows(evidence, F32)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_columns_are_widened_and_narrowed(kind: Any) -> None:
    """Scalars of all rows; dtypes of the state."""
    given = Evidence(kind([3, 4]), kind([1, 0]), kind(4), kind(7), attempts=kind(5), differ=kind(1))
    rows = as_rows(given, F32)
    dtypes = [np.dtype(x.dtype).name for x in rows]
    assert dtypes == ["int32", "float32", "float32", "int32", "float32", "bool"]
    expected = [[3, 4], [1, 0], [4, 4], [7, 7], [5, 5], [True, True]]
    for column, values in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(column, values)
    assert as_rows(Evidence([3], [1.0], 4), F32).visit.tolist() == [-1]


def test_what_is_on_a_device_is_not_looked_at() -> None:
    """Which would wait for it: there, rows that make no sense are ignored and counted."""
    validate_evidence(Evidence(jnp.asarray([99]), [9.0], [1.0]), 3)
    validate_evidence(Evidence([0], jnp.asarray([9.0]), [1.0]), 3)
    validate_evidence(Evidence([0], [9.0], jnp.asarray([1.0])), 3)
    with pytest.raises(ValueError, match=r"task_ids\[0\]=99"):
        validate_evidence(Evidence([99], jnp.asarray([9.0]), [1.0]), 3)
    state = bots(batch_size=4).init(num_tasks=N)
    with pytest.raises(ValueError, match="evidence is a dict"):
        bots(batch_size=4).observe(state, {})  # type: ignore[arg-type]
    assert isinstance(state.pool.trials, jax.Array)


@pytest.mark.parametrize("trials", [np.array([4.0, 6.0]), np.array([[4.0, 5, 7], [6, 8, 9]])])
def test_new_tasks_bring_the_trials_of_their_references(trials: np.ndarray) -> None:
    """One number a model, or one a task; those of the old tasks stay."""
    start = bots(batch_size=4).init(RATES, reference_trials=[8.0, 16.0], capacity=N + 3)
    state, ids = add_tasks(start, RATES[:, :3], reference_trials=trials)
    expected = np.broadcast_to(trials if trials.ndim == 2 else trials[:, None], (2, 3))
    assert state.reference.trials is not None
    np.testing.assert_array_equal(state.reference.trials[:, ids], expected)
    np.testing.assert_array_equal(state.reference.trials[:, :N], np.tile([[8.0], [16.0]], N))
    with pytest.raises(ValueError, match="reference_trials is missing"):
        add_tasks(start, RATES[:, :3])


def test_rewards_of_no_rollouts_are_refused() -> None:
    for shape in ((3, 0), (3,), (3, 2, 1)):
        with pytest.raises(ValueError, match=r"expected \[M, n\]"):
            evidence_of_rewards(np.arange(3), np.zeros(shape))
