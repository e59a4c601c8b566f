"""The training loop with extra rollouts: collect a batch, learn, advance.

In: a strategy of `oversampling` (any selector too, through `oversampling.no_oversampling`). Out: a
pure step for jit and `jax.lax.scan`, as that of `loop.make_step`, which also tells how many
rollouts were generated. Rounds that are not needed are not generated: the loop over them
is a `while_loop` on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.rl.loop import (
    Experience,
    LoopConfig,
    LoopState,
    StepMetrics,
    make_learn,
    step_keys,
    summarise,
)
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.rollouts import rollout
from bots_jax.rl.tasks import Verifier
from bots_jax.strategies.oversampling import Oversampling, Rolled, TrainBatch
from bots_jax.types import Selection

Array = jax.Array


class ExtraMetrics(NamedTuple):
    """What happened in one step; stacked along a first axis by a scan."""

    step: StepMetrics  # of the groups trained on, but `generated_tokens`, which are of all
    generated: Array  # i32, rollouts generated


ExtraStepFn = Callable[[LoopState, Any], tuple[LoopState, ExtraMetrics]]


def make_extra_step(
    extra: Oversampling,
    graphdef: GraphDef,
    prompts: Array,
    verifier: Verifier,
    config: LoopConfig,
    base_params: Params | None = None,
) -> ExtraStepFn:
    """`step(state, _) -> (state, metrics)`, pure.

    Args:
      extra: the strategy; the groups that it trains on have its own number of rollouts,
        `config.group_size` is not looked at.
      prompts, verifier, base_params: see `loop.make_step`.
    """
    prompts = jnp.asarray(prompts)
    learn = make_learn(graphdef, config, base_params)

    def step(state: LoopState, _: Any = None) -> tuple[LoopState, ExtraMetrics]:
        select_key, rollout_key = step_keys(state.seed, state.step)

        def roll(phase: int | Array, task_ids: Array, count: int) -> Rolled:
            found = rollout(
                graphdef, state.train.params, prompts[jnp.maximum(task_ids, 0)],
                jax.random.fold_in(rollout_key, phase), group_size=count,
                max_new_tokens=config.max_new_tokens, temperature=config.temperature,
            )  # fmt: skip
            return Rolled(_sound(verifier(task_ids, found.tokens)), found.lengths, found)

        chooser, made = extra.collect(select_key, state.selector, roll)
        chooser, info = extra.selector.advance(chooser)
        selection, seen = _trained_on(made, prompts)
        train, gradient = learn(state.train, selection, seen)
        told = summarise(selection, seen, gradient, info)._replace(generated_tokens=made.tokens)
        return LoopState(train, chooser, state.seed, state.step + 1), ExtraMetrics(
            told, made.generated
        )

    return step


def _sound(rewards: Array) -> Array:
    """f[M, G]: NaN for every group with a reward that is not in [0, 1]."""
    sound = jnp.all((rewards >= 0) & (rewards <= 1), axis=1, keepdims=True)
    return jnp.where(sound, rewards, jnp.nan)


def _trained_on(made: TrainBatch, prompts: Array) -> tuple[Selection, Experience]:
    """The batch in the words of the loop."""
    selection = Selection(made.task_ids, made.draws, made.valid, jnp.full_like(made.task_ids, -1))
    sound = jnp.all(jnp.isfinite(made.rolled.rewards), axis=1)
    rewards = jnp.where((made.valid & sound)[:, None], made.rolled.rewards, 0.0)
    chosen = prompts[jnp.maximum(made.task_ids, 0)]
    return selection, Experience(chosen, made.rolled.data, rewards, sound)
