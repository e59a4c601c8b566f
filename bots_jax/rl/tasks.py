"""Verifiable tasks as arrays: made from a seed, encoded as characters, checked on device.

In: a seed and sizes. Out: a `TaskPool` of token arrays, and the check of completions

    reward(answer, completion) = 1 if completion agrees up to and including EOS, else 0.

A prompt is one line of printable ASCII that ends in "=", its answer is what comes after. The
families and their sizes are in `FAMILIES`. No prompt is ever in two splits: a hash of the
prompt itself decides whether it may be trained on, held out or used to warm up, so pools of
any seeds and sizes can be combined without a leak.

All randomness is drawn through `PCG64.random_raw` and `SeedSequence`, whose streams NumPy
keeps stable over versions (NEP 19); the methods of `Generator` carry no such promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Ints = NDArray[np.int64]
Chars = NDArray[np.uint8]  # ASCII codes, 0 where there is no character
Verifier = Callable[[Array, Array], Array]  # (task_ids [B], completions [B, G, L]) -> [B, G]

PAD, BOS, EOS = 0, 1, 2
FIRST_CHAR = 32  # the space; its token comes after the specials
NUM_SPECIAL = 3
VOCAB_SIZE = NUM_SPECIAL + 95  # printable ASCII, space to tilde

PROMPT_LENGTH = 18  # columns that hold every generated prompt, BOS included
ANSWER_LENGTH = 10  # columns that hold every generated answer, EOS included


class VerifierError(ValueError):
    """A user's verifier failed, or returned what is no reward."""


class TaskPool(NamedTuple):
    """N tasks with known answers."""

    prompts: ArrayLike  # i32[N, P] BOS and characters, PAD on the left
    answers: ArrayLike  # i32[N, A] characters and EOS, PAD on the right
    family: ArrayLike  # i32[N] index into FAMILY_NAMES
    size: ArrayLike  # i32[N] size of the problem, from 1


# --- characters ---------------------------------------------------------------------------


def encode_prompts(prompts: Sequence[str], length: int | None = None) -> NDArray[np.int32]:
    """Strings -> i32[N, length]: BOS, characters, PAD on the left.

    Raises:
      ValueError: on a character outside printable ASCII, or a prompt longer than `length` - 1.
    """
    return _prompt_tokens(_string_chars("prompt", prompts), length)


def encode_answers(answers: Sequence[str], length: int | None = None) -> NDArray[np.int32]:
    """Strings -> i32[N, length]: characters, EOS, PAD on the right. Raises like the prompts."""
    return _answer_tokens(_string_chars("answer", answers), length)


def decode(tokens: ArrayLike) -> list[str]:
    """i32[N, T] -> N strings: the characters up to the first EOS, without specials.

    Tokens that are no character show as "?" when they come before EOS, except PAD and BOS,
    which show as nothing on the left of a prompt and as "?" inside a text.
    """
    rows = np.atleast_2d(np.asarray(tokens))
    return [_decode_row(row) for row in rows]


def _decode_row(row: NDArray[Any]) -> str:
    ended = np.flatnonzero(row == EOS)
    row = row[: ended[0]] if ended.size else row[: np.flatnonzero(row != PAD).max(initial=-1) + 1]
    row = row[np.argmax(row != PAD) :] if (row != PAD).any() else row[:0]
    row = row[1:] if row.size and row[0] == BOS else row
    in_range = (row >= NUM_SPECIAL) & (row < VOCAB_SIZE)
    codes = np.where(in_range, row - NUM_SPECIAL + FIRST_CHAR, ord("?"))
    return bytes(codes.astype(np.uint8)).decode("ascii")


def _string_chars(what: str, strings: Sequence[str]) -> Chars:
    """Strings -> ASCII codes [N, W], 0 after the end."""
    for index, string in enumerate(strings):
        if not all(FIRST_CHAR <= ord(char) <= 126 for char in string):
            raise ValueError(
                f"{what} {index} is {string!r}, which holds characters other than printable "
                "ASCII (space to ~); rewrite it with those, on one line"
            )
    width = max((len(string) for string in strings), default=0)
    padded = "".join(string.ljust(width, "\0") for string in strings)
    return np.frombuffer(padded.encode("ascii"), np.uint8).reshape(len(strings), width)


def _prompt_tokens(chars: Chars, length: int | None = None) -> NDArray[np.int32]:
    bos = np.full((len(chars), 1), BOS, np.int32)
    return _fit("prompt", np.hstack([bos, _char_tokens(chars)]), length, left=True)


