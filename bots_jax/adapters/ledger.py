"""Host-side bookkeeping: which tasks are in flight, and which evidence has arrived.

In: tasks handed out, reports in any order, in pieces, twice, late or never. Out: one row of
evidence for each visit that has ended, to be handed to the selector at the end of the step.

A visit is one time that a task was handed out. It ends when its trials are complete, those that
were not scored included, when a report says that no more will come, when it is abandoned, or
when it is older than `expiry` steps; until then its evidence is held here and the task is not
selected again. A report counts while its visit is open, so one that comes twice or too late is
dropped and counted. Rows of one report are all heard before any visit ends.
No JAX, no locks: `host.py` has them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

ANY_VISIT = -1


class Visit:
    """A task in flight."""

    __slots__ = (
        "attempts", "draw", "heard", "highest", "kind", "lowest", "number", "opened", "pieces",
        "successes", "trials",
    )  # fmt: skip

    def __init__(self, number: int, opened: int, draw: float, kind: int = 0):
        self.number = number  # as the selector gave it
        self.opened = opened  # the step in which it was selected
        self.draw = draw
        self.kind = kind  # of the place in the batch that it was selected for
        self.restart()

    def restart(self) -> None:
        """Reset the visit: no evidence has arrived."""
        self.successes = 0.0
        self.trials = 0.0  # scored
        self.attempts = 0.0  # scored or not
        self.lowest, self.highest = 1.0, 0.0  # share of success among the rollouts
        self.heard = self.opened  # the step of the last report
        self.pieces: set[int] = set()


class Ended(NamedTuple):
    """Evidence of a visit that has ended, or of a task without one (`number` -1)."""

    opened: int  # the step in which the task was selected; of the report, where it was not
    number: int
    row: int
    successes: float
    trials: float
    differ: bool  # whether the rewards of its rollouts do, as far as is known


class Makeup:
    """Keeps quotas and exploration shares of batches that are given out in pieces.

    What each kind is owed is counted, in parts of a task; the kind that is owed most comes
    first. So no kind is ever a whole batch behind, however the batches are cut.

    Args:
      kinds: of the places of a batch, see `choice.batch.kinds_of_places`.
    """

    def __init__(self, kinds: Sequence[int]):
        self.size = len(kinds)
        self.share = dict(Counter(kinds))
        self.owed = dict.fromkeys(self.share, 0)  # times the size of a batch

    def take(self, kinds: list[int], count: int) -> list[bool]:
        """Choose `count` of these tasks to give out now."""
        if len(self.share) == 1:
            return [at < count for at in range(len(kinds))]
        if count == len(kinds):
            there = Counter(kinds)
            for kind, share in self.share.items():
                self.owed[kind] += share * count - self.size * there[kind]
            self._bound()
            return [True] * count
        waiting: dict[int, deque[int]] = {kind: deque() for kind in self.share}
        for at, kind in enumerate(kinds):
            waiting[kind].append(at)
        taken = [False] * len(kinds)
        for _ in range(count):
            for kind, share in self.share.items():
                self.owed[kind] += share
            first = max((kind for kind in waiting if waiting[kind]), key=self.owed.__getitem__)
            self.owed[first] -= self.size
            taken[waiting[first].popleft()] = True
        self._bound()
        return taken

    def _bound(self) -> None:
        most = _MOST_OWED * self.size
        self.owed = {kind: max(-most, min(owed, most)) for kind, owed in self.owed.items()}


_MOST_OWED = 4  # tasks: what a kind cannot give for long is not made up for without end


class Ledger:
    """Visits that are open, waiting to be given out, or ended.

    Args:
      kinds: of the places of a batch.
    """

    def __init__(self, kinds: Sequence[int] = (0,)) -> None:
        self.makeup = Makeup(kinds)
        self.open: dict[int, Visit] = {}  # by row, in the order of handing out
        # Rows and numbers of open visits to be handed out once more.
        self.again: deque[tuple[int, int]] = deque()
        self.spare: deque[tuple[int, Visit]] = deque()  # selected, not handed out yet
        self.ended: list[Ended] = []  # since the selector was last told
        self.counts = dict.fromkeys(COUNTS, 0)

    # --- handing out ---------------------------------------------------------------------

    def take_again(self, count: int, may: np.ndarray | None = None) -> list[int]:
        """Up to `count` rows that are given out again, in their first order.

        Args:
          may: bool[C], rows that may be; None: all. The others keep their places.
        """
        taken = self.waiting_again(may)[:count]
        gone = set(taken)
        self.again = deque(at for at in self.waiting_again() if at not in gone)
        return [row for row, _ in taken]

    def hand_out(self, count: int) -> list[int]:
        """Open visits of `count` spare tasks, in the shares that a whole batch has."""
        taken = self.makeup.take([visit.kind for _, visit in self.spare], count)
        rows = []
        left = []
        for entry, now in zip(self.spare, taken, strict=True):
            if now:
                rows.append(entry[0])
                self.open[entry[0]] = entry[1]
            else:
                left.append(entry)
        self.spare = deque(left)
        self.counts["handed_out"] += count
        return rows

    def redeliver(self, visits: Collection[tuple[int, int]] | None = None) -> None:
        """Mark all open visits to be given out again from the start: their holder lost them.

        Args:
          visits: rows and numbers; of these, those that have brought nothing. None: all.
        """
        lost = [(row, visit.number) for row, visit in self.open.items()]
        if visits is not None:
            wanted = set(visits)
            lost = [at for at in lost if at in wanted and not self.open[at[0]].attempts]
        for row, _ in lost:
            self.open[row].restart()
        others = [at for at in self.waiting_again() if at not in set(lost)]
        self.again = deque(lost + others)

    def waiting_again(self, may: np.ndarray | None = None) -> list[tuple[int, int]]:
        """Rows and numbers of open visits that will be given out again, of those that may be."""
        if not self.again:
            return []
        numbers = {row: visit.number for row, visit in self.open.items()}
        waiting = [(row, number) for row, number in self.again if numbers.get(row) == number]
        return waiting if may is None else [at for at in waiting if may[at[0]]]

    # --- coming back ---------------------------------------------------------------------

    def report(
        self,
        rows: np.ndarray,
        successes: np.ndarray,
        trials: np.ndarray,
        visits: np.ndarray,
        pieces: np.ndarray | None,
        *,
        complete: bool,
        unsolicited: bool,
        rollouts: float,
        step: int,
    ) -> np.ndarray:
        """Add checked evidence; returns bool[M], whether each row counted.

        Args:
          rows: i32[M], negative for tasks that have left the pool.
          successes, trials: f64[M]; successes NaN: these trials were not scored.
          visits: i32[M], `ANY_VISIT` where unnumbered.
          pieces: i32[M], number of each row within its visit; None where not numbered.
          complete: whether the visits named here end with this report.
          unsolicited: whether rows of tasks that are not out count as well.
          rollouts: m, trials at which a visit is complete.
          step: now, for what is unsolicited.
        """
        counted = np.zeros(len(rows), bool)
        ends: dict[int, None] = {}
        for at, row in enumerate(rows.tolist()):
            visit = self.open.get(row)
            matches = visit is not None and visits[at] in (ANY_VISIT, visit.number)
            if visit is not None and matches:
                piece = None if pieces is None else int(pieces[at])
                counted[at] = self._add(visit, successes[at], trials[at], piece, step)
                lost = trials[at] == 0 and np.isnan(successes[at])  # nobody knows how many
                if counted[at] and (lost or visit.attempts >= rollouts):
                    ends[row] = None
            elif unsolicited and row >= 0 and visits[at] == ANY_VISIT and visit is None:
                counted[at] = trials[at] > 0 and not np.isnan(successes[at])
                if counted[at]:
                    s, n = float(successes[at]), float(trials[at])
                    low, high = _extremes(s, n)
                    brought = s, n, high > low
                    self.ended.append(Ended(step, ANY_VISIT, row, *brought))
                    self.counts["unsolicited"] += 1
            else:
                self.counts["stale"] += 1
        for row in ends:
            self.end(row)
        if complete:
            self.abandon(rows.tolist(), visits.tolist())
        return counted

    def _add(
        self, visit: Visit, successes: float, trials: float, piece: int | None, step: int
    ) -> bool:
        if piece is not None and piece in visit.pieces:
            self.counts["stale"] += 1
            return False
        if piece is not None:
            visit.pieces.add(piece)
        visit.attempts += float(trials)
        visit.heard = max(visit.heard, step)
        if not np.isnan(successes):
            visit.successes += float(successes)
            visit.trials += float(trials)
        if trials > 0 and not np.isnan(successes):
            low, high = _extremes(float(successes), float(trials))
            visit.lowest, visit.highest = min(visit.lowest, low), max(visit.highest, high)
        return True

    def settle(self, rollouts: float) -> None:
        """End the visits that are complete: `rollouts` may have become fewer."""
        for row in [row for row, visit in self.open.items() if visit.attempts >= rollouts]:
            self.end(row)

    def stuck(self, before: int) -> list[Visit]:
        """Open visits with some evidence, and none since step `before`."""
        return [v for v in self.open.values() if v.attempts > 0 and v.heard < before]

    def end(self, row: int) -> None:
        """End an open visit; its evidence so far counts."""
        visit = self.open.pop(row)
        brought = visit.successes, visit.trials, visit.highest > visit.lowest
        self.ended.append(Ended(visit.opened, visit.number, row, *brought))
        self.counts["completed"] += visit.trials > 0

    def abandon(self, rows: Iterable[int], visits: Iterable[int]) -> int:
        """End those of these visits that are open; returns how many were."""
        found = 0
        for row, number in zip(rows, visits, strict=True):
            visit = self.open.get(row)
            if visit is not None and number in (ANY_VISIT, visit.number):
                self.end(row)
                found += 1
        return found

    def expire(self, step: int, expiry: int | None) -> None:
        """End visits that will be older than `expiry` when this step ends."""
        if expiry is None:
            return
        old = [row for row, visit in self.open.items() if step + 1 - visit.opened > expiry]
        for row in old:
            self.end(row)
        self.counts["expired"] += len(old)

    def take_ended(self, until: int) -> list[Ended]:
        """Ended visits of tasks selected in step `until` or before; the others stay."""
        due = [entry for entry in self.ended if entry.opened <= until]
        self.ended = [entry for entry in self.ended if entry.opened > until]
        return due

    def any_open(self, until: int) -> bool:
        """Whether a task selected in step `until` or before is in flight."""
        return any(visit.opened <= until for visit in self.open.values())

    def drop(self, rows: Iterable[int]) -> None:
        """Forget tasks that leave the pool, with their evidence."""
        gone = set(rows)
        for row in gone:
            self.open.pop(row, None)
        self.ended = [entry for entry in self.ended if entry.row not in gone]
        self.spare = deque(entry for entry in self.spare if entry[0] not in gone)

    def move(self, places: Mapping[int, int]) -> None:
        """Renumber rows; those without a new number are dropped, with their evidence."""
        rows = {visit[0] for visit in (*self.open.items(), *self.spare)}
        self.drop(row for row in rows | {entry.row for entry in self.ended} if row not in places)
        self.open = {places[row]: visit for row, visit in self.open.items()}
        self.spare = deque((places[row], visit) for row, visit in self.spare)
        self.again = deque((places[row], n) for row, n in self.again if row in places)
        self.ended = [entry._replace(row=places[entry.row]) for entry in self.ended]

    # --- saving ----------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """The whole ledger as JSON values; floats are restored exactly."""

        def told(row: int, visit: Visit) -> list[Any]:
            numbers = [visit.number, visit.opened, visit.draw, visit.successes, visit.trials]
            reports = [visit.attempts, visit.heard, visit.lowest, visit.highest]
            return [row, *numbers, sorted(visit.pieces), visit.kind, *reports]

        return {
            "open": [told(row, visit) for row, visit in self.open.items()],
            "spare": [told(row, visit) for row, visit in self.spare],
            "again": [list(entry) for entry in self.again],
            "ended": [list(entry) for entry in self.ended],
            "counts": dict(self.counts),
            "owed": [[kind, owed] for kind, owed in self.makeup.owed.items()],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], kinds: Sequence[int] = (0,)) -> Ledger:
        """The ledger from the values of `as_json`."""
        ledger = cls(kinds)

        def heard(entry: list[Any]) -> tuple[int, Visit]:
            row, number, opened, draw, successes, trials, pieces, kind, *reports = entry
            visit = Visit(number, opened, draw, kind if kind in ledger.makeup.share else kinds[0])
            visit.successes, visit.trials, visit.pieces = successes, trials, set(pieces)
            visit.attempts, visit.heard, visit.lowest, visit.highest = reports
            return row, visit

        ledger.open = dict(heard(entry) for entry in saved["open"])
        ledger.spare = deque(heard(entry) for entry in saved["spare"])
        ledger.again = deque((row, number) for row, number in saved["again"])
        ledger.ended = [Ended(*entry) for entry in saved["ended"]]
        ledger.counts = {**ledger.counts, **saved["counts"]}
        owed = {int(kind): int(parts) for kind, parts in saved["owed"]}
        if owed.keys() == ledger.makeup.share.keys():  # else the batch is made up otherwise now
            ledger.makeup.owed = owed
        return ledger


def _extremes(successes: float, trials: float) -> tuple[float, float]:
    """The lowest and highest share of success among the rollouts of a row."""
    share = min(successes / trials, 1.0)
    return (share, share) if trials <= 1 or share in (0, 1) else (0.0, 1.0)


COUNTS = (
    "handed_out",  # visits opened
    "completed",  # visits that ended with evidence
    "abandoned",  # visits ended by `abandon`
    "expired",  # visits ended by age
    "stale",  # rows dropped: late, repeated, or of tasks that have left
    "unsolicited",  # rows of tasks that were not out, where those are asked to count
)
