"""Quotas and exploration hold for what is handed out, however batches are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.ledger import Makeup, Visit
from bots_jax.choice.batch import kinds_of_places, make_plan

PLANS = st.tuples(
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.lists(st.integers(0, 4), min_size=1, max_size=4)
).filter(lambda plan: sum(plan[1]) > 0)


@given(PLANS, st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None, max_examples=200)
def test_each_kind_gets_its_share_of_any_cuts(
    plan: tuple[float, list[int]], cuts: list[tuple[int, bool]]
) -> None:
    """Batches are selected whole; now and then what is left of one goes back to the pool."""
    exploration, quotas = plan
    kinds = kinds_of_places(make_plan(sum(quotas), exploration, quotas))
    makeup = Makeup(kinds)
    got = dict.fromkeys(kinds, 0)
    spare: list[int] = []
    total = 0
    for count, returned in cuts:
        while len(spare) < count:
            spare.extend(kinds)
        taken = makeup.take(spare, count)
        assert sum(taken) == count
        for kind, now in zip(spare, taken, strict=True):
            got[kind] += now
        spare = [] if returned else [k for k, now in zip(spare, taken, strict=True) if not now]
        total += count
        for kind, number in got.items():
            wanted = total * kinds.count(kind) / len(kinds)
            assert abs(number - wanted) < len(got) + 1


def test_what_a_kind_cannot_give_is_not_made_up_for_without_end() -> None:
    makeup = Makeup((0, 0, 3, 3))
    for _ in range(50):
        makeup.take([0, 0, 0], 2)  # a domain that has no task left
    got = sum(np.array(makeup.take([0, 0, 3, 3], 2)) @ [0, 0, 1, 1] for _ in range(20))
    assert 20 < got <= 26


def test_quotas_hold_for_cut_batches() -> None:
    for n in (1, 2, 3, 5, 7):
        sampler = TaskSampler(
            bots(batch_size=4, rollouts=1, quotas=(2, 2)), num_tasks=40, domains=np.arange(40) // 20
        )
        counts = np.zeros(2, int)
        for _ in range(20):
            batch = sampler.next_batch(n, eligible=np.ones(40, bool))
            counts += np.bincount(batch.rows // 20, minlength=2)
            sampler.observe(batch.task_ids, np.ones(n), 1, batch.visits)
        assert abs(counts[0] - counts[1]) <= 1


def test_exploration_holds_for_cut_batches() -> None:
    """Of 120 tasks handed out one by one a tenth is drawn uniformly: their rate is 0."""
    for batch_size, slack in ((10, 1), (4, 12)):  # by chance, where it is no whole number
        sampler = TaskSampler(
            bots(batch_size=batch_size, rollouts=1, exploration=0.1), num_tasks=80
        )
        drawn = 0
        for _ in range(120):
            batch = sampler.next_batch(1, eligible=np.ones(80, bool))
            drawn += int(np.sum(batch.rate == 0))
            sampler.observe(batch.task_ids, [1], 1, batch.visits)
        assert abs(drawn - 12) <= slack


def test_what_is_owed_is_saved() -> None:
    def make() -> TaskSampler:
        return TaskSampler(
            bots(batch_size=4, rollouts=1, quotas=(1, 3)), num_tasks=40, domains=np.arange(40) // 20
        )

    one = make()
    one.next_batch(3)
    two = make()
    two.load_state_dict(one.state_dict(), in_flight="keep")
    for n in (1, 2, 3, 1):
        np.testing.assert_array_equal(one.next_batch(n).rows, two.next_batch(n).rows)
    assert one.state_dict()["host"] == two.state_dict()["host"]
    assert Visit(0, 0, 0.5).kind == 0
