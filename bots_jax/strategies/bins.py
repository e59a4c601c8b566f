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

from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.pool.reference import Reference, is_known
from bots_jax.strategies.choices import drawn_by
from bots_jax.types import Array, State


def mean_reference(reference: Reference) -> tuple[Array, Array]:
    """f[C] mean pass rate of the references that are known, 0 without any; bool[C], if any."""
    known = is_known(reference.rates)
    total = jnp.sum(jnp.where(known, reference.rates, 0), axis=0)
    models = jnp.sum(known, axis=0).astype(total.dtype)
    return safe_ratio(total, models), models > 0


def static_difficulty(reference: Reference) -> Array:
    """f[C] in [0, 100]: 100 (1 - mean reference pass rate), 50 where none is known."""
    mean, known = mean_reference(reference)
    return 100 * jnp.where(known, 1 - mean, 0.5)


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
    mean, known = mean_reference(reference)
    place = jnp.minimum((mean * intervals).astype(jnp.int32), intervals - 1)
    return jnp.where(known, place, intervals), count


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


def sample_bins(rng_key: Array, log_weights: Array, bin_: Array, allowed: Array) -> Array:
    """Scores f[C] whose lowest are tasks of bins drawn by weight, any task of a bin alike.

    Each draw takes a bin by weight and a task of it, and is repeated if the task has been
    drawn already; which is to draw tasks in proportion to weight / size of the bin, without
    replacement.

    Args:
      log_weights: f[bins], -inf for bins that come last.
      bin_: i32[C].
      allowed: bool[C], the tasks that count for the size of a bin.
    """
    sizes = bin_sums(allowed.astype(log_weights.dtype), bin_, log_weights.shape[0])
    log_share = log_weights - jnp.log(jnp.maximum(sizes, 1))
    return drawn_by(rng_key, log_share[bin_])
