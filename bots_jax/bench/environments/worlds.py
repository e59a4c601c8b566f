"""The worlds of `bots_jax.rl.worlds` as environments: does selection make a policy learn faster?

In: a world and the length of the run. Out: for each seed what was learned (held-out pass rate,
exact), when (TTB, of averages over three evaluations), and what was selected. The learning rate
falls to nothing within the run, so that its end is what was learned and not where the noise of a
constant rate stood. All seeds of a strategy run in one program (`bots_jax.rl.seeds`), kept from
one evaluation to the next in the workspace.

Each seed has a base policy of its own, and its references with it: what selection gains differs
more between two base policies than between two runs from one, so an interval over runs from one
would be too narrow. A warm-up gives other weights on another machine or with another number of
cores: keep it in one cache; `benchmarks.worlds` refuses runs of one seed that start differently.

`told=` says what a strategy knows of the tasks: `nothing`; `prompts`, text features of them;
`references`, pass rates of two checkpoints in eight rollouts each (what is told without it, as
many strategies need them); `hidden`, what the base policy's hidden states make of the prompts;
`everything`, prompts and references; `teaching`, prompts, and never a task of the families that
can be guessed: an oracle that knows which families teach; `truth`, for the oracles of the package
alone, the true pass rate of every task under the policy as it is, looked up every few steps;
`truth-teaching`, both; `truth-kinds`, what the tasks of each family and size are worth on average,
one number for all of them; `truth-shuffled`, the true rates of each family and size, dealt out
anew among its tasks: how its tasks are spread, and nothing of any single one; `truth-references`
and `truth-prompts`, the true rates dealt out anew among tasks that the references, or the prompts,
tell alike, by the regression that fits the true rates best: all that they can tell, and nothing
more; and `truth-rough`, the true rates with an error of 1.5 in their logits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.bench.environment import (
    Environment,
    Measured,
    Series,
    Strategy,
    only_free,
    reads_truth,
)
from bots_jax.bench.environments.finetune import cache_folder
from bots_jax.evaluate import meter, metrics, report
from bots_jax.evaluate.metrics import Curve
from bots_jax.pool.reference import TaskFeatures

if TYPE_CHECKING:
    from bots_jax.rl.seeds import View

TRUTH, TEACHING, TRUTH_TEACHING = "truth", "teaching", "truth-teaching"
TRUTH_KINDS, TRUTH_SHUFFLED, TRUTH_ROUGH = "truth-kinds", "truth-shuffled", "truth-rough"
TRUTH_REFERENCES, TRUTH_PROMPTS = "truth-references", "truth-prompts"
_TOLD_ALIKE = (TRUTH_REFERENCES, TRUTH_PROMPTS)
TRUTHS = (TRUTH, TRUTH_TEACHING, TRUTH_KINDS, TRUTH_SHUFFLED, *_TOLD_ALIKE, TRUTH_ROUGH)
TELLS = ("nothing", "prompts", "references", "hidden", "everything", TEACHING, *TRUTHS)
ROUGHLY = 1.5  # logits, of the error in `truth-rough`
TRUTH_EVERY = 20  # steps; a look at 6,000 tasks costs what some thirty steps do
COMPONENTS = 32  # of features, at most
ALIKE = 50  # tasks that a regression tells alike, among which rates are dealt out
_READ = ("prompts", "everything", TEACHING, TRUTH_PROMPTS)  # by whom the prompts' text is read


def worlds_environment(
    *,
    world: str = "frontier",
    steps: int | None = None,
    learning_rate: float | None = None,
    num_tasks: int | None = None,
    num_held_out: int | None = None,
    estimator: str = "grpo",
    eval_every: int = 20,
    workspace: str | None = None,
    cache: str | None = None,
    name: str | None = None,
) -> Environment:
    """Finetune the small policy in a world.

    Args:
      world: a name of `bots_jax.rl.worlds.WORLDS`.
      steps, learning_rate, num_tasks, num_held_out: instead of the world's own.
      estimator: of the advantages: grpo, dr_grpo, rloo or maxrl.
      eval_every: steps between measurements on the held-out tasks; divides `steps`.
      workspace: folder for unfinished runs; None: they are not kept.
      cache: folder that keeps the warm-up; None as in `bots-jax finetune`.
      name: for the tables.

    Raises:
      ModuleNotFoundError: where flax or optax are missing.
      ValueError: where a name is unknown or a size is out of range.
    """
    from bots_jax.rl import seeds as many
    from bots_jax.rl import worlds

    place = _changed(
        worlds.find_world(world), steps=steps, learning_rate=learning_rate, num_tasks=num_tasks,
        num_held_out=num_held_out,
    )  # fmt: skip
    config = many.SeedsConfig(place.steps, eval_every, loop=worlds.loop_config(place, estimator))
    about = {**dataclasses.asdict(place), "eval_every": eval_every, "bases": "one a seed"}
    about |= {} if estimator == "grpo" else {"estimator": estimator}
    made: dict[int, worlds.WorldData] = {}  # by seed, by whichever strategy comes first

    def run(strategy: Strategy, seeds: Sequence[int]) -> list[Measured]:
        sizes = {"batch_size": place.batch_size, "rollouts": place.rollouts}
        rule = only_free(strategy, strategy.make(**sizes))
        told = strategy.told or (TRUTH if reads_truth(rule) else "references")
        true, teaching = told in TRUTHS, told in (TEACHING, TRUTH_TEACHING)
        _check_oracle(strategy.name, told, reads_truth(rule), true)
        for seed in set(seeds) - set(made):
            made[seed] = worlds.make_world(place, cache_folder(cache), base=seed)
        datas = [made[seed] for seed in seeds]
        one = datas[0]
        # All seeds have the same tasks, so their prompts are read once.
        text = worlds.prompt_features(one.pool) if told in _READ else None
        known = _digest([about, strategy.name, dict(strategy.settings), told, list(seeds)])
        runs = many.run_seeds(
            rule,
            [first_state(rule, data, told, strategy.name, text) for data in datas],
            many.Task(one.start.graphdef, one.start.base, one.pool, one.held_out),
            dataclasses.replace(config, truth_every=TRUTH_EVERY if true else 0),
            seeds,
            name=strategy.name,
            bases=[data.start.base for data in datas],
            eligible=worlds.teaches(one.pool) if teaching else None,
            view=view_of(told, one.pool),
            partial=None if workspace is None else Path(workspace) / f"{known}.npz",
        )
        measured = [_measure(run, place.rollouts) for run in runs]
        return [dataclasses.replace(run, truth=true or teaching) for run in measured]

    return Environment(
        name=name or f"{world}, {place.steps} steps" + f", {estimator}" * (estimator != "grpo"),
        run=run,
        about=about,
        chunk=10,
        curve="heldout",
        headline=("heldout", "ttb_100", "etr"),
        tells=TELLS,
    )


def _changed(world: Any, **given: Any) -> Any:
    return dataclasses.replace(world, **{k: v for k, v in given.items() if v is not None})


def _check_oracle(name: str, told: str, is_oracle: bool, true: bool) -> None:
    if is_oracle != true:
        raise ValueError(
            f"strategy {name}, told {told}: oracles are told {' or '.join(TRUTHS)}, and they alone"
        )


def _digest(known: Any) -> str:
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_state(selector: Any, data: Any, told: str, name: str, text: Any = None) -> Any:
    """A selector's state before the first step, told one of `TELLS`; `text`: f[E, N] of prompts."""
    num_tasks = len(np.asarray(data.pool.prompts))
    try:
        if told == "references":
            return selector.init(data.reference)
        if told == "nothing":
            return selector.init(num_tasks=num_tasks)
        if told in TRUTHS:  # written anew before the first step
            unknown = np.full((1, num_tasks), 0.5, np.float32)
            features = _logits(data.reference) if told == TRUTH_REFERENCES else text
            return selector.init(unknown if features is None else TaskFeatures(unknown, features))
        rates = data.reference if told == "everything" else None
        return selector.init(TaskFeatures(rates, _hidden_states(data) if text is None else text))
    except ValueError as error:
        raise ValueError(f"strategy {name}, told {told}: {error}") from None


