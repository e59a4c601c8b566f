"""Faults to plant in Python source: each changes one expression or statement.

In: source. Out: `Mutant`s, places in it and what to put there. Kinds: comparisons (border and
opposite), arithmetic (another operator, a term removed), logic (and, or, not, &, |, ~), numbers
and flags, calls (arguments swapped, another function of the same signature), branches of `where`
and of conditions, updates left out. Docstrings, error texts, whatever is raised, annotations,
imports and decorators are left alone, for no user would notice.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """One fault: the text from `begin` to `end`, lines from 1 and bytes from 0, becomes `new`."""

    function: str  # qualified as `__qualname__` is; "" at the level of the module
    names: tuple[str, ...]  # what a statement of the module assigns
    begin: tuple[int, int]
    end: tuple[int, int]
    kind: str
    old: str
    new: str


_COMPARE: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
# Functions that take the same arguments.
_ALIKE = {
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "round": "floor",
    "floor": "ceil", "ceil": "floor", "all": "any", "any": "all", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "log1p": "log", "log": "log1p",
    "exp": "expm1", "expm1": "exp", "sum": "max", "cumsum": "cumprod", "argmin": "argmax",
    "argmax": "argmin", "sqrt": "square", "rsqrt": "sqrt", "log_softmax": "softmax",
    "add": "set", "mean": "sum",
}  # fmt: skip
# Whose first two arguments may be swapped without a difference.
_COMMUTE = {"minimum", "maximum", "min", "max", "logaddexp", "add", "multiply", "array_equal"}
# Calls that may be left out: what they are given first goes through.
_THROUGH = {"clip", "abs", "sqrt", "sigmoid", "log", "exp", "round", "floor", "minimum", "maximum"}


def mutants(source: str) -> list[Mutant]:
    """All faults of a file, in the order of their places."""
    found: list[Mutant] = []
    _Finder(source, found).visit(ast.parse(source))
    return found


def plant(source: str, mutant: Mutant) -> str:
    """The source with the fault in it."""
    lines = source.encode().splitlines(keepends=True)
    (first, start), (last, stop) = mutant.begin, mutant.end
    before, after = lines[first - 1][:start], lines[last - 1][stop:]
    lines[first - 1 : last] = [before + mutant.new.encode() + after]
    return b"".join(lines).decode()


class _Finder(ast.NodeVisitor):
    """Goes through what may be changed."""

    def __init__(self, source: str, found: list[Mutant]) -> None:
        self.source, self.found = source, found
        self.scope: list[str] = []
        self.names: tuple[str, ...] = ()

    def note(self, node: ast.expr | ast.stmt, kind: str, new: ast.AST | str) -> None:
        text = new if isinstance(new, str) else ast.unparse(new)
        if isinstance(node, ast.expr):
            text = f"({text})"
        old = ast.get_source_segment(self.source, node) or ""
        begin = (node.lineno, node.col_offset)
        end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
        function = ".".join(self.scope).removesuffix(".<locals>")
        self.found.append(Mutant(function, self.names, begin, end, kind, old, text))

    def changed(self, node: Any, kind: str, **fields: Any) -> None:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        self.note(node, kind, new)

    # --- what is left alone, or gone into ---------------------------------------------------

    def visit_Raise(self, node: ast.Raise) -> None:
        """An error's text."""

    visit_Import = visit_ImportFrom = visit_JoinedStr = visit_Raise  # type: ignore[assignment]

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.with_names((node.target,), node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.with_names(tuple(node.targets), node.value)

    def with_names(self, targets: tuple[ast.expr, ...], value: ast.expr) -> None:
        if not self.scope:
            self.names = tuple(ast.unparse(target) for target in targets)
        self.visit(value)
        self.names = () if not self.scope else self.names

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.inside([node.name], node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self.inside([node.name, "<locals>"], node.body)

    def inside(self, names: list[str], body: list[ast.stmt]) -> None:
        self.scope += names
        for statement in body:
            self.visit(statement)
        del self.scope[-len(names) :]

    # --- faults -----------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> None:
        for at, operator in enumerate(node.ops):
            for other in _COMPARE[type(operator)]:
                ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
                self.changed(node, "comparison", ops=ops)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        words = any(isinstance(x, ast.Constant | ast.JoinedStr) and not _is_number(x)
                    for x in (node.left, node.right))  # fmt: skip
        if not words:
            for other in _ARITHMETIC.get(type(node.op), ()):
                self.changed(node, "operator", op=other())
            self.note(node, "term removed", node.left)
            if not isinstance(node.op, ast.Sub | ast.Pow | ast.Div):
                self.note(node, "term removed", node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        for other in _ARITHMETIC.get(type(node.op), ()):
            self.changed(node, "operator", op=other())
        self.note(node, "update left out", "pass")
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            self.note(node, "number", ast.Constant(node.operand.value))
            return
        self.note(node, "sign", node.operand)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.changed(node, "logic", op=other)
        for at in range(len(node.values)):
            left = [*node.values[:at], *node.values[at + 1 :]]
            short = left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
            self.note(node, "term removed", short)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.note(node, "flag", repr(not value))
        elif isinstance(value, int):
            self.note(node, "number", repr(value + 1))
            if value > 1:
                self.note(node, "number", repr(value - 1))
        elif isinstance(value, float):
            self.note(node, "number", repr(value * 2 if value else 1.0))
            if value:
                self.note(node, "number", repr(value / 2))

    def visit_If(self, node: ast.If) -> None:
        self.branch(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.note(node, "branch", node.body)
        self.note(node, "branch", node.orelse)
        self.generic_visit(node)

    def branch(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            self.note(test, "branch", ast.UnaryOp(ast.Not(), test))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if name in ("isinstance", "issubclass", "cast", "TypeVar", "NamedTuple"):
            return
        if name in _ALIKE:
            func = copy.copy(node.func)
            if isinstance(func, ast.Attribute):
                func.attr = _ALIKE[name]
            elif isinstance(func, ast.Name):
                func.id = _ALIKE[name]
            self.changed(node, "function", func=func)
        if name in _THROUGH and node.args:
            self.note(node, "call left out", node.args[0])
        if name == "where" and len(node.args) == 3:
            test, yes, no = node.args
            self.changed(node, "branch", args=[test, no, yes])
            self.note(node, "branch", yes)
            self.note(node, "branch", no)
        elif (
            len(node.args) > 1
            and name not in _COMMUTE
            and ast.dump(node.args[0]) != ast.dump(node.args[1])
        ):
            self.changed(node, "arguments", args=[node.args[1], node.args[0], *node.args[2:]])
        if name == "_replace":
            for at in range(len(node.keywords)):
                kept = [*node.keywords[:at], *node.keywords[at + 1 :]]
                self.changed(node, "update left out", keywords=kept)
        self.generic_visit(node)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def rooms_of(files: dict[str, str]) -> Iterator[tuple[str, Mutant]]:
    """All faults of several files, by name."""
    for name, source in files.items():
        for mutant in mutants(source):
            yield name, mutant
