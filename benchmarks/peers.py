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

from benchmarks.common import module_at

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


def authors_selector(reference: np.ndarray, rollouts: int, forgetting: float) -> Any:
    """A `DifficultyBasedSelector` of trinity-rft, drawing from posteriors, target 0.5.

    Args:
      reference: f64[2, N], weak and strong.
    """
    folder = metadata.distribution("trinity-rft").locate_file("trinity/buffer/selector")
    for name, content in _STUBS.items():
        stub = sys.modules.setdefault(name, ModuleType(name))
        stub.__dict__.update(content)
    module_at(f"{folder}/difficulty_estimator.py", "trinity.buffer.selector.difficulty_estimator")
    selectors = module_at(f"{folder}/selector.py", "trinity.buffer.selector.selector")
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
