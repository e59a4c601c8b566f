"""The examples of the README run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from bots_jax import bots


def examples() -> list[str]:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_loop() -> None:
    (code,) = [example for example in examples() if "train_step" in example]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    ratios = np.asarray(names["ratios"])
    assert ratios.shape == (100,)
    assert ratios[-20:].mean() > 0.8


def test_large_pools() -> None:
    (code,) = [example for example in examples() if "ReferenceGroups" in example]
    rng = np.random.default_rng(0)
    names: dict = {
        "selector": bots(batch_size=32),
        "successes": rng.integers(0, 17, (2, 300_000), dtype=np.uint8),
        "rates": np.float32([[0.25, 0.5], [0.5, 1.0]]),
        "sizes": np.array([600_000, 400_000]),
    }
    exec(compile(code, "README.md", "exec"), names)
    assert names["state"].representation == "grouped"
