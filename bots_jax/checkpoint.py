"""Versioned checkpoints of a selector, alone or together with the trainer's own state.

In: a directory, a step number, a `Selector` and its state, and any pytree of the
trainer. Out: the same, bit for bit, open visits and pending evidence included.

Orbax's `CheckpointManager` writes a checkpoint into a temporary directory that is renamed when
it is complete, so a process killed at any moment leaves the last good one in place, and
deletes those that are kept no longer. Leaves are
packed into one array a dtype: Orbax then writes a few files instead of one a leaf, which
is several times faster for the many small arrays of a selector. A header names the
format's version, the selector's static settings, every leaf's path, shape and dtype, and
a SHA-256 of the data, so that what is wrong or damaged is told apart and said plainly.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import orbax_files
from bots_jax.checks import check_choice, check_count
from bots_jax.types import PyTree, Selector, Settings, State

VERSION = 2  # 2: names of generators, what a sampler needs to tell another pool
# How a batch is chosen and put together: nothing that is believed depends on it, so a run may go on
# with another batch size, other quotas, another share of exploration, another rule or worth.
CHOICE_ONLY = frozenset(
    {"batch_size", "exploration", "quotas", "choice", "noisy", "worth", "spread"}
)
_STEP_NAME = re.compile(r"step_(\d+)")


class CheckpointError(ValueError):
    """A checkpoint could not be written, is damaged, or does not fit this selector."""


class DamagedCheckpointError(CheckpointError):
    """The checkpoint on disk differs from what was written."""


class Restored(NamedTuple):
    """The result of `restore`: state, trainer's pytree and step."""

    step: int
    state: State
    trainer: PyTree  # as given to `save`; None if there was none
    notes: Mapping[str, Any]  # as given to `save`


def save(
    directory: str | Path,
    step: int,
    selector: Selector,
    state: State,
    *,
    trainer: PyTree = None,
    notes: Mapping[str, Any] | None = None,
    keep: int = 2,
    keep_every: int | None = None,
    keep_best: int = 0,
    score: float | None = None,
) -> Path:
    """Write one checkpoint, then delete those that no retention rule keeps.

    Args:
      directory: holds one subdirectory a step; made if missing. A folder, no `gs://`.
      step: number of the checkpoint; one that exists is replaced.
      selector: its static settings are written down, and checked by `restore`.
      state: of that selector.
      trainer: any pytree of arrays to be saved in the same breath. Restored they are JAX's, but
        NumPy's where JAX would cut 64 bits to 32.
      notes: JSON values to be handed back.
      keep: newest checkpoints to keep; the previous one is the fallback if the newest is damaged.
      keep_every: also keep the steps that are multiples of this; None for none.
      keep_best: also keep so many with the highest `score`.
      score: of this checkpoint, such as a held-out pass rate; None: it is never among the best.

    Raises:
      CheckpointError: if it cannot be written; the earlier ones are then still there.

    Where a state is whole, one process writes it alone and waits for no other. Where it is spread
    over several (`sharding.shard`), all of them must call this, with one folder that all see: each
    writes its own part, and none gathers the pool.
    """
    directory, step = local_folder(directory), check_count("step", step, least=0)
    target = orbax_files.step_folder(directory, step)
    tree = {"state": state, "trainer": trainer}
    spread = dict(pair for pair in _named_leaves(tree) if orbax_files.is_spread(pair[1]))
    policy = orbax_files.retention(keep, keep_every, keep_best)
    packed, leaves = _pack(tree)
    header = {
        "format": "bots_jax",
        "version": VERSION,
        "step": step,
        "static": _plain(selector.static),
        "leaves": leaves,
        "spread": _describe(spread),
        "generators": _generators(tree),
        "digest": _digest(packed),
        "notes": dict(notes or {}),
    }
    packed[orbax_files.HEADER] = _as_bytes(header)
    try:
        parts = {orbax_files.file_name(i): leaf for i, leaf in enumerate(spread.values())}
        scored = score is not None or keep_best > 0
        with _ONE_AT_A_TIME:  # Orbax clears away what another thread is about to write
            orbax_files.write(directory, step, packed, parts, policy, score, scored=scored)
    except Exception as error:  # Orbax and TensorStore raise many kinds, also plain ones
        raise CheckpointError(
            f"checkpoint {target} could not be written: {_first_line(error)}. Earlier "
            f"checkpoints are untouched: {found(directory) or 'none'}. Free space or choose "
            "another directory, then resume"
        ) from error
    return target


