"""Acrobot: does what a task is worth depend on the estimator of the gradient? Resumable.

    python -m benchmarks.levels.acrobot                # what is missing of seeds 0 to 19
    python -m benchmarks.levels.acrobot --table        # the table, and acrobot.json

A task is a height that the tip must reach and a limit of steps to do it in; a success is an
episode that did. At each update an arm selects 8 tasks; each is played 16 times, and a small
network is trained with MaxRL's advantages, or GRPO's. A line of results/levels_acrobot.jsonl for
each estimator, arm and seed. Arms of one seed start from the same network, and their n-th updates
use the same random numbers for initial states and actions.

    uniform, epochs         strategies of those names
    uniform-longer          a quarter more updates: about as many environment steps as `auto`
    auto-WORTH              `auto(worth=WORTH)`, told nothing
    auto-WORTH-features     told height and limit
    rates-WORTH             drawn in proportion to WORTH at success rates that are measured for it
                            alone, 16 episodes a task every 8 updates, which are not counted

Heights, limits and the rate of learning were chosen on seeds 100 to 104 with uniform alone: it
ends at .52, and at .66 when trained five times as long at a higher rate. What counts is the mean
success rate over all tasks at the end ("final": actions sampled, 64 episodes a task, held out).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from benchmarks.levels.report import difference, interval
from bots_jax.choice.worth import find_worth
from bots_jax.rl.policy_gradient import advantages
from bots_jax.strategies import make_strategy

Array = jax.Array
RESULTS = Path(__file__).parents[1] / "results" / "levels_acrobot.jsonl"
NUM_HEIGHTS, LIMITS = 16, (20, 40, 60, 80, 100, 120, 140, 160)
HIGHEST = 1.9  # heights are evenly spaced between rest, -2, and this
STEPS = LIMITS[-1]
BATCH, GROUP, UPDATES, EVERY = 8, 16, 192, 8
HIDDEN, RATE = 32, 1.5e-3
LAST = 64  # episodes a task of the evaluation at the end
ESTIMATORS = ("maxrl", "grpo")
WORTHS = ("pass_gain", "variance", "mixed")
ARMS = (
    *("uniform", "uniform-longer", "epochs"),
    *(f"auto-{worth}" for worth in WORTHS),
    *(f"auto-{worth}-features" for worth in WORTHS),
    *(f"rates-{worth}" for worth in WORTHS),
)


# --- Acrobot --------------------------------------------------------------------------------


def derivative(state: Array, torque: Array) -> Array:
    """d/dt of (angle 1, angle 2, their velocities) f[4, ...]; torque f[...] on the second joint.

    Two links of mass, length and inertia 1 (Sutton and Barto, Reinforcement Learning, 2nd ed.,
    sec. 11.3; angles 0: both hang down).
    """
    angle, bend, speed, bending = state
    sin, cos = jnp.sin(bend), jnp.cos(bend)
    d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
    phi2 = 4.9 * jnp.sin(angle + bend)
    phi1 = -0.5 * bending * (bending + 2 * speed) * sin + 14.7 * jnp.sin(angle) + phi2
    second = (torque + d2 / d1 * phi1 - 0.5 * speed**2 * sin - phi2) / (1.25 - d2**2 / d1)
    return jnp.stack([speed, bending, -(d2 * second + phi1) / d1, second])


def step(state: Array, torque: Array, dt: float = 0.2) -> Array:
    """State f[4, ...] after dt: one step of Runge and Kutta's, velocities clipped."""
    k1 = derivative(state, torque)
    k2 = derivative(state + dt / 2 * k1, torque)
    k3 = derivative(state + dt / 2 * k2, torque)
    k4 = derivative(state + dt * k3, torque)
    angle, bend, speed, bending = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    speed = jnp.clip(speed, -4 * jnp.pi, 4 * jnp.pi)
    return jnp.stack([angle, bend, speed, jnp.clip(bending, -9 * jnp.pi, 9 * jnp.pi)])


def tip(state: Array) -> Array:
    """Height of the tip over the pivot, f[...] in [-2, 2]."""
    return -jnp.cos(state[0]) - jnp.cos(state[0] + state[1])


class Tasks(NamedTuple):
    """What is to be done, each f[N]."""

    height: Array  # of the tip, to be exceeded
    limit: Array  # steps


def make_tasks() -> Tasks:
    """All heights with all limits."""
    heights = np.linspace(-2, HIGHEST, NUM_HEIGHTS + 1)[1:]
    height, limit = np.meshgrid(heights, LIMITS, indexing="ij")
    return Tasks(*(jnp.asarray(x.ravel(), jnp.float32) for x in (height, limit)))


