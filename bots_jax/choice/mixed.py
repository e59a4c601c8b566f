"""The choice of `auto`: likely mixed groups, spread over the pool.

In: the belief of `belief/logit_normal.py`. Out: the tasks with the largest

    V_k / t_k - c log(1 + (1 - .8 q_k) visits_k),    V = 1 - q^G - (1 - q)^G

V is the chance that G rollouts are not all alike (m of them, if nothing else is said; where a visit
is one rollout, two; or another worth: `worth.py`), at an optimistic q
(`logit_normal.optimistic_rate`): nearer to 1/2 than the mean of the belief, by as much as is not
known of the task, because what looks solved or hopeless may not be (optimism in the face of
uncertainty). V is flat in the middle, so nothing is gained by narrowing to 1/2. t_k, where asked
for, are the tokens that the task is expected to generate relative to the average task.

Where anything tells what a task is like (references, features, domains), all tasks of the
likeliest kind stand at the top together, and would fill every batch. There q is drawn instead,

    logit q_k ~ U(eta_k + u_k - s sqrt(v_k), eta_k + u_k + s sqrt(v_k)),    s the `spread`,

anew at each step: the better known a kind, the narrower its tasks stand together. Uniform and not
normal, because among many hopeless tasks a normal's tails would put some at the top at each step.
(In grouped pools none is drawn: `grouped/mixed.py`.)

c is the price of breadth, and moves along the frontier of mixed groups and breadth. visits_k are
a task's recent ones. What is to be spread evenly are the visits of the whole run, those to come
too. So of two tasks alike the easier comes first: as the policy improves it will soon be solved,
where the harder can wait. Hence 1 - .8 q, by which a visit to a hard task counts up to five times
as much.

No task starves. One that was never visited comes first after 16 passes over the pool, however
little is expected of it: one visit tells more than any regression. One that was not visited for
`floor` passes does too. (Each task has a limit of its own between half of that and all of it,
so that a whole pool does not come due in one step.) In the long run at most 4 / (3 floor) of the
visits are spent on that. (In grouped pools nothing is known of tasks without a history but their
group: there a sweep does this, see `grouped/mixed.py`.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bots_jax.belief.lengths import relative_length
from bots_jax.belief.logit_normal import (
    AutoBelief,
    AutoConfig,
    Expected,
    expect,
    in_force,
    mean_rate,
    recent_visits,
    was_visited,
)
from bots_jax.choice.batch import lowest
from bots_jax.choice.worth import MIXED, Worth, optimistic
from bots_jax.compose import BeliefModel, Choice
from bots_jax.numerics.random_bits import gumbel, open_uniform
from bots_jax.numerics.short_lists import hash_bits
from bots_jax.settings import group_in_force
from bots_jax.types import Array, Settings, State

# Of so many times the batch, the best by rough scores, exact ones choose. More than enough: of 64
# the last stood at place 71 at most (benchmarks/selection/rough_scores.py).
_AMONG = 4
# Puts what is overdue before all else: V / t - c log(1 + visits) is far above minus this.
_FIRST = 1e4
SPREAD = 1.0  # where anything is told of a task


def mixed_groups(
    rules: AutoConfig,
    floor: float,
    noisy: bool,
    worth: Worth = MIXED,
    spread: float | None = None,
) -> Choice:
    """The equation above.

    Args:
      floor: passes over the pool within which every task is visited again.
      noisy: whether Gumbel noise times the temperature is added, as in `nearest_target`.
      worth: V, or what stands in its place.
      spread: s; 0 for the optimistic rate; None: `SPREAD` where anything is told of a
        task, else 0.
    """

    def rates(state: State, rows: Any = slice(None)) -> Array:
        belief, domain = state.belief, state.pool.domain
        expected = expect(rules, belief, state.settings, state.reference, domain, rows)
        return mean_rate(expected)

    def weigh(
        rng_key: Array, state: State, rows: Array | None = None, roughly: bool = False
    ) -> Array:
        noise_key, lottery_key = jax.random.split(rng_key)
        noise_key, draw_key = jax.random.split(noise_key)
        belief, settings, tasks = state.belief, state.settings, state.pool
        picked = slice(None) if rows is None else rows
        expected = expect(
            rules, belief, settings, state.reference, tasks.domain, picked, roughly=roughly
        )
        capacity = tasks.active.shape[0]
        task_ids = jnp.arange(capacity, dtype=jnp.int32) if rows is None else rows
        belief = belief.of_rows(rows)
        scores = weigh_tasks(
            lottery_key, rules, worth, belief, settings, expected, task_ids,
            drawn=_drawn(draw_key, state, expected, task_ids, spread),
        )  # fmt: skip
        if noisy:
            noise = gumbel(noise_key, (capacity,), scores.dtype)
            scores -= settings.temperature * noise[picked]
        late = _overdue(rules, state._replace(belief=belief), floor, task_ids)
        return jnp.where(late > 0, -_FIRST - late, scores)

    def score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
        return weigh(rng_key, state), rates(state)

    def best(
        rng_key: Array, model: BeliefModel, state: State, allowed: Array, count: int
    ) -> tuple[Array, Array, Array]:
        # Rates of the chosen alone: the pass over all tasks then writes nothing but scores.
        last, estimator = allowed.shape[0] - 1, rules.estimator
        if estimator.infer_roughly is not None and estimator.is_slow(
            state.belief.shared.estimator, state.reference
        ):
            rough = weigh(rng_key, state, roughly=True)
            likely, valid = lowest(None, rough, allowed, _AMONG * count)
            scores = weigh(rng_key, state, jnp.minimum(likely, last))
            places, valid = lowest(None, scores, valid, count)
            ids = likely[places]
        else:
            ids, valid = lowest(None, weigh(rng_key, state), allowed, count)
        return ids, rates(state, jnp.minimum(ids, last)), valid

    return Choice(score, best)


def _drawn(
    rng_key: Array, state: State, expected: Expected, task_ids: Array, spread: float | None
) -> Array | None:
    """f[M]: drawn rates, or None where the optimistic ones are used."""
    if spread is None:
        reference, domain = state.reference, state.pool.domain
        told = reference.rates.shape[0] or reference.embeddings is not None or domain is not None
        spread = SPREAD if told else 0.0
    if spread == 0:
        return None
    turn = jax.random.bits(rng_key, (), jnp.uint32)
    noise = 2 * _uniform(_bits_of(task_ids, turn), expected.shared.dtype) - 1
    # Of the offset alone: what is uncertain of eta beside it costs as much as all of the rest.
    width = spread * jnp.sqrt(expected.variance)
    return jax.nn.sigmoid(expected.shared + expected.offset + noise * width)


def weigh_tasks(
    rng_key: Array,
    rules: AutoConfig,
    worth: Worth,
    belief: AutoBelief,
    settings: Settings,
    expected: Expected,
    task_ids: Array,
    least: Array | float = 0.0,
    drawn: Array | None = None,
) -> Array:
    """f[C]: 1 - V + c log(1 + (1 - .8 q) visits) + lottery, less `least`; the lowest are chosen.

    `expected` is of all rows of the belief, `task_ids` i32[C] the tasks that stand in them; `drawn`
    are their q, where these are drawn.
    """
    group = group_in_force(settings)
    hoped = optimistic(worth, expected, group) if drawn is None else drawn
    cost = worth.lack(hoped, group)
    if belief.lengths is not None:
        cost = -(1 - cost) / relative_length(belief.lengths, expected.shared)
    pairs = in_force(rules, settings, belief.shared)
    visits = recent_visits(belief.history, belief.clock, pairs)
    turn = jax.random.bits(rng_key, (), jnp.uint32)
    return cost - least + _price(settings, hoped, visits) + lottery(task_ids, turn, cost)


_HASTE = 0.8  # how much less a visit counts for a task that is solved


def _price(settings: Settings, hoped: Array, visits: Array) -> Array:
    """f[...] >= 0: what recent visits cost a task, the harder it is the more."""
    # log(1 + x), not log1p: of a sum of whole visits, and half the time of a pass over all tasks.
    return settings.breadth * jnp.log(1 + (1 - _HASTE * hoped) * visits)


# Mean of the lottery. Less than .001 is negligible.
LOTTERY = 5e-4


def lottery(task_ids: Array, turn: Array, like: Array) -> Array:
    """f[M], exponential of mean `LOTTERY`: another order of the tasks at each u32 turn.

    Tasks without a visit often tie. Broken here, ties need no second search among all; it is
    enough that a hash looks random. (Of tasks that a float cannot tell apart even so, those of
    lower ids come first.) Exponential, because then the first of many tasks alike are as easily
    drawn as one (`grouped/mixed.py`).
    """
    return exponential(_bits_of(task_ids, turn), like.dtype)


def exponential(bits: Array, dtype: jnp.dtype) -> Array:
    """f[...] of mean `LOTTERY`, from random u32[...]."""
    return -LOTTERY * jnp.log(_uniform(bits, dtype))


def _bits_of(task_ids: Array, turn: Array) -> Array:
    """u32[M] that look random: others for each task, and at each u32 turn."""
    return hash_bits(task_ids.astype(jnp.uint32) ^ turn)


def _uniform(bits: Array, dtype: jnp.dtype) -> Array:
    """f[...] in (0, 1] from random u32[...]; signed integers are converted many at a time."""
    return open_uniform((bits >> 1).astype(jnp.int32), dtype)


def first_visit(floor: float) -> float:
    """Passes over the pool within which each task is tried for the first time."""
    return min(16.0, floor)


def _overdue(rules: AutoConfig, state: State, floor: float, task_ids: Array) -> Array:
    """f[M]: passes since the last visit, or since it came, beyond the task's limit.

    The histories of the state are those of the tasks i32[M].
    """
    history, clock = state.belief.history, state.belief.clock
    dtype = history.offset.dtype
    tasks = jnp.maximum(jnp.sum(state.pool.domain_sizes), 1).astype(dtype)
    passes = (clock - history.seen).astype(dtype) * (rules.batch_size / tasks)
    turn = task_ids.astype(jnp.uint32) * jnp.uint32(2654435769)
    share = (turn >> 8).astype(jnp.int32).astype(dtype)  # a signed one is converted many at a time
    share *= jnp.asarray(2.0**-24, dtype)  # golden ratio: evenly spread
    limit = jnp.where(was_visited(history), floor, first_visit(floor))
    return passes - limit * (0.5 + 0.5 * share)
