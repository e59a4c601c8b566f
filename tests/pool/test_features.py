"""What is known of tasks besides pass rates: columns for the regression, and their worth."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bots_jax
from bots_jax import checkpoint
from bots_jax.implicit import glm
from bots_jax.pool.features import encode, encode_as, feature_columns
from bots_jax.pool.reference import TaskFeatures, make_reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.settings import AUTO_DEFAULTS
from bots_jax.strategies import make_strategy


def test_numbers_are_standardised_and_missing_ones_say_nothing() -> None:
    x = np.random.default_rng(0).normal(3, 5, (50, 4))
    x[::7, 1] = np.nan
    x[:, 3] = 2.0
    found = feature_columns(x)
    assert found.shape == (4, 50)
    np.testing.assert_allclose(found[0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), rtol=1e-4)
    known = ~np.isnan(x[:, 1])
    expected = (x[known, 1] - x[known, 1].mean()) / x[known, 1].std()
    np.testing.assert_allclose(found[1, known], expected, rtol=1e-4, atol=1e-6)
    assert not found[1, ~known].any()
    assert not found[3].any()


def test_kinds_get_a_column_each() -> None:
    kind = np.arange(60) % 3
    found = feature_columns((kind, np.array(["a", "b"])[kind // 2], np.ones((60, 1))))
    assert found.shape == (3 + 2 + 1, 60)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)
    apart = [found[:, kind == one] for one in range(3)]
    assert all(np.ptp(part, axis=1).max() < 1e-6 for part in apart)


def test_several_arrays_in_a_list_or_a_mapping() -> None:
    numbers, kind = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 4
    expected = feature_columns((numbers, kind))
    np.testing.assert_array_equal(feature_columns([numbers, kind]), expected)
    np.testing.assert_array_equal(feature_columns({"a": numbers, "b": kind}), expected)
    np.testing.assert_array_equal(feature_columns(numbers.tolist()), feature_columns(numbers))
    assert feature_columns([0.5, 1.5, np.nan]).shape == (1, 3)
    assert feature_columns(["a", "b", "a"]).shape == (2, 3)


def test_later_tasks_are_told_by_the_moments_of_the_first() -> None:
    rng = np.random.default_rng(0)
    given = (
        rng.normal(1e9, 2, (40, 2)),
        np.arange(40) % 3,
        np.array(["a", "bc"])[np.arange(40) % 2],
    )
    columns, code = encode(given)
    np.testing.assert_allclose(columns[:2].std(axis=1), 1, rtol=1e-3)
    np.testing.assert_allclose(columns[:2].mean(axis=1), 0, atol=1e-3)
    part = tuple(array[5:9] for array in given)
    np.testing.assert_array_equal(encode_as(part, code), columns[:, 5:9])
    unknown = encode_as((given[0][:1] * np.nan, np.array([7]), np.array(["zz"])), code)
    np.testing.assert_array_equal(unknown, 0)
    for wrong in (given[:2], (given[1], given[0], given[2])):
        with pytest.raises(ValueError, match=r"made with: numbers \(2\), categories \(2\)"):
            encode_as(wrong, code)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.arange(200), "has 200 categories, at most 128"),
        (np.zeros((4, 4, 4)), "expected"),
        (np.arange(900).reshape(15, 60), "make 900 columns .* at most 256"),
        (np.zeros((9, 257)), "make 257 columns"),
        (np.full((9, 2), np.inf), "holds infinity"),
        ((np.zeros((9, 1)), np.zeros((8, 1))), "one row a task"),
        (np.array([object()] * 5), "has dtype object"),
    ],
)
def test_refused(features: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_columns(features)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_tasks": 10}, "features are of 9 tasks, but num_tasks=10"),
        ({"reference": np.full((2, 10), 0.5)}, "features are of 9 tasks, but reference has 10 col"),
        ({"reference": [[0.5] * 10] * 2}, "features are of 9 tasks, but reference has 10 columns"),
    ],
)
def test_features_of_other_tasks_than_the_rest_are_refused_by_name(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        bots_jax.auto(batch_size=2).init(features=np.zeros((9, 1)), **given)


def test_who_cannot_use_features_says_so() -> None:
    for selector in (bots_jax.bots(batch_size=2), make_strategy("uniform", batch_size=2)):
        with pytest.raises(ValueError, match=r"of no use to .*: leave them out and give num_tasks"):
            selector.init(num_tasks=9, features=np.zeros((9, 1)))


SELECTOR = bots_jax.auto(batch_size=16, rollouts=8)  # kept, or it is compiled for each run


def error_after(features: str | None, seed: int, steps: int = 24) -> float:
    """RMSE over unvisited tasks whose rate follows two numbers, after some steps."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(800, 2))
    rate = 1 / (1 + np.exp(-known @ np.array([1.5, -1.0])))
    given = {"told": known, "noise": rng.normal(size=(800, 32)), None: None}[features]
    selector = SELECTOR
    state = selector.init(num_tasks=800, features=given)
    visited = np.zeros(800, bool)
    for step in range(steps):
        state, batch = selector.select(jax.random.key(seed * 100 + step), state)
        ids = np.asarray(batch.task_ids)
        visited[ids] = True
        rewards = rng.random((16, 8)) < rate[ids][:, None]
        state, _ = selector.update(state, batch.evidence(rewards))
    away = np.asarray(selector.predict(state).mean) - rate
    return float(np.sqrt(np.mean(away[~visited] ** 2)))


