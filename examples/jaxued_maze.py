"""jaxued's maze with a selector of bots_jax in place of its LevelSampler: one compiled scan.

    pip install bots-jax jaxued six flax optax
    python examples/jaxued_maze.py --updates 192 --method auto --told way

(jaxued 0.0.1 of PyPI calls jax.tree_map, which newer versions of jax no longer have: it is put
back below. jaxued's repository has 0.0.2, which does without.)

A pool of random 7 x 7 mazes of which a share can be solved at all; a recurrent PPO student; each
update plays 64 levels for 48 steps, a level a slot, replayed when an episode ends. What selects
levels is marked with ###; everything else is what any training loop has.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jaxued.environments import Maze
from jaxued.environments.maze import make_level_generator
from jaxued.linen import ResetRNN
from jaxued.wrappers import AutoReplayWrapper

import bots_jax
from bots_jax import levels as bots_levels

if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree.map  # type: ignore[attr-defined]

SIZE, MAX_STEPS, NUM_ACTIONS = 7, 24, 3  # left, right, forward; the rest does nothing in a maze
SLOTS, WINDOW = 64, 48
EPISODES = WINDOW // MAX_STEPS  # as many as always fit
HIDDEN = 32
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE, EPOCHS = 0.995, 0.98, 0.2, 1e-3, 0.5, 5

maze = Maze(max_height=SIZE, max_width=SIZE, agent_view_size=5)
train_env = AutoReplayWrapper(maze)
params_of_env = maze.default_params.replace(max_steps_in_episode=MAX_STEPS)


# --- levels ---------------------------------------------------------------------------------


def flood(level: Any) -> jax.Array:
    """bool[SIZE ** 2 - 1, SIZE, SIZE]: the cells within 1, 2, ... steps of the start."""
    start = jnp.zeros((SIZE, SIZE), bool).at[level.agent_pos[1], level.agent_pos[0]].set(True)

    def grow(reached: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        padded = jnp.pad(reached, 1)
        near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        reached = (reached | near) & ~level.wall_map
        return reached, reached

    return jax.lax.scan(grow, start, None, length=SIZE**2 - 1)[1]


def distance(level: Any) -> jax.Array:
    """Steps from start to goal, turns not counted; SIZE ** 2 where there is no way."""
    arrived = flood(level)[:, level.goal_pos[1], level.goal_pos[0]]
    return jnp.sum(~arrived) + 1


def shortest_way(level: Any) -> jax.Array:
    """f[2]: whether there is a way from start to goal, and its steps; 0 where there is none."""
    steps = distance(level)
    there_is = steps < SIZE**2 - 1
    return jnp.stack([there_is, jnp.where(there_is, steps, 0)]).astype(jnp.float32)


def make_pool(key: jax.Array, size: int, solvable: float, walls: int = 25) -> tuple[Any, jax.Array]:
    """`size` mazes of which a share can be solved, in random order, and bool[size]: which."""
    generate = jax.vmap(make_level_generator(SIZE, SIZE, walls))
    make_key, order_key = jax.random.split(key)
    levels = generate(jax.random.split(make_key, 6 * size))
    can = jax.vmap(distance)(levels) < SIZE**2 - 1
    wanted = round(solvable * size)
    # the first `wanted` that can be solved, and the first of those that cannot
    rank = jnp.where(can, jnp.cumsum(can) - 1, wanted + jnp.cumsum(~can) - 1)
    fits = jnp.where(can, rank < wanted, rank < size)
    at = (
        jnp.zeros((size,), jnp.int32)
        .at[jnp.where(fits, rank, size)]
        .set(jnp.arange(6 * size), mode="drop")
    )
    at = jax.random.permutation(order_key, at)
    return jax.tree.map(lambda x: x[at], levels), can[at]


# --- the student and PPO --------------------------------------------------------------------


class Student(nn.Module):
    """A 3 x 3 convolution of 16 channels, an LSTM and two heads."""

    @nn.compact
    def __call__(self, inputs: tuple[Any, jax.Array], hidden: Any) -> Any:
        """Memory, log probabilities f[T, S, 3] and values f[T, S]."""
        obs, dones = inputs
        view = obs.image.astype(jnp.float32)
        patches = [view[..., i : i + 3, j : j + 3, :] for i in range(3) for j in range(3)]
        seen = jnp.stack(patches, -4).reshape(*view.shape[:-3], 9, -1)
        seen = nn.relu(nn.Dense(16)(seen)).reshape(*view.shape[:-3], -1)
        facing = nn.Dense(5)(jax.nn.one_hot(obs.agent_dir, 4))
        cell = nn.OptimizedLSTMCell(features=HIDDEN)
        hidden, out = ResetRNN(cell)(
            (jnp.concatenate([seen, facing], -1), dones), initial_carry=hidden
        )
        actor = nn.relu(nn.Dense(32, kernel_init=nn.initializers.orthogonal(2))(out))
        logits = nn.Dense(NUM_ACTIONS, kernel_init=nn.initializers.orthogonal(0.01))(actor)
        critic = nn.relu(nn.Dense(32, kernel_init=nn.initializers.orthogonal(2))(out))
        return hidden, jax.nn.log_softmax(logits), nn.Dense(1)(critic)[..., 0]


def start_hidden(slots: int) -> Any:
    """The memory of the student before an episode."""
    return nn.OptimizedLSTMCell(HIDDEN).initialize_carry(jax.random.key(0), (slots, HIDDEN))


def new_student(key: jax.Array, updates: int, rate: float = 3e-3) -> TrainState:
    """Fresh parameters; the learning rate decays to nothing within the run."""
    level = make_level_generator(SIZE, SIZE, 5)(key)
    obs, _ = maze.reset_to_level(key, level, params_of_env)
    one = jax.tree.map(lambda x: jnp.asarray(x)[None, None], (obs, jnp.zeros((), bool)))
    weights = Student().init(key, one, start_hidden(1))
    schedule = optax.linear_schedule(rate, 0.0, updates * EPOCHS)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    return TrainState.create(apply_fn=Student().apply, params=weights, tx=optimizer)


class Window(NamedTuple):
    """What T steps in S slots brought; every field [T, S, ...]."""

    obs: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def play(
    key: jax.Array,
    env: Any,
    student: TrainState,
    levels: Any,
    steps: int,
    params: Any = params_of_env,
) -> tuple[Window, jax.Array]:
    """Roll the student out, one level a slot; and f[S], the value after the last step."""
    slots = jax.tree.leaves(levels)[0].shape[0]
    reset_key, key = jax.random.split(key)
    reset = jax.vmap(env.reset_to_level, (0, 0, None))
    obs, state = reset(jax.random.split(reset_key, slots), levels, params)

    def act(hidden: Any, obs: Any, done: jax.Array) -> Any:
        inputs = jax.tree.map(lambda x: x[None], (obs, done))
        hidden, logs, value = student.apply_fn(student.params, inputs, hidden)
        return hidden, logs[0], value[0]

    def step(carry: Any, key: jax.Array) -> Any:
        hidden, obs, state, done = carry
        act_key, env_key = jax.random.split(key)
        hidden, logs, value = act(hidden, obs, done)
        action = jax.random.categorical(act_key, logs)
        log_prob = jnp.take_along_axis(logs, action[:, None], 1)[:, 0]
        next_obs, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(env_key, slots), state, action, params
        )
        seen = Window(obs, action, log_prob, value, reward, done)
        return (hidden, next_obs, state, done), seen

    begin = (start_hidden(slots), obs, state, jnp.zeros((slots,), bool))
    (hidden, obs, _, done), window = jax.lax.scan(step, begin, jax.random.split(key, steps))
    return window, act(hidden, obs, done)[2]


def advantages_of(window: Window, last_value: jax.Array) -> jax.Array:
    """Generalised advantage estimation, f[T, S]."""

    def back(carry: Any, now: Any) -> Any:
        ahead, next_value = carry
        value, reward, done = now
        error = reward + GAMMA * next_value * ~done - value
        ahead = error + GAMMA * GAE_LAMBDA * ~done * ahead
        return (ahead, value), ahead

    begin = (jnp.zeros_like(last_value), last_value)
    steps = (window.value, window.reward, window.done)
    return jax.lax.scan(back, begin, steps, reverse=True)[1]


def learn(student: TrainState, window: Window, advantage: jax.Array) -> TrainState:
    """PPO's epochs over one window, as a single batch."""
    target = advantage + window.value
    fresh = jnp.roll(window.done, 1, 0).at[0].set(False)
    normal = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
    hidden = start_hidden(window.done.shape[1])

    def loss(weights: Any) -> jax.Array:
        _, logs, value = student.apply_fn(weights, (window.obs, fresh), hidden)
        log_prob = jnp.take_along_axis(logs, window.action[..., None], -1)[..., 0]
        ratio = jnp.exp(log_prob - window.log_prob)
        gain = jnp.minimum(ratio * normal, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * normal)
        near = window.value + jnp.clip(value - window.value, -CLIP, CLIP)
        miss = jnp.maximum((value - target) ** 2, (near - target) ** 2)
        entropy = -jnp.sum(jnp.exp(logs) * logs, -1)
        return jnp.mean(-gain + VALUE * 0.5 * miss - ENTROPY * entropy)

    def epoch(student: TrainState, _: None) -> tuple[TrainState, None]:
        return student.apply_gradients(grads=jax.grad(loss)(student.params)), None

    return jax.lax.scan(epoch, student, None, EPOCHS)[0]


