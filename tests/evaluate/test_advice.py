"""`bots-jax advise`: shares right on average, a map that is read right, errors that help."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bots_jax.cli import main
from bots_jax.evaluate.advice import advise, look_up, read_map
from bots_jax.evaluate.outcomes import Outcomes, read_outcomes, shares_of

SUCCESSES, TRIALS = [0, 8, 3, 0], [8, 8, 8, 8]
REWARDS = [[float(i < s) for i in range(8)] for s in SUCCESSES]
IDS, DOMAINS = ["a", "b", "c", "d"], ["x", "x", "y", "y"]


def write(path: Path, **columns: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: np.array(column) for name, column in columns.items()})
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    else:
        rows = zip(*columns.values(), strict=True)
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n"
                                for row in rows))  # fmt: skip
    return path


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "columns",
    [
        {"successes": SUCCESSES, "trials": TRIALS},
        {"rewards": REWARDS},
        {"rewards": [*REWARDS[:3], REWARDS[3][:4], REWARDS[3][4:]], "id": [*IDS, "d"]},
    ],
)
def test_counts_read_alike(tmp_path: Path, suffix: str, columns: dict[str, Any]) -> None:
    if suffix == ".npz" and "id" in columns:  # an array has no short rows
        columns = {**columns, "rewards": [(row + [math.nan] * 4)[:8] for row in columns["rewards"]]}
    found = read_outcomes(write(tmp_path / f"a{suffix}", **columns))
    np.testing.assert_array_equal(found.successes, SUCCESSES)
    np.testing.assert_array_equal(found.trials, TRIALS)


def test_a_row_a_rollout(tmp_path: Path) -> None:
    rows = [
        (name, reward) for name, rewards in zip(IDS, REWARDS, strict=True) for reward in rewards
    ]
    names, rewards = zip(*rows, strict=True)
    found = read_outcomes(write(tmp_path / "a.jsonl", id=names, reward=rewards))
    np.testing.assert_array_equal(found.successes, SUCCESSES)
    np.testing.assert_array_equal(found.trials, TRIALS)


def test_rates_are_exact_or_of_so_many_trials(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pass_rate=[0.25, 1.0], domain=["x", "y"])
    exact = read_outcomes(path)
    assert exact.trials is None
    assert exact.domains == ["x", "y"]
    np.testing.assert_allclose(shares_of(exact, 4).never, [0.75**4, 0])
    np.testing.assert_array_equal(read_outcomes(path, trials=8).successes, [2, 8])


def test_rewards_of_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", rewards=[[0.2, 0.9, None], [True, False, 0.5]])
    found = read_outcomes(path, solved_at=0.5)
    np.testing.assert_array_equal(found.successes, [1, 2])
    np.testing.assert_array_equal(found.trials, [2, 3])


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"prompt": ["1"]}, {}, "has none of the columns pass_rate"),
        ({"pass_rate": [1], "rewards": [[1]]}, {}, "has both pass_rate and rewards: leave one out"),
        ({"pass_rate": [40.0]}, {}, "line 1, column 'pass_rate': 40.0 .*divide percent by 100"),
        ({"successes": [1]}, {}, "successes needs a column trials"),
        (
            {"successes": [3], "trials": [2]},
            {},
            r"column 'successes': 3 is not a number in \[0, 2\]",
        ),
        ({"successes": [0], "trials": [0]}, {}, "column 'trials': 0 is not above 0"),
        ({"rewards": [[0.4]]}, {}, "0.4 is neither 0 nor 1; .*--solved-at 0.5"),
        ({"rewards": [["no"]]}, {}, "'no' is not a number"),
        ({"rewards": [[None]]}, {}, "no reward is scored"),
        ({"reward": [1]}, {}, "reward is a row a rollout: add a column id"),
        ({"rewards": [[1]]}, {"trials": 8}, "--trials 8 is for a column pass_rate"),
    ],
)
def test_bad_files_are_told(
    tmp_path: Path, columns: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_outcomes(write(tmp_path / "a.jsonl", **columns), **given)


# --- shares -------------------------------------------------------------------------------------


def test_shares_are_right_on_average() -> None:
    """Chances of groups of 4 from 10 rollouts; the mean of 40,000 is within five errors."""
    rng, rate = np.random.default_rng(0), 0.15
    drawn = rng.binomial(10, rate, 40_000).astype(float)
    found = shares_of(Outcomes(drawn, np.full(40_000, 10.0), None), 4)
    for told, expected in ((found.never, (1 - rate) ** 4), (found.always, rate**4)):
        assert abs(told.mean() - expected) < 5 * told.std() / 200
    assert found.rollouts == 4


def test_fewer_rollouts_than_a_group_are_told() -> None:
    some = Outcomes(np.array([0.0, 2.0, 1.0]), np.array([2.0, 2.0, 8.0]), None)
    assert shares_of(some, 8).rollouts == 2
    assert any("only 2 rollouts were measured" in line for line in advise(some)["advice"])


def test_a_small_pool_is_spread_over_where_it_is_seen_many_times() -> None:
    """Without the number of steps that is not known, and is said."""
    some = Outcomes(np.array([0.0, 2.0, 8.0]), np.full(3, 8.0), None)
    for steps, told in (
        (None, "breadth=0.3 if the run goes over so small a pool more than 10 times (--steps)"),
        (1, "breadth as it is"),
        (40, "breadth=0.3, as the pool is small"),
    ):
        assert any(told in line for line in advise(some, steps=steps, batch_size=1)["advice"])


# --- the map ------------------------------------------------------------------------------------


def a_map(*worlds: float) -> dict[str, Any]:
    """TTB 1, .5 at never 0, .9, half of that at five passes; twice it with guesses.

    `worlds`: TTB of real policies at never .9, without guesses, one pass.
    """
    cells = [
        {
            "never": never, "passes": passes, "asked": [never, guesses], "in_reach": False,
            "guesses": guesses,
            "ttb": {"value": v, "low": v / 1.1, "high": v * 1.1},
        }
        for never, base in ((0.0, 1.0), (0.9, 0.5))
        for passes, half in ((1.0, 1), (5.0, 0.5))
        for guesses, twice in ((0.0, 1), (0.5, 2))
        for v in (base * half * twice,)
    ]  # fmt: skip
    place = {"never": 0.9, "guesses": 0.0, "passes": 1.0, "told": "prompts"}
    points = [{**place, "ttb": {"value": value}} for value in worlds or (0.5, 0.5)]
    return {"cells": cells, "worlds": points}


def test_places_between_cells_are_interpolated() -> None:
    assert look_up(0.9, 0.0, 1.0, a_map()).value == 0.5
    assert look_up(0.0, 0.5, 1.0, a_map()).value == 2
    assert look_up(0.9, 0.0, 5**0.5, a_map()).value == pytest.approx(0.5 / 2**0.5, abs=1e-3)
    assert look_up(0.9, 0.25, 1.0, a_map()).value == pytest.approx(0.5 * 2**0.5, abs=1e-3)
    assert look_up(1.0, 0.0, 100.0, a_map()).value == 0.25  # the edge


def test_the_map_is_fitted_to_the_worlds() -> None:
    """Half of log TTB in both of two: half of it everywhere; an interval of the cells alone."""
    found = look_up(0.9, 0.0, 5.0, a_map(0.5**0.5, 0.5**0.5))
    assert found.value == pytest.approx(0.25**0.5, abs=1e-3)
    half = 12.706 * 0.5 * math.log(1.1) / 1.96
    assert found.high == pytest.approx(0.5 * math.exp(half), rel=1e-3)


def test_the_interval_holds_what_worlds_were_off() -> None:
    """TTB 1/4 and 1 where the map says 1/2: a fit of 1, off by log 2 each."""
    found = look_up(0.9, 0.0, 1.0, a_map(0.25, 1.0))
    assert found.value == 0.5
    off = math.hypot(math.log(1.1) / 1.96, 2**0.5 * math.log(2))
    assert found.high == pytest.approx(0.5 * math.exp(12.706 * off), rel=1e-3)


def test_the_package_s_map_is_whole() -> None:
    the_map = read_map()
    assert len(the_map["worlds"]) >= 6
    for never in (0.0, 0.6, 0.995):
        found = look_up(never, 0.2, 2.0)
        assert 0 < found.low < found.value < found.high < 10


# --- advice -------------------------------------------------------------------------------------


def test_domains_that_may_be_guessed_are_told() -> None:
    """One domain at .5 for all its tasks, one whose tasks differ."""
    rng = np.random.default_rng(1)
    rates = np.r_[np.full(200, 0.5), rng.random(200)]
    some = Outcomes(
        rng.binomial(16, rates).astype(float), np.full(400, 16.0), ["coin"] * 200 + ["sum"] * 200
    )
    found = advise(some, 8, steps=100, batch_size=4)
    assert [one["domain"] for one in found["guessed_domains"]] == ["coin"]
    assert 0.45 < found["guessed_domains"][0]["share_of_mixed"] < 0.65
    assert any("coin may be guessed" in line for line in found["advice"])
    assert found["passes"] == 1


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.npz", successes=SUCCESSES * 10, trials=TRIALS * 10)
    assert main(["advise", str(path)]) == 0
    told = capsys.readouterr().out
    assert "mixed      25.0%" in told
    assert "hopeless   50.0%" in told
    assert "0.3 passes" in told
    given = [
        "advise",
        str(path),
        "--steps",
        "10",
        "--batch-size",
        "8",
        "--num-tasks",
        "80",
        "--json",
    ]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passes"] == 1
    assert len(found["ttb"]) == 2  # with and without guesses, as no domains are given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num-tasks", "3"], "--num-tasks 3 is below the 4 tasks"),
        (["--rollouts", "1"], "a group of one is never mixed"),
        (["--steps", "0"], "--steps=0 must be an integer of at least 1"),
    ],
)
def test_bad_numbers_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", successes=SUCCESSES, trials=TRIALS)
    assert main(["advise", str(path), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: cannot be read" in capsys.readouterr().err
