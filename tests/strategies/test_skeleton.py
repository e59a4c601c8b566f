"""The skeleton that users copy passes the contract, and the page about it tells the truth."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

from bots_jax import Evidence, Selector
from tests import test_contract as contract
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "new_strategy.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def skeleton() -> ModuleType:
    return load(DOCS / "skeleton_strategy.py", "skeleton_strategy")


@pytest.fixture(scope="module")
def selector(skeleton: ModuleType) -> Selector:
    return skeleton.skeleton(batch_size=contract.BATCH, rollouts=contract.ROLLOUTS, expiry=3)


@pytest.mark.parametrize(
    "check",
    [
        contract.test_selects_distinct_valid_tasks_not_in_flight,
        contract.test_mask_and_padding,
        contract.test_deterministic_and_keeps_structure,
        contract.test_update_is_observe_then_advance,
        contract.test_reports_what_happened,
        contract.test_belief_follows_evidence,
        contract.test_a_step_without_evidence,
        contract.test_runs_in_scan_and_vmap,
        contract.test_traced_code_ignores_and_counts_poison,
        contract.test_numbered_poison_closes_its_visit,
        contract.test_host_refuses_poison,
    ],
)
def test_contract(check: Callable, selector: Selector, reference: np.ndarray) -> None:
    check(selector, selector.init(reference))


def test_pools_grow(selector: Selector, reference: np.ndarray) -> None:
    contract.test_grows_and_shrinks(selector, reference)


def test_is_under_60_lines() -> None:
    """Of code: without docstrings, comments and blank lines."""
    text = re.sub(r'""".*?"""', "", (DOCS / "skeleton_strategy.py").read_text(), flags=re.DOTALL)
    code = [line for line in text.splitlines() if line.split("#")[0].strip()]
    assert len(code) < 60


def test_the_page_from_a_file_to_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = np.random.default_rng(0).random((6, 20)).astype(np.float32)
    np.savez(tmp_path / "run.npz", success_rate=rates)
    (tmp_path / "my_rule.py").write_text((DOCS / "skeleton_strategy.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        exec(compile(BLOCKS[0], "new_strategy.md", "exec"), {})
    finally:
        sys.modules.pop("my_rule", None)
    rows = [
        [float(value) for value in line.split()]
        for line in capsys.readouterr().out.split("\n")[:-1]
    ]
    assert len(rows) == 3
    assert all(0 < etr <= 1 and 1 < breadth <= 20 for etr, breadth, _ in rows)


def test_the_page_with_a_choice_alone(reference: np.ndarray) -> None:
    names: dict = {}
    exec(compile(BLOCKS[1], "new_strategy.md", "exec"), names)
    selector = names["most_variance"](batch_size=contract.BATCH, rollouts=contract.ROLLOUTS)
    contract.test_mask_and_padding(selector, selector.init(reference))


def test_every_name_on_the_page_exists() -> None:
    assert len(BLOCKS) == 2
    table = re.findall(r"^\| `(\w+)[^|]*\| `([\w.]+)` \|", PAGE, re.MULTILINE)
    assert len(table) == 9
    for name, module in table:
        assert hasattr(importlib.import_module(module), name)


def test_prefers_a_half_and_what_was_tried_least(skeleton: ModuleType) -> None:
    selector = skeleton.skeleton(batch_size=2, rollouts=8, keep=0.0)
    state = selector.init(num_tasks=4)
    evidence = Evidence(np.arange(4), [4.0, 0.0, 3.0, 2.0], [8.0, 8.0, 8.0, 4.0])
    state, _ = selector.update(state, evidence)
    parts = (skeleton.init, skeleton.fuse, skeleton.predict, skeleton.draw)
    scores, _ = skeleton.score(jax.random.key(0), skeleton.BeliefModel(*parts), state)
    np.testing.assert_array_equal(np.argsort(scores), [3, 0, 2, 1])
