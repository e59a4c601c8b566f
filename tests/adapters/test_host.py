"""The host wrapper: visits, steps, names, threads, and runs that go on after a kill."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import sys
import threading
import time
import warnings
from collections import Counter, deque
from pathlib import Path
from queue import SimpleQueue

import jax
import numpy as np
import pytest

from bots_jax import Evidence, bots
from bots_jax.adapters import ClosedError, NotEnoughTasksError, TaskSampler
from bots_jax.checkpoint import CheckpointError
from bots_jax.grouped.selector import enlarge
from bots_jax.pool.reference import ReferenceCounts

B, M = 4, 8
SELECTOR = bots(batch_size=B, rollouts=M)


def make(reference: np.ndarray, **more: object) -> TaskSampler:
    """Always the same shapes, so that little is compiled."""
    domains = np.arange(reference.shape[1]) % 3
    return TaskSampler(SELECTOR, reference, domains=domains, capacity=64, **more)  # type: ignore[arg-type]


def rates(task_ids: np.ndarray, step: int) -> np.ndarray:
    """What the rollouts of these tasks come to: a fixed function of task and step."""
    return np.array([(7 * int(task) + 3 * step) % (M + 1) for task in task_ids], float)


def run(sampler: TaskSampler, steps: int) -> list[list[int]]:
    chosen = []
    for step in range(steps):
        batch = sampler.next_batch()
        chosen.append(batch.rows.tolist())
        sampler.observe(batch.task_ids, rates(batch.rows, step), M, batch.visits)
    return chosen


def same_leaves(left: object, right: object) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def same_state(left: TaskSampler, right: TaskSampler) -> None:
    same_leaves(left.state, right.state)
    assert left.state_dict()["host"] == right.state_dict()["host"]


# --- steps ---------------------------------------------------------------------------------


def test_a_plain_trainer_makes_the_plain_loop(reference: np.ndarray) -> None:
    sampler = make(reference, seed=3)
    chosen = run(sampler, 5)
    info = sampler.advance()
    state = make(reference).state
    for step in range(5):
        key = jax.random.fold_in(jax.random.key(3), step)
        state, selection = SELECTOR.select(key, state)
        assert selection.task_ids.tolist() == chosen[step]
        evidence = Evidence(selection.task_ids, rates(selection.task_ids, step), M, selection.visit)
        # As the sampler does; `update` is one program of both, which may round otherwise.
        state, expected = SELECTOR.advance(SELECTOR.observe(state, evidence))
    same_leaves((sampler.state, info), (state, expected))


def test_a_step_is_a_batch_of_tasks_however_they_are_asked_for(reference: np.ndarray) -> None:
    sampler = make(reference)
    rows = [int(sampler.next_batch(1).rows[0]) for _ in range(2 * B)]
    assert sampler.step == 1
    assert len(set(rows)) == 2 * B
    assert rows[:B] == make(reference).next_batch().rows.tolist()
    large = make(reference).next_batch(2 * B + 1)  # several draws, no step between them
    assert len(set(large.rows.tolist())) == 2 * B + 1
    odd = make(reference, tasks_per_step=3)
    odd.next_batch(3)
    odd.next_batch(3)
    assert odd.step == 1
    assert odd.metrics()["in_flight"] == 6  # the one left over went back to the pool
    assert int(odd.state.pool.in_flight) == B + 3


def test_manual_steps(reference: np.ndarray) -> None:
    sampler = make(reference, auto_advance=False)
    for _ in range(3):
        sampler.next_batch()
    assert sampler.step == 0
    sampler.advance()
    assert sampler.step == 1


def test_too_few_tasks(reference: np.ndarray) -> None:
    sampler = make(reference)
    first = sampler.next_batch(59)
    with pytest.raises(NotEnoughTasksError, match=r"2 tasks were asked for and 1 can .* 59 are in"):
        sampler.next_batch(2)
    sampler.observe(first.task_ids[:2], [1, 2], M, first.visits[:2])
    assert len(sampler.next_batch(3).rows) == 3  # reported tasks may be chosen again
    with pytest.raises(NotEnoughTasksError):
        sampler.next_batch(1, eligible=np.zeros(64, bool))


@pytest.mark.parametrize("delay", [0, 2])
def test_a_fixed_delay_makes_threads_repeatable(reference: np.ndarray, delay: int) -> None:
    """A reader on another thread runs as far ahead as it may, at whatever moment."""

    def trained(seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        sampler = make(reference, delay=delay)
        queue: SimpleQueue = SimpleQueue()
        steps = 6

        def read() -> None:
            for _ in range(steps + delay):
                queue.put(sampler.next_batch())

        reader = threading.Thread(target=read)
        reader.start()
        seen = []
        for step in range(steps):
            batch = queue.get()
            seen.append(batch.rows.tolist())
            for at in rng.permutation(B):  # one task at a time
                time.sleep(rng.random() * 0.005)
                found = rates(batch.rows[at : at + 1], step)
                sampler.observe(batch.task_ids[at : at + 1], found, M)
        reader.join()
        assert sampler.metrics()["staleness_max"] == delay
        return seen

    first = trained(0)
    assert first == trained(1)
    assert first[0] == run(make(reference), 1)[0]


def test_a_fixed_delay_says_what_it_waits_for(reference: np.ndarray) -> None:
    sampler = make(reference, delay=0, patience=0.01)
    batch = sampler.next_batch()
    with pytest.raises(TimeoutError, match=r"delay=0 step 0 needs .* up to step 0: report or"):
        sampler.next_batch()
    sampler.abandon(batch.task_ids)
    assert len(sampler.next_batch().rows) == B
    sampler.patience = 60
    waiting = threading.Timer(0.05, sampler.close)
    waiting.start()
    with pytest.raises(ClosedError, match="while it waited"):
        sampler.next_batch()
    with pytest.raises(ValueError, match="expiry=2 must be above delay=3"):
        make(reference, delay=3, expiry=2)


# --- evidence --------------------------------------------------------------------------------


def test_late_repeated_and_out_of_order(reference: np.ndarray) -> None:
    sampler = make(reference)
    first, second = sampler.next_batch(), sampler.next_batch()
    sampler.next_batch()
    assert sampler.observe(second.task_ids, [1, 2, 3, 4], M, second.visits).all()
    assert sampler.observe(first.task_ids[::-1], [0, 8, 4, 4], M, first.visits[::-1]).all()
    assert not sampler.observe(first.task_ids, [1, 1, 1, 1], M, first.visits).any()
    assert not sampler.observe(second.task_ids, [1, 1, 1, 1], M).any()  # unnumbered, and late
    info = sampler.advance()
    assert (int(info.evaluated), float(info.trials)) == (2 * B, 2 * B * M)
    told = sampler.metrics()
    assert (told["stale"], told["completed"], told["total_trials"]) == (2 * B, 2 * B, 2 * B * M)
    assert told["effective_task_ratio"] == 6 / 8
    assert (told["staleness_mean"], told["staleness_max"]) == (1.5, 2)


def test_pieces_wait_for_one_another(reference: np.ndarray) -> None:
    sampler = make(reference)
    batch = sampler.next_batch()
    task, visit = batch.task_ids[:1], batch.visits[:1]
    sampler.observe(np.repeat(task, 3), [1, 0, 1], 1, visit[0], pieces=[0, 1, 2])
    repeated = sampler.observe(np.repeat(task, 2), [0, 1], 1, visit[0], pieces=[1, 3])
    assert repeated.tolist() == [False, True]
    assert int(sampler.advance().evaluated) == 0
    sampler.observe(np.repeat(task, 4), [1, 1, 0, 0], 1, visit[0], pieces=[4, 5, 6, 7])
    info = sampler.advance()
    assert (int(info.evaluated), float(info.trials), float(info.success_rate)) == (1, 8, 5 / 8)
    sampler.observe(batch.task_ids[1:2], [2], 3, complete=True)
    sampler.observe(batch.task_ids[2:3], [1], 2)
    assert sampler.abandon(batch.task_ids[1:], batch.visits[1:]) == 2
    assert float(sampler.advance().trials) == 5  # three, and the two of the abandoned one
    assert int(sampler.state.pool.in_flight) == 0


def test_evidence_that_never_comes(reference: np.ndarray) -> None:
    sampler = make(reference, expiry=2)
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids[:1], [1.0], 2, batch.visits[:1])
    infos = [sampler.advance() for _ in range(3)]
    assert [float(info.trials) for info in infos] == [0, 0, 2]
    assert [int(info.in_flight) for info in infos] == [B, B, 0]
    assert sampler.metrics()["expired"] == B
    assert not sampler.observe(batch.task_ids, [1] * B, M, batch.visits).any()


def test_unsolicited(reference: np.ndarray) -> None:
    sampler = make(reference)
    assert not sampler.observe([3, 4], [1, 2], M).any()
    assert sampler.observe([3, 4], [1, 2], M, unsolicited=True).all()
    assert int(sampler.advance().unsolicited) == 2


def test_what_is_handed_out_again_must_be_eligible(reference: np.ndarray) -> None:
    sampler = make(reference)
    first = sampler.next_batch().rows
    sampler.redeliver()
    mask = np.ones(64, bool)
    mask[first[[0, 2]]] = False
    second = sampler.next_batch(eligible=mask).rows
    assert mask[second].all()
    assert second[:2].tolist() == first[[1, 3]].tolist()
    assert sampler.next_batch(2).rows.tolist() == first[[0, 2]].tolist()  # in their turn


def test_what_is_handed_out_again_outlives_a_call_that_fails(
    reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed in flight, and in nobody's hands."""
    sampler = make(reference)
    first = sampler.next_batch(2).rows.tolist()
    sampler.redeliver()
    with pytest.raises(ValueError, match=r"eligible has shape \(7,\)"):
        sampler.next_batch(eligible=np.ones(7, bool))

    def stopped(eligible: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampler._engine, "select", stopped)
    with pytest.raises(KeyboardInterrupt):
        sampler.next_batch(2 * B)
    monkeypatch.undo()
    assert sampler.next_batch(2).rows.tolist() == first


