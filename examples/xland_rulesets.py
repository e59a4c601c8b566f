"""XLand-MiniGrid with a selector that chooses its rulesets: one compiled scan.

    pip install bots-jax xminigrid optax
    python examples/xland_rulesets.py --method auto

A level is a ruleset: a goal, a rule that turns one object into another, and four objects. Most of
the goals name an object that is neither there nor made by the rule, so that no policy gets them.
The student sees 5 x 5 cells, with what goal and rule name marked, and learns by PPO. Each update
plays 64 rulesets for 64 steps, a ruleset a slot, in a room made anew for each episode. What
selects levels is marked with ###; everything else is what any training loop has.

(The benchmarks of rulesets that xminigrid downloads, `load_benchmark`, are such a pool as well:
`jax.vmap(benchmark.get_ruleset)(jnp.arange(1000))`.)
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import xminigrid
from flax.training.train_state import TrainState
from xminigrid.core.constants import Colors, Tiles
from xminigrid.types import RuleSet
from xminigrid.wrappers import GymAutoResetWrapper

import bots_jax
from bots_jax import levels as bots_levels
from bots_jax.strategies import make_strategy

SLOTS, WINDOW, MAX_STEPS, NUM_ACTIONS = 64, 64, 32, 5  # no doors, so no toggling
EPISODES = WINDOW // MAX_STEPS  # as many as always fit
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, EPOCHS = 0.97, 0.95, 0.2, 1e-2, 4
OBJECTS = 4
HOLD, NEAR, BECOMES = 1, 3, 1  # xminigrid's numbers of two goals and of a rule: on picking up

plain, standard = xminigrid.make("XLand-MiniGrid-R1-9x9")
env = GymAutoResetWrapper(plain)
standard = standard.replace(height=7, width=7, max_steps=MAX_STEPS)


# --- levels ---------------------------------------------------------------------------------


def make_ruleset(key: jax.Array, solvable: jax.Array) -> RuleSet:
    """Hold or stand next to a tile: one that is there, one that the rule makes, or neither."""
    tile_key, kind_key, where_key = jax.random.split(key, 3)
    shapes = jnp.array([Tiles.BALL, Tiles.SQUARE, Tiles.PYRAMID, Tiles.KEY, Tiles.STAR])
    colors = jnp.array([Colors.RED, Colors.GREEN, Colors.BLUE, Colors.YELLOW])
    all_tiles = jnp.stack(jnp.meshgrid(shapes, colors), -1).reshape(-1, 2)
    tiles = jax.random.permutation(tile_key, all_tiles)[: OBJECTS + 2].astype(jnp.uint8)
    made, nowhere = tiles[OBJECTS], tiles[OBJECTS + 1]
    hold, by_rule = jax.random.bernoulli(kind_key, shape=(2,))
    there = jnp.where(by_rule & hold, made, tiles[jax.random.randint(where_key, (), 1, OBJECTS)])
    goal = jnp.where(solvable, there, nowhere)
    zeros = jnp.zeros(2, jnp.uint8)
    kind = jnp.where(hold, HOLD, NEAR).astype(jnp.uint8)
    rule = jnp.concatenate([jnp.array([BECOMES], jnp.uint8), tiles[0], made, zeros])
    return RuleSet(
        goal=jnp.concatenate([kind[None], goal, zeros]),
        rules=rule[None],
        init_tiles=tiles[:OBJECTS],
    )


def make_pool(key: jax.Array, size: int, solvable: float) -> RuleSet:
    """Rulesets, each leaf [size, ...], of which a share can be solved."""
    can = jnp.arange(size) < round(solvable * size)
    keys = jax.random.split(key, size + 1)
    return jax.vmap(make_ruleset)(keys[1:], jax.random.permutation(keys[0], can))


# --- the student and PPO --------------------------------------------------------------------


def see(timestep: Any) -> jax.Array:
    """f[D]: the view, with walls, objects and the tiles that goal and rule name marked."""
    view, state = timestep.observation, timestep.state
    goal, rule = state.goal_encoding, state.rule_encoding[0]
    named = [goal[1:3], rule[1:3], rule[3:5]]
    marks = [view[..., 0] == Tiles.WALL, view[..., 0] > Tiles.WALL]
    marks += [jnp.all(view == tile, -1) for tile in named]
    pocket = [jnp.all(state.agent.pocket == tile) for tile in named]
    kinds = [goal[0] == HOLD, state.agent.pocket[0] != Tiles.EMPTY, jnp.all(goal[1:3] == rule[3:5])]
    parts = [jnp.stack(marks).ravel(), jnp.stack(pocket + kinds)]
    return jnp.concatenate(parts).astype(jnp.float32)


class Student(nn.Module):
    """Two layers of 64, log probabilities f[..., 5] and values f[...]."""

    @nn.compact
    def __call__(self, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of what `see` tells, f[..., D]."""
        hidden = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(seen))))
        logits = nn.Dense(NUM_ACTIONS, kernel_init=nn.initializers.orthogonal(0.01))(hidden)
        return jax.nn.log_softmax(logits), nn.Dense(1)(hidden)[..., 0]


