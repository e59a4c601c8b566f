"""The command line beside what each command's own tests say: what is missing, wrong or stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bots_jax import cli
from bots_jax.evaluate import replay

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.npz"
    rates = np.random.default_rng(0).random((5, 40))
    np.savez(path, success_rate=rates, reference=rates[:2], rollouts=8)
    return path


COMMANDS, GIVEN = ("finetune", "finetune-llm"), ([], ["--help"], ["--out", "x", "--resume"])
ENVIRONMENTS = ("worlds,world=frontier", "finetune")
BENCH = ["bench", "--strategy", "uniform", "--environment"]


@pytest.fixture(scope="module")
def without_flax(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each command returns, and says on stderr, in one process that cannot import flax."""
    cases = [[command, *given] for command in COMMANDS for given in GIVEN]
    cases += [[*BENCH, environment] for environment in ENVIRONMENTS]
    code = """
import contextlib, io, json, sys
sys.modules["flax"] = None
from bots_jax.cli import main
for given in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = main(given)
    print(json.dumps([str(given), [status, told.getvalue()]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cases)],
        capture_output=True, text=True, cwd=tmp_path_factory.mktemp("cli"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("given", GIVEN)
def test_a_command_without_its_libraries_says_what_to_install(
    command: str, given: list[str], without_flax: dict[str, tuple[int, str]]
) -> None:
    status, told = without_flax[str([command, *given])]
    assert status == 2
    extra = {"finetune": "cli,plots", "finetune-llm": "llm"}[command]
    assert told == (
        f"bots-jax {command}: needs flax, which is not installed: pip install 'bots-jax[{extra}]'\n"
    )


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_bench_without_its_libraries_says_what_to_install(
    environment: str, without_flax: dict[str, tuple[int, str]]
) -> None:
    status, told = without_flax[str([*BENCH, environment])]
    assert status == 2
    assert told == "bots-jax bench: needs flax: pip install 'bots-jax[cli,plots]'\n"


def test_ctrl_c_is_one_line(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replay, "replay_strategy", stopped)
    assert cli.main(["replay", str(recording), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "bots-jax: stopped"


@pytest.mark.parametrize("command", ["replay", "bench", "finetune"])
def test_an_out_that_is_no_folder_is_named(
    command: str, recording: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "file").write_text("")
    given = {
        "replay": ["replay", str(recording)],
        "bench": ["bench", "--environment", str(recording), "--strategy", "uniform"],
        "finetune": ["finetune"],
    }[command]
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main([*given, "--out", str(out)]) == 2
        assert f"--out {out} cannot be made a folder" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_to_is_named(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("bots_jax.evaluate.report.os.access", lambda *_: False)  # root may always
    assert cli.main(["replay", str(recording), "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} may not be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["bench", "worlds", "--only", "frontir"], "--only 'frontir' is in none of worlds,world="),
        (["bench", "--strategy", "uniform", "--environment", "no.npz"], "no.npz is neither here"),
        (["bench", "--strategy", "rule.py", "--environment", "simulation"], "rule.py:FUNCTION"),
    ],
)
def test_a_wrong_bench_says_what_is_wrong_with_it(given: list[str], message: str, capsys) -> None:
    assert cli.main(given) == 2
    assert message in capsys.readouterr().err


def test_a_matrix_of_models_is_no_recording_and_is_told_where_to_go(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "models.npz", success=np.zeros((4, 3)))
    np.savez(tmp_path / "other.npz", others=np.zeros((4, 3)))
    told = f"bots-jax bench --environment {tmp_path / 'models.npz'} takes a matrix"
    assert cli.main(["replay", str(tmp_path / "models.npz")]) == 2
    assert told in capsys.readouterr().err
    assert cli.main(["replay", str(tmp_path / "other.npz")]) == 2
    assert "takes a matrix" not in capsys.readouterr().err


def test_a_number_is_no_column(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "rates.npz", pass_rate=0.5)
    assert cli.main(["advise", str(tmp_path / "rates.npz")]) == 2
    assert "pass_rate must have shape [N]" in capsys.readouterr().err


def test_the_wheel_has_every_matrix_that_the_docs_name() -> None:
    """The folder of the matrices is not part of the package, so each file of it is listed."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = table["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    there = {path.name for path in (ROOT / "benchmarks" / "selection").glob("*.toml")}
    assert set(listed) == {f"benchmarks/selection/{name}" for name in there}
    assert set(listed.values()) == {f"bots_jax/bench/matrices/{name}" for name in there}
