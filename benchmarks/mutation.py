"""Whether the suite can fail: faults planted one at a time, and the tests that notice.

In: the files of the engine's rooms. Out: for each fault of a random sample whether a test failed,
as JSON lines, and in the end results/mutation.json with the share that was noticed.

The checkout is copied first, and a server that has imported JAX forks a child for each fault, so
that nothing here is touched and nothing is imported twice. Which tests call which function, and how
long they take, is measured once; a fault is shown to the tests that call its function, the
quickest first, until one fails or those that take BUDGET seconds together have passed. What is
compiled for a function that did not change comes from a cache. A run that was stopped goes on.

Run: python -m benchmarks.mutation --seed 1 --count 100
     python -m benchmarks.mutation --named            (faults that people have planted)
     python -m benchmarks.mutation --report 1 2 3     (what results/mutation.json holds)
"""

from __future__ import annotations

import argparse
import ast
import builtins
import compileall
import contextlib
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.mutants import Mutant, mutants, plant

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("pool", "implicit", "belief", "choice", "grouped", "numerics", "strategies")
ALONE = ("compose", "growth", "bots_selector", "auto_selector")
# Slow, or of other rooms.
NOT_RUN = {
    "adapters", "bench", "evaluate", "features", "test_notebooks.py", "test_simulator.py",
    "test_size.py", "test_rooms.py", "test_sharding.py", "test_readme.py", "test_levels.py",
}  # fmt: skip
OF_RL = "test_policy_gradient.py"  # what notices the named fault of weight decay
BUDGET = 30.0  # seconds of tests that have passed, by what they take without a fault
LONGEST = 150  # seconds of processor time after which a child hangs
COPIED = ("bots_jax", "tests", "docs", "examples", "README.md", "CHANGELOG.md", "pyproject.toml")


class Work(NamedTuple):
    """Where things are, and what the tests do."""

    tree: Path
    folder: Path
    calls: dict[str, dict[str, list[str]]]  # file: function: tests
    seconds: dict[str, float]  # of each test


# Faults that a reader planted by hand: file, what stands there, what was put there.
NAMED: dict[str, tuple[str, str, str]] = {
    "nearest draws of auto compare with .9": (
        "bots_jax/choice/mixed.py",
        "distance = jnp.abs(rate - state.settings.target)",
        "distance = jnp.abs(rate - 0.9)",
    ),
    "the temperature of auto does nothing": (
        "bots_jax/choice/mixed.py",
        "scores -= settings.temperature * gumbel(",
        "scores -= 0 * gumbel(",
    ),
    "the temperature of auto's nearest draws does nothing": (
        "bots_jax/choice/mixed.py",
        "distance -= state.settings.temperature * noise",
        "distance -= 0 * noise",
    ),
    "evidence_of_rewards swaps visit and tokens": (
        "bots_jax/pool/graded.py",
        "trials, visit, tokens,",
        "trials, tokens, visit,",
    ),
    "new tasks begin with 0 visits": (
        "bots_jax/belief/logit_normal.py",
        "history.restart(rows, self.clock, visits)",
        "history.restart(rows, self.clock, 0.0)",
    ),
    "new tasks of balanced begin with 0 visits": (
        "bots_jax/strategies/worth.py",
        "mean = masked_mean(self.discounted, active)",
        "mean = 0.0",
    ),
    "no fixed share of the weights": (
        "bots_jax/belief/logit_normal.py",
        "jnp.log((1 - _SHARE) * jnp.exp(log_weights) + _SHARE / size)",
        "log_weights",
    ),
    "exploration is floored": (
        "bots_jax/choice/batch.py",
        "whole = math.floor(share + _ROUNDING)\n"
        "        remainder = share - whole if share - whole > _ROUNDING else 0.0",
        "whole = math.floor(share)\n        remainder = 0.0",
    ),
    "weight decay is ignored": (
        "bots_jax/rl/policy_gradient.py",
        "weight_decay=config.weight_decay",
        "weight_decay=0.0",
    ),
}


def sources() -> dict[str, str]:
    """The files that faults are planted in."""
    package = REPOSITORY / "bots_jax"
    paths = [path for room in ROOMS for path in sorted((package / room).glob("*.py"))]
    paths += [package / f"{name}.py" for name in ALONE]
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def sample(seed: int, count: int) -> list[tuple[str, Mutant]]:
    """`count` faults of all that there are, drawn uniformly, none twice."""
    every = [(name, mutant) for name, source in sources().items() for mutant in mutants(source)]
    return random.Random(f"mutation {seed}").sample(every, count)


