"""Holm's correction against a worked example; verdicts, relative measures, plots' labels."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from bots_jax.bench import plots, verdicts
from bots_jax.bench.labels import place_labels
from bots_jax.bench.measures import MEASURES, keys_of, values_of
from bots_jax.evaluate import metrics

stats = pytest.importorskip("scipy.stats")


def test_holm_on_a_worked_example():
    # Sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 -> .06 (kept monotone).
    adjusted = metrics.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02], rtol=1e-12)


def test_holm_leaves_out_what_could_not_be_tested_and_stays_below_1():
    adjusted = metrics.holm([0.6, math.nan, 0.7])
    np.testing.assert_allclose(adjusted, [1.0, math.nan, 1.0])
    assert metrics.holm([]).shape == (0,)
    with pytest.raises(ValueError, match="p_values"):
        metrics.holm([1.5])


def test_the_paired_test_is_scipys():
    rng = np.random.default_rng(1)
    for n in (2, 3, 5, 10, 31):
        a, b = rng.normal(0.4, 1, n), rng.normal(0, 1, n)
        assert metrics.paired_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_the_paired_test_at_its_limits():
    assert metrics.paired_p([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert metrics.paired_p([2.0, 3.0], [1.0, 2.0]) == 0.0
    assert math.isnan(metrics.paired_p([1.0], [2.0]))
    assert math.isnan(metrics.paired_p([1.0, math.nan], [2.0, 2.0]))


def test_the_sign_test_is_scipys():
    for later, earlier in ((0, 0), (5, 0), (3, 7), (4, 4)):
        expected = stats.binomtest(later, later + earlier).pvalue if later + earlier else 1.0
        assert metrics.sign_p(later, earlier) == pytest.approx(expected)


def test_outcome_variance_is_unbiased():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    s = rng.binomial(4, p)
    # Of one group it has a standard deviation below .17: .0012 in the mean of 20,000.
    expected = float(np.mean(p * (1 - p)))
    assert metrics.outcome_variance(s, np.full(s.shape, 4)) == pytest.approx(expected, abs=0.006)
    assert math.isnan(metrics.outcome_variance([1], [1]))


def values(**by_strategy):
    """Values of one measure, log_loss: less is better."""
    return {
        name: {seed: {"log_loss": float(x)} for seed, x in enumerate(xs)}
        for name, xs in by_strategy.items()
    }


def test_wins_draws_and_losses_after_correction():
    noise = np.array([0.0, 0.01, 0.02, -0.01, 0.015, -0.02])
    # p is about .02: alone it would be a loss, but three like it need .05 / 3 of the best.
    barely = 0.5 + noise + np.array([0.05, 0.09, 0.01, 0.08, -0.01, 0.06])
    told = values(
        base=0.5 + noise, lower=0.2 - noise, higher=0.9 + 2 * noise,
        one=barely, two=barely, three=barely,
    )  # fmt: skip
    found = {v.strategy: v for v in verdicts.against_baseline(told, ["log_loss"], "base")}
    assert 0.05 / 3 < found["one"].p < 0.05
    outcomes = {name: v.outcome for name, v in found.items()}
    assert outcomes == {"lower": 1, "higher": -1, "one": 0, "two": 0, "three": 0}
    alone = values(base=0.5 + noise, barely=barely)
    assert verdicts.against_baseline(alone, ["log_loss"], "base")[0].outcome == -1


def test_the_tables_count_what_was_found():
    noise = np.linspace(-0.01, 0.01, 8)
    told = values(base=0.5 + noise, good=0.3 - noise, same=0.5 - noise)
    table = verdicts.baseline_table(
        verdicts.against_baseline(told, ["log_loss"], "base"), ["log_loss"]
    )
    assert [row[-3:] for row in table[1:]] == [["1", "0", "0"], ["0", "1", "0"]]
    robin = verdicts.round_robin_table(verdicts.round_robin(told, ["log_loss"]), ["log_loss"])
    assert robin[1:] == [
        ["good", "2-0-0", "2-0-0"],
        ["base", "0-1-1", "0-1-1"],
        ["same", "0-1-1", "0-1-1"],
    ]


def ratios(**by_strategy):
    """Values of TTB(100%): times relative to the baseline's, inf where they are censored."""
    return {
        name: {
            seed: {"ttb_100": metrics.Time(3.0 if math.isinf(x) else float(x), math.isinf(x))}
            for seed, x in enumerate(xs)
        }
        for name, xs in by_strategy.items()
    }


def test_ratios_to_the_baseline_are_tested_by_their_logs():
    quick = np.array([0.5, 0.6, 0.55, 0.52, 0.9])
    told = ratios(base=np.ones(5), quick=quick)
    (found,) = verdicts.against_baseline(told, ["ttb_100"], "base")
    assert found.difference == pytest.approx(np.log(quick).mean())
    assert found.p == pytest.approx(stats.ttest_1samp(np.log(quick), 0).pvalue)
    assert found.outcome == 1
    # One time censored: signs alone.
    told = ratios(base=np.ones(5), late=[2, 1.5, 1.2, math.inf, 0.9])
    (found,) = verdicts.against_baseline(told, ["ttb_100"], "base")
    assert found.difference == 4 - 1
    assert found.p == pytest.approx(stats.binomtest(4, 5).pvalue)
    told["late"][2]["ttb_100"] = metrics.Time(math.nan, False)
    assert math.isnan(verdicts.against_baseline(told, ["ttb_100"], "base")[0].p)