def _answer_tokens(chars: Chars, length: int | None = None) -> NDArray[np.int32]:
    eos = np.full((len(chars), 1), EOS, np.int32)
    return _fit("answer", np.hstack([_char_tokens(chars), eos]), length, left=False)


def _char_tokens(chars: Chars) -> NDArray[np.int32]:
    tokens = chars.astype(np.int32) - FIRST_CHAR + NUM_SPECIAL
    return np.where(chars == 0, PAD, tokens)


def _fit(what: str, tokens: NDArray[np.int32], length: int | None, left: bool) -> NDArray[np.int32]:
    """Close the gaps of each row and bring it to `length` columns, padding on one side."""
    used = (tokens != PAD).sum(axis=1)
    needed = int(used.max(initial=1))
    length = needed if length is None else length
    if needed > length:
        raise ValueError(
            f"length={length} is too short: {what} {int(used.argmax())} takes {needed} tokens; "
            f"give length >= {needed} or drop the longest"
        )
    empty = np.full((len(tokens), length), PAD, np.int32)
    tokens = np.hstack([empty, tokens] if left else [tokens, empty])
    # A stable sort moves the blanks to one side and keeps the order of the rest.
    order = np.argsort((tokens != PAD) == left, axis=1, kind="stable")
    tokens = np.take_along_axis(tokens, order, axis=1)
    return tokens[:, -length:] if left else tokens[:, :length]


# --- checking -----------------------------------------------------------------------------


def verify(answers: ArrayLike, completions: ArrayLike) -> Array:
    """Exact match: f32[...], 1 where a completion equals the answer up to and including EOS.

    Args:
      answers: i32[..., A] ending in EOS, PAD after it. A row without EOS matches nothing.
      completions: i32[..., L]; the leading axes broadcast. What follows EOS does not count.
    """
    answers, completions = jnp.asarray(answers), jnp.asarray(completions)
    shared = min(answers.shape[-1], completions.shape[-1])
    needed = answers[..., :shared] != PAD
    agree = (answers[..., :shared] == completions[..., :shared]) | ~needed
    ends = jnp.any(answers[..., :shared] == EOS, axis=-1)
    return (ends & jnp.all(agree, axis=-1)).astype(jnp.float32)


def exact_verifier(answers: ArrayLike) -> Verifier:
    """Verifier of a pool with known answers i32[N, A], jittable.

    Invalid ids (-1) are checked against some row; the caller masks them.
    """
    answers = jnp.asarray(answers)

    def verifier(task_ids: Array, completions: Array) -> Array:
        return verify(answers[task_ids][:, None, :], completions)

    return verifier


def python_verifier(fn: Callable[[str, str], float], prompts: ArrayLike) -> Verifier:
    """Verifier from a plain Python function, called on the host for each completion.

    Args:
      fn: (prompt, completion) -> reward in [0, 1]. It must not call JAX.
      prompts: i32[N, P] of the pool; its strings are what `fn` gets.

    Raises (when run, wrapped by JAX): VerifierError where `fn` raises, or returns no number
      in [0, 1].
    """
    texts = decode(prompts)

    def check(task_ids: Any, completions: Any) -> NDArray[np.float32]:
        ids, tokens = np.asarray(task_ids), np.asarray(completions)
        groups = (decode(group) for group in tokens)
        rewards = [
            [_checked_reward(fn, texts[task_id], text) for text in group] if task_id >= 0
            else [0.0] * tokens.shape[1]
            for task_id, group in zip(ids, groups, strict=True)
        ]  # fmt: skip
        return np.asarray(rewards, np.float32).reshape(tokens.shape[:2])

    def verifier(task_ids: Array, completions: Array) -> Array:
        shape = jax.ShapeDtypeStruct(completions.shape[:2], jnp.float32)
        return jax.pure_callback(check, shape, task_ids, completions, vmap_method="sequential")

    return verifier


def _checked_reward(fn: Callable[[str, str], float], prompt: str, completion: str) -> float:
    about = f"for prompt {prompt!r} and completion {completion!r}"
    try:
        reward = fn(prompt, completion)
    except Exception as error:  # any code of a user's
        told = f"the verifier raised {type(error).__name__}: {error}"
        raise VerifierError(f"{told} {about}") from error
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise VerifierError(
            f"the verifier returned {reward!r} {about}; it must return a number in [0, 1]"
        )
    return number


# --- random numbers and character fields --------------------------------------------------


