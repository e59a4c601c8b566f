"""The base policy and its two references, by a short supervised warm-up, cached on disk.

In: a `WarmupConfig`. Out: three checkpoints of one run of teacher forcing on easy tasks,

    L = - mean over answer tokens of log pi(a_t | q, a_<t):

an early one (weak reference), the base policy that finetuning starts from, and a late one
(strong reference); and the pass rates f32[2, N] of the two references, measured by rolling
them out on the pool. No prompt of the pool or of the held-out tasks is seen here (`tasks`).

What is cached is arrays, in .npz files without pickles: written to a temporary file, then
moved into place, with a checksum inside. A damaged file is noticed, reported and made anew.
A warm-up that is interrupted is kept too, so that it goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from bots_jax.rl.policy import GraphDef, Params, PolicyConfig, make_policy
from bots_jax.rl.policy_gradient import completion_logprobs
from bots_jax.rl.rollouts import pass_rates
from bots_jax.rl.tasks import FAMILY_NAMES, PAD, TaskPool, Verifier, generate_split

Array = jax.Array
Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # (what is being done, done, of how many)

FORMAT = 1  # of the cache; a change here makes every cached file unknown
EASY_FAMILIES = (
    "addition", "subtraction", "modular", "comparison", "sorting", "reversal", "counting",
    "maximum", "successor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WarmupConfig:
    """Settings of the warm-up. The defaults make pass rates spread: see `measure_references`.

    Raises:
      ValueError: where a setting is out of range.
    """

    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    families: tuple[str, ...] = EASY_FAMILIES
    max_size: int = 6  # of the problems seen
    size_decay: float = 1.0  # a problem is drawn so many times as often as one a size smaller
    num_tasks: int = 8192
    early_steps: int = 300  # gradient steps to the weak reference
    base_steps: int = 900  # to the base policy
    late_steps: int = 1800  # to the strong reference
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.early_steps < self.base_steps < self.late_steps:
            raise ValueError(
                f"early_steps={self.early_steps}, base_steps={self.base_steps}, "
                f"late_steps={self.late_steps} must be positive and rise in this order"
            )
        if self.batch_size < 1 or self.seed < 0:
            raise ValueError(
                f"batch_size={self.batch_size} must be at least 1, seed={self.seed} at least 0"
            )
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least 0")
        if not 0 < self.size_decay <= 1:
            raise ValueError(f"size_decay={self.size_decay} must be above 0 and at most 1")
        if unknown := [name for name in self.families if name not in FAMILY_NAMES]:
            raise ValueError(f"families={unknown} are unknown; use {', '.join(FAMILY_NAMES)}")


class WarmStart(NamedTuple):
    """One policy at three times."""

    graphdef: GraphDef  # static
    early: Params  # the weak reference
    base: Params  # where finetuning starts
    late: Params  # the strong reference


def warm_up(
    config: WarmupConfig,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> WarmStart:
    """Train the three checkpoints, or read them from `cache_dir`.

    Args:
      cache_dir: made where absent; None for no cache.
      progress: called every few steps.
    """
    graphdef, params = make_policy(config.policy, _key(config, 0))
    leaves, structure = jax.tree.flatten(params)

    def make() -> dict[str, NDArray[Any]]:
        checkpoints = _train(config, graphdef, params, progress, _partial_file(config, cache_dir))
        flat = [leaf for checkpoint in checkpoints for leaf in jax.tree.leaves(checkpoint)]
        return {f"leaf{i:04d}": np.asarray(leaf) for i, leaf in enumerate(flat)}

    arrays = cached_arrays(cache_dir, "warmup", _identity(config), make)
    if (partial := _partial_file(config, cache_dir)) is not None:
        with contextlib.suppress(OSError):  # a cache that may only be read
            partial.unlink(missing_ok=True)
    flat = [jnp.asarray(arrays[name]) for name in sorted(arrays)]
    parts = [flat[i * len(leaves) : (i + 1) * len(leaves)] for i in range(3)]
    return WarmStart(graphdef, *(jax.tree.unflatten(structure, part) for part in parts))


def measure_references(
    graphdef: GraphDef,
    checkpoints: Sequence[Params],
    prompts: Array,
    verifier: Verifier,
    rng_key: Array,
    *,
    rollouts: int = 8,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Pass rates f32[K, N] of K checkpoints on prompts i32[N, P], at temperature 1.

    Args:
      rng_key: consumed; every checkpoint gets its own.
      verifier: as in `tasks`; rewards are averaged over `rollouts` completions of each task.
    """

    @jax.jit
    def measure(params: Params, key: Array) -> Array:
        found = pass_rates(
            graphdef, params, prompts, verifier, key,
            rollouts=rollouts, max_new_tokens=max_new_tokens, chunk=256,
        )  # fmt: skip
        return found.successes / rollouts

    rates = []
    for i, params in enumerate(checkpoints):
        rates.append(np.asarray(measure(params, jax.random.fold_in(rng_key, i)), np.float32))
        if progress:
            progress("references", i + 1, len(checkpoints))
    return np.stack(rates)


