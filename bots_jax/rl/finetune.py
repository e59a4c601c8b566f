"""The main job: finetune a small policy under several strategies and compare what it learns.

In: a `FinetuneConfig`. Out: a folder with a line a step, a summary and plots. Every
strategy of a seed starts from the same base policy and gets the same number of rollouts and
steps; random numbers are shared within a seed, so differences are paired. The order is seed
by seed, so that a comparison cut short is still a comparison.

One step, here in four timed pieces (`loop.make_step` is the same as one pure function):

    select  ->  roll out and verify  ->  update the belief  ->  policy gradient
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import checkpoint, features
from bots_jax.checks import check_choice
from bots_jax.evaluate.task_files import read_tasks
from bots_jax.evaluate.told import ending_of, resolve, rule_of, say_who_is_told
from bots_jax.pool.reference import TaskFeatures
from bots_jax.rl import worlds
from bots_jax.rl.loop import (
    ActFn,
    EvaluateFn,
    LearnFn,
    LoopConfig,
    LoopState,
    evidence_of,
    init_loop,
    make_act,
    make_evaluation,
    make_learn,
    step_keys,
    summarise,
)
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.rollouts import answer_probabilities
from bots_jax.rl.run_folder import Line, RunFolder
from bots_jax.rl.task_pool import to_pool
from bots_jax.rl.tasks import (
    ANSWER_LENGTH,
    PROMPT_LENGTH,
    TaskPool,
    Verifier,
    VerifierError,
    exact_verifier,
    generate_tasks,
    python_verifier,
)
from bots_jax.rl.warmup import WarmupConfig, cached_references, measure_references, warm_up
from bots_jax.strategies import configure
from bots_jax.types import Selector, State

VERIFIER_KINDS = ("python", "jax")
DEFAULT_STRATEGIES = (
    "uniform",
    "easy-to-hard",
    "auto+prompts",
    "bots",
    "bots-explicit",
    "bots-implicit",
)


WORLD_STRATEGIES = ("uniform", "epochs", "auto+prompts", "bots+references")
MAIN_STEPS, MAIN_SEEDS = 400, 4  # of the main job: some two and a half minutes on two idle cores


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Everything that the numbers of a comparison depend on.

    A strategy is a name of `strategies.STRATEGIES`, and what it is told of the tasks: "+references"
    (pass rates of two checkpoints), "+prompts" (features of the text), "+everything" (both) or
    "+nothing"; without such an ending the references, which are always there.

    Raises:
      ValueError: where a setting is out of range.
    """

    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    seeds: int = 3
    first_seed: int = 0
    steps: int = 60
    batch_size: int = 32  # tasks a step
    eval_every: int = 10  # steps between measurements on the held-out tasks
    eval_rollouts: int = 4  # of each held-out task; 0: its rate is computed, for exact match
    num_tasks: int = 8192
    num_held_out: int = 1024
    data_seed: int = 0
    world: str | None = None  # a name of `worlds.WORLDS` whose tasks are taken; see `of_world`
    tasks: str | None = None  # a file of the user's own tasks, instead of generated ones
    verifier: str | None = None  # "module:function" for them, instead of exact match
    verifier_kind: str = "python"  # or "jax"; see `_own`
    by_domain: bool = False  # a capability of its own for each domain or family
    reference_rollouts: int = 8  # of each task by each reference
    checkpoint_every: int = 1  # steps
    settings: Mapping[str, float | str] = dataclasses.field(
        default_factory=dict
    )  # of the selectors
    loop: LoopConfig = LoopConfig()
    warmup: WarmupConfig = WarmupConfig()

    def __post_init__(self) -> None:
        check_comparison(self)
        check_choice("verifier_kind", self.verifier_kind, VERIFIER_KINDS)
        if self.world is not None:
            worlds.find_world(self.world)
            if self.tasks is not None:
                raise ValueError(f"world={self.world!r} and tasks={self.tasks!r}: give one of them")
        if self.eval_rollouts == 0 and self.verifier is not None:
            raise ValueError(
                "eval_rollouts=0 computes the probability of the exact answer, which a verifier "
                "of your own does not go by: give eval_rollouts of at least 1"
            )
        if self.verifier is not None and self.tasks is None:
            raise ValueError(f"verifier={self.verifier!r} is for tasks of your own: give tasks too")
        room = self.warmup.policy
        if room.max_prompt < PROMPT_LENGTH or room.max_answer < ANSWER_LENGTH:
            raise ValueError(
                f"max_prompt={room.max_prompt} and max_answer={room.max_answer} must be at least "
                f"{PROMPT_LENGTH} and {ANSWER_LENGTH}, which the tasks of the warm-up need"
            )
        if self.loop.max_new_tokens > room.max_answer:
            raise ValueError(
                f"max_new_tokens={self.loop.max_new_tokens} must be at most the policy's "
                f"max_answer={room.max_answer}"
            )
        for name in self.strategies:
            ending_of(name)
            self.selector(name)

    @classmethod
    def of_world(cls, name: str, **changes: Any) -> FinetuneConfig:
        """The main job in a world, sized for a few minutes on two cores, with some changes."""
        world = worlds.find_world(name)
        steps = changes.get("steps", min(world.steps, MAIN_STEPS))
        loop = worlds.loop_config(dataclasses.replace(world, steps=steps))
        given: dict[str, Any] = {
            "world": name,
            "strategies": WORLD_STRATEGIES,
            "seeds": MAIN_SEEDS,
            "steps": steps,
            "batch_size": world.batch_size,
            "eval_every": 20,
            "eval_rollouts": 0,
            "num_tasks": world.num_tasks,
            "data_seed": world.seed,
            "checkpoint_every": 10,
            "reference_rollouts": world.reference_rollouts,
            "warmup": world.warmup,
            "loop": loop,
        }
        return cls(**{**given, **changes})

    def selector(self, name: str) -> Selector:
        """The strategy of that name under the settings that it has and does not fix."""
        group = self.loop.group_size
        return configure(rule_of(name), self.settings, batch_size=self.batch_size, rollouts=group)

    def saved(self) -> dict[str, Any]:
        """As JSON values, for the folder; with a checksum of the file of tasks."""
        return {**dataclasses.asdict(self), "tasks_sha256": _checksum(self.tasks)}


