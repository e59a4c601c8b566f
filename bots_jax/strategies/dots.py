"""How hard all tasks are, told from the tries of a few by the similarity of their embeddings.

In: embeddings z of all tasks, and A anchor tasks tried m times with rates v. Out: the
success probability of every task,

    p_i = sigmoid(a logit(sum_j w_ij v_j) + b),   w_i = softmax_j(<W z_i, W z_j> / sqrt(D)),

and a selector that draws its batch by |p_i - p*|: the difficulty prediction of DOTS (arXiv
2506.05316), whose tries `oversampling.dots` makes. W, a and b are learned on the way: some
steps of Adam at each measurement on the binomial likelihood of the anchors, each predicted
from the others alone. The page `docs/strategies/extra_rollouts.md` has the departures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.compose import BeliefInfo, BeliefModel, Choice, compose, factory
from bots_jax.numerics.arithmetic import masked_mean
from bots_jax.numerics.random_bits import gumbel
from bots_jax.pool.reference import Reference, is_known
from bots_jax.pool.visits import StepEvidence
from bots_jax.strategies.counting import counting_settings, no_inference
from bots_jax.types import Array, ArrayLike, Belief, Selector, Settings, State

_LEAST_RATE = 1e-3  # of what the attention finds, so that its logit is finite
_APART = -1e9  # score of an anchor that is not to be looked at; finite, so no row is NaN
_TASKS_AT_ONCE = 8192  # rows of attention held at once
_CONCENTRATION = 2.0  # that of a uniform prior: of its certainty DOTS says nothing


class Attention(NamedTuple):
    """What is learned of how tasks resemble each other."""

    adapter: Array  # f[D, D]: W
    scale: Array  # f: a
    bias: Array  # f: b


class Learning(NamedTuple):
    """The attention, and what Adam remembers of its gradients."""

    attention: Attention
    optimizer: Any  # state of `optax.adam`


class Anchors(NamedTuple):
    """Tasks that were tried."""

    embeddings: Array  # f[A, D]
    successes: Array  # f[A], summed rewards
    known: Array  # bool[A], False on padding and where the tries told nothing
    trials: int  # m, of each; static


def unlearned(size: int, dtype: Any) -> Learning:
    """Plain similarity of embeddings of `size` D, taken at its word: W = 1, a = 1, b = 0."""
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    start = Attention(jnp.eye(size, dtype=dtype), one, zero)
    return Learning(start, _adam().init(start))


def _adam(rate: float = 0.0) -> Any:
    """Adam (Kingma & Ba 2015) with decays .9 and .99; the rate is no part of its state."""
    try:
        import optax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "dots learns by Adam from optax, which is missing: pip install 'bots-jax[rl]'",
            name=error.name,
        ) from error
    return optax.adam(rate, b1=0.9, b2=0.99, eps=1e-8)


def predicted_logits(attention: Attention, embeddings: Array, anchors: Anchors) -> Array:
    """Logits f[N] of the success probabilities of tasks with embeddings f[N, D]."""

    def one(embedding: Array) -> Array:
        return _logits(attention, embedding[None], anchors, anchors.known[None])[0]

    return lax.map(one, embeddings, batch_size=min(len(embeddings), _TASKS_AT_ONCE))


def _logits(attention: Attention, embeddings: Array, anchors: Anchors, seen: Array) -> Array:
    """f[N], of which row i looks at the anchors seen[i] of bool[N or 1, A]."""
    queries, keys = embeddings @ attention.adapter, anchors.embeddings @ attention.adapter
    scores = queries @ keys.T / keys.shape[1] ** 0.5
    weights = jax.nn.softmax(jnp.where(seen, scores, _APART), axis=1)
    rates = jnp.where(anchors.known, anchors.successes, 0) / anchors.trials
    rate = jnp.clip(weights @ rates, _LEAST_RATE, 1 - _LEAST_RATE)
    return attention.scale * jax.scipy.special.logit(rate) + attention.bias


def left_out_loss(attention: Attention, anchors: Anchors) -> Array:
    """Mean negative log-likelihood of a try, in nats; each anchor predicted from the others."""
    others = anchors.known[None, :] & ~jnp.eye(len(anchors.known), dtype=bool)
    logits = _logits(attention, anchors.embeddings, anchors, others)
    failures = anchors.trials - anchors.successes
    losses = anchors.successes * jax.nn.softplus(-logits) + failures * jax.nn.softplus(logits)
    return masked_mean(losses, anchors.known) / anchors.trials


def learn(learning: Learning, anchors: Anchors, steps: int, rate: float) -> Learning:
    """`steps` of Adam on `left_out_loss`, with a step size of `rate`."""
    anchors = anchors._replace(successes=jnp.where(anchors.known, anchors.successes, 0))
    adam = _adam(rate)

    def step(now: Learning, _: None) -> tuple[Learning, None]:
        gradient = jax.grad(left_out_loss)(now.attention, anchors)
        with jax.numpy_dtype_promotion("standard"):  # it takes powers of an i32 count
            change, optimizer = adam.update(gradient, now.optimizer)
        attention = jax.tree.map(jnp.add, now.attention, change)
        return Learning(attention, optimizer), None

    return lax.scan(step, learning, length=steps)[0]


# --- as a belief and a selector ------------------------------------------------------------


class Predicted(NamedTuple):
    """What is predicted of C tasks until the next measurement."""

    rate: Array  # f[C]; 1/2 before the first
    taken: Array  # bool[C], selected since the last one
    learning: Learning

    def restart(self, settings: Settings, rows: Array, active: Array) -> Predicted:
        """New tasks stand at 1/2 until the next measurement; rows >= C are dropped."""
        rate = self.rate.at[rows].set(0.5, mode="drop")
        return self._replace(rate=rate, taken=self.taken.at[rows].set(False, mode="drop"))


def features(reference: Reference) -> Array:
    """f[C, D]: the embeddings, or else the references' logits, standardised, 0 where unknown."""
    if reference.embeddings is not None:
        return reference.described().T
    rates = jnp.clip(reference.rates, 0.05, 0.95)  # a few tries of a reference tell no more
    logits, known = jax.scipy.special.logit(rates), is_known(reference.rates)
    count = jnp.maximum(jnp.sum(known, axis=1, keepdims=True, dtype=rates.dtype), 1)
    mean = jnp.sum(jnp.where(known, logits, 0), axis=1, keepdims=True) / count
    apart = jnp.where(known, logits - mean, 0)
    spread = jnp.sqrt(jnp.sum(apart**2, axis=1, keepdims=True) / count)
    return (apart / jnp.maximum(spread, _LEAST_RATE)).T


