"""The loop: one scan equals the steps one by one; warm-up and references are cached safely."""

from __future__ import annotations

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.rl import warmup
from bots_jax.rl.loop import (
    Experience,
    LoopConfig,
    evidence_of,
    init_loop,
    make_evaluation,
    make_step,
    summarise,
)
from bots_jax.rl.policy import PolicyConfig
from bots_jax.rl.policy_gradient import GradientConfig, Metrics
from bots_jax.rl.rollouts import Rollouts
from bots_jax.rl.tasks import exact_verifier, generate_tasks
from bots_jax.rl.warmup import WarmStart, WarmupConfig, cached_references, warm_up
from bots_jax.strategies import make_strategy
from bots_jax.types import Selection

SMALL = WarmupConfig(
    policy=PolicyConfig(width=16, depth=1, heads=2, mlp_width=32),
    num_tasks=128, early_steps=2, base_steps=4, late_steps=6, batch_size=16,
)  # fmt: skip
CONFIG = LoopConfig(group_size=4, gradient=GradientConfig(learning_rate=1e-2))
POOL, HELD_OUT = generate_tasks(64, 16)
VERIFIER = exact_verifier(POOL.answers)


def even_start(task_ids: jax.Array, completions: jax.Array) -> jax.Array:
    """A reward that an untrained policy gets half of the time."""
    return (completions[..., 0] % 2 == 0).astype(jnp.float32)


def no_training(what: str, done: int, total: int) -> None:
    raise AssertionError(f"{what} ran though it is cached")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warmup")


@pytest.fixture(scope="module")
def start(cache: Path) -> WarmStart:
    return warm_up(SMALL, cache)


@pytest.mark.parametrize("name", ["bots", pytest.param("easy-to-hard", marks=pytest.mark.long)])
def test_scan_equals_steps(start: WarmStart, name: str) -> None:
    """Selection included, the whole loop runs on the device and gives the same numbers."""
    selector = make_strategy(name, batch_size=4, rollouts=4)
    reference = np.random.default_rng(0).random((2, 64)).astype(np.float32)
    state = init_loop(start.base, selector.init(reference), CONFIG, seed=3)
    step = make_step(selector, start.graphdef, POOL.prompts, even_start, CONFIG)
    whole, metrics = jax.jit(lambda state: jax.lax.scan(step, state, length=4))(state)
    single, compiled = state, jax.jit(step)
    for t in range(4):
        single, told = compiled(single, None)
        np.testing.assert_array_equal(metrics.task_ids[t], told.task_ids)
        np.testing.assert_array_equal(metrics.successes[t], told.successes)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, whole, single)
    assert 0 < float(metrics.mean_reward.mean()) < 1
    assert int(whole.step) == 4
    assert not np.allclose(jax.tree.leaves(whole.train.params)[0], jax.tree.leaves(start.base)[0])


def test_kl_term_needs_and_uses_the_base_policy(start: WarmStart) -> None:
    selector = make_strategy("uniform", batch_size=4, rollouts=4)
    config = LoopConfig(group_size=4, gradient=GradientConfig(kl_weight=0.1))
    with pytest.raises(ValueError, match=r"kl_weight=0.1 needs base_params"):
        make_step(selector, start.graphdef, POOL.prompts, VERIFIER, config)
    state = init_loop(start.late, selector.init(num_tasks=64), config, seed=0)
    step = make_step(selector, start.graphdef, POOL.prompts, VERIFIER, config, start.base)
    _, metrics = jax.jit(step)(state, None)
    assert float(metrics.gradient.kl) > 0


def test_fewer_eligible_tasks_than_the_batch_train_on_what_there_is(start: WarmStart) -> None:
    selector = make_strategy("bots", batch_size=4, rollouts=4)
    state = selector.init(num_tasks=64, capacity=64)
    from bots_jax import retire

    state = retire(state, np.arange(2, 64))
    loop = init_loop(start.base, state, CONFIG, seed=0)
    step = make_step(selector, start.graphdef, POOL.prompts, VERIFIER, CONFIG)
    loop, metrics = jax.jit(step)(loop, None)
    assert sorted(np.asarray(metrics.task_ids).tolist()) == [-1, -1, 0, 1]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(loop.train.params))


def test_rewards_that_are_no_rewards_are_left_out_and_counted(start: WarmStart) -> None:
    """NaN, infinite and negative rewards teach neither the policy nor the selector."""
    bad = jnp.asarray([jnp.nan, jnp.inf, -1.0, 2.0])

    def verifier(task_ids: jax.Array, completions: jax.Array) -> jax.Array:
        return even_start(task_ids, completions).at[:, 0].set(bad[task_ids % 4])

    selector = make_strategy("bots", batch_size=4, rollouts=4)
    loop = init_loop(start.base, selector.init(num_tasks=64), CONFIG, seed=0)
    step = jax.jit(make_step(selector, start.graphdef, POOL.prompts, verifier, CONFIG))
    loop, metrics = step(loop, None)
    assert int(metrics.unsound) == 4
    np.testing.assert_array_equal(metrics.successes, 0)
    assert float(metrics.mean_reward) == 0
    assert int(metrics.info.invalid) == int(metrics.info.evaluated) == 0
    assert int(metrics.info.in_flight) == 0  # the visits are closed: no task is lost for ever
    chex.assert_trees_all_equal(loop.train.params, start.base)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(metrics))


