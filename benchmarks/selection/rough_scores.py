"""Whether the best tasks by exact scores are among the best by rough ones.

Run: python -m benchmarks.selection.rough_scores [--tasks 100000] [--steps 60]

`auto` scores a large pool with features by a rough variance first, and the best of four batches
by the exact one (`choice/mixed.py`). Here a run goes by exact scores, and at each step the place is
noted that the worst of the batch has by rough ones. Features: 32 independent normals, as principal
components are nearly, and 32 mixtures of Student's t with 4 degrees of freedom, correlated.

Out: a table, and results/rough_scores.json.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

from benchmarks.common import save
from bots_jax import auto
from bots_jax.implicit import glm

BATCH, ROLLOUTS, COLUMNS, AMONG = 64, 8, 32, 4


def make_features(kind: str, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[N, F], and rates f[N] that follow them but for each task's own offset."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tasks, COLUMNS))
    if kind == "correlated":
        x = rng.standard_t(4, (tasks, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS))
    told = x @ rng.normal(size=COLUMNS)
    logit = 1.5 * told / told.std() + 0.7 * rng.standard_normal(tasks)
    return x.astype(np.float32), 1 / (1 + np.exp(-logit))


def places(kind: str, tasks: int, steps: int) -> list[dict[str, int]]:
    """Of each step: how many of the batch are the same, and the last place by rough scores."""
    exactly = glm()._replace(infer_roughly=None)
    infer = glm().infer_roughly
    assert infer is not None
    roughly = exactly._replace(infer=infer)
    exact = auto(batch_size=BATCH, rollouts=ROLLOUTS, estimator=exactly)
    rough = auto(batch_size=AMONG * BATCH, rollouts=ROLLOUTS, estimator=roughly)
    features, rate = make_features(kind, tasks)
    state, rng, found = exact.init(features=features), np.random.default_rng(1), []
    for step in range(steps):
        key = jax.random.key(step)
        likely = np.asarray(rough.select(key, state)[1].task_ids).tolist()
        state, batch = exact.select(key, state)
        chosen = np.asarray(batch.task_ids)
        at = [likely.index(task) if task in likely else AMONG * BATCH for task in chosen]
        found.append({"same": int(np.sum(np.array(at) < BATCH)), "last": 1 + max(at)})
        rewards = rng.random((BATCH, ROLLOUTS)) < rate[chosen][:, None]
        state, _ = exact.update(state, batch.evidence(rewards))
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    rows = []
    for kind in ("independent", "correlated"):
        found = places(kind, options.tasks, options.steps)
        rows.append(
            {
                "features": kind,
                "tasks": options.tasks,
                "steps": options.steps,
                "batch": BATCH,
                "mean_same": round(float(np.mean([step["same"] for step in found])), 2),
                "least_same": min(step["same"] for step in found),
                "last_place": max(step["last"] for step in found),
            }
        )
        print(rows[-1], flush=True)
    save("rough_scores", rows)


if __name__ == "__main__":
    main()