def measured(
    state: State, task_ids: Array, successes: Array, trials: int, steps: int, rate: float
) -> State:
    """The state after anchor tasks were tried: all tasks are predicted anew.

    Args:
      task_ids: i32[A], distinct; -1 is padding.
      successes: f[A], summed rewards of `trials` tries each; NaN where they told nothing.
      steps, rate: of `learn`, before the prediction.

    Anchors keep their own rate, (s + 1/2) / (m + 1), which is inside (0, 1).
    """
    embeddings, old = features(state.reference), state.belief
    known = (task_ids >= 0) & jnp.isfinite(successes)
    at = embeddings[jnp.maximum(task_ids, 0)]
    anchors = Anchors(at, successes.astype(old.rate.dtype), known, trials)
    learning = learn(old.learning, anchors, steps, rate)
    found = jax.nn.sigmoid(predicted_logits(learning.attention, embeddings, anchors))
    row = jnp.where(known, task_ids, len(found))
    found = found.at[row].set((anchors.successes + 0.5) / (trials + 1), mode="drop")
    return state._replace(belief=Predicted(found, jnp.zeros_like(old.taken), learning))


def taken(state: State, task_ids: Array) -> State:
    """The state after a batch i32[B] was selected: its tasks come last till the next measurement.

    A row of -1 is passed over.
    """
    old = state.belief
    row = jnp.where(task_ids >= 0, task_ids, len(old.taken))
    return state._replace(belief=old._replace(taken=old.taken.at[row].set(True, mode="drop")))


@factory
def predicted_selector(
    *, batch_size: int, rollouts: ArrayLike, target: ArrayLike, temperature: ArrayLike, static: Any
) -> Selector:
    """A selector that draws tasks with probability ~ exp(-|p_i - p*| / tau), none twice.

    Nothing is predicted before `measured`. `init` wants references, or embeddings f[D, N] in
    `reference.TaskFeatures`, of mean about 0 and variance about 1.

    Args:
      static: what a checkpoint must agree with.
    """
    return compose(
        name="dots",
        model=BeliefModel(_init, _fuse, _predict, _draw),
        choice=Choice(_score),
        settings=counting_settings(rollouts, target=target, temperature=temperature),
        batch_size=batch_size,
        obeys=("target", "temperature"),
        static=static,
    )


def _init(settings: Settings, reference: Reference, num_domains: int) -> Predicted:
    dtype, (models, capacity) = settings.target.dtype, reference.rates.shape
    size = models if reference.embeddings is None else reference.embeddings.shape[0]
    if not size:
        raise ValueError(
            "reference is None: dots tells tasks apart by embeddings or references: give "
            "init(TaskFeatures(None, embeddings)) or pass rates of reference models"
        )
    nobody = jnp.zeros((capacity,), bool)
    return Predicted(jnp.full((capacity,), 0.5, dtype), nobody, unlearned(size, dtype))


def _fuse(
    belief: Predicted, settings: Settings, reference: Reference, fused: StepEvidence
) -> tuple[Predicted, BeliefInfo]:
    return belief, no_inference(fused)


def _predict(state: State, rows: Any) -> Belief:
    rate = state.belief.rate[rows]
    return Belief(rate, jnp.full_like(rate, _CONCENTRATION))


def _draw(rng_key: Array, state: State) -> Array:
    rate: Array = state.belief.rate
    return rate


def _score(rng_key: Array, model: BeliefModel, state: State) -> tuple[Array, Array]:
    """Gumbel top-B of -|p - p*| / tau, times tau, so that tau = 0 takes the nearest."""
    belief, tau = state.belief, state.settings.temperature
    noise = gumbel(rng_key, belief.rate.shape, belief.rate.dtype)
    # Distances are below 1 and Gumbels that are ever drawn between -4 and 45.
    last = jnp.where(belief.taken, 1 + 50 * tau, 0)
    return jnp.abs(belief.rate - state.settings.target) - tau * noise + last, belief.rate
