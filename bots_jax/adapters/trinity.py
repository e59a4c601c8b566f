"""Trinity-RFT: replaces its `difficulty_based` selector, and is resumed with its posteriors.

In: a taskset with two columns of reference pass rates, and Trinity's feedback, mean rewards in
[0, 1]. Out: indices of the tasks to explore next. In the configuration only the type changes:

    data_selector:
      selector_type: bots_jax.adapters.trinity.BotsSelector
      feature_keys: [weak_pass_rate, strong_pass_rate]
      seed: 42
      kwargs: {m: 16, lamb: 0.1, rho: 0.1, target_reward: 0.5, tau: 0, do_sample: true}

The settings, their defaults and what they do are those of Trinity's selector (0.6.0). What is
different: tasks that are being explored are not chosen again, posteriors are saved, and draws
come from other random bits. One call of `feedback` is one time step, as there.

Without `feature_keys`, which Trinity's own needs, features are made of the prompts (the column
`prompt`, `prompts`, `question` or `problem`), and a log line says so; `features: null` in `kwargs`
leaves them out.

A taskset may grow at its end between runs. With `id_key` in `kwargs`, the column of the tasks'
names (text or whole numbers), it may be reordered and lose tasks too: beliefs follow the names.

Trinity writes a selector's state as indented JSON and logs it. So posteriors go to a side file
and the state names it; files of earlier states stay, up to `keep`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from trinity.buffer.selector.selector import BaseSelector

from bots_jax.adapters.arrays import as_host
from bots_jax.adapters.flat import flatten, unflatten
from bots_jax.adapters.host import NotEnoughTasksError, TaskSampler
from bots_jax.adapters.prompts import TEXT, prompt_column, wants_text
from bots_jax.bots_selector import bots
from bots_jax.checkpoint import local_folder
from bots_jax.checks import check_count

_LOG = logging.getLogger(__name__)
# A draw, or a mean, is below 1, so the one nearest to 1 is the one nearest to this.
_ALMOST_ONE = 1 - 1e-6


class Options(NamedTuple):
    """`kwargs` of the configuration: Trinity's with its defaults, then ours."""

    m: float = 16  # rollouts that a mean reward stands for
    lamb: float = 0.2  # lambda, forgetting
    rho: float = 0.2  # weight of implicit evidence
    adaptive_rho: bool = False  # halve rho where implicit evidence is far off
    do_sample: bool = False  # compare draws from the posteriors, not their means
    target_reward: float = 1.0  # p*
    tau: float = 1.0  # temperature; 0 takes the nearest
    batch_size: int | None = None  # tasks chosen at a time [what is first asked for]
    expiry: int | None = 32  # steps after which a task without feedback may be chosen again
    state_dir: str | None = None  # of the side files [bots_jax_state/<name of the taskset>]
    keep: int = 8  # side files
    id_key: str | None = None  # column of the tasks' names; None: a task is its row
    features: str | None = TEXT  # without feature_keys: made of the prompts; None: of nothing
    device: str | None = "cpu"  # where the selector runs


