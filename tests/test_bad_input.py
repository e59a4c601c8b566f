"""Static mistakes and bad values: a ValueError that names the argument and its value."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from bots_jax import Evidence, Settings, add_tasks, bots, retire
from bots_jax.compose import Choice, compose
from bots_jax.strategies import make_strategy
from bots_jax.strategies.counting import counting_settings
from bots_jax.strategies.discounted import discounted_beta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0 must be an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2.5 must be an integer"),
        ({"forgetting": 1.5}, r"forgetting=1.5 must lie in \[0, 1\]"),
        ({"forgetting": float("nan")}, r"forgetting=nan must lie in"),
        ({"implicit_weight": -0.1}, r"implicit_weight=-0.1 must lie in \[0, 1\]"),
        ({"capability_momentum": 1.0}, r"capability_momentum=1.0 must lie in \[0, 1\)"),
        ({"target": 0.0}, r"target=0.0 must lie in \(0, 1\)"),
        ({"temperature": -1.0}, r"temperature=-1.0 must lie in"),
        ({"rollouts": 0}, r"rollouts=0.0 must lie in"),
        ({"prior": (0.0, 1.0)}, r"prior_successes=0.0 must lie in"),
        ({"forgetting": np.array([0.1, 0.2])}, r"forgetting has shape \(2,\), expected a scalar"),
        ({"estimator": "spline"}, r"estimator='spline' is not known: choose one of linear, "),
        ({"choice": "greedy"}, r"choice='greedy' is not known"),
        ({"exploration": 2.0}, r"exploration=2.0 must lie in \[0, 1\]"),
        ({"quotas": (3, 4), "batch_size": 8}, r"quotas=\(3, 4\) sum to 7, not to batch_size=8"),
        ({"expiry": 0}, r"expiry=0 must be an integer of at least 1"),
        ({"dtype": "float16"}, r"dtype=float16 must be float32 or float64"),
        ({"dtype": "float64"}, r"dtype=float64 needs jax.config"),
        ({"estimator": "none", "implicit_weight": 0.1}, r"implicit_weight=0.1 and adaptive_.*=Fa"),
        ({"estimator": "none", "adaptive_implicit_weight": True}, r"=None and adaptive_.*=True ha"),
    ],
)
def test_factory(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bots(**arguments)


def test_domains_beyond_those_of_the_factory() -> None:
    selector = bots(batch_size=4, num_domains=3)
    selector.init(num_tasks=40, domains=np.arange(40) % 3)
    with pytest.raises(ValueError, match=r"domains must lie in \[0, 3\), got 0 to 3: raise num_d"):
        selector.init(num_tasks=40, domains=np.arange(40) % 4)


def test_unknown_factory_argument() -> None:
    with pytest.raises(TypeError, match=r"bots: got .* 'lamda'; it takes, by name, batch_size, "):
        bots(lamda=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="bots: too many positional arguments; it takes, by name"):
        bots(32, 8)  # type: ignore[misc]


RATES = np.full((2, 40), 0.5, np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "reference, features and num_tasks are None"),
        ({"reference": RATES[0]}, r"reference has shape \(40,\), expected \[K, N\]"),
        ({"reference": RATES + 1}, r"reference\[0, 0\]=1.5 is not a pass rate"),
        ({"reference": RATES[:1]}, r"reference has 1 row\(s\), estimator='linear' needs 2"),
        ({"reference": RATES, "num_tasks": 41}, r"num_tasks=41, but reference has 40 columns"),
        ({"num_tasks": 31}, r"batch_size=32 exceeds the pool of 31 tasks"),
        ({"num_tasks": 0}, r"num_tasks=0 must be an integer of at least 1"),
        ({"num_tasks": 40, "capacity": 39}, r"capacity=39 is below the 40 tasks"),
        ({"num_tasks": 40, "reference_trials": [8, 8]}, "reference_trials was given without"),
        ({"reference": RATES, "reference_trials": [8]}, r"reference_trials has shape \(1,\)"),
        ({"num_tasks": 40, "domains": [0, 1]}, r"domains has shape \(2,\)"),
        ({"num_tasks": 40, "domains": np.full(40, -1)}, r"domains must lie in \[0, 0\)"),
        ({"num_tasks": 40, "settings": {"lambda": 0.1}}, "settings has unknown 'lambda'"),
        ({"num_tasks": 40, "settings": Settings(target=1.0)}, r"target=1.0 must lie in"),
        ({"num_tasks": 40, "settings": 0.1}, r"settings=0.1 must be a bots_jax.Settings"),
    ],
)
def test_init(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bots(batch_size=32).init(**arguments)


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (Evidence([[0]], [[1.0]], 8), r"evidence.task_ids has shape \(1, 1\)"),
        (Evidence([0.5], [1.0], 8), r"evidence.task_ids has dtype float"),
        (Evidence([0, 1], [1.0], 8), r"evidence.successes has shape \(1,\), expected \(2,\)"),
        (Evidence([0, 1], [1.0, 1.0], [8, 8, 8]), r"evidence.trials has shape \(3,\)"),
        (Evidence([0], [np.inf], 8), r"evidence.successes\[0\]=inf is not finite"),
        (Evidence([0], [1.0], [-8.0]), r"evidence.trials\[0\]=-8.0 must be finite and not neg"),
        (Evidence([0], [-1.0], 8), r"evidence.successes\[0\]=-1.0 is negative"),
        (Evidence([0, 1, 2], [9.0, 9, 1], 8), r"exceeds the trials of its row \(and 1 more"),
        (Evidence([-2], [1.0], 8), r"evidence.task_ids\[0\]=-2 is no task"),
    ],
)
def test_evidence(evidence: Evidence, message: str) -> None:
    selector = bots(batch_size=4, rollouts=8)
    state = selector.init(RATES)
    with pytest.raises(ValueError, match=message):
        selector.update(state, evidence)
    state, info = selector.update(state, Evidence([0], [1.0], 8))  # and it goes on
    assert int(info.evaluated) == 1


def test_select_and_ids() -> None:
    selector = bots(batch_size=4)
    state = selector.init(RATES)
    with pytest.raises(ValueError, match=r"rng_key=0 is not a random key"):
        selector.select(0, state)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eligible has shape \(39,\)"):
        selector.select(jax.random.key(0), state, np.ones(39, bool))
    with pytest.raises(ValueError, match=r"task_ids contains 40, this pool has rows 0 to 39"):
        selector.predict(state, np.array([40]))
    with pytest.raises(ValueError, match=r"task_ids has dtype float"):
        selector.abandon(state, np.array([1.0]))
    with pytest.raises(ValueError, match=r"task_ids contains -3"):
        retire(state, [-3])


def test_growth() -> None:
    state = bots(batch_size=4).init(RATES, capacity=41)
    with pytest.raises(ValueError, match="2 tasks do not fit into 1 free rows"):
        add_tasks(state, np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"reference has shape \(1, 1\), expected \[2, A\]"):
        add_tasks(state, np.full((1, 1), 0.5))
    with pytest.raises(ValueError, match="but the pool has no domains"):
        add_tasks(state, num_tasks=1, domains=[0])


def test_quotas_without_domains() -> None:
    with pytest.raises(ValueError, match=r"quotas=\(2, 2\) name 2 domains, the pool has 1"):
        bots(batch_size=4, quotas=(2, 2)).init(RATES)


def test_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="strategy='unifrom' is not known: choose one of bots"):
        make_strategy("unifrom")


def test_scores_of_another_shape_than_the_pool() -> None:
    """Of a user's own choice; a scalar or a transposed score would be broadcast."""
    for wrong in ((), (1, 40)):
        choice = Choice(lambda key, model, state, shape=wrong: (np.zeros(shape), np.zeros(40)))
        selector = compose(
            name="mine",
            model=discounted_beta(),
            choice=choice,
            settings=counting_settings(4, keep=0.9),
            batch_size=2,
        )
        with pytest.raises(ValueError, match=r"scores of shape \(.*\), expected \(40,\): one for"):
            selector.select(jax.random.key(0), selector.init(num_tasks=40))


def test_easy_to_hard_needs_references() -> None:
    with pytest.raises(ValueError, match="easy-to-hard orders tasks by reference"):
        make_strategy("easy-to-hard", batch_size=4).init(num_tasks=9)


def test_import_brings_no_framework() -> None:
    code = (
        "import sys, bots_jax;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'flax', 'optax', 'orbax', 'chex', 'torch', 'matplotlib', 'rich'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