# --- the copy, and children in it -----------------------------------------------------------


def copy_tree(folder: Path, name: str = "tree") -> Path:
    """The checkout as it is now, compiled to bytecode."""
    tree = folder / name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__", "results", "*.png")
    for part in COPIED:
        path = REPOSITORY / part
        if path.is_dir():
            shutil.copytree(path, tree / part, ignore=skip)
        elif path.exists():
            shutil.copy2(path, tree / part)
    compileall.compile_dir(str(tree / "bots_jax"), quiet=1)
    return tree


def import_what_is_slow() -> None:
    """Everything but the package and its tests; no device is touched, so a fork is safe."""
    os.environ["PYTHONPATH"] = ""
    import chex  # type: ignore[import-untyped]  # noqa: F401
    import flax  # noqa: F401
    import hypothesis  # noqa: F401
    import jax.numpy
    import jax.scipy.special  # noqa: F401
    import numpy  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401


# In a process that a test starts nobody listens.
_HEAR = "getattr(__import__('builtins'), 'bots_jax_hear', lambda *_: None)"


def instrument(tree: Path) -> None:
    """Have each function of the rooms say that it is called."""
    for name in sorted({*sources(), *(file for file, _, _ in NAMED.values())}):
        module = ast.parse((tree / name).read_text())
        _add_calls(module, name, "")
        (tree / name).write_text(ast.unparse(ast.fix_missing_locations(module)))


def _add_calls(node: ast.AST, file: str, inside: str) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            here = f"{inside}{child.name}"
            _add_calls(child, file, f"{here}.<locals>.")
            call = ast.parse(f"{_HEAR}({file!r}, {here!r})").body
            place = 1 if ast.get_docstring(child) is not None else 0
            child.body[place:place] = call
        elif isinstance(child, ast.ClassDef):
            _add_calls(child, file, f"{inside}{child.name}.")
        elif not isinstance(child, ast.expr):
            _add_calls(child, file, inside)


class Observer:
    """A plugin of pytest: which tests run, in which order, and what they call."""

    def __init__(self, order: dict[str, int] | None) -> None:
        self.order = order
        self.calls: set[tuple[str, str, str]] = set()
        self.seconds: dict[str, float] = {}
        self.failed = ""
        self.now, self.begin = "", 0.0

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Only the tests that are asked for, in that order."""
        if self.order is not None:
            known = self.order
            items[:] = sorted(
                (item for item in items if item.nodeid in known), key=lambda x: known[x.nodeid]
            )

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """A test begins."""
        self.now, self.begin = nodeid, time.process_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A part of it has ended."""
        self.seconds[report.nodeid] = time.process_time() - self.begin
        if report.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """A file could not even be imported."""
        if report.failed:
            self.failed = f"collection of {report.nodeid}"

    def hear(self, name: str, function: str) -> None:
        """Called by each function of the instrumented copy."""
        self.calls.add((name, function, self.now))


