"""Reports: numbers by hand, tables that lose nothing, plots that are drawn."""

import csv
import io
import math

import numpy as np
import pytest

from bots_jax.evaluate import metrics, replay, report
from bots_jax.evaluate.report import Cell, Column, Curves, Row, summarise


def run(strategy, seed, heldout=(0.2, 0.4, 0.6), **changes):
    """Six steps, held-out measured at 0, 3 and 6."""
    made = {
        "strategy": strategy,
        "seed": seed,
        "step": np.arange(1, 7),
        "etr": [0.2, 0.4, 0.5, 0.5, 0.6, 0.8],
        "heldout_step": [0, 3, 6],
        "heldout": list(heldout),
        "tokens": np.arange(1, 7) * 100 + seed,
        "seconds": np.arange(1, 7) * 1.5,
        "select_ms": [50.0, 1.0, 2.0, 3.0, 2.0, 2.0],
        "step_ms": [9000.0, 100.0, 100.0, 100.0, 100.0, 100.0],
        "visit_counts": [2, 1, 1, 0],
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def compared():
    """Two strategies on three seeds; the second gets to the baseline's best at step 3."""
    slow = [run("uniform", seed, (0.2, 0.3, 0.4 + seed / 100)) for seed in range(3)]
    fast = [run("bots", seed, (0.2, 0.5, 0.6 + seed / 100)) for seed in range(3)]
    return slow + fast


def test_measures_of_one_run_by_hand():
    values = report.measure(run("uniform", 0), run("uniform", 0))
    assert values["etr"] == pytest.approx(0.5)
    assert values["etr_early"] == pytest.approx(0.3)  # the first two of six
    assert values["breadth"] == pytest.approx(2**1.5)
    assert values["heldout"] == 0.6
    assert values["tokens"] == 600
    assert values["seconds"] == 9.0
    assert values["select_ms"] == 2.0  # without the first step, which compiles
    assert values["select_share"] == pytest.approx(2.0)
    assert values["ttb_50"] == metrics.Time(1.0, False)
    assert values["bsf_25"] == 1.0


def test_breadth_from_the_tasks_selected():
    ids = [[0, 1], [0, 2], [-1, -1]]
    values = report.measure(run("uniform", 0, visit_counts=None, task_ids=ids))
    assert values["breadth"] == pytest.approx(2**1.5)


def test_early_third_is_rounded_up():
    values = report.measure(run("uniform", 0, etr=[1.0, 0.0, 0.0, 0.0]))
    assert values["etr_early"] == 0.5


def test_summary_pairs_seeds_and_puts_the_baseline_first():
    rows = summarise(compared()[::-1])
    assert [row.strategy for row in rows] == ["uniform", "bots"]
    uniform, bots = rows[0].cells, rows[1].cells
    assert uniform["heldout"].against is None
    assert uniform["heldout"].value.value == pytest.approx(0.41)
    difference = bots["heldout"].against
    assert (difference.value, difference.seeds) == (pytest.approx(0.2), 3)
    assert difference.high - difference.low == pytest.approx(0, abs=1e-9)  # seeds cancel
    assert bots["tokens"].against.value == pytest.approx(1.0)
    # The baseline's best, .4 to .42, is crossed between 0 and 3; the baseline needs 6.
    expected = [metrics.Time(3 * (0.2 + s / 100) / 0.3 / 6, False) for s in range(3)]
    assert bots["ttb_100"].value == pytest.approx(metrics.time_interval(expected))
    assert bots["bsf_100"].value.value == pytest.approx(
        np.exp(np.mean([math.log((0.6 + s / 100) / (0.4 + s / 100)) for s in range(3)]))
    )


def test_a_run_that_never_gets_there_is_in_the_table():
    runs = [*compared(), *(run("flat", seed, (0.2, 0.2, 0.2)) for seed in range(3))]
    cell = summarise(runs)[2].cells["ttb_50"]
    assert cell.value.open_value
    assert cell.value.seeds == 3
    # The baselines cross .3, .305 and .31 at 3, 3 + 3 .005/.11 and 3 + 3 .01/.12.
    bounds = [6 / 3, 6 / (3 + 0.015 / 0.11), 6 / (3 + 0.03 / 0.12)]
    assert cell.value[:3] == pytest.approx((bounds[1], bounds[2], bounds[0]))
    assert cell.value.text() == ">1.91 [1.85, >2.00] (75%)"


def test_only_shared_seeds_are_compared_but_all_are_shown():
    runs = [*compared(), run("bots", 7, (0.2, 0.2, 0.2))]
    cells = summarise(runs)[1].cells
    assert cells["heldout"].value.seeds == 4
    assert cells["heldout"].against.seeds == 3
    assert cells["ttb_50"].value.seeds == 3


def test_one_seed_and_missing_keys_are_not_available_but_no_crash(tmp_path):
    bare = ("tokens", "seconds", "select_ms", "step_ms", "visit_counts")
    runs = [run(name, 0, **dict.fromkeys(bare)) for name in ("uniform", "bots")]
    rows = report.write_report(tmp_path, runs)
    assert rows[1].cells["tokens"].value.text() == "n/a"
    assert rows[1].cells["heldout"].against.text(2, "+") == "+0.00 [n/a]"
    assert not (tmp_path / "heldout_by_tokens.png").exists()


@pytest.mark.parametrize(
    ("runs", "baseline", "words"),
    [
        ([], "uniform", "baseline='uniform' was not run: choose one of nothing"),
        ([run("bots", 0)], "uniform", "choose one of bots"),
        ([run("uniform", 0), run("uniform", 0)], "uniform", "strategy='uniform' with seed=0 twice"),
        ([run("uniform", 3, heldout_step=None)], "uniform", "'uniform' seed=3 has no 'heldout_st"),
        ([run("uniform", 3, etr=None)], "uniform", "seed=3 has no 'etr'"),
    ],
)
def test_bad_runs_are_named(runs, baseline, words):
    with pytest.raises(ValueError, match=words):
        summarise(runs, baseline)


# --- tables --------------------------------------------------------------------------------


def test_tables_put_the_longer_list_down():
    rows = summarise(compared())
    wide = report.table_cells(rows, report.FINETUNE_COLUMNS[:2], "; ")
    assert wide[0] == ["", "ETR, first third", "ETR, all steps"]
    assert [line[0] for line in wide[1:]] == ["uniform", "bots"]
    long = report.table_cells(rows, report.FINETUNE_COLUMNS, "; ")
    assert long[0] == ["", "uniform", "bots"]
    assert [line[0] for line in long[1:3]] == ["ETR, first third", "ETR, all steps"]


def test_markdown_has_every_number():
    rows = summarise(compared())
    table = report.markdown_table(rows)
    lines = table.splitlines()
    assert len(lines) == 2 + len(report.FINETUNE_COLUMNS)
    assert all(line.count("|") == 4 for line in lines)
    assert "| Held-out at the end | 0.410 [0.385, 0.435] | 0.610 [0.585, 0.635]<br>+0.200" in table
    assert "<br>×1.00 [1.00, 1.00] |" in table  # noqa: RUF001


def test_terminal_table_is_aligned():
    text = report.terminal_table(summarise(compared()), report.FINETUNE_COLUMNS[:2])
    head, rule, *lines = text.splitlines()[-4:]
    assert set(rule) == {"-"}
    column = head.index("ETR, all") if "ETR, all" in head else head.index("steps")
    assert [line[:8].strip() for line in lines] == ["uniform", "bots"]
    assert all(line[column:].startswith("0.500") for line in lines)
    assert "+0.000 [" in lines[1]


WIDE = 'a-long-name, forgetting=0.01, implicit_weight=0.03, estimator="logit"'


@pytest.mark.parametrize("strategies", [("uniform", "bots"), ("uniform", *"abcdefgh", WIDE)])
@pytest.mark.parametrize(
    "columns", [report.FINETUNE_COLUMNS, report.FINETUNE_SHOWN, replay.COLUMNS], ids=len
)
def test_the_printed_table_fits_100_columns(strategies, columns, capsys):
    rng = np.random.default_rng(0)
    scale = {"ratio": 1e6, "difference": 1.0, "relative": 1.0, "time": 1.0}
    values = {
        name: {
            seed: {column.key: scale[column.kind] * rng.uniform(0.1, 1) for column in columns}
            for seed in range(10)
        }
        for name in strategies
    }
    report.print_table(report.tabulate(values, columns, "uniform"), columns, title=WIDE * 3)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rule = next(i for i, line in enumerate(lines) if line.startswith("---"))
    assert len(lines) - rule - 1 == len(strategies)  # a row a strategy
    assert all("[" in line for line in lines[rule + 2 :])  # each with an interval
    assert max(map(len, report.terminal_caption("uniform").splitlines())) <= 100


def test_columns_of_the_terminal_go_from_the_last():
    rows = summarise(compared())
    narrow = report.terminal_table(rows, report.FINETUNE_SHOWN, width=50)
    wide = report.terminal_table(rows, report.FINETUNE_SHOWN, width=200)
    assert max(map(len, narrow.splitlines())) <= 50
    assert "Held-out" in narrow
    assert "Selecting" not in narrow
    assert "Selecting" in wide


def test_printed_table_of_one_seed(capsys):
    report.print_table(summarise([run("uniform", 0), run("bots", 0)]), title="A title")
    out = capsys.readouterr().out
    assert "A title" in out
    assert "0.600" in out
    assert "[n/a]" in out


def test_csv_can_be_read_back(tmp_path):
    rows = summarise(compared())
    report.write_csv(tmp_path / "summary.csv", rows)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    assert len(lines) == 2 * len(report.FINETUNE_COLUMNS)
    line = next(one for one in lines if one["strategy"] == "bots" and one["metric"] == "heldout")
    assert float(line["against_value"]) == pytest.approx(0.2)
    assert (line["baseline"], line["compared_by"], line["seeds"]) == ("uniform", "difference", "3")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    path.write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report.write_text(path, "new")
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


# --- plots ---------------------------------------------------------------------------------


def test_smoothing_is_a_centred_mean_shorter_at_the_ends():
    y = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 9.0, 0.0, 0.0]])
    np.testing.assert_allclose(report.smooth(y, 1), y)
    np.testing.assert_allclose(report.smooth(y, 3)[0], [1.5, 2.0, 3.0, 4.0, 4.5])
    np.testing.assert_allclose(report.smooth(y, 3)[1], [0.0, 3.0, 3.0, 3.0, 0.0])


