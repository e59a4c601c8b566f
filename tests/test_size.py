"""No function of the package is long: at most 60 lines of code.

Signature and comments count; docstrings and blank lines do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bots_jax"
MOST_LINES = 60
FILES = [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))]


def lengths(source: str) -> Iterator[tuple[str, int]]:
    """Names of all functions, inner ones and methods too, and their lines of code."""
    tree, lines = ast.parse(source), source.splitlines()
    nodes = list(ast.walk(tree))
    is_code = [bool(line.strip()) for line in lines]
    for node in nodes:
        told = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if told and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno or 0
            is_code[first - 1 : last] = [False] * (last - first + 1)
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, sum(is_code[node.lineno - 1 : node.end_lineno])


@pytest.mark.parametrize("file", FILES)
def test_no_function_is_long(file: str) -> None:
    found = dict(lengths((PACKAGE / file).read_text()))
    long = {name: count for name, count in found.items() if count > MOST_LINES}
    assert not long, f"{file}: split these, each over {MOST_LINES} lines of code: {long}"


def test_a_long_function_is_seen() -> None:
    """The test above can fail: at 61 lines of code, whatever else there is between them."""
    rest = '    """Told\n\n    at length.\n    """\n\n    # And noted.\n'
    made = f"class C:\n    pass\n\nasync def f():\n{rest}" + "    x = 1\n" * 59
    assert list(lengths(made)) == [("f", MOST_LINES + 1)]
