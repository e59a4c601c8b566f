"""The simulator: worlds as told, paired noise, learning that depends on what is selected."""

from __future__ import annotations

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Settings, bots, simulator
from bots_jax.evaluate import metrics
from bots_jax.simulator import (
    Config,
    World,
    calibrated,
    learning,
    make_references,
    new_policy,
    run_simulation,
)
from bots_jax.simulator import calibrate as fitting
from bots_jax.simulator import world as worlds
from bots_jax.simulator.world import Tasks, binomial
from bots_jax.strategies import make_strategy
from tests.conftest import shared_file

stats = pytest.importorskip("scipy.stats")

SMALL = {"num_tasks": 60, "rollouts": 4, "sample": 50}
# Jitted, as a run has them: operation by operation dozens of small programs would be compiled.
learn, success_rate = jax.jit(simulator.learn), jax.jit(simulator.success_rate)
used_up, describe_tasks = jax.jit(learning.used_up), jax.jit(worlds.describe_tasks)


@cache  # a selector is compiled once
def selector_of(name: str):
    return make_strategy(name, batch_size=6, rollouts=4)


def small(name: str = "bots", seeds: range = range(2), steps: int = 15, **given):
    return run_simulation(selector_of(name), seeds=seeds, steps=steps, **{**SMALL, **given})


def still(**changes) -> Config:
    """A policy that learns nothing and does not drift."""
    config = calibrated()
    fixed = {"speed": config.speed * 0, "own_gain": 0.0, "drift": 0.0, "skill_noise": 0.0}
    return config._replace(**{**fixed, **changes})


# --- the run --------------------------------------------------------------------------


def test_a_seed_decides_everything():
    one = small()
    chex.assert_trees_all_equal(one, small(), strict=True)
    assert not np.array_equal(one.task_ids[0], one.task_ids[1])


def test_seeds_in_one_vmap_equal_seeds_in_turn():
    together, alone = small(), small(seeds_at_once=1)
    np.testing.assert_array_equal(together.task_ids, alone.task_ids)
    np.testing.assert_array_equal(together.successes, alone.successes)
    for name in ("pool_rate", "heldout_rate", "skills", "belief_rmse", "breadth"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-5)


def test_sweeps_over_configs_and_settings_equal_single_runs():
    configs = [calibrated(), still()]
    swept = small(config=configs, settings=Settings(forgetting=[0.0, 0.3]))
    assert swept.task_ids.shape == (2, 2, 2, 15, 6)
    for i, config in enumerate(configs):
        for j, forgetting in enumerate((0.0, 0.3)):
            single = small(config=config, settings=Settings(forgetting=forgetting))
            np.testing.assert_array_equal(swept.task_ids[i, j], single.task_ids)
            np.testing.assert_allclose(swept.heldout_rate[i, j], single.heldout_rate, atol=1e-5)


@pytest.mark.parametrize("name", ["uniform", "bots-mean"])
def test_feedback_is_paired_across_strategies(name):
    """With rates that stay, task k at step t of a seed comes to the same for every strategy."""
    seen: dict[tuple[int, int, int], float] = {}
    met = 0
    for strategy in ("bots", name):
        run = small(strategy, config=still())
        for seed, step in np.ndindex(run.task_ids.shape[:2]):
            ids, solved = run.task_ids[seed, step], run.successes[seed, step]
            for task, s in zip(ids.tolist(), solved.tolist(), strict=True):
                met += (seed, step, task) in seen
                assert seen.setdefault((seed, step, task), s) == s
    assert met > 10


def test_what_is_told_agrees_with_the_metrics():
    run = small()
    np.testing.assert_allclose(
        run.etr, metrics.effective_task_ratio(run.successes, run.trials), atol=1e-6
    )
    for seed in range(2):
        for step in (0, 7, 14):
            counts = metrics.visit_counts(run.task_ids[seed, : step + 1], 60)
            assert run.breadth[seed, step] == pytest.approx(metrics.breadth(counts), rel=1e-4)


def test_too_few_tasks_are_padding():
    """A pool of 60 whose visits never close runs dry; nothing is learned from the padding."""
    selector = make_strategy("uniform", batch_size=40, rollouts=8)  # visits stay open at m = 4
    run = run_simulation(selector, seeds=range(1), steps=3, **SMALL)
    valid = run.task_ids >= 0
    assert np.all(run.trials[~valid] == 0)
    assert np.all(run.trials[valid] == 4)


