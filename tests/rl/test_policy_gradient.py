"""Losses and gradients against hand cases and an independent NumPy reading."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.rl.policy import PolicyConfig, make_policy
from bots_jax.rl.policy_gradient import (
    Batch,
    GradientConfig,
    advantages,
    completion_logprobs,
    init_train_state,
    make_optimizer,
    make_train_step,
    rate_schedule,
    surrogate,
)
from bots_jax.rl.rollouts import rollout
from bots_jax.rl.tasks import encode_prompts

ESTIMATORS = ("grpo", "rloo", "dr_grpo", "maxrl")


def batch_of(rng: np.random.Generator, estimator_base: bool = False) -> Batch:
    shape = (3, 4, 5)
    lengths = rng.integers(1, 6, shape[:2])
    logprobs = -rng.random(shape) - 0.1
    return Batch(
        prompts=jnp.zeros((3, 2), jnp.int32),
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.asarray(np.arange(5) < lengths[..., None]),
        logprobs=jnp.asarray(logprobs, jnp.float32),
        rewards=jnp.asarray(rng.random(shape[:2]).round(1), jnp.float32),
        valid=jnp.asarray([True, False, True]),
        base_logprobs=jnp.asarray(logprobs + 0.2, jnp.float32) if estimator_base else None,
    )


def numpy_loss(now: np.ndarray, batch: Batch, config: GradientConfig) -> float:
    """The loss written out with loops over prompts, completions and tokens."""
    total, prompts = 0.0, [b for b in range(3) if batch.valid[b]]
    for b in prompts:
        rewards = np.asarray(batch.rewards[b], np.float64)
        for i in range(4):
            others = np.delete(rewards, i)
            gain = rewards[i] - (others.mean() if config.estimator == "rloo" else rewards.mean())
            if config.estimator == "grpo":
                gain /= rewards.std()
            if config.estimator == "maxrl":
                gain /= rewards.mean()
            tokens = np.flatnonzero(batch.mask[b, i])
            share = len(tokens) if config.estimator in ("grpo", "maxrl") else 5
            for t in tokens:
                ratio = np.exp(now[b, i, t] - float(batch.logprobs[b, i, t]))
                clipped = np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
                value = min(ratio * gain, clipped * gain)
                if batch.base_logprobs is not None:
                    gap = float(batch.base_logprobs[b, i, t]) - now[b, i, t]
                    value -= config.kl_weight * (np.exp(gap) - gap - 1)
                total -= value / (len(prompts) * 4 * share)
    return total


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_loss_agrees_with_the_equation(estimator: str, kl_weight: float) -> None:
    rng = np.random.default_rng(1)
    batch = batch_of(rng, kl_weight > 0)
    config = GradientConfig(estimator=estimator, kl_weight=kl_weight, clip_high=0.28)  # type: ignore[arg-type]
    now = np.asarray(batch.logprobs, np.float64) + rng.normal(0, 0.3, (3, 4, 5))
    loss, metrics = surrogate(jnp.asarray(now, jnp.float32), batch, config)
    assert float(loss) == pytest.approx(numpy_loss(now, batch, config), rel=1e-4, abs=1e-5)
    counted = np.asarray(batch.mask) & np.asarray(batch.valid)[:, None, None]
    ratio = np.exp(now - np.asarray(batch.logprobs))[counted]
    outside = np.mean((ratio < 1 - config.clip_low) | (ratio > 1.28))
    assert 0 < outside < 1
    assert float(metrics.clip_fraction) == pytest.approx(outside)
    gap = 0.2 - (now - np.asarray(batch.logprobs))[counted]
    divergence = np.mean(np.exp(gap) - gap - 1) if kl_weight else 0
    assert float(metrics.kl) == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "shape"),
    [("rewards", (1, 4)), ("rewards", (3, 1)), ("valid", (1,)), ("mask", (3, 1, 5)),
     ("logprobs", (1, 4, 5)), ("base_logprobs", (3, 4, 1))],
)  # fmt: skip
def test_what_would_broadcast_is_refused(field: str, shape: tuple[int, ...]) -> None:
    batch = batch_of(np.random.default_rng(0), estimator_base=True)
    wrong = batch._replace(**{field: jnp.ones(shape, getattr(batch, field).dtype)})
    with pytest.raises(AssertionError, match="shape"):
        jax.eval_shape(lambda x: surrogate(x.logprobs, x, GradientConfig())[0], wrong)


def test_advantages_by_hand() -> None:
    rewards = jnp.asarray([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(advantages(rewards, "grpo")[0], [1, -1, -1, 1], rtol=1e-6)
    np.testing.assert_allclose(advantages(rewards, "dr_grpo")[0], [0.5, -0.5, -0.5, 0.5])
    expected = [2 / 3, -2 / 3, -2 / 3, 2 / 3]  # 1 less the mean of the others, 1/3
    np.testing.assert_allclose(advantages(rewards, "rloo")[0], expected, rtol=1e-6)
    for estimator in ESTIMATORS:
        np.testing.assert_array_equal(advantages(rewards, estimator)[1], 0)
        thirds = jnp.full((1, 3), 1 / 3)  # whose mean rounds to something else
        np.testing.assert_array_equal(advantages(thirds, estimator), 0)


@pytest.fixture(scope="module")
def lived() -> tuple:
    graphdef, params = make_policy(
        PolicyConfig(width=16, depth=1, heads=2, mlp_width=32), jax.random.key(0)
    )
    prompts = jnp.asarray(encode_prompts(["1+2", "34+5"], 8))
    sample = jax.jit(rollout, static_argnums=0, static_argnames=("group_size", "max_new_tokens"))
    found = sample(graphdef, params, prompts, jax.random.key(1), group_size=4, max_new_tokens=4)
    return graphdef, params, prompts, found


def make_batch(lived: tuple, rewards: jax.Array, valid: list[bool]) -> Batch:
    _, _, prompts, found = lived
    return Batch(prompts, found.tokens, found.mask, found.logprobs, rewards, jnp.asarray(valid))


def test_a_step_makes_rewarded_completions_likelier(lived: tuple) -> None:
    graphdef, params, prompts, found = lived
    rewards = jnp.asarray([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    config = GradientConfig(learning_rate=1e-2, lr_warmup=0)
    step = jax.jit(make_train_step(graphdef, config))
    state, metrics = step(init_train_state(params, config), make_batch(lived, rewards, [True] * 2))

    likelihood = jax.jit(completion_logprobs, static_argnums=0)

    def score(params: object) -> float:
        logprobs = likelihood(graphdef, params, prompts, found.tokens)
        total = jnp.sum(jnp.where(found.mask, logprobs, 0), axis=-1)
        return float(jnp.sum(jnp.where(rewards > 0, total, 0)))

    assert score(state.params) > score(params)
    assert float(metrics.grad_norm) > 0
    assert int(state.step) == 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_groups_without_variance_leave_the_policy_alone(lived: tuple, estimator: str) -> None:
    graphdef, params, _, _ = lived
    config = GradientConfig(estimator=estimator, lr_warmup=0)  # type: ignore[arg-type]
    step = jax.jit(make_train_step(graphdef, config))
    for rewards in (jnp.zeros((2, 4)), jnp.ones((2, 4))):
        state, metrics = step(
            init_train_state(params, config), make_batch(lived, rewards, [True, True])
        )
        assert float(metrics.grad_norm) == 0
        chex.assert_trees_all_equal(state.params, params)


def test_invalid_rows_contribute_nothing(lived: tuple) -> None:
    graphdef, params, _, _ = lived
    config = GradientConfig()
    step = jax.jit(make_train_step(graphdef, config))
    rewards = jnp.asarray([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    start = init_train_state(params, config)
    one, _ = step(start, make_batch(lived, rewards, [True, False]))
    other, _ = step(start, make_batch(lived, rewards.at[1].set(jnp.arange(4.0)), [True, False]))
    chex.assert_trees_all_equal(one.params, other.params)


@pytest.mark.parametrize("mixed_chunk", [0, 1])
def test_upper_layers_alone_move_as_their_gradient_says(lived: tuple, mixed_chunk: int) -> None:
    """The first step of AdamW goes by signs: where all is trained, those parts move alike."""
    depth = 2
    config = PolicyConfig(width=16, depth=depth, heads=2, mlp_width=32)
    graphdef, params = make_policy(config, jax.random.key(0))
    rewards = jnp.asarray([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])
    batch = make_batch(lived, rewards, [True] * 2)
    now = completion_logprobs(graphdef, params, batch.prompts, batch.tokens)
    batch = batch._replace(logprobs=now)
    settings = {"learning_rate": 1e-3, "lr_warmup": 0, "max_grad_norm": 1e9}
    after = {}
    for upper in (0, 1):
        config = GradientConfig(**settings, upper_layers=upper, mixed_chunk=mixed_chunk)
        start = init_train_state(params, config)
        after[upper] = jax.jit(make_train_step(graphdef, config))(start, batch)[0]
    moved = after[1].params
    for part in ("layers", "final_norm"):
        own, whole = moved[part], after[0].params[part]
        if part == "layers":
            own, whole = own[depth - 1], whole[depth - 1]
        chex.assert_trees_all_close(own, whole, atol=1e-5)
    assert not np.array_equal(moved["final_norm"]["scale"], params["final_norm"]["scale"])
    chex.assert_trees_all_equal(moved["embedding"], params["embedding"])
    below = {i: layer for i, layer in params["layers"].items() if i < depth - 1}
    chex.assert_trees_all_equal({i: moved["layers"][i] for i in below}, below)
    count = sum(leaf.size for leaf in jax.tree.leaves(after[1].opt_state))
    assert count < sum(leaf.size for leaf in jax.tree.leaves(after[0].opt_state))
    with pytest.raises(ValueError, match="upper_layers=9"):
        init_train_state(params, GradientConfig(upper_layers=9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "ppo"}, "estimator='ppo'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"clip_low": 1.5}, "clip_low=1.5"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientConfig(**settings)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5])
def test_the_optimizer_is_adamw_after_clipping(decay: float) -> None:
    """The first step: the sign of the gradient, and the decay of the parameters, times the rate."""
    config = GradientConfig(learning_rate=0.01, weight_decay=decay, max_grad_norm=1.0)
    optimizer, params = make_optimizer(config), {"w": jnp.asarray([2.0, -1.0, 0.0])}
    gradient = {"w": jnp.asarray([300.0, -400.0, 0.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    rate = float(rate_schedule(config)(0))
    expected = -rate * (np.sign(gradient["w"]) + decay * np.asarray(params["w"]))
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)
