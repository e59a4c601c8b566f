"""One model predicted from others, online, on a recorded matrix of tasks x models.

In: an .npz with `scores` f[N, M] in [0, 1] (or `success` i[N, M]) of M models on N tasks,
and `n`, attempts behind each entry, a number or [M]. A seed stands for a triple of models

    weak < target < strong     ordered by their mean scores over the tasks,

drawn without replacement from all triples in an order that is fixed (`triple_seed`). The
selector is given the other models' scores as references, and at each of 16 steps learns the
target's score on 32 tasks: s = n x score successes of n trials, a fraction where scores are
continuous. No task is asked twice, as a recorded answer would only repeat itself. Which
tasks is up to the selector (`batches="own"`), or the same random ones for all.

Out: how well its belief then predicts the target's scores on the tasks that were not
evaluated. With batches of its own each strategy leaves other tasks over, some easier to
predict than others; `held_out` sets aside a share of tasks that nobody may evaluate, and
scores all strategies on those alone.

How many tasks are left over decides how much a belief that goes by a task's own evidence
can show, so this environment judges implicit evidence and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bots_jax.bench.environment import (
    Environment,
    Measured,
    Series,
    Strategy,
    only_free,
    reads_truth,
)
from bots_jax.bench.measures import SHARED_SECONDS
from bots_jax.checks import check_choice, check_count
from bots_jax.evaluate import meter
from bots_jax.evaluate.task_files import read_npz
from bots_jax.evaluate.told import read_features, resolve
from bots_jax.pool.features import MOST_KINDS
from bots_jax.types import (
    Array,
    Evidence,
    PredictFn,
    SelectFn,
    Selector,
    State,
    UpdateFn,
)

_LOG = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]
HEADLINE = ("pearson", "auc_unsolved", "log_loss")
SERIES = ("pearson", "spearman", "auc_unsolved", "log_loss")


_GROUPS: tuple[str, ...] = ("dataset", "category")


class Matrix(NamedTuple):
    """Scores of M models on N tasks, weakest model first."""

    scores: Floats  # [N, M] in [0, 1]
    trials: Floats  # [M], attempts behind each score
    models: tuple[str, ...]  # M
    groups: Mapping[str, npt.NDArray[np.int32]]  # i32[N] by name: dataset, category
    features: Any = None  # as `selector.init` takes them; None: there are none


class Question(NamedTuple):
    """What a selector is asked: one triple, or S of them stacked."""

    reference: Any  # f[K, N], NaN = unknown
    target: Any  # f[N]
    trials: Any  # f, attempts behind each entry of target
    held_out: Any  # bool[N]
    random_ids: Any  # i32[T, B], what is evaluated where batches are random


def predict_environment(
    *,
    path: str,
    batches: str = "own",
    references: str = "two",
    missing: float = 0.0,
    shuffled: bool = False,
    groups: str = "none",
    triples: int = 120,
    triple_seed: int = 0,
    steps: int = 16,
    batch_size: int = 32,
    held_out: float = 0.0,
    name: str | None = None,
) -> Environment:
    """Predict a model from others.

    Args:
      path: of the .npz file.
      batches: "own", chosen by the selector, or "random", the same for all strategies.
      references: "two" (weak and strong of the triple), "all" (every other model, weak
        to strong) or "none": then what the file holds of each task, `prompts`, `features`,
        `dataset` and `category`, is told to strategies that can use it.
      missing: share of the references' entries made unknown, at random.
      shuffled: permute each reference over the tasks, so that it tells nothing.
      groups: "dataset" or "category" are given to the selector as domains; "none".
      triples: how many, at most; seeds 0, ..., triples - 1.
      triple_seed: of the draw of triples.
      steps, batch_size: T and B.
      held_out: share of tasks that may not be evaluated and alone are scored; 0: score
        the tasks that were not evaluated.
      name: for the tables; None for one made of the file's name and the mode.

    Raises:
      ValueError: naming the file or the argument, and its value.
    """
    check_choice("batches", batches, ("own", "random"))
    check_choice("references", references, ("two", "all", "none"))
    if not 0 <= missing < 1 or not 0 <= held_out < 1:
        raise ValueError(f"missing={missing} and held_out={held_out} must lie in [0, 1)")
    matrix = load_matrix(path)
    _check_left(steps, batch_size, len(matrix.scores), held_out, path)
    if groups != "none":
        check_choice("groups", groups, ("none", *matrix.groups))
    drawn = draw_triples(len(matrix.models), check_count("triples", triples), triple_seed)
    rollouts = int(matrix.trials.max())
    domains = None if groups == "none" else matrix.groups[groups]
    ask = partial(
        _question, matrix, references=references, missing=missing, shuffled=shuffled,
        held_out=held_out, steps=steps, batch_size=batch_size,
    )  # fmt: skip

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        selector = only_free(strategy, strategy.make(batch_size=batch_size, rollouts=rollouts))
        if reads_truth(selector):
            raise ValueError(f"strategy {strategy.name} is given the truth: nothing to predict")
        begin = time.perf_counter()
        questions = [ask(drawn[seed], seed) for seed in seeds]
        known = {"own": batches == "own", "features": _told(strategy, selector, matrix, references)}
        readings = ask_all(selector, questions, seeds, domains, **known)
        seconds = (time.perf_counter() - begin) / len(seeds)
        return [_measure(meter.of_seed(readings, i), seconds) for i in range(len(seeds))]

    about = {
        "matrix": Path(path).name, "digest": _digest(path), "batches": batches,
        "references": references, "missing": float(missing), "shuffled": shuffled, "groups": groups,
        "triple_seed": triple_seed, "triples": len(drawn), "steps": steps,
        "batch_size": batch_size, "held_out": float(held_out), "rollouts": rollouts,
    }  # fmt: skip
    title = name or _name(path, batches, references, missing, shuffled, groups, held_out)
    tells = ("nothing", "prompts") if references == "none" else ()
    return Environment(
        title, run, about, seeds=len(drawn), chunk=60, curve="pearson", headline=HEADLINE,
        tells=tells,
    )  # fmt: skip


def _check_left(steps: int, batch_size: int, size: int, held_out: float, path: str) -> None:
    asked = check_count("steps", steps) * check_count("batch_size", batch_size)
    if asked >= size - round(held_out * size):
        raise ValueError(
            f"steps={steps} x batch_size={batch_size} leave none of the {size} tasks of {path} "
            "to be scored: ask for fewer"
        )


def _told(strategy: Strategy, selector: Selector, matrix: Matrix, references: str) -> Any:
    """The features that a strategy gets; None for none."""
    there = {"references": references != "none", "prompts": matrix.features is not None}
    if resolve(strategy.told, selector, **there) != "prompts":
        return None
    if strategy.told is None:
        _LOG.info("%s is told what the file holds of tasks; told=nothing: not", strategy.name)
    return matrix.features


def _name(
    path: str,
    batches: str,
    references: str,
    missing: float,
    shuffled: bool,
    groups: str,
    held_out: float,
) -> str:
    parts = [f"{batches} batches"]
    parts += [f"{references} references"] if references != "two" else []
    parts += [f"{missing:.0%} missing"] if missing else []
    parts += ["shuffled"] if shuffled else []
    parts += [f"groups: {groups}"] if groups != "none" else []
    parts += [f"scored on {held_out:.0%} held out"] if held_out else []
    return f"{Path(path).stem}, {', '.join(parts)}"


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


# --- the matrix -------------------------------------------------------------------------


def load_matrix(path: str | Path) -> Matrix:
    """Read scores of models on tasks.

    Raises:
      ValueError: naming the file and the array that is missing, misshapen or out of range.
    """
    arrays = read_npz(path)
    key = next((key for key in ("scores", "success") if key in arrays), None)
    if key is None:
        raise ValueError(f"{path}: has neither scores nor success among {', '.join(arrays)}")
    raw = np.asarray(arrays[key], np.float64)
    if raw.ndim != 2 or raw.shape[1] < 3 or not len(raw):
        raise ValueError(f"{path}: {key} must be [tasks, 3 or more models], not {raw.shape}")
    n = np.asarray(arrays.get("n", 1), np.float64)
    if n.shape not in ((), (raw.shape[1],)) or not np.all(n >= 1):
        raise ValueError(f"{path}: n must be >= 1, a number or one a model, not {n.tolist()}")
    trials = np.broadcast_to(n, raw.shape[1:])
    scores = raw if key == "scores" else raw / trials
    if not np.all((scores >= 0) & (scores <= 1)):
        bad = np.argwhere(~((scores >= 0) & (scores <= 1)))[0]
        raise ValueError(
            f"{path}: {key} of task {bad[0]}, model {bad[1]} is {raw[tuple(bad)]}: scores must "
            "lie in [0, 1], successes in [0, n], and none may be missing"
        )
    order = np.argsort(scores.mean(axis=0), kind="stable")
    names = arrays.get("models", np.arange(raw.shape[1]))
    if names.shape != raw.shape[1:]:
        raise ValueError(
            f"{path}: models has shape {list(names.shape)}, expected [{raw.shape[1]}]: a name for "
            f"each column of {key}"
        )
    groups: dict[str, npt.NDArray[np.int32]] = {
        key: np.unique(arrays[key], return_inverse=True)[1].astype(np.int32)
        for key in _GROUPS
        if key in arrays and np.shape(arrays[key]) == (len(raw),)
    }
    return Matrix(
        scores[:, order].astype(np.float32),
        trials[order].astype(np.float32),
        tuple(str(names[i]) for i in order),
        groups,
        _features(str(path), arrays, len(raw), groups),
    )


def _features(name: str, arrays: Any, size: int, groups: Mapping[str, Any]) -> Any:
    """Prompts and features of the file, and its groups as kinds, as far as there are few."""
    given = read_features(name, arrays, size)
    few = [kind for kind in groups.values() if int(kind.max()) < MOST_KINDS]
    return (*(given or ()), *few) or None


def draw_triples(models: int, count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """At most `count` triples (weak, target, strong) of models 0, ..., M - 1, at random."""
    every = list(itertools.combinations(range(models), 3))
    order = np.random.default_rng(seed).permutation(len(every))
    return [every[i] for i in order[:count]]


def _question(
    matrix: Matrix,
    triple: tuple[int, int, int],
    seed: int,
    *,
    references: str,
    missing: float,
    shuffled: bool,
    held_out: float,
    steps: int,
    batch_size: int,
) -> Question:
    """One triple; everything random here is a function of the seed."""
    weak, target, strong = triple
    size, models = matrix.scores.shape
    rows = {
        "two": [weak, strong], "all": [i for i in range(models) if i != target], "none": [],
    }[references]  # fmt: skip
    rng = np.random.default_rng([0xBE7C, seed])
    order = rng.permutation(size)
    held = round(held_out * size)
    reference = matrix.scores[:, rows].T.copy()
    if shuffled:
        reference = rng.permuted(reference, axis=1)
    reference[rng.random(reference.shape) < missing] = np.nan
    aside = np.zeros(size, bool)
    aside[order[:held]] = True
    ids = order[held : held + steps * batch_size].reshape(steps, batch_size)
    return Question(
        reference, matrix.scores[:, target], matrix.trials[target], aside, ids.astype(np.int32)
    )


# --- asking -----------------------------------------------------------------------------


class _Rule(NamedTuple):
    """The functions of a selector: they can be hashed, so that one is compiled once."""

    select: SelectFn
    update: UpdateFn
    predict: PredictFn


def ask_all(
    selector: Selector,
    questions: Sequence[Question],
    seeds: Sequence[int],
    domains: npt.NDArray[np.int32] | None = None,
    *,
    own: bool = True,
    features: Any = None,
) -> meter.Meter:
    """Run a selector on S questions at once.

    Args:
      selector: its `init` must work under vmap, as that of every composed selector does.
      questions, seeds: S each; the selector's randomness is keyed by the seed.
      domains: i32[N] for `selector.init`.
      own: whether the selector chooses what is evaluated.
      features: for `selector.init`.

    Returns:
      Meters [S, T], after each step, over the tasks not evaluated by then.
    """
    stacked = Question(*(jnp.asarray(np.stack(column)) for column in zip(*questions, strict=True)))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    size = stacked.target.shape[1]

    def init(reference: Array) -> State:
        given = reference if reference.shape[0] else None
        known = {} if features is None else {"features": features}
        return selector.init(given, num_tasks=size, domains=domains, **known)

    states = jax.vmap(init)(stacked.reference)
    rule = _Rule(selector.select, selector.update, selector.predict)
    return jax.tree.map(np.asarray, _answers(states, keys, stacked, rule, own))


@partial(jax.jit, static_argnames=("rule", "own"))
def _answers(
    states: State, keys: Array, questions: Question, rule: _Rule, own: bool
) -> meter.Meter:
    return jax.vmap(partial(_answer, rule=rule, own=own))(states, keys, questions)


def _answer(state: State, key: Array, asked: Question, *, rule: _Rule, own: bool) -> meter.Meter:
    """One triple: evaluate T batches, and read the belief after each."""
    size = asked.target.shape[0]

    def step(carry: tuple[State, Array], at: tuple[Array, Array]) -> tuple[Any, meter.Meter]:
        (state, seen), (index, random_ids) = carry, at
        ids, valid, visit = random_ids, jnp.ones(random_ids.shape, bool), None
        if own:
            free = ~(seen | asked.held_out)
            state, picked = rule.select(jax.random.fold_in(key, index), state, free)
            ids, valid, visit = picked.task_ids, picked.valid, picked.visit
        score = asked.target[jnp.maximum(ids, 0)]
        trials = jnp.where(valid, asked.trials, 0)
        state, _ = rule.update(state, Evidence(ids, score * trials, trials, visit))
        seen = seen.at[jnp.where(valid, ids, size)].set(True, mode="drop")
        scored = jnp.where(jnp.any(asked.held_out), asked.held_out, ~seen)
        mean = rule.predict(state).mean[:size]
        reading = meter.read(mean, asked.target, asked.trials, scored)
        useful = meter.mean_of(score * (1 - score), trials)
        return (state, seen), reading._replace(variance=useful)

    steps = jnp.arange(asked.random_ids.shape[0])
    _, readings = jax.lax.scan(step, (state, jnp.zeros(size, bool)), (steps, asked.random_ids))
    return readings


def _measure(readings: meter.Meter, seconds: float) -> Measured:
    """One triple from its meters [T]: what was believed at the end."""
    last = meter.of_seed(readings, -1)
    values = meter.averages(last)
    values["variance"] = float(np.mean(readings.variance))
    steps = np.arange(1, len(readings.pearson) + 1).tolist()
    series = {key: Series(steps, _listed(getattr(readings, key))) for key in SERIES}
    return Measured({**values, SHARED_SECONDS: seconds}, series, meter.calibration(last))


def _listed(values: Any) -> list[float | None]:
    return [round(float(v), 5) if math.isfinite(v) else None for v in values]
