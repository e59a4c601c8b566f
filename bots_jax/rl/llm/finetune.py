"""A language model finetuned under several strategies: the comparison of `rl.finetune`.

In: an `LlmConfig`. Out: a `Problem` for `rl.finetune.compare`, which does the rest: paired
seeds, equal rollouts, a line a step, checkpoints, resuming.

Tasks are those of reasoning-gym in the model's chat (`gym`), or short lines with solved ones
before them (`lines`), whose held-out pass rates are computed instead of sampled.

References. BOTS infers pass rates from those of a weak and a strong model. Given no file of
them, they are *unknown* and evidence is explicit alone; or, with `reference_steps`, the model
itself is the weak one, and the strong one is what so many steps of training on uniformly
chosen tasks make of it, which is then thrown away, as the late checkpoint of `rl.warmup` is.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import check_choice
from bots_jax.evaluate.report import write_bytes
from bots_jax.evaluate.told import ending_of, rule_of
from bots_jax.rl.finetune import Problem, Watcher, check_comparison
from bots_jax.rl.llm.gym import LEVELS, Level, gym_verifier, make_tasks, questions, to_pool
from bots_jax.rl.llm.lines import FAMILIES, EndingInLines, make_lines
from bots_jax.rl.llm.lines import to_pool as lines_to_pool
from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.llm.weights import Weights, load_weights, open_weights
from bots_jax.rl.loop import LoopConfig, init_loop, make_step
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.policy_gradient import GradientConfig
from bots_jax.rl.rollouts import answer_probabilities, pass_rates
from bots_jax.rl.tasks import TaskPool, Verifier, exact_verifier
from bots_jax.rl.worlds import draw_rates
from bots_jax.strategies import configure
from bots_jax.types import Selector

_REFERENCE = "reference.npy"  # measured references, in the folder of a comparison
TASKS = ("gym", "lines")


def _loop() -> LoopConfig:
    gradient = GradientConfig(learning_rate=1e-5, chunk=4)
    return LoopConfig(group_size=8, max_new_tokens=32, gradient=gradient)


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """Everything that the numbers of a comparison depend on.

    Raises:
      ValueError: where a setting is out of range.
    """

    weights: str = ""  # a GGUF file, or a folder of safetensors
    strategies: tuple[str, ...] = ("uniform", "auto", "bots")
    seeds: int = 2
    first_seed: int = 0
    steps: int = 100
    batch_size: int = 32  # tasks a step
    eval_every: int = 20  # steps between measurements on the held-out tasks
    eval_rollouts: int = 2  # of each held-out task
    num_tasks: int = 4096
    num_held_out: int = 256
    data_seed: int = 0
    tasks: str = "gym"  # of reasoning-gym; or "lines"
    levels: tuple[Level, ...] = LEVELS  # of reasoning-gym
    families: tuple[str, ...] = tuple(FAMILIES)  # of lines
    reference: str | None = None  # a .npy file, f[K, N] pass rates, weak to strong
    reference_steps: int = 0  # of training to the strong reference; 0: none is made
    reference_rollouts: int = 4  # of each task by each reference
    by_domain: bool = False  # a capability of its own for each level
    checkpoint_every: int = 20  # steps
    max_prompt: int = 128  # tokens
    dtype: str = "float32"  # of the matrix products; bfloat16 on accelerators
    depth: int | None = None  # the first layers alone, for tests
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the selectors
    loop: LoopConfig = dataclasses.field(default_factory=_loop)

    def __post_init__(self) -> None:
        check_choice("tasks", self.tasks, TASKS)
        check_comparison(self, "max_prompt")
        if self.eval_rollouts == 0 and self.tasks == "gym":
            raise ValueError(
                "eval_rollouts=0 computes the probability of the exact answer, which the verifiers "
                "of reasoning-gym do not go by: give eval_rollouts of at least 1"
            )
        if self.reference_steps < 0:
            raise ValueError(f"reference_steps={self.reference_steps} must be at least 0")
        if self.reference is not None and self.reference_steps:
            raise ValueError("reference and reference_steps exclude each other: give one of them")
        for name in self.strategies:
            ending_of(name)
            self.selector(name)

    def selector(self, name: str) -> Selector:
        """The strategy of that name under the settings that it has and does not fix."""
        group = self.loop.group_size
        return configure(rule_of(name), self.settings, batch_size=self.batch_size, rollouts=group)

    def saved(self) -> dict[str, Any]:
        """As JSON values, for the folder; with a checksum of the weights instead of their place."""
        return {**dataclasses.asdict(self), "weights": open_weights(self.weights).digest()}


def prepare(config: LlmConfig, folder: Path, watcher: Watcher) -> Problem:
    """The model, its tasks and its references.

    Args:
      folder: where measured references are kept.

    Raises:
      FileNotFoundError, ValueError: if the weights or a level are unfit.
    """
    tasks = make_problem_tasks(config)
    changes: dict[str, Any] = {} if config.depth is None else {"depth": config.depth}
    graphdef, base = load_weights(
        tasks.weights, max_prompt=config.max_prompt, max_answer=config.loop.max_new_tokens,
        dtype=config.dtype, **changes,
    )  # fmt: skip
    reference = _reference(config, graphdef, base, tasks.pool, tasks.verifier, folder, watcher)
    return Problem(
        graphdef, base, tasks.pool, tasks.verifier, tasks.held_out, tasks.held_out_verifier,
        reference, tasks.texts,
    )  # fmt: skip


class ProblemTasks(NamedTuple):
    """The tasks of a comparison, and the weights as they want them."""

    pool: TaskPool
    verifier: Verifier
    held_out: TaskPool
    held_out_verifier: Verifier
    texts: Sequence[str]  # what the pool asks
    weights: Weights  # with the token that ends a completion


def make_problem_tasks(config: LlmConfig) -> ProblemTasks:
    """Tasks of the kind that is asked for, in the tokens of the model."""
    file = open_weights(config.weights)
    return _gym_tasks(config, file) if config.tasks == "gym" else _line_tasks(config, file)


def _gym_tasks(config: LlmConfig, file: Weights) -> ProblemTasks:
    tokenizer = Tokenizer(file)
    held = make_tasks(config.num_held_out, config.data_seed + 10**6, config.levels)
    asked = make_tasks(config.num_tasks, config.data_seed, config.levels, questions(held))
    pool, held_out = (to_pool(tasks, tokenizer, config.max_prompt) for tasks in (asked, held))
    verifier, held_out_verifier = (gym_verifier(tasks, tokenizer) for tasks in (asked, held))
    texts = questions(asked)
    return ProblemTasks(pool, verifier, held_out, held_out_verifier, texts, file)


def _line_tasks(config: LlmConfig, file: Weights) -> ProblemTasks:
    file = EndingInLines(file)
    tokenizer = Tokenizer(file)
    held = make_lines(config.num_held_out, config.data_seed + 10**6, config.families)
    asked = make_lines(config.num_tasks, config.data_seed, config.families, held.questions)
    room = config.max_prompt, config.loop.max_new_tokens
    pool, held_out = (
        lines_to_pool(lines, config.families, tokenizer, *room) for lines in (asked, held)
    )
    verifier, held_out_verifier = (exact_verifier(part.answers) for part in (pool, held_out))
    texts = asked.questions
    return ProblemTasks(pool, verifier, held_out, held_out_verifier, texts, file)


def _reference(
    config: LlmConfig,
    graphdef: GraphDef,
    base: Params,
    pool: TaskPool,
    verifier: Verifier,
    folder: Path,
    watcher: Watcher,
) -> np.ndarray:
    """f32[K, N], NaN where unknown."""
    size = len(np.asarray(pool.prompts))
    measured = folder / _REFERENCE
    path = config.reference if config.reference is not None else measured
    if config.reference is not None or (config.reference_steps and measured.exists()):
        return _read_rates(path, size)
    if not config.reference_steps:
        return np.full((2, size), np.nan, np.float32)
    late = _train_uniformly(config, graphdef, base, pool, verifier, watcher)
    found = np.stack([
        _measure(config, graphdef, params, pool, verifier, seed)
        for seed, params in enumerate((base, late))
    ])  # fmt: skip
    file = io.BytesIO()
    np.save(file, found)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(measured, file.getvalue())  # whole or not at all: a resume reads it
    return found


def _read_rates(path: str | Path, size: int) -> np.ndarray:
    """f32[K, N] of an .npy file."""
    wanted = f"{path}: holds no pass rates f[K, {size}] as numpy.save writes them"
    try:
        with Path(path).open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{wanted}: {error}") from None
    if found.ndim != 2 or found.shape[1] != size or found.dtype.kind not in "bfiu":
        raise ValueError(f"{wanted}: it has shape {list(found.shape)} and dtype {found.dtype}")
    return found.astype(np.float32)


def _train_uniformly(
    config: LlmConfig,
    graphdef: GraphDef,
    base: Params,
    pool: TaskPool,
    verifier: Verifier,
    watcher: Watcher,
) -> Params:
    selector = config.selector("uniform")
    prompts = jnp.asarray(pool.prompts)
    step = jax.jit(make_step(selector, graphdef, prompts, verifier, config.loop, base))
    state = init_loop(base, selector.init(num_tasks=len(prompts)), config.loop, config.data_seed)
    for done in range(config.reference_steps):
        state, _ = jax.block_until_ready(step(state, None))
        watcher.stage("training the strong reference", done + 1, config.reference_steps)
    return state.train.params


def _measure(
    config: LlmConfig,
    graphdef: GraphDef,
    params: Params,
    pool: TaskPool,
    verifier: Verifier,
    seed: int,
) -> np.ndarray:
    """Pass rates f32[N], as shares of successes in some rollouts of each task."""
    rollouts, prompts = config.reference_rollouts, jnp.asarray(pool.prompts)
    if config.tasks == "lines":  # computed, then drawn from: cheaper than to sample completions
        answers = jnp.asarray(pool.answers)
        rates = jax.jit(lambda params: answer_probabilities(graphdef, params, prompts, answers))(
            params
        )
        return draw_rates(np.asarray(rates, np.float32), rollouts, config.data_seed + seed)
    measure = functools.partial(
        pass_rates, graphdef, verifier=verifier, rollouts=rollouts,
        max_new_tokens=config.loop.max_new_tokens, temperature=config.loop.temperature,
    )  # fmt: skip
    key = jax.random.key(config.data_seed + seed)
    found = jax.jit(lambda params, prompts, key: measure(params, prompts, rng_key=key))(
        params, prompts, key
    )
    return np.asarray(found.successes, np.float32) / rollouts
