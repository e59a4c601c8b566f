"""Prediction by similarity, and DOTS, which selects by it."""

from __future__ import annotations

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.evaluate.replay import Recording, run_replay
from bots_jax.pool.reference import TaskFeatures
from bots_jax.strategies.dots import (
    Anchors,
    Attention,
    features,
    learn,
    left_out_loss,
    predicted_logits,
    taken,
    unlearned,
)
from bots_jax.strategies.oversampling import Rolled, dots

TASKS, TRIALS = 48, 8


def anchors_of(embeddings, ids, successes, known=None) -> Anchors:
    ids = np.asarray(ids)
    known = np.ones(len(ids), bool) if known is None else known
    return Anchors(
        jnp.asarray(embeddings)[ids], jnp.asarray(successes, jnp.float32), jnp.asarray(known), 8
    )


def oracle(attention, embeddings, ids, successes, skip=None):
    """Logits in float64, a task and an anchor at a time."""
    adapter, scale, bias = (np.asarray(part, np.float64) for part in attention)
    z = np.asarray(embeddings, np.float64) @ adapter
    found = []
    for i in range(len(z)):
        used = [j for j in range(len(ids)) if skip is None or ids[j] != skip[i]]
        weights = [np.exp(z[i] @ z[ids[j]] / np.sqrt(z.shape[1])) for j in used]
        rate = sum(w * successes[j] / TRIALS for w, j in zip(weights, used, strict=True))
        rate /= sum(weights)
        found.append(scale * np.log(rate / (1 - rate)) + bias)
    return np.array(found)


def example():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(TASKS, 5)).astype(np.float32)
    attention = Attention(
        jnp.asarray(rng.normal(size=(5, 5)), jnp.float32), jnp.float32(1.7), jnp.float32(-0.3)
    )
    ids = rng.permutation(TASKS)[:12]
    return embeddings, attention, ids, rng.binomial(TRIALS, rng.uniform(size=12))


def test_predictions_agree_with_an_oracle() -> None:
    embeddings, attention, ids, successes = example()
    found = predicted_logits(attention, embeddings, anchors_of(embeddings, ids, successes))
    np.testing.assert_allclose(found, oracle(attention, embeddings, ids, successes), atol=2e-4)


def test_the_loss_predicts_each_anchor_from_the_others() -> None:
    embeddings, attention, ids, successes = example()
    # An anchor that told nothing is as if it were not there.
    more = anchors_of(
        embeddings, [*ids, 3], [*successes, np.nan], known=np.arange(len(ids) + 1) < len(ids)
    )
    more = more._replace(successes=jnp.where(more.known, more.successes, 0))
    logits = oracle(attention, embeddings, ids, successes, skip=np.arange(TASKS))[ids]
    p = 1 / (1 + np.exp(-logits))
    wanted = -np.mean(successes * np.log(p) + (TRIALS - successes) * np.log(1 - p)) / TRIALS
    np.testing.assert_allclose(left_out_loss(attention, more), wanted, rtol=1e-5)


@pytest.mark.parametrize("embeddings", [np.eye(TASKS), np.ones((TASKS, 3))])
def test_tasks_that_nothing_tells_apart_get_the_mean_of_the_anchors(embeddings) -> None:
    ids, successes = np.arange(6), np.array([0, 1, 8, 3, 3, 6])
    start = unlearned(embeddings.shape[1], jnp.float32).attention
    found = predicted_logits(start, jnp.asarray(embeddings), anchors_of(embeddings, ids, successes))
    # One-hot tasks that were tried themselves do resemble one anchor: themselves.
    np.testing.assert_allclose(jax.nn.sigmoid(found)[6:], successes.mean() / 8, rtol=1e-5)


