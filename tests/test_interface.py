"""What a user handles: factories, selectors as values, evidence of rewards, errors that help."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bots_jax
from bots_jax import Evidence, Selection, auto, bots, summary
from bots_jax.strategies import SETTINGS, STRATEGIES, make_strategy, open_settings
from bots_jax.strategies.oracle import oracle
from bots_jax.strategies.oversampling import dots, dynamic_sampling, learnability

REFERENCE = np.sort(np.random.default_rng(0).random((2, 60)), axis=0).astype(np.float32)


FUNCTIONS = ("init", "select", "observe", "advance", "update", "abandon", "predict")


@pytest.mark.parametrize("name", ["auto", "bots", "uniform"])
def test_help_of_a_selectors_functions_says_what_they_do(name: str) -> None:
    selector = make_strategy(name, batch_size=4)
    for function in FUNCTIONS:
        assert len(inspect.getdoc(getattr(selector, function)) or "") > 40, function
    assert "features:" in (inspect.getdoc(selector.init) or "")
    with pytest.raises(TypeError, match=r"^Selector\.init\(\) got an unexpected keyword"):
        selector.init(num_tasks=9, expiry=3)


@pytest.mark.parametrize("representation", ["dense", "grouped"])
def test_a_batch_in_place_of_its_ids_is_refused_with_the_way_out(representation: str) -> None:
    selector = auto(batch_size=4, representation=representation)
    state = selector.init(REFERENCE.round(1))
    state, batch = selector.select(jax.random.key(0), state)
    for function in (selector.abandon, selector.predict):
        with pytest.raises(ValueError, match=r"task_ids is a Selection.*: give its task_ids"):
            function(state, batch)


def test_ids_in_place_of_a_mask_and_names_in_place_of_ids() -> None:
    selector = auto(batch_size=4)
    state = selector.init(num_tasks=60)
    with pytest.raises(ValueError, match=r"expected bool\[60\].*numpy.isin\(numpy.arange\(60\)"):
        selector.select(jax.random.key(0), state, eligible=np.arange(5))
    with pytest.raises(ValueError, match=r"expected numbers, rows of the pool; adapters.TaskSamp"):
        selector.observe(state, Evidence(["a", "b"], [1.0, 0.0], 8))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_selector_equals_an_identical_build(name: str) -> None:
    one, same = make_strategy(name, batch_size=4), make_strategy(name, batch_size=4)
    assert one == same
    assert hash(one) == hash(same)
    assert one != make_strategy(name, batch_size=5)
    assert pickle.loads(pickle.dumps(one)) == one


def test_equal_numbers_of_other_types_are_other_builds_only_where_it_matters() -> None:
    assert bots(rollouts=8) == bots(rollouts=8)
    assert bots(forgetting=0.1) != bots(forgetting=0.2)
    assert bots() != auto()


def test_a_selector_is_a_static_argument(compilations: list[str]) -> None:
    @partial(jax.jit, static_argnums=0)
    def choose(selector: bots_jax.Selector, state: bots_jax.State, key: jax.Array) -> jax.Array:
        return selector.select(key, state)[1].task_ids

    state = auto(batch_size=4).init(REFERENCE)
    first = choose(auto(batch_size=4), state, jax.random.key(0))
    before = len(compilations)
    np.testing.assert_array_equal(first, choose(auto(batch_size=4), state, jax.random.key(0)))
    assert len(compilations) == before


# Every argument of the two factories at two values that must lead to other beliefs or selections.
OTHER: dict[Any, dict[str, Any]] = {
    bots: {
        "batch_size": 6,
        "rollouts": 2,
        "target": 0.9,
        "forgetting": 0.9,
        "implicit_weight": 0.9,
        "capability_momentum": 0.0,
        "adaptive_implicit_weight": True,
        "temperature": 1.0,
        "prior": (9.0, 1.0),
        "estimator": "logit",
        "choice": "mean",
        "exploration": 0.5,
        "quotas": (4, 0),
        "expiry": 1,
        "keep_open": True,
        "dtype": "float64",
    },
    auto: {
        "batch_size": 6,
        "rollouts": 2,
        "breadth": 5.0,
        "group": 2,
        "forgetting": 0.9,
        "implicit_weight": 0.01,
        "temperature": 1.0,
        "estimator": "logit",
        "choice": "mean",
        "worth": "pass_gain",
        "floor": 1.0,
        "spread": 0.0,
        "exploration": 0.5,
        "quotas": (4, 0),
        "expiry": 1,
        "keep_open": True,
        "dtype": "float64",
    },
}
CASES = [(factory, name) for factory, values in OTHER.items() for name in values]


def trail(factory: Any, **arguments: Any) -> Iterator[np.ndarray]:
    """Selections and beliefs of some steps, evidence of the first batch held back.

    One after another, so that nothing is compiled or run after the first that differs.
    """
    selector = factory(**{"batch_size": 4, "rollouts": 8, **arguments})
    # Wrong by more than .25, so that implicit evidence may be trusted less.
    rates = 1 - REFERENCE.mean(axis=0)
    state = selector.init(REFERENCE, domains=np.arange(60) % 2)
    for step in range(24):
        state, batch = selector.select(jax.random.key(step), state)
        yield np.asarray(batch.task_ids)
        yield np.asarray(state.pool.in_flight)
        if step:
            draw = np.random.default_rng(step).random((len(batch.task_ids), 8))
            rewards = draw < rates[np.asarray(batch.task_ids)][:, None]
            came = 4 if step == 5 else 8  # of the 8 rollouts, once a half
            state, _ = selector.update(state, batch.evidence(rewards[:, :came]))
        yield np.asarray(selector.predict(state).mean)


@cache
def plain_trail(factory: Any) -> list[np.ndarray]:
    return list(trail(factory))


@pytest.mark.parametrize(("factory", "name"), CASES)
def test_every_argument_does_something(factory: Any, name: str) -> None:
    plain = plain_trail(factory)
    with jax.enable_x64(name == "dtype"):
        other = trail(factory, **{name: OTHER[factory][name]})
        same = all(
            a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(plain, other, strict=True)
        )
    assert not same, f"{factory.__name__}({name}=...) changes nothing"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: auto(target=0.3), "target=0.3 has no effect"),
        (lambda: auto(choice="mean", breadth=0.1), "breadth=0.1 has no effect"),
        (lambda: auto(choice="mean", group=8), "group=8 has no effect"),
        (lambda: auto(group=1), "group=1.0 must be at least 2"),
        (lambda: make_strategy("mapp", rollouts=1), "rollouts=1 is no group: give group"),
        (lambda: make_strategy("insight", rollouts=1), "rollouts=1 is no group: give horizon"),
        (lambda: auto(choice="mean", worth="variance"), "worth=variance has no effect"),
        (lambda: bots(estimator="glm", capability_momentum=0.5), "capability_momentum=0.5 smooths"),
        (lambda: bots(estimator="none", implicit_weight=0.5), "estimator='none' infers nothing"),
        (lambda: bots(features_dtype="int8"), "features_dtype='int8' has no effect"),
    ],
)
def test_arguments_without_a_use_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- the size of a visit, and that of a group -----------------------------------------------


def _scores_of(name: str, reference: np.ndarray, **arguments: Any) -> np.ndarray:
    """Which of 60 tasks come first, in a batch of 15; every second one is worth choosing."""
    selector = {"oracle": oracle}.get(name, partial(make_strategy, name))(
        batch_size=15, **arguments
    )
    state = selector.init(reference)
    told = Evidence(np.arange(60), 400 * reference[0], 400.0)
    state, _ = selector.update(state, told)
    return np.sort(np.asarray(selector.select(jax.random.key(0), state)[1].task_ids))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("auto", {"breadth": 0.0}),
        ("auto", {"breadth": 0.0, "representation": "grouped"}),
        ("balanced", {"breadth": 0.0}),
        ("oracle", {"choice": "mixed"}),
    ],
)
def test_a_visit_of_one_rollout_does_not_blind_the_choice(
    name: str, arguments: dict[str, Any]
) -> None:
    reference = np.where(np.arange(60) % 2, 0.5, 0.02).astype(np.float32)[None]
    chosen = [_scores_of(name, reference, rollouts=m, **arguments) for m in (1, 2)]
    assert np.all(chosen[0] % 2 == 1)
    if name != "auto":  # whose visits of other sizes leave other histories
        np.testing.assert_array_equal(*chosen)


def test_the_group_follows_the_visit_where_nothing_is_said() -> None:
    def first(**arguments: Any) -> np.ndarray:
        selector = auto(batch_size=15, **arguments)
        return np.asarray(selector.select(jax.random.key(0), selector.init(REFERENCE))[1].task_ids)

    np.testing.assert_array_equal(first(rollouts=8), first(rollouts=1, group=8))
    np.testing.assert_array_equal(first(rollouts=1), first(rollouts=8, group=2))
    assert not np.array_equal(first(rollouts=8), first(rollouts=8, group=64))


# --- sizes, which are fixed when a program is compiled ------------------------------------------


@pytest.mark.parametrize("factory", [bots, auto, STRATEGIES["uniform"]])
def test_sizes_that_are_traced_are_told(factory: Any) -> None:
    selector = factory(batch_size=2)
    known = REFERENCE[:, :9]
    grown = selector.init(known, capacity=12)
    made = {
        "num_tasks": lambda n: selector.init(num_tasks=n),
        "capacity": lambda n: selector.init(known, capacity=n),
        "batch_size": lambda n: factory(batch_size=n),
        "num_domains": lambda n: factory(num_domains=n),
        "expiry": lambda n: factory(expiry=n),
    }
    for name, make in made.items():
        with pytest.raises(ValueError, match=f"{name} is traced, and sizes are fixed"):
            jax.jit(lambda n, make=make: (make(n), 0)[1])(12)
    with pytest.raises(ValueError, match="num_tasks is traced, and sizes are fixed"):
        jax.jit(lambda n: bots_jax.add_tasks(grown, num_tasks=n)[0])(2)
    with pytest.raises(ValueError, match=r"num_tasks=9.5 must be an integer"):
        selector.init(num_tasks=9.5)
    assert selector.init(num_tasks=jnp.int32(9)).pool.active.shape == (9,)


# --- what the command line says ------------------------------------------------------------------


def test_defaults_are_those_that_were_published() -> None:
    """A default that changes is news to users: write it here and in CHANGELOG.md."""
    oversampling = {f.__name__: f for f in (dots, dynamic_sampling, learnability)}
    published = json.loads((Path(__file__).parent / "golden" / "defaults.json").read_text())
    now = {
        name: {
            key: repr(argument.default)
            for key, argument in inspect.signature(factory).parameters.items()
            if argument.default is not inspect.Parameter.empty
        }
        for name, factory in {**STRATEGIES, **oversampling}.items()
    }
    assert now == published


def test_help_tells_the_defaults_in_force() -> None:
    """Of every strategy that has the setting and does not fix it."""
    for name, text in SETTINGS.items():
        common, *rest = text[text.rindex("[") + 1 : -1].split("; ")
        others = dict(entry.rsplit(" ", 1) for entry in rest[0].split(", ")) if rest else {}
        for label, factory in STRATEGIES.items():
            if name not in open_settings(factory):
                continue
            told = others.get(label, others.get(label.rsplit("-", 1)[0], common))
            arguments = inspect.signature(factory).parameters
            if arguments[name].default is not None:
                assert told == f"{arguments[name].default:g}", (label, name)
            elif told == "learned":
                described = factory().static
                learns = {"forgetting": "learn_speed", "implicit_weight": "learn_trust"}
                assert described[learns[name]]
            else:
                state = factory(batch_size=2).init(REFERENCE)
                in_force = float(getattr(state.settings, name))
                assert told == f"{in_force:g}", (label, name)


@pytest.mark.parametrize("name", ["check", "check.json", "runs/check", "runs/check.json"])
def test_results_have_the_name_that_was_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import common

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    common.save(name, [])
    folder = "runs" if "/" in name else "results"
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert written == tmp_path / folder / "check.json"


@pytest.mark.parametrize(
    "module", ["", ".strategies", ".draws", ".levels", ".implicit", ".features", ".adapters"]
)
def test_public_names_exist(module: str) -> None:
    found = importlib.import_module(f"bots_jax{module}")
    assert all(hasattr(found, name) for name in found.__all__)


def test_rooms_are_there_after_a_plain_import_and_cost_it_nothing() -> None:
    """As the README names them: `bots_jax.features.text(prompts)` after `import bots_jax`."""
    code = """
