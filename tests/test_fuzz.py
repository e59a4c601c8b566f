"""Random calls of everything, in any order, against a ledger in plain Python.

BOTS_JAX_FUZZ_ROWS rows of evidence are handed over, garbage among them: some thousands in CI, a
million in a night's run. BOTS_JAX_FUZZ_SEED is where it begins; a failure names the seed of its
run, and that seed alone repeats it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax import Evidence, Info, Selection, Selector, add_tasks, bots, checkpoint, retire
from bots_jax.strategies import STRATEGIES, make_strategy

ROWS = int(os.environ.get("BOTS_JAX_FUZZ_ROWS", "8000"))
SEED = int(os.environ.get("BOTS_JAX_FUZZ_SEED", "0"))
ROWS_OF_A_CALL, CALLS_OF_A_RUN = 32, 100
# Their posterior is Beta(1 + successes, 1 + failures), nothing forgotten.
COUNTING = (
    "uniform", "bots-no-forgetting", "epochs", "easy-to-hard", "greso", "advantage-replay",
    "adarft", "prompt-replay", "binned-thompson", "lesson-weights", "sec",
)  # fmt: skip
assert set(COUNTING) <= set(STRATEGIES)
# The first runs, every fourth of wide floats: both representations, and beliefs of all kinds.
FIRST = ("bots-no-forgetting", "grouped", "auto", "grouped", "uniform")


class Visit(NamedTuple):
    """An open one."""

    number: int
    attempts: float
    opened: int


Row = tuple[int, float, float, int, float]  # task, successes, trials, visit, attempts or NaN


class Ledger:
    """What a pool must hold, by loops over dictionaries."""

    def __init__(
        self, tasks: int, rollouts: int, expiry: int | None = None, keep_open: bool = False
    ) -> None:
        self.rollouts, self.expiry, self.keep_open = rollouts, expiry, keep_open
        self.active = set(range(tasks))
        self.open: dict[int, Visit] = {}
        self.pending: dict[int, tuple[float, float]] = {}
        self.fused: dict[int, tuple[float, float]] = {}
        self.step = self.next_visit = 0
        self.stale = self.unsolicited = self.invalid = 0

    def select(self, ids: np.ndarray, valid: np.ndarray, visit: np.ndarray, may: set[int]) -> None:
        chosen = ids[valid].tolist()
        assert len(set(chosen)) == len(chosen), "a task twice in a batch"
        assert set(chosen) <= may, "a task that may not be chosen"
        assert len(chosen) == min(len(ids), len(may)), "fewer than there are"
        assert np.all(ids[~valid] == -1)
        assert np.all(visit == np.where(valid, self.next_visit, -1))
        self.open |= {task: Visit(self.next_visit, 0.0, self.step) for task in chosen}
        self.next_visit += 1

    def observe(self, rows: list[Row]) -> None:
        before = dict(self.open)
        for task, successes, trials, number, attempts in rows:
            if task not in self.active:
                self.invalid += task != -1
                continue
            makes_sense = (
                np.isfinite([successes, trials]).all()
                and 0 <= successes <= trials * (1 + 1e-5)
                and trials <= 2**24
            )
            self.invalid += not makes_sense
            visit = before.get(task)
            if number == -1:
                unscored = np.isnan(successes) and 0 <= trials <= 2**24
                attached = visit is not None and (makes_sense or unscored)
            else:
                attached = visit is not None and visit.number == number
            if makes_sense and number != -1 and not attached:
                self.stale += 1
            elif makes_sense and trials > 0:
                self.unsolicited += not attached
                s, n = self.pending.get(task, (0.0, 0.0))
                self.pending[task] = s + min(successes, trials), n + trials
            if attached:
                if not attempts >= 0:
                    attempts = trials if makes_sense or 0 < trials <= 2**24 else self.rollouts
                now = self.open[task]
                self.open[task] = now._replace(attempts=now.attempts + attempts)
        self.close([task for task in self.open if self.open[task].attempts >= self.rollouts])

    def close(self, tasks: list[int]) -> None:
        for task in tasks:
            self.open.pop(task, None)

    def retire(self, tasks: list[int]) -> None:
        self.close(tasks)
        for task in tasks:
            self.active.discard(task)
            self.pending.pop(task, None)
            self.fused.pop(task, None)

    def add(self, tasks: list[int]) -> None:
        assert not self.active & set(tasks), "an id that is taken"
        self.active |= set(tasks)

    def advance(self, info: Info) -> None:
        self.step += 1
        if not self.keep_open:
            self.close([task for task, visit in self.open.items() if visit.attempts > 0])
        old = [] if self.expiry is None else [
            task for task, visit in self.open.items() if self.step - visit.opened > self.expiry
        ]  # fmt: skip
        self.close(old)
        expected = {
            "evaluated": len(self.pending), "stale": self.stale, "unsolicited": self.unsolicited,
            "invalid": self.invalid, "expired": len(old), "in_flight": len(self.open),
        }  # fmt: skip
        assert {name: int(getattr(info, name)) for name in expected} == expected
        successes, trials = (sum(x[at] for x in self.pending.values()) for at in (0, 1))
        mixed = sum(0 < s < n for s, n in self.pending.values())
        np.testing.assert_allclose(info.trials, trials, rtol=1e-5)
        np.testing.assert_allclose(info.success_rate, successes / max(trials, 1), rtol=1e-4)
        ratio = mixed / max(len(self.pending), 1)
        np.testing.assert_allclose(info.effective_task_ratio, ratio, rtol=1e-5)
        for task, (s, n) in self.pending.items():
            before = self.fused.get(task, (0.0, 0.0))
            self.fused[task] = before[0] + s, before[1] + n
        self.pending.clear()
        self.stale = self.unsolicited = self.invalid = 0


class Run:
    """One selector, one pool, and a ledger beside it."""

    def __init__(self, name: str, seed: int, folder: Path, wide: bool) -> None:
        self.rng, self.name, self.folder = np.random.default_rng(seed), name, folder
        rng = self.rng
        self.tasks, domains = int(rng.choice([12, 40, 600])), None
        expiry, keep_open = None if rng.random() < 0.5 else 2, bool(rng.random() < 0.5)
        self.selector = selector_of(name, expiry, keep_open)
        rates = np.round(8 * rng.random((2, self.tasks))) / 8
        rates[:, rng.random(self.tasks) < 0.2] = np.nan
        grouped = name == "grouped"
        if self.tasks > 256:  # where rows with evidence are listed, and the list may be too short
            domains = rng.integers(0, 2, self.tasks)
        self.domains = domains is not None
        self.dtype = np.float64 if wide else np.float32
        self.state = self.selector.init(
            rates.astype(self.dtype),
            capacity=None if grouped else self.tasks + 6,
            domains=domains,
        )
        self.capacity = self.tasks if grouped else self.tasks + 6
        self.ledger = Ledger(self.tasks, 4, expiry, keep_open)
        self.last: list[tuple[int, int]] = []  # visits handed out lately, open or not
        self.rows = self.saved = 0

    def key(self) -> jax.Array:
        return jax.random.key(int(self.rng.integers(2**31)))

    def some(self, most: int) -> np.ndarray:
        return self.rng.choice(self.capacity, int(self.rng.integers(1, most + 1)), replace=False)

    def select(self) -> None:
        mask = self.rng.random(self.capacity) < self.rng.choice([0.0, 0.3, 1.0], p=[0.1, 0.3, 0.6])
        may = (self.ledger.active - set(self.ledger.open)) & set(np.flatnonzero(mask).tolist())
        self.state, batch = self.selector.select(self.key(), self.state, mask)
        told = Selection(*(np.asarray(x) for x in batch))
        assert np.all(np.isfinite(told.rate))
        self.ledger.select(told.task_ids, told.valid, told.visit, may)
        self.last = [*self.last, *zip(told.task_ids.tolist(), told.visit.tolist(), strict=True)]
        self.last = [pair for pair in self.last if pair[0] >= 0][-12:]

    def evidence(self) -> tuple[Evidence, list[Row]]:
        """Of visits, of others, in pieces, repeated, with garbage; on the device."""
        rng, rows = self.rng, []
        for _ in range(ROWS_OF_A_CALL):
            task, number = int(rng.integers(self.capacity)), -1
            if self.last and rng.random() < 0.7:
                task, number = self.last[rng.integers(len(self.last))]
                number = number if rng.random() < 0.8 else int(rng.choice([-1, number + 1]))
            trials = float(rng.integers(0, 6))
            successes = float(rng.integers(0, int(trials) + 1))
            if rng.random() < 0.15:
                successes = float(rng.choice([np.nan, np.inf, -np.inf, -1, 1e30]))
            if rng.random() < 0.05:
                trials = float(rng.choice([np.nan, np.inf, -1, 1e9]))
            if rng.random() < 0.1:
                task = int(rng.choice([-1, -7, self.capacity, 2**31 - 1]))
            attempts = float(rng.choice([np.nan, 0, 2, 4, np.inf], p=[0.7, 0.1, 0.1, 0.05, 0.05]))
            rows.append((task, successes, trials, number, attempts))
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        types = (np.int32, self.dtype, self.dtype, np.int32, self.dtype)
        ids, s, n, visit, tried = (
            jnp.asarray(x.astype(dtype)) for x, dtype in zip(columns, types, strict=True)
        )
        self.rows += len(rows)
        return Evidence(ids, s, n, visit, attempts=tried), rows

    def observe(self) -> None:
        evidence, rows = self.evidence()
        self.state = self.selector.observe(self.state, evidence)
        self.ledger.observe(rows)

    def burst(self) -> None:
        """Of more tasks than are listed, in a pool of hundreds."""
        for _ in range(12):
            self.observe()

    def update(self) -> None:
        evidence, rows = self.evidence()
        self.ledger.observe(rows)
        self.state, info = self.selector.update(self.state, evidence)
        self.ledger.advance(info)

    def advance(self) -> None:
        self.state, info = self.selector.advance(self.state)
        self.ledger.advance(info)

    def refuse(self) -> None:
        """On the host garbage is an error, after which all is as it was."""
        bad: Any = self.rng.choice(["id", "successes", "trials"])
        ids = np.array([0, self.capacity if bad == "id" else 1])
        successes = np.array([1.0, 9.0 if bad == "successes" else 1.0])
        trials = np.array([4.0, -1.0 if bad == "trials" else 4.0])
        with pytest.raises(ValueError, match=r"evidence\."):
            self.selector.observe(self.state, Evidence(ids, successes, trials))

    def abandon(self) -> None:
        tasks = np.resize(self.some(4), 4)
        self.state = self.selector.abandon(self.state, tasks)
        self.ledger.close(tasks.tolist())

    def retire(self) -> None:
        room = len(self.ledger.active) - 6
        tasks = self.some(3)[: max(room, 0)]
        if len(tasks):
            padded = np.pad(tasks, (0, 3 - len(tasks)), constant_values=-1)
            self.state = retire(self.state, padded)
            self.ledger.retire(tasks.tolist())

    def add(self) -> None:
        if self.capacity - len(self.ledger.active) < 2:
            return
        reference = self.rng.random((2, 2)).astype(self.dtype)
        domains = self.rng.integers(0, 2, 2) if self.domains else None
        self.state, ids = add_tasks(self.state, reference, domains=domains)
        self.ledger.add(np.asarray(ids).tolist())

    def save(self) -> None:
        """What is saved comes back to the bit."""
        self.saved += 1
        checkpoint.save(self.folder / self.name, self.saved, self.selector, self.state)
        found = checkpoint.restore(self.folder / self.name, self.selector, self.state)
        for old, new in zip(jax.tree.leaves(self.state), jax.tree.leaves(found.state), strict=True):
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
        self.state = found.state

    def check(self) -> None:
        """Beliefs are finite, and counts where it counts."""
        belief = self.selector.predict(self.state)
        mean, total = (np.asarray(x, np.float64) for x in belief)
        exists = sorted(self.ledger.active)
        assert mean.dtype == total.dtype == np.float64
        assert np.all((mean[exists] >= 0) & (mean[exists] <= 1) & (total[exists] > 0))
        if self.name not in COUNTING:
            return
        counted = np.array([self.ledger.fused.get(task, (0.0, 0.0)) for task in exists])
        np.testing.assert_allclose(total[exists], 2 + counted[:, 1], rtol=1e-4)
        alpha = (mean * total)[exists]
        np.testing.assert_allclose(alpha, 1 + counted[:, 0], rtol=1e-3, atol=1e-3)

    def go(self, calls: int) -> None:
        often: dict[str, float] = {
            "select": 6, "observe": 4, "update": 4, "advance": 2, "burst": 0.3, "refuse": 0.5,
            "abandon": 1, "retire": 0.7, "add": 1, "save": 0.3,
        }  # fmt: skip
        if self.name == "grouped":  # changed on the host, and ids go on: tests/grouped
            del often["retire"], often["add"]
        chance = np.array(list(often.values())) / sum(often.values())
        for call in range(calls):
            name = str(self.rng.choice(list(often), p=chance))
            try:
                getattr(self, name)()
                if call % 10 == 0:
                    self.check()
            except AssertionError as error:
                raise AssertionError(f"{self.name}, call {call}, {name}: {error}") from error


def selector_of(name: str, expiry: int | None = None, keep_open: bool = False) -> Selector:
    sizes: dict[str, Any] = {
        "batch_size": 4, "rollouts": 4, "expiry": expiry, "keep_open": keep_open
    }  # fmt: skip
    if name == "grouped":
        return bots(representation="grouped", **sizes)
    return make_strategy(name, **sizes)


def test_random_calls_agree_with_the_ledger(tmp_path: Path) -> None:
    names, rows, seed = [*STRATEGIES, "grouped"], 0, SEED
    while rows < ROWS:
        rng = np.random.default_rng(seed)
        at = seed - SEED
        name = FIRST[at] if at < len(FIRST) else str(rng.choice(names))
        wide = at % 4 == 3
        with jax.enable_x64(wide):
            run = Run(name, seed, tmp_path / str(seed), wide)
            try:
                run.go(CALLS_OF_A_RUN)
            except AssertionError as error:
                raise AssertionError(f"BOTS_JAX_FUZZ_SEED={seed}: {error}") from error
        rows, seed = rows + run.rows, seed + 1


def test_the_ledger_notices() -> None:
    """A row that the pool did not count, and one that it counted twice."""
    selector = selector_of("bots-no-forgetting")
    evidence = Evidence([0, 1], [1.0, 2.0], [4.0, 4.0])
    first, second = (0, 1.0, 4.0, -1, np.nan), (1, 2.0, 4.0, -1, np.nan)
    for told in ([first], [first, second] * 2):
        ledger = Ledger(12, 4)
        ledger.observe(told)
        _, info = selector.update(selector.init(num_tasks=12), evidence)
        with pytest.raises(AssertionError):
            ledger.advance(info)
