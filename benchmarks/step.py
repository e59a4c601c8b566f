"""A step (select 512, then update) of both representations, the authors' code and NumPy.

All sides of a row run in turns of ten steps, in one process, on the same kind of pool:
reference counts out of 16, 16 rollouts, eviction tolerance 1e-5 pseudo-counts. `cold` is the
median of the first steps, when all posteriors are alike; `warm` that after `--warm` steps;
`after_others` that of the first step of each turn, when the others have filled the caches
with their arrays, as training does between two selections. `first_s` is the first step with
all that is traced and compiled for it, `compile_s` XLA's part of that. The authors' side needs
`pip install --no-deps trinity-rft==0.6.0` and torch, and is left out without.

Run: python -m benchmarks.step
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import save
from benchmarks.peers import authors_selector, missing
from bots_jax import Evidence, State, auto, bots
from bots_jax.pool.reference import ReferenceCounts, ReferenceGroups

BATCH, ROLLOUTS = 512, 16
PEERS = ("torch", "trinity-rft")
SIZES = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
LARGEST = {"dense": 10**7, "authors": 10**7, "numpy": 10**7, "grouped": 10**9}
SMALLEST = {"dense": 0, "authors": 10**5, "numpy": 0, "grouped": 10**5}
BLOCK = 10  # steps of one side before the next side's turn
# What the success rates of the simulated policy are noisy by, as a policy's are.
NOISE = 0.1

Step = Callable[[], Any]


def reference_counts(size: int) -> np.ndarray:
    """u8[2, N] successes out of 16 of a weak and a strong model."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, ROLLOUTS + 1, (2, size), dtype=np.uint8)
    return np.sort(counts, axis=0)