def test_numbers_without_effect_are_refused(reference: np.ndarray) -> None:
    sampler = make(reference)
    before = sampler.state.settings
    with pytest.raises(ValueError, match=r"breadth=0\.3 has no effect on this 'bots'"):
        sampler.set_settings(breadth=0.3)
    assert sampler.state.settings is before


def test_a_step_does_not_wait_for_what_nobody_has(reference: np.ndarray) -> None:
    """A run with a fixed delay, resumed with half a batch reported, waited for the other half."""
    sampler = make(reference, delay=0, patience=0.01)
    first = sampler.next_batch()
    sampler.observe(first.task_ids[:1], 1, M, first.visits[:1])
    resumed = make(reference, delay=0, patience=0.01)
    resumed.load_state_dict(sampler.state_dict())
    batch = resumed.next_batch()
    assert len(batch.rows) == B
    assert batch.rows[: B - 1].tolist() == first.rows[1:].tolist()
    assert resumed.step == 0
    resumed.observe(batch.task_ids, 1, M, batch.visits)
    assert len(resumed.next_batch().rows) == B
    assert resumed.step == 1


def test_what_is_handed_out_again_may_expire_first(reference: np.ndarray) -> None:
    """Where the step had to end for the rest of a batch: a KeyError, and the rest was lost."""
    sampler = make(reference, expiry=1)
    old = sampler.next_batch()
    sampler.advance()
    young = sampler.next_batch(eligible=~np.isin(np.arange(64), old.rows))
    sampler.observe(young.task_ids, 1, M, young.visits)
    sampler.redeliver()
    batch = sampler.next_batch(B + 1)
    assert len(sampler.in_flight().rows) == len(batch.rows) == B + 1


