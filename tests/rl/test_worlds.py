"""Worlds come out the same every time, have a frontier, and are measured without noise."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.bench.environment import Strategy
from bots_jax.bench.environments import worlds as environments
from bots_jax.bench.environments.worlds import worlds_environment
from bots_jax.bench.matrix import Matrix, make_plan
from bots_jax.bench.measures import values_of
from bots_jax.evaluate import metrics
from bots_jax.rl import seeds, worlds
from bots_jax.rl.command import add_finetune_parser, make_config
from bots_jax.rl.finetune import FinetuneConfig
from bots_jax.rl.loop import LoopConfig, init_loop, make_step
from bots_jax.rl.policy import PolicyConfig
from bots_jax.rl.policy_gradient import GradientConfig, rate_schedule
from bots_jax.rl.rollouts import answer_probabilities, pass_rates
from bots_jax.rl.tasks import FAMILY_NAMES, exact_verifier, generate_split
from bots_jax.rl.warmup import WarmupConfig
from bots_jax.strategies import epochs, oracle, uniform

SMALL_POLICY = PolicyConfig(width=16, depth=1, heads=2, mlp_width=32)
TINY = dataclasses.replace(
    worlds.find_world("frontier"),
    num_tasks=120, num_held_out=60, max_size=3, batch_size=4, rollouts=4, steps=4,
    warmup=WarmupConfig(
        policy=SMALL_POLICY, families=("reversal", "sorting"), max_size=2, size_decay=0.5,
        num_tasks=80, early_steps=20, base_steps=60, late_steps=90, batch_size=32,
        learning_rate=1e-2,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(cache: Path) -> worlds.WorldData:
    return worlds.make_world(TINY, cache)


@pytest.mark.parametrize("name", sorted(worlds.WORLDS))
def test_tasks_of_every_world_are_distinct_and_the_same_each_time(name: str) -> None:
    world = dataclasses.replace(worlds.find_world(name), num_tasks=600, num_held_out=100)
    pool, held_out = worlds.make_tasks(world)
    again, _ = worlds.make_tasks(world)
    for one, other in zip(pool, again, strict=True):
        np.testing.assert_array_equal(one, other)
    rows = {bytes(row) for row in np.asarray(pool.prompts)}
    assert len(rows) == 600
    assert not rows & {bytes(row) for row in np.asarray(held_out.prompts)}
    counts = np.bincount(np.asarray(pool.family), minlength=13)
    assert (counts > 0).sum() == len(world.families) + len(world.decoys)


def test_sparse_hides_the_frontier_among_decoys() -> None:
    world = worlds.find_world("sparse")
    pool, held_out = worlds.make_tasks(world)
    reach = [FAMILY_NAMES.index(name) for name in world.families]
    share = np.isin(np.asarray(pool.family), reach)
    assert share.mean() == pytest.approx(0.06)
    assert share[:600].mean() == pytest.approx(0.06, abs=0.03)  # in random order
    assert np.isin(np.asarray(held_out.family), reach).all()


def test_a_world_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="frontier"):
        worlds.find_world("nowhere")
    with pytest.raises(ValueError, match=r"decoy_share=0.5"):
        worlds.World("half", decoy_share=0.5)
    with pytest.raises(ValueError, match="juggling"):
        worlds.World("odd", families=("juggling",))


def test_there_is_a_frontier_and_the_table_shows_it(data: worlds.WorldData) -> None:
    table = worlds.pass_rate_table(TINY, data)
    assert set(table) == set(TINY.families)
    rates = table["reversal"]
    assert rates[0] > rates[2]  # seen twice as often as two digits, and three digits never
    told = worlds.describe(TINY, data)
    assert told["never"] + told["always"] + told["mixed"] == pytest.approx(1)
    assert told["mixed"] > 0.02
    assert told["passes"] == pytest.approx(4 * 4 / 120)
    assert data.reference.shape == (2, 120)
    assert data.reference[1].mean() > data.reference[0].mean()  # the later checkpoint knows more
    again = worlds.make_world(TINY)  # without a cache
    np.testing.assert_array_equal(again.reference, data.reference)


def test_a_pass_rate_is_the_probability_of_the_answer(data: worlds.WorldData) -> None:
    pool = data.pool
    exact = worlds.exact_rates(data.start.graphdef, [data.start.base], pool)[0]
    tries = 400
    found = pass_rates(
        data.start.graphdef, data.start.base, jnp.asarray(pool.prompts),
        exact_verifier(pool.answers), jax.random.key(0), rollouts=tries, max_new_tokens=10,
    )  # fmt: skip
    sampled = np.asarray(found.successes) / tries
    error = np.sqrt(np.maximum(exact * (1 - exact), 1 / tries) / tries)
    assert np.max(np.abs(sampled - exact) / error) < 5
    assert exact.max() > 0.1
    never = np.asarray(pool.answers).copy()
    never[never == 2] = 5  # no EOS
    rates = answer_probabilities(
        data.start.graphdef, data.start.base, jnp.asarray(pool.prompts), jnp.asarray(never), chunk=7
    )
    assert rates.shape == (120,)
    assert not rates.any()


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rate = rate_schedule(GradientConfig(learning_rate=0.1, lr_warmup=4, lr_decay=20))
    values = [float(rate(step)) for step in range(25)]
    assert np.argmax(values) == 4
    assert values[4] == pytest.approx(0.1)
    assert values[12] == pytest.approx(0.05)
    assert values[20:] == [0.0] * 5
    constant = rate_schedule(GradientConfig(learning_rate=0.1, lr_warmup=4))
    assert float(constant(1000)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="lr_decay=3"):
        GradientConfig(lr_warmup=5, lr_decay=3)
    with pytest.raises(ValueError, match="mixed_chunk=4"):
        GradientConfig(mixed_chunk=4, kl_weight=0.1)


def test_skipping_groups_without_advantage_changes_nothing(data: worlds.WorldData) -> None:
    after, told = [], []
    for chunk in (0, 3):
        gradient = GradientConfig(mixed_chunk=chunk)
        loop = LoopConfig(group_size=4, gradient=gradient)
        rule = uniform(batch_size=8, rollouts=4)
        step = make_step(
            rule, data.start.graphdef, data.pool.prompts, exact_verifier(data.pool.answers), loop
        )
        state = init_loop(data.start.base, rule.init(num_tasks=120), loop, 0)
        state, seen = jax.jit(lambda s, step=step: jax.lax.scan(step, s, length=3))(state)
        after.append(jax.flatten_util.ravel_pytree(state.train.params)[0])
        told.append(seen)
    assert 0 < float(told[0].effective_task_ratio.mean()) < 1
    for other, seen in zip(after[1:], told[1:], strict=True):
        np.testing.assert_array_equal(seen.successes, told[0].successes)
        np.testing.assert_allclose(seen.gradient.loss, told[0].gradient.loss, atol=1e-6)
        np.testing.assert_allclose(seen.gradient.grad_norm, told[0].gradient.grad_norm, rtol=1e-4)
        np.testing.assert_allclose(other, after[0], atol=2e-5)


def test_seeds_together_give_what_each_gives_alone(data: worlds.WorldData) -> None:
    rule = epochs(batch_size=4, rollouts=4)
    first = rule.init(num_tasks=120)
    task = seeds.Task(data.start.graphdef, data.start.base, data.pool, data.held_out)
    loop = worlds.loop_config(TINY)

    together, alone = (
        seeds.run_seeds(
            rule, first, task, seeds.SeedsConfig(4, 2, batched, loop), [3, 5], name="epochs"
        )
        for batched in (True, False)
    )
    for one, other in zip(together, alone, strict=True):
        assert one["seed"] == other["seed"]
        assert one["task_ids"] == other["task_ids"]
        assert one["tokens"] == other["tokens"]
        assert one["heldout_step"] == [0, 2, 4]
        np.testing.assert_allclose(one["heldout"], other["heldout"], rtol=1e-4)
    assert alone[0]["task_ids"] != alone[1]["task_ids"]
    exact = worlds.exact_rates(data.start.graphdef, [data.start.base], data.held_out)
    assert alone[0]["heldout"][0] == pytest.approx(exact.mean(), rel=1e-5)


@pytest.mark.long
def test_each_seed_may_start_from_a_policy_of_its_own(data: worlds.WorldData) -> None:
    rule = epochs(batch_size=4, rollouts=4)
    task = seeds.Task(data.start.graphdef, data.start.base, data.pool, data.held_out)
    config = seeds.SeedsConfig(2, 2, False, worlds.loop_config(TINY))
    first, bases = rule.init(num_tasks=120), [data.start.late, data.start.base]
    found = seeds.run_seeds(rule, [first, first], task, config, [0, 0], bases=bases)
    alone = seeds.run_seeds(rule, first, task, config, [0])
    assert found[1] == alone[0]
    exact = worlds.exact_rates(data.start.graphdef, [data.start.late], data.held_out)
    assert found[0]["heldout"][0] == pytest.approx(exact.mean(), rel=1e-5)
    near = dataclasses.replace(config.loop.gradient, kl_weight=0.1, mixed_chunk=0)
    drawn = dataclasses.replace(config, loop=dataclasses.replace(config.loop, gradient=near))
    with pytest.raises(ValueError, match="kl_weight"):
        seeds.run_seeds(rule, first, task, drawn, [0], bases=[data.start.base])


def test_tasks_that_are_not_eligible_are_never_selected(data: worlds.WorldData) -> None:
    rule = epochs(batch_size=4, rollouts=4)
    task = seeds.Task(data.start.graphdef, data.start.base, data.pool, data.held_out)
    config = seeds.SeedsConfig(2, 2, False, worlds.loop_config(TINY))
    some = np.arange(120) % 3 == 0
    told = seeds.run_seeds(rule, rule.init(num_tasks=120), task, config, [0], eligible=some)
    assert some[np.array(told[0]["task_ids"])].all()


def test_an_oracle_sees_the_policy_as_it_is(data: worlds.WorldData) -> None:
    rule = oracle(batch_size=4, rollouts=4, choice="mixed", worth="variance")
    task = seeds.Task(data.start.graphdef, data.start.base, data.pool, data.held_out)
    config = seeds.SeedsConfig(4, 4, False, worlds.loop_config(TINY), truth_every=2)
    first = rule.init(np.zeros((1, 120), np.float32))  # which it never goes by
    ids = np.array(seeds.run_seeds(rule, first, task, config, [0])[0]["task_ids"])
    rates = worlds.exact_rates(data.start.graphdef, [data.start.base], data.pool)[0]
    away = np.abs(rates - 0.5)
    nearest = np.sort(away)[:4]
    for step in range(2):  # under one look
        np.testing.assert_allclose(np.sort(away[ids[step]]), nearest, atol=1e-5)
    blind = seeds.run_seeds(
        rule, first, task, config, [0], view=lambda key, rates, _: rates * 0 + 0.5
    )
    assert np.array(blind[0]["task_ids"]).tolist() != ids.tolist()
    with pytest.raises(ValueError, match="truth_every=3 must divide eval_every=4"):
        seeds.SeedsConfig(4, 4, truth_every=3)


def test_oracles_may_see_kinds_alone_or_roughly(data: worlds.WorldData) -> None:
    rng, family, size = np.random.default_rng(0), np.arange(600) % 3, np.arange(600) // 300
    pool = SimpleNamespace(family=family, size=size)
    rates = rng.beta(0.3, 0.7, 600).astype(np.float32)
    key = jax.random.key(0)
    by_kind = np.asarray(environments.view_of("truth-kinds", pool)(key, jnp.asarray(rates), None))
    for kind in range(6):
        mine = (family == kind % 3) & (size == kind // 3)
        worth = np.mean(4.0 * rates[mine] * (1 - rates[mine]))
        np.testing.assert_allclose(4 * by_kind[mine] * (1 - by_kind[mine]), worth, rtol=1e-4)
    shuffle = environments.view_of("truth-shuffled", pool)
    dealt = [np.asarray(shuffle(jax.random.key(at), jnp.asarray(rates), None)) for at in range(2)]
    for kind in range(6):
        mine = (family == kind % 3) & (size == kind // 3)
        for one in dealt:
            np.testing.assert_array_equal(np.sort(one[mine]), np.sort(rates[mine]))
            assert abs(np.corrcoef(one[mine], rates[mine])[0, 1]) < 0.4  # 4 standard errors
    assert np.mean(dealt[0] == dealt[1]) < 0.1
    rough = np.asarray(environments.view_of("truth-rough", pool)(key, jnp.full(600, 0.3), None))
    error = np.log(rough / (1 - rough)) - np.log(0.3 / 0.7)
    assert abs(error.mean()) < 0.3  # 5 standard errors
    assert abs(error.std() / 1.5 - 1) < 0.15
    assert environments.view_of("truth", pool) is None


def test_an_oracle_may_see_what_a_regression_tells() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 2_000)).astype(np.float32)
    told = 1.5 * features[0] - features[1]  # and 1 that nothing tells
    rates = (1 / (1 + np.exp(-told - rng.normal(size=2_000)))).astype(np.float32)
    deal = environments.view_of("truth-references", None)
    seen = np.asarray(deal(jax.random.key(0), jnp.asarray(rates), jnp.asarray(features)))
    np.testing.assert_array_equal(np.sort(seen), np.sort(rates))
    logit, true = np.log(seen / (1 - seen)), np.log(rates / (1 - rates))
    # As much as the features tell, 3.25 of 4.25 of the variance, and no more of any single task.
    assert abs(np.corrcoef(logit, told)[0, 1] - (3.25 / 4.25) ** 0.5) < 0.03
    assert abs(np.corrcoef(logit - told, true - told)[0, 1]) < 0.1  # 4.5 standard errors
    again = np.asarray(deal(jax.random.key(1), jnp.asarray(rates), jnp.asarray(features)))
    assert np.mean(seen == again) < 0.1


def test_the_oracle_of_references_sees_the_two_references(data: worlds.WorldData) -> None:
    rule = oracle(batch_size=4, rollouts=4, choice="mixed", worth="variance")
    measured = np.random.default_rng(0).random((2, 120), np.float32)
    state = environments.first_state(
        rule, data._replace(reference=measured), "truth-references", "oracle"
    )
    assert state.reference.embeddings.shape == (2, 120)
    rates = np.clip(measured[0], 0.01, 0.99)
    column = np.asarray(state.reference.embeddings[0])
    assert np.corrcoef(column, np.log(rates / (1 - rates)))[0, 1] > 0.999


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    data: worlds.WorldData, tmp_path: Path
) -> None:
    rule = uniform(batch_size=4, rollouts=4)
    task = seeds.Task(data.start.graphdef, data.start.base, data.pool, data.held_out)
    config = seeds.SeedsConfig(4, 2, False, worlds.loop_config(TINY))
    first, file = rule.init(num_tasks=120), tmp_path / "run.npz"
    whole = seeds.run_seeds(rule, first, task, config, [0, 1])

    class KilledError(Exception):
        pass

    def kill(step: int) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        seeds.run_seeds(rule, first, task, config, [0, 1], partial=file, told=kill)
    assert file.exists()
    steps: list[int] = []
    resumed = seeds.run_seeds(rule, first, task, config, [0, 1], partial=file, told=steps.append)
    assert steps == [4]
    assert resumed == whole
    assert not file.exists()


def test_refuses_uneven_evaluations() -> None:
    with pytest.raises(ValueError, match="eval_every=3 must divide steps=4"):
        seeds.SeedsConfig(4, 3)


def test_warm_up_draws_small_problems_more_often() -> None:
    from bots_jax.rl.warmup import _row_sampler

    config = WarmupConfig(size_decay=0.5, batch_size=20_000)
    pool = generate_split("warmup", 3000, 0, ("sorting", "addition"), 6)
    rows = np.asarray(_row_sampler(pool, config)(jax.random.key(0)))
    drawn, size = np.asarray(pool.size)[rows], np.asarray(pool.size)
    often = np.bincount(drawn, minlength=7) / np.maximum(np.bincount(size, minlength=7), 1)
    np.testing.assert_allclose(often[4:] / often[3:-1], 0.5, rtol=0.2)
    family = np.bincount(np.asarray(pool.family)[rows])
    np.testing.assert_allclose(family[family > 0] / 20_000, 0.5, atol=0.02)
    with pytest.raises(ValueError, match="size_decay=2"):
        WarmupConfig(size_decay=2.0)


def record(strategy: str, heldout: list[float], tokens: list[float]) -> dict[str, Any]:
    steps = list(range(len(heldout)))
    average = np.asarray(metrics.averaged(metrics.Curve(steps, heldout)).scores).tolist()
    series = {"heldout": heldout, "heldout_average": average, "tokens": tokens}
    return {
        "strategy": strategy, "seed": 0, "values": {"heldout": heldout[-1]},
        "series": {key: {"x": steps, "y": y} for key, y in series.items()},
    }  # fmt: skip


def test_epochs_are_a_second_baseline_and_tokens_a_second_clock() -> None:
    records = [
        record("uniform", [0.0, 0.1, 0.2, 0.3, 0.4], [0, 10, 20, 30, 40]),
        record("epochs", [0.0, 0.1, 0.2, 0.3, 0.3], [0, 10, 20, 30, 40]),
        record("fast", [0.0, 0.3, 0.4, 0.4, 0.5], [0, 30, 60, 90, 120]),
    ]
    found = values_of(records, "uniform")
    fast = {key: getattr(value, "value", value) for key, value in found["fast"][0].items()}
    assert fast["heldout_over_epochs"] == pytest.approx(0.2)
    assert fast["ttb_100"] == pytest.approx(1 / 4)  # of averages: the goal is .3, met at step 1
    assert fast["ttb_100_tokens"] == pytest.approx(30 / 40)
    assert fast["ttb_100_epochs"] < 1 / 4
    assert found["epochs"][0]["ttb_100"].censored
    assert "heldout_over_epochs" not in values_of(records, "epochs")["fast"][0]


def test_what_a_strategy_is_told_is_part_of_its_cell(tmp_path: Path) -> None:
    matrix = Matrix("told", None, 1, ("worlds",), ("auto,told=prompts|references",))
    plan = make_plan(matrix)
    assert [job.strategy.told for job in plan.jobs] == ["prompts", "references"]
    assert [job.strategy.name for job in plan.jobs] == [
        "auto, told prompts",
        "auto, told references",
    ]
    assert len({job.cell(0) for job in plan.jobs}) == 2
    with pytest.raises(ValueError, match="told=rumours, but frontier, 400 steps tells nothing"):
        make_plan(matrix._replace(strategies=("auto,told=rumours",)))
    with pytest.raises(ValueError, match="told=prompts, but simulation of 2000 tasks tells every"):
        make_plan(matrix._replace(environments=("simulation",)))


def test_the_estimator_is_part_of_a_cell() -> None:
    plain, other = worlds_environment(), worlds_environment(estimator="maxrl")
    assert "estimator" not in plain.about  # the cells of before are still those
    assert other.about == {**plain.about, "estimator": "maxrl"}
    assert other.name == "frontier, 400 steps, maxrl"
    with pytest.raises(ValueError, match="estimator='ppo' is unknown"):
        worlds_environment(estimator="ppo")


def test_the_main_job_is_in_a_world_unless_there_are_tasks_of_a_file() -> None:
    parser = argparse.ArgumentParser()
    add_finetune_parser(parser.add_subparsers())

    def config(*more: str) -> FinetuneConfig:
        return make_config(parser.parse_args(["finetune", *more]))

    main = config()
    assert main == FinetuneConfig.of_world("frontier")
    assert main.loop.gradient.lr_decay == main.steps
    assert config("--steps", "50").loop.gradient.lr_decay == 50
    assert config("--steps", "50", "--lr-decay", "0").loop.gradient.lr_decay == 0
    assert config("--world", "sparse").world == "sparse"
    pair = config("--world", "sparse", "--estimator", "maxrl", "--worth", "pass_gain")
    assert pair.loop.gradient.estimator == "maxrl"
    assert pair.selector("auto+prompts").static["worth"] == "pass_gain"
    assert config("--tasks", "mine.jsonl") == FinetuneConfig(tasks="mine.jsonl")
    with pytest.raises(ValueError, match=r"--world sparse and --tasks mine.jsonl"):
        config("--world", "sparse", "--tasks", "mine.jsonl")
    with pytest.raises(ValueError, match="told='rumours'"):
        config("--strategies", "auto+rumours")
    with pytest.raises(ValueError, match="eval_rollouts=0 computes"):
        config("--tasks", "mine.jsonl", "--verifier", "a:b", "--eval-rollouts", "0")


def test_the_environment_measures_a_world(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worlds.WORLDS, "frontier", TINY)
    place = worlds_environment(eval_every=2, cache=str(cache), workspace=str(tmp_path / "work"))
    told = place.run(Strategy("epochs", epochs, told="nothing"), [0, 1])
    assert [one.values["rollouts"] for one in told] == [64, 64]
    assert list(told[0].series["heldout_average"].x) == [0, 2, 4]
    assert told[0].series["tokens"].y[-1] == told[0].values["tokens"] > 0
    assert told[0].values["fall"] >= 0
    hidden = place.run(Strategy("epochs", epochs, told="hidden"), [0])[0]
    assert hidden.series["heldout"].y == pytest.approx(told[0].series["heldout"].y)
    assert not list((tmp_path / "work").glob("*.npz"))
    with pytest.raises(ValueError, match="told truth: oracles are told truth or"):
        place.run(Strategy("epochs", epochs, told="truth"), [0])
    with pytest.raises(ValueError, match="told prompts: oracles are told truth or"):
        place.run(Strategy("best", oracle, told="prompts"), [0])
