"""Selectors compared on recorded per-task success rates: no policy, no training.

In: a file that tells how often each task of a real run was solved at each step, and a
selector. Out: what the selector would have chosen and believed, had the policy moved in
just that way. The environment:

    p_k(t)     the task's true rate at step t = 1, ..., T (recorded, smoothed over steps)
    selection  the selector's, at each step, from its state
    feedback   s_k ~ Binomial(m, p_k(t)) for the selected tasks
    update     of the selector

The feedback of task k at step t under seed s is a function of (s, t, k) alone, so it is
the same whichever strategy asks for it: comparisons are paired. What a replay cannot show
is how the choice of tasks changes the policy; that takes `bots-jax finetune`.

A recording is an .npz file without pickles, in one of three forms:

    rates   success_rate f[T, N]: row t is step t + 1, taken as it is
    visits  successes, trials, step, each [N, V]: visit v of task k was made at step
            step[k, v] >= 1 (0 is padding) and solved successes of trials rollouts
    trace   seq_success, seq_step_a [N, V], seq_len [N], n, qwen7b_success [N], qwen7b_n:
            a published GRPO run; lo is a task's first visit, hi the 7B model's rate, and
            tasks without it are left out

To rates and visits may be added `reference` f[K, N] (pass rates, weak to strong, NaN
unknown), `rollouts` (m, 8 if absent) and, to visits, `steps` (T; else the last step). To all,
what is known of each task: `prompts`, N strings, of which `features.text` makes 32 numbers, and
`features` [N] or [N, F], floats for numbers (NaN unknown), integers or strings for categories. Who
can use them is told them where there are no references, or by its name (`told.py`).

Visits are smoothed over steps with a Gaussian kernel of standard deviation 20:

    p_k(t) = (sum_v w_v s_v + .05) / (sum_v w_v n_v + .1),  w_v = exp(-(t - t_v)^2 / 800)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bots_jax.evaluate import metrics, report
from bots_jax.evaluate.meter import belief_error
from bots_jax.evaluate.report import BREADTH, ETR, Column, Row
from bots_jax.evaluate.task_files import read_npz
from bots_jax.evaluate.told import (
    HELP,
    ending_of,
    read_features,
    resolve,
    rule_of,
    say_who_is_told,
)
from bots_jax.pool.features import feature_columns
from bots_jax.strategies import ORACLES, SETTINGS, STRATEGIES, configure, open_settings
from bots_jax.strategies.oversampling import (
    EXTRA,
    CollectFn,
    Oversampling,
    Rolled,
    Strategy,
    no_oversampling,
)
from bots_jax.types import AdvanceFn, Array, ArrayLike, PredictFn, Selector, State

Arrays = Mapping[str, npt.NDArray[Any]]
BANDWIDTH = 20.0  # steps, standard deviation of the smoothing kernel
MOST_STEPS = 10_000  # of a recording of visits: smoothing takes memory by the square
DEFAULT_ROLLOUTS = 8


class Recording(NamedTuple):
    """The environment: what N tasks' success rates were over T steps."""

    success_rate: npt.NDArray[np.float32]  # [T, N] in [0, 1]; row t is step t + 1
    reference: npt.NDArray[np.float32] | None  # [K, N] in [0, 1], NaN = unknown
    rollouts: int  # m of the recorded run
    name: str
    features: Any = None  # as `selector.init` takes them; None: nothing is known of the tasks


class Replay(NamedTuple):
    """What a selector did over S seeds and T steps."""

    task_ids: npt.NDArray[np.int32]  # [S, T, B]; -1 where fewer than B were eligible
    draws: npt.NDArray[np.float32]  # [S, T, B], the p^ that each was chosen by
    successes: npt.NDArray[np.float32]  # [S, T, B]
    trials: npt.NDArray[np.float32]  # [S, T, B]; 0 where the id is -1
    belief_rmse: npt.NDArray[np.float32]  # [S, T], belief mean after the step - p(t), all N
    belief_correlation: npt.NDArray[np.float32]  # [S, T], Pearson, NaN if the belief is flat
    generated: npt.NDArray[np.int32]  # [S, T], rollouts made, those not trained on too
    watched: Any = None  # what `watch` returned, stacked to [S, T, ...]


