"""The whole training loop as one pure function: select, roll out, verify, update, learn.

In: `LoopState`. Out: the next `LoopState` and what happened, `StepMetrics`. One step is

    selection -> completions -> rewards -> evidence -> posterior;  rewards -> policy gradient.

`make_step` gives `step(state, _) -> (state, metrics)`: call it jitted from the host, or run
many in one `jax.lax.scan(step, state, length=...)`. Everything random in step t comes from
`step_keys(seed, t)`, so that a run can be taken up at any step and goes on bit for bit, and
strategies compared under one seed see the same random numbers in their rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.numerics.arithmetic import differ
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.policy_gradient import (
    Batch,
    GradientConfig,
    Metrics,
    TrainState,
    completion_logprobs,
    init_train_state,
    make_train_step,
)
from bots_jax.rl.rollouts import Rollouts, pass_rates, rollout
from bots_jax.rl.tasks import ANSWER_LENGTH, Verifier
from bots_jax.types import Evidence, Info, Selection, Selector, State

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Settings of a step besides the selector's, static.

    Raises:
      ValueError: where a setting is out of range.
    """

    group_size: int = 8  # G, completions of a prompt
    max_new_tokens: int = ANSWER_LENGTH  # L
    temperature: float = 1.0  # of sampling, above 0
    gradient: GradientConfig = dataclasses.field(default_factory=GradientConfig)

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size} must be at least 2: advantages compare the "
                "completions of a group"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be finite and above 0")


class LoopState(NamedTuple):
    """All that the next step depends on: arrays only, no typed keys."""

    train: TrainState
    selector: State
    seed: Array  # u32, of the run
    step: Array  # i32, steps taken


class StepMetrics(NamedTuple):
    """What happened in one step; stacked along a first axis by a scan."""

    task_ids: Array  # i32[B], -1 where fewer tasks were eligible
    successes: Array  # f[B], summed rewards; 0 where invalid
    effective_task_ratio: Array  # f, share of the selected whose rewards differ
    mean_reward: Array  # f, over the selected
    generated_tokens: Array  # i32, over the selected
    unsound: Array  # i32, groups left out because a reward was not in [0, 1]
    gradient: Metrics
    info: Info  # the selector's


class Experience(NamedTuple):
    """Rollouts of the selected tasks and their rewards."""

    prompts: Array  # i32[B, P]
    rollouts: Rollouts
    rewards: Array  # f[B, G] in [0, 1]; 0 where invalid or unsound
    sound: Array  # bool[B], False where the verifier gave a reward that is not in [0, 1]


def step_keys(seed: Array, step: Array) -> tuple[Array, Array]:
    """The keys of one step: (for the selection, for the rollouts)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    select_key, rollout_key = jax.random.split(key)
    return select_key, rollout_key


def init_loop(
    params: Params, selector_state: State, config: LoopConfig, seed: int | Array
) -> LoopState:
    """The state before the first step, from the base policy and a selector's `init`."""
    train = init_train_state(params, config.gradient)
    return LoopState(train, selector_state, jnp.asarray(seed, jnp.uint32), jnp.zeros((), jnp.int32))


ActFn = Callable[[Params, Selection, Array], Experience]
LearnFn = Callable[[TrainState, Selection, Experience], tuple[TrainState, Metrics]]


def make_act(graphdef: GraphDef, prompts: Array, verifier: Verifier, config: LoopConfig) -> ActFn:
    """`act(params, selection, rng_key) -> Experience`: roll out the selected tasks and verify.

    Args:
      prompts: i32[N, P] of the whole pool.
    """

    def act(params: Params, selection: Selection, rng_key: Array) -> Experience:
        chosen = prompts[jnp.maximum(selection.task_ids, 0)]  # -1 would read the last row
        found = rollout(
            graphdef, params, chosen, rng_key,
            group_size=config.group_size, max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
        )  # fmt: skip
        rewards = verifier(selection.task_ids, found.tokens)
        # NaN is in no range. One such reward, normalised by its group, would ruin the policy.
        sound = jnp.all((rewards >= 0) & (rewards <= 1), axis=1)
        counted = (selection.valid & sound)[:, None]
        return Experience(chosen, found, jnp.where(counted, rewards, 0.0), sound)

    return act


