"""Worlds: named learning problems from fixed seeds, to measure in whether selection pays.

In: a name of `WORLDS`. Out: `WorldData`: tasks to train on, held-out tasks, a base policy that
half knows them, and the pass rates of two reference policies. No file is needed: all is made
from seeds, and the warm-up that makes the policies is cached (`warmup`).

==============  ===========================================================================
world           what it is for
==============  ===========================================================================
frontier        sorting, reversal and successor of 1 to 9 digits: a longer problem is learned
                from shorter ones, so what can be learned next moves as the policy learns
guessing        the same, and as many tasks that can be guessed (comparison, modular, counting):
                their groups are mixed for ever and teach little
all-families    ten families, guessed, learned and out of reach together
sparse          frontier, hidden among fifteen times as many tasks out of reach: 98% of the
                pool is never solved; held out are those of frontier
one-pass        frontier with so many tasks that none comes twice
saturated       thirteen families after a long warm-up: what is within reach is learned in some
                60 steps, and then no choice matters
==============  ===========================================================================

In all but `saturated` the warm-up sees a problem of each size half as often as one that is a
digit shorter, so that pass rates fall smoothly with the size: a policy that has seen only short
problems solves no longer one, ever, and nothing can move.

Exact match at temperature 1 makes a pass rate a product of token probabilities
(`rollouts.answer_probabilities`): it is computed, not sampled, so that neither the table of a
world (`pass_rate_table`) nor a held-out score has an error of sampled completions.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bots_jax.checks import check_choice
from bots_jax.rl.loop import LoopConfig
from bots_jax.rl.policy import GraphDef, Params
from bots_jax.rl.policy_gradient import GradientConfig
from bots_jax.rl.rollouts import answer_probabilities
from bots_jax.rl.tasks import FAMILY_NAMES, TaskPool, decode, generate_split
from bots_jax.rl.warmup import EASY_FAMILIES, Progress, WarmStart, WarmupConfig, warm_up

Array = jax.Array

EXTENDING = ("sorting", "reversal", "successor")  # a longer problem is learned from shorter ones
GUESSED = ("comparison", "modular", "counting")  # few answers, so one of them is often right
# Never warmed up and hardly ever solved. (Not gcd: once trained on, a third of it is guessed.)
OUT_OF_REACH = ("multiplication", "base_conversion")
TEN = (*EASY_FAMILIES, "digit_sum")

# The references bracket the base policy: they solve about half and twice as much. After a third
# of its steps it solves nothing.
SMOOTH_WARMUP = WarmupConfig(
    families=TEN, max_size=9, size_decay=0.5, early_steps=300, base_steps=400, late_steps=600
)


@dataclasses.dataclass(frozen=True)
class World:
    """What a world is made from, and the run that is measured in it; static.

    Raises:
      ValueError: where a number is out of range or a family is unknown.
    """

    name: str
    families: tuple[str, ...] = EXTENDING  # in equal shares
    max_size: int = 9
    num_tasks: int = 6000
    num_held_out: int = 2048
    decoys: tuple[str, ...] = ()  # families out of the policy's reach, among the rest of the pool
    decoy_share: float = 0.0  # of the pool; held out is none of them
    reference_rollouts: int = 8
    seed: int = 0  # of the tasks
    warmup: WarmupConfig = SMOOTH_WARMUP
    batch_size: int = 16
    rollouts: int = 8
    steps: int = 400
    learning_rate: float = 1e-3  # at its highest: it falls to 0 within the run

    def __post_init__(self) -> None:
        for key in ("max_size", "num_tasks", "num_held_out", "reference_rollouts", "batch_size",
                    "rollouts", "steps"):  # fmt: skip
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if not 0 <= self.decoy_share < 1 or bool(self.decoys) != (self.decoy_share > 0):
            raise ValueError(
                f"decoy_share={self.decoy_share} must be in [0, 1), and above 0 with "
                f"decoys={self.decoys} only"
            )
        if unknown := [name for name in (*self.families, *self.decoys) if name not in FAMILY_NAMES]:
            raise ValueError(f"families={unknown} are unknown; use {', '.join(FAMILY_NAMES)}")


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("frontier"),
        World("guessing", families=(*EXTENDING, *GUESSED)),
        World("all-families", families=TEN),
        World(
            "sparse",
            num_tasks=12_000,
            decoys=OUT_OF_REACH,
            decoy_share=0.94,
            learning_rate=5e-4,  # at 1e-3 uniform unlearns: in many a step no group is mixed
        ),
        World("one-pass", num_tasks=24_000),
        World(
            "saturated",
            families=FAMILY_NAMES,
            max_size=12,
            num_tasks=8192,
            warmup=WarmupConfig(),
            batch_size=32,
            steps=200,
            learning_rate=5e-4,
        ),
    )
}


class WorldData(NamedTuple):
    """A world's arrays."""

    pool: TaskPool  # to train on, N tasks
    held_out: TaskPool
    start: WarmStart  # the base policy, and the two that the references were measured by
    reference: NDArray[np.float32]  # f[2, N], pass rates of the early and the late checkpoint


