"""Features of prompts: principal components of hashed n-grams and lengths.

In: N prompts, strings or padded token ids. Out: f32[N, F]. No vocabulary, no language and no
model: a hash counts single characters and words and pairs of neighbours. Each count is
standardised, so that a rare character tells as much as a frequent one, and the components are
whitened, so that the regression may use any of them.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bots_jax.checks import check_count
from bots_jax.features.reduction import Reduction, learn_reduction, sample_rows
from bots_jax.types import ArrayLike

_CHARACTER_BUCKETS, _WORD_BUCKETS = 1024, 512
_WORDS = re.compile(r"\w+|[^\w\s]")
_CHUNK = 4096  # prompts counted at a time: 25 MB


def text(
    prompts: Sequence[str] | ArrayLike, *, components: int = 32, pad: int | None = None
) -> np.ndarray:
    """Features f32[N, components] of prompts, each of mean 0 and variance 1.

    Args:
      prompts: N strings, or token ids i32[N, L].
      components: columns; those that the prompts do not fill are 0.
      pad: token id that fills short rows, left out; with token ids alone. None: each counts.

    Same prompts give the same features in every process, up to rounding. Components are those of
    the prompts given: for tasks that are added later keep the code of `learn_text`.

    Raises:
      ValueError: prompts that are neither, or none.

    >>> from bots_jax import features
    >>> features.text(["2 + 2 =", "12 + 7 =", "sort 3 1 2"], components=2).shape
    (3, 2)
    """
    return learn_text(prompts, components=components, pad=pad)[0]


class TextCode(NamedTuple):
    """The fitted map from prompts to features, for tasks that are added later."""

    reduction: Reduction
    ids: bool  # token ids, not strings
    pad: int | None

    def apply(self, prompts: Sequence[str] | ArrayLike) -> np.ndarray:
        """Features f32[A, components] of other prompts, on the components of the first."""
        if _is_ids(prompts) != self.ids:
            expected = "token ids i32[N, L]" if self.ids else "strings"
            raise ValueError(f"prompts must be {expected}, as those that the pool was made with")
        return self._of(_counted(prompts, np.arange(len(prompts)), self.pad))  # type: ignore[arg-type]

    def _of(self, counted: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([self.reduction.apply(part) for part in counted]).astype(np.float32)


def learn_text(
    prompts: Sequence[str] | ArrayLike, *, components: int = 32, pad: int | None = None
) -> tuple[np.ndarray, TextCode]:
    """Features f32[N, components] as of `text`, and the code that gives them to later prompts.

    Raises:
      ValueError: as `text`.
    """
    check_count("components", components)
    ids = _is_ids(prompts)
    rows = np.arange(len(prompts))  # type: ignore[arg-type]
    sample = sample_rows(len(rows))
    counted = list(_counted(prompts, sample, pad))
    code = TextCode(learn_reduction(np.concatenate(counted), components), ids, pad)
    whole = len(sample) == len(rows)
    return code._of(counted if whole else _counted(prompts, rows, pad)), code


def _counted(prompts: Any, rows: np.ndarray, pad: int | None) -> Iterator[np.ndarray]:
    """f32[n, D] of these rows, some at a time."""
    count = _count_tokens if _is_ids(prompts) else _count_strings
    for part in _chunks(rows):
        yield count(_take(prompts, part), pad)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _take(prompts: Any, rows: np.ndarray) -> Any:
    if hasattr(prompts, "dtype"):
        return np.asarray(prompts)[rows]
    return [prompts[row] for row in rows.tolist()]


def _is_ids(prompts: Any) -> bool:
    if isinstance(prompts, str):
        raise ValueError("prompts is one string: give a list, with a string for each task")
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give one string or row of token ids for each task")
    if not hasattr(prompts, "dtype"):
        return not isinstance(prompts[0], str) and _as_rows(prompts).dtype.kind in "iu"
    return np.asarray(prompts).dtype.kind in "iu"


def _as_rows(prompts: Any) -> np.ndarray:
    try:
        return np.asarray(prompts)
    except ValueError as error:
        raise ValueError(
            "prompts are rows of several lengths: give strings, or token ids i32[N, L] that are "
            f"filled up to one length, and pad=... ({error})"
        ) from None


def _count_strings(prompts: Any, pad: int | None) -> np.ndarray:
    """f32[n, D]: counts of characters and of words, and how many there are."""
    if pad is not None:
        raise ValueError(f"pad={pad} goes with token ids i32[N, L], but prompts are strings")
    texts = [_composed(prompt) for prompt in prompts]
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    words = [_WORDS.findall(prompt) for prompt in texts]
    hashes = {word: zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in _all(words)}
    codes = np.fromiter((hashes[word] for word in _all(words)), np.uint32)
    return np.hstack(
        [
            _grams(characters, np.array([len(prompt) for prompt in texts]), _CHARACTER_BUCKETS),
            _grams(codes, np.array([len(found) for found in words]), _WORD_BUCKETS),
        ]
    )


def _all(words: list[list[str]]) -> Iterator[str]:
    for found in words:
        yield from found


def _count_tokens(prompts: Any, pad: int | None) -> np.ndarray:
    """f32[n, D]: counts of tokens, and how many there are."""
    ids = np.asarray(prompts)
    if ids.ndim != 2:
        raise ValueError(f"prompts has shape {ids.shape}, expected token ids [N, L] or strings")
    used = np.ones(ids.shape, bool) if pad is None else ids != pad
    return _grams(ids[used].astype(np.uint32), used.sum(axis=1), _CHARACTER_BUCKETS)


def _grams(codes: np.ndarray, lengths: np.ndarray, buckets: int) -> np.ndarray:
    """f32[n, buckets + 2]: hashed single codes and pairs of neighbours of each row; its lengths.

    Args:
      codes: u32[sum of lengths], row after row.
      lengths: of each row.
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    single = _hash(codes.astype(np.uint64))
    inside = row[1:] == row[:-1]
    pair = _hash((single[:-1] * np.uint64(31) + single[1:] + np.uint64(1)) & _LOW)[inside]
    place = np.concatenate([row, row[1:][inside]]) * buckets
    place += (np.concatenate([single, pair]) % np.uint64(buckets)).astype(np.int64)
    counts = np.bincount(place, minlength=len(lengths) * buckets).reshape(len(lengths), buckets)
    size = np.stack([lengths, np.log1p(lengths)], axis=1)
    return np.hstack([counts, size]).astype(np.float32)


_LOW = np.uint64(2**32 - 1)


def _hash(codes: np.ndarray) -> np.ndarray:
    """u64 below 2^32: the finaliser of MurmurHash3."""
    x = codes & _LOW
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & _LOW
    return x ^ (x >> np.uint64(16))


def _composed(prompt: Any) -> str:
    """NFC, or a letter with its accent would be another where files were written elsewhere."""
    if isinstance(prompt, str):
        return unicodedata.normalize("NFC", prompt)
    raise ValueError(
        f"prompts holds {prompt!r} of type {type(prompt).__name__}: give strings or integers [N, L]"
    )
