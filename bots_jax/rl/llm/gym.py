"""Tasks with a verifier from reasoning-gym, as rows of tokens for a language model.

In: a tokenizer, levels (a family of tasks and its settings), a size and a seed. Out: a
`TaskPool` whose `family` is the level, and a verifier

    reward = 1 where the family's own score of the answer is 1, else 0,

called on the host. Scores between 0 and 1 that some families give for a part of the answer
count as 0: what a selector holds of a task is how often it is solved.

Source: Stojanovski et al., arXiv 2505.24760; the package `reasoning-gym`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.tasks import TaskPool, Verifier, VerifierError, even_shares

Array = jax.Array

INSTRUCTION = "Answer with the result alone."
# Without them a small model explains until its tokens are used up.
EXAMPLES = (("Calculate 3 + 4.", "7"), ("Spell this word backward: cat", "tac"))


@dataclasses.dataclass(frozen=True)
class Level:
    """A family of reasoning-gym and the settings that make its tasks easy or hard."""

    family: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _ladder(family: str, *steps: Mapping[str, Any]) -> tuple[Level, ...]:
    return tuple(Level(family, step) for step in steps)


def _sums(terms: int, digits: int) -> dict[str, int]:
    return {"min_terms": 2, "max_terms": terms, "min_digits": 1, "max_digits": digits}


# From what a small model nearly always solves to what it never does.
LEVELS: tuple[Level, ...] = (
    *_ladder("chain_sum", _sums(2, 1), _sums(2, 2), _sums(3, 2), _sums(4, 3)),
    *_ladder("products", _sums(2, 1), _sums(2, 2)),
    *_ladder("gcd", {"max_value": 10}, {"max_value": 100}, {"max_value": 1000}),
    *_ladder("letter_counting", {"min_words": 1, "max_words": 2}, {"min_words": 3, "max_words": 8}),
    *_ladder(
        "spell_backward",
        {"min_word_len": 3, "max_word_len": 3},
        {"min_word_len": 4, "max_word_len": 6},
    ),
    *_ladder("simple_equations", {"max_terms": 2, "max_value": 10}, {"max_value": 50}),
)


class GymTasks(NamedTuple):
    """Tasks as reasoning-gym made them."""

    entries: tuple[Mapping[str, Any], ...]  # with "question" and "answer"
    level: NDArray[np.int32]  # i32[N], index into the levels
    scores: tuple[Callable[[str, Mapping[str, Any]], float], ...]  # one a level


def make_tasks(
    size: int, seed: int, levels: Sequence[Level] = LEVELS, exclude: Collection[str] = ()
) -> GymTasks:
    """About `size` distinct tasks, evenly over the levels.

    Args:
      exclude: questions not to ask, such as those held out. A level that has too few others
        gives what it has.

    Raises:
      ValueError: if a level is unknown or there is no task.
    """
    seen, entries, places, scores = set(exclude), [], [], []
    shares = even_shares(size, len(levels))
    for index, (level, wanted) in enumerate(zip(levels, shares, strict=True)):
        data = _dataset(level, 4 * wanted, seed + index)
        fresh = list(_distinct(data, wanted, seen))
        entries += fresh
        places += [index] * len(fresh)
        scores.append(data.score_answer)
    if not entries:
        raise ValueError(f"size={size} over {len(levels)} levels leaves no task")
    return GymTasks(tuple(entries), np.array(places, np.int32), tuple(scores))


def _dataset(level: Level, size: int, seed: int) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(
            level.family, seed=seed, size=max(size, 1), **level.settings
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"level {level} is not of reasoning-gym: {error}") from None


def _distinct(data: Any, wanted: int, seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """The first `wanted` entries whose question is not in `seen`, which grows."""
    for index in range(len(data)):
        if wanted == 0:
            return
        entry = data[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            wanted -= 1
            yield entry


def questions(tasks: GymTasks) -> list[str]:
    """What is asked, without the instruction."""
    return [entry["question"] for entry in tasks.entries]


def to_pool(tasks: GymTasks, tokenizer: Tokenizer, max_prompt: int) -> TaskPool:
    """Chat prompts as tokens; the answers are left to the verifier.

    Raises:
      ValueError: if a prompt is longer than `max_prompt` tokens.
    """
    rows = [
        tokenizer.encode(tokenizer.chat(question, INSTRUCTION, EXAMPLES))
        for question in questions(tasks)
    ]
    nothing = np.zeros((len(rows), 1), np.int32)
    return TaskPool(tokenizer.pad(rows, max_prompt), nothing, tasks.level, tasks.level)


def answers_in(completion: str) -> tuple[str, ...]:
    """What a completion may be read as: what is between <answer> tags, and nothing else; or
    all of it; or what follows the last "=" in its line, else the last word.
    """
    _, tagged, rest = completion.rpartition("<answer>")
    if tagged:
        return (rest.partition("</answer>")[0].strip(),)
    whole = completion.strip().removesuffix(".")
    _, equals, result = whole.rpartition("=")
    last = result.strip().partition("\n")[0] if equals else whole.rpartition(" ")[2]
    return tuple(dict.fromkeys((whole, last.strip().removesuffix("."))))


def gym_verifier(tasks: GymTasks, tokenizer: Tokenizer) -> Verifier:
    """(task_ids [B], completions [B, G, L]) -> rewards [B, G] in {0, 1}.

    Raises (when run, wrapped by JAX): VerifierError where a family's score fails.
    """

    def check(task_ids: Any, completions: Any) -> NDArray[np.float32]:
        ids, tokens = np.asarray(task_ids), np.asarray(completions)
        rewards = np.zeros(tokens.shape[:2], np.float32)
        for i, task_id in enumerate(ids):
            if task_id >= 0:
                rewards[i] = [_solved(tasks, task_id, tokenizer.decode(row)) for row in tokens[i]]
        return rewards

    def verifier(task_ids: Array, completions: Array) -> Array:
        shape = jax.ShapeDtypeStruct(completions.shape[:2], jnp.float32)
        return jax.pure_callback(check, shape, task_ids, completions, vmap_method="sequential")

    return verifier


def _solved(tasks: GymTasks, task_id: int, completion: str) -> bool:
    entry, score = tasks.entries[task_id], tasks.scores[tasks.level[task_id]]
    return any(_is_answer(score, answer, entry) for answer in answers_in(completion))


def _is_answer(
    score: Callable[[str, Mapping[str, Any]], float], answer: str, entry: Mapping[str, Any]
) -> bool:
    if answer == entry["answer"]:
        return True
    try:
        return float(score(answer, entry)) >= 1.0
    except (ValueError, ArithmeticError, SyntaxError, TypeError, IndexError, KeyError):
        return False  # several families parse an answer without looking at it first
    except Exception as error:
        raise VerifierError(
            f"the score of {entry['question']!r} failed on {answer!r}: {error}"
        ) from error
