"""A user's own pool of tasks, read from a file. A file is data and never executes.

In: an .npz (without pickles), .parquet or .jsonl file of N tasks with these columns.

    ================= ============ =====================================================
    column            needed       meaning
    ================= ============ =====================================================
    prompt            always       str, what the policy is given
    answer            unless a     str, what it should say; not needed where a verifier
                      verifier is  of the user's own judges the completions
    id                no           str or whole number, distinct; else the row number
    domain or family  no           str or whole number
    reference         no           pass rates of K models, weak to strong, in [0, 1];
                                   NaN or null where unknown: a list of K a task, in an
                                   .npz one array [K, N]
    reference_0, ...  no           the same, one column a model
    ================= ============ =====================================================

Other columns are left alone. Out: a `TaskFile`, of which `rl/task_pool.py` makes arrays.
Whatever is wrong with the file raises a ValueError that names the file, the place, the value
and the way out; a place is a line from 1 in JSONL and a row from 0 elsewhere.
"""

from __future__ import annotations

import importlib
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Columns = dict[str, list[Any]]
FORMATS = ".npz, .parquet or .jsonl"

# What the zip and npy readers raise on a damaged, encrypted or foreign file.
_DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class TaskFile(NamedTuple):
    """N tasks as a file gives them."""

    prompts: list[str]  # N
    answers: list[str] | None  # N; None where the file has none
    ids: list[str]  # N, distinct
    domains: list[str] | None  # N; None where the file has none
    reference: npt.NDArray[np.float32] | None  # [K, N] in [0, 1], NaN = unknown
    path: str  # where they came from, for messages


def read_tasks(path: str | Path, *, needs_answers: bool = True) -> TaskFile:
    """Read a pool of tasks.

    Args:
      path: a file named *.npz, *.parquet or *.jsonl, with the columns listed above.
      needs_answers: False where a verifier will judge the completions on its own.

    Raises:
      ValueError: for anything wrong with the file or its contents.
      ModuleNotFoundError: for a .parquet file where pyarrow is not installed.
    """
    path = Path(path)
    columns = _npz_columns(path) if _is_npz(path) else read_columns(path, _is_of_tasks)
    return _build(path, columns, needs_answers)


def read_columns(path: str | Path, wanted: Callable[[str], bool]) -> Columns:
    """Columns of a file by name, a list of N values each; of an .npz what its arrays hold.

    Args:
      wanted: which names to read. (All of a .jsonl file is read.)

    Raises:
      ValueError: where the file is of another kind, damaged or cannot be read.
      ModuleNotFoundError: for a .parquet file where pyarrow is not installed.
    """
    path = Path(path)
    if _is_npz(path):
        arrays = {name: array for name, array in read_npz(path).items() if wanted(name)}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise ValueError(f"{path}: {name} must have shape [N], a value a task, not []")
        return {name: array.tolist() for name, array in arrays.items()}
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _parquet_columns(path, wanted)
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl_columns(path)
    raise ValueError(f"{path}: a task file must be {FORMATS}, not {suffix or 'without suffix'}")


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _is_of_tasks(name: str) -> bool:
    return name in _TEXTS or name.startswith("reference")


def read_npz(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an .npz file, none of them pickled.

    Raises:
      ValueError: naming the file, where it cannot be read, is damaged, is no .npz, or
        holds an array of Python objects.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        with np.load(path, allow_pickle=False) as arrays:
            # np.array: a member that is no .npy comes as bytes.
            return {name.removesuffix(".npy"): np.array(arrays[name]) for name in names}
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path}: holds an array of Python objects, which could run code; "
                f"save numbers, or strings of dtype str, with numpy.savez"
            ) from None
        raise ValueError(
            f"{path}: not a whole .npz file ({_reason(error)}); write it anew with numpy.savez"
        ) from None


# ------------------------------------------------------------------------- the formats


def _npz_columns(path: Path) -> Columns:
    arrays = read_npz(path)
    columns: Columns = {}
    for name, array in arrays.items():
        if not _is_of_tasks(name):
            continue
        if name != "reference" and array.ndim != 1:
            raise ValueError(f"{path}: {name} must have shape [N], not {list(array.shape)}")
        rows = _reference_rows(path, array, arrays) if name == "reference" else array
        columns[name] = rows.tolist()
    return columns


def _reference_rows(
    path: Path, array: npt.NDArray[Any], arrays: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """[K, N] -> [N, K], one row a task as in the other formats."""
    size = len(np.atleast_1d(arrays.get("prompt", array.T)))
    if array.ndim != 2 or array.shape[1] != size:
        turned = "; give its transpose" if array.ndim == 2 and array.shape[0] == size else ""
        raise ValueError(
            f"{path}: reference must have shape [K, {size}], one row a model and one column a "
            f"task, not {list(array.shape)}{turned}"
        )
    return array.T


def _parquet_columns(path: Path, is_wanted: Callable[[str], bool]) -> Columns:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: reading parquet needs pyarrow: pip install 'bots-jax[parquet]', "
            f"or save the tasks as .jsonl or .npz"
        ) from None
    try:
        with path.open("rb") as file:
            source = parquet.ParquetFile(file)
            names = source.schema_arrow.names
            wanted = [name for name in names if is_wanted(name)]
            table = source.read(columns=wanted)
            return {name: table.column(name).to_pylist() for name in wanted}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {_reason(error)}") from None
    except (pyarrow.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(
            f"{path}: not a whole parquet file of text and numbers ({_reason(error)}); "
            f"write it anew"
        ) from None


def _jsonl_columns(path: Path) -> Columns:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {_reason(error)}") from None
    # Only "\n" ends a line: a JSON string may hold other line separators as they are.
    lines = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n \t").split(b"\n")
    rows = [_jsonl_row(path, i, line) for i, line in enumerate(lines)] if lines != [b""] else []
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, ABSENT) for row in rows] for name in names}


