"""Wins, draws and losses, after correction for multiple comparisons.

In: numbers by strategy, seed and measure. Out: a `Verdict` for each comparison, and tables
of them. Seeds are paired; each comparison is a t test of the differences (of the logs for
ratios to the baseline; a sign test where a time was censored). All comparisons of a table
are one family: with Holm's correction the chance that any of its wins or losses is a false
alarm is below 5%. What is left is a draw, which is not to say that there is no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bots_jax.bench.measures import Values, measure_of
from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import LEVEL, Time
from bots_jax.evaluate.report import Value


class Verdict(NamedTuple):
    """One strategy against another in one measure."""

    strategy: str
    against: str
    key: str
    difference: float  # mean over seeds, strategy - against; mean log-ratio if relative
    seeds: int
    p: float  # NaN where no test was possible
    adjusted: float  # by Holm, within the family
    outcome: int  # 1 win, 0 draw, -1 loss


def against_baseline(values: Values, keys: Sequence[str], baseline: str) -> list[Verdict]:
    """Every strategy against the baseline in every measure that has a better side."""
    directed = [key for key in keys if measure_of(key).better]
    others = [name for name in values if name != baseline]
    pairs = ((name, key) for name in others for key in directed)
    return _judge([_compare(values, name, baseline, key, _ITSELF) for name, key in pairs])


def round_robin(values: Values, keys: Sequence[str]) -> list[Verdict]:
    """Every pair of strategies in each of the measures; each pair once, in one order."""
    names = list(values)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = [_compare(values, a, b, key) for key in keys for a, b in pairs]
    return _judge(found)


def _judge(found: list[Verdict]) -> list[Verdict]:
    """Correct, and decide."""
    adjusted = metrics.holm([verdict.p for verdict in found])
    return [
        verdict._replace(adjusted=float(p), outcome=_outcome(verdict, float(p)))
        for verdict, p in zip(found, adjusted, strict=True)
    ]


def _outcome(verdict: Verdict, adjusted: float) -> int:
    if not adjusted < 1 - LEVEL:
        return 0
    return int(math.copysign(1, verdict.difference)) * measure_of(verdict.key).better


_ITSELF = Time(1.0, False)  # the baseline, in a measure that is relative to it


def _compare(
    values: Values, strategy: str, against: str, key: str, relative: Value | None = None
) -> Verdict:
    """Seed by seed; in a relative measure against `relative`, None for what `against` has."""
    own, other = values[strategy], values[against]
    shared = [seed for seed in own if seed in other]
    kind = measure_of(key).column.kind
    pairs = [(own[seed].get(key, math.nan), other[seed].get(key, math.nan)) for seed in shared]
    if kind in ("relative", "time"):
        difference, p = _relative([(a, b if relative is None else relative) for a, b in pairs])
    else:
        difference, p = _difference(pairs, logs=kind == "ratio")
    return Verdict(strategy, against, key, difference, len(shared), p, math.nan, 0)


def _difference(pairs: list[tuple[Value, Value]], logs: bool) -> tuple[float, float]:
    if len(pairs) < 2:
        return math.nan, math.nan
    a, b = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    if logs:
        if not (np.all(a > 0) and np.all(b > 0)):
            return math.nan, math.nan
        a, b = np.log(a), np.log(b)
    return float(np.mean(a - b)), metrics.paired_p(a, b)


def _relative(pairs: list[tuple[Value, Value]]) -> tuple[float, float]:
    """Ratios, or times whose ratio that of a pair is, against 1."""
    timed = [[v if isinstance(v, Time) else Time(float(v), False) for v in p] for p in pairs]
    a, b = np.array([[t.value for t in pair] for pair in timed], np.float64).reshape(-1, 2).T
    if len(a) < 2 or np.any(np.isnan([a, b])):
        return math.nan, math.nan
    late, early = np.array([[t.censored for t in pair] for pair in timed], bool).T
    if late.any() or early.any() or min(a.min(), b.min()) <= 0:
        told = ~(late | early)  # where neither was reached nobody knows which would have been first
        later = int(np.sum((told & (a > b)) | (late & ~early)))
        earlier = int(np.sum((told & (a < b)) | (early & ~late)))
        return float(later - earlier), metrics.sign_p(later, earlier)
    logs = np.log(a / b)
    return float(logs.mean()), metrics.paired_p(logs)


# --- tables ------------------------------------------------------------------------------

_SIGNS = {1: "win", 0: "–", -1: "loss"}  # noqa: RUF001  a dash for a draw


def baseline_table(verdicts: Sequence[Verdict], keys: Sequence[str]) -> list[list[str]]:
    """Table of strategies by measures: win, loss or draw, and their counts."""
    shown = [key for key in keys if any(v.key == key for v in verdicts)]
    titles = [measure_of(key).column.title for key in shown]
    table = [["", *titles, "wins", "draws", "losses"]]
    for name in dict.fromkeys(v.strategy for v in verdicts):
        own = {v.key: v for v in verdicts if v.strategy == name}
        cells = ["n/a" if math.isnan(own[k].p) else _SIGNS[own[k].outcome] for k in shown]
        table.append([name, *cells, *counts([own[k] for k in shown])])
    return table


def round_robin_table(verdicts: Sequence[Verdict], keys: Sequence[str]) -> list[list[str]]:
    """Table of strategies by measures: wins-draws-losses against all others, best first."""
    names = list(dict.fromkeys(name for v in verdicts for name in (v.strategy, v.against)))
    points = {
        name: {key: _points(verdicts, name, key) for key in keys if _any(verdicts, key)}
        for name in names
    }
    order = sorted(names, key=lambda n: -sum(w - lost for w, _, lost in points[n].values()))
    titles = [measure_of(key).column.title for key in keys if _any(verdicts, key)]
    table = [["", *titles, "all"]]
    for name in order:
        every = list(points[name].values())
        total = [sum(column) for column in zip(*every, strict=True)]
        table.append([name, *("-".join(map(str, cell)) for cell in [*every, total])])
    return table


def _any(verdicts: Sequence[Verdict], key: str) -> bool:
    return any(v.key == key for v in verdicts)


def _points(verdicts: Sequence[Verdict], name: str, key: str) -> tuple[int, int, int]:
    """Wins, draws and losses of one strategy in one measure."""
    own = [v.outcome for v in verdicts if v.key == key and v.strategy == name]
    own += [-v.outcome for v in verdicts if v.key == key and v.against == name]
    return own.count(1), own.count(0), own.count(-1)


def counts(verdicts: Sequence[Verdict]) -> list[str]:
    """Counts of wins, draws and losses; comparisons that could not be tested are left out."""
    tested = [v.outcome for v in verdicts if not math.isnan(v.p)]
    return [str(tested.count(outcome)) for outcome in (1, 0, -1)]
