"""What a run achieved, and how sure that is.

In: NumPy arrays of what was selected, rolled out, believed and scored. Out: numbers
and intervals, in float64 on the host, by `scipy.stats` where it has them.

    ETR      share of the rolled-out tasks with 0 < successes < trials
    breadth  exp(-sum_k q_k log q_k), q = visit counts / their sum
    TTB(x)   steps to reach start + x (best - start) of the baseline, over the steps
             that the baseline itself needed; below 1 is better
    BSF(x)   best score within the first x of the steps, over the baseline's; above 1
             is better
    interval mean +- t(n - 1) sd / sqrt(n) of paired differences, or of log-ratios

Intervals are Student's t: a percentile bootstrap of five seeds covers 84%, not 95%. A run
that never gets to its goal is censored: it counts as later than its last step and is
never dropped, so an interval of censored times rests on ranks (`censored_interval`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # which loads `scipy.stats` at its first use

Floats = npt.NDArray[np.float64]
LEVEL = 0.95


class Curve(NamedTuple):
    """A score over the steps of one run."""

    steps: npt.ArrayLike  # f[T], increasing, >= 0; 0 is before the first step
    scores: npt.ArrayLike  # f[T], higher is better


class Time(NamedTuple):
    """A time that may lie beyond the end of the run."""

    value: float  # a ratio; where censored, a lower bound of it
    censored: bool  # True: the run ended before the goal


class Interval(NamedTuple):
    """An estimate over seeds with its interval; NaN where there is none."""

    value: float  # mean, geometric mean of ratios, or median: see `method`
    low: float  # NaN with fewer than two seeds
    high: float  # NaN with fewer than two seeds; a lower bound of it where `open_high`
    level: float  # coverage meant (t) or attained (ranks); NaN where there is none
    seeds: int  # how many are behind it
    method: str  # how it was made, or why there is none
    open_value: bool = False  # True: the estimate is at least `value`
    open_high: bool = False  # True: the upper end is unknown and at least `high`

    def text(self, digits: int = 2, sign: str = "") -> str:
        """Show as "0.80 [0.78, 0.82]"; ">" marks a lower bound, "n/a" what is not known.

        Args:
          digits: after the point.
          sign: "+" to show the sign of positive numbers too.
        """

        def show(number: float, is_open: bool = False) -> str:
            return f"{'>' * is_open}{number:{sign},.{digits}f}"

        if math.isnan(self.value):
            return "n/a"
        value = show(self.value, self.open_value)
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{value} [n/a]"
        level = "" if self.level >= LEVEL else f" ({100 * self.level:.0f}%)"
        return f"{value} [{show(self.low)}, {show(self.high, self.open_high)}]{level}"


# ---------------------------------------------------------------- what was selected


def effective_task_ratio(successes: npt.ArrayLike, trials: npt.ArrayLike) -> Floats:
    """ETR: the share of the evaluated tasks whose group of rollouts is mixed.

        ETR = #{k : 0 < s_k < n_k} / #{k : n_k > 0}

    Args:
      successes: f[..., B].
      trials: f[..., B] or anything that broadcasts; tasks with 0 do not count.

    Returns:
      f[...] in [0, 1]; NaN where no task was evaluated.
    """
    s, n = np.broadcast_arrays(_floats("successes", successes), _floats("trials", trials))
    evaluated = np.sum(n > 0, axis=-1)
    return _ratio(np.sum((s > 0) & (s < n), axis=-1), evaluated)


def visit_counts(task_ids: npt.ArrayLike, num_tasks: int) -> npt.NDArray[np.int64]:
    """How often each task was selected: i64[N] from i32[...], where -1 is padding."""
    ids = np.asarray(task_ids).ravel()
    if ids.size and not (ids.min() >= -1 and ids.max() < num_tasks):
        raise ValueError(
            f"task_ids must lie in [-1, {num_tasks}), but range from {ids.min()} to {ids.max()}; "
            f"give the num_tasks of the pool that they come from"
        )
    return np.bincount(ids[ids >= 0], minlength=num_tasks)


def breadth(counts: npt.ArrayLike) -> Floats:
    """Effective number of tasks trained on: exp of the entropy of the visits.

        breadth = exp(-sum_k q_k log q_k),  q_k = counts_k / sum(counts)

    Args:
      counts: f[..., N] >= 0, visits of each task (`visit_counts`).

    Returns:
      f[...] in [1, N]: N when all tasks were visited alike; 0 when none was visited.
    """
    visits = _floats("counts", counts)
    if np.any(visits < 0):
        raise ValueError(f"counts must be >= 0, but one is {visits.min()}")
    total = np.sum(visits, axis=-1, keepdims=True)
    share = _ratio(visits, total, otherwise=0.0)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def outcome_variance(successes: npt.ArrayLike, trials: npt.ArrayLike) -> float:
    """Mean p (1 - p) of the evaluated tasks, by its unbiased estimate from each group.

        s (n - s) / (n (n - 1)),  for groups of n >= 2

    Args:
      successes, trials: f[...], of equal shape; fractional successes count as they are.

    Returns:
      In [0, 1/2]; NaN where no group has two rollouts.
    """
    s, n = np.broadcast_arrays(_floats("successes", successes), _floats("trials", trials))
    used = n >= 2
    return float(_ratio(np.sum((s * (n - s))[used] / (n * (n - 1))[used]), used.sum()))


# ------------------------------------------------------------- time to the baseline


def ttb(curve: Curve, baseline: Curve, share: float) -> Time:
    """TTB(x): steps to a share of the baseline's gain, relative to the baseline.

        goal = start + share (best - start)       of the baseline's scores
        TTB  = steps(curve, goal) / steps(baseline, goal)

    `steps` is where the score first reaches the goal, scores being joined by straight
    lines between evaluations.

    Args:
      curve: the run to judge.
      baseline: the run of the same seed to compare it with.
      share: in (0, 1]; 0.5 for TTB(50%).

    Returns:
      The ratio. A run that never reaches the goal is censored at its last step: then
      `value` is a lower bound. NaN where the baseline gained nothing, so that there is
      no goal.
    """
    _share(share)
    steps, scores = _curve("curve", curve)
    base_steps, base_scores = _curve("baseline", baseline)
    gain = base_scores.max() - base_scores[0]
    if not gain > 0:
        return Time(math.nan, False)
    # At share 1 the sum below can exceed the best score by one rounding.
    goal = min(base_scores[0] + share * gain, base_scores.max())
    needed = _first_reached(base_steps, base_scores, goal)
    reached = _first_reached(steps, scores, goal)
    if math.isinf(reached):
        return Time(float(steps[-1] / needed), True)
    return Time(reached / needed, False)


def bsf(curve: Curve, baseline: Curve, share: float) -> float:
    """BSF(x): the best score within a share of the steps, over the baseline's by then.

        BSF = max{curve(t) : t <= share T} / max{baseline(t) : t <= share T}

    T is the baseline's last step; only scores that were measured count.

    Args:
      curve, baseline: as in `ttb`; scores >= 0, such as pass rates.
      share: in (0, 1].

    Returns:
      The ratio; NaN where nothing was measured by then or the baseline's best is 0.
    """
    _share(share)
    steps, scores = _curve("curve", curve)
    base_steps, base_scores = _curve("baseline", baseline)
    until = share * base_steps[-1]
    best, base = scores[steps <= until], base_scores[base_steps <= until]
    if not best.size or not base.size or base.max() <= 0:
        return math.nan
    return float(best.max() / base.max())


def averaged(curve: Curve, window: int = 3) -> Curve:
    """Each score as the mean of the last `window` evaluations up to it; the first as it is.

    The first is the score before training. What `ttb` needs where one evaluation alone may be
    high by chance; a run and its baseline lag by the same.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1")
    steps, scores = _curve("curve", curve)
    sums = np.cumsum(np.concatenate([[0.0], scores[1:]]))
    upto = np.arange(1, len(scores))
    since = np.maximum(upto - window, 0)
    means = (sums[upto] - sums[since]) / (upto - since)
    return Curve(steps, np.concatenate([scores[:1], means]))