# --- running --------------------------------------------------------------------------


def run_replay(
    strategy: Strategy,
    recording: Recording,
    seeds: Sequence[int] = range(5),
    *,
    steps: int | None = None,
    rollouts: int | None = None,
    reference: ArrayLike | None = None,
    told: str | None = None,
    watch: WatchFn | None = None,
) -> Replay:
    """Run a selector against a recording, all seeds at once and all steps in one scan.

    Args:
      strategy: a selector, whose batch must fit into the pool and whose `rollouts` should be
        m, or one with extra rollouts (`oversampling`), which has a group size of its own.
      recording: the environment.
      seeds: S seeds; a seed gives the same feedback to every selector.
      steps: T' <= T, the first steps of the recording; None for all.
      rollouts: m; None for that of the recording.
      reference: f[K, N] for `selector.init`; None for that of the recording.
      told: one of `told.TOLD`, what the strategy is told of the tasks; None: references where
        there are any, else features where it can use them.
      watch: pure function of the belief before each step (f[N] means), the true rates
        of that step f[N] and what was selected (task_ids, valid), for what else is to be
        known of a run; compiled once for each function object, so give a lasting one.

    Raises:
      ValueError: naming the argument and its value.
    """
    recorded, num_tasks = recording.success_rate.shape
    steps = recorded if steps is None else steps
    rollouts = recording.rollouts if rollouts is None else rollouts
    if not 1 <= steps <= recorded:
        raise ValueError(f"steps={steps} must lie in [1, {recorded}], the steps recorded")
    if rollouts < 1:
        raise ValueError(f"rollouts={rollouts} must be at least 1")
    if not len(seeds):
        raise ValueError("seeds is empty: give at least one")
    reference = recording.reference if reference is None else reference
    extra = strategy if isinstance(strategy, Oversampling) else no_oversampling(strategy, rollouts)
    known = _known(extra.selector, recording, reference, told)
    state = extra.selector.init(num_tasks=num_tasks, **known)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    rates = jnp.asarray(recording.success_rate[:steps])
    rule = _Rule(extra.collect, extra.selector.advance, extra.selector.predict)
    return jax.tree.map(np.asarray, _episodes(state, keys, rates, rule, watch))


def _known(
    selector: Selector, recording: Recording, reference: Any, told: str | None
) -> dict[str, Any]:
    """What `selector.init` gets beside the number of tasks."""
    features, there = recording.features, recording.features is not None
    told = resolve(told, selector, references=reference is not None, prompts=there)
    if told in ("prompts", "everything") and not there:
        raise ValueError(
            f"told {told!r}, but {recording.name} has neither prompts nor features: add them to "
            "the recording, or leave it out"
        )
    known: dict[str, Any] = {}
    if told in ("references", "everything"):
        known["reference"] = reference
    if told in ("prompts", "everything"):
        known["features"] = features
    return known


WatchFn = Callable[[Array, Array, Any], Any]


class _Rule(NamedTuple):
    """The functions of a strategy: they can be hashed, so that one is compiled once."""

    collect: CollectFn
    advance: AdvanceFn
    predict: PredictFn


@partial(jax.jit, static_argnames=("rule", "watch"))
def _episodes(
    state: State, keys: Array, rates: Array, rule: _Rule, watch: WatchFn | None = None
) -> Replay:
    return jax.vmap(lambda key: _episode(state, key, rates, rule, watch))(keys)


