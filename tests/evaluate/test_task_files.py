"""Task files: the three formats read alike, and whatever is wrong is named."""

import builtins
import importlib
import json
import pickle
import zipfile

import numpy as np
import pytest

from bots_jax.evaluate import task_files
from bots_jax.evaluate.task_files import read_tasks
from bots_jax.rl.task_pool import to_pool
from bots_jax.rl.tasks import decode, exact_verifier

PROMPTS = ["1+1=", "2+3=", "naïve?"]
ANSWERS = ["2", "5", "yes"]
IDS = ["a", "b", "c"]
DOMAINS = ["add", "add", "words"]
REFERENCE = np.array([[0.0, 0.5, np.nan], [1.0, np.nan, 0.25]], np.float32)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(**changes):
    columns = {"prompt": PROMPTS, "answer": ANSWERS, "id": IDS, "domain": DOMAINS, **changes}
    columns = {name: column for name, column in columns.items() if column is not None}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write_npz(path, **changes):
    arrays = {"prompt": PROMPTS, "answer": ANSWERS, "id": IDS, "domain": DOMAINS, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def write_parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


def whole_file(tmp_path, suffix):
    """The same three tasks in each format."""
    path = tmp_path / f"tasks{suffix}"
    if suffix == ".npz":
        return write_npz(path, reference=REFERENCE, other=np.arange(3))
    lists = [[0.0, 1.0], [0.5, None], [None, 0.25]]
    if suffix == ".jsonl":
        return write_jsonl(path, rows_of(reference=lists, other=[1, 2, 3]))
    return write_parquet(
        path, prompt=PROMPTS, answer=ANSWERS, id=IDS, domain=DOMAINS, reference=lists
    )


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".parquet"])
def test_formats_read_alike(tmp_path, suffix):
    tasks = read_tasks(whole_file(tmp_path, suffix))
    assert tasks[:4] == (PROMPTS, ANSWERS, IDS, DOMAINS)
    np.testing.assert_array_equal(tasks.reference, REFERENCE)
    assert tasks.reference.dtype == np.float32


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".parquet"])
def test_only_prompts_are_always_needed(tmp_path, suffix):
    path = tmp_path / f"tasks{suffix}"
    if suffix == ".npz":
        np.savez(path, prompt=PROMPTS)
    elif suffix == ".jsonl":
        write_jsonl(path, [{"prompt": prompt} for prompt in PROMPTS])
    else:
        write_parquet(path, prompt=PROMPTS)
    tasks = read_tasks(path, needs_answers=False)
    assert tasks[:5] == (PROMPTS, None, ["0", "1", "2"], None, None)
    with pytest.raises(ValueError, match=r"'answer' among prompt; add it, or give a verifier"):
        read_tasks(path)


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".parquet"])
def test_references_may_be_columns_and_domains_families(tmp_path, suffix):
    path = tmp_path / f"tasks{suffix}"
    columns = {"prompt": PROMPTS, "answer": ANSWERS, "family": [2, 2, 1], "id": [7, 8, 9]}
    rates = {f"reference_{k}": row for k, row in enumerate(REFERENCE)}
    if suffix == ".npz":
        np.savez(path, **columns, **rates)
    elif suffix == ".jsonl":
        known = [
            {name: float(row[i]) for name, row in rates.items() if row[i] == row[i]}
            for i in range(3)
        ]
        rows = zip(zip(*columns.values(), strict=True), known, strict=True)
        write_jsonl(path, [dict(zip(columns, row, strict=True)) | more for row, more in rows])
    else:
        write_parquet(path, **columns, **rates)
    tasks = read_tasks(path)
    assert (tasks.domains, tasks.ids) == (["2", "2", "1"], ["7", "8", "9"])
    np.testing.assert_array_equal(tasks.reference, REFERENCE)


def test_jsonl_may_have_crlf_a_byte_order_mark_and_line_separators_in_strings(tmp_path):
    path = tmp_path / "tasks.jsonl"
    lines = '{"prompt": "a\u2028b", "answer": "1"}\r\n{"prompt": "c", "answer": "2"}\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read_tasks(path).prompts == ["a\u2028b", "c"]


def test_npz_of_bytes_is_utf8(tmp_path):
    encoded = np.array([prompt.encode() for prompt in PROMPTS])
    assert read_tasks(write_npz(tmp_path / "t.npz", prompt=encoded)).prompts == PROMPTS