def loop_config(world: World, estimator: Any = "grpo") -> LoopConfig:
    """The settings of a step that is measured: a rate that falls to 0 by the last one."""
    gradient = GradientConfig(
        estimator=estimator,
        learning_rate=world.learning_rate,
        lr_warmup=min(5, world.steps - 1),
        lr_decay=world.steps,
        mixed_chunk=4,
    )
    return LoopConfig(group_size=world.rollouts, gradient=gradient)


def find_world(name: str) -> World:
    """The world of that name.

    Raises:
      ValueError: if it is not known, with those that are.
    """
    return WORLDS[check_choice("world", name, tuple(WORLDS))]


def make_tasks(world: World) -> tuple[TaskPool, TaskPool]:
    """The pool and the held-out tasks of a world; no prompt in common."""
    held_out = generate_split(
        "held_out", world.num_held_out, world.seed, world.families, world.max_size
    )
    if world.decoys:
        return _among_decoys(world), held_out
    pool = generate_split("train", world.num_tasks, world.seed, world.families, world.max_size)
    return pool, held_out


def _among_decoys(world: World) -> TaskPool:
    """Tasks of the families and of the decoys, in random order."""
    decoys = round(world.num_tasks * world.decoy_share)
    parts = [
        generate_split("train", count, world.seed, families, largest)
        for count, families, largest in (
            (world.num_tasks - decoys, world.families, world.max_size),
            (decoys, world.decoys, 12),
        )
    ]
    joined = TaskPool(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    bits = np.random.PCG64(np.random.SeedSequence([world.seed, decoys]))
    order = np.argsort(bits.random_raw(world.num_tasks), kind="stable")
    return TaskPool(*(np.asarray(column)[order] for column in joined))


def make_world(
    world: World,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    base: int = 0,
) -> WorldData:
    """Tasks, policies and references of a world.

    Args:
      cache_dir: where the warm-up is kept; None for no cache.
      progress: told of the warm-up.
      base: which of the world's base policies, each from a warm-up of a seed of its own. What
        selection gains differs more between two of them than between two runs from one.
    """
    pool, held_out = make_tasks(world)
    warmup = dataclasses.replace(world.warmup, seed=world.warmup.seed + base)
    start = warm_up(warmup, cache_dir, progress)
    rates = exact_rates(start.graphdef, (start.early, start.late), pool)
    return WorldData(pool, held_out, start, draw_rates(rates, world.reference_rollouts, world.seed))


def exact_rates(
    graphdef: GraphDef, checkpoints: Sequence[Params], pool: TaskPool
) -> NDArray[np.float32]:
    """Pass rates f32[K, N] of K policies at temperature 1, without sampling."""
    prompts, answers = jnp.asarray(pool.prompts), jnp.asarray(pool.answers)
    measure = jax.jit(lambda params: answer_probabilities(graphdef, params, prompts, answers))
    return np.stack([np.asarray(measure(params), np.float32) for params in checkpoints])


def draw_rates(rates: NDArray[np.float32], rollouts: int, seed: int) -> NDArray[np.float32]:
    """Shares of successes in `rollouts` tries each, as a user would measure them."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, rollouts]))
    draws = (bits.random_raw((rollouts, *rates.shape)) >> np.uint64(11)) * 2.0**-53
    return np.mean(draws < rates, axis=0).astype(np.float32)


def teaches(pool: TaskPool) -> NDArray[np.bool_]:
    """bool[N]: which tasks are of a family that cannot be guessed."""
    return ~np.isin(np.asarray(pool.family), [FAMILY_NAMES.index(name) for name in GUESSED])


def prompt_features(pool: TaskPool) -> NDArray[np.float32]:
    """Text features f32[E, N] of a pool's prompts."""
    from bots_jax import features

    return np.asarray(features.text(decode(pool.prompts)), np.float32).T


def pass_rate_table(world: World, data: WorldData, params: Any = None) -> dict[str, list[float]]:
    """Mean pass rate of each family by size from 1, over the pool; NaN for a size without tasks.

    Args:
      params: a policy of the world's graph; None for the base policy.
    """
    params = data.start.base if params is None else params
    rates = exact_rates(data.start.graphdef, (params,), data.pool)[0]
    family, size = np.asarray(data.pool.family), np.asarray(data.pool.size)
    table = {}
    for name in (*world.families, *world.decoys):
        own = family == FAMILY_NAMES.index(name)
        sizes = range(1, int(size[own].max()) + 1)
        groups = [rates[own & (size == one)] for one in sizes]
        table[name] = [float(group.mean()) if group.size else float("nan") for group in groups]
    return table


def describe(world: World, data: WorldData) -> dict[str, float]:
    """How hard a world is for its base policy, in expectation over m rollouts a task.

    Keys: `held_out`, mean held-out pass rate; `never`, `always` and `mixed`, shares of the pool
    that m rollouts never, always and sometimes solve; `passes`, visits a task under uniform.
    """
    base = (data.start.base,)
    rates = exact_rates(data.start.graphdef, base, data.pool)[0].astype(np.float64)
    held_out = exact_rates(data.start.graphdef, base, data.held_out)[0]
    never, always = np.mean((1 - rates) ** world.rollouts), np.mean(rates**world.rollouts)
    return {
        "held_out": float(held_out.mean()),
        "never": float(never),
        "always": float(always),
        "mixed": float(1 - never - always),
        "passes": world.steps * world.batch_size / len(rates),
    }
