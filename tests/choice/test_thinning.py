"""The race finds what drawing every task and sorting would find, in distribution."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax.choice import thinning
from bots_jax.numerics.beta_density import log_beta_density
from bots_jax.numerics.random_bits import random_below
from bots_jax.types import Array
from tests.choice.test_batch import FAILURE, assert_same_rates, brute_force, membership, together
from tests.conftest import OPTIMISED


@cache
def nearest(count: int) -> Callable[..., tuple[Array, Array, Array]]:
    """The thinning, jitted: compiled once for all tests of one size."""
    return jax.jit(partial(thinning.nearest, count=count))


@cache
def nearest_of_each(count: int) -> Callable[..., tuple[Array, Array, Array]]:
    """The same for many keys."""

    def find(keys: Array, *given: Array) -> tuple[Array, Array, Array]:
        one = lambda key: thinning.nearest(key, *given, count)  # noqa: E731
        return jax.lax.map(one, keys, batch_size=500)

    return jax.jit(find, compiler_options=OPTIMISED)


def random_counts(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters from .05 to 1e5, half of them of about equal alpha and beta."""
    alpha = np.exp(rng.uniform(np.log(0.05), np.log(1e5), size))
    beta = np.exp(rng.uniform(np.log(0.05), np.log(1e5), size))
    near = alpha * np.exp(rng.normal(0, 0.5, size))
    return alpha, np.where(rng.random(size) < 0.5, near, beta)


def test_a_task_that_was_hit_before_is_not_hit_again() -> None:
    """Neither by two hits of a chunk nor after an earlier chunk; later rows are not looked at."""
    hits = jnp.full((5, 6), -1, jnp.int32)
    hits = hits.at[0, 4].set(3).at[1, 0].set(9).at[2, 0].set(5)
    nobody = thinning.Result(hits[0], jnp.zeros(6), jnp.int32(0), jnp.float32(0))
    progress = thinning._Progress(jnp.int32(2), jnp.float32(0), hits, nobody)
    found = thinning._hit_before(jnp.array([7, 7, 3, 9, 5, 1], jnp.int32), progress)
    assert found.tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("target", [0.5, 0.35, 0.2, 0.05])
@pytest.mark.parametrize("width", [0.0, 1e-3, 1e-2])
def test_the_density_is_bounded_over_the_whole_width(target: float, width: float) -> None:
    rng = np.random.default_rng(0)
    alpha, beta = random_counts(rng, 20_000)
    grid = np.linspace(1, 12, 12)[:, None] ** 1.5
    alpha = np.concatenate([alpha, np.broadcast_to(grid, (12, 12)).ravel(), [1.0, 1 + 1e-6]])
    beta = np.concatenate([beta, np.broadcast_to(grid.T, (12, 12)).ravel(), [1.0, 1 + 1e-6]])
    bound = np.asarray(
        thinning.density_bound(
            jnp.asarray(alpha, jnp.float32),
            jnp.asarray(beta, jnp.float32),
            jnp.float32(target),
            jnp.float32(width),
        ),
        np.float64,
    )
    assert np.all(np.isfinite(bound))
    for x in np.linspace(target - width, target + width, 5):
        density = stats.beta.pdf(x, alpha, beta)
        relevant = density > 1e-30  # below that neither is ever drawn
        assert np.all(density[relevant] <= bound[relevant] * (1 + 1e-4))


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 3e-4), (True, 1e-8)])
def test_log_density_against_scipy(x64: bool, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    alpha, beta = random_counts(rng, 20_000)
    target, offset = rng.uniform(0.05, 0.95, 20_000), rng.uniform(-0.01, 0.01, 20_000)
    with jax.enable_x64(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        given = [jnp.asarray(x, dtype) for x in (alpha, beta, target, offset)]
        ours = np.asarray(log_beta_density(*given))
        a, b, t, d = (np.asarray(x, np.float64) for x in given)
    theirs = stats.beta.logpdf(t + d, a, b)
    assert np.all(np.isfinite(ours))
    np.testing.assert_allclose(ours[theirs > -30], theirs[theirs > -30], atol=tolerance)


def test_random_below_agrees_with_whole_numbers() -> None:
    rng = np.random.default_rng(2)
    bits, more = rng.integers(0, 2**32, (2, 2000), dtype=np.uint64)
    size = np.concatenate([rng.integers(1, 2**31, 1990), np.repeat([1, 2**31 - 1], 5)])
    ours = random_below(
        jnp.asarray(bits, jnp.uint32), jnp.asarray(more, jnp.uint32), jnp.asarray(size, jnp.int32)
    )
    pairs = zip(bits, more, size, strict=True)
    exact = [((int(hi) << 32 | int(lo)) * int(n)) >> 64 for hi, lo, n in pairs]
    np.testing.assert_array_equal(ours, exact)


def test_pick_draws_in_proportion_and_never_what_weighs_nothing() -> None:
    rng = np.random.default_rng(3)
    weights = np.where(rng.random(thinning.FANOUT) < 0.5, 0, rng.gamma(0.5, size=thinning.FANOUT))
    runs = 200_000
    rows = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), (runs, thinning.FANOUT))
    uniform = jax.random.uniform(jax.random.key(0), (runs,))
    counts = np.bincount(np.asarray(thinning.pick(rows, uniform)), minlength=thinning.FANOUT)
    assert counts[weights == 0].sum() == 0
    expected = runs * weights / weights.sum()
    used = expected > 5
    rest = [counts[~used].sum()], [expected[~used].sum()]
    observed, wanted = (
        np.concatenate(x) for x in ((counts[used], rest[0]), (expected[used], rest[1]))
    )
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > FAILURE