def test_learning_finds_the_coordinate_that_matters() -> None:
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(400, 6)).astype(np.float32)
    rates = 1 / (1 + np.exp(-3 * embeddings[:, 4]))
    learning = unlearned(6, jnp.float32)

    def error(attention, anchors):
        found = jax.nn.sigmoid(predicted_logits(attention, jnp.asarray(embeddings), anchors))
        return np.sqrt(np.mean((np.asarray(found) - rates) ** 2))

    for _ in range(20):
        ids = rng.permutation(400)[:64]
        anchors = anchors_of(embeddings, ids, rng.binomial(8, rates[ids]))
        learning = jax.jit(learn, static_argnums=(2, 3))(learning, anchors, 10, 0.01)
    before = error(unlearned(6, jnp.float32).attention, anchors)
    assert error(learning.attention, anchors) < 0.6 * before
    assert int(learning.optimizer[0].count) == 200


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02])
def test_learning_is_adam(rate) -> None:
    """Against its equations, from the state that two earlier calls left."""
    embeddings, attention, ids, successes = example()
    anchors = anchors_of(embeddings, ids, successes)
    learning = unlearned(5, jnp.float32)._replace(attention=attention)
    mean = square = jax.tree.map(np.zeros_like, attention)
    expected = attention
    for turn in range(1, 10):
        gradient = jax.grad(left_out_loss)(expected, anchors)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, gradient)
        first, second = 1 - 0.9**turn, 1 - 0.99**turn

        def moved(x, m, s, first=first, second=second):
            return x - rate * (m / first) / (jnp.sqrt(s / second) + 1e-8)

        expected = jax.tree.map(moved, expected, mean, square)
    for _ in range(3):
        learning = learn(learning, anchors, 3, rate)
    chex.assert_trees_all_close(learning.attention, expected, rtol=0, atol=1e-6)


def test_without_optax_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ModuleNotFoundError, match=r"optax, which is missing: .*bots-jax\[rl\]"):
        dots(batch_size=2).selector.init(np.full((1, 8), 0.5, np.float32))


def test_references_stand_in_for_embeddings() -> None:
    rates = np.array([[0.1, 0.5, 0.9, np.nan], [0.5, 0.5, 0.5, 0.5]], np.float32)
    state = dots(batch_size=2).selector.init(rates)
    x = np.log(9)  # logit of .9
    wanted = np.array([[-x, 0, x, 0], [0, 0, 0, 0]]).T / np.sqrt(2 / 3 * x * x)
    np.testing.assert_allclose(features(state.reference), wanted, atol=1e-5)


# --- the strategy --------------------------------------------------------------------------


def rolls(rates):
    """Rewards by task alone: of each group the first round(rate * count) are right."""

    def roll(phase, task_ids, count):
        right = jnp.asarray(rates, jnp.float32)[jnp.maximum(task_ids, 0)]
        place = jnp.arange(count, dtype=jnp.float32)[None, :]
        rewards = (place < jnp.round(right * count)[:, None]).astype(jnp.float32)
        return Rolled(rewards, jnp.full(rewards.shape, 3, jnp.int32), task_ids)

    return roll


def two_kinds():
    """Tasks of kind 0 are half solved, those of kind 1 never; embeddings tell the kinds."""
    kind = np.random.default_rng(0).permutation(TASKS) % 4 > 0
    embeddings = 4 * np.stack([kind, ~kind]).astype(np.float32)
    return np.where(kind, 0.0, 0.5), embeddings - embeddings.mean(axis=1, keepdims=True)


def test_it_measures_every_second_step_and_counts_all() -> None:
    rates, embeddings = two_kinds()
    extra = dots(batch_size=5, rollouts=16, anchors=12, learning_steps=2)
    state = extra.selector.init(TaskFeatures(None, embeddings))
    collect = jax.jit(lambda key, state: extra.collect(key, state, rolls(rates)))
    seen, generated = [], []
    for step in range(4):
        state, made = collect(jax.random.key(step), state)
        state, info = extra.selector.advance(state)
        seen.append(np.asarray(made.task_ids))
        generated.append(int(made.generated))
        assert float(info.trials) == int(made.generated)
        assert int(made.tokens) == 3 * int(made.generated)
        assert (int(info.in_flight), int(info.stale), int(info.invalid)) == (0, 0, 0)
        assert made.rolled.rewards.shape == (5, 16)
        assert np.all(rates[seen[-1]] == 0.5)  # the kind that is worth it
    assert generated == [12 * 8 + 80, 80, 12 * 8 + 80, 80]
    for pair in (seen[:2], seen[2:]):  # twelve of that kind: enough for two steps
        assert len(set(np.concatenate(pair).tolist())) == 10