_ONE_AT_A_TIME = threading.Lock()


def _as_bytes(header: Mapping[str, Any]) -> np.ndarray:
    try:
        return np.frombuffer(json.dumps(header).encode(), np.uint8)
    except TypeError as error:
        raise CheckpointError(
            f"notes hold what JSON does not: {error}. Give numbers, strings, lists and "
            "dictionaries, and arrays in trainer=..."
        ) from error


def found(directory: str | Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    directory = local_folder(directory)
    if not directory.is_dir():
        return []
    names = (_STEP_NAME.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def local_folder(directory: str | Path) -> Path:
    """The absolute path of a checkpoint folder, which must be on a mounted file system.

    Raises:
      CheckpointError: for an address of a store, which would become a local folder "gs:".
    """
    if _ADDRESS.match(str(directory)):
        raise CheckpointError(
            f"directory={str(directory)!r} is an address, and checkpoints are written to folders: "
            "mount the store (gcsfuse, s3fs) and give that path, or write "
            "TaskSampler.state_dict() there by the trainer's own means"
        )
    return Path(directory).expanduser().absolute()


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also as a Path leaves it; "C:/" is none


def restore(
    directory: str | Path,
    selector: Selector,
    like: State,
    *,
    trainer: PyTree = None,
    step: int | None = None,
    settings: str = "saved",
    resized: bool = False,
) -> Restored:
    """Read a checkpoint: of `step`, or else the newest that is complete.

    Args:
      directory: as given to `save`.
      selector: must agree with the saved one in every static setting but `CHOICE_ONLY`.
      like: a state of the expected shapes, for example from `selector.init`; it may have room
        for more tasks.
      trainer: a pytree of the expected structure, shapes and dtypes.
      step: of the checkpoint; None skips damaged ones with a warning.
      settings: whose numbers win where they differ, "saved" or "given" (those of `like`).
      resized: whether a grouped pool may have grown since it was as large as `like`: its
        table does between steps, its groups by `add_tasks`.

    Raises:
      CheckpointError: if there is none, or it belongs to another selector or pool.
      DamagedCheckpointError: if `step`, or every one there is, is damaged.
    """
    found = read(directory, step, {"state": like, "trainer": trainer})
    return rebuild(found, selector, like, trainer=trainer, settings=settings, resized=resized)


class Found(NamedTuple):
    """A checkpoint as read from disk: complete, but not yet matched to a selector."""

    step: int
    static: Mapping[str, Any]  # settings of the selector
    arrays: dict[str, np.ndarray]  # by path: "['state']" and "['trainer']" before that of a leaf
    generators: Mapping[str, str]  # that each key belongs to, by path
    notes: Mapping[str, Any]


def read(directory: str | Path, step: int | None = None, template: PyTree = None) -> Found:
    """Read what `save` wrote, for `rebuild`: of `step`, or else the newest that is complete.

    Args:
      template: {"state": ..., "trainer": ...}; what is spread over processes there is read so.

    Raises:
      CheckpointError: if there is none.
      DamagedCheckpointError: if `step`, or every one there is, is damaged.
    """
    directory = local_folder(directory)
    steps = found(directory) if step is None else [step]
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {directory}: it holds no directory step_<number>; "
            "check the path, or start without resuming"
        )
    damaged: list[str] = []
    for candidate in reversed(steps):
        try:
            folder = orbax_files.step_folder(directory, candidate)
            packed, header = _read(folder)
            spread = _read_spread(folder, header, template)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
            continue
        for message in damaged:
            warnings.warn(f"skipped: {message}", RuntimeWarning, stacklevel=3)
        arrays = _cut(packed, header["leaves"]) | spread
        generators = header["generators"]
        return Found(header["step"], header["static"], arrays, generators, header["notes"])
    raise DamagedCheckpointError("; ".join(damaged) + ". No whole checkpoint is left")


def rebuild(
    found: Found,
    selector: Selector,
    like: State,
    *,
    trainer: PyTree = None,
    settings: str = "saved",
    resized: bool = False,
) -> Restored:
    """Rebuild the state and the trainer's pytree from what `read` returned; see `restore`.

    What is spread over devices in `like` is spread as it is.

    Raises:
      CheckpointError: if it belongs to another selector or pool.
    """
    check_choice("settings", settings, ("saved", "given"))
    check_static(found.static, selector)
    if resized:
        like = _as_large(like, found.arrays, "['state']")
    template = {"state": like, "trainer": trainer}
    _check_generators(found.generators, template)
    spread = any(map(orbax_files.is_spread, jax.tree.leaves(like)))
    arrays = found.arrays if spread else _fit(found.arrays, like, "['state']")
    _check_leaves(arrays, template)
    tree = _fill(arrays, template)
    state: State = tree["state"]
    if settings == "given":
        state = state._replace(settings=Settings(*like.settings))
    return Restored(found.step, state, tree["trainer"], found.notes)


def named_arrays(state: State) -> dict[str, np.ndarray]:
    """The leaves of a state as NumPy arrays, by path, for other checkpoint libraries."""
    return {path: _as_numpy(leaf) for path, leaf in _named_leaves(state)}


def from_named_arrays(
    static: Mapping[str, Any],
    arrays: Mapping[str, Any],
    selector: Selector,
    like: State,
    settings: str = "saved",
) -> State:
    """The state from the arrays of `named_arrays`; a grouped pool may have grown since `like`.

    Args:
      static: settings of the selector that it was saved with.
      arrays: by path.
      selector: must agree with the saved one in every static setting but `CHOICE_ONLY`.
      like: a state of the expected structure; it may have room for more tasks.
      settings: whose numbers win where they differ, "saved" or "given" (those of `like`).

    Raises:
      CheckpointError: if they belong to another selector or pool.
    """
    check_choice("settings", settings, ("saved", "given"))
    check_static(static, selector)
    found = {path: np.asarray(array) for path, array in arrays.items()}
    template = _as_large(like, found, "")
    found = _fit(found, template, "")
    _check_leaves(found, template)
    state: State = _fill(found, template)
    return state._replace(settings=Settings(*like.settings)) if settings == "given" else state


def _as_large(like: State, arrays: Mapping[str, np.ndarray], prefix: str) -> State:
    """A grouped `like` with the sizes of the saved leaves; any other as it is."""
    if like.representation != "grouped":
        return like
    saved = {path: (array.dtype.name, array.shape) for path, array in arrays.items()}
    groups = like.pool.groups
    for name in ("order", "of_task"):  # a pool given by sizes has none until tasks are added
        path = f"{prefix}.pool.groups.{name}"
        if getattr(groups, name) is None and path in saved:
            groups = groups._replace(**{name: np.zeros(0, saved[path][0])})
    like = like._replace(pool=like.pool._replace(groups=groups))

    def resize(path: Any, leaf: Any) -> Any:
        _, shape = saved.get(prefix + jax.tree_util.keystr(path), (None, None))
        ours = np.shape(leaf)
        if shape is None or len(shape) != len(ours) or list(shape[:-1]) != list(ours[:-1]):
            return leaf
        return np.broadcast_to(np.zeros((), _as_numpy(leaf).dtype), shape)  # holds one number

    grown: State = jax.tree_util.tree_map_with_path(resize, like)
    return grown


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _plain(static: Mapping[str, Any]) -> dict[str, Any]:
    """Static settings as JSON would give them back."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(static), default=str))
    return plain


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in pairs]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _pack(tree: PyTree) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """One flat array a dtype, and [path, dtype, shape] in order; what is spread is left out."""
    parts: dict[str, list[np.ndarray]] = {}
    leaves: list[list[Any]] = []
    for path, leaf in _named_leaves(tree):
        if orbax_files.is_spread(leaf):
            continue
        array = _as_numpy(leaf)
        if array.dtype.kind in "OUSMm":
            raise CheckpointError(
                f"the checkpoint was to hold {path} as {array.dtype}: only numbers are saved; put "
                "names and the like into notes=..."
            )
        parts.setdefault(array.dtype.name, []).append(array.ravel())
        leaves.append([path, array.dtype.name, list(array.shape)])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, leaves


def _digest(packed: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(packed):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(packed[name]).tobytes())
    return sha.hexdigest()


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The packed arrays and the header, verified."""
    if not path.is_dir():
        raise DamagedCheckpointError(f"checkpoint {path} does not exist")
    try:
        packed = orbax_files.read(path)
        header = json.loads(packed.pop(orbax_files.HEADER).tobytes().decode())
        whole = header["digest"] == _digest(packed)
    except Exception as error:  # any garbage must end as a clear message
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged or not of bots_jax: {_first_line(error)}"
        ) from error
    if not whole:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    check_version(f"checkpoint {path}", header["version"])
    return packed, header


