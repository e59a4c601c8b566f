"""What `import bots_jax` costs beyond jax, and that it brings in no framework.

In: nothing. Out: seconds, the median of `--runs` processes each, taken in turns; exit status 1
above `--limit` or if a framework came along.

    python -m benchmarks.import_time
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

# None of these may be loaded by `import bots_jax`.
FRAMEWORKS = (
    "flax", "optax", "orbax", "chex", "grain", "torch", "torchdata", "trl", "transformers",
    "trinity", "tunix", "matplotlib", "rich", "pyarrow", "scipy",
)  # fmt: skip

_TIMED = """
import json, sys, time
import jax, jax.numpy
already = set(sys.modules)
start = time.perf_counter()
{extra}
seconds = time.perf_counter() - start
new = sorted({{name.partition('.')[0] for name in set(sys.modules) - already}})
print(json.dumps([seconds, new]))
"""


def measure(module: str) -> tuple[float, list[str]]:
    """Seconds that `import module` takes once jax is there, and the packages it brings."""
    code = _TIMED.format(extra=f"import {module}")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, names = json.loads(ran.stdout)
    return seconds, names


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.3, help="seconds for bots_jax")
    asked = parser.parse_args()
    modules = ("bots_jax", "bots_jax.adapters")
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    unwanted: set[str] = set()
    for _ in range(asked.runs):
        for module in modules:
            took, names = measure(module)
            seconds[module].append(took)
            unwanted |= set(names) & set(FRAMEWORKS)
    for module, all_of_them in seconds.items():
        print(f"import {module}: {statistics.median(all_of_them):.3f} s beyond jax")
    if unwanted:
        print(f"brought in: {', '.join(sorted(unwanted))}")
    return int(bool(unwanted) or statistics.median(seconds["bots_jax"]) > asked.limit)


if __name__ == "__main__":
    sys.exit(main())
