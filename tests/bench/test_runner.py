"""The runner: resumed after a kill, extended, with a stranger's code, and told what is wrong."""

import csv
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bots_jax.bench import matrix as matrices
from bots_jax.bench import registry, runner
from bots_jax.bench.environment import Strategy
from bots_jax.bench.matrix import Matrix, make_plan
from bots_jax.bench.registry import read_specs
from bots_jax.bench.runner import run_plan
from bots_jax.bench.store import Store
from bots_jax.cli import main

STRANGER = str(Path(__file__).with_name("stranger.py"))
COIN, PLAIN = f"{STRANGER}:coin", f"{STRANGER}:plain"


def quiet(what, done, total):
    pass


def small(strategies=("uniform", "bots"), environments=(PLAIN,), seeds=3):
    return Matrix("small", None, seeds, tuple(environments), tuple(strategies))


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(0)
    rates = rng.uniform(size=(30, 40)).astype(np.float32)
    path = tmp_path / "run.npz"
    np.savez(path, success_rate=rates, reference=rates[[0, -1]], rollouts=8)
    return str(path)


# --- specs ----------------------------------------------------------------------------


def test_a_spec_is_a_name_with_settings_and_alternatives():
    specs = read_specs("bots, forgetting=0|.01, choice=mean")
    assert [spec.settings for spec in specs] == [
        {"forgetting": 0, "choice": "mean"},
        {"forgetting": 0.01, "choice": "mean"},
    ]
    assert specs[1].label == "bots, forgetting 0.01, choice mean"
    assert read_specs("a/b.py:rule,label=mine,seeds=4")[0]._replace(settings={}) == registry.Spec(
        "a/b.py:rule", {}, "mine", 4
    )


def test_a_star_is_every_free_strategy_once():
    labels = [spec.label for spec in registry.expand(["uniform", "*", "bots,forgetting=0"])]
    assert labels[0] == "uniform"
    assert len(set(labels)) == len(labels)
    assert {"bots", "bots, forgetting 0", "easy-to-hard"} <= set(labels)
    assert not {"oracle", "frontier"} & set(labels)


@pytest.mark.parametrize("text", ["", "bots,forgetting", "bots,a=1,a=2", "coin,seeds=0"])
def test_a_bad_spec_is_refused_with_its_text(text):
    with pytest.raises(ValueError, match=text.partition(",")[0] or "''"):
        read_specs(text)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nobody", "choose one of"),
        ("bots,forgeting=1", "no setting 'forgeting'"),
        ("bots,batch_size=4", "no setting 'batch_size'"),
        ("absent.py:rule", "no file"),
        (f"{STRANGER}:nothing", "no function 'nothing'"),
        ("no_such_module:rule", "cannot be imported"),
        ("operator:add", "is no factory: that takes batch_size and rollouts by name"),
    ],
)
def test_a_strategy_that_cannot_be_made_is_named(text, match):
    with pytest.raises(ValueError, match=match):
        registry.make_strategy(read_specs(text)[0])


def test_entry_points_are_found(monkeypatch):
    class Point:
        name, value, dist = "theirs", "package:rule", None

        def load(self):
            return registry.strategies()["uniform"]

    asked = []

    def entry_points(group):
        asked.append(group)
        return [Point()]

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    strategy, origin = registry.make_strategy(read_specs("theirs")[0])
    assert strategy.make(batch_size=4, rollouts=2).static["strategy"] == "uniform"
    assert "package:rule" in origin
    assert asked == ["bots_jax.strategies"]


def test_a_strategy_reports_its_own_refusal():
    with pytest.raises(ValueError, match=r"strategy mine: forgetting=2"):
        Strategy("mine", registry.strategies()["bots"], {"forgetting": 2.0}).make(
            batch_size=4, rollouts=2
        )


# --- cells ----------------------------------------------------------------------------


