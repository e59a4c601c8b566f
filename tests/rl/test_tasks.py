"""Generated problems have the right answers, and only those are accepted."""

from __future__ import annotations

import hashlib
import math

import jax.numpy as jnp
import numpy as np
import pytest

from bots_jax.rl import tasks
from bots_jax.rl.tasks import EOS, FAMILY_NAMES, PAD, TaskPool


def in_base(value: int, base: int) -> str:
    digits = ""
    while True:
        value, digit = divmod(value, base)
        digits = str(digit) + digits
        if not value:
            return digits


def solve(family: str, prompt: str) -> str:
    """The answer to a prompt as a person would work it out, in plain Python."""
    body = prompt[1:]
    if family in ("addition", "subtraction", "multiplication", "modular"):
        sign = {"addition": "+", "subtraction": "-", "multiplication": "*", "modular": "%"}[family]
        at = prompt.index(sign, 1)
        a, b = int(prompt[:at]), int(prompt[at + 1 :])
        compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "%": int.__mod__}
        return str(compute[sign](a, b))
    if family == "comparison":
        a, b = (int(part) for part in prompt.split("?"))
        return "<" if a < b else ">" if a > b else "="
    if family == "counting":
        wanted, digits = body.split(":")
        return str(digits.count(wanted))
    if family == "gcd":
        return str(math.gcd(*(int(part) for part in body.split(","))))
    if family == "base_conversion":
        value, base = (int(part) for part in body.split(","))
        return in_base(value, base)
    if family == "maximum":
        return max(body[i : i + 2] for i in range(0, len(body), 2))
    return {
        "sorting": "".join(sorted(body)),
        "reversal": body[::-1],
        "digit_sum": str(sum(int(digit) for digit in body)),
        "successor": "".join(str((int(digit) + 1) % 10) for digit in body),
    }[family]


@pytest.fixture(scope="module")
def pools() -> tuple[TaskPool, TaskPool]:
    return tasks.generate_tasks(2048, 512, seed=3)


def test_answers_are_right(pools: tuple[TaskPool, TaskPool]) -> None:
    for pool in pools:
        prompts, answers = tasks.decode(pool.prompts), tasks.decode(pool.answers)
        for family, prompt, answer in zip(np.asarray(pool.family), prompts, answers, strict=True):
            name = FAMILY_NAMES[family]
            assert answer == solve(name, prompt.rstrip("=")), (name, prompt)


def test_a_seed_names_the_same_pool_in_every_version(pools: tuple[TaskPool, TaskPool]) -> None:
    """Results, caches of warm-ups and references go by the seed of a pool."""
    train, held_out = pools
    texts = [*tasks.decode(train.prompts), *tasks.decode(train.answers)]
    texts += tasks.decode(held_out.prompts)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest[:16] == "be10260c1e547072"


def test_pools_are_distinct_reproducible_and_varied(pools: tuple[TaskPool, TaskPool]) -> None:
    train, held_out = pools
    prompts = tasks.decode(train.prompts)
    assert len(set(prompts)) == len(prompts) == 2048
    assert not set(prompts) & set(tasks.decode(held_out.prompts))
    again, _ = tasks.generate_tasks(2048, 512, seed=3)
    other, _ = tasks.generate_tasks(2048, 512, seed=4)
    np.testing.assert_array_equal(train.prompts, again.prompts)
    assert not np.array_equal(train.prompts, other.prompts)
    assert len(FAMILY_NAMES) >= 10
    assert np.bincount(np.asarray(train.family)).min() > 2048 // len(FAMILY_NAMES) - 2
    assert len(np.unique(np.asarray(train.size))) >= 8


def test_default_pool_is_as_large_as_promised() -> None:
    pool, held_out = tasks.generate_tasks()
    assert len(np.asarray(pool.prompts)) == 8192
    assert len(np.asarray(held_out.prompts)) == 1024
    warm = set(tasks.decode(tasks.generate_split("warmup", 4096).prompts))
    assert not warm & (set(tasks.decode(pool.prompts)) | set(tasks.decode(held_out.prompts)))


def completion(text: str, end: bool = True, after: int = PAD) -> np.ndarray:
    row = [*(np.frombuffer(text.encode(), np.uint8) - 32 + 3), *([EOS] if end else [])]
    return np.array(row + [after] * (8 - len(row)), np.int32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (completion("123"), 1),
        (completion("123", after=50), 1),  # what follows EOS does not count
        (completion("124"), 0),
        (completion("12"), 0),
        (completion("1234"), 0),
        (completion("123", end=False), 0),
        (completion(""), 0),
    ],
)
def test_verifier(given: np.ndarray, expected: int) -> None:
    answers = tasks.encode_answers(["7", "123"], 6)
    verifier = tasks.exact_verifier(answers)
    assert float(verifier(jnp.asarray([1]), jnp.asarray(given)[None, None])[0, 0]) == expected


def test_python_verifier_gets_strings_and_is_checked() -> None:
    prompts = tasks.encode_prompts(["ab", "c"])
    seen = []

    def reward(prompt: str, text: str) -> float:
        seen.append((prompt, text))
        return 0.5

    verifier = tasks.python_verifier(reward, prompts)
    rewards = verifier(jnp.asarray([1, -1]), jnp.asarray(completion("42"))[None, None].repeat(2, 0))
    np.testing.assert_array_equal(rewards, [[0.5], [0.0]])
    assert len(seen) == 1
    assert seen[0][0].startswith("c")
    assert seen[0][1] == "42"
    wrong = tasks.python_verifier(lambda prompt, text: 2.0, prompts)
    with pytest.raises(Exception, match=r"2\.0"):
        np.asarray(wrong(jnp.asarray([0]), jnp.asarray(completion("1"))[None, None]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_requests(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.generate_tasks(**arguments)


def test_more_tasks_than_there_are() -> None:
    with pytest.raises(ValueError, match="modular"):
        tasks.generate_split("train", 500, families=("modular",), max_size=1)


def test_text_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match="é"):
        tasks.encode_prompts(["caf\u00e9"])
