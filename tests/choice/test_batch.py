"""The selected set has the distribution of brute-force Thompson sampling, and its options."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax import Evidence, Selector, Settings, State, bots, sharding
from bots_jax.choice.batch import kinds_of_places, lowest, make_plan, parts_of

# A right engine fails a test of this file with at most this probability.
FAILURE = 1e-6


def with_counts(selector: Selector, alpha: np.ndarray, beta: np.ndarray) -> State:
    """A state whose posteriors are Beta(alpha, beta), reached by evidence alone."""
    state = selector.init(
        num_tasks=len(alpha), settings=Settings(prior_successes=0.25, prior_failures=0.25)
    )
    evidence = Evidence(np.arange(len(alpha)), alpha - 0.25, alpha + beta - 0.5)
    return selector.update(state, evidence)[0]


def brute_force(
    rng: np.random.Generator, alpha: np.ndarray, beta: np.ndarray, batch: int, target: float
) -> tuple[np.ndarray, float]:
    """Draw every Beta, take the nearest: the ids and the largest distance among them."""
    distance = np.abs(rng.beta(alpha, beta) - target)
    ids = np.argpartition(distance, batch - 1)[:batch]
    return ids, float(distance[ids].max())


def assert_same_rates(ours: np.ndarray, theirs: np.ndarray, runs: int) -> None:
    """Two-sample z test on many counts of `runs`, Bonferroni corrected."""
    pooled = (ours + theirs) / (2 * runs)
    spread = np.sqrt(2 * runs * pooled * (1 - pooled))
    used = runs * pooled * (1 - pooled) > 20
    z = np.abs(ours - theirs)[used] / spread[used]
    assert used.sum() > 0
    assert z.max() < stats.norm.isf(FAILURE / (2 * used.sum()))


def together(chosen: np.ndarray, bands: int = 10) -> np.ndarray:
    """How many batches hold tasks of both of two bands of the pool, for each pair of bands."""
    held = chosen.reshape(len(chosen), bands, -1).any(axis=2).astype(np.int64)
    return (held.T @ held)[np.triu_indices(bands, 1)]


def membership(ids: np.ndarray, size: int) -> np.ndarray:
    chosen = np.zeros((len(ids), size), np.int32)
    np.put_along_axis(chosen, ids, 1, axis=1)
    return chosen


@pytest.mark.parametrize("target", [0.5, 0.2])
def test_small_pool_inclusions_pairs_and_distance(target: float) -> None:
    rng = np.random.default_rng(11)
    size, batch, runs = 30, 4, 20_000
    alpha, beta = rng.uniform(0.3, 12, size), rng.uniform(0.3, 12, size)
    selector = bots(batch_size=batch, forgetting=0.0, target=target)
    state = with_counts(selector, alpha, beta)
    keys = jax.random.split(jax.random.key(0), runs)
    chosen = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1]))(keys)
    brute = [brute_force(rng, alpha, beta, batch, target) for _ in range(runs)]
    ours = membership(np.asarray(chosen.task_ids), size)
    theirs = membership(np.array([ids for ids, _ in brute]), size)
    assert_same_rates(ours.sum(0), theirs.sum(0), runs)
    upper = np.triu_indices(size, 1)
    assert_same_rates((ours.T @ ours)[upper], (theirs.T @ theirs)[upper], runs)
    last = np.abs(np.asarray(chosen.rate) - target).max(axis=1)
    assert stats.ks_2samp(last, [distance for _, distance in brute]).pvalue > FAILURE


def test_large_pool_inclusions_by_class_and_distance() -> None:
    rng = np.random.default_rng(12)
    size, batch, runs, classes = 100_000, 64, 150, 10
    kind = np.arange(size) % classes
    alpha, beta = rng.uniform(0.5, 20, classes)[kind], rng.uniform(0.5, 20, classes)[kind]
    selector = bots(batch_size=batch, forgetting=0.0)
    state = with_counts(selector, alpha, beta)
    ours, theirs = np.zeros((2, classes))
    ours_last, theirs_last = [], []
    for key in jax.random.split(jax.random.key(1), runs):
        _, selection = selector.select(key, state)
        ours += np.bincount(kind[np.asarray(selection.task_ids)], minlength=classes)
        ours_last.append(float(np.abs(selection.rate - 0.5).max()))
        ids, last = brute_force(rng, alpha, beta, batch, 0.5)
        theirs += np.bincount(kind[ids], minlength=classes)
        theirs_last.append(last)
    assert_same_rates(ours, theirs, runs * batch)
    assert stats.ks_2samp(ours_last, theirs_last).pvalue > FAILURE


def test_a_biased_rule_is_caught() -> None:
    """The same z test tells Beta(3, 3) from Beta(10, 3): it can fail."""
    rng = np.random.default_rng(13)
    alpha = np.full(10, 3.0)
    skewed = alpha + np.where(np.arange(10) < 5, 7.0, 0.0)
    runs = 20_000
    left = [brute_force(rng, alpha, alpha, 2, 0.5)[0] for _ in range(runs)]
    right = [brute_force(rng, skewed, alpha, 2, 0.5)[0] for _ in range(runs)]
    with pytest.raises(AssertionError):
        assert_same_rates(
            membership(np.array(left), 10).sum(0), membership(np.array(right), 10).sum(0), runs
        )


def test_posterior_mean_takes_the_nearest() -> None:
    selector = bots(batch_size=3, choice="mean", forgetting=0.0)
    alpha = np.array([1.0, 9, 4, 5, 6, 2])
    _, selection = selector.select(jax.random.key(0), with_counts(selector, alpha, 10 - alpha))
    np.testing.assert_array_equal(selection.task_ids[:1], [3])
    assert set(np.asarray(selection.task_ids).tolist()) == {2, 3, 4}
    np.testing.assert_allclose(selection.rate[0], 0.5, rtol=1e-6)


def test_temperature_is_softmax_without_replacement() -> None:
    """Inclusion counts against NumPy's sequential draws from softmax(-|p - p*| / tau)."""
    rng = np.random.default_rng(14)
    size, batch, runs, tau = 8, 3, 20_000, 0.1
    alpha = np.linspace(1, 9, size)
    selector = bots(batch_size=batch, choice="mean", temperature=tau, forgetting=0.0)
    state = with_counts(selector, alpha, 10 - alpha)
    keys = jax.random.split(jax.random.key(2), runs)
    chosen = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1].task_ids))(keys)
    weights = np.exp(-np.abs(alpha / 10 - 0.5) / tau)
    weights /= weights.sum()
    drawn = [rng.choice(size, batch, replace=False, p=weights) for _ in range(runs)]
    ours, theirs = (membership(np.asarray(ids), size).sum(0) for ids in (chosen, drawn))
    assert_same_rates(ours, theirs, runs)


