"""References that a language model measured of itself are kept whole, or not at all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bots_jax.rl.llm import finetune


def measured(folder: Path) -> np.ndarray:
    config: Any = SimpleNamespace(reference=None, reference_steps=1)
    pool: Any = SimpleNamespace(prompts=np.zeros((3, 2), np.int32))
    nothing: Any = None
    return finetune._reference(config, nothing, nothing, pool, nothing, folder, nothing)


def test_references_that_were_cut_short_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 1.0]], np.float32)
    monkeypatch.setattr(finetune, "_train_uniformly", lambda *_: None)
    monkeypatch.setattr(finetune, "_measure", lambda *args: rates[args[-1]])

    def cut_short(file: Any, array: np.ndarray) -> None:
        file = file.open("wb") if isinstance(file, Path) else file
        file.write(b"\x93NUMPY")
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", cut_short)
        with pytest.raises(OSError, match="killed"):
            measured(tmp_path)
    np.testing.assert_array_equal(measured(tmp_path), rates)
    monkeypatch.setattr(finetune, "_measure", lambda *_: pytest.fail("they were kept"))
    np.testing.assert_array_equal(measured(tmp_path), rates)
