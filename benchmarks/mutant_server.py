"""Tests on faulty code, a fork for each fault, with everything imported and collected once.

In: a copy of the checkout, files of tests; then one request for each fault. Out: what failed, what
each test took, and (of an instrumented copy) what it called.

A server is a process that has collected the tests and touched no device, so that it may be forked.
Its child takes the faulty code over into the functions that are there already. Where that is not
enough, for the fault is in what a module or a class does when it is imported or in a function that
is called then, a server of its own is started for the fault.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import inspect
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

OURS = ("benchmarks", "bots_jax", "tests")
LONGEST_WAIT = 900.0  # seconds of the clock after which a child hangs


def import_what_is_slow() -> None:
    """Everything but the package and its tests; no device is touched, so a fork is safe."""
    os.environ["PYTHONPATH"] = ""
    import chex  # noqa: F401
    import flax  # noqa: F401
    import hypothesis  # noqa: F401
    import jax.numpy
    import jax.scipy.special  # noqa: F401
    import numpy  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401


class Observer:
    """A plugin of pytest: which tests run, how long they take, and what they call."""

    def __init__(self) -> None:
        self.calls: set[tuple[str, str, str]] = set()
        self.seconds: dict[str, float] = {}
        self.failed = self.why = ""
        self.now, self.begin = "", 0.0

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """A test begins."""
        self.now, self.begin = nodeid, time.process_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A part of it has ended."""
        self.seconds[report.nodeid] = time.process_time() - self.begin
        if report.failed:
            self.failed, self.why = report.nodeid, str(report.longrepr)[-300:]

    def pytest_collectreport(self, report: Any) -> None:
        """A file could not even be imported."""
        if report.failed:
            self.failed = f"collection of {report.nodeid}"

    def hear(self, name: str, function: str) -> None:
        """Called by each function of an instrumented copy."""
        self.calls.add((name, function, self.now))

    def told(self) -> dict[str, Any]:
        """As JSON."""
        told = {"failed": self.failed, "why": self.why, "seconds": self.seconds}
        return {**told, "calls": sorted(self.calls)}


class Server:
    """The parent's end: `ask` it to run tests on a fault; leave by `close`."""

    def __init__(self, tree: Path, files: Sequence[str], cache: str, log: Path) -> None:
        ask_read, ask_write = os.pipe()
        told_read, told_write = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(ask_write)
            os.close(told_read)
            try:
                _serve(tree, files, cache, log, ask_read, told_write)
            finally:
                os._exit(1)
        os.close(ask_read)
        os.close(told_write)
        self.asks, self.answers = os.fdopen(ask_write, "w"), os.fdopen(told_read)
        self.ready = self._answer()  # what was collected, or None where pytest could not begin

    def _answer(self) -> Any:
        line = self.answers.readline()
        return json.loads(line) if line else None

    def ask(
        self, tests: Sequence[str], budget: float, fault: Any = None, record: bool = False
    ) -> Any:
        """Run these tests until one fails: what was observed and "cpu", its seconds.

        Args:
          budget: seconds of processor time, after which no more tests begin; after ten times as
            many it hangs.
          fault: path, source and faulty source of a file; None for the files as they are.
          record: go on after failures, and keep what is compiled.

        Where it hung or died {"hung": True}, where it takes another server {"reimport": True}.
        """
        request = {"tests": list(tests), "budget": budget, "fault": fault, "record": record}
        self.asks.write(json.dumps(request) + "\n")
        self.asks.flush()
        return self._answer()

    def close(self) -> float:
        """End it; seconds of processor time that it and its children took."""
        self.asks.close()
        self.answers.close()
        used = os.wait4(self.process, 0)[2]
        return used.ru_utime + used.ru_stime


# --- the process that is forked -----------------------------------------------------------------