import sys, bots_jax
rooms = ("adapters", "checkpoint", "draws", "features", "levels", "simulator", "strategies")
assert not {f"bots_jax.{room}" for room in rooms} & set(sys.modules)
assert set(rooms) <= set(dir(bots_jax))
assert bots_jax.features.text(["a b", "c"]).shape[0] == 2
assert bots_jax.adapters.TaskSampler and bots_jax.checkpoint.save
for room in rooms:
    assert getattr(bots_jax, room).__name__ == f"bots_jax.{room}"
assert not hasattr(bots_jax, "feature") and not hasattr(bots_jax.adapters, "torch")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["grain", "pytorch", "trinity", "tunix"])
def test_an_adapter_is_there_once_it_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bots_jax import adapters

    named: list[str] = []
    monkeypatch.setattr(adapters, "import_module", named.append)  # frameworks are not installed
    getattr(adapters, "__getattr__")(name)  # noqa: B009, for types do not know it
    assert named == [f"bots_jax.adapters.{name}"]


# --- what is forgotten within one pass ------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    tasks=st.sampled_from([4, 160, 3999]),
    batch=st.integers(1, 4),
    forgetting=st.sampled_from([0.0, 0.001, 0.003, 0.03, 0.1, 1.0]),
    how=st.sampled_from(["factory", "init", "grouped"]),
)
def test_bots_warns_once_where_a_pass_is_far_above_its_memory(
    tasks: int, batch: int, forgetting: float, how: str
) -> None:
    numbers = {"settings": {"forgetting": forgetting}} if how == "init" else {}
    build: dict[str, Any] = {} if how == "init" else {"forgetting": forgetting}
    given: dict[str, Any] = {"num_tasks": tasks}
    if how == "grouped":
        build["representation"] = "grouped"
        given = {"reference": np.full((2, tasks), 0.5, np.float32)}
    selector = bots(batch_size=batch, **build)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selector.init(**given, **numbers)
    told = [str(warning.message) for warning in caught]
    if tasks / batch * forgetting < 4 * (1 - 1e-5):
        assert not told
    elif tasks / batch * forgetting > 4 * (1 + 1e-5):
        assert len(told) == 1
        assert f"{tasks} / {batch} = {tasks / batch:.0f} steps" in told[0]
        assert f"forgetting={batch / tasks:.1g} or less" in told[0]


