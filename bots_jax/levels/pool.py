"""A pool of levels for a selector: sample levels to play, insert new ones, evict.

In: a selector's state of C rows, and a pytree of levels [C, ...]. Out: levels for B x G slots; the
pool with its least useful levels replaced; what is believed of the pool as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.checks import check_count, host_numbers, whole_numbers
from bots_jax.growth import retire
from bots_jax.pool.reference import stored_like
from bots_jax.pool.visits import without_pending
from bots_jax.types import Array, ArrayLike, Evidence, PyTree, Selector, State

NO_LEVEL = -1
SOLVED, HOPELESS = 0.9, 0.1  # success rates from which a level teaches little


class Slots(NamedTuple):
    """The levels that B * G environment slots play."""

    level_ids: Array  # i32[B * G], rows to take levels from: always in range
    task_ids: Array  # i32[B * G], for `record`: -1 in slots that nothing may be learned from
    visit: Array  # i32[B * G], to send back with the evidence; -1 where task_ids is
    weight: Array  # f[B * G], for the loss: 0 where task_ids is -1, else 1


def take(levels: PyTree, level_ids: ArrayLike) -> PyTree:
    """The levels in some rows: i32[...] rows to a pytree of arrays [..., ...]."""
    return jax.tree.map(lambda x: x[level_ids], levels)


def sample(
    selector: Selector,
    rng_key: Array,
    state: State,
    copies: int = 1,
    eligible: ArrayLike | None = None,
) -> tuple[State, Slots]:
    """Select levels for B slots, each level in `copies` slots (G) side by side.

    Where fewer than B levels may be selected, the places left over repeat the selected ones in
    turn. Id -1 is never used as a row: `levels[-1]` would train on the last level. If nothing may
    be selected at all, every weight is 0.

    Raises:
      ValueError: if `copies` is below 1.
    """
    if copies < 1:
        raise ValueError(f"copies={copies} must be at least 1: slots for each selected level")
    state, chosen = selector.select(rng_key, state, eligible)
    count = jnp.sum(chosen.valid, dtype=jnp.int32)
    # valid places come first, in their order; then they repeat
    own = jnp.arange(chosen.valid.shape[0], dtype=jnp.int32)
    order = jnp.argsort(~chosen.valid, stable=True).astype(jnp.int32)
    at = order[own % jnp.maximum(count, 1)]
    at = jnp.repeat(jnp.where(chosen.valid, own, at), copies)
    task_ids = jnp.where(count > 0, chosen.task_ids[at], NO_LEVEL)
    visit = jnp.where(count > 0, chosen.visit[at], -1)
    level_ids = jnp.maximum(task_ids, 0)
    return state, Slots(level_ids, task_ids, visit, (task_ids >= 0).astype(chosen.rate.dtype))


def usefulness(selector: Selector, state: State) -> Array:
    """f[C]: p (1 - p) of each level's estimated success rate p; -inf for rows without a level."""
    mean = selector.predict(state).mean
    return jnp.where(state.pool.active, mean * (1 - mean), -jnp.inf)


def insert(
    selector: Selector,
    state: State,
    levels: PyTree,
    new_levels: PyTree,
    *,
    worth: ArrayLike | None = None,
    parents: ArrayLike | None = None,
    trust: float = 4.0,
    scores: ArrayLike | None = None,
    features: ArrayLike | None = None,
) -> tuple[State, PyTree, Array]:
    """Insert A new levels, into free rows first, then in place of the least useful levels.

    Levels in flight stay. A level that takes a row has a fresh belief; where its parent is known,
    it starts as after `trust` episodes at the rate believed of the parent: with `auto` at once,
    with others at the next `selector.advance` (or `update`). That is no level played for `Info`.

    Args:
      levels: pytree [C, ...], a row for each of the state's; rows without a level hold anything.
      new_levels: pytree [A, ...], A <= C.
      worth: f[A], of the new levels, on the scale of `scores`: a level is inserted only where it
        is worth more than the one whose row it takes. None: all are.
      parents: i32[A], the rows that they were made from; -1, or a row without a level: none.
      trust: episodes that a parent's rate counts for.
      scores: f[C], what each level is worth, where it is not `usefulness`: MaxMC, PVL. Levels
        with NaN, of which nothing is known yet, are the last to leave.
      features: f[A, F] numbers of the new levels, of the kind that `init(features=f[N, F])` was
        given, NaN (or infinite) where unknown. None: of a pool with features, new levels are
        average ones.

    Returns:
      The state, the levels, and i32[A], the row of each new level, -1 where it was not inserted.

    Raises:
      ValueError: if the pool has domains, is grouped, or the shapes do not fit.
    """
    capacity = _check_insert(state, levels, new_levels)
    columns = _columns_of(state, features)
    count = jax.tree.leaves(new_levels)[0].shape[0]
    believed, active = selector.predict(state).mean, state.pool.active
    if scores is None:
        held = usefulness(selector, state)
    else:
        held = _floats("scores", scores, believed.dtype)
    held = jnp.where(active, held, -jnp.inf)
    worst = jnp.argsort(jnp.where(state.pool.visit >= 0, jnp.inf, held), stable=True)[:count]
    order, accepted = _accept(state, held[worst], worst, worth, count)
    rows = (
        jnp.full((count,), capacity, jnp.int32)
        .at[order]
        .set(jnp.where(accepted, worst, capacity).astype(jnp.int32))
    )
    levels = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), levels, new_levels)
    state = _renew(state, rows)
    embeddings = state.reference.embeddings
    if columns is not None and embeddings is not None:  # one with the other: see `_columns_of`
        columns = stored_like(state.reference, columns)
        known = embeddings.at[:, rows].set(columns, mode="drop")
        state = state._replace(reference=state.reference._replace(embeddings=known))
    inserted = jnp.where(rows < capacity, rows, NO_LEVEL)
    if parents is not None:
        parent = whole_numbers("parents", parents, beyond=NO_LEVEL)
        inside = (parent >= 0) & (parent < capacity)
        at = jnp.where(inside, parent, 0)
        known = (inserted >= 0) & inside & active[at]
        state = _with_parents(
            selector, state, jnp.where(known, inserted, NO_LEVEL), believed[at], trust
        )
    return state, levels, inserted