def _first_reached(steps: Floats, scores: Floats, goal: float) -> float:
    """The first step, interpolated, at which scores >= goal; inf if there is none."""
    hits = np.flatnonzero(scores >= goal)
    if not hits.size:
        return math.inf
    i = int(hits[0])
    if i == 0:
        return float(steps[0])
    part = (goal - scores[i - 1]) / (scores[i] - scores[i - 1])
    return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))


def _curve(name: str, curve: Curve) -> tuple[Floats, Floats]:
    steps = _floats(f"{name}.steps", curve[0])
    scores = _floats(f"{name}.scores", curve[1])
    if steps.ndim != 1 or steps.shape != scores.shape or not steps.size:
        raise ValueError(
            f"{name} needs steps and scores of one equal length >= 1, "
            f"not shapes {steps.shape} and {scores.shape}"
        )
    if not np.all(np.isfinite(scores)) or not np.all(np.isfinite(steps)):
        raise ValueError(f"{name} has a step or a score that is not finite; leave that out")
    if steps[0] < 0 or np.any(np.diff(steps) <= 0):
        raise ValueError(f"{name}.steps must increase from >= 0, but are {steps.tolist()}")
    return steps, scores


def _share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share}; give 0.5 for 50%")


# ------------------------------------------------------------------ belief and truth