def test_one_compilation_whatever_the_numbers(compilations):
    selector = bots(batch_size=6, rollouts=4)

    def run(config: Config, seeds: range, forgetting: float) -> None:
        settings = Settings(forgetting=forgetting)
        run_simulation(selector, config, seeds, 9, settings=settings, **SMALL)

    other = still(ceiling=2.0)  # its arithmetic is compiled too, where no test before needed it
    run(calibrated(), range(2), 0.1)
    assert compilations  # the listener hears
    compilations.clear()
    run(other, range(5, 7), 0.3)
    assert not compilations


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"rollouts": 0}, "rollouts=0"),
        ({"seeds": range(0)}, "seeds is empty"),
        ({"attempts": (8, 500)}, r"attempts=\(8, 500\)"),
        ({"config": []}, "config is an empty sequence"),
        ({"config": calibrated()._replace(speed=0.1)}, "config.speed has shape"),
        ({"config": calibrated()._replace(drift=[1.0])}, "config.drift has shape"),
        ({"settings": Settings(target=[0.4, 0.5], forgetting=[0.1])}, "differ in length"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        small(**given)


# --- limit cases ----------------------------------------------------------------------


def test_without_learning_rates_stay():
    run = small(config=still())
    np.testing.assert_allclose(np.ptp(run.pool_rate, axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.ptp(run.heldout_rate, axis=1), 0, atol=1e-6)
    assert np.all(run.skills == 0)


def test_without_spread_all_tasks_are_alike():
    config = still(
        difficulty=0.4, difficulty_above=0.0, difficulty_below=0.0, unsolvable=0.0, slip=0.1
    )
    world = World(jax.random.key(3), config)
    zero = jnp.zeros(())
    rates = success_rate(world, jnp.arange(50), jnp.zeros(8), jnp.zeros(50), zero)
    np.testing.assert_allclose(rates, 0.9 / (1 + np.exp(0.4)), rtol=1e-5)


def test_tasks_that_are_never_mixed_teach_nothing():
    run = small(config=calibrated()._replace(unsolvable=1.0, skill_noise=0.0))
    assert np.all(run.skills == 0)
    assert np.all(run.successes == 0)


# --- learning -------------------------------------------------------------------------


def trained(ids, successes, loadings, policy=None, config=None):
    """One step of training on groups of 8."""
    config = calibrated()._replace(skill_noise=0.0, skill_forgetting=0.0, **(config or {}))
    world = World(jax.random.key(0), config)
    policy = new_policy(config, 100) if policy is None else policy
    ids = jnp.asarray(ids, jnp.int32)
    tasks = describe_tasks(world, ids)._replace(loadings=jnp.asarray(loadings, jnp.float32))
    solved, trials = jnp.asarray(successes, jnp.float32), jnp.full(len(ids), 8.0)
    return learn(jax.random.key(1), world, policy, tasks, ids, solved, trials)


def test_a_skill_grows_with_the_signal_of_the_tasks_that_load_on_it():
    """Worked: 2 tasks, signals 1 and 2 sqrt(7) / 8; v (D / B) sum w h, D = 8, B = 2."""
    loadings = np.eye(8)[[2, 5]]
    policy, speed = trained([3, 4], [4, 1], loadings), np.asarray(calibrated().speed)
    expected = np.zeros(8)
    expected[[2, 5]] = speed[[2, 5]] * 4 * np.array([1, 2 * np.sqrt(7) / 8])
    np.testing.assert_allclose(policy.skills, expected, rtol=1e-5)


@pytest.mark.parametrize("successes", [0, 8])
def test_a_group_that_is_not_mixed_teaches_nothing(successes):
    policy = trained([3, 4], [successes] * 2, np.eye(8)[[2, 5]])
    assert np.all(np.asarray(policy.skills) == 0)
    assert np.all(np.asarray(policy.used) == 0)
    assert np.asarray(policy.visits)[[3, 4]].tolist() == [1, 1]


def test_growth_ends_at_the_ceiling():
    config = calibrated()
    policy = new_policy(config, 100)._replace(skills=jnp.full(8, 1.0) * config.ceiling)
    grown = trained([3, 4], [4, 4], np.eye(8)[[2, 5]], policy)
    np.testing.assert_array_equal(grown.skills, policy.skills)


def test_repeats_teach_less_than_breadth():
    """Ten times the same two tasks, or twenty tasks once, all groups at half."""
    loadings = np.eye(8)[[0, 1]]
    same = broad = None
    for turn in range(10):
        same = trained([0, 1], [4, 4], loadings, same)
        broad = trained([2 * turn, 2 * turn + 1], [4, 4], loadings, broad)
    assert same.skills[0] < 0.8 * broad.skills[0]


def test_a_used_up_task_recovers():
    config = calibrated()
    policy = trained([7], [4], np.eye(8)[[0]])
    later = policy._replace(step=policy.step + 9)
    ids = jnp.array([7, 8, 200])  # 200 is beyond the pool of 100
    kept = float(config.absorption) * np.exp(-10 / float(config.recovery))
    np.testing.assert_allclose(used_up(later, config, ids), [kept, 0, 0], rtol=1e-4)


@pytest.mark.long
def test_greed_learns_less_than_breadth_as_calibrated():
    """Greedy means get more mixed groups from fewer tasks, and a worse policy.

    Paired by seed over 12 seeds. One-sided t of at least 3.1 each: were there no
    difference, one of the three would pass with probability 0.005.
    """
    runs = {
        name: run_simulation(
            make_strategy(name, batch_size=32, rollouts=8),
            seeds=range(12),
            steps=300,
            num_tasks=455,
            sample=2048,
        )
        for name in ("uniform", "bots-mean")
    }
    narrow, broad = runs["bots-mean"], runs["uniform"]
    assert_above(narrow.etr.mean(axis=1), broad.etr.mean(axis=1))
    assert_above(broad.breadth[:, -1], narrow.breadth[:, -1])
    assert_above(broad.heldout_rate[:, -1], narrow.heldout_rate[:, -1])


def assert_above(high, low):
    difference = np.asarray(high, float) - np.asarray(low, float)
    assert difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference))) > 3.1


