"""The parts of the race, each against float64 NumPy: bounds, widths, walks and what is kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax.choice import thinning
from bots_jax.choice.thinning import Candidate, Result

Floats = np.ndarray


def bound(a: Floats, b: Floats, target: float, width: float) -> Floats:
    """The docstring's C(x) sqrt(nu + 2) exp(-2 nu (x - mode)^2), at its largest in the window."""
    low, high = target - width, target + width
    repair = np.where(a < 1, a / ((a + b) * low), 1)
    a = np.where(a < 1, a + 1, a)
    repair = repair * np.where(b < 1, b / ((a + b) * (1 - high)), 1)
    b = np.where(b < 1, b + 1, b)
    nu = a + b - 2
    mode = np.where(nu > 0, (a - 1) / np.where(nu > 0, nu, 1), 0)
    x = np.clip(mode, low, high)
    room = min(low * (1 - low), high * (1 - high))
    constant = (0.43 + 0.338 * room) / np.sqrt(room)
    return repair * constant * np.sqrt(nu + 2) * np.exp(-2 * nu * (x - mode) ** 2)


@pytest.mark.parametrize("target", [0.05, 0.5, 0.8])
def test_rates_are_those_of_the_bound(target: float) -> None:
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.uniform(np.log(0.05), np.log(1e4), (2, 500)))
    a[:3] = b[:3] = 1
    with jax.enable_x64(True):
        for share in (0.0, 0.3, 1.0):
            width = share * min(target, 1 - target) / 4
            given = [jnp.asarray(a), jnp.asarray(b), jnp.float64(target), jnp.float64(width)]
            expected = bound(a, b, target, width)
            np.testing.assert_allclose(
                thinning.density_bound(*given), expected, rtol=1e-9, atol=1e-300
            )
            rate = np.asarray(thinning.hit_rate(*given))
            np.testing.assert_allclose(rate, 2.3 * expected, rtol=1e-9, atol=1e-300)
            # To the end of the longest race no density is above the rate at which it is hit.
            end = float(thinning.longest_race(given[3], jnp.max(rate)))
            assert end == pytest.approx(min(width, 0.139 / rate.max()), rel=1e-12)
            for x in (target - end, target + end):
                offered = rate * np.exp(-rate * end) / 2
                assert np.all(stats.beta.pdf(x, a, b) <= offered * (1 + 1e-9) + 1e-300)


