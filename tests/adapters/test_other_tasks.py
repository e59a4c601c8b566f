"""Going on with another list of tasks: beliefs, visits and reports follow the names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bots_jax import auto, bots
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.checkpoint import CheckpointError
from bots_jax.features import text
from bots_jax.pool.features import encode_as
from bots_jax.pool.reference import ReferenceCounts
from bots_jax.sharding import padded_capacity, task_mesh
from bots_jax.strategies import STRATEGIES, make_strategy

B, M, ROOM = 4, 8, 40
# Every task that there ever is: numbers beside their spelling, large ones, and what else is a name.
NAMES: list[Any] = [x for i in range(14) for x in (i, str(i))]
NAMES += [2**70, str(2**70), -1, "-1", "", "a\0", "a", "\ud800", "é", 2**63, "None", "x" * 50]
RATES = dict(zip(NAMES, np.random.default_rng(3).uniform(size=(len(NAMES), 2)), strict=True))
DOMAIN = {name: at % 2 for at, name in enumerate(NAMES)}
SELECTORS = {
    "bots": bots(batch_size=B, rollouts=M, num_domains=2),
    "auto": auto(batch_size=B, rollouts=M, num_domains=2),
}


def rates(names: list[Any]) -> np.ndarray:
    return np.array([RATES[name] for name in names], np.float32).T


def make(names: list[Any], method: str = "bots", **more: Any) -> TaskSampler:
    about = {"reference": rates(names), "domains": [DOMAIN[name] for name in names]}
    return TaskSampler(SELECTORS[method], **{**about, "task_ids": names, "capacity": ROOM, **more})


def believed(sampler: TaskSampler, names: list[Any]) -> np.ndarray:
    return np.stack(sampler.predict(names))


def out(sampler: TaskSampler) -> dict[Any, int]:
    """Names and visits that are in flight."""
    flying = sampler.in_flight()
    return dict(zip(flying.task_ids.tolist(), flying.visits.tolist(), strict=True))


def watched(sampler: TaskSampler) -> list[Any]:
    """Names of the tasks handed out lately; those that have left, as None."""
    return [sampler._names.by_row.get(row) for row in sampler._watch.rows().tolist()]


def histories(sampler: TaskSampler, names: list[Any]) -> list[np.ndarray]:
    rows = sampler._names.rows_of(names)
    return [np.asarray(leaf)[rows] for leaf in sampler.state.belief.history]


def run(sampler: TaskSampler, steps: int, seed: int) -> None:
    """Some visits are left open, with a part of their rollouts in."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = sampler.next_batch()
        sampler.observe(batch.task_ids[1:], rng.integers(0, M + 1, B - 1), M, batch.visits[1:])
        if rng.random() < 0.5:
            sampler.observe(batch.task_ids[:1], 1, 2, batch.visits[:1])


# --- the property ----------------------------------------------------------------------------


