"""The policy gradient: rewards of G completions a prompt -> one AdamW step of the policy.

In: a `Batch` of rollouts and their rewards. Out: new parameters and `Metrics`. The loss is

    L = - sum_{i,t} w_it [min(r_it A_i, clip(r_it, 1 - e, 1 + e') A_i) - b D_it],

with r_it = pi(o_it) / pi_old(o_it) the ratio of token t in completion i, A_i the advantage of
the completion in its group, D the divergence from the base policy, and w the weights that
average over tokens, completions and prompts. Four published settings:

=========  =============================================  =================================
estimator  advantage A_i                                  w_it, within a group
=========  =============================================  =================================
grpo       (R_i - mean R) / std R                         1 / (G |o_i|)
dr_grpo    R_i - mean R                                   1 / (G L)
rloo       R_i - mean of the other R_j                    1 / (G L)
maxrl      (R_i - mean R) / mean R                        1 / (G |o_i|)
=========  =============================================  =================================

GRPO: Shao et al., arXiv 2402.03300, eq. 3. Dr. GRPO: Liu et al., arXiv 2503.20783, sec. 3.2.
RLOO: Ahmadian et al., arXiv 2402.14740, eq. 8 (times 1 / L, which AdamW does not notice).
MaxRL: Tajwar et al., arXiv 2602.02710: the gradient of log p instead of p, as far as G rollouts
tell, by which what is rarely solved counts more. Rewards must not be negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from bots_jax.numerics.arithmetic import differ
from bots_jax.rl.policy import GraphDef, Params, extend, prefill

Array = jax.Array
Estimator = Literal["grpo", "rloo", "dr_grpo", "maxrl"]


@dataclasses.dataclass(frozen=True)
class GradientConfig:
    """Settings of the policy gradient, static.

    Raises:
      ValueError: where a setting is out of range.
    """

    estimator: Estimator = "grpo"
    learning_rate: float = 5e-4
    lr_warmup: int = 5  # steps over which the learning rate rises to its value
    lr_decay: int = 0  # steps after which it has fallen to 0, in a line; 0: it stays
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    clip_low: float = 0.2  # e: ratios are clipped to [1 - e, 1 + e']
    clip_high: float = 0.2  # e'
    kl_weight: float = 0.0  # b; above 0 the batch must carry `base_logprobs`
    chunk: int = 0  # prompts differentiated at a time, to save memory; 0: all at once
    mixed_chunk: int = 0  # mixed groups differentiated at a time, the rest skipped; 0: no skipping
    upper_layers: int = 0  # so many of the last layers are trained, and no others; 0: everything

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise ValueError(
                f"estimator={self.estimator!r} is unknown; use one of {get_args(Estimator)}"
            )
        for name in ("lr_warmup", "lr_decay", "weight_decay", "kl_weight", "clip_high", "chunk",
                     "mixed_chunk", "upper_layers"):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least 0")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and above 0")
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low} must be in [0, 1]")
        if 0 < self.lr_decay <= self.lr_warmup:
            raise ValueError(
                f"lr_decay={self.lr_decay} must be above lr_warmup={self.lr_warmup}, or 0 for a "
                "constant rate"
            )
        if self.mixed_chunk and (self.kl_weight or self.chunk):
            raise ValueError(
                f"mixed_chunk={self.mixed_chunk} skips groups: with kl_weight={self.kl_weight} "
                f"every group has a gradient, and chunk={self.chunk} takes all; set those to 0"
            )


class TrainState(NamedTuple):
    """What training changes."""

    params: Params
    opt_state: Any
    step: Array  # i32, gradient steps taken


class Batch(NamedTuple):
    """One step's experience."""

    prompts: Array  # i32[B, P]
    tokens: Array  # i32[B, G, L]
    mask: Array  # bool[B, G, L], tokens that count
    logprobs: Array  # f[B, G, L] under the policy that drew them
    rewards: Array  # f[B, G]
    valid: Array  # bool[B]; False: the prompt contributes nothing
    base_logprobs: Array | None = None  # f[B, G, L] under the base policy, for the KL term


class Metrics(NamedTuple):
    """Scalars of one gradient step."""

    loss: Array
    grad_norm: Array  # before clipping
    kl: Array  # mean divergence from the base policy a token; 0 without one
    clip_fraction: Array  # share of tokens whose ratio is outside the clip range


def make_optimizer(config: GradientConfig) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW at `rate_schedule`."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(rate_schedule(config), weight_decay=config.weight_decay),
    )


def rate_schedule(config: GradientConfig) -> optax.Schedule:
    """Learning rate by step: a linear rise, then constant, or a linear fall to 0 at `lr_decay`."""
    peak, rise = config.learning_rate, config.lr_warmup
    up = optax.linear_schedule(peak / (rise + 1), peak, rise)
    if config.lr_decay == 0:
        return up
    down = optax.linear_schedule(peak, 0.0, config.lr_decay - rise)
    return optax.join_schedules([up, down], [rise])


