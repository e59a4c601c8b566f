"""Resume with a changed data set: move what is known of the remaining tasks to new rows.

In: the arrays of a saved state, the list of tasks of a sampler that is to go on from there, and
what its first state is made of. Out: arrays that fit this first state: of each task that is in both
the rows that were saved, of new ones fresh rows, and what all tasks share as it was saved.

Which axis of an array counts tasks is not guessed from its size: it is the one that is longer in a
first state with room for one more task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bots_jax import checkpoint
from bots_jax.adapters.names import Moves, TaskNames
from bots_jax.adapters.prompts import as_texts, unpack_text
from bots_jax.checkpoint import CheckpointError
from bots_jax.pool.features import FeatureCode, encode_as
from bots_jax.pool.reference import TaskFeatures, expand_reference, stored_like
from bots_jax.pool.visits import NO_VISIT
from bots_jax.types import InitFn, State

if TYPE_CHECKING:
    from bots_jax.features.text import TextCode

Arrays = dict[str, np.ndarray]  # by path
_TOLERANCE = 1e-3  # of features, which are the same up to rounding only


class Origin(NamedTuple):
    """What the first state of a sampler was made from, to make it again."""

    init: InitFn
    # reference, settings, num_tasks, reference_trials, domains, capacity
    pool: tuple[Any, ...]
    features: Any = None
    prompts: Any = None  # where the features are made of them

    def kept(self) -> Origin:
        """The same, of copies: what a user goes on to change is no longer what it was made of."""
        pool = tuple(map(_copied, self.pool))
        return Origin(self.init, pool, _copied(self.features), _copied(self.prompts))

    def state(self, capacity: int | None = None) -> State:
        """The first state, perhaps with another capacity."""
        pool = self.pool if capacity is None else (*self.pool[:-1], capacity)
        return self.init(*pool, **({} if self.features is None else {"features": self.features}))

    def coded(self, code: FeatureCode | None, text: TextCode | None) -> Origin:
        """The same, with features made as those of a saved run were."""
        if self.features is None or code is None:
            return self
        features = self.features
        if self.prompts is not None:
            if text is None:
                raise CheckpointError(
                    "how the saved run made features of prompts was not saved with it: give the "
                    "same tasks in the same order, and add tasks after loading"
                )
            features = text.apply(as_texts(self.prompts))
        rates = expand_reference(self.pool[0], None, None)[0]
        made = TaskFeatures(rates, encode_as(features, code), code)
        return Origin(self.init, (made, *self.pool[1:]))


def _copied(value: Any) -> Any:
    """Arrays and lists, alone, in a list or in a record, copied; anything else as it is."""
    if hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    if isinstance(value, list | tuple):
        kinds = list | dict | np.ndarray
        return type(value)(x.copy() if isinstance(x, kinds) else x for x in value)
    return value.copy() if isinstance(value, np.ndarray | dict) else value


class Fitted(NamedTuple):
    """A saved state, ready to be loaded."""

    arrays: Arrays  # by path
    like: State  # what they fit
    names: TaskNames
    moves: Moves | None  # None: every task has the row that it had
    text: TextCode | None  # how prompts become features from now on; None: as until now

    def begin_new(self, state: State) -> State:
        """The loaded state, in which tasks that were not in the saved one begin."""
        if self.moves is None or not self.moves.added:
            return state
        source = np.full(state.pool.active.shape, -1)
        source[: len(self.moves.source)] = self.moves.source
        old = state.pool.active & jnp.asarray(source >= 0)
        rows = np.flatnonzero(np.asarray(state.pool.active & ~old)).astype(np.int32)
        belief = state.belief.restart(state.settings, jnp.asarray(rows), old)
        return state._replace(belief=belief)


def fit(
    host: Mapping[str, Any],
    arrays: Mapping[str, Any],
    prefix: str,
    state: State,
    names: TaskNames,
    origin: Origin | None,
) -> Fitted:
    """Move a saved state to the tasks of this sampler, matched by name.

    Args:
      host: what the saved sampler told besides its state.
      arrays: saved, by path. prefix: before the paths of the state's leaves.
      state: of the sampler that is to go on. names: those that it began with.
      origin: what its first state is made of; None: of groups.

    Raises:
      CheckpointError: if tasks that are in both were described otherwise, or the pool is grouped.
      ValueError: if the tasks are others.
    """
    found = {path: np.asarray(array) for path, array in arrays.items()}
    grouped = origin is None or f"{prefix}.pool.groups.sizes" in found
    if grouped and not names.began(host["names"]):
        raise CheckpointError(
            f"these {names.num_rows} tasks are not the {host['names']['start']} that the saved run "
            "began with, and the rows of a grouped pool are not moved: give the tasks that it "
            "began with, then add_tasks and retire; or begin anew with representation='dense'"
        )
    moves = names.follow(host["names"])
    text = unpack_text(host["text"]) if "text" in host else None
    code = _code_in(found, prefix)
    if moves is None:
        return Fitted(found, _as_wide(state, origin, code, text), names, moves, text)
    assert origin is not None
    origin = origin.coded(code, text)
    fresh = _in_steps_of(found.get(f"{prefix}.reference.step"), origin.state(), origin)
    _check_alike(found, prefix, fresh, moves, names)
    wider = origin.state(len(fresh.pool.active) + 1)
    moved = _carry(found, prefix, moves.source, fresh, wider)
    return Fitted(moved, fresh._replace(settings=state.settings), names, moves, text)


def _code_in(arrays: Arrays, prefix: str) -> FeatureCode | None:
    parts = [arrays.get(f"{prefix}.reference.code.{name}") for name in FeatureCode._fields]
    return None if any(part is None for part in parts) else FeatureCode(*parts)


def _as_wide(
    state: State, origin: Origin | None, code: FeatureCode | None, text: TextCode | None
) -> State:
    """A state with as many columns of features as the saved one: its kinds were counted earlier."""
    own = None if state.representation == "grouped" else state.reference.code
    if origin is None or own is None or code is None or own.kind.shape == code.kind.shape:
        return state
    return origin.coded(code, text).state()._replace(settings=state.settings)


def _in_steps_of(step: np.ndarray | None, fresh: State, origin: Origin) -> State:
    """The first state, its features of integers in the steps of the saved ones, which stay."""
    given, known = origin.pool[0], fresh.reference
    if step is None or known.step is None or not isinstance(given, TaskFeatures):
        return fresh
    known = known._replace(step=jnp.asarray(step))
    columns = stored_like(known, given.embeddings)
    embeddings = jnp.asarray(known.embeddings).at[:, : columns.shape[1]].set(columns)
    return fresh._replace(reference=known._replace(embeddings=embeddings))


# --- whether they are the same tasks --------------------------------------------------------


def _check_alike(arrays: Arrays, prefix: str, fresh: State, moves: Moves, names: TaskNames) -> None:
    """Refuse tasks that are called alike and described otherwise."""
    here = np.flatnonzero(moves.source >= 0)
    there = moves.source[here]
    active = arrays[f"{prefix}.pool.active"][there]
    here, there = here[active], there[active]
    parts = (
        ("reference.rates", "references (reference=...)", fresh.reference.rates),
        ("reference.trials", "counts behind references (reference_trials=...)",
         fresh.reference.trials),
        ("pool.domain", "domains (domains=...)", fresh.pool.domain),
        ("reference.embeddings", "features (features=..., prompts=...)",
         fresh.reference.embeddings),
    )  # fmt: skip
    for path, what, array in parts:
        saved = arrays.get(f"{prefix}.{path}")
        if saved is None or array is None or saved.shape[:-1] != array.shape[:-1]:
            continue  # one has none, or others: said where the leaves are compared
        ours, theirs = np.asarray(array)[..., here], saved[..., there]
        differ = ours != theirs
        if path.endswith("embeddings"):
            far = 1.0 if ours.dtype.kind == "i" else _TOLERANCE  # of a step, or of a deviation
            differ = ~np.isclose(ours.astype(float), theirs.astype(float), _TOLERANCE, far)
        other = np.flatnonzero(np.atleast_2d(differ).any(axis=0))
        if other.size:
            shown = names.names_of(here[other[:3]]).tolist()
            raise CheckpointError(
                f"{other.size} of the {len(here)} tasks that are in the saved run too have other "
                f"{what} than there, such as {shown}: they are other tasks, or were measured anew. "
                "Give what the saved run was given (what was saved is what counts), or give them "
                "other names: then they begin anew"
            )


# --- moving rows ----------------------------------------------------------------------------


def _carry(arrays: Arrays, prefix: str, source: np.ndarray, fresh: State, wider: State) -> Arrays:
    """The saved arrays, with the rows of this pool."""
    ours = {prefix + path: leaf for path, leaf in checkpoint.named_arrays(fresh).items()}
    more = {prefix + path: leaf.shape for path, leaf in checkpoint.named_arrays(wider).items()}
    sizes = f"{prefix}.pool.domain_sizes"
    domains = (arrays[sizes].size, ours[sizes].size)
    here = np.flatnonzero(source >= 0)
    moved = dict(arrays)
    for path, leaf in ours.items():
        saved = arrays.get(path)
        if saved is None or saved.dtype != leaf.dtype:
            continue  # refused where the leaves are compared
        axis = next((at for at, sides in enumerate(zip(leaf.shape, more[path], strict=True))
                     if sides[0] != sides[1]), None)  # fmt: skip
        if axis is not None and saved.ndim == leaf.ndim:
            saved = np.moveaxis(saved, axis, 0)
            rows = np.array(np.moveaxis(leaf, axis, 0))
            block = _shared(saved.shape[1:], rows.shape[1:], domains)
            if block is not None:
                inner = (slice(None), *block)
                rows[inner][here] = saved[inner][source[here]]
                moved[path] = np.moveaxis(rows, 0, axis)
        elif saved.shape != leaf.shape:
            block = _shared(saved.shape, leaf.shape, domains)
            if block is not None:
                moved[path] = np.array(leaf)
                moved[path][block] = saved[block]
    moved.update(_recounted(moved, prefix, fresh, domains[1]))
    if domains[0] != domains[1]:
        _check_domains(moved, ours, domains)
    return moved


def _shared(
    saved: tuple[int, ...], here: tuple[int, ...], domains: tuple[int, int]
) -> tuple[slice, ...] | None:
    """What is in both of two shapes; None where they differ in more than the domains."""
    if len(saved) != len(here):
        return None
    pairs = list(zip(saved, here, strict=True))
    if any(pair[0] != pair[1] and pair != domains for pair in pairs):
        return None
    return tuple(slice(0, min(pair)) for pair in pairs)


def _check_domains(moved: Arrays, ours: Arrays, domains: tuple[int, int]) -> None:
    if any(moved[path].shape != leaf.shape for path, leaf in ours.items() if path in moved):
        raise CheckpointError(
            f"the saved run had {domains[0]} domains, these tasks have {domains[1]}, and what this "
            "selector learns of all tasks goes by domains: make both with num_domains=... of the "
            "factory, or begin anew"
        )


def _recounted(moved: Arrays, prefix: str, fresh: State, num_domains: int) -> Arrays:
    """What the pool knows of all its rows together."""
    pool = {name: moved[f"{prefix}.pool.{name}"] for name in ("active", "visit")}
    domain = moved.get(f"{prefix}.pool.domain")
    of_active = np.zeros(len(pool["active"]), np.int32) if domain is None else domain
    told = {
        "domain_sizes": np.bincount(of_active[pool["active"]], minlength=num_domains),
        "in_flight": np.sum(pool["visit"] != NO_VISIT),
        "next_fresh": np.asarray(fresh.pool.next_fresh),
    }
    counts = {f"{prefix}.pool.{name}": np.asarray(x, np.int32) for name, x in told.items()}
    return counts | checkpoint.list_touched(moved, fresh, prefix)