def solve_rate(
    key: jax.Array,
    student: TrainState,
    levels: Any,
    env: Any = train_env,
    params: Any = params_of_env,
) -> jax.Array:
    """Share of levels whose first episode is solved."""
    window, _ = play(key, env, student, levels, params.max_steps_in_episode, params)
    first = jnp.cumsum(window.done, 0) - window.done == 0
    return jnp.mean(jnp.any(first & (window.reward > 0), 0))


# --- training -------------------------------------------------------------------------------


def train(
    selector: bots_jax.Selector,
    key: jax.Array,
    state: bots_jax.State,
    pool: Any,
    held_out: Any,
    updates: int,
    every: int,
) -> Any:
    """A whole run as one scan; f[updates / every] solve rates on the held-out levels."""
    init_key, key = jax.random.split(key)
    student = new_student(init_key, updates)

    def update(carry: Any, key: jax.Array) -> Any:
        student, state = carry
        select_key, play_key = jax.random.split(key)
        state, slots = bots_levels.sample(selector, select_key, state)  ###
        levels = bots_levels.take(pool, slots.level_ids)  ###
        window, last_value = play(play_key, train_env, student, levels, WINDOW)
        student = learn(student, window, advantages_of(window, last_value))
        _, evidence = bots_levels.record(  ###
            bots_levels.no_running(SLOTS),
            window.done,
            window.reward > 0,
            slots.task_ids,
            slots.visit,
            episodes=EPISODES,
        )
        state, info = selector.update(state, evidence)  ###
        return (student, state), info

    def stretch(carry: Any, key: jax.Array) -> Any:
        carry, info = jax.lax.scan(update, carry, jax.random.split(key, every))
        rate = solve_rate(jax.random.fold_in(key, 1), carry[0], held_out)
        return carry, (rate, info.effective_task_ratio.mean())

    keys = jax.random.split(key, updates // every)
    carry, (rates, mixed) = jax.lax.scan(stretch, (student, state), keys)
    return rates, mixed, bots_levels.pool_metrics(selector, carry[1])


def main(arguments: list[str] | None = None) -> None:
    """Train and print the solve rate as it rises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="auto", help="a strategy, see bots_jax.strategies")
    parser.add_argument("--updates", type=int, default=192)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--levels", type=int, default=4000)
    parser.add_argument("--solvable", type=float, default=0.05)
    parser.add_argument("--told", default="nothing", choices=("nothing", "way"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    from bots_jax.strategies import make_strategy

    selector = make_strategy(args.method, batch_size=SLOTS, rollouts=EPISODES)
    pool_key, held_key, key = jax.random.split(jax.random.key(args.seed), 3)
    pool, _ = make_pool(pool_key, args.levels, args.solvable)
    held_out, _ = make_pool(held_key, 400, 1.0)
    known = np.asarray(jax.vmap(shortest_way)(pool)) if args.told == "way" else None
    state = selector.init(num_tasks=args.levels, features=known)  ###
    run = jax.jit(
        lambda key, state: train(selector, key, state, pool, held_out, args.updates, args.every)
    )
    rates, mixed, metrics = run(key, state)
    for index, (rate, share) in enumerate(zip(rates, mixed, strict=True)):
        steps = (index + 1) * args.every * SLOTS * WINDOW
        print(f"{steps:8d} steps: {rate:.3f} of held-out levels solved, {share:.2f} groups mixed")
    histogram = metrics.pop("histogram").tolist()
    print({name: round(float(value), 3) for name, value in metrics.items()}, histogram)


if __name__ == "__main__":
    main()