def cached_references(
    start: WarmStart,
    config: WarmupConfig,
    pool: TaskPool,
    verifier: Verifier,
    *,
    rollouts: int = 8,
    max_new_tokens: int,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """`measure_references` of the early and the late checkpoint, read from the cache if there.

    The cache goes by the warm-up, the pool and `rollouts`, so `verifier` must be the pool's
    exact one; measure with another verifier by `measure_references`, uncached.
    """

    def make() -> dict[str, NDArray[Any]]:
        rates = measure_references(
            start.graphdef, (start.early, start.late), jnp.asarray(pool.prompts), verifier,
            _key(config, 2), rollouts=rollouts, max_new_tokens=max_new_tokens, progress=progress,
        )  # fmt: skip
        return {"reference": rates}

    asked = {"rollouts": rollouts, "max_new_tokens": max_new_tokens}
    content = {"prompts": np.asarray(pool.prompts), "answers": np.asarray(pool.answers)}
    identity = [*_identity(config), asked, _checksum(content).hex()]
    return np.asarray(cached_arrays(cache_dir, "references", identity, make)["reference"])


# --- training -----------------------------------------------------------------------------


def _key(config: WarmupConfig, use: int) -> Array:
    """A key for initialisation (0), the order of the data (1), the references (2)."""
    return jax.random.fold_in(jax.random.key(config.seed), use)


REPORT_EVERY = 25  # steps between calls of `progress`, and between saves


class _Training(NamedTuple):
    """A warm-up under way."""

    done: Array  # i32, steps taken
    params: Params
    opt_state: Any
    kept: tuple[Params, Params, Params]  # the checkpoints; meaningless where not yet reached


def _train(
    config: WarmupConfig,
    graphdef: GraphDef,
    params: Params,
    progress: Progress | None,
    partial: Path | None = None,
) -> list[Params]:
    """The parameters after `early_steps`, `base_steps` and `late_steps`.

    Args:
      partial: file that a warm-up which was interrupted is taken up from.
    """
    pool = generate_split("warmup", config.num_tasks, config.seed, config.families, config.max_size)
    rate = optax.linear_schedule(0.0, config.learning_rate, 20)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay)
    )
    step = jax.jit(_supervised_step(config, graphdef, optimizer, pool))
    start = _Training(jnp.zeros((), jnp.int32), params, optimizer.init(params), (params,) * 3)
    begun, params, opt_state, at_start = _take_up(partial, start)
    kept, marks = list(at_start), (config.early_steps, config.base_steps, config.late_steps)
    for done in range(int(begun) + 1, config.late_steps + 1):
        params, opt_state = step(params, opt_state, jnp.int32(done))
        if done in marks:
            kept[marks.index(done)] = params
        if done % REPORT_EVERY == 0 and done < config.late_steps:
            now = _Training(jnp.int32(done), params, opt_state, (kept[0], kept[1], kept[2]))
            _save_partial(partial, now)
        if progress and (done % REPORT_EVERY == 0 or done == config.late_steps):
            jax.block_until_ready(params)  # dispatch runs ahead of the work
            progress("warm-up", done, config.late_steps)
    return kept


