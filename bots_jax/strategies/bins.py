"""Strategies that choose among groups of tasks: which bin a task is in, and sampling.

In: domains or reference pass rates, and a weight of each bin. Out: i32[C] bins, and
scores whose B lowest are a batch drawn by those weights.

Bins are the domains of the pool where it has several. Otherwise they are intervals of
equal width of the mean reference pass rate, with a last one for tasks without any; and
without references there is a single bin. Nothing of this is stored: tasks that are added
find their bin by their own references.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bots_jax.numerics import gumbel, safe_ratio
from bots_jax.pool import selectable
from bots_jax.reference import Reference
from bots_jax.types import Array, State


def count_bins(reference: Reference, num_domains: int, intervals: int) -> int:
    """How many bins there are, D or `intervals` + 1 or 1; static."""
    if num_domains > 1:
        return num_domains
    return intervals + 1 if reference.rates.shape[0] else 1


def bin_of(
    reference: Reference, domain: Array | None, num_domains: int, intervals: int
) -> tuple[Array, int]:
    """i32[C] bin of each task, and how many bins there are."""
    count = count_bins(reference, num_domains, intervals)
    if num_domains > 1:
        assert domain is not None
        return domain, count
    if count == 1:
        return jnp.zeros(reference.rates.shape[1], jnp.int32), 1
    known = jnp.isfinite(reference.rates)
    total = jnp.sum(jnp.where(known, reference.rates, 0), axis=0)
    models = jnp.sum(known, axis=0).astype(total.dtype)
    place = (safe_ratio(total, models) * intervals).astype(jnp.int32)
    return jnp.where(models > 0, jnp.minimum(place, intervals - 1), intervals), count


def bins_of_state(state: State, intervals: int) -> tuple[Array, int]:
    """`bin_of` for the tasks of a state."""
    num_domains = state.pool.domain_sizes.shape[0]
    return bin_of(state.reference, state.pool.domain, num_domains, intervals)


def bin_sums(values: Array, bin_: Array, count: int) -> Array:
    """[bins] sums of [C] values."""
    return jax.ops.segment_sum(values, bin_, count)


def filled_bins(state: State, bin_: Array, count: int) -> Array:
    """bool[bins]: the bins that hold any task."""
    return bin_sums(state.pool.active.astype(jnp.int32), bin_, count) > 0


def floored(weights: Array, filled: Array, floor: Array | float) -> Array:
    """Weights of filled bins raised to `floor`, and made to sum to 1."""
    weights = jnp.where(filled, jnp.maximum(weights, floor), 0)
    return safe_ratio(weights, jnp.sum(weights))


def sample_bins(rng_key: Array, weights: Array, bin_: Array, state: State) -> Array:
    """Scores f[C] whose lowest are tasks of bins drawn by weight, any task of a bin alike.

    Each draw takes a bin by weight and a task of it, and is repeated if the task has been
    drawn already; which is to draw tasks in proportion to weight / size of the bin, without
    replacement, here by Gumbel noise. The size is that of the tasks not in flight.
    """
    dtype = weights.dtype
    free = selectable(state.pool, None)
    sizes = bin_sums(free.astype(dtype), bin_, weights.shape[0])
    share = jnp.maximum(safe_ratio(weights, sizes), jnp.finfo(dtype).tiny)
    return -(jnp.log(share)[bin_] + gumbel(rng_key, bin_.shape, dtype))