def _checksum(path: str | None) -> str | None:
    """None without a file; one that cannot be read is reported by `read_tasks`."""
    try:
        return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


class Comparison(Protocol):
    """What `compare` needs to know; `FinetuneConfig` and `llm.finetune.LlmConfig` say more."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def seeds(self) -> int:
        """How many runs of each."""

    @property
    def first_seed(self) -> int:
        """The seeds count up from here."""

    @property
    def steps(self) -> int:
        """Of each run."""

    @property
    def eval_every(self) -> int:
        """Steps between measurements on the held-out tasks."""

    @property
    def eval_rollouts(self) -> int:
        """Of each held-out task."""

    @property
    def checkpoint_every(self) -> int:
        """Steps that a kill may cost."""

    @property
    def by_domain(self) -> bool:
        """A capability of its own for each family."""

    @property
    def loop(self) -> LoopConfig:
        """The settings of a step."""

    def selector(self, name: str) -> Selector:
        """The strategy of that name."""


# What may change when a comparison is resumed: more seeds or strategies are only added.
MAY_DIFFER = ("strategies", "seeds", "checkpoint_every")


class Problem(NamedTuple):
    """What all runs share."""

    graphdef: GraphDef
    base: Params  # the policy that every run starts from
    pool: TaskPool
    verifier: Verifier
    held_out: TaskPool
    held_out_verifier: Verifier
    reference: np.ndarray  # f32[2, N], pass rates of the early and the late checkpoint
    texts: Sequence[str] | None = None  # what is asked; None: the pool's characters


class Compiled(NamedTuple):
    """The pieces of a step, compiled once for all runs."""

    selectors: Mapping[str, Selector]  # by strategy
    act: ActFn
    learn: LearnFn
    evaluate: EvaluateFn


class Watcher(Protocol):
    """Who is told how far it is."""

    def stage(self, what: str, done: int, total: int) -> None:
        """Preparation: `done` of `total` units of `what`."""

    def step(self, run: str, line: Line) -> None:
        """One step of a run is done and recorded."""

    def stopping(self) -> bool:
        """Whether to stop after the step that was just recorded."""


class StoppedError(Exception):
    """The watcher asked to stop; everything up to the last step is saved."""


def prepare(config: FinetuneConfig, cache_dir: Path | None, watcher: Watcher) -> Problem:
    """Tasks, base policy and measured references, from the cache where they are there.

    Raises:
      ValueError: where the tasks are unfit; that is found before anything is trained.
    """
    if config.world is not None:
        return _world_problem(config, cache_dir, watcher)
    pool, verifier, held_out, held_out_verifier, reference = _tasks(config)
    start = warm_up(config.warmup, cache_dir, watcher.stage)
    length = config.loop.max_new_tokens
    asked = {"rollouts": config.reference_rollouts, "max_new_tokens": length}
    if reference is None and config.verifier is None:
        reference = cached_references(
            start, config.warmup, pool, verifier, **asked, cache_dir=cache_dir,
            progress=watcher.stage,
        )  # fmt: skip
    elif reference is None:
        checkpoints = (start.early, start.late)
        key = jax.random.key(config.data_seed)
        prompts = jnp.asarray(pool.prompts)
        reference = measure_references(
            start.graphdef, checkpoints, prompts, verifier, key, **asked, progress=watcher.stage
        )
        check_measured(reference, "a reference")
    return Problem(
        start.graphdef, start.base, pool, verifier, held_out, held_out_verifier, reference
    )


def _world_problem(config: FinetuneConfig, cache_dir: Path | None, watcher: Watcher) -> Problem:
    """The world's, at the sizes of the comparison."""
    world = dataclasses.replace(
        worlds.find_world(config.world or ""),
        num_tasks=config.num_tasks,
        num_held_out=config.num_held_out,
        seed=config.data_seed,
        reference_rollouts=config.reference_rollouts,
        warmup=config.warmup,
    )
    data = worlds.make_world(world, cache_dir, watcher.stage)
    return Problem(
        data.start.graphdef, data.start.base, data.pool, _exact(data.pool),
        data.held_out, _exact(data.held_out), data.reference,
    )  # fmt: skip


