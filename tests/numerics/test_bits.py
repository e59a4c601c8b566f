"""Bits, uniforms and proposals one by one, against integers of Python and NumPy float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from bots_jax.numerics import beta_draws, random_bits

LANES = np.array([0, 1, 2, 7, 2**31 + 5, 2**32 - 1], np.uint32)


def block(words: Any, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Threefry of pairs of counters, by JAX's own."""
    both = jnp.asarray(np.concatenate([np.uint32(x), np.broadcast_to(np.uint32(y), np.shape(x))]))
    first, second = np.split(np.asarray(threefry_2x32(words, both)), 2)
    return first, second


@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.uint64, np.int64])
def test_uniforms_are_the_middles_of_their_steps(kind: Any) -> None:
    width = np.iinfo(kind).bits - (np.iinfo(kind).min < 0)
    values = [0, 1, 5, 2 ** (width - 1), 2**width - 2**12, 2**width - 1]
    with jax.enable_x64(True):
        found = random_bits.open_uniform(jnp.asarray(np.array(values, kind)), jnp.float64)
    expected = [(value + 0.5) / 2**width for value in values]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert float(found[0]) == 0.5 / 2**width


def test_words_of_lanes_keys_and_turns() -> None:
    """Of 32 bits and of 64, whose parts are those of the next two attempts."""
    key = jax.random.key(11)
    data = jax.random.key_data(key)
    words = random_bits.key_words(key)
    one, other = block(data, [0], 2**32 - 1)
    np.testing.assert_array_equal(words, [one[0], other[0]])
    several = block(data, np.arange(3), 2**32 - 1)
    np.testing.assert_array_equal(random_bits.key_words(key, 3), np.stack(several, -1))
    with jax.enable_x64(True):
        for attempt in (0, 3):
            lanes, turn = jnp.asarray(LANES), jnp.uint32(attempt)
            narrow = random_bits.lane_bits(words, lanes, turn, jnp.dtype("float32"))
            np.testing.assert_array_equal(narrow, block(words, LANES, attempt))
            high = np.array(block(words, LANES, 2 * attempt), np.uint64)
            low = np.array(block(words, LANES, 2 * attempt + 1), np.uint64)
            wide = random_bits.lane_bits(words, lanes, turn, jnp.dtype("float64"))
            np.testing.assert_array_equal(wide[0], (high[0] << 32) | high[1])
            np.testing.assert_array_equal(wide[1], (low[0] << 32) | low[1])
    for shape in ((2, 3), (5,)):
        size = int(np.prod(shape))
        pair = block(words, np.arange(-(-size // 2)), 5)
        found = random_bits.turn_bits(words, jnp.int32(5), shape, jnp.dtype("float32"))
        np.testing.assert_array_equal(found, np.stack(pair, -1).ravel()[:size].reshape(shape))
    for wide, dtype in ((False, "uint32"), (True, "uint64")):
        with jax.enable_x64(wide):
            like = jnp.dtype("float64" if wide else "float32")
            drawn = random_bits.random_bits(key, (3,), like)
            np.testing.assert_array_equal(drawn, jax.random.bits(key, (3,), dtype))
            noise = random_bits.gumbel(key, (3,), like)
            small = random_bits.open_uniform(drawn, like)
            np.testing.assert_allclose(noise, -np.log(-np.log1p(-np.asarray(small))), rtol=1e-6)
    other_kind = jax.random.key(1, impl="rbg")
    assert random_bits.key_words(other_kind).shape == (2,)
    assert random_bits.key_words(other_kind, 4).shape == (4, 2)


@pytest.mark.parametrize("wide", [False, True])
def test_noise_is_finite_whatever_the_bits(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest integers round to a uniform of 1; infinite noise at temperature 0 is NaN."""
    with jax.enable_x64(wide):
        dtype = jnp.dtype("float64" if wide else "float32")
        kind = jnp.uint64 if wide else jnp.uint32
        ends = jnp.array([0, jnp.iinfo(kind).max], kind)
        assert float(random_bits.open_uniform(ends, dtype)[1]) == 1
        monkeypatch.setattr(random_bits, "random_bits", lambda *_: ends)
        largest, smallest = np.asarray(random_bits.gumbel(jax.random.key(0), (2,), dtype))
        assert 0 < largest < np.inf
        assert -4 < smallest < 0


def spreads(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B of the docstring of numerics/beta_draws.py, for a <= b."""
    least_a, least_b = np.maximum(a, 0.25), np.maximum(b, 0.25)
    m = least_a * least_b / (least_a + least_b)
    d = (least_b - least_a) / (least_a + least_b)
    r = np.sqrt(18 * m + d * d)
    left, right = (r + d) / np.sqrt(6 * m * r), (r - d) / np.sqrt(6 * m * r)
    return np.maximum(left, a**-0.5), np.maximum(right, b**-0.5)


def test_proposals_and_which_are_kept() -> None:
    """t from u, and kept where v < exp(h(t)) g(0) / g(t); mirrored where a > b."""
    rng = np.random.default_rng(0)
    size = 4000
    a, b = np.exp(rng.uniform(np.log(0.05), np.log(1e4), (2, size)))
    a[:50] = b[:50]
    position, height = rng.integers(0, 2**64, (2, size), dtype=np.uint64)
    with jax.enable_x64(True):
        given = [jnp.asarray(x) for x in (a, b, position, height)]
        found = np.asarray(jax.jit(beta_draws.propose)(*given))
        kept = ~np.asarray(beta_draws.is_rejected(jnp.asarray(found)))
        x = np.asarray(beta_draws.value_at(*map(jnp.asarray, (found, a, b))))
    low, high = np.minimum(a, b), np.maximum(a, b)
    left, right = spreads(low, high)
    u = (position.astype(np.longdouble) + 0.5) / 2.0**64
    t = left**2 * np.log(u * (left + right) / left)
    t = (t - right**2 * np.log((1 - u) * (left + right) / right)).astype(np.float64)
    p = low / (low + high)
    log_density = low * t - (low + high) * np.logaddexp(np.log1p(-p), np.log(p) + t)
    log_offered = np.log((left + right) ** 2 / (left**2 / u + right**2 / (1 - u)))
    margin = log_density - np.log((height + 0.5) / 2.0**64) - log_offered.astype(np.float64)
    clear = np.abs(margin) > 1e-6
    np.testing.assert_array_equal(kept[clear], margin[clear] > 0)
    assert clear.mean() > 0.999
    assert 0.7 < kept.mean() < 1
    signed = np.where(a > b, -t, t)
    np.testing.assert_allclose(found[kept], signed[kept], rtol=1e-9, atol=1e-12)
    expected = 1 / (1 + np.exp(-signed - np.log(a / b)))
    np.testing.assert_allclose(x[kept], expected[kept], rtol=1e-9)