@given(
    st.sampled_from(["bots", "auto"]),
    st.permutations(range(len(NAMES))),
    st.integers(0, 2**16),
    st.sampled_from([(16, 12), (12, 16)]),  # few, so that little is compiled
    st.sampled_from([4, 12]),
)
@settings(deadline=None, max_examples=40)
def test_as_if_never_stopped(
    method: str, order: list[int], seed: int, sizes: tuple[int, int], common: int
) -> None:
    """Another list, loaded, or the same changes made with `retire` and `add_tasks`: the same."""
    first = [NAMES[at] for at in order[: sizes[0]]]
    rest = [NAMES[at] for at in order[sizes[0] :]]
    rng = np.random.default_rng(seed)
    shuffled = [first[at] for at in rng.permutation(len(first))]
    second = shuffled[:common] + rest[: sizes[1] - common]
    second = [second[at] for at in rng.permutation(len(second))]
    never = make(first, method)
    run(never, 3, seed)
    saved = unflatten(flatten(never.state_dict()))
    other = make(second, method)
    other.load_state_dict(saved, in_flight="keep")
    never.retire([name for name in first if name not in second])
    new = [name for name in second if name not in first]
    if new:
        never.add_tasks(new, rates(new), domains=[DOMAIN[name] for name in new])
    for _ in range(2):
        np.testing.assert_allclose(
            believed(other, second), believed(never, second), rtol=2e-5, atol=1e-6
        )
        assert out(other) == out(never)
        assert other.step == never.step
        for count in ("in_flight", "domain_sizes", "step", "next_visit"):
            ours, theirs = (getattr(one.state.pool, count) for one in (other, never))
            np.testing.assert_array_equal(ours, theirs, err_msg=count)
        assert watched(other) == [name for name in watched(never) if name in second]
        if method == "auto":  # of new tasks, too: no rush to them
            for ours, theirs in zip(
                *(histories(one, second) for one in (other, never)), strict=True
            ):
                np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
        flying = other.in_flight()
        for sampler in (other, never):  # the rest of what is out, and of some that are not
            brought = sampler.observe(flying.task_ids, 2, M, flying.visits)
            assert brought.all()
            sampler.observe(second[:3], 5, M, unsolicited=True)
            sampler.advance()
    assert other.handed_out == never.handed_out
    late = sorted((name for name in first if name not in second), key=repr)[:2]
    if late:  # of those that have left: known, and not counted
        assert not other.observe(late, 8, M).any()
    assert {*other.next_batch(len(second)).task_ids.tolist()} == {*second}


@pytest.mark.parametrize("name", sorted({"bots", "auto", *STRATEGIES}))
def test_every_row_follows_its_task(name: str) -> None:
    """Whatever a strategy keeps of each task, and of all."""
    factories = {"bots": bots, "auto": auto}
    selector = factories.get(name, lambda **more: make_strategy(name, **more))(batch_size=B)
    names = [f"task-{at}" for at in range(12)]
    columns = np.random.default_rng(0).uniform(size=(2, 16)).astype(np.float32)
    rng = np.random.default_rng(1)

    def past(leaf: Any) -> Any:
        own = np.asarray(leaf)
        changed = rng.integers(0, 2, own.shape) if own.dtype == bool else own + rng.random(
            own.shape) * 4  # fmt: skip
        return jnp.asarray(changed.astype(own.dtype))

    first = TaskSampler(selector, columns[:, :12], task_ids=names)
    state = first.state
    first._engine.set_state(state._replace(belief=jax.tree.map(past, state.belief)))
    kept = [names[at] for at in (7, 2, 11, 0, 5)]
    second = [*kept[:2], "new-0", *kept[2:], "new-1"]
    at = [names.index(name) if name in names else 12 + int(name[-1]) for name in second]
    other = TaskSampler(selector, columns[:, at], task_ids=second)
    other.load_state_dict(first.state_dict())
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(first.state.belief),
        jax.tree.leaves(other.state.belief), strict=True,
    )  # fmt: skip
    rows = {name: (names.index(name), second.index(name)) for name in kept}
    for (path, before), after in pairs:
        before, after = np.asarray(before), np.asarray(after)
        if before.shape == after.shape:
            np.testing.assert_array_equal(before, after, jax.tree_util.keystr(path))
            continue
        axis = next(a for a, size in enumerate(before.shape) if size != after.shape[a])
        for there, here in rows.values():
            np.testing.assert_array_equal(before.take(there, axis), after.take(here, axis))


def test_numbered_reports_go_before_others() -> None:
    """An unnumbered row that fills its task's visit made the numbered one late, a batch later."""
    sampler = make(NAMES[:12])
    batch = sampler.next_batch()
    sampler.observe(batch.task_ids, [1, 2, 3, 4], M, batch.visits)
    sampler.observe(batch.task_ids, [5, 6, 7, 8], M, unsolicited=True)
    info = sampler.advance()
    assert (float(info.trials), int(info.stale)) == (8 * M, 0)
    assert float(info.success_rate) == 36 / 64


# --- lists that come and go ------------------------------------------------------------------