def window(target: float, count: int, tasks: Any, rate: Any, guess: Any) -> thinning.Window:
    """That of so many tasks alike, whose rate falls a little as the width grows."""

    def measure(width: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = rate / (1 + width)
        return jnp.full((4,), tasks / 4) * each, each

    return thinning.choose_window(measure, guess, jnp.float64(target), count)


@pytest.mark.parametrize("target", [0.5, 0.2, 0.9, 1e-3])
def test_windows_are_wide_enough_and_no_wider_than_may_be(target: float) -> None:
    """Against the loop in Python, of pools from a handful of tasks to many, guessed well or ill."""
    cases = [(t, r, g) for t in (5, 1e3, 1e6) for r in (1e-3, 0.5, 30) for g in (0, 0.02, 1, 50)]
    for count in (1, 40):
        with jax.enable_x64(True):
            tasks, rates, guess = (jnp.asarray(x) for x in np.array(cases).T)
            found = jax.jit(jax.vmap(partial(window, target, count)))(tasks, rates, guess * tasks)
            sums = np.asarray(found.block_rates).sum(1)
            told = list(zip(sums, found.width.tolist(), found.length.tolist(), strict=True))
        hits, widest = 3 * count + 64, min(target, 1 - target) / 4
        for (size, rate, per_task), (total, width, length) in zip(cases, told, strict=True):
            right = float(np.clip(1.5 * hits / max(per_task * size, 1e-20), 1e-7, widest))
            while True:
                each = rate / (1 + right)
                end = min(right, 0.139 / each)
                if right * size * each >= hits or end < right or right >= widest:
                    break
                right = min(4 * right, widest)
            assert (width, length) == pytest.approx((right, end), rel=1e-12)
            assert total == pytest.approx(size * each, rel=1e-12)


@pytest.mark.parametrize("blocks", [1, 5, 64, 65, 600])
def test_a_walk_down_the_tree_ends_in_proportion(blocks: int) -> None:
    """Two levels a uniform: what is over in one is the threshold in the next, exactly."""
    rng = np.random.default_rng(blocks)
    rates = rng.integers(0, 5, blocks) * 1.0
    rates[0] += 1
    uniforms = (np.arange(2000) + 0.5) / 2000
    with jax.enable_x64(True):
        tree = thinning._grow_tree(jnp.asarray(rates))
        count = thinning._uniforms(tree)
        drawn = np.stack([rng.permutation(uniforms) for _ in range(count)])
        found = np.asarray(jax.jit(thinning._descend)(tree, jnp.asarray(drawn)))
    levels = len(tree.first)
    assert count == (levels + 1) // 2
    assert 8**levels >= blocks > 8 ** (levels - 1) - (levels == 1)
    padded = np.pad(rates, (0, 8**levels - blocks))
    at, left = np.zeros(2000, int), levels
    for uniform in drawn:
        deep = min(2, left)
        left -= deep
        sums = padded.reshape(-1, 8**deep, 8**left).sum(2)[at]  # of the nodes that come next
        threshold = uniform * sums.sum(1)
        at = at * 8**deep + np.sum(np.cumsum(sums, 1) <= threshold[:, None], 1)
    np.testing.assert_array_equal(found, at)
    assert np.all(rates[found] > 0)


def test_hits_are_accepted_by_their_density() -> None:
    """log u <= log f(x) - log(c e^(-c d) / 2), at either side; a void hit never counts."""
    rng = np.random.default_rng(1)
    a, b = np.exp(rng.uniform(0, 4, (2, 300)))
    rate, distance = rng.uniform(1, 20, 300), rng.uniform(0, 0.05, 300)
    side, height = rng.choice([-1.0, 1.0], 300), np.log(rng.random(300))
    with jax.enable_x64(True):
        ids = jnp.arange(300, dtype=jnp.int32)
        hit = Candidate(ids, *map(jnp.asarray, (a, b, rate)), jnp.ones(300, bool))
        found = thinning._accept(hit, jnp.float64(0.4), *map(jnp.asarray, (distance, side, height)))
    offered = np.log(rate / 2) - rate * distance
    expected = height <= stats.beta.logpdf(0.4 + side * distance, a, b) - offered
    np.testing.assert_array_equal(found, expected)
    assert 50 < expected.sum() < 250


def test_every_chunk_of_a_race_counts() -> None:
    """Of 300 tasks alike, hit 8 x 666 times, each is accepted at its first hit, the nearest first.

    Some thirty tasks in each of 10 races are not hit in the first chunk; in all, each is.
    """
    count, tasks, total = 301, 300, 5e4
    hits = 2 * count + 64
    end = thinning.Window(jnp.full((8,), total / 8), jnp.float32(0.4), jnp.float32(0.4))

    def identify(bits: jax.Array, _: Any, blocks: jax.Array) -> Candidate:
        ids = (bits[0] % jnp.uint32(tasks)).astype(jnp.int32)
        one = jnp.ones(hits)
        return Candidate(ids, one, one, 1e-9 * one, jnp.ones(hits, bool))

    @jax.jit
    @jax.vmap
    def race(words: jax.Array) -> Result:
        return thinning.run(words, end, identify, jnp.float32(0.5), count)

    words = jax.random.bits(jax.random.key(0), (10, 2), jnp.uint32)
    found = race(words)
    np.testing.assert_array_equal(found.found, tasks)
    np.testing.assert_array_equal(np.sort(found.task_ids[:, :tasks], 1), [np.arange(tasks)] * 10)
    np.testing.assert_array_equal(found.task_ids[:, tasks:], -1)
    off = np.asarray(found.draws[:, :tasks]) - 0.5
    assert np.all(np.diff(np.abs(off), axis=1) >= 0)
    assert abs(np.mean(off > 0) - 0.5) < 0.06  # six standard errors of 3,000
    # The last of 8 x hits points of a process of rate `total`: a mean of 10 within six errors.
    mean = np.mean(found.explored) * total / (8 * hits)
    assert abs(mean - 1) < 6 / np.sqrt(10 * 8 * hits)


@pytest.mark.parametrize("before", [0, 2, 4, 5])
def test_the_first_accepted_fill_the_places(before: int) -> None:
    accepted = np.array([False, True, True, False, True, True])
    ids, draws = np.arange(10, 16), np.linspace(0.1, 0.6, 6)
    old = Result(
        jnp.asarray([1, 2, 3, 4, 5][:before] + [-1] * (5 - before), jnp.int32),
        jnp.asarray([0.5] * before + [0] * (5 - before), jnp.float32),
        jnp.int32(before),
        jnp.float32(0),
    )
    given = jnp.asarray(ids, jnp.int32), jnp.asarray(draws, jnp.float32), jnp.asarray(accepted)
    new = thinning._append(old, *given)
    wanted = [*[1, 2, 3, 4, 5][:before], *ids[accepted]][:5]
    assert new.task_ids.tolist() == wanted + [-1] * (5 - len(wanted))
    told = [*[0.5] * before, *draws[accepted]][:5]
    np.testing.assert_allclose(new.draws, told + [0] * (5 - len(told)), rtol=1e-6)
    assert int(new.found) == len(wanted)