def test_visits_end_when_fewer_rollouts_are_wanted_than_have_come(reference: np.ndarray) -> None:
    """They stayed open until one more came, which never does."""
    sampler = make(reference)
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, [1, 2, 3, 4], 4, batch.visits)
    saved = sampler.state_dict()
    fewer = make(reference, rollouts=4)
    fewer.load_state_dict(saved, in_flight="keep")
    sampler.set_settings(rollouts=4)
    for one in (sampler, fewer):
        assert not len(one.in_flight().rows)
        assert float(one.advance().trials) == 16
    same_leaves(sampler.state.pool, fewer.state.pool)


def test_a_repeated_piece_ends_nothing(reference: np.ndarray) -> None:
    sampler = make(reference)
    batch = sampler.next_batch(1)
    sampler.observe(batch.task_ids, 1, 1, batch.visits, pieces=[0])
    assert not sampler.observe(batch.task_ids, [np.nan], 0, batch.visits, pieces=[0]).any()
    assert len(sampler.in_flight().rows) == 1


def test_unsolicited_rows_end_no_visit_that_was_opened_since(reference: np.ndarray) -> None:
    """They waited, were taken for rollouts of it, and it ended: its own were late, and lost."""
    sampler = make(reference[:, :B])
    sampler.observe(np.arange(B), 1, 1, unsolicited=True)
    batch = sampler.next_batch()
    assert float(sampler.advance().trials) == B
    with pytest.raises(NotEnoughTasksError):
        sampler.next_batch(1)  # all are in flight
    assert sampler.observe(batch.task_ids, 1, M, batch.visits).all()
    info = sampler.advance()
    assert (float(info.trials), int(info.stale)) == (B * M, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 99], [1, 1], 8), "task_ids contains 99, this pool has tasks 0 to 59"),
        ((["a"], [1], 8), r"task_ids has shape \(1,\) and dtype .*task_ids=\.\.\."),
        (([0, 1], [1, np.inf], 8), r"successes\[1\]=inf is not finite"),
        (([0, 1], [1, -np.inf], 8), r"successes\[1\]=-inf is not finite"),
        (([0, 1], [1, 1], [8, np.nan]), r"trials\[1\]=nan must be finite"),
        (([0], [9], 8), r"successes\[0\]=9.0 exceeds the trials"),
        (([0, 1], [1], 8), r"successes has shape \(1,\), expected \(2,\)"),
        (([0], [1], -1), r"trials\[0\]=-1.0 must be finite and not negative"),
    ],
)
def test_bad_evidence_changes_nothing(
    reference: np.ndarray, arguments: tuple, message: str
) -> None:
    sampler = make(reference)
    before = json.dumps(sampler.state_dict()["host"])
    with pytest.raises(ValueError, match=message):
        sampler.observe(*arguments)
    assert json.dumps(sampler.state_dict()["host"]) == before