# --- evidence of a batch ----------------------------------------------------------------------


def batch_of(count: int, valid: int) -> Selection:
    is_valid = np.arange(count) < valid
    ids = np.where(is_valid, np.arange(count) + 10, -1)
    return Selection(
        jnp.asarray(ids), jnp.zeros(count), jnp.asarray(is_valid), jnp.where(is_valid, 7, -1)
    )


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(
        st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=5, max_size=5),
        min_size=4,
        max_size=4,
    ),
    valid=st.integers(0, 4),
    order=st.permutations(range(5)),
)
def test_lost_rollouts_count_for_nothing(rewards: list, valid: int, order: list[int]) -> None:
    """Whatever their place; the sums are those of what was scored."""
    given_rewards = np.array(rewards)
    told = batch_of(4, valid).evidence(given_rewards)
    scored = ~np.isnan(given_rewards)
    np.testing.assert_array_equal(told.trials, scored.sum(axis=1))
    np.testing.assert_allclose(told.successes, np.nansum(given_rewards, axis=1), atol=1e-6)
    np.testing.assert_array_equal(
        told.task_ids, np.where(np.arange(4) < valid, np.arange(4) + 10, -1)
    )
    shuffled = batch_of(4, valid).evidence(given_rewards[:, order])
    np.testing.assert_array_equal(told.trials, shuffled.trials)
    np.testing.assert_allclose(told.successes, shuffled.successes, atol=1e-6)


