"""The oracle bounds the share of mixed groups, and its knob trades it for breadth."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bots_jax.evaluate import metrics
from bots_jax.evaluate.replay import Recording, run_replay
from bots_jax.strategies import balanced, make_strategy, oracle

STEPS, TASKS, BATCH = 60, 80, 8


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Rates that rise, most of them near 0 or 1, as in real runs."""
    rng = np.random.default_rng(0)
    start = rng.normal(-1, 3, TASKS)
    logit = start + np.linspace(0, 2, STEPS)[:, None]
    rates = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return Recording(rates, rates[[0, -1]], 8, "rising")


def chance(recording: Recording, ids: np.ndarray) -> float:
    """Mean chance of a mixed group of the selected, by the true rates: no luck in it."""
    rate = np.take_along_axis(recording.success_rate[None], ids, axis=2)
    return float(np.mean(1 - rate**8 - (1 - rate) ** 8))


def test_nothing_has_a_better_chance_of_mixed_groups(recording):
    truth = recording.success_rate
    best = run_replay(
        oracle(batch_size=BATCH, rollouts=8, choice="mixed"), recording, [0, 1], reference=truth
    )
    bound = chance(recording, best.task_ids)
    for name in ("uniform", "bots-mean", "kgps", "balanced", "greso"):
        selector = make_strategy(name, batch_size=BATCH, rollouts=8)
        assert chance(recording, run_replay(selector, recording, [0, 1]).task_ids) <= bound + 1e-6


def test_breadth_rises_with_the_knob_and_the_chance_falls(recording):
    truth = recording.success_rate
    found = []
    for cost in (0.0, 0.1, 1.0, 100.0):
        selector = oracle(batch_size=BATCH, rollouts=8, choice="mixed", breadth=cost)
        result = run_replay(selector, recording, [0], reference=truth)
        counts = metrics.visit_counts(result.task_ids[0], TASKS)
        found.append((float(metrics.breadth(counts)), chance(recording, result.task_ids)))
    breadth, mixed = zip(*found, strict=True)
    assert list(breadth) == sorted(breadth)
    assert list(mixed) == sorted(mixed, reverse=True)
    assert breadth[-1] > 0.99 * TASKS  # a large c visits all alike


def test_it_bounds_the_same_choice_by_a_belief_at_its_breadth(recording):
    """`balanced` with the same knob looks at estimates, and finds fewer mixed groups."""
    knob = {"batch_size": BATCH, "rollouts": 8, "breadth": 0.1}
    truth, seeds = recording.success_rate, [0, 1, 2]
    bound = run_replay(oracle(choice="mixed", **knob), recording, seeds, reference=truth).task_ids
    ids = run_replay(balanced(**knob), recording, seeds).task_ids
    for seed in seeds:
        assert chance(recording, ids[seed : seed + 1]) < chance(recording, bound[seed : seed + 1])


def test_it_needs_the_truth():
    with pytest.raises(ValueError, match="the oracle takes the true rates"):
        oracle(batch_size=1).init(num_tasks=4)
    with pytest.raises(ValueError, match="choice='best' is not known"):
        oracle(choice="best")
    with pytest.raises(ValueError, match="worth='variance' has no effect"):
        oracle(worth="variance")


def test_one_that_must_find_knows_what_it_visited_as_it_was_then(recording):
    truth = recording.success_rate
    selector = oracle(batch_size=BATCH, rollouts=8, choice="mixed", breadth=0.3, sees="visited")
    run = run_replay(selector, recording, [0], reference=truth)
    known = np.full(TASKS, 0.5, np.float32)
    state = selector.init(truth)
    for step in range(3):
        state, batch = selector.select(jax.random.key(step), state)
        rows = np.asarray(batch.task_ids)
        assert (known[rows] == 0.5).all()  # 24 of 80 tasks: none comes again before all were tried
        known[rows] = truth[step, rows]
        state, _ = selector.update(state, batch.evidence(np.zeros((BATCH, 8))))
        np.testing.assert_array_equal(selector.predict(state).mean, known)
    assert chance(recording, run.task_ids) < chance(
        recording,
        run_replay(
            oracle(batch_size=BATCH, rollouts=8, choice="mixed", breadth=0.3), recording, [0],
            reference=truth,
        ).task_ids,
    )  # fmt: skip
