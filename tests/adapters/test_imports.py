"""`import bots_jax` brings in no framework; nor do the adapters' common parts."""

from __future__ import annotations

from benchmarks.import_time import FRAMEWORKS, measure


def test_no_framework_comes_along() -> None:
    for module in ("bots_jax", "bots_jax.adapters"):
        _, brought = measure(module)
        assert "bots_jax" in brought
        assert not set(brought) & set(FRAMEWORKS)