def test_graded_rewards_keep_their_mean() -> None:
    rewards = np.random.default_rng(1).uniform(-1, 3, size=(4, 6))
    rewards[0, 2] = np.nan
    told = batch_of(4, 4).evidence(rewards, low=-1, high=3)
    expected = (np.nanmean(rewards, axis=1) + 1) / 4
    np.testing.assert_allclose(told.successes / told.trials, expected, rtol=1e-5)
    assert np.all(np.asarray(told.trials) >= [5, 6, 6, 6])


def test_evidence_of_a_batch_keeps_what_belongs_to_its_rows() -> None:
    """Visits, tokens and attempts are handed through, each in its own place."""
    batch = batch_of(4, 3)
    told = batch.evidence(np.eye(4), tokens=np.array([5.0, 6.0, 7.0, 8.0]))
    np.testing.assert_array_equal(told.visit, batch.visit)
    np.testing.assert_array_equal(told.tokens, [5, 6, 7, 8])
    np.testing.assert_array_equal(told.task_ids, [10, 11, 12, -1])
    assert batch.evidence(np.eye(4)).tokens is None


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \(3, 2\), expected \[4, G\]"):
        batch_of(4, 4).evidence(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"is outside \[low, high\]"):
        batch_of(4, 4).evidence(np.full((4, 2), -np.inf))


