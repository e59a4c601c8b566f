"""Saved, damaged, killed and restored: the run goes on bit-identically or says why not."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from bots_jax import Evidence, Selector, State, add_tasks, bots, checkpoint
from bots_jax.adapters import TaskSampler
from bots_jax.adapters.tunix import TunixTasks
from bots_jax.checkpoint import CheckpointError, DamagedCheckpointError
from bots_jax.sharding import shard, task_mesh
from bots_jax.strategies import make_strategy

SELECTOR = bots(batch_size=4, rollouts=8)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def busy(reference: np.ndarray) -> State:
    """A state in the middle of a step: visits open, evidence pending, some of it partial."""
    state = SELECTOR.init(reference)
    state, _ = SELECTOR.select(jax.random.key(0), state)
    state, selection = SELECTOR.select(jax.random.key(1), state)
    evidence = Evidence(selection.task_ids[:2], [1.0, 2.5], [4, 8], selection.visit[:2])
    return SELECTOR.observe(state, evidence)


def run_on(selector: Selector, state: State) -> list[np.ndarray]:
    for step in range(3):
        state, selection = selector.select(jax.random.key(10 + step), state)
        evidence = Evidence(selection.task_ids, np.full(4, 3.0), 8, selection.visit)
        state, _ = selector.update(state, evidence)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def damage(path: Path) -> None:
    """Flip bytes in the middle of every large file."""
    for file in path.rglob("*"):
        if file.is_file() and file.stat().st_size > 200 and "METADATA" not in file.name:
            data = bytearray(file.read_bytes())
            middle = len(data) // 2
            data[middle : middle + 40] = bytes(255 - byte for byte in data[middle : middle + 40])
            file.write_bytes(data)


def test_goes_on_bit_identically(tmp_path: Path, busy: State, reference: np.ndarray) -> None:
    checkpoint.save(tmp_path, 7, SELECTOR, busy)
    found = checkpoint.restore(tmp_path, SELECTOR, SELECTOR.init(reference))
    assert found.step == 7
    chex.assert_trees_all_equal(run_on(SELECTOR, busy), run_on(SELECTOR, found.state), strict=True)


def test_together_with_the_trainer(tmp_path: Path, busy: State) -> None:
    trainer = {"params": [np.arange(6.0).reshape(2, 3)], "key": jax.random.key(5), "n": 3}
    checkpoint.save(tmp_path, 1, SELECTOR, busy, trainer=trainer, notes={"loss": [1, 2]})
    found = checkpoint.restore(tmp_path, SELECTOR, busy, trainer=trainer)
    assert found.notes == {"loss": [1, 2]}
    np.testing.assert_array_equal(found.trainer["params"][0], trainer["params"][0])
    assert jax.random.bits(found.trainer["key"]) == jax.random.bits(jax.random.key(5))
    assert int(found.trainer["n"]) == 3


def test_a_trainer_that_only_one_side_has_is_named(tmp_path: Path, busy: State) -> None:
    checkpoint.save(tmp_path, 1, SELECTOR, busy, trainer={"w": np.zeros(2)})
    with pytest.raises(CheckpointError, match=r"holds the trainer's own state.*: give trainer="):
        checkpoint.restore(tmp_path, SELECTOR, busy)
    checkpoint.save(tmp_path, 2, SELECTOR, busy)
    with pytest.raises(CheckpointError, match=r"saved without trainer=.*: leave it out"):
        checkpoint.restore(tmp_path, SELECTOR, busy, trainer={"w": np.zeros(2)})


def test_without_orbax_the_error_says_what_to_install(
    tmp_path: Path, busy: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bots-jax\[checkpoint\]'"):
        checkpoint.save(tmp_path, 1, SELECTOR, busy)


def test_keeps_the_newest(tmp_path: Path, busy: State) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, SELECTOR, busy, keep=2)
    assert checkpoint.found(tmp_path) == [3, 4]


def test_keeps_the_best_and_every_so_many(tmp_path: Path, busy: State) -> None:
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.8, 0.2, 0.4], 1):
        rules = {"keep": 1, "keep_every": 3, "keep_best": 2, "score": score}
        checkpoint.save(tmp_path, step, SELECTOR, busy, **rules)
    assert checkpoint.found(tmp_path) == [2, 3, 5, 6, 7]
    assert checkpoint.restore(tmp_path, SELECTOR, busy, step=5).step == 5
    checkpoint.save(tmp_path, 7, SELECTOR, busy, keep=1)  # replaced; the older ones go
    assert checkpoint.found(tmp_path) == [7]
    with pytest.raises(ValueError, match="keep=0 must be an integer of at least 1"):
        checkpoint.save(tmp_path, 8, SELECTOR, busy, keep=0)


def test_reads_the_folders_of_before(tmp_path: Path, busy: State) -> None:
    """Version 2 lay in the step's folder itself; now Orbax's manager gives it one of its own."""
    folder = checkpoint.save(tmp_path / "new", 3, SELECTOR, busy)
    (folder / "default").rename(tmp_path / "step_00000003")
    found = checkpoint.restore(tmp_path, SELECTOR, busy)
    chex.assert_trees_all_equal(found.state, busy, strict=True)
    checkpoint.save(tmp_path, 4, SELECTOR, busy)
    assert checkpoint.found(tmp_path) == [3, 4]


def test_falls_back_to_the_last_good_one(tmp_path: Path, busy: State) -> None:
    checkpoint.save(tmp_path, 1, SELECTOR, busy)
    after, _ = SELECTOR.advance(busy)
    damage(checkpoint.save(tmp_path, 2, SELECTOR, after))
    with pytest.warns(RuntimeWarning, match="step_00000002 is damaged"):
        found = checkpoint.restore(tmp_path, SELECTOR, busy)
    assert found.step == 1
    with pytest.raises(DamagedCheckpointError, match="step_00000002 is damaged"):
        checkpoint.restore(tmp_path, SELECTOR, busy, step=2)
    damage(tmp_path / "step_00000001")
    with pytest.raises(DamagedCheckpointError, match="No whole checkpoint is left"):
        checkpoint.restore(tmp_path, SELECTOR, busy)


def test_refuses_what_is_no_checkpoint(tmp_path: Path, busy: State) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.restore(tmp_path / "nowhere", SELECTOR, busy)
    (tmp_path / "step_00000003").mkdir()
    (tmp_path / "step_00000003" / "d").write_text("garbage")
    with pytest.raises(DamagedCheckpointError, match="damaged or not of bots_jax"):
        checkpoint.restore(tmp_path, SELECTOR, busy)


def test_refuses_other_static_settings(tmp_path: Path, busy: State) -> None:
    checkpoint.save(tmp_path, 1, SELECTOR, busy)
    other = bots(batch_size=4, rollouts=8, estimator="glm")
    with pytest.raises(CheckpointError, match=r"made with estimator='linear', this selector .*glm"):
        checkpoint.restore(tmp_path, other, busy)
    smaller = SELECTOR.init(num_tasks=30)
    with pytest.raises(CheckpointError, match="belongs to another pool"):
        checkpoint.restore(tmp_path, SELECTOR, smaller)


@pytest.mark.parametrize(("wins", "expected"), [("saved", 0.1), ("given", 0.4)])
def test_the_caller_says_which_numbers_win(
    tmp_path: Path, busy: State, reference: np.ndarray, wins: str, expected: float
) -> None:
    checkpoint.save(tmp_path, 1, SELECTOR, busy)
    like = SELECTOR.init(reference, {"forgetting": 0.4})
    found = checkpoint.restore(tmp_path, SELECTOR, like, settings=wins)
    assert float(found.state.settings.forgetting) == pytest.approx(expected)


def dense(state: State) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in checkpoint.named_arrays(state).items()}


@pytest.mark.parametrize(
    ("name", "batch_size", "room"),
    [
        ("bots", 2, 100),
        ("auto", 11, 2000),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [("bots", 11, 60), ("dps", 4, 100)]
        ),
    ],
)
def test_more_room_and_another_batch_size(
    tmp_path: Path, reference: np.ndarray, name: str, batch_size: int, room: int
) -> None:
    """What was believed is believed, evidence that waited counts, and the new rows are empty."""
    selector = make_strategy(name, batch_size=4)
    state = selector.init(reference)
    for step in range(3):
        state, chosen = selector.select(jax.random.key(step), state)
        state = selector.observe(state, chosen.evidence(np.full((4, 8), step / 2)))
        state = selector.advance(state)[0] if step < 2 else state
    checkpoint.save(tmp_path, 1, selector, state)
    other = make_strategy(name, batch_size=batch_size)
    fresh = other.init(reference, capacity=room)
    found = checkpoint.restore(tmp_path, other, fresh).state
    before, empty, after = dense(state), dense(fresh), dense(found)
    for path, array in after.items():
        assert (array.dtype, array.shape) == (empty[path].dtype, empty[path].shape)
        if "touched" not in path:
            size = before[path].shape
            np.testing.assert_array_equal(array[tuple(map(slice, size))], before[path])
            if array.shape != size:
                np.testing.assert_array_equal(array[60:], empty[path][60:])
    np.testing.assert_allclose(
        other.predict(found, np.arange(60)).mean, selector.predict(state).mean, rtol=1e-6
    )
    (new, told), (_, expected) = other.advance(found), selector.advance(state)
    assert (float(told.trials), int(told.evaluated)) == (32, 4)
    assert float(told.success_rate) == float(expected.success_rate)
    new, chosen = other.select(jax.random.key(9), new)
    assert np.all(chosen.valid)
    assert np.all(np.asarray(chosen.task_ids) < 60)
    if room > 60:
        new, ids = add_tasks(new, reference[:, :5])
        assert ids.tolist() == [60, 61, 62, 63, 64]
    else:
        with pytest.raises(CheckpointError, match=r"has 60 rows, .* give capacity=60 or more"):
            checkpoint.restore(tmp_path, other, other.init(reference[:, :40]))
    with pytest.raises(CheckpointError, match="belongs to another pool"):
        checkpoint.restore(tmp_path, other, other.init(num_tasks=90))


@pytest.mark.parametrize("name", ["bots", "auto", "epochs", "kgps"])
def test_room_for_more_devices_and_back(tmp_path: Path, reference: np.ndarray, name: str) -> None:
    """60 rows become 256, as four devices want them, and 60 again: nothing is lost."""
    selector = make_strategy(name, batch_size=4)
    state = selector.init(reference)
    for step in range(2):
        state, chosen = selector.select(jax.random.key(step), state)
        state = selector.observe(state, chosen.evidence(np.full((4, 8), step)))
        state = selector.advance(state)[0] if step < 1 else state
    checkpoint.save(tmp_path, 1, selector, state)
    wide = checkpoint.restore(tmp_path, selector, selector.init(reference, capacity=256)).state
    spread = shard(selector.init(reference, capacity=256), task_mesh(jax.devices()[:4]))
    placed = checkpoint.restore(tmp_path, selector, spread).state
    for ours, theirs, like in zip(*map(jax.tree.leaves, (placed, wide, spread)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding == like.sharding
    checkpoint.save(tmp_path, 2, selector, placed)
    back = checkpoint.restore(tmp_path, selector, selector.init(reference), step=2).state
    before, after = dense(state), dense(back)
    for path in before:
        if "touched" not in path:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    for ours, theirs in zip(selector.advance(back)[1], selector.advance(state)[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    "address", ["gs://bucket/run", "s3://bucket", "file:///tmp/x", Path("gs://bucket/run")]
)
def test_an_address_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: State, address: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    sampler = TaskSampler(SELECTOR, num_tasks=60)
    for call in (
        lambda: checkpoint.save(address, 1, SELECTOR, busy),
        lambda: checkpoint.restore(address, SELECTOR, busy),
        lambda: checkpoint.found(address),
        lambda: sampler.save(address),
        lambda: sampler.restore(address),
        lambda: TunixTasks(sampler, {"prompts": np.array([""] * 60)}, directory=address),
    ):
        with pytest.raises(CheckpointError, match="is an address, and checkpoints are written to"):
            call()
    assert list(tmp_path.iterdir()) == []
    assert checkpoint.local_folder("a:b/c") == tmp_path / "a:b/c"


FULL_DISK = """
import resource, sys, numpy as np
import jax.numpy as jnp
from bots_jax import bots, checkpoint
selector = bots(batch_size=4)
state = selector.init(num_tasks=60)
checkpoint.save(sys.argv[1], 1, selector, state)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).integers(0, 2**31, 1_000_000).astype(np.int32)
try:
    checkpoint.save(sys.argv[1], 2, selector, state, trainer=jnp.asarray(noise))