def _with_parents(
    selector: Selector, state: State, rows: Array, rate: Array, trust: float
) -> State:
    """New levels, i32[A] with -1 for none, as after `trust` episodes at the rates of parents."""
    episodes = jnp.full_like(rate, trust)
    at = jnp.where(rows >= 0, rows, state.pool.active.shape[0])
    inherit = getattr(state.belief, "inherit", None)
    if inherit is None:
        state = selector.observe(state, Evidence(rows, trust * rate, episodes))
        # They were no rollouts, which `Info` goes by: see `visits.is_rolled_out`.
        ends = state.pool.most_failed, state.pool.most_solved
        failed, solved = (end.at[at].set(0, mode="drop") for end in ends)
        return state._replace(pool=state.pool._replace(most_failed=failed, most_solved=solved))
    fresh = selector.predict(state, jnp.maximum(rows, 0))
    return state._replace(belief=inherit(at, fresh, rate, episodes))


def _floats(name: str, value: ArrayLike, dtype: jnp.dtype) -> Array:
    """Numbers of any type as floats: the negative of one without a sign is no less than it."""
    return jnp.asarray(host_numbers(name, value)).astype(dtype)


def _accept(
    state: State, held: Array, worst: Array, worth: ArrayLike | None, count: int
) -> tuple[Array, Array]:
    """The new levels, best first, against the rows, worst first: who gets one."""
    free = state.pool.visit[worst] < 0
    if worth is None:
        return jnp.arange(count, dtype=jnp.int32), free
    values = _floats("worth", worth, held.dtype)
    order = jnp.argsort(-values)
    return order, free & (values[order] > held)


def _columns_of(state: State, features: ArrayLike | None) -> Array | None:
    """f[E, A] of the new levels, or 0, which says nothing; None of a pool without features."""
    known, dtype = state.reference.embeddings, state.reference.rates.dtype
    if known is None:
        if features is not None:
            raise ValueError("features was given, but the pool was made without: drop it")
        return None
    if features is None:
        return jnp.zeros((known.shape[0], 1), dtype)
    given, code = _floats("features", features, dtype), state.reference.code
    if given.ndim != 2 or given.shape[1] != known.shape[0]:
        raise ValueError(
            f"features has shape {given.shape}, expected [A, {known.shape[0]}]: numbers like those "
            "that the pool was made with (categories cannot be encoded inside jit)"
        )
    if code is None:
        return jnp.where(jnp.isfinite(given.T), given.T, 0)
    coarse, fine = jnp.asarray(code.center, dtype)[:, :, None]
    scale = jnp.asarray(code.scale, dtype)[:, None]
    usable = jnp.isfinite(given.T) & (scale > 0)
    away = jnp.where(usable, given.T - coarse - fine, 0)
    return away / jnp.where(scale > 0, scale, 1)


def _renew(state: State, rows: Array) -> State:
    """Rows that hold another level from now on; C and above are dropped."""
    pool, capacity, before = state.pool, state.pool.active.shape[0], state.pool.active
    inside = rows < capacity
    added = jnp.sum(inside & ~pool.active[jnp.minimum(rows, capacity - 1)], dtype=jnp.int32)
    highest = jnp.max(jnp.where(inside, rows + 1, 0), initial=0)
    pool = without_pending(pool, rows)._replace(
        active=pool.active.at[rows].set(True, mode="drop"),
        domain_sizes=pool.domain_sizes + added,
        next_fresh=jnp.maximum(pool.next_fresh, highest.astype(jnp.int32)),
    )
    belief = state.belief.restart(state.settings, rows, before)
    return state._replace(pool=pool, belief=belief)


