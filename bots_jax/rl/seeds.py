"""Many paired runs of one strategy in one compiled program, without a stop at the host.

In: a selector, its first state, the arrays of a learning problem, seeds. Out: a record a seed,
as `report` takes them. It is `loop.make_step` scanned from one evaluation to the next, over
all seeds at once, with held-out pass rates that are computed instead of sampled.

On an accelerator seeds are batched (`jax.vmap`): a small policy leaves most of it idle. On a CPU
one policy fills a core already (a step of ten seeds takes 10.5 times that of one on an AMD EPYC
core), so there they follow each other (`jax.lax.map`); what that saves of a run driven from the
host is compilation, dispatch, and a checkpoint every step. Both give the same numbers to
rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.rl.loop import LoopConfig, LoopState, init_loop, make_step
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.rollouts import answer_probabilities
from bots_jax.rl.tasks import TaskPool, exact_verifier
from bots_jax.rl.warmup import read_arrays, write_arrays
from bots_jax.types import Selector, State

Array = jax.Array
Record = dict[str, Any]


class Task(NamedTuple):
    """What all runs of a world share: exact-match tasks and a policy."""

    graphdef: GraphDef
    base: Params  # the policy that runs start from
    pool: TaskPool
    held_out: TaskPool


@dataclasses.dataclass(frozen=True)
class SeedsConfig:
    """A run of several seeds, static.

    Raises:
      ValueError: where a number is out of range, or `eval_every` does not divide `steps`.
    """

    steps: int = 400
    eval_every: int = 20  # steps between held-out measurements
    batched: bool | None = None  # vmap over seeds; None: on an accelerator
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    # Steps between two looks at the true pass rates of the whole pool, which an oracle takes for
    # its reference f[1, N]; 0: none are taken
    truth_every: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.eval_every < 1 or self.steps % self.eval_every:
            raise ValueError(
                f"eval_every={self.eval_every} must divide steps={self.steps}, both at least 1"
            )
        if self.truth_every and self.eval_every % self.truth_every:
            raise ValueError(
                f"truth_every={self.truth_every} must divide eval_every={self.eval_every}"
            )


# (key, true rates f[N], features f[E, N] in the selector's state or None) -> f[N]
View = Callable[[Array, Array, Array | None], Array]
_VIEW = 20_011  # the seed of what views draw


class _Told(NamedTuple):
    """What is kept of each step."""

    etr: Any  # f[S, T]
    tokens: Any  # i32[S, T], generated in the step
    task_ids: Any  # i32[S, T, B]
    successes: Any  # f[S, T, B]


def run_seeds(
    selector: Selector,
    first: State | list[State],
    task: Task,
    config: SeedsConfig,
    seeds: Sequence[int],
    *,
    bases: Sequence[Params] | None = None,
    name: str = "",
    eligible: Any = None,
    view: View | None = None,
    partial: str | os.PathLike[str] | None = None,
    told: Callable[[int], None] = lambda step: None,
) -> list[Record]:
    """Train one policy a seed; a record each, in the order of `seeds`.

    Args:
      first: the selector's state before the first step, the same for all seeds; or a list, one
        a seed.
      bases: the policy that each seed starts from; None: all from `task.base`.
      name: the strategy, for the records.
      eligible: bool[N], False for tasks that are never to be selected; None for all.
      view: what an oracle is told in place of the true rates f[N], a function of a key, of them
        and of the features in its state; None: the rates themselves.
      partial: file that keeps the runs from one evaluation to the next, so that they go on
        where they were interrupted; it is removed at the end. The caller sees to it that it
        belongs to these very arguments.
      told: called with the number of steps done after each evaluation.

    Returns:
      strategy, seed, step, etr, tokens, task_ids, successes, heldout_step, heldout as in
      `report`; heldout is exact, of the policies themselves, without sampling.
    """
    if bases is not None and config.loop.gradient.kl_weight:
        raise ValueError("bases differ, and kl_weight keeps all seeds near task.base: set it to 0")
    firsts = first if isinstance(first, list) else [first] * len(seeds)
    starts = [
        init_loop(base, state, config.loop, 0)
        for base, state in zip(bases or [task.base] * len(seeds), firsts, strict=True)
    ]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    states = states._replace(seed=jnp.asarray(seeds, jnp.uint32))
    advance, evaluate = _compile(selector, task, config, eligible, view)
    heldout = [np.asarray(evaluate(states.train.params))]
    seen: list[_Told] = []
    states, heldout, seen = _take_up(partial, states, heldout, seen)
    while len(seen) * config.eval_every < config.steps:
        states, now = advance(states)
        heldout.append(np.asarray(evaluate(states.train.params)))
        seen.append(_Told(*(np.asarray(column) for column in now)))
        _save(partial, states, heldout, seen)
        told(len(seen) * config.eval_every)
    if partial is not None:
        Path(partial).unlink(missing_ok=True)
    joined = _Told(*(np.concatenate(parts, axis=1) for parts in zip(*seen, strict=True)))
    curves = np.stack(heldout, axis=1)
    return [_record(name, seed, curves[i], joined, i, config) for i, seed in enumerate(seeds)]


def _compile(
    selector: Selector,
    task: Task,
    config: SeedsConfig,
    eligible: Any = None,
    view: View | None = None,
) -> tuple[Callable[[LoopState], tuple[LoopState, _Told]], Callable[[Params], Array]]:
    """Steps up to the next evaluation, and the evaluation; both over seeds, jitted."""
    prompts = jnp.asarray(task.pool.prompts)
    verifier = exact_verifier(task.pool.answers)
    if eligible is not None:
        selector = _masked(selector, jnp.asarray(eligible))
    step = make_step(selector, task.graphdef, prompts, verifier, config.loop, task.base)
    held_prompts, held_answers = map(jnp.asarray, (task.held_out.prompts, task.held_out.answers))
    answers = jnp.asarray(task.pool.answers)

    def look(state: LoopState, _: None) -> tuple[LoopState, Any]:
        """Steps under the true rates of the policy that begins them."""
        rates = answer_probabilities(task.graphdef, state.train.params, prompts, answers)
        if view is not None:  # a key of its own: the step's are made of the seed and the step
            key = jax.random.fold_in(jax.random.key(_VIEW), state.seed)
            features = state.selector.reference.embeddings
            rates = view(jax.random.fold_in(key, state.step), rates, features)
        known = state.selector.reference._replace(rates=rates[None])
        state = state._replace(selector=state.selector._replace(reference=known))
        return jax.lax.scan(step, state, length=config.truth_every)

    def advance(state: LoopState) -> tuple[LoopState, _Told]:
        if config.truth_every:
            looks = config.eval_every // config.truth_every
            state, seen = jax.lax.scan(look, state, length=looks)
            seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
        else:
            state, seen = jax.lax.scan(step, state, length=config.eval_every)
        told = (seen.effective_task_ratio, seen.generated_tokens, seen.task_ids, seen.successes)
        return state, _Told(*told)

    def evaluate(params: Params) -> Array:
        rates = answer_probabilities(task.graphdef, params, held_prompts, held_answers)
        return jnp.mean(rates)

    batched = jax.default_backend() != "cpu" if config.batched is None else config.batched
    over_seeds: Any = jax.vmap if batched else lambda f: lambda xs: jax.lax.map(f, xs)
    return jax.jit(over_seeds(advance), donate_argnums=0), jax.jit(over_seeds(evaluate))


def _masked(selector: Selector, eligible: Array) -> Any:
    """What a step needs of the selector, with some tasks kept out of every batch."""
    return SimpleNamespace(
        select=lambda rng_key, state: selector.select(rng_key, state, eligible),
        update=selector.update,
    )


def _record(
    name: str, seed: int, heldout: np.ndarray, seen: _Told, index: int, config: SeedsConfig
) -> Record:
    return {
        "strategy": name,
        "seed": int(seed),
        "step": list(range(1, config.steps + 1)),
        "etr": seen.etr[index].tolist(),
        "tokens": np.cumsum(seen.tokens[index], dtype=np.int64).tolist(),
        "task_ids": seen.task_ids[index].tolist(),
        "successes": seen.successes[index].tolist(),
        "heldout_step": list(range(0, config.steps + 1, config.eval_every)),
        "heldout": [float(score) for score in heldout],
    }


# --- unfinished runs ----------------------------------------------------------------------


def _save(
    partial: str | os.PathLike[str] | None, states: LoopState, heldout: list[Any], seen: list[_Told]
) -> None:
    if partial is None:
        return
    leaves = jax.tree.leaves((states, np.stack(heldout), list(map(tuple, seen))))
    arrays = {f"leaf{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    with contextlib.suppress(OSError):  # only time is lost
        write_arrays(Path(partial), arrays)


def _take_up(
    partial: str | os.PathLike[str] | None, states: LoopState, heldout: list[Any], seen: list[_Told]
) -> tuple[LoopState, list[Any], list[_Told]]:
    """What the file holds, or what was given where there is none of these shapes."""
    found = None if partial is None else read_arrays(Path(partial))
    leaves, structure = jax.tree.flatten(states)
    count = len(leaves)
    if found is None or (len(found) - count - 1) % len(_Told._fields):
        return states, heldout, seen
    arrays = [found[name] for name in sorted(found)]
    if any(a.shape != leaf.shape for a, leaf in zip(arrays[:count], leaves, strict=False)):
        return states, heldout, seen
    taken = jax.tree.unflatten(structure, [jnp.asarray(array) for array in arrays[:count]])
    rest = arrays[count + 1 :]
    width = len(_Told._fields)
    parts = [_Told(*rest[i : i + width]) for i in range(0, len(rest), width)]
    return taken, list(arrays[count]), parts
