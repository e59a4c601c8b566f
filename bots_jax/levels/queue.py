"""A queue of levels for slots that take a new level whenever an episode ends.

In: a selection of Q levels, and which of S slots have finished. Out: the level of each slot at each
step of a window, for `record` with ids [T, S] and unfinished="carry". Slots that are in the middle
of an episode when a window ends keep their level, and its visit stays open.

    state, chosen = selector.select(key, state)
    queue = open_queue(chosen)
    # in the scan over steps, with `done` of the step before:
    queue, playing = pop(queue, playing, done)
    # step the environments with playing.level_ids; keep playing.task_ids and playing.visit, [T, S]
    running, evidence = record(running, dones, won, task_ids, visit, episodes=None,
                               unfinished="carry")
    state = selector.abandon(state, left(queue))
    state, info = selector.update(state, evidence)

One window hands out at most Q levels: choose Q as large as episodes can end. A slot that ends an
episode when the queue is empty plays its level again, with task id -1: nothing is learned from it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from bots_jax.checks import check_count
from bots_jax.types import Array, ArrayLike, Selection

NO_LEVEL = -1


class Queue(NamedTuple):
    """A queue of Q selected levels, in the order in which slots get them."""

    task_ids: Array  # i32[Q], -1 behind the last
    visit: Array  # i32[Q]
    size: Array  # i32[], levels in the queue
    taken: Array  # i32[], levels handed out so far


class Playing(NamedTuple):
    """The level that each of S slots plays at a step."""

    level_ids: Array  # i32[S], rows to take levels from: always in range
    task_ids: Array  # i32[S], for `record`; -1 where nothing is learned
    visit: Array  # i32[S], to send back with the evidence; -1 where task_ids is


def no_playing(num_slots: int) -> Playing:
    """Empty slots, for before the first window: pop with `done` all True at the first step."""
    check_count("num_slots", num_slots)
    none = jnp.full((num_slots,), NO_LEVEL, jnp.int32)
    return Playing(jnp.zeros_like(none), none, jnp.full((num_slots,), NO_LEVEL, jnp.int32))


def open_queue(chosen: Selection) -> Queue:
    """Make a queue of the levels of a selection, in their order, valid ones first."""
    valid = jnp.asarray(chosen.valid)
    order = jnp.argsort(~valid, stable=True)
    inside = valid[order]
    return Queue(
        jnp.where(inside, jnp.asarray(chosen.task_ids)[order], NO_LEVEL),
        jnp.where(inside, jnp.asarray(chosen.visit)[order], NO_LEVEL),
        jnp.sum(valid, dtype=jnp.int32),
        jnp.zeros((), jnp.int32),
    )


def pop(queue: Queue, playing: Playing, done: ArrayLike) -> tuple[Queue, Playing]:
    """Give the slots that are done, bool[S], their next levels, in the order of slots."""
    done = jnp.asarray(done, bool)
    at = queue.taken + jnp.cumsum(done, dtype=jnp.int32) - 1
    gets = done & (at < queue.size)
    at = jnp.minimum(at, queue.task_ids.shape[0] - 1)
    task_ids = jnp.where(gets, queue.task_ids[at], jnp.where(done, NO_LEVEL, playing.task_ids))
    visit = jnp.where(gets, queue.visit[at], jnp.where(done, NO_LEVEL, playing.visit))
    level_ids = jnp.where(gets, queue.task_ids[at], playing.level_ids)
    taken = queue.taken + jnp.sum(gets, dtype=jnp.int32)
    return queue._replace(taken=taken), Playing(level_ids, task_ids, visit)


def left(queue: Queue) -> Array:
    """i32[Q]: the levels that no slot has played, for `selector.abandon`; -1 elsewhere."""
    waiting = jnp.arange(queue.task_ids.shape[0], dtype=jnp.int32) >= queue.taken
    return jnp.where(waiting, queue.task_ids, NO_LEVEL)
