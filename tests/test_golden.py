"""Agreement with trajectories of the authors' own code, and with an independent oracle."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bots_jax import Evidence, Selector, Settings, State, bots
from tests.oracle import Oracle

CASES = (
    "adaptive_rho",
    "default",
    "explicit_only",
    "extrapolation",
    "implicit_only",
    "no_forgetting",
    "paper_base",
)


def golden_case(case: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden, see the README there."""
    return dict(np.load(Path(__file__).parent / "golden" / f"{case}.npz"))


def counts(selector: Selector, state: State) -> tuple[np.ndarray, np.ndarray]:
    belief = selector.predict(state)
    alpha = np.asarray(belief.mean * belief.concentration)
    return alpha, np.asarray(belief.concentration) - alpha


@cache
def paper(adaptive: bool) -> Selector:
    """Compiled once for all cases: their numbers are in the states."""
    return bots(batch_size=16, adaptive_implicit_weight=adaptive)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-5)])
def test_golden(case: str, x64: bool, tolerance: float) -> None:
    golden = golden_case(case)
    place = {int(step): at for at, step in enumerate(golden["kept"])}
    rollouts = golden["rollouts"].item()
    with jax.enable_x64(x64):
        of_case = bots(
            batch_size=16,
            rollouts=rollouts,
            forgetting=golden["forgetting"].item(),
            implicit_weight=golden["implicit_weight"].item(),
            adaptive_implicit_weight=bool(golden["adaptive"]),
        )
        state = of_case.init(np.stack([golden["weak"], golden["strong"]]))
        selector = paper(bool(golden["adaptive"]))
        for step, task_ids in enumerate(golden["task_ids"]):
            evidence = Evidence(task_ids, golden["pass_rates"][step] * rollouts, rollouts)
            state, info = selector.update(state, evidence)
            if step in place:
                alpha, beta = counts(selector, state)
                np.testing.assert_allclose(alpha, golden["alpha"][place[step]], rtol=tolerance)
                np.testing.assert_allclose(beta, golden["beta"][place[step]], rtol=tolerance)
            capability = golden["capability"][step]
            np.testing.assert_allclose(info.capability, capability, rtol=tolerance, atol=tolerance)
            weight = golden["rho_after"][step]
            np.testing.assert_allclose(info.implicit_weight, weight, rtol=tolerance)
    assert sorted(place)[-1] == len(golden["task_ids"]) - 1


PLAIN = bots(batch_size=4, num_domains=3)
ADAPTIVE = bots(batch_size=4, num_domains=3, adaptive_implicit_weight=True)


@given(
    seed=st.integers(0, 2**32 - 1),
    forgetting=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    implicit_weight=st.sampled_from([0.0, 0.1, 1.0]),
    adaptive=st.booleans(),
    domains=st.booleans(),
    missing=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_agrees_with_oracle(
    seed: int,
    forgetting: float,
    implicit_weight: float,
    adaptive: bool,
    domains: bool,
    missing: float,
) -> None:
    """Partial, fractional, repeated and missing evidence; missing references; domains."""
    rng = np.random.default_rng(seed)
    size, rollouts, steps = 24, 8, 5
    reference = np.where(rng.random((2, size)) < missing, np.nan, rng.random((2, size)))
    domain = rng.integers(0, 3, size) if domains else None
    oracle = Oracle(
        reference,
        rollouts,
        forgetting,
        implicit_weight,
        adaptive=adaptive,
        prior=(0.5, 2.0),
        domains=domain,
    )
    settings = Settings(
        rollouts=rollouts,
        forgetting=forgetting,
        implicit_weight=implicit_weight,
        prior_successes=0.5,
        prior_failures=2.0,
    )
    with jax.enable_x64(True):
        selector = ADAPTIVE if adaptive else PLAIN
        state = selector.init(reference, settings, domains=domain)
        for _ in range(steps):
            ids = rng.integers(0, size, 6)
            trials = rng.integers(0, rollouts + 4, 6).astype(float)
            successes = trials * rng.random(6)
            oracle.update(ids, successes, trials)
            state, _ = selector.update(state, Evidence(ids, successes, trials))
        alpha, beta = counts(selector, state)
    np.testing.assert_allclose(alpha, oracle.alpha, rtol=1e-10)
    np.testing.assert_allclose(beta, oracle.beta, rtol=1e-10)
    if missing == 1.0:
        assert not np.any(alpha + beta > 2.5 + (rollouts + 4) * 6 * steps)


def test_a_batch_without_gap_leaves_the_capability_alone() -> None:
    """Our departure from the authors' code, which would divide by 1e-6."""
    reference = np.array([[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]])
    selector = bots(batch_size=1, rollouts=8)
    state = selector.init(reference)
    state, first = selector.update(state, Evidence([0], [4.0], 8))
    state, second = selector.update(state, Evidence([1, 2], [8.0, 8.0], 8))
    assert float(first.capability) == pytest.approx(0.5, abs=1e-5)
    assert float(second.capability) == float(first.capability)


def test_steady_state_of_a_task_never_evaluated() -> None:
    """alpha + beta - 2 tends to rho m / lambda, and to m / lambda if always evaluated."""
    selector = bots(batch_size=1, rollouts=16)
    state = selector.init(np.array([[0.0, 0.2], [1.0, 0.8]]))
    for _ in range(300):
        state, _ = selector.update(state, Evidence([0], [8.0], 16))
    total = np.asarray(selector.predict(state).concentration)
    np.testing.assert_allclose(total - 2, [160, 16], rtol=1e-4)


def test_tasks_without_references_tell_nothing_of_the_capability() -> None:
    selector = bots(batch_size=4)
    rates = np.tile([[0.2], [0.7]], (1, 12)).astype(np.float32)
    rates[:, 6:] = np.nan
    ids, solved = np.arange(8), np.array([2.0, 5, 1, 3, 8, 8, 8, 8])
    found = []
    for rows in (slice(0, 4), slice(0, 8), slice(2, 8)):
        evidence = Evidence(ids[rows] + 2, solved[rows], 8)
        found.append(float(selector.update(selector.init(rates), evidence)[1].capability))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0] != pytest.approx(found[2], abs=1e-3)
