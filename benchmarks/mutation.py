"""Whether the suite can fail: faults planted one at a time, and the tests that notice.

In: the files of the engine's rooms. Out: for each fault of a random sample whether a test failed,
as JSON lines, and in the end results/mutation.json with the share that was noticed.

The checkout is copied first, and a server that has imported and collected everything forks a child
for each fault (mutant_server.py), so that nothing here is touched and nothing is imported twice.
A fault is shown to the tests of its module, then to those of its room, then to those that serve for
all, until one fails or `--budget` seconds of processor time are spent; `--again` gives survivors
more. `--survey` measures first which tests call which function and how long they take, which costs
a run of the suite and puts the right tests first, the quick ones before the slow. What is compiled
for code that did not change comes from a cache: JAX_COMPILATION_CACHE_DIR, or one in the folder. A
run that was stopped goes on.

Run: python -m benchmarks.mutation --survey --seed 1 --count 100
     python -m benchmarks.mutation --seed 1 --again --budget 60
     python -m benchmarks.mutation --named            (faults that people have planted)
     python -m benchmarks.mutation --report 1 2 3     (what results/mutation.json holds)
"""

from __future__ import annotations

import argparse
import ast
import compileall
import functools
import hashlib
import json
import math
import os
import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.mutant_server import Server, import_what_is_slow
from benchmarks.mutants import Mutant, mutants, plant

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("pool", "implicit", "belief", "choice", "grouped", "numerics", "strategies")
ALONE = ("compose", "growth", "bots_selector", "auto_selector")
# Slow, or of other rooms.
NOT_RUN = {
    "adapters", "bench", "evaluate", "features", "test_notebooks.py", "test_simulator.py",
    "test_size.py", "test_rooms.py", "test_sharding.py", "test_readme.py", "test_levels.py",
    "test_compiled_bytes.py",
}  # fmt: skip
AT_IMPORT = "called at import"
OF_DEFAULTS = "tests/test_interface.py"  # what notices another default
OF_RL = "test_policy_gradient.py"  # what notices the named fault of weight decay
LONGEST = 3600.0  # seconds of processor time that the tests of one file may take without a fault
UNKNOWN = 1.0  # seconds that a test takes which no survey has measured
# Files of tests to begin with, before that of the module's name.
OF_MODULE = {
    "choice/mixed": ("mixed", "auto"), "choice/nearest": ("worth",),
    "choice/worth": ("worth", "mixed"), "choice/batch": ("parts",), "choice/thinning": ("window",),
    "belief/beta": ("golden",),
    "belief/posterior": ("golden",), "belief/logit_normal": ("logit_normal", "auto"),
    "belief/lengths": ("mixed", "auto"), "implicit/glm": ("formulas", "estimators", "features"),
    "implicit/overdispersion": ("formulas", "estimators"), "implicit/linear": ("formulas",),
    "implicit/logit": ("formulas", "estimators"), "implicit/features": ("formulas",),
    "grouped/mixed": ("grouped_auto",), "grouped/logit_normal": ("table_size", "grouped_auto"),
    "grouped/slots": ("table_size",), "grouped/table": ("table_size", "short_lists"),
    "grouped/selector": ("table_size",), "grouped/representation": ("table_size", "features"),
    "pool/visits": ("fuzz", "contract"), "pool/evidence": ("borders", "graded", "fuzz"),
    "pool/reference": ("borders", "bad_input"), "pool/features": ("columns",),
    "strategies/kalman": ("kalman", "kgps"), "strategies/dots": ("taken",),
    "bots_jax/auto_selector": ("auto",), "bots_jax/growth": ("borders",),
}  # fmt: skip
# And of all modules of a room.
BY_ROOM = {
    "pool": ("pool/", "test_contract", "test_fuzz", "test_bad_input"),
    "implicit": ("implicit/", "test_golden", "test_auto"),
    "belief": ("belief/", "test_golden", "test_auto", "choice/test_worth"),
    "choice": ("choice/", "test_auto", "test_contract"),
    "grouped": ("grouped/",),
    "numerics": ("numerics/", "choice/test_thinning"),
    "strategies": (
        "strategies/test_restart",
        "test_interface",
        "strategies/test_skeleton",
        "test_contract",
    ),
    "bots_jax": ("strategies/test_skeleton", "test_contract", "test_interface", "test_auto"),
}
COPIED = ("bots_jax", "tests", "docs", "examples", "README.md", "CHANGELOG.md", "pyproject.toml")


class Work(NamedTuple):
    """Where things are, and what the tests do."""

    tree: Path
    folder: Path
    calls: dict[str, dict[str, list[str]]]  # file: function: tests
    seconds: dict[str, float]  # of each test
    at_import: set[tuple[str, str]]  # files and functions that are called while tests are collected
    budget: float  # seconds of processor time that a fault may take
    cache: str  # folder of what JAX has compiled


