"""Fitting the simulator to a recorded run, and the statistics by which both are compared.

In: the visits of a recorded run that shuffled its tasks. Out: the `Config` under which
simulated visits look most like them. Compared are the histograms of

    levels    successes of a visit, in windows of steps over the run
    changes   successes now less successes some visits earlier, of the same task
    strong    the strong reference's pass rates

and the correlations of a task's visits some visits apart, and of its first and its last
visits with the strong reference. The distance is the sum of the mean squared differences of
the cumulative histograms and of the correlations. The search is the cross-entropy method
(Rubinstein 1999): draw candidates from a normal, refit it to the best, again.

Not fitted, because a run that visits all tasks alike says nothing about them: how many
skills there are and how tasks load on them, how fast and how far a task's own visits use it
up (absorption, own_gain; recovery is fitted given these: tasks that are fresh only in the
first passes show as a steeper start), and forgetting and noise of skills.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bots_jax.evaluate.task_files import read_npz
from bots_jax.simulator.run import ATTEMPTS, begin_world, measure_references, run_simulation
from bots_jax.simulator.world import Config, as_config
from bots_jax.types import Array, Belief, Selection, Selector

Floats = npt.NDArray[np.float64]
WINDOWS = ((1, 10), (41, 60), (91, 110), (191, 210), (291, 310), (391, 410), (481, 500))
LAGS = (1, 3, 5, 10, 20, 40)  # visits
ENDS = 5  # visits at either end of a task's sequence that count as its first and its last


class Visits(NamedTuple):
    """What a run recorded of N tasks, in the order of each task's own visits."""

    successes: npt.NDArray[np.int64]  # [N, V]
    step: npt.NDArray[np.int64]  # [N, V], from 1; 0 is padding, behind the visits
    strong: Floats  # [N], pass rate of the strong reference, NaN = unknown
    rollouts: int  # m


class Summary(NamedTuple):
    """The statistics compared."""

    levels: Floats  # [W, m + 1], shares of visits with 0 to m successes
    changes: Floats  # [L, 2 m + 1], shares of changes from -m to m
    correlations: Floats  # [L]
    strong: Floats  # [m + 1], shares of pass rates nearest to 0, 1 / m, ... 1
    strong_correlations: Floats  # [2], with the mean of the first and of the last visits


def read_visits(path: str | Path) -> Visits:
    """The visits of the published trace, all tasks that were visited.

    Raises:
      ValueError: naming the file and the array that is missing.
    """
    arrays = read_npz(path)
    for name in ("seq_success", "seq_step_a", "seq_len", "n", "qwen7b_success", "qwen7b_n"):
        if name not in arrays:
            raise ValueError(f"{path}: has no array {name!r} among {', '.join(arrays)}; add it")
    made = np.arange(arrays["seq_success"].shape[1]) < arrays["seq_len"][:, None]
    strong = arrays["qwen7b_success"].astype(float)
    return Visits(
        np.where(made, arrays["seq_success"], 0).astype(np.int64),
        np.where(made, arrays["seq_step_a"], 0).astype(np.int64),
        np.where(strong < 0, np.nan, strong / float(arrays["qwen7b_n"])),
        int(arrays["n"]),
    )


def simulated_visits(
    task_ids: npt.ArrayLike, successes: npt.ArrayLike, strong: npt.ArrayLike, rollouts: int
) -> Visits:
    """The same of one simulated run: [T, B] ids and successes, [N] strong pass rates."""
    ids = np.asarray(task_ids)
    steps = np.broadcast_to(np.arange(1, len(ids) + 1)[:, None], ids.shape)[ids >= 0]
    solved, ids = np.asarray(successes)[ids >= 0], ids[ids >= 0]
    strong = np.asarray(strong, np.float64)
    order = np.lexsort((steps, ids))
    ids, steps, solved = ids[order], steps[order], solved[order]
    counts = np.bincount(ids, minlength=len(strong))
    place = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((2, len(strong), counts.max()), np.int64)
    table[:, ids, place] = solved, steps
    return Visits(table[0], table[1], strong, rollouts)


def summarise(visits: Visits) -> Summary:
    """The statistics of a run."""
    s, at, m = visits.successes, visits.step, visits.rollouts
    levels = [
        _shares(s[(at >= low) & (at <= high)], np.arange(m + 2) - 0.5) for low, high in WINDOWS
    ]
    pairs = [_pairs(s, at, lag) for lag in LAGS]
    changes = [_shares(now - then, np.arange(-m, m + 2) - 0.5) for then, now in pairs]
    known = ~np.isnan(visits.strong) & (at[:, 0] > 0)
    strong = visits.strong[known]
    return Summary(
        np.array(levels),
        np.array(changes),
        np.array([_correlation(then, now) for then, now in pairs]),
        _shares(np.round(strong * m), np.arange(m + 2) - 0.5),
        np.array([_correlation(end[known], strong) for end in _ends(s, at)]),
    )


