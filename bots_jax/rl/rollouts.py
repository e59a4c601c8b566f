"""Sampling from the policy: G completions of each prompt, inside jit, with a KV cache.

In: parameters, prompts, a key. Out: `Rollouts`: tokens and the log-probability

    log pi(o_t | q, o_<t) of the distribution that o_t was drawn from, softmax(logits / T),

for every token up to and including EOS; what follows is PAD, masked.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from bots_jax.rl.policy import Cache, GraphDef, Params, extend, precise, prefill
from bots_jax.rl.policy_gradient import completion_logprobs
from bots_jax.rl.tasks import EOS, PAD, Verifier

Array = jax.Array


class Rollouts(NamedTuple):
    """G completions of each of B prompts, at most L tokens long."""

    tokens: Array  # i32[B, G, L], PAD after EOS
    logprobs: Array  # f[B, G, L], 0 where masked
    mask: Array  # bool[B, G, L], True up to and including EOS
    lengths: Array  # i32[B, G], tokens generated, EOS included


class PassRates(NamedTuple):
    """What rolling out over a pool came to."""

    successes: Array  # f[N], summed rewards of the rollouts of each task
    tokens: Array  # i32, tokens generated over the whole pool


class _Progress(NamedTuple):
    """State of the sampling loop after `step` tokens."""

    step: Array
    cache: Cache
    last: Array  # i32[B, G], the token to go on from
    done: Array  # bool[B, G], EOS has come
    tokens: Array
    logprobs: Array


def rollout(
    graphdef: GraphDef,
    params: Params,
    prompts: Array,
    rng_key: Array,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> Rollouts:
    """Sample `group_size` completions of each of prompts i32[B, P].

    Args:
      rng_key: consumed.
      group_size: G, static.
      max_new_tokens: L, static; a completion that has not ended by then stays open.
      temperature: static, >= 0; 0 is greedy, whose log-probabilities are those of T = 1.

    The loop stops when all have ended. That changes no result: step t draws from the key
    folded with t, and what comes after EOS is PAD anyway.
    """
    chex.assert_rank(prompts, 2)
    chex.assert_type(prompts, int)
    cache = prefill(graphdef, params, prompts, group_size, max_new_tokens)
    shape = (len(prompts), group_size)
    start = _Progress(
        step=jnp.zeros((), jnp.int32),
        cache=cache,
        last=jnp.broadcast_to(prompts[:, -1:], shape),
        done=jnp.zeros(shape, bool),
        tokens=jnp.full((*shape, max_new_tokens), PAD, jnp.int32),
        logprobs=jnp.zeros((*shape, max_new_tokens), precise(cache.keys[0].dtype)),
    )

    def unfinished(now: _Progress) -> Array:
        return (now.step < max_new_tokens) & ~jnp.all(now.done)

    def body(now: _Progress) -> _Progress:
        logits, cache = extend(graphdef, params, now.cache, now.last[..., None])
        key = jax.random.fold_in(rng_key, now.step)
        token, logprob = _draw(key, logits[..., 0, :], temperature)
        return _append(now._replace(cache=cache), token, logprob)

    end = jax.lax.while_loop(unfinished, body, start)
    return _finish(end.tokens, end.logprobs)


# Of the vocabulary, from which on one number is drawn for a token instead of one for each entry:
# at 49,152 entries that takes a fiftieth of the time on a CPU.
_MANY_TOKENS = 4096
_BLOCK = 256


def _draw(rng_key: Array, logits: Array, temperature: float) -> tuple[Array, Array]:
    """One token of each row and its log-probability."""
    logprobs = jax.nn.log_softmax(logits / temperature if temperature > 0 else logits)
    if temperature > 0 and logits.shape[-1] > _MANY_TOKENS:
        token = _invert(jax.random.uniform(rng_key, logprobs.shape[:-1]), logprobs)
    elif temperature > 0:
        token = jax.random.categorical(rng_key, logprobs).astype(jnp.int32)
    else:
        token = jnp.argmax(logprobs, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]


def _invert(uniform: Array, logprobs: Array) -> Array:
    """Tokens i32[...] where the distribution function of f[..., V] passes f[...] in [0, 1).

    In two steps, block by block and then in one block. Never one of probability 0.
    """
    empty = [(0, 0)] * (logprobs.ndim - 1) + [(0, -logprobs.shape[-1] % _BLOCK)]
    weights = jnp.pad(jnp.exp(logprobs), empty).reshape(*logprobs.shape[:-1], -1, _BLOCK)
    upto = jnp.cumsum(jnp.sum(weights, axis=-1), axis=-1)
    place = uniform * upto[..., -1]
    block = _passes(upto, place)
    before = jnp.take_along_axis(upto, jnp.maximum(block - 1, 0)[..., None], axis=-1)[..., 0]
    before = jnp.where(block > 0, before, 0.0)
    own = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    return block * _BLOCK + _passes(jnp.cumsum(own, axis=-1), place - before)


def _passes(upto: Array, place: Array) -> Array:
    """First index where sums f[..., K] exceed f[...]; by rounding perhaps the last that rises."""
    found = jnp.sum(upto <= place[..., None], axis=-1, dtype=jnp.int32)
    last = jnp.argmax(upto, axis=-1).astype(jnp.int32)  # the first of the largest
    return jnp.minimum(found, last)


def _append(now: _Progress, token: Array, logprob: Array) -> _Progress:
    token = jnp.where(now.done, PAD, token)
    logprob = jnp.where(now.done, 0.0, logprob)
    return now._replace(
        step=now.step + 1,
        last=token,
        done=now.done | (token == EOS),
        tokens=now.tokens.at[..., now.step].set(token),
        logprobs=now.logprobs.at[..., now.step].set(logprob),
    )


def _finish(tokens: Array, logprobs: Array) -> Rollouts:
    """The mask: everything before or at the first EOS."""
    ended = jnp.cumsum(tokens == EOS, axis=-1, dtype=jnp.int32)
    mask = (ended == 0) | ((ended == 1) & (tokens == EOS))
    return Rollouts(tokens, logprobs, mask, jnp.sum(mask, axis=-1, dtype=jnp.int32))


def pass_rates(
    graphdef: GraphDef,
    params: Params,
    prompts: Array,
    verifier: Verifier,
    rng_key: Array,
    *,
    rollouts: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    chunk: int = 128,
) -> PassRates:
    """Roll out on a whole pool i32[N, P], `chunk` tasks at a time, in one compiled loop.

    Args:
      rng_key: consumed.
      rollouts: of each task; successes are between 0 and this.
      chunk: tasks at a time; the last chunk is filled up with repeats that do not count.
    """
    num_tasks = len(prompts)
    chunk = min(chunk, num_tasks)
    chunks = -(-num_tasks // chunk)
    ids = jnp.arange(chunks * chunk, dtype=jnp.int32).reshape(chunks, chunk)

    def one(args: tuple[Array, Array]) -> tuple[Array, Array]:
        index, rows = args
        rows_in = jnp.minimum(rows, num_tasks - 1)
        found = rollout(
            graphdef, params, prompts[rows_in], jax.random.fold_in(rng_key, index),
            group_size=rollouts, max_new_tokens=max_new_tokens, temperature=temperature,
        )  # fmt: skip
        counts = jnp.where((rows < num_tasks)[:, None], found.lengths, 0)
        return jnp.sum(verifier(rows_in, found.tokens), axis=-1), jnp.sum(counts)

    index = jnp.arange(chunks, dtype=jnp.int32)
    successes, tokens = jax.lax.map(one, (index, ids))
    return PassRates(successes.reshape(-1)[:num_tasks], jnp.sum(tokens))


def answer_probabilities(
    graphdef: GraphDef, params: Params, prompts: Array, answers: Array, *, chunk: int = 256
) -> Array:
    """The pass rate of each task under exact match, f[N]: the chance of its one right answer.

        P(answer | prompt) = prod over t of pi(a_t | prompt, a_<t),    EOS included

    That is what `pass_rates` estimates from rollouts at temperature 1, without their noise, for
    one pass of the policy instead of `rollouts` sampled completions.

    Args:
      prompts: i32[N, P]. answers: i32[N, A] ending in EOS, PAD after it; without EOS the rate is 0.
      chunk: tasks at a time.
    """

    def one(rows: tuple[Array, Array]) -> Array:
        prompt, answer = rows
        found = completion_logprobs(graphdef, params, prompt, answer[:, None])[:, 0]
        total = jnp.sum(jnp.where(answer != PAD, found, 0.0), axis=-1)
        return jnp.where(jnp.any(answer == EOS, axis=-1), jnp.exp(total), 0.0)

    num_tasks = len(prompts)
    chunk = min(chunk, num_tasks)
    chunks = -(-num_tasks // chunk)
    rows = jnp.minimum(jnp.arange(chunks * chunk), num_tasks - 1).reshape(chunks, chunk)
    rates = jax.lax.map(lambda index: one((prompts[index], answers[index])), rows)
    return rates.reshape(-1)[:num_tasks]
