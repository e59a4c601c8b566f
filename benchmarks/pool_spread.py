"""Do the pass rates of the base policy spread, as a comparison of selectors needs?

At least a third of the pool should never be solved and a twentieth always: else every
selector is as good as chance, or chance as good as every selector. Measured by rolling the
base policy out on the default pool; the references that strategies get are printed too.

Run: python -m benchmarks.pool_spread --rollouts 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import save
from bots_jax.rl.command import default_cache
from bots_jax.rl.finetune import FinetuneConfig
from bots_jax.rl.tasks import FAMILY_NAMES, exact_verifier, generate_tasks
from bots_jax.rl.warmup import measure_references, warm_up


def main() -> None:
    """Print and save the shares never and always solved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--cache", default=default_cache())
    args = parser.parse_args()
    config = FinetuneConfig()
    pool, _ = generate_tasks(config.num_tasks, config.num_held_out, config.data_seed)
    start = warm_up(config.warmup, Path(args.cache))
    rates = measure_references(
        start.graphdef,
        (start.early, start.base, start.late),
        jnp.asarray(pool.prompts),
        exact_verifier(pool.answers),
        jax.random.key(config.data_seed),
        rollouts=args.rollouts,
        max_new_tokens=config.loop.max_new_tokens,
    )
    rows = {
        name: {
            "never": round(float(np.mean(of == 0)), 4),
            "always": round(float(np.mean(of == 1)), 4),
            "mean": round(float(np.mean(of)), 4),
        }
        for name, of in zip(("weak reference", "base policy", "strong reference"), rates)  # noqa: B905
    }
    family = np.asarray(pool.family)
    by_family = {
        name: round(float(rates[1][family == code].mean()), 3)
        for code, name in enumerate(FAMILY_NAMES)
    }
    print(*(f"{name}: {values}" for name, values in rows.items()), by_family, sep="\n")
    about = {"tasks": len(family), "rollouts": args.rollouts}
    save("pool_spread", {**about, "solved": rows, "base_policy_by_family": by_family})
    base = rows["base policy"]
    if base["never"] < 1 / 3 or base["always"] < 1 / 20:
        raise SystemExit("the pass rates of the base policy do not spread enough")


if __name__ == "__main__":
    main()