def new_student(key: jax.Array, updates: int, rate: float = 3e-3) -> TrainState:
    """Fresh parameters; the learning rate decays to nothing within the run."""
    ruleset = make_ruleset(key, jnp.array(True))
    seen = see(env.reset(standard.replace(ruleset=ruleset), key))
    schedule = optax.linear_schedule(rate, 0.0, updates * EPOCHS)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule))
    weights = Student().init(key, seen)
    return TrainState.create(apply_fn=Student().apply, params=weights, tx=optimizer)


class Window(NamedTuple):
    """What T steps in S slots brought; every field [T, S, ...]."""

    seen: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def play(
    key: jax.Array, student: TrainState, rulesets: RuleSet, steps: int
) -> tuple[Window, jax.Array]:
    """Roll the student out, a ruleset a slot; and f[S], the value after the last step."""
    params = standard.replace(ruleset=rulesets)
    reset_key, key = jax.random.split(key)
    keys = jax.random.split(reset_key, rulesets.goal.shape[0])
    timestep = jax.vmap(env.reset)(params, keys)

    def step(timestep: Any, key: jax.Array) -> Any:
        seen = jax.vmap(see)(timestep)
        logs, value = student.apply_fn(student.params, seen)
        action = jax.random.categorical(key, logs)
        log_prob = jnp.take_along_axis(logs, action[:, None], 1)[:, 0]
        timestep = jax.vmap(env.step)(params, timestep, action)
        told = Window(seen, action, log_prob, value, timestep.reward, timestep.last())
        return timestep, told

    timestep, window = jax.lax.scan(step, timestep, jax.random.split(key, steps))
    return window, student.apply_fn(student.params, jax.vmap(see)(timestep))[1]


def learn(student: TrainState, window: Window, last_value: jax.Array) -> TrainState:
    """PPO's epochs over one window, as a single batch."""

    def back(carry: Any, now: Any) -> Any:
        ahead, next_value = carry
        value, reward, done = now
        error = reward + GAMMA * next_value * ~done - value
        ahead = error + GAMMA * GAE_LAMBDA * ~done * ahead
        return (ahead, value), ahead

    steps = (window.value, window.reward, window.done)
    begin = (jnp.zeros_like(last_value), last_value)
    advantage = jax.lax.scan(back, begin, steps, reverse=True)[1]
    normal = (advantage - advantage.mean()) / (advantage.std() + 1e-5)

    def loss(weights: Any) -> jax.Array:
        logs, value = student.apply_fn(weights, window.seen)
        log_prob = jnp.take_along_axis(logs, window.action[..., None], -1)[..., 0]
        ratio = jnp.exp(log_prob - window.log_prob)
        gain = jnp.minimum(ratio * normal, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * normal)
        miss = (value - advantage - window.value) ** 2
        entropy = -jnp.sum(jnp.exp(logs) * logs, -1)
        return jnp.mean(-gain + 0.25 * miss - ENTROPY * entropy)

    def epoch(student: TrainState, _: None) -> tuple[TrainState, None]:
        return student.apply_gradients(grads=jax.grad(loss)(student.params)), None

    return jax.lax.scan(epoch, student, None, EPOCHS)[0]


