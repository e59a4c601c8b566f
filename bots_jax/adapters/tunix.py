"""Tunix: a data set that chooses its next batch, and a reward function that reports to it.

In: a `TaskSampler` and the columns of its tasks. Out: an iterable for `train`, a wrapper of
the reward function and numbers for Tunix's logger:

    tasks = TunixTasks(sampler, {"prompts": prompts, "answer": answers}, directory="run/bots")
    learner = GRPOLearner(cluster, config, [tasks.reward(correct)], metric_fns=[tasks.metrics])
    learner.train(tasks.attach(learner))
    tasks.close()

Of `GRPOLearner` every batch is chosen after the update on the batch before: the delay is 0.
`delay=k` chooses k batches ahead. The agentic learner reads `off_policy_steps + 1` batches
ahead by itself, and is rewarded on another thread: `TaskSampler(delay=off_policy_steps)` makes
what it selects independent of which rollout is done first.

Resuming. Tunix saves its models, and after a restart throws away as many batches as it had
trained on. `attach` restores the sampler as it was when those were rewarded, which is written
before Tunix updates on them, and serves dummies for what is thrown away: nothing is selected
twice. Batches that were chosen ahead and lost are handed out again in the same order.

Nothing of Tunix is imported: its learner comes as an argument. Tested with google-tunix 0.1.7.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax import checkpoint
from bots_jax.adapters.host import Batch, TaskSampler
from bots_jax.adapters.prompts import TEXT, wants_text
from bots_jax.features.states import mean_over_tokens

Columns = dict[str, np.ndarray]
RewardFn = Callable[..., Sequence[float]]
TASK, VISIT = "task_id", "visit"  # the columns that we add
DUMMY = -1  # the visit number of a batch that Tunix throws away


class Place(NamedTuple):
    """A learner's progress, in batches of the data set."""

    updates: int  # of the model, as Tunix counts checkpoints
    updates_per_batch: int
    skipped: int  # batches that the learner will throw away before it trains
    group_size: int  # G