def _jsonl_row(path: Path, index: int, line: bytes) -> dict[str, Any]:
    place = f"{path}, line {index + 1}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: byte {error.start} is not UTF-8; save the file in that encoding"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({_reason(error)}); give one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: must be a JSON object, not {shown(row)}")
    return row


# ------------------------------------------------------------------------- the contents

ABSENT = object()  # a JSONL line that lacks a key which other lines have
_TEXTS = ("prompt", "answer", "id", "domain", "family")


def _build(path: Path, columns: Columns, needs_answers: bool) -> TaskFile:
    if not columns or not any(columns.values()):
        raise ValueError(f"{path}: holds no tasks; give at least one row with a prompt")
    for name in ("prompt", "answer") if needs_answers else ("prompt",):
        if name not in columns:
            way_out = ", or give a verifier" if name == "answer" else ""
            raise ValueError(
                f"{path}: there is no column {name!r} among {', '.join(columns)}; add it{way_out}"
            )
    size = len(columns["prompt"])
    for name, column in columns.items():
        if len(column) != size:
            raise ValueError(
                f"{path}: {name} has {len(column)} rows and prompt has {size}; "
                f"give one entry a task"
            )
    domain = next((name for name in ("domain", "family") if name in columns), None)
    ids = _texts(path, columns, "id") if "id" in columns else [str(i) for i in range(size)]
    _check_distinct(path, ids)
    return TaskFile(
        prompts=_texts(path, columns, "prompt"),
        answers=_texts(path, columns, "answer") if "answer" in columns else None,
        ids=ids,
        domains=_texts(path, columns, domain) if domain else None,
        reference=_reference(path, columns, size),
        path=str(path),
    )


def _texts(path: Path, columns: Columns, name: str) -> list[str]:
    names = name in ("id", "domain", "family")
    return [_text(path, name, i, value, names) for i, value in enumerate(columns[name])]


def _text(path: Path, name: str, index: int, value: Any, whole_numbers: bool) -> str:
    place = f"{place_of(path, index)}, column {name!r}"
    if value is ABSENT or value is None:
        raise ValueError(f"{place}: there is no value; give one in every row")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: byte {error.start} of {value!r} is not UTF-8") from None
    if whole_numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        also = " or a whole number" if whole_numbers else ""
        raise ValueError(f"{place}: {shown(value)} is not text{also}; give a string")
    if not value:
        raise ValueError(f"{place}: the text is empty; give at least one character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{place}: {shown(value)} holds half a surrogate pair, which is no character"
        ) from None
    return value


def _check_distinct(path: Path, ids: list[str]) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(ids):
        if first.setdefault(name, i) != i:
            raise ValueError(
                f"{place_of(path, i)}, column 'id': {shown(name)} is the id of "
                f"{row_name(path, first[name])} already; make the ids distinct or leave them out"
            )


def _reference(path: Path, columns: Columns, size: int) -> npt.NDArray[np.float32] | None:
    """f32[K, N] from the column `reference` or from reference_0, reference_1, ..."""
    numbered = sorted(
        (name for name in columns if name.removeprefix("reference_").isdecimal()),
        key=lambda name: int(name.removeprefix("reference_")),
    )
    if "reference" in columns:
        if numbered:
            raise ValueError(f"{path}: has both reference and {numbered[0]}; leave one of them out")
        return _reference_lists(path, columns["reference"])
    if not numbered:
        return None
    wanted = [f"reference_{k}" for k in range(len(numbered))]
    if numbered != wanted:
        raise ValueError(
            f"{path}: the columns {', '.join(numbered)} must be {', '.join(wanted)}, weak to strong"
        )
    rates = [
        [_rate(path, name, i, value) for i, value in enumerate(columns[name])] for name in numbered
    ]
    return np.array(rates, np.float32).reshape(len(numbered), size)


def _reference_lists(path: Path, rows: list[Any]) -> npt.NDArray[np.float32]:
    width = next((len(row) for row in rows if isinstance(row, list)), 0)
    rates = np.full((len(rows), width), np.nan, np.float32)
    for i, row in enumerate(rows):
        if row is ABSENT or row is None:
            continue  # nothing is known of this task
        place = f"{place_of(path, i)}, column 'reference'"
        if not isinstance(row, list):
            raise ValueError(f"{place}: {shown(row)} is not a list of pass rates, one a model")
        if len(row) != width:
            raise ValueError(
                f"{place}: has {len(row)} pass rates where earlier rows have {width}; "
                f"give one a model, null where unknown"
            )
        rates[i] = [_rate(path, "reference", i, value) for value in row]
    if not width:
        raise ValueError(f"{path}: reference lists no model; leave the column out")
    return rates.T


def _rate(path: Path, name: str, index: int, value: Any) -> float:
    if value is None or value is ABSENT:
        return float("nan")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (math.isnan(value) or 0 <= value <= 1):
        return float(value)
    way_out = "; divide percent by 100" if number and 1 < value <= 100 else ", or null if unknown"
    raise ValueError(
        f"{place_of(path, index)}, column {name!r}: {shown(value)} is not a pass rate; "
        f"give a number in [0, 1]{way_out}"
    )


# ------------------------------------------------------------------------------ arrays


def row_name(path: Path, index: int) -> str:
    """The place of a row, as an editor counts: lines from 1 in JSONL, rows from 0 elsewhere."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return f"line {index + 1}"
    return f"row {index}"


def place_of(path: Path, index: int) -> str:
    """File and row, for messages."""
    return f"{path}, {row_name(path, index)}"


def shown(value: Any) -> str:
    """`repr`, cut to 60 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
