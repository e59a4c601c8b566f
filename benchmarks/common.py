"""What every benchmark needs: medians of alternating runs, and a record of where it ran."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

RESULTS = Path(os.environ.get("BOTS_JAX_RESULTS") or Path(__file__).parent / "results")


def no_options(doc: str | None) -> None:
    """`--help` of a script that has no options; another argument is an error."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=doc, formatter_class=form).parse_args()


def module_at(path: str | Path, name: str | None = None) -> ModuleType:
    """The module in a file, such as an example; under its own name if none is given."""
    name = Path(path).stem if name is None else name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name} is not at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def seeds_of(text: str) -> list[int]:
    """ "100-104" as a list."""
    low, _, high = text.partition("-")
    return list(range(int(low), int(high or low) + 1))


def append(path: Path, record: Mapping[str, Any]) -> None:
    """A line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


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
