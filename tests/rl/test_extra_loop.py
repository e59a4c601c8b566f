"""Extra rollouts in the training loop: only mixed groups are trained on, all are counted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.pool.reference import TaskFeatures
from bots_jax.rl.embeddings import embed_tasks
from bots_jax.rl.extra_loop import make_extra_step
from bots_jax.rl.loop import LoopConfig, init_loop, make_step
from bots_jax.rl.policy import PolicyConfig
from bots_jax.rl.policy_gradient import GradientConfig
from bots_jax.rl.tasks import generate_tasks
from bots_jax.rl.warmup import WarmStart, WarmupConfig, warm_up
from bots_jax.strategies import uniform
from bots_jax.strategies.oversampling import (
    Oversampling,
    dots,
    dynamic_sampling,
    learnability,
    no_oversampling,
    speed,
)

SMALL = WarmupConfig(
    policy=PolicyConfig(width=16, depth=1, heads=2, mlp_width=32),
    num_tasks=128, early_steps=2, base_steps=4, late_steps=6, batch_size=16,
)  # fmt: skip
CONFIG = LoopConfig(group_size=4, gradient=GradientConfig(learning_rate=1e-2))
POOL, _ = generate_tasks(64, 16)


def even_start(task_ids: jax.Array, completions: jax.Array) -> jax.Array:
    """A reward that an untrained policy gets half of the time, and never on odd tasks."""
    right = (completions[..., 0] % 2 == 0) & (task_ids % 2 == 0)[:, None]
    return right.astype(jnp.float32)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> WarmStart:
    return warm_up(SMALL, tmp_path_factory.mktemp("warmup"))


def run(extra: Oversampling, start: WarmStart, steps: int = 3, reference=None):
    state = extra.selector.init(reference, num_tasks=64)
    loop = init_loop(start.base, state, CONFIG, seed=1)
    step = make_extra_step(extra, start.graphdef, POOL.prompts, even_start, CONFIG)
    return jax.jit(lambda state: jax.lax.scan(step, state, length=steps))(loop)


@pytest.mark.parametrize(
    "make",
    [dynamic_sampling, *(pytest.param(m, marks=pytest.mark.long) for m in (speed, learnability))],
)
def test_trains_on_what_is_worth_it_and_counts_everything(start: WarmStart, make) -> None:
    extra = make(batch_size=4, rollouts=4)
    state, told = run(extra, start)
    ids = np.asarray(told.step.task_ids)
    assert np.all((ids % 2 == 0) | (ids == -1))  # the odd ones are never mixed
    assert np.all(told.generated > 16)
    np.testing.assert_array_equal(told.step.info.trials, told.generated)
    assert np.all(told.step.generated_tokens >= told.generated)
    assert int(state.step) == 3
    leaves = jax.tree.leaves(state.train.params)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert not np.allclose(leaves[0], jax.tree.leaves(start.base)[0])


def test_dots_measures_anchors_and_trains_on_fresh_groups(start: WarmStart) -> None:
    embeddings = np.asarray(embed_tasks(start.graphdef, start.base, POOL.prompts))
    # One coordinate more says which tasks can be solved at all.
    parity = 3.0 * (-1.0) ** np.arange(64)[None]
    features = TaskFeatures(None, np.concatenate([embeddings, parity]).astype(np.float32))
    extra = dots(batch_size=4, rollouts=4, screening=4)
    _, told = run(extra, start, steps=4, reference=features)
    np.testing.assert_array_equal(told.generated, [16 * 4 + 16, 16, 16 * 4 + 16, 16])
    np.testing.assert_array_equal(told.step.info.trials, told.generated)
    assert np.all(told.step.generated_tokens >= told.generated)
    ids = np.asarray(told.step.task_ids)
    assert np.all((ids >= 0) & (ids % 2 == 0))


def test_without_extra_rollouts_it_selects_as_the_loop_does(start: WarmStart) -> None:
    selector = uniform(batch_size=4, rollouts=4)
    _, told = run(no_oversampling(selector, 4), start, steps=1)
    loop = init_loop(start.base, selector.init(num_tasks=64), CONFIG, seed=1)
    step = make_step(selector, start.graphdef, POOL.prompts, even_start, CONFIG)
    _, plain = jax.jit(step)(loop, None)
    np.testing.assert_array_equal(told.step.task_ids[0], plain.task_ids)
    assert int(told.generated[0]) == 16