def check_version(what: str, version: Any) -> None:
    """Raise if this version cannot read the checkpoint's format."""
    if version != VERSION:
        way = "upgrade bots_jax" if isinstance(version, int) and version > VERSION else (
            "go on with the bots_jax that wrote it, or begin anew"
        )  # fmt: skip
        raise CheckpointError(
            f"{what} has format version {version}, this bots_jax reads {VERSION}: {way}"
        )


def _generators(tree: PyTree) -> dict[str, str]:
    """The random generator that each key belongs to, by path."""
    pairs = _named_leaves(tree)
    return {path: str(jax.random.key_impl(leaf)) for path, leaf in pairs if _is_key(leaf)}


def _check_generators(saved: Mapping[str, str], template: PyTree) -> None:
    for path, here in _generators(template).items():
        if saved.get(path, here) != here:
            raise CheckpointError(
                f"the checkpoint holds {path} as a key of the generator {saved[path]!r}, expected "
                f"{here!r}: make it with jax.random.key(seed, impl={saved[path]!r})"
            )


def _describe(spread: Mapping[str, jax.Array]) -> dict[str, list[Any]]:
    """[dtype, shape, sum of bits] of each array that is spread, by path."""
    sums = orbax_files.bit_sums(list(spread.values()))
    return {
        path: [leaf.dtype.name, list(leaf.shape), bits]
        for (path, leaf), bits in zip(spread.items(), sums, strict=True)
    }