# --- the policy and its gradient ------------------------------------------------------------


class Window(NamedTuple):
    """Episodes of R tasks."""

    seen: Array  # f[STEPS, R, 9]
    action: Array  # i32[STEPS, R]
    running: Array  # bool[STEPS, R]
    reached: Array  # bool[R]


def new_policy(key: Array) -> list[Array]:
    """Weights of two hidden layers; at first all actions are about as likely."""
    sizes = [9, HIDDEN, HIDDEN, 3]
    keys = jax.random.split(key, 3)
    gains = [1.0, 1.0, 0.01]
    return [
        gain * jax.random.normal(k, (a + 1, b)) / a**0.5
        for gain, k, a, b in zip(gains, keys, sizes, sizes[1:], strict=False)
    ]


def logits_of(policy: list[Array], seen: Array) -> Array:
    """f[..., 3] of f[..., 9]; the last row of each weight is a bias."""
    x = seen
    for weight in policy[:-1]:
        x = jnp.tanh(x @ weight[:-1] + weight[-1])
    return x @ policy[-1][:-1] + policy[-1][-1]


def observe(state: Array, tasks: Tasks, now: Array) -> Array:
    """f[R, 9]: the state, the task, and the steps taken."""
    angle, bend, speed, bending = state
    joints = [jnp.cos(angle), jnp.sin(angle), jnp.cos(bend), jnp.sin(bend), speed / 3, bending / 6]
    task = [tasks.height / 2, tasks.limit / STEPS, jnp.full_like(angle, now / STEPS)]
    return jnp.stack([*joints, *task], -1)


def play(key: Array, policy: list[Array], tasks: Tasks, greedy: bool = False) -> Window:
    """An episode of each of R tasks."""
    start_key, action_key = jax.random.split(key)
    size = tasks.height.size
    state = jax.random.uniform(start_key, (4, size), minval=-0.1, maxval=0.1)
    chance = jax.random.uniform(action_key, (STEPS, size))

    def act(carry: Any, given: Any) -> Any:
        state, reached = carry
        now, u = given
        seen = observe(state, tasks, now)
        logits = logits_of(policy, seen)
        if greedy:
            action = jnp.argmax(logits, -1)
        else:
            below = jnp.cumsum(jax.nn.softmax(logits), -1)
            action = jnp.sum(u[:, None] > below[:, :2], -1)
        running = ~reached & (now < tasks.limit)
        state = step(state, action - 1.0)
        reached |= running & (tip(state) > tasks.height)
        return (state, reached), (seen, action, running)

    steps = jnp.arange(STEPS, dtype=jnp.float32)
    carry = state, jnp.zeros((size,), bool)
    (_, reached), (seen, action, running) = jax.lax.scan(act, carry, (steps, chance))
    return Window(seen, action, running, reached)


