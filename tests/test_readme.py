"""The example of the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np


def test_example() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    ratios = np.asarray(names["ratios"])
    assert ratios.shape == (100,)
    assert ratios[-20:].mean() > 0.8