def _read_spread(folder: Path, header: Mapping[str, Any], template: PyTree) -> dict[str, Any]:
    """What was spread over several processes, by path; spread again where the template is."""
    told = header.get("spread", {})
    if not told:
        return {}
    leaves = dict(_named_leaves(template))
    for path, (dtype, shape, _) in told.items():
        leaf = leaves.get(path)
        if orbax_files.is_spread(leaf) and _kind(leaf) != [dtype, shape]:
            raise CheckpointError(
                f"the checkpoint holds {path} as {_spell([dtype, shape])}, expected "
                f"{_spell(_kind(leaf))}: restore it with a `like` that is whole, which may have "
                "other room, and spread it again"
            )
    names = [orbax_files.file_name(place) for place in range(len(told))]
    like = dict(zip(names, (leaves.get(path) for path in told), strict=True))
    try:
        found = orbax_files.read_spread(folder, like)
    except Exception as error:  # any garbage must end as a clear message
        raise DamagedCheckpointError(
            f"checkpoint {folder} is damaged: {_first_line(error)}"
        ) from error
    arrays = [found[name] for name in names]
    for path, bits in zip(told, orbax_files.bit_sums(arrays), strict=True):
        if bits != told[path][2]:
            raise DamagedCheckpointError(
                f"checkpoint {folder} is damaged: the sum of {path} does not match"
            )
    return dict(zip(told, arrays, strict=True))


