"""A step compiled for TPUs on a machine that has none: what it moves, and what crosses chips.

PyPI's `libtpu` compiles ahead of time for a topology that is named. Nothing is run: bytes,
memory and collectives are read from the compiled program (`compiled_bytes`), a loop that the
compiler does not know the turns of counted once. `cycles` is the compiler's own estimate, which
leaves out gathers and scatters.

It wants an environment of its own, for with libtpu in it jax looks for a TPU:

    python -m venv .venv-tpu && .venv-tpu/bin/pip install . libtpu
    .venv-tpu/bin/python -m benchmarks.tpu_compile --resume
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu asks a server for this machine's TPU
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.common import RESULTS, save
from benchmarks.compiled_bytes import Moved, moved
from benchmarks.floor import BYTES_A_TASK
from benchmarks.step import BATCH, ROLLOUTS, reference_groups
from bots_jax import Evidence, State, auto, bots
from bots_jax.sharding import state_shardings, task_mesh

METHODS: dict[str, Any] = {"bots": bots, "auto": auto}
ROUND = 64 * 16  # so that a pool can be spread over every topology


def shapes_of(selector: Any, form: str, size: int) -> State:
    """A state's shapes, without its arrays where it is dense."""
    if form == "dense":
        rates = jax.ShapeDtypeStruct((2, size), jnp.float32)
        state: State = jax.eval_shape(lambda known: selector.init(known), rates)
        return state
    state = selector.init(reference_groups(size))
    return state


def compile_step(method: str, form: str, size: int, topology: str) -> dict[str, Any]:
    """A row of the table."""
    selector = METHODS[method](batch_size=BATCH, rollouts=ROLLOUTS, representation=form)
    state = shapes_of(selector, form, size)
    chips = topologies.get_topology_desc(topology, "tpu").devices
    mesh = task_mesh(chips)
    places = state_shardings(state, mesh)
    seed_place: Any = jax.NamedSharding(mesh, jax.P())
    if len(chips) == 1:
        seed_place = SingleDeviceSharding(chips[0])
        places = jax.tree.map(lambda _: seed_place, places)

    def placed(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def step(seed: jax.Array, state: State) -> Any:
        state, batch = selector.select(jax.random.wrap_key_data(seed), state)
        graded = jnp.full(BATCH, 8.0), jnp.full(BATCH, float(ROLLOUTS))
        return selector.update(state, Evidence(batch.task_ids, *graded, batch.visit))

    seed = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=seed_place)
    lowered = jax.jit(step, donate_argnums=1).lower(seed, jax.tree.map(placed, state, places))
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    resident = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total = resident - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return {
        "method": method, "form": form, "size": size, "topology": topology, "chips": len(chips),
        "compile_s": seconds,
        "state_bytes_a_chip": memory.argument_size_in_bytes,
        "scratch_bytes_a_chip": memory.temp_size_in_bytes,
        "memory_bytes_a_chip": total,
        **summary(moved(compiled.as_text() or ""), form, size, len(chips)),
    }  # fmt: skip


def summary(found: Moved, form: str, size: int, chips: int) -> dict[str, Any]:
    """What is kept of the program."""
    cycles = 0
    for part in found.parts:
        told = re.search(r'"estimated_cycles":"(\d+)"', part.instruction.rest)
        cycles += part.times * int(told[1]) if told else 0
    crossing: dict[str, list[tuple[int, bool]]] = collections.defaultdict(list)
    for name, size_in_bytes, usual in found.collectives:
        crossing[name].append((size_in_bytes, usual))
    dense = {"bytes_a_task": found.bytes * chips / size,
             "bytes/floor": found.bytes * chips / size / BYTES_A_TASK}  # fmt: skip
    return {
        "bytes_a_chip": found.bytes,
        **(dense if form == "dense" else {}),
        "cycles": cycles,
        "largest": found.largest,
        "loops_counted_once": sorted(set(found.unknown)),
        "collectives": {
            name: {
                "usual": sum(usual for _, usual in rows),
                "usual_bytes": sum(moved_bytes for moved_bytes, usual in rows if usual),
                "rare": sum(not usual for _, usual in rows),
                "largest_bytes": max(moved_bytes for moved_bytes, _ in rows),
            }
            for name, rows in crossing.items()
        },
        "dearest": [
            f"{part.times * part.bytes / 1e6:.1f} MB {part.instruction.opcode} "
            f"{part.instruction.where.removeprefix('jit(step)/')}"
            for part in found.parts[:8]
        ],
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a line a row."""
    yield (
        "| selector | chips | tasks | moved: bytes a task, x floor | GB a chip: state, scratch "
        "| collectives of a usual step | largest array crossing, kB | compile s |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(rows, key=lambda r: (r["form"], r["method"], r["topology"], r["size"])):
        start = f"| {row['method']}, {row['form']} | {row['topology']} | {row['size']:.2g} "
        if "error" in row:
            yield f"{start}| out of memory |"
            continue
        usual = sum(one["usual"] for one in row["collectives"].values())
        crossing = sum(one["usual_bytes"] for one in row["collectives"].values())
        largest = max((one["largest_bytes"] for one in row["collectives"].values()), default=0)
        moved_text = f"{row['bytes_a_chip'] / 1e6:.0f} MB in all"
        if row["form"] == "dense":
            moved_text = f"{row['bytes_a_task']:.0f}, {row['bytes/floor']:.2f}"
        yield (
            f"{start}| {moved_text} "
            f"| {row['state_bytes_a_chip'] / 1e9:.3f}, {row['scratch_bytes_a_chip'] / 1e9:.3f} "
            f"| {f'{usual}, {crossing / 1e6:.1f} MB' if usual else 'none'} | {largest / 1e3:.0f} "
            f"| {row['compile_s']:.0f} |"
        )


def main() -> None:
    """Compile, print and save a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=(1e6, 1e7))
    parser.add_argument("--topologies", nargs="+", default=("v5e:1x1", "v5e:2x2", "v5e:4x4"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--forms", nargs="+", choices=("dense", "grouped"),
                        default=("dense", "grouped"))  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--out", default="tpu_compile", help="name of the JSON file")
    parser.add_argument("--table", action="store_true", help="print it and compile nothing")
    args = parser.parse_args()
    file = RESULTS / f"{args.out}.json"
    rows = json.loads(file.read_text())["rows"] if args.resume and file.exists() else []
    if args.table:
        print("\n".join(table(json.loads(file.read_text())["rows"])))
        return
    cases = [
        (method, form, topology)
        for topology in args.topologies
        for form in args.forms
        for method in args.methods
    ]
    for case in cases:
        for size in args.sizes:
            _add_row(rows, *case, -(-int(size) // ROUND) * ROUND, args.out)


def _add_row(
    rows: list[dict[str, Any]], method: str, form: str, topology: str, size: int, out: str
) -> None:
    wanted = (method, form, topology, size)
    if any(wanted == tuple(r[k] for k in ("method", "form", "topology", "size")) for r in rows):
        return
    try:
        row = compile_step(method, form, size, topology)
    except jax.errors.JaxRuntimeError as error:  # out of memory, which is an answer
        text = str(error).partition("\n")[0][:200]
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        row = {"method": method, "form": form, "size": size, "topology": topology, "error": text}
    rows.append(row)
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()
           if k not in ("dearest", "loops_counted_once")}, flush=True)  # fmt: skip
    save(out, rows, ("libtpu",), note="compiled, not run")


if __name__ == "__main__":
    main()
