"""Every test sees several CPU devices; the engine's tests also refuse silent promotion."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import numpy as np
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
# Tests compile much and compute little: what LLVM would spend on optimising is not earned
# back, nor are the emitters of fused loops that are written in MLIR; without them compiling
# takes less than half the time. Set before the first computation, which is when XLA reads it.
# Users have none of the flags: `make users-flags` runs the tests of bits and some steps as they do.
EMITTERS = "xla_cpu_use_fusion_emitters"
knows_emitters = jaxlib.version.__version_info__ < (0, 12)  # XLA aborts at flags it has dropped
ONE_MODULE = "--xla_cpu_parallel_codegen_split_count=1"  # cut up for threads that nobody has
QUICK = ["--xla_backend_optimization_level=0"]
QUICK += [f"--{EMITTERS}=false", ONE_MODULE] * knows_emitters
if not os.environ.get("BOTS_JAX_USERS_FLAGS"):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK])
# `compiler_options` of the few functions that compute for long: there it is earned back.
OPTIMISED = {"xla_backend_optimization_level": 3}
# And where every bit must agree: without these emitters, arrays of other lengths, as each of
# several devices has them, are rounded otherwise.
EVERY_BIT = {EMITTERS: True} if knows_emitters else None

# What JAX traces is many small objects, of which few are garbage: seldom looked through.
gc.set_threshold(100_000, 50, 20)

# Compiled examples differ in duration by orders of magnitude, so no deadline; the same
# examples at every run, so that a failure here is a failure there.
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BOTS_JAX_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """dtype and rank promotion are errors, but in the training loop (flax, optax, jaxued)."""
    if {"rl", "llm"} & set(request.path.parts) or "adapters/levels" in request.path.as_posix():
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def reference() -> np.ndarray:
    """f32[2, 60] pass rates, weak below strong on average, multiples of 1/16."""
    rng = np.random.default_rng(7)
    weak = rng.binomial(16, rng.beta(1, 2, 60)) / 16
    strong = rng.binomial(16, np.clip(weak + rng.uniform(0, 0.5, 60), 0, 1)) / 16
    return np.stack([weak, strong]).astype(np.float32)


def shared_file(*parts: str) -> Path:
    """A file of the shared data, or a skip that says where it was looked for."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent: set BOTS_JAX_SHARED to the folder that holds it")
    return path


# How many tests `-m` has left out: with workers, pytest does not say. Each counts the same.
LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items and (told := getattr(items[0].config, "workeroutput", None)) is not None:
        told["left_out"] = told.get("left_out", 0) + len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests left out by -m '{config.option.markexpr}'")


COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one with each compilation."""
    seen: list[str] = []

    def listener(name: str, duration: float, **details: object) -> None:
        if name == COMPILED:
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield seen
    jax.monitoring.clear_event_listeners()
