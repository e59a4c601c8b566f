"""`benchmarks.worlds`: its tables, and that it refuses runs which are no pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import worlds


def cell(strategy: str, seed: int, scores: list[float]) -> dict[str, Any]:
    steps = [0, 20, 40, 60]
    heldout = {"x": steps, "y": scores}
    return {
        "cell": f"{strategy}-{seed}", "environment": "frontier, 60 steps", "about": {}, "where": {},
        "strategy": strategy, "settings": {}, "seed": seed, "cell_seconds": 1.0,
        "values": {"etr": 0.5, "breadth": 7.0, "fall": 0.0, "heldout": scores[-1]},
        "series": {
            "heldout": heldout, "heldout_average": heldout,
            "tokens": {"x": steps, "y": [0.0, 10.0, 20.0, 30.0]},
        },
    }  # fmt: skip


def write(path: Path, cells: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in cells))
    return str(path)


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return [
        cell("uniform", 0, [0.1, 0.2, 0.3, 0.4]),
        cell("uniform", 1, [0.2, 0.3, 0.4, 0.5]),
        cell("auto", 0, [0.1, 0.4, 0.5, 0.6]),
        cell("auto", 1, [0.2, 0.5, 0.6, 0.6]),
    ]


def test_a_table_of_paired_runs(
    cells: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worlds, "OUT", tmp_path / "out")
    worlds.main([write(tmp_path / "results.jsonl", cells), "--table", "free"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["free.md"]
    rows = {
        line.split(" | ")[0]: line.split(" | ")
        for line in (tmp_path / "out" / "free.md").read_text().splitlines()
    }
    # .2 and .1: mean .15, half a width of 12.7 standard errors of .05.
    assert rows["| auto"][2] == "+0.150 [-0.485, +0.785]"
    assert rows["| auto"][1].startswith("0.600")
    assert rows["| uniform"][2] == ""


def test_all_three_files(
    cells: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worlds, "OUT", tmp_path / "out")
    worlds.main([write(tmp_path / "results.jsonl", cells)])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["curves.json", "heldout.png", "table.md"]
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    seeds = curves["frontier, 60 steps"]["strategies"]["auto"]["seeds"]
    assert seeds["1"]["heldout"] == [0.2, 0.5, 0.6, 0.6]


def test_runs_that_begin_differently_are_refused(
    cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    cells[3]["series"]["heldout"]["y"][0] = 0.21
    with pytest.raises(SystemExit, match=r"differ within a seed: \{1: \[0\.2, 0\.21\]\}"):
        worlds.main([write(tmp_path / "results.jsonl", cells), "--table", "free"])
