"""Short lines: their answers are right, none is in two sets, and tokens are text again."""

from __future__ import annotations

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")

from bots_jax.rl.llm.gguf_file import installed_weights
from bots_jax.rl.llm.lines import FAMILIES, EndingInLines, examples, make_lines, to_pool
from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.llm.weights import open_weights
from bots_jax.rl.tasks import exact_verifier

NAMES = tuple(FAMILIES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    try:
        return Tokenizer(EndingInLines(open_weights(installed_weights())))
    except ValueError as error:
        pytest.skip(str(error))


def solve(family: str, question: str) -> str:
    """The answer, worked out from the question alone."""
    letters = question[:-1].split()[1:]
    if family == "sorting":
        return " " + " ".join(sorted(letters))
    if family == "reversal":
        return " " + " ".join(letters[::-1])
    if family == "last-letter":
        return " " + letters[-1]
    if family == "count":
        return f" {len(letters)}"
    if family == "sequence":
        first, second = map(int, re.findall(r"\d+", question))
        return f" {2 * second - first}"
    value = str(eval(question.removesuffix("=")))  # a sum, difference or product of two numbers
    return value if family == "successor" else f" {value}"


def test_answers_are_right_and_no_question_comes_twice() -> None:
    held = make_lines(100, 7)
    lines = make_lines(300, 3, NAMES, held.questions)
    shown = [question for name in NAMES for question, _ in examples(name)]
    asked = [*lines.questions, *held.questions, *shown]
    assert len(set(asked)) == len(asked)
    assert len(lines.questions) > 280
    assert set(lines.level.tolist()) == {1, 2, 3, 4, 5}
    for question, answer, family in zip(lines.questions, lines.answers, lines.family, strict=True):
        assert solve(NAMES[family], question) == answer
    assert make_lines(300, 3, NAMES, held.questions).questions == lines.questions
    assert make_lines(300, 4).questions != lines.questions
    with pytest.raises(ValueError, match=r"families=.'sums'. are unknown"):
        make_lines(10, 0, ("sums",))


def test_tokens_are_the_lines_again(tokenizer: Tokenizer) -> None:
    families = ("addition", "sorting")
    lines = make_lines(20, 0, families)
    pool = to_pool(lines, families, tokenizer, 40, 8)
    verifier = exact_verifier(pool.answers)
    for i, question in enumerate(lines.questions):
        row = np.asarray(pool.prompts[i])
        whole = "".join(tokenizer.decode([token]) or "\n" for token in row[row != 0])
        shots = examples(families[lines.family[i]])
        assert whole == "".join(f"{q}{a}\n" for q, a in shots) + question
        for said, reward in ((lines.answers[i] + "\nmore", 1), (lines.answers[i] + "0\n", 0)):
            tokens = np.zeros((1, 1, 12), np.int32)
            encoded = tokenizer.encode(said)[:12]
            tokens[0, 0, : len(encoded)] = encoded
            assert float(verifier(jnp.asarray([i]), jnp.asarray(tokens))[0, 0]) == reward
    with pytest.raises(ValueError, match="max_new_tokens=3 is too short"):
        to_pool(lines, families, tokenizer, 40, 3)


def test_weights_end_their_answers_with_a_line(tokenizer: Tokenizer) -> None:
    path = Path(tokenizer.path)
    plain = Tokenizer(open_weights(path))
    assert tokenizer.decode(tokenizer.encode("a\nb")) == "a"
    assert plain.decode(plain.encode("a\nb")) == "a\nb"
