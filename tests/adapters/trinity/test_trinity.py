"""Inside Trinity-RFT's own scheduler, reader and selector classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from trinity.buffer.selector.selector import BaseSelector, DifficultyBasedSelector
from trinity.common.config import DataSelectorConfig

from bots_jax.adapters.trinity import BotsSelector
from tests.adapters.lives import ROOT, assert_a_kill_changes_nothing
from tests.adapters.trinity.explore import (
    SETTINGS,
    TASKS,
    explore,
    make_scheduler,
    pass_rates,
    reward,
    write_tasks,
)


def source() -> SimpleNamespace:
    """What a selector sees of Trinity's reader."""
    weak, strong = pass_rates()
    columns = {"weak": weak.tolist(), "strong": strong.tolist()}
    return SimpleNamespace(dataset=columns, dataset_size=TASKS, name="sums")


def make(folder: Path, kind: type = BotsSelector, **settings: object) -> BaseSelector:
    kwargs = {**SETTINGS, **settings}
    if kind is BotsSelector:
        kwargs["state_dir"] = str(folder)
    return kind(source(), DataSelectorConfig(feature_keys=["weak", "strong"], kwargs=kwargs))


def test_a_killed_run_goes_on_bit_identically(tmp_path: Path) -> None:
    script = Path(__file__).with_name("explore.py")
    told = assert_a_kill_changes_nothing(script, tmp_path, die_at=4)
    assert np.std(told[-1]["mean"]) > 0.05
    state = json.loads((tmp_path / "whole/explorer.json").read_text())
    (saved,) = state["taskset_states"]
    assert set(saved) == {"current_index", "state_file"}  # Trinity logs it whole


def test_a_drop_in_for_the_one_that_is_there(tmp_path: Path) -> None:
    """The same settings, the same feedback: the same posterior."""
    ours, theirs = make(tmp_path), make(tmp_path, DifficultyBasedSelector)
    for step in range(6):
        indices = np.arange(4) * 7 % TASKS + step
        values = ((7 * indices + 3 * step) % 9) / 8
        for selector in (ours, theirs):
            selector.feedback(indices.tolist(), values.tolist())
    belief, known = ours._sampler.predict(), theirs.diff_estimator
    np.testing.assert_allclose(belief.mean * belief.concentration, known.alphas, rtol=1e-5)
    np.testing.assert_allclose((1 - belief.mean) * belief.concentration, known.betas, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"tau": 0}, {"do_sample": True, "target_reward": 0.5}])
def test_trinitys_defaults_are_ours(tmp_path: Path, settings: dict) -> None:
    """Without kwargs, too: a target of 1, which is the easiest task, and tau of 1."""
    config = DataSelectorConfig(feature_keys=["weak", "strong"], kwargs=dict(settings))
    config.kwargs["state_dir"] = str(tmp_path)
    selector = BotsSelector(source(), config)
    selector.feedback([5, 6, 7], [1.0, 1.0, 0.0])
    indices, told = selector.get_indices(3, return_extra_info=True)
    assert len(set(indices.tolist())) == 3
    assert set(told) == {"indices", "scores", "alphas", "betas", "point"}
    if settings == {"tau": 0}:
        assert {5, 6} <= set(indices.tolist())


