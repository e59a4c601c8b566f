"""The matrix to run: strategies x environments x settings x seeds, as identified cells.

In: a matrix from a TOML file or a command line. Out: `Job`s, one a strategy and environment,
each with the identity of its cells. A matrix file:

    title = "Strategies on a recorded run"
    baseline = "uniform"               # label of the strategy that the others are compared with
    seeds = 10                         # of environments that do not say otherwise
    first_seed = 0                     # above 0: leave out those that settings were chosen on
    environments = ["replay,path=run.npz"]
    strategies = ["uniform", "bots", "bots,forgetting=0.01|0.1,label=bots, slow"]

A cell is one strategy under one seed in one environment. Its identity is a digest of all
that its numbers depend on, as far as can be told: the environment's `about`, the code's
origin (version, or digest of a user's file), the settings, the seed. A cell that was run
under one identity is never run again; change a setting and it is another cell.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bots_jax.bench import registry
from bots_jax.bench.environment import Environment, Strategy

KEYS = {
    "title": str,
    "baseline": str,
    "seeds": int,
    "first_seed": int,
    "environments": list,
    "strategies": list,
}


class Matrix(NamedTuple):
    """A benchmark as a user specifies it."""

    title: str
    baseline: str | None  # None: the first strategy
    seeds: int
    environments: tuple[str, ...]  # specs
    strategies: tuple[str, ...]  # specs
    first_seed: int = 0


class Job(NamedTuple):
    """A strategy in an environment, under seeds."""

    environment: Environment
    strategy: Strategy
    origin: str  # of the code of both
    seeds: tuple[int, ...]

    def cell(self, seed: int) -> str:
        """The identity of one seed's cell."""
        known = [
            self.environment.name,
            self.environment.about,
            self.origin,
            self.strategy.settings,
            seed,
        ]
        known += [] if self.strategy.told is None else [self.strategy.told]
        text = json.dumps(known, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class Plan(NamedTuple):
    """The jobs to run, and those that cannot be run."""

    jobs: tuple[Job, ...]  # environment by environment
    baseline: str
    absent: tuple[str, ...]  # a line for each environment whose data are not there


def read_matrix(path: str | Path) -> Matrix:
    """Read a matrix file.

    Raises:
      ValueError: naming the file and what is wrong in it.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    for key, value in table.items():
        if key not in KEYS:
            raise ValueError(f"{path}: {key!r} is not known: choose from {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise ValueError(f"{path}: {key}={value!r} must be of type {KEYS[key].__name__}")
    for key in ("environments", "strategies"):
        if not all(isinstance(spec, str) for spec in table.get(key, [])):
            raise ValueError(f"{path}: {key} must be a list of texts")
    return Matrix(
        table.get("title", Path(path).stem),
        table.get("baseline"),
        table.get("seeds", 10),
        tuple(table.get("environments", ())),
        tuple(table.get("strategies", ())),
        table.get("first_seed", 0),
    )


def named_matrices() -> dict[str, Path]:
    """Matrix files that come with the package or its repository."""
    package = Path(__file__).parent
    folders = (package / "matrices", package.parents[1] / "benchmarks" / "selection")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}


def find_matrix(name: str) -> Matrix:
    """Find a matrix by name or path.

    Raises:
      ValueError: where there is none, naming those there are.
    """
    named = named_matrices()
    if name in named:
        return read_matrix(named[name])
    if not Path(name).is_file():
        raise ValueError(
            f"matrix {name!r} is neither a file nor one of {', '.join(named) or 'none'}"
        )
    return read_matrix(name)


def make_plan(
    matrix: Matrix, *, data: str | Path = ".", workspace: str | Path | None = None
) -> Plan:
    """Make a plan: look up the strategies, environments and data of a matrix.

    Raises:
      ValueError: where a spec is wrong, a label is double, or there is nothing to run.
    """
    if matrix.seeds < 1:
        raise ValueError(f"seeds={matrix.seeds} must be at least 1")
    if matrix.first_seed < 0:
        raise ValueError(f"first_seed={matrix.first_seed} must be at least 0")
    rules = [(spec, *registry.make_strategy(spec)) for spec in registry.expand(matrix.strategies)]
    if not rules:
        raise ValueError("there is no strategy: give --strategy or a matrix with strategies")
    labels = [spec.label for spec, _, _ in rules]
    _refuse_doubles("strategy", labels)
    baseline = matrix.baseline or labels[0]
    if baseline not in labels:
        raise ValueError(f"baseline={baseline!r} is not among the strategies {', '.join(labels)}")
    jobs, absent, places = [], [], []
    for text in matrix.environments:
        for spec in registry.read_specs(text):
            try:
                place, origin = registry.make_environment(spec, data, workspace)
            except FileNotFoundError as error:
                absent.append(f"{spec.label}: {error}")
                continue
            places.append(place.name)
            seeds = _seeds(matrix, spec.seeds, place.seeds)
            if not seeds:
                raise ValueError(
                    f"first_seed={matrix.first_seed}: {place.name} has {place.seeds} seeds"
                )
            for _, rule, _ in rules:
                if rule.told is not None and rule.told not in place.tells:
                    raise ValueError(
                        f"strategy {rule.name}: told={rule.told}, but {place.name} tells "
                        f"{', '.join(place.tells) or 'every strategy all that it knows'}"
                    )
            jobs += [
                Job(place, rule, f"{_name_of(rule_spec)} {rule_origin}, {origin}", seeds)
                for rule_spec, rule, rule_origin in rules
            ]
    if not matrix.environments:
        raise ValueError(
            "there is no environment: give a matrix (see --list), or --environment simulation, "
            "or a recording of yours"
        )
    _refuse_doubles("environment", places)
    return Plan(tuple(jobs), baseline, tuple(absent))


def _seeds(matrix: Matrix, asked: int | None, there_are: int | None) -> tuple[int, ...]:
    otherwise = matrix.seeds if there_are is None else there_are
    end = matrix.first_seed + (otherwise if asked is None else asked)
    return tuple(range(matrix.first_seed, end if there_are is None else min(end, there_are)))


def _name_of(spec: registry.Spec) -> str:
    """Without folders: a file is known by what is in it, not by where it lies."""
    path, colon, attribute = spec.name.rpartition(":")
    return f"{Path(path).name}{colon}{attribute}"


def _refuse_doubles(kind: str, labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"{kind} {label!r} is there twice: leave one out, or add label=... to tell them "
                "apart"
            )


def plain(value: Any) -> Any:
    """Convert for JSON: tuples to lists, NumPy numbers to numbers, NaN to null."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
