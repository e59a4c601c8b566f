"""The example for TRL, run with TRL's own trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.trl_grpo import make_sampler
from tests.adapters.lives import assert_a_kill_changes_nothing


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    script = Path(__file__).with_name("train.py")
    told = assert_a_kill_changes_nothing(script, tmp_path, die_at=3)
    assert len({line["weight"] for line in told}) > 1
    assert told[-1]["completed"] >= 4


def test_prompts_are_found_where_there_are_no_references() -> None:
    rows = [{"prompt": f"{i} + {i * i} =", "answer": "1"} for i in range(12)]
    sampler = make_sampler(rows, 2, 2, seed=0)
    assert sampler.state.reference.embeddings.shape[0] == 32
    known = make_sampler([{**row, "weak": 0.2} for row in rows], 2, 2, seed=0)
    assert getattr(known.state.reference, "embeddings", None) is None
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    told = make_sampler(chat, 2, 2, seed=0).state.reference.embeddings
    np.testing.assert_array_equal(told, sampler.state.reference.embeddings)
