"""The main job: killed at any moment it goes on to the same numbers; bad input is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bots_jax import cli
from bots_jax.rl.run_folder import RunFolder

TINY = [
    "finetune", "--strategies", "uniform,bots", "--seeds", "1", "--steps", "8",
    "--batch-size", "4", "--rollouts", "4", "--eval-every", "4", "--eval-rollouts", "1",
    "--num-tasks", "64", "--num-held-out", "32", "--warmup-early", "1", "--warmup-steps", "2",
    "--warmup-late", "3", "--reference-rollouts", "2",
    "--checkpoint-every", "1",
]  # fmt: skip
# With as many devices as the tests, or they find nothing that is compiled already.
CHILD = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
READ_COMPILED_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
TIMINGS = ("seconds", "select_ms", "step_ms")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(out: Path, cache: Path, *more: str) -> list[str]:
    return [*TINY, "--out", str(out), "--cache", str(cache), *more]


def numbers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every recorded line of every run, but for the clock."""
    folder = RunFolder(out)
    runs = sorted(path.stem for path in (out / "steps").glob("*.jsonl"))
    return {
        run: [
            {key: value for key, value in line.items() if key not in TIMINGS}
            for line in folder.lines(run)
        ]
        for run in runs
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(command(out, cache)) == 0
    return out


def test_leaves_results_a_stranger_can_read(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [line["strategy"] for line in lines] == ["uniform", "bots"]
    assert all(0 <= line["final_heldout"] <= 1 and line["steps"] == 8 for line in lines)
    assert all(line["heldout_step"] == [0, 4, 8] for line in lines)
    assert all(line["heldout"][2] == line["final_heldout"] for line in lines)
    assert "| bots |" in (whole / "summary.md").read_text()
    for name in ("heldout.png", "etr.png", "plane.png", "summary.csv"):
        assert (whole / name).stat().st_size > 500
    steps = numbers(whole)["bots-0"]
    assert [line["step"] for line in steps] == list(range(9))
    assert all(len(set(line["task_ids"])) == 4 for line in steps[1:])
    assert steps[-1]["tokens"] > steps[1]["tokens"] > 0


def test_strategies_of_a_seed_start_alike(whole: Path) -> None:
    first = {run: lines[0]["heldout"] for run, lines in numbers(whole).items()}
    assert len(set(first.values())) == 1


def start(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "bots_jax.cli", *command(out, cache, "--resume")]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=CHILD)


def wait_for_lines(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many steps are recorded, or the process has ended."""
    while process.poll() is None:
        if sum(len(lines) for lines in numbers(out).values()) >= count:
            return
        time.sleep(0.02)


@pytest.mark.parametrize("moments", [(3, 12), pytest.param((2, 12, 13), marks=pytest.mark.long)])
def test_kill_and_resume_end_with_the_same_numbers(
    tmp_path: Path, cache: Path, whole: Path, moments: tuple[int, ...]
) -> None:
    """kill -9 in the first run, and in the second, which had resumed; and once more."""
    out = tmp_path / "run"
    jitter = random.Random(0)
    for lines in moments:
        process = start(out, cache)
        wait_for_lines(out, lines, process)
        time.sleep(jitter.uniform(0, 0.15))
        process.kill()
        process.communicate()
    assert cli.main(command(out, cache, "--resume")) == 0
    assert numbers(out) == numbers(whole)
    scalars = [json.loads((folder / "results.jsonl").read_text().splitlines()[1])
               for folder in (out, whole)]  # fmt: skip
    assert scalars[0]["heldout"] == scalars[1]["heldout"]


def test_lost_lines_fall_back_to_an_older_checkpoint(
    tmp_path: Path, cache: Path, whole: Path
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    file = out / "steps" / "bots-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:8]) + lines[8][:40])  # step 8 is damaged, its checkpoint whole
    assert cli.main(command(out, cache, "--resume")) == 0
    assert numbers(out) == numbers(whole)
    file.write_text(lines[0])  # too old for any checkpoint that is kept
    assert cli.main(command(out, cache, "--resume")) == 2


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "run"
    process = start(out, cache)
    wait_for_lines(out, 3, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert b"--resume goes on" in errors
    recorded = numbers(out)["uniform-0"]
    assert (out / "checkpoints" / "uniform-0" / f"step_{recorded[-1]['step']:08d}").is_dir()


def test_settings_alone_are_no_results(tmp_path: Path) -> None:
    """A run that was refused, or stopped before its first step, does not block its folder."""
    folder = RunFolder(tmp_path)
    folder.open({"seeds": 1}, resume=False, overwrite=False)
    folder.open({"seeds": 2}, resume=False, overwrite=False)
    folder.append("run", {"step": 0})
    with pytest.raises(ValueError, match="already holds results"):
        folder.open({"seeds": 2}, resume=False, overwrite=False)


def test_overwriting_deletes_what_a_comparison_writes_and_nothing_else(tmp_path: Path) -> None:
    """A folder of weights has a config.json too."""
    folder = RunFolder(tmp_path)
    folder.open({"seeds": 1}, resume=False, overwrite=False)
    folder.append("run", {"step": 0})
    (tmp_path / "results.jsonl").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.safetensors").write_text("weights")
    folder.open({"seeds": 2}, resume=False, overwrite=True)
    assert not folder.lines("run")
    assert not (tmp_path / "results.jsonl").exists()
    assert (tmp_path / "data" / "model.safetensors").read_text() == "weights"


def test_what_differs_in_a_resume_is_named_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({"loop": {"rate": {"first": 1, "last": 0}, "rollouts": 8}}, resume=False,
                overwrite=False)  # fmt: skip
    folder.append("run", {"step": 0})
    with pytest.raises(ValueError, match=r"was made with loop\.rate\.last=0, now it is 2: resume"):
        folder.open({"loop": {"rate": {"first": 1, "last": 2}, "rollouts": 8}}, resume=True,
                    overwrite=False)  # fmt: skip


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open({}, resume=False, overwrite=False)
    for step in range(3):
        folder.append("run", {"step": step})
    with (tmp_path / "steps" / "run.jsonl").open("a") as file:
        file.write('{"step": 3, "etr": 0.')
    assert [line["step"] for line in folder.lines("run")] == [0, 1, 2]
    assert len(folder.keep("run", 2)) == 2
    folder.append("run", {"step": 2})
    assert [line["step"] for line in folder.lines("run")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--first-seed", "-1"], "first_seed=-1 must not be negative"),
        (["--first-seed", str(2**32 - 1), "--seeds", "2"], "the last seed is 4294967296"),
        (["--rollouts", "1"], "--rollouts 1 must be at least 2"),
        (["--strategies", "uniform,botts"], "strategy='botts' is not known"),
        (["--strategies", "bots,bots"], "must name at least one, each once"),
        (["--forgetting", "2"], "forgetting=2.0 must lie in [0, 1]"),
        (["--learning-rate", "-1"], "learning_rate=-1.0"),
        (["--batch-size", "65"], "batch_size=65 exceeds the pool of 64 tasks"),
        (["--verifier", "json:loads"], "verifier='json:loads' is for tasks of your own"),
        (["--tasks", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_settings(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(command(tmp_path / "run", cache, *more)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_refuses_a_folder_in_use_and_other_settings(
    whole: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = numbers(whole)
    assert cli.main(command(whole, cache)) == 2
    assert "already holds results: give --resume" in capsys.readouterr().err
    assert cli.main(command(whole, cache, "--resume", "--forgetting", "0.2")) == 2
    assert "was made with settings={}, now it is {'forgetting': 0.2}" in capsys.readouterr().err
    assert numbers(whole) == before


def test_resume_adds_strategies(whole: Path, cache: Path) -> None:
    before = numbers(whole)
    assert cli.main(command(whole, cache, "--resume", "--strategies", "uniform,bots-mean")) == 0
    after = numbers(whole)
    assert set(after) == {"uniform-0", "bots-0", "bots-mean-0"}
    assert after["uniform-0"] == before["uniform-0"]


def reward_even(prompt: str, completion: str) -> float:
    """A verifier of a user: a half for any completion, one for an even number of characters."""
    return 1.0 if len(completion) % 2 == 0 else 0.5


def test_tasks_and_verifier_of_the_user(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [{"prompt": f"{k}+1=", "id": f"task{k}", "reference": [0.25, 0.5]} for k in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    own = ["--tasks", str(file), "--verifier", "tests.rl.test_finetune:reward_even"]
    assert cli.main(command(out, cache, *own, "--steps", "2")) == 0
    successes = np.array([line["successes"] for line in numbers(out)["bots-0"][1:]])
    assert np.all(successes >= 4 * 0.5)
    assert np.all(successes % 0.5 == 0)


OWN_VERIFIERS = """
import jax.numpy as jnp
from bots_jax.rl.tasks import exact_verifier

def not_a_number(prompt, completion):
    return float("nan")

def broken(prompt, completion):
    raise KeyError("grader")

def exact(pool):
    return exact_verifier(pool.answers)

def endless(pool):
    return lambda task_ids, completions: jnp.full(completions.shape[:2], jnp.inf)

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, the working directory: tasks in two domains, and verifiers."""
    rows = [
        {"prompt": f"what is the sum {k}+{k + 1}=", "answer": str(2 * k + 1), "domain": "ab"[k % 2],
         "reference": [0.25, 0.5]}
        for k in range(40)
    ]  # fmt: skip
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_verifiers.py").write_text(OWN_VERIFIERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_verifiers", raising=False)
    return tmp_path


def own_command(own: Path, cache: Path, *more: str) -> list[str]:
    tasks = ["--tasks", "tasks.jsonl", "--max-prompt-tokens", "24", "--steps", "1"]
    return command(own / "run", cache, *tasks, *more)


def test_long_prompts_domains_and_a_jitted_verifier_of_the_user(own: Path, cache: Path) -> None:
    judge = ["--verifier", "own_verifiers:exact", "--verifier-kind", "jax", "--by-domain"]
    assert cli.main(own_command(own, cache, *judge)) == 0
    assert len(numbers(own / "run")["bots-0"][1]["capability"]) == 2


@pytest.mark.parametrize(
    ("verifier", "kind", "message"),
    [
        ("not_a_number", "python", "the verifier returned nan for prompt 'what is"),
        ("broken", "python", "the verifier raised KeyError: 'grader' for prompt"),
        ("endless", "jax", "a held-out task a mean reward of inf"),
        ("number", "python", "is 3, which is no function"),
        ("nowhere", "python", "cannot be imported (AttributeError"),
    ],
)
def test_a_verifier_that_fails_is_one_clear_line(
    own: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    verifier: str,
    kind: str,
    message: str,
) -> None:
    judge = ["--verifier", f"own_verifiers:{verifier}", "--verifier-kind", kind]
    assert cli.main(own_command(own, cache, *judge)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_unfit_tasks_are_found_before_anything_is_trained(
    own: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(own_command(own, cache, "--max-prompt-tokens", "18")) == 2
    assert "more than max_prompt_tokens=18; raise that" in capsys.readouterr().err
    text = (own / "tasks.jsonl").read_text()
    (own / "tasks.jsonl").write_text(text.replace("[0.25, 0.5]", "[0.25]"))
    assert cli.main(own_command(own, cache, "--overwrite")) == 2
    assert "strategy bots: reference has 1 row(s)" in capsys.readouterr().err
    assert not list((own / "run" / "steps").iterdir())
    (own / "tasks.jsonl").write_text(text)
    assert cli.main(own_command(own, cache)) == 0  # what was refused left nothing to go on with


def test_unwritable_results_are_one_clear_line(
    cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(command(tmp_path / "file" / "run", cache)) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.long  # quick for a single checkpoint: tests/test_checkpoint.py
def test_a_full_disk_stops_with_one_clear_line_and_loses_nothing(
    cache: Path, tmp_path: Path, whole: Path
) -> None:
    """Files that may not grow stand for a disk that is full; later there is room again."""
    out = tmp_path / "run"
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (20_000, 20_000));"
    run = "import sys; from bots_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    full = subprocess.run(
        [sys.executable, "-c", limit + run, *command(out, cache)],
        capture_output=True, text=True, check=False, env={**CHILD, **READ_COMPILED_ONLY},
    )  # fmt: skip
    assert full.returncode == 2, full.stderr
    assert "could not be written" in full.stderr
    # None of ours: Orbax's own thread may complain that the interpreter is ending.
    frames = [line for line in full.stderr.splitlines() if line.lstrip().startswith("File ")]
    assert not [line for line in frames if "bots_jax" in line], full.stderr
    assert cli.main(command(out, cache, "--resume")) == 0
    assert numbers(out)["bots-0"] == numbers(whole)["bots-0"]