def _tasks(
    config: FinetuneConfig,
) -> tuple[TaskPool, Verifier, TaskPool, Verifier, np.ndarray | None]:
    """The pool and the held-out tasks with their verifiers, and references if the file has any."""
    if config.tasks is None:
        pool, held_out = generate_tasks(config.num_tasks, config.num_held_out, config.data_seed)
        return pool, _exact(pool), held_out, _exact(held_out), None
    file = to_pool(
        read_tasks(config.tasks, needs_answers=config.verifier is None),
        config.warmup.policy.max_prompt,
        config.loop.max_new_tokens,
    )
    kept, held = _split(len(np.asarray(file.pool.prompts)), config)
    pool = TaskPool(*(np.asarray(column)[kept] for column in file.pool))
    held_out = TaskPool(*(np.asarray(column)[held] for column in file.pool))
    reference = None if file.reference is None else file.reference[:, kept]
    own = config.verifier
    make = _exact if own is None else _own(own, config.verifier_kind)
    return pool, make(pool), held_out, make(held_out), reference


def _split(size: int, config: FinetuneConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, an eighth or `num_held_out` if that is less."""
    held = min(config.num_held_out, size // 8)
    if held < 1 or size - held < config.batch_size:
        raise ValueError(
            f"tasks={config.tasks} holds {size} tasks: after holding out {held} too few are left "
            f"for batch_size={config.batch_size}; give more tasks or a smaller batch"
        )
    order = np.random.default_rng(config.data_seed).permutation(size)
    return np.sort(order[held:]), np.sort(order[:held])


def _exact(pool: TaskPool) -> Verifier:
    return exact_verifier(pool.answers)


def _own(path: str, kind: str) -> Callable[[TaskPool], Verifier]:
    """A user's `module:function`, from the working directory or from what is installed.

    Args:
      kind: "python": function(prompt, completion) -> reward, called for each completion.
        "jax": function(pool) -> verifier(task_ids i32[B], completions i32[B, G, L]) ->
        rewards f[B, G], traced into the compiled step.
    """
    function = _import(path)
    if kind == "jax":
        return function
    return lambda pool: python_verifier(function, pool.prompts)


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # where `python -m` would look, and an installed command does not
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing a module of the user's runs it
        raise ValueError(
            f"verifier={path!r} cannot be imported ({type(error).__name__}: {error}): write "
            "module:function, the module in this folder or installed"
        ) from None
    if not callable(function):
        raise ValueError(f"verifier={path!r} is {function!r}, which is no function")
    return function


def compile_pieces(config: Comparison, problem: Problem) -> Compiled:
    """The pieces of a step, each jitted."""
    prompts = jnp.asarray(problem.pool.prompts)
    act = make_act(problem.graphdef, prompts, problem.verifier, config.loop)
    learn = make_learn(problem.graphdef, config.loop, problem.base)
    evaluate = _evaluation(config, problem)
    selectors = {name: compiled(config.selector(name)) for name in config.strategies}
    return Compiled(selectors, jax.jit(act), jax.jit(learn), jax.jit(evaluate))


def _evaluation(config: Comparison, problem: Problem) -> EvaluateFn:
    """Pass rates of the held-out tasks: computed, or from rollouts."""
    prompts = jnp.asarray(problem.held_out.prompts)
    if config.eval_rollouts > 0:
        return make_evaluation(
            problem.graphdef,
            prompts,
            problem.held_out_verifier,
            rollouts=config.eval_rollouts,
            max_new_tokens=config.loop.max_new_tokens,
        )
    answers = jnp.asarray(problem.held_out.answers)

    def evaluate(params: Params, rng_key: jax.Array) -> jax.Array:
        return answer_probabilities(problem.graphdef, params, prompts, answers)

    return evaluate


_COUNTS = ("seeds", "steps", "batch_size", "eval_every", "num_tasks", "num_held_out",
           "reference_rollouts", "checkpoint_every")  # fmt: skip


def check_comparison(config: Any, *more_counts: str) -> None:
    """Refuse counts below 1, seeds beyond 32 bits, and no strategies or one twice."""
    for name in (*_COUNTS, *more_counts):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
    if config.eval_rollouts < 0:
        raise ValueError(f"eval_rollouts={config.eval_rollouts} must not be negative")
    last = config.first_seed + config.seeds - 1
    if config.first_seed < 0 or last >= 2**32:
        raise ValueError(
            f"first_seed={config.first_seed} must not be negative, and the last seed is {last}: "
            "seeds are kept in 32 bits"
        )
    if not config.strategies or len(set(config.strategies)) < len(config.strategies):
        raise ValueError(f"strategies={config.strategies} must name at least one, each once")


def steps_done(config: Comparison, folder: RunFolder) -> int:
    """Steps of all runs that the folder holds already."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    runs = [f"{name}-{seed}" for seed in seeds for name in config.strategies]
    return sum(max(len(folder.lines(run)) - 1, 0) for run in runs)


def compare(
    config: Comparison, problem: Problem, folder: RunFolder, watcher: Watcher
) -> list[dict[str, Any]]:
    """Train every strategy under every seed, going on where the folder stops.

    Returns:
      A record a run, as `report.summarise` takes them.

    Raises:
      StoppedError: when the watcher asked to stop.
      CheckpointError: if a checkpoint cannot be written or belongs to other settings.
    """
    pieces = compile_pieces(config, problem)
    starts = {
        name: start(config, problem, pieces.selectors[name], name) for name in config.strategies
    }
    runs = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for name in config.strategies:
            state = init_loop(problem.base, starts[name], config.loop, seed)
            lines = train(config, pieces, folder, name, state, watcher)
            runs.append(as_record(name, seed, lines))
    return runs


def start(
    config: Comparison, problem: Problem, selector: Selector, name: str, told: str | None = None
) -> State:
    """A strategy's state before the first step: made for all before any is trained.

    Args:
      told: one of `told.TOLD`; None: what its name says, or else what the problem has.
    """
    domains = problem.pool.family if config.by_domain else None
    try:
        told = told or _told(problem, selector, name)
        known: Any = problem.reference if told in ("references", "everything") else None
        if told in ("prompts", "everything"):
            known = TaskFeatures(known, _prompt_features(problem))
            return selector.init(known, domains=domains)
        tasks = len(np.asarray(problem.pool.prompts))
        return selector.init(known, num_tasks=tasks, domains=domains)
    except ValueError as error:
        raise ValueError(f"strategy {name}: {error}; or leave the strategy out") from None


def _told(problem: Problem, selector: Selector, name: str) -> str:
    references = bool(np.isfinite(np.asarray(problem.reference)).any())
    return resolve(ending_of(name), selector, references=references, prompts=True)


def told_by_default(config: Comparison, problem: Problem) -> str:
    """A line of who is told the prompts without its name saying so; empty where nobody is."""
    names = [
        name
        for name in config.strategies
        if ending_of(name) is None and _told(problem, config.selector(name), name) == "prompts"
    ]
    return say_who_is_told(names, len(_prompt_features(problem))) if names else ""


def _prompt_features(problem: Problem) -> np.ndarray:
    """f32[F, N] of what is asked."""
    if problem.texts is None:
        return worlds.prompt_features(problem.pool)
    return np.asarray(features.text(problem.texts), np.float32).T


def train(
    config: Comparison,
    pieces: Compiled,
    folder: RunFolder,
    name: str,
    state: LoopState,
    watcher: Watcher,
) -> list[Line]:
    """One run, from its last checkpoint to its last step; a line a step, step 0 first.

    Args:
      state: before the first step; its seed is that of the run.
    """
    run = f"{name}-{int(state.seed)}"
    lines = folder.lines(run)
    if len(lines) == config.steps + 1:
        return lines
    selector = pieces.selectors[name]
    state, lines = _resume(folder, run, selector, state)
    if not lines:
        lines = [{"step": 0, "heldout": held_out(pieces, state), "tokens": 0, "seconds": 0.0}]
        folder.append(run, lines[0])
    while len(lines) <= config.steps:
        state, line = _timed_step(selector, pieces, state)
        line |= {key: lines[-1][key] + line[key] for key in ("tokens", "seconds")}
        if line["step"] % config.eval_every == 0 or line["step"] == config.steps:
            line["heldout"] = held_out(pieces, state)
        folder.append(run, line)
        lines.append(line)
        stopping = watcher.stopping()
        if stopping or line["step"] % config.checkpoint_every == 0 or len(lines) > config.steps:
            _save(folder, run, selector, state)
        watcher.step(run, line)
        if stopping:
            raise StoppedError
    return lines


_step_keys = jax.jit(step_keys)


def compiled(selector: Selector) -> Selector:
    """The selector without the checks of the host boundary: verifiers keep to [0, 1]."""
    return dataclasses.replace(
        selector, recipe=None, select=jax.jit(selector.select), update=jax.jit(selector.update)
    )


def held_out(pieces: Compiled, state: LoopState) -> float:
    """Held-out pass rate; the key depends on seed and step alone, so it is paired too."""
    never_a_step = jnp.uint32(2**32 - 1)
    key = jax.random.fold_in(jax.random.key(state.seed), never_a_step)
    rates = np.asarray(pieces.evaluate(state.train.params, jax.random.fold_in(key, state.step)))
    check_measured(rates, "a held-out task")
    return float(np.mean(rates, dtype=np.float64))


def check_measured(rates: np.ndarray, what: str) -> None:
    """Refuse pass rates that no verifier of rewards in [0, 1] can have led to."""
    bad = rates[~((rates >= 0) & (rates <= 1))]
    if bad.size:
        raise VerifierError(
            f"the verifier gave {what} a mean reward of {bad[0]}: rewards must be numbers in [0, 1]"
        )


def _timed_step(selector: Selector, pieces: Compiled, state: LoopState) -> tuple[LoopState, Line]:
    """One step, and its line with `tokens` and `seconds` of this step alone."""
    select_key, rollout_key = _step_keys(state.seed, state.step)
    begin = time.perf_counter()
    chooser, selection = jax.block_until_ready(selector.select(select_key, state.selector))
    chosen = time.perf_counter()
    seen = jax.block_until_ready(pieces.act(state.train.params, selection, rollout_key))
    acted = time.perf_counter()
    evidence = evidence_of(selection, seen)
    chooser, info = jax.block_until_ready(selector.update(chooser, evidence))
    updated = time.perf_counter()
    trained, gradient = jax.block_until_ready(pieces.learn(state.train, selection, seen))
    metrics = jax.device_get(summarise(selection, seen, gradient, info))
    end = time.perf_counter()
    if not np.any(metrics.task_ids >= 0):
        raise ValueError(
            f"step {int(state.step)}: no task is eligible, so nothing can be trained on: "
            "add tasks or lower the batch size"
        )
    if metrics.unsound:
        ids = metrics.task_ids[~np.asarray(seen.sound) & (metrics.task_ids >= 0)]
        raise VerifierError(
            f"step {int(state.step) + 1}: the verifier gave rewards that are no numbers in "
            f"[0, 1] for the tasks {ids.tolist()[:8]}, as numbered from 0 in the pool"
        )
    state = LoopState(trained, chooser, state.seed, state.step + 1)
    return state, {
        "step": int(state.step),
        "etr": float(metrics.effective_task_ratio),
        "mean_reward": float(metrics.mean_reward),
        "loss": float(metrics.gradient.loss),
        "grad_norm": float(metrics.gradient.grad_norm),
        "capability": np.asarray(metrics.info.capability).tolist(),
        "implicit_error": float(metrics.info.implicit_error),
        "tokens": int(metrics.generated_tokens),
        "seconds": end - begin,
        "select_ms": 1e3 * ((chosen - begin) + (updated - acted)),
        "step_ms": 1e3 * (end - begin),
        "task_ids": metrics.task_ids.tolist(),
        "successes": metrics.successes.tolist(),
    }


def _save(folder: RunFolder, run: str, selector: Selector, state: LoopState) -> None:
    step = int(state.step)
    checkpoint.save(folder.checkpoints(run), step, selector, state.selector, trainer=state.train)


def _resume(
    folder: RunFolder, run: str, selector: Selector, start: LoopState
) -> tuple[LoopState, list[Line]]:
    """The state of the last good checkpoint and the lines up to it, or the start and none."""
    directory = folder.checkpoints(run)
    steps = checkpoint.found(directory)
    if not steps:
        return start, folder.keep(run, 1)
    recorded = len(folder.lines(run))
    # Lines are written before their checkpoint, so there are fewer only where some were lost.
    asked = None if recorded > steps[-1] else max((s for s in steps if s < recorded), default=-1)
    if asked == -1:
        raise ValueError(
            f"{folder.path}: run {run} has checkpoints of the steps {steps} but only "
            f"{recorded} whole lines: delete {directory} to train it anew"
        )
    found = checkpoint.restore(directory, selector, start.selector, trainer=start.train, step=asked)
    lines = folder.keep(run, found.step + 1)
    step = jnp.asarray(found.step, jnp.int32)
    return LoopState(found.trainer, found.state, start.seed, step), lines


def as_record(name: str, seed: int, lines: list[Line]) -> dict[str, Any]:
    """The lines of a run as one record of arrays, for `report`."""
    steps, measured = lines[1:], [line for line in lines if "heldout" in line]
    keys = ("step", "etr", "tokens", "seconds", "select_ms", "step_ms", "task_ids")
    return {
        "strategy": name,
        "seed": seed,
        **{key: [line[key] for line in steps] for key in keys if steps and key in steps[0]},
        "heldout_step": [line["step"] for line in measured],
        "heldout": [line["heldout"] for line in measured],
    }


def spread(rates: np.ndarray) -> tuple[float, float]:
    """Shares never and always solved of the tasks whose rate is known; NaN if none is."""
    known = rates[~np.isnan(rates)]
    if not known.size:
        return math.nan, math.nan
    return float(np.mean(known == 0)), float(np.mean(known == 1))


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM calls `stop`; a second one interrupts at once."""
    import signal

    def handle(number: int, frame: Any) -> None:
        stop()
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else _raise)

    def _raise(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def total_steps(config: Comparison) -> int:
    """Steps of the whole comparison, for a progress bar."""
    return math.prod((config.seeds, len(config.strategies), config.steps))
