"""What `auto` chooses by, term by term in NumPy float64, and the rollouts that worths count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bots_jax import Evidence, Settings, auto
from bots_jax.belief.lengths import Line, no_lengths, relative_length
from bots_jax.belief.logit_normal import (
    AutoBelief,
    AutoConfig,
    Expected,
    History,
    Shared,
)
from bots_jax.choice import mixed
from bots_jax.choice.worth import MIXED, WORTHS, find_worth
from bots_jax.implicit import none

TASKS, CLOCK = 400, 90
RULES = AutoConfig(none(), learn_trust=False, learn_speed=False, batch_size=8)
FLOOR, FORGETTING, BREADTH = 30.0, 0.03, 0.2


def belief_and_settings(per_token: bool) -> tuple[AutoBelief, Settings, Expected]:
    rng = np.random.default_rng(0)
    seen = rng.integers(0, CLOCK, TASKS)
    visited = rng.random(TASKS) < 0.7
    history = History(
        jnp.zeros(TASKS),
        jnp.asarray(np.where(visited, 0.5, 1e4)),
        jnp.asarray(np.where(visited, rng.integers(1, 9, TASKS), 0.0)),
        jnp.asarray(seen, jnp.int32),
        jnp.zeros(TASKS),
    )
    lengths = None
    if per_token:
        line = Line(*map(jnp.float64, (40.0, 3.0, 50.0, 200.0, 30.0)))
        lengths = no_lengths(TASKS, jnp.dtype("float64"))._replace(
            residual=jnp.asarray(rng.normal(0, 3, TASKS)),
            visits=jnp.asarray(rng.integers(0, 4, TASKS) + 0.0),
            line=line,
        )
    shared = Shared((), jnp.zeros(1), jnp.zeros(()), jnp.int32(0))
    settings = Settings(
        rollouts=5.0, forgetting=FORGETTING, implicit_weight=0.8, breadth=BREADTH, group=0.0
    )
    expected = Expected(*(jnp.asarray(rng.normal(0, scale, TASKS)) for scale in (2, 1)),
                        jnp.asarray(rng.exponential(2, TASKS)))  # fmt: skip
    belief = AutoBelief(shared, history, jnp.int32(CLOCK), lengths)
    return belief, jax.tree.map(jnp.float64, settings), expected


@pytest.mark.parametrize("per_token", [False, True])
def test_scores_are_worth_price_and_lottery(per_token: bool) -> None:
    """Those of more than a few visits too, and of tasks whose lengths are at their bounds."""
    with jax.enable_x64(True):
        belief, settings, expected = belief_and_settings(per_token)
        ids, key = jnp.arange(TASKS, dtype=jnp.int32), jax.random.key(3)
        found = mixed.weigh_tasks(key, RULES, MIXED, belief, settings, expected, ids, 0.25)
        turn = jax.random.bits(key, (), jnp.uint32)
        found = np.asarray(found - mixed.lottery(ids, turn, found))
        if per_token:
            ratio = np.asarray(relative_length(belief.lengths, expected.shared))
            assert ratio.min() == 1 / 8
            assert ratio.max() == 8
    line = np.asarray(expected.shared + expected.offset)
    hoped = 1 / (1 + np.exp(-line / np.sqrt(1 + 2 * np.asarray(expected.variance))))
    cost = hoped**5 + (1 - hoped) ** 5
    if per_token:
        cost = -(1 - cost) / ratio
    kept = np.exp(np.log(1 - FORGETTING) * (CLOCK - np.asarray(belief.history.seen)))
    price = BREADTH * np.log1p((1 - 0.8 * hoped) * np.asarray(belief.history.visits) * kept)
    np.testing.assert_allclose(found, cost - 0.25 + price, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_rates_are_drawn_within_so_much_of_what_is_not_known(share: float) -> None:
    """Others at each step, wherever a task stands; 40 draws of 400 tasks, limits of 5 sigma."""
    with jax.enable_x64(True):
        _, _, expected = belief_and_settings(False)
        state = auto(batch_size=8, rollouts=8).init(features=np.zeros((TASKS, 1)))
        ids = jnp.arange(TASKS, dtype=jnp.int32)

        def draw(seed: int, rows: slice = slice(None)) -> np.ndarray:
            some = jax.tree.map(lambda x: x[rows], expected)
            key = jax.random.key(seed)
            return np.asarray(mixed._drawn(key, state, some, ids[rows], share))

        drawn = np.stack([draw(seed) for seed in range(40)])
        np.testing.assert_allclose(draw(0, slice(0, None, 9)), drawn[0, ::9], rtol=1e-12)
    line = np.asarray(expected.shared + expected.offset)
    z = (special.logit(drawn) - line) / (share * np.sqrt(np.asarray(expected.variance)))
    assert np.abs(z).max() < 1
    assert abs(z.mean()) < 5 / np.sqrt(3 * z.size)
    assert stats.kstest(z.ravel(), "uniform", (-1, 2)).pvalue > 1e-6
    assert abs(np.corrcoef(z[0], z[1])[0, 1]) < 5 / np.sqrt(TASKS)


def chosen_by(told: dict[str, Any], **settings: Any) -> list[list[int]]:
    """Batches of some steps in a pool where what is told, if anything, tells the rates."""
    rule = auto(batch_size=8, rollouts=8, **settings)
    state = rule.init(num_tasks=300, **told)
    rates, chosen = np.linspace(0.02, 0.98, 300), []
    for step in range(6):
        state, batch = rule.select(jax.random.key(step), state)
        chosen.append(np.asarray(batch.task_ids).tolist())
        rewards = np.random.default_rng(step).random((8, 8)) < rates[chosen[-1]][:, None]
        state, _ = rule.update(state, batch.evidence(rewards))
    return chosen


@pytest.mark.parametrize(
    "told",
    [
        {"features": np.linspace(-2, 2, 300)[:, None]},
        {"features": np.arange(300) // 50},
        {"reference": np.linspace(0.1, 0.8, 300)[None]},
        {"domains": np.arange(300) // 50},
    ],
    ids=["numbers", "kinds", "references", "domains"],
)
def test_rates_are_drawn_where_anything_is_told_of_tasks(told: dict[str, Any]) -> None:
    chosen = chosen_by(told)
    assert chosen == chosen_by(told, spread=mixed.SPREAD)
    assert chosen != chosen_by(told, spread=0)


def test_none_is_drawn_where_nothing_is_told_unless_it_is_asked_for() -> None:
    chosen = chosen_by({})
    assert chosen == chosen_by({}, spread=0)
    assert chosen != chosen_by({}, spread=1)


def test_lengths_are_those_of_a_ridge_line() -> None:
    """Slope with a ridge of one visit; own residuals with one more of 0; within a factor of 8."""
    with jax.enable_x64(True):
        belief, _, expected = belief_and_settings(per_token=True)
        found = relative_length(belief.lengths, expected.shared)
        own, eta = jax.tree.map(np.asarray, (belief.lengths, expected.shared))
    n, x, xx, y, xy = own.line
    slope = (xy - x * y / n) / (xx - x * x / n + 1)
    log_length = slope * (eta - x / n) + own.residual / (own.visits + 1)
    np.testing.assert_allclose(found, np.clip(np.exp(log_length), 1 / 8, 8), rtol=1e-12)


def test_who_is_overdue_and_by_how_much() -> None:
    """Each task has a limit from half of the floor to all of it, or of 16 passes before a visit."""
    with jax.enable_x64(True):
        belief, settings, _ = belief_and_settings(per_token=False)
        pool = SimpleNamespace(domain_sizes=jnp.array([15, 5], jnp.int32))
        state: Any = SimpleNamespace(belief=belief, pool=pool, settings=settings)
        ids = np.arange(TASKS) * 7 + 1
        late = mixed._overdue(RULES, state, FLOOR, jnp.asarray(ids, jnp.int32))
    passes = (CLOCK - np.asarray(belief.history.seen)) * 8 / 20
    share = (ids * 2654435769 % 2**32 >> 8) / 2**24
    limit = np.where(np.asarray(belief.history.variance) < 1e4, FLOOR, 16) * (0.5 + 0.5 * share)
    np.testing.assert_allclose(late, passes - limit, rtol=1e-12)
    assert stats.kstest(share, "uniform").pvalue > 0.99  # as even as the golden ratio is
    assert np.any(np.asarray(late) > 0)
    assert mixed.first_visit(9.0) == 9
    assert mixed.first_visit(17.0) == 16


def test_a_lottery_is_exponential_and_another_at_each_turn() -> None:
    """Mean 5e-4; a right one fails with probability 1e-6."""
    like, ids = jnp.zeros(()), jnp.arange(50_000, dtype=jnp.int32)
    turns = [np.asarray(mixed.lottery(ids, jnp.uint32(turn), like)) for turn in (1, 12345)]
    for drawn in turns:
        assert drawn.dtype == like.dtype
        assert np.all(drawn > 0)
        assert stats.kstest(drawn / 5e-4, "expon").pvalue > 1e-6
    assert abs(stats.spearmanr(*turns).statistic) < 0.025


@pytest.mark.parametrize("name", WORTHS)
def test_worths_count_whole_rollouts_from_1_to_127(name: str) -> None:
    """Against sums of powers in float64: at the ends, rounded between them, and beyond."""
    p = np.linspace(0.001, 0.999, 97)
    grid = np.linspace(0, 1, 200_001)
    for rollouts, m in ((0, 1), (1, 1), (1.4, 1), (1.6, 2), (2, 2), (3, 3), (64, 64), (126, 126),
                        (127, 127), (128, 127), (200, 127), (1e6, 127)):  # fmt: skip
        gain = (1 - grid) - (1 - grid) ** max(m, 2)
        expected = {
            "mixed": p**m + (1 - p) ** m,
            "variance": (1 - 2 * p) ** 2,
            "pass_gain": 1 - ((1 - p) - (1 - p) ** m) / gain.max(),
        }[name]
        with jax.enable_x64(True):
            worth, many = find_worth(name), jnp.float64(rollouts)
            found = worth.lack(jnp.asarray(p), many)
            best = None if worth.peak is None else float(worth.peak(many))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-8)
        if best is not None:
            assert 1 / (1 + np.exp(-best)) == pytest.approx(grid[np.argmax(gain)], abs=1e-5)


def test_tokens_may_come_in_pieces() -> None:
    """A group told row by row teaches the lengths that it teaches as a whole."""
    rule = auto(batch_size=2, rollouts=4, per_token=True)
    ids, solved, tokens = np.array([3, 1]), np.array([2.0, 1.0]), np.array([40.0, 90.0])
    lengths = []
    for parts in (1, 2):
        state = rule.init(num_tasks=5)
        told = Evidence(
            np.tile(ids, parts), np.tile(solved / parts, parts), 4 / parts,
            tokens=np.tile(tokens / parts, parts),
        )  # fmt: skip
        for _ in range(3):
            state, _ = rule.update(state, told)
        lengths.append(state.belief.lengths)
    for whole, pieces in zip(*map(jax.tree.leaves, lengths), strict=True):
        np.testing.assert_allclose(whole, pieces, rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(lengths[0].visits), [1, 3])
    assert lengths[0].residual[1] > 0 > lengths[0].residual[3]
