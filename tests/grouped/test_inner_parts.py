"""Parts of grouped selection by themselves, where a fault would hide behind an exact way round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax import State, auto, bots
from bots_jax.grouped import mixed, table
from bots_jax.grouped.beta import _draw_outside, _Tasks, _tasks_at, nearest
from bots_jax.numerics.random_bits import key_words

PAIRS = np.array([(0.0, 0.25), (0.25, 0.5), (0.5, 0.75)])


def pool(sizes: list[int], **settings: object) -> State:
    selector = bots(batch_size=4, rollouts=4, representation="grouped", **settings)  # type: ignore[arg-type]
    return selector.init(np.repeat(PAIRS[: len(sizes)], sizes, axis=0).T)


def with_groups(state: State, alpha: list[float], beta: list[float]) -> State:
    """Posteriors of groups, set by hand."""
    dtype = state.belief.groups.alpha.dtype
    shared = state.belief.groups._replace(
        alpha=jnp.array(alpha, dtype), beta=jnp.array(beta, dtype)
    )
    return state._replace(belief=state.belief._replace(groups=shared))


def test_the_first_group_takes_part_in_the_race() -> None:
    """The nearest of n draws is an exponential from the target, of rate 2 n times the density.

    Without the race all is drawn outside of the window, which is exact for other groups alone.
    The mean of 300 has a standard error of 6%.
    """
    size = 20_000
    state = with_groups(pool([size, size]), [50, 1], [50, 99])
    draw = jax.jit(lambda key: nearest(key, state, None, 4))
    keys = jax.random.split(jax.random.key(0), 300)
    ids, draws, valid = (np.asarray(x) for x in jax.lax.map(draw, keys))
    assert valid.all()
    assert ids.max() < size
    nearest_of_all = np.abs(draws[:, 0] - float(state.settings.target))
    rate = 2 * size * stats.beta(50, 50).pdf(float(state.settings.target))
    assert abs(np.mean(nearest_of_all * rate) - 1) < 0.3


@pytest.mark.parametrize("parts", [(2.0, 5.0), (5.0, 2.0), (0.6, 3.0)])
def test_draws_outside_the_window(parts: tuple[float, float]) -> None:
    count, target, explored = 20_000, 0.5, 0.2
    alpha, beta = (jnp.full(count, x) for x in parts)
    wanted = jnp.arange(count) % 5 != 0
    words = key_words(jax.random.key(3), 1)[0]
    draws = _draw_outside(
        words, jnp.arange(count, dtype=jnp.uint32), _Tasks(alpha, beta, wanted), wanted,
        jnp.float32(target), jnp.float32(explored),
    )  # fmt: skip
    found = np.asarray(draws, np.float64)[np.asarray(wanted)]
    assert np.all(np.abs(found - target) >= explored)
    law = stats.beta(*parts)
    low, high = law.cdf(target - explored), law.cdf(target + explored)

    def outside(x: np.ndarray) -> np.ndarray:
        below = law.cdf(x) - np.where(x > target, high - low, 0)
        return below / (1 - (high - low))

    assert stats.kstest(found, outside).pvalue > 1e-4


def test_what_no_draw_would_ever_be_accepted_of_is_not_free() -> None:
    """A posterior that is none, of a damaged state, would be drawn from for ever."""
    state = pool([5, 6, 7])
    slots = state.pool.slot_ids.shape[0]
    places = slots + jnp.arange(-1, 20, dtype=jnp.int32)
    group = np.repeat([0, 1, 2], [5, 6, 7])
    for alpha, beta in (
        ([1, 0, 2], [3, 1, 1]),
        ([1, 2, 3], [2, 0, 1]),
        ([1, 2, 3], [2, np.inf, 1]),
    ):
        found = _tasks_at(places, with_groups(state, alpha, beta), None)
        np.testing.assert_array_equal(found.free, [False, *(group != 1), False, False])
        np.testing.assert_array_equal(np.asarray(found.alpha)[1:19], np.array(alpha)[group])
        np.testing.assert_array_equal(np.asarray(found.beta)[1:19], np.array(beta)[group])


def test_members_are_found_where_half_of_a_group_has_slots() -> None:
    """All at once would be found in one try of 2**64."""
    selector = auto(batch_size=64, rollouts=4, representation="grouped", slots=512)
    state = selector.init(np.repeat(PAIRS[:2], 128, axis=0).T)
    first = jnp.arange(256) < 128
    state, batch = selector.select(jax.random.key(0), state, first)  # half of the first group
    group = jnp.repeat(jnp.arange(2, dtype=jnp.int32), 64)
    ids = np.asarray(mixed._members(jax.random.key(1), state, group))
    assert ids.min() >= 0
    assert np.all((ids < 128) == (np.asarray(group) == 0))
    assert not set(ids.tolist()) & set(np.asarray(batch.task_ids).tolist())


@pytest.mark.parametrize("count", [5, 25, 30])
def test_the_walk_goes_through_all_groups(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """In chunks of 4; the best by lot are the same number of distinct tasks, in order."""
    monkeypatch.setattr(mixed, "_CHUNK", 4)
    state = auto(batch_size=4, rollouts=4, representation="grouped").init(
        np.repeat(PAIRS, 10, axis=0).T
    )
    none = jnp.zeros(0, jnp.int32)
    race = mixed._Race(
        jnp.int32(0), jnp.float32(0), jnp.float32(0), none, jnp.zeros(0), jnp.zeros(0, bool)
    )
    line = mixed._Groups(jnp.zeros(3), jnp.full(3, 10, jnp.int32), jnp.zeros(3, bool))
    best = mixed._Best(jnp.full(count, -1, jnp.int32), jnp.full(count, jnp.inf))
    swept = jnp.array([7], jnp.int32)
    found = mixed._walk(jax.random.key(0), state, None, line, swept, race, best)
    ids, scores = np.asarray(found.ids), np.asarray(found.scores)
    there = np.isfinite(scores)
    assert there.sum() == min(count, 29)
    assert len(set(ids[there].tolist()) - {7}) == there.sum()
    assert np.all(np.diff(scores[there]) >= 0)


def test_tasks_in_flight_keep_their_slots_in_a_full_table() -> None:
    """In traced code, where no table grows: what is new goes without a slot."""
    state = pool([600, 600], slots=64)
    selector = bots(batch_size=4, rollouts=4, representation="grouped", slots=64)
    select = jax.jit(selector.select)
    size, chosen = state.pool.slot_ids.shape[0], []
    for step in range(size // 4 + 8):
        state, batch = select(jax.random.key(step), state)
        chosen += np.asarray(batch.task_ids)[np.asarray(batch.valid)].tolist()
    in_slots = np.asarray(table.find(state.pool.slot_ids, jnp.array(chosen, jnp.int32))) < size
    assert len(set(chosen)) == len(chosen)
    assert in_slots.all()
    assert int(state.in_flight) == len(chosen)
