"""The tasks' own ids and the rows of the selector's state.

In: names of tasks, strings or whole numbers of any kind, or nothing: then a task's id is its
row. Out: rows. A name that was retired stays known, so that late evidence of it is distinguished
from a mistake.

Whoever goes on with another list of names has the saved rows of the tasks that are in both: what
is saved holds all names, types kept. Numbered rows may grow at the end.

Names are handed out as NumPy arrays. What NumPy would change on the way (numbers beside strings,
numbers beyond 64 signed bits, strings that end in NUL) is handed out in arrays of Python objects,
always for a pool with such names, so that arrays of two batches may be joined.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bots_jax.adapters.arrays import as_host

Name = str | int
RETIRED = -2  # the row of a task that is no longer in the pool


class TaskNames:
    """Which row each task has.

    Args:
      num_tasks: N, rows 0 to N - 1 at the start.
      names: of those rows, all different; None where ids are rows.
    """

    def __init__(self, num_tasks: int, names: Iterable[Name] | None = None):
        plain = None if names is None else [_plain(name) for name in names]
        self._start = (num_tasks, plain)  # no list of the user's, who may shuffle it
        self.num_rows = num_tasks  # rows that have ever held a task
        self.idle: set[int] = set()  # of those, rows that hold none now
        self.by_row: dict[int, Name] | None = None
        self._added: dict[int, Name] = {}
        self._gone: set[Name] = set()
        self._digest = ""
        self._kind: str | None = None  # of array that keeps the names: see `_kind_of`
        self._packed: str | None = None  # the names at the start, once they were saved
        if plain is None:
            return
        self._see(plain)
        if len(plain) != num_tasks:
            raise ValueError(f"task_ids has {len(plain)} names, the pool {num_tasks} tasks")
        self.by_row = dict(enumerate(plain))
        self._row_of = {name: row for row, name in self.by_row.items()}
        if len(self._row_of) != num_tasks:
            raise ValueError(f"task_ids names {_repeated(plain)!r} twice: names must differ")
        self._digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def at_start(self) -> TaskNames:
        """The names before any task was added or retired."""
        begun = TaskNames(*self._start)
        begun._packed = self._packed
        return begun

    def rows_of(self, task_ids: Any) -> np.ndarray:
        """i32[M] rows, `RETIRED` for tasks that have left.

        Raises:
          ValueError: if a task was never in the pool.
        """
        if self.by_row is None:
            return self._checked_rows(task_ids)
        names = [_plain(name) for name in _listed(task_ids)]
        rows = [self._row_of.get(name, RETIRED) for name in names]
        for name, row in zip(names, rows, strict=True):
            if row == RETIRED and name not in self._gone:
                raise ValueError(f"task_ids contains {name!r}, which was never in this pool")
        return np.array(rows, np.int32)

    def _checked_rows(self, task_ids: Any) -> np.ndarray:
        ids = np.atleast_1d(np.asarray(as_host(task_ids)))
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
            raise ValueError(
                f"task_ids has shape {ids.shape} and dtype {ids.dtype}, expected whole numbers: "
                "names need TaskSampler(task_ids=...)"
            )
        wrong = ids[(ids < 0) | (ids >= self.num_rows)]
        if wrong.size:
            raise ValueError(
                f"task_ids contains {wrong[0]}, this pool has tasks 0 to {self.num_rows - 1}"
            )
        rows = ids.astype(np.int32)
        if self.idle:
            rows[[int(row) in self.idle for row in rows]] = RETIRED
        return rows

    def names_of(self, rows: np.ndarray) -> np.ndarray:
        """The user's ids of these rows: i32[M], or names."""
        if self.by_row is None:
            return np.asarray(rows, np.int32)
        names = [self.by_row[int(row)] for row in rows]
        if self._kind != _OBJECTS:
            return np.array(names, np.int64 if self._kind == _NUMBERS else np.str_)
        array = np.empty(len(names), object)
        array[:] = names
        return array

    def _see(self, names: Iterable[Name]) -> None:
        """Names that are in the pool, or come."""
        kinds = {_kind_of(name) for name in names} | ({self._kind} - {None})
        if kinds:
            self._kind = kinds.pop() if len(kinds) == 1 else _OBJECTS

    def add(self, rows: np.ndarray, names: Sequence[Name] | None) -> None:
        """Add tasks in these rows; names were checked by `check_new`."""
        self.num_rows = max(self.num_rows, int(rows.max()) + 1)
        self.idle -= {int(row) for row in rows}
        if self.by_row is None or names is None:
            return
        plain = [_plain(name) for name in names]
        self._see(plain)
        for row, name in zip(rows, plain, strict=True):
            self._name(int(row), name)

    def _name(self, row: int, name: Name) -> None:
        assert self.by_row is not None
        self.by_row[row] = self._added[row] = name
        self._row_of[name] = row
        self._gone.discard(name)

    def check_new(self, names: Sequence[Name] | None, count: int) -> None:
        """Raise if names are given without need, missing, or taken."""
        if (names is None) != (self.by_row is None):
            has = "has no names" if self.by_row is None else "has names"
            raise ValueError(f"task_ids={names}, but the pool {has}: give them to both or neither")
        if names is None:
            return
        plain = [_plain(name) for name in names]
        taken = [name for name in plain if name in self._row_of]
        if taken or len(set(plain)) != len(plain) or len(plain) != count:
            raise ValueError(
                f"task_ids={plain[:5]} must be {count} names, all different, none of a task in "
                f"the pool{f': {taken[0]!r} is' if taken else ''}"
            )

    def retire(self, rows: np.ndarray) -> None:
        """Remove tasks; their rows may be reused later."""
        self.idle |= {int(row) for row in rows}
        if self.by_row is None:
            return
        for row in rows:
            name = self.by_row.pop(int(row))
            self._added.pop(int(row), None)
            del self._row_of[name]
            self._gone.add(name)

    @property
    def unchanged(self) -> bool:
        """Whether no task was added or retired."""
        return self.num_rows == self._start[0] and not self.idle

    def changes(self) -> dict[str, Any]:
        """The names at the start, and what has changed since, as JSON values."""
        if self._packed is None and self.by_row is not None:
            self._packed = _pack(self._start[1] or [])
        return {
            "digest": self._digest,
            "whole": self._packed,
            "start": self._start[0],
            "num_rows": self.num_rows,
            "idle": sorted(self.idle),
            "added": [[row, name] for row, name in self._added.items()],
            "gone": sorted(self._gone, key=repr),
            "kind": self._kind,
        }

    def replay(self, changes: Mapping[str, Any]) -> None:
        """Apply saved `changes` to the names at the start."""
        self.num_rows = int(changes["num_rows"])
        self._kind = changes["kind"]
        self.idle = set(changes["idle"])
        if self.by_row is None:
            return
        gone = set(changes["gone"])
        for name in gone & set(self._row_of):
            self.by_row.pop(self._row_of.pop(name))
        self._gone = gone
        for row, name in changes["added"]:
            self._name(int(row), name)
        for row in self.idle:  # of a task that was retired, and came back in another row
            self.by_row.pop(row, None)

    def began(self, changes: Mapping[str, Any]) -> bool:
        """Whether these are, in order, the tasks that a saved run began with."""
        return bool(changes["start"] == self._start[0] and changes["digest"] == self._digest)

    def follow(self, changes: Mapping[str, Any]) -> Moves | None:
        """Resume with the tasks of a saved run; None: in the rows they had.

        The list that the saved run began with is taken to where that run was. Of any other the
        tasks that are in both keep what is known of them, in the rows that they have here.

        Raises:
          ValueError: if no task is in both, rows have no names and are fewer or other than
            before, or the names were not saved.
        """
        if (changes["digest"] == "") != (self.by_row is None):
            had, has = ("none", "names") if self.by_row is not None else ("names", "none")
            raise ValueError(
                f"the tasks of the saved run had {had}, those of this one have {has}: "
                f"{'drop task_ids' if had == 'none' else 'give task_ids'}"
            )
        if self.began(changes):
            self.replay(changes)
            return None
        return self._grow(changes) if self.by_row is None else self._match(changes)

    def _grow(self, changes: Mapping[str, Any]) -> Moves:
        """Numbered rows: the saved ones, and more at the end."""
        saved, here = int(changes["num_rows"]), self._start[0]
        if here < max(saved, int(changes["start"])):
            raise ValueError(
                f"the saved run began with {changes['start']} tasks and has {saved}, this one "
                f"{here}: without names (task_ids=...) tasks may be added at the end only. Give "
                f"the {changes['start']} that it began with (capacity={saved} or more), or at "
                f"least {saved}"
            )
        self.idle = set(changes["idle"])
        source = np.arange(here, dtype=np.int32)
        source[saved:] = -1
        return Moves(source, saved - len(self.idle), here - saved, 0, 0)

    def _match(self, changes: Mapping[str, Any]) -> Moves:
        if changes.get("whole") is None:
            raise ValueError(
                "task_ids are not those of the saved run, which was saved without them: give the "
                "same names in the same order, and add or retire tasks after loading"
            )
        before = TaskNames(int(changes["start"]), _unpack(changes["whole"]))
        before.replay(changes)
        rows, known = before._row_of, self._row_of
        source = np.array([rows.get(name, -1) for name in known], np.int32)
        kept = int(np.sum(source >= 0))
        if not kept:
            raise ValueError(
                f"none of the {len(known)} task_ids is in the saved run, whose tasks are called "
                f"{list(rows)[:3]}, not {list(known)[:3]}: it belongs to another data set"
            )
        again = len(before._gone & set(known))
        self._gone = (before._gone | set(rows)) - set(known)
        return Moves(source, kept, len(known) - kept, len(rows) - kept, again)


