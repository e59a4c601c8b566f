"""Learning progress: the average by hand, draws by the change, kinds that move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, auto
from bots_jax.strategies import learning_progress

KINDS = np.repeat([0, 1, 2], 40)


def show(selector: Selector, state: State, rates: np.ndarray, steps: int) -> State:
    """Every third task of each kind, solved at these rates a kind."""
    ids = np.arange(0, 120, 3)
    for _ in range(steps):
        told = Evidence(ids, (8 * rates[KINDS[ids]]).astype(np.float32), 8)
        state, _ = selector.update(state, told)
    return state


def test_average_follows_at_one_over_the_horizon() -> None:
    selector = learning_progress(batch_size=4, rollouts=8, horizon=10)
    state = selector.init(num_tasks=20)
    first = Evidence([0, 1], [8.0, 0.0], 8)
    state, _ = selector.update(state, first)
    slow = np.asarray(selector.predict(state).mean)
    np.testing.assert_allclose(state.belief.slow, slow, rtol=1e-6)
    state, _ = selector.update(state, Evidence([0, 2], [8.0, 4.0], 8))
    slow = slow + 0.1 * (np.asarray(selector.predict(state).mean) - slow)
    np.testing.assert_allclose(state.belief.slow, slow, rtol=1e-5)
    state, _ = selector.advance(state)  # nobody was trained
    np.testing.assert_allclose(state.belief.slow, slow, rtol=1e-5)


@pytest.mark.parametrize("of", ["task", "kind"])
def test_the_kind_that_moves_is_drawn(of: str) -> None:
    """Kind 1 rises, kind 2 falls; kind 0 stays at a half, mixed and worth nothing."""
    selector = learning_progress(batch_size=12, rollouts=8, of=of, novelty=0.0)
    state = show(selector, selector.init(num_tasks=120, domains=KINDS), np.full(3, 0.5), 40)
    state = show(selector, state, np.array([0.5, 0.9, 0.1]), 6)
    drawn = [
        KINDS[np.asarray(selector.select(jax.random.key(i), state)[1].task_ids)] for i in range(50)
    ]
    counts = np.bincount(np.concatenate(drawn), minlength=3)
    assert counts[0] < 0.1 * counts.sum() < 3 * counts[1:].min()


def test_novelty_is_the_share_of_uniform_draws() -> None:
    """3,000 single draws; a chi-squared of 2 degrees beyond 27.6: once in 1e6."""
    selector = learning_progress(batch_size=1, rollouts=8, novelty=0.25)
    state = show(selector, selector.init(num_tasks=120), np.full(3, 0.5), 1)
    rate = selector.predict(state).mean
    change = np.where(np.arange(120) < 2, [0.3, 0.1] * 60, 0).astype(np.float32)
    state = state._replace(belief=state.belief._replace(slow=jnp.abs(rate - change)))
    keys = jax.random.split(jax.random.key(0), 3000)
    ids = np.asarray(jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0])(keys))
    seen = np.bincount(np.minimum(ids, 2), minlength=3)
    expected = 3000 * np.array(
        [0.75 * 0.75 + 0.25 / 120, 0.25 * 0.75 + 0.25 / 120, 0.25 * 118 / 120]
    )
    assert ((seen - expected) ** 2 / expected).sum() < 27.6


def test_before_anything_changed_all_are_alike() -> None:
    selector = learning_progress(batch_size=1, rollouts=8, novelty=0.0)
    state = selector.init(num_tasks=4)
    keys = jax.random.split(jax.random.key(1), 400)
    ids = jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0])(keys)
    assert np.bincount(np.asarray(ids), minlength=4).min() > 60  # by chance: 1 in 1e5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"of": "pool"}, "of='pool' is not known"), ({"horizon": 0}, r"horizon=0 must lie in \[1")],
)
def test_errors_name_argument_and_value(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_progress(**settings)


def test_what_it_believes_is_what_auto_believes() -> None:
    """Trust in references and the speed of change are learned, in both."""
    rng = np.random.default_rng(0)
    references = rng.random((2, 24)).astype(np.float32)
    ours, theirs = learning_progress(batch_size=4, rollouts=8), auto(batch_size=4, rollouts=8)
    mine, other = ours.init(references), theirs.init(references)
    for step in range(20):
        ids = rng.choice(24, 4, replace=False)
        evidence = Evidence(ids, rng.binomial(8, 1 - references[1, ids]).astype(np.float32), 8.0)
        mine, _ = ours.update(mine, evidence)
        other, _ = theirs.update(other, evidence)
        for found, expected in zip(ours.predict(mine), theirs.predict(other), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"step {step}")
