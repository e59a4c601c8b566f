"""DPS, dynamics-predictive sampling (arXiv 2603.10887; the authors' code).

Belief: each task is in one of three states, none, some or all of its rollouts solved, and
moves between them at every step by transitions of its own, with Dirichlet counts
T[j, i] of going from i to j and P = T / sum_j T. With x the state of the step before and
x' that of this step, both as distributions,

    visited:      x' = the state that was observed
    not visited:  x' = what had been predicted
    T  <- decay T + (1 - decay) T0 + (x'_j x_i P[j, i], normalised; only if visited)
    predicted  <- P x'   with the new P

Choice: the B tasks with the largest predicted chance of "some", the mixed groups.

Departures: every task is propagated from the start, where the authors begin with a task's
first candidacy (the same with the uniform prior). The state holds no success rate, so
`predict` is a Beta posterior of visited tasks, kept beside it and discounted by the same
decay; the choice does not look at it. All tasks compete unless `candidate_ratio` is given
(the authors': 32 for mathematics).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp

from bots_jax.checks import check_choice
from bots_jax.compose import BeliefModel, Choice, Shared, compose, factory
from bots_jax.pool.reference import Reference
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.choices import among_candidates, candidate_count
from bots_jax.strategies.counting import counting_settings, counting_with
from bots_jax.strategies.discounted import discounted_beta
from bots_jax.types import Array, ArrayLike, Number, Selector, Settings, State

NONE, SOME, ALL = range(3)

# T0[j][i], pseudo-counts of going from i to j.
PRIORS: dict[str, tuple[tuple[float, ...], ...]] = {
    "uniform": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "progress": ((1.0, 0.5, 0.5), (1.0, 1.0, 0.5), (1.0, 1.0, 1.0)),
    "stability": ((1.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 1.0)),
}


class Solving(NamedTuple):
    """How far each task is solved, and how that changes."""

    transitions: Array  # f[C, 3, 3], T[j, i]
    present: Array  # f[C, 3], x' of the last step
    predicted: Array  # f[C, 3], of the next step
    prior: Array  # f[3, 3], T0[j, i]

    def restart(self, settings: Settings, rows: Array, active: Array) -> Solving:
        """New tasks begin at the prior, in any state alike."""
        return Solving(
            self.transitions.at[rows].set(self.prior, mode="drop"),
            self.present.at[rows].set(1 / 3, mode="drop"),
            self.predicted.at[rows].set(1 / 3, mode="drop"),
            self.prior,
        )


@factory
def dps(
    *,
    batch_size: int = 32,
    rollouts: ArrayLike = 16,
    decay: Number = 0.7,
    prior: str = "uniform",
    candidate_ratio: int | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """The tasks that a hidden Markov model expects to be solved in part.

    Args:
      batch_size: B. rollouts: m. shared: see `compose.Shared`.
      decay: share of the transition counts that survives a step, .5 to .7 in the authors'
        runs; `Settings.forgetting` is 1 - decay.
      prior: of the transitions, one of `PRIORS`. Static.
      candidate_ratio: candidates for each place in the batch; None: all tasks. Static.

    Raises:
      ValueError: naming the argument and its value.
    """
    counts = PRIORS[check_choice("prior", prior, tuple(PRIORS))]
    return compose(
        name="dps",
        model=_hidden_markov(counts),
        choice=_most_partial(candidate_count(candidate_ratio, batch_size)),
        settings=counting_settings(rollouts, keep=decay),
        batch_size=batch_size,
        obeys=(),
        static={"prior": prior, "candidate_ratio": candidate_ratio},
        **shared,
    )


def _hidden_markov(counts: tuple[tuple[float, ...], ...]) -> BeliefModel:
    def init(settings: Settings, reference: Reference, num_domains: int) -> Solving:
        capacity, dtype = reference.rates.shape[1], reference.rates.dtype
        third = jnp.full((capacity, 3), 1 / 3, dtype)
        prior = jnp.asarray(counts, dtype)
        transitions = jnp.broadcast_to(prior, (capacity, 3, 3))
        return Solving(transitions, third, third, prior)

    return counting_with(init, _remember, discounted_beta())


def _remember(
    memory: Solving, settings: Settings, reference: Reference, fused: StepEvidence
) -> Solving:
    visited = (fused.trials > 0)[:, None]
    present = jnp.where(visited, _observed(fused), memory.predicted)
    moved = _expected(memory.transitions) * present[:, :, None] * memory.present[:, None, :]
    moved /= jnp.sum(moved, axis=(1, 2), keepdims=True)
    keep = 1 - settings.forgetting
    transitions = keep * memory.transitions + (1 - keep) * memory.prior[None]
    transitions += jnp.where(visited[:, :, None], moved, 0)
    predicted = jnp.sum(_expected(transitions) * present[:, None, :], axis=2)
    return Solving(transitions, present, predicted, memory.prior)


def _expected(transitions: Array) -> Array:
    """f[C, 3, 3] mean transition probabilities; a column sums to 1."""
    return transitions / jnp.sum(transitions, axis=1, keepdims=True)


def _observed(fused: StepEvidence) -> Array:
    """f[C, 3], 1 at the state that the rollouts show."""
    none, all_ = fused.successes <= 0, fused.successes >= fused.trials
    states = jnp.stack([none, ~none & ~all_, ~none & all_], axis=1)
    return states.astype(fused.trials.dtype)


def _most_partial(count: int | None) -> Choice:
    def score(rng_key: Array, model: BeliefModel, state: State, rows: Any) -> tuple[Array, Array]:
        mean = model.predict(state, rows).mean
        return -state.belief.memory.predicted[rows, SOME], mean

    return among_candidates(score, count)