def in_child(work: Work, files: Sequence[str], order: dict[str, int] | None, record: bool) -> Any:
    """Run pytest in a fork: what it found, or None where it hung or died."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_tests(work, files, order, record, write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what tests started
    return json.loads(told) if told else None


def _run_tests(
    work: Work, files: Sequence[str], order: dict[str, int] | None, record: bool, out: int
) -> None:
    os.setpgid(0, 0)
    longest = 20 * LONGEST if record else LONGEST
    resource.setrlimit(resource.RLIMIT_CPU, (longest, longest))
    with (work.folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(work.tree)
    sys.path[:] = [str(work.tree), *(p for p in sys.path if p not in ("", str(REPOSITORY)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "bots_jax")]:
        del sys.modules[name]
    sys.dont_write_bytecode = not record
    os.environ["PYTHONPATH"] = str(work.tree)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(work.folder / "cache")
    import jax
    import pytest

    jax.config.update("jax_compilation_cache_dir", str(work.folder / "cache"))
    least = 0.0 if record else 1e9  # what faults compile to is not met again
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    observer = Observer(order)
    if record:
        builtins.bots_jax_hear = observer.hear  # type: ignore[attr-defined]
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest.main([*options[record:], *files], plugins=[observer])
    told = {
        "failed": observer.failed,
        "seconds": observer.seconds,
        "calls": sorted(observer.calls) if record else [],
    }
    with os.fdopen(out, "w") as pipe:
        json.dump(told, pipe)
    os._exit(0)


# --- which tests to show a fault to ---------------------------------------------------------


def test_files(tree: Path) -> list[str]:
    """Files of tests that are run, relative to the copy."""
    every = sorted(path.relative_to(tree) for path in (tree / "tests").rglob("test_*.py"))
    return [
        str(path) for path in every
        if not NOT_RUN & set(path.parts)
        and ("rl" not in path.parts or path.name == OF_RL)
    ]  # fmt: skip


def survey(work: Work) -> Work:
    """What each test calls and takes; kept, until the tests or the package change."""
    plain, kept = work.tree, work.folder / "survey.json"
    work = work._replace(tree=copy_tree(work.folder, "instrumented"))
    instrument(work.tree)
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for file in test_files(work.tree):
        own = hashlib.sha256((work.tree / file).read_bytes()).hexdigest()[:16]
        if known.get(file, {}).get("digest") == own:
            continue
        told = in_child(work, [file], None, record=True)
        if told is None:
            raise SystemExit(f"{file} dies without any fault: see {work.folder / 'log'}")
        known[file] = {"digest": own, "calls": told["calls"], "seconds": told["seconds"]}
        kept.write_text(json.dumps(known))
        took = sum(told["seconds"].values())
        print(f"{file}: {len(told['seconds'])} tests, {took:.1f} s", flush=True)
    calls: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for file in test_files(work.tree):
        seconds.update(known[file]["seconds"])
        for name, function, test in known[file]["calls"]:
            if test in known[file]["seconds"]:
                calls.setdefault(name, {}).setdefault(function, []).append(test)
    return work._replace(tree=plain, calls=calls, seconds=seconds)


def tests_of(work: Work, file: str, mutant: Mutant) -> list[str]:
    """Tests that call the function, quickest first, then others of their files, within BUDGET."""
    functions = [(file, mutant.function)]
    if not mutant.function or mutant.function not in work.calls.get(file, {}):
        names = mutant.names or tuple(mutant.function.split(".")[:1])
        functions = list(mentioning(work.tree, names, file))
    calling = {test for name, function in functions
               for test in work.calls.get(name, {}).get(function, [])}  # fmt: skip
    files = {test.split("::")[0] for test in calling}
    first = sorted(calling, key=lambda test: work.seconds[test])
    rest = (test for test in work.seconds if test.split("::")[0] in files and test not in calling)
    chosen: list[str] = []
    total = 0.0
    for test in [*first, *sorted(rest, key=lambda test: work.seconds[test])]:
        total += work.seconds[test] + 0.02
        if total > BUDGET and chosen:
            break
        chosen.append(test)
    return chosen


def mentioning(tree: Path, names: Sequence[str], home: str) -> Iterator[tuple[str, str]]:
    """Functions whose code names one of `names`, in any file of the package."""
    for path in sorted((tree / "bots_jax").rglob("*.py")):
        source = path.read_text()
        if not any(name in source for name in names):
            continue
        file = str(path.relative_to(tree))
        yield from ((file, function) for function in _naming(ast.parse(source), names, ""))
    yield home, "<module>"


def _naming(node: ast.AST, names: Sequence[str], inside: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            here = f"{inside}{child.name}"
            used = {x.id for x in ast.walk(child) if isinstance(x, ast.Name)}
            used |= {x.attr for x in ast.walk(child) if isinstance(x, ast.Attribute)}
            if isinstance(child, ast.ClassDef):
                yield from _naming(child, names, f"{here}.")
            elif used & set(names):
                yield here
                yield from _naming(child, names, f"{here}.<locals>.")


# --- one fault, a sample, a report ----------------------------------------------------------


def try_mutant(work: Work, file: str, mutant: Mutant, source: str) -> dict[str, Any]:
    """Plant, run, take out again."""
    tests = tests_of(work, file, mutant)
    path = work.tree / file
    faulty = plant(source, mutant)
    row = {
        "file": file, "function": mutant.function or ",".join(mutant.names),
        "line": mutant.begin[0], "column": mutant.begin[1], "kind": mutant.kind,
        "old": mutant.old, "new": mutant.new,
    }  # fmt: skip
    if not tests:
        return {**row, "outcome": "survived", "tests": 0}
    begin = time.perf_counter()
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        stale.unlink()
    path.write_text(faulty)
    try:
        files = sorted({test.split("::")[0] for test in tests})
        told = in_child(work, files, {test: at for at, test in enumerate(tests)}, record=False)
    finally:
        path.write_text(source)
    seconds = round(time.perf_counter() - begin, 1)
    if told is None:
        return {**row, "outcome": "hung", "tests": len(tests), "seconds": seconds}
    outcome = "killed" if told["failed"] else "survived"
    passed = len(told["seconds"])
    return {**row, "outcome": outcome, "by": told["failed"], "tests": passed, "seconds": seconds}


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one fault from another."""
    return tuple(row[key] for key in ("file", "function", "line", "column", "old", "new"))