def test_says_so_if_tasks_get_fewer_rollouts_than_it_waits_for(reference: np.ndarray) -> None:
    sampler = make(reference)
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, [1] * B, 2)
    with pytest.warns(RuntimeWarning, match="2 trials or fewer and wait for rollouts=8"):
        sampler.next_batch()
    right = make(reference, rollouts=2)
    right.observe(right.next_batch().task_ids, [1] * B, 2)
    right.next_batch()
    assert right.metrics()["completed"] == B


def test_says_so_if_a_group_comes_short_now_and_then(reference: np.ndarray) -> None:
    """The pool would last for hundreds of steps; the warning comes within the first twenty."""
    sampler = make(reference)
    heard = []
    for step in range(100):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batch = sampler.next_batch()
        heard += [step] * len(caught)
        if caught:
            told = str(caught[0].message)
            assert re.search(r"% of all handed out\) are stuck: .* 7 trials or more of", told)
            assert "expiry" in told
        got = np.full(B, M)
        got[-1] -= step % 5 == 0
        sampler.observe(batch.task_ids, got // 2, got, batch.visits)
    assert 5 < heard[0] < 20
    assert 1 < len(heard) < 6  # again when they are twice as many, not at every step


def test_no_warning_of_what_is_only_late(reference: np.ndarray) -> None:
    """Pieces that come one at a time, three steps apart; and lost ones that are said to be."""
    sampler = make(reference)
    late: deque = deque()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* and wait for rollouts")
        warnings.filterwarnings("error", message=".* are stuck")
        for step in range(40):
            late.append(sampler.next_batch())
            for age, batch in enumerate(reversed(late)):
                if age % 3 == 0 and len(late) - age < 7:
                    lost = np.nan if step % 4 == 0 else 1
                    sampler.observe(batch.task_ids, [1, lost, 1, 0], M / 2, batch.visits)
            if len(late) > 6:
                late.popleft()


def test_not_scored_is_the_same_in_every_order(reference: np.ndarray) -> None:
    """None and NaN are trials of the visit, which ends, and bring no evidence."""
    found = []
    for order in itertools.permutations([np.nan, 1.0, 0.0, None]):
        sampler = make(reference, rollouts=4)
        batch = sampler.next_batch()
        assert sampler.observe(np.repeat(batch.task_ids[:1], 4), list(order), 1).all()
        assert len(sampler.in_flight().rows) == B - 1
        info = sampler.advance()
        assert (float(info.trials), float(info.success_rate)) == (2, 0.5)
        found.append(sampler.state)
    same_leaves(found[0], found[-1])
    sampler = make(reference)
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, None, M, batch.visits)  # a batch whose judge has failed
    assert len(sampler.in_flight().rows) == 0
    info = sampler.advance()
    assert (int(info.evaluated), int(info.in_flight)) == (0, 0)
    assert not sampler.observe([3], [np.nan], M, unsolicited=True).any()


