"""Tasks of a simulated pool: how often a policy of given skills solves each of them.

In: a key, task ids, the skills of the policy. Out: success probabilities and the pass
rates of two reference models. Everything about task k is a function of (key, k), made
when it is asked for: a world of 1e7 tasks takes no memory. With skills theta f[D],

    p_k(t) = (1 - slip(t)) sigmoid(w_k . theta(t) - b_k + e_k(t) + x_k(t))

    w_k   loadings, E_d^q / sum E^q with E_d ~ Exp(1): which skills the task needs
    b_k   difficulty, a normal with one standard deviation above and one below its middle;
          a share of the tasks is beyond any policy (wrong labels), and a share is guessed: these
          need no skill and teach none (w_k = 0, b_k = 0)
    e_k   what was learned of this very task (`learning.py`)
    slip  share of rollouts that fail on any task (a wrong format, a slip of the pen),
          slip_0 exp(-f mean theta): training on anything lowers it
    x_k   drift, sum over J waves of sigma sqrt(-2 log U / J) cos(nu t + 2 pi V), nu ~
          Cauchy(1 / tau): N(0, sigma^2) at any time, over the tasks with the
          autocorrelation exp(-lag / tau) of an Ornstein-Uhlenbeck process, without a state

The weak reference is the untrained policy at step 0. The strong one has the skill
theta_strong throughout, another sampling temperature (a factor) and a taste of its own:

    strong_k = (1 - slip_strong) sigmoid(c (theta_strong - b_k) + y_k),  y_k ~ N(0, sigma_y^2)
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri

from bots_jax.numerics.random_bits import open_uniform
from bots_jax.types import Array, Number

WAVES = 2  # J
_CHUNK = 8192  # tasks made at a time, so that what is in between stays in the cache
_MOST_ATTEMPTS = 200  # beyond, the smallest probability of a count leaves float32


class Config(NamedTuple):
    """The numbers of the model: free to be traced and vmapped. Logits, if not said otherwise."""

    difficulty: Number  # middle of b
    difficulty_above: Number  # standard deviation of b above its middle
    difficulty_below: Number  # and below
    unsolvable: Number  # share of tasks that no policy ever solves, such as wrong labels
    focus: Number  # q >= 0; 0: each task needs all skills alike, large: a single one
    speed: Number  # f[D], growth of a skill a step if every group taught at full strength
    ceiling: Number  # > 0, the skill at which growth ends
    skill_forgetting: Number  # share of each skill lost a step
    skill_noise: Number  # standard deviation of a skill's random step
    absorption: Number  # share in [0, 1] of a task used up by one full-strength visit
    recovery: Number  # steps in which a used-up task recovers by a factor e
    own_gain: Number  # e of a task that is used up
    slip: Number  # slip_0, a probability
    slip_learning: Number  # f, by which factor e^-f a mean skill of 1 lowers it
    drift: Number  # sigma
    drift_time: Number  # tau, steps
    strong_skill: Number  # theta_strong
    strong_scale: Number  # c
    strong_taste: Number  # sigma_y
    strong_slip: Number  # slip_strong, a probability
    guessed: Number = 0.0  # share of tasks that are guessed half of the time, whatever was learned


class World(NamedTuple):
    """A pool without end: a key and the numbers."""

    key: Array
    config: Config


class Tasks(NamedTuple):
    """What never changes of M tasks."""

    loadings: Array  # f[M, D], rows sum to 1
    difficulty: Array  # f[M]
    amplitude: Array  # f[M, J] of the waves
    frequency: Array  # f[M, J], radians a step
    phase: Array  # f[M, J], radians
    taste: Array  # f[M], y


def calibrated() -> Config:
    """The numbers fitted to a recorded GRPO run; `docs/simulator.md` tells how."""
    text = resources.files("bots_jax.simulator").joinpath("calibrated.json").read_text()
    return as_config(json.loads(text)["config"])


def as_config(numbers: Any) -> Config:
    """A `Config` of float32 arrays from a mapping or a `Config` of anything like them.

    Raises:
      ValueError: naming a field that is unknown, missing or of the wrong shape.
    """
    given = numbers._asdict() if isinstance(numbers, Config) else dict(numbers)
    given = {**Config._field_defaults, **given}
    if set(given) != set(Config._fields):
        wrong = sorted(set(given) ^ set(Config._fields))
        raise ValueError(f"config: {wrong[0]!r} is unknown or missing; give {Config._fields}")
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
    for name, array in arrays.items():
        if array.ndim != (name == "speed") or not array.size:
            shape = "[D], one a skill" if name == "speed" else "(), a scalar"
            raise ValueError(f"config.{name} has shape {array.shape}, expected {shape}")
    return Config(**arrays)


def describe_tasks(world: World, task_ids: Array) -> Tasks:
    """The fixed properties of i32[M] tasks."""
    skills = world.config.speed.shape[0]
    describing_key, _ = jax.random.split(world.key)

    def uniforms(task_id: Array) -> Array:
        task_key = jax.random.fold_in(describing_key, task_id)
        bits = jax.random.bits(task_key, (skills + 3 + 3 * WAVES,))
        return open_uniform(bits, jnp.float32)

    u = jax.vmap(uniforms)(task_ids)
    waves = u[:, skills + 3 :].reshape(-1, 3, WAVES)
    place, config = u[:, skills + 2], world.config
    guessed = (place >= config.unsolvable) & (place < config.unsolvable + config.guessed)
    difficulty = _difficulty(ndtri(u[:, skills]), place, config)
    scale = world.config.drift * jnp.sqrt(1.0 / WAVES)
    return Tasks(
        loadings=jnp.where(guessed[:, None], 0, _loadings(u[:, :skills], config.focus)),
        difficulty=jnp.where(guessed, 0, difficulty),
        amplitude=scale * jnp.sqrt(-2 * jnp.log(waves[:, 0])),
        frequency=jnp.tan(jnp.pi * (waves[:, 1] - 0.5)) / world.config.drift_time,
        phase=2 * jnp.pi * waves[:, 2],
        taste=jnp.where(guessed, 0, config.strong_taste * ndtri(u[:, skills + 1])),
    )


def _loadings(uniforms: Array, focus: Array) -> Array:
    return jax.nn.softmax(focus * jnp.log(-jnp.log(uniforms)), axis=-1)


_BEYOND = 100.0  # logits


def _difficulty(normal: Array, uniform: Array, config: Config) -> Array:
    spread = jnp.where(normal > 0, config.difficulty_above, config.difficulty_below)
    difficulty = config.difficulty + spread * normal
    return jnp.where(uniform < config.unsolvable, _BEYOND, difficulty)


def rates_of(tasks: Tasks, config: Config, skills: Array, own: Array, step: Array) -> Array:
    """f[M] success probabilities.

    Args:
      skills: f[D], theta. own: f[M], e. step: f, t >= 0; before any training it is 0.
    """
    # Whole turns are dropped first: float32 cosines of large angles are noise.
    turns = tasks.frequency * step / (2 * jnp.pi)
    angle = 2 * jnp.pi * (turns - jnp.round(turns)) + tasks.phase
    drift = jnp.sum(tasks.amplitude * jnp.cos(angle), axis=-1)
    logits = tasks.loadings @ skills - tasks.difficulty + own + drift
    slip = jnp.clip(config.slip * jnp.exp(-config.slip_learning * jnp.mean(skills)), 0, 1)
    return (1 - slip) * jax.nn.sigmoid(logits)


def success_rate(world: World, task_ids: Array, skills: Array, own: Array, step: Array) -> Array:
    """f[M] success probabilities; see `rates_of` for the arguments."""
    return rates_of(describe_tasks(world, task_ids), world.config, skills, own, step)


def make_references(world: World, num_tasks: int, attempts: tuple[int, int]) -> tuple[Array, Array]:
    """Measured pass rates f[2, N] of the weak and the strong model, and i32[N] main skills.

    Args:
      attempts: of each task by the weak and the strong model, in [1, 200].
    """
    for count in attempts:
        if not 1 <= count <= _MOST_ATTEMPTS:
            raise ValueError(f"attempts={attempts} must lie in [1, {_MOST_ATTEMPTS}]")
    chunk = min(_CHUNK, num_tasks)
    starts = jnp.arange(-(-num_tasks // chunk), dtype=jnp.int32) * chunk

    def some(start: Array) -> tuple[Array, Array]:
        ids = start + jnp.arange(chunk, dtype=jnp.int32)
        return _reference_rates(world, ids, attempts)

    rates, domain = lax.map(some, starts)
    rates = jnp.moveaxis(rates, 1, 0).reshape(2, -1)[:, :num_tasks]
    return rates, domain.ravel()[:num_tasks]


def _reference_rates(world: World, ids: Array, attempts: tuple[int, int]) -> tuple[Array, Array]:
    tasks, config = describe_tasks(world, ids), world.config
    skills, zero = jnp.zeros_like(config.speed), jnp.zeros(ids.shape)
    weak = rates_of(tasks, config, skills, zero, jnp.zeros(()))
    logits = config.strong_scale * (config.strong_skill - tasks.difficulty) + tasks.taste
    strong = (1 - config.strong_slip) * jax.nn.sigmoid(logits)
    _, measuring_key = jax.random.split(world.key)
    keys = jax.vmap(lambda k: jax.random.fold_in(measuring_key, k))(ids)
    u = jax.vmap(lambda key: open_uniform(jax.random.bits(key, (2,)), jnp.float32))(keys)
    measured = [
        binomial(u[:, i], rates, count) / count
        for i, (rates, count) in enumerate(zip((weak, strong), attempts, strict=True))
    ]
    return jnp.stack(measured), jnp.argmax(tasks.loadings, axis=-1).astype(jnp.int32)


def binomial(uniform: Array, rate: Array, trials: int) -> Array:
    """f[M] counts of `trials`, by inversion: the number of values below which u lies.

    The rarer outcome is counted and all probabilities carry a factor e^60, so that the
    first, at least 2^-trials, does not underflow.
    """
    rare = jnp.minimum(rate, 1 - rate)
    odds, scaled = rare / (1 - rare), uniform * jnp.exp(jnp.float32(60))
    first = jnp.exp(trials * jnp.log1p(-rare) + 60)
    before = jnp.arange(trials, dtype=jnp.float32)

    def count(carry: tuple[Array, Array, Array], ratio: Array) -> tuple[Any, None]:
        term, total, counted = carry
        term = term * odds * ratio
        return (term, total + term, counted + (scaled > total).astype(jnp.float32)), None

    start = (first, first, jnp.zeros_like(rate))
    counted = lax.scan(count, start, (trials - before) / (before + 1))[0][2]
    return jnp.where(rate > 0.5, trials - counted, counted)
