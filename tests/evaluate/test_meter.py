"""The meter, in traced code, against the metrics on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.evaluate import meter, metrics
from bots_jax.types import Selection


@pytest.mark.parametrize("part", [False, True])
def test_a_meter_reads_what_the_metrics_compute_on_the_host(part):
    rng = np.random.default_rng(3)
    p = rng.beta(0.6, 0.6, 200).astype(np.float32)
    q = np.clip(np.round(p + rng.normal(0, 0.2, 200), 1), 0.02, 0.98).astype(np.float32)  # ties
    scored = rng.random(200) < 0.5 if part else np.ones(200, bool)
    reading = jax.device_get(jax.jit(meter.read)(q, p, 8.0, scored))
    q, p = np.float64(q[scored]), np.float64(p[scored])
    half = 0.5 ** (1 / 8)
    expected = {
        "log_loss": metrics.log_loss(q, p),
        "rmse": metrics.rmse(q, p),
        "pearson": metrics.pearson(q, p),
        "spearman": metrics.spearman(q, p),
        "auc_unsolved": metrics.auc(-q, 1 - p >= half),
        "auc_mastered": metrics.auc(q, p >= half),
    }
    for key, value in expected.items():
        assert getattr(reading, key) == pytest.approx(float(value), rel=2e-5, abs=2e-6), key
    assert reading.weight.sum() == scored.sum()
    assert reading.predicted.sum() == pytest.approx(q.sum(), rel=1e-5)
    assert reading.happened.sum() == pytest.approx(p.sum(), rel=1e-5)


def test_a_flat_belief_and_a_class_that_is_empty_are_nan():
    p = jnp.linspace(0.4, 0.6, 20)
    reading = meter.read(jnp.full(20, 0.5), p, 8.0)
    assert np.isnan(reading.pearson)
    assert np.isnan(reading.spearman)
    assert np.isnan(reading.auc_unsolved)
    averages = meter.averages(jax.device_get(reading))
    assert np.isnan(averages["pearson"])  # unknown, which is not 0
    assert averages["rmse"] == pytest.approx(float(jnp.sqrt(jnp.mean((p - 0.5) ** 2))), rel=1e-5)
    some = [reading, meter.read(p, p, 8.0)]  # a flat step among others does not count
    both = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(some))
    assert meter.averages(both)["pearson"] == pytest.approx(1, abs=1e-5)


def test_calibration_error_is_that_of_its_bins():
    q = jnp.asarray([0.15, 0.15, 0.85, 0.85])
    p = jnp.asarray([0.25, 0.25, 0.85, 0.45])
    reading = jax.device_get(meter.read(q, p, 8.0))
    assert meter.calibration_error(reading) == pytest.approx((0.2 + 0.4) / 4, rel=1e-5)
    assert meter.calibration(reading)["weight"] == [0, 2, 0, 0, 0, 0, 0, 0, 2, 0]
    assert meter.calibration(reading)["predicted"] == [0, 0.15, 0, 0, 0, 0, 0, 0, 0.85, 0]
    assert meter.calibration(reading)["happened"] == [0, 0.25, 0, 0, 0, 0, 0, 0, 0.65, 0]


def test_blocks_keep_the_mean_and_the_order():
    x, y = meter.blocks(np.arange(250.0), 100)
    assert len(x) == len(y) == 100
    assert np.all(np.diff(x) > 0)
    assert meter.blocks([1.0, np.nan], 5)[1] == [1.0, None]


def test_a_map_has_tasks_from_hard_to_easy_and_blocks_of_steps():
    rates = np.asarray([[0.9, 0.1, 0.5, 0.3, 0.7], [0.7, 0.1, 0.3, 0.3, 0.9]])
    assert meter.rows_of_map(rates, 3) == (1, 2, 4)
    assert meter.rows_of_map(rates) == (1, 3, 2, 0, 4)
    belief = np.linspace(0, 1, 8).reshape(4, 2)
    told = meter.as_map(belief, belief[::-1], [[5, 7], [5, 5], [7, 9], [9, 9]], (5, 7), columns=2)
    assert told["step"] == [1.5, 3.5]
    assert told["belief"] == [[14, 71], [29, 86]]
    assert told["truth"] == [[71, 14], [86, 29]]
    assert told["visits"] == [[3, 0], [1, 1]]


def test_variance_is_that_of_the_true_rates_of_what_was_selected():
    rate = jnp.asarray([0.5, 0.1, 0.9])
    chosen = Selection(*map(jnp.asarray, ([0, 1, -1], [0.0] * 3, [True, True, False], [0, 0, -1])))
    reading, means = meter.watcher(8, (2, 0))(jnp.asarray([0.2, 0.3, 0.4]), rate, chosen)
    assert float(reading.variance) == pytest.approx((0.25 + 0.09) / 2, rel=1e-6)
    np.testing.assert_allclose(means, [0.4, 0.2])