def test_the_identity_of_a_cell_is_all_that_its_numbers_depend_on():
    def cell(environment=PLAIN, strategy="bots", seed=0):
        return make_plan(small((strategy,), (environment,))).jobs[0].cell(seed)

    assert cell() == cell()
    assert cell(strategy="bots,label=other") == cell()
    others = [
        cell(seed=1),
        cell(strategy="bots,forgetting=0.2"),
        cell(strategy="uniform"),
        cell(environment=f"{PLAIN},tasks=30"),
    ]
    assert len({cell(), *others}) == 5


def test_a_changed_file_is_another_strategy(tmp_path):
    file = tmp_path / "rules.py"
    file.write_text("from bots_jax.strategies import uniform\n")
    before = make_plan(small((f"{file}:uniform",))).jobs[0].cell(0)
    file.write_text("from bots_jax.strategies import uniform  # better\n")
    assert make_plan(small((f"{file}:uniform",))).jobs[0].cell(0) != before


def test_what_is_finished_is_not_run_again_and_more_is_added(tmp_path):
    store = Store(tmp_path / "results.jsonl")
    run_plan(make_plan(small(seeds=2)), store, quiet)
    first = store.path.read_bytes()
    told = []
    outcome = run_plan(make_plan(small(seeds=3)), store, lambda *now: told.append(now))
    assert told[0][1:] == (4, 6)
    assert store.path.read_bytes().startswith(first)
    assert len(outcome.records) == len(store.read()) == 6
    assert [record["seed"] for record in outcome.records] == [0, 1, 2, 0, 1, 2]


def test_seeds_begin_where_they_are_told_to():
    plan = make_plan(small(seeds=3)._replace(first_seed=10))
    assert {job.seeds for job in plan.jobs} == {(10, 11, 12)}
    with pytest.raises(ValueError, match="first_seed=-1 must be at least 0"):
        make_plan(small(seeds=3)._replace(first_seed=-1))


def test_compiled_programs_go_before_memory_maps_run_out(monkeypatch):
    cleared: list[float] = []
    monkeypatch.setattr(runner.jax, "clear_caches", lambda: cleared.append(used))
    for used in (0.4, 0.6):
        monkeypatch.setattr(runner, "share_of_maps", lambda share=used: share)
        runner.make_room()
    assert cleared == [0.6]


def test_memory_maps_are_counted():
    before = runner.share_of_maps()
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps: nothing to count on this system")
    # Neighbours of different protection stay apart.
    held = [mmap.mmap(-1, 4096, prot=(mmap.PROT_READ, mmap.PROT_WRITE)[i % 2]) for i in range(200)]
    assert 0 < before < runner.share_of_maps() < 1
    assert len(held) == 200


def test_torn_and_damaged_lines_are_passed_over(tmp_path):
    store = Store(tmp_path / "results.jsonl")
    store.append([{"cell": "a", "n": 1}, {"cell": "b", "n": 2}])
    with store.path.open("ab") as file:
        file.write(b'{"cell": "c", "n": ')  # killed here
    assert set(store.read()) == {"a", "b"}
    store.append([{"cell": "c", "n": 3}, {"cell": "a", "n": 9}])
    assert {cell: record["n"] for cell, record in store.read().items()} == {"a": 1, "b": 2, "c": 3}


def test_a_strategy_that_an_environment_refuses_is_left_out_with_the_reason(tmp_path):
    plan = make_plan(small(("uniform", "easy-to-hard")))
    outcome = run_plan(plan, Store(tmp_path / "results.jsonl"), quiet)
    assert {record["strategy"] for record in outcome.records} == {"uniform"}
    assert outcome.failed[0].startswith("plain: easy-to-hard: reference is None")


def test_labels_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="'uniform' is there twice"):
        make_plan(small(("uniform", "uniform")))
    with pytest.raises(ValueError, match="baseline='nobody'"):
        make_plan(small()._replace(baseline="nobody"))


def test_data_that_are_absent_leave_their_environment_out(tmp_path):
    plan = make_plan(small(environments=(PLAIN, "replay,path=nowhere.npz")), data=tmp_path)
    assert [job.environment.name for job in plan.jobs] == ["plain", "plain"]
    assert "nowhere.npz" in plan.absent[0]