def test_evaluation_is_a_function_of_key_and_policy(start: WarmStart) -> None:
    evaluate = jax.jit(make_evaluation(start.graphdef, HELD_OUT.prompts, even_start, rollouts=2))
    rates = evaluate(start.base, jax.random.key(0))
    assert rates.shape == (16,)
    assert set(np.unique(rates)) == {0.0, 0.5, 1.0}
    np.testing.assert_array_equal(rates, evaluate(start.base, jax.random.key(0)))
    assert np.any(rates != evaluate(start.base, jax.random.key(1)))
    other = jax.tree.map(lambda leaf: -2.0 * leaf, start.base)
    assert np.any(rates != evaluate(other, jax.random.key(0)))


def test_the_numbers_of_a_step_are_those_of_what_was_selected() -> None:
    """Rows: a mixed group, one all solved, one with a reward that is none, and no task."""
    valid, sound = jnp.asarray([True, True, True, False]), jnp.asarray([True, True, False, True])
    selection = Selection(jnp.asarray([7, 2, 5, -1]), jnp.zeros(4), valid, jnp.asarray([0] * 4))
    lengths = jnp.asarray([[1, 2], [3, 4], [5, 6], [70, 80]])
    rolled = Rollouts(jnp.zeros((4, 2, 9)), jnp.zeros((4, 2, 9)), jnp.ones((4, 2, 9)), lengths)
    rewards = jnp.asarray([[1.0, 0.25], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    seen = Experience(jnp.zeros((4, 5)), rolled, rewards, sound)
    told = summarise(selection, seen, Metrics(*jnp.zeros(4)), None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(told.task_ids, [7, 2, 5, -1])
    np.testing.assert_array_equal(told.successes, [1.25, 2, 0, 0])
    assert float(told.effective_task_ratio) == 1 / 2
    assert float(told.mean_reward) == 3.25 / 4
    assert int(told.generated_tokens) == 21
    assert int(told.unsound) == 1
    evidence = evidence_of(selection, seen)
    np.testing.assert_array_equal(evidence.trials, [2, 2, 0, 0])
    np.testing.assert_array_equal(evidence.successes, [1.25, 2, 0, 0])
    np.testing.assert_array_equal(evidence.attempts, [2, 2, 2, 2])
    np.testing.assert_array_equal(evidence.differ, [True, False, False, False])


def test_warm_up_is_cached_and_a_damaged_file_made_anew(cache: Path, start: WarmStart) -> None:
    again = warm_up(SMALL, cache, no_training)
    chex.assert_trees_all_equal(again.late, start.late)
    (file,) = cache.glob("warmup-*.npz")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match="damaged"):
        rebuilt = warm_up(SMALL, cache)
    chex.assert_trees_all_equal(rebuilt.base, start.base)
    assert warm_up(SMALL, cache, no_training) is not None


def test_an_interrupted_warm_up_goes_on_where_it_was(
    tmp_path: Path, start: WarmStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "REPORT_EVERY", 1)
    told: list[int] = []

    def stop_at_5(what: str, done: int, total: int) -> None:
        told.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm_up(SMALL, tmp_path, stop_at_5)
    found = warm_up(SMALL, tmp_path, lambda what, done, total: told.append(done))
    assert told == [1, 2, 3, 4, 5, 6]
    chex.assert_trees_all_equal(found[1:], start[1:])
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["warmup"]


def test_checkpoints_learn(start: WarmStart) -> None:
    """More steps of teacher forcing make the answers of the pool likelier."""
    from bots_jax.rl.policy_gradient import completion_logprobs

    targets = jnp.asarray(POOL.answers)[:, None]
    logprobs_of = jax.jit(completion_logprobs, static_argnums=0)

    def likelihood(params: object) -> float:
        prompts = jnp.asarray(POOL.prompts)
        logprobs = logprobs_of(start.graphdef, params, prompts, targets)
        return float(jnp.sum(jnp.where(targets != 0, logprobs, 0)))

    assert likelihood(start.early) < likelihood(start.base) < likelihood(start.late)


def test_references_are_measured_and_cached(cache: Path, start: WarmStart) -> None:
    asked = {"rollouts": 2, "max_new_tokens": 4, "cache_dir": cache}
    # A verifier that such a policy passes, so that there is something to cache.
    first = cached_references(start, SMALL, POOL, even_start, **asked)
    assert first.shape == (2, 64)
    assert set(np.unique(first)) == {0.0, 0.5, 1.0}
    np.testing.assert_array_equal(
        first,
        cached_references(start, SMALL, POOL, even_start, progress=no_training, **asked),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_steps": 900}, "early_steps=900"),
        ({"families": ("additon",)}, "additon"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    ],
)
def test_bad_warm_up(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"group_size": 1}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": np.inf}],
)
def test_bad_loop(settings: dict) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LoopConfig(**settings)
    assert LoopConfig(group_size=2, max_new_tokens=1, temperature=0.1).group_size == 2
