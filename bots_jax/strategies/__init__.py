"""Strategies to compare with, each a factory of a `Selector`.

`STRATEGIES` maps the names of the command line to factories. Each factory takes
keyword-only `batch_size`, `rollouts` and the settings of its own.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bots_jax.auto_selector import auto
from bots_jax.bots_selector import bots
from bots_jax.checks import check_choice
from bots_jax.settings import AUTO_DEFAULTS, BOTS_DEFAULTS
from bots_jax.strategies.adarft import adarft
from bots_jax.strategies.advantage_replay import advantage_replay
from bots_jax.strategies.balanced import balanced
from bots_jax.strategies.binned_thompson import binned_thompson
from bots_jax.strategies.dps import dps
from bots_jax.strategies.easy_to_hard import easy_to_hard
from bots_jax.strategies.epochs import epochs
from bots_jax.strategies.greso import greso
from bots_jax.strategies.insight import insight
from bots_jax.strategies.kgps import kgps
from bots_jax.strategies.learning_progress import learning_progress
from bots_jax.strategies.lesson_weights import lesson_weights
from bots_jax.strategies.mapp import mapp
from bots_jax.strategies.mopps import mopps
from bots_jax.strategies.oracle import oracle
from bots_jax.strategies.prompt_replay import prompt_replay
from bots_jax.strategies.sec import sec
from bots_jax.strategies.uniform import uniform
from bots_jax.strategies.vade import vade
from bots_jax.types import Selector

STRATEGIES: dict[str, Callable[..., Selector]] = {
    "bots": bots,
    "auto": auto,
    "bots-explicit": partial(bots, implicit_weight=0.0),
    "bots-implicit": partial(bots, implicit_weight=1.0),
    "bots-no-forgetting": partial(bots, forgetting=0.0, implicit_weight=0.0),
    "bots-mean": partial(bots, choice="mean"),
    "uniform": uniform,
    "easy-to-hard": easy_to_hard,
    "adarft": adarft,
    "advantage-replay": advantage_replay,
    "balanced": balanced,
    "binned-thompson": binned_thompson,
    "dps": dps,
    "epochs": epochs,
    "greso": greso,
    "insight": insight,
    "kgps": kgps,
    "kgps-logit": partial(kgps, scale="logit"),
    "kgps-paced": partial(kgps, choice="paced"),
    "learning-progress": learning_progress,
    "lesson-weights": lesson_weights,
    "mapp": mapp,
    "mopps": mopps,
    "mopps-band": partial(mopps, band=(0.3, 0.7)),
    "prompt-replay": prompt_replay,
    "sec": sec,
    "vade": vade,
}

# Choices by the true rates f[T, N], taken as `reference`: for a replay, never for training.
ORACLES: dict[str, Callable[..., Selector]] = {
    "oracle": oracle,
    "oracle-mixed": partial(oracle, choice="mixed"),
    "oracle-balanced": partial(oracle, choice="mixed", breadth=0.1),
}


def open_settings(factory: Callable[..., Selector]) -> set[str]:
    """Names of the settings that a factory takes and its name does not fix."""
    fixed = getattr(factory, "keywords", {})
    return set(inspect.signature(factory).parameters) - set(fixed)


def default_of(name: str, factory: Callable[..., Selector]) -> str:
    """The default of a setting of a factory."""
    value = inspect.signature(factory).parameters[name].default
    if value is None and factory is auto and name in ("forgetting", "implicit_weight"):
        return "learned"
    if value is None:
        value = getattr(AUTO_DEFAULTS if factory is auto else BOTS_DEFAULTS, name)
    return f"{value:g}"


def _with_defaults(name: str, text: str) -> str:
    """The text with, in brackets, the most common default, then other strategies' defaults."""
    defaults = {
        label: default_of(name, factory)
        for label, factory in {**STRATEGIES, **ORACLES}.items()
        if name in open_settings(factory)
    }
    most = Counter(defaults.values()).most_common(1)[0][0]
    others = {label: value for label, value in defaults.items() if value != most}
    told = [
        f"{label} {value}"
        for label, value in others.items()
        if others.get(label.rsplit("-", 1)[0], "") != value or "-" not in label  # a variant
    ]
    return f"{text} [{'; '.join([most, ', '.join(told)]) if told else most}]"


# Numbers that a command line may give, and what they mean.
SETTINGS: dict[str, str] = {
    name: _with_defaults(name, text)
    for name, text in {
        "target": "p*, the success probability worth training on",
        "forgetting": "lambda, share of the posterior that returns to the prior in a step",
        "implicit_weight": "rho, weight of implicit evidence",
        "capability_momentum": "gamma, smoothing of the capability",
        "temperature": "tau, noise in the choice; 0: none",
        "breadth": "c, penalty for recent visits to a task: larger spreads over more tasks",
        "exploration": "share of the batch that is drawn uniformly",
    }.items()
}


def configure(
    name: str,
    settings: Mapping[str, Any],
    *,
    known: Mapping[str, Callable[..., Selector]] | None = None,
    **sizes: Any,
) -> Selector:
    """The strategy of that name under those of `settings` that it has and does not fix.

    `bots-explicit`, for one, is BOTS with implicit_weight 0: it takes the forgetting of
    `settings` and keeps its implicit_weight.

    Args:
      known: factories by name; None for `STRATEGIES`.
      sizes: batch_size, rollouts.
    """
    known = STRATEGIES if known is None else known
    factory = known[check_choice("strategy", name, tuple(known))]
    taken = {key: value for key, value in settings.items() if key in open_settings(factory)}
    return factory(**sizes, **taken)


def make_strategy(name: str, **settings: Any) -> Selector:
    """The selector of that name.

    Raises:
      ValueError: if the name is not known, with those that are.
    """
    return STRATEGIES[check_choice("strategy", name, tuple(STRATEGIES))](**settings)


__all__ = [
    "ORACLES",
    "SETTINGS",
    "STRATEGIES",
    "adarft",
    "advantage_replay",
    "balanced",
    "binned_thompson",
    "configure",
    "dps",
    "easy_to_hard",
    "epochs",
    "greso",
    "insight",
    "kgps",
    "learning_progress",
    "lesson_weights",
    "make_strategy",
    "mapp",
    "mopps",
    "open_settings",
    "oracle",
    "prompt_replay",
    "sec",
    "uniform",
    "vade",
]
