"""The example for TRL, run with TRL's own trainer."""

from __future__ import annotations

from pathlib import Path

from tests.adapters.lives import assert_a_kill_changes_nothing


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    script = Path(__file__).with_name("train.py")
    told = assert_a_kill_changes_nothing(script, tmp_path, die_at=3)
    assert len({line["weight"] for line in told}) > 1
    assert told[-1]["completed"] >= 4
