"""What is known of tasks, with holes, in odd types and numbers, dense and in groups alike."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Selector, add_tasks, auto, bots
from bots_jax.pool.reference import ReferenceCounts, ReferenceGroups

RATES = np.tile([[0.0, 0.5], [0.5, 1.0]], 2)
KINDS = ("dense", "grouped")


def make(representation: str, **options: Any) -> Selector:
    return bots(batch_size=4, rollouts=4, representation=representation, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_holes_in_references(kind: str) -> None:
    """None and a mask are NaN: unknown."""
    rates = np.where(RATES < 0.5, np.nan, RATES)
    listed = [[None if np.isnan(x) else float(x) for x in row] for row in rates]
    for given in (rates, listed, np.ma.array(RATES, mask=RATES < 0.5)):
        state = make(kind).init(given)
        known = np.asarray(state.known.reference.rates)[:, np.asarray(state.column_of(range(4)))]
        np.testing.assert_array_equal(known, np.where(RATES < 0.5, -1, RATES))
    capacity = 6 if kind == "dense" else None
    state, ids = add_tasks(make(kind).init(RATES, capacity=capacity), [[None, 0.5], [0.5, None]])
    known = np.asarray(state.known.reference.rates)[:, np.asarray(state.column_of(ids))]
    np.testing.assert_array_equal(known, [[-1, 0.5], [0.5, -1]])


def test_holes_in_features() -> None:
    numbers = np.random.default_rng(0).normal(size=(40, 2))
    hidden = np.arange(80).reshape(40, 2) % 7 == 0
    selector = auto(batch_size=4)
    expected = selector.init(features=np.where(hidden, np.nan, numbers)).reference.embeddings
    found = selector.init(features=np.ma.array(numbers, mask=hidden)).reference.embeddings
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="hide entries by a mask"):
        selector.init(features=np.ma.array(np.arange(40) % 3, mask=hidden[:, 0]))


def test_features_of_16_bits_are_numbers() -> None:
    numbers = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)), jnp.bfloat16)
    selector = auto(batch_size=4)
    expected = selector.init(features=np.asarray(numbers.astype(jnp.float32)))
    found = selector.init(features=numbers)
    np.testing.assert_array_equal(found.reference.embeddings, expected.reference.embeddings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reference": [["a"] * 4] * 2}, "reference has dtype <U1, expected numbers"),
        ({"reference": [[0, 1, 1, 1], [1]]}, "reference is no array of numbers"),
        ({"domains": ["a", "b", "a", "b"]}, "domains has dtype <U1, expected numbers"),
        ({"domains": [0, 0.5, 1, 1]}, r"domains has shape \(4,\) and dtype float64"),
        ({"domains": np.ma.array([0, 1, 1, 0], mask=[1, 0, 0, 0])}, "domains has .* float64"),
        ({"domains": [0, 1, 1]}, r"domains has shape \(3,\) and dtype int64, expected integers"),
        ({"domains": [0, -1, 1, 1]}, "domains must lie in"),
        ({"domains": np.array([0, 2**32 + 1, 1, 1])}, "go up to 4294967297, with 4 tasks: number"),
        ({"domains": [0, 1024, 1, 1]}, "domains go up to 1024, with 4 tasks: number them from 0"),
        ({"reference_trials": [8, 0]}, "reference_trials must be positive"),
        ({"reference_trials": [8, None]}, "reference_trials must be positive"),
        ({"reference_trials": np.ma.array([8, 8], mask=[0, 1])}, "reference_trials must be posit"),
    ],
)
def test_refused(kind: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind).init(**{"reference": RATES, **given})


@pytest.mark.parametrize("kind", KINDS)
def test_domains_of_new_tasks(kind: str) -> None:
    start = make(kind, num_domains=2).init(
        RATES, domains=[0, 0, 1, 1], capacity=6 if kind == "dense" else None
    )
    for wrong, message in (
        (np.array([2**32, 2**32 + 1]), "domains contains 4294967296"),  # was [0, 1]
        ([0.5, 1.7], "domains has dtype float64"),  # was [0, 1]
        ([0], r"domains has shape \(1,\), expected \(2,\)"),  # was [0, 0] in groups
        ([-1, 0], r"domains must lie in \[0, 2\)"),
        ([0, 2], r"domains must lie in \[0, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            add_tasks(start, RATES[:, :2], domains=wrong)
    state, ids = add_tasks(start, RATES[:, :2], domains=[1, 0])
    assert state.known.domain is not None
    assert np.asarray(state.known.domain)[np.asarray(state.column_of(ids))].tolist() == [1, 0]


def test_domains_up_to_1023_and_as_many_as_tasks() -> None:
    for kind in KINDS:
        assert make(kind).init(RATES, domains=[0, 1023, 1, 1]).num_domains == 1024
        assert make(kind, num_domains=2000).init(RATES, domains=[0, 3, 1, 1]).num_domains == 2000
    assert make("dense").init(num_tasks=2000, domains=np.arange(2000)).num_domains == 2000


def test_holes_in_records() -> None:
    hidden = np.ma.array([[0.1, 0.2], [0.5, 0.5]], mask=[[1, 0], [0, 0]])
    state = make("grouped").init(ReferenceGroups(hidden, [2, 2]))
    known = np.asarray(state.known.reference.rates)[:, np.asarray(state.column_of(range(4)))]
    np.testing.assert_allclose(known, [[-1, -1, 0.2, 0.2], [0.5] * 4])
    counts = np.ma.array([[1, 2, 3, 4]] * 2, mask=[[1, 0, 0, 0]] * 2)
    with pytest.raises(ValueError, match="float64, expected integers"):
        make("dense").init(ReferenceCounts(counts, 8))


@pytest.mark.parametrize(
    ("rates", "sizes"),
    [([0.1, 0.2], 4), ([[[0.1, 0.2]] * 2] * 2, [[2, 2]] * 2), ([[0.1, 0.2]], [2]), (0.5, [2])],
)
def test_groups_of_other_shapes(rates: Any, sizes: Any) -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"ReferenceGroups: rates have .* expected \[K, G\]"):
            make(kind).init(ReferenceGroups(rates, sizes))