def _episode(
    state: State, key: Array, rates: Array, rule: _Rule, watch: WatchFn | None = None
) -> Replay:
    """One seed: collect a batch (select, roll out, observe) and advance, at each rates f[T, N]."""
    select_key, feedback_key = jax.random.split(key)
    # Later calls of a step draw from a key that no step has.
    later_key = jax.random.fold_in(feedback_key, rates.shape[0])

    def step(state: State, at: tuple[Array, Array]) -> tuple[State, Any]:
        index, rate = at

        def roll(phase: int | Array, task_ids: Array, count: int) -> Rolled:
            first = isinstance(phase, int) and phase == 0
            step_key = jax.random.fold_in(feedback_key if first else later_key, index)
            roll_key = step_key if first else jax.random.fold_in(step_key, phase)
            return _feedback(roll_key, task_ids, rate, count)

        before = rule.predict(state).mean[: rate.shape[0]]
        state, made = rule.collect(jax.random.fold_in(select_key, index), state, roll)
        state, _ = rule.advance(state)
        rewards = made.rolled.rewards
        successes = jnp.where(made.valid, jnp.sum(rewards, axis=1), 0)
        trials = jnp.where(made.valid, float(rewards.shape[1]), 0.0)
        mean = rule.predict(state).mean[: rate.shape[0]]
        told = (made.task_ids, made.draws, successes, trials)
        seen = None if watch is None else watch(before, rate, made)
        return state, (*told, *belief_error(mean, rate), made.generated, seen)

    _, told = jax.lax.scan(step, state, (jnp.arange(rates.shape[0]), rates))
    return Replay(*told)


def _feedback(roll_key: Array, task_ids: Array, rate: Array, rollouts: int) -> Rolled:
    """Rewards f32[M, rollouts] of 0 or 1: a function of the key and the task alone."""

    def one(task_id: Array) -> Array:
        uniforms = jax.random.uniform(jax.random.fold_in(roll_key, task_id), (rollouts,))
        return (uniforms < rate[task_id]).astype(jnp.float32)

    rewards = jax.vmap(one)(jnp.maximum(task_ids, 0))
    return Rolled(rewards, jnp.ones_like(rewards, jnp.int32))


# --- recordings -----------------------------------------------------------------------


def smooth_visits(
    successes: npt.ArrayLike,
    trials: npt.ArrayLike,
    step: npt.ArrayLike,
    num_steps: int,
    bandwidth: float = BANDWIDTH,
) -> npt.NDArray[np.float64]:
    """True rates f64[T, N] out of the visits [N, V] of a run, as in the module docstring.

    Args:
      successes, trials: f[N, V].
      step: i[N, V], from 1; visits with step 0 are padding.
      num_steps: T.
      bandwidth: standard deviation of the kernel, in steps.
    """
    s, n = (np.asarray(array, np.float64) for array in (successes, trials))
    at = np.asarray(step, np.int64)
    rows, visits = np.nonzero(at > 0)
    last = max(num_steps, int(at.max(initial=0)))
    solved, tried = np.zeros((2, last, at.shape[0]))
    np.add.at(solved, (at[rows, visits] - 1, rows), s[rows, visits])
    np.add.at(tried, (at[rows, visits] - 1, rows), n[rows, visits])
    distance = np.arange(num_steps)[:, None] - np.arange(last)
    kernel = np.exp(-0.5 * (distance / bandwidth) ** 2)
    return (kernel @ solved + 0.05) / (kernel @ tried + 0.1)


