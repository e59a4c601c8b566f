"""Strategies and environments by name, by path, or by entry point.

In: a spec, as the command line and matrix files write it. Out: `Strategy` and `Environment`.

    NAME[,key=value[|value ...]] ...

    bots                                    a name of the package or of an entry point
    bots,forgetting=0.01,implicit_weight=0  with settings of its factory
    bots,forgetting=0|0.01|0.1              three strategies
    my_rules.py:greedy,keep=0.9             `greedy` of a file
    my_package.rules:greedy                 or of a module
    run.npz                                 (environments) a recorded run, or a matrix

Values are numbers, true, false or null where they look like it (as in JSON), else text.
`*` alone stands for every free strategy of the package. `label=` names a row of the tables;
`seeds=` says how many seeds an environment gets; `told=` what a strategy knows of the tasks,
one of those that the environment offers (`Environment.tells`). A package offers its own under
the entry-point groups `bots_jax.strategies` and `bots_jax.environments`: a factory of
selectors, or of `Environment`s.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bots_jax.bench.environment import Environment, Strategy
from bots_jax.bench.environments import ENVIRONMENTS

STRATEGY_GROUP, ENVIRONMENT_GROUP = "bots_jax.strategies", "bots_jax.environments"


class Spec(NamedTuple):
    """One spec, read but not yet looked up."""

    name: str
    settings: Mapping[str, Any]
    label: str
    seeds: int | None
    told: str | None = None  # what the strategy is to know of the tasks


class Found(NamedTuple):
    """A factory, and a digest that identifies its code."""

    factory: Callable[..., Any]
    origin: str  # "bots_jax 0.2.0", or the digest of a file


def read_specs(text: str) -> list[Spec]:
    """The specs of one text: several where a setting lists alternatives.

    Raises:
      ValueError: naming the text, where it is not of the form above.
    """
    name, *pairs = [part.strip() for part in text.split(",")]
    if not name:
        raise ValueError(f"{text!r} has no name: write NAME,key=value")
    keys, choices = [], []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or key in keys:
            raise ValueError(f"{text!r}: {pair!r} must be key=value, each key once")
        keys.append(key)
        choices.append([_value(one) for one in value.split("|")])
    return [_spec(text, name, dict(zip(keys, one, strict=True))) for one in _product(choices)]


def _product(choices: list[list[Any]]) -> list[tuple[Any, ...]]:
    return list(itertools.product(*choices))


def _spec(text: str, name: str, settings: dict[str, Any]) -> Spec:
    label, seeds = settings.pop("label", None), settings.pop("seeds", None)
    if seeds is not None and (not isinstance(seeds, int) or seeds < 1):
        raise ValueError(f"{text!r}: seeds={seeds!r} must be a whole number of at least 1")
    told = settings.pop("told", None)
    if told is not None and not isinstance(told, str):
        raise ValueError(f"{text!r}: told={told!r} must be a word, such as prompts")
    shown = [name.rpartition("/")[2], *(f"{key} {_shown(settings[key])}" for key in settings)]
    shown += [] if told is None else [f"told {told}"]
    return Spec(name, settings, str(label) if label is not None else ", ".join(shown), seeds, told)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return float(text)  # .5, which JSON does not have
    except ValueError:
        return text


# --- strategies ---------------------------------------------------------------------------


def strategies() -> dict[str, Callable[..., Any]]:
    """The package's factories by name: selectors, oracles, strategies with extra rollouts."""
    from bots_jax.bench.frontier import finder, frontier
    from bots_jax.evaluate.replay import KNOWN

    return {"frontier": frontier, "finder": finder, **KNOWN}


def expand(texts: Sequence[str]) -> list[Spec]:
    """The specs of several texts; "*" is every strategy without extra rollouts.

    Free is what rolls out no more than it trains on, and is not told the truth. Names
    that a text has without settings of its own are not repeated.
    """
    from bots_jax.strategies import STRATEGIES

    named = {spec.label for text in texts if text != "*" for spec in read_specs(text)}
    found: list[Spec] = []
    for text in texts:
        every = [name for name in STRATEGIES if name not in named]
        found += [spec for one in (every if text == "*" else [text]) for spec in read_specs(one)]
    return found


def make_strategy(spec: Spec) -> tuple[Strategy, str]:
    """The strategy of a spec, and its origin.

    Raises:
      ValueError: naming what cannot be found, or a setting that its factory lacks.
    """
    found = find("strategy", spec.name, strategies(), STRATEGY_GROUP)
    _check_factory(spec, found.factory)
    _check_settings("strategy", spec, found.factory, ("batch_size", "rollouts"))
    return Strategy(spec.label, found.factory, spec.settings, spec.told), found.origin


def _check_factory(spec: Spec, factory: Any) -> None:
    """Refuse what is no factory, such as the score of one."""
    takes = inspect.signature(factory).parameters
    free = any(part.kind is part.VAR_KEYWORD for part in takes.values())
    if not free and not {"batch_size", "rollouts"} <= set(takes):
        raise ValueError(
            f"strategy {spec.label!r} is no factory: that takes batch_size and rollouts by name "
            "and returns a selector, as in docs/new_strategy.md"
        )


# --- environments -------------------------------------------------------------------------