def test_band_is_the_mean_interval_of_each_step():
    y = np.random.default_rng(0).normal(size=(5, 3))
    low, high = report.band(y)
    for t in range(3):
        interval = metrics.mean_interval(y[:, t])
        assert (low[t], high[t]) == pytest.approx((interval.low, interval.high))


def test_tokens_are_read_off_at_the_held_out_steps():
    assert report._tokens_at(run("uniform", 0)).tolist() == [0, 300, 600]


def test_seeds_of_different_tokens_share_a_grid():
    x, y = report._on_a_grid([([0, 100], [0.0, 1.0]), ([0, 200], [0.0, 1.0])])
    assert (x[0], x[-1]) == (0, 100)
    np.testing.assert_allclose(y[:, -1], [1.0, 0.5])


def test_report_draws_its_plots(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    report.write_report(tmp_path / "new" / "folder", compared())
    for name in ("heldout", "etr", "plane", "heldout_by_tokens"):
        picture = image.imread(tmp_path / "new" / "folder" / f"{name}.png")
        assert picture.shape[1] > 1000
        assert picture[..., :3].std() > 0.05  # something is on it
    assert "sign-test" in (tmp_path / "new" / "folder" / "summary.md").read_text()


def test_many_strategies_can_be_told_apart():
    styles = [report._style(index) for index in range(32)]
    assert len({(colour, line) for colour, line, _ in styles}) == 32
    assert len({(colour, marker) for colour, _, marker in styles}) == 32


def test_a_plot_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report.plot_curves(path, {"a": Curves([0, 1], [[0, 1], [1, 2]])}, "x", "y")
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_plane_leaves_out_what_is_not_known(tmp_path):
    pytest.importorskip("matplotlib")
    unknown = metrics.mean_interval([math.nan])
    known = metrics.mean_interval([0.5, 0.6])
    column = Column("a", "A", "", 2, "difference")
    rows = [Row("x", {"a": Cell(unknown, None)}), Row("y", {"a": Cell(known, None)})]
    report.plot_plane(tmp_path / "plane.png", rows, column, column)
    assert (tmp_path / "plane.png").exists()


def test_plots_without_matplotlib_name_the_extra(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(report.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bots-jax\[plots\]'"):
        report.plot_curves(tmp_path / "a.png", {"a": Curves([0], [[0]])}, "x", "y")