def test_pairs_are_compared_with_each_other_where_measures_are_relative_to_the_baseline():
    spread = np.linspace(0.98, 1.02, 8)
    told = ratios(base=np.ones(8), fast=0.5 * spread, slow=2 * spread, fair=0.5 / spread)
    table = verdicts.round_robin_table(verdicts.round_robin(told, ["ttb_100"]), ["ttb_100"])
    assert {row[0]: row[1] for row in table[1:]} == {
        "fast": "2-1-0", "fair": "2-1-0", "base": "1-0-2", "slow": "0-0-3",
    }  # fmt: skip
    # Both censored in five seeds: neither was later in those.
    never = [math.inf] * 5 + [2.0] * 3
    (found,) = verdicts.round_robin(ratios(a=never, b=[math.inf] * 6 + [1.0, 3.0]), ["ttb_100"])
    assert found.difference == 1 - 2
    assert found.p == pytest.approx(stats.binomtest(1, 3).pvalue)


def test_a_measure_without_a_better_side_is_not_judged():
    told = {name: {0: {"breadth": 1.0}, 1: {"breadth": 2.0}} for name in ("a", "b")}
    assert verdicts.against_baseline(told, ["breadth"], "a") == []


def record(strategy, seed, heldout, tokens):
    steps = [0, 10, 20]
    return {
        "strategy": strategy,
        "seed": seed,
        "values": {"heldout": heldout[-1], "etr": None},
        "series": {"heldout": {"x": steps, "y": heldout}, "tokens": {"x": steps, "y": tokens}},
    }


def test_runs_are_compared_at_equal_tokens_and_with_the_baseline_of_their_seed():
    records = [
        record("fast", 0, [0.1, 0.3, 0.5], [0, 200, 400]),
        record("uniform", 0, [0.1, 0.2, 0.3], [0, 50, 100]),
    ]
    found = values_of(records, "uniform")
    assert list(found) == ["uniform", "fast"]
    fast = found["fast"][0]
    assert fast["heldout_at_tokens"] == pytest.approx(0.2)  # at 100 tokens, half-way to step 10
    assert found["uniform"][0]["heldout_at_tokens"] == pytest.approx(0.3)
    assert "heldout_at_rollouts" not in fast  # no run told of them
    for one, made in zip(records, ([0, 40, 80], [0, 10, 20]), strict=True):
        one["series"]["rollouts"] = {"x": [0, 10, 20], "y": made}
    assert values_of(records, "uniform")["fast"][0]["heldout_at_rollouts"] == pytest.approx(0.2)
    records[0]["series"]["rollouts"] = records[1]["series"]["rollouts"]
    # Where all made the same the score at the end says it already.
    assert "heldout_at_rollouts" not in values_of(records, "uniform")["fast"][0]
    assert fast["ttb_100"] == metrics.Time(0.5, False)
    assert fast["bsf_100"] == pytest.approx(0.5 / 0.3)
    assert math.isnan(fast["etr"])


def test_times_are_told_in_steps_in_tokens_and_against_epochs():
    records = [
        record("fast", 0, [0.1, 0.3, 0.5], [0, 200, 400]),
        record("uniform", 0, [0.1, 0.2, 0.3], [0, 50, 100]),
        record("epochs", 0, [0.1, 0.25, 0.3], [0, 50, 100]),
    ]
    found = values_of(records, "uniform")
    fast = found["fast"][0]
    assert fast["ttb_100_tokens"] == metrics.Time(2.0, False)  # 200 tokens against 100
    assert fast["ttb_100_epochs"] == metrics.Time(0.5, False)
    assert fast["ttb_50_epochs"].value == pytest.approx(5 / (20 / 3))
    assert fast["heldout_over_epochs"] == pytest.approx(0.2)
    assert "ttb_100_epochs" not in values_of(records, "epochs")["fast"][0]
    assert keys_of(found) == [key for key in MEASURES if key in fast]  # none is unknown
    # Times are of averages over three evaluations where a run has them, scores are not.
    for one in records[:2]:
        one["series"]["heldout_average"] = {"x": [0, 10, 20], "y": [0.1, 0.1, 0.3]}
    smooth = values_of(records, "uniform")["fast"][0]
    assert smooth["ttb_100"] == metrics.Time(1.0, False)
    assert smooth["heldout_at_tokens"] == fast["heldout_at_tokens"]


def test_curves_of_a_short_run_are_drawn_as_they_are():
    own = record("uniform", 0, [0.1, 0.2, 0.3], [0, 1, 2])
    own["series"]["etr"] = {"x": [1, 2, 3], "y": [0.5, 0.25, 1.0]}
    x, y = plots._curves(SimpleNamespace(records=[own]), "uniform", "etr")
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_array_equal(y, [[0.5, 0.25, 1.0]])


def test_labels_do_not_overlap(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    rng = np.random.default_rng(0)
    points = [tuple(xy) for xy in rng.normal(size=(14, 2)) * 0.2]
    figure, axes = plt.subplots(figsize=(8, 6))
    axes.plot(*zip(*points, strict=True), "o")
    axes.margins(0.3)
    place_labels(figure, axes, points, [f"strategy {i}, setting 0.1" for i in range(14)])
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    frame = axes.get_window_extent(renderer)
    for i, box in enumerate(boxes):
        assert frame.x0 - 1 <= box.x0
        assert box.x1 <= frame.x1 + 1
        for other in boxes[:i]:
            assert not (
                box.x0 < other.x1 - 1 and other.x0 < box.x1 - 1
                and box.y0 < other.y1 - 1 and other.y0 < box.y1 - 1
            )  # fmt: skip
    plt.close(figure)
