"""The gymnax example runs as one scan."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("gymnax")
EXAMPLE = Path(__file__).parents[3] / "examples" / "gymnax_cartpole.py"


def test_the_example_trains_and_prints(capsys):
    spec = importlib.util.spec_from_file_location("gymnax_cartpole", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--updates", "100"])
    first, second = capsys.readouterr().out.splitlines()
    assert float(first.split()[0]) > 0.1  # an untrained policy solves .016
    assert "hopeless" in second