def view_of(told: str, pool: Any) -> View | None:
    """What an oracle sees of the true rates f[N]; None where it sees them as they are."""
    if told == TRUTH_KINDS:
        of_task = _kinds(pool)
        return functools.partial(_by_kind, of_task, np.bincount(of_task))
    if told == TRUTH_SHUFFLED:
        return functools.partial(_shuffled, _kinds(pool))
    if told in _TOLD_ALIKE:
        return _dealt_among_alike
    return _roughly if told == TRUTH_ROUGH else None


def _kinds(pool: Any) -> np.ndarray:
    """i64[N]: a number for each family and size."""
    kinds = np.stack([np.asarray(pool.family), np.asarray(pool.size)], axis=1)
    return np.unique(kinds, axis=0, return_inverse=True)[1].ravel()


def _by_kind(
    kind: np.ndarray, sizes: np.ndarray, rng_key: jax.Array, rates: jax.Array, features: Any
) -> jax.Array:
    """f[N]: the rate, at most 1/2, whose 4 p (1 - p) is the mean of those of the task's kind.

    Not the mean rate: tasks solved always and never would pass for half solved ones.
    """
    worth = jax.ops.segment_sum(4 * rates * (1 - rates), kind, len(sizes)) / sizes
    return (0.5 * (1 - jnp.sqrt(jnp.maximum(1 - worth, 0))))[kind]


