"""Build the wheel and install it in clean environments: each extra on each Python.

In: the repository, `python3.11` to `python3.13` on the path (those that are missing are named
and left out), a package index. Out: exit status 0 if every environment imports and runs it.

    python benchmarks/wheel_check.py [--extras checkpoint rl ...]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13")
# What each extra must make possible to import.
EXTRAS = {
    "checkpoint": "orbax.checkpoint, bots_jax.checkpoint",
    "rl": "flax.nnx, optax, bots_jax.rl.loop",
    "cli": "rich, bots_jax.cli",
    "plots": "matplotlib",
    "parquet": "pyarrow",
    "grain": "bots_jax.adapters.grain",
    "llm": "gguf, reasoning_gym, tokenizers, bots_jax.rl.llm",
    "pytorch": "torch, torchdata, bots_jax.adapters.pytorch",
    "trl": "trl, bots_jax.adapters.pytorch",
    "tunix": "tunix, bots_jax.adapters.tunix",
}
TRY = """
import jax, bots_jax
from bots_jax.adapters import TaskSampler
sampler = TaskSampler(bots_jax.bots(batch_size=4, rollouts=8), num_tasks=40)
batch = sampler.next_batch()
sampler.observe(batch.task_ids, [1, 2, 3, 4], 8, batch.visits)
assert float(sampler.advance().trials) == 32
assert bots_jax.__file__.startswith({venv!r}), bots_jax.__file__
"""


def works(python: str) -> bool:
    """Whether this Python is there; a launcher without its Python is not."""
    found = shutil.which(python)
    return bool(found) and not subprocess.run([python, "-V"], capture_output=True).returncode


def check(python: str, wheel: Path, extra: str, folder: Path) -> bool:
    """Install `wheel[extra]` in an environment of its own, and try it outside the repository."""
    venv = folder / f"{python}-{extra or 'plain'}"
    subprocess.run([python, "-m", "venv", str(venv)], check=True)
    inside = str(venv / "bin" / "python")
    wanted = f"bots-jax[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    install = [inside, "-m", "pip", "install", "--quiet", wanted]
    code = TRY.format(venv=str(venv)) + (f"import {EXTRAS[extra]}\n" if extra else "")
    done = all(
        subprocess.run(command, cwd=folder).returncode == 0
        for command in (install, [inside, "-c", code])
    )
    shutil.rmtree(venv)
    print(f"{'ok    ' if done else 'FAILED'} {python} {extra or 'no extras'}", flush=True)
    return done


def main() -> int:
    """Each Python without extras, then with each of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--extras", nargs="*", choices=sorted(EXTRAS), default=list(EXTRAS))
    asked = parser.parse_args()
    pythons = [python for python in PYTHONS if works(python)]
    for missing in sorted(set(PYTHONS) - set(pythons)):
        print(f"not here: {missing}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            name,
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        cases = [(python, extra) for python in pythons for extra in ("", *asked.extras)]
        results = [check(python, wheel, extra, folder) for python, extra in cases]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
