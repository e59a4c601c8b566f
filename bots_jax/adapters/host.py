"""READ FIRST of the adapters: any selector behind locks, for trainers that are not pure.

In: a `Selector` and its pool, then reports of rollouts from any thread, in any order. Out:
batches of task ids.

    sampler = TaskSampler(bots(batch_size=32, rollouts=8), reference)
    while training:
        batch = sampler.next_batch()
        ...                                            # roll out batch.task_ids, train
        sampler.observe(batch.task_ids, successes, trials=8, visits=batch.visits)

Each call of `next_batch` opens a *visit* of each task: the task is in flight, and is not
handed out again, until its visit ends (`ledger.py` says how). Evidence of visits that have
ended goes to the selector when the step ends.

A *step* ends at the first `next_batch` after `tasks_per_step` tasks (the selector's batch
size) have been handed out since the last one did, or when `advance` is called: then the
selector fuses, forgets and infers, once. So a trainer that asks for a batch, reports it and
asks again makes exactly the `select, update, select, update` of `selector.py`, one that reads
ahead sees its evidence fused that many steps later, and one that asks for tasks one by one
still forgets once a batch.
"""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import checkpoint
from bots_jax.adapters.ledger import ANY_VISIT, Ledger, Visit
from bots_jax.adapters.names import RETIRED, Name, TaskNames
from bots_jax.adapters.watch import ChoiceWatch, PoolGroups
from bots_jax.checks import check_choice, check_count
from bots_jax.compose import settings_of
from bots_jax.evidence import refuse_poison
from bots_jax.growth import add_tasks, retire
from bots_jax.types import ArrayLike, Belief, Evidence, Info, Selector, Settings, State

IN_FLIGHT = ("redeliver", "keep", "abandon")


class NotEnoughTasksError(RuntimeError):
    """Fewer tasks than asked for can be handed out now; nothing was handed out."""


class Batch(NamedTuple):
    """Tasks handed out: distinct, and not in flight before."""

    task_ids: np.ndarray  # [n], the user's names, or i32 rows where there are none
    visits: np.ndarray  # i32[n], to be sent back with the evidence
    draws: np.ndarray  # f64[n], the p^ that each was chosen by
    rows: np.ndarray  # i32[n], rows of the selector's state


