"""What a user handles: factories, selectors as values, evidence of rewards, errors that help."""

from __future__ import annotations

import doctest
import importlib
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bots_jax
from bots_jax import Evidence, Selection, auto, bots, summary
from bots_jax.strategies import STRATEGIES, make_strategy

REFERENCE = np.sort(np.random.default_rng(0).random((2, 60)), axis=0).astype(np.float32)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_selector_equals_an_identical_build(name: str) -> None:
    one, same = make_strategy(name, batch_size=4), make_strategy(name, batch_size=4)
    assert one == same
    assert hash(one) == hash(same)
    assert one != make_strategy(name, batch_size=5)
    assert pickle.loads(pickle.dumps(one)) == one


def test_equal_numbers_of_other_types_are_other_builds_only_where_it_matters() -> None:
    assert bots(rollouts=8) == bots(rollouts=8)
    assert bots(forgetting=0.1) != bots(forgetting=0.2)
    assert bots() != auto()


def test_a_selector_is_a_static_argument(compilations: list[str]) -> None:
    @partial(jax.jit, static_argnums=0)
    def choose(selector: bots_jax.Selector, state: bots_jax.State, key: jax.Array) -> jax.Array:
        return selector.select(key, state)[1].task_ids

    state = auto(batch_size=4).init(REFERENCE)
    first = choose(auto(batch_size=4), state, jax.random.key(0))
    before = len(compilations)
    np.testing.assert_array_equal(first, choose(auto(batch_size=4), state, jax.random.key(0)))
    assert len(compilations) == before


# Every argument of the two factories at two values that must lead to other beliefs or selections.
OTHER: dict[Any, dict[str, Any]] = {
    bots: {
        "batch_size": 6,
        "rollouts": 2,
        "target": 0.9,
        "forgetting": 0.9,
        "implicit_weight": 0.9,
        "capability_momentum": 0.0,
        "adaptive_implicit_weight": True,
        "temperature": 1.0,
        "prior": (9.0, 1.0),
        "estimator": "logit",
        "choice": "mean",
        "exploration": 0.5,
        "quotas": (4, 0),
        "expiry": 1,
        "dtype": "float32",
    },
    auto: {
        "batch_size": 6,
        "rollouts": 2,
        "breadth": 5.0,
        "forgetting": 0.9,
        "implicit_weight": 0.01,
        "temperature": 1.0,
        "estimator": "logit",
        "choice": "mean",
        "worth": "pass_gain",
        "floor": 1.0,
        "exploration": 0.5,
        "quotas": (4, 0),
        "expiry": 1,
    },
}
CASES = [(factory, name) for factory, values in OTHER.items() for name in values]
SAME = {"dtype"}  # float32 is what a float32 reference leads to


def trail(factory: Any, **arguments: Any) -> list[np.ndarray]:
    """Selections and beliefs of some steps, evidence of the first batch held back."""
    selector = factory(**{"batch_size": 4, "rollouts": 8, **arguments})
    # Wrong by more than .25, so that implicit evidence may be trusted less.
    rates = 1 - REFERENCE.mean(axis=0)
    state = selector.init(REFERENCE, domains=np.arange(60) % 2)
    told = []
    for step in range(24):
        state, batch = selector.select(jax.random.key(step), state)
        told += [np.asarray(batch.task_ids), np.asarray(state.pool.in_flight)]
        if step:
            draw = np.random.default_rng(step).random((len(batch.task_ids), 8))
            rewards = draw < rates[np.asarray(batch.task_ids)][:, None]
            state, _ = selector.update(state, batch.evidence(rewards))
        told.append(np.asarray(selector.predict(state).mean))
    return told


@pytest.mark.parametrize(("factory", "name"), CASES)
def test_every_argument_does_something(factory: Any, name: str) -> None:
    if name in SAME:
        return
    plain, other = trail(factory), trail(factory, **{name: OTHER[factory][name]})
    same = all(
        a.shape == b.shape and np.array_equal(a, b) for a, b in zip(plain, other, strict=True)
    )
    assert not same, f"{factory.__name__}({name}=...) changes nothing"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: auto(target=0.3), "target=0.3 has no effect"),
        (lambda: auto(choice="mean", breadth=0.1), "breadth=0.1 has no effect"),
        (lambda: auto(choice="mean", worth="variance"), "worth=variance has no effect"),
        (lambda: bots(estimator="glm", capability_momentum=0.5), "capability_momentum=0.5 smooths"),
        (lambda: bots(estimator="none", implicit_weight=0.5), "estimator='none' infers nothing"),
    ],
)
def test_arguments_without_a_use_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- evidence of a batch ----------------------------------------------------------------------