def make_environment(
    spec: Spec, data: str | Path = ".", workspace: str | Path | None = None
) -> tuple[Environment, str]:
    """The environment of a spec, and its origin.

    Args:
      spec: a name that is an .npz file is told by its arrays to be a matrix or a recording.
      data: where a `path` is looked for that is not found from the working directory.
      workspace: given to factories that have the parameter and want a folder to keep
        unfinished runs in.

    Raises:
      FileNotFoundError: where a data file is absent.
      ValueError: as `make_strategy`.
    """
    name, settings = spec.name, dict(spec.settings)
    if name.endswith(".npz"):
        settings = {"path": name, **settings}
    if "path" in settings:
        settings["path"] = str(find_data(settings["path"], data))
    if name.endswith(".npz"):
        name = _kind_of(settings["path"])
    found = find("environment", name, ENVIRONMENTS, ENVIRONMENT_GROUP)
    takes = inspect.signature(found.factory).parameters
    if "workspace" in takes and "workspace" not in settings and workspace is not None:
        settings["workspace"] = str(workspace)
    _check_settings("environment", spec._replace(settings=settings), found.factory, ())
    try:
        made = found.factory(**settings)
    except TypeError as error:
        raise ValueError(f"environment {spec.label}: {error}") from None
    if not isinstance(made, Environment):
        raise ValueError(
            f"environment {spec.label}: its factory returned {type(made).__name__}, not an "
            "Environment; see bots_jax.bench.environment"
        )
    named = "," in spec.label or " " not in spec.label
    return made if named else made._replace(name=spec.label), found.origin


def find_data(path: str | Path, data: str | Path) -> Path:
    """The file at `path`, or else at `path` within `data`.

    Raises:
      FileNotFoundError: naming both places.
    """
    for place in (Path(path), Path(data) / path):
        if place.is_file():
            return place
    raise FileNotFoundError(f"{path} is neither here nor in {data}: give --data FOLDER")


def _kind_of(path: str) -> str:
    """A matrix has scores or successes [tasks, models >= 3] and no times; else a recording."""
    from bots_jax.evaluate.task_files import read_npz

    arrays = read_npz(path)
    timed = {"success_rate", "successes", "seq_success"} & set(arrays)
    return "predict" if not timed and {"scores", "success"} & set(arrays) else "replay"


# --- looking up ---------------------------------------------------------------------------


def find(kind: str, name: str, known: Mapping[str, Any], group: str) -> Found:
    """A factory by name, "file.py:factory", "module:factory" or entry point.

    Args:
      known: by name, a factory or a "module:factory".

    Raises:
      ValueError: naming what cannot be found or imported.
    """
    if name in known:
        entry = known[name]
        factory = _of_module(kind, entry) if isinstance(entry, str) else entry
        return Found(factory, f"bots_jax {_version('bots-jax')}")
    points = offered(group)
    if name in points:
        point = points[name]
        release = point.dist.version if point.dist else ""
        return Found(point.load(), f"{point.value} {release}")
    if ":" not in name:
        if name.endswith(".py"):
            raise ValueError(
                f"{kind} {name!r} does not say which function of the file: write {name}:FUNCTION"
            )
        raise ValueError(
            f"{kind} {name!r} is not known: choose one of {', '.join([*known, *points])}, or "
            f"give file.py:factory"
        )
    if name.partition(":")[0].endswith(".py"):
        return _of_file(kind, name)
    return Found(_of_module(kind, name), name)


def offered(group: str) -> dict[str, metadata.EntryPoint]:
    """Entry points of other installed packages, by name."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def _of_file(kind: str, name: str) -> Found:
    path, _, attribute = name.rpartition(":")
    file = Path(path).resolve()
    if not file.is_file():
        raise ValueError(f"{kind} {name!r}: there is no file {path}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    title = f"bots_jax_bench_{file.stem}_{digest}"
    if title not in sys.modules:
        made = importlib.util.spec_from_file_location(title, file)
        if made is None or made.loader is None:
            raise ValueError(f"{kind} {name!r}: {path} cannot be imported")
        module = importlib.util.module_from_spec(made)
        sys.modules[title] = module  # dataclasses and pickles look there
        try:
            made.loader.exec_module(module)
        except Exception as error:
            del sys.modules[title]
            raise ValueError(f"{kind} {name!r}: {type(error).__name__}: {error}") from error
    return Found(_attribute(kind, name, sys.modules[title], attribute), digest)


def _of_module(kind: str, name: str) -> Callable[..., Any]:
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise ValueError(f"{kind} {name!r} cannot be imported: {error}") from None
    return _attribute(kind, name, module, attribute)


def _attribute(kind: str, name: str, module: Any, attribute: str) -> Callable[..., Any]:
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ValueError(f"{kind} {name!r}: there is no function {attribute!r} in it")
    return factory


def _check_settings(
    kind: str, spec: Spec, factory: Callable[..., Any], reserved: tuple[str, ...]
) -> None:
    parameters = inspect.signature(factory).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    open_ones = [name for name in parameters if name not in reserved]
    for key in spec.settings:
        if key not in open_ones:
            raise ValueError(
                f"{kind} {spec.label!r} has no setting {key!r}: it has "
                f"{', '.join(open_ones) or 'none'}"
            )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