def init_train_state(params: Params, config: GradientConfig) -> TrainState:
    """Step 0: parameters as given, a fresh optimizer."""
    opt_state = make_optimizer(config).init(trained(params, config))
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32))


def trained(params: Params, config: GradientConfig) -> Params:
    """Those of the parameters that are trained: all, or the upper layers and the last norm.

    What is below them is not differentiated, which on a CPU is most of a step's time.

    Raises:
      ValueError: if there are not so many layers.
    """
    if config.upper_layers == 0:
        return params
    layers = params["layers"]
    if config.upper_layers > len(layers):
        raise ValueError(
            f"upper_layers={config.upper_layers} is more than the model's {len(layers)} layers; "
            "give fewer, or 0 to train everything"
        )
    upper = sorted(layers)[-config.upper_layers :]
    return {"layers": {i: layers[i] for i in upper}, "final_norm": params["final_norm"]}


def _replaced(params: Params, part: Params, config: GradientConfig) -> Params:
    """The parameters with their trained part in its place."""
    if config.upper_layers == 0:
        return part
    return {**params, **part, "layers": {**params["layers"], **part["layers"]}}


def completion_logprobs(
    graphdef: GraphDef,
    params: Params,
    prompts: Array,
    tokens: Array,
    temperature: float = 1.0,
    chunk: int = 0,
) -> Array:
    """log pi(o_t | q, o_<t), f[B, G, L], of completions i32[B, G, L] of prompts i32[B, P].

    Args:
      chunk: prompts at a time, static; 0 for all at once. A gradient then keeps what lies
        between input and output of one chunk only, and computes it a second time.
    """

    def some(args: tuple[Array, Array]) -> Array:
        return _completion_logprobs(graphdef, params, *args, temperature)

    if chunk == 0 or chunk >= len(prompts):
        return some((prompts, tokens))
    one = jax.checkpoint(lambda args: some((args[0][None], args[1][None]))[0])
    return jax.lax.map(one, (prompts, tokens), batch_size=chunk if chunk > 1 else None)


def _completion_logprobs(
    graphdef: GraphDef, params: Params, prompts: Array, tokens: Array, temperature: float
) -> Array:
    group, length = tokens.shape[1:]
    cache = prefill(graphdef, params, prompts, group, length)
    first = jnp.broadcast_to(prompts[:, None, -1:], (*tokens.shape[:2], 1))
    inputs = jnp.concatenate([first, tokens[..., :-1]], axis=-1)
    logits, _ = extend(graphdef, params, cache, inputs)
    logprobs = jax.nn.log_softmax(logits / temperature if temperature > 0 else logits)
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def advantages(rewards: Array, estimator: Estimator) -> Array:
    """A f[B, G] of rewards f[B, G]; exactly 0 where a group's rewards are all equal.

    grpo: eq. after eq. 3 of 2402.03300; the standard deviation divides by G. dr_grpo: the
    same without it (2503.20783). rloo: eq. 8 of 2402.14740, which is G / (G - 1) dr_grpo.
    maxrl: by the mean in place of the standard deviation (2602.02710).
    """
    group = rewards.shape[-1]
    mixed = differ(rewards)[..., None]
    # The mean of equal numbers can differ from them by rounding, so 0 is set, not computed.
    mean = jnp.mean(rewards, axis=-1, keepdims=True)
    centred = jnp.where(mixed, rewards - mean, 0.0)
    if estimator == "dr_grpo":
        return centred
    if estimator == "rloo":
        return centred * (group / max(group - 1, 1))
    if estimator == "maxrl":
        return centred / jnp.where(mixed, mean, 1.0)
    spread = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True))
    return centred / jnp.where(mixed, spread, 1.0)


def token_weights(mask: Array, valid: Array, estimator: Estimator) -> Array:
    """w f[B, G, L]: the average over valid prompts, completions and tokens; see the table."""
    counted = mask & valid[:, None, None]
    prompts = jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
    lengths = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(jnp.float32)
    per_completion = lengths if estimator in ("grpo", "maxrl") else jnp.float32(mask.shape[-1])
    return jnp.where(counted, 1.0 / (prompts * mask.shape[1] * per_completion), 0.0)


def surrogate(logprobs: Array, batch: Batch, config: GradientConfig) -> tuple[Array, Metrics]:
    """The loss of the module docstring, from log-probabilities f[B, G, L] of the policy now.

    Raises:
      AssertionError: while it is traced, where shapes differ. Rewards f[1, G] would broadcast, and
        train every group on those of one.

    D is the estimator k3, exp(d) - d - 1 with d = log pi_base - log pi (2402.03300, eq. 4).
    Masked tokens are replaced before the exponential, so that their gradient is 0, not NaN.
    """
    _check_shapes(logprobs, batch)
    weights = token_weights(batch.mask, batch.valid, config.estimator)
    counted = weights > 0
    ratio = jnp.exp(jnp.where(counted, logprobs - batch.logprobs, 0.0))
    clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
    gain = advantages(batch.rewards, config.estimator)[..., None]
    gain = jnp.minimum(ratio * gain, clipped * gain)
    tokens = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32)
    divergence = _divergence(logprobs, batch, counted, config)
    loss = -jnp.sum(weights * (gain - config.kl_weight * divergence))
    zero = jnp.zeros((), loss.dtype)
    outside = jnp.sum(counted & (ratio != clipped)) / tokens
    return loss, Metrics(loss, zero, jnp.sum(divergence) / tokens, outside)