class Moves(NamedTuple):
    """The rows where the tasks of a saved run are now."""

    source: np.ndarray  # i32[N], the saved row of each row here, -1 for a new task
    kept: int
    added: int
    gone: int
    again: int  # of the added, those that had been retired

    def places(self) -> dict[int, int]:
        """The new row of each saved row that still exists."""
        return {row: at for at, row in enumerate(self.source.tolist()) if row >= 0}


def _pack(names: list[Name]) -> str:
    """Names as a short string: JSON, compressed."""
    return base64.b64encode(zlib.compress(json.dumps(names).encode())).decode()


def _unpack(packed: str) -> list[Name]:
    try:
        names: list[Name] = json.loads(zlib.decompress(base64.b64decode(packed)))
    except (zlib.error, binascii.Error, json.JSONDecodeError) as error:
        raise TypeError(f"names: {error}") from error  # damage, as the caller knows it
    return names


_NUMBERS, _STRINGS, _OBJECTS = "numbers", "strings", "objects"
_LEAST, _MOST = -(2**63), 2**63 - 1


def _kind_of(name: Name) -> str:
    """Of NumPy's arrays, the one that gives this name back."""
    if isinstance(name, int):
        return _NUMBERS if _LEAST <= name <= _MOST else _OBJECTS
    return _OBJECTS if name.endswith("\0") else _STRINGS


def _plain(name: Any) -> Name:
    """A name as JSON and dictionaries know it: NumPy's strings and integers are not alike."""
    if isinstance(name, str):
        return str(name)
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return int(name)
    raise ValueError(f"task_ids contains {name!r}: names are strings or whole numbers")


def _listed(task_ids: Any) -> list[Any]:
    task_ids = as_host(task_ids)
    if hasattr(task_ids, "tolist"):
        task_ids = task_ids.tolist()
    if isinstance(task_ids, str | int | bytes):
        return [task_ids]
    return list(task_ids)


def _repeated(names: list[Name]) -> Name | None:
    seen: set[Name] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