# --- worlds ---------------------------------------------------------------------------


def many_tasks(config: Config, count: int = 20_000) -> Tasks:
    return describe_tasks(World(jax.random.key(11), config), jnp.arange(count))


def test_properties_of_a_task_do_not_depend_on_who_else_is_asked_for():
    world = World(jax.random.key(11), calibrated())
    some = describe_tasks(world, jnp.array([5, 9]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[jnp.array([5, 9])], rtol=1e-5),
        some,
        describe_tasks(world, jnp.arange(20)),
    )


def test_difficulties_and_loadings_are_distributed_as_told():
    """Kolmogorov-Smirnov at 20,000 tasks: fails by chance once in 10,000 each."""
    config = still(unsolvable=0.0, difficulty_above=1.5, difficulty_below=3.0, difficulty=0.3)
    tasks = many_tasks(config._replace(focus=1.0))
    distance = np.asarray(tasks.difficulty, float) - 0.3
    scaled = np.where(distance > 0, distance / 1.5, distance / 3.0)
    assert stats.kstest(scaled, "norm").pvalue > 1e-4
    # Exponentials over their sum: each share is Beta(1, D - 1).
    assert stats.kstest(np.asarray(tasks.loadings[:, 3], float), "beta", (1, 7)).pvalue > 1e-4
    beyond = many_tasks(still(unsolvable=0.25)).difficulty > 50
    assert stats.binomtest(int(beyond.sum()), 20_000, 0.25).pvalue > 1e-4


def test_drift_is_normal_with_exponential_correlation():
    """As above; the correlation within 5 standard errors, of 1 / sqrt(20,000) each."""
    config = still(drift=0.7, drift_time=100.0, difficulty=0.0, slip=0.0, unsolvable=0.0)
    config = config._replace(difficulty_above=0.0, difficulty_below=0.0)
    world, ids = World(jax.random.key(5), config), jnp.arange(20_000)

    def drift(step: float) -> np.ndarray:
        rates = success_rate(world, ids, jnp.zeros(8), jnp.zeros(20_000), jnp.float32(step))
        return np.log(np.asarray(rates, float) / (1 - np.asarray(rates, float)))

    early, late = drift(50.0), drift(120.0)
    assert stats.kstest(early / 0.7, "norm").pvalue > 1e-4
    assert stats.kstest(late / 0.7, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(early, late)[0, 1] - np.exp(-0.7)) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("trials", [1, 8, 128, 200])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.3, 0.5, 0.97, 1.0])
