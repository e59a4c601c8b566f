"""Prioritized level replay (PLR) over a buffer of levels, as in jaxued's LevelSampler.

In: a score of each level that was played, such as MaxMC or PVL. Out: rows to play again, and rows
for new levels. The levels themselves, f[C, ...], are the caller's. Each draw is

    P(row) = (1 - c) h(score) ** (1 / tau) / sum + c age / sum

with h(score) = 1 / rank ("rank") or the score itself ("proportional"), and age the episodes since
a row was last drawn. Draws are with replacement, one after another, so that a batch may hold one
level many times (at tau = .3 the best level has .87 of the share of scores). A new level takes a
free row, or that of the lowest P, if its own score is higher. (arXiv 2010.03934, eq. 1 to 4.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.checks import check_choice, check_count, check_number, is_concrete
from bots_jax.types import Array, ArrayLike

PRIORITISATIONS = ("rank", "proportional")


class Replay(NamedTuple):
    """The state of a buffer of C rows."""

    score: Array  # f[C], of the last visit; -inf in free rows
    last: Array  # i32[C], `drawn` when the row was last drawn
    size: Array  # i32[], rows in use: the first ones
    drawn: Array  # i32[], episodes so far


class PLR(NamedTuple):
    """The settings of PLR, made by `make_plr`; hashable, so they may be static."""

    temperature: float
    staleness: float
    replay: float
    fill: float
    prioritisation: str


def make_plr(
    temperature: float = 0.3,
    staleness: float = 0.3,
    replay: float = 0.8,
    fill: float = 0.5,
    prioritisation: str = "rank",
) -> PLR:
    """Make the settings of PLR; defaults are those of jaxued's maze example.

    Args:
      temperature: tau, above 0: how little the scores matter.
      staleness: c in 0 to 1, the share of the draws that goes by age.
      replay: chance of `decide`, once the buffer is filled enough.
      fill: share of the rows that must be in use before.
      prioritisation: "rank" or "proportional" (scores of 0 and more).

    Raises:
      ValueError: naming the argument and its value.
    """
    check_choice("prioritisation", prioritisation, PRIORITISATIONS)
    for name, value in (("staleness", staleness), ("replay", replay), ("fill", fill)):
        check_number(name, value, 0, 1)
    if is_concrete(temperature) and not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0: give .01 for the best alone")
    return PLR(temperature, staleness, replay, fill, prioritisation)


def empty(capacity: int) -> Replay:
    """A buffer of C free rows."""
    check_count("capacity", capacity)
    zero = jnp.zeros((), jnp.int32)
    score = jnp.full((capacity,), -jnp.inf)
    return Replay(score, jnp.zeros((capacity,), jnp.int32), zero, jnp.zeros_like(zero))


def decide(rule: PLR, rng_key: Array, buffer: Replay) -> Array:
    """bool[]: whether to replay levels of the buffer; else play new ones."""
    filled = buffer.size / buffer.score.shape[0]
    return (filled >= rule.fill) & (jax.random.uniform(rng_key) < rule.replay)


def weights(rule: PLR, buffer: Replay) -> Array:
    """f[C]: the probability of each row in the next draw."""
    by_score = _by_score(rule, buffer.score, _ranks(buffer.score), buffer.size)
    return _mixed(rule, by_score, buffer.last, buffer.size, buffer.drawn)


def draw(rule: PLR, rng_key: Array, buffer: Replay, num: int) -> tuple[Replay, Array]:
    """i32[num] rows, drawn one after another with replacement.

    Scores do not change while drawing, so they are ranked once; ages do.
    """
    by_score = _by_score(rule, buffer.score, _ranks(buffer.score), buffer.size)
    capacity = buffer.score.shape[0]

    def one(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
        last, count = carry
        chance = _mixed(rule, by_score, last, buffer.size, count)
        row = jax.random.choice(key, capacity, p=chance).astype(jnp.int32)
        return (last.at[row].set(count + 1), count + 1), row

    keys = jax.random.split(rng_key, num)
    (last, count), rows = lax.scan(one, (buffer.last, buffer.drawn), keys)
    return buffer._replace(last=last, drawn=count), rows


def update(buffer: Replay, rows: ArrayLike, scores: ArrayLike) -> Replay:
    """Update the scores f[B] of played rows; of a row played twice the last one is kept.

    NaN leaves a row the score it had: one NaN among the scores would make every weight NaN.
    """
    rows, scores = jnp.asarray(rows), jnp.asarray(scores, buffer.score.dtype)
    rows = jnp.where(jnp.isnan(scores), buffer.score.shape[0], rows)
    at = jnp.where(_overwritten(rows), buffer.score.shape[0], rows)
    return buffer._replace(score=buffer.score.at[at].set(scores, mode="drop"))


def insert_scored(rule: PLR, buffer: Replay, scores: ArrayLike) -> tuple[Replay, Array]:
    """Insert A new levels with scores f[A], one after another; none with a score of NaN.

    Returns:
      The buffer, and i32[A] rows, -1 where a level was not worth it, or has had to leave for a
      later one: `levels.at[jnp.where(rows >= 0, rows, C)].set(new, mode="drop")`.
    """
    capacity = buffer.score.shape[0]

    def one(carry: tuple[Replay, Array], score: Array) -> tuple[tuple[Replay, Array], Array]:
        now, rank = carry
        by_score = _by_score(rule, now.score, rank, now.size)
        worst = jnp.argmin(_mixed(rule, by_score, now.last, now.size, now.drawn))
        row = jnp.where(now.size < capacity, now.size, worst).astype(jnp.int32)
        better = now.score[row] < score
        kept = jnp.where(better, score, now.score[row])
        rank = _rank_after(now.score, rank, row, kept)
        after = Replay(
            now.score.at[row].set(kept),
            now.last.at[row].set(jnp.where(better, now.drawn + 1, now.last[row])),
            jnp.minimum(now.size + better.astype(jnp.int32), capacity),
            now.drawn + 1,
        )
        return (after, rank), jnp.where(better, row, -1)

    given = jnp.asarray(scores, buffer.score.dtype)
    given = jnp.where(jnp.isnan(given), -jnp.inf, given)
    (buffer, _), rows = lax.scan(one, (buffer, _ranks(buffer.score)), given)
    return buffer, jnp.where(_overwritten(rows), -1, rows)


def _overwritten(rows: Array) -> Array:
    """bool[A]: whether a later place has the same row."""
    same = rows[:, None] == rows[None]
    return jnp.any(same & ~jnp.tri(rows.shape[0], dtype=bool), 1)


def _ranks(score: Array) -> Array:
    """i32[C], 1 for the highest; equal scores in the order of rows."""
    places = jnp.arange(1, score.shape[0] + 1, dtype=jnp.int32)
    return jnp.zeros_like(places).at[jnp.argsort(-score, stable=True)].set(places)


def _rank_after(score: Array, rank: Array, row: Array, new: Array) -> Array:
    """The ranks once `row` has another score, without sorting again."""
    at = jnp.arange(score.shape[0], dtype=jnp.int32)
    without = rank - (rank > rank[row]).astype(rank.dtype)
    ahead = (score > new) | ((score == new) & (at < row))
    ahead = ahead & (at != row)
    moved = without + (~ahead).astype(rank.dtype)
    return jnp.where(at == row, 1 + jnp.sum(ahead, dtype=rank.dtype), moved)


def _by_score(rule: PLR, score: Array, rank: Array, size: Array) -> Array:
    """f[C] that sum to 1 over the rows in use."""
    used = jnp.arange(score.shape[0], dtype=jnp.int32) < size
    if rule.prioritisation == "rank":
        log_worth = -jnp.log(rank.astype(score.dtype))
    else:
        log_worth = jnp.log(jnp.maximum(jnp.where(used, score, 0), jnp.finfo(score.dtype).tiny))
    return jax.nn.softmax(jnp.where(used, log_worth / rule.temperature, -jnp.inf), where=used)


def _mixed(rule: PLR, by_score: Array, last: Array, size: Array, count: Array) -> Array:
    used = jnp.arange(last.shape[0], dtype=jnp.int32) < size
    age = jnp.where(used, count - last, 0).astype(by_score.dtype)
    # where all were drawn just now nobody is stale: all alike
    age = jnp.where(jnp.sum(age) > 0, age, used.astype(by_score.dtype))
    by_age = age / jnp.maximum(jnp.sum(age), 1)
    return (1 - rule.staleness) * by_score + rule.staleness * by_age
