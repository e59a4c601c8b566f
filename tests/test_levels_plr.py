"""PLR of levels: probabilities, draws and insertions against a plain loop in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax.levels import plr

C, A = 6, 9


def chances(rule, score, last, size, count):
    """The next draw, row by row."""
    used = range(size)
    if rule.prioritisation == "rank":
        order = sorted(used, key=lambda row: (-score[row], row))
        worth = {row: 1 / (1 + order.index(row)) for row in used}
    else:
        worth = {row: float(max(score[row], np.finfo(np.float32).tiny)) for row in used}
    top = max(worth.values())
    powers = {row: (worth[row] / top) ** (1 / rule.temperature) for row in used}
    ages = {row: count - last[row] for row in used}
    if not sum(ages.values()):
        ages = dict.fromkeys(used, 1)
    out = np.zeros(len(score))
    for row in used:
        out[row] = (1 - rule.staleness) * powers[row] / sum(powers.values())
        out[row] += rule.staleness * ages[row] / sum(ages.values())
    return out


def loop(rule, score, new):
    """Insert one after another: the buffer, and which new level each row ends with."""
    score, last, size, count = list(score), [0] * len(score), 0, 0
    owner = {}
    for number, value in enumerate(new):
        full = size == len(score)
        row = int(np.argmin(chances(rule, score, last, size, count))) if full else size
        if value > score[row]:
            score[row], last[row], owner[row] = value, count + 1, number
            size = min(size + 1, len(score))
        count += 1
    return score, last, size, count, owner


numbers = st.lists(st.integers(0, 4), min_size=A, max_size=A)
compiled = jax.jit(plr.insert_scored, static_argnums=0)
RULES = [
    plr.make_plr(),
    plr.make_plr(temperature=1.0, staleness=0.0),
    plr.make_plr(temperature=0.5, staleness=0.5, prioritisation="proportional"),
]


@settings(max_examples=60, deadline=None)
@given(numbers, st.sampled_from(RULES))
def test_insertions_are_a_loop(values, rule):
    """Ties, evictions and levels that leave within the batch."""
    # ages are whole and shares are not: no two probabilities are equal by chance but by ties,
    # which both break to the first row
    new = np.array(values, np.float32) / 4 + np.linspace(0, 0.01, A, dtype=np.float32)
    buffer, rows = compiled(rule, plr.empty(C), new)
    score, last, size, count, owner = loop(rule, [-np.inf] * C, new)
    np.testing.assert_allclose(buffer.score, score)
    assert buffer.last.tolist() == last
    assert (int(buffer.size), int(buffer.drawn)) == (size, count)
    kept = {int(row): number for number, row in enumerate(rows) if row >= 0}
    assert kept == owner


@pytest.mark.parametrize("rule", RULES)
def test_chances_agree_with_the_loop(rule):
    score = np.array([0.2, 0.9, 0.5, 0.5, 0.0, -np.inf], np.float32)
    last = np.array([3, 8, 1, 10, 2, 0])
    buffer = plr.Replay(jnp.asarray(score), jnp.asarray(last), jnp.int32(5), jnp.int32(10))
    expected = chances(rule, score, last, 5, 10)
    np.testing.assert_allclose(plr.weights(rule, buffer), expected, rtol=2e-5, atol=1e-7)
    drawn, rows = plr.draw(rule, jax.random.key(0), buffer, 4000)
    assert int(drawn.drawn) == 4010
    assert set(rows.tolist()) <= set(range(5))


def test_draws_are_with_replacement_and_follow_the_chances():
    rule = plr.make_plr(staleness=0.0)
    score = jnp.array([0.1, 0.9, 0.5, -jnp.inf])
    buffer = plr.Replay(score, jnp.zeros(4, jnp.int32), jnp.int32(3), jnp.int32(0))
    _, rows = plr.draw(rule, jax.random.key(1), buffer, 4000)
    share = np.bincount(np.asarray(rows), minlength=4) / 4000
    np.testing.assert_allclose(share, plr.weights(rule, buffer), atol=0.03)


def test_a_drawn_level_is_no_longer_stale():
    rule = plr.make_plr(staleness=1.0)
    last = jnp.zeros(3, jnp.int32)
    buffer = plr.Replay(jnp.ones(3), last, jnp.int32(3), jnp.int32(0))
    drawn, rows = plr.draw(rule, jax.random.key(0), buffer, 1)
    assert int(drawn.last[rows[0]]) == 1
    assert float(plr.weights(rule, drawn._replace(drawn=jnp.int32(1)))[rows[0]]) == 0


def test_of_a_level_played_twice_the_last_score_is_kept():
    buffer = plr.empty(4)._replace(size=jnp.int32(4))
    buffer = plr.update(buffer, jnp.array([2, 1, 2]), jnp.array([0.1, 0.2, 0.3]))
    assert buffer.score[1:3].tolist() == pytest.approx([0.2, 0.3])


def test_nothing_is_replayed_before_the_buffer_is_filled():
    rule = plr.make_plr(replay=1.0, fill=0.5)
    buffer = plr.empty(4)
    assert not plr.decide(rule, jax.random.key(0), buffer)
    buffer, _ = plr.insert_scored(rule, buffer, [0.5, 0.5])
    assert plr.decide(rule, jax.random.key(0), buffer)


@pytest.mark.parametrize(
    "wrong", [{"prioritisation": "topk"}, {"staleness": 2}, {"temperature": 0.0}, {"fill": -1}]
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plr.make_plr(**wrong)


@pytest.mark.parametrize("rule", RULES)
def test_nan_is_no_score(rule):
    """One NaN made every weight NaN ("proportional"), or stayed for good ("rank")."""
    buffer, rows = plr.insert_scored(rule, plr.empty(3), [1.0, np.nan, 3.0, 2.0])
    np.testing.assert_array_equal(rows, [0, -1, 1, 2])
    buffer = plr.update(buffer, [0, 1, 2, 0], [5.0, np.nan, 4.0, np.nan])
    np.testing.assert_array_equal(buffer.score, [5.0, 3.0, 4.0])
    assert float(plr.weights(rule, buffer).sum()) == pytest.approx(1, abs=1e-6)
