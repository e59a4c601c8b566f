"""References of a language model: measured ones are kept whole, files that hold none are named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bots_jax.rl.llm import finetune


def measured(folder: Path, given: str | None = None) -> np.ndarray:
    config: Any = SimpleNamespace(reference=given, reference_steps=1)
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


def test_a_file_that_holds_no_rates_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rates.npy"
    np.save(path, np.full((2, 3), 0.5))
    np.testing.assert_array_equal(measured(tmp_path, str(path)), np.full((2, 3), 0.5))
    for name, content in (("empty.npy", b""), ("damaged.npy", path.read_bytes()[:-4])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: holds no pass rates f\[K, 3\]"):
            measured(tmp_path, str(tmp_path / name))
    np.savez(tmp_path / "rates.npz", np.full((2, 3), 0.5))
    np.save(tmp_path / "words.npy", np.array(["a", "b", "c"]))
    np.save(tmp_path / "wide.npy", np.full((2, 4), 0.5))
    for name in ("absent.npy", "rates.npz", "words.npy", "wide.npy"):
        with pytest.raises(ValueError, match=rf"{name}: holds no pass rates f\[K, 3\]"):
            measured(tmp_path, str(tmp_path / name))
