"""The notebooks run as they stand, in short, and are committed with whole outputs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import pytest

matplotlib = pytest.importorskip("matplotlib")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    every = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in every if cell["cell_type"] == kind]


def test_all_five_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


# In this process instead of a kernel of its own: what is compiled once serves all of them.
# The longest of them at every release: `make test-long`.
LONG = ("02", "03", "04")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.long if path.stem[:2] in LONG else ())
        for path in NOTEBOOKS
    ],
)
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOTS_JAX_QUICK", "1")
    monkeypatch.delenv("BOTS_JAX_TRACE", raising=False)
    monkeypatch.chdir(FOLDER)
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, cell in enumerate(cells(path, "code")):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {i}", "exec"), names)
    assert matplotlib.pyplot.get_fignums()  # it has drawn something
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_committed(path: Path) -> None:
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]
    assert os.path.getsize(path) < 600_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (FOLDER / target).exists(), target