def test_the_reader_and_the_scheduler(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    scheduler = make_scheduler(tmp_path, {}, state_dir=str(tmp_path / "side"))
    first, second = explore(scheduler), explore(scheduler)
    assert not set(first) & set(second)  # what is being explored is not chosen again
    reward(scheduler, second, 0)
    reward(scheduler, first, 0)
    assert scheduler.tasksets[0].reader.selector._sampler.step == 2


def test_a_pool_that_is_all_out_gives_tasks_again(tmp_path: Path) -> None:
    selector = make(tmp_path)
    for _ in range(2 * TASKS // 4 + 1):
        assert len(set(selector.get_indices(4).tolist())) == 4
    with pytest.raises(ValueError, match=f"the taskset has {TASKS}"):
        selector.get_indices(TASKS + 1)


def test_side_files(tmp_path: Path) -> None:
    selector = make(tmp_path / "a", keep=2)
    for _ in range(4):
        selector.feedback(selector.get_indices(4).tolist(), [0.5] * 4)
        state = selector.state_dict()
    assert len(list((tmp_path / "a").iterdir())) == 2
    moved = (tmp_path / "a").rename(tmp_path / "b")
    found = make(moved)
    found.load_state_dict(json.loads(json.dumps(state)))
    assert found.get_indices(4).tolist() == selector.get_indices(4).tolist()
    Path(moved, Path(state["state_file"]).name).unlink()
    with pytest.raises(FileNotFoundError, match="the side file"):
        make(moved).load_state_dict(state)
    fresh = make(tmp_path)
    fresh.load_state_dict({"current_index": 0})
    with pytest.raises(ValueError, match="kwargs has unknown 'lambda'"):
        make(tmp_path, **{"lambda": 1})


def test_the_example_of_the_page(tmp_path: Path) -> None:
    """The configuration of the page, read by Trinity's own classes."""
    from omegaconf import OmegaConf

    text = (ROOT / "docs/adapters/trinity.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    given = OmegaConf.create(example).buffer.explorer_input.tasksets[0].data_selector
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataSelectorConfig), given))
    config.kwargs["state_dir"] = str(tmp_path)
    columns = dict(zip(config.feature_keys, pass_rates().tolist(), strict=True))
    data = SimpleNamespace(dataset=columns, dataset_size=TASKS, name="math")
    module, _, name = config.selector_type.rpartition(".")
    assert (module, name) == (BotsSelector.__module__, BotsSelector.__name__)
    assert len(BotsSelector(data, config).get_indices(8)) == 8


def test_prompts_are_found_where_there_are_no_references(tmp_path: Path) -> None:
    told = source()
    told.dataset = {"question": [f"{i} + {i * i} =" for i in range(TASKS)], "answer": [1] * TASKS}
    for features, columns in (("text", 32), (None, 0)):
        kwargs = {**SETTINGS, "state_dir": str(tmp_path), "features": features}
        selector = BotsSelector(told, DataSelectorConfig(feature_keys=[], kwargs=kwargs))
        indices = selector.get_indices(4)
        selector.feedback(indices, [0.5] * 4)
        found = getattr(selector._sampler.state.reference, "embeddings", None)
        assert (0 if found is None else found.shape[0]) == columns


def test_a_taskset_that_changes(tmp_path: Path) -> None:
    """Longer at its end; or with names, in another order and with others gone."""
    columns = pass_rates()

    def of(rows: list[int], **more: object) -> BotsSelector:
        weak, strong = columns[:, rows].tolist()
        names = [f"sum-{row}" for row in rows]
        data = SimpleNamespace(
            dataset={"weak": weak, "strong": strong, "name": names},
            dataset_size=len(rows),
            name="sums",
        )
        kwargs = {**SETTINGS, "state_dir": str(tmp_path), **more}
        return BotsSelector(
            data, DataSelectorConfig(feature_keys=["weak", "strong"], kwargs=kwargs)
        )

    for key, second in ((None, list(range(TASKS))), ("name", list(range(TASKS))[:9:-1])):
        first = list(range(TASKS - 8))
        selector = of(first, id_key=key)
        for _ in range(6):
            selector.feedback(selector.get_indices(4).tolist(), [0.25, 0.5, 1.0, float("nan")])
        other = of(second, id_key=key)
        other.load_state_dict(json.loads(json.dumps(selector.state_dict())))
        kept = [row if key is None else f"sum-{row}" for row in second if row in first]
        ours, theirs = (one._sampler.predict(kept).mean for one in (other, selector))
        np.testing.assert_array_equal(ours, theirs)
        assert np.std(ours) > 0.05
        indices, told = other.get_indices(4, return_extra_info=True)
        other.feedback(indices, [1.0] * 4)
        mean = other._sampler.predict([second[row] if key is None else f"sum-{second[row]}"
                                       for row in indices]).mean  # fmt: skip
        assert np.all(mean > told["point"])
    with pytest.raises(ValueError, match="id_key='nothing' is no column"):
        of([0, 1], id_key="nothing")