class TaskSampler:
    """A thread-safe, stateful wrapper of any selector.

    Args:
      selector: for example `bots(batch_size=32, rollouts=8)`.
      reference, num_tasks, settings, reference_trials, domains, capacity: as in
        `selector.init`.
      task_ids: names of the tasks, strings or whole numbers; None: a task's id is its row.
      seed: of all that is drawn.
      rollouts: m, where it is not the selector's: trials at which a visit is complete. It
        must be what a task really gets, or visits wait for the rest.
      tasks_per_step: tasks handed out before a step may end [the selector's batch size].
      auto_advance: whether `next_batch` ends steps. False leaves it to `advance`.
      expiry: end visits older than this many steps [the selector's own; None: never].
      window: steps over which `metrics` looks back at what was chosen.
      device: "cpu" or a `jax.Device` to keep the selector on; None: JAX's default.

    Raises:
      ValueError: naming the argument, its value and the way out.
    """

    def __init__(
        self,
        selector: Selector,
        reference: Any = None,
        num_tasks: int | None = None,
        *,
        settings: Settings | Mapping[str, ArrayLike] | None = None,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
        capacity: int | None = None,
        task_ids: Sequence[Name] | None = None,
        seed: int = 0,
        rollouts: float | None = None,
        tasks_per_step: int | None = None,
        auto_advance: bool = True,
        expiry: int | None = None,
        window: int = 64,
        device: Any = None,
    ):
        self.selector = selector
        self.batch_size = int(selector.static["batch_size"])
        given = self.batch_size if tasks_per_step is None else tasks_per_step
        self.tasks_per_step = check_count("tasks_per_step", given)
        self.auto_advance = auto_advance
        self.expiry = _shortest(selector.static.get("expiry"), expiry)
        self._device = jax.devices(device)[0] if isinstance(device, str) else device
        self._lock = threading.RLock()
        self._state: State
        self._groups: PoolGroups | None
        if num_tasks is None and reference is None and task_ids is not None:
            num_tasks = len(task_ids)
        with self._on_device():
            state = selector.init(
                reference, settings, num_tasks, reference_trials, domains, capacity
            )
            if rollouts is not None:
                state = _with_settings(state, {"rollouts": rollouts})
            self._key = jax.random.key(seed)
        self._names = TaskNames(_count_active(state), task_ids)
        self._set_state(state)
        self._ledger = Ledger()
        self._watch = ChoiceWatch(check_count("window", window))
        self._step = 0  # calls of advance so far
        self._draws = 0  # calls of select so far
        self._handed = 0  # tasks handed out since the step began
        self._last: dict[str, Any] = {}  # of the last step, for `metrics`
        self._totals = {"evaluated": 0, "trials": 0.0, "successes": 0.0}
        self._warned = False

    # --- the loop ----------------------------------------------------------------------------

    def next_batch(self, n: int | None = None, eligible: ArrayLike | None = None) -> Batch:
        """Hand out `n` tasks [the selector's batch size]; may end a step first.

        Args:
          n: any number; more than a batch is selected in several draws, of fewer the rest
            is handed out by later calls of the same step, or returned to the pool.
          eligible: bool[C] by row; False keeps a task out.

        Raises:
          NotEnoughTasksError: if fewer can be handed out; then none is.
        """
        count = self.batch_size if n is None else check_count("n", n)
        with self._lock, self._on_device():
            rows = self._ledger.take_again(count)
            try:
                fresh = self._fresh(count - len(rows), eligible) if len(rows) < count else []
            except NotEnoughTasksError:
                self._put_back(rows)
                raise
            return self._batch(rows + fresh)

    def observe(
        self,
        task_ids: Any,
        successes: ArrayLike,
        trials: ArrayLike = 1,
        visits: ArrayLike | None = None,
        *,
        pieces: ArrayLike | None = None,
        complete: bool = False,
        unsolicited: bool = False,
    ) -> np.ndarray:
        """Report what rollouts came to; from any thread, in any order, in pieces.

        Args:
          task_ids: [M], as handed out; repeats are added up, so one row a rollout will do.
          successes: f[M] in [0, trials]; fractions for graded rewards.
          trials: f[M] or one number; 0 ends the visit with nothing more.
          visits: i32[M] from `Batch.visits`. Without them a row belongs to the task's open
            visit, whichever that is: with them a report of an earlier one is recognised.
          pieces: i32[M], number of each row within its visit, such as that of the rollout.
            With them a row that is sent twice while its visit is open is recognised.
          complete: no more will come for these visits, whatever their trials.
          unsolicited: count rows of tasks that are not in flight, too.

        Returns:
          bool[M]: whether each row counted. The others were late, repeated, or of tasks that
          have left the pool; `metrics` has their number.

        Raises:
          ValueError: on rows that make no sense; then no row has counted.
        """
        with self._lock:
            rows = self._names.rows_of(task_ids)
            shape = rows.shape
            s = _column("successes", successes, shape, np.float64)
            n = _column("trials", trials, shape, np.float64)
            numbers = _column("visits", ANY_VISIT if visits is None else visits, shape, np.int32)
            order = None if pieces is None else _column("pieces", pieces, shape, np.int32)
            rows_checked = np.maximum(rows, 0)
            refuse_poison(Evidence(rows_checked, s, n), np.ones(shape, bool), self._names.num_rows)
            return self._ledger.report(
                rows, s, n, numbers, order, complete=complete, unsolicited=unsolicited,
                rollouts=self._rollouts, step=self._step,
            )  # fmt: skip

    def abandon(self, task_ids: Any, visits: ArrayLike | None = None) -> int:
        """No more evidence will come of these visits; what came counts.

        Returns:
          How many of them were open.
        """
        with self._lock:
            rows = self._names.rows_of(task_ids)
            numbers = _column("visits", ANY_VISIT if visits is None else visits, rows.shape, int)
            return self._ledger.abandon(rows.tolist(), numbers.tolist(), self._step)

    def advance(self) -> Info:
        """End the step: fuse what has come, forget, infer. `next_batch` does it by itself."""
        with self._lock, self._on_device():
            self._ledger.expire(self._step, self.expiry)
            ages = [entry.age for entry in self._ledger.ended if entry.trials > 0]
            self._return_spare()
            self._warn_if_nothing_completes()
            self._deliver()
            self._state, info = self.selector.advance(self._state)
            self._step += 1
            self._handed = 0
            self._watch.end_step()
            self._note(info, ages)
            return info

    # --- pool ----------------------------------------------------------------------------------

    def add_tasks(
        self,
        task_ids: Sequence[Name] | None = None,
        reference: ArrayLike | None = None,
        num_tasks: int | None = None,
        *,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
    ) -> np.ndarray:
        """Add tasks while running; needs `capacity`, but in grouped pools.

        Args:
          task_ids: names, where the pool has names.
          reference, num_tasks, reference_trials, domains: as in `bots_jax.add_tasks`.

        Returns:
          The ids of the new tasks.
        """
        with self._lock, self._on_device():
            if num_tasks is None and reference is None and task_ids is not None:
                num_tasks = len(task_ids)
            count = num_tasks if reference is None else np.shape(reference)[-1]
            self._names.check_new(task_ids, count or 0)
            state, rows = add_tasks(self._state, reference, num_tasks, reference_trials, domains)
            self._set_state(state)
            self._names.add(np.asarray(rows), task_ids)
            return self._names.names_of(np.asarray(rows))

    def retire(self, task_ids: Any) -> None:
        """Take tasks out of the pool. Their evidence, waiting or late, is dropped."""
        with self._lock, self._on_device():
            rows = self._names.rows_of(task_ids)
            rows = np.unique(rows[rows != RETIRED])
            self._ledger.drop(rows.tolist())
            self._set_state(retire(self._state, jnp.asarray(rows, jnp.int32)))
            self._names.retire(rows)

    def set_settings(self, **numbers: ArrayLike) -> None:
        """Other numbers from now on, for schedules: `set_settings(target=0.6)`."""
        with self._lock, self._on_device():
            self._set_state(_with_settings(self._state, numbers))

    # --- looking -------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The selector's state: an immutable pytree."""
        return self._state

    @property
    def step(self) -> int:
        """Steps that have ended."""
        return self._step

    def in_flight(self) -> Batch:
        """What is out with the trainer, in the order of handing out."""
        with self._lock:
            return self._batch(list(self._ledger.open))

    def predict(self, task_ids: Any = None) -> Belief:
        """What is believed of these tasks, or of all rows; NumPy."""
        with self._lock, self._on_device():
            rows = None if task_ids is None else self._names.rows_of(task_ids)
            if rows is not None and (rows == RETIRED).any():
                raise ValueError(f"task_ids={task_ids} names tasks that have left the pool")
            belief = self.selector.predict(self._state, rows)
            return Belief(*jax.device_get(belief))

    def metrics(self) -> dict[str, float]:
        """Numbers for a logger, of the last step that ended and of the last `window` steps.

        effective_task_ratio, success_rate, evaluated: of the evidence fused in that step.
        capability (capability/0 and so on with domains), implicit_weight, implicit_error.
        choice_entropy (nats), breadth (its exponential, in tasks), starved_groups,
        starved_share (of all tasks): see `watch.py`; over the window.
        staleness_mean, staleness_max: steps between handing out a task and the end of its
        visit, of the evidence fused; oldest_visit: steps that the oldest open one has waited.
        in_flight, waiting (visits that ended since), step; and since the start handed_out,
        completed, abandoned, expired, stale, unsolicited (`ledger.COUNTS`), total_evaluated,
        total_trials, total_successes.
        """
        with self._lock:
            self._groups = groups = self._groups or PoolGroups(self._state)
            ledger = self._ledger
            opened = [visit.opened for visit in ledger.open.values()]
            return {
                **self._last,
                **self._watch.measure(groups.labels(self._watch.rows()), groups.sizes),
                "step": float(self._step),
                "in_flight": float(len(ledger.open)),
                "waiting": float(len(ledger.ended)),
                "oldest_visit": float(self._step - min(opened, default=self._step)),
                **{name: float(value) for name, value in ledger.counts.items()},
                **{f"total_{name}": float(value) for name, value in self._totals.items()},
            }

    # --- saving ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs.

        Returns:
          `{"version", "static", "host", "arrays"}`: the first three are JSON values, `arrays`
          holds NumPy arrays by the path of each leaf of the state.
        """
        state, host = self._snapshot()
        return {
            "version": checkpoint.VERSION,
            "static": json.loads(json.dumps(dict(self.selector.static), default=str)),
            "host": host,
            "arrays": checkpoint.named_arrays(state),
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], *, in_flight: str = "redeliver", settings: str = "saved"
    ) -> None:
        """Go on where `state_dict` was called.

        Args:
          saved: of a sampler made with the same selector, pool and names.
          in_flight: what becomes of tasks that were out. "redeliver" hands them out again,
            first and in the same order, under the same visit numbers: for a trainer that lost
            them. "keep" leaves them out: for one that goes on with them. "abandon" ends them.
          settings: whose numbers win where they differ, "saved" or "given".

        Raises:
          CheckpointError: if it belongs to another selector or pool.
          ValueError: if it belongs to other names.
        """
        check_choice("in_flight", in_flight, IN_FLIGHT)
        with self._lock, self._on_device():
            state = checkpoint.from_named_arrays(
                saved["static"], saved["arrays"], self.selector, self._state, settings
            )
            self._resume(state, saved["host"], in_flight)

    def save(
        self, directory: str | Path, step: int | None = None, *, trainer: Any = None, keep: int = 2
    ) -> Path:
        """Write an Orbax checkpoint, with the trainer's pytree of arrays if given.

        Args:
          directory, trainer, keep: as in `checkpoint.save`.
          step: number of the checkpoint [steps that have ended].
        """
        state, host = self._snapshot()
        number = host["step"] if step is None else step
        notes = {"sampler": host}
        return checkpoint.save(
            directory, number, self.selector, state, trainer=trainer, notes=notes, keep=keep
        )

    def restore(
        self,
        directory: str | Path,
        step: int | None = None,
        *,
        trainer: Any = None,
        in_flight: str = "redeliver",
        settings: str = "saved",
    ) -> checkpoint.Restored:
        """Read what `save` wrote; see `load_state_dict` and `checkpoint.restore`."""
        check_choice("in_flight", in_flight, IN_FLIGHT)
        with self._lock, self._on_device():
            found = checkpoint.restore(
                directory, self.selector, self._state, trainer=trainer, step=step,
                settings=settings, resized=True,
            )  # fmt: skip
            self._resume(found.state, found.notes["sampler"], in_flight)
            return found

    def _snapshot(self) -> tuple[State, dict[str, Any]]:
        with self._lock:
            return self._state, {
                "step": self._step,
                "draws": self._draws,
                "handed": self._handed,
                "key": np.asarray(jax.random.key_data(self._key)).tolist(),
                "names": self._names.changes(),
                "ledger": self._ledger.as_json(),
                "watch": [list(rows) for rows in self._watch.steps],
                "last": dict(self._last),
                "totals": dict(self._totals),
            }

    def _resume(self, state: State, host: Mapping[str, Any], in_flight: str) -> None:
        names = self._names.at_start()
        names.replay(host["names"])
        self._names = names
        self._set_state(state)
        self._ledger = Ledger.from_json(host["ledger"])
        self._watch.steps.clear()
        self._watch.steps.extend(list(rows) for rows in host["watch"])
        self._step, self._draws, self._handed = host["step"], host["draws"], host["handed"]
        self._last, self._totals = dict(host["last"]), dict(host["totals"])
        data = jnp.asarray(host["key"], jnp.uint32)
        self._key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(self._key))
        if in_flight == "redeliver":
            self._ledger.redeliver()
        if in_flight == "abandon":
            numbers = [visit.number for visit in self._ledger.open.values()]
            self._ledger.abandon(list(self._ledger.open), numbers, self._step)

    # --- inner steps; the lock is held -----------------------------------------------------

    def _fresh(self, count: int, eligible: ArrayLike | None) -> list[int]:
        """Rows handed out for the first time."""
        if self.auto_advance and self._handed >= self.tasks_per_step:
            self.advance()
        if eligible is not None:
            self._return_spare()
        ledger = self._ledger
        while len(ledger.spare) < count:
            found = self._select(eligible)
            if not found and ledger.ended:
                self._deliver()  # tasks whose visits have ended may be chosen again
                found = self._select(eligible)
            if not found:
                message = self._shortage(count)
                if eligible is not None:
                    self._return_spare()
                raise NotEnoughTasksError(message)
        rows = ledger.hand_out(count)
        if eligible is not None:
            self._return_spare()
        self._handed += count
        self._watch.hand_out(rows)
        return rows

    def _select(self, eligible: ArrayLike | None) -> int:
        """Select once; how many tasks came."""
        key = jax.random.fold_in(self._key, self._draws)
        self._draws += 1
        self._state, selection = self.selector.select(key, self._state, eligible)
        ids, draws, valid, numbers = (np.asarray(part) for part in selection)
        for row, draw, number in zip(ids[valid], draws[valid], numbers[valid], strict=True):
            self._ledger.spare.append((int(row), Visit(int(number), self._step, float(draw))))
        return int(np.sum(valid))

    def _batch(self, rows: list[int]) -> Batch:
        visits = [self._ledger.open[row] for row in rows]
        at = np.array(rows, np.int32)
        return Batch(
            self._names.names_of(at),
            np.array([visit.number for visit in visits], np.int32),
            np.array([visit.draw for visit in visits], np.float64),
            at,
        )

    def _put_back(self, rows: list[int]) -> None:
        for row in reversed(rows):
            self._ledger.again.appendleft((row, self._ledger.open[row].number))

    def _shortage(self, count: int) -> str:
        out, spare = len(self._ledger.open), len(self._ledger.spare)
        return (
            f"{count} tasks were asked for and {spare} can be handed out: {out} are in flight. "
            "Report or abandon those, give expiry=..., add tasks, or ask for fewer"
        )

    def _return_spare(self) -> None:
        """What was selected and not handed out goes back to the pool."""
        rows = [row for row, _ in self._ledger.spare]
        self._ledger.spare.clear()
        self._close(rows)

    def _close(self, rows: list[int]) -> None:
        for start in range(0, len(rows), self.batch_size):
            part = np.full(self.batch_size, -1, np.int32)
            part[: len(rows) - start] = rows[start : start + self.batch_size]
            self._state = self.selector.abandon(self._state, part)

    def _deliver(self) -> None:
        """Tell the selector of the visits that have ended, a batch at a time: one shape."""
        ended, size = self._ledger.ended, self.batch_size
        self._ledger.ended = []
        for start in range(0, len(ended), size):
            part = ended[start : start + size]
            rows, numbers = np.full((2, size), -1, np.int32)
            s, n = np.zeros((2, size))
            rows[: len(part)] = [entry.row for entry in part]
            numbers[: len(part)] = [entry.number for entry in part]
            s[: len(part)] = [entry.successes for entry in part]
            n[: len(part)] = [entry.trials for entry in part]
            self._state = self.selector.observe(self._state, Evidence(rows, s, n, numbers))
        m = self._rollouts
        self._close(
            [entry.row for entry in ended if entry.number != ANY_VISIT and entry.trials < m]
        )

    def _warn_if_nothing_completes(self) -> None:
        """A sampler that waits for more rollouts than a task gets would never learn."""
        ledger = self._ledger
        if self._warned or ledger.counts["completed"]:
            return
        partial = [visit.trials for visit in ledger.open.values() if visit.trials > 0]
        if len(partial) >= self.tasks_per_step:
            self._warned = True
            warnings.warn(
                f"{len(partial)} tasks have brought {max(partial):g} trials or fewer and wait for "
                f"rollouts={self._rollouts:g}: give TaskSampler(rollouts=...) what a task gets, or "
                "observe(complete=True) with its last piece",
                RuntimeWarning,
                stacklevel=4,
            )

    def _note(self, info: Info, ages: list[int]) -> None:
        """Keep what `metrics` tells of this step."""
        told = jax.device_get(info)
        capability = np.atleast_1d(told.capability)
        self._totals["evaluated"] += int(told.evaluated)
        self._totals["trials"] += float(told.trials)
        self._totals["successes"] += float(told.trials) * float(told.success_rate)
        names = ("effective_task_ratio", "success_rate", "evaluated", "implicit_weight",
                 "implicit_error", "displaced")  # fmt: skip
        self._last = {name: float(getattr(told, name)) for name in names}
        if len(capability) == 1:
            self._last["capability"] = float(capability[0])
        else:
            self._last |= {f"capability/{d}": float(c) for d, c in enumerate(capability)}
        self._last["staleness_mean"] = float(np.mean(ages)) if ages else 0.0
        self._last["staleness_max"] = float(max(ages, default=0))

    def _set_state(self, state: State) -> None:
        """A state whose pool or settings may have changed."""
        if self._device is not None:
            state = jax.device_put(state, self._device)
        self._state, self._groups = state, None
        self._rollouts = float(state.settings.rollouts)

    def _on_device(self) -> Any:
        if self._device is None:
            return contextlib.nullcontext()
        return jax.default_device(self._device)


def _shortest(first: int | None, second: int | None) -> int | None:
    """The lower of two limits, None being none."""
    if second is not None:
        check_count("expiry", second)
    given = [limit for limit in (first, second) if limit is not None]
    return min(given, default=None)


def _count_active(state: State) -> int:
    if state.representation == "grouped":
        return int(state.pool.groups.num_tasks)
    return int(np.sum(np.asarray(state.pool.active)))


def _with_settings(state: State, numbers: Mapping[str, ArrayLike]) -> State:
    dtype = state.settings.target.dtype
    return state._replace(settings=settings_of(state.settings, numbers, dtype))


def _column(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """One value a row, or one for all."""
    try:
        column = np.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r} must be numbers: {error}") from None
    if column.shape not in ((), shape):
        raise ValueError(f"{name} has shape {column.shape}, expected {shape}, as task_ids")
    return np.broadcast_to(column, shape)
