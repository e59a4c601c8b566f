"""Prompts as numbers: hashed n-grams and lengths, reduced.

In: N prompts, strings or padded token ids. Out: f32[N, F]. No vocabulary, no language and no
model: a hash counts words and characters, a randomised SVD keeps what varies most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bots_jax.checks import check_count
from bots_jax.features.reduction import reduce_columns, scikit_learn, standardise
from bots_jax.types import ArrayLike

_BUCKETS = 2**16
_LENGTHS = 2  # columns beside the n-grams: characters and words, or tokens and different ones
# Characters looked at for n-grams of characters, from the start of each prompt: a bound on time.
_CHARACTERS = 96


def text(
    prompts: Sequence[str] | ArrayLike, *, components: int = 32, pad: int | None = None
) -> np.ndarray:
    """Features f32[N, components] of prompts: n-grams and lengths, of mean 0 and variance 1.

    Args:
      prompts: N strings, or token ids i32[N, L].
      components: columns; those that the prompts do not fill are 0.
      pad: token id that fills short rows, left out; with token ids alone. None: each counts.

    Same prompts give the same features in every process. Needs scikit-learn.

    Raises:
      ValueError: prompts that are neither, or none.
      ImportError: without scikit-learn, naming the extra.
    """
    check_count("components", components)
    if components <= _LENGTHS:
        raise ValueError(f"components={components} must be above {_LENGTHS}: lengths take these")
    grams, lengths = _of_tokens(prompts, pad) if _is_ids(prompts) else _of_strings(prompts, pad)
    reduced = reduce_columns(grams, components - _LENGTHS)
    return standardise(np.hstack([np.log1p(lengths), reduced])).astype(np.float32)


def _is_ids(prompts: Any) -> bool:
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give one string or row of token ids for each task")
    if not hasattr(prompts, "dtype"):
        return not isinstance(prompts[0], str) and np.asarray(prompts).dtype.kind in "iu"
    return np.asarray(prompts).dtype.kind in "iu"


def _of_strings(prompts: Any, pad: int | None) -> tuple[Any, np.ndarray]:
    if pad is not None:
        raise ValueError(f"pad={pad} goes with token ids i32[N, L], but prompts are strings")
    prompts = [prompt if isinstance(prompt, str) else _refuse(prompt) for prompt in prompts]
    words = _hashed(prompts, token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2))
    starts = [prompt[:_CHARACTERS] for prompt in prompts]
    characters = _hashed(starts, analyzer="char", ngram_range=(3, 3))
    lengths = np.array([(len(prompt), len(prompt.split())) for prompt in prompts], np.float64)
    return _stacked(words, characters), lengths


def _of_tokens(prompts: Any, pad: int | None) -> tuple[Any, np.ndarray]:
    ids = np.asarray(prompts)
    if ids.ndim != 2:
        raise ValueError(f"prompts has shape {ids.shape}, expected token ids [N, L] or strings")
    rows = [row if pad is None else row[row != pad] for row in ids]
    documents = [" ".join(map(str, row.tolist())) for row in rows]
    lengths = np.array([(len(row), len(np.unique(row))) for row in rows], np.float64)
    return _hashed(documents, token_pattern=r"\S+", ngram_range=(1, 2)), lengths


def _hashed(documents: list[str], **how: Any) -> Any:
    """Hashed n-grams, sparse f64[N, buckets], each row of length 1; MurmurHash3, no seed."""
    extraction = scikit_learn("feature_extraction.text")
    return extraction.HashingVectorizer(n_features=_BUCKETS, **how).transform(documents)


def _stacked(*blocks: Any) -> Any:
    from scipy import sparse

    return sparse.hstack(blocks, format="csr")


def _refuse(prompt: Any) -> str:
    raise ValueError(
        f"prompts holds {prompt!r} of type {type(prompt).__name__}: give strings or integers [N, L]"
    )
