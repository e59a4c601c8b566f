"""The paper's default on a recording: `run_replay` beside a plain NumPy loop, seed by seed.

Run: python -m benchmarks.replay_numpy FILE
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.common import save
from bots_jax import bots
from bots_jax.evaluate.metrics import mean_interval
from bots_jax.evaluate.replay import Recording, load_recording, measure, run_replay

KEYS = ("etr", "etr_early", "breadth", "belief_rmse")


def numpy_replay(recording: Recording, seed: int, batch: int = 32) -> dict[str, float]:
    """lambda = rho = .1, gamma = .9, p* = .5; written from the paper, no code shared."""
    assert recording.reference is not None
    rates, (lo, hi) = recording.success_rate.astype(float), recording.reference.astype(float)
    rng, m = np.random.default_rng(seed), recording.rollouts
    alpha, beta, visits = np.ones((3, rates.shape[1]))
    visits -= 1
    mu, mixed, errors = None, [], []
    for rate in rates:
        ids = np.argsort(np.abs(rng.beta(alpha, beta) - 0.5))[:batch]
        s = rng.binomial(m, rate[ids])
        visits[ids] += 1
        mixed.append(np.mean((s > 0) & (s < m)))
        seen = (s.mean() / m - lo[ids].mean()) / (hi[ids].mean() - lo[ids].mean() + 1e-6)
        mu = seen if mu is None else 0.9 * mu + 0.1 * seen
        p = np.clip(lo + mu * (hi - lo), 0, 1)
        gained, lost = 0.1 * m * p, 0.1 * m * (1 - p)
        gained[ids], lost[ids] = s, m - s
        alpha, beta = 0.9 * alpha + 0.1 + gained, 0.9 * beta + 0.1 + lost
        errors.append(np.sqrt(np.mean((alpha / (alpha + beta) - rate) ** 2)))
    share = visits[visits > 0] / visits.sum()
    breadth = np.exp(-np.sum(share * np.log(share)))
    values = (np.mean(mixed), np.mean(mixed[:50]), breadth, np.mean(errors))
    return {key: float(value) for key, value in zip(KEYS, values, strict=True)}


def main() -> None:
    """Print and save both sides with their 95% intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="a recording with references")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    recording = load_recording(args.file)
    sides: dict[str, list[dict[str, Any]]] = {}
    for form in ("dense", "grouped"):
        selector = bots(batch_size=32, rollouts=recording.rollouts, representation=form)
        replayed = run_replay(selector, recording, range(args.seeds))
        sides[form] = measure(replayed, recording.success_rate.shape[1])
    sides["numpy"] = [numpy_replay(recording, seed) for seed in range(args.seeds)]
    rows = []
    for key in KEYS:
        row = {"metric": key}
        for name, side in sides.items():
            row[name] = mean_interval([run[key] for run in side]).text(digits=3)
        rows.append(row)
        print(row)
    save("replay_numpy", rows)


if __name__ == "__main__":
    main()