def _check_insert(state: State, levels: PyTree, new_levels: PyTree) -> int:
    if state.representation == "grouped" or state.pool.domain is not None:
        raise ValueError(
            "insert needs a dense pool of one domain: make it with representation='dense' and "
            "without domains"
        )
    capacity = state.pool.active.shape[0]
    sizes = {x.shape[0] for x in jax.tree.leaves(new_levels)}
    if len(sizes) != 1 or max(sizes) > capacity:
        raise ValueError(
            f"new_levels has leading sizes {sorted(sizes)}, expected one, at most {capacity}"
        )
    held = {x.shape[0] for x in jax.tree.leaves(levels)}
    if held - {capacity}:  # a write beyond the last row would be dropped, unseen
        raise ValueError(
            f"levels has leading sizes {sorted(held)}, expected {capacity}, as the state has rows: "
            "fill them up with any levels where init(capacity=...) is above the number of levels"
        )
    return capacity


def evict(selector: Selector, state: State, count: int) -> tuple[State, Array]:
    """Evict the `count` least useful levels that are not in flight; returns their rows."""
    held = usefulness(selector, state)
    allowed = state.pool.active & (state.pool.visit < 0)
    worst = jnp.argsort(jnp.where(allowed, held, jnp.inf), stable=True)[:count]
    rows = jnp.where(allowed[worst], worst, NO_LEVEL).astype(jnp.int32)
    return retire(state, rows), rows


def pool_metrics(
    selector: Selector,
    state: State,
    *,
    scores: ArrayLike | None = None,
    span: tuple[float, float] = (0.0, 0.25),
    bins: int = 10,
    last_played: ArrayLike | None = None,
    now: ArrayLike | None = None,
) -> dict[str, Array]:
    """Estimated state of the pool, as shares of its levels, each f[]:

    solved: believed rate .9 and more; hopeless: .1 and less; learnable: between; in_flight: share
    of levels that are being played; mean: believed success rate. And histogram, i32[bins]: levels
    by score, between the ends of `span`, the first and last bin with what lies beyond. And, where
    it is told when levels were played, `staleness` of those in the pool.

    Args:
      scores: f[C], what levels are worth (MaxMC, PVL), NaN where that is not known, which no bin
        counts; None: `usefulness`, between 0 and .25.
      span: ends of the scale of the scores.
      bins: of the histogram.
      last_played: i32[C], update at which each level was last played.
      now: this update.

    Raises:
      ValueError: naming the argument and its value.
    """
    check_count("bins", bins)
    if not span[0] < span[1]:
        raise ValueError(f"span={span} must rise: the ends of the scale of the scores")
    if (last_played is None) != (now is None):
        raise ValueError(f"last_played={last_played} and now={now}: give both, or none of them")
    mean, active = selector.predict(state).mean, state.pool.active
    total = jnp.maximum(jnp.sum(active.astype(mean.dtype)), 1)
    worth = mean * (1 - mean) if scores is None else jnp.asarray(scores, mean.dtype)
    place = jnp.floor((worth - span[0]) / (span[1] - span[0]) * bins)
    counted = active & ~jnp.isnan(place)
    place = jnp.where(counted, jnp.clip(place, 0, bins - 1), bins).astype(jnp.int32)

    def share(which: Array) -> Array:
        return jnp.sum((which & active).astype(mean.dtype)) / total

    told = {
        "solved": share(mean >= SOLVED),
        "learnable": share((mean > HOPELESS) & (mean < SOLVED)),
        "hopeless": share(mean <= HOPELESS),
        "in_flight": share(state.pool.visit >= 0),
        "mean": jnp.sum(jnp.where(active, mean, 0)) / total,
        "histogram": jnp.zeros((bins,), jnp.int32).at[place].add(1, mode="drop"),
    }
    if last_played is not None and now is not None:
        told |= staleness(last_played, now, active)
    return told


def staleness(
    last_played: ArrayLike, now: ArrayLike, active: ArrayLike | None = None
) -> dict[str, Array]:
    """Mean and maximum number of updates since levels were last played, i32[C].

    active: bool[C], the levels that count; None: all.
    """
    age = jnp.asarray(now) - jnp.asarray(last_played)
    counts = jnp.ones(age.shape, bool) if active is None else jnp.asarray(active)
    total = jnp.sum(jnp.where(counts, age, 0)).astype(jnp.float32)
    mean = total / jnp.maximum(jnp.sum(counts.astype(jnp.float32)), 1)
    return {"staleness_mean": mean, "staleness_max": jnp.max(jnp.where(counts, age, 0))}
