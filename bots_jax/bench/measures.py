"""The measures of the suite: how they are shown, and which direction is better.

In: records of cells. Out: a number for each environment, strategy, seed and measure, those
included that compare a run with the baseline's of the same seed (TTB, BSF, the score at
equal rollouts and tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bots_jax.evaluate import metrics
from bots_jax.evaluate.metrics import Curve
from bots_jax.evaluate.report import Column, Value

Record = Mapping[str, Any]
Values = dict[str, dict[int, dict[str, Value]]]  # [strategy][seed][measure]


class Measure(NamedTuple):
    """A measure of a run."""

    column: Column
    better: int  # 1: more is better, -1: less, 0: neither, to be read beside others
    group: str  # the table that it stands in


def _measure(
    key: str, title: str, better: int, group: str, digits: int = 3, unit: str = "",
    kind: str = "difference",
) -> tuple[str, Measure]:  # fmt: skip
    return key, Measure(Column(key, title, unit, digits, kind), better, group)


SELECTED, BELIEVED, LEARNED, COST = "selected", "believed", "learned", "cost"
SPENT = ("rollouts", "tokens")  # series that a held-out score is read off at equal amounts of
AVERAGED = "heldout_average"  # series, see `metrics.averaged`
EPOCHS = "epochs"  # a second baseline, where it was run: what a data loader does
SHARED_SECONDS = "shared_seconds"  # one number for all seeds of a chunk: no interval
GROUPS = {
    SELECTED: "What was selected",
    BELIEVED: "What was believed, of all tasks",
    LEARNED: "What was learned",
    COST: "What it cost",
}

MEASURES: dict[str, Measure] = dict(
    [
        _measure("etr", "ETR, all steps", 1, SELECTED),
        _measure("etr_early", "ETR, early", 1, SELECTED),
        _measure("useful", "Rollouts in mixed groups, of all made", 1, SELECTED),
        _measure("breadth", "Breadth", 0, SELECTED, 0, "effective tasks", "ratio"),
        _measure("variance", "Mean p(1-p)", 1, SELECTED),
        _measure("log_loss", "Log loss", -1, BELIEVED, 3, "nats"),
        _measure("ece", "Calibration error", -1, BELIEVED),
        _measure("rmse", "RMSE", -1, BELIEVED),
        _measure("pearson", "Pearson", 1, BELIEVED),
        _measure("spearman", "Spearman", 1, BELIEVED),
        _measure("auc_unsolved", "AUC of unsolved", 1, BELIEVED),
        _measure("auc_mastered", "AUC of mastered", 1, BELIEVED),
        _measure("heldout", "Held-out at the end", 1, LEARNED),
        _measure("heldout_at_rollouts", "Held-out at equal rollouts", 1, LEARNED),
        _measure("heldout_at_tokens", "Held-out at equal tokens", 1, LEARNED),
        _measure("heldout_over_epochs", "Held-out, less that of epochs", 1, LEARNED),
        _measure("fall", "Fall from the best average of three", -1, LEARNED),
        _measure("ttb_50", "TTB(50%)", -1, LEARNED, 2, "", "time"),
        _measure("ttb_100", "TTB(100%)", -1, LEARNED, 2, "", "time"),
        _measure("ttb_100_tokens", "TTB(100%), in tokens", -1, LEARNED, 2, "", "time"),
        _measure("ttb_50_epochs", "TTB(50%), epochs", -1, LEARNED, 2, "", "time"),
        _measure("ttb_100_epochs", "TTB(100%), epochs", -1, LEARNED, 2, "", "time"),
        _measure("bsf_25", "BSF(25%)", 1, LEARNED, 3, "", "relative"),
        _measure("bsf_100", "BSF(100%)", 1, LEARNED, 3, "", "relative"),
        _measure("rollouts", "Rollouts", 0, COST, 0, "", "ratio"),
        _measure("tokens", "Generated", 0, COST, 0, "tokens", "ratio"),
        _measure("seconds", "Time of a run", 0, COST, 1, "s", "ratio"),
        _measure(SHARED_SECONDS, "Time a seed, all at once, with compiling", 0, COST, 2, "s"),
        _measure("select_ms", "Selecting a step", 0, COST, 2, "ms"),
        _measure("select_share", "Selecting, of a step", 0, COST, 2, "%"),
    ]
)


def measure_of(key: str) -> Measure:
    """The measure of a key; one that the package does not know is shown as it is."""
    return MEASURES.get(key) or _measure(key, key.replace("_", " "), 0, SELECTED)[1]


def values_of(records: Sequence[Record], baseline: str) -> Values:
    """Numbers of one environment's records, by strategy and seed; the baseline first."""
    by_strategy: dict[str, dict[int, Record]] = {}
    for record in records:
        by_strategy.setdefault(record["strategy"], {})[record["seed"]] = record
    order = sorted(by_strategy, key=lambda name: name != baseline)
    bases, shuffled = by_strategy.get(baseline, {}), by_strategy.get(EPOCHS, {})
    budgets = {key: _budgets(records, key) for key in SPENT}
    return {
        name: {
            seed: {
                **_own(record),
                **_relative(record, bases.get(seed), budgets),
                **(_over_epochs(record, shuffled.get(seed)) if baseline != EPOCHS else {}),
            }
            for seed, record in by_strategy[name].items()
        }
        for name in order
    }