def make_optimizer(updates: int) -> optax.GradientTransformation:
    """Adam, whose rate falls to 0 in a line."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(RATE, 0.0, updates))
    )


def learn(
    optimizer: optax.GradientTransformation,
    policy: list[Array],
    moments: Any,
    window: Window,
    gain: Array,
) -> tuple[list[Array], Any]:
    """One step along gain f[R] times the gradient of the log-probability of each episode."""
    weight = jnp.where(window.running, gain, 0.0) / gain.size

    def loss(policy: list[Array]) -> Array:
        logs = jax.nn.log_softmax(logits_of(policy, window.seen))
        return -jnp.sum(weight * jnp.take_along_axis(logs, window.action[..., None], -1)[..., 0])

    updates, moments = optimizer.update(jax.grad(loss)(policy), moments, policy)
    return optax.apply_updates(policy, updates), moments


def success_rates(
    key: Array, policy: list[Array], tasks: Tasks, times: int, greedy: bool = False
) -> Array:
    """f[N]: shares of `times` episodes of each task; 16 of each at a time."""

    def some(key: Array) -> Array:
        window = play(key, policy, jax.tree.map(partial(jnp.repeat, repeats=16), tasks), greedy)
        return window.reached.reshape(-1, 16).mean(-1)

    return jax.lax.map(some, jax.random.split(key, times // 16)).mean(0)


# --- arms -----------------------------------------------------------------------------------


class Arm(NamedTuple):
    """What selects tasks; pure functions."""

    state: Any
    choose: Callable[[Array, Any], Any]  # key, state -> state, task_ids i32[B], batch
    tell: Callable[[Any, Any, Array], Any]  # state, batch, rewards f[B, G] -> state
    measured: Callable[[Any, Array], Any] = lambda state, rates: state
    measures: bool = False
    longer: float = 1.0  # times as many updates


def with_selector(name: str, told: bool, **settings: Any) -> Arm:
    """A strategy of bots_jax, told heights and limits or nothing."""
    selector = make_strategy(name, batch_size=BATCH, rollouts=GROUP, **settings)
    tasks = make_tasks()
    known = np.stack([np.asarray(x) for x in tasks], -1)
    size = tasks.height.size
    state = selector.init(features=known) if told else selector.init(num_tasks=size)

    def choose(key: Array, state: Any) -> Any:
        state, batch = selector.select(key, state)
        return state, batch.task_ids, batch

    def tell(state: Any, batch: Any, rewards: Array) -> Any:
        return selector.update(state, batch.evidence(rewards))[0]

    return Arm(state, choose, tell)


def with_rates(worth: str) -> Arm:
    """Tasks drawn without replacement in proportion to what measured rates say they are worth."""
    lack = find_worth(worth).lack

    def choose(key: Array, rates: Array) -> Any:
        value = 1 - lack(rates, jnp.float32(GROUP))
        # What is worth nothing is drawn where too little is left.
        score = jnp.log(jnp.maximum(value, 1e-6)) + jax.random.gumbel(key, rates.shape)
        ids = jax.lax.top_k(score, BATCH)[1]
        return rates, ids, ()

    start = jnp.full(make_tasks().height.shape, 0.5)
    return Arm(start, choose, lambda rates, *_: rates, lambda _, rates: rates, True)


def arm_of(name: str) -> Arm:
    """The arm of that name."""
    kind, _, rest = name.partition("-")
    worth, _, told = rest.partition("-")
    if kind == "rates":
        return with_rates(worth)
    if kind == "auto":
        return with_selector(kind, told == "features", worth=worth)
    return with_selector(kind, False)._replace(longer=1.25 if worth == "longer" else 1.0)


# --- a run ----------------------------------------------------------------------------------


def train(arm: Arm, estimator: str, key: Array) -> dict[str, Array]:
    """Figures of one run."""
    policy_key, run_key, held_key = jax.random.split(key, 3)
    tasks = make_tasks()
    policy = new_policy(policy_key)
    stretches = int(UPDATES * arm.longer) // EVERY
    optimizer = make_optimizer(stretches * EVERY)

    def update(carry: Any, key: Array) -> Any:
        policy, moments, state = carry
        choose_key, play_key = jax.random.split(key)
        state, ids, batch = arm.choose(choose_key, state)
        chosen = jax.tree.map(lambda x: jnp.repeat(x[ids], GROUP), tasks)
        window = play(play_key, policy, chosen)
        rewards = window.reached.reshape(BATCH, GROUP).astype(jnp.float32)
        gain = advantages(rewards, estimator).ravel()  # type: ignore[arg-type]
        policy, moments = learn(optimizer, policy, moments, window, gain)
        rate = rewards.mean(-1)
        told = jnp.mean((rate > 0) & (rate < 1)), rate.mean(), jnp.sum(window.running)
        return (policy, moments, arm.tell(state, batch, rewards)), told

    def stretch(carry: Any, keys: Array) -> Any:
        if arm.measures:
            rates = success_rates(jax.random.fold_in(keys[0], 1000), carry[0], tasks, 16)
            carry = carry[0], carry[1], arm.measured(carry[2], rates)
        carry, (mixed, rate, steps) = jax.lax.scan(update, carry, keys)
        held = success_rates(jax.random.fold_in(held_key, 1), carry[0], tasks, 16)
        return carry, (held.mean(), mixed.mean(), rate.mean(), steps.sum())

    keys = jax.random.split(run_key, (stretches, EVERY))
    carry: Any = policy, optimizer.init(policy), arm.state
    (policy, *_), (solved, mixed, rate, steps) = jax.lax.scan(stretch, carry, keys)
    at_end = success_rates(jax.random.fold_in(held_key, 2), policy, tasks, LAST)
    greedy = success_rates(jax.random.fold_in(held_key, 3), policy, tasks, 16, True)
    # solved: held out, after each stretch; rate: of training episodes; mixed: share of groups.
    return {
        "solved": solved,
        "final": at_end.mean(),
        "greedy": greedy.mean(),
        "mixed": mixed.mean(),
        "rate": rate,
        "steps": steps.sum(),
    }


@lru_cache(maxsize=64)
def compiled(estimator: str, name: str) -> Any:
    """`train` of a key."""
    return jax.jit(partial(train, arm_of(name), estimator))


def run(estimator: str, name: str, seed: int) -> dict[str, Any]:
    """The record of one run."""
    program = compiled(estimator, name)
    start = time.process_time()
    found = jax.device_get(program(jax.random.key(seed)))
    seconds = round(time.process_time() - start, 1)
    print(estimator, name, seed, found["final"], f"{seconds} s of processor time", flush=True)
    about = {"estimator": estimator, "arm": name, "seed": seed}
    digits = {name: 3 if value.ndim else 4 for name, value in found.items()}
    return about | {k: np.round(v.astype(float), digits[k]).tolist() for k, v in found.items()}


def main() -> None:
    """Run what is missing, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimators", nargs="+", default=ESTIMATORS, choices=ESTIMATORS)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(20))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="of what there is; runs nothing")
    args = parser.parse_args()
    found = load(args.out)
    if args.table:
        text, rows = table(found)
        print(text)
        common.save(str(args.out.with_suffix(".json")), rows)
        return
    for estimator in args.estimators:
        for seed in args.seeds:
            for name in args.arms:
                if seed not in found.get((estimator, name), {}):
                    record = run(estimator, name, seed)
                    common.append(args.out, record)