def _end_with_parent() -> None:
    """Where the system knows of it; else what is stopped leaves a test running to its end."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _serve(
    tree: Path, files: Sequence[str], cache: str, log: Path, asks: int, answers: int
) -> None:
    _end_with_parent()
    with log.open("w") as lines:
        os.dup2(lines.fileno(), 1)
        os.dup2(lines.fileno(), 2)
    os.chdir(tree)
    repository = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", repository))]
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    import jax
    import pytest

    jax.config.update("jax_compilation_cache_dir", cache)
    observer = Observer()
    builtins.bots_jax_hear = observer.hear  # type: ignore[attr-defined]
    options = ["-q", "-s", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += [f"--basetemp={log.parent / 'tmp'}"]
    pytest.main([*options, *files], plugins=[observer, _Loop(tree, observer, asks, answers)])
    os._exit(0)


class _Loop:
    """A plugin of pytest: in the place of running all tests, answer requests."""

    def __init__(self, tree: Path, observer: Observer, asks: int, answers: int) -> None:
        self.tree, self.observer = tree, observer
        self.asks, self.answers = os.fdopen(asks), os.fdopen(answers, "w")

    def pytest_runtestloop(self, session: Any) -> bool:
        """Called by pytest when all is collected."""
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            raise RuntimeError(f"{threads} threads after collecting: a test's module has computed")
        items = {item.nodeid: item for item in session.items}
        functions = live_functions(self.tree / "bots_jax")
        self.answer({**self.observer.told(), "tests": list(items)})
        self.observer.calls.clear()
        gc.collect()
        gc.freeze()  # children need not go through what they share
        for line in self.asks:
            self.answer(self.in_child(json.loads(line), items, functions))
        return True

    def answer(self, value: Any) -> None:
        self.answers.write(json.dumps(value) + "\n")
        self.answers.flush()

    def in_child(self, request: Any, items: Any, functions: Any) -> Any:
        """Fork, run, and end whatever the tests have started."""
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            try:
                self.run(request, items, functions, write_end)
            finally:
                os._exit(1)
        os.close(write_end)
        told, end = b"", time.monotonic() + LONGEST_WAIT
        while select.select([read_end], [], [], max(end - time.monotonic(), 0))[0]:
            part = os.read(read_end, 1 << 16)
            told += part
            if not part:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        used = os.wait4(child, 0)[2]
        os.close(read_end)
        cpu = {"cpu": used.ru_utime + used.ru_stime}
        try:
            return {**json.loads(told), **cpu}
        except ValueError:
            return {"hung": True, **cpu}

    def run(self, request: Any, items: Any, functions: Any, out: int) -> None:
        _end_with_parent()
        os.setpgid(0, 0)
        longest = int(10 * request["budget"])
        resource.setrlimit(resource.RLIMIT_CPU, (longest, longest))
        import jax

        # What a fault compiles to is not met again.
        least = 0.2 if request["record"] else 1e9
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        told: Any = {"reimport": True}
        if request["fault"] is None or take_over(functions, *request["fault"]):
            wanted = [items[test] for test in request["tests"] if test in items]
            for item, after in zip(wanted, [*wanted[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                spent = time.process_time() > request["budget"]
                if spent or (self.observer.failed and not request["record"]):
                    break
            told = self.observer.told()
        with os.fdopen(out, "w") as pipe:
            json.dump(told, pipe)
        os._exit(0)


# --- other code for functions that exist --------------------------------------------------------


def live_functions(folder: Path) -> dict[CodeType, list[FunctionType]]:
    """All functions of the files in a folder, by their code."""
    found: dict[CodeType, list[FunctionType]] = {}
    for value in gc.get_objects():
        if type(value) is FunctionType and value.__code__.co_filename.startswith(str(folder)):
            found.setdefault(value.__code__, []).append(value)
    return found


def take_over(functions: Any, path: str, source: str, faulty: str) -> bool:
    """Give the functions of a file the code of its faulty source; False where that cannot be."""
    pairs = changed(compile(source, path, "exec"), compile(faulty, path, "exec"))
    if not pairs or any(old not in functions for old, _ in pairs):
        return False
    try:
        return all(_exchange(functions, old, new) for old, new in pairs)
    except ValueError:  # a closure over other variables
        return False


def _exchange(functions: Any, old: CodeType, new: CodeType) -> bool:
    """Also in the functions inside it, of which some may have been made already."""
    for function in functions.get(old, ()):
        function.__code__ = new
    inside, instead = list(_inner(old)), list(_inner(new))
    if len(inside) != len(instead):
        return not any(code in functions for code in _all_inner(old))
    return all(_exchange(functions, a, b) for a, b in zip(inside, instead, strict=True))


def changed(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The functions that differ, old and new; None where what runs at import does."""
    inside, instead = list(_inner(old)), list(_inner(new))
    if len(inside) != len(instead) or _own(old) != _own(new):
        return None
    pairs = []
    for a, b in zip(inside, instead, strict=True):
        if a == b:
            continue
        if a.co_flags & inspect.CO_OPTIMIZED:
            pairs.append((a, b))
        elif (inner := changed(a, b)) is None:
            return None
        else:
            pairs += inner
    return pairs


def _inner(code: CodeType) -> Iterable[CodeType]:
    return (value for value in code.co_consts if isinstance(value, CodeType))


def _all_inner(code: CodeType) -> Iterable[CodeType]:
    for value in _inner(code):
        yield value
        yield from _all_inner(value)


def _own(code: CodeType) -> tuple[Any, ...]:
    constants = [repr(x) for x in code.co_consts if not isinstance(x, CodeType)]
    return code.co_code, code.co_names, code.co_varnames, constants
