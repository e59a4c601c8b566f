"""A step of every selector lowers for TPU and for CUDA, on a machine that has neither.

Lowering is where an operation that a platform lacks is refused; nothing is compiled or run.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bots_jax import Evidence, Selector, State, auto, bots
from bots_jax.pool.reference import TaskFeatures
from bots_jax.strategies import STRATEGIES, make_strategy

PLATFORMS = ("tpu", "cuda")
BATCH, ROLLOUTS, SIZE = 16, 8, 2048  # large enough that draws are raced, not sorted
EVERYTHING = {"temperature": 0.1, "exploration": 0.25, "expiry": 3, "quotas": (5, 11)}
DOMAINS = np.arange(SIZE) % 2
FEATURES = np.random.default_rng(1).normal(size=(3, SIZE)).astype(np.float32)

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (make_strategy, {"name": name}) for name in sorted(STRATEGIES)},
    "bots, grouped": (bots, {"representation": "grouped"}),
    "auto, grouped": (auto, {"representation": "grouped"}),
    "bots, all settings": (bots, EVERYTHING),
    "auto, features": (auto, {"features": FEATURES}),
}


def lower(selector: Selector, state: State) -> export.Exported:
    """A whole step, traced once for all platforms."""

    def step(rng_key: jax.Array, state: State) -> Any:
        state, batch = selector.select(rng_key, state)
        graded = jnp.full(BATCH, 3.0), jnp.full(BATCH, float(ROLLOUTS))
        return selector.update(state, Evidence(batch.task_ids, *graded, batch.visit))

    return export.export(jax.jit(step), platforms=PLATFORMS)(jax.random.key(0), state)


# Most strategies are made of the same parts; these have others.
QUICK = ("auto", "auto, grouped", "auto, features", "bots", "bots, grouped", "easy-to-hard")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.long) for c in CASES]
)
def test_a_step_lowers_for_accelerators(case: str) -> None:
    make, options = CASES[case]
    features = options.get("features")
    settings = {key: value for key, value in options.items() if key != "features"}
    selector = make(batch_size=BATCH, rollouts=ROLLOUTS, **settings)
    rates = np.sort(np.random.default_rng(0).integers(0, 9, (2, SIZE)), axis=0) / 8
    reference: Any = rates.astype(np.float32)
    if features is not None:
        reference = TaskFeatures(reference, features)
    domains = DOMAINS if "quotas" in settings else None
    lowered = lower(selector, selector.init(reference, domains=domains))
    assert lowered.platforms == PLATFORMS
    text = lowered.mlir_module()
    # Nothing that TPUs emulate, and nothing that goes back to the host.
    assert "f64" not in text
    assert "callback" not in text


def test_what_a_platform_lacks_is_refused() -> None:
    """The test above can fail."""
    with pytest.raises(NotImplementedError, match="tpu"):
        export.export(jax.jit(jax.lax.linalg.schur), platforms=PLATFORMS)(jnp.eye(3))