def counts_of(
    kind: str, rng: np.random.Generator, size: int, target: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    if kind == "warm":
        return rng.uniform(0.3, 12, size), rng.uniform(0.3, 12, size)
    if kind == "cold":
        return np.ones(size), np.ones(size)
    if kind == "solved":  # the race must give up: next to nothing is near the target
        return rng.uniform(30, 60, size), np.ones(size)
    few = np.arange(size) < 10  # a few very sharp ones at the target, the rest far away
    return np.where(few, 1e4 * target, 1.0), np.where(few, 1e4 * (1 - target), 25.0)


@pytest.mark.parametrize("target", [0.5, 0.2])
@pytest.mark.parametrize("kind", ["warm", "cold", "solved", "sharp"])
def test_small_pool_inclusions_pairs_and_distance(kind: str, target: float) -> None:
    """Against brute force with NumPy, race forced: also where it falls back on drawing all."""
    rng = np.random.default_rng(4)
    size, batch, runs = 200, 4, 3000
    alpha, beta = counts_of(kind, rng, size, target)
    given = [jnp.asarray(x, jnp.float32) for x in (alpha, beta)]
    allowed, p = jnp.ones(size, bool), jnp.float32(target)
    keys = jax.random.split(jax.random.key(5), runs)
    ids, draws, valid = (np.asarray(x) for x in nearest_of_each(batch)(keys, *given, allowed, p))
    assert valid.all()
    brute = [brute_force(rng, alpha, beta, batch, target) for _ in range(runs)]
    ours, theirs = membership(ids, size), membership(np.array([x for x, _ in brute]), size)
    assert np.all(ours.sum(1) == batch)  # distinct
    if kind != "sharp":
        assert_same_rates(ours.sum(0), theirs.sum(0), runs)
    if kind == "sharp":  # ten tasks: each pair of them is met often
        upper = np.triu_indices(size, 1)
        assert_same_rates((ours.T @ ours)[upper], (theirs.T @ theirs)[upper], runs)
    else:
        assert_same_rates(together(ours), together(theirs), runs)
    distance = np.abs(draws - target)
    assert np.all(np.diff(distance, axis=1) >= -1e-6)
    last = [distance for _, distance in brute]
    assert stats.ks_2samp(distance[:, -1], last).pvalue > FAILURE
    if kind == "sharp":
        assert_same_rates(ours[:, :10].sum(0), theirs[:, :10].sum(0), runs)


@pytest.mark.parametrize("concentrated", [False, True])
def test_large_pool_inclusions_by_class_and_distance(concentrated: bool) -> None:
    rng = np.random.default_rng(6)
    size, batch, runs, classes = 120_000, 64, 200, 12
    kind = np.arange(size) % classes
    alpha, beta = rng.uniform(0.4, 20, (2, classes))
    if concentrated:
        alpha[:3], beta[:3] = [2e3, 1e5, 40], [2.1e3, 1.003e5, 44]
    alpha, beta = alpha[kind], beta[kind]
    given = [jnp.asarray(x, jnp.float32) for x in (alpha, beta)]
    allowed, p = jnp.ones(size, bool), jnp.float32(0.5)
    ours, theirs = np.zeros((2, classes))
    ours_last, theirs_last = [], []
    for key in jax.random.split(jax.random.key(7), runs):
        ids, draws, valid = nearest(batch)(key, *given, allowed, p)
        assert bool(valid.all())
        ours += np.bincount(kind[np.asarray(ids)], minlength=classes)
        ours_last.append(float(jnp.abs(draws - 0.5).max()))
        theirs_ids, last = brute_force(rng, alpha, beta, batch, 0.5)
        theirs += np.bincount(kind[theirs_ids], minlength=classes)
        theirs_last.append(last)
    assert_same_rates(ours, theirs, runs * batch)
    assert stats.ks_2samp(ours_last, theirs_last).pvalue > FAILURE


def test_a_biased_race_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail: without the thinning by density the same counts differ."""
    rng = np.random.default_rng(8)
    size, batch, runs = 200, 4, 6000
    alpha, beta = counts_of("warm", rng, size)
    given = [jnp.asarray(x, jnp.float32) for x in (alpha, beta)]
    monkeypatch.setattr(thinning, "_accept", lambda candidate, *_: candidate.runs)
    keys = jax.random.split(jax.random.key(5), runs)
    find = partial(
        thinning.nearest, allowed=jnp.ones(size, bool), target=jnp.float32(0.5), count=batch
    )
    each = lambda keys: jax.lax.map(lambda key: find(key, *given)[0], keys, batch_size=500)  # noqa: E731
    ids = jax.jit(each, compiler_options=OPTIMISED)(keys)
    brute = [brute_force(rng, alpha, beta, batch, 0.5)[0] for _ in range(runs)]
    with pytest.raises(AssertionError):
        assert_same_rates(
            membership(np.asarray(ids), size).sum(0), membership(np.array(brute), size).sum(0), runs
        )


def test_masks_and_too_few() -> None:
    size = 5000
    alpha = jnp.full(size, 3.0)
    allowed = jnp.arange(size) % 2 == 0
    find = lambda key, allowed: nearest(16)(key, alpha, alpha, allowed, jnp.float32(0.5))  # noqa: E731
    for seed in range(20):
        ids, _, valid = find(jax.random.key(seed), allowed)
        assert bool(valid.all())
        assert np.all(np.asarray(ids) % 2 == 0)
    ids, draws, valid = find(jax.random.key(0), jnp.arange(size) < 3)
    assert int(valid.sum()) == 3
    assert sorted(np.asarray(ids)[:3].tolist()) == [0, 1, 2]
    assert np.all(np.asarray(ids)[3:] == -1)
    assert np.all(np.isfinite(draws))
    assert not bool(find(jax.random.key(0), jnp.zeros(size, bool))[2].any())


def test_a_large_pool_is_not_drawn_whole() -> None:
    """The race itself finds the batch: what makes it quick, at first and after evidence."""
    rng = np.random.default_rng(9)
    warm = jnp.asarray(rng.uniform(1, 17, (2, 200_000)), jnp.float32)
    target, zero = jnp.float32(0.5), jnp.float32(0)
    for alpha, beta in (warm, jnp.ones((2, 200_000))):

        def measure(
            width: jax.Array, alpha: jax.Array = alpha, beta: jax.Array = beta
        ) -> tuple[jax.Array, jax.Array]:
            rates = thinning.hit_rate(alpha, beta, target, width)
            return thinning.block_sums(rates), jnp.max(rates)

        blocks, _ = measure(zero)
        window = thinning.choose_window(measure, jnp.sum(blocks), target, 512)
        assert float(window.length * jnp.sum(window.block_rates)) > 3 * 512


def test_a_sweep_does_not_draw_all_unless_it_must() -> None:
    """Under vmap the draws of all tasks stay inside the loop that seldom turns."""
    runs, size = 4, 5000
    keys, counts = jax.random.split(jax.random.key(0), runs), jnp.full((runs, size), 3.0)
    find = partial(thinning.nearest, allowed=jnp.ones(size, bool), target=jnp.float32(0.5), count=4)
    compiled = jax.jit(jax.vmap(find)).lower(keys, counts, counts).compile().as_text()
    assert compiled is not None
    bits = f"= u32[{runs},{size}]"
    assert bits in compiled  # drawn somewhere
    assert bits not in compiled[compiled.index("\nENTRY") :]
