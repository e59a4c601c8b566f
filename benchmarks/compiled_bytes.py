"""What a compiled program moves on the path that usually runs, read from its text.

XLA's own `cost_analysis` adds up all branches, whether they run or not. Here the program is
walked from its entry as it runs:

- a loop counts as often as the compiler knows it turns, else once; one that is entered seldom
  (`control_flow.lazy_cond`, whose body is marked "rarely") not at all;
- of a conditional the dearest branch counts that is not marked so;
- of an array that a fusion only slices or gathers from, the slices count; of one that it
  scatters into in place, what is written;
- arrays in fast memory (S(1) in the layout: VMEM of a TPU) are free; the copies there count.

In: the text of a compiled program. Out: `Moved`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMES = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Names for what is there already.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "copy-done", "async-done", "optimization-barrier", "add-dependency", "iota",
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
    "collective-broadcast",
)  # fmt: skip


class Instruction(NamedTuple):
    """A line of the program."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes

    @property
    def where(self) -> str:
        """The names of the functions that it was traced in."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Part(NamedTuple):
    """What one instruction moves, each time it runs."""

    instruction: Instruction
    bytes: int  # to and from slow memory
    times: int


class Moved(NamedTuple):
    """Of one run of the program."""

    bytes: int
    parts: list[Part]  # the dearest first
    collectives: list[tuple[str, int, bool]]  # name, bytes, whether on the usual path
    largest: dict[str, int]  # most entries that one gather, scatter, sort or collective takes
    unknown: list[str]  # loops whose turns the compiler does not know, counted once


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """The computations by name, and the name of the one that is entered."""
    program: Program = {}
    entry, current = "", ""
    for line in text.splitlines():
        if (head := _COMPUTATION.match(line)) is not None:
            current = head[2]
            program[current] = []
            entry = current if head[1] else entry
        elif current and " = " in line:
            program[current].append(_instruction(line))
        elif line == "}":
            current = ""
    return program, entry


def _instruction(line: str) -> Instruction:
    left, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, call = right[:end], right[end:].strip()
    opcode = call[: call.index("(")]
    close = _closing(call, len(opcode))
    inner, rest = call[len(opcode) + 1 : close], call[close + 1 :]
    if opcode == "parameter":
        rest = inner  # its number
    return Instruction(left.lstrip("%"), shape, opcode, tuple(_NAMES.findall(inner)), rest)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced: {text[:80]}")


def size_of(shape: str, *, slow_only: bool = True) -> int:
    """Bytes of an array, or of all of a tuple; those in fast memory are left out."""
    total = 0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if not (slow_only and re.search(r"S\([1-9]\)", layout)):
            total += _width(kind) * _entries(dimensions)
    return total


def _text(found: tuple[str, str, str]) -> str:
    return "{}[{}]{{{}}}".format(*found)


def entries_of(shape: str) -> int:
    """Entries of the largest array."""
    return max((_entries(found) for _, found, _ in _ARRAY.findall(shape)), default=0)


def _entries(dimensions: str) -> int:
    return math.prod(int(n) for n in dimensions.split(",") if n)


def _width(kind: str) -> int:
    return 1 if kind == "pred" else max(1, int(re.sub(r"^[a-z]+(\d+).*$", r"\1", kind)) // 8)


def moved(text: str) -> Moved:
    """What the program moves; see the module."""
    program, entry = parse(text)
    walk = _Walk(program)
    total, parts = walk.computation(entry)
    parts = sorted(parts, key=lambda part: -part.bytes * part.times)
    usual = {part.instruction.name for part in parts}
    crossing: list[tuple[str, int, bool]] = []
    largest: dict[str, int] = {}
    for instruction in _everything(program):
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            moved_bytes = size_of(instruction.shape, slow_only=False)
            crossing.append((kind, moved_bytes, instruction.name in usual))
        if kind in (*COLLECTIVES, "gather", "scatter", "sort"):
            largest[kind] = max(largest.get(kind, 0), entries_of(instruction.shape))
    return Moved(total, parts, crossing, largest, walk.unknown)


def _everything(program: Program) -> Iterator[Instruction]:
    for instructions in program.values():
        yield from instructions


class _Walk:
    """Costs of computations, each worked out once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.unknown: list[str] = []
        self.computation = functools.cache(self._computation)

    def _computation(self, name: str) -> tuple[int, list[Part]]:
        shapes = {one.name: one.shape for one in self.program[name]}
        total, parts = 0, []
        for one in self.program[name]:
            cost, own = self._instruction(one, shapes)
            total += cost
            parts += own
        return total, parts

    def _instruction(self, one: Instruction, shapes: dict[str, str]) -> tuple[int, list[Part]]:
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return 0, []
        if one.opcode == "while":
            return self._loop(one)
        if one.opcode == "conditional":
            branches = [name for name in self._branches(one) if not self._is_rare(name, one)]
            return max((self.computation(name) for name in branches), default=(0, []))
        if one.opcode == "call":
            return self.computation(_CALLED.findall(one.rest)[0])
        cost = self._own(one, shapes)
        return cost, [Part(one, cost, 1)]

    def _branches(self, one: Instruction) -> list[str]:
        inside = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
        if inside is not None:
            return _NAMES.findall(inside[1])
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)

    def _is_rare(self, name: str, one: Instruction) -> bool:
        marks = one.where.count("/rarely")
        return any(
            inner.where.count("/rarely") > marks for inner in self.program[name] if inner.where
        )

    def _loop(self, one: Instruction) -> tuple[int, list[Part]]:
        body = re.search(r"body=%?([\w.\-]+)", one.rest)
        assert body is not None
        if self._is_rare(body[1], one):
            return 0, []
        known = _TURNS.search(one.rest)
        if known is None:
            self.unknown.append(one.where)
        turns = int(known[1]) if known else 1
        cost, parts = self.computation(body[1])
        return turns * cost, [part._replace(times=part.times * turns) for part in parts]

    def _own(self, one: Instruction, shapes: dict[str, str]) -> int:
        kind = one.opcode.removesuffix("-start")
        operands = [shapes[name] for name in one.operands if name in shapes]
        if kind == "copy":
            result = _text(_ARRAY.findall(one.shape)[0])  # of a copy-start, the first of a tuple
            return size_of(result) + sum(map(size_of, operands))
        if kind == "fusion":
            return self._fusion(one, operands)
        if one.opcode == "slice-start":  # ((whole), slice, flag)
            _, result = (_text(found) for found in _ARRAY.findall(one.shape)[:2])
            return size_of(result) + size_of(result, slow_only=False)
        if kind in ("dynamic-slice", "slice", "gather"):
            return 2 * size_of(one.shape)
        if kind in ("dynamic-update-slice", "scatter"):
            return 2 * sum(map(size_of, operands[1:]))
        return size_of(one.shape) + sum(map(size_of, operands))

    def _fusion(self, one: Instruction, operands: list[str]) -> int:
        inside = self.program[_CALLED.findall(one.rest)[0]]
        shapes = {inner.name: inner.shape for inner in inside}
        total, in_place = 0, False
        for inner in inside:
            if inner.opcode != "parameter":
                continue
            given = operands[int(inner.rest)]
            touched, written = _touched(inner.name, inside, shapes)
            in_place |= written and entries_of(one.shape) == entries_of(given)
            total += min(size_of(given), touched) if size_of(given) else 0
        return total + (0 if in_place else size_of(one.shape))


def _touched(name: str, inside: list[Instruction], shapes: dict[str, str]) -> tuple[int, bool]:
    """Bytes of a fusion's parameter that are read or written, and whether in place."""
    total, written = 0, False
    for user in (one for one in inside if name in one.operands):
        first = user.operands[0] == name
        if user.opcode == "bitcast":
            more, also = _touched(user.name, inside, shapes)
            total, written = total + more, written or also
        elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += size_of(user.shape, slow_only=False)
        elif user.opcode in ("dynamic-update-slice", "scatter") and first:
            updates = [shapes[other] for other in user.operands[1:] if other in shapes]
            total += 2 * max(size_of(shape, slow_only=False) for shape in updates)
            written = True
        else:
            total += size_of(shapes[name], slow_only=False)
    return total, written