def _uniform(bits: np.random.PCG64, low: Ints | int, high: Ints | int, shape: Any) -> Ints:
    """Integers in [low, high), elementwise; from 53 raw bits each, stable over versions."""
    raw = bits.random_raw(shape) >> np.uint64(11)
    span = np.asarray(high) - np.asarray(low)
    return np.asarray(low) + np.floor(raw * 2.0**-53 * span).astype(np.int64)


def _number_of(bits: np.random.PCG64, digits: Ints) -> Ints:
    """A number with exactly so many decimal digits, 0 to 9 for one digit."""
    low = np.where(digits == 1, 0, 10 ** (digits - 1))
    return _uniform(bits, low, 10**digits, digits.shape)


def _number_below(bits: np.random.PCG64, start: float, growth: float, sizes: Ints) -> Ints:
    """A number in [1, start * growth^(size - 1)]."""
    bound = np.floor(start * growth ** (sizes - 1)).astype(np.int64)
    return _uniform(bits, 1, bound + 1, sizes.shape)


def _text(values: Ints, base: Ints | int = 10) -> Chars:
    """Integers -> their digits in `base` (2 to 10), "-" before negatives: [n, W], blanks left."""
    base = np.broadcast_to(base, values.shape).astype(np.int64)
    rest = np.abs(values)
    columns: list[Ints] = []
    while not columns or rest.any():  # one turn a digit
        blank = (rest == 0) & bool(columns)
        columns.append(np.where(blank, 0, ord("0") + rest % base))
        rest = rest // base
    columns.append(np.where(values < 0, ord("-"), 0))
    return np.stack(columns[::-1], axis=1).astype(np.uint8)


def _mark(char: str, like: Ints) -> Chars:
    """The same character(s) in every row: [n, len(char)]."""
    return np.tile(np.frombuffer(char.encode("ascii"), np.uint8), (len(like), 1))


def _random_chars(bits: np.random.PCG64, first: str, count: int, sizes: Ints) -> Chars:
    """`size` characters out of the `count` from `first` on: [n, max size], blanks right."""
    width = int(sizes.max(initial=1))
    chars = ord(first) + _uniform(bits, 0, count, (len(sizes), width))
    return np.where(np.arange(width) < sizes[:, None], chars, 0).astype(np.uint8)


# --- families: (bits, sizes i64[n]) -> (prompt chars [n, *] without "=", answer chars [n, *]) ---

Problem = tuple[Chars, Chars]


def _addition(bits: np.random.PCG64, sizes: Ints) -> Problem:
    a, b = _number_of(bits, sizes), _number_of(bits, sizes)
    return np.hstack([_text(a), _mark("+", a), _text(b)]), _text(a + b)


def _subtraction(bits: np.random.PCG64, sizes: Ints) -> Problem:
    a, b = _number_of(bits, sizes), _number_of(bits, sizes)
    return np.hstack([_text(a), _mark("-", a), _text(b)]), _text(a - b)


def _multiplication(bits: np.random.PCG64, sizes: Ints) -> Problem:
    a, b = _number_of(bits, sizes), _uniform(bits, 2, 10 + sizes, sizes.shape)
    return np.hstack([_text(a), _mark("*", a), _text(b)]), _text(a * b)


def _modular(bits: np.random.PCG64, sizes: Ints) -> Problem:
    a, b = _number_of(bits, sizes), _uniform(bits, 2, 11, sizes.shape)
    return np.hstack([_text(a), _mark("%", a), _text(b)]), _text(a % b)