def run_all(work: Work, faults: list[tuple[str, Mutant]], out: Path) -> None:
    """Each fault that is not in the file yet."""
    done = {identity(json.loads(line)) for line in out.read_text().splitlines()} \
        if out.exists() else set()  # fmt: skip
    files = {file: (work.tree / file).read_text() for file, _ in faults}
    for at, (file, mutant) in enumerate(faults):
        where = mutant.function or ",".join(mutant.names)
        if (file, where, *mutant.begin, mutant.old, mutant.new) in done:
            continue
        row = try_mutant(work, file, mutant, files[file])
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        short = f"{mutant.old[:40]!r} -> {mutant.new[:40]!r}"
        print(f"{at + 1}/{len(faults)} {row['outcome']:8} {row.get('seconds', 0):6} "
              f"{file}:{row['line']} {short}", flush=True)  # fmt: skip


def named_faults() -> list[tuple[str, Mutant]]:
    """Those of `NAMED`, at the function that they stand in."""
    faults = []
    for file, old, new in NAMED.values():
        source = (REPOSITORY / file).read_text()
        at = source.index(old)
        begin = source.count("\n", 0, at) + 1, at - (source.rfind("\n", 0, at) + 1)
        last = at + len(old)
        end = source.count("\n", 0, last) + 1, last - (source.rfind("\n", 0, last) + 1)
        inside = [m for m in mutants(source) if begin[0] - 1 <= m.begin[0] <= end[0]]
        function = inside[0].function if inside else ""
        faults.append((file, Mutant(function, (), begin, end, "named", old, new)))
    return faults


def interval(killed: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share."""
    z, p = 1.96, killed / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return round(middle - half, 3), round(middle + half, 3)


def report(folder: Path, seeds: Sequence[str]) -> None:
    """results/mutation.json of these samples."""
    from benchmarks.common import save

    rows: dict[str, Any] = {}
    for seed in seeds:
        lines = [json.loads(x) for x in (folder / f"{seed}.jsonl").read_text().splitlines()]
        killed = sum(line["outcome"] != "survived" for line in lines)
        rows[seed] = {
            "faults": len(lines), "noticed": killed, "share": round(killed / len(lines), 3),
            "interval": interval(killed, len(lines)),
            "hung": sum(line["outcome"] == "hung" for line in lines),
            "survivors": [line for line in lines if line["outcome"] == "survived"],
        }  # fmt: skip
        print(seed, {key: value for key, value in rows[seed].items() if key != "survivors"})
    save("mutation", rows)


def main() -> None:
    """A sample, the named ones, or a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--report", nargs="*", help="names of samples in the folder")
    parser.add_argument("--without", nargs="*", default=[], help="files of tests to leave out")
    parser.add_argument("--work", default="runs/mutation", help="folder to work in")
    args = parser.parse_args()
    folder = Path(args.work).absolute()
    if args.report:
        report(folder, args.report)
        return
    NOT_RUN.update(args.without)
    import_what_is_slow()
    work = survey(Work(copy_tree(folder), folder, {}, {}))
    faults = named_faults() if args.named else sample(args.seed, args.count)
    run_all(work, faults, folder / ("named.jsonl" if args.named else f"{args.seed}.jsonl"))


if __name__ == "__main__":
    main()
