"""How a batch is put together from scores, domains, quotas and a uniform share, against a loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.choice.batch import Plan, choose, lowest, make_plan, parts_of

TASKS, DOMAINS = 40, 3
SCORES = np.random.default_rng(0).permutation(TASKS) / TASKS
DOMAIN = np.random.default_rng(1).integers(0, DOMAINS, TASKS)
ALLOWED = np.random.default_rng(2).random(TASKS) < 0.6
ALLOWED &= (DOMAIN != 2) | (np.arange(TASKS) < 12)  # few of the last


@partial(jax.jit, static_argnums=3)
def put_together(rng_key: Any, allowed: Any, domain: Any, plan: Plan) -> tuple[Any, ...]:
    scores = jnp.asarray(SCORES, jnp.float32)

    def rank(key: Any, allowed: Any, count: int) -> Any:
        ids, valid = lowest(None, scores, allowed, count)
        return ids, scores[ids] + 1, valid

    return choose(rng_key, rank, allowed, domain, plan)


def chosen(plan: Plan, domain: Any, seed: int = 0, allowed: Any = ALLOWED) -> tuple[Any, ...]:
    place = None if domain is None else jnp.asarray(domain, jnp.int32)
    told = put_together(jax.random.key(seed), jnp.asarray(allowed), place, plan)
    return tuple(np.asarray(part) for part in told)


def best(allowed: np.ndarray, count: int) -> list[int]:
    ids = np.flatnonzero(allowed)
    return ids[np.argsort(SCORES[ids])][:count].tolist()


def test_domains_without_quotas_and_one_quota_are_no_matter() -> None:
    """The same batch, whatever the domains."""
    exploration = 0.5
    plain = chosen(Plan(8, exploration, None), None)
    for plan, domain in (
        (Plan(8, exploration, None), DOMAIN),
        (Plan(8, exploration, None), 2 - DOMAIN),
        (Plan(8, exploration, (8,)), None),
    ):
        for one, other in zip(plain, chosen(plan, domain), strict=True):
            np.testing.assert_array_equal(one, other)
    ranked = 8 - round(8 * exploration)
    assert plain[0][:ranked].tolist() == best(ALLOWED, ranked)
    np.testing.assert_allclose(plain[1][:ranked], SCORES[plain[0][:ranked]] + 1, rtol=1e-6)
    np.testing.assert_array_equal(plain[1][ranked:], 0)  # of a task drawn uniformly there is none
    assert len(set(plain[0].tolist())) == 8
    assert np.all(ALLOWED[plain[0]] & plain[2])


@pytest.mark.parametrize(
    ("quotas", "exploration"), [((2, 3, 3), 0.3), ((1, 0, 12), 0.0), ((0, 1, 7), 0.3)]
)
def test_quotas_are_filled_domain_by_domain(quotas: tuple[int, ...], exploration: float) -> None:
    """Places that a domain cannot fill go to the best of those left, of any domain."""
    plan = make_plan(sum(quotas), exploration, quotas)
    for seed in range(4):
        ids, draws, valid = chosen(plan, DOMAIN, seed)
        assert np.all(valid)
        assert np.all(ALLOWED[ids])
        assert len(set(ids.tolist())) == len(ids)
        start, missing = 0, []
        for part in parts_of(plan):
            here, inside = ids[start : start + part.places], ALLOWED & (part.domain == DOMAIN)
            can = min(part.places, inside.sum())
            assert np.sum(DOMAIN[here] == part.domain) >= can
            sure = min(part.places - part.explored - (part.remainder > 0), can)
            assert here[:sure].tolist() == best(inside, sure)
            missing += here[DOMAIN[here] != part.domain].tolist()
            start += part.places
        left = ALLOWED & ~np.isin(np.arange(TASKS), np.setdiff1d(ids, missing))
        assert sorted(missing) == sorted(best(left, len(missing)))
        ranked = draws > 0
        np.testing.assert_allclose(draws[ranked], SCORES[ids[ranked]] + 1, rtol=1e-6)


def test_too_few_are_marked() -> None:
    few = np.arange(TASKS) < 3
    for plan, domain in ((Plan(8, 0.25, None), None), (Plan(8, 0.25, (4, 4, 0)), DOMAIN)):
        ids, draws, valid = chosen(plan, domain, allowed=few)
        assert valid.sum() == 3
        assert sorted(ids[valid].tolist()) == [0, 1, 2]
        np.testing.assert_array_equal(ids[~valid], -1)
        np.testing.assert_array_equal(draws[~valid], 0)


def test_plans_at_the_border() -> None:
    assert make_plan(4, 0, None) == Plan(4, 0.0, None)
    assert make_plan(4, 1, (0, 4)) == Plan(4, 1.0, (0, 4))
    for wrong in (-1e-9, 1 + 1e-9, np.nan):
        with pytest.raises(ValueError, match=r"exploration=.* must lie in"):
            make_plan(4, wrong, None)
    with pytest.raises(ValueError, match="quotas=-1 must be an integer of at least 0"):
        make_plan(4, 0.0, (-1, 5))
    with pytest.raises(ValueError, match=r"quotas=\(1, 2\) sum to 3, not to batch_size=4"):
        make_plan(4, 0.0, (1, 2))