def make_learn(
    graphdef: GraphDef, config: LoopConfig, base_params: Params | None = None
) -> LearnFn:
    """`learn(train, selection, experience) -> (train, metrics)`: one policy-gradient step.

    Args:
      base_params: what the KL term refers to; needed where `gradient.kl_weight` > 0.
    """
    if config.gradient.kl_weight > 0 and base_params is None:
        raise ValueError(
            f"kl_weight={config.gradient.kl_weight} needs base_params, the policy to stay near"
        )
    train_step = make_train_step(graphdef, config.gradient, config.temperature)

    def base_logprobs(seen: Experience) -> Array | None:
        if config.gradient.kl_weight == 0:
            return None
        return completion_logprobs(
            graphdef, base_params, seen.prompts, seen.rollouts.tokens, config.temperature
        )

    def learn(
        train: TrainState, selection: Selection, seen: Experience
    ) -> tuple[TrainState, Metrics]:
        found = seen.rollouts
        batch = Batch(
            seen.prompts, found.tokens, found.mask, found.logprobs, seen.rewards,
            selection.valid & seen.sound, base_logprobs(seen),
        )  # fmt: skip
        return train_step(train, batch)

    return learn


def evidence_of(selection: Selection, seen: Experience) -> Evidence:
    """What the selector is told: summed rewards of each selected task and how many there were.

    Without sound rewards there are attempts and no trials: the visit ends with nothing learned.
    """
    group = seen.rewards.shape[1]
    counts = selection.valid & seen.sound
    trials = jnp.where(counts, float(group), 0.0)
    successes = jnp.where(counts, jnp.sum(seen.rewards, axis=1), 0.0)
    attempts = jnp.full_like(trials, group)
    return Evidence(
        selection.task_ids, successes, trials, selection.visit,
        attempts=attempts, differ=differ(seen.rewards),
    )  # fmt: skip


StepFn = Callable[[LoopState, Any], tuple[LoopState, StepMetrics]]


def make_step(
    selector: Selector,
    graphdef: GraphDef,
    prompts: Array,
    verifier: Verifier,
    config: LoopConfig,
    base_params: Params | None = None,
) -> StepFn:
    """`step(state, _) -> (state, metrics)`, pure: for jit, and for `jax.lax.scan` whole.

    Args:
      prompts: i32[N, P] of the pool whose tasks the selector numbers 0 to N - 1.
      verifier: (task_ids i32[B], completions i32[B, G, L]) -> rewards f32[B, G] in [0, 1];
        a group with any other reward, such as NaN, is left out and counted in `unsound`.
      base_params: see `make_learn`.
    """
    prompts = jnp.asarray(prompts)
    act = make_act(graphdef, prompts, verifier, config)
    learn = make_learn(graphdef, config, base_params)

    def step(state: LoopState, _: Any = None) -> tuple[LoopState, StepMetrics]:
        select_key, rollout_key = step_keys(state.seed, state.step)
        chooser, selection = selector.select(select_key, state.selector)
        seen = act(state.train.params, selection, rollout_key)
        chooser, info = selector.update(chooser, evidence_of(selection, seen))
        train, gradient = learn(state.train, selection, seen)
        metrics = summarise(selection, seen, gradient, info)
        return LoopState(train, chooser, state.seed, state.step + 1), metrics

    return step


def summarise(selection: Selection, seen: Experience, gradient: Metrics, info: Info) -> StepMetrics:
    """The numbers of one step; invalid rows count nowhere, unsound ones in tokens alone."""
    successes = jnp.sum(seen.rewards, axis=1)
    group = seen.rewards.shape[1]
    counted = selection.valid & seen.sound
    selected = jnp.maximum(jnp.sum(counted), 1).astype(successes.dtype)
    mixed = counted & differ(seen.rewards)
    lengths = jnp.where(selection.valid[:, None], seen.rollouts.lengths, 0)
    return StepMetrics(
        task_ids=selection.task_ids,
        successes=successes,
        effective_task_ratio=jnp.sum(mixed) / selected,
        mean_reward=jnp.sum(successes) / (selected * group),
        generated_tokens=jnp.sum(lengths),
        unsound=jnp.sum(selection.valid & ~seen.sound, dtype=jnp.int32),
        gradient=gradient,
        info=info,
    )


EvaluateFn = Callable[[Params, Array], Array]


def make_evaluation(
    graphdef: GraphDef,
    prompts: Array,
    verifier: Verifier,
    *,
    rollouts: int = 4,
    max_new_tokens: int = ANSWER_LENGTH,
    temperature: float = 1.0,
) -> EvaluateFn:
    """`evaluate(params, rng_key) -> f[N]`: pass rates on other tasks; jit it.

    Args:
      prompts: i32[N, P] of the held-out tasks; `verifier` must be theirs.
      temperature: 0 for greedy decoding, with one rollout.
    """
    prompts = jnp.asarray(prompts)

    def evaluate(params: Params, rng_key: Array) -> Array:
        found = pass_rates(
            graphdef, params, prompts, verifier, rng_key, rollouts=rollouts,
            max_new_tokens=max_new_tokens, temperature=temperature,
        )  # fmt: skip
        return found.successes / rollouts

    return evaluate
