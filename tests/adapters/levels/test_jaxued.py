"""The levels adapter inside jaxued: its maze, its wrapper, its LevelSampler beside ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import levels
from bots_jax.strategies import make_strategy

jaxued_sampler = pytest.importorskip("jaxued.level_sampler")
EXAMPLE = Path(__file__).parents[3] / "examples" / "jaxued_maze.py"


@pytest.fixture(scope="module")
def maze():
    spec = importlib.util.spec_from_file_location("jaxued_maze", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("told", ["nothing", "way"])
def test_the_example_trains_and_prints(maze, capsys, told):
    size = ["--levels", "128", "--solvable", "0.5", "--told", told]
    maze.main(["--updates", "4", "--every", "2", *size])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[1].strip().startswith("12288 steps")  # 4 updates of 64 levels for 48 steps
    assert "learnable" in printed[2]


def test_the_pool_has_the_share_that_was_asked_for(maze):
    pool, solvable = maze.make_pool(jax.random.key(0), 200, 0.3)
    assert int(solvable.sum()) == 60
    assert pool.wall_map.shape == (200, 7, 7)
    reachable = np.asarray(jax.vmap(maze.distance)(pool)) < maze.SIZE**2 - 1
    assert (reachable == np.asarray(solvable)).all()
    there_is, steps = np.asarray(jax.vmap(maze.shortest_way)(pool)).T
    assert (there_is == reachable).all()
    assert (steps[~reachable] == 0).all()
    assert steps[reachable].min() >= 1


def test_two_episodes_always_fit_into_a_window(maze):
    pool, _ = maze.make_pool(jax.random.key(1), maze.SLOTS, 0.0)  # none can be solved
    student = maze.new_student(jax.random.key(2), 1)
    window, _ = maze.play(jax.random.key(3), maze.train_env, student, pool, maze.WINDOW)
    _, evidence = levels.record(
        levels.no_running(maze.SLOTS),
        window.done,
        window.reward > 0,
        jnp.arange(maze.SLOTS),
        episodes=maze.EPISODES,
    )
    assert evidence.trials.tolist() == [2.0] * maze.SLOTS
    assert evidence.successes.sum() == 0


def test_the_facade_takes_the_calls_of_jaxueds_sampler(maze):
    """The same code runs with either; only what a score means differs."""
    pool, _ = maze.make_pool(jax.random.key(0), 32, 1.0)
    one = jax.tree.map(lambda x: x[0], pool)
    batch = jax.tree.map(lambda x: x[:8], pool)
    selector = make_strategy("auto", batch_size=8, rollouts=2, representation="dense")
    for sampler in (
        jaxued_sampler.LevelSampler(16, minimum_fill_ratio=0.5, replay_prob=1.0),
        levels.LevelSampler(selector, 16, minimum_fill_ratio=0.5, replay_prob=1.0, trials=2),
    ):

        @jax.jit
        def use(buffer, key, sampler=sampler):
            buffer, rows = sampler.insert_batch(
                buffer, batch, jnp.full(8, 0.5), {"max_return": jnp.ones(8)}
            )
            replay = sampler.sample_replay_decision(buffer, key)
            buffer, (played, chosen) = sampler.sample_replay_levels(buffer, key, 8)
            buffer = sampler.update_batch(
                buffer, played, jnp.full(8, 0.5), {"max_return": jnp.full(8, 2.0)}
            )
            return rows, replay, played, chosen, sampler.get_levels_extra(buffer, played)

        buffer = sampler.initialize(one, {"max_return": 0.0})
        rows, replay, played, chosen, extra = use(buffer, jax.random.key(1))
        assert sorted(rows.tolist()) == list(range(8))
        assert bool(replay)
        assert set(played.tolist()) <= set(range(8))
        assert (chosen.wall_map == batch.wall_map[played]).all()
        assert extra["max_return"].tolist() == [2.0] * 8


def test_mutated_levels_take_old_rows_and_start_from_their_parents(maze):
    """ACCEL's step, inside jit, with jaxued's mutator."""
    from jaxued.environments.maze import make_level_mutator_minimax

    mutate = jax.vmap(make_level_mutator_minimax(5), (0, 0, None))
    pool, _ = maze.make_pool(jax.random.key(0), 16, 0.5)
    selector = make_strategy("auto", batch_size=8, rollouts=2, representation="dense")

    @jax.jit
    def step(key, state, pool):
        state, slots = levels.sample(selector, key, state)
        evidence = (slots.level_ids, jnp.ones(8), jnp.full(8, 2.0), slots.visit)
        state, _ = selector.update(state, levels_evidence(*evidence))
        parents = slots.level_ids[:4]
        born = mutate(jax.random.split(key, 4), levels.take(pool, parents), 5)
        state, pool, rows = levels.insert(selector, state, pool, born, parents=parents)
        return state, pool, rows, born

    state, pool, rows, born = step(jax.random.key(1), selector.init(num_tasks=16), pool)
    assert len(set(rows.tolist())) == 4
    assert min(rows.tolist()) >= 0
    assert (pool.wall_map[rows] == born.wall_map).all()
    _, info = selector.advance(state)
    assert int(info.evaluated) == 0  # children were not played


def levels_evidence(ids, successes, trials, visit):
    """Evidence of one row a level."""
    from bots_jax import Evidence

    return Evidence(ids, successes, trials, visit)


def test_plr_is_jaxueds_draw_for_draw(maze):
    """The same keys give the same rows and scores, insertions and evictions included."""
    theirs = jaxued_sampler.LevelSampler(
        32, staleness_coeff=0.3, prioritization="rank", prioritization_params={"temperature": 0.3}
    )
    rule = levels.plr.make_plr(temperature=0.3, staleness=0.3)
    buffer = theirs.initialize(jnp.zeros((), jnp.int32))
    buffer = {**buffer, "size": jnp.zeros((), jnp.int32), "episode_count": jnp.zeros((), jnp.int32)}
    ours = levels.plr.empty(32)

    @jax.jit
    def step(buffer, ours, key):
        draw_key, new_key, old_key = jax.random.split(key, 3)
        new = jax.random.uniform(new_key, (16,))
        ids = jnp.arange(16, dtype=jnp.int32)
        buffer, _ = theirs.insert_batch(buffer, ids, new)
        ours, _ = levels.plr.insert_scored(rule, ours, new)
        buffer, (rows, _) = theirs.sample_replay_levels(buffer, draw_key, 16)
        ours, mine = levels.plr.draw(rule, draw_key, ours, 16)
        old = jax.random.uniform(old_key, (16,))
        buffer = theirs.update_batch(buffer, rows, old)
        return buffer, levels.plr.update(ours, mine, old), rows, mine

    for key in jax.random.split(jax.random.key(0), 12):
        buffer, ours, rows, mine = step(buffer, ours, key)
        assert rows.tolist() == mine.tolist()
        np.testing.assert_array_equal(buffer["scores"], ours.score)
        np.testing.assert_array_equal(buffer["timestamps"], ours.last)
        np.testing.assert_allclose(
            theirs.level_weights(buffer), levels.plr.weights(rule, ours), rtol=1e-4, atol=1e-6
        )