class TunixTasks:
    """Batches of tasks for a Tunix learner, each chosen when it is asked for.

    Args:
      sampler: whose batch size is Tunix's full batch size.
      columns: `prompts` and whatever reward functions need, arrays of one row a task in the
        order of the sampler's rows; or a function from `host.Batch` to such columns, for
        pools that change. `task_id` and `visit` are added.
      delay: batches chosen ahead; 0 for none.
      directory: for checkpoints of the sampler; None keeps none, and no run can be resumed.
      save_every: batches from one checkpoint to the next. Tunix's own
        `save_interval_steps` must be a multiple of this many batches' updates.
      keep: checkpoints to keep: those of all that Tunix may fall back to.
      success: from a reward to a success in [0, 1]; by default the reward itself.
      features: "text": where the sampler knows nothing of its tasks, `features.text` is made of
        `prompts`, and a log line says so; None: it is not. Columns by a function tell no prompts.

    Raises:
      ValueError: naming the argument and its value.
    """

    def __init__(
        self,
        sampler: TaskSampler,
        columns: Mapping[str, Any] | Callable[[Batch], Mapping[str, Any]],
        *,
        delay: int = 0,
        directory: str | Path | None = None,
        save_every: int = 1,
        keep: int = 4,
        success: Callable[[float], float] | None = None,
        features: str | None = TEXT,
    ) -> None:
        for name, value, least in (("delay", delay, 0), ("save_every", save_every, 1),
                                   ("keep", keep, 1)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.sampler = sampler
        self._columns = columns if callable(columns) else _by_row(columns)
        if wants_text(features) and not callable(columns):
            sampler.read_prompts(columns["prompts"])
        self._delay = delay
        self._directory = None if directory is None else checkpoint.local_folder(directory)
        self._save_every, self._keep = save_every, keep
        self._success = success
        self._ahead: deque[Batch] = deque()
        self._dummies = 0  # batches still to be thrown away
        self._rollouts = 0  # rewarded, since the run began
        self._group_size = 0  # G; 0 before `attach`
        self._wrapped = False
        # Two, for rewards must come in while a sampler with a `delay` of its own waits for them.
        self._reading, self._counting = threading.Lock(), threading.Lock()

    # --- before training ---------------------------------------------------------------------

    def attach(self, learner: Any) -> TunixTasks:
        """Resume where `learner` is; returns the data set to pass to its `train`.

        Args:
          learner: a `GRPOLearner` or an agentic learner, made with `reward` of this object.

        Raises:
          ValueError: if its sizes do not fit the sampler's, or it was restored and `directory`
            is not given.
          CheckpointError: if there is no checkpoint of where it stands.
        """
        place = where(learner, self.sampler.batch_size)
        m = float(np.asarray(self.sampler.state.settings.rollouts))
        if m != place.group_size:
            raise ValueError(
                f"num_generations={place.group_size}, but the sampler waits for rollouts={m:g} of "
                "each task: make the selector or the sampler with rollouts=num_generations"
            )
        self._group_size = place.group_size
        self._dummies = place.skipped
        self._ahead.clear()
        if place.updates:
            self._restore(place)
        return self

    def _restore(self, place: Place) -> None:
        trained, rest = divmod(place.updates, place.updates_per_batch)
        if rest:
            raise ValueError(
                f"the learner was restored after {place.updates} updates, in the middle of a batch "
                f"of {place.updates_per_batch}: let save_interval_steps be a multiple of that"
            )
        if self._directory is None:
            raise ValueError(
                f"the learner was restored after {place.updates} updates, and directory=None: give "
                "the directory of the sampler's checkpoints, or train from the beginning"
            )
        there = checkpoint.found(self._directory)
        if trained not in there:
            raise checkpoint.CheckpointError(
                f"{self._directory} has no checkpoint of batch {trained}, where the learner stands "
                f"after {place.updates} updates; it has {there or 'none'}. Let save_every divide "
                "Tunix's save_interval_steps, and keep enough"
            )
        self.sampler.restore(self._directory, trained)
        self._rollouts = trained * self.sampler.batch_size * place.group_size

    # --- the data set ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Columns]:
        """This object, wherever it stands: Tunix asks twice."""
        return self

    def __next__(self) -> Columns:
        """The columns of the next batch.

        Raises:
          NotEnoughTasksError: if there are not enough tasks that are not in flight.
        """
        if not self._group_size:
            raise RuntimeError("train(tasks.attach(learner)): attach was not called")
        with self._reading:
            if self._dummies:
                self._dummies -= 1
                return self._dummy()
            while len(self._ahead) <= self._delay:
                self._ahead.append(self.sampler.next_batch())
            batch = self._ahead.popleft()
        return self._rows(batch)

    def _rows(self, batch: Batch) -> Columns:
        columns = {name: np.asarray(column) for name, column in self._columns(batch).items()}
        return {**columns, TASK: batch.task_ids, VISIT: batch.visits}

    def _dummy(self) -> Columns:
        count = self.sampler.batch_size
        nowhere = np.full(count, DUMMY, np.int32)
        return {"prompts": np.full(count, ""), TASK: nowhere, VISIT: nowhere}

    # --- what came of it ---------------------------------------------------------------------

    def reward(self, function: RewardFn) -> RewardFn:
        """Wrap a reward function so that it also reports to the sampler.

        Wrap the one that tells right from wrong. Its rewards must be in [0, 1], or `success`
        must bring them there; NaN and None mean that a rollout was not scored. Calls of an
        evaluation, and with data that are not of this data set, are passed through.
        """

        if self._wrapped:
            raise ValueError("reward wraps one function of a data set: a task succeeds once")
        self._wrapped = True

        @functools.wraps(function)
        def rewarded(prompts: Any, completions: Any, **columns: Any) -> Sequence[float]:
            rewards = function(prompts=prompts, completions=completions, **columns)
            if columns.get("mode") != "eval" and VISIT in columns:
                self._observe(columns, rewards)
            return rewards

        return rewarded

    def _observe(self, columns: Mapping[str, Any], rewards: Sequence[float]) -> None:
        visits = np.asarray(columns[VISIT], np.int32)
        if (visits == DUMMY).any():
            raise RuntimeError(
                "a batch that was to be thrown away was trained on: attach the learner that is "
                "trained, when it has been restored"
            )
        successes = np.array(rewards, np.float64)  # None becomes NaN
        scored = ~np.isnan(successes)
        if self._success is not None:
            successes[scored] = [self._success(float(reward)) for reward in successes[scored]]
        wrong = ~np.isnan(successes) & ~((successes >= 0) & (successes <= 1))
        if wrong.any():
            raise ValueError(
                f"a reward of {successes[wrong][0]} is not in [0, 1]: wrap another reward "
                "function, or give TunixTasks(success=...)"
            )
        with self._counting:
            self.sampler.observe(np.asarray(columns[TASK]), successes, 1, visits)
            trained = self._batches()
            self._rollouts += len(visits)
            if self._batches() > trained and self._batches() % self._save_every == 0:
                self._save()

    def _batches(self) -> int:
        """Batches whose rewards are complete. Late evidence counts here: it was trained on."""
        return self._rollouts // (self.sampler.batch_size * self._group_size)

    def _save(self) -> None:
        if self._directory is not None:
            self.sampler.save(self._directory, self._batches(), keep=self._keep)

    def metrics(self, **columns: Any) -> dict[str, tuple[float, Any]]:
        """For `metric_fns`: the sampler's `metrics` under "bots/", as Tunix's logger takes them.

        Of an evaluation there are none.
        """
        if VISIT not in columns:
            return {}
        return {f"bots/{name}": (value, np.mean) for name, value in self.sampler.metrics().items()}

    def close(self) -> None:
        """Write a last checkpoint, to go with the one that Tunix writes at its end."""
        with self._counting:
            if self._rollouts:
                self._save()


def where(learner: Any, batch_size: int) -> Place:
    """A learner's progress, and the number of batches that it will discard.

    Raises:
      ValueError: if its mini-batch does not divide the batch.
    """
    cluster, config = learner.rl_cluster, learner.algo_config
    training = cluster.cluster_config.training_config
    mini = training.mini_batch_size or batch_size
    micro = training.train_micro_batch_size or mini
    if batch_size % mini:
        raise ValueError(f"mini_batch_size={mini} does not divide batch_size={batch_size}")
    trainer = cluster.actor_trainer
    agentic = hasattr(learner, "policy_version")  # it counts whole batches, the other micro-batches
    skipped = cluster.global_steps if agentic else trainer.iter_steps * micro // batch_size
    return Place(
        updates=int(trainer.train_steps),
        updates_per_batch=batch_size // mini * int(config.num_iterations),
        skipped=int(skipped),
        group_size=int(config.num_generations),
    )


def _by_row(columns: Mapping[str, Any]) -> Callable[[Batch], Mapping[str, Any]]:
    """Columns of the whole pool -> those of a batch."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    if "prompts" not in arrays:
        raise ValueError(f"columns={sorted(arrays)} must have 'prompts'")
    for name, array in arrays.items():
        if name in (TASK, VISIT):
            raise ValueError(f"columns has {name!r}, which is ours: give it another name")
        if array.ndim != 1 or len(array) != len(arrays["prompts"]):
            raise ValueError(
                f"columns[{name!r}] has shape {array.shape}, expected {arrays['prompts'].shape}: "
                "Tunix takes columns of one value a task"
            )
    return lambda batch: {name: array[batch.rows] for name, array in arrays.items()}


def mean_states(
    model: Any, tokenizer: Any = None, *, pad: int = 0, length: int = 256
) -> Callable[[Any], np.ndarray]:
    """Make the function that `features.hidden_states` takes, from a Tunix model.

    Args:
      model: one of `tunix.models`, or any Flax NNX model called as they are, with a `final_norm`,
        whose output is read, or else an `lm_head`, whose input is.
      tokenizer: with a method `encode` from a string to token ids; None: the prompts are token
        ids i32[n, P].
      pad: token id that fills short rows.
      length: tokens read of a string, the last ones; all blocks have this width.

    >>> read = mean_states(model, tokenizer)  # doctest: +SKIP
    >>> state = selector.init(features=features.hidden_states(read, prompts))  # doctest: +SKIP
    """
    from flax import nnx

    graphdef, params = nnx.split(model)

    @jax.jit
    def means(params: Any, ids: jax.Array) -> jax.Array:
        real = ids != pad
        states = _states_of(nnx.merge(graphdef, params), ids, real)
        return mean_over_tokens(states, real)

    def read(prompts: Any) -> np.ndarray:
        ids = (
            np.asarray(prompts) if tokenizer is None else _encoded(tokenizer, prompts, pad, length)
        )
        return np.asarray(means(params, jnp.asarray(ids, jnp.int32)))

    return read


def _encoded(tokenizer: Any, prompts: Sequence[str], pad: int, length: int) -> np.ndarray:
    """i32[n, length], padded on the left."""
    ids = np.full((len(prompts), length), pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        found = list(tokenizer.encode(prompt))[-length:]
        row[length - len(found) :] = found
    return ids


def _states_of(model: Any, ids: jax.Array, real: jax.Array) -> jax.Array:
    """f[n, P, D] below the head. The logits are asked for and, once compiled, not computed."""
    seen: list[jax.Array] = []
    name = "final_norm" if hasattr(model, "final_norm") else "lm_head"
    part = getattr(model, name, None)
    if part is None:
        raise ValueError(
            f"model of type {type(model).__name__} has neither final_norm nor lm_head: give "
            "features.hidden_states a function of your own"
        )

    def tapped(x: jax.Array, *args: Any, **kwargs: Any) -> Any:
        out = part(x, *args, **kwargs)
        seen.append(out if name == "final_norm" else x)
        return out

    object.__setattr__(model, name, tapped)  # of a copy, inside a trace
    places = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
    model(ids, places, None, causal[None] & real[:, None, :])
    return seen[-1]
