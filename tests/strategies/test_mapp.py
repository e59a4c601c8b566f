"""MaPP: V against numerical integration, and draws in proportion to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from bots_jax import Evidence
from bots_jax.strategies import mapp
from bots_jax.strategies.worth import chance_of_mixed_group
from bots_jax.types import Array
from tests.choice.test_batch import assert_same_rates, membership

CASES = [(1.0, 1.0), (0.3, 2.0), (9.0, 1.0), (1.0, 40.0), (250.0, 3.5), (700.0, 700.0)]


@pytest.mark.parametrize("group", [2, 8, 16])
@pytest.mark.parametrize("counts", CASES)
def test_mixed_chance_is_the_integral(counts: tuple[float, float], group: int) -> None:
    posterior = stats.beta(*counts)
    expected, _ = integrate.quad(
        lambda p: (1 - p**group - (1 - p) ** group) * posterior.pdf(p),
        0,
        1,
        points=(posterior.ppf(0.01), posterior.median(), posterior.ppf(0.99)),
        limit=500,
    )
    ours = chance_of_mixed_group(*(jnp.asarray(value, jnp.float32) for value in counts), group)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_mixed_chance_keeps_its_digits_near_0() -> None:
    """Where all alike has the chance 1 - 4e-6, float32 has no digits left in 1 less it."""
    for alpha, beta in ((1e6, 0.5), (0.5, 1e6)):
        ours = chance_of_mixed_group(jnp.float32(alpha), jnp.float32(beta), 8)
        first_order = 8 * 0.5 / (1e6 + 0.5)  # the second is 1e-5 of it
        assert float(ours) == pytest.approx(first_order, rel=1e-4)
    tiny = chance_of_mixed_group(jnp.float32(1e30), jnp.float32(1e-30), 8)
    assert float(tiny) > 0
    assert np.isfinite(np.log(float(tiny)))


def test_batches_are_sequential_draws_in_proportion_to_v() -> None:
    size, batch, runs = 8, 3, 20_000
    selector = mapp(batch_size=batch, rollouts=8, keep=1.0)
    won = np.array([0, 0, 8, 1, 4, 16, 80, 79], float)
    tried = np.array([0, 8, 8, 8, 8, 16, 80, 80], float)
    state, _ = selector.update(selector.init(num_tasks=size), Evidence(np.arange(size), won, tried))

    def chosen(key: Array) -> Array:
        return selector.select(key, state)[1].task_ids

    ids = jax.jit(jax.vmap(chosen))(jax.random.split(jax.random.key(0), runs))
    alpha, beta = 1 + won, 1 + tried - won
    log_b = special.betaln(alpha, beta)
    chance = 1 - np.exp(special.betaln(alpha + 8, beta) - log_b)
    chance -= np.exp(special.betaln(alpha, beta + 8) - log_b)
    rng = np.random.default_rng(0)
    p = chance / chance.sum()
    drawn = np.array([rng.choice(size, batch, replace=False, p=p) for _ in range(runs)])
    ours, theirs = membership(np.asarray(ids), size), membership(drawn, size)
    assert_same_rates(ours.sum(0), theirs.sum(0), runs)
    first = [np.bincount(np.asarray(one)[:, 0], minlength=size) for one in (ids, drawn)]
    assert_same_rates(*first, runs)


def test_group_is_the_rollouts_unless_given() -> None:
    assert mapp(rollouts=12).static["group"] == 12
    assert mapp(rollouts=12, group=4).static["group"] == 4
    with pytest.raises(ValueError, match=r"rollouts=2\.5 is traced or no whole number"):
        mapp(rollouts=2.5)
    with pytest.raises(ValueError, match="group=1 must be an integer of at least 2"):
        mapp(group=1)