def solved(key: jax.Array, student: TrainState, rulesets: RuleSet) -> jax.Array:
    """bool[N]: the rulesets whose first episode is solved."""
    window, _ = play(key, student, rulesets, MAX_STEPS)
    first = jnp.cumsum(window.done, 0) - window.done == 0
    return jnp.any(first & (window.reward > 0), 0)


def solve_rate(key: jax.Array, student: TrainState, rulesets: RuleSet) -> jax.Array:
    """Share of rulesets whose first episode is solved."""
    return jnp.mean(solved(key, student, rulesets))


# --- training -------------------------------------------------------------------------------


def train(
    selector: bots_jax.Selector, key: jax.Array, pool: RuleSet, held_out: RuleSet, updates: int
) -> Any:
    """A whole run as one scan; four solve rates on the way, held out."""
    init_key, key = jax.random.split(key)
    student = new_student(init_key, updates)
    state = selector.init(num_tasks=pool.goal.shape[0])  ###

    def update(carry: Any, key: jax.Array) -> Any:
        student, state = carry
        select_key, play_key = jax.random.split(key)
        state, slots = bots_levels.sample(selector, select_key, state)  ###
        rulesets = bots_levels.take(pool, slots.level_ids)  ###
        window, last_value = play(play_key, student, rulesets, WINDOW)
        student = learn(student, window, last_value)
        _, evidence = bots_levels.record(  ###
            bots_levels.no_running(SLOTS),
            window.done,
            window.reward > 0,
            slots.task_ids,
            slots.visit,
            episodes=EPISODES,
        )
        state, info = selector.update(state, evidence)  ###
        return (student, state), info.effective_task_ratio

    def quarter(carry: Any, key: jax.Array) -> Any:
        carry, mixed = jax.lax.scan(update, carry, jax.random.split(key, updates // 4))
        rate = solve_rate(jax.random.fold_in(key, 1), carry[0], held_out)
        return carry, (rate, mixed.mean())

    carry, told = jax.lax.scan(quarter, (student, state), jax.random.split(key, 4))
    return *told, bots_levels.pool_metrics(selector, carry[1])


def main(arguments: list[str] | None = None) -> None:
    """Train and print the solve rate as it rises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="auto", help="a strategy, see bots_jax.strategies")
    parser.add_argument("--updates", type=int, default=200, help="a multiple of 4")
    parser.add_argument("--levels", type=int, default=2000)
    parser.add_argument("--solvable", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    selector = make_strategy(args.method, batch_size=SLOTS, rollouts=EPISODES)
    pool_key, held_key, key = jax.random.split(jax.random.key(args.seed), 3)
    pool = make_pool(pool_key, args.levels, args.solvable)
    held_out = make_pool(held_key, 400, 1.0)
    run = jax.jit(lambda key: train(selector, key, pool, held_out, args.updates))
    rates, mixed, metrics = run(key)
    for index, (rate, share) in enumerate(zip(rates, mixed, strict=True)):
        steps = (index + 1) * args.updates // 4 * SLOTS * WINDOW
        print(f"{steps:8d} steps: {rate:.3f} of held-out rulesets solved, {share:.2f} groups mixed")
    histogram = metrics.pop("histogram").tolist()
    print({name: round(float(value), 3) for name, value in metrics.items()}, histogram)


if __name__ == "__main__":
    main()
