"""Fit the simulator to the published trace and write its numbers into the package.

Run: python -m benchmarks.selection.simulator_calibrate FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bots_jax.simulator
from bots_jax.simulator.calibrate import CHOSEN, calibrate, config_of, read_visits

TARGET = Path(bots_jax.simulator.__file__).with_name("calibrated.json")


def main() -> None:
    """Search, print, and write `calibrated.json` beside the simulator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="the trace, .npz")
    parser.add_argument("--rounds", type=int, default=16, help="of the search [%(default)s]")
    parser.add_argument("--out", type=Path, default=TARGET, help="[into the package]")
    args = parser.parse_args()
    fitted, distance = calibrate(read_visits(args.file), rounds=args.rounds)
    config = {name: _plain(value.tolist()) for name, value in config_of(fitted)._asdict().items()}
    about = {
        "source": Path(args.file).name,
        "distance": _plain(distance),
        "fitted": _plain(fitted),
        "chosen": CHOSEN,
        "config": config,
    }
    args.out.write_text(json.dumps(about, indent=1) + "\n")
    print(f"distance {distance:.5f}; written to {args.out.name}")


def _plain(value: object) -> object:
    """Numbers to five digits: the search is no finer than that."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return float(f"{value:.5g}")


if __name__ == "__main__":
    main()
