"""The Python blocks of the README and of the guides that a user pastes run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str, path: Path, names: dict | None = None) -> dict:
    names = {} if names is None else names
    exec(compile(code, path.name, "exec"), names)
    return names


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_quick_start(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks(README) if "selector.update" in block]
    assert len([line for line in code.splitlines() if line.strip()]) < 15
    names = run(code, README)
    # Uniform selection finds 24% mixed groups in this pool at its best.
    assert float(names["info"].effective_task_ratio) > 0.5
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("mixed groups in the last step: ")
    assert len(printed) > 3


def test_the_rule_of_your_own() -> None:
    (code,) = [block for block in blocks(README) if "def score" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    import jax

    selector = run(code, README)["most_variance"](batch_size=4, rollouts=8)
    state, batch = selector.select(jax.random.key(0), selector.init(num_tasks=50))
    state, info = selector.update(state, batch.evidence(np.tile([1.0, 0.0], (4, 4))))
    assert float(info.effective_task_ratio) == 1


def test_large_pools() -> None:
    path = ROOT / "docs/large_pools.md"
    (code,) = blocks(path)
    assert run(code, path)["state"].representation == "grouped"


@pytest.mark.parametrize("page", ["auto", "features"])
def test_how_to_use_it(page: str) -> None:
    path, names = ROOT / f"docs/{page}.md", {}
    for code in blocks(path):
        run(code, path, names)
    assert names["state"].num_tasks == len(names["prompts"])
    assert names["state"].known.reference.embeddings is not None  # features were given


def test_the_loop_of_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Late and lost rollouts; groups of those selected are mixed more often than random ones."""
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs/your_loop.md"
    loop, resume = blocks(path)
    names = run(loop, path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    first = [int(share) for share in re.findall(r"(\d+)%", lines[0])]
    assert first[0] > first[1] + 10
    assert int(names["state"].in_flight) > 0
    run(resume, path, names)
    assert int(names["state"].in_flight) == 0
    assert int(names["policy"]["step"]) == names["STEPS"] == names["step"] + 1


@pytest.mark.long  # it compiles a scan for ten seconds
def test_levels_made_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "docs/adapters/levels.md"
    (code,) = blocks(path)
    names = run(code, path)
    assert "levels: 408 to 600" in capsys.readouterr().out
    assert np.all(np.asarray(names["rows"]) >= 0)  # every child has a row
    assert int(names["carry"][1].in_flight) == 0


def test_every_benchmark_is_listed() -> None:
    """A script that benchmarks/README.md does not name is found by nobody."""
    folder = ROOT / "benchmarks"
    listed = set(re.findall(r"\w+", (folder / "README.md").read_text(encoding="utf-8")))
    there = {path.stem for path in folder.rglob("*.py")} - {"__init__"}
    assert there <= listed, sorted(there - listed)
    matrices = (folder / "selection" / "README.md").read_text(encoding="utf-8")
    assert all(path.stem in matrices for path in folder.rglob("*.toml"))
