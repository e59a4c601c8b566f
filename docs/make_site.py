"""Build the site: the pages of docs/, the notebooks, the results, and every module's docstrings.

In: this repository. Out: HTML. Pages keep the places that they have in the repository, so one
relative link serves readers of both, and a link to a file that is not there stops the build.

    python docs/make_site.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "bots_jax"
# What pages may link to.
SHOWN = (
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "docs/**/*.md",
    "docs/skeleton_strategy.py",
    "notebooks/*.ipynb",
    "examples/*.py",
    "benchmarks/**/*.md",
    "benchmarks/**/*.png",
    "benchmarks/**/*.csv",
    "benchmarks/**/*.json",
)
# In this order; further pages of a folder follow by name.
GUIDES = (
    "your_loop",
    "when_selection_pays",
    "worlds",
    "levels_results",
    "learning",
    "auto",
    "features",
    "benchmarks",
    "new_strategy",
    "estimators",
    "large_pools",
    "sharding",
    "speed",
    "checks",
    "simulator",
    "language_model",
)


def copy_pages(into: Path) -> None:
    """All that is shown, where it stands in the repository."""
    for pattern in SHOWN:
        for path in ROOT.glob(pattern):
            there = into / path.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)


def write_reference(into: Path) -> list[Any]:
    """A page a module, and its part of the menu: the package, then its folders."""
    menu: dict[str, list[Any]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        folder = ".".join(parts[:-1])
        name = folder if parts[-1] == "__init__" else ".".join(parts)
        page = Path("reference", *parts).with_suffix(".md")
        (into / page).parent.mkdir(parents=True, exist_ok=True)
        (into / page).write_text(f"::: {name}\n", encoding="utf-8")
        entry = {name: str(page)}
        menu.setdefault(folder, []).append(entry)  # __init__ sorts first
    return [{folder: pages} for folder, pages in menu.items()]


def pages_of(source: Path, folder: str, first: tuple[str, ...] = ()) -> list[str]:
    """Pages of a folder, as paths from the root of the site."""
    found = sorted(path for path in (source / folder).iterdir() if path.suffix in (".md", ".ipynb"))
    found.sort(key=lambda path: first.index(path.stem) if path.stem in first else len(first))
    return [str(path.relative_to(source)) for path in found]


def make_site(out: Path) -> None:
    """Lay out the pages, then build; warnings are errors."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        copy_pages(source)
        reference = write_reference(source)
        menu = [
            {"Home": "README.md"},
            {"Guides": pages_of(source, "docs", GUIDES)},
            {"Frameworks": pages_of(source, "docs/adapters", ("host",))},
            {"Strategies": pages_of(source, "docs/strategies")},
            {"Notebooks": pages_of(source, "notebooks")},
            {"Benchmarks": ["benchmarks/selection/README.md"]},
            {"Reference": reference},
            {"Contributing": "CONTRIBUTING.md"},
            {"Changes": "CHANGELOG.md"},
        ]
        config = load_config(
            str(ROOT / "docs/mkdocs.yml"),
            docs_dir=str(source),
            site_dir=str(out),
            nav=menu,
            strict=True,
        )
        config.plugins.on_startup(command="build", dirty=False)
        build(config)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".cache/site")
    make_site(parser.parse_args().out.resolve())