# --- matrix files ---------------------------------------------------------------------


def test_every_named_matrix_can_be_read_and_its_strategies_made():
    named = matrices.named_matrices()
    assert {"trace", "prediction"} <= set(named)
    for path in named.values():
        matrix = matrices.read_matrix(path)
        labels = []
        for spec in registry.expand(matrix.strategies):
            registry.make_strategy(spec)[0].make(batch_size=4, rollouts=16)
            labels.append(spec.label)
        assert matrix.baseline in labels


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seeds = ", "no TOML"),
        ("sedes = 3", "'sedes' is not known"),
        ('seeds = "3"', "seeds='3' must be of type int"),
        ("strategies = [3]", "list of texts"),
    ],
)
def test_a_bad_matrix_file_is_named(tmp_path, text, match):
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        matrices.read_matrix(path)


# --- the command ----------------------------------------------------------------------


def bench(*given):
    return main(["bench", *map(str, given)])


def test_a_stranger_gets_a_row_without_touching_the_package(tmp_path, recording, capsys):
    out = tmp_path / "out"
    status = bench(
        "--environment", recording, "--environment", f"{COIN},tasks=12",
        "--strategy", "uniform", "--strategy", f"{STRANGER}:least_seen,power=0.5",
        "--seeds", 3, "--out", out,
    )  # fmt: skip
    assert status == 0
    summary = (out / "summary.md").read_text()
    assert "| stranger.py:least_seen, power 0.5 |" in summary
    assert "## coin" in summary
    assert "## replay of run" in summary
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"luck", "etr"} <= {row["metric"] for row in rows if row["environment"] == "coin"}
    plots = {path.name for path in out.glob("*.png")}
    assert {f"replay-of-run-{name}.png" for name in (
        "dots", "curves", "plane", "calibration", "beliefs", "visits",
    )} <= plots  # fmt: skip
    assert "least_seen" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_status_2(tmp_path, capsys):
    assert bench("--strategy", "nobody", "--environment", COIN, "--out", tmp_path) == 2
    assert bench("--strategy", "uniform", "--out", tmp_path) == 2
    assert bench("no-such-matrix", "--out", tmp_path) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_the_list_names_everything(capsys):
    assert bench("--list") == 0
    offered = json.loads(capsys.readouterr().out)
    assert "trace" in offered["matrices"]
    assert {"uniform", "frontier"} <= set(offered["strategies"])
    assert {"replay", "predict", "simulation", "finetune"} <= set(offered["environments"])


def test_killed_at_any_moment_it_ends_with_the_same_numbers(tmp_path):
    """kill -9 as soon as the first cells are on disk, then the same command."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\n"
        "from bots_jax.bench import Environment, Measured\n"
        "def slow(tasks=1):\n"
        "    def run(strategy, seeds):\n"
        "        time.sleep(0.2)\n"
        "        return [Measured({'etr': 1 / (3 + s)}) for s in seeds]\n"
        "    return Environment('slow', run, {'tasks': tasks}, chunk=1)\n"
    )
    given = ["--environment", f"{slow}:slow", "--strategy", "uniform", "--strategy", "bots"]
    command = [sys.executable, "-m", "bots_jax.cli", "bench", *given, "--no-plots", "--seeds", "8"]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    file = out / "results.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (file.exists() and file.stat().st_size):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = Store(file).read()
    assert 0 < len(before) < 16
    with file.open("ab") as torn:
        torn.write(b'{"cell": "half a li')
    assert bench(*given, "--no-plots", "--seeds", 8, "--out", out) == 0
    assert bench(*given, "--no-plots", "--seeds", 8, "--out", tmp_path / "whole") == 0
    resumed, whole = (
        {cell: one["values"] for cell, one in Store(path).read().items()}
        for path in (file, tmp_path / "whole" / "results.jsonl")
    )
    assert resumed == whole
    assert len(whole) == 16