def check_static(saved: Mapping[str, Any], selector: Selector) -> None:
    """Raise if the selector differs in a setting that beliefs depend on.

    Raises:
      CheckpointError: naming the setting.
    """
    _check_static(_plain(saved), _plain(selector.static))


def _check_static(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    # The strategy first: where it differs, so does much else.
    names = (set(saved) | set(given)) - CHOICE_ONLY
    for name in sorted(names, key=lambda name: (name != "strategy", name)):
        if saved.get(name) != given.get(name):
            raise CheckpointError(
                f"the checkpoint was made with {name}={saved.get(name)!r}, this selector has "
                f"{name}={given.get(name)!r}: make the selector with the saved value, or begin anew"
            )


def _check_leaves(saved: Mapping[str, np.ndarray], template: PyTree) -> None:
    names = {path: _kind(array) for path, array in saved.items()}
    wanted = {path: _kind(leaf) for path, leaf in _named_leaves(template)}
    for path in [*wanted, *names]:
        if names.get(path) != wanted.get(path):
            _check_described(path, names, wanted)
            _check_trainer(path, names, wanted)
            raise CheckpointError(
                f"the checkpoint holds {path} as {_spell(names.get(path))}, expected "
                f"{_spell(wanted.get(path))}: it belongs to another pool, model or library version"
            )


def _check_trainer(path: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """A trainer's state that is saved and not asked for, or the other way about, said plainly."""
    if not path.startswith("['trainer']"):
        return
    if not any(name.startswith("['trainer']") for name in here):
        raise CheckpointError(
            "the checkpoint holds the trainer's own state, and none is expected: give trainer=, a "
            "pytree of the structure that was saved"
        )
    if not any(name.startswith("['trainer']") for name in saved):
        raise CheckpointError(
            "the checkpoint was saved without trainer=, and trainer= is expected: leave it out"
        )


def _kind(leaf: Any) -> list[Any]:
    """[dtype, shape], as a header has them."""
    array = leaf if orbax_files.is_spread(leaf) else _as_numpy(leaf)
    return [array.dtype.name, list(array.shape)]


def _check_described(path: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Pools of which one has features, or domains, that the other has not, said plainly."""
    prefix = path.split(".")[0]
    features, sizes = f"{prefix}.reference.embeddings", f"{prefix}.pool.domain_sizes"
    rates = f"{prefix}.reference.rates"
    if features in here and features not in saved:
        raise CheckpointError(
            "the checkpoint holds no features, and this pool has some: make it with features=None "
            "(features of the prompts are made by default), or begin anew"
        )
    if features in saved and features not in here:
        raise CheckpointError(
            "the checkpoint holds features, and this pool has none: give the features=... or "
            "prompts=... of the saved run; features=None goes with a run that began without"
        )
    for part, what in (
        (features, "columns of features (features=...)"),
        (rates, "reference models (reference=...)"),
        (sizes, "domains (domains=..., num_domains=... of the factory)"),
    ):
        theirs, ours = saved.get(part), here.get(part)
        if theirs and ours and theirs[1][0] != ours[1][0]:
            raise CheckpointError(
                f"the checkpoint holds {theirs[1][0]} {what}, this pool has {ours[1][0]}: it "
                "belongs to another pool; give as many as the saved run had, or begin anew"
            )


def _spell(leaf: list[Any] | None) -> str:
    return "nothing" if leaf is None else f"{leaf[0]}{leaf[1]}"


def _cut(packed: Mapping[str, np.ndarray], leaves: list[list[Any]]) -> dict[str, np.ndarray]:
    """The leaves that were packed, by path."""
    offsets = dict.fromkeys(packed, 0)
    arrays: dict[str, np.ndarray] = {}
    for path, dtype, shape in leaves:
        size = int(np.prod(shape))
        arrays[path] = packed[dtype][offsets[dtype] : offsets[dtype] + size].reshape(shape)
        offsets[dtype] += size
    return arrays


def _fit(arrays: dict[str, np.ndarray], like: State, prefix: str) -> dict[str, np.ndarray]:
    """The saved leaves of a dense pool, with the rows of `like`, be they more or fewer.

    Rows beyond the saved ones are those of `like`, which hold no task; saved rows beyond those of
    `like` were room that no task has used.
    """
    saved = arrays.get(f"{prefix}.pool.active")
    if like.representation == "grouped" or saved is None or saved.ndim != 1:
        return arrays
    active = np.asarray(like.pool.active)
    rows, room = len(saved), len(active)
    used = max(int(arrays[f"{prefix}.pool.next_fresh"]), int(np.sum(saved)))
    if used > room:
        raise CheckpointError(
            f"the checkpoint has {used} rows, this pool has room for {room}: it belongs to another "
            f"pool, or give capacity={used} or more"
        )
    if active[rows:].any():
        return arrays  # there are other tasks here: `_check_leaves` says so
    fitted = dict(arrays)
    for name, leaf in _named_leaves(like):
        path, ours = prefix + name, np.shape(leaf)
        theirs = np.shape(arrays.get(path, ours))
        by_row = len(ours) == len(theirs) and all(
            (a, b) == (rows, room) or a == b for a, b in zip(theirs, ours, strict=True)
        )
        if by_row and ours != theirs:
            both = tuple(slice(0, min(a, b)) for a, b in zip(theirs, ours, strict=True))
            fitted[path] = np.array(_as_numpy(leaf))
            fitted[path][both] = arrays[path][both]
    touched = f"{prefix}.pool.touched"
    if touched in arrays and (rows != room or arrays[touched].shape != like.pool.touched.shape):
        fitted.update(list_touched(fitted, like, prefix))
    return fitted


def list_touched(arrays: Mapping[str, np.ndarray], like: State, prefix: str) -> dict[str, Any]:
    """The list of rows with pending evidence, as long as that of `like`: see `pool.visits`."""
    pool = {name: arrays[f"{prefix}.pool.{name}"] for name in ("trials", "visit_trials")}
    pending = np.flatnonzero((pool["trials"] > 0) | (pool["visit_trials"] > 0)).astype(np.int32)
    listed = np.full(like.pool.touched.shape, len(like.pool.active), np.int32)
    listed[: len(pending)] = pending[: len(listed)]
    count = np.asarray(len(pending), np.int32)
    return {f"{prefix}.pool.touched": listed, f"{prefix}.pool.num_touched": count}


def _fill(arrays: Mapping[str, np.ndarray], template: PyTree) -> Any:
    """`template` with other leaves, by path."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(template)
    leaves = [_like(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in pairs]
    return jax.tree_util.tree_unflatten(structure, leaves)


def _like(array: Any, leaf: Any) -> Any:
    """A key array where the template has one, else a JAX array (a copy, safe to donate).

    On the devices of the template where these are several.
    """
    if _is_key(leaf):
        data = _like(array, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if orbax_files.is_spread(array):
        return array
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda part: array[part])
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return np.array(array)  # of 64 bits, which JAX would cut to 32
    return jnp.array(array)
