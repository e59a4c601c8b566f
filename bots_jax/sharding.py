"""Shard pools over several devices and hosts.

In: a state, and the devices. Out: the same state with every array of C tasks cut into one
piece a device, everything else on all of them:

    state = shard(selector.init(reference, capacity=padded_capacity(num_tasks)), task_mesh())

From there on the selector is used as on one device. What it computes of each task is computed
where the task lives. Only small arrays cross devices: a rate a block of 64 tasks, the tasks
that the race hits, the batch. Selections and posteriors are the same, bit for bit, on any
number of devices of one kind from two on (on one, XLA may compile to code that differs in last
bits), because no float sum is taken in an order that depends on it:
a sum goes over fixed blocks of 64 tasks first, each on one device, and then, on every
device alike, over the blocks.

The first half of the file places a state. The second is what the rest of the package computes
with; it finds the mesh by looking at the arrays, and does nothing where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bots_jax.checks import is_concrete
from bots_jax.types import Array, ArrayLike, Evidence, PyTree, State

AXIS = "tasks"
# Tasks of a block, which lives on one device.
BLOCK = 64


# --- placing a state ----------------------------------------------------------------------


def task_mesh(devices: Sequence[jax.Device] | Mesh | None = None) -> Mesh:
    """A mesh with one axis, "tasks", over these devices; None: all devices of all hosts.

    Args:
      devices: in the order in which they get their parts of the pool, or any mesh: its
        devices are taken row by row, so that it goes together with a model on that mesh.
    """
    if devices is None:
        devices = jax.devices()
    array = devices.devices if isinstance(devices, Mesh) else np.asarray(devices, dtype=object)
    return Mesh(array.ravel(), (AXIS,))


def padded_capacity(num_tasks: int, devices: int = 8) -> int:
    """The least capacity of at least `num_tasks` that can be sharded over the devices.

    It can be spread over every divisor of that number too. Compare runs on different numbers
    of devices at one capacity.
    """
    if num_tasks < 1 or devices < 1:
        raise ValueError(f"num_tasks={num_tasks} and devices={devices} must be at least 1")
    share = BLOCK * devices
    return -(-num_tasks // share) * share


def shard(state: State, mesh: Mesh | None = None) -> State:
    """Shard a state over a mesh, or move it to another mesh; also in traced code.

    A dense pool is cut along its tasks. A grouped one is small, but for the two lists of
    its tasks, and is copied to every device.

    Args:
      state: of any selector; on several hosts, the same on each of them.
      mesh: from `task_mesh`, or any other, of which only the devices are used; None for all.

    Returns:
      The state. Give its functions keys and evidence as before; on several hosts every host
      must give the same (see `gather_evidence`).

    Raises:
      ValueError: if the capacity is not a multiple of 64 times the number of devices.
    """
    mesh = task_mesh(mesh)
    rows = _spread_rows(state)
    share = BLOCK * mesh.size
    if rows is not None and rows % share:
        raise ValueError(
            f"the pool's capacity {rows} cannot be spread over {mesh.size} devices: it must be a "
            f"multiple of {share}; give init(capacity={padded_capacity(rows, mesh.size)})"
        )
    return jax.tree.map(_put, state, state_shardings(state, mesh))


def state_shardings(state: State, mesh: Mesh) -> PyTree:
    """Where `shard` puts each array of a state, or of its shapes, on a mesh from `task_mesh`."""
    rows = _spread_rows(state)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf, rows)), state)


def _spread_rows(state: State) -> int | None:
    """C, or None where nothing is cut."""
    if state.representation == "grouped":
        return None
    return int(state.capacity)


def _spec(leaf: Array, rows: int | None) -> PartitionSpec:
    if rows is None or leaf.ndim == 0 or leaf.shape[-1] != rows:
        return PartitionSpec()
    return PartitionSpec(*[None] * (leaf.ndim - 1), AXIS)


def _put(leaf: Array, sharding: NamedSharding) -> Array:
    if not is_concrete(leaf):
        return lax.with_sharding_constraint(leaf, sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # Each host hands its own devices their parts of what it holds.
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def beside(value: PyTree, pool_leaf: Array) -> PyTree:
    """Copy a user's arrays to each device of the pool.

    What is on one device or on the host is left as it is. An array that is spread over another
    mesh, such as rewards on that of the model, would not meet the pool's. In traced code only axes
    of a mesh that are explicit (`jax.make_mesh` makes such) are seen: those are gathered.
    """

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if not is_concrete(leaf, pool_leaf):
            return _gathered(leaf)
        if len(leaf.sharding.device_set) == 1 and not isinstance(leaf.sharding, NamedSharding):
            return leaf
        target: jax.sharding.Sharding = pool_leaf.sharding
        if isinstance(target, NamedSharding):
            target = NamedSharding(target.mesh, PartitionSpec())
        return leaf if leaf.sharding == target else jax.device_put(leaf, target)

    return jax.tree.map(move, value)


def _gathered(leaf: Array) -> Array:
    """A traced array whose type says that it is spread, whole on each device; others as is."""
    sharding = jax.typeof(leaf).sharding
    if not any(part is not None for part in sharding.spec):
        return leaf
    return jax.sharding.reshard(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def gather_evidence(evidence: Evidence) -> Evidence:
    """Gather the evidence rows of all hosts on every host, in the order of the hosts.

    Every host must call this, with as many rows (pad with task id -1), at the same step.

    Returns:
      NumPy arrays of hosts x M rows; what may be None is given where it was given.
    """
    from jax.experimental import multihost_utils  # imports much, and is used on few machines

    rows = np.shape(evidence.task_ids)
    columns: dict[str, ArrayLike] = {
        "task_ids": np.asarray(evidence.task_ids, np.int32),
        "successes": np.asarray(evidence.successes),
        "trials": np.broadcast_to(np.asarray(evidence.trials), rows),
    }
    for name in ("visit", "tokens", "attempts", "differ"):
        column = getattr(evidence, name)
        if column is not None:
            columns[name] = np.broadcast_to(np.asarray(column), rows)
    if jax.process_count() > 1:
        columns = multihost_utils.process_allgather(columns, tiled=True)
    return Evidence(**columns)


# --- computing with arrays that may be spread ----------------------------------------------


def mesh_of(array: Array) -> AbstractMesh | None:
    """The mesh that an array of the pool is sharded over; None on a single device.

    In traced code an array does not tell where it lives, but its type tells the mesh.
    """
    mesh = jax.typeof(array).sharding.mesh
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh if types.get(AXIS) == AxisType.Auto else None


def replicated(value: Array) -> Array:
    """Replicate values on every device; for small arrays only."""
    mesh = mesh_of(value)
    if mesh is None:
        return value
    return lax.with_sharding_constraint(value, NamedSharding(mesh, PartitionSpec()))


def constrain_sharding(result: PyTree, before: State) -> PyTree:
    """Constrain states to the sharding of `shard`, and everything else to be replicated.

    Left to itself the compiler may place what a function returns in some other way, and the
    next call would be compiled anew, or gather the pool. Arrays of the state `before` stay as
    they are, the same objects.
    """

    def settle(part: Any) -> Any:
        if not isinstance(part, State):
            return replicated(part)
        mesh, rows = mesh_of(jax.tree.leaves(part.pool)[0]), _spread_rows(part)
        if mesh is None:
            return part

        def place(leaf: Array, old: Array) -> Array:
            return leaf if leaf is old else _put(leaf, NamedSharding(mesh, _spec(leaf, rows)))

        return jax.tree.map(place, part, before)

    return jax.tree.map(settle, result, is_leaf=lambda part: isinstance(part, State))


def on_each_device(
    work: Callable[..., PyTree], pieces: Sequence[Array], whole: Sequence[Array] = ()
) -> PyTree:
    """Call `work(first, *pieces, *whole)` on each device for its own tasks.

    Args:
      work: given the i32 number of its first task, and its own parts of the pieces. What it
        returns has one entry a task, or as many on each device.
      pieces: [C] each. whole: arrays that every device needs all of.
    """
    mesh = mesh_of(pieces[0])
    if mesh is None or pieces[0].shape[0] % mesh.size:
        return work(jnp.int32(0), *pieces, *whole)

    def local(pieces: Sequence[Array], whole: Sequence[Array]) -> PyTree:
        first = lax.axis_index(AXIS).astype(jnp.int32) * pieces[0].shape[0]
        return work(first, *pieces, *whole)

    specs = (PartitionSpec(AXIS), PartitionSpec())
    spread = jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
    )
    return spread(tuple(pieces), tuple(whole))


def top_k(values: Array, count: int) -> tuple[Array, Array]:
    """`lax.top_k` of f[C]: each device finds its top k, and only those are communicated."""
    if mesh_of(values) is None:
        return _top_k(values, count)

    def local(first: Array, part: Array) -> tuple[Array, Array]:
        best, at = _top_k(part, min(count, part.shape[0]))
        return best, at + first

    # Equals stand in the order of their ids, as in the whole array.
    best, ids = (replicated(x) for x in on_each_device(local, (values,)))
    best, at = lax.top_k(best, count)
    return best, ids[at]


# Times as many blocks as places from which it is quicker to compare blocks first.
_MANY_BLOCKS = 4


def _top_k(values: Array, count: int) -> tuple[Array, Array]:
    """`lax.top_k`, of a long array in two steps: the best of it are in the blocks that are best
    by their own best, `count` of them at most."""
    if values.shape[0] < _MANY_BLOCKS * BLOCK * count:
        return lax.top_k(values, count)
    padding = -values.shape[0] % BLOCK
    rows = jnp.pad(values, (0, padding), constant_values=-jnp.inf).reshape(-1, BLOCK)
    blocks = jnp.sort(lax.top_k(jnp.max(rows, axis=1), count)[1])  # equals in the order of ids
    best, at = lax.top_k(rows[blocks].ravel(), count)
    return best, blocks[at // BLOCK] * BLOCK + at % BLOCK


def block_sums(values: Array) -> Array:
    """f[ceil(C / BLOCK)]: sums of f[C] over consecutive blocks; on every device."""
    padding = -values.shape[0] % BLOCK
    sums = jnp.sum(jnp.pad(values, (0, padding)).reshape(-1, BLOCK), axis=1)
    # Where nothing crosses devices, XLA would turn a sum of these sums into a single one.
    return replicated(lax.optimization_barrier(sums))


def total(values: Array) -> Array:
    """The sum of [C], in the same order on any number of devices."""
    return jnp.sum(block_sums(values))


def by_row(work: Callable[[Array], Array], rows: Array) -> Array:
    """Apply `work` to each row of [A, C]; vectorised if nothing is communicated.

    Over devices row by row: the order in sums of several rows at once depends on how many
    devices there are.
    """
    return jax.vmap(work)(rows) if mesh_of(rows) is None else lax.map(work, rows)


def totals(values: Array) -> Array:
    """f[A]: sums of the rows of f[A, C], in the same order on any number of devices."""
    return by_row(total, values) if values.shape[0] else jnp.zeros((0,), values.dtype)
