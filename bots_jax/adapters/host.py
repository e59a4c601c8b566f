"""READ FIRST of the adapters: `TaskSampler`, a thread-safe selector for any trainer.

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
asks again makes exactly the `select, update, select, update` of `bots_selector.py`, and one that
asks for tasks one by one still forgets once a batch.

Whoever reads ahead, on another thread, would have evidence fused sooner or later by chance.
With `delay=k` a step fuses the evidence of the tasks selected k steps before it and earlier,
all of it and nothing else, and waits for what is missing: the run is the same, bit for bit,
whatever the threads do, and nothing can run further ahead than k steps.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import checkpoint
from bots_jax.adapters import carry
from bots_jax.adapters.arrays import as_host
from bots_jax.adapters.engine import Engine
from bots_jax.adapters.identity import check_same, describe
from bots_jax.adapters.ledger import ANY_VISIT, Ended, Ledger
from bots_jax.adapters.names import RETIRED, Moves, Name, TaskNames
from bots_jax.adapters.prompts import TEXT, as_texts, pack_text, text_features, wants_text
from bots_jax.adapters.watch import ChoiceWatch, PoolGroups, StepNotes
from bots_jax.checks import check_choice, check_count
from bots_jax.choice.batch import as_mask
from bots_jax.compose import can_use_features, settings_of
from bots_jax.growth import add_tasks, count_new, retire
from bots_jax.pool.evidence import validate_evidence
from bots_jax.types import ArrayLike, Belief, Evidence, Info, Selector, Settings, State

if TYPE_CHECKING:
    from bots_jax.features.text import TextCode

_LOG = logging.getLogger(__name__)
IN_FLIGHT = ("redeliver", "keep", "abandon")


class NotEnoughTasksError(RuntimeError):
    """Fewer tasks than asked for are available now; none was given out."""


class ClosedError(RuntimeError):
    """The sampler was closed and gives out no more tasks."""


class Batch(NamedTuple):
    """A batch of tasks: distinct, and not in flight before."""

    task_ids: np.ndarray  # [n], the user's names (see `names.py`), or i32 rows if there are none
    visits: np.ndarray  # i32[n], to be sent back with the evidence
    rate: np.ndarray  # f64[n], the success probability that each was chosen by
    rows: np.ndarray  # i32[n], rows of the selector's state


class TaskSampler:
    """A thread-safe, stateful wrapper of any selector.

    Args:
      selector: for example `bots(batch_size=32, rollouts=8)`.
      reference, num_tasks, settings, reference_trials, domains, capacity: as in `selector.init`.
      prompts: N strings, chat messages or rows of token ids: `features.text` is made of them, if
        there are no references and the selector can use features; one log line says so.
      features: as in `selector.init`; "text": those of the prompts; None: none.
      task_ids: names of the tasks, strings or whole numbers; None: a task's id is its row.
      seed: of all that is drawn.
      rollouts: m, where it is not the selector's: trials at which a visit is complete. It
        must be what a task really gets, or visits wait for the rest. It wins over a saved one.
      tasks_per_step: tasks handed out before a step may end [the selector's batch size].
      auto_advance: whether `next_batch` ends steps. False leaves it to `advance`.
      delay: steps after which evidence is fused, and waited for; None: what has come is
        fused, and nothing waited for.
      patience: seconds that `next_batch` waits for evidence before it raises.
      expiry: end visits older than this many steps [the selector's own; None: never].
      window: steps over which `metrics` looks back at what was chosen.
      device: "cpu" or a `jax.Device` to keep the selector on, or a `jax.sharding.Mesh` to spread
        the pool over (`sharding.task_mesh`; `capacity` must fit it); None: JAX's default.

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
        prompts: Any = None,
        features: Any = TEXT,
        task_ids: Sequence[Name] | None = None,
        seed: int = 0,
        rollouts: float | None = None,
        tasks_per_step: int | None = None,
        auto_advance: bool = True,
        delay: int | None = None,
        patience: float = 3600.0,
        expiry: int | None = None,
        window: int = 64,
        device: Any = None,
    ):
        self._engine = engine = Engine(selector, device, seed)
        self.batch_size = engine.batch_size
        self.tasks_per_step = self.batch_size
        if tasks_per_step is not None:
            self.tasks_per_step = check_count("tasks_per_step", tasks_per_step)
        self.auto_advance = auto_advance
        self.delay = None if delay is None else check_count("delay", delay, least=0)
        self.patience = patience
        self.expiry = _shortest(selector.static.get("expiry"), expiry)
        if self.expiry is not None and self.expiry <= (self.delay or 0):
            raise ValueError(f"expiry={self.expiry} must be above delay={self.delay}, in steps")
        self._lock = threading.Condition(threading.RLock())
        task_ids = None if task_ids is None else list(task_ids)  # a generator is read once
        if num_tasks is None and reference is None and task_ids is not None:
            num_tasks = len(task_ids)
        if num_tasks is None and reference is None and prompts is not None:
            num_tasks = len(prompts)
        pool = (reference, settings, num_tasks, reference_trials, domains, capacity)
        with engine.on_device():
            engine.set_state(self._first_state(pool, prompts, features))
            if rollouts is not None:
                engine.set_numbers({"rollouts": rollouts})
            self._tasks = describe(engine.state)  # they may change later
            self._asked = _choice_numbers(engine.state)  # and these
        self._given_rollouts = rollouts
        self._names = TaskNames(int(engine.state.num_tasks), task_ids)
        self._groups: PoolGroups | None = None  # until the pool changes
        self._places: Mapping[int, int] | None = None  # of rows saved; None: where they were
        self._ledger = Ledger(engine.kinds)
        self._watch = ChoiceWatch(check_count("window", window))
        self._notes = StepNotes()
        self._handed = 0  # tasks handed out since the step began
        self._warned = False
        self._stuck = 1  # visits that were stuck at the last warning
        self._closed = False

    def _first_state(self, pool: tuple[Any, ...], prompts: Any, features: Any) -> State:
        reference = pool[0]
        self._text: TextCode | None = None  # how later prompts become features
        # For an adapter that sees prompts; where references are given nothing is made of them.
        self._open_to_text = wants_text(features) and reference is None and prompts is None
        if wants_text(features):
            features = None
            if prompts is not None:
                features, self._text = text_features(prompts, self.selector, reference)
        told = prompts if self._text is not None else None
        origin = carry.Origin(self.selector.init, pool, features, told)
        state = origin.state()
        if prompts is not None and len(prompts) != int(state.num_tasks):
            raise ValueError(
                f"prompts has {len(prompts)} entries, the pool {int(state.num_tasks)} tasks: give "
                "one a task"
            )
        # The rows of groups are not moved, so what they were made of is not held.
        self._origin = None if state.representation == "grouped" else origin.kept()
        return state

    # --- the loop ----------------------------------------------------------------------------

    def next_batch(self, n: int | None = None, eligible: ArrayLike | None = None) -> Batch:
        """Hand out `n` tasks [the selector's batch size]; may end a step first.

        Args:
          n: any number; more than a batch is selected in several draws, of fewer the rest
            is handed out by later calls of the same step, or returned to the pool. Quotas and
            exploration hold for what is handed out, whatever the sizes asked for.
          eligible: bool[C] by row; False keeps a task out, also one that waits to be handed out
            again, which goes on waiting.

        Raises:
          NotEnoughTasksError: if fewer can be handed out; then none is.
          TimeoutError: with `delay`, if evidence is missing for longer than `patience`.
          ClosedError: after `close`, also if it was waiting.
        """
        count = self.batch_size if n is None else check_count("n", n)
        with self._lock, self._engine.on_device():
            if self._closed:
                raise ClosedError("this sampler was closed")
            mask = may = None
            if eligible is not None:
                mask = as_mask(eligible, int(self.state.capacity))  # raises before anything is done
                may = np.asarray(mask)
            self._end_steps(count, may)
            rows = self._ledger.take_again(count, may)
            try:
                fresh = self._fresh(count - len(rows), mask) if len(rows) < count else []
            except BaseException:  # also of the device, or Ctrl-C: nobody has these tasks
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
        """Report outcomes of rollouts, from any thread, in any order, in pieces.

        Args:
          task_ids: [M], as handed out; repeats are added up, so one row a rollout will do.
          successes: f[M] in [0, trials]; fractions for graded rewards. NaN or None: these
            trials were not scored; they count towards the end of the visit, and bring nothing.
          trials: f[M] or one number; 0: nothing yet, or with NaN: nothing will come.
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
            validate_evidence(Evidence(rows_checked, s, n), self._names.num_rows)
            counted = self._ledger.report(
                rows, s, n, numbers, order, complete=complete, unsolicited=unsolicited,
                rollouts=self._engine.rollouts, step=self.step,
            )  # fmt: skip
            self._lock.notify_all()
            return counted

    def abandon(self, task_ids: Any, visits: ArrayLike | None = None) -> int:
        """End these visits; no more evidence will come, and what has come counts.

        Returns:
          How many of them were open.
        """
        with self._lock:
            rows = self._names.rows_of(task_ids)
            numbers = _column(
                "visits", ANY_VISIT if visits is None else visits, rows.shape, np.int32
            )
            found = self._ledger.abandon(rows.tolist(), numbers.tolist())
            self._ledger.counts["abandoned"] += found
            self._lock.notify_all()
            return found

    def advance(self) -> Info:
        """End the step: fuse the evidence, forget, infer. `next_batch` does it automatically."""
        with self._lock, self._engine.on_device():
            step = self.step
            self._ledger.expire(step, self.expiry)
            self._return_spare()
            self._warn_if_nothing_completes()
            self._warn_of_stuck_visits()
            due = self._take_due()
            self._engine.deliver(due)
            info = self._engine.advance()
            self._handed = 0
            self._watch.end_step()
            self._notes.note(info, [step - entry.opened for entry in due if entry.trials > 0])
            return info

    def redeliver(self, visits: Collection[tuple[int, int]] | None = None) -> None:
        """Give out again, first and in the same order, the tasks in flight: they were lost.

        The tasks keep their visit numbers; pieces that they had brought are dropped.

        Args:
          visits: rows and visit numbers; of these, those that have brought nothing. None: all.
        """
        with self._lock:
            self._ledger.redeliver(visits)

    def waiting_again(self) -> list[tuple[int, int]]:
        """Rows and visit numbers in flight that the next batches will give out again."""
        with self._lock:
            return self._ledger.waiting_again()

    def close(self) -> None:
        """Close the sampler: no more tasks are given out, and waiting threads are released.

        Call it before closing a loader that reads ahead on a thread. Evidence is still taken,
        and the state may still be saved.
        """
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    # --- pool ----------------------------------------------------------------------------------

    @property
    def prompts_wanted(self) -> int:
        """The number of prompts that `read_prompts` would use; 0: it would do nothing."""
        fresh = not self.handed_out and not self.step and self._names.unchanged
        if not self._open_to_text or not fresh or not can_use_features(self.selector.static):
            return 0
        return self._names.num_rows

    def read_prompts(self, prompts: Any) -> bool:
        """Make features of prompts, as `prompts=` does, before any task was given out.

        What adapters do with the column of prompts that they see.

        Args:
          prompts: as of the factory, one for each row; more are of tasks to come.

        Returns:
          Whether there are features now: not where references, features, prompts or
          `features=None` were given, where the selector cannot use them, or once it has begun.

        Raises:
          ValueError: if there are fewer than tasks.
        """
        with self._lock, self._engine.on_device():
            wanted = self.prompts_wanted
            if not wanted:
                return False
            if len(prompts) < wanted:
                raise ValueError(
                    f"there are {len(prompts)} prompts for {wanted} tasks: give one a row, or "
                    "features=None"
                )
            told = prompts[:wanted]
            features, self._text = text_features(told, self.selector, None)
            assert self._origin is not None
            self._origin = self._origin._replace(features=features, prompts=told).kept()
            state = self._origin.state()._replace(settings=self.state.settings)
            self._engine.set_state(state)
            self._tasks, self._groups, self._open_to_text = describe(state), None, False
            return True

    def add_tasks(
        self,
        task_ids: Sequence[Name] | None = None,
        reference: ArrayLike | None = None,
        num_tasks: int | None = None,
        *,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
        prompts: Any = None,
        features: Any = None,
    ) -> np.ndarray:
        """Add tasks while running; dense pools need spare `capacity`.

        Args:
          task_ids: names, where the pool has names.
          reference, num_tasks, reference_trials, domains, features: as in `bots_jax.add_tasks`.
          prompts: of the new tasks, where features were made of the first ones' prompts: these
            get theirs on the same components.

        Returns:
          The ids of the new tasks.

        Raises:
          ValueError: if something is given that the pool was made without, or there is no room.
        """
        with self._lock, self._engine.on_device():
            if prompts is not None and features is not None:
                raise ValueError("prompts and features were both given: give one of them")
            if prompts is not None and self._text is None:
                raise ValueError(
                    "prompts were given, and this sampler made no features of prompts at first: "
                    "drop them, or make it with prompts=... (no reference, no features, a selector "
                    "that can use features)"
                )
            if prompts is not None and self._text is not None:
                features = self._text.apply(as_texts(prompts))
            if num_tasks is None and reference is None:
                given = (part for part in (task_ids, prompts) if part is not None)
                num_tasks = next((len(part) for part in given), None)
            models = self.state.reference.rates.shape[0]
            count = num_tasks if reference is None else count_new(reference, num_tasks, models)
            self._names.check_new(task_ids, count or 0)
            state, rows = add_tasks(
                self.state, reference, num_tasks, reference_trials, domains, features
            )
            self._engine.set_state(state)
            self._groups = None
            self._names.add(np.asarray(rows), task_ids)
            return self._names.names_of(np.asarray(rows))

    def retire(self, task_ids: Any) -> None:
        """Remove tasks from the pool; their evidence, waiting or late, is dropped."""
        with self._lock, self._engine.on_device():
            rows = self._names.rows_of(task_ids)
            rows = np.unique(rows[rows != RETIRED])
            self._ledger.drop(rows.tolist())
            self._engine.set_state(retire(self.state, jnp.asarray(rows, jnp.int32)))
            self._groups = None
            self._names.retire(rows)
            self._lock.notify_all()

    def set_settings(self, **numbers: ArrayLike) -> None:
        """Change settings from now on, for schedules: `set_settings(breadth=0.3)`.

        Raises:
          ValueError: for numbers out of range, or without effect on this selector (`obeys`).
        """
        with self._lock, self._engine.on_device():
            self._engine.set_numbers(numbers)
            self._ledger.settle(self._engine.rollouts)
            self._lock.notify_all()

    # --- looking -------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The selector's state: an immutable pytree."""
        return self._engine.state

    @property
    def selector(self) -> Selector:
        """The selector that is wrapped."""
        return self._engine.selector

    @property
    def step(self) -> int:
        """The number of steps that have ended."""
        return self._engine.step

    @property
    def handed_out(self) -> int:
        """The number of visits opened since the start."""
        return self._ledger.counts["handed_out"]

    def placed(self, visits: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
        """Rows and visit numbers of a saved run, in the rows that the last load gave them.

        For loaders that keep rows of their own; those of tasks that have left are left out.
        """
        places = self._places
        if places is None:
            return list(visits)
        return [(places[row], number) for row, number in visits if row in places]

    def in_flight(self) -> Batch:
        """The tasks in flight, in the order in which they were given out."""
        with self._lock:
            return self._batch(list(self._ledger.open))

    def predict(self, task_ids: Any = None) -> Belief:
        """The belief about these tasks, or about all rows, as NumPy arrays."""
        with self._lock, self._engine.on_device():
            rows = None if task_ids is None else self._names.rows_of(task_ids)
            if rows is not None and (rows == RETIRED).any():
                raise ValueError(f"task_ids={task_ids} names tasks that have left the pool")
            belief = self.selector.predict(self.state, rows)
            return Belief(*jax.device_get(belief))

    def metrics(self) -> dict[str, float]:
        """Metrics for a logger, of the last step that ended and of the last `window` steps.

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
            self._groups = groups = self._groups or PoolGroups(self.state)
            ledger = self._ledger
            opened = [visit.opened for visit in ledger.open.values()]
            return {
                **self._notes.last,
                **self._watch.measure(groups.labels(self._watch.rows()), groups.sizes),
                "step": float(self.step),
                "in_flight": float(len(ledger.open)),
                "waiting": float(len(ledger.ended)),
                "oldest_visit": float(self.step - min(opened, default=self.step)),
                **{name: float(value) for name, value in ledger.counts.items()},
                **self._notes.totals,
            }

    # --- saving ------------------------------------------------------------------------------

    def __getstate__(self) -> Any:
        raise TypeError(
            "a TaskSampler holds a lock and its device, and is neither pickled nor deep-copied: "
            "make one in each process and hand over state_dict(), or keep it in one process alone"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs.

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
        """Resume from where `state_dict` was called.

        Made with another list of `task_ids` than the saved sampler was, this one goes on with the
        tasks of its own list: those that are in both keep what is known of them, their open visits
        too, whatever the order; new ones begin as with `add_tasks`; the others are dropped. A log
        line counts them. Tasks without names may grow at the end. Made with the same list, it has
        the tasks that the saved one had at last, those added and retired later too.

        Args:
          saved: of a sampler made with the same selector.
          in_flight: what becomes of tasks that were out. "redeliver" hands them out again,
            first and in the same order, under the same visit numbers: for a trainer that lost
            them. "keep" leaves them out: for one that goes on with them. "abandon" ends them.
          settings: whose numbers win where they differ, "saved" or "given". With "saved" a
            target, temperature or breadth that is given otherwise than the saved sampler was
            given it wins all the same, and is logged.

        Raises:
          CheckpointError: if it belongs to another selector or pool, waits for another number of
            rollouts, or knows tasks of the same names by other references, domains or features.
          ValueError: if no name is in both. The sampler is then as it was.
        """
        check_choice("in_flight", in_flight, IN_FLIGHT)
        checkpoint.check_version("the saved state", saved.get("version"))
        with self._lock, self._engine.on_device():
            checkpoint.check_static(saved["static"], self.selector)
            fitted = self._fitted(saved["host"], saved["arrays"], "")
            state = checkpoint.from_named_arrays(
                saved["static"], fitted.arrays, self.selector, fitted.like, settings
            )
            self._resume(state, fitted, saved["host"], in_flight, settings)

    def save(
        self, directory: str | Path, step: int | None = None, *, trainer: Any = None, **kept: Any
    ) -> Path:
        """Write an Orbax checkpoint, with the trainer's pytree of arrays if given.

        Args:
          directory, trainer: as in `checkpoint.save`.
          step: number of the checkpoint [steps that have ended].
          kept: `keep`, `keep_every`, `keep_best` and `score`, as in `checkpoint.save`.
        """
        state, host = self._snapshot()
        number = host["engine"]["step"] if step is None else step
        notes = {"sampler": host}
        return checkpoint.save(
            directory, number, self.selector, state, trainer=trainer, notes=notes, **kept
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
        with self._lock, self._engine.on_device():
            read = checkpoint.read(directory, step)
            checkpoint.check_static(read.static, self.selector)
            if "sampler" not in read.notes:
                raise checkpoint.CheckpointError(
                    f"the checkpoint in {directory} holds a state, and no sampler: use "
                    "checkpoint.restore"
                )
            host = read.notes["sampler"]
            fitted = self._fitted(host, read.arrays, "['state']")
            found = checkpoint.rebuild(
                read._replace(arrays=fitted.arrays), self.selector, fitted.like,
                trainer=trainer, settings=settings, resized=True,
            )  # fmt: skip
            self._resume(found.state, fitted, host, in_flight, settings)
            return found._replace(state=self.state)

    def _snapshot(self) -> tuple[State, dict[str, Any]]:
        with self._lock:
            text = {} if self._text is None else {"text": pack_text(self._text)}
            return self.state, {
                **text,
                "engine": self._engine.as_json(),
                "handed": self._handed,
                "names": self._names.changes(),
                "tasks": self._tasks,
                "asked": self._asked,
                "ledger": self._ledger.as_json(),
                "watch": [list(rows) for rows in self._watch.steps],
                "notes": self._notes.as_json(),
            }

    def _fitted(
        self, host: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str
    ) -> carry.Fitted:
        """What was saved, brought to the tasks of this sampler."""
        names = self._names.at_start()
        with _readable():
            return carry.fit(host, arrays, prefix, self.state, names, self._origin)

    def _resume(
        self,
        state: State,
        fitted: carry.Fitted,
        host: Mapping[str, Any],
        in_flight: str,
        settings: str,
    ) -> None:
        """Go on from there, or raise and stay as it is: nothing is set before all is read."""
        state = self._with_group_size(fitted.begin_new(state), settings)
        places = None if fitted.moves is None else fitted.moves.places()
        with _readable():
            if settings == "saved":
                state = self._with_new_choice(state, host.get("asked", self._asked))
            if places is None:
                check_same(host["tasks"], self._tasks)
            ledger = Ledger.from_json(host["ledger"], self._engine.kinds)
            watched = [list(rows) for rows in host["watch"]]
            if places is not None:
                ledger.move(places)
                watched = [[places[row] for row in rows if row in places] for rows in watched]
            notes = StepNotes()
            notes.resume(host["notes"])
            handed = int(host["handed"])
            if in_flight == "redeliver":
                ledger.redeliver()
            if in_flight == "abandon":
                numbers = [visit.number for visit in ledger.open.values()]
                ledger.abandon(list(ledger.open), numbers)
            ledger.settle(float(state.settings.rollouts))
            self._engine.resume(state, host["engine"])  # raises before it changes anything
        self._names, self._groups, self._ledger, self._notes = fitted.names, None, ledger, notes
        self._text = fitted.text or self._text
        self._places = places
        self._watch.steps.clear()
        self._watch.steps.extend(watched)
        self._handed = handed
        if fitted.moves is not None:
            _tell(fitted.moves)
        self._lock.notify_all()

    def _with_group_size(self, state: State, settings: str) -> State:
        """The state to go on from, with the m that was asked for.

        Raises:
          CheckpointError: if it was saved with another m, and nobody says which is right.
        """
        saved, here = float(state.settings.rollouts), self._engine.rollouts
        if settings == "given" or saved == here:
            return state
        if self._given_rollouts is None:
            raise checkpoint.CheckpointError(
                f"the saved run waits for rollouts={saved:g} of a task, this sampler for "
                f"rollouts={here:g}: make it with TaskSampler(rollouts=...), which wins over what "
                "was saved, or load with settings='given'"
            )
        rollouts = jnp.asarray(self._given_rollouts, state.settings.rollouts.dtype)
        return state._replace(settings=state.settings._replace(rollouts=rollouts))

    def _with_new_choice(self, state: State, asked: Mapping[str, float]) -> State:
        """The state to go on from, with numbers of the choice that are given otherwise now.

        Those that were only scheduled (`set_settings`) stay as saved.
        """
        changed = {name: here for name, here in self._asked.items() if asked[name] != here}
        if not changed:
            return state
        saved = {name: float(getattr(state.settings, name)) for name in changed}
        _LOG.info("resumed with %s in place of the saved %s", changed, saved)
        dtype = state.settings.target.dtype
        return state._replace(settings=settings_of(state.settings, changed, dtype))

    # --- inner steps; the lock is held -----------------------------------------------------

    def _end_steps(self, count: int, may: np.ndarray | None) -> None:
        """End the step that is over, if `count` are more than are handed out again.

        Before any of those is taken: waiting lets others in, and visits expire when a step ends.
        """
        while self.auto_advance and self._handed >= self.tasks_per_step:
            again = self._ledger.waiting_again(may)
            if len(again) >= count or self._needs_any_of(again):
                return
            if self._has_what_is_due():  # else others were let in, who may have ended it
                self.advance()

    def _needs_any_of(self, again: list[tuple[int, int]]) -> bool:
        """Whether the step waits for tasks that nobody has, as they are yet to be handed out again.

        They are first then, and as many others as are asked for are of this step too.
        """
        if self.delay is None:
            return False
        due = self.step - self.delay
        return any(self._ledger.open[row].opened <= due for row, _ in again)

    def _fresh(self, count: int, eligible: ArrayLike | None) -> list[int]:
        """Rows handed out for the first time."""
        if eligible is not None:
            self._return_spare()
        try:
            self._select_until(count, eligible)
            rows = self._ledger.hand_out(count)
        finally:
            if eligible is not None:
                self._return_spare()
        self._handed += count
        self._watch.hand_out(rows)
        return rows

    def _select_until(self, count: int, eligible: ArrayLike | None) -> None:
        spare = self._ledger.spare
        while len(spare) < count:
            found = self._engine.select(eligible)
            if not found and self._ledger.ended:
                self._engine.deliver(self._take_due())  # their tasks may be chosen again
                found = self._engine.select(eligible)
            if not found:
                raise NotEnoughTasksError(self._shortage(count))
            spare.extend(found)

    def _take_due(self) -> list[Ended]:
        """Evidence that this step fuses."""
        return self._ledger.take_ended(self.step - (self.delay or 0))

    def _has_what_is_due(self) -> bool:
        """Whether nothing that this step fuses is out; if not, after waiting for some."""
        if self.delay is None or not self._ledger.any_open(self.step - self.delay):
            return True
        heard = self._lock.wait(self.patience)
        if self._closed:
            raise ClosedError("this sampler was closed while it waited for evidence")
        if not heard:
            raise TimeoutError(
                f"no evidence came for {self.patience:g} s, and with delay={self.delay} step "
                f"{self.step} needs that of every task selected up to step "
                f"{self.step - self.delay}: report or abandon them, or read fewer batches ahead"
            )
        return False

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
        self._engine.close(rows)

    def _warn_if_nothing_completes(self) -> None:
        """A sampler that waits for more rollouts than a task gets would never learn."""
        ledger = self._ledger
        if self._warned or ledger.counts["completed"]:
            return
        partial = [visit.attempts for visit in ledger.open.values() if visit.attempts > 0]
        if len(partial) >= self.tasks_per_step:
            self._warned = True
            warnings.warn(
                f"{len(partial)} tasks have brought {max(partial):g} trials or fewer and wait for "
                f"rollouts={self._engine.rollouts:g}: give TaskSampler(rollouts=...) what a task "
                "gets, or observe(complete=True) with its last piece",
                RuntimeWarning,
                stacklevel=_OF_THE_CALLER,
            )

    def _warn_of_stuck_visits(self) -> None:
        """Groups that come short of a rollout take their tasks out of the pool, one by one."""
        ledger, wanted = self._ledger, self._engine.rollouts
        stuck = ledger.stuck(self.step + 1 - _SILENT - (self.delay or 0))
        many = len(stuck) >= _STUCK_SHARE * ledger.counts["handed_out"]
        many = many or len(stuck) >= _LEAKED_SHARE * self._names.num_rows
        if len(stuck) < 2 * self._stuck or not many:  # again when they are twice as many
            return
        self._stuck = len(stuck)
        least = min(visit.attempts for visit in stuck)
        share = len(stuck) / ledger.counts["handed_out"]
        ends = "never" if self.expiry is None else f"after {self.expiry} steps"
        warnings.warn(
            f"{len(stuck)} visits ({share:.1%} of all handed out) are stuck: they have brought "
            f"{least:g} trials or more of rollouts={wanted:g}, nothing more for {_SILENT} steps, "
            f"and end {ends}; until then their tasks are not selected. Report lost rollouts as "
            "NaN, or give observe(complete=True) with the last piece of a group, "
            "TaskSampler(rollouts=...) what a task gets, or TaskSampler(expiry=...)",
            RuntimeWarning,
            stacklevel=_OF_THE_CALLER,
        )


# Of warnings: to the line that calls `next_batch`, by which most steps end.
_OF_THE_CALLER = 5
_SILENT = 4  # steps without a report after which an incomplete visit is stuck
_STUCK_SHARE = 0.01  # of the visits handed out
_LEAKED_SHARE = 0.05  # of the pool's tasks


def _shortest(first: int | None, second: int | None) -> int | None:
    """The lower of two limits, None being none."""
    if second is not None:
        check_count("expiry", second)
    given = [limit for limit in (first, second) if limit is not None]
    return min(given, default=None)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What a damaged state raises, said plainly."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"the saved state of the sampler cannot be read: {type(error).__name__} {error}. "
            "It is damaged, or of another version of bots_jax"
        ) from error


def _tell(moves: Moves) -> None:
    """One log line of a run that goes on with other tasks."""
    level = logging.WARNING if moves.added or moves.gone else logging.INFO
    again = f" ({moves.again} of them had been retired)" if moves.again else ""
    _LOG.log(
        level, "resumed with other tasks than were saved: %d kept, %d added%s, %d gone",
        moves.kept, moves.added, again, moves.gone,
    )  # fmt: skip


def _choice_numbers(state: State) -> dict[str, float]:
    """Settings that say what is chosen, and on which no belief depends."""
    return {name: float(getattr(state.settings, name)) for name in _OF_THE_CHOICE}


_OF_THE_CHOICE = ("target", "temperature", "breadth")


def _column(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """One value a row, or one for all; whole numbers are refused where they would change."""
    value = as_host(value)
    try:
        given = np.asarray(value)
        with np.errstate(invalid="ignore"):  # what it warns of is refused below
            column = np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}={value!r} must be numbers: {error}") from None
    if column.shape not in ((), shape):
        raise ValueError(f"{name} has shape {column.shape}, expected {shape}, as task_ids")
    if column.dtype.kind == "i" and not np.array_equal(given, column):
        wrong = given[given != column].flat[0]
        raise ValueError(f"{name} contains {wrong}, expected whole numbers of 32 bits")
    return np.broadcast_to(column, shape)
