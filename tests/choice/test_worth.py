"""What a task is worth: by name, by a function, and that it is what the gradient moves by."""

from __future__ import annotations

import re
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots_jax import Evidence, auto
from bots_jax.belief.logit_normal import Expected
from bots_jax.choice.worth import WORTHS, find_worth, optimistic
from bots_jax.rl.policy_gradient import Estimator, advantages

RATES = np.linspace(0.01, 0.99, 60).astype(np.float32)


def value(name: Any, rate: np.ndarray, rollouts: float) -> np.ndarray:
    return 1 - np.asarray(find_worth(name).lack(jnp.asarray(rate), jnp.float32(rollouts)))


def squared(rate: jax.Array, rollouts: jax.Array) -> jax.Array:
    return jnp.square(1 - rate)


def wide(rate: jax.Array, rollouts: jax.Array) -> jax.Array:
    return rate * rollouts


@pytest.mark.parametrize("rollouts", [2, 3, 8, 64])
def test_equations(rollouts: int) -> None:
    p = RATES.astype(np.float64)
    grid = np.linspace(0, 1, 20_001)
    gain = 1 - (1 - p) ** rollouts - p
    most = np.max(1 - (1 - grid) ** rollouts - grid)
    np.testing.assert_allclose(value("variance", RATES, rollouts), 4 * p * (1 - p), atol=1e-6)
    np.testing.assert_allclose(value("pass_gain", RATES, rollouts), gain / most, atol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "name", "scale"),
    [("dr_grpo", "variance", 4 / (1 - 1 / 8)), ("maxrl", "pass_gain", None)],
)
def test_worth_is_the_expected_step(estimator: Estimator, name: str, scale: float | None) -> None:
    """E sum A_i R_i / m over k successes of m is the worth, to its scale."""
    m, p = 8, RATES.astype(np.float64)
    groups = (np.arange(m) < np.arange(m + 1)[:, None]).astype(np.float32)
    step = np.mean(np.asarray(advantages(jnp.asarray(groups), estimator)) * groups, axis=1)
    chance = np.array([comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m + 1)])
    expected = step @ chance
    grid = np.linspace(0, 1, 20_001)
    factor = 1 / np.max(1 - (1 - grid) ** m - grid) if scale is None else scale
    np.testing.assert_allclose(value(name, RATES, m), expected * factor, atol=1e-5)


@given(st.sampled_from(WORTHS), st.integers(1, 127))
def test_at_most_one(name: str, rollouts: int) -> None:
    found = value(name, np.float32([0, 1e-6, 0.02, 0.17, 0.5, 0.9, 1]), rollouts)
    assert np.all((found >= -1e-6) & (found <= 1 + 1e-6))


@pytest.mark.parametrize("worth", ["pass_gain", squared])
def test_what_is_unknown_is_hoped_to_be_best(worth: Any) -> None:
    """Where nothing is known the rate is that of the largest worth, else the mean."""
    found = find_worth(worth)
    logits, m = jnp.asarray([-3.0, 0.0, 3.0]), jnp.float32(8)
    nothing = Expected(logits, jnp.zeros(3), jnp.full(3, 1e6))
    rates = np.asarray(optimistic(found, nothing, m))
    assert np.all(value(worth, rates, 8) > value(worth, RATES, 8).max() - 0.01)
    known = np.asarray(optimistic(found, Expected(logits, jnp.zeros(3), jnp.zeros(3)), m))
    np.testing.assert_allclose(known, 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-6)


@pytest.mark.parametrize("representation", ["dense", "grouped"])
def test_the_most_worth_are_chosen(representation: str) -> None:
    """Known rates, no price: the best by each worth, in a pool of either kind."""
    rates = np.repeat(np.float32([0.02, 0.15, 0.5, 0.9]), 50)
    best = {"variance": 0.5, "pass_gain": 0.15, squared: 0.02}
    selectors = {
        worth: auto(
            batch_size=8, rollouts=16, worth=worth, breadth=0.0, representation=representation,
            forgetting=0.0,
        )
        for worth in best
    }  # fmt: skip
    learns = selectors["variance"]  # what is believed does not depend on the worth
    state = learns.init(np.stack([rates, rates]))
    for _ in range(30):  # all of them, so that little is left to hope for
        trials = np.full(200, 400, np.float32)
        state, _ = learns.update(state, Evidence(np.arange(200), 400 * rates, trials))
    for worth, wanted in best.items():
        _, batch = selectors[worth].select(jax.random.key(0), state)
        np.testing.assert_array_equal(rates[np.asarray(batch.task_ids)], np.float32(wanted))


def test_a_function_makes_equal_selectors() -> None:
    assert auto(worth=squared) is auto(worth=squared)
    assert auto(worth=squared) != auto(worth="variance")
    assert auto(worth=squared).static["worth"] == f"{__name__}.squared"


@pytest.mark.parametrize(
    ("worth", "message"),
    [
        ("rare", "worth='rare' is not known: choose one of mixed, variance, pass_gain"),
        (3, "worth=3 must be one of mixed, variance, pass_gain, or a function of p and m"),
        (wide, "wide is 1.0078125 at p=0.504, m=2, and must lie in [0, 1]"),
        (lambda p, m: jnp.max(p), "returned shape () for p of shape (257,)"),
        (lambda p: p, "it must take arrays p f[...] and m f[]"),
        (lambda p, m: jnp.log(p), "is -inf at p=0, m=2"),
    ],
)  # fmt: skip
def test_errors_name_the_way_out(worth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        auto(worth=worth)
