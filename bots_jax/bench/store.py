"""Finished cells on disk: one line of JSON each, appended and synced.

In: records. Out: the records again, after a kill at any moment. A line is whole or it is
not there: a last line that was cut short is passed over, and the next append begins on a
line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Store:
    """The file of one folder of results."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Record]:
        """Read records by cell; the first of a cell counts, damaged lines are skipped."""
        if not self.path.exists():
            return {}
        found: dict[str, Record] = {}
        for text in self.path.read_bytes().split(b"\n"):
            try:
                record = json.loads(text)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("cell"), str):
                found.setdefault(record["cell"], record)
        return found

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; they are on disk when this returns."""
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            torn = file.tell() > 0 and not self._ends_whole()
            file.write(("\n" * torn + "".join(lines)).encode())
            file.flush()
            os.fsync(file.fileno())

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