except checkpoint.CheckpointError as error:
    print(error)
print(checkpoint.restore(sys.argv[1], selector, state).step)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a file size limit")
def test_full_disk_keeps_the_last_good_one(tmp_path: Path) -> None:
    """A file that may not grow stands for a disk that is full."""
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "could not be written" in ran.stdout
    assert "Earlier checkpoints are untouched: [1]" in ran.stdout
    assert ran.stdout.strip().endswith("1")


def test_two_processes(tmp_path: Path) -> None:
    """One saves alone, without waiting; of a pool spread over both each writes its part."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint_run", address, str(process), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=170) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
    (first, _), (second, _) = told
    assert "spread to whole 3 True" in first
    for out in (first, second):
        assert "waited False" in out
        assert "whole to spread 1 True" in out
        assert "spread to spread 3 True" in out
        assert "the one before 2 True" in out
        assert "with a `like` that is whole" in out


def test_leaves_of_64_bits_come_back_whole(tmp_path: Path, busy: State) -> None:
    """JAX without x64 cut 2**40 to 0."""
    trainer = {"tokens": np.array([2**40, -1]), "loss": np.array([0.1]), "step": 2**33}
    checkpoint.save(tmp_path, 1, SELECTOR, busy, trainer=trainer)
    found = checkpoint.restore(tmp_path, SELECTOR, busy, trainer=trainer).trainer
    for name, leaf in trainer.items():
        assert np.asarray(found[name]).dtype == np.asarray(leaf).dtype
        np.testing.assert_array_equal(found[name], leaf)


@pytest.mark.parametrize("step", [-1, 1.5, True, "3"])
def test_steps_that_are_no_numbers(tmp_path: Path, busy: State, step: object) -> None:
    """-1 was written, and found by nobody."""
    with pytest.raises(ValueError, match=r"step=.* must be an integer of at least 0"):
        checkpoint.save(tmp_path, step, SELECTOR, busy)  # type: ignore[arg-type]
    assert checkpoint.found(tmp_path) == []


def test_steps_of_numpy_and_jax(tmp_path: Path, busy: State) -> None:
    checkpoint.save(tmp_path, np.int64(3), SELECTOR, busy)  # type: ignore[arg-type]
    checkpoint.save(tmp_path, jax.numpy.int32(5), SELECTOR, busy)  # type: ignore[arg-type]
    assert checkpoint.found(tmp_path) == [3, 5]
    assert checkpoint.restore(tmp_path, SELECTOR, busy).step == 5


def test_what_is_not_saved_is_named(tmp_path: Path, busy: State) -> None:
    with pytest.raises(CheckpointError, match=r"\['trainer'\]\['name'\] as <U5: only numbers"):
        checkpoint.save(tmp_path, 1, SELECTOR, busy, trainer={"name": "llama"})
    with pytest.raises(CheckpointError, match=r"notes hold what JSON does not: .*float32"):
        checkpoint.save(tmp_path, 1, SELECTOR, busy, notes={"loss": np.float32(1)})
    assert checkpoint.found(tmp_path) == []


def test_the_home_folder(tmp_path: Path, busy: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """It became a folder "~"."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    checkpoint.save("~/my runs/ä", 1, SELECTOR, busy)
    assert checkpoint.found(tmp_path / "home" / "my runs" / "ä") == [1]


def test_threads_save_one_after_another(tmp_path: Path, busy: State) -> None:
    """Orbax cleared away what another thread was about to write."""
    with ThreadPoolExecutor(3) as threads:
        steps = [threads.submit(checkpoint.save, tmp_path, n, SELECTOR, busy) for n in range(6)]
    assert [step.exception() for step in steps] == [None] * 6
    assert len(checkpoint.found(tmp_path)) == 2