def rmse(predicted: npt.ArrayLike, true: npt.ArrayLike) -> Floats:
    """Root of the mean squared difference over the last axis: f[..., N] -> f[...]."""
    error = _floats("predicted", predicted) - _floats("true", true)
    return np.asarray(np.sqrt(np.mean(error**2, axis=-1)))


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """Pearson's correlation over the last axis: f[..., N] -> f[...] in [-1, 1].

        r = sum (x - x_) (y - y_) / sqrt(sum (x - x_)^2 sum (y - y_)^2)

    NaN where x or y is constant, as then there is nothing to correlate.
    """
    a, b = np.broadcast_arrays(_floats("x", x), _floats("y", y))
    if a.shape[-1] < 2:
        return np.full(a.shape[:-1], math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        return np.asarray(scipy.stats.pearsonr(a, b, axis=-1).statistic)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """Spearman's correlation: Pearson's of the ranks, ties getting their mean rank."""
    a, b = _floats("x", x), _floats("y", y)
    return pearson(scipy.stats.rankdata(a, axis=-1), scipy.stats.rankdata(b, axis=-1))


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative.

        AUC = P(score+ > score-) + P(score+ = score-) / 2

    Args:
      scores: f[M].
      labels: bool[M], True for the positive.

    Returns:
      In [0, 1]; NaN where one of the two classes is empty.
    """
    values, positive = _floats("scores", scores), np.asarray(labels, bool)
    if values.ndim != 1 or values.shape != positive.shape:
        raise ValueError(
            f"scores and labels need one equal length, not {values.shape} and {positive.shape}"
        )
    above, below = values[positive], values[~positive]
    if not above.size or not below.size:
        return math.nan
    # Of Mann and Whitney's test only U is wanted; the exact p value would take long.
    wins = scipy.stats.mannwhitneyu(above, below, method="asymptotic").statistic
    return float(wins / (above.size * below.size))


def expected_calibration_error(
    predicted: npt.ArrayLike,
    successes: npt.ArrayLike,
    trials: npt.ArrayLike = 1.0,
    bins: int = 10,
) -> float:
    """ECE: the mean gap between what was predicted and what happened.

        ECE = sum_b (n_b / n) |s_b / n_b - p_b|

    over equal bins of [0, 1], p_b being the mean prediction in bin b; all weighted by
    trials.

    Args:
      predicted: f[M] success probabilities in [0, 1].
      successes, trials: f[M] or scalars; rows with 0 trials do not count.
      bins: how many bins, >= 1.

    Returns:
      In [0, 1]; NaN without trials.
    """
    p, s, n = _forecasts(predicted, successes, trials)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    bin_ids = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(bin_ids, weights=s - n * p, minlength=bins)
    return float(_ratio(np.abs(gap).sum(), n.sum()))


def log_loss(
    predicted: npt.ArrayLike, successes: npt.ArrayLike, trials: npt.ArrayLike = 1.0
) -> float:
    """Mean negative log-likelihood of a trial, in nats.

        -sum_k (s_k log p_k + (n_k - s_k) log(1 - p_k)) / sum_k n_k

    Args:
      predicted, successes, trials: as in `expected_calibration_error`.

    Returns:
      >= 0; inf where something happened that was called impossible; NaN without trials.
    """
    p, s, n = _forecasts(predicted, successes, trials)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log1p(-p)
    # 0 log 0 is 0: what was called impossible and did not happen costs nothing.
    loss = np.where(s > 0, s * np.where(s > 0, log_p, 0.0), 0.0)
    loss += np.where(n > s, (n - s) * np.where(n > s, log_q, 0.0), 0.0)
    return float(_ratio(-loss.sum(), n.sum())) + 0.0


def _forecasts(
    predicted: npt.ArrayLike, successes: npt.ArrayLike, trials: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    arrays = (("predicted", predicted), ("successes", successes), ("trials", trials))
    p, s, n = np.broadcast_arrays(*(np.atleast_1d(_floats(*named)) for named in arrays))
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"predicted must lie in [0, 1], but has {p[~((p >= 0) & (p <= 1))][0]}")
    bad = ~((s >= 0) & (s <= n))
    if np.any(bad):
        raise ValueError(
            f"successes must lie in [0, trials], but there are {s[bad][0]} of {n[bad][0]}"
        )
    return p, s, n


# ------------------------------------------------------------------ intervals over seeds


def mean_interval(values: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """Mean over seeds with Student's t interval.

        mean +- t(n - 1, level) sd / sqrt(n),  sd with n - 1

    Args:
      values: f[S], one a seed. A NaN (not defined for that seed) makes all of it NaN:
        leaving it out would choose the seeds.
      level: coverage, in (0, 1).

    Returns:
      With one seed, the value without ends.
    """
    return _t_interval(_seeds("values", values), level, "mean, t interval")


def paired_interval(
    values: npt.ArrayLike, baseline: npt.ArrayLike, level: float = LEVEL
) -> Interval:
    """Mean of values - baseline over seeds, with the t interval of the differences.

    Args:
      values, baseline: f[S]; entry i of both is the same seed.
      level: coverage, in (0, 1).
    """
    a, b = _pairs(values, baseline)
    return _t_interval(a - b, level, "mean paired difference, t interval")


def ratio_interval(
    values: npt.ArrayLike, baseline: npt.ArrayLike = 1.0, level: float = LEVEL
) -> Interval:
    """Geometric mean of values / baseline over seeds, with a t interval of the logs.

        exp(mean +- t(n - 1, level) sd / sqrt(n)) of log(values / baseline)

    Args:
      values, baseline: f[S], paired; `baseline` 1 where `values` are ratios already.
      level: coverage, in (0, 1).

    Returns:
      NaN, `method` saying why, where a value is not positive, as it has no logarithm.
    """
    a, b = _pairs(values, baseline)
    if np.any(~np.isnan(a) & (a <= 0)) or np.any(~np.isnan(b) & (b <= 0)):
        return _nothing(len(a), "no ratio: a value is not positive")
    logs = _t_interval(np.log(a) - np.log(b), level, "geometric mean of ratios, t interval of logs")
    ends = np.exp([logs.value, logs.low, logs.high])
    return logs._replace(value=float(ends[0]), low=float(ends[1]), high=float(ends[2]))


def censored_interval(
    values: npt.ArrayLike, censored: npt.ArrayLike, level: float = LEVEL
) -> Interval:
    """Median over seeds of times some of which are only known to be later.

    The sign test turned round: between the j-th smallest and the j-th largest of n lies
    the median with probability at least 1 - 2 P(Binomial(n, 1/2) < j), whatever the
    distribution; j is the largest that keeps `level`. A censored value may be anything
    above its bound, so the lower end is taken over the bounds and the upper end over
    infinity: where it falls on a censored value it is open, shown as ">bound". Nothing is
    assumed of what was not seen, so the coverage holds under any censoring.

    Five seeds or fewer cannot reach 95% without a distribution: then smallest to largest
    is given with the level that this has (94% for five, 88% for four).

    Args:
      values: f[S] ratios; lower bounds where censored.
      censored: bool[S].
      level: coverage wanted, in (0, 1).

    Returns:
      `level` is the coverage attained. NaN with any NaN.
    """
    bound = _seeds("values", values)
    late = np.broadcast_to(np.asarray(censored, bool), bound.shape)
    n = len(bound)
    if np.any(np.isnan(bound)):
        return _nothing(n, "not defined for every seed")
    lows, highs = np.sort(bound), np.sort(np.where(late, math.inf, bound))
    j, attained = _sign_rank(n, level)
    middle, top = (n - 1) // 2, n // 2
    value, open_value = (lows[middle] + lows[top]) / 2, math.isinf(highs[top])
    if n < 2:
        return Interval(float(value), math.nan, math.nan, math.nan, n, "one seed", open_value)
    open_high = math.isinf(highs[n - 1 - j])
    return Interval(
        value=float(value),
        low=float(lows[j]),
        high=float(lows[n - 1 - j] if open_high else highs[n - 1 - j]),
        level=attained,
        seeds=n,
        method="median, sign-test interval; censored seeds count as later",
        open_value=open_value,
        open_high=open_high,
    )


def time_interval(times: list[Time], level: float = LEVEL) -> Interval:
    """Ratios of times over seeds: t on their logs, or by ranks if any is censored.

    Args:
      times: one `Time` a seed, from `ttb`.
      level: coverage wanted, in (0, 1).
    """
    values = np.array([time.value for time in times])
    late = np.array([time.censored for time in times])
    if late.any() or np.any(values == 0):
        return censored_interval(values, late, level)
    return ratio_interval(values, level=level)


# ------------------------------------------------------------- tests and corrections


def paired_p(values: npt.ArrayLike, baseline: npt.ArrayLike = 0.0) -> float:
    """Two-sided p value of Student's paired t test of a mean difference of 0.

    Args:
      values, baseline: f[S]; entry i of both is the same seed.

    Returns:
      1 where all differences are 0; 0 where they are all one other number; NaN with fewer
      than two seeds or a NaN.
    """
    a, b = _pairs(values, baseline)
    difference, n = a - b, len(a)
    if n < 2 or not np.all(np.isfinite(difference)):
        return math.nan
    mean, error = float(difference.mean()), float(scipy.stats.sem(difference))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(scipy.stats.t.sf(abs(mean) / error, n - 1))


def sign_p(later: int, earlier: int) -> float:
    """Two-sided p value of the sign test: as many below as above, ties left out."""
    if later + earlier == 0:
        return 1.0
    return float(scipy.stats.binomtest(later, later + earlier).pvalue)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's adjusted p values (Holm 1979, A simple sequentially rejective procedure).

        adjusted of the i-th smallest = max_{j <= i} min(1, (n - j + 1) p_(j))

    Comparing them with 0.05 keeps the chance of any false alarm among all n comparisons
    below 0.05, whatever the dependence between them.

    Args:
      p_values: f[n] in [0, 1]. A NaN (no test was possible) stays NaN and does not count.

    Returns:
      f[n].
    """
    p = _floats("p_values", p_values)
    known = np.flatnonzero(~np.isnan(p))
    if np.any((p[known] < 0) | (p[known] > 1)):
        raise ValueError(f"p_values must lie in [0, 1], but are {p.tolist()}")
    order = known[np.argsort(p[known], kind="stable")]
    scaled = np.minimum(1.0, p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(p.shape, math.nan)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """t with P(|T| <= t) = level for Student's T of `freedom` degrees of freedom.

    Args:
      freedom: whole, at least 1.
      level: two-sided coverage, in (0, 1).
    """
    if not freedom >= 1 or freedom != int(freedom):
        raise ValueError(f"freedom must be whole and at least 1, not {freedom}")
    _level(level)
    return float(scipy.stats.t.isf((1 - level) / 2, freedom))


def _sign_rank(n: int, level: float) -> tuple[int, float]:
    """(j from 0, coverage) of the j-th smallest to the j-th largest of n values."""
    _level(level)
    ranks = np.arange(max(1, n // 2))
    coverage = 1 - 2 * scipy.stats.binom.cdf(ranks, n, 0.5)
    rank = max(0, int(np.sum(coverage >= level)) - 1)
    return rank, float(coverage[rank])


def _t_interval(values: Floats, level: float, method: str) -> Interval:
    _level(level)
    n = len(values)
    if not np.all(np.isfinite(values)):
        return _nothing(n, "not defined for every seed")
    mean = float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n, "one seed")
    half = t_quantile(n - 1, level) * float(scipy.stats.sem(values))
    return Interval(mean, mean - half, mean + half, level, n, method)


def _nothing(seeds: int, reason: str) -> Interval:
    return Interval(math.nan, math.nan, math.nan, math.nan, seeds, reason)


def _level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}; give 0.95 for 95%")


def _pairs(values: npt.ArrayLike, baseline: npt.ArrayLike) -> tuple[Floats, Floats]:
    a = _seeds("values", values)
    b = _floats("baseline", baseline)
    if b.ndim and b.shape != a.shape:
        raise ValueError(
            f"values and baseline must pair the same seeds, but have {len(a)} and {b.size} entries"
        )
    return a, np.broadcast_to(b, a.shape)


def _seeds(name: str, values: npt.ArrayLike) -> Floats:
    array = _floats(name, values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be f[S], one a seed, not of shape {array.shape}")
    return array


def _floats(name: str, values: npt.ArrayLike) -> Floats:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in an even array: {error}") from None


def _ratio(top: Any, bottom: Any, otherwise: float = math.nan) -> Floats:
    """top / bottom, and `otherwise` where bottom is 0."""
    top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1.0), otherwise)