def _partial_file(config: WarmupConfig, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    return None if cache_dir is None else _cache_file(cache_dir, "partial", _identity(config))


def _take_up(partial: Path | None, start: _Training) -> _Training:
    """The warm-up that the file holds, or the start where there is none of these shapes."""
    found = None if partial is None else read_arrays(partial)
    leaves, structure = jax.tree.flatten(start)
    names = [f"leaf{i:04d}" for i in range(len(leaves))]
    if found is None or sorted(found) != names:
        return start
    taken: _Training = jax.tree.unflatten(structure, [jnp.asarray(found[name]) for name in names])
    return taken


def _save_partial(partial: Path | None, now: _Training) -> None:
    if partial is None:
        return
    arrays = {f"leaf{i:04d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(now))}
    with contextlib.suppress(OSError):  # only time is lost; `cached_arrays` warns of the folder
        write_arrays(partial, arrays)


def _supervised_step(
    config: WarmupConfig,
    graphdef: GraphDef,
    optimizer: optax.GradientTransformation,
    pool: TaskPool,
) -> Callable[[Params, Any, Array], tuple[Params, Any]]:
    prompts, answers = jnp.asarray(pool.prompts), jnp.asarray(pool.answers)
    draw = _row_sampler(pool, config)

    def loss(params: Params, rows: Array) -> Array:
        targets = answers[rows][:, None, :]
        logprobs = completion_logprobs(graphdef, params, prompts[rows], targets)
        counted = targets != PAD
        return -jnp.sum(jnp.where(counted, logprobs, 0.0)) / jnp.sum(counted)

    def step(params: Params, opt_state: Any, done: Array) -> tuple[Params, Any]:
        key = jax.random.fold_in(_key(config, 1), done)
        grads = jax.grad(loss)(params, draw(key))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def _row_sampler(pool: TaskPool, config: WarmupConfig) -> Callable[[Array], Array]:
    """`draw(key) -> i32[batch_size]`: rows of the pool, with replacement.

    With `size_decay` below 1 families are drawn alike, and within a family each row with a weight
    of size_decay^(size - 1).
    """
    total, shape = len(np.asarray(pool.prompts)), (config.batch_size,)
    if config.size_decay == 1:
        return lambda key: jax.random.randint(key, shape, 0, total)
    family, weights = np.asarray(pool.family), config.size_decay ** (np.asarray(pool.size) - 1.0)
    weights /= np.bincount(family, weights)[family]
    upto = jnp.asarray(np.cumsum(weights / weights.sum()), jnp.float32)

    def draw(key: Array) -> Array:
        return jnp.minimum(jnp.searchsorted(upto, jax.random.uniform(key, shape)), total - 1)

    return draw


# --- the cache ----------------------------------------------------------------------------


def cached_arrays(
    cache_dir: str | os.PathLike[str] | None,
    name: str,
    identity: Any,
    make: Callable[[], dict[str, NDArray[Any]]],
) -> Arrays:
    """The arrays that `make` returns, from the cache where they are there and whole.

    Args:
      cache_dir: None calls `make` without a cache.
      name: first part of the file's name, the rest is a hash of `identity`.
      identity: JSON data of all that the arrays depend on.

    A file that is damaged, and a folder that cannot be written, give a warning, not an error.
    """
    if cache_dir is None:
        return make()
    path = _cache_file(cache_dir, name, identity)
    found = read_arrays(path)
    if found is not None:
        return found
    arrays = make()
    try:
        write_arrays(path, arrays)
    except OSError as error:
        warnings.warn(f"could not cache {name} in {path}: {error}; going on", stacklevel=2)
    return arrays


def _cache_file(cache_dir: str | os.PathLike[str], name: str, identity: Any) -> Path:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path(cache_dir) / f"{name}-{digest[:32]}.npz"


def _identity(config: WarmupConfig) -> list[Any]:
    """All that the warm-up depends on: settings, this package, the libraries, the device."""
    libraries = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {library: importlib.metadata.version(library) for library in libraries}
    return [FORMAT, dataclasses.asdict(config), versions, jax.default_backend()]


def _checksum(arrays: Arrays) -> bytes:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.digest()


def read_arrays(path: Path) -> Arrays | None:
    """The arrays of a whole file; None where there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if arrays.pop("checksum").tobytes() == _checksum(arrays):
            return arrays
        problem = "its checksum is wrong"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"it cannot be read ({error})"
    warnings.warn(f"the cached file {path} is damaged: {problem}; making it anew", stacklevel=3)
    return None


def write_arrays(path: Path, arrays: Arrays) -> None:
    """All or nothing: a reader, or a kill at any moment, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            checksum = np.frombuffer(_checksum(arrays), np.uint8)
            # Without allow_pickle, which NumPy before 2.1 would write as an array of that name.
            np.savez(file, **{"checksum": checksum, **arrays})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
