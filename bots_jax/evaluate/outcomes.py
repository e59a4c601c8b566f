"""How often a policy solves each task of a pool, read from a file. A file never executes.

In: an .npz (without pickles), .parquet or .jsonl file with one of these.

    ================== =========================================================================
    columns            meaning
    ================== =========================================================================
    pass_rate          in [0, 1], a row a task
    successes, trials  counts, a row a task
    rewards            a list a row, null (NaN) where not scored; in an .npz one array [N, G]
    reward             a number a row: a row a rollout, and then `id` is needed
    ================== =========================================================================

and, if you like, `id` (rows of one id are put together: the visits of the first steps) and `domain`
or `family`. Other columns are left alone. Out: `Outcomes`, and the shares of its tasks that a
group of m rollouts solves never, always and sometimes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bots_jax.evaluate.task_files import ABSENT, Columns, place_of, read_columns, shown

Floats = npt.NDArray[np.float64]
_NUMBERS = ("pass_rate", "successes", "trials", "reward", "rewards")
_NAMES = ("id", "domain", "family")


class Outcomes(NamedTuple):
    """N tasks, distinct."""

    successes: Floats  # [N]; where `trials` is None the rates themselves
    trials: Floats | None  # [N], at least 1; None: rates that are taken to be exact
    domains: list[str] | None  # N

    @property
    def rates(self) -> Floats:
        """[N] in [0, 1]."""
        return self.successes if self.trials is None else self.successes / self.trials


def read_outcomes(
    path: str | Path, *, trials: int | None = None, solved_at: float | None = None
) -> Outcomes:
    """Read how often tasks were solved.

    Args:
      path: a file named *.npz, *.parquet or *.jsonl, with the columns listed above.
      trials: rollouts behind each `pass_rate`; None: they are exact.
      solved_at: the least reward that counts as solved; None: rewards must be 0 or 1.

    Raises:
      ValueError: for anything wrong with the file, naming the place and the way out.
    """
    path = Path(path)
    columns = read_columns(path, lambda name: name in _NUMBERS + _NAMES)
    columns = {name: values for name, values in columns.items() if name in _NUMBERS + _NAMES}
    given = [name for name in ("pass_rate", "successes", "rewards", "reward") if name in columns]
    if len(given) != 1:
        what = f"has both {given[0]} and {given[1]}: leave one out" if given else (
            "has none of the columns pass_rate, successes (with trials), rewards or reward: add one"
        )  # fmt: skip
        raise ValueError(f"{path}: {what}")
    size = len(columns[given[0]])
    for name, column in columns.items():
        if len(column) != size:
            raise ValueError(f"{path}: {name} has {len(column)} rows and {given[0]} has {size}")
    if not size:
        raise ValueError(f"{path}: holds no tasks; give at least one row")
    if given[0] == "reward" and "id" not in columns:
        raise ValueError(f"{path}: reward is a row a rollout: add a column id, or give rewards")
    if trials is not None and given[0] != "pass_rate":
        raise ValueError(f"--trials {trials} is for a column pass_rate; {path} has {given[0]}")
    counts = _counts(path, columns, given[0], trials, solved_at)
    return _by_task(path, columns, counts, exact=given[0] == "pass_rate" and trials is None)


def _counts(
    path: Path, columns: Columns, name: str, trials: int | None, solved_at: float | None
) -> Floats:
    """[2, rows]: successes and trials."""
    values = columns[name]
    if name == "pass_rate":
        rates = [_number(path, name, i, value, 1.0) for i, value in enumerate(values)]
        times = float(trials or 1)
        return np.array([[rate * times, times] for rate in rates]).T
    if name == "successes":
        if "trials" not in columns:
            raise ValueError(f"{path}: successes needs a column trials, of how many each is")
        rows = []
        for i, value in enumerate(values):
            count = _number(path, "trials", i, columns["trials"][i], math.inf)
            if count < 1:
                raise ValueError(f"{place_of(path, i)}, column 'trials': {count:g} is not above 0")
            rows.append([_number(path, name, i, value, count), count])
        return np.array(rows).T
    lists = [[value] for value in values] if name == "reward" else values
    return np.array([_of_rewards(path, name, i, row, solved_at) for i, row in enumerate(lists)]).T


def _of_rewards(
    path: Path, name: str, index: int, rewards: Any, solved_at: float | None
) -> tuple[float, float]:
    if not isinstance(rewards, list):
        raise ValueError(
            f"{place_of(path, index)}, column {name!r}: {shown(rewards)} is not a list of rewards"
        )
    solved = scored = 0
    for reward in rewards:
        if reward is None or reward is ABSENT or reward != reward:
            continue
        if isinstance(reward, bool):
            reward = float(reward)
        if not isinstance(reward, int | float):
            raise ValueError(
                f"{place_of(path, index)}, column {name!r}: {shown(reward)} is not a number"
            )
        if solved_at is None and reward not in (0, 1):
            raise ValueError(
                f"{place_of(path, index)}, column {name!r}: {shown(reward)} is neither 0 nor 1; "
                "say from which reward on a task is solved: --solved-at 0.5"
            )
        solved += reward >= (1 if solved_at is None else solved_at)
        scored += 1
    return float(solved), float(scored)


def _number(path: Path, name: str, index: int, value: Any, most: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value <= most and value < math.inf:
        return float(value)
    way_out = "; divide percent by 100" if most == 1 and number and 1 < value <= 100 else ""
    told = f"a number in [0, {most:g}]" if most < math.inf else "a number of at least 0"
    raise ValueError(
        f"{place_of(path, index)}, column {name!r}: {shown(value)} is not {told}{way_out}"
    )


def _by_task(path: Path, columns: Columns, counts: Floats, exact: bool) -> Outcomes:
    """Rows of one id put together; those without a single rollout left out."""
    names = next((columns[name] for name in ("domain", "family") if name in columns), None)
    if "id" in columns:
        order: dict[Any, int] = {}
        row = [order.setdefault(str(one), len(order)) for one in columns["id"]]
    else:
        row = list(range(counts.shape[1]))
    size = max(row) + 1
    if exact and size < counts.shape[1]:
        raise ValueError(f"{path}: an id has several rows of pass_rate: give --trials, or one row")
    successes, trials = (
        np.asarray(np.bincount(row, weights=part, minlength=size), np.float64) for part in counts
    )
    tried = trials > 0
    if not tried.any():
        raise ValueError(f"{path}: no reward is scored: give at least one that is not null")
    domains = None
    if names is not None:
        first = dict(zip(reversed(row), reversed([str(name) for name in names]), strict=True))
        domains = [first[i] for i in range(size) if tried[i]]
    return Outcomes(successes[tried], None if exact else trials[tried], domains)


# --- shares -----------------------------------------------------------------------------------


class Shares(NamedTuple):
    """Chances for each task that a group of rollouts is all wrong, or all right."""

    never: Floats  # [N]
    always: Floats  # [N]
    rollouts: int  # of the group; fewer than asked for where fewer were measured

    @property
    def mixed(self) -> Floats:
        """[N]: the rest."""
        return 1 - self.never - self.always


def shares_of(outcomes: Outcomes, rollouts: int) -> Shares:
    """What a group of so many rollouts would be.

    Of s of n the chance that m of the n, drawn at random, are all wrong is C(n - s, m) / C(n, m),
    whose mean is (1 - p)^m whatever p is. With n below m only groups of n can be told. Exact
    rates are put into (1 - p)^m.
    """
    if outcomes.trials is None:
        rates = outcomes.rates
        return Shares((1 - rates) ** rollouts, rates**rollouts, rollouts)
    trials = outcomes.trials
    m = min(rollouts, math.floor(trials.min()))
    wrong = trials - outcomes.successes

    def alike(count: Floats) -> Floats:
        chance = np.ones_like(count)
        for i in range(m):
            chance *= np.clip((count - i) / (trials - i), 0, 1)
        return chance

    return Shares(alike(wrong), alike(outcomes.successes), m)
