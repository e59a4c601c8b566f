"""The report of a run as Markdown and CSV.

In: records of cells. Out: summary.md (a section an environment: estimates with intervals,
verdicts), summary.csv (a line a number) and verdicts.csv (a line a comparison).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bots_jax.bench import verdicts
from bots_jax.bench.environment import Environment
from bots_jax.bench.measures import (
    GROUPS,
    SELECTED,
    SHARED_SECONDS,
    Record,
    Values,
    keys_of,
    measure_of,
    values_of,
)
from bots_jax.bench.verdicts import Verdict
from bots_jax.evaluate import report


class Section(NamedTuple):
    """The part of a report about one environment."""

    environment: str
    about: Mapping[str, Any]
    records: list[Record]
    values: Values
    keys: list[str]
    rows: list[report.Row]
    against: list[Verdict]
    headline: list[str]
    robin: list[Verdict]
    baseline: str
    curve: str  # the series that stands for learning
    oracles: frozenset[str]  # strategies that were told the truth


def make_sections(
    records: Sequence[Record], baseline: str, environments: Mapping[str, Environment]
) -> list[Section]:
    """A section for each environment, in order.

    Args:
      records: of all cells.
      baseline: the label of the strategy to compare with; an environment that could not
        run it is compared with its first one.
      environments: by name; one that is not there is shown without its headline.
    """
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record["environment"], []).append(record)
    return [_section(name, of, baseline, environments.get(name)) for name, of in grouped.items()]


def _section(
    name: str, records: list[Record], baseline: str, environment: Environment | None
) -> Section:
    if all(record["strategy"] != baseline for record in records):
        baseline = records[0]["strategy"]
    values = values_of(records, baseline)
    keys = keys_of(values)
    columns = [measure_of(key).column for key in keys]
    shown = [key for key in (environment.headline if environment else ()) if key in keys]
    told = frozenset(r["strategy"] for r in records if r.get("truth")) - {baseline}
    judged = {name: of for name, of in values.items() if name not in told}
    return Section(
        environment=name,
        about=records[0].get("about", {}),
        records=records,
        values=values,
        keys=keys,
        rows=report.tabulate(values, columns, baseline),
        against=verdicts.against_baseline(judged, keys, baseline),
        headline=shown,
        robin=verdicts.round_robin(judged, shown),
        baseline=baseline,
        curve=environment.curve if environment else "etr",
        oracles=told,
    )


# --- Markdown -----------------------------------------------------------------------------


def markdown(title: str, sections: Sequence[Section], notes: Sequence[str]) -> str:
    """The whole report as Markdown."""
    parts = [f"# {title}\n", *(f"- {note}\n" for note in notes)]
    for section in sections:
        parts.append(f"## {section.environment}\n")
        parts.append(_about(section) + "\n")
        for group, heading in GROUPS.items():
            keys = [key for key in section.keys if measure_of(key).group == group]
            if keys:
                parts.append(f"### {heading}\n\n{_estimates(section, keys)}")
        parts.append(_verdicts(section))
    return "\n".join(parts)


def _about(section: Section) -> str:
    simple = {k: v for k, v in section.about.items() if not isinstance(v, dict | list)}
    told = ", ".join(f"{key} {value}" for key, value in simple.items() if value not in ("", None))
    seeds = {len(of) for of in section.values.values()}
    count = str(seeds.pop()) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    return f"{count} paired seeds. {told}.\n\n{_caption(section)}"


def _caption(section: Section) -> str:
    return report.caption(section.baseline, [measure_of(key).column for key in section.keys])


def _estimates(section: Section, keys: Sequence[str]) -> str:
    """Strategies down, measures across; estimate, interval, paired comparison."""
    columns = [measure_of(key).column for key in keys]
    head = ["", *(f"{c.title} ({c.unit})" if c.unit else c.title for c in columns)]
    lines = [head]
    for row in section.rows:
        if row.strategy in section.oracles and measure_of(keys[0]).group != SELECTED:
            continue  # what it believes is the truth
        pairs = [_cell(column, row.cells[column.key]) for column in columns]
        lines.append([row.strategy, *("<br>".join(filter(None, pair)) for pair in pairs)])
    return _table(lines)


def _cell(column: report.Column, cell: report.Cell) -> tuple[str, str]:
    if column.key == SHARED_SECONDS:
        return f"{cell.value.value:.{column.digits}f}", ""
    return report.cell_text(column, cell)


def _verdicts(section: Section) -> str:
    if not any(v.p == v.p for v in section.against):
        return "### Wins, draws and losses\n\nToo few strategies or seeds to compare.\n"
    table = _table(verdicts.baseline_table(section.against, section.keys))
    tests = sum(v.p == v.p for v in section.against)
    text = (
        f"### Wins, draws and losses against {section.baseline}\n\n{table}\n"
        f"Paired tests at 5%, Holm's correction over all {tests} of the table; – is a draw: "  # noqa: RUF001
        "no difference was shown.\n"
    )
    if section.robin:
        tests = sum(v.p == v.p for v in section.robin)
        table = _table(verdicts.round_robin_table(section.robin, section.headline))
        text += (
            f"\n### Every strategy against every other: wins-draws-losses\n\n{table}\n"
            f"Corrected over all {tests} comparisons of this table.\n"
        )
    return text


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


# --- CSV ----------------------------------------------------------------------------------


def summary_csv(sections: Sequence[Section]) -> str:
    """CSV with a line for each environment, strategy and measure."""
    texts: list[list[str]] = []
    for section in sections:
        columns = [measure_of(key).column for key in section.keys]
        text = report.csv_text(section.rows, columns, section.baseline)
        head, *lines = list(csv.reader(io.StringIO(text)))
        texts += [["environment", *head]] if not texts else []
        texts += [[section.environment, *line] for line in lines]
    return _csv(texts)


def verdicts_csv(sections: Sequence[Section]) -> str:
    """CSV with a line for each comparison; `family` names those corrected together."""
    lines: list[Sequence[Any]] = [("environment", "family", *Verdict._fields)]
    for section in sections:
        for family, found in (("baseline", section.against), ("pairs", section.robin)):
            lines += [(section.environment, family, *verdict) for verdict in found]
    return _csv(lines)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