class BotsSelector(BaseSelector):
    """A Trinity selector that chooses tasks with `bots_jax.bots`; made by Trinity.

    Args:
      data_source: Trinity's reader: `dataset` with the columns, `dataset_size`, `name`.
      config: `feature_keys` (weak to strong; NaN or None where unknown), `seed`, `kwargs`.

    Raises:
      ValueError: naming the setting, its value and the way out.
    """

    def __init__(self, data_source: Any, config: Any):
        super().__init__(data_source, config)
        self.current_index = 0  # tasks handed out
        self._options = _options(config.kwargs)
        columns = [
            np.asarray(list(data_source.dataset[k]), np.float64) for k in config.feature_keys
        ]
        self._reference = np.stack(columns).astype(np.float32) if columns else None
        key, self._names = self._options.id_key, None
        if key is not None:
            if key not in (
                getattr(data_source.dataset, "column_names", None) or data_source.dataset
            ):
                raise ValueError(f"kwargs.id_key={key!r} is no column of the taskset")
            self._names = list(data_source.dataset[key])
        self._prompts = None
        if self._reference is None and wants_text(self._options.features):
            self._prompts = _prompts_of(data_source.dataset)
        name = getattr(data_source, "name", "") or "tasks"
        self._folder = local_folder(self._options.state_dir or Path("bots_jax_state") / name)
        self._sampler: TaskSampler | None = None

    # --- what Trinity calls ------------------------------------------------------------------

    def get_indices(self, batch_size: int, return_extra_info: bool = False) -> Any:
        """i32[batch_size] indices of the next tasks; with `return_extra_info` also beliefs."""
        sampler = self._made(batch_size)
        while True:
            try:
                batch = sampler.next_batch(batch_size)
                break
            except NotEnoughTasksError:
                self._free_oldest(sampler, batch_size)
        self.current_index += batch_size
        if not return_extra_info:
            return batch.rows
        belief = sampler.predict(batch.task_ids)
        return batch.rows, {
            "indices": batch.rows.tolist(),
            "scores": (-np.abs(self._options.target_reward - batch.rate)).tolist(),
            "alphas": (belief.mean * belief.concentration).tolist(),
            "betas": ((1 - belief.mean) * belief.concentration).tolist(),
            "point": belief.mean.tolist(),
        }

    def feedback(self, indices: Any, values: Any) -> None:
        """Report mean rewards in [0, 1] of explored tasks, NaN where unscored; ends a step."""
        if not len(indices):
            return
        m = self._options.m
        sampler = self._made(len(indices))
        rewards = np.asarray(as_host(values), np.float64)
        rows = np.asarray(as_host(indices))
        ids = rows if self._names is None else [self._names[int(row)] for row in rows]
        sampler.observe(ids, rewards * m, m, unsolicited=True)
        sampler.advance()
        _LOG.debug("selection: %s", sampler.metrics())

    def state_dict(self) -> dict[str, Any]:
        """State as JSON: progress, and the path of the file with the posteriors."""
        state: dict[str, Any] = {"current_index": self.current_index}
        if self._sampler is None:
            return state
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"state_{self.current_index:010d}_{self._sampler.step:08d}.npz"
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            arrays: dict[str, Any] = flatten(self._sampler.state_dict())
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        files = sorted(self._folder.glob("state_*.npz"), key=lambda file: file.stat().st_mtime_ns)
        for old in files[: -self._options.keep]:
            if old != path:
                old.unlink(missing_ok=True)
        return {**state, "state_file": str(path)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from `state_dict`; tasks that were being explored may be chosen again.

        Raises:
          FileNotFoundError: if the side file is gone: the run would begin anew unnoticed.
        """
        self.current_index = int(state_dict.get("current_index", 0))
        named = state_dict.get("state_file")
        if named is None:
            if self.current_index:
                _LOG.warning("the state of another selector: posteriors begin at the prior")
            return
        path = Path(named)
        if not path.exists():
            path = self._folder / path.name  # the run was moved
        if not path.exists():
            raise FileNotFoundError(
                f"the side file {named} is not there, nor {path}: restore it, point "
                "kwargs.state_dir at its folder, or begin a new run"
            )
        with np.load(path) as flat:
            saved = unflatten(flat)
        sampler = self._made(int(saved["static"]["batch_size"]))
        sampler.load_state_dict(saved, in_flight="abandon", settings="given")

    # --- inner -------------------------------------------------------------------------------

    def _made(self, batch_size: int) -> TaskSampler:
        """The sampler; made when the first batch tells its size."""
        if self._sampler is not None:
            return self._sampler
        options = self._options
        selector = bots(  # what the selector that this one stands in for does
            batch_size=options.batch_size or min(batch_size, self.data_source.dataset_size),
            rollouts=options.m,
            forgetting=options.lamb,
            implicit_weight=options.rho,
            adaptive_implicit_weight=options.adaptive_rho,
            target=float(np.clip(options.target_reward, 1 - _ALMOST_ONE, _ALMOST_ONE)),
            temperature=options.tau,
            choice="thompson" if options.do_sample else "mean",
            estimator="linear" if self._prompts is None else "glm",
        )
        self._sampler = TaskSampler(
            selector,
            self._reference,
            None if self._reference is not None else self.data_source.dataset_size,
            prompts=self._prompts,
            task_ids=self._names,
            features=options.features,
            seed=self.config.seed,
            auto_advance=False,
            expiry=options.expiry,
            device=options.device,
        )
        return self._sampler

    def _free_oldest(self, sampler: TaskSampler, count: int) -> None:
        """In a small pool, let the tasks that have been out longest be chosen again."""
        out = sampler.in_flight()
        if not len(out.rows):
            raise ValueError(
                f"{count} tasks were asked for, and the taskset has {self.data_source.dataset_size}"
            )
        _LOG.warning("few tasks are left: choosing some again that had no feedback yet")
        sampler.abandon(out.task_ids[:count], out.visits[:count])


def _prompts_of(dataset: Any) -> list[Any] | None:
    """The column of prompts of Trinity's data set; None where none is found."""
    names = getattr(dataset, "column_names", None) or list(dataset)
    name = prompt_column({name: dataset[name][0] for name in names})
    return None if name is None else list(dataset[name])


def _options(given: Mapping[str, Any]) -> Options:
    unknown = sorted(set(given) - set(Options._fields))
    if unknown:
        raise ValueError(
            f"kwargs has unknown {unknown[0]!r}: choose from {', '.join(Options._fields)}"
        )
    options = Options(**given)
    check_count("keep", options.keep)
    return options
