"""Beliefs that count, and the numbers and memories that go with them.

In: the evidence of a step. Out: the counts of each task, Beta(alpha0 + s, beta0 + n - s),
nothing forgotten or inferred (`COUNTING`); and beside them, for strategies whose choice
rests on something else than success rates, a memory of their own (`counting_with`), so
that the belief of every strategy can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from bots_jax.belief.beta import beta_belief, beta_rules
from bots_jax.checks import check_count, check_number, is_concrete
from bots_jax.compose import BeliefInfo, BeliefModel
from bots_jax.implicit import none
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.settings import BOTS_DEFAULTS, check_settings, merge_settings
from bots_jax.types import Array, ArrayLike, Belief, Number, PyTree, Settings, State

COUNTING = beta_belief(beta_rules(none()))


# --- numbers ---------------------------------------------------------------------------------


def counting_settings(rollouts: ArrayLike, *, keep: Number = 1.0, **numbers: Number) -> Settings:
    """The numbers of a belief that counts, every field given: rho = 0, prior Beta(1, 1).

    Args:
      rollouts: m.
      keep: share of a posterior that survives; held as `Settings.forgetting` = 1 - keep,
        so that it can be traced and swept like any other.
      numbers: other fields of `Settings`; None leaves the paper's default.
    """
    if is_concrete(keep):
        check_number("keep", keep, 0, 1)
    fixed: dict[str, Number] = {"forgetting": 1 - keep, "implicit_weight": 0.0}
    given = Settings(rollouts=rollouts, **{**fixed, **numbers})
    check_settings(given)
    return merge_settings(BOTS_DEFAULTS, given)


def group_size(name: str, group: int | None, rollouts: ArrayLike) -> int:
    """G, static: `group`, or else the rollouts of a visit, which must then be whole."""
    if group is not None:
        return check_count(name, group, least=2)
    if not is_concrete(rollouts) or float(np.asarray(rollouts)) % 1:
        raise ValueError(f"rollouts={rollouts} is traced or no whole number: give {name} as well")
    whole = int(np.asarray(rollouts))
    if whole < 2:
        raise ValueError(f"rollouts={whole} is no group: give {name} as well, at least 2")
    return whole


def no_inference(fused: StepEvidence) -> BeliefInfo:
    """What a belief without implicit evidence has to say about a step."""
    zero = jnp.zeros((), fused.trials.dtype)
    return BeliefInfo(jnp.zeros((fused.num_domains,), zero.dtype), zero, zero)


# --- counts beside a memory ------------------------------------------------------------------


class Memory(Protocol):
    """A pytree of what a strategy remembers."""

    def restart(self, settings: Settings, rows: Array, active: Array) -> Any:
        """As `BeliefModel` says."""


class Remembering(NamedTuple):
    """Counts, for the belief, and a memory, for the choice."""

    counted: PyTree  # of the model that counts
    memory: Memory

    def restart(self, settings: Settings, rows: Array, active: Array) -> Remembering:
        """Both parts begin anew."""
        return Remembering(
            self.counted.restart(settings, rows, active),
            self.memory.restart(settings, rows, active),
        )


InitMemory = Callable[[Settings, Reference, int], Memory]
Remember = Callable[[Any, Settings, Reference, StepEvidence], Memory]


def counting_with(
    init_memory: InitMemory, remember: Remember, counts: BeliefModel = COUNTING
) -> BeliefModel:
    """A belief that counts successes and failures, and remembers something besides.

    Args:
      init_memory: (settings, reference, num_domains) -> memory.
      remember: (memory, settings, reference, fused) -> memory; once a step.
      counts: the belief that counts; by default nothing is forgotten.
    """

    def init(settings: Settings, reference: Reference, num_domains: int) -> Remembering:
        memory = init_memory(settings, reference, num_domains)
        return Remembering(counts.init(settings, reference, num_domains), memory)

    def fuse(
        belief: Remembering, settings: Settings, reference: Reference, fused: StepEvidence
    ) -> tuple[Remembering, BeliefInfo]:
        counted, info = counts.fuse(belief.counted, settings, reference, fused)
        memory = remember(belief.memory, settings, reference, fused)
        return Remembering(counted, memory), info

    def predict(state: State, rows: Any) -> Belief:
        return counts.predict(state._replace(belief=state.belief.counted), rows)

    def draw(rng_key: Array, state: State) -> Array:
        return counts.draw(rng_key, state._replace(belief=state.belief.counted))

    return BeliefModel(init, fuse, predict, draw)
