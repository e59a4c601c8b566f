"""A selector with its state, key and device: what `TaskSampler` keeps behind its lock.

In: rows and NumPy arrays of any length. Out: the same selector functions, called with arrays
of one shape, a batch at a time, so that nothing is compiled twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bots_jax.adapters.ledger import ANY_VISIT, Ended, Visit
from bots_jax.checkpoint import CheckpointError
from bots_jax.choice.batch import kinds_of_places, make_plan
from bots_jax.compose import settings_of
from bots_jax.pool.evidence import MOST_TRIALS
from bots_jax.settings import refuse_ignored
from bots_jax.sharding import shard
from bots_jax.types import ArrayLike, Evidence, Info, Selector, State


class Engine:
    """Mutable: not safe to share between threads.

    Args:
      selector: any.
      device: "cpu", a `jax.Device`, or a mesh to spread the pool over; None: JAX's default.
      seed: of all that is drawn.
    """

    state: State
    rollouts: float  # m

    def __init__(self, selector: Selector, device: Any, seed: int):
        self.selector = selector
        self.batch_size = int(selector.static["batch_size"])
        self.kinds = _kinds(selector)
        self.step = 0  # calls of advance so far
        self._draws = 0  # calls of select so far
        self._device = jax.devices(device)[0] if isinstance(device, str) else device
        with self.on_device():
            self._key = jax.random.key(seed)

    def on_device(self) -> Any:
        """Context in which arrays are made on the engine's device."""
        if self._device is None or isinstance(self._device, Mesh):
            return contextlib.nullcontext()
        return jax.default_device(self._device)

    def set_state(self, state: State) -> None:
        """Set a state whose pool or settings may have changed."""
        if isinstance(self._device, Mesh):
            state = shard(state, self._device)
        elif self._device is not None:
            state = jax.device_put(state, self._device)
        self.state = state
        self.rollouts = float(state.settings.rollouts)

    def set_numbers(self, numbers: Mapping[str, ArrayLike]) -> None:
        """Set other `Settings`, checked."""
        settings = self.state.settings
        static = self.selector.static
        refuse_ignored(numbers, self.selector.obeys, static.get("strategy", "selector"))
        self.set_state(
            self.state._replace(settings=settings_of(settings, numbers, settings.target.dtype))
        )

    def select(self, eligible: ArrayLike | None) -> list[tuple[int, Visit]]:
        """Select one batch with a new key; it may be smaller than the batch size."""
        key = jax.random.fold_in(self._key, self._draws)
        self._draws += 1
        self.state, selection = self.selector.select(key, self.state, eligible)
        ids, draws, valid, numbers = (part.tolist() for part in jax.device_get(selection))
        found = zip(ids, draws, valid, numbers, self.kinds, strict=True)
        return [
            (row, Visit(number, self.step, draw, kind))
            for row, draw, good, number, kind in found
            if good
        ]

    def close(self, rows: list[int]) -> None:
        """End the open visits of these rows, with nothing learned."""
        for start in range(0, len(rows), self.batch_size):
            part = np.full(self.batch_size, -1, np.int32)
            part[: len(rows) - start] = rows[start : start + self.batch_size]
            self.state = self.selector.abandon(self.state, part)

    def deliver(self, ended: list[Ended]) -> None:
        """Pass the evidence of ended visits to the selector, in an order independent of arrival."""
        ended = sorted(ended, key=lambda entry: (entry.number == ANY_VISIT, entry))
        size = self.batch_size
        for start in range(0, len(ended), size):
            part = ended[start : start + size]
            rows, numbers = np.full((2, size), -1, np.int32)
            s, n = np.zeros((2, size))
            rows[: len(part)] = [entry.row for entry in part]
            numbers[: len(part)] = [entry.number for entry in part]
            s[: len(part)] = [entry.successes for entry in part]
            n[: len(part)] = [entry.trials for entry in part]
            over = np.maximum(n / MOST_TRIALS, 1)  # rows of a visit may come to more together
            s, n = s / over, n / over
            differ = np.zeros(size, bool)
            differ[: len(part)] = [entry.differ for entry in part]
            # What is of no visit is none of the rollouts that one opened since waits for.
            attempts = np.where(numbers == ANY_VISIT, 0, n)
            told = Evidence(rows, s, n, numbers, attempts=attempts, differ=differ)
            self.state = self.selector.observe(self.state, told)
        cut_short = [e.row for e in ended if e.number != ANY_VISIT and e.trials < self.rollouts]
        self.close(cut_short)

    def advance(self) -> Info:
        """Advance the selector by one time step."""
        self.state, info = self.selector.advance(self.state)
        self.step += 1
        return info

    def as_json(self) -> dict[str, Any]:
        """Everything but the state, as JSON values."""
        key = np.asarray(jax.random.key_data(self._key)).tolist()
        impl = str(jax.random.key_impl(self._key))
        return {"step": self.step, "draws": self._draws, "key": key, "impl": impl}

    def resume(self, state: State, saved: Mapping[str, Any]) -> None:
        """Resume from a state and the values of `as_json`, with the saved random generator.

        Raises:
          CheckpointError: if there is no such generator here; then nothing was changed.
        """
        data, impl = jnp.asarray(saved["key"], jnp.uint32), saved["impl"]
        try:
            key = jax.random.wrap_key_data(data, impl=impl)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"the saved run drew from the generator {impl!r} with a key of shape {data.shape}, "
                f"which this JAX cannot take: {error}. Use the JAX that it was saved with"
            ) from error
        step, draws = int(saved["step"]), int(saved["draws"])
        self.set_state(state)  # raises before it changes anything
        self.step, self._draws, self._key = step, draws, key


def _kinds(selector: Selector) -> tuple[int, ...]:
    """The kind of each place of a batch of this selector."""
    static = selector.static
    batch_size, quotas = int(static["batch_size"]), static.get("quotas")
    return kinds_of_places(make_plan(batch_size, static.get("exploration", 0.0), quotas))