def test_ties_are_broken_at_random() -> None:
    """Untouched tasks tie at the posterior mean; each must be as likely as any other."""
    selector = bots(batch_size=5, choice="mean")
    state = selector.init(num_tasks=50)
    runs = 4000
    keys = jax.random.split(jax.random.key(3), runs)
    ids = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1].task_ids))(keys)
    counts = membership(np.asarray(ids), 50).sum(0)
    # Without replacement the counts vary less than a multinomial's: the test is cautious.
    assert stats.chisquare(counts).pvalue > FAILURE
    assert counts.min() > 0


def test_quotas_exploration_and_spare_places() -> None:
    domains = np.repeat([0, 1, 2], [30, 30, 2])
    selector = bots(batch_size=10, quotas=(6, 1, 3), exploration=0.5)
    state = selector.init(num_tasks=62, domains=domains)
    for step in range(3):
        _, selection = selector.select(jax.random.key(step), state)
        ids = np.asarray(selection.task_ids)
        assert np.all(selection.valid)
        assert len(set(ids.tolist())) == 10
        counts = np.bincount(domains[ids], minlength=3)
        assert counts[2] == 2  # the third place of a domain of two goes elsewhere
        assert counts[0] >= 6
        assert counts[1] >= 1


def test_exploration_reaches_tasks_that_the_rule_would_never_take() -> None:
    alpha = np.where(np.arange(40) < 20, 5.0, 500.0)
    beta = np.where(np.arange(40) < 20, 5.0, 0.5)
    runs = 500
    for share, expected in ((0.0, 0.0), (0.5, 2 * 20 / 38)):
        selector = bots(batch_size=4, exploration=share, forgetting=0.0)
        state = with_counts(selector, alpha, beta)
        keys = jax.random.split(jax.random.key(4), runs)
        ids = jax.vmap(lambda key, s=selector, t=state: s.select(key, t)[1].task_ids)(keys)
        mastered = np.sum(np.asarray(ids) >= 20, axis=1).mean()
        assert mastered == pytest.approx(expected, abs=6 * np.sqrt(0.5 / runs) if share else 0)


