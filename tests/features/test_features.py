"""Features of prompts and levels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from bots_jax import features
from bots_jax.features.text import learn_text

PROMPTS = [f"What is {i} {'plus' if i % 2 else 'mal'} {i * 7 % 13}?" for i in range(200)]
IDS = np.arange(600).reshape(100, 6) * 7 % 11


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.round(values.astype(np.float64), 3).tobytes()).hexdigest()


def test_text_is_standardised_and_tells_kinds_apart() -> None:
    x = features.text(PROMPTS)
    assert x.shape == (200, 32)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    assert np.all(np.isclose(x.var(axis=0), 1, atol=1e-3) | (x.var(axis=0) == 0))
    odd = np.arange(200) % 2
    design = np.hstack([x, np.ones((200, 1))])
    fitted = design @ np.linalg.lstsq(design, odd, rcond=None)[0]
    assert np.mean((fitted > 0.5) == odd) == 1


def test_text_is_the_same_in_another_process() -> None:
    code = (
        "from tests.features.test_features import *;"
        "print(digest(features.text(PROMPTS)), digest(features.text(IDS, pad=0)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert other == [digest(features.text(PROMPTS)), digest(features.text(IDS, pad=0))]


def test_padding_of_token_ids_changes_nothing() -> None:
    wider = np.pad(IDS + 1, ((0, 0), (0, 3)))
    found = features.text(wider, pad=0, components=8)
    np.testing.assert_allclose(found, features.text(IDS + 1, components=8), atol=1e-6)


def test_text_is_that_of_the_composed_form() -> None:
    """A letter and its accent may be one code point or two."""
    prompts = [f"Trouvez le côté {'où' if i % 2 else 'déjà'} {i}: 한국어" for i in range(50)]
    apart = [unicodedata.normalize("NFD", prompt) for prompt in prompts]
    assert apart != prompts
    x, code = learn_text(prompts, components=8)
    np.testing.assert_array_equal(features.text(apart, components=8), x)
    np.testing.assert_array_equal(code.apply(apart), code.apply(prompts))


def test_other_scripts_are_read() -> None:
    x = features.text([f"{'加法' if i % 2 else 'сумма'} {i}" for i in range(50)], components=8)
    assert np.isfinite(x).all()
    covariance = x.T @ (np.arange(50) % 2 - 0.5) / 50
    assert 2 * np.abs(covariance).max() > 0.5


def test_levels_are_reduced_and_missing_directions_are_zero() -> None:
    rng = np.random.default_rng(0)
    levels = {"walls": rng.random((60, 2, 2)) < 0.5, "goal": rng.integers(0, 5, 60)}
    x = features.of_levels(levels, components=7)
    assert x.shape == (60, 7)
    np.testing.assert_allclose(x[:, :5].T @ x[:, :5] / 60, np.eye(5), atol=1e-4)
    assert not x[:, 5:].any()


def test_columns_that_are_constant_count_for_nothing() -> None:
    """However many rows: the logarithm of their length is no number that float32 sums exactly."""
    assert not features.text(["12 apples and 34"] * 1000).any()
    x = features.text([f"6 words, of which one differs: {'ab'[i % 2]}" for i in range(1000)])
    np.testing.assert_allclose(np.abs(x[:, 0]), 1, atol=1e-4)  # whether it is a or b
    assert not x[:, 1:].any()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        features.text([])
    with pytest.raises(ValueError, match="one string: give a list"):
        features.text("What is 1 plus 2?")
    with pytest.raises(ValueError, match="float"):
        features.text(["a", 1.5])
    with pytest.raises(ValueError, match="pad=0"):
        features.text(["a", "b"], pad=0)
    with pytest.raises(ValueError, match="one N"):
        features.of_levels([np.zeros(3), np.zeros(4)])


def pooled(block: np.ndarray) -> np.ndarray:
    """Shares of each id among the tokens of a row, 3 filling up short ones: f[n, 10]."""
    real = (block != 3)[..., None]
    return (np.eye(11)[block] * real).sum(axis=1) / np.maximum(real.sum(axis=1), 1)


def test_hidden_states_are_read_in_blocks_and_reduced() -> None:
    told: list[tuple[int, int]] = []
    ids = IDS.copy()
    x = features.hidden_states(
        pooled, ids, chunk=32, components=6, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(32, 100), (64, 100), (96, 100), (100, 100)]
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    real = x.var(axis=0) > 0
    np.testing.assert_allclose(x[:, real].T @ x[:, real] / 100, np.eye(real.sum()), atol=1e-3)
    at_once = features.hidden_states(pooled, ids, chunk=100, components=6)
    np.testing.assert_allclose(x, at_once, atol=1e-4)
    lengths = features.hidden_states(
        lambda block: [[len(text)] for text in block], ["a", "bb", "ccc"], components=1
    )
    np.testing.assert_allclose(lengths[:, 0], [-1.2247, 0, 1.2247], atol=1e-3)


def test_hidden_states_refuse_what_is_no_mean_of_states() -> None:
    with pytest.raises(ValueError, match="empty"):
        features.hidden_states(pooled, [])
    with pytest.raises(ValueError, match=r"shape \(100, 6, 2\) for 100 prompts"):
        features.hidden_states(lambda block: np.zeros((*block.shape, 2)), IDS, chunk=100)
    with pytest.raises(ValueError, match="NaN"):
        features.hidden_states(lambda block: np.full((len(block), 2), np.nan), IDS)
    with pytest.raises(ValueError, match="prompt_states"):
        features.hidden_states("a model", IDS)