def _check_shapes(logprobs: Array, batch: Batch) -> None:
    """What is given once a token, a completion or a prompt, where all of it is traced."""
    chex.assert_rank(batch.tokens, 3)
    of_tokens = [logprobs, batch.tokens, batch.mask, batch.logprobs]
    if batch.base_logprobs is not None:
        of_tokens.append(batch.base_logprobs)
    chex.assert_equal_shape(of_tokens)
    chex.assert_shape(batch.rewards, batch.tokens.shape[:2])
    chex.assert_shape(batch.valid, batch.tokens.shape[:1])


def _divergence(logprobs: Array, batch: Batch, counted: Array, config: GradientConfig) -> Array:
    if batch.base_logprobs is None:
        if config.kl_weight > 0:
            raise ValueError(
                f"kl_weight={config.kl_weight} needs base_logprobs in the batch; give them or "
                "set kl_weight=0"
            )
        return jnp.zeros_like(logprobs)
    gap = jnp.where(counted, batch.base_logprobs - logprobs, 0.0)
    return jnp.exp(gap) - gap - 1.0


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: GraphDef, config: GradientConfig, temperature: float = 1.0
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)`, pure; jit it alone or inside a loop.

    Args:
      temperature: that the rollouts were drawn at, so that the ratio compares like with like.
    """
    optimizer = make_optimizer(config)

    def gradient(params: Params, batch: Batch) -> tuple[Metrics, Params]:
        """Of the trained parameters."""

        def loss(part: Params, batch: Batch) -> tuple[Array, Metrics]:
            now = completion_logprobs(
                graphdef, _replaced(params, part, config), batch.prompts, batch.tokens,
                temperature, config.chunk,
            )  # fmt: skip
            return surrogate(now, batch, config)

        part = trained(params, config)
        if config.mixed_chunk and config.mixed_chunk < len(batch.prompts):
            return _mixed_gradient(loss, part, batch, config)
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(part, batch)
        return metrics, grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        metrics, grads = gradient(state.params, batch)
        part = trained(state.params, config)
        updates, opt_state = optimizer.update(grads, state.opt_state, part)
        params = _replaced(state.params, optax.apply_updates(part, updates), config)
        metrics = metrics._replace(grad_norm=optax.tree.norm(grads))
        return TrainState(params, opt_state, state.step + 1), metrics

    return train_step


def _mixed_gradient(
    loss: Callable[[Params, Batch], tuple[Array, Metrics]],
    params: Params,
    batch: Batch,
    config: GradientConfig,
) -> tuple[Metrics, Params]:
    """The gradient of `loss`, from the groups that have one: `mixed_chunk` of them at a time.

    Groups whose rewards are all equal have advantage 0, so they add nothing but time. The loss
    of a chunk averages over its own prompts; its share of the batch corrects that.
    """
    chunk, total = config.mixed_chunk, len(batch.prompts)
    mixed = batch.valid & differ(batch.rewards)
    count = jnp.sum(mixed, dtype=jnp.int32)
    order = jnp.argsort(~mixed, stable=True)
    order = jnp.pad(order, (0, -total % chunk))
    valid = jnp.maximum(jnp.sum(batch.valid), 1).astype(batch.logprobs.dtype)

    def add(carry: tuple[Array, Metrics, Params]) -> tuple[Array, Metrics, Params]:
        start, metrics, grads = carry
        rows = jax.lax.dynamic_slice_in_dim(order, start, chunk)
        kept = start + jnp.arange(chunk) < count
        part: Batch = jax.tree.map(lambda column: column[rows], batch)._replace(valid=kept)
        (_, own), found = jax.value_and_grad(loss, has_aux=True)(params, part)
        share = jnp.sum(kept) / valid
        metrics = jax.tree.map(lambda sum_, new: sum_ + share * new, metrics, own)
        grads = jax.tree.map(lambda sum_, new: sum_ + share.astype(new.dtype) * new, grads, found)
        return start + chunk, metrics, grads

    zero = jnp.zeros((), batch.logprobs.dtype)
    nothing = Metrics(*(zero for _ in Metrics._fields))
    start = (jnp.zeros((), jnp.int32), nothing, jax.tree.map(jnp.zeros_like, params))
    _, metrics, grads = jax.lax.while_loop(lambda carry: carry[0] < count, add, start)
    return metrics, grads