# Faults that a reader planted by hand: file, what stands there, what was put there.
NAMED: dict[str, tuple[str, str, str]] = {
    "nearest draws of auto compare with .9": (
        "bots_jax/choice/mixed.py",
        "distance = jnp.abs(rate - state.settings.target)",
        "distance = jnp.abs(rate - 0.9)",
    ),
    "the temperature of auto does nothing": (
        "bots_jax/choice/mixed.py",
        "scores -= settings.temperature * noise[picked]",
        "scores -= 0 * noise[picked]",
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


# --- which tests to show a fault to ---------------------------------------------------------


def test_files(tree: Path) -> list[str]:
    """Files of tests that are run, relative to the copy."""
    every = sorted(path.relative_to(tree) for path in (tree / "tests").rglob("test_*.py"))
    return [
        str(path) for path in every
        if not NOT_RUN & set(path.parts)
        and ("rl" not in path.parts or path.name == OF_RL)
    ]  # fmt: skip


def survey(work: Work, anew: bool) -> Work:
    """What each test calls and takes, as was measured; if `anew`, also of files that changed."""
    kept, files = work.folder / "survey.json", test_files(work.tree)
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    digests = {
        file: hashlib.sha256((work.tree / file).read_bytes()).hexdigest()[:16] for file in files
    }
    missing = [file for file in files if known.get(file, {}).get("digest") != digests[file]]
    if anew or AT_IMPORT not in known:
        tree = copy_tree(work.folder, "instrumented")
        instrument(tree)
        server = Server(tree, files, work.cache, work.folder / "survey.log")
        if server.ready is None:
            raise SystemExit(f"nothing could be collected: see {work.folder / 'survey.log'}")
        known[AT_IMPORT] = [[name, function] for name, function, _ in server.ready["calls"]]
        kept.write_text(json.dumps(known))
        for file in missing if anew else ():
            tests = [test for test in server.ready["tests"] if test.split("::")[0] == file]
            told = server.ask(tests, LONGEST, record=True)
            if "hung" in told:
                raise SystemExit(f"{file} dies without any fault: see {work.folder}/survey.log")
            known[file] = {"digest": digests[file], **told}
            kept.write_text(json.dumps(known))
            took = sum(told["seconds"].values())
            print(f"{file}: {len(tests)} tests, {took:.1f} s, {told['failed']}", flush=True)
        server.close()
    calls: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for file in files:
        told = known.get(file, {"seconds": {}, "calls": []})
        seconds.update(told["seconds"])
        for name, function, test in told["calls"]:
            if test in told["seconds"]:
                calls.setdefault(name, {}).setdefault(function, []).append(test)
    at_import = {(name, function) for name, function in known[AT_IMPORT]}
    return work._replace(calls=calls, seconds=seconds, at_import=at_import)


def tests_of(work: Work, file: str, mutant: Mutant, every: Sequence[str]) -> list[str]:
    """Tests that are known to call the function, the quickest first, then those of near files."""
    functions = [(file, mutant.function)]
    if not mutant.function or mutant.function not in work.calls.get(file, {}):
        names = mutant.names or tuple(mutant.function.split(".")[:1])
        functions = list(mentioning(work.tree, names, file))
    calling = {test for name, function in functions
               for test in work.calls.get(name, {}).get(function, [])}  # fmt: skip
    own = () if mutant.function else ("defaults",)  # what most such faults are in
    words = {*own, *mutant.names, *mutant.function.replace(".<locals>", "").split(".")} - {""}
    files = near_files(work.tree, file, {test.split("::")[0] for test in every})
    place = {name: at for at, name in enumerate(files)}

    def order(test: str) -> tuple[Any, ...]:
        if test in calling:
            return (-1, work.seconds[test])
        name, body = test.split("[")[0], bodies(work.tree, test.split("::")[0])
        told = sum(word in body.get(name.rsplit("::", 1)[1], "") for word in words)
        return (place[test.split("::")[0]], -told, work.seconds.get(test, UNKNOWN))

    return sorted((x for x in every if x in calling or x.split("::")[0] in place), key=order)


@functools.cache
def bodies(tree: Path, file: str) -> dict[str, str]:
    """The tests of a file, by name, as they are written."""
    parts = re.split(r"^def (?=test_)", (tree / file).read_text(), flags=re.MULTILINE)
    return {part.split("(", 1)[0]: part for part in parts[1:]}


def near_files(tree: Path, file: str, tests: set[str]) -> list[str]:
    """Files of tests: of the module, of what imports it, of its room, of all."""
    path = Path(file)
    room = path.parent.name

    def of(stem: str) -> list[str]:
        return sorted(test for test in tests if Path(test).stem == f"test_{stem}")

    found = [test for stem in OF_MODULE.get(f"{room}/{path.stem}", ()) for test in of(stem)]
    found += of(path.stem)
    module = file.removesuffix(".py").replace("/", ".")
    found += sorted(test for test in tests if module in (tree / test).read_text())
    for user in sorted((tree / path.parent).glob("*.py")):
        if f"{module} import" in user.read_text():
            found += of(user.stem)
    for part in BY_ROOM.get(room, ()):
        found += sorted(test for test in tests if f"tests/{part}" in test)
    return list(dict.fromkeys(found))


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


def try_mutant(
    work: Work, server: Server, file: str, mutant: Mutant, source: str
) -> dict[str, Any]:
    """Plant, run, take out again."""
    tests = tests_of(work, file, mutant, server.ready["tests"])
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
    path.write_text(faulty)  # for what tests start
    try:
        told: Any = {"reimport": True}
        if (file, mutant.function) not in work.at_import:
            told = server.ask(tests, work.budget, (str(path), source, faulty))
        if again := "reimport" in told:
            told = in_new_server(work, tests)
    finally:
        path.write_text(source)
    row |= {
        "seconds": round(time.perf_counter() - begin, 1), "cpu": round(told["cpu"], 1),
        "reimported": again,
    }  # fmt: skip
    if "hung" in told:
        return {**row, "outcome": "hung", "tests": len(tests)}
    outcome, passed = "killed" if told["failed"] else "survived", len(told["seconds"])
    return {**row, "outcome": outcome, "by": told["failed"], "tests": passed}


def in_new_server(work: Work, tests: Sequence[str]) -> Any:
    """The same where what is imported has to be imported anew."""
    near = list(dict.fromkeys(test.split("::")[0] for test in tests))
    files = near[:4] + [file for file in near[4:] if file == OF_DEFAULTS]
    server = Server(work.tree, files, work.cache, work.folder / "new.log")
    told = server.ready or {"hung": True}
    if not told.get("failed", "hung"):
        told = server.ask(tests, work.budget)
    return {**told, "cpu": server.close()}


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one fault from another."""
    return tuple(row[key] for key in ("file", "function", "line", "column", "old", "new"))


def rows_in(out: Path) -> list[dict[str, Any]]:
    """What a run has found; of a fault that was shown again the last word."""
    lines = out.read_text().splitlines() if out.exists() else []
    return list({identity(row): row for row in map(json.loads, lines)}.values())


def run_all(work: Work, faults: list[tuple[str, Mutant]], out: Path, again: bool) -> None:
    """Each fault that is not in the file yet; or those that survived less than this budget."""
    done = {identity(row): row for row in rows_in(out)}
    files = {file: (work.tree / file).read_text() for file, _ in faults}
    server = Server(work.tree, test_files(work.tree), work.cache, work.folder / "log")
    if server.ready is None or server.ready["failed"]:
        raise SystemExit(f"nothing could be collected: see {work.folder / 'log'}")
    for at, (file, mutant) in enumerate(faults):
        where = mutant.function or ",".join(mutant.names)
        known = done.get((file, where, *mutant.begin, mutant.old, mutant.new))
        if again:
            if known is None or known["outcome"] != "survived" or known["budget"] >= work.budget:
                continue
        elif known is not None:
            continue
        row = {**try_mutant(work, server, file, mutant, files[file]), "budget": work.budget}
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        short = f"{mutant.old[:40]!r} -> {mutant.new[:40]!r}"
        print(f"{at + 1}/{len(faults)} {row['outcome']:8} {row.get('seconds', 0):6} "
              f"{file}:{row['line']} {short}", flush=True)  # fmt: skip
    server.close()


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
    """results/mutation.json of these samples, and of those that it held already."""
    from benchmarks.common import RESULTS, save

    held = RESULTS / "mutation.json"
    rows: dict[str, Any] = json.loads(held.read_text())["rows"] if held.exists() else {}
    for seed in seeds:
        lines = rows_in(folder / f"{seed}.jsonl")
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
    parser.add_argument("--again", action="store_true", help="show survivors to more tests")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of tests a fault")
    parser.add_argument("--survey", action="store_true", help="measure what tests call")
    parser.add_argument("--without", nargs="*", default=[], help="files of tests to leave out")
    parser.add_argument("--work", default="runs/mutation", help="folder to work in")
    args = parser.parse_args()
    folder = Path(args.work).absolute()
    if args.report:
        report(folder, args.report)
        return
    NOT_RUN.update(args.without)
    import_what_is_slow()
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    work = survey(Work(copy_tree(folder), folder, {}, {}, set(), args.budget, cache), args.survey)
    faults = named_faults() if args.named else sample(args.seed, args.count)
    out = folder / ("named.jsonl" if args.named else f"{args.seed}.jsonl")
    run_all(work, faults, out, args.again)


if __name__ == "__main__":
    main()
