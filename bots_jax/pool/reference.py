"""Pass rates of reference models: where the belief about an unvisited task comes from.

In: f[K, N] pass rates, ordered weak to strong, NaN where unknown. Out: `Reference`, the
same padded to the C rows of the state, with `UNKNOWN` in place of NaN: a state is finite, so that
`jax_debug_nans` tells of mistakes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.checks import check_count, host_numbers, is_concrete, numbers_or_none, wide_float
from bots_jax.pool.features import FeatureCode
from bots_jax.types import Array, ArrayLike

UNKNOWN = -1.0  # in place of a pass rate


def is_known(rates: Array) -> Array:
    """bool[...]: whether there is a pass rate."""
    return rates >= 0


def without_nan(rates: Any, dtype: jnp.dtype) -> Array:
    """f[...]: `UNKNOWN` in place of NaN, put there on the host if it can be."""
    if not is_concrete(rates):
        return jnp.where(jnp.isnan(rates), UNKNOWN, rates).astype(dtype)
    values = np.asarray(rates)
    return jnp.asarray(np.where(np.isnan(values), UNKNOWN, values).astype(dtype))


class ReferenceCounts(NamedTuple):
    """References as a user may have them: how often each model solved each task.

    Bytes instead of floats, for large pools: `init(ReferenceCounts(successes, 16))`.
    """

    successes: ArrayLike  # integers [K, N] in [0, trials], weak to strong; -1 = unknown
    trials: ArrayLike  # attempts, for all models or integers [K]


class ReferenceGroups(NamedTuple):
    """References of tasks that are numbered by group: nothing is stored for a single task.

    The tasks of group 0 are 0 to sizes[0] - 1, those of group 1 come next, and so on.
    """

    rates: ArrayLike  # f[K, G] in [0, 1], weak to strong, NaN = unknown
    sizes: ArrayLike  # integers [G], tasks of each group
    trials: ArrayLike | None = None  # integers [K], attempts behind the rates of each model


class TaskFeatures(NamedTuple):
    """References, and numbers that describe each task, for estimators that look at them.

    Embeddings are to be of mean about 0 and variance about 1, and few: 8 to 32 principal
    components. Such a pool is dense. `init(features=...)` makes them of what a user has.
    """

    rates: ArrayLike | None  # f[K, N] pass rates as elsewhere, or None
    embeddings: ArrayLike  # f[E, N], finite
    code: FeatureCode | None = None  # how they were made, for tasks that come later


class Reference(NamedTuple):
    """What is known of each task before the policy has tried it."""

    rates: Array  # f[K, C] in [0, 1], -1 where unknown; K = 0 without references
    trials: Array | None  # f[K, C], attempts behind each rate; None if not told
    embeddings: Array | None = None  # [E, C] as stored: floats, or i8 in units of `step`
    code: FeatureCode | None = None  # how embeddings were made of features
    step: Array | None = None  # f[E], of embeddings that are integers

    def take(self, rows: Array | None) -> Reference:
        """The reference of some tasks, i32[R] in [0, C), without the code; of all for None."""
        return self if rows is None else self.each(lambda values: values[:, rows])

    def each(self, pick: Callable[[Array], Array]) -> Reference:
        """The reference with `pick` of each array [..., C], without the code."""
        trials, embeddings = (
            None if values is None else pick(values) for values in (self.trials, self.embeddings)
        )
        return Reference(pick(self.rates), trials, embeddings, step=self.step)

    def described(self) -> Array:
        """f[E, C]: embeddings as numbers of the dtype that is computed with."""
        if self.embeddings is None:
            return self.rates[:0]
        numbers = self.embeddings.astype(self.rates.dtype)
        return numbers if self.step is None else numbers * self.step[:, None]

    def described_rows(self) -> list[Array]:
        """The same, f[C] each: converted row by row in the pass that uses them."""
        if self.embeddings is None:
            return []
        dtype, steps = self.rates.dtype, self.step
        rows = [
            lax.index_in_dim(self.embeddings, at, keepdims=False).astype(dtype)
            for at in range(self.embeddings.shape[0])
        ]
        return rows if steps is None else [row * steps[at] for at, row in enumerate(rows)]


def make_reference(
    rates: ArrayLike | TaskFeatures | None,
    trials: ArrayLike | None,
    num_tasks: int | None,
    capacity: int | None,
    dtype: jnp.dtype,
    features_dtype: str | None = None,
) -> tuple[Reference, int]:
    """Check the references and pad them to capacity.

    Args:
      features_dtype: what embeddings are stored in, one of `FEATURES_DTYPES`; None for `dtype`, or
        for float16 in place of float32 where they are many.

    Returns:
      The reference of C rows, and N.

    Raises:
      ValueError: naming the argument, its value and the way out.
    """
    if isinstance(rates, TaskFeatures):
        return _with_embeddings(rates, trials, num_tasks, capacity, dtype, features_dtype)
    num_tasks = _num_tasks(rates, num_tasks)
    capacity = num_tasks if capacity is None else check_count("capacity", capacity)
    if capacity < num_tasks:
        raise ValueError(f"capacity={capacity} is below the {num_tasks} tasks given: raise it")
    if rates is None:
        if trials is not None:
            raise ValueError("reference_trials was given without reference: give both or neither")
        return Reference(jnp.zeros((0, capacity), dtype), None), num_tasks
    check_rates(rates)
    rates = _padded(without_nan(rates, dtype), capacity, UNKNOWN)
    if trials is not None:
        trials = broadcast_trials(trials, rates.shape[0], num_tasks, dtype)
        trials = _padded(trials, capacity, 0)
    return Reference(rates, trials), num_tasks


def _padded(columns: Array, capacity: int, value: float) -> Array:
    """[A, C] of [A, N]; where there is no room nothing is compiled for it."""
    room = capacity - columns.shape[1]
    return jnp.pad(columns, ((0, 0), (0, room)), constant_values=value) if room else columns


def _with_embeddings(
    given: TaskFeatures,
    trials: Any,
    num_tasks: int | None,
    capacity: int | None,
    dtype: jnp.dtype,
    features_dtype: str | None,
) -> tuple[Reference, int]:
    shape = np.shape(given.embeddings)
    if num_tasks is not None:
        num_tasks = check_count("num_tasks", num_tasks)
    if len(shape) != 2 or num_tasks not in (None, shape[1]):
        if given.code is not None:
            raise ValueError(
                f"features are of {shape[1]} tasks, but num_tasks={num_tasks}: drop it"
            )
        raise ValueError(f"TaskFeatures.embeddings has shape {shape}, expected [E, {num_tasks}]")
    rates: Any = given.rates
    known_of: tuple[int, ...] = (
        np.shape(rates) if hasattr(rates, "shape") or isinstance(rates, list) else ()
    )
    if len(known_of) == 2 and shape[1] not in known_of:  # a transposed one is told below
        what = "TaskFeatures.embeddings" if given.code is None else "features"
        raise ValueError(
            f"{what} are of {shape[1]} tasks, but reference has {known_of[1]} columns: "
            "both have one for each task"
        )
    if is_concrete(given.embeddings) and not np.all(np.isfinite(np.asarray(given.embeddings))):
        raise ValueError("TaskFeatures.embeddings holds NaN or infinity: give finite numbers")
    known, tasks = make_reference(given.rates, trials, shape[1], capacity, dtype)
    rows = known.rates.shape[1]
    if features_dtype is None:
        many = rows >= _MANY_TASKS and dtype == jnp.float32
        stored_in = jnp.dtype(jnp.float16) if many else dtype
    else:
        stored_in = jnp.dtype(features_dtype)
    step = _step_of(given.embeddings, dtype) if stored_in == jnp.int8 else None
    embeddings = _padded(_stored(given.embeddings, stored_in, step), rows, 0)
    code = None if given.code is None else FeatureCode(*map(jnp.asarray, given.code))
    return known._replace(embeddings=embeddings, code=code, step=step), tasks


FEATURES_DTYPES = ("float32", "float16", "int8")
# Deviations from the mean that a number is taken to lie away at most. The square of 1e20 is no
# float32: one such task, added later, made all beliefs NaN.
FAR = 1e6
# Tasks from which features are stored in 16 bits: a pass over them takes as long as reading them.
_MANY_TASKS = 200_000


def _step_of(embeddings: ArrayLike, dtype: jnp.dtype) -> Array:
    """f[E]: what 1 of an i8 stands for, so that the largest of a column is 127."""
    largest = jnp.minimum(jnp.max(jnp.abs(jnp.asarray(embeddings, dtype)), axis=1), FAR)
    return jnp.where(largest > 0, largest / 127, 1)


def _stored(embeddings: ArrayLike, dtype: jnp.dtype, step: Array | None) -> Array:
    """[E, A] as a state holds them; what lies outside of the dtype, or beyond `FAR`, at its end."""
    if step is not None:
        scaled = jnp.asarray(embeddings, step.dtype) / step[:, None]
        return jnp.clip(jnp.round(scaled), -127, 127).astype(dtype)
    most = min(float(jnp.finfo(dtype).max), FAR)
    if not is_concrete(embeddings):
        return jnp.clip(embeddings, -most, most).astype(dtype)
    clipped = np.clip(np.asarray(embeddings), -most, most)  # on the host: nothing is compiled
    return jnp.asarray(clipped.astype(dtype))


def stored_like(known: Reference, embeddings: ArrayLike) -> Array:
    """f[E, A] of further tasks as those that `known` has are stored."""
    assert known.embeddings is not None
    return _stored(embeddings, known.embeddings.dtype, known.step)


# More reference models than this, and than four times the tasks, are taken for tasks.
_MANY_MODELS = 32


def _num_tasks(rates: ArrayLike | None, num_tasks: int | None) -> int:
    if num_tasks is not None:
        num_tasks = check_count("num_tasks", num_tasks)
    if rates is None:
        if num_tasks is None:
            raise ValueError("reference, features and num_tasks are None: give one of them")
        return num_tasks
    shape = np.shape(rates)
    if len(shape) != 2:
        raise ValueError(
            f"reference has shape {shape}, expected [K, N]: one row a reference model, "
            "ordered weak to strong, one column a task; a number of tasks is given as num_tasks"
        )
    # An oracle's true rates f[T, N] may have more steps than tasks; who says how many tasks there
    # are knows which axis they are on.
    if num_tasks != shape[1] and shape[0] > max(_MANY_MODELS, 4 * shape[1]):
        raise ValueError(
            f"reference has shape {shape}, expected [K, N]: {shape[0]} models of {shape[1]} tasks "
            "look transposed; give reference.T"
        )
    if num_tasks not in (None, shape[1]):
        raise ValueError(f"num_tasks={num_tasks}, but reference has {shape[1]} columns: drop one")
    if shape[1] < 1:
        raise ValueError(f"reference has shape {shape}: it holds no task")
    return shape[1]


def check_rates(rates: ArrayLike, name: str = "reference") -> None:
    """Refuse pass rates outside [0, 1]; NaN stands for unknown. Traced values pass."""
    if not is_concrete(rates):
        return
    values = np.asarray(rates)
    wrong = np.argwhere((values < 0) | (values > 1))
    if wrong.size:
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name}{list(at)}={values[at]} is not a pass rate in [0, 1]: "
            "divide successes by trials, and use NaN where it is unknown"
        )


def broadcast_trials(trials: ArrayLike, models: int, num_tasks: int, dtype: jnp.dtype) -> Array:
    """reference_trials as f[K, N], from f[K] or f[K, N]."""
    shape = np.shape(trials)
    if shape not in ((models,), (models, num_tasks)):
        raise ValueError(
            f"reference_trials has shape {shape}, expected ({models},) or ({models}, {num_tasks})"
        )
    _check_trials(trials)
    trials = jnp.asarray(host_numbers("reference_trials", trials), dtype)
    return jnp.broadcast_to(trials[:, None] if trials.ndim == 1 else trials, (models, num_tasks))


def _check_trials(trials: ArrayLike) -> None:
    if is_concrete(trials) and not np.all(np.asarray(trials, np.float64) > 0):
        raise ValueError("reference_trials must be positive: the attempts behind each pass rate")


def reference_dtype(dtype: jnp.dtype | None, reference: Any) -> jnp.dtype:
    """The state's dtype: as asked for, else the reference's if that is a float of 64 bits."""
    if dtype is not None:
        return jnp.dtype(dtype)
    if isinstance(reference, TaskFeatures):
        reference = reference.embeddings
    if reference is None or isinstance(reference, ReferenceCounts):
        return jnp.dtype(jnp.float32)
    rates = reference.rates if isinstance(reference, ReferenceGroups) else reference
    given = rates.dtype if hasattr(rates, "dtype") else np.result_type(np.asarray(rates))
    return wide_float(given)


_PROMPTS = ": prompts are given as features=features.text(prompts), or TaskSampler(prompts=...)"


def as_given(reference: Any, trials: Any, domains: Any) -> tuple[Any, Any, Any]:
    """The same as arrays of numbers, NaN where None or a mask says unknown; references checked.

    Raises:
      ValueError: naming the argument, if it holds no numbers, or makes no sense.
    """

    numbers = partial(numbers_or_none, copy=False)
    if isinstance(reference, TaskFeatures | ReferenceCounts | ReferenceGroups):
        name = type(reference).__name__
        parts = {part: numbers(f"{name}.{part}", value) for part, value in
                 reference._asdict().items() if part != "code"}  # fmt: skip
        reference = reference._replace(**parts)
    else:
        reference = numbers("reference", reference, hint=_PROMPTS)
    check_given(reference, trials)
    trials = numbers("reference_trials", trials)
    if trials is not None:
        _check_trials(trials)
    return reference, trials, numbers("domains", domains)


def check_numbering(num_domains: int, num_tasks: int) -> None:
    """Refuse domains that are no small numbers: each has a row of its own, with tasks or without.

    Raises:
      ValueError: naming the largest, and the way to number them from 0.
    """
    if num_domains > most_domains(num_tasks):
        raise ValueError(
            f"domains go up to {num_domains - 1}, with {num_tasks} tasks: number them from 0, "
            "np.unique(domains, return_inverse=True)[1], or give num_domains to the factory"
        )


def most_domains(num_tasks: int) -> int:
    """One for each task, or 1024."""
    return max(num_tasks, 1024)


def check_given(reference: Any, reference_trials: Any) -> None:
    """Refuse counts out of range and groups that do not fit together."""
    if isinstance(reference, ReferenceCounts | ReferenceGroups) and reference_trials is not None:
        raise ValueError(
            f"reference_trials was given beside {type(reference).__name__}, which holds its own"
        )
    if isinstance(reference, ReferenceCounts):
        _check_counts(reference)
    if isinstance(reference, ReferenceGroups):
        _check_groups(reference)


def _check_counts(reference: ReferenceCounts) -> None:
    successes, trials = np.asarray(reference.successes), np.asarray(reference.trials)
    if successes.ndim != 2 or successes.dtype.kind not in "iu":
        raise ValueError(
            f"ReferenceCounts.successes has shape {successes.shape} and dtype {successes.dtype}, "
            "expected integers [K, N]: one row a reference model, one column a task"
        )
    if trials.shape not in ((), successes.shape[:1]) or trials.dtype.kind not in "iu":
        raise ValueError(
            f"ReferenceCounts.trials={reference.trials!r} must be one whole number, or one a model"
        )
    if np.min(trials) < 1:
        raise ValueError(f"ReferenceCounts.trials={reference.trials!r} must be at least 1")
    low = successes.min(axis=1, initial=0)
    if (low < -1).any() or (successes.max(axis=1, initial=0) > trials).any():
        raise ValueError(
            f"ReferenceCounts.successes must lie in [0, {trials}], or be -1 where unknown, "
            f"but go from {low.min()} to {successes.max()}"
        )


def _check_groups(reference: ReferenceGroups) -> None:
    rates, sizes = np.asarray(reference.rates), np.asarray(reference.sizes)
    if rates.ndim != 2 or sizes.shape != rates.shape[1:] or sizes.dtype.kind not in "iu":
        raise ValueError(
            f"ReferenceGroups: rates have shape {rates.shape} and sizes {sizes.shape} of dtype "
            f"{sizes.dtype}, expected [K, G] and integers [G]"
        )
    total = int(sizes.sum(dtype=np.int64))
    if (sizes < 0).any() or not 1 <= total < 2**31:
        raise ValueError(
            f"ReferenceGroups.sizes must not be negative and sum to 1 to {2**31 - 1}, not {total}"
        )
    check_rates(rates, "ReferenceGroups.rates")


def expand_reference(reference: Any, trials: Any, domains: Any) -> tuple[Any, Any, Any]:
    """Counts and groups as rates f[K, N], for a dense pool; everything else as it is."""
    if isinstance(reference, ReferenceCounts):
        counts, attempts = np.asarray(reference.successes), np.asarray(reference.trials)
        attempts = np.broadcast_to(attempts, counts.shape[:1])
        each = attempts[:, None].astype(np.float32)
        rates = np.where(counts < 0, np.float32(np.nan), counts.astype(np.float32) / each)
        return rates, attempts, domains
    if isinstance(reference, ReferenceGroups):
        sizes = np.asarray(reference.sizes)
        rates = np.repeat(np.asarray(reference.rates), sizes, axis=1)
        spread = None if domains is None else np.repeat(np.asarray(domains), sizes)
        return rates, reference.trials, spread
    return reference, trials, domains