@pytest.mark.parametrize(("tasks", "anchors"), [(11, 2), (1100, 256)])
def test_a_quarter_of_the_pool_is_measured(tasks, anchors) -> None:
    extra = dots(batch_size=2, rollouts=4, learning_steps=0)
    state = extra.selector.init(np.linspace(0, 1, tasks, dtype=np.float32)[None])
    state, made = extra.collect(jax.random.key(0), state, rolls(np.full(tasks, 0.5)))
    assert int(made.generated) == anchors * 8 + 2 * 4


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_a_small_temperature_takes_the_nearest_to_the_target(temperature) -> None:
    rates = np.linspace(0, 1, TASKS).astype(np.float32)
    extra = dots(batch_size=6, rollouts=4, target=0.3, temperature=temperature)
    state = extra.selector.init(rates[None])
    state = state._replace(belief=state.belief._replace(rate=jnp.asarray(rates)))
    for first in (0, 6):
        state, selection = extra.selector.select(jax.random.key(first), state)
        state = taken(state, selection.task_ids)
        nearest = np.argsort(np.abs(rates - 0.3))[first : first + 6]
        assert set(np.asarray(selection.task_ids).tolist()) == set(nearest.tolist())


def test_draws_follow_the_temperature() -> None:
    """Frequencies of a single draw against exp(-|p - 1/2| / tau)."""
    rates = np.array([0.1, 0.3, 0.5, 0.8], np.float32)
    extra = dots(batch_size=1, rollouts=4, temperature=0.2)
    state = extra.selector.init(rates[None])
    state = state._replace(belief=state.belief._replace(rate=jnp.asarray(rates)))
    keys = jax.random.split(jax.random.key(3), 4000)
    ids = jax.vmap(lambda key: extra.selector.select(key, state)[1].task_ids[0])(keys)
    share = np.exp(-np.abs(rates - 0.5) / 0.2)
    share /= share.sum()
    found = np.bincount(np.asarray(ids), minlength=4) / 4000
    # Five standard errors: fails for 4 tasks by chance less than once in 400,000 runs.
    assert np.all(np.abs(found - share) < 5 * np.sqrt(share * (1 - share) / 4000))


def test_anchors_that_told_nothing_are_left_out() -> None:
    rates, embeddings = two_kinds()
    extra = dots(batch_size=4, rollouts=4, anchors=TASKS)

    def roll(phase, task_ids, count):
        rolled = rolls(rates)(phase, task_ids, count)
        bad = (task_ids % 3 == 0)[:, None]
        return rolled._replace(rewards=jnp.where(bad, jnp.nan, rolled.rewards))

    state = extra.selector.init(TaskFeatures(None, embeddings))
    state, _ = extra.collect(jax.random.key(0), state, roll)
    found = np.asarray(extra.selector.predict(state).mean)
    assert np.all((found > 0) & (found < 1))
    good = np.arange(TASKS) % 3 > 0
    np.testing.assert_allclose(found[good], (np.round(rates * 8)[good] + 0.5) / 9, rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.belief))


def test_the_replay_runs_it_on_references() -> None:
    rng = np.random.default_rng(1)
    hard = rng.uniform(0, 1, TASKS)
    rates = np.tile(np.where(hard < 0.5, 0.5, 0.0), (6, 1)).astype(np.float32)
    recording = Recording(rates, np.stack([1 - hard, 1 - hard / 2]).astype(np.float32), 8, "made")
    told = run_replay(dots(batch_size=4, rollouts=8), recording, [0, 1])
    np.testing.assert_array_equal(told.generated[0], [32 + 96, 32] * 3)  # a quarter of the pool
    mixed = (told.successes > 0) & (told.successes < told.trials)
    assert mixed.mean() > 0.8  # half of the pool can be
    with pytest.raises(ValueError, match="reference is None: dots tells tasks apart"):
        run_replay(dots(batch_size=4, rollouts=8), recording._replace(reference=None), [0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"anchors": 1}, "anchors=1 must be an integer of at least 2"),
        ({"every": 0}, "every=0 must be an integer of at least 1"),
        ({"screening": 0}, "screening=0 must be an integer"),
        ({"learning_steps": -1}, "learning_steps=-1 must be an integer of at least 0"),
        ({"learning_rate": 2.0}, r"learning_rate=2.0 must lie in \[0, 1\]"),
        ({"temperature": -1.0}, "temperature=-1.0 must lie in"),
        ({"target": 1.0}, "target=1.0 must lie in"),
    ],
)
def test_bad_settings_are_named(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        dots(**settings)
