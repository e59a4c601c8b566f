"""Files of a checkpoint, written and retained by Orbax.

In: packed arrays that a process holds whole, and arrays that are spread over several processes.
Out: a folder a step, complete or not there. `checkpoint` says what the arrays mean.

What is whole is written by one process alone, which waits for no other. What is spread is
written by all of them, each its own part, so that no machine ever holds a pool that it has no
room for; a sum of all bits of each such array tells whether what is read is what was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import check_count

HEADER = "header"
_ITEM = "default"  # as Orbax names the only item of a checkpoint
_SPREAD = "spread"  # arrays of which each process holds a part
_STEP_PREFIX, _STEP_DIGITS = "step", 8


def _orbax() -> Any:
    """Orbax's checkpoints, which nothing else needs."""
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"checkpoints need {error.name}, which is not installed: pip install "
            "'bots-jax[checkpoint]' ('.[checkpoint]' in a clone)",
            name=error.name,
        ) from None
    return ocp


def step_folder(directory: Path, step: int) -> Path:
    """The folder of one step's checkpoint."""
    return directory / f"{_STEP_PREFIX}_{step:0{_STEP_DIGITS}d}"


def retention(keep: int, every: int | None, best: int) -> Any:
    """Orbax's retention policy for `keep`, `keep_every` and `keep_best`."""
    rules = _orbax().checkpoint_managers
    policies: list[Any] = [rules.LatestN(check_count("keep", keep))]
    if every is not None:
        policies.append(rules.EveryNSteps(check_count("keep_every", every)))
    if check_count("keep_best", best, least=0):
        policies.append(
            rules.BestN(
                get_metric_fn=_score,
                n=best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return rules.AnyPreservationPolicy(policies)


def _score(metrics: Mapping[str, float]) -> float:
    return float(metrics["score"])


def write(
    directory: Path,
    step: int,
    packed: Mapping[str, Any],
    spread: Mapping[str, jax.Array],
    policy: Any,
    score: float | None,
    *,
    scored: bool,
) -> None:
    """Write a step: by this process alone, or by all if `spread` has arrays."""
    ocp = _orbax()

    processes = ocp.options.MultiprocessingOptions() if spread else _alone()
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        step_name_format=ocp.path.step.standard_name_format(
            step_prefix=_STEP_PREFIX, step_format_fixed_length=_STEP_DIGITS
        ),
        preservation_policy=policy,
        best_fn=_score if scored else None,  # without it Orbax knows no metrics
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        create=False,
        multiprocessing_options=processes,
    )
    items: dict[str, Mapping[str, Any]] = {_ITEM: packed}
    if spread:
        items[_SPREAD] = spread
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in items:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=processes)
        registry.add(name, ocp.args.PyTreeSave, handler)
    with ocp.CheckpointManager(directory, options=options, handler_registry=registry) as manager:
        if step in manager.all_steps():
            manager.delete(step)
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        metrics = None if score is None else {"score": float(score)}
        manager.save(step, args=ocp.args.Composite(**args), metrics=metrics, force=True)


def read(folder: Path) -> dict[str, np.ndarray]:
    """Read packed arrays, by this process alone."""
    # Orbax's manager keeps each item in a folder of its own; format 2 had none.
    item = folder / _ITEM if (folder / _ITEM).is_dir() else folder
    return {
        name: np.asarray(array) for name, array in _checkpointer(_alone()).restore(item).items()
    }


def read_spread(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read sharded arrays, by all processes together: as NumPy, or sharded as `like`.

    Args:
      folder: of the step.
      like: by name; each an array of the expected shape and dtype.
    """
    ocp = _orbax()

    together = any(is_spread(leaf) for leaf in like.values())
    args = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)
        if is_spread(leaf)
        else ocp.RestoreArgs(restore_type=np.ndarray)
        for name, leaf in like.items()
    }
    processes = ocp.options.MultiprocessingOptions() if together else _alone()
    found: dict[str, Any] = _checkpointer(processes).restore(
        folder / _SPREAD, args=ocp.args.PyTreeRestore(restore_args=args)
    )
    return found


def _checkpointer(processes: Any) -> Any:
    ocp = _orbax()

    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=processes)
    return ocp.Checkpointer(handler, multiprocessing_options=processes)


def _alone() -> Any:
    """Orbax waits for no other process."""
    ocp = _orbax()

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"bots{process}"
    )


def is_spread(leaf: Any) -> bool:
    """Whether an array is sharded over several processes."""
    return isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    )


def bit_sums(arrays: Sequence[Any]) -> list[int]:
    """A checksum for each array, independent of its sharding.

    Sums of odd multiples of its bits, modulo 2**32: no order of adding changes them.
    """
    if not arrays:
        return []
    sums = jax.jit(lambda given: [_bit_sum(array) for array in given])(list(arrays))
    return [int(np.asarray(found.addressable_data(0))) for found in sums]


def _bit_sum(array: jax.Array) -> jax.Array:
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    if bits.dtype.itemsize > 4:
        bits = jax.lax.bitcast_convert_type(bits, jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}"))
    weight = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):  # no reshape: it would gather what is spread
        weight = weight * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * weight + 1), dtype=jnp.uint32)


def file_name(place: int) -> str:
    """A file name for a sharded array: its path has characters that a store may refuse."""
    return f"array_{place:04d}"