BAD_ROWS = {
    "missing column": (rows_of(prompt=None), r"column 'prompt' among answer, id, domain"),
    "missing value": ([*rows_of()[:2], {"prompt": "x"}], r"line 3, column 'id': there is no value"),
    "null": (rows_of(answer=["1", None, "3"]), r"line 2, column 'answer': there is no value"),
    "number": (rows_of(prompt=["1", "2", 3]), r"line 3, column 'prompt': 3 is not text; give"),
    "empty": (rows_of(answer=["1", "", "3"]), r"line 2, column 'answer': the text is empty"),
    "boolean id": (rows_of(id=[1, True, 2]), r"line 2, column 'id': True is not text or a whole"),
    "twice": (rows_of(id=["a", "b", "a"]), r"line 3, column 'id': 'a' is the id of line 1"),
    "twice mixed": (rows_of(id=[1, "b", "1"]), r"line 3, column 'id': '1' is the id of line 1"),
    "surrogate": (rows_of(prompt=["1", "\ud800", "3"]), r"line 2, .*half a surrogate"),
    "ragged": (
        rows_of(reference=[[0.1, 0.2], [0.1], [0.1, 0.2]]),
        r"line 2, column 'reference': has 1 pass rates where earlier rows have 2",
    ),
    "no list": (rows_of(reference=[[0.1], 0.2, [0.3]]), r"line 2, .*0.2 is not a list"),
    "no models": (rows_of(reference=[[], [], []]), r"reference lists no model"),
    "percent": (
        rows_of(reference=[[0.1], [45.0], [0.3]]),
        r"line 2, column 'reference': 45.0 is not a pass rate.*\[0, 1\]; divide percent",
    ),
    "negative": (rows_of(reference_0=[0.1, -0.5, 1]), r"line 2, column 'reference_0': -0.5"),
    "infinite": (rows_of(reference_0=[0.1, float("inf"), 1]), r"line 2, .*: inf is not a pass"),
    "text rate": (rows_of(reference_0=[0.1, "0.5", 1]), r"line 2, .*'0.5' is not a pass rate"),
    "boolean rate": (rows_of(reference_0=[0.1, True, 1]), r"line 2, .*True is not a pass rate"),
    "gap": (
        rows_of(reference_0=[0, 0, 0], reference_2=[0, 0, 0]),
        r"reference_0, reference_2 must be reference_0, reference_1",
    ),
    "both": (
        rows_of(reference=[[0.1]] * 3, reference_0=[0, 0, 0]),
        r"both reference and reference_0",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(tmp_path, case):
    rows, words = BAD_ROWS[case]
    path = write_jsonl(tmp_path / "tasks.jsonl", rows)
    with pytest.raises(ValueError, match=words) as error:
        read_tasks(path)
    assert str(path) in str(error.value)


BAD_BYTES = {
    "no tasks": (b"", "holds no tasks"),
    "only blank": (b"\n \n", "holds no tasks"),
    "not JSON": (b'{"prompt": "a", "answer": "1"}\n{"prompt": ', "line 2: not JSON"),
    "blank between": (b'{"prompt": "a"}\n\n{"prompt": "b"}', "line 2: not JSON"),
    "no object": (b'["a", "b"]', "line 1: must be a JSON object, not "),
    "not UTF-8": (b'{"prompt": "a", "answer": "1"}\n{"prompt": "\xff"}', "line 2: byte 12 is not"),
    "too deep": (b"[" * 100_000, "line 1: not JSON"),
    "binary": (bytes(range(256)), "line 1"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_damaged_jsonl_is_named(tmp_path, case):
    raw, words = BAD_BYTES[case]
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=words) as error:
        read_tasks(path)
    assert str(path) in str(error.value)


BAD_ARRAYS = {
    "ragged columns": ({"answer": ["1"]}, r"answer has 1 rows and prompt has 3"),
    "two axes": ({"answer": [["1"], ["2"], ["3"]]}, r"answer must have shape \[N\], not \[3, 1\]"),
    "transposed": ({"reference": REFERENCE.T}, r"reference .*\[K, 3\].*\[3, 2\]; give its transp"),
    "flat": ({"reference": REFERENCE[0]}, r"reference must have shape \[K, 3\]"),
    "out of range": ({"reference": REFERENCE * 2}, r"row 0, column 'reference': 2.0 is not"),
    "bytes": ({"answer": [b"1", b"\xff", b"3"]}, r"row 1, column 'answer': byte 0 of .* not UTF-8"),
    "numbers": ({"prompt": [1, 2, 3]}, r"row 0, column 'prompt': 1 is not text"),
    "empty": ({name: [] for name in ("prompt", "answer", "id", "domain")}, "holds no tasks"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(tmp_path, case):
    changes, words = BAD_ARRAYS[case]
    path = write_npz(tmp_path / "tasks.npz", **changes)
    with pytest.raises(ValueError, match=words) as error:
        read_tasks(path)
    assert str(path) in str(error.value)


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.bots_jax_bomb = True",)


def test_a_file_never_executes(tmp_path):
    path = tmp_path / "tasks.npz"
    np.savez(path, prompt=np.array([Bomb()], dtype=object), answer=["1"])
    with pytest.raises(ValueError, match="array of Python objects, which could run code"):
        read_tasks(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"not a whole \.npz file"):
        read_tasks(path)
    assert not hasattr(builtins, "bots_jax_bomb")


def test_a_member_that_is_no_array_is_refused(tmp_path):
    path = write_npz(tmp_path / "tasks.npz", prompt=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("prompt", b"1+1=")
    with pytest.raises(ValueError, match=r"prompt must have shape \[N\]"):
        read_tasks(path)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    path = whole_file(tmp_path, suffix)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if kept != 1 else 1])
    with pytest.raises(ValueError, match=r"not a whole .*write it anew") as error:
        read_tasks(path)
    assert str(path) in str(error.value)


def test_random_damage_to_an_npz_gives_no_other_error(tmp_path):
    """Flipped bytes either leave the file readable or give a ValueError that names it."""
    path = whole_file(tmp_path, ".npz")
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(400):
        damaged = raw.copy()
        places = rng.integers(0, len(raw), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            read_tasks(path)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tasks.csv", r"must be \.npz, \.parquet or \.jsonl, not \.csv"),
        ("tasks", "not without suffix"),
        ("absent.npz", "cannot be read: .*No such file"),
        ("absent.jsonl", "cannot be read: .*No such file"),
        ("folder.npz", "cannot be read: .*directory"),
        ("folder.jsonl", "cannot be read: .*directory"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path, name, words):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=words) as error:
        read_tasks(tmp_path / name)
    assert name in str(error.value)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(task_files.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bots-jax\[parquet\]'"):
        read_tasks(tmp_path / "tasks.parquet")


# ------------------------------------------------------------------------------ arrays


def three_tasks(tmp_path):
    rows = rows_of(prompt=["1+1=", "2+3=", "12?7="], answer=["2", "5", ">"])
    return write_jsonl(tmp_path / "tasks.jsonl", rows)


def test_pool_holds_the_texts_and_the_domains(tmp_path):
    pool, names, reference = to_pool(read_tasks(three_tasks(tmp_path)), 8, 4)
    assert decode(pool.prompts) == ["1+1=", "2+3=", "12?7="]
    assert decode(pool.answers) == ["2", "5", ">"]
    assert (pool.prompts.shape, pool.answers.shape) == ((3, 8), (3, 4))
    assert names == ("add", "words")
    assert pool.family.tolist() == [0, 0, 1]
    assert reference is None


def test_nothing_matches_an_answer_that_is_not_given(tmp_path):
    path = write_jsonl(tmp_path / "tasks.jsonl", [{"prompt": "say hi"}])
    pool, names, _ = to_pool(read_tasks(path, needs_answers=False), 8, 4)
    empty = np.zeros((1, 2, 4), np.int32)
    assert names == ("all",)
    assert not np.any(exact_verifier(pool.answers)(np.array([0]), empty))


@pytest.mark.parametrize(
    ("changes", "prompt_tokens", "answer_tokens", "words"),
    [
        ({}, 5, 4, r"line 3, column 'prompt': '12\?7=' takes 6 .*max_prompt_tokens=5; raise"),
        ({"answer": "1234"}, 8, 4, r"line 1, column 'answer': '1234' takes 5 .*answer_tokens=4"),
        ({"prompt": "1 × 1"}, 8, 4, r"line 1, column 'prompt': .* holds '×', .*ASCII"),  # noqa: RUF001
        ({"answer": "a\nb"}, 8, 4, r"line 1, column 'answer': .* holds '\\n'"),
    ],
)
def test_texts_that_do_not_fit_are_named(tmp_path, changes, prompt_tokens, answer_tokens, words):
    rows = [
        {"prompt": "1+1=", "answer": "2", **changes},
        {"prompt": "2+3=", "answer": "5"},
        {"prompt": "12?7=", "answer": ">"},
    ]
    tasks = read_tasks(write_jsonl(tmp_path / "tasks.jsonl", rows))
    with pytest.raises(ValueError, match=words) as error:
        to_pool(tasks, prompt_tokens, answer_tokens)
    assert str(tmp_path) in str(error.value)
