"""The finetune loop as an environment of the suite."""

from pathlib import Path

import pytest

from bots_jax.bench.environment import Strategy
from bots_jax.bench.environments.finetune import finetune_environment
from bots_jax.bots_selector import bots
from bots_jax.strategies import oracle, uniform
from bots_jax.strategies.oversampling import dots, dynamic_sampling

TINY = {
    "steps": 4, "batch_size": 4, "rollouts": 4, "num_tasks": 64, "num_held_out": 32,
    "eval_every": 2, "eval_rollouts": 1, "reference_rollouts": 2, "warmup_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def test_a_run_is_measured_and_cleared_away_and_its_cell_is_its_own(
    tmp_path: Path, cache: str
) -> None:
    work = tmp_path / "work"
    place = finetune_environment(**TINY, workspace=str(work), cache=cache)
    told = place.run(Strategy("uniform", uniform), [0])[0]
    assert {"etr", "heldout", "breadth", "tokens", "variance"} <= set(told.values)
    assert told.values["rollouts"] == 4 * 4 * 4
    assert list(told.series["heldout"].x) == [0, 2, 4]
    assert told.series["tokens"].y[0] == 0
    assert told.series["tokens"].y[-1] == told.values["tokens"]
    assert list(work.iterdir()) == []
    other = place.run(Strategy("bots", bots, {"forgetting": 0.5}), [0])[0]
    assert other.series["heldout"].y[0] == told.series["heldout"].y[0]  # the same base policy
    with pytest.raises(ValueError, match="nobody knows"):
        place.run(Strategy("oracle", oracle), [0])


def test_extra_rollouts_are_counted(cache: str) -> None:
    place = finetune_environment(**TINY, cache=cache)
    rule = Strategy("dynamic", dynamic_sampling, {"max_rounds": 2})
    first, again = place.run(rule, [0]) + place.run(rule, [0])
    # The base policy after two steps of warm-up solves hardly anything: both rounds are made.
    assert first.values["rollouts"] == 4 * 2 * 4 * 4
    assert first.series["rollouts"].y == [0, 64, 128]
    assert first.values["tokens"] == first.series["tokens"].y[-1] >= 128
    assert 0 <= first.values["useful"] <= 0.5
    assert first.values["heldout"] == again.values["heldout"]


@pytest.mark.long  # the loop itself with anchors: test_extra_loop.py
def test_dots_gets_embeddings_of_the_base_policy(cache: str) -> None:
    place = finetune_environment(**TINY, cache=cache)
    told = place.run(Strategy("dots", dots, {"anchors": 8, "screening": 4}), [0])[0]
    # Two measurements of 8 anchors in four steps.
    assert told.values["rollouts"] == 4 * 4 * 4 + 2 * 8 * 4
    assert told.series["rollouts"].y == [0, 64, 128]