@pytest.mark.parametrize(
    ("batch", "share", "quotas"),
    [(4, 0.1, None), (10, 0.3, None), (5, 0.5, None), (6, 0.15, (3, 1, 2)), (7, 1.0, (4, 3))],
)
def test_a_share_that_is_no_whole_number_is_right_on_average(
    batch: int, share: float, quotas: tuple[int, ...] | None
) -> None:
    """Drawn places report the rate 0, and a batch is never more than one of them off."""
    selector = bots(batch_size=batch, exploration=share, quotas=quotas, forgetting=0.0)
    domains = None if quotas is None else np.arange(60) % len(quotas)
    state = selector.init(num_tasks=60, domains=domains, settings={"prior_successes": 20.0})
    runs = 4000
    keys = jax.random.split(jax.random.key(8), runs)
    chosen = jax.jit(jax.vmap(lambda key: selector.select(key, state)[1]))(keys)
    ids = np.sort(chosen.task_ids)
    assert np.all(chosen.valid)
    assert np.all(ids[:, 1:] > ids[:, :-1])
    drawn = np.asarray(chosen.rate) == 0
    mean, most = share * batch, np.ceil(share * batch - 1e-6)
    assert np.all((drawn.sum(1) >= np.floor(mean + 1e-6)) & (drawn.sum(1) <= most))
    spread = np.sqrt(0.25 / runs)
    assert drawn.sum(1).mean() == pytest.approx(mean, abs=5 * spread)
    if quotas is not None:
        of_task = np.asarray(domains)[np.asarray(chosen.task_ids)]
        for domain, quota in enumerate(quotas):
            assert np.all(np.sum(of_task == domain, axis=1) == quota)
            found = np.sum(drawn & (of_task == domain), axis=1)
            assert found.mean() == pytest.approx(share * quota, abs=5 * spread)


def test_exploration_fills_a_batch_as_large_as_the_pool() -> None:
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        selector = bots(batch_size=9, exploration=share)
        for seed in range(5):
            _, chosen = selector.select(jax.random.key(seed), selector.init(num_tasks=9))
            assert sorted(np.asarray(chosen.task_ids).tolist()) == list(range(9))


def test_kinds_of_places() -> None:
    assert kinds_of_places(make_plan(4, 0.0, None)) == (0, 0, 0, 0)
    assert kinds_of_places(make_plan(4, 0.1, None)) == (0, 0, 0, 1)
    assert kinds_of_places(make_plan(4, 0.25, None)) == (0, 0, 0, 2)
    assert kinds_of_places(make_plan(5, 0.5, (3, 0, 2))) == (0, 1, 2, 3, 5)
    assert [part.domain for part in parts_of(make_plan(5, 0.5, (3, 0, 2)))] == [0, 2]


@pytest.mark.parametrize("count", [1, 7, 20, 25])
def test_lowest_agrees_with_sorting(count: int) -> None:
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 6, 20).astype(np.float32)  # many ties
    allowed = rng.random(20) < 0.7
    ids, valid = lowest(jax.random.key(0), jnp.asarray(scores), jnp.asarray(allowed), count)
    taken = np.asarray(ids)[np.asarray(valid)]
    assert len(set(taken.tolist())) == min(count, allowed.sum()) == len(taken)
    assert np.all(allowed[taken])
    np.testing.assert_array_equal(scores[taken], np.sort(scores[allowed])[: len(taken)])


@pytest.mark.parametrize("size", [4 * 64 * 5, 4 * 64 * 5 + 37, 64 * 5])
def test_top_k_by_blocks_is_top_k(size: int) -> None:
    """Also among equals, which stand in the order of their ids."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = jnp.asarray(rng.integers(0, 3 + 40 * (seed % 2), size).astype(np.float32))
        for ours, exact in zip(sharding.top_k(values, 5), jax.lax.top_k(values, 5), strict=True):
            np.testing.assert_array_equal(ours, exact)