def batch_of(count: int, valid: int) -> Selection:
    is_valid = np.arange(count) < valid
    ids = np.where(is_valid, np.arange(count) + 10, -1)
    return Selection(
        jnp.asarray(ids), jnp.zeros(count), jnp.asarray(is_valid), jnp.where(is_valid, 7, -1)
    )


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=5, max_size=5),
        min_size=4,
        max_size=4,
    ),
    valid=st.integers(0, 4),
    order=st.permutations(range(5)),
)
def test_lost_rollouts_count_for_nothing(rewards: list, valid: int, order: list[int]) -> None:
    """Whatever their place; the sums are those of what was scored."""
    given_rewards = np.array(rewards)
    told = batch_of(4, valid).evidence(given_rewards)
    scored = ~np.isnan(given_rewards)
    np.testing.assert_array_equal(told.trials, scored.sum(axis=1))
    np.testing.assert_allclose(told.successes, np.nansum(given_rewards, axis=1), atol=1e-6)
    np.testing.assert_array_equal(
        told.task_ids, np.where(np.arange(4) < valid, np.arange(4) + 10, -1)
    )
    shuffled = batch_of(4, valid).evidence(given_rewards[:, order])
    np.testing.assert_array_equal(told.trials, shuffled.trials)
    np.testing.assert_allclose(told.successes, shuffled.successes, atol=1e-6)


def test_graded_rewards_keep_their_mean() -> None:
    rewards = np.random.default_rng(1).uniform(-1, 3, size=(4, 6))
    rewards[0, 2] = np.nan
    told = batch_of(4, 4).evidence(rewards, low=-1, high=3)
    expected = (np.nanmean(rewards, axis=1) + 1) / 4
    np.testing.assert_allclose(told.successes / told.trials, expected, rtol=1e-5)
    assert np.all(np.asarray(told.trials) >= [5, 6, 6, 6])


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \(3, 2\), expected \[4, G\]"):
        batch_of(4, 4).evidence(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"is outside \[low, high\]"):
        batch_of(4, 4).evidence(np.full((4, 2), -np.inf))


# --- arguments in another order ---------------------------------------------------------------


@pytest.mark.parametrize("factory", [auto, bots, STRATEGIES["uniform"]])
def test_swapped_arguments_are_told(factory: Any) -> None:
    selector = factory(batch_size=4)
    state = selector.init(REFERENCE)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"select\(rng_key, state\)"):
        selector.select(state, key)
    evidence = Evidence(np.array([1]), np.array([1.0]), 1)
    with pytest.raises(ValueError, match=r"update\(state, evidence\)"):
        selector.update(evidence, state)


def test_a_transposed_reference_is_told() -> None:
    with pytest.raises(ValueError, match=r"look transposed; give reference\.T"):
        auto(batch_size=1).init(np.zeros((100, 2)))


@pytest.mark.parametrize("method", ["update", "observe", "abandon", "predict"])
@pytest.mark.parametrize("wide", [2**32 + 5, 2**40, -(2**32) + 5])
def test_wide_ids_are_looked_at_before_they_are_narrowed(method: str, wide: int) -> None:
    selector = auto(batch_size=4)
    state = selector.init(REFERENCE)
    ids = np.array([wide])
    given_ids = Evidence(ids, [1.0], 1) if method in ("update", "observe") else ids
    with pytest.raises(ValueError, match=str(wide)):
        getattr(selector, method)(state, given_ids)


def test_summary_fits_a_screen() -> None:
    selector = auto(batch_size=4)
    text = summary(selector.init(REFERENCE))
    assert len(text.splitlines()) <= 16
    assert text.startswith("60 tasks, dense, step 0")


@pytest.mark.parametrize("module", ["auto_selector", "bots_selector", "summary"])
def test_examples_of_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"bots_jax.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
