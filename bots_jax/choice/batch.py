"""From scores to task ids: the best of those that may be chosen, ties broken at random.

In: a ranking, which finds the best of any part of the pool (for the paper, those of least
|p^ - p*|), and a mask. Out: `batch_size` distinct ids, best first within each part of the
batch: quotas of domains, a share drawn uniformly (exploration), the rest by rank.

A share that is no whole number of places is right on average: the places between are drawn
uniformly as often as the remainder says, with one random number for all domains, so that the
whole batch is never more than one place off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.checks import check_count, host_numbers
from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.sharding import top_k
from bots_jax.types import Array


class Plan(NamedTuple):
    """How a batch is put together; static."""

    batch_size: int  # B
    exploration: float  # share of each part that is drawn uniformly, on average
    quotas: tuple[int, ...] | None  # tasks of each domain, summing to B


class Part(NamedTuple):
    """Places of a batch that are filled from one part of the pool; static."""

    domain: int  # whose quota it is; 0 where there are none
    places: int  # the ranked first, then the drawn ones
    explored: int  # of these, places that are always drawn uniformly
    remainder: float  # how often one place more is
    carried: float  # sum of the remainders of the parts before


_ROUNDING = 1e-6  # of a place: .3 of 10 are three


def parts_of(plan: Plan) -> tuple[Part, ...]:
    """The parts of a batch, in order."""
    parts: list[Part] = []
    carried = 0.0
    for domain, count in enumerate((plan.batch_size,) if plan.quotas is None else plan.quotas):
        share = plan.exploration * count
        whole = math.floor(share + _ROUNDING)
        remainder = share - whole if share - whole > _ROUNDING else 0.0
        if count:
            parts.append(Part(domain, count, whole, remainder, carried))
        carried += remainder
    return tuple(parts)


def kinds_of_places(plan: Plan) -> tuple[int, ...]:
    """A number for each of the B places: equal for places that are filled in the same way.

    Whoever hands out a part of a batch keeps its make-up if each kind gets its share. A place
    that is drawn uniformly only sometimes is of a kind of its own.
    """
    kinds: list[int] = []
    for at, part in enumerate(parts_of(plan)):
        between = int(part.remainder > 0)
        ranked = part.places - part.explored - between
        kinds += [3 * at] * ranked + [3 * at + 1] * between + [3 * at + 2] * part.explored
    return tuple(kinds)


def make_plan(batch_size: int, exploration: float, quotas: Sequence[int] | None) -> Plan:
    """Check the static side of selection.

    Raises:
      ValueError: naming the argument and its value.
    """
    batch_size = check_count("batch_size", batch_size)
    if not 0 <= exploration <= 1:
        raise ValueError(f"exploration={exploration} must lie in [0, 1]: a share of the batch")
    if quotas is None:
        return Plan(batch_size, float(exploration), None)
    counts = tuple(check_count("quotas", quota, least=0) for quota in quotas)
    if sum(counts) != batch_size:
        raise ValueError(f"quotas={counts} sum to {sum(counts)}, not to batch_size={batch_size}")
    return Plan(batch_size, float(exploration), counts)


# rank(rng_key, allowed bool[C], count) -> (i32[count] ids, f[count] draws, bool[count] valid):
# the best `count` of the allowed tasks, ties broken at random.
Ranking = Callable[[Array, Array, int], tuple[Array, Array, Array]]


def choose(
    rng_key: Array, rank: Ranking, allowed: Array, domain: Array | None, plan: Plan
) -> tuple[Array, Array, Array]:
    """Choose a batch.

    Args:
      rng_key: for the ranking, ties and the uniform share.
      rank: finds the best of a part of the pool.
      allowed: bool[C].
      domain: i32[C], needed for quotas.
      plan: the static composition of the batch.

    Returns:
      i32[B] ids, distinct where valid, -1 elsewhere; f[B] draws, 0 elsewhere; bool[B] valid.
      Places that a domain cannot fill go to the best tasks left in any domain.
    """
    if plan.quotas is None or domain is None:
        (part,) = parts_of(plan._replace(quotas=None))
        chosen = _choose_part(rng_key, rank, allowed, part, _one_more(rng_key, part))
    else:
        quota_key, spare_key = jax.random.split(rng_key)
        chosen = _choose_by_domain(quota_key, rank, allowed, domain, plan)
        chosen = _fill_places(spare_key, rank, allowed, chosen)
    ids, draws, valid = chosen
    return jnp.where(valid, ids, -1), jnp.where(valid, draws, 0), valid


def lowest(rng_key: Array | None, scores: Array, allowed: Array, count: int) -> tuple[Array, Array]:
    """The `count` allowed tasks of lowest score, ties broken at random.

    Args:
      rng_key: None: equals stand in the order of their ids, for scores with noise of their own.

    Returns:
      i32[count] ids ordered by score, and bool[count], False where too few are allowed.
      Which of several tasks at exactly the last score gets in is decided by 23 random
      bits a task, so a pair is left to the order of its ids once in 8 million.
    """
    size = scores.shape[0]
    if count > size:
        ids, valid = lowest(rng_key, scores, allowed, size)
        return jnp.pad(ids, (0, count - size)), jnp.pad(valid, (0, count - size))
    scores = jnp.where(allowed, scores, jnp.inf)
    negated, first = top_k(-scores, count)
    if rng_key is None:
        return first.astype(jnp.int32), allowed[first]
    # Not -negated[-1]: XLA on CPU knows top_k by its shape, and slicing the result again
    # turns it into a sort of everything, a hundred times slower at a million tasks.
    last = -jnp.min(negated)
    within = (scores <= last) & allowed

    def break_ties() -> Array:
        lottery = jnp.where(scores < last, -1, jax.random.uniform(rng_key, (size,)))
        chosen = top_k(-jnp.where(within, lottery, 2), count)[1]
        return chosen[jnp.argsort(scores[chosen])]

    tied = jnp.sum(within, dtype=jnp.int32) > count
    ids = lax.cond(tied, break_ties, lambda: first)
    return ids.astype(jnp.int32), allowed[ids]


def _without(allowed: Array, ids: Array, valid: Array) -> Array:
    return allowed.at[jnp.where(valid, ids, allowed.shape[0])].set(False, mode="drop")


def _one_more(rng_key: Array, part: Part) -> Array | None:
    """Whether the place between is drawn uniformly; None where there is no such place.

    Of the same key for all parts of a batch: systematic sampling.
    """
    if not part.remainder:
        return None
    turn = jax.random.uniform(jax.random.fold_in(rng_key, _TURN), (), jnp.float32)
    return jnp.floor(part.carried + part.remainder + turn) > jnp.floor(part.carried + turn)


_TURN = 0x9E3779B9  # folded into the key; no domain has this number


def _choose_part(
    rng_key: Array, rank: Ranking, allowed: Array, part: Part, one_more: Array | None
) -> tuple[Array, Array, Array]:
    """The best of a part, then its uniform share from what is left.

    Where `one_more` is true the last of the ranked gives its place to one more uniform draw.
    """
    best_key, uniform_key, tie_key = jax.random.split(rng_key, 3)
    best = part.places - part.explored
    if best:
        ids, draws, valid = rank(best_key, allowed, best)
    else:
        told = jax.eval_shape(lambda: rank(best_key, allowed, 1))[1]
        ids, draws, valid = jnp.zeros(0, jnp.int32), jnp.zeros(0, told.dtype), jnp.zeros(0, bool)
    drawn = part.explored + (one_more is not None)
    if not drawn:
        return ids, draws, valid
    kept = valid
    if one_more is not None:
        kept = valid & ((jnp.arange(best, dtype=jnp.int32) < best - 1) | ~one_more)
    noise = jax.random.uniform(uniform_key, allowed.shape, draws.dtype)
    more_ids, more_valid = lowest(tie_key, noise, _without(allowed, ids, kept), drawn)
    if one_more is not None:
        ids = ids.at[-1].set(jnp.where(one_more, more_ids[-1], ids[-1]))
        draws = draws.at[-1].set(jnp.where(one_more, 0, draws[-1]))
        valid = valid.at[-1].set(jnp.where(one_more, more_valid[-1], valid[-1]))
        more_ids, more_valid = more_ids[:-1], more_valid[:-1]
    return (
        jnp.concatenate([ids, more_ids]),
        jnp.concatenate([draws, jnp.zeros((part.explored,), draws.dtype)]),
        jnp.concatenate([valid, more_valid]),
    )


def _choose_by_domain(
    rng_key: Array, rank: Ranking, allowed: Array, domain: Array, plan: Plan
) -> tuple[Array, Array, Array]:
    """Each domain's quota; one pass over the tasks a domain."""
    parts = []
    for part in parts_of(plan):
        key = jax.random.fold_in(rng_key, part.domain)
        inside = allowed & (domain == part.domain)
        parts.append(_choose_part(key, rank, inside, part, _one_more(rng_key, part)))
    ids, draws, valid = (jnp.concatenate(part) for part in zip(*parts, strict=True))
    return ids, draws, valid


