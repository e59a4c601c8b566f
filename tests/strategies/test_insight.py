"""INSIGHT: the mutual information against direct sums and integrals in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bots_jax import Evidence
from bots_jax.strategies import insight
from bots_jax.strategies.insight import mutual_information


def oracle(alpha: float, beta: float, horizon: int) -> float:
    """Entropy of the posterior less its mean after K rewards, in float64.

    The other way round: I = h(p) - E[h(p | r)], by SciPy's entropies of Beta.
    """
    s = np.arange(horizon + 1)
    chance = stats.betabinom.pmf(s, horizon, alpha, beta)
    after = stats.beta.entropy(alpha + s, beta + horizon - s)
    return float(stats.beta.entropy(alpha, beta) - np.sum(chance * after))


@pytest.mark.parametrize("horizon", [1, 2, 8, 16])
@pytest.mark.parametrize(
    "counts", [(1.0, 1.0), (0.4, 3.0), (12.0, 2.0), (60.0, 90.0), (1.0, 300.0)]
)
def test_mutual_information_is_the_loss_of_entropy(
    counts: tuple[float, float], horizon: int
) -> None:
    ours = mutual_information(*(jnp.asarray(count, jnp.float32) for count in counts), horizon)
    assert float(ours) == pytest.approx(oracle(*counts, horizon), rel=2e-3, abs=2e-6 * horizon)


def test_one_reward_of_a_uniform_prior() -> None:
    """By hand: H = log 2 and E[h] = 1/2, so I = log 2 - 1/2."""
    one = jnp.float32(1)
    assert float(mutual_information(one, one, 1)) == pytest.approx(np.log(2) - 0.5, rel=1e-5)


def test_takes_the_best_by_the_equation() -> None:
    won = np.array([0, 4, 40, 1, 7, 2, 0, 8], float)
    tried = np.array([0, 8, 80, 8, 8, 8, 8, 8], float)
    selector = insight(batch_size=3, rollouts=8, keep=1.0, eta=2.0, target=0.4)
    state, _ = selector.update(selector.init(num_tasks=8), Evidence(np.arange(8), won, tried))
    _, chosen = selector.select(jax.random.key(0), state)
    alpha, beta = 1 + won, 1 + tried - won
    f = alpha / (alpha + beta)
    told = np.array([oracle(a, b, 8) for a, b in zip(alpha, beta, strict=True)])
    worth = f * (1 - f) * np.exp(-2 * (f - 0.4) ** 2) * told
    np.testing.assert_array_equal(chosen.task_ids, np.argsort(-worth)[:3])
    np.testing.assert_allclose(chosen.rate, f[np.asarray(chosen.task_ids)], rtol=1e-6)


def test_less_evidence_is_worth_more_at_the_same_mean() -> None:
    """What sets it apart from rules that look at the difficulty alone."""
    selector = insight(batch_size=1, rollouts=8, keep=1.0)
    evidence = Evidence(np.arange(3), [40.0, 4.0, 400.0], [80.0, 8.0, 800.0])
    state, _ = selector.update(selector.init(num_tasks=3), evidence)
    assert selector.select(jax.random.key(0), state)[1].task_ids[0] == 1


def test_thompson_draws_differ_and_the_mean_does_not() -> None:
    evidence = Evidence(np.arange(6), np.arange(1, 7.0), 8)
    for base, varies in (("mean", False), ("thompson", True)):
        selector = insight(batch_size=1, rollouts=8, base=base)
        state, _ = selector.update(selector.init(num_tasks=6), evidence)
        keys = jax.random.split(jax.random.key(0), 64)
        ids = jax.vmap(lambda key, s=selector, t=state: s.select(key, t)[1].task_ids)(keys)
        # No task is the best in more than half of the draws: 64 agree once in 2^63.
        assert (len(np.unique(ids)) > 1) == varies


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="eta=-1 must lie in"):
        insight(eta=-1)
    with pytest.raises(ValueError, match="base='median' is not known"):
        insight(base="median")
