"""Strategies that roll out more than they train on, every rollout counted.

In: a selector, a state, and `roll`, which rolls tasks out. Out: the groups to train on,
what was generated for them, and the state told of all of it. One step of training is

    state, collected = extra.collect(rng_key, state, roll)
    ... learn from collected.rolled ...
    state, info = extra.selector.advance(state)

`roll(phase, task_ids i32[M], count) -> Rolled` may be a replay's draw, a simulator or a
policy's generation; `phase` numbers the calls of a step and may be traced, `count` is
static. A selector without extra rollouts is the case `no_oversampling`: select, roll, observe.

    dynamic_sampling  rounds of B tasks x m until B groups are mixed (DAPO, 2503.14476)
    speed             the same with m0 < m screening rollouts; the m - m0 others only for
                      the B tasks that were mixed in them (SPEED, 2506.09016)
    learnability      4 B tasks x 8, then m fresh ones for the B of largest p (1 - p)
                      (SFL, 2408.15099; LILO, 2502.12272)
    dots              every second step 256 anchor tasks x 8, from whose rates those of all
                      tasks are predicted by similarity (`dots.py`); then B tasks near 1/2,
                      m each (DOTS, 2506.05316)

Departures: rounds end at a cap, and a batch short of mixed groups is trained as it is, its
other places invalid; what was mixed beyond B is dropped, not kept for the next step (SPEED
keeps it, a policy step old); the base selector, uniform in the papers, may be any, and it is
told of every rollout, the dropped ones too; SFL keeps one sample of candidates for many
steps, here each step draws its own; those of DOTS are on the page of these strategies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.checks import check_count, check_number
from bots_jax.choice.batch import lowest
from bots_jax.numerics.arithmetic import differ
from bots_jax.pool.visits import selectable
from bots_jax.strategies import configure
from bots_jax.strategies.dots import measured, predicted_selector, taken
from bots_jax.types import (
    Array,
    Evidence,
    ObserveFn,
    PyTree,
    SelectFn,
    Selection,
    Selector,
    State,
)


class Rolled(NamedTuple):
    """M tasks rolled out G times each."""

    rewards: Array  # f[M, G] in [0, 1]; NaN for a group that could not be told
    tokens: Array  # i32[M, G], generated; 1 each where they are not known
    data: PyTree = None  # leaves [M, G, ...]: completions and whatever the learner needs


class RollFn(Protocol):
    """What rolls tasks out: see the module."""

    def __call__(self, phase: int | Array, task_ids: Array, count: int) -> Rolled:
        """Roll `task_ids` i32[M] out `count` times each; ids of -1 may give anything."""


class TrainBatch(NamedTuple):
    """The groups to train on, and what they cost."""

    task_ids: Array  # i32[B]; -1 where valid is False
    draws: Array  # f[B], the p^ that each was selected by
    valid: Array  # bool[B]
    rolled: Rolled  # [B, m, ...]; anything where invalid
    generated: Array  # i32, rollouts generated for this batch
    tokens: Array  # i32, tokens of these rollouts


CollectFn = Callable[[Array, State, RollFn], tuple[State, TrainBatch]]


class Oversampling(NamedTuple):
    """A strategy with extra rollouts: a selector, and how a batch is collected with it."""

    selector: Selector
    collect: CollectFn
    static: Mapping[str, Any] = {}


Strategy = Selector | Oversampling


@dataclasses.dataclass(frozen=True)
class _Plain:
    """The collecting of `no_oversampling`; equal, and compiled once, for the same selector."""

    select: SelectFn
    observe: ObserveFn
    rollouts: int

    def __call__(self, rng_key: Array, state: State, roll: RollFn) -> tuple[State, TrainBatch]:
        state, selection = self.select(rng_key, state)
        ids, draws, valid, visit = selection
        rolled = roll(0, ids, self.rollouts)
        trials = jnp.where(valid, float(self.rollouts), 0.0)
        differ = _is_mixed(rolled, valid)
        evidence = Evidence(ids, _successes(rolled, valid), trials, visit, differ=differ)
        generated, tokens = _cost(rolled, valid)
        collected = TrainBatch(ids, draws, valid, rolled, generated, tokens)
        return self.observe(state, evidence), collected


def no_oversampling(selector: Selector, rollouts: int) -> Oversampling:
    """A selector as it is: every rollout is trained on."""
    return Oversampling(
        selector, _Plain(selector.select, selector.observe, rollouts), selector.static
    )


def _successes(rolled: Rolled, valid: Array) -> Array:
    return jnp.where(valid, jnp.sum(rolled.rewards, axis=1), 0)


def _cost(rolled: Rolled, valid: Array) -> tuple[Array, Array]:
    """Rollouts and tokens of the valid rows."""
    group = rolled.rewards.shape[1]
    tokens = jnp.where(valid[:, None], rolled.tokens, 0)
    return group * jnp.sum(valid, dtype=jnp.int32), jnp.sum(tokens, dtype=jnp.int32)


def _is_mixed(rolled: Rolled, valid: Array) -> Array:
    """bool[M]: rewards that are not all alike."""
    return valid & differ(rolled.rewards)


def _differ_in_two_groups(first: Rolled, second: Rolled, rows: Array) -> Array:
    """bool[M]: whether rewards f[M, .] and those f[B, .] of some of the rows differ."""
    highest, lowest = jnp.max(first.rewards, axis=1), jnp.min(first.rewards, axis=1)
    highest = highest.at[rows].max(jnp.max(second.rewards, axis=1), mode="drop")
    return highest > lowest.at[rows].min(jnp.min(second.rewards, axis=1), mode="drop")


# --- rounds until the batch is full of mixed groups ------------------------------------------


class PartialBatch(NamedTuple):
    """A batch being filled, and the evidence of all rounds so far."""

    state: State
    round: Array  # i32, rounds done
    kept: Array  # i32, mixed groups found, those beyond B too
    more: Array  # bool, the last round found tasks to try
    batch: TrainBatch  # the B places
    place: Array  # i32[B], the row of the evidence that each place stands for
    ids: Array  # i32[R B], rows of evidence; -1 where nothing was tried
    successes: Array  # f[R B]
    trials: Array  # f[R B]
    visit: Array  # i32[R B]
    differ: Array  # bool[R B]


def _fill(
    selector: Selector, batch_size: int, group: int, rounds: int
) -> Callable[[Array, State, RollFn], PartialBatch]:
    """Rounds of `batch_size` tasks x `group` rollouts until as many groups are mixed."""

    def one_round(
        rng_key: Array, filling: PartialBatch, phase: int | Array, roll: RollFn
    ) -> PartialBatch:
        state, selection = selector.select(jax.random.fold_in(rng_key, phase), filling.state)
        rolled = roll(phase, selection.task_ids, group)
        return _add_round(filling._replace(state=state), selection, rolled, phase)

    def fill(rng_key: Array, state: State, roll: RollFn) -> PartialBatch:
        # The first round stands alone: the shapes of what `roll` gives start the loop.
        first_key, rng_key = jax.random.split(rng_key)
        state, selection = selector.select(first_key, state)
        rolled = roll(0, selection.task_ids, group)
        begun = _add_round(_nothing(state, selection, rolled, rounds), selection, rolled, 0)
        return lax.while_loop(
            lambda filling: (filling.kept < batch_size) & (filling.round < rounds) & filling.more,
            lambda filling: one_round(rng_key, filling, filling.round, roll),
            begun,
        )

    return fill


def _nothing(state: State, selection: Selection, rolled: Rolled, rounds: int) -> PartialBatch:
    """An empty batch, with the shapes of a first round."""
    ids, draws, valid, _ = selection
    empty, zero = jnp.full_like(ids, -1), jnp.zeros((), jnp.int32)
    batch = TrainBatch(empty, jnp.zeros_like(draws), jnp.zeros_like(valid), rolled, zero, zero)
    rows, dtype = rounds * ids.shape[0], state.pool.trials.dtype
    none, nothing = jnp.full((rows,), -1, jnp.int32), jnp.zeros((rows,), dtype)
    return PartialBatch(
        state, zero, zero, jnp.ones((), bool), batch, empty, none, nothing, nothing,
        jnp.full_like(none, -1), jnp.zeros((rows,), bool),
    )  # fmt: skip


def _add_round(
    filling: PartialBatch, selection: Selection, rolled: Rolled, phase: int | Array
) -> PartialBatch:
    """Mixed groups go to the next free places; all groups are evidence."""
    ids, draws, valid, visit = selection
    size, group = rolled.rewards.shape
    mixed = _is_mixed(rolled, valid)
    turn = filling.kept + jnp.cumsum(mixed, dtype=jnp.int32) - 1
    # A place past the end is dropped: groups that are not mixed, and those beyond B.
    to = jnp.where(mixed, turn, size)
    row = jnp.asarray(phase, jnp.int32) * size + jnp.arange(size, dtype=jnp.int32)
    successes = _successes(rolled, valid).astype(filling.successes.dtype)
    trials = jnp.where(valid, group, 0).astype(filling.trials.dtype)
    generated, tokens = _cost(rolled, valid)
    old = filling.batch
    batch = TrainBatch(
        old.task_ids.at[to].set(ids, mode="drop"),
        old.draws.at[to].set(draws, mode="drop"),
        old.valid.at[to].set(True, mode="drop"),
        jax.tree.map(lambda kept, new: kept.at[to].set(new, mode="drop"), old.rolled, rolled),
        old.generated + generated,
        old.tokens + tokens,
    )
    return PartialBatch(
        filling.state,
        filling.round + 1,
        filling.kept + jnp.sum(mixed, dtype=jnp.int32),
        jnp.any(valid),
        batch,
        filling.place.at[to].set(row, mode="drop"),
        filling.ids.at[row].set(ids),
        filling.successes.at[row].set(successes),
        filling.trials.at[row].set(trials),
        filling.visit.at[row].set(visit),
        filling.differ.at[row].set(mixed),
    )


def _told(selector: Selector, filling: PartialBatch) -> State:
    evidence = Evidence(
        filling.ids, filling.successes, filling.trials, filling.visit, differ=filling.differ
    )
    return selector.observe(filling.state, evidence)


def dynamic_sampling(
    *, batch_size: int = 32, rollouts: int = 16, base: str = "uniform", max_rounds: int = 4
) -> Oversampling:
    """DAPO's dynamic sampling: refill until B groups are mixed.

    Args:
      batch_size: B. rollouts: m, static here.
      base: the strategy that selects; see `STRATEGIES`.
      max_rounds: rounds of B tasks in a step at most.
    """
    rollouts = check_count("rollouts", rollouts, least=2)
    rounds = check_count("max_rounds", max_rounds)
    selector = configure(base, {}, batch_size=batch_size, rollouts=rollouts)
    fill = _fill(selector, batch_size, rollouts, rounds)

    def collect(rng_key: Array, state: State, roll: RollFn) -> tuple[State, TrainBatch]:
        filling = fill(rng_key, state, roll)
        return _told(selector, filling), filling.batch

    return Oversampling(selector, collect, {"strategy": "dynamic-sampling", "max_rounds": rounds})


def speed(
    *,
    batch_size: int = 32,
    rollouts: int = 16,
    base: str = "uniform",
    screening: int | None = None,
    max_rounds: int = 4,
) -> Oversampling:
    """SPEED: a few rollouts tell which tasks are worth the others.

    Args:
      batch_size: B. rollouts: m, of a group that is trained on, the screening ones with it.
      base: the strategy that selects; see `STRATEGIES`.
      screening: m0 < m; None for 8, or half of m if that is less.
      max_rounds: rounds of B tasks in a step at most.
    """
    rollouts = check_count("rollouts", rollouts, least=3)
    first = min(8, max(rollouts // 2, 2)) if screening is None else screening
    first = check_count("screening", first, least=2)
    if first >= rollouts:
        raise ValueError(f"screening={first} must be below rollouts={rollouts}: it is part of them")
    rounds = check_count("max_rounds", max_rounds)
    selector = configure(base, {}, batch_size=batch_size, rollouts=rollouts)
    fill = _fill(selector, batch_size, first, rounds)

    def collect(rng_key: Array, state: State, roll: RollFn) -> tuple[State, TrainBatch]:
        filling = fill(rng_key, state, roll)
        batch = filling.batch
        rest = roll(rounds, batch.task_ids, rollouts - first)
        generated, tokens = _cost(rest, batch.valid)
        whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), batch.rolled, rest)
        # In one row with the screening, which has perhaps completed the visit already.
        row = jnp.where(batch.valid, filling.place, filling.ids.shape[0])
        solved = _successes(rest, batch.valid).astype(filling.successes.dtype)
        filling = filling._replace(
            successes=filling.successes.at[row].add(solved, mode="drop"),
            trials=filling.trials.at[row].add(rollouts - first, mode="drop"),
        )
        batch = batch._replace(
            rolled=whole, generated=batch.generated + generated, tokens=batch.tokens + tokens
        )
        return _told(selector, filling), batch

    static = {"strategy": "speed", "screening": first, "max_rounds": rounds}
    return Oversampling(selector, collect, static)


def learnability(
    *,
    batch_size: int = 32,
    rollouts: int = 16,
    base: str = "uniform",
    screening: int = 8,
    candidates: int = 4,
) -> Oversampling:
    """SFL and LILO: roll out many candidates, train on those of largest p (1 - p).

    Args:
      batch_size: B. rollouts: m, of a group that is trained on, none of them a candidate's.
      base: the strategy that selects the candidates; see `STRATEGIES`.
      screening: rollouts of a candidate.
      candidates: for each place of the batch.
    """
    rollouts = check_count("rollouts", rollouts, least=2)
    first = check_count("screening", screening, least=2)
    pool = batch_size * check_count("candidates", candidates)
    selector = configure(base, {}, batch_size=pool, rollouts=rollouts)

    def collect(rng_key: Array, state: State, roll: RollFn) -> tuple[State, TrainBatch]:
        select_key, tie_key = jax.random.split(rng_key)
        state, selection = selector.select(select_key, state)
        tried = roll(0, selection.task_ids, first)
        solved = _successes(tried, selection.valid)
        rate = solved / first
        best, valid = lowest(
            tie_key, -rate * (1 - rate), selection.valid & jnp.isfinite(rate), batch_size
        )
        ids = jnp.where(valid, selection.task_ids[best], -1)
        rolled = roll(1, ids, rollouts)
        (cost, tokens), (again, more) = _cost(tried, selection.valid), _cost(rolled, valid)
        row = jnp.where(valid, best, pool)
        trials = jnp.where(selection.valid, first, 0).astype(solved.dtype)
        evidence = Evidence(
            selection.task_ids,
            solved.at[row].add(_successes(rolled, valid), mode="drop"),
            trials.at[row].add(rollouts, mode="drop"),
            selection.visit,
            differ=_differ_in_two_groups(tried, rolled, row),
        )
        draws = jnp.where(valid, selection.rate[best], 0)
        collected = TrainBatch(ids, draws, valid, rolled, cost + again, tokens + more)
        return selector.observe(state, evidence), collected

    static = {"strategy": "learnability", "screening": first, "candidates": candidates}
    return Oversampling(selector, collect, static)


def dots(
    *,
    batch_size: int = 32,
    rollouts: int = 16,
    target: float = 0.5,
    temperature: float = 1e-3,
    anchors: int | None = None,
    screening: int = 8,
    every: int = 2,
    learning_steps: int = 10,
    learning_rate: float = 0.002,
) -> Oversampling:
    """DOTS: predict how hard all tasks are from the tries of a few, train on the half solved.

    Its selector's `init` wants what tells tasks apart: `reference.TaskFeatures` with
    embeddings, as of `rl.embeddings`, or else pass rates of reference models.

    Args:
      batch_size: B. rollouts: m, of a group that is trained on, none of them an anchor's.
      target: p*. temperature: tau of the draw; 0 takes the nearest.
      anchors: tasks that are tried to tell the others; None for 256, or a quarter of the pool
        if that is less.
      screening: rollouts of an anchor.
      every: steps from one measurement to the next.
      learning_steps, learning_rate: of the similarity, at each measurement; 0 steps take the
        inner products of the embeddings as they are.
    """
    rollouts = check_count("rollouts", rollouts, least=2)
    tries = check_count("screening", screening)
    period = check_count("every", every)
    most = None if anchors is None else check_count("anchors", anchors, least=2)
    steps = check_count("learning_steps", learning_steps, least=0)
    rate = check_number("learning_rate", learning_rate, 0, 1)
    static = {
        "strategy": "dots", "reads": "embeddings", "anchors": most, "screening": tries,
        "every": period, "learning_steps": steps, "learning_rate": rate,
    }  # fmt: skip
    selector = predicted_selector(
        batch_size=batch_size, rollouts=rollouts, target=target, temperature=temperature,
        static=static,
    )  # fmt: skip

    def measure(rng_key: Array, state: State, roll: RollFn) -> tuple[State, Array, Array]:
        open_to_all = selectable(state.pool, None)
        size = len(open_to_all)
        count = min(size, most or min(256, max(size // 4, 2)))
        noise = jax.random.uniform(rng_key, (size,))
        ids, valid = lowest(None, noise, open_to_all, count)
        ids = jnp.where(valid, ids, -1)
        tried = roll(1, ids, tries)
        solved = _successes(tried, valid)
        trials = jnp.where(valid, float(tries), 0.0).astype(solved.dtype)
        differ = _is_mixed(tried, valid)
        state = selector.observe(state, Evidence(ids, solved, trials, differ=differ))
        return measured(state, ids, solved, tries, steps, rate), *_cost(tried, valid)

    train = no_oversampling(selector, rollouts).collect

    def collect(rng_key: Array, state: State, roll: RollFn) -> tuple[State, TrainBatch]:
        anchor_key, select_key = jax.random.split(rng_key)
        zero = jnp.zeros((), jnp.int32)
        state, made, tokens = lax.cond(
            state.pool.step % period == 0,
            lambda state: measure(anchor_key, state, roll),
            lambda state: (state, zero, zero),
            state,
        )
        state, batch = train(select_key, state, roll)
        cost = {"generated": batch.generated + made, "tokens": batch.tokens + tokens}
        return taken(state, batch.task_ids), batch._replace(**cost)

    return Oversampling(selector, collect, static)


EXTRA: dict[str, Callable[..., Oversampling]] = {
    "dots": dots,
    "dynamic-sampling": dynamic_sampling,
    "learnability": learnability,
    "speed": speed,
}