def _shuffled(kind: np.ndarray, rng_key: jax.Array, rates: jax.Array, features: Any) -> jax.Array:
    """f[N]: the rates of each kind, dealt out anew among its tasks at each look."""
    order = jnp.lexsort((jax.random.uniform(rng_key, rates.shape), jnp.asarray(kind)))
    return jnp.zeros_like(rates).at[np.argsort(kind, kind="stable")].set(rates[order])


def _logits(rates: Any, least: float = 1e-2) -> jax.Array:
    return jax.scipy.special.logit(jnp.clip(jnp.asarray(rates), least, 1 - least))


def _dealt_among_alike(rng_key: jax.Array, rates: jax.Array, features: Any) -> jax.Array:
    """f[N]: the rates, dealt out anew among `ALIKE` tasks next to each other in the regression.

    It is fitted to the logits of all true rates by least squares, at each look.
    """
    x = jnp.concatenate([jnp.ones_like(rates)[None], features.astype(rates.dtype)])
    ridge = 1e-3 * len(rates) * jnp.eye(len(x), dtype=rates.dtype)
    weights = jnp.linalg.solve(x @ x.T + ridge, x @ _logits(rates))
    order = jnp.argsort(weights @ x)
    dealt = _shuffled(np.arange(len(rates)) // ALIKE, rng_key, rates[order], None)
    return jnp.zeros_like(rates).at[order].set(dealt)


def _roughly(rng_key: jax.Array, rates: jax.Array, features: Any) -> jax.Array:
    """f[N]: the rates with another normal error in their logits at each look."""
    logits = _logits(rates, 1e-5)
    return jax.nn.sigmoid(logits + ROUGHLY * jax.random.normal(rng_key, rates.shape, rates.dtype))


def _hidden_states(data: Any) -> np.ndarray:
    """Features f[E, N] of the pool, as the base policy reads it."""
    from bots_jax.rl.embeddings import embed_tasks

    prompts = jnp.asarray(data.pool.prompts)
    graphdef = data.start.graphdef
    embed = jax.jit(lambda p: embed_tasks(graphdef, p, prompts, components=COMPONENTS))
    return np.asarray(embed(data.start.base))


def _measure(record: dict[str, Any], group: int) -> Measured:
    told = report.measure(record)
    values = {key: value for key, value in told.items() if isinstance(value, float)}
    values = {key: value for key, value in values.items() if not np.isnan(value)}
    s = np.array(record["successes"], np.float64)
    n = np.where(np.array(record["task_ids"]) >= 0, group, 0)
    values["variance"] = metrics.outcome_variance(s, n)
    values["rollouts"] = float(n.sum())
    at = record["heldout_step"]
    smooth = metrics.averaged(Curve(at, record["heldout"]))
    average = np.asarray(smooth.scores, np.float64)
    values["fall"] = float(average.max() - average[-1])
    series = {
        "heldout": Series(at, record["heldout"]),
        "heldout_average": Series(at, average.tolist()),
        "etr": Series(*meter.blocks(record["etr"])),
    }
    spent = {"tokens": record["tokens"], "rollouts": np.cumsum(n.sum(axis=1)).tolist()}
    for key, sums in spent.items():
        series[key] = Series(at, [float([0, *sums][step]) for step in at])
    return Measured(values, series)