def keys_of(values: Values) -> list[str]:
    """Measures that some run has, in the order of `MEASURES`, new ones last."""
    there = {key for seeds in values.values() for run in seeds.values() for key in run}
    return [*(key for key in MEASURES if key in there), *sorted(there - set(MEASURES))]


def _own(record: Record) -> dict[str, Value]:
    given: Mapping[str, Any] = record["values"]
    return {key: math.nan if value is None else float(value) for key, value in given.items()}


def series_of(record: Record, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """x and y of a record's series as f[T], NaN where y was not defined; None without one."""
    found = record.get("series", {}).get(key)
    if not found:
        return None
    x, y = np.asarray(found["x"], np.float64), np.asarray(found["y"], dtype=np.float64)
    return x, y


def _relative(
    record: Record, base: Record | None, budgets: Mapping[str, Mapping[int, float]]
) -> dict[str, Value]:
    own = series_of(record, "heldout")
    if own is None:
        return {}
    values: dict[str, Value] = {}
    for key, of in budgets.items():
        spent = series_of(record, key)
        if spent is not None and of:
            values[f"heldout_at_{key}"] = float(np.interp(of[record["seed"]], spent[1], own[1]))
    other = None if base is None else series_of(base, "heldout")
    if other is not None:
        curve, against = Curve(*own), Curve(*other)
        values |= _ttb(record, base, "")
        values |= {f"bsf_{x}": metrics.bsf(curve, against, x / 100) for x in (25, 100)}
    return values


def _ttb(record: Record, base: Record | None, suffix: str) -> dict[str, Value]:
    """TTB(50%) and TTB(100%): of averages over three evaluations where the records hold them.

    Beside those by steps, TTB(100%) by generated tokens, where they were counted.
    """
    own, other = (None if one is None else learning_curve(one) for one in (record, base))
    if own is None or other is None:
        return {}
    values: dict[str, Value] = {
        f"ttb_{x}{suffix}": metrics.ttb(own, other, x / 100) for x in (50, 100)
    }
    tokens = [None if one is None else series_of(one, "tokens") for one in (record, base)]
    if suffix == "" and tokens[0] is not None and tokens[1] is not None:
        spent = Curve(tokens[0][1], own.scores)
        values["ttb_100_tokens"] = metrics.ttb(spent, Curve(tokens[1][1], other.scores), 1.0)
    return values


def learning_curve(record: Record) -> Curve | None:
    """The held-out curve from which times are computed, or None."""
    found = series_of(record, AVERAGED) or series_of(record, "heldout")
    return None if found is None else Curve(*found)


def _over_epochs(record: Record, epochs: Record | None) -> dict[str, Value]:
    """Against shuffled epochs under the same seed."""
    own = series_of(record, "heldout")
    other = None if epochs is None else series_of(epochs, "heldout")
    if own is None or other is None:
        return {}
    over = float(own[1][-1] - other[1][-1])
    return {"heldout_over_epochs": over, **_ttb(record, epochs, "_epochs")}


def _budgets(records: Iterable[Record], key: str) -> dict[int, float]:
    """What every strategy of a seed has spent by its end; none where all spent the same."""
    ends: dict[int, list[float]] = {}
    for record in records:
        spent = series_of(record, key)
        if spent is not None:
            ends.setdefault(record["seed"], []).append(float(spent[1][-1]))
    differ = any(min(last) < max(last) for last in ends.values())
    return {seed: min(last) for seed, last in ends.items()} if differ else {}
