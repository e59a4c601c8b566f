"""Turn the episodes of a rollout window into evidence.

In: which steps ended an episode, what it came to, and the level that each slot played. Out:
`Evidence`, and what has to be remembered for the next window. Two choices decide what is learned:

`episodes`: how many episodes of a level count in one slot. In a window of fixed length a level is
played more often where its episodes are short, so counting all of them overcounts quick wins.
None (all) is right only where slots run on from window to window and nothing is cut off; else
take as many as always fit, T // max_steps, or the first alone.

`unfinished`: the episode that runs when the window ends. "carry": the slot runs on, and the next
window ends it. "fail": it counts as failed. "drop": it tells nothing, which favours short episodes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.checks import check_choice, host_numbers, numbers_or_none, whole_numbers, wide_float
from bots_jax.pool.graded import as_shares, check_ends
from bots_jax.types import Array, ArrayLike, Evidence

UNFINISHED = ("carry", "fail", "drop")
NO_LEVEL = -1


class Running(NamedTuple):
    """The unfinished episode of each of S slots."""

    level_ids: Array  # i32[S], -1 before the first window
    steps: Array  # i32[S], steps of the episode so far
    episodes: Array  # i32[S], episodes counted since this level was put into the slot
    counted: Array  # bool[S], whether the episode has counted as failed already


def no_running(num_slots: int) -> Running:
    """S slots without an episode, for before the first window."""
    zeros = jnp.zeros((num_slots,), jnp.int32)
    return Running(zeros + NO_LEVEL, zeros, jnp.zeros_like(zeros), jnp.zeros((num_slots,), bool))


def record(
    running: Running,
    dones: ArrayLike,
    outcomes: ArrayLike,
    level_ids: ArrayLike,
    visit: ArrayLike | None = None,
    *,
    episodes: int | None = 1,
    unfinished: str = "drop",
    limit: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[Running, Evidence]:
    """The evidence of a window of T steps in S slots.

    Args:
      running: from the window before, or `no_running(S)`.
      dones: bool[T, S], True at the last step of an episode.
      outcomes: bool[T, S] or f[T, S], what the episode came to: success, or a return between
        `low` and `high` (clipped); read where `dones` alone. See `episode_returns`. NaN and
        infinities: an episode that was not scored, which counts towards the end of the visit.
      level_ids: i32[S], one level a slot for the whole window; or i32[T, S], the level played at
        each step, where slots change levels in the middle. -1: a slot that does not count.
      visit: of the shape of `level_ids`, from `Selection.visit`; None: unnumbered.
      episodes: episodes that count, of each stay of a level in a slot; None: all. With "carry" a
        level that its slot is given anew goes on with the same stay: give None there.
      unfinished: "carry", "fail" or "drop": the episode that the end of the window cuts off.
      limit: an episode that reaches so many steps without an end counts as failed then; what it
        comes to later does not count. None: no limit.
      low, high: the scale of the outcomes: wholly failed, wholly solved.

    Returns:
      What to hand to the next window, and evidence of S rows (one a slot) for i32[S] levels or of
      T * S rows (one a step). A row with nothing finished has id -1 or 0 trials, which leave its
      visit open, where the slot runs on; and endless attempts where the window ended its visit
      (of rows by step, the last one of a level's stay in a slot).

    Raises:
      ValueError: naming the argument and its value.
    """
    check_choice("unfinished", unfinished, UNFINISHED)
    dones, share, levels = _check_window(dones, outcomes, level_ids, low, high)
    _check_counts(episodes, limit)
    visit = numbers_or_none("visit", visit)
    by_step = levels.ndim == 2
    played = levels if by_step else jnp.broadcast_to(levels, dones.shape)
    most = jnp.iinfo(jnp.int32).max if episodes is None else episodes

    def step(slots: Running, now: tuple[Array, Array]) -> tuple[Running, Array]:
        done, level = now
        slots = _change_level(slots, level)
        steps = slots.steps + 1
        open_ = (level >= 0) & ~slots.counted & (slots.episodes < most)
        late = jnp.zeros_like(done) if limit is None else ~done & (steps >= limit)
        counts = open_ & (done | late)
        after = Running(
            level,
            jnp.where(done, 0, steps),
            slots.episodes + counts.astype(jnp.int32),
            ~done & (slots.counted | late),
        )
        return after, counts

    end, counts = lax.scan(step, running, (dones, played))
    scored = counts & ~(dones & jnp.isnan(share))
    successes = jnp.where(scored & dones, share, 0)
    attempts, trials = counts.astype(share.dtype), scored.astype(share.dtype)
    if unfinished == "fail":
        cut = (end.level_ids >= 0) & (end.steps > 0) & ~end.counted & (end.episodes < most)
        attempts, trials = (x.at[-1].add(cut.astype(x.dtype)) for x in (attempts, trials))
    carry = unfinished == "carry"
    after = end if carry else no_running(dones.shape[1])
    if by_step:
        attempts = attempts if carry else _ending_stays(levels, attempts)
        return after, _rows_by_step(levels, successes, trials, attempts, visit)
    # A step that counts more than its own end counts one that was cut off.
    worst = jnp.min(jnp.where(trials == 1, successes, jnp.where(trials > 1, 0, 1)), 0)
    differ = jnp.max(successes, 0) > worst
    successes, trials, attempts = (jnp.sum(x, 0) for x in (successes, trials, attempts))
    ids = jnp.where((attempts > 0) | (not carry), levels, NO_LEVEL)
    attempts = attempts if carry else jnp.where(attempts > 0, attempts, jnp.inf)
    return after, Evidence(ids, successes, trials, visit, attempts=attempts, differ=differ)


def _change_level(slots: Running, level: Array) -> Running:
    new = level != slots.level_ids
    return Running(
        level,
        jnp.where(new, 0, slots.steps),
        jnp.where(new, 0, slots.episodes),
        slots.counted & ~new,
    )


def _ending_stays(levels: Array, attempts: Array) -> Array:
    """f[T, S] attempts, endless at the last step of a level in a slot if nothing counts there."""
    last = jnp.ones_like(levels, bool).at[:-1].set(levels[1:] != levels[:-1])
    return jnp.where(last & (levels >= 0) & (attempts == 0), jnp.inf, attempts)


def _rows_by_step(
    levels: Array, successes: Array, trials: Array, attempts: Array, visit: ArrayLike | None
) -> Evidence:
    ids = jnp.where(attempts > 0, levels, NO_LEVEL)
    number = None if visit is None else jnp.broadcast_to(jnp.asarray(visit), ids.shape).ravel()
    told = ids.ravel(), successes.ravel(), trials.ravel(), number
    return Evidence(*told, attempts=attempts.ravel())


def _check_window(
    dones: ArrayLike, outcomes: ArrayLike, level_ids: ArrayLike, low: float, high: float
) -> tuple[Array, Array, Array]:
    check_ends(low, high, "outcomes")
    dones, values = jnp.asarray(host_numbers("dones", dones)), host_numbers("outcomes", outcomes)
    levels = whole_numbers("level_ids", level_ids, beyond=NO_LEVEL)
    if dones.ndim != 2 or values.shape != dones.shape or not dones.shape[0]:
        raise ValueError(
            f"dones has shape {dones.shape} and outcomes {values.shape}, expected [T, S] of both, "
            "and a step at least"
        )
    if levels.shape not in (dones.shape, dones.shape[1:]):
        raise ValueError(
            f"level_ids has shape {levels.shape}, expected {dones.shape[1:]}, a level a slot, or "
            f"{dones.shape}, a level a step"
        )
    share = as_shares(values, low, high, "outcomes")
    return dones.astype(bool), share, levels


def _check_counts(episodes: int | None, limit: int | None) -> None:
    for name, value in (("episodes", episodes), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1, or None for no bound")


def episode_returns(rewards: ArrayLike, dones: ArrayLike, start: ArrayLike) -> tuple[Array, Array]:
    """The return of each episode so far, step by step: outcomes for `record`.

    Args:
      rewards: f[T, S]; summed in 32 bits at least.
      dones: bool[T, S].
      start: f[S], from the window before; 0 at first.

    Returns:
      f[T, S] sums of rewards since the episode began, and f[S] to hand to the next window.
    """

    def step(sofar: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = now
        sofar = sofar + reward
        return jnp.where(done, 0, sofar), sofar

    rewards = jnp.asarray(host_numbers("rewards", rewards))
    dtype = wide_float(rewards.dtype)
    begin = jnp.broadcast_to(jnp.asarray(start, dtype), rewards.shape[1:])
    ends = jnp.asarray(host_numbers("dones", dones)).astype(bool)
    end, returns = jax.lax.scan(step, begin, (rewards.astype(dtype), ends))
    return returns, end