def load_recording(path: str | Path) -> Recording:
    """Read a recording; its three forms are in the module docstring.

    Raises:
      ValueError: naming the file and the array, where the file is damaged, an array is
        missing, or one has the wrong shape or a value out of range.
    """
    arrays, name = read_npz(path), str(path)
    kept = None
    if "success_rate" in arrays:
        rates = _rates(name, arrays, "success_rate")
        reference = _given_reference(name, arrays, rates.shape[1])
    elif "seq_success" in arrays:
        rates, reference, kept = _trace(name, arrays)
    elif "successes" in arrays:
        s, n, step = _visits(name, arrays, "successes", "trials", "step")
        rates = smooth_visits(s, n, step, _num_steps(name, arrays, step))
        reference = _given_reference(name, arrays, rates.shape[1])
    else:
        matrix = {"scores", "success"} & set(arrays)
        way_out = f"bots-jax bench --environment {name} takes a matrix of tasks x models"
        raise ValueError(
            f"{name}: has no success_rate, successes or seq_success among "
            f"{', '.join(arrays) or 'no arrays'}; see bots_jax.evaluate.replay for the forms of a "
            f"recording{f' ({way_out})' if matrix else ''}"
        )
    rollouts = _whole(name, arrays, "n" if "n" in arrays else "rollouts", DEFAULT_ROLLOUTS)
    features = read_features(name, arrays, rates.shape[1] if kept is None else len(kept), kept)
    return Recording(rates.astype(np.float32), reference, rollouts, Path(path).name, features)