def _shares(values: npt.NDArray[Any], edges: npt.NDArray[Any]) -> Floats:
    return np.histogram(values, edges)[0] / max(values.size, 1)


def _correlation(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _pairs(s: npt.NDArray[Any], at: npt.NDArray[Any], lag: int) -> tuple[Any, Any]:
    """Successes of each visit that has one `lag` visits later, and of that one."""
    both = at[:, lag:] > 0
    return s[:, :-lag][both], s[:, lag:][both]


def _ends(s: npt.NDArray[Any], at: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean successes of each task's first and last visits."""
    count = np.sum(at > 0, axis=1)
    first = s[:, :ENDS].mean(axis=1)
    place = np.arange(s.shape[1])
    late = (place < count[:, None]) & (place >= count[:, None] - ENDS)
    return first, np.sum(s * late, axis=1) / np.maximum(late.sum(axis=1), 1)


def distance(one: Summary, other: Summary) -> float:
    """How far two runs are apart; 0 where all statistics agree."""

    def apart(a: Floats, b: Floats) -> float:
        return float(np.mean((np.cumsum(a, axis=-1) - np.cumsum(b, axis=-1)) ** 2))

    histograms = sum(apart(getattr(one, n), getattr(other, n)) for n in _HISTOGRAMS)
    return histograms + sum(
        float(np.mean((getattr(one, n) - getattr(other, n)) ** 2)) for n in _CORRELATIONS
    )


_HISTOGRAMS = ("levels", "changes", "strong")
_CORRELATIONS = ("correlations", "strong_correlations")


# --- the recorded run's sampler -------------------------------------------------------


class _Pass(NamedTuple):
    stride: Array  # i32, coprime to N
    offset: Array  # i32
    at: Array  # i32, tasks of this pass already taken


_LARGEST_SHUFFLED = 46_340  # its square is the last below 2^31


def shuffled_passes(num_tasks: int, batch_size: int) -> Selector:
    """Passes over the pool in ever new orders; what is left below one batch is dropped.

    Place i of a pass is task (stride i + offset) mod N, both drawn anew: as good as a shuffle
    where tasks are exchangeable, and a hundred times cheaper.
    """
    if not batch_size <= num_tasks <= _LARGEST_SHUFFLED:
        raise ValueError(
            f"num_tasks={num_tasks} must lie in [{batch_size}, {_LARGEST_SHUFFLED}]: from one "
            "batch to what 32-bit products can hold"
        )
    strides = np.array([a for a in range(1, num_tasks + 1) if math.gcd(a, num_tasks) == 1])

    def init(*args: Any, **kwargs: Any) -> Any:
        one = jnp.ones((), jnp.int32)
        return _Pass(one, one, one * num_tasks)

    def select(rng_key: Array, state: Any, eligible: Any = None) -> Any:
        over = state.at + batch_size > num_tasks
        drawn = jax.random.randint(rng_key, (2,), 0, np.array([len(strides), num_tasks]))
        stride = jnp.where(over, jnp.asarray(strides, jnp.int32)[drawn[0]], state.stride)
        offset = jnp.where(over, drawn[1], state.offset)
        at = jnp.where(over, 0, state.at)
        place = at + jnp.arange(batch_size, dtype=jnp.int32)
        ids = (stride * place % num_tasks + offset) % num_tasks
        zeros, valid = jnp.zeros(batch_size), jnp.ones(batch_size, bool)
        state = _Pass(stride, offset, at + batch_size)
        return state, Selection(ids, zeros, valid, jnp.zeros_like(ids))

    return blind_selector(init, select)


def blind_selector(init: Any, select: Any) -> Selector:
    """A selector of these two functions that learns nothing and believes 1/2 of every task."""

    def update(state: Any, evidence: Any) -> Any:
        return state, None

    def predict(state: Any, task_ids: Any = None) -> Belief:
        return Belief(jnp.full(task_ids.shape, 0.5), jnp.zeros(task_ids.shape))

    def refuse(*args: Any) -> Any:
        raise NotImplementedError("this selector serves run_simulation alone")

    absent: Any = refuse
    return Selector(init, select, absent, absent, update, absent, predict)


def simulate_visits(
    configs: list[Config],
    seeds: range,
    *,
    num_tasks: int = 1209,
    batch_size: int = 128,
    steps: int = 500,
    rollouts: int = 8,
    attempts: tuple[int, int] = ATTEMPTS,
) -> list[list[Visits]]:
    """Visits of simulated runs like the recorded one, by config and seed."""
    selector = shuffled_passes(num_tasks, batch_size)
    run = run_simulation(
        selector,
        configs,
        seeds,
        steps,
        num_tasks=num_tasks,
        rollouts=rollouts,
        attempts=attempts,
        sample=1,
    )
    return [
        [
            simulated_visits(
                run.task_ids[i, j],
                run.successes[i, j],
                strong_rates(config, seed, num_tasks, attempts),
                rollouts,
            )
            for j, seed in enumerate(seeds)
        ]
        for i, config in enumerate(configs)
    ]


def strong_rates(
    config: Config, seed: int, num_tasks: int, attempts: tuple[int, int] = ATTEMPTS
) -> npt.NDArray[Any]:
    """f[N] measured pass rates of the strong reference in the world of a seed."""
    world, _ = begin_world(config, seed)
    return np.asarray(measure_references(world, num_tasks, attempts)[0][1])


# --- the search -----------------------------------------------------------------------


class _Search(NamedTuple):
    """A fitted number: where the search begins, how wide, and whether on a log scale."""

    middle: float
    spread: float
    log: bool


FITTED = {
    "difficulty": _Search(1.0, 0.3, False),
    "difficulty_above": _Search(2.2, 0.15, True),
    "difficulty_below": _Search(3.6, 0.1, True),
    "unsolvable": _Search(0.1, 0.3, True),
    "speed_mean": _Search(0.01, 0.15, True),
    "speed_spread": _Search(0.85, 0.2, True),  # log of the fastest skill's speed over the middle's
    "ceiling": _Search(4.0, 0.2, True),
    "recovery": _Search(18.0, 0.3, True),
    "slip": _Search(0.09, 0.2, True),
    "slip_learning": _Search(2.0, 0.3, True),
    "drift": _Search(0.7, 0.15, True),
    "drift_time": _Search(500.0, 0.3, True),
    "strong_skill": _Search(0.6, 0.15, False),
    "strong_scale": _Search(0.95, 0.1, True),
    "strong_taste": _Search(1.6, 0.1, True),
    "strong_slip": _Search(0.045, 0.2, True),
}
CHOSEN = {
    "focus": 2.0,
    "skill_forgetting": 0.0005,
    "skill_noise": 0.002,
    "absorption": 0.2,
    "own_gain": 0.3,
}
SKILLS = 8


def config_of(fitted: dict[str, float], chosen: dict[str, float] = CHOSEN) -> Config:
    """The config that the fitted and the chosen numbers make; speeds are spaced evenly in log."""
    numbers: dict[str, Any] = {**chosen, **fitted}
    spread, mean = numbers.pop("speed_spread"), numbers.pop("speed_mean")
    speeds = np.exp(np.linspace(-spread, spread, SKILLS))
    return as_config({**numbers, "speed": mean * speeds / speeds.mean()})


def calibrate(
    recording: Visits,
    *,
    chosen: dict[str, float] = CHOSEN,
    candidates: int = 24,
    best: int = 6,
    rounds: int = 16,
    seeds: range = range(1000, 1002),
    rng_seed: int = 0,
    **sizes: Any,
) -> tuple[dict[str, float], float]:
    """Fit the numbers of `FITTED` to a recorded run.

    Args:
      recording: of shuffled passes.
      chosen: the other numbers.
      candidates, best, rounds: of the cross-entropy search.
      seeds: of the simulated runs, the same for every candidate.
      sizes: num_tasks, batch_size, steps of the recorded run, as in `simulate_visits`.

    Returns:
      The fitted numbers (for `config_of`) and the distance of the last round's mean.
    """
    target, rng = summarise(recording), np.random.default_rng(rng_seed)
    logs = np.array([one.log for one in FITTED.values()])
    middle = np.array([np.log(s.middle) if s.log else s.middle for s in FITTED.values()])
    spread = np.array([one.spread for one in FITTED.values()])

    def numbers(point: Floats) -> dict[str, float]:
        return dict(zip(FITTED, np.where(logs, np.exp(point), point).tolist(), strict=True))

    def costs(points: Floats) -> Floats:
        configs = [config_of(numbers(point), chosen) for point in points]
        runs = simulate_visits(configs, seeds, rollouts=recording.rollouts, **sizes)
        return np.array([np.mean([distance(summarise(v), target) for v in run]) for run in runs])

    for _ in range(rounds):
        points = middle + spread * rng.standard_normal((candidates, len(middle)))
        points[0] = middle  # so that the middle competes
        order = np.argsort(costs(points))[:best]
        middle = 0.3 * middle + 0.7 * points[order].mean(axis=0)
        spread = 0.3 * spread + 0.7 * points[order].std(axis=0)
    return numbers(middle), float(costs(middle[None])[0])
