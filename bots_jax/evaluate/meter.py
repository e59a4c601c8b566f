"""How good a belief about all tasks is, in traced code, step by step.

In: the means q f[N] that a selector believes before a step, and the true rates p f[N] of
that step. Out: `Meter`, a few numbers, so that a run of any length and pool can be watched.

    log loss   -mean_k (p_k log q_k + (1 - p_k) log(1 - q_k))

is what a stream of rollouts of *all* tasks would show on average: prequential (q was fixed
before), common to all strategies (they choose other tasks, not other streams), and without
the noise of drawing it. A task counts as

    unsolved   where a group of m rollouts is more likely than not all wrong
    mastered   where it is more likely than not all right

that is (1 - p)^m >= 1/2 and p^m >= 1/2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bots_jax.evaluate.metrics import known_mean
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.types import Array

BINS = 10  # of predictions, for calibration
# A mean of exactly 0 or 1 is a claim of certainty; it pays as if made after 1e6 trials.
_SURE = 1e-6


class Meter(NamedTuple):
    """One step's belief against the truth; NaN where there is nothing to compare."""

    log_loss: Array  # f, nats a rollout
    rmse: Array  # f
    pearson: Array  # f
    spearman: Array  # f
    auc_unsolved: Array  # f, of 1 - q against unsolved
    auc_mastered: Array  # f, of q against mastered
    weight: Array  # f[BINS], tasks predicted in each tenth of [0, 1]
    predicted: Array  # f[BINS], sum of q in it
    happened: Array  # f[BINS], sum of p in it
    variance: Array  # f, mean p (1 - p) of the selected tasks


def read(mean: Array, rate: Array, rollouts: float | Array, scored: Array | None = None) -> Meter:
    """Compare a belief with the truth.

    Args:
      mean: f[N] in [0, 1]. rate: f[N] in [0, 1]. rollouts: m, what a group is.
      scored: bool[N], the tasks that count; None for all.

    Returns:
      A meter with `variance` 0.
    """
    dtype = mean.dtype
    rate = rate.astype(dtype)
    mask = jnp.ones(mean.shape, bool) if scored is None else scored
    weight = mask.astype(dtype)
    half = jnp.asarray(0.5, dtype) ** jnp.asarray(1 / rollouts, dtype)
    q = jnp.clip(mean, _SURE, 1 - _SURE)
    loss = -(rate * jnp.log(q) + (1 - rate) * jnp.log1p(-q))
    bins = jnp.clip((mean * BINS).astype(jnp.int32), 0, BINS - 1)
    ranks = _ranks(mean, mask)
    rmse, pearson = _error(mean, rate, weight)

    def binned(values: Array) -> Array:
        return jnp.zeros(BINS, dtype).at[bins].add(weight * values)

    return Meter(
        log_loss=mean_of(loss, weight),
        rmse=rmse,
        pearson=pearson,
        spearman=_correlation(ranks, _ranks(rate, mask), weight),
        auc_unsolved=1 - _auc(ranks, mask & (1 - rate >= half), weight),
        auc_mastered=_auc(ranks, mask & (rate >= half), weight),
        weight=binned(jnp.ones_like(mean)),
        predicted=binned(mean),
        happened=binned(rate),
        variance=jnp.zeros((), dtype),
    )


def belief_error(mean: Array, rate: Array) -> tuple[Array, Array]:
    """RMSE and Pearson's correlation of f[N] and f[N]; the latter NaN where either is flat."""
    return _error(mean, rate, jnp.ones_like(mean))


def _error(mean: Array, rate: Array, weight: Array) -> tuple[Array, Array]:
    return jnp.sqrt(mean_of((mean - rate) ** 2, weight)), _correlation(mean, rate, weight)


def mean_of(values: Array, weight: Array) -> Array:
    """Mean of the values whose weight is above 0; NaN without any."""
    return safe_ratio(
        jnp.sum(jnp.where(weight > 0, values, 0)), jnp.sum(weight > 0).astype(values.dtype), jnp.nan
    )


def _correlation(x: Array, y: Array, weight: Array) -> Array:
    """Pearson's over the weighted; NaN where either is constant."""

    def centred(values: Array) -> tuple[Array, Array]:
        flat = jnp.max(jnp.where(weight > 0, values, -jnp.inf)) <= jnp.min(
            jnp.where(weight > 0, values, jnp.inf)
        )
        return jnp.where(weight > 0, values - mean_of(values, weight), 0), flat

    (a, flat_a), (b, flat_b) = centred(x), centred(y)
    spread = jnp.sqrt(jnp.sum(a * a)) * jnp.sqrt(jnp.sum(b * b))
    return jnp.where(flat_a | flat_b, jnp.nan, safe_ratio(jnp.sum(a * b), spread, jnp.nan))


