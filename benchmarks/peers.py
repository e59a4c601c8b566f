"""The implementations that are measured beside ours, where they are installed.

`pip install --no-deps trinity-rft==0.6.0` and torch bring the selector of the paper's authors.
Its two files need only NumPy, torch and a few of their own modules, which are stubbed: what
they do in a step is untouched.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_STUBS: dict[str, dict[str, Any]] = {
    "trinity": {},
    "trinity.buffer": {},
    "trinity.buffer.reader": {},
    "trinity.buffer.reader.file_reader": {"_HFBatchReader": object},
    "trinity.buffer.selector": {},
    "trinity.common": {},
    "trinity.common.config": {"DataSelectorConfig": object},
    "trinity.utils": {},
    "trinity.utils.annotations": {"Experimental": lambda cls: cls},
    "trinity.utils.log": {"get_logger": lambda name, **_: logging.getLogger(name)},
}


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _load(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name} is not at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def authors_selector(reference: np.ndarray, rollouts: int, forgetting: float) -> Any:
    """A `DifficultyBasedSelector` of trinity-rft, drawing from posteriors, target 0.5.

    Args:
      reference: f64[2, N], weak and strong.
    """
    folder = metadata.distribution("trinity-rft").locate_file("trinity/buffer/selector")
    for name, content in _STUBS.items():
        stub = sys.modules.setdefault(name, ModuleType(name))
        stub.__dict__.update(content)
    _load("trinity.buffer.selector.difficulty_estimator", f"{folder}/difficulty_estimator.py")
    selectors = _load("trinity.buffer.selector.selector", f"{folder}/selector.py")
    settings = {
        "m": rollouts, "lamb": forgetting, "rho": 0.1,
        "do_sample": True, "target_reward": 0.5, "tau": 0,
    }  # fmt: skip
    config = SimpleNamespace(feature_keys=["weak", "strong"], kwargs=settings, seed=0)
    small = {"weak": [0.0], "strong": [1.0]}
    selector = selectors.DifficultyBasedSelector(
        SimpleNamespace(dataset=small, dataset_size=1), config
    )
    # The class turns columns into Python lists, which at 1e7 tasks is all that it would do for
    # a minute; its estimator is given the same array directly.
    make = sys.modules["trinity.buffer.selector.difficulty_estimator"].InterpolationBetaPREstimator
    selector.diff_estimator = make(np.ascontiguousarray(reference.T), rollouts, forgetting, 0.1)
    return selector