def test_rows_of_one_report_are_never_late_to_each_other(reference: np.ndarray) -> None:
    found = []
    for order in itertools.permutations([0, 1, 2]):
        sampler = make(reference)
        batch = sampler.next_batch()
        s, n = np.array([5.0, 1, np.nan])[list(order)], np.array([8, 2, 3])[list(order)]
        assert sampler.observe(np.repeat(batch.task_ids[:1], 3), s, n).all()
        info = sampler.advance()
        found.append((float(info.trials), float(info.success_rate)))
    assert set(found) == {(10.0, np.float32(0.6))}


# --- names and growth ------------------------------------------------------------------------


def test_names_and_a_pool_that_changes(reference: np.ndarray, tmp_path: Path) -> None:
    names = [f"task-{i}" for i in range(60)]
    sampler = make(reference, task_ids=names)
    batch = sampler.next_batch()
    assert batch.task_ids.tolist() == [names[row] for row in batch.rows]
    leaving = batch.task_ids[0]
    sampler.observe(batch.task_ids[:1], [8], M)
    sampler.retire([leaving])
    assert not sampler.observe([leaving], [8], M, batch.visits[:1]).any()
    added = sampler.add_tasks(["new-a", "new-b"], reference[:, :2], domains=[0, 1])
    assert added.tolist() == ["new-a", "new-b"]
    with pytest.raises(ValueError, match="'new-a' is"):
        sampler.add_tasks(["new-a"], reference[:, :1], domains=[0])
    with pytest.raises(ValueError, match="'nobody', which was never in this pool"):
        sampler.observe(["nobody"], [1], M)
    sampler.observe(batch.task_ids[1:].tolist(), [4] * (B - 1), M)
    assert int(sampler.advance().evaluated) == B - 1
    everything = sampler.next_batch(61)
    assert set(everything.task_ids.tolist()) == {*names, "new-a", "new-b"} - {leaving}
    saved = json.loads(json.dumps(sampler.state_dict()["host"]))
    other = make(reference, task_ids=names)
    other.load_state_dict({**sampler.state_dict(), "host": saved}, in_flight="keep")
    same_state(other, sampler)
    assert not other.observe([leaving], [8], M).any()
    with pytest.raises(ValueError, match=r"57 of the 59 tasks .* have other references"):
        make(reference, task_ids=names[::-1]).load_state_dict(sampler.state_dict())


