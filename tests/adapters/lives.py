"""Runs a training script in processes of their own: whole, killed, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def live(script: Path, folder: Path, *arguments: object, die_at: int = -1) -> list[Any]:
    """One life of `script FOLDER DIE_AT ARGUMENTS`; the JSON lines that it has printed."""
    command = [sys.executable, str(script), str(folder), str(die_at), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    expected = -signal.SIGKILL if die_at >= 0 else 0
    assert ran.returncode == expected, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"')]


def assert_a_kill_changes_nothing(
    script: Path, folder: Path, *arguments: object, die_at: int
) -> list[Any]:
    """Killed in the middle of a step and resumed, the run ends bit for bit as if it was not."""
    whole = live(script, folder / "whole", *arguments)
    before = live(script, folder / "killed", *arguments, die_at=die_at)
    after = live(script, folder / "killed", *arguments)
    assert before == whole[: len(before)]
    assert len(before) == die_at
    resumed = after[0]["step"]
    assert 0 < resumed <= die_at
    assert after == whole[resumed:]
    return whole


def die() -> None:
    """As the machine might: nothing is closed or flushed."""
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def tell(**values: Any) -> None:
    """A line of the record."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