def test_features_tell_of_tasks_never_tried() -> None:
    """Means of four pools. 32 columns of noise cost .004 after 24 batches, and .07 if trusted."""
    told, noise, none = (
        np.mean([error_after(what, seed) for seed in range(4)]) for what in ("told", "noise", None)
    )
    assert told < 0.5 * none
    assert noise < none + 0.02
    soon = np.mean([error_after("told", seed, 4) for seed in range(4)])
    assert soon < 0.2 * none  # not held back while most is to be learned


def first(features: object) -> tuple[Any, Any]:
    """What a regression is told of tasks by their features, and its parameters before a step."""
    given = TaskFeatures(None, *encode(features))
    reference, _ = make_reference(given, None, None, None, np.float32)
    return reference, glm().init(reference, 1)


def believed(features: object, rate: np.ndarray, steps: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """p~ f[N] of a regression on features after batches of 16 tasks, each once; and its trust."""
    estimator, rng = glm(), np.random.default_rng(1)
    reference, params = first(features)

    @jax.jit
    def fit(params: Any, known: Any, solved: Any) -> Any:
        fused = StepEvidence(solved, jnp.full(16, 8.0), None, 1)
        return estimator.fit(params, AUTO_DEFAULTS, known, fused)

    for ids in rng.permutation(len(rate))[: 16 * steps].reshape(steps, 16):
        solved = rng.binomial(8, rate[ids]).astype(np.float32)
        params = fit(params, reference.take(jnp.asarray(ids)), jnp.asarray(solved))
    mean = estimator.infer(params, reference, None).mean
    return np.asarray(mean), np.asarray(params.trust)


def test_noise_beside_kinds_costs_no_trust_in_them() -> None:
    """Kinds and numbers are trusted apart."""
    rng = np.random.default_rng(0)
    kind, noise = rng.integers(0, 12, 600), rng.normal(size=(600, 32))
    rate = rng.beta(0.7, 0.7, 12)[kind]
    alone, trust_alone = believed(kind, rate)
    beside, trust = believed((kind, noise), rate)
    assert trust[1] == pytest.approx(trust_alone[1], rel=0.2)  # precisions: of kinds as before
    assert trust[0] > 32 * 4**2  # of noise: 4 to the 2 times its first
    error = [np.sqrt(np.mean((found - rate) ** 2)) for found in (alone, beside)]
    assert error[1] < error[0] + 0.01
    assert first(noise)[1].trust.shape == (2,)  # which of both there is, is not asked


GROWING = {
    "auto": lambda: bots_jax.auto(batch_size=8, rollouts=8),
    "bots": lambda: bots_jax.bots(batch_size=8, rollouts=8, estimator="glm"),
}


@pytest.mark.parametrize("method", GROWING)
def test_a_pool_that_grows_selects_as_one_that_had_all_tasks(
    method: str, compilations: list[str]
) -> None:
    """Ten times a tenth more: the same batches as of a pool of all, the others masked.

    Both have the moments of the first tasks; a task's belief begins when it comes. After the
    first time nothing is compiled.
    """
    rng = np.random.default_rng(0)
    numbers, kind = rng.normal(size=(200, 3)), rng.integers(0, 5, 200)
    rate = 1 / (1 + np.exp(-1.5 * numbers[:, 0] - (kind - 2)))
    selector = GROWING[method]()
    start = (numbers[:100], kind[:100])
    grows = selector.init(features=start, num_tasks=100, capacity=200)
    code = encode(start)[1]
    whole = selector.init(TaskFeatures(None, encode_as((numbers, kind), code), code))
    for turn in range(11):
        active = 100 + 10 * turn
        if turn:
            new = np.arange(active - 10, active)
            grows, ids = bots_jax.add_tasks(grows, features=(numbers[new], kind[new]))
            np.testing.assert_array_equal(ids, new)
            old = jax.numpy.arange(200) < active - 10
            belief = whole.belief.restart(whole.settings, jax.numpy.asarray(new), old)
            whole = whole._replace(belief=belief)
        for step in range(2):
            key = jax.random.key(10 * turn + step)
            grows, one = selector.select(key, grows)
            whole, other = selector.select(key, whole, np.arange(200) < active)
            np.testing.assert_array_equal(one.task_ids, other.task_ids)
            rewards = rng.random((8, 8)) < rate[np.asarray(one.task_ids)][:, None]
            grows, _ = selector.update(grows, one.evidence(rewards))
            whole, _ = selector.update(whole, other.evidence(rewards))
        if turn == 1:
            compilations.clear()
    assert not compilations
    means = [np.asarray(selector.predict(state).mean) for state in (grows, whole)]
    np.testing.assert_array_equal(*means)
    assert np.corrcoef(means[0], rate)[0, 1] > 0.7


def test_growth_refuses_what_does_not_fit() -> None:
    selector = bots_jax.auto(batch_size=2)
    numbers = np.random.default_rng(0).normal(size=(9, 2))
    plain = selector.init(num_tasks=9, capacity=12)
    with pytest.raises(ValueError, match="the pool was made without"):
        bots_jax.add_tasks(plain, features=numbers[:2])
    told = selector.init(features=numbers, num_tasks=9, capacity=12)
    with pytest.raises(ValueError, match="one for 3 tasks"):
        bots_jax.add_tasks(told, num_tasks=3, features=numbers[:2])
    with pytest.raises(ValueError, match="made with"):
        bots_jax.add_tasks(told, features=numbers[:2, :1])
    given = selector.init(TaskFeatures(None, numbers.T), capacity=12)
    with pytest.raises(ValueError, match=r"expected finite \[2, A\]"):
        bots_jax.add_tasks(given, features=numbers[:3])
    state, ids = bots_jax.add_tasks(given, features=numbers[:3].T)
    np.testing.assert_array_equal(state.reference.embeddings[:, ids], numbers[:3].T.astype("f4"))
    state, ids = bots_jax.add_tasks(told, num_tasks=1)
    assert not np.asarray(state.reference.embeddings)[:, ids].any()


def test_a_restored_pool_grows_by_the_same_code(tmp_path: Path) -> None:
    selector = bots_jax.auto(batch_size=2)
    kind = np.array(["red", "green", "blue"])[np.arange(9) % 3]
    state = selector.init(features=kind, num_tasks=9, capacity=12)
    checkpoint.save(tmp_path, 1, selector, state)
    other = selector.init(features=kind[::-1].copy(), num_tasks=9, capacity=12)
    restored = checkpoint.restore(tmp_path, selector, other).state
    for one in (state, restored):
        grown, ids = bots_jax.add_tasks(one, features=kind[:2])
        columns = np.asarray(grown.reference.embeddings)
        np.testing.assert_array_equal(columns[:, ids], columns[:, :2])


# --- many tasks: rough scores first, and fewer bits ---------------------------------------------


def correlated(tasks: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of heavy tails that have much in common, and rates that follow them."""
    rng = np.random.default_rng(0)
    x = rng.standard_t(4, (tasks, size)) @ rng.normal(size=(size, size))
    return x, 1 / (1 + np.exp(-0.3 * x @ rng.normal(size=size)))


EXACT = glm()._replace(infer_roughly=None)
FEW, ALL = "features", "references, domains and features"


@pytest.mark.parametrize(
    ("told", "spread"),
    [
        (ALL, 0.0),
        (FEW, None),
        *(pytest.param(*c, marks=pytest.mark.long) for c in [(FEW, 0.0), (ALL, None)]),
    ],
)
def test_rough_scores_change_no_selection(told: str, spread: float | None) -> None:
    """In a large pool all tasks are scored by a rough variance, and the best by the exact one.

    Where rates are drawn, thousands are as good as the last one chosen, and some change places.
    """
    tasks = 40_000
    x, rate = correlated(tasks, 8)
    known: dict[str, object] = {"features": x}
    if told == ALL:
        reference = np.clip(rate[None] + np.array([[0.1], [-0.1]]), 0, 1)
        known |= {"reference": reference, "domains": np.arange(tasks) % 3}
    selectors = [
        bots_jax.auto(batch_size=32, rollouts=8, estimator=estimator, spread=spread)
        for estimator in ("glm", EXACT)
    ]
    states = [selector.init(**known) for selector in selectors]
    assert not np.array_equal(*(rough_and_exact(selectors[0], states[0])))
    common: list[int] = []
    for step in range(5):
        rewards = np.random.default_rng(step).random((tasks, 8)) < rate[:, None]
        batches = []
        for at, selector in enumerate(selectors):
            states[at], batch = selector.select(jax.random.key(step), states[at])
            if spread is not None or at == 0:  # with draws, both go on from the same state
                told_of = batch.evidence(rewards[batch.task_ids])
                states[at], _ = selector.update(states[at], told_of)
            order = np.argsort(batch.task_ids)  # scores that differ by rounding may change places
            batches.append((np.asarray(batch.task_ids)[order], np.asarray(batch.rate)[order]))
        common.append(np.intersect1d(batches[0][0], batches[1][0]).size)
        if spread is None:
            states[1] = states[0]
        else:
            np.testing.assert_allclose(batches[0][1], batches[1][1], rtol=1e-4)
    assert sum(common) >= 5 * (32 if spread == 0 else 20)


def rough_and_exact(selector: bots_jax.Selector, state: bots_jax.State) -> list[np.ndarray]:
    """Variances of all tasks after a few were seen."""
    told = bots_jax.Evidence(np.arange(64), np.arange(64) % 9, 8.0)
    params = selector.update(state, told)[0].belief.shared.estimator
    known, domain = state.reference, state.pool.domain
    infer = glm()
    assert infer.is_slow(params, known)
    found = [f(params, known, domain) for f in (infer.infer_roughly, infer.infer)]
    np.testing.assert_allclose(found[0].variance.mean(), found[1].variance.mean(), rtol=0.5)
    return [np.asarray(one.variance) for one in found]


# Of a rate: what it may differ by from that of float32, after a few steps.
CLOSE = {"float16": 2e-3, "int8": 5e-2}


@functools.cache
def after_a_step(dtype: str) -> tuple[bots_jax.Selector, bots_jax.State, np.ndarray]:
    """Of a pool that had 290 tasks at first: selector, state, and rates of all 300."""
    x, rate = correlated(300, 8)
    selector = bots_jax.auto(batch_size=4, rollouts=8, features_dtype=dtype)
    state = selector.init(features=x[:290], num_tasks=290, capacity=300)
    state, ids = bots_jax.add_tasks(state, features=x[290:])
    np.testing.assert_array_equal(ids, np.arange(290, 300))
    assert state.reference.embeddings.dtype == dtype
    told = bots_jax.Evidence(np.arange(100), 8 * rate[:100], 8.0)
    state, _ = selector.update(state, told)
    return selector, state, np.asarray(selector.predict(state).mean)


@pytest.mark.parametrize("dtype", CLOSE)
def test_features_in_fewer_bits(dtype: str, tmp_path: Path) -> None:
    x, rate = correlated(300, 8)
    selector, state, means = after_a_step(dtype)
    np.testing.assert_allclose(means, after_a_step("float32")[2], atol=CLOSE[dtype])
    assert np.corrcoef(means[100:], rate[100:])[0, 1] > 0.9
    checkpoint.save(tmp_path, 1, selector, state)
    restored = checkpoint.restore(tmp_path, selector, selector.init(features=x)).state
    assert restored.reference.embeddings.dtype == dtype
    np.testing.assert_array_equal(selector.predict(restored).mean, means)


@pytest.mark.parametrize("dtype", CLOSE)
def test_few_features_in_fewer_bits(dtype: str) -> None:
    """Few are read row by row, where many are converted together."""
    x, rate = correlated(120, 2)
    told = bots_jax.Evidence(np.arange(60), 8 * rate[:60], 8.0)
    means = []
    for kind in ("float32", dtype):
        selector = bots_jax.auto(batch_size=4, rollouts=8, features_dtype=kind)
        state = selector.init(features=100 * x)
        means.append(selector.predict(selector.update(state, told)[0]).mean)
    np.testing.assert_allclose(means[1], means[0], atol=CLOSE[dtype])
    assert np.corrcoef(means[1][60:], rate[60:])[0, 1] > 0.9


def test_features_of_many_tasks_take_half_the_room() -> None:
    selector = bots_jax.auto(batch_size=4)
    for tasks, dtype in ((199_999, np.float32), (200_000, np.float16)):
        embeddings = np.linspace(-1e6, 1e6, tasks, dtype=np.float32)[None]
        held = selector.init(TaskFeatures(None, embeddings)).reference.embeddings
        assert held.dtype == dtype
        assert np.isfinite(held).all()
    with pytest.raises(ValueError, match="features_dtype='int4' is not known: choose one of"):
        bots_jax.auto(features_dtype="int4")


# --- kinds alone: tasks of the same kinds are alike ---------------------------------------------


@pytest.mark.parametrize("with_reference", [False, pytest.param(True, marks=pytest.mark.long)])
def test_kinds_alone_keep_a_pool_grouped(with_reference: bool) -> None:
    """Beliefs are those of a dense pool, of tasks that came later too."""
    rng = np.random.default_rng(0)
    kind, level = rng.integers(0, 5, 600), np.array(["easy", "hard"])[rng.integers(0, 2, 600)]
    rate = 1 / (1 + np.exp(kind - 2.0 - 2 * (level == "easy")))
    reference = rng.integers(0, 4, (1, 600)) / 3 if with_reference else None
    first = None if reference is None else reference[:, :500]
    later = None if reference is None else reference[:, 500:]
    start, new = (kind[:500], level[:500]), (kind[500:], level[500:])
    means = {}
    for representation, room in (("grouped", {}), ("dense", {"capacity": 600})):
        selector = bots_jax.auto(batch_size=8, rollouts=8, representation=representation)
        state = selector.init(first, features=start, num_tasks=500, **room)
        assert state.representation == representation
        for step in range(4):
            if step == 2:
                state, ids = bots_jax.add_tasks(state, later, features=new)
                np.testing.assert_array_equal(ids, np.arange(500, 600))
            at = np.arange(8) * 37 + step
            told = bots_jax.Evidence(at, np.round(8 * rate[at]), 8.0)
            state, _ = selector.update(state, told)
        means[representation] = np.asarray(selector.predict(state).mean)
        batch = selector.select(jax.random.key(0), state)[1]
        assert np.all((means[representation][batch.task_ids] > 0.2) & batch.valid)
    np.testing.assert_allclose(means["grouped"], means["dense"], atol=1e-4)
    assert np.corrcoef(means["dense"], rate)[0, 1] > 0.8


def test_which_features_group_a_large_pool() -> None:
    selector, kind = bots_jax.auto(batch_size=4), np.arange(200_000) % 7
    state = selector.init(features=kind)
    assert state.representation == "grouped"
    assert state.pool.groups.reference.embeddings.shape == (7, 7)
    assert selector.init(features=(kind, kind / 7)).representation == "dense"
    forced = bots_jax.auto(batch_size=4, representation="grouped")
    with pytest.raises(ValueError, match="features that are numbers, set every task apart"):
        forced.init(features=kind[:50] / 7)
    with pytest.raises(ValueError, match="features are of 200000 tasks, but num_tasks=9"):
        selector.init(features=kind, num_tasks=9)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1.0, 1e30])
def test_the_unit_of_a_number_does_not_matter(unit: float) -> None:
    """In small ones a column was taken for a constant."""
    x = np.random.default_rng(0).normal(3, 5, (50, 2))
    x[:, 1] = 2.0
    np.testing.assert_allclose(feature_columns(x * unit), feature_columns(x), rtol=1e-4)
    arrays = bots_jax.features.of_levels([x * unit], components=2)
    np.testing.assert_allclose(arrays, bots_jax.features.of_levels([x], components=2), rtol=1e-4)


def test_none_is_missing() -> None:
    expected = feature_columns(np.array([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]]))
    np.testing.assert_array_equal(feature_columns([[1.0, None], [2.0, 3.0], [4.0, 5.0]]), expected)
    for kinds in ([1, None, 2], ["a", None, "b"]):  # a kind of its own, or none: who knows
        with pytest.raises(ValueError, match="features has dtype object"):
            feature_columns(kinds)


def test_numbers_beyond_32_bits_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="features holds numbers beyond 3e38"):
        feature_columns(np.array([1.0, 2.0, 1e300]))


def test_a_task_far_from_the_first_ones_does_not_spoil_the_others() -> None:
    """The square of what was 1e20 deviations away is no float32: all rates were NaN."""
    selector = bots_jax.auto(batch_size=2, rollouts=4)
    told = np.random.default_rng(0).normal(size=(20, 2))
    state = selector.init(features=told, capacity=30)
    state, ids = bots_jax.add_tasks(state, features=np.array([[1e20, 0.0], [0.0, -1e30]]))
    insert = jax.jit(functools.partial(bots_jax.levels.insert, selector))
    odd = jnp.array([[jnp.inf, 0.0], [jnp.nan, 1e30]])
    state, _, rows = insert(state, jnp.arange(30), jnp.arange(2), features=odd)
    state, _ = selector.update(
        state, bots_jax.Evidence([0, 1, *ids.tolist(), *rows.tolist()], [1.0, 2, 4, 0, 4, 0], 4.0)
    )
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
    assert np.isfinite(np.asarray(selector.predict(state).mean)).all()