def _comparison(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """Half of the pairs differ in one digit at most, so that the first digit does not tell."""
    a, b = _number_of(bits, sizes), _number_of(bits, sizes)
    place = 10 ** _uniform(bits, 0, sizes, sizes.shape)
    near = a - a // place % 10 * place + _uniform(bits, 0, 10, sizes.shape) * place
    b = np.where(_uniform(bits, 0, 2, sizes.shape) == 1, near, b)
    sign = np.select([a < b, a > b], [ord("<"), ord(">")], ord("="))
    return np.hstack([_text(a), _mark("?", a), _text(b)]), sign[:, None].astype(np.uint8)


def _sorting(bits: np.random.PCG64, sizes: Ints) -> Problem:
    digits = _random_chars(bits, "0", 10, sizes)
    return np.hstack([_mark("s", sizes), digits]), np.sort(digits, axis=1)


def _reversal(bits: np.random.PCG64, sizes: Ints) -> Problem:
    digits = _random_chars(bits, "0", 10, sizes)
    return np.hstack([_mark("r", sizes), digits]), digits[:, ::-1]


def _counting(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """How often the digit before the colon occurs after it; from four digits, so it does."""
    digits, wanted = _random_chars(bits, "1", 4, sizes), _uniform(bits, 1, 5, sizes.shape)
    count = (digits == (ord("0") + wanted)[:, None]).sum(axis=1)
    prompt = [_mark("c", sizes), _text(wanted), _mark(":", sizes), digits]
    return np.hstack(prompt), _text(count)


def _gcd(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """A common factor is built in, else almost every answer were 1."""
    factor = _uniform(bits, 1, 3 + sizes, sizes.shape)
    a, b = (_number_below(bits, 9, 1.5, sizes) * factor for _ in range(2))
    return np.hstack([_mark("g", a), _text(a), _mark(",", a), _text(b)]), _text(np.gcd(a, b))


def _base_conversion(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """Base 2 to 9; from 512 on not 2, so that nine digits are enough."""
    value, base = _number_below(bits, 9, 1.7, sizes), _uniform(bits, 2, 10, sizes.shape)
    base = np.where(value >= 512, np.maximum(base, 3), base)
    prompt = [_mark("b", value), _text(value), _mark(",", value), _text(base)]
    return np.hstack(prompt), _text(value, base)


def _maximum(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """The largest of `size` + 1 numbers of two digits, written without separators."""
    pairs = _uniform(bits, 10, 100, (len(sizes), int(sizes.max(initial=1)) + 1))
    pairs = np.where(np.arange(pairs.shape[1]) <= sizes[:, None], pairs, 0)
    tens, units = pairs // 10, pairs % 10
    digits = np.stack([tens, units], axis=2).reshape(len(sizes), -1) + ord("0")
    digits = np.where(np.repeat(pairs > 0, 2, axis=1), digits, 0).astype(np.uint8)
    return np.hstack([_mark("m", sizes), digits]), _text(pairs.max(axis=1))


def _digit_sum(bits: np.random.PCG64, sizes: Ints) -> Problem:
    digits = _random_chars(bits, "0", 10, sizes)
    total = np.where(digits > 0, digits.astype(np.int64) - ord("0"), 0).sum(axis=1)
    return np.hstack([_mark("d", sizes), digits]), _text(total)


def _successor(bits: np.random.PCG64, sizes: Ints) -> Problem:
    """Each digit one up, 9 to 0, in the order given."""
    digits = _random_chars(bits, "0", 10, sizes)
    moved = (digits.astype(np.int64) - ord("0") + 1) % 10 + ord("0")
    answer = np.where(digits > 0, moved, 0).astype(np.uint8)
    return np.hstack([_mark("n", sizes), digits]), answer


class Family(NamedTuple):
    """A kind of problem: its sizes run from 1 to `max_size`, easy to hard."""

    name: str
    make: Callable[[np.random.PCG64, Ints], Problem]
    max_size: int


FAMILIES = (
    Family("addition", _addition, 6),
    Family("subtraction", _subtraction, 6),
    Family("multiplication", _multiplication, 6),
    Family("modular", _modular, 9),
    Family("comparison", _comparison, 7),
    Family("sorting", _sorting, 9),
    Family("reversal", _reversal, 9),
    Family("counting", _counting, 12),
    Family("gcd", _gcd, 12),
    Family("base_conversion", _base_conversion, 12),
    Family("maximum", _maximum, 6),
    Family("digit_sum", _digit_sum, 12),
    Family("successor", _successor, 9),
)
FAMILY_NAMES = tuple(family.name for family in FAMILIES)

# --- pools --------------------------------------------------------------------------------

SPLITS = {"train": range(0, 8), "held_out": range(8, 10), "warmup": range(10, 16)}  # of 16


def generate_tasks(
    num_tasks: int = 8192, num_held_out: int = 1024, seed: int = 0
) -> tuple[TaskPool, TaskPool]:
    """The pool to train on and the held-out pool: alike in distribution, no prompt in common.

    Raises:
      ValueError: where a family cannot make so many distinct prompts.
    """
    return generate_split("train", num_tasks, seed), generate_split("held_out", num_held_out, seed)


def generate_split(
    split: str,
    num_tasks: int,
    seed: int = 0,
    families: Sequence[str] = FAMILY_NAMES,
    max_size: int = 12,
) -> TaskPool:
    """Distinct tasks of one split, in equal shares of the families, in random order.

    Args:
      split: "train", "held_out" or "warmup"; a prompt belongs to one of them for ever.
      num_tasks: N > 0.
      seed: >= 0; the same arguments always give the same arrays.
      families: names out of FAMILY_NAMES.
      max_size: sizes run from 1 to this, or to the family's own largest if that is less.

    Returns:
      TaskPool of prompts i32[N, 18] and answers i32[N, 10], as NumPy arrays.

    Raises:
      ValueError: on an unknown name, a number out of range, or more tasks than there are.
    """
    _check_request(split, num_tasks, seed, families, max_size)
    shares = even_shares(num_tasks, len(families))
    pools = [
        _family_tasks(FAMILY_NAMES.index(name), share, split, seed, max_size)
        for name, share in zip(families, shares, strict=True)
    ]
    joined = TaskPool(*(np.concatenate(columns) for columns in zip(*pools, strict=True)))
    shuffle = np.random.PCG64(np.random.SeedSequence([seed, len(FAMILIES)]))
    order = np.argsort(shuffle.random_raw(num_tasks), kind="stable")
    return TaskPool(*(np.asarray(column)[order] for column in joined))


def even_shares(total: int, parts: int) -> list[int]:
    """Whole numbers that sum to `total` and differ by at most 1."""
    shares: list[int] = np.diff(np.arange(parts + 1) * total // parts).tolist()
    return shares


def _check_request(
    split: str, num_tasks: int, seed: int, families: Sequence[str], max_size: int
) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    unknown = [name for name in families if name not in FAMILY_NAMES]
    if unknown or not families or len(set(families)) < len(families):
        raise ValueError(
            f"families={list(families)} must be distinct names out of {', '.join(FAMILY_NAMES)}"
        )
    for name, value, least in (("num_tasks", num_tasks, 1), ("max_size", max_size, 1),
                               ("seed", seed, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def _family_tasks(index: int, count: int, split: str, seed: int, max_size: int) -> TaskPool:
    """`count` distinct tasks of one family. Draws more at each turn until there are enough."""
    family, before = FAMILIES[index], 0
    for turn in range(6):
        bits = np.random.PCG64(np.random.SeedSequence([seed, index, list(SPLITS).index(split)]))
        draws = 64 + count * len(SPLITS) * 4**turn * 2
        pool = _candidates(family, index, bits, draws, min(max_size, family.max_size))
        keep = _first_of_each(np.asarray(pool.prompts), split)
        if len(keep) >= count:
            return TaskPool(*(np.asarray(column)[keep[:count]] for column in pool))
        if len(keep) < 1.2 * before:
            break  # four times the draws found next to nothing new
        before = len(keep)
    raise ValueError(
        f"num_tasks is too large: the family {family.name} has about {len(keep)} distinct "
        f"prompts for split {split!r} with max_size={max_size}, and {count} are asked for; ask "
        "for fewer tasks, more families or larger sizes"
    )


def _candidates(
    family: Family, index: int, bits: np.random.PCG64, count: int, max_size: int
) -> TaskPool:
    sizes = _uniform(bits, 1, max_size + 1, (count,))
    prompt, answer = family.make(bits, sizes)
    prompts = _prompt_tokens(np.hstack([prompt, _mark("=", sizes)]), PROMPT_LENGTH)
    answers = _answer_tokens(answer, ANSWER_LENGTH)
    return TaskPool(prompts, answers, np.full(count, index, np.int32), sizes.astype(np.int32))


def _first_of_each(prompts: NDArray[np.int32], split: str) -> Ints:
    """Rows of the first occurrence of each prompt that belongs to the split, in order."""
    bucket = _hash(prompts) >> np.uint64(60)
    mine = np.flatnonzero(np.isin(bucket, np.asarray(SPLITS[split], np.uint64)))
    _, first = np.unique(prompts[mine].astype(np.uint8), axis=0, return_index=True)
    return mine[np.sort(first)]


def _hash(prompts: NDArray[np.int32]) -> NDArray[np.uint64]:
    """64-bit hash of each row, PAD on the left ignored (FNV-1a over tokens, then a mixer)."""
    value = np.full(len(prompts), 0xCBF29CE484222325, np.uint64)
    for column in prompts.T.astype(np.uint64):
        step = (value ^ column) * np.uint64(0x100000001B3)
        value = np.where(column == PAD, value, step)
    value = (value ^ (value >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return value ^ (value >> np.uint64(29))
