"""Metrics against hand-computed cases and closed forms; intervals against simulation."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import Curve, Time

# ---------------------------------------------------------------- what was selected


def test_effective_task_ratio_counts_mixed_groups_among_the_evaluated():
    successes = [[0, 3, 8, 5], [0, 0, 8, 1]]
    trials = [[8, 8, 8, 0], [8, 8, 8, 8]]
    # Row 0: one mixed of three evaluated. Row 1: one mixed of four.
    np.testing.assert_allclose(metrics.effective_task_ratio(successes, trials), [1 / 3, 1 / 4])


def test_effective_task_ratio_of_nothing_is_nan():
    assert np.isnan(metrics.effective_task_ratio([0, 0], [0, 0]))


def test_effective_task_ratio_counts_graded_rewards_as_mixed():
    assert metrics.effective_task_ratio([0.25, 4.0], [4, 4]) == 0.5


def test_visit_counts_skips_padding_and_refuses_foreign_ids():
    np.testing.assert_array_equal(metrics.visit_counts([[0, 2, -1], [2, 2, 0]], 4), [2, 0, 3, 0])
    with pytest.raises(ValueError, match=r"task_ids .* 5.*num_tasks"):
        metrics.visit_counts([5], 4)


def test_breadth_by_hand():
    # Visits 2, 1, 1: entropy = 0.5 log 2 + 0.5 log 4 = 1.5 log 2.
    assert metrics.breadth([2, 1, 1, 0]) == pytest.approx(2**1.5, rel=1e-14)
    assert metrics.breadth(np.ones(449)) == pytest.approx(449, rel=1e-12)
    np.testing.assert_array_equal(metrics.breadth([[0, 7, 0], [0, 0, 0]]), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"counts .*-1"):
        metrics.breadth([1, -1])


@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 1000)))
def test_breadth_lies_between_one_and_the_tasks_visited(counts):
    value = float(metrics.breadth(counts))
    visited = int((counts > 0).sum())
    assert min(1, visited) - 1e-9 <= value <= visited + 1e-9


# ------------------------------------------------------------- time to the baseline

BASE = Curve([0, 10, 20, 40], [0.2, 0.2, 0.4, 0.6])


def test_ttb_interpolates_between_evaluations():
    # Half the gain is 0.4: the baseline is there at 20; the curve crosses between 0 and 10.
    fast = Curve([0, 10, 20], [0.2, 0.6, 0.5])
    assert metrics.ttb(fast, BASE, 0.5) == Time(pytest.approx(5 / 20), False)
    # The whole gain, 0.6: the curve is there at 10, the baseline at 40.
    assert metrics.ttb(fast, BASE, 1.0) == Time(pytest.approx(10 / 40), False)
    # A quarter, 0.3: the baseline crosses between 10 and 20, at 15; the curve at 2.5.
    assert metrics.ttb(fast, BASE, 0.25) == Time(pytest.approx(2.5 / 15), False)


def test_ttb_takes_the_first_crossing_though_the_score_falls_again():
    wobbly = Curve([0, 10, 20, 40], [0.2, 0.4, 0.1, 0.6])
    assert metrics.ttb(wobbly, BASE, 0.5).value == pytest.approx(10 / 20)


def test_ttb_of_a_run_that_never_gets_there_is_censored_not_dropped():
    slow = Curve([0, 20, 40], [0.2, 0.3, 0.35])
    assert metrics.ttb(slow, BASE, 0.5) == Time(pytest.approx(40 / 20), True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 1.0])
def test_ttb_of_the_baseline_is_one(share):
    assert metrics.ttb(BASE, BASE, share) == Time(1.0, False)


@given(
    hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0, 1)),
    st.floats(0.01, 1),
)
def test_ttb_of_any_baseline_with_itself_is_one_or_undefined(scores, share):
    curve = Curve(np.arange(len(scores)), scores)
    time = metrics.ttb(curve, curve, share)
    assert not time.censored
    if scores.max() > scores[0]:
        assert time.value == 1.0
    else:
        assert math.isnan(time.value)


def test_bsf_by_hand():
    curve = Curve([0, 10, 20, 40], [0.2, 0.5, 0.3, 0.45])
    assert metrics.bsf(curve, BASE, 0.25) == pytest.approx(0.5 / 0.2)  # up to step 10
    assert metrics.bsf(curve, BASE, 0.45) == pytest.approx(0.5 / 0.2)  # step 18: 20 not yet
    assert metrics.bsf(curve, BASE, 1.0) == pytest.approx(0.5 / 0.6)
    assert math.isnan(metrics.bsf(curve, Curve([0, 40], [0, 0]), 0.5))
    assert math.isnan(metrics.bsf(Curve([30, 40], [1, 1]), BASE, 0.25))


def test_averages_keep_the_start_and_lag_by_the_window():
    curve = Curve([0, 10, 20, 30, 40], [0.5, 0.1, 0.4, 0.7, 1.0])
    steps, scores = metrics.averaged(curve, 3)
    np.testing.assert_array_equal(steps, [0, 10, 20, 30, 40])
    np.testing.assert_allclose(scores, [0.5, 0.1, 0.25, 0.4, 0.7])
    np.testing.assert_allclose(metrics.averaged(curve, 1).scores, curve.scores)
    with pytest.raises(ValueError, match="window=0"):
        metrics.averaged(curve, 0)


def test_one_lucky_evaluation_does_not_make_a_time_of_averages():
    base = Curve(range(0, 101, 10), np.linspace(0, 0.5, 11))
    lucky = np.linspace(0, 0.4, 11)
    lucky[2] = 0.5  # of a run that is slower in truth
    assert metrics.ttb(Curve(base.steps, lucky), base, 1.0).value < 0.25
    smooth = metrics.averaged(Curve(base.steps, lucky))
    assert metrics.ttb(smooth, metrics.averaged(base), 1.0).censored
    # A run that is twice as fast stays so, but for the lag, which both have.
    fast = metrics.averaged(Curve(base.steps, np.minimum(np.linspace(0, 1.0, 11), 0.7)))
    time = metrics.ttb(fast, metrics.averaged(base), 1.0)
    assert time.value == pytest.approx(55 / 100)


@pytest.mark.parametrize(
    ("curve", "share", "words"),
    [
        (Curve([0, 1], [0.1, 0.2]), 50, "share .*50.*0.5"),
        (Curve([0, 1], [0.1, 0.2]), 0.0, "share"),
        (Curve([0, 1], [0.1]), 0.5, "curve .*equal length"),
        (Curve([], []), 0.5, "curve .*length"),
        (Curve([1, 0], [0.1, 0.2]), 0.5, "steps must increase"),
        (Curve([0, 1], [0.1, math.nan]), 0.5, "not finite"),
        (Curve([[0, 1], [1]], [0.1, 0.2]), 0.5, "curve.steps must be numbers"),
    ],
)
@pytest.mark.parametrize("metric", [metrics.ttb, metrics.bsf])
def test_bad_curves_are_named(metric, curve, share, words):
    with pytest.raises(ValueError, match=words):
        metric(curve, BASE, share)


# ------------------------------------------------------------------ belief and truth


def test_rmse_over_the_last_axis():
    np.testing.assert_allclose(metrics.rmse([[0.0, 1.0], [0.5, 0.5]], [0.5, 0.5]), [0.5, 0.0])


@given(
    hnp.arrays(np.float64, (2, 9), elements=st.integers(-4, 4)),
)
def test_correlations_agree_with_scipy(pair):
    x, y = pair
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert np.isnan(metrics.pearson(x, y))
        assert np.isnan(metrics.spearman(x, y))
        return
    assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_pearson_of_a_constant_that_rounds_is_nan():
    assert np.isnan(metrics.pearson(np.full(455, 0.1), np.arange(455.0)))


def test_correlations_work_on_rows():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 20))
    rows = [metrics.spearman(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(metrics.spearman(x, y), rows)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_auc_is_the_share_of_pairs_in_order(rows):
    scores = np.array([score for score, _ in rows], float)
    labels = np.array([label for _, label in rows])
    pos, neg = scores[labels], scores[~labels]
    if not pos.size or not neg.size:
        assert math.isnan(metrics.auc(scores, labels))
        return
    pairs = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
    assert metrics.auc(scores, labels) == pytest.approx(pairs.mean(), abs=1e-12)


def test_expected_calibration_error_by_hand():
    # Bin [.2, .3): 3 of 10 against .25. Bin [.9, 1]: 5 of 10 at .95, 10 of 10 at 1.
    value = metrics.expected_calibration_error([0.25, 0.95, 1.0], [3, 5, 10], [10, 10, 10])
    gap = abs(3 - 2.5) + abs(15 - 19.5)
    assert value == pytest.approx(gap / 30)
    assert metrics.expected_calibration_error([0.0, 1.0], [0, 1]) == 0.0
    assert math.isnan(metrics.expected_calibration_error([0.3], [0], [0]))


def test_log_loss_by_hand():
    value = metrics.log_loss([0.25, 0.5], [1, 0], [2, 1])
    assert value == pytest.approx(-(math.log(0.25) + math.log(0.75) + math.log(0.5)) / 3)
    assert metrics.log_loss([0.0, 1.0], [0, 4], [4, 4]) == 0.0
    assert metrics.log_loss([0.0], [1], [4]) == math.inf


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.5], [0], [1]), "predicted .*1.5"),
        (([math.nan], [0], [1]), "predicted .*nan"),
        (([0.5], [3], [2]), "successes .*3.0 of 2.0"),
        (([0.5], [-1], [2]), "successes .*-1.0"),
    ],
)
def test_forecast_errors_are_named(arguments, words):
    for metric in (metrics.log_loss, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match=words):
            metric(*arguments)


# ------------------------------------------------------------------ intervals over seeds


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
def test_t_quantile_has_its_closed_forms(level):
    """Of 1, 2 and 4 degrees of freedom, and of so many that it is a normal quantile."""
    cube = math.cos(math.acos(math.sqrt(1 - level**2)) / 3) / math.sqrt(1 - level**2)
    for freedom, expected, error in (
        (1, math.tan(math.pi * level / 2), 1e-10),
        (2, level * math.sqrt(2 / (1 - level**2)), 1e-10),
        (4, 2 * math.sqrt(cube - 1), 1e-10),
        (10**8, statistics.NormalDist().inv_cdf((1 + level) / 2), 1e-6),
    ):
        assert metrics.t_quantile(freedom, level) == pytest.approx(expected, rel=error)


def test_t_quantile_is_that_of_the_tables():
    found = [metrics.t_quantile(freedom) for freedom in (1, 4, 9, 19, 100)]
    assert found == pytest.approx([12.706, 2.776, 2.262, 2.093, 1.984], abs=5e-4)


def test_paired_p_by_hand():
    # Differences 1 and 3: t = 2 / 1 with one degree of freedom, p = 1 - 2 / pi atan(2).
    assert metrics.paired_p([2, 5], [1, 2]) == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert metrics.paired_p([1, 2], [0, 1]) == 0.0
    assert metrics.paired_p([1, 2], [1, 2]) == 1.0
    assert math.isnan(metrics.paired_p([1], [0]))
    assert math.isnan(metrics.paired_p([1, math.nan], [0, 0]))


@pytest.mark.parametrize("n", range(12))
def test_sign_p_counts_the_tails(n):
    for later in range(n + 1):
        few = min(later, n - later)
        expected = min(1, 2 * sum(math.comb(n, i) for i in range(few + 1)) / 2**n)
        assert metrics.sign_p(later, n - later) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("freedom", "level", "words"),
    [(0, 0.95, "freedom .*0"), (1.5, 0.95, "freedom .*1.5"), (3, 95, "level .*95.*0.95")],
)
def test_t_quantile_names_what_is_wrong(freedom, level, words):
    with pytest.raises(ValueError, match=words):
        metrics.t_quantile(freedom, level)


def test_mean_interval_agrees_with_scipy():
    values = [0.8, 0.82, 0.79, 0.85, 0.81]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    interval = metrics.mean_interval(values)
    assert interval[:5] == pytest.approx((np.mean(values), low, high, 0.95, 5), rel=1e-12)


def test_paired_interval_agrees_with_scipy_and_beats_the_unpaired():
    rng = np.random.default_rng(1)
    seeds = rng.normal(size=8)
    baseline, values = seeds, seeds + 0.1 + rng.normal(size=8) * 0.01
    interval = metrics.paired_interval(values, baseline)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.high - interval.low < 0.05


def test_ratio_interval_is_the_t_interval_of_the_logs():
    values, baseline = np.array([2.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0])
    logs = metrics.mean_interval(np.log(values / baseline))
    interval = metrics.ratio_interval(values, baseline)
    assert interval[:3] == pytest.approx(np.exp([logs.value, logs.low, logs.high]))
    assert metrics.ratio_interval(values / baseline)[:3] == pytest.approx(interval[:3])


def test_ratios_of_what_is_not_positive_are_not_made_up():
    interval = metrics.ratio_interval([0.0, 1.0], [1.0, 1.0])
    assert math.isnan(interval.value)
    assert "not positive" in interval.method


def test_one_seed_has_no_interval_but_a_value():
    for interval in (
        metrics.mean_interval([0.5]),
        metrics.paired_interval([0.75], [0.25]),
        metrics.ratio_interval([0.5], [1.0]),
        metrics.censored_interval([0.5], [False]),
    ):
        assert interval.value == 0.5
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert interval.text() == "0.50 [n/a]"
    assert metrics.censored_interval([0.5], [True]).text() == ">0.50 [n/a]"


def test_an_undefined_seed_is_not_dropped():
    interval = metrics.mean_interval([0.5, math.nan, 0.6])
    assert math.isnan(interval.value)
    assert interval.text() == "n/a"
    assert "every seed" in interval.method
    assert interval.seeds == 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.mean_interval([]), "values must be"),
        (lambda: metrics.mean_interval([[1.0]]), "values must be"),
        (lambda: metrics.paired_interval([1.0, 2.0], [1.0]), "same seeds.* 2 and 1"),
        (lambda: metrics.mean_interval([1.0, 2.0], level=95), "level .*0.95"),
        (lambda: metrics.mean_interval(["a"]), "values must be numbers"),
    ],
)
def test_interval_errors_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("n", range(2, 41))
def test_sign_ranks_are_those_of_the_binomial(n):
    rank, attained = metrics._sign_rank(n, 0.95)
    covers = [1 - 2 * sum(math.comb(n, i) for i in range(j + 1)) / 2**n for j in range(n)]
    assert attained == pytest.approx(covers[rank], abs=1e-12)
    if rank:
        assert attained >= 0.95
    if rank + 1 < n / 2:
        assert covers[rank + 1] < 0.95


def test_censored_interval_of_five_states_the_level_it_has():
    interval = metrics.censored_interval([0.5, 0.7, 0.6, 1.4, 0.9], [False] * 3 + [True, False])
    assert (interval.value, interval.low, interval.high) == (0.7, 0.5, 1.4)
    assert interval.level == pytest.approx(0.9375)
    assert interval.open_high
    assert not interval.open_value
    assert interval.text() == "0.70 [0.50, >1.40] (94%)"


def test_a_censored_majority_leaves_only_a_bound():
    interval = metrics.censored_interval([0.5, 1.2, 1.3, 1.4, 1.1, 1.5], [False] + [True] * 5)
    assert interval.open_value
    assert interval.text(1) == ">1.2 [0.5, >1.5]"


def test_censoring_that_does_not_reach_the_end_leaves_it_closed():
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 2.0]
    interval = metrics.censored_interval(values, [False] * 8 + [True])
    assert not interval.open_high
    assert (interval.low, interval.high) == (0.2, 0.8)


def test_time_interval_uses_ranks_only_where_it_must():
    known = [Time(0.5, False), Time(0.8, False), Time(0.6, False)]
    assert metrics.time_interval(known) == metrics.ratio_interval([0.5, 0.8, 0.6])
    assert metrics.time_interval([*known, Time(1.0, True)]).open_high
    assert metrics.time_interval([*known, Time(0.0, False)]).low == 0.0
    assert math.isnan(metrics.time_interval([*known, Time(math.nan, False)]).value)


RUNS = 4000


def _fails_when_covering_less_than(hits, coverage):
    """Coverage is right: a count this low has probability below 1e-9 otherwise."""
    assert stats.binom.cdf(hits, RUNS, coverage) > 1e-9


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_t_intervals_cover(seeds):
    """Normal noise: exactly 95%. Each bound is broken by chance less than once in 1e9."""
    rng = np.random.default_rng(seeds)
    draws = rng.normal(0.3, 2.0, (RUNS, seeds))
    intervals = [metrics.mean_interval(draw) for draw in draws]
    hits = sum(i.low <= 0.3 <= i.high for i in intervals)
    assert stats.binom.cdf(hits, RUNS, 0.95) > 1e-9
    assert stats.binom.sf(hits - 1, RUNS, 0.95) > 1e-9  # nor wider than it says


def test_ratio_intervals_cover():
    rng = np.random.default_rng(7)
    draws = np.exp(rng.normal(math.log(0.8), 0.3, (RUNS, 5)))
    hits = sum(i.low <= 0.8 <= i.high for i in map(metrics.ratio_interval, draws))
    _fails_when_covering_less_than(hits, 0.95)


@pytest.mark.parametrize("seeds", [3, 5, 8, 12])
@pytest.mark.parametrize("limit", [0.9, 1.3])
def test_censored_intervals_cover_the_true_median(seeds, limit):
    """Skewed times with median 1, cut at `limit` (which the median may exceed) times a
    noise of its own; broken by chance less than once in 1e9."""
    rng = np.random.default_rng(seeds)
    true = rng.exponential(1 / math.log(2), (RUNS, seeds))
    ends = limit * rng.uniform(0.5, 1.5, (RUNS, seeds))
    late = true > ends
    hits, level = 0, 0.0
    for values, censored in zip(np.where(late, ends, true), late, strict=True):
        interval = metrics.censored_interval(values, censored)
        level = interval.level
        hits += interval.low <= 1.0 <= (math.inf if interval.open_high else interval.high)
    _fails_when_covering_less_than(hits, level)


@settings(max_examples=50)
@given(hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0.1, 10)), st.data())
def test_censoring_a_seed_only_widens_the_interval(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    open_ = metrics.censored_interval(values, np.arange(len(values)) == index)
    closed = metrics.censored_interval(values, np.zeros(len(values), bool))
    assert open_.low <= closed.low
    assert open_.open_high or open_.high >= closed.high