# --- the table ------------------------------------------------------------------------------

Runs = dict[int, dict[str, Any]]  # by seed
Found = dict[tuple[str, str], Runs]  # by estimator and arm
MEASURES = ("final", "auc", "greedy", "mixed")


def load(path: Path) -> Found:
    """The records of each estimator and arm, by seed."""
    found: Found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        record["auc"] = float(np.mean(record["solved"]))
        found.setdefault((record["estimator"], record["arm"]), {})[record["seed"]] = record
    return found


def less(measure: str, runs: Runs, base: Runs) -> dict[int, float]:
    """Differences of the seeds that both have."""
    return {s: runs[s][measure] - base[s][measure] for s in sorted(set(runs) & set(base))}


def table(found: Found) -> tuple[str, list[dict[str, Any]]]:
    """In markdown, and the figures: means, and differences from uniform paired by seed."""
    head = ["estimator", "arm", "seeds", *MEASURES, "thousand steps"]
    rivals = ("final", "uniform"), ("auc", "uniform"), ("final", "uniform-longer")
    head += [f"{measure} less {rival}" for measure, rival in rivals]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    rows = []
    for (estimator, name), runs in sorted(found.items(), key=order):
        means = {m: interval([r[m] for r in runs.values()]) for m in (*MEASURES, "steps")}
        pairs = {
            f"{m}_less_{rival}": interval(
                list(less(m, runs, found.get((estimator, rival), {})).values())
            )
            for m, rival in rivals
            if name != rival
        }
        about = {"estimator": estimator, "arm": name, "seeds": len(runs)}
        rows.append(about | means | pairs)
        told = [f"{means[m][0]:.3f}" for m in MEASURES] + [f"{means['steps'][0] / 1000:.0f}"]
        cells = [*map(str, about.values()), *told]
        cells += [difference(pairs[f"{m}_less_{r}"]) if name != r else "" for m, r in rivals]
        lines.append("| " + " | ".join(cells) + " |")
    more, contrasts = fit(found)
    return "\n".join([*lines, "", *more]), rows + contrasts


def fit(found: Found) -> tuple[list[str], list[dict[str, Any]]]:
    """pass_gain less the other worths, under each estimator, and how much more under MaxRL."""
    head = ["pass_gain less", "measure", *ESTIMATORS, "maxrl less grpo"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    rows = []
    for arm in [arm for arm in ARMS if arm.startswith(("auto", "rates")) and "gain" not in arm]:
        kind, _, *told = arm.split("-")
        ours = "-".join([kind, "pass_gain", *told])
        for measure in ("final", "auc"):
            pairs = [
                less(measure, found.get((e, ours), {}), found.get((e, arm), {})) for e in ESTIMATORS
            ]
            gaps = [pairs[0][s] - pairs[1][s] for s in set(pairs[0]) & set(pairs[1])]
            cells = [interval(list(values)) for values in (pairs[0].values(), pairs[1].values())]
            cells.append(interval(gaps))
            lines.append("| " + " | ".join([arm, measure, *map(difference, cells)]) + " |")
            rows.append({"pass_gain_less": arm, "measure": measure, "gaps": cells})
    return lines, rows


def order(item: tuple[tuple[str, str], Runs]) -> tuple[int, int]:
    """Of the rows."""
    (estimator, name), _ = item
    return ESTIMATORS.index(estimator), ARMS.index(name)


if __name__ == "__main__":
    main()