def reference_groups(size: int) -> ReferenceGroups:
    """The same grid of rates by groups, for sizes at which counts take minutes to make."""
    pairs = [(i, j) for i in range(ROLLOUTS + 1) for j in range(i, ROLLOUTS + 1)]
    sizes = np.full(len(pairs), size // len(pairs))
    sizes[: size - sizes.sum()] += 1
    return ReferenceGroups(np.array(pairs, np.float32).T / ROLLOUTS, sizes)


def our_step(form: str, size: int, forgetting: float | None, method: str = "bots") -> Step:
    """A step of one representation; the state is donated, as in a user's own loop."""
    make: Any = {"bots": bots, "auto": auto}[method]
    selector = make(
        batch_size=BATCH,
        rollouts=ROLLOUTS,
        forgetting=forgetting,
        representation=form,
    )
    reference: Any = reference_groups(size)
    if size <= 10**7 or form == "dense":
        reference = ReferenceCounts(reference_counts(size), ROLLOUTS)
    state = selector.init(reference)

    def truth(state: State, task_ids: jax.Array) -> jax.Array:
        rates = state.known.reference.rates[:, state.column_of(task_ids)]
        return jnp.mean(rates, axis=0)

    @partial(jax.jit, donate_argnums=1)
    def step(rng_key: jax.Array, state: State) -> tuple[State, Any]:
        select_key, rollout_key = jax.random.split(rng_key)
        state, selection = selector.select(select_key, state)
        rate = truth(state, selection.task_ids)
        rate = rate + NOISE * jax.random.normal(rollout_key, rate.shape)
        successes = jnp.round(ROLLOUTS * jnp.clip(rate, 0, 1))
        evidence = Evidence(selection.task_ids, successes, float(ROLLOUTS), selection.visit)
        return selector.update(state, evidence)

    keys = iter(jax.random.split(jax.random.key(0), 100_000))
    box = [state]

    def run() -> Any:
        box[0], info = step(next(keys), box[0])
        return jax.block_until_ready(info)

    return run


def authors_step(size: int, forgetting: float) -> Step:
    """A step of the paper authors' selector."""
    reference = reference_counts(size) / ROLLOUTS
    selector, rates = authors_selector(reference, ROLLOUTS, forgetting), reference.mean(axis=0)
    rng = np.random.default_rng(0)

    def run() -> None:
        ids = selector.get_indices(BATCH)
        solved = np.clip(rates[ids] + NOISE * rng.normal(size=BATCH), 0, 1)
        selector.feedback(ids.tolist(), (np.round(ROLLOUTS * solved) / ROLLOUTS).tolist())

    return run


def numpy_step(size: int, forgetting: float) -> Step:
    """The method in float64 and in place, as one would write it in NumPy; not our code."""
    reference = reference_counts(size) / ROLLOUTS
    alpha, beta = np.ones((2, size))
    rng, box = np.random.default_rng(0), [0.0]
    rates = reference.mean(axis=0)

    def run() -> None:
        ids = np.argpartition(np.abs(rng.beta(alpha, beta) - 0.5), BATCH)[:BATCH]
        solved = np.clip(rates[ids] + NOISE * rng.normal(size=BATCH), 0, 1)
        successes = np.round(ROLLOUTS * solved)
        weak, strong = reference[:, ids].mean(axis=1)
        box[0] += 0.1 * ((successes.mean() / ROLLOUTS - weak) / (strong - weak + 1e-6) - box[0])
        p = np.clip(reference[0] + box[0] * (reference[1] - reference[0]), 0, 1)
        gained, lost = 0.1 * ROLLOUTS * p, 0.1 * ROLLOUTS * (1 - p)
        gained[ids], lost[ids] = successes, ROLLOUTS - successes
        alpha[:] = (1 - forgetting) * alpha + forgetting + gained
        beta[:] = (1 - forgetting) * beta + forgetting + lost

    return run


def timed(run: Step) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


_COMPILED = "/jax/core/compile/backend_compile_duration"


def first_step(run: Step) -> dict[str, float]:
    """Seconds of it, and of what XLA compiled for it."""
    compiled: list[float] = []

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    first = timed(run) / 1e3
    jax.monitoring.unregister_event_duration_listener(hear)
    return {"first_s": first, "compile_s": sum(compiled)}


def measure(sides: dict[str, Step], warm: int, rounds: int) -> dict[str, dict[str, float]]:
    """First step, cold and warm median of each side, in turns."""
    row = {name: first_step(run) for name, run in sides.items()}
    cold = in_turns(sides, 1)
    for name, run in sides.items():
        for _ in range(warm if name in ("dense", "grouped") else 1):
            run()
    warmed = in_turns(sides, rounds)
    for name, entry in row.items():
        entry["cold_ms"] = statistics.median(cold[name])
        entry["warm_ms"] = statistics.median(warmed[name])
        entry["after_others_ms"] = statistics.median(warmed[name][::BLOCK])
    return row


def in_turns(sides: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each step; the sides take turns of `BLOCK` steps."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name] += [timed(run) for _ in range(BLOCK)]
    return times


def make_sides(
    size: int, forgetting: float, names: list[str], largest: Mapping[str, float] = LARGEST
) -> dict[str, Step]:
    """The sides that this size is for."""
    make: dict[str, Callable[[], Step]] = {
        "grouped": lambda: our_step("grouped", size, forgetting),
        "dense": lambda: our_step("dense", size, forgetting),
        "authors": lambda: authors_step(size, forgetting),
        "numpy": lambda: numpy_step(size, forgetting),
    }
    return {name: make[name]() for name in names if SMALLEST[name] <= size <= largest[name]}


def ratios(row: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times longer the others take, warm."""
    return {
        f"{other}/{ours}": row[other]["warm_ms"] / row[ours]["warm_ms"]
        for ours in ("grouped", "dense")
        for other in ("authors", "numpy")
        if ours in row and other in row
    }


def growth(forgetting: float, warm: int, rounds: int) -> dict[str, Any]:
    """The grouped step at 1e9 tasks beside that at 1e6, in turns."""
    sides = {str(size): our_step("grouped", size, forgetting) for size in (10**6, 10**9)}
    for run in sides.values():
        for _ in range(warm):
            run()
    times = in_turns(sides, rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians[str(10**9)] / medians[str(10**6)]
    print(f"grouped, lambda {forgetting}: 1e9 tasks against 1e6: {ratio:.2f}", flush=True)
    return {"forgetting": forgetting, "ms": medians, "1e9/1e6": ratio}


def main() -> None:
    """Print and save a row a size and lambda."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--forgetting", type=float, nargs="+", default=(0.1, 0.01))
    parser.add_argument("--warm", type=int, default=500, help="steps before `warm` is measured")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest-dense", type=float, default=LARGEST["dense"])
    parser.add_argument("--sides", nargs="+", default=list(LARGEST))
    parser.add_argument("--out", default="step", help="name of the JSON file")
    args = parser.parse_args()
    # Or torch's threads spin on while the next side has its turn, which would slow that down.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    absent = missing("trinity", "torch")
    if absent:
        print(f"without the authors' selector: {', '.join(absent)} not installed")
    names = [name for name in args.sides if name != "authors" or not absent]
    largest = {**LARGEST, "dense": args.largest_dense}
    rows: list[dict[str, Any]] = []
    for forgetting in args.forgetting:
        for size in map(int, args.sizes):
            sides = make_sides(size, forgetting, names, largest)
            row = measure(sides, args.warm, args.rounds)
            rows.append({"size": size, "forgetting": forgetting, **row, "ratios": ratios(row)})
            shown = {
                name: {k: round(v, 2) for k, v in entry.items()} for name, entry in row.items()
            }
            print(
                size,
                forgetting,
                shown,
                {k: round(v, 1) for k, v in ratios(row).items()},
                flush=True,
            )
            del sides
            save(args.out, rows, PEERS)
    if "grouped" in names and max(args.sizes) >= 10**9:
        extra = [growth(forgetting, args.warm, 2 * args.rounds) for forgetting in args.forgetting]
        save(args.out, rows, PEERS, growth=extra)


if __name__ == "__main__":
    main()
