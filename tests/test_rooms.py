"""The order of the rooms: each may import from those below it alone.

From the ground up, as CONTRIBUTING.md lists them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bots_jax"

# From the ground up. Modules on one line may import each other.
ROOMS = (
    ("types", "checks", "settings", "pool.graded", "numerics.compiling"),
    ("sharding", "orbax_files", "checkpoint"),
    ("numerics", "draws"),
    ("features",),
    ("pool",),
    ("choice.batch",),
    ("compose",),
    ("implicit",),
    ("belief",),
    ("choice",),
    ("grouped",),
    ("growth", "summary"),
    ("auto_selector", "bots_selector"),
    ("strategies",),
    ("evaluate",),
    ("adapters", "levels"),
    ("rl",),
    ("simulator",),
    ("bench",),
    ("cli",),
)
MOST_ROOT_MODULES = 14


def modules() -> list[str]:
    """Every module of the package, without its `bots_jax.`; the root itself left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found += [name] if name else []
    return found


def floor_of(module: str) -> int:
    """The floor of the room that a module stands in: that of its longest name in ROOMS."""
    floors = [
        (len(room), floor)
        for floor, rooms in enumerate(ROOMS)
        for room in rooms
        if module == room or module.startswith(room + ".")
    ]
    assert floors, f"{module} stands in no room: give it a place in ROOMS"
    return max(floors)[1]


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for annotations alone: nothing of it runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def imports_of(source: str) -> list[str]:
    """What a module imports of the package when it runs, at its top or inside functions."""
    found = []
    for node in ast.walk(WithoutTypes().visit(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bots_jax":
            inner = (node.module or "").removeprefix("bots_jax").lstrip(".")
            names = [f"{inner}.{name.name}".lstrip(".") for name in node.names]
            found += [name if is_module(name) else inner for name in names]
        if isinstance(node, ast.Import):
            inside = [name.name for name in node.names if name.name.startswith("bots_jax.")]
            found += [name.removeprefix("bots_jax.") for name in inside]
    return [name for name in found if name]


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def forbidden(module: str, source: str) -> list[str]:
    """The imports of a module that lead upwards."""
    return [name for name in imports_of(source) if floor_of(name) > floor_of(module)]


def source_of(module: str) -> str:
    path = PACKAGE.joinpath(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


@pytest.mark.parametrize("module", modules())
def test_nothing_is_imported_from_above(module: str) -> None:
    assert not forbidden(module, source_of(module))


def test_an_import_from_above_is_seen() -> None:
    """The test above can fail: what selects must not import what measures."""
    assert forbidden("belief.beta", "from bots_jax.evaluate import metrics") == ["evaluate.metrics"]
    assert forbidden("pool.visits", "def f():\n    from bots_jax.choice.batch import lowest") == [
        "choice.batch"
    ]
    assert not forbidden("evaluate.replay", "from bots_jax.strategies import STRATEGIES")


@pytest.mark.parametrize("room", [room for rooms in ROOMS for room in rooms])
def test_every_room_is_there(room: str) -> None:
    assert is_module(room)


def test_few_modules_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_MODULES