def test_a_grouped_pool_that_has_grown_is_restored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(0, 9, (2, 3000), dtype=np.uint8), axis=0)
    selector = bots(batch_size=B, rollouts=M, representation="grouped")
    sampler = TaskSampler(selector, ReferenceCounts(counts, 8))
    added = sampler.add_tasks(reference=np.array([[0.25], [0.5]]), reference_trials=[8, 8])
    assert added.tolist() == [3000]
    sampler._engine.set_state(enlarge(sampler.state))  # as it does when its table is nearly full
    sampler.save(tmp_path)
    found = TaskSampler(selector, ReferenceCounts(counts, 8))
    found.restore(tmp_path)
    same_state(found, sampler)
    assert found.metrics()["starved_share"] == 1  # nothing was handed out
    fewer = TaskSampler(selector, ReferenceCounts(counts[:, :2000], 8))
    with pytest.raises(
        ValueError, match="these 2000 tasks are not the 3000 that the saved run began with"
    ):
        fewer.load_state_dict(sampler.state_dict())


# --- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["state_dict", "orbax"])
def test_read_ahead_is_handed_out_again(reference: np.ndarray, tmp_path: Path, way: str) -> None:
    """A trainer that had three batches in its queue when it was killed goes on as if not."""
    sampler = make(reference, seed=1)
    queue = [sampler.next_batch() for _ in range(3)]

    def steps(sampler: TaskSampler, queue: list, count: int) -> list[list[int]]:
        seen = []
        for _ in range(count):
            batch = queue.pop(0)
            seen.append(batch.rows.tolist())
            sampler.observe(batch.task_ids, rates(batch.rows, len(seen)), M, batch.visits)
            queue.append(sampler.next_batch())
        return seen

    steps(sampler, queue, 4)
    sampler.observe(queue[0].task_ids[:1], [3], 4, queue[0].visits[:1])  # lost, and done again
    other = make(reference, seed=99)
    if way == "orbax":
        sampler.save(tmp_path, trainer={"weights": np.arange(3.0)})
        found = other.restore(tmp_path, trainer={"weights": np.zeros(3)})
        np.testing.assert_array_equal(found.trainer["weights"], [0, 1, 2])
    else:
        other.load_state_dict(pickle.loads(pickle.dumps(sampler.state_dict())))
    sampler._ledger.redeliver()  # the piece is lost to both
    again = [other.next_batch() for _ in range(3)]
    for left, right in zip(queue, again, strict=True):
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(left.visits, right.visits)
    sampler._ledger.again.clear()
    assert steps(sampler, queue, 5) == steps(other, again, 5)
    same_state(sampler, other)


def test_what_becomes_of_tasks_in_flight(reference: np.ndarray) -> None:
    sampler = make(reference)
    batch = sampler.next_batch()
    saved = sampler.state_dict()
    kept = make(reference)
    kept.load_state_dict(saved, in_flight="keep")
    assert not set(kept.next_batch().rows) & set(batch.rows)
    assert kept.observe(batch.task_ids, [1] * B, M, batch.visits).all()
    freed = make(reference)
    freed.load_state_dict(saved, in_flight="abandon")
    assert len(freed.next_batch(60).rows) == 60
    with pytest.raises(CheckpointError, match="expiry=None, this selector has expiry=5"):
        TaskSampler(bots(batch_size=B, expiry=5), reference).load_state_dict(saved)
    with pytest.raises(CheckpointError, match="belongs to another pool"):
        TaskSampler(SELECTOR, reference).load_state_dict(saved)