def _trace(
    name: str, arrays: Arrays
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The published run: tasks with a first visit and a rate of the 7B model; and which."""
    solved, at = (_array(name, arrays, key, 2) for key in ("seq_success", "seq_step_a"))
    length, strong = (_array(name, arrays, key, 1) for key in ("seq_len", "qwen7b_success"))
    if not (solved.shape == at.shape and len(length) == len(strong) == len(solved)):
        raise ValueError(f"{name}: seq_success, seq_step_a, seq_len, qwen7b_success do not match")
    rollouts = _whole(name, arrays, "n", DEFAULT_ROLLOUTS)
    visited = np.arange(solved.shape[1]) < length[:, None]
    known = (strong >= 0) & (length > 0)
    if not known.any():
        raise ValueError(f"{name}: no task has both a visit and a qwen7b_success; give some")
    checked = {
        "successes": np.where(visited, solved, 0)[known],
        "trials": np.full((int(known.sum()), solved.shape[1]), rollouts),
        "step": np.where(visited, at, 0)[known],
    }
    s, n, step = _visits(name, checked, "successes", "trials", "step")
    rates = smooth_visits(s, n, step, _num_steps(name, arrays, step))
    weak = s[:, 0] / n[:, 0]
    attempts = _whole(name, arrays, "qwen7b_n", 128)
    strong_rates = _rates(name, {"qwen7b_success / qwen7b_n": strong[known][None] / attempts})
    return rates, np.stack([weak, strong_rates[0]]).astype(np.float32), known


def _visits(name: str, arrays: Arrays, *keys: str) -> tuple[npt.NDArray[Any], ...]:
    s, n, step = (_array(name, arrays, key, 2) for key in keys)
    if not s.shape == n.shape == step.shape:
        raise ValueError(
            f"{name}: {keys[0]}, {keys[1]} and {keys[2]} must have one shape [N, V], "
            f"not {list(s.shape)}, {list(n.shape)} and {list(step.shape)}"
        )
    made = step > 0
    for bad, what in (
        (step < 0, "step must be >= 1, or 0 for padding"),
        (step != np.floor(step), "step must be whole"),
        (step > MOST_STEPS, f"step must be at most {MOST_STEPS}: number them by fewer"),
        (made & ~((s >= 0) & (s <= n) & (n > 0)), "successes must lie in [0, trials], trials > 0"),
    ):
        if bad.any():
            k, v = np.argwhere(bad)[0]
            raise ValueError(
                f"{name}: task {k}, visit {v}: {what}, but there are {s[k, v]} of {n[k, v]} "
                f"at step {step[k, v]}"
            )
    if not made.any(axis=1).all():
        raise ValueError(
            f"{name}: task {int(np.argmin(made.any(axis=1)))} has no visit; leave it out"
        )
    return s, n, step.astype(np.int64)


def _num_steps(name: str, arrays: Arrays, step: npt.NDArray[Any]) -> int:
    steps = _whole(name, arrays, "steps", int(step.max()))
    if steps > MOST_STEPS:
        raise ValueError(f"{name}: steps is {steps}, more than {MOST_STEPS}; give fewer")
    return steps


def _given_reference(name: str, arrays: Arrays, size: int) -> npt.NDArray[np.float32] | None:
    if "reference" not in arrays:
        return None
    reference = _rates(name, arrays, "reference", unknown=True)
    if reference.shape[1] != size:
        raise ValueError(
            f"{name}: reference must have shape [K, {size}], one column a task, "
            f"not {list(reference.shape)}"
        )
    return reference.astype(np.float32)


def _rates(
    name: str, arrays: Arrays, key: str = "qwen7b_success / qwen7b_n", unknown: bool = False
) -> npt.NDArray[Any]:
    rates = _array(name, arrays, key, 2)
    bad = ~((rates >= 0) & (rates <= 1)) & ~(unknown & np.isnan(rates))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{name}: {key}[{row}, {column}] is {rates[row, column]}, not a rate in [0, 1]"
            f"{' or NaN' * unknown}"
        )
    return rates


def _array(name: str, arrays: Arrays, key: str, axes: int) -> npt.NDArray[Any]:
    if key not in arrays:
        raise ValueError(f"{name}: has no array {key!r} among {', '.join(arrays)}; add it")
    array = arrays[key]
    if array.ndim != axes or not array.size or array.dtype.kind not in "iuf":
        raise ValueError(
            f"{name}: {key} must be numbers on {axes} axes, none of them empty, "
            f"not {array.dtype} of shape {list(array.shape)}"
        )
    return array.astype(np.float64)


def _whole(name: str, arrays: Arrays, key: str, otherwise: int) -> int:
    if key not in arrays:
        return otherwise
    array = np.asarray(arrays[key])
    number = array.size == 1 and array.dtype.kind in "iuf"
    if not number or not 1 <= array.item() < 2**31 or array.item() % 1:
        raise ValueError(f"{name}: {key} must be one whole number of at least 1, not {array}")
    return int(array.item())


# --- comparing ------------------------------------------------------------------------

DEFAULT_STRATEGIES = (
    "uniform,easy-to-hard,auto,bots,bots-explicit,bots-implicit,bots-no-forgetting,bots-mean,oracle"
)
COLUMNS = (
    ETR,
    Column("etr_early", f"ETR, first {metrics.EARLY_STEPS} steps", "", 3, "difference"),
    BREADTH,
    Column("belief_rmse", "Belief RMSE", "", 3, "difference"),
    Column("belief_correlation", "Belief correlation", "", 3, "difference"),
    Column("generated", "Rollouts generated", "a step", 0, "ratio"),
    Column("useful", "Rollouts in mixed groups", "share of those generated", 3, "difference"),
)


def measure(replay: Replay, num_tasks: int) -> list[dict[str, Any]]:
    """The metrics of each seed, by the keys of `COLUMNS`, and `etr_per_step`."""
    etr = metrics.effective_task_ratio(replay.successes, replay.trials)
    return [
        {
            **metrics.selection_metrics(ids, replay.successes[i], replay.trials[i], num_tasks),
            "belief_rmse": float(np.mean(replay.belief_rmse[i], dtype=np.float64)),
            "belief_correlation": metrics.known_mean(replay.belief_correlation[i]),
            "generated": float(np.mean(replay.generated[i], dtype=np.float64)),
            "useful": metrics.useful_share(
                replay.successes[i], replay.trials[i], replay.generated[i]
            ),
            "etr_per_step": etr[i].tolist(),
        }
        for i, ids in enumerate(replay.task_ids)
    ]


KNOWN: dict[str, Callable[..., Any]] = {**STRATEGIES, **EXTRA, **ORACLES}


# What the estimator's own advice comes to where there is no factory to give it to.
_ONE_REFERENCE = "here: give `reference` in the recording a second row, or leave it out"


def replay_strategy(name: str, recording: Recording, args: argparse.Namespace) -> list[dict]:
    """Run one strategy of the command line; one record a seed."""
    rollouts = recording.rollouts if args.rollouts is None else args.rollouts
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    sizes = {"batch_size": args.batch_size, "rollouts": rollouts}
    settings = _settings(args)
    strategy: Strategy = configure(rule_of(name), settings, known=KNOWN, **sizes)
    truth = recording.success_rate if rule_of(name) in ORACLES else None
    try:
        replay = run_replay(
            strategy, recording, seeds, steps=args.steps, rollouts=rollouts, reference=truth,
            told=ending_of(name),
        )  # fmt: skip
    except ValueError as error:
        given = recording.reference
        hint = "" if given is None or len(given) > 1 else f" ({_ONE_REFERENCE})"
        raise ValueError(f"strategy {name}: {error}{hint}") from None
    about = {"strategy": name, "recording": recording.name, **sizes, "settings": settings}
    measured = measure(replay, recording.success_rate.shape[1])
    return [{**about, "seed": s, **values} for s, values in zip(seeds, measured, strict=True)]


def _settings(args: argparse.Namespace) -> dict[str, float]:
    given = {name: getattr(args, name) for name in SETTINGS}
    return {name: value for name, value in given.items() if value is not None}


# --- the command ----------------------------------------------------------------------

_DESCRIPTION = """\
Compare strategies on recorded per-task success rates. At each step a strategy selects
tasks, gets Binomial(rollouts, true rate) successes for each, and updates its belief. A seed
gives the same feedback to all strategies, so their differences are paired.

FILE is an .npz without pickles, in one of three forms:
  success_rate [T, N]                  the true rate of each task at each step, or
  successes, trials, step [N, V]       the visits of each task, step 0 being padding, or
  seq_success, seq_step_a, ...         the published trace of a GRPO run,
the first two with an optional reference [K, N] (pass rates of reference models, weak to
strong, NaN unknown) and rollouts, all with optional prompts [N] (strings) and features [N, F]
(numbers, or categories). `pydoc bots_jax.evaluate.replay` has the details."""

_EPILOG = """\
Settings apply to the strategies that have them and do not fix them by their name:
--implicit-weight does not change bots-explicit (0) and bots-implicit (1).

Written to the --out folder: results.jsonl (a line a strategy and seed), summary.md,
summary.csv, and, with matplotlib, etr.png and plane.png."""


def add_replay_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command `replay` to what `ArgumentParser.add_subparsers` returned.

    Its `run` default is `replay_command`.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="compare strategies on recorded per-task success rates",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(KNOWN)
    add = parser.add_argument
    add("file", metavar="FILE", help="the recording, .npz")
    add(
        "--strategies",
        default=DEFAULT_STRATEGIES,
        metavar="NAMES",
        help=f"separated by commas, the baseline first; any of {known}, each {HELP} [%(default)s]",
    )
    add("--seeds", type=_count, default=5, help="number of seeds [%(default)s]")
    add("--first-seed", type=int, default=0, help="the first seed [%(default)s]")
    add("--steps", type=_count, help="number of recorded steps to use [all]")
    add("--batch-size", type=_count, default=32, help="tasks selected a step [%(default)s]")
    add("--rollouts", type=_count, help="rollouts of a selected task [as recorded]")
    add("--out", default="runs/replay", metavar="FOLDER", help="folder for results [%(default)s]")
    add("--json", action="store_true", help="print the summary as JSON instead of a table")
    settings = parser.add_argument_group("settings of the strategies")
    for name, text in SETTINGS.items():
        settings.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    parser.set_defaults(run=replay_command)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def replay_command(args: argparse.Namespace) -> int:
    """Run `bots-jax replay`: the exit status, 0, or 2 with one line on stderr."""
    try:
        _replay(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _say(f"bots-jax replay: {error}")
        return 2
    return 0


def _replay(args: argparse.Namespace) -> None:
    names = _names(args)
    recording = load_recording(args.file)
    folder = Path(args.out)
    report.make_folder(folder)
    steps, tasks = recording.success_rate.shape
    _say(f"{recording.name}: {tasks} tasks, {args.steps or steps} of {steps} steps")
    if line := _who_is_told(names, recording, args):
        _say(line)
    records: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        begun = time.perf_counter()
        records += replay_strategy(name, recording, args)
        seconds = time.perf_counter() - begun
        _say(f"[{i + 1}/{len(names)}] {name}: {args.seeds} seeds, {seconds:.1f} s")
    _write_results(folder, records, names, args.json)


def _who_is_told(names: list[str], recording: Recording, args: argparse.Namespace) -> str:
    if recording.features is None or recording.reference is not None:
        return ""
    made = {
        name: configure(name, _settings(args), known=KNOWN, batch_size=args.batch_size)
        for name in names
        if ending_of(name) is None and name not in ORACLES
    }
    there = {"references": False, "prompts": True}
    told = [
        name
        for name, found in made.items()
        if resolve(None, getattr(found, "selector", found), **there) == "prompts"
    ]
    return say_who_is_told(told, len(feature_columns(recording.features)))


def _names(args: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in args.strategies.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--strategies {args.strategies!r} must name at least one, each once")
    for name in names:
        ending_of(name)
        configure(rule_of(name), _settings(args), known=KNOWN, batch_size=args.batch_size)
    for setting in _settings(args):
        if not any(setting in open_settings(KNOWN[rule_of(name)]) for name in names):
            raise ValueError(
                f"--{setting.replace('_', '-')} changes none of the strategies "
                f"{', '.join(names)}: leave it out or add one that has it, such as bots"
            )
    return names


def _write_results(
    folder: Path, records: list[dict[str, Any]], names: list[str], as_json: bool
) -> None:
    baseline = names[0]
    values: dict[str, dict[int, Any]] = {name: {} for name in names}
    for record in records:
        values[record["strategy"]][record["seed"]] = record
    rows = report.tabulate(values, COLUMNS, baseline)
    lines = [json.dumps(_plain(record), allow_nan=False) + "\n" for record in records]
    report.write_text(folder / "results.jsonl", "".join(lines))
    report.write_csv(folder / "summary.csv", rows, COLUMNS)
    text = f"{report.markdown_table(rows, COLUMNS)}\n{report.caption(baseline, COLUMNS)}\n"
    report.write_text(folder / "summary.md", text)
    try:
        _plot(folder, values, rows)
    except ModuleNotFoundError as error:
        _say(f"no plots: {error}")
    if as_json:
        sys.stdout.write(json.dumps(_summary(rows, baseline), allow_nan=False) + "\n")
    else:
        report.print_table(rows, COLUMNS)
        _say(report.terminal_caption(baseline))
    _say(f"results are in {folder}")


def _plot(folder: Path, values: Mapping[str, Mapping[int, Any]], rows: list[Row]) -> None:
    etr = {
        name: np.array([record["etr_per_step"] for record in seeds.values()])
        for name, seeds in values.items()
    }
    curves, window = report.etr_curves(etr)
    label = f"Effective task ratio (mean over {window} steps)"
    title = f"Mixed outcomes{report.BANDS}"
    report.plot_curves(folder / "etr.png", curves, "Step", label, title)
    report.plot_plane(folder / "plane.png", rows, title="Useful tasks and their variety")


def _summary(rows: list[Row], baseline: str) -> dict[str, Any]:
    strategies = {
        row.strategy: {
            key: {
                "value": cell.value._asdict(),
                "against": None if cell.against is None else cell.against._asdict(),
            }
            for key, cell in row.cells.items()
        }
        for row in rows
    }
    return _plain({"baseline": baseline, "strategies": strategies})


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN: null."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
