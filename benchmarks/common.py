"""What every benchmark needs: medians of alternating runs, and a record of where it ran."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(os.environ.get("BOTS_JAX_RESULTS") or Path(__file__).parent / "results")


def no_options(doc: str | None) -> None:
    """`--help` of a script that has no options; another argument is an error."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=doc, formatter_class=form).parse_args()


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side, run in turns so that a busy machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        jax.block_until_ready(run())  # compile
    for _ in range(rounds):
        for name, run in sides.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def where(*peers: str) -> dict[str, Any]:
    """Machine, versions and commit; `peers` are named where they are installed."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    names = ["jax", "jaxlib", "numpy", *peers]
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: installed[name] for name in names if name in installed},
        "commit": commit.stdout.strip(),
    }


def save(name: str, rows: Any, peers: Sequence[str] = (), **more: Any) -> None:
    """Write results/NAME.json; a name with a folder is a path, and ".json" is not said twice."""
    path = Path(name if name.endswith(".json") else f"{name}.json")
    if path.parent == Path():
        path = RESULTS / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"where": where(*peers), "rows": rows, **more}, indent=1) + "\n")
    print(f"written to {path}")