# --- arguments in another order ---------------------------------------------------------------


@pytest.mark.parametrize("factory", [auto, bots, STRATEGIES["uniform"]])
def test_swapped_arguments_are_told(factory: Any) -> None:
    selector = factory(batch_size=4)
    state = selector.init(REFERENCE)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"select\(rng_key, state\)"):
        selector.select(state, key)
    evidence = Evidence(np.array([1]), np.array([1.0]), 1)
    with pytest.raises(ValueError, match=r"update\(state, evidence\)"):
        selector.update(evidence, state)


def test_a_transposed_reference_is_told() -> None:
    with pytest.raises(ValueError, match=r"look transposed; give reference\.T"):
        auto(batch_size=1).init(np.zeros((100, 2)))
    # True rates of many steps: who says how many tasks there are has the axes right.
    rates = np.full((100, 2), 0.5)
    assert auto(batch_size=1).init(rates, num_tasks=2).reference.rates.shape == (100, 2)


@pytest.mark.parametrize("method", ["update", "observe", "abandon", "predict"])
@pytest.mark.parametrize("wide", [2**32 + 5, 2**40, -(2**32) + 5])
def test_wide_ids_are_looked_at_before_they_are_narrowed(method: str, wide: int) -> None:
    selector = auto(batch_size=4)
    state = selector.init(REFERENCE)
    ids = np.array([wide])
    given_ids = Evidence(ids, [1.0], 1) if method in ("update", "observe") else ids
    with pytest.raises(ValueError, match=str(wide)):
        getattr(selector, method)(state, given_ids)


def test_summary_fits_a_screen() -> None:
    selector = auto(batch_size=4)
    text = summary(selector.init(REFERENCE))
    assert len(text.splitlines()) <= 16
    assert text.startswith("60 tasks, dense, step 0")


@pytest.mark.parametrize("module", ["auto_selector", "bots_selector", "summary"])
def test_examples_of_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"bots_jax.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        partial(bots, estimator="none"),
        partial(auto, estimator="none"),
        partial(make_strategy, "uniform"),
        partial(make_strategy, "kgps"),
        auto,
        bots,
    ],
)
def test_capability_has_an_entry_a_domain_and_the_dtype_of_the_state(make: Any, wide: bool) -> None:
    with jax.enable_x64(wide):
        selector = make(batch_size=2, dtype="float32")
        reference = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12)
        state = selector.init(reference, domains=np.arange(12) % 3)
        _, info = selector.update(state, Evidence([4, 7], [1.0, 2.0], 2.0))
        assert info.capability.shape == (3,)
        assert info.capability.dtype == jnp.float32
