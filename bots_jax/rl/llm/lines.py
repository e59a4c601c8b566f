"""Tasks of one line with a few solved lines before them, and short exact answers.

    8 + 5 = 13
    30 + 9 = 39
    27 + 6 =

In: sizes and a seed. Out: tasks by family and level, and their pool of tokens, the answers
among them: a line ends a completion, so a completion is right or wrong by its tokens alone
(`tasks.exact_verifier`), and a pass rate is computed, not sampled (`answer_probabilities`).

A base model goes on with such lines without a chat template, and a prompt takes some thirty
tokens. Levels of a family are made so that a small model's pass rates fall from level to level.
Randomness is that of `tasks`: raw bits, stable over versions of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.llm.weights import Vocabulary, Weights
from bots_jax.rl.tasks import TaskPool, even_shares

LEVELS = 5  # of each family, from 1
SHOTS = 3  # solved lines before each
END = "\n"  # of a completion


class Dice:
    """Whole numbers from raw bits."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(list(seed)))

    def __call__(self, low: int, high: int) -> int:
        """One of low, ..., high - 1."""
        return low + (self._bits.random_raw() >> 11) * (high - low) // 2**53

    def letters(self, count: int) -> list[str]:
        """So many of the alphabet."""
        return [chr(ord("a") + self(0, 26)) for _ in range(count)]


Line = tuple[str, str]  # question, answer


def _addition(dice: Dice, level: int) -> Line:
    """A digit, and a number below 10, 20, 50, 100, 1000."""
    a, b = dice(0, 10), dice(0, (10, 20, 50, 100, 1000)[level - 1])
    return f"{a} + {b} =", f" {a + b}"


def _subtraction(dice: Dice, level: int) -> Line:
    a, b = dice(0, 10), dice(0, (10, 20, 50, 100, 1000)[level - 1])
    return f"{a + b} - {a} =", f" {b}"


def _product(dice: Dice, level: int) -> Line:
    a, b = dice(2, 10), dice(2, (5, 10, 12, 20, 50)[level - 1])
    return f"{a} * {b} =", f" {a * b}"


def _successor(dice: Dice, level: int) -> Line:
    """The number after one of as many digits as the level."""
    number = dice(10 ** (level - 1), 10**level)
    return f"{number}+1=", f"{number + 1}"


def _sequence(dice: Dice, level: int) -> Line:
    """The next of numbers that rise by 1, 2, 3, 5, 7."""
    first, step = dice(1, 20), (1, 2, 3, 5, 7)[level - 1]
    return f"{first}, {first + step},", f" {first + 2 * step}"


def _last_letter(dice: Dice, level: int) -> Line:
    letters = dice.letters(level + 1)
    return f"last of {' '.join(letters)}:", f" {letters[-1]}"


def _count(dice: Dice, level: int) -> Line:
    letters = dice.letters(dice(level, level + 3))
    return f"count {' '.join(letters)}:", f" {len(letters)}"


def _sorting(dice: Dice, level: int) -> Line:
    letters = dice.letters(level + 1)
    return f"sort {' '.join(letters)}:", f" {' '.join(sorted(letters))}"


def _reversal(dice: Dice, level: int) -> Line:
    letters = dice.letters(level + 1)
    return f"reverse {' '.join(letters)}:", f" {' '.join(letters[::-1])}"


FAMILIES: dict[str, Callable[[Dice, int], Line]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "product": _product,
    "successor": _successor,
    "sequence": _sequence,
    "last-letter": _last_letter,
    "count": _count,
    "sorting": _sorting,
    "reversal": _reversal,
}


class Lines(NamedTuple):
    """N tasks."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]  # with the space before them, without the end
    family: NDArray[np.int32]  # i32[N], index into the families asked for
    level: NDArray[np.int32]  # i32[N], from 1


def make_lines(
    size: int, seed: int, families: Sequence[str] = tuple(FAMILIES), exclude: Collection[str] = ()
) -> Lines:
    """About `size` distinct tasks, evenly over families and levels.

    Args:
      exclude: questions not to ask, such as those held out. A level that has too few others
        gives what it has.

    Raises:
      ValueError: if a family is unknown or there is no task.
    """
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ValueError(f"families={unknown} are unknown; use {', '.join(FAMILIES)}")
    seen = {*exclude, *(question for name in families for question, _ in examples(name))}
    rows: list[tuple[str, str, int, int]] = []
    cells = [(f, level) for f in range(len(families)) for level in range(1, LEVELS + 1)]
    shares = even_shares(size, len(cells))
    for place, ((family, level), wanted) in enumerate(zip(cells, shares, strict=True)):
        make, dice = FAMILIES[families[family]], Dice(seed, place)
        for _ in range(20 * wanted):  # some come twice
            question, answer = make(dice, level)
            if wanted and question not in seen:
                seen.add(question)
                rows.append((question, answer, family, level))
                wanted -= 1
    if not rows:
        raise ValueError(f"size={size} over {len(cells)} levels leaves no task")
    asked, answered, of, levels = zip(*rows, strict=True)
    return Lines(asked, answered, np.array(of, np.int32), np.array(levels, np.int32))


def examples(family: str, shots: int = SHOTS) -> list[Line]:
    """Solved lines of the lower levels, the same for all tasks of the family."""
    dice = Dice(2**32 - 1, sorted(FAMILIES).index(family))
    return [FAMILIES[family](dice, 1 + i % 3) for i in range(shots)]


def to_pool(
    lines: Lines, families: Sequence[str], tokenizer: Tokenizer, max_prompt: int, max_answer: int
) -> TaskPool:
    """Prompts and answers as tokens; the tokenizer must end its completions with a line.

    Raises:
      ValueError: if a prompt or an answer is longer than there is room for.
    """
    heads = ["".join(q + a + END for q, a in examples(name)) for name in families]
    told = zip(lines.questions, lines.family, strict=True)
    prompts = [tokenizer.encode(heads[family] + question) for question, family in told]
    answers = [tokenizer.encode(answer + END) for answer in lines.answers]
    longest = max(map(len, answers))
    if longest > max_answer:
        raise ValueError(f"max_new_tokens={max_answer} is too short: an answer takes {longest}")
    padded = np.zeros((len(answers), longest), np.int32)
    for place, row in zip(padded, answers, strict=True):
        place[: len(row)] = row
    return TaskPool(tokenizer.pad(prompts, max_prompt), padded, lines.family, lines.level)


class EndingInLines:
    """Weights whose completions end with a line, and not with the turn of a chat.

    Raises (when the vocabulary is asked for):
      ValueError: if a line's end is no token of its own.
    """

    def __init__(self, file: Weights) -> None:
        self._file = file
        self.path, self.config, self.leaf, self.digest = (
            file.path, file.config, file.leaf, file.digest
        )  # fmt: skip

    def vocabulary(self) -> Vocabulary:
        """See `weights.Weights`."""
        found = self._file.vocabulary()
        ids = found.model.encode(END, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"{self.path}: the end of a line is no token: choose other tasks")
        return found._replace(end=ids[0], names={**found.names, ids[0]: END})