def _fill_places(
    rng_key: Array, rank: Ranking, allowed: Array, chosen: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Give places that a domain could not fill to the best tasks left."""

    def fill(chosen: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ids, draws, valid = chosen
        left = _without(allowed, ids, valid)
        # In a loop of one turn, which JAX's check for keys used twice takes for many.
        spare, more_draws, good = rank(jax.random.clone(rng_key), left, ids.shape[0])
        turn = jnp.cumsum(~valid) - 1
        return (
            jnp.where(valid, ids, spare[turn]),
            jnp.where(valid, draws, more_draws[turn]),
            valid | good[turn],
        )

    return lazy_cond(~jnp.all(chosen[2]), fill, chosen)


def check_quotas(plan: Plan, num_domains: int) -> None:
    """Quotas and domains must agree."""
    if plan.quotas is not None and len(plan.quotas) != num_domains:
        raise ValueError(
            f"quotas={plan.quotas} name {len(plan.quotas)} domains, the pool has {num_domains}: "
            "give init(domains=...) and one quota for each domain"
        )


def as_mask(eligible: object, capacity: int) -> Array | None:
    """`eligible` as bool[C], or None."""
    if eligible is None:
        return None
    mask = host_numbers("eligible", eligible)
    if mask.shape != (capacity,) or mask.dtype != np.bool_:
        raise ValueError(
            f"eligible has shape {mask.shape} and dtype {mask.dtype}, expected bool[{capacity}]: "
            f"True where a task may be selected; of ids, numpy.isin(numpy.arange({capacity}), ids)"
        )
    return jnp.asarray(mask)
