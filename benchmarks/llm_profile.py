"""What a step of a language model costs, part by part, and what share of plain products it reaches.

In core seconds (user and system time of the process), which a busy machine disturbs less than
the clock: reading the prompts, sampling, learning. `share` compares the floating-point operations
that a part's matrix products need with those that `jnp.dot` of the model's own shapes does in a
core second, alternating.

Run: python -m benchmarks.llm_profile [--before]     (needs the extra `llm` and its weights)
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import save
from benchmarks.llm import CONFIG
from bots_jax.rl.llm.finetune import LlmConfig, make_problem_tasks
from bots_jax.rl.llm.gguf_file import installed_weights
from bots_jax.rl.llm.weights import load_weights
from bots_jax.rl.loop import LoopConfig, init_loop, make_act, make_learn
from bots_jax.rl.policy import prefill
from bots_jax.rl.policy_gradient import GradientConfig
from bots_jax.types import Selection

# As the command was before: prompts of a chat, everything trained, four prompts at a time.
BEFORE = LlmConfig(
    weights="-", tasks="gym", max_prompt=112, batch_size=8, num_tasks=64, num_held_out=8,
    loop=LoopConfig(group_size=8, max_new_tokens=16,
                    gradient=GradientConfig(learning_rate=2e-6, chunk=4)),
)  # fmt: skip


def core_seconds(run: Callable[[], Any], times: int = 2) -> float:
    """Mean of some calls, the first left out."""
    jax.block_until_ready(run())
    begin = time.process_time()
    for _ in range(times):
        jax.block_until_ready(run())
    return (time.process_time() - begin) / times


def dot_rate(rows: int, width: int, out: int, dtype: str) -> float:
    """Operations in a core second of a plain matrix product."""
    x, w = jnp.ones((rows, width), dtype), jnp.ones((width, out), dtype)
    dot = jax.jit(jnp.dot)
    return 2 * rows * width * out / core_seconds(lambda: dot(x, w), 20)


def profile(config: LlmConfig, seconds_of_dot: bool = True) -> dict[str, Any]:
    """Core seconds, tokens and shares of a step."""
    config = dataclasses.replace(config, weights=str(installed_weights()))
    found = make_problem_tasks(config)
    loop = config.loop
    graphdef, params = load_weights(
        found.weights, max_prompt=config.max_prompt, max_answer=loop.max_new_tokens,
        dtype=config.dtype,
    )  # fmt: skip
    sizes = found.weights.config()
    prompts = jnp.asarray(found.pool.prompts)
    ids = jnp.asarray(np.random.default_rng(0).choice(len(prompts), config.batch_size, False))
    selection = Selection(ids, jnp.zeros(len(ids)), jnp.ones(len(ids), bool), ids)
    act = jax.jit(make_act(graphdef, prompts, found.verifier, loop))
    learn = jax.jit(make_learn(graphdef, loop))
    read = jax.jit(lambda p, rows: prefill(graphdef, p, rows, loop.group_size, loop.max_new_tokens))
    train = init_loop(params, None, loop, 0).train  # type: ignore[arg-type]
    seen = act(params, selection, jax.random.key(0))
    seconds = {
        "read": core_seconds(lambda: read(params, prompts[ids])),
        "act": core_seconds(lambda: act(params, selection, jax.random.key(0))),
        "learn": core_seconds(lambda: learn(train, selection, seen)),
    }
    seconds["sample"] = seconds["act"] - seconds["read"]
    columns = int(config.batch_size * (config.max_prompt - 1))
    tokens = config.batch_size * loop.group_size * loop.max_new_tokens
    drawn = config.batch_size * loop.group_size * int(jnp.max(seen.rollouts.lengths))
    inner = sizes.width * sizes.head_width * 2 * (sizes.heads + sizes.key_heads)
    layer = inner + 3 * sizes.width * sizes.mlp_width
    head = sizes.width * sizes.vocab_size
    mixed = jnp.mean((seen.rewards.min(1) < seen.rewards.max(1)).astype(jnp.float32))
    work = {  # operations of the matrix products by parameters, attention left out
        "read": 2 * columns * layer * sizes.depth,
        "sample": 2 * drawn * (layer * sizes.depth + head),
    }
    rate = dot_rate(config.batch_size * loop.group_size, sizes.width, sizes.mlp_width, config.dtype)
    return {
        "prompt_columns": config.max_prompt,
        "new_tokens": loop.max_new_tokens,
        "dtype": config.dtype,
        "upper_layers": loop.gradient.upper_layers or sizes.depth,
        "mixed_groups": float(mixed),
        "core_seconds": {**seconds, "step": seconds["act"] + seconds["learn"]},
        "generated": int(jnp.sum(seen.rollouts.lengths)),
        "room": tokens,
        "tokens_a_core_second": int(jnp.sum(seen.rollouts.lengths))
        / (seconds["act"] + seconds["learn"]),
        "dot_gflops": rate / 1e9,
        "share": {part: work[part] / seconds[part] / rate for part in work},
    }


def main() -> None:
    """Print and save a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="llm_profile", help="name of the JSON file")
    parser.add_argument("--sides", nargs="+", default=("before", "after", "after, bfloat16"))
    args = parser.parse_args()
    sides = {
        "before": BEFORE,
        "after": CONFIG,
        "after, all layers": _changed(upper_layers=0),
        "after, bfloat16": dataclasses.replace(CONFIG, dtype="bfloat16"),
    }
    rows = {}
    for name in args.sides:
        rows[name] = profile(sides[name])
        print(name, rows[name], flush=True)
    save(args.out, rows, ("flax",), threads=len(os.sched_getaffinity(0)))


def _changed(**changes: Any) -> LlmConfig:
    gradient = dataclasses.replace(CONFIG.loop.gradient, **changes)
    return dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, gradient=gradient))


if __name__ == "__main__":
    main()
