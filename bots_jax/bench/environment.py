"""READ FIRST. The contract of environments: what strategies run in and are measured by.

In: a strategy (a factory of selectors) and seeds. Out: one `Measured` a seed. That is the
whole contract; how the environment rolls out, on one device or many, is its own affair:

    def my_environment(difficulty: float = 0.5) -> Environment:
        def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
            selector = strategy.make(batch_size=8, rollouts=4)
            state = selector.init(reference)
            ...                                     # select, roll out, update
            return [Measured({"etr": 0.7}) for seed in seeds]

        return Environment("my environment", run, {"difficulty": difficulty})

`bots-jax bench --environment my_file.py:my_environment,difficulty=0.3` runs it.

What an environment must see to, so that its numbers can be compared:

* **Paired seeds.** All that is random outside the selector is a function of the seed (and
  step and task), never of the strategy. A seed may stand for something else that all
  strategies share, such as a triple of models.
* **Equal rollouts.** Every strategy gets the same number; what it spends beyond them, on
  screening for one, it must pay for out of them or report as `rollouts`.
* **The truth** is only for a strategy whose selector says `static["reads"] == "truth"`
  (`reads_truth`), given as the reference f[T, N], a row a step.
* **Embeddings** of the tasks, where there are any, go to a strategy whose selector says
  `static["reads"] == "embeddings"`, with the references, as `reference.TaskFeatures`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bots_jax.types import Selector


class Strategy(NamedTuple):
    """A named factory of selectors, with its settings applied."""

    name: str
    factory: Callable[..., Any]
    settings: Mapping[str, Any] = {}
    told: str | None = None  # what is known of the tasks; None: what the environment has

    def make(self, **sizes: int) -> Any:
        """The selector for the sizes of an environment (batch_size, rollouts).

        Or, where the strategy rolls out more than it trains on, whatever its factory
        makes for that; see `only_free`.

        Raises:
          ValueError: naming the strategy, where it refuses a setting.
        """
        try:
            return self.factory(**sizes, **self.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"strategy {self.name}: {error}") from None


class Series(NamedTuple):
    """A number over the steps of a run."""

    x: Sequence[float]  # steps from 1 (0 is before the first), increasing
    y: Sequence[float | None]  # None where it is not defined


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of one run of one seed, all of which can be written as JSON."""

    values: Mapping[str, float]  # by the keys of `measures.MEASURES`, or new ones
    series: Mapping[str, Series] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, Sequence[float]] | None = None  # see meter.calibration
    map: Mapping[str, Any] | None = None  # see meter.as_map; of one seed, as it is large
    truth: bool = False  # an oracle's: shown beside the others, not compared with them


class RunFn(Protocol):
    """Runs one strategy over seeds."""

    def __call__(self, strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        """One `Measured` for each of the seeds, in their order.

        Raises:
          ValueError: where the strategy cannot be run here, such as one that needs
            references where there are none. It is then left out, with the message.
        """


class Environment(NamedTuple):
    """An environment that strategies run in."""

    name: str  # as tables show it
    run: RunFn
    about: Mapping[str, Any] = {}  # all that its numbers depend on; JSON values
    seeds: int | None = None  # how many there are; None: as many as one likes
    chunk: int = 1000  # seeds run at once, so that memory and lost work stay bounded
    curve: str = "etr"  # the series that stands for learning here
    headline: tuple[str, ...] = ()  # measures that every pair of strategies is judged by
    tells: tuple[str, ...] = ()  # values of `told=` that it takes


def only_free(strategy: Strategy, selector: Any) -> Selector:
    """The selector; raises if it generates more rollouts than it trains on.

    Raises:
      ValueError: naming the strategy.
    """
    if not isinstance(selector, Selector):
        raise ValueError(f"strategy {strategy.name} needs extra rollouts, which are not made here")
    return selector


def reads_truth(selector: Any) -> bool:
    """Whether the selector is an oracle, which takes the true rates as its reference."""
    return selector.static.get("reads") == "truth" or selector.static.get("strategy") == "oracle"