def _ranks(values: Array, mask: Array) -> Array:
    """Ranks from 1 among the masked, ties sharing their mean rank; the others 0."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    below = jnp.searchsorted(ordered, values, side="left")
    upto = jnp.searchsorted(ordered, values, side="right")
    upto = jnp.minimum(upto, jnp.sum(mask, dtype=upto.dtype))
    return jnp.where(mask, (below + upto + 1).astype(values.dtype) / 2, 0)


def _auc(ranks: Array, positive: Array, weight: Array) -> Array:
    """The chance that a positive outranks a negative (Mann and Whitney)."""
    dtype = ranks.dtype
    pos = jnp.sum(positive, dtype=dtype)
    neg = jnp.sum(weight) - pos
    above = jnp.sum(jnp.where(positive, ranks, 0)) - pos * (pos + 1) / 2
    return safe_ratio(above, pos * neg, jnp.nan)


@lru_cache(maxsize=64)
def watcher(rollouts: int, rows: tuple[int, ...]) -> Any:
    """`watch` for `replay.run_replay`: a Meter, and the means of some rows for a map.

    Cached, so that every strategy is compiled with one and the same function object.
    """
    kept = np.asarray(rows, np.int32)

    def watch(mean: Array, rate: Array, selection: Any) -> tuple[Meter, Array]:
        chosen = rate[jnp.maximum(selection.task_ids, 0)]
        useful = mean_of(chosen * (1 - chosen), selection.valid.astype(rate.dtype))
        meter = read(mean, rate, float(rollouts))._replace(variance=useful.astype(mean.dtype))
        return meter, mean[kept]

    return watch


# --- on the host ------------------------------------------------------------------------

Arrays = npt.NDArray[Any]
_SHOWN = ("log_loss", "rmse", "pearson", "spearman", "auc_unsolved", "auc_mastered")


def averages(meter: Meter) -> dict[str, float]:
    """Means over the steps [T] of one run, for `Measured.values`."""
    values = {key: known_mean(getattr(meter, key)) for key in (*_SHOWN, "variance")}
    return {**values, "ece": calibration_error(meter)}


def calibration_error(meter: Meter) -> float:
    """Expected calibration error: sum_b |sum p - sum q| / sum_b n_b, over all steps."""
    gap = np.abs(_summed(meter.happened) - _summed(meter.predicted))
    return float(gap.sum() / max(_summed(meter.weight).sum(), 1e-300))


def calibration(meter: Meter) -> dict[str, list[float]]:
    """Per bin: how many predictions (task-steps), their mean, and the mean true rate."""
    weight = _summed(meter.weight)
    safe = np.maximum(weight, 1e-300)
    return {
        "weight": weight.round().tolist(),
        "predicted": (_summed(meter.predicted) / safe).round(4).tolist(),
        "happened": (_summed(meter.happened) / safe).round(4).tolist(),
    }


def _summed(values: Any) -> Arrays:
    array = np.asarray(values, np.float64)
    return array.reshape(-1, array.shape[-1]).sum(axis=0)


def blocks(values: npt.ArrayLike, count: int = 100) -> tuple[list[float], list[float | None]]:
    """A long series f[T] as at most `count` block means: (middles of the blocks, means)."""
    array = np.asarray(values, np.float64)
    edges = np.linspace(0, len(array), min(count, len(array)) + 1).round().astype(int)
    means = [known_mean(array[a:b]) for a, b in itertools.pairwise(edges)]
    middles = (edges[:-1] + edges[1:] + 1) / 2
    return middles.tolist(), [None if np.isnan(v) else round(v, 5) for v in means]


def rows_of_map(rates: npt.ArrayLike, count: int = 96) -> tuple[int, ...]:
    """Tasks for a map: spread evenly over the order of their mean true rate f[T, N]."""
    order = np.argsort(np.asarray(rates).mean(axis=0), kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return tuple(int(order[place]) for place in places)


def as_map(
    belief: npt.ArrayLike,
    truth: npt.ArrayLike,
    task_ids: npt.ArrayLike,
    rows: Sequence[int],
    columns: int = 80,
) -> Mapping[str, Any]:
    """A map of the posteriors over a run, for `Measured.map`.

    Args:
      belief, truth: f[T, R] of the tasks `rows`.
      task_ids: i32[T, B], what was selected.
      rows: R task ids, from hard to easy.
      columns: blocks of steps.

    Returns:
      `step`, the middles of the blocks; `belief` and `truth`, percent, R lists of `columns`; and
      `visits`, likewise, how often each task was selected in each block.
    """
    steps = len(np.asarray(belief))
    edges = np.linspace(0, steps, min(columns, steps) + 1).round().astype(int)
    pairs = list(itertools.pairwise(edges))
    ids = np.asarray(task_ids)

    def percent(values: npt.ArrayLike) -> list[list[int]]:
        array = np.asarray(values, np.float64)
        means = np.stack([array[a:b].mean(axis=0) for a, b in pairs], axis=1)
        return np.rint(100 * means).astype(int).tolist()

    visits = [[int(np.sum(ids[a:b] == row)) for a, b in pairs] for row in rows]
    middles = ((edges[:-1] + edges[1:] + 1) / 2).tolist()
    return {
        "step": middles, "belief": percent(belief), "truth": percent(truth), "visits": visits,
    }  # fmt: skip


def of_seed(tree: Any, index: int) -> Any:
    """One seed of a tree of [S, ...] arrays."""
    return jax.tree.map(lambda array: array[index], tree)