def test_settings_and_metrics(reference: np.ndarray) -> None:
    sampler = make(reference, window=2)
    sampler.set_settings(target=0.9)
    assert float(sampler.state.settings.target) == pytest.approx(0.9)
    run(sampler, 3)
    sampler.advance()
    told = sampler.metrics()
    assert {f"capability/{d}" for d in range(3)} <= set(told)
    assert all(isinstance(value, float) for value in told.values())
    assert 0 < told["choice_entropy"] <= np.log(2 * B)
    assert told["starved_groups"] <= 2
    assert sampler.predict([1, 2]).mean.shape == (2,)


# --- threads ---------------------------------------------------------------------------------


def hammer(sampler: TaskSampler, visits: int, seconds: float, threads: int = 8) -> Counter:
    """`threads` threads hand out, report and abandon at random; a ledger of their own checks.

    A task that is handed out must not be out already; what each visit brought is counted once
    however often it is sent, and all that was accepted reaches the selector.
    """
    lock = threading.Lock()
    out: dict[int, int] = {}  # row -> visit
    tally: Counter = Counter()
    faults: list[str] = []
    ends = time.monotonic() + seconds

    def enough() -> bool:
        return tally["visits"] >= visits and time.monotonic() > ends

    def take(rng: np.random.Generator) -> list[tuple[int, int]]:
        try:
            batch = sampler.next_batch(int(rng.integers(1, 12)))
        except NotEnoughTasksError:
            with lock:
                tally["short"] += 1
            return []
        taken = list(zip(batch.rows.tolist(), batch.visits.tolist(), strict=True))
        with lock:
            faults.extend(f"task {row} was handed out twice" for row, _ in taken if row in out)
            out.update(taken)
            tally["handed_out"] += len(taken)
        return taken

    def give_back(row: int) -> None:
        """Right before the call that ends the visit: after it, others may have the task."""
        with lock:
            del out[row]

    def settle(rng: np.random.Generator, row: int, visit: int) -> None:
        if rng.random() < 0.15:
            give_back(row)
            found = sampler.abandon([row], [visit])
            with lock:
                tally["abandoned"] += found
            return
        counted = 0
        for turn, piece in enumerate(rng.permutation(4).tolist()):
            if turn == 3:
                give_back(row)
            for _ in range(int(rng.integers(1, 3))):  # now and then sent twice
                counted += int(sampler.observe([row], [1], M / 4, [visit], pieces=[piece])[0])
        if counted != 4 or sampler.observe([row], [1], 2, [visit], pieces=[9])[0]:
            faults.append(f"visit {visit} of task {row} counted {counted} pieces of 4, or more")
        with lock:
            tally["trials"] += M * counted // 4
            tally["visits"] += 1

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        mine: list[tuple[int, int]] = []
        try:
            while mine or not enough():
                if not enough() and (not mine or (len(mine) < 12 and rng.random() < 0.1)):
                    mine += take(rng)
                if mine:
                    settle(rng, *mine.pop(int(rng.integers(len(mine)))))
        except Exception as error:
            faults.append(repr(error))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults, faults[:5]
    sampler.advance()
    told = sampler.metrics()
    assert told["total_trials"] == tally["trials"]
    assert told["total_evaluated"] <= told["completed"] == tally["visits"]
    assert told["abandoned"] == tally["abandoned"]
    assert told["handed_out"] == tally["handed_out"] == tally["visits"] + tally["abandoned"]
    assert told["in_flight"] == told["waiting"] == 0
    assert int(sampler.state.pool.in_flight) == 0
    tally["steps"] = sampler.step
    return tally


def test_eight_threads_keep_a_ledger(reference: np.ndarray) -> None:
    """BOTS_JAX_THREAD_SECONDS=60 for the long one."""
    seconds = float(os.environ.get("BOTS_JAX_THREAD_SECONDS", "0"))
    tally = hammer(make(reference), 200, seconds)
    sys.stdout.write(f"{dict(tally)}\n")  # shown by pytest -s
    assert tally["steps"] >= 200 // (2 * B)


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/adapters/host.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "host.md", "exec"), names)
    assert names["sampler"].step == 9
    assert names["metrics"]["completed"] == 160
