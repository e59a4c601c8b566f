"""Beta draws have the right distribution, whatever the parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from bots_jax.numerics import beta_draws, random_bits
from tests.conftest import OPTIMISED

GRID = (0.05, 0.3, 1.0, 2.5, 16.0, 160.0, 1e5)
DRAWS = 100_000
# A right sampler fails one of all these tests with at most this probability.
FAILURE = 1e-6


def cdf_of_log_odds(log_odds: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """P(logit x <= z): taken from the side on which it is small, to keep its digits."""
    low, found = log_odds < np.log(alpha / beta), np.empty(log_odds.shape)
    found[low] = special.betainc(alpha, beta, special.expit(log_odds[low]))
    found[~low] = 1 - special.betainc(beta, alpha, special.expit(-log_odds[~low]))
    return found


@pytest.mark.parametrize("x64", [False, pytest.param(True, marks=pytest.mark.long)])
def test_log_odds_follow_the_beta_distribution(x64: bool) -> None:
    """Kolmogorov-Smirnov on the log-odds of 49 pairs of parameters."""
    pairs = [(a, b) for a in GRID for b in GRID]
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        alpha = jnp.repeat(jnp.asarray([a for a, _ in pairs], dtype), DRAWS)
        beta = jnp.repeat(jnp.asarray([b for _, b in pairs], dtype), DRAWS)
        draw = jax.jit(beta_draws.beta_log_odds, compiler_options=OPTIMISED)
        drawn = np.asarray(draw(jax.random.key(1), alpha, beta))
    assert drawn.dtype == dtype
    for (a, b), sample in zip(pairs, drawn.reshape(len(pairs), DRAWS), strict=True):
        uniform = cdf_of_log_odds(sample.astype(np.float64), a, b)
        p_value = stats.kstest(uniform, "uniform").pvalue
        assert p_value > FAILURE / len(pairs), (a, b, p_value)


def test_a_wrong_sampler_is_caught() -> None:
    """The same test refuses alpha off by 2%, so it can fail."""
    alpha = jnp.full(DRAWS, 2.5)
    sample = np.asarray(beta_draws.beta_log_odds(jax.random.key(1), alpha, alpha), np.float64)
    assert stats.kstest(cdf_of_log_odds(sample, 2.55, 2.5), "uniform").pvalue < FAILURE


def test_proposals_lie_above_the_density() -> None:
    """exp(h) <= g / g(0) in float64, far into both tails, and the shares that are accepted.

    With parameters below .15 taken for .15, not .25, it is off by a factor 1.03 at (.16, 1.6).
    """
    logit = np.concatenate([-np.logspace(3, -3, 400), np.logspace(-3, 3, 400)])
    log_u, log_v = special.log_expit(logit), special.log_expit(-logit)
    values = np.concatenate([np.logspace(-3, 6, 28), np.linspace(0.04, 2.4, 60)])
    pairs = np.array([(a, b) for a in values for b in values if a <= b])
    low, high = pairs[:, :1], pairs[:, 1:]
    with jax.enable_x64(True):
        spreads = beta_draws._spreads(*(jnp.asarray(x, jnp.float64) for x in (low, high)))
        left, right = (np.asarray(x) for x in spreads)
    width = np.sqrt(left) + np.sqrt(right)
    t = left * (log_u - np.log(np.sqrt(left) / width))
    t -= right * (log_v - np.log(np.sqrt(right) / width))
    log_offered = 2 * np.log(width) - np.logaddexp(np.log(left) - log_u, np.log(right) - log_v)
    p, total = low / (low + high), low + high
    near = np.minimum(t, 50)
    log_density = low * t - total * (np.log1p(p * np.expm1(near)) + (t - near))
    assert np.max(log_density - log_offered) < 1e-12
    peak = low * np.log(p) + high * np.log1p(-p) - special.betaln(low, high)
    accepted = np.exp(-2 * np.log(width) - peak)
    assert np.min(accepted) > 0.5
    assert np.min(accepted[low >= 1]) > 0.886


@pytest.mark.parametrize("x64", [False, True])
def test_log_growth_keeps_its_digits(x64: bool) -> None:
    """Also of log(1 + y) at small y, which XLA may take for log of a rounded 1 + y."""
    dtype = np.float64 if x64 else np.float32
    t = np.concatenate([-np.logspace(-5, 3, 4000), np.logspace(-5, 3, 4000)]).astype(dtype)
    for p in np.asarray([1e-6, 0.01, 0.3, 0.5], dtype):
        with jax.enable_x64(x64):
            ours = np.asarray(jax.jit(beta_draws._log_growth)(t, p), np.longdouble)
        wide = t.astype(np.longdouble)
        right = np.where(wide < 80, np.log1p(p * np.expm1(np.minimum(wide, 80))), wide + np.log(p))
        np.testing.assert_allclose(ours, right, rtol=5 * np.finfo(dtype).eps)


def test_threefry_is_that_of_jax() -> None:
    words, counts = jax.random.bits(jax.random.key(4), (2,)), jax.random.bits(jax.random.key(5), 8)
    ours = random_bits.threefry(words, counts[:4], counts[4:])
    np.testing.assert_array_equal(jnp.concatenate(ours), threefry_2x32(words, counts))


def test_forms_agree() -> None:
    key, alpha, beta = jax.random.key(2), jnp.asarray([0.05, 3.0, 1e5]), jnp.asarray([2.0, 3, 1])
    value, complement = beta_draws.beta_pair(key, alpha, beta)
    np.testing.assert_allclose(value + complement, 1, rtol=1e-6)
    np.testing.assert_array_equal(value, beta_draws.beta(key, alpha, beta))
    assert 0 < float(complement[2]) < 1e-3  # which 1 - value would have lost most digits of


def test_draws_depend_on_index_and_parameters_alone() -> None:
    """A longer array, or other neighbours, leave a lane's draw as it was.

    So do the ways of redrawing: 700 lanes are redrawn all at once, of 70,003 the rejected, in
    two chunks that overlap.
    """
    key = jax.random.key(3)
    alpha = jnp.linspace(0.1, 20, 70_003)
    short = beta_draws.beta_log_odds(key, alpha[:700], jnp.full(700, 1.5))
    long = beta_draws.beta_log_odds(key, alpha, jnp.where(jnp.arange(70_003) < 700, 1.5, 0.1))
    np.testing.assert_allclose(short, long[:700], rtol=1e-5, atol=1e-5)


def test_scalar_broadcast_and_vmap() -> None:
    assert beta_draws.beta(jax.random.key(0), 2.0, 3.0).shape == ()
    assert beta_draws.beta(jax.random.key(0), jnp.ones((2, 1)), jnp.ones(3)).shape == (2, 3)
    keys = jax.random.split(jax.random.key(0), 4)
    batched = jax.vmap(lambda key: beta_draws.beta(key, jnp.full(50, 0.7), jnp.full(50, 2.0)))(keys)
    single = beta_draws.beta(keys[2], jnp.full(50, 0.7), jnp.full(50, 2.0))
    np.testing.assert_allclose(batched[2], single, rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bad_parameters_give_nan_and_do_not_hang(bad: float) -> None:
    drawn = beta_draws.beta(jax.random.key(0), jnp.asarray([bad, 2.0]), jnp.asarray([1.0, 2.0]))
    assert np.isnan(drawn[0])
    assert 0 < float(drawn[1]) < 1
    many = beta_draws.beta(jax.random.key(0), jnp.full(5000, 2.0).at[4999].set(bad), jnp.ones(5000))
    np.testing.assert_array_equal(np.isnan(many), np.arange(5000) == 4999)


@pytest.mark.parametrize(("alpha", "beta"), [(1e-6, 1e-6), (1e7, 1e-3), (1e8, 1e8)])
def test_beyond_the_tested_range_draws_stay_finite(alpha: float, beta: float) -> None:
    log_odds = beta_draws.beta_log_odds(
        jax.random.key(0), jnp.full(1000, alpha), jnp.full(1000, beta)
    )
    assert np.all(np.isfinite(log_odds))
