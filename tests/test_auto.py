"""`auto`: its equations in NumPy, what it promises, and that it compiles once."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import Evidence, Selection, Selector, State, add_tasks, auto, summary
from bots_jax.belief.lengths import relative_length
from bots_jax.belief.logit_normal import _reweighted, was_visited
from bots_jax.choice.worth import chance_of_mixed_group, prob_zero_advantage
from bots_jax.implicit import ESTIMATORS, glm
from bots_jax.summary import expected_of_random_tasks

BATCH, ROLLOUTS, TASKS = 5, 8, 60


def make(**settings: object) -> Selector:
    return auto(batch_size=BATCH, rollouts=ROLLOUTS, **settings)  # type: ignore[arg-type]


SELECTOR = make()


def play(
    selector: Selector, state: State, rates: np.ndarray, steps: int, seed: int = 0, broken: int = 0
) -> tuple[State, np.ndarray]:
    """Visits of each task at each step, bool[T, N]; the first `broken` steps see rewards of 0."""
    rng, chosen = np.random.default_rng(seed), np.zeros((steps, len(rates)), bool)
    for step in range(steps):
        state, selection = selector.select(jax.random.key(seed * 10_000 + step), state)
        ids = np.asarray(selection.task_ids)
        solved = rng.binomial(ROLLOUTS, rates[ids]) * (step >= broken)
        state, _ = selector.update(
            state, Evidence(ids, solved.astype(np.float32), ROLLOUTS, selection.visit)
        )
        chosen[step, ids] = True
    return state, chosen


# --- the equations, in NumPy float64 ---------------------------------------------------------


class Plain:
    """The filter of one task after another, without references: p~ = 1/2 from Beta(1, 1)."""

    def __init__(self, tasks: int, prior_weight: float, decay_rate: float) -> None:
        self.most, self.decay_rate = 4 / (prior_weight * 2), -np.log1p(-decay_rate)
        self.offset, self.variance = np.zeros(tasks), np.full(tasks, np.inf)
        self.seen, self.clock, self.explained_fraction = np.zeros(tasks), 0, np.zeros(tasks)

    def now(self, task: int) -> tuple[float, float]:
        kept = np.exp(-self.decay_rate * (self.clock - self.seen[task]))
        at_visit = min(self.variance[task], self.most)
        return self.offset[task] * kept, self.most + (at_visit - self.most) * kept**2

    def update(self, ids: np.ndarray, successes: np.ndarray) -> None:
        for task, s in zip(ids, successes, strict=True):
            start, variance = self.now(task)
            grid = start + np.linspace(-12, 12, 240_001)  # the mode, by looking everywhere
            value = s * grid - ROLLOUTS * np.logaddexp(0, grid) - (grid - start) ** 2 / 2 / variance
            self.offset[task] = grid[np.argmax(value)]
            rate = 1 / (1 + np.exp(-self.offset[task]))
            self.variance[task] = 1 / (1 / variance + ROLLOUTS * rate * (1 - rate))
            age = self.clock - self.seen[task]
            a = self.explained_fraction[task] * 0.98 ** (age + 1) * np.exp(-self.decay_rate * age)
            self.explained_fraction[task] = 1 - (1 - a) * self.variance[task] / variance
            self.seen[task] = self.clock + 1
        self.clock += 1

    def mean(self, task: int) -> float:
        offset, variance = self.now(task)
        return float(1 / (1 + np.exp(-offset / np.sqrt(1 + np.pi * variance / 8))))


def test_agrees_with_the_equations() -> None:
    selector = make(estimator="none", forgetting=0.02, implicit_weight=1.0)
    state, plain = selector.init(num_tasks=TASKS), Plain(TASKS, 1.0, 0.02)
    rng = np.random.default_rng(3)
    for _ in range(12):
        ids = rng.choice(TASKS, BATCH, replace=False).astype(np.int32)
        solved = rng.integers(0, ROLLOUTS + 1, BATCH)
        state, _ = selector.update(state, Evidence(ids, solved.astype(np.float32), ROLLOUTS))
        plain.update(ids, solved)
    expected = [plain.mean(task) for task in range(TASKS)]
    # Newton's steps are few: the mode of 8 of 8 from far away is within .02.
    np.testing.assert_allclose(selector.predict(state).mean, expected, atol=2e-3)
    np.testing.assert_allclose(
        state.belief.history.explained_fraction, plain.explained_fraction, atol=2e-3
    )


def test_references_without_weight_tell_nothing(reference: np.ndarray) -> None:
    """The prior of a task is then flat, and no infinity of it comes into a belief."""
    selector = make(implicit_weight=0.0)
    state, _ = selector.update(
        selector.init(reference), Evidence(np.arange(BATCH), np.full(BATCH, 2.0), ROLLOUTS)
    )
    mean, concentration = (np.asarray(x) for x in selector.predict(state))
    assert np.all(np.isfinite(mean) & np.isfinite(concentration) & (concentration > 0))
    np.testing.assert_allclose(mean[:BATCH], 2 / ROLLOUTS, atol=0.05)
    np.testing.assert_allclose(mean[BATCH:], 0.5, atol=0.02)


def test_without_a_visit_the_mean_is_the_estimators(reference: np.ndarray) -> None:
    """p~ is a mean already: taking it for a median would pull it towards 1/2 once more."""
    estimator = glm()
    selector = make(estimator=estimator, implicit_weight=1.0)
    state = selector.init(reference)
    visited = np.arange(20, dtype=np.int32)
    for _ in range(4):
        solved = np.round(ROLLOUTS * reference[0, visited] ** 2)
        state, _ = selector.update(state, Evidence(visited, solved.astype(np.float32), ROLLOUTS))
    inferred = estimator.infer(state.belief.shared.estimator, state.reference, None)
    rest = slice(20, TASKS)
    np.testing.assert_allclose(selector.predict(state).mean[rest], inferred.mean[rest], atol=1e-5)
    assert np.ptp(np.asarray(inferred.mean[rest])) > 0.3


@pytest.mark.parametrize("by", ["name", "record"])
@pytest.mark.parametrize(("name", "most"), [("glm", 0.05), ("linear_ls", 0.1), ("logit", 0.1)])
def test_estimators_may_claim_less_than_two_counts(name: str, most: float, by: str) -> None:
    """Each task is solved always or never, so p~ is worth hardly a count as a prior.

    With two claimed at least, p~ was taken for more certain, and means were off by .07 to .38.
    """
    rng = np.random.default_rng(0)
    reference = np.sort(rng.random((2, 300)), 0).astype(np.float32)
    rates = reference.mean(0)
    solved = ROLLOUTS * (rng.random(300) < rates).astype(np.float32)
    made = name if by == "name" else ESTIMATORS[name]()
    selector = auto(batch_size=25, rollouts=ROLLOUTS, estimator=made)
    state = selector.init(reference)
    for ids in np.arange(200, dtype=np.int32).reshape(8, 25):
        state, _ = selector.update(state, Evidence(ids, solved[ids], ROLLOUTS))
    off = np.abs(np.asarray(selector.predict(state).mean) - rates)[200:]
    assert off.mean() < most


def test_chooses_by_the_equation(reference: np.ndarray) -> None:
    """No task that was left out scores above one that was chosen, by more than the lottery."""
    # Visits that stay whole, and no rates that are drawn.
    breadth, selector = 0.1, make(breadth=0.1, forgetting=0.0, spread=0)
    state, visits = selector.init(reference), np.zeros(TASKS)
    rng = np.random.default_rng(4)
    for step in range(30):
        mean, counts = (np.asarray(x, np.float64) for x in selector.predict(state))
        variance = 1 / (counts * mean * (1 - mean))
        logit = np.log(mean / (1 - mean)) * np.sqrt(1 + np.pi * variance / 8)
        hoped = 1 / (1 + np.exp(-logit / np.sqrt(1 + 2 * variance)))
        mixed = 1 - hoped**ROLLOUTS - (1 - hoped) ** ROLLOUTS
        score = mixed - breadth * np.log1p((1 - 0.8 * hoped) * visits)
        state, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        left_out = np.delete(score, ids)
        assert np.min(score[ids]) > np.max(left_out) - 0.01  # exp(-20) that a lottery is longer
        visits[ids] += 1
        solved = rng.binomial(ROLLOUTS, reference[0, ids]).astype(np.float32)
        state, _ = selector.update(state, Evidence(ids, solved, ROLLOUTS, selection.visit))


def test_unvisited_tasks_move_with_those_that_are_visited() -> None:
    """Ten tasks are visited at .3 until all is known of them, then they rise to .7.

    A rise of 1.7 logits in all ten is the policy's, not theirs: most of it is believed of the
    fifty others too. If the offsets took it for the tasks' own, next to nothing would be.
    """
    state, visited = SELECTOR.init(num_tasks=TASKS), np.arange(10, dtype=np.int32)
    before, after = [], []
    for means, rate in ((before, 0.3), (after, 0.7)):
        for _ in range(25):
            told = Evidence(visited, np.full(10, np.float32(10 * rate)), 10)
            state, _ = SELECTOR.update(state, told)
        rates = np.asarray(SELECTOR.predict(state).mean)
        means.append(np.log(rates / (1 - rates)))
    rise = after[0] - before[0]
    assert np.all(np.abs(rise[:10] - 2 * np.log(7 / 3)) < 0.2)
    assert np.all(rise[10:] > 0.5 * np.log(7 / 3))


@given(st.floats(-8, 8), st.integers(2, 32))
def test_chance_of_a_mixed_group(logit: float, rollouts: int) -> None:
    rate = np.float32(1 / (1 + np.exp(-logit))).astype(np.float64)
    expected = 1 - rate**rollouts - (1 - rate) ** rollouts
    found = 1 - prob_zero_advantage(jnp.float32(rate), jnp.float32(rollouts))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- promises --------------------------------------------------------------------------------


def test_nobody_starves(reference: np.ndarray) -> None:
    """Every task, hopeless ones too, within `floor` passes and the queue of those overdue."""
    selector = make(floor=4, breadth=0.0)
    rates = np.where(np.arange(TASKS) < 20, 0.5, 0.0)
    _, chosen = play(selector, selector.init(reference), rates, 12 * TASKS // BATCH)
    waits = [np.diff(np.flatnonzero(np.r_[True, seen, True])) for seen in chosen.T]
    assert max(wait.max() for wait in waits) <= 5 * TASKS // BATCH


def test_every_task_is_tried_within_sixteen_passes(reference: np.ndarray) -> None:
    """And the hopeless not again for the rest of the floor."""
    rates = np.where(np.arange(TASKS) < 20, 0.5, 0.0)
    known = np.stack([rates, rates]).astype(np.float32)
    selector = make(breadth=0.0)
    _, chosen = play(selector, selector.init(known), rates, 18 * TASKS // BATCH)
    first = np.argmax(chosen, axis=0) * BATCH / TASKS
    assert np.all(chosen.any(axis=0))
    assert np.all(first <= 17)
    assert np.sum(first[20:] > 8) > 30  # not before their time
    assert np.all(chosen[:, 20:].sum(axis=0) <= 2)


def test_recovers_from_a_grader_that_was_broken(reference: np.ndarray) -> None:
    """All rewards 0 for 8 steps: after that each quarter of the pool gets half of its visits.

    Visits of a quarter, some 150, differ between seeds by about a tenth; the sum over three
    seeds falls below half of the clean run's by chance with probability far under 1e-6.
    """
    rates, visits = reference.mean(axis=0), {0: np.zeros(4), 8: np.zeros(4)}
    quarter = np.argsort(np.argsort(rates, kind="stable"), kind="stable") * 4 // TASKS
    for broken in visits:
        for seed in range(3):
            _, chosen = play(SELECTOR, SELECTOR.init(reference), rates, 130, seed, broken)
            visits[broken] += np.bincount(quarter, chosen[8:].sum(axis=0), 4)
    assert np.all(visits[8] >= 0.5 * visits[0])


def test_a_grader_that_is_mended_makes_a_new_start(reference: np.ndarray) -> None:
    """Then the belief is that of one who has seen the last step alone."""
    rng = np.random.default_rng(8)
    state = SELECTOR.init(reference)
    for _ in range(10):
        ids = rng.choice(TASKS, 4 * BATCH, replace=False).astype(np.int32)
        state, _ = SELECTOR.update(state, Evidence(ids, np.zeros(4 * BATCH), ROLLOUTS))
    assert state.belief.shared.num_resets == 0
    ids = rng.choice(TASKS, 4 * BATCH, replace=False).astype(np.int32)
    mended = Evidence(ids, np.round(ROLLOUTS * reference[0, ids]), ROLLOUTS)
    state, _ = SELECTOR.update(state, mended)
    assert state.belief.shared.num_resets == 1
    beginner, _ = SELECTOR.update(SELECTOR.init(reference), mended)
    for known, told in zip(SELECTOR.predict(state), SELECTOR.predict(beginner), strict=True):
        np.testing.assert_allclose(known, told, rtol=1e-5)


@pytest.mark.parametrize("kind", ["right", "shuffled", "reversed", "none"])
def test_no_new_start_for_references_that_mislead(reference: np.ndarray, kind: str) -> None:
    rates = reference.mean(axis=0)
    told = {
        "right": reference,
        "shuffled": np.random.default_rng(1).permutation(reference, axis=1),
        "reversed": 1 - reference,
        "none": None,
    }[kind]
    state, _ = play(SELECTOR, SELECTOR.init(told, num_tasks=TASKS), rates, 60)
    assert state.belief.shared.num_resets == 0


def test_wrong_references_lose_their_weight(reference: np.ndarray) -> None:
    """Shuffled references: in the end the belief is as good as without any."""
    rates = np.random.default_rng(1).beta(0.5, 0.5, TASKS)
    rng, error = np.random.default_rng(2), {}
    told = np.stack([rates[rng.permutation(TASKS)], rates[rng.permutation(TASKS)]])
    for name, known in {"shuffled": told.astype(np.float32), "none": None}.items():
        state = SELECTOR.init(known, num_tasks=TASKS)
        state, _ = play(SELECTOR, state, rates, 60)
        error[name] = np.sqrt(np.mean((np.asarray(SELECTOR.predict(state).mean) - rates) ** 2))
    assert error["shuffled"] <= error["none"] + 0.03


def test_learns_to_trust_references_that_are_right() -> None:
    """Trust ends higher under true references than under shuffled ones, in each of six pools."""
    selector = make(spread=0)  # draws widen the choice, and both learn less apart
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rates = rng.beta(0.5, 0.5, TASKS).astype(np.float32)
        prior_weight = []
        for known in (rates, rng.permutation(rates)):
            state = selector.init(np.stack([known, known]))
            state, _ = play(selector, state, rates, 30, seed)
            _, info = selector.advance(state)
            prior_weight.append(float(info.implicit_weight))
        assert prior_weight[0] > prior_weight[1] + 0.05


@given(st.integers(0, 1000))
def test_the_order_of_the_tasks_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = (rng.integers(0, 9, (2, TASKS)) / 8).astype(np.float32)
    turn = rng.permutation(TASKS)
    back = np.argsort(turn)
    ids = rng.choice(TASKS, BATCH, replace=False).astype(np.int32)
    solved = rng.integers(0, ROLLOUTS + 1, BATCH).astype(np.float32)
    left, _ = SELECTOR.update(SELECTOR.init(known), Evidence(ids, solved, ROLLOUTS))
    moved = back[ids].astype(np.int32)
    right, _ = SELECTOR.update(SELECTOR.init(known[:, turn]), Evidence(moved, solved, ROLLOUTS))
    np.testing.assert_allclose(
        np.asarray(SELECTOR.predict(left).mean)[turn], SELECTOR.predict(right).mean, atol=1e-4
    )


def test_steps_without_evidence_forget_nothing(reference: np.ndarray) -> None:
    """A policy that was not trained has not moved."""
    state, _ = SELECTOR.update(SELECTOR.init(reference), Evidence([3, 4], [8.0, 0.0], 8))
    later = state
    for _ in range(5):
        later, _ = SELECTOR.advance(later)
    np.testing.assert_array_equal(SELECTOR.predict(later).mean, SELECTOR.predict(state).mean)


# --- how sure it is --------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [1, 4])
def test_of_few_tasks_visited_often_no_more_is_claimed_than_is_known(tasks: int) -> None:
    """Rates that never move, ten runs: errors are as large as is claimed, within a factor."""
    selector = auto(batch_size=tasks, rollouts=8)

    def run(rng_key: jax.Array, rates: jax.Array) -> Any:
        def step(state: State, rng_key: jax.Array) -> tuple[State, None]:
            state, batch = selector.select(rng_key, state)
            draws = jax.random.uniform(jax.random.fold_in(rng_key, 1), (tasks, 8))
            rewards = (draws < rates[batch.task_ids][:, None]).astype(jnp.float32)
            return selector.update(state, batch.evidence(rewards))[0], None

        state = selector.init(num_tasks=tasks)
        return selector.predict(jax.lax.scan(step, state, jax.random.split(rng_key, 2000))[0])

    rates = np.random.default_rng(3).uniform(0.15, 0.85, (10, tasks)).astype(np.float32)
    belief = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), 10), rates)
    claimed = np.sqrt(belief.mean * (1 - belief.mean) / (belief.concentration + 1))
    off = np.sqrt(np.mean(np.square((belief.mean - rates) / claimed)))
    assert 0.4 < off < 1.6
    assert np.all(np.abs(belief.mean - rates) < 0.1)


# --- tokens ----------------------------------------------------------------------------------


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([0.0, 2.0, 9.0, np.nan]),
            st.sampled_from([0.0, 4.0]),
            st.sampled_from(["open", "late", "none"]),
            st.sampled_from([10.0, 400.0, 0.0, np.nan, np.inf]),
        ),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_tokens_are_learned_of_rows_that_count_alone(rows: list[tuple]) -> None:
    """Not of those that are stale, impossible or not scored, which might as well not be there."""
    selector, state, selection = token_pool()
    padded = rows + [(-1, 0.0, 0.0, "none", 0.0)] * (6 - len(rows))
    at, s, n, visit, tokens = map(np.array, zip(*padded, strict=True))
    ids = np.where(at >= 0, np.asarray(selection.task_ids)[at], -1)
    number = np.where(visit == "none", -1, np.asarray(selection.visit)[at] + 7 * (visit == "late"))
    counts = (at >= 0) & (visit != "late") & (s <= n) & (n > 0)
    counts &= np.isfinite(tokens) & (tokens > 0)

    def pending(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = selector.observe(
            state, Evidence(jnp.asarray(ids), jnp.asarray(s), jnp.asarray(n), number, tokens)
        ).belief.lengths
        return np.asarray(lengths.pending_tokens), np.asarray(lengths.pending_trials)

    told, without = pending(ids), pending(np.where(counts, ids, -1))
    np.testing.assert_array_equal(told, without)
    assert told[0].sum() == pytest.approx(tokens[counts].sum())
    assert told[1].sum() == n[counts].sum()


@cache
def token_pool() -> tuple[Selector, State, Selection]:
    selector = auto(batch_size=4, rollouts=4, per_token=True)
    return selector, *selector.select(jax.random.key(0), selector.init(num_tasks=12))


# --- domains, tokens, compilation ------------------------------------------------------------


def test_without_references_domains_tell(reference: np.ndarray) -> None:
    domains = np.arange(TASKS) % 2
    state = SELECTOR.init(num_tasks=TASKS, domains=domains)
    for step in range(6):
        ids = np.arange(10, dtype=np.int32) + 10 * (step % 3)
        state, _ = SELECTOR.update(state, Evidence(ids, 7.0 * (domains[ids] == 1), ROLLOUTS))
    mean = np.asarray(SELECTOR.predict(state).mean)
    assert mean[50:][domains[50:] == 1].min() > mean[50:][domains[50:] == 0].max() + 0.3


def test_long_tasks_are_chosen_less(reference: np.ndarray) -> None:
    selector = make(per_token=True, floor=1000)
    state, long = selector.init(num_tasks=TASKS), np.arange(TASKS) % 2 == 0
    count = np.zeros(TASKS)
    for step in range(60):
        state, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        tokens = ROLLOUTS * np.where(long[ids], 4000.0, 1000.0)
        told = Evidence(ids, np.full(BATCH, 4.0), ROLLOUTS, selection.visit, tokens)
        state, _ = selector.update(state, told)
        count[ids] += 1
    ratio = relative_length(state.belief.lengths, jnp.zeros((TASKS,)))
    assert np.median(ratio[long]) > 2 * np.median(ratio[~long])
    assert count[long].sum() < 0.5 * count[~long].sum()


def test_one_compilation(reference: np.ndarray, compilations: list[str]) -> None:
    """Whatever the breadth, and through a sweep."""
    selector = make()
    play(selector, selector.init(reference, {"breadth": 0.05}), np.full(TASKS, 0.5), 2)
    before = len(compilations)
    play(selector, selector.init(reference, {"breadth": 0.3}), np.full(TASKS, 0.5), 3, seed=1)
    assert len(compilations) == before


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"target=0\.4 has no effect with choice='mixed'"):
        auto(target=0.4)
    for unused in ({"breadth": 0.2}, {"floor": 10.0}, {"per_token": True}):
        with pytest.raises(ValueError, match=f"{next(iter(unused))}=.* has no effect with choice"):
            auto(choice="mean", **unused)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="representation='grouped' serves choice='mixed'"):
        auto(representation="grouped", choice="mean")
    with pytest.raises(ValueError, match=r"floor=0\.5"):
        auto(floor=0.5)
    with pytest.raises(ValueError, match="breadth=-1"):
        auto(breadth=-1)


# --- the other choices, and noise --------------------------------------------------------------


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_the_mean_nearest_the_target_is_chosen(reference: np.ndarray, target: float) -> None:
    selector = make(choice="mean", target=target)
    state, _ = play(selector, selector.init(reference), reference[0], 5)
    mean = np.asarray(selector.predict(state).mean)
    _, selection = selector.select(jax.random.key(1), state)
    away = np.abs(mean - target)
    ids = np.asarray(selection.task_ids)
    assert np.max(away[ids]) <= np.min(np.delete(away, ids)) + 1e-6
    np.testing.assert_allclose(selection.rate, mean[ids], rtol=1e-5)


@pytest.mark.parametrize("target", [0.2, 0.8])
def test_draws_nearest_the_target_are_chosen(reference: np.ndarray, target: float) -> None:
    """Of tasks that are known well, so that a draw is near the mean."""
    selector = make(choice="thompson", target=target)
    rates = np.linspace(0.02, 0.98, TASKS).astype(np.float32)
    state = selector.init(np.stack([rates, rates]))
    ids = np.arange(TASKS, dtype=np.int32)
    for _ in range(3):
        state, _ = selector.update(state, Evidence(ids, 2000 * rates, 2000))
    for seed in range(20):
        _, selection = selector.select(jax.random.key(seed), state)
        chosen = np.asarray(selection.task_ids)
        assert np.max(np.abs(rates[chosen] - target)) < 0.12
        assert np.max(np.abs(np.asarray(selection.rate) - target)) < 0.05


def softmax_of_choices(selector: Selector, cost: np.ndarray, state: State, tau: float) -> float:
    """z of the most deviant share of choices, one task at a time, from softmax(-cost / tau)."""
    runs = 4000
    keys = jax.random.split(jax.random.key(5), runs)
    chosen = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1].task_ids[0]))(keys)
    share = np.exp(-cost / tau) / np.sum(np.exp(-cost / tau))
    found = np.bincount(np.asarray(chosen), minlength=len(cost)) / runs
    return float(np.max(np.abs(found - share) / np.sqrt(share * (1 - share) / runs)))


@pytest.mark.parametrize("choice", ["mixed", "mean"])
def test_temperature_is_that_of_a_softmax(choice: str) -> None:
    tau, rates = 0.2, np.array([0.05, 0.2, 0.35, 0.5], np.float32)
    selector = auto(batch_size=1, rollouts=4, choice=choice, temperature=tau)
    state = selector.init(np.stack([rates, rates]))
    ids = np.arange(4, dtype=np.int32)
    for _ in range(3):
        state, _ = selector.update(state, Evidence(ids, 4000 * rates, 4000))
    mean, counts = (np.asarray(x, np.float64) for x in selector.predict(state))
    assert np.min(counts) > 300  # so that optimism and means are one
    cost = np.abs(mean - 0.5)
    if choice == "mixed":
        visits = np.asarray(state.belief.history.visits)
        cost = mean**4 + (1 - mean) ** 4 + 0.1 * np.log1p((1 - 0.8 * mean) * visits)
    assert softmax_of_choices(selector, cost, state, tau) < 4.9  # of 4 shares: 4e-6


def test_new_tasks_begin_with_the_visits_of_the_average(reference: np.ndarray) -> None:
    state = SELECTOR.init(reference[:, :58], capacity=TASKS)
    state, _ = play(SELECTOR, state, np.full(TASKS, 0.5), 20)
    visits = np.asarray(state.belief.history.visits)[:58]  # of the tasks that there are
    grown, ids = add_tasks(state, np.full((2, 2), 0.5))
    history = grown.belief.history
    assert visits.mean() > 0.5
    np.testing.assert_allclose(history.visits[ids], visits.mean(), rtol=1e-5)
    np.testing.assert_array_equal(history.seen[ids], state.belief.clock)
    np.testing.assert_array_equal(history.offset[ids], 0)
    assert not np.any(was_visited(history)[ids])


@given(st.integers(0, 2**32 - 1), st.floats(0, 300))
def test_every_pair_keeps_a_share_of_the_weight(seed: int, strength: float) -> None:
    """Fixed share: Bayes' rule, then .01 of the weight for all alike."""
    rng = np.random.default_rng(seed)
    before = np.log(rng.dirichlet(np.ones(12)) + 1e-9)
    told = strength * rng.normal(size=12)
    after = np.exp(before + told - np.max(before + told))
    expected = 0.99 * after / after.sum() + 0.01 / 12
    found = np.exp(_reweighted(jnp.asarray(before, jnp.float32), jnp.asarray(told, jnp.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.min(found) > 0.99 * 0.01 / 12


# --- many tasks behind one rate -------------------------------------------------------------

MEAN, OF_MANY, SILENT = 0.11, 32, 0.51  # of a public run; at the mean 2% of the groups are silent
COUNTS = 1.9026  # of the Beta of that mean whose groups of 32 are silent so often


@pytest.mark.parametrize("representation", ["dense", "grouped"])
def test_mixed_groups_are_expected_over_the_spread_of_a_belief(representation: str) -> None:
    """A kind of tasks that differ: its mean rate promises 98% mixed groups, and 49% come."""
    shape = MEAN * COUNTS, (1 - MEAN) * COUNTS
    mixed = chance_of_mixed_group(*map(jnp.float32, shape), OF_MANY)
    np.testing.assert_allclose(mixed, 1 - SILENT, atol=1e-3)
    rng = np.random.default_rng(0)
    rates = rng.beta(*shape, 4096)
    selector = auto(batch_size=64, rollouts=OF_MANY, representation=representation)
    same = np.full((1, 4096), 0.2)  # a reference that tells nothing: one group of tasks
    state = selector.init(same)
    for ids in rng.permutation(4096)[: 12 * 64].reshape(12, 64).astype(np.int32):
        solved = rng.binomial(OF_MANY, rates[ids]).astype(np.float32)
        state, _ = selector.update(state, Evidence(ids, solved, np.float32(OF_MANY)))
    rate, expected = expected_of_random_tasks(state, selector)
    true = np.mean(1 - rates**OF_MANY - (1 - rates) ** OF_MANY)
    at_the_mean = 1 - rate**OF_MANY - (1 - rate) ** OF_MANY
    assert at_the_mean - true > 0.35
    assert abs(expected - true) < (at_the_mean - true) / 3
    line = f"mixed groups of 32 {expected:.0%}"
    assert line in summary(state, selector)


@pytest.mark.parametrize("tasks", [1, 64])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_as_many_trials_as_there_may_be_leave_it_finite(tasks: int, share: float) -> None:
    """Sound rows of 2^24 trials each: v was rounded to 0, the next visit was 0 / 0, and all NaN."""
    selector = auto(batch_size=4)
    rng = np.random.default_rng(0)
    state = selector.init(rng.random((2, 64)).astype(np.float32))
    ids, trials = np.arange(64) % tasks, np.full(64, 2.0**24)
    update = jax.jit(selector.update)
    for _ in range(100 if share == 0 else 5):
        state, _ = update(state, Evidence(ids, share * trials, trials))
    for _ in range(3):  # and it learns on
        before = selector.predict(state).mean
        state, batch = selector.select(jax.random.key(0), state)
        state, _ = selector.update(state, batch.evidence(np.ones((4, 16))))
        after = np.asarray(selector.predict(state).mean)
        assert np.all(np.isfinite(after))
        assert np.any(after != np.asarray(before))
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(np.isfinite(np.asarray(x)).all() for x in floats)
