"""DPS: the hidden Markov model against a plain NumPy forward filter in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, add_tasks
from bots_jax.strategies import dps
from bots_jax.strategies.dps import PRIORS


class Filter:
    """One task, by the equations of the paper; no code shared with the package."""

    def __init__(self, prior: np.ndarray, decay: float) -> None:
        self.prior, self.decay = prior, decay
        self.counts = prior.copy()
        self.before = np.full(3, 1 / 3)
        self.ahead = np.full(3, 1 / 3)

    def step(self, outcome: int | None) -> None:
        """One time step in which `outcome` was seen, or nothing."""
        chances = np.zeros((3, 3))
        for i in range(3):
            chances[:, i] = self.counts[:, i] / self.counts[:, i].sum()
        now = self.ahead if outcome is None else np.eye(3)[outcome]
        self.counts = self.decay * self.counts + (1 - self.decay) * self.prior
        if outcome is not None:
            moved = np.zeros((3, 3))
            for i in range(3):
                for j in range(3):
                    moved[j, i] = now[j] * self.before[i] * chances[j, i]
            self.counts += moved / moved.sum()
        self.before = now
        self.ahead = (self.counts / self.counts.sum(axis=0)) @ now


def test_priors() -> None:
    """A pseudo-count each; half of one for a step back (progress), or any change (stability)."""
    assert np.array_equal(PRIORS["uniform"], np.ones((3, 3)))
    assert np.array_equal(PRIORS["progress"], 0.5 + 0.5 * np.tri(3))
    assert np.array_equal(PRIORS["stability"], 0.5 + 0.5 * np.eye(3))


@pytest.mark.parametrize("prior", sorted(PRIORS))
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_filter_against_numpy(prior: str, decay: float) -> None:
    rng, size = np.random.default_rng(0), 6
    selector = dps(batch_size=2, rollouts=8, decay=decay, prior=prior)
    state = selector.init(num_tasks=size)
    filters = [Filter(np.array(PRIORS[prior]), decay) for _ in range(size)]
    for _ in range(25):
        ids = rng.choice(size, 3, replace=False)
        won = rng.choice([0, 3, 8], 3)
        state, _ = selector.update(state, Evidence(ids, won, 8))
        outcomes = dict(zip(ids.tolist(), won.tolist(), strict=True))
        for task, plain in enumerate(filters):
            seen = outcomes.get(task)
            plain.step(None if seen is None else {0: 0, 3: 1, 8: 2}[seen])
    expected = np.array([plain.ahead for plain in filters])
    np.testing.assert_allclose(state.belief.memory.predicted, expected, atol=2e-6)
    counts = np.array([plain.counts for plain in filters])
    np.testing.assert_allclose(state.belief.memory.transitions, counts, rtol=1e-5)
    _, chosen = selector.select(jax.random.key(0), state)
    np.testing.assert_array_equal(chosen.task_ids, np.argsort(-expected[:, 1])[:2])


def seen(selector: Selector, state: State, won: list[float]) -> State:
    for s in won:
        state, _ = selector.update(state, Evidence([0], [s], 8))
    return state


def test_transitions_are_counted() -> None:
    """By hand, nothing forgotten: none, none, some: from none, 1 + 1 to none, 1 + 1 to some.

    The first transition came from an unknown state: a third of it from each.
    """
    selector = dps(batch_size=1, decay=1.0)
    state = seen(selector, selector.init(num_tasks=1), [0, 0, 3])
    expected = np.ones((3, 3))
    expected[0] += 1 / 3
    expected[0, 0] += 1
    expected[1, 0] += 1
    np.testing.assert_allclose(state.belief.memory.transitions[0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        state.belief.memory.predicted[0], expected[:, 1] / expected[:, 1].sum()
    )


def test_prefers_what_is_expected_to_be_mixed_and_forgets() -> None:
    selector = dps(batch_size=1, rollouts=8)
    state = selector.init(num_tasks=3)
    for _ in range(4):
        state, _ = selector.update(state, Evidence([0, 1, 2], [0.0, 5.0, 8.0], 8))
    assert selector.select(jax.random.key(0), state)[1].task_ids[0] == 1
    for _ in range(60):
        state, _ = selector.advance(state)
    np.testing.assert_allclose(state.belief.memory.predicted, 1 / 3, atol=1e-4)


def test_new_tasks_begin_at_the_prior() -> None:
    selector = dps(batch_size=1, prior="progress")
    state = selector.init(num_tasks=2, capacity=3)
    for first in (state.belief.memory.present, state.belief.memory.predicted):
        np.testing.assert_allclose(first, 1 / 3, rtol=1e-6)
    state = seen(selector, state, [0, 3, 8])
    state, ids = add_tasks(state, num_tasks=1)
    np.testing.assert_allclose(state.belief.memory.transitions[ids[0]], PRIORS["progress"])
    np.testing.assert_allclose(state.belief.memory.predicted[ids[0]], 1 / 3, rtol=1e-6)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="prior='local' is not known"):
        dps(prior="local")
