"""The tasks of a file as the arrays that a policy is trained on.

In: a `TaskFile`. Out: a `FilePool` of token arrays, domains and references.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bots_jax.evaluate.task_files import TaskFile, place_of, shown
from bots_jax.rl.tasks import PAD, TaskPool, encode_answers, encode_prompts


class FilePool(NamedTuple):
    """The tasks of a file as arrays, with what a selector wants to know of them."""

    pool: TaskPool  # family is the index into `domain_names`; size is 0, being unknown
    domain_names: tuple[str, ...]  # D, sorted; one entry, "all", where the file has none
    reference: npt.NDArray[np.float32] | None  # [K, N]


def to_pool(tasks: TaskFile, max_prompt_tokens: int, max_answer_tokens: int) -> FilePool:
    """Token arrays of the tasks of a file.

    Args:
      tasks: from `read_tasks`. Without answers, every row of `pool.answers` is empty and
        nothing matches it: give the loop a verifier (`tasks.python_verifier`).
      max_prompt_tokens: P, columns of the prompts, one of them for BOS.
      max_answer_tokens: A, columns of the answers, one of them for EOS.

    Raises:
      ValueError: naming the file, the row and the text, where a text is too long or holds
        a character outside the vocabulary, printable ASCII.
    """
    size = len(tasks.prompts)
    _check_texts(tasks, "prompt", tasks.prompts, max_prompt_tokens)
    answers = np.full((size, max_answer_tokens), PAD, np.int32)
    if tasks.answers is not None:
        _check_texts(tasks, "answer", tasks.answers, max_answer_tokens)
        answers = encode_answers(tasks.answers, max_answer_tokens)
    names = tuple(sorted(set(tasks.domains or ["all"])))
    codes = {name: code for code, name in enumerate(names)}
    family = [codes[domain] for domain in tasks.domains or ["all"] * size]
    pool = TaskPool(
        prompts=encode_prompts(tasks.prompts, max_prompt_tokens),
        answers=answers,
        family=np.array(family, np.int32),
        size=np.zeros(size, np.int32),
    )
    return FilePool(pool, names, tasks.reference)


def _check_texts(tasks: TaskFile, name: str, texts: list[str], limit: int) -> None:
    for i, text in enumerate(texts):
        place = f"{place_of(Path(tasks.path), i)}, column {name!r}"
        foreign = next((char for char in text if not " " <= char <= "~"), None)
        if foreign is not None:
            raise ValueError(
                f"{place}: {shown(text)} holds {foreign!r}, and the vocabulary is printable "
                f"ASCII (space to ~); replace that character or leave the task out"
            )
        if len(text) + 1 > limit:
            raise ValueError(
                f"{place}: {shown(text)} takes {len(text) + 1} tokens, more than "
                f"max_{name}_tokens={limit}; raise that or leave the task out"
            )