def test_counts_by_inversion_are_binomial(trials, rate):
    uniforms = jnp.asarray((np.arange(100_000) + 0.5) / 100_000, jnp.float32)
    counts = np.asarray(binomial(uniforms, jnp.full(100_000, jnp.float32(rate)), trials))
    shares = np.bincount(counts.astype(int), minlength=trials + 1) / 100_000
    expected = stats.binom.pmf(np.arange(trials + 1), trials, rate)
    np.testing.assert_allclose(np.cumsum(shares), np.cumsum(expected), atol=1e-4)


def test_references_measure_the_untrained_and_the_strong_policy():
    """Means of 9,000 tasks within 5 standard errors; more than one chunk of tasks."""
    world = World(jax.random.key(2), calibrated())
    rates, domain = make_references(world, 9000, (8, 128))
    assert rates.shape == (2, 9000)
    assert domain.shape == (9000,)
    assert set(np.unique(np.asarray(domain))) == set(range(8))
    ids = jnp.arange(9000)
    true = success_rate(world, ids, jnp.zeros(8), jnp.zeros(9000), jnp.zeros(()))
    p = np.asarray(true, float)
    error = np.sqrt(np.sum(p * (1 - p)) / 8) / 9000
    assert abs(float(rates[0].mean()) - p.mean()) < 5 * error
    assert np.corrcoef(rates[1], p)[0, 1] > 0.6


# --- calibration ----------------------------------------------------------------------


def test_visits_are_put_in_the_order_of_each_task():
    ids = np.array([[0, 2], [2, 1], [-1, 2]])
    visits = fitting.simulated_visits(ids, [[1, 2], [3, 4], [9, 5]], np.zeros(3), 8)
    assert visits.successes.tolist() == [[1, 0, 0], [4, 0, 0], [2, 3, 5]]
    assert visits.step.tolist() == [[1, 0, 0], [2, 0, 0], [1, 2, 3]]


def test_passes_visit_every_task_once_and_drop_the_rest():
    selector = fitting.shuffled_passes(20, 6)
    run = run_simulation(selector, seeds=range(2), steps=9, num_tasks=20, rollouts=4, sample=5)
    for seed in range(2):
        passes = run.task_ids[seed].reshape(3, 18)
        assert all(len(set(ids.tolist())) == 18 for ids in passes)
        assert not np.array_equal(passes[0], passes[1])


def test_the_search_comes_nearer():
    """The recording is a simulated run; two rounds of the search must not end further off."""
    sizes = {"num_tasks": 200, "batch_size": 64, "steps": 500}
    hidden = fitting.config_of(
        {name: s.middle * (1.0 if name != "difficulty" else 2.0)
         for name, s in fitting.FITTED.items()}
    )  # fmt: skip
    recording = fitting.simulate_visits([hidden], range(1), **sizes)[0][0]
    assert fitting.distance(fitting.summarise(recording), fitting.summarise(recording)) == 0
    given = {"candidates": 6, "best": 2, "seeds": range(1), **sizes}
    _, before = fitting.calibrate(recording, rounds=0, **given)
    _, after = fitting.calibrate(recording, rounds=2, **given)
    assert after < before


def test_simulated_visits_look_like_the_recorded_ones():
    """The full figures are in benchmarks/results/simulator_check.json; here, not far off."""
    recorded = fitting.summarise(fitting.read_visits(shared_file("data", "rlvr_trace_dev.npz")))
    simulated = fitting.summarise(fitting.simulate_visits([calibrated()], range(2001, 2002))[0][0])
    apart = np.abs(np.cumsum(simulated.levels, axis=-1) - np.cumsum(recorded.levels, axis=-1))
    assert apart.max() < 0.1
    np.testing.assert_allclose(simulated.correlations, recorded.correlations, atol=0.05)