def test_there_and_back_by_orbax(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lists are compared with the one that the saved sampler was made with."""
    one = make(NAMES[:12])
    run(one, 3, 0)
    one.add_tasks(NAMES[12:14], rates(NAMES[12:14]), domains=[0, 1])
    one.retire(NAMES[:1])
    one.save(tmp_path)
    caplog.set_level(logging.INFO, logger="bots_jax")
    same = make(NAMES[:12])
    same.restore(tmp_path, in_flight="keep")
    assert not caplog.records
    np.testing.assert_array_equal(believed(same, NAMES[1:14]), believed(one, NAMES[1:14]))
    with pytest.raises(ValueError, match="left the pool"):
        same.predict(NAMES[:1])
    longer = [*NAMES[13:16], *NAMES[1:11]]  # 13 was added and is listed, 12 and 11 are not
    two = make(longer)
    two.restore(tmp_path, in_flight="keep")
    assert "resumed with other tasks than were saved: 11 kept, 2 added, 2 gone" in caplog.text
    both = [name for name in longer if name in NAMES[1:14]]
    np.testing.assert_array_equal(believed(two, both), believed(one, both))
    again = make(longer)
    caplog.clear()
    again.load_state_dict(two.state_dict(), in_flight="keep")  # its own list now
    assert not caplog.records
    assert json.dumps(again.state_dict()["host"]) == json.dumps(two.state_dict()["host"])
    four = make([*NAMES[:12], NAMES[20]])  # what was retired is listed: it begins anew
    four.load_state_dict(one.state_dict(), in_flight="keep")
    assert "11 kept, 2 added (1 of them had been retired), 2 gone" in caplog.text
    caplog.clear()
    turned = make(NAMES[11::-1])
    turned.load_state_dict(make(NAMES[:12]).state_dict())
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_what_waits_to_be_handed_out_follows_too() -> None:
    one = make(NAMES[:12])
    first = one.next_batch(3)  # one is left over
    gone = first.task_ids[0]
    listed = [name for name in NAMES[11::-1] if name != gone]
    two = make(listed)
    two.load_state_dict(one.state_dict())
    assert two.next_batch(2).task_ids.tolist() == first.task_ids[1:].tolist()
    assert out(two) == {name: visit for name, visit in out(one).items() if name != gone}
    assert two.metrics()["handed_out"] == 3
    spare = one._names.names_of(np.array([one._ledger.spare[0][0]]))
    assert two.next_batch(1).task_ids.tolist() == spare.tolist()
    two.redeliver()
    again = make(NAMES[:12])
    again.load_state_dict(two.state_dict(), in_flight="keep")
    assert again.next_batch(3).task_ids.tolist() == [*first.task_ids[1:], *spare]


# --- what is refused -------------------------------------------------------------------------


def refused(sampler: TaskSampler, saved: Any, message: str) -> None:
    before = json.dumps(sampler.state_dict()["host"])
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(saved)
    assert json.dumps(sampler.state_dict()["host"]) == before


def test_other_tasks_of_the_same_names_are_refused() -> None:
    names, listed = NAMES[:12], NAMES[2:14]
    saved = make(names, reference_trials=[8, 8]).state_dict()
    wrong = rates(listed)
    wrong[1, 3] += np.float32(1e-6)
    refused(
        make(listed, reference=wrong, reference_trials=[8, 8]), saved,
        rf"1 of the 10 tasks .* other references .*such as \[{NAMES[5]!r}\]: .*other names",
    )  # fmt: skip
    wrong[1, 3], wrong[:, 11] = rates(listed)[1, 3], 0.5  # of a new task: its own affair
    make(listed, reference=wrong, reference_trials=[8, 8]).load_state_dict(saved)
    refused(make(listed, reference_trials=[8, 9]), saved, "10 of the 10 .* other counts behind")
    domains = [1 - DOMAIN[name] for name in listed]
    refused(make(listed, reference_trials=[8, 8], domains=domains), saved, "other domains")
    refused(make(listed), saved, "belongs to another pool")
    three = np.vstack([rates(listed), rates(listed)[:1]])
    more = make(listed, reference=three, reference_trials=[8, 8, 8])
    refused(more, saved, "holds 2 reference models .*, this pool has 3")


def test_no_common_name_is_refused() -> None:
    saved = make(NAMES[:12]).state_dict()
    refused(make(NAMES[12:24]), saved, r"none of the 12 task_ids .*another data set")
    spelled = [name for name in NAMES[:24] if isinstance(name, str)]
    numbers = make([int(name) for name in spelled], reference=rates(spelled), domains=[0] * 12)
    of_strings = make(spelled, domains=[0] * 12).state_dict()
    refused(numbers, of_strings, "none of the 12 task_ids")
    about = {"reference": rates(NAMES[:12]), "domains": [DOMAIN[name] for name in NAMES[:12]]}
    nameless = TaskSampler(SELECTORS["bots"], **about, capacity=ROOM)
    refused(nameless, saved, "had names, those of this one have none: give task_ids")
    refused(make(NAMES[:12]), nameless.state_dict(), "had none, .* have names: drop task_ids")


def test_names_that_were_not_saved_or_are_damaged() -> None:
    saved = make(NAMES[:12]).state_dict()
    host = saved["host"]
    old = {name: value for name, value in host["names"].items() if name != "whole"}
    old = {**saved, "host": {**host, "names": old}}
    make(NAMES[:12]).load_state_dict(old)  # the digest is the same
    refused(make(NAMES[:13]), old, "saved without them: give the same names in the same order")
    for whole in ("", "!", host["names"]["whole"][:-8], 3):
        broken = {**saved, "host": {**host, "names": {**host["names"], "whole": whole}}}
        refused(make(NAMES[:13]), broken, "cannot be read")


def test_grouped_pools_say_what_to_do() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (2, 2000), dtype=np.uint8)
    selector = bots(batch_size=B, rollouts=M, representation="grouped")
    names = [f"task-{at}" for at in range(2001)]
    saved = TaskSampler(selector, ReferenceCounts(counts, 8), task_ids=names[:2000])
    other = TaskSampler(selector, ReferenceCounts(counts, 8), task_ids=names[1:])
    refused(
        other,
        saved.state_dict(),
        "these 2000 tasks are not the 2000 .* grouped pool .* then add_tasks and retire",
    )
    other = TaskSampler(selector, ReferenceCounts(counts, 8), task_ids=names[:2000])
    other.load_state_dict(saved.state_dict())


# --- rows without names ----------------------------------------------------------------------


def test_numbered_rows_grow_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    def of(count: int, **more: Any) -> TaskSampler:
        names = NAMES[:count]
        about = {"reference": rates(names), "domains": [DOMAIN[name] for name in names]}
        return TaskSampler(SELECTORS["auto"], **{**about, "capacity": ROOM, **more})

    one = of(12)
    run(one, 3, 1)
    one.retire([3])
    one.add_tasks(None, rates(NAMES[12:13]), domains=[0])
    saved = one.state_dict()
    two = of(16)
    two.load_state_dict(saved, in_flight="keep")
    assert "12 kept, 3 added, 0 gone" in caplog.text
    rows = [row for row in range(13) if row != 3]
    np.testing.assert_array_equal(believed(two, rows), believed(one, rows))
    assert out(two) == out(one)
    with pytest.raises(ValueError, match="left the pool"):
        two.predict([3])
    ids = one.add_tasks(None, rates(NAMES[13:16]), domains=[DOMAIN[n] for n in NAMES[13:16]])
    np.testing.assert_allclose(believed(two, [13, 14, 15]), believed(one, ids), rtol=1e-6)
    of(12).load_state_dict(saved)
    of(16).load_state_dict(two.state_dict())
    refused(of(11), saved, r"began with 12 tasks and has 13, this one 11: .*capacity=13 or more")
    refused(of(12), two.state_dict(), "at the end only")
    swapped = rates(NAMES[:16])[:, ::-1]
    refused(of(16, reference=swapped), saved, "of the 12 tasks .* other references")


# --- domains and features --------------------------------------------------------------------


def test_another_domain_comes_with_the_new_tasks() -> None:
    selector = auto(batch_size=B, rollouts=M)  # which learns something of each
    names = NAMES[:16]

    def of(names: list[Any], domains: list[int]) -> TaskSampler:
        return TaskSampler(selector, rates(names), task_ids=names, domains=domains)

    one = of(names[:12], [0, 1] * 6)
    run(one, 3, 0)
    two = of(names, [0, 1] * 6 + [2] * 4)
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(believed(two, names[:12]), believed(one, names[:12]))
    assert two.state.pool.domain_sizes.tolist() == [6, 6, 4]
    run(two, 3, 0)
    back = of(names[:12], [0, 1] * 6)
    back.load_state_dict(two.state_dict())
    np.testing.assert_array_equal(believed(two, names[:12]), believed(back, names[:12]))


def test_features_keep_the_code_of_the_first_tasks() -> None:
    """Columns, kinds among them, are relative to those that the run began with."""
    rng = np.random.default_rng(0)
    numbers, kind = rng.normal(size=(16, 2)), np.arange(16) % 3
    kind[12:] = 7  # one that was not there at first
    selector, names = SELECTORS["auto"], NAMES[:16]

    def of(at: list[int]) -> TaskSampler:
        listed = [names[i] for i in at]
        return TaskSampler(
            selector, num_tasks=len(at), features=(numbers[at], kind[at]), task_ids=listed,
            capacity=ROOM,
        )  # fmt: skip

    one, order = of(list(range(12))), [13, 4, 2, 12, 9, 14]
    run(one, 3, 0)
    two = of(order)
    two.load_state_dict(one.state_dict(), in_flight="keep")
    one.add_tasks([names[i] for i in order if i > 11], num_tasks=3,
                  features=(numbers[[13, 12, 14]], kind[[13, 12, 14]]))  # fmt: skip
    listed = [names[i] for i in order]
    np.testing.assert_allclose(believed(two, listed), believed(one, listed), rtol=1e-5)
    again = of(order)  # which has other columns by itself
    assert again.state.reference.code.kind.shape != two.state.reference.code.kind.shape
    again.load_state_dict(two.state_dict())
    np.testing.assert_array_equal(believed(two, listed), believed(again, listed))
    numbers[4] += 1
    refused(of(order), one.state_dict(), "1 of the 6 tasks .* other features")


def test_features_of_eight_bits_keep_the_steps_of_the_first_tasks() -> None:
    """Without the largest of a column the steps are others: all tasks seemed to be."""
    numbers = np.random.default_rng(0).normal(size=(14, 2))
    numbers[0] *= 10

    def of(at: list[int]) -> TaskSampler:
        selector = auto(batch_size=B, rollouts=M, features_dtype="int8")
        return TaskSampler(selector, features=numbers[at], task_ids=[f"t{i}" for i in at])

    first, then = of(list(range(12))), of([12, *range(11, 0, -1)])
    run(first, 3, 0)
    then.load_state_dict(first.state_dict())
    known = first.state.reference
    step, code = np.asarray(known.step), known.code
    assert code is not None
    ours = np.asarray(then.state.reference.described())
    np.testing.assert_allclose(ours[:, 1:], np.asarray(known.described())[:, 11:0:-1])
    away = encode_as(numbers[12:13], code)[:, 0] - ours[:, 0]
    assert np.all(np.abs(away) <= 0.51 * step)


def test_prompts_keep_the_components_of_the_first_tasks() -> None:
    prompts = [f"add {i} and {7 * i % 11}" if i % 2 else f"sort {i * i} {i}" for i in range(16)]
    selector, names = SELECTORS["auto"], NAMES[:16]

    def of(at: list[int], **more: Any) -> TaskSampler:
        told = {"prompts": [prompts[i] for i in at], **more}
        return TaskSampler(
            selector, num_tasks=len(at), task_ids=[names[i] for i in at], capacity=ROOM, **told
        )

    one, order = of(list(range(12))), [13, 4, 2, 12, 9, 14]
    run(one, 3, 0)
    saved = unflatten(flatten(one.state_dict()))
    two = of(order)
    two.load_state_dict(saved, in_flight="keep")
    new = [13, 12, 14]
    one.add_tasks([names[i] for i in new], prompts=[prompts[i] for i in new])
    listed = [names[i] for i in order]
    np.testing.assert_allclose(believed(two, listed), believed(one, listed), rtol=1e-5)
    for sampler in (one, two):  # and so do those of tasks that come later
        sampler.add_tasks([names[15]], prompts=[prompts[15]])
    np.testing.assert_allclose(believed(two, [names[15]]), believed(one, [names[15]]), rtol=1e-5)
    refused(of(order, features=None), saved, "holds features, and this pool has none: give the")
    without = of(list(range(12)), features=None)
    refused(of(order), without.state_dict(), "holds no features, .* make it with features=None")
    refused(of(list(range(12))), without.state_dict(), "make it with features=None")
    by_hand = of(list(range(12)), prompts=None, features=text(prompts[:12]))
    refused(of(order), by_hand.state_dict(), "how the saved run made features of prompts was not")


# --- one device, four devices ----------------------------------------------------------------


def rows_of(sampler: TaskSampler, ids: list[Any]) -> list[np.ndarray]:
    """What is known of some tasks, read from each device: nothing is computed there."""
    belief = sampler.state.belief
    rows = sampler._names.rows_of(ids)
    own = belief.history if hasattr(belief, "history") else belief.posterior
    return [np.asarray(leaf)[rows] for leaf in own]


def assert_known(one: TaskSampler, other: TaskSampler, ids: list[Any]) -> None:
    for ours, theirs in zip(rows_of(one, ids), rows_of(other, ids), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert out(one) == out(other)


@pytest.mark.parametrize(("method", "named"), [("bots", True), ("auto", False)])
def test_one_device_and_four_in_any_order(tmp_path: Path, method: str, named: bool) -> None:
    """Room is padded for four devices and goes again; whatever an error advises is accepted.

    Steps are taken on one device alone: `test_sharding.py` takes them on several.
    """
    mesh = task_mesh(jax.devices()[:4])

    def of(devices: int, names: list[Any] = NAMES[:12], **more: Any) -> TaskSampler:
        room = {4: {"device": mesh, "capacity": padded_capacity(len(names), 4)}}.get(devices, {})
        about = {"reference": rates(names), "domains": [DOMAIN[name] for name in names]}
        listed = {"task_ids": names} if named else {}
        return TaskSampler(SELECTORS[method], **{**about, **listed, **room, **more})

    with pytest.raises(ValueError, match=r"cannot be spread over 4 devices.*capacity=256"):
        of(4, capacity=None)
    ids = NAMES[:12] if named else list(range(12))
    for turn, order in enumerate(([1, 4, 1, 4], [4, 1, 4, 4, 1])):
        now = of(order[0])
        for at, devices in enumerate(order):
            if at:
                before, now = now, of(devices)
                before.save(tmp_path / str(turn), at)
                now.restore(tmp_path / str(turn), in_flight="keep")
                for leaf in now.state.belief[0 if method == "bots" else 1]:
                    assert len(leaf.sharding.device_set) == devices
                assert_known(now, before, ids)
            if devices == 1:
                run(now, 2, at)
    # Tasks in the padding: one device needs room for them, and four devices room for that.
    wide = of(1, capacity=256)
    wide.load_state_dict(now.state_dict(), in_flight="keep")
    kept = wide.add_tasks([NAMES[12]] if named else None, rates(NAMES[12:13]), domains=[0])
    ids += kept.tolist()
    saved = wide.state_dict()
    with pytest.raises(CheckpointError, match=r"give capacity=13 or more"):
        of(1).load_state_dict(saved)
    advised = of(1, capacity=13)
    advised.load_state_dict(saved, in_flight="keep")
    with pytest.raises(ValueError, match=r"capacity=256"):
        of(4, capacity=13)
    for other in (of(4, capacity=256), of(4, NAMES[:14])):  # and with other tasks
        other.load_state_dict(advised.state_dict(), in_flight="keep")
        assert_known(other, wide, ids)
        assert len(other.state.pool.active.sharding.device_set) == 4
        back = of(1, capacity=13) if other._names.num_rows == 13 else of(1, NAMES[:14])
        back.load_state_dict(other.state_dict(), in_flight="keep")
        assert_known(back, wide, ids)
        run(back, 1, 0)
