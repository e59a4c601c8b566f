"""Text to tokens and back, by the vocabulary that comes with a model's weights.

In: strings. Out: rows of tokens as the loop wants them: prompts padded on the left,
completions read up to their end; with the chat template of the model.

The loop knows two tokens by number, `tasks.PAD` and `tasks.EOS`. A model's own change places
with those (`token_order`), in the vocabulary here and in the embedding that `load_weights`
loads. SmolLM2 has them there already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bots_jax.rl.llm.weights import Weights, token_order
from bots_jax.rl.tasks import EOS, PAD


class Tokenizer:
    """The tokenizer of a file or folder of weights.

    Raises:
      ValueError: if it is of a kind that is not implemented.
    """

    def __init__(self, file: Weights) -> None:
        self.path = file.path
        found = file.vocabulary()
        self._model, self._template = found.model, found.template
        order = token_order(found, file.path)
        self._theirs, self._ours = order, np.argsort(order)
        self._special = {  # what templates may name
            "bos_token": "" if found.start is None else found.names[found.start],
            "eos_token": found.names[found.end],
        }

    def encode(self, text: str) -> NDArray[np.int32]:
        """Text, in which names of special tokens count as those, to i32[T]."""
        ids = self._model.encode(text, add_special_tokens=False).ids
        return self._ours[np.asarray(ids, np.int64)].astype(np.int32)

    def decode(self, tokens: ArrayLike) -> str:
        """i32[T] to text: what comes before the first EOS, without special tokens."""
        row = np.asarray(tokens)
        ended = np.flatnonzero(row == EOS)
        row = row[: ended[0]] if ended.size else row
        text: str = self._model.decode(self._theirs[row].tolist(), skip_special_tokens=True)
        return text

    def chat(
        self, user: str, system: str | None = None, examples: Sequence[tuple[str, str]] = ()
    ) -> str:
        """The prompt that asks the model to answer `user`, by the file's template.

        Args:
          system: how to answer; None for what the template says.
          examples: questions and answers, shown as if they had been said before.
        """
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self._template is None:
            raise ValueError(f"{self.path} has no chat template: write the prompt yourself")
        turns = [turn for example in examples for turn in example]
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": text} for i, text in enumerate([*turns, user])]
        if system is not None:
            said.insert(0, {"role": "system", "content": system})
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        text: str = environment.from_string(self._template).render(
            messages=said, add_generation_prompt=True, **self._special
        )
        return text

    def pad(self, rows: Sequence[NDArray[np.int32]], length: int) -> NDArray[np.int32]:
        """Prompts i32[T] each -> i32[N, length], PAD on the left.

        Raises:
          ValueError: if one is longer.
        """
        longest = max((len(row) for row in rows), default=0)
        if longest > length:
            raise ValueError(
                f"max_prompt={length} is too short: a prompt takes {longest} tokens; raise it or "
                "choose shorter tasks"
            )
        padded = np.full((len(rows), length), PAD, np.int32)
        for place, row in zip(padded, rows, strict=True):
            place[length - len(row) :] = row
        return padded
