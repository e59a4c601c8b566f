"""A folder of results that survives a kill at any moment.

In: the settings of a comparison, and a line of JSON for each step of each run. Out: the
lines again, and the settings checked, so that a comparison can be taken up where it
stopped. Layout:

    config.json                        settings; a resume under others is refused
    steps/<strategy>-<seed>.jsonl      a line a step, written before its checkpoint
    checkpoints/<strategy>-<seed>/     of the selector and the trainer, by `checkpoint`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bots_jax.evaluate.report import make_folder, write_text

Line = dict[str, Any]
# All that a comparison writes into its folder.
_WRITTEN = (
    "steps", "checkpoints", "results.jsonl", "summary.*", "reference.npy", "*.png",
    "config.json",  # last: steps without it would be taken up under any settings
)  # fmt: skip


class RunFolder:
    """The folder of one comparison."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def open(
        self,
        config: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        may_differ: tuple[str, ...] = (),
    ) -> None:
        """Make the folder, or take it up. One that holds settings alone counts as empty.

        Args:
          config: JSON values.
          resume: go on with what is there, if anything.
          overwrite: delete the results that are there; files of other kinds stay.
          may_differ: keys of `config` that a resume may change.

        Raises:
          ValueError: if there are results and neither is given, or under other settings; if
            the folder cannot be made.
        """
        file = self.path / "config.json"
        if overwrite and file.exists():
            self._delete()
        if file.exists() and self._holds_results(file):
            if not resume:
                raise ValueError(
                    f"--out {self.path} already holds results: give --resume to go on with "
                    "them, --overwrite to delete them, or another folder"
                )
            _check_config(file, config, may_differ)
        make_folder(self.path)
        (self.path / "steps").mkdir(exist_ok=True)
        write_text(file, json.dumps(config, indent=2) + "\n")

    def _delete(self) -> None:
        """The folder may be more than ours: many programs keep a config.json."""
        for pattern in _WRITTEN:
            for found in self.path.glob(pattern):
                if found.is_dir():
                    shutil.rmtree(found)
                else:
                    found.unlink()

    def _holds_results(self, config: Path) -> bool:
        """What was stopped before its first step, or refused, left its settings and no more."""
        return any(one.is_file() and one != config for one in self.path.rglob("*"))

    def checkpoints(self, run: str) -> Path:
        """Where the checkpoints of a run are."""
        return self.path / "checkpoints" / run

    def _file(self, run: str) -> Path:
        return self.path / "steps" / f"{run}.jsonl"

    def lines(self, run: str) -> list[Line]:
        """What was recorded of a run; a last line cut short by a kill is left out."""
        file = self._file(run)
        if not file.exists():
            return []
        found: list[Line] = []
        for text in file.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                break  # what follows a damaged line cannot be trusted to be in order
            if not isinstance(line, dict) or line.get("step") != len(found):
                break
            found.append(line)
        return found

    def keep(self, run: str, count: int) -> list[Line]:
        """Shorten a run to its first `count` lines, and return them."""
        lines = self.lines(run)[:count]
        write_text(self._file(run), "".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def append(self, run: str, line: Line) -> None:
        """Add the line of one step; on disk as far as the process is concerned."""
        with self._file(run).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _check_config(file: Path, config: Mapping[str, Any], may_differ: tuple[str, ...]) -> None:
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): give --overwrite to begin anew") from None
    given = json.loads(json.dumps(config))
    for key in sorted({*saved, *given} - set(may_differ)):
        for name, before, now in _differences(key, saved.get(key), given.get(key)):
            raise ValueError(
                f"{file.parent} was made with {name}={before!r}, now it is {now!r}: resume with "
                "the saved value, or choose another --out"
            )


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, saved and given value of what differs; of settings of the same keys each by itself."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            yield from _differences(f"{name}.{key}", before[key], now[key])
    elif before != now:
        yield name, before, now
