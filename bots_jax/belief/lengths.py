"""How many tokens a task's rollouts are expected to generate, learned like its success.

In: `Evidence.tokens` of the evaluated tasks. Out: for each task the expected tokens relative to
those of the average rollout,

    log t_k = b (eta_k - mean eta) + d_k

eta_k the logit that the references tell (`logit_normal.py`), b the slope of a least-squares line
through log tokens of a rollout over eta, with a ridge of one visit, d_k the mean of the task's own
residuals with one more of 0. Sums over steps are discounted.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bots_jax.sharding import total
from bots_jax.types import Array, Evidence

_KEEP = 0.99  # share of earlier steps in the line
_MOST = 8.0  # times longer or shorter than the average a task is taken to be, at most


class Line(NamedTuple):
    """Discounted sums over evaluated tasks, f[] each."""

    tasks: Array
    x: Array
    xx: Array
    y: Array
    xy: Array


class Lengths(NamedTuple):
    """What is known of the tokens of each task, and of all."""

    pending_tokens: Array  # f[C], not yet learned from
    pending_trials: Array  # f[C], the rollouts that made them
    residual: Array  # f[C], sum over visits of log tokens less the line
    visits: Array  # f[C], with tokens told
    line: Line

    def restart(self, rows: Array) -> Lengths:
        """New tasks are as long as their references say."""
        own = self._replace(line=())  # type: ignore[arg-type]
        fresh = jax.tree.map(lambda x: x.at[rows].set(0, mode="drop"), own)
        return fresh._replace(line=self.line)


def no_lengths(capacity: int, dtype: jnp.dtype) -> Lengths:
    """Nothing known."""

    def zeros(*shape: int) -> Array:  # an array each: states are donated
        return jnp.zeros(shape, dtype)

    line = Line(zeros(), zeros(), zeros(), zeros(), zeros())
    return Lengths(zeros(capacity), zeros(capacity), zeros(capacity), zeros(capacity), line)


def add_tokens(lengths: Lengths, evidence: Evidence) -> Lengths:
    """Add what evidence tells of tokens to what is pending; rows without sound numbers do not."""
    if evidence.tokens is None:
        return lengths
    dtype, capacity = lengths.residual.dtype, lengths.residual.shape[0]
    ids = jnp.asarray(evidence.task_ids, jnp.int32)
    tokens = jnp.broadcast_to(jnp.asarray(evidence.tokens, dtype), ids.shape)
    trials = jnp.broadcast_to(jnp.asarray(evidence.trials, dtype), ids.shape)
    sound = (ids >= 0) & (ids < capacity) & jnp.isfinite(tokens) & jnp.isfinite(trials)
    sound &= (tokens > 0) & (trials > 0)
    rows = jnp.where(sound, ids, capacity)
    return lengths._replace(
        pending_tokens=lengths.pending_tokens.at[rows].add(tokens, mode="drop"),
        pending_trials=lengths.pending_trials.at[rows].add(trials, mode="drop"),
    )


def learn_lengths(lengths: Lengths, eta: Array, evaluated: Array) -> Lengths:
    """One step.

    Args:
      eta: f[C]. evaluated: bool[C], the tasks whose pending tokens are due.
    """
    due = evaluated & (lengths.pending_trials > 0)
    per_rollout = lengths.pending_tokens / jnp.where(due, lengths.pending_trials, 1)
    y = jnp.log(jnp.where(due, per_rollout, 1))
    line = Line(
        *(
            _KEEP * old + total(jnp.where(due, new, 0))
            for old, new in zip(
                lengths.line, (jnp.ones_like(y), eta, eta * eta, y, eta * y), strict=True
            )
        )
    )
    mean_x, mean_y, slope = _fit(line)
    off = y - mean_y - slope * (eta - mean_x)
    return Lengths(
        jnp.where(due, 0, lengths.pending_tokens),
        jnp.where(due, 0, lengths.pending_trials),
        lengths.residual + jnp.where(due, off, 0),
        lengths.visits + due.astype(y.dtype),
        line,
    )


def relative_length(lengths: Lengths, eta: Array) -> Array:
    """t f[C], expected tokens of a rollout relative to the average one."""
    mean_x, _, slope = _fit(lengths.line)
    log_length = slope * (eta - mean_x) + lengths.residual / (lengths.visits + 1)
    return jnp.clip(jnp.exp(log_length), 1 / _MOST, _MOST)


def _fit(line: Line) -> tuple[Array, Array, Array]:
    """Means of eta and log tokens, and the slope."""
    count = jnp.maximum(line.tasks, 1)
    mean_x, mean_y = line.x / count, line.y / count
    spread = jnp.maximum(line.xx - line.x * mean_x, 0)
    slope = (line.xy - line.x * mean_y) / (spread + 1)
    return mean_x, mean_y, jax.lax.select(line.tasks > 0, slope, jnp.zeros_like(slope))
