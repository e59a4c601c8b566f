"""The Acrobot of the benchmark is gymnax's, and every kind of arm runs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

gymnax = pytest.importorskip("gymnax")
acrobot = pytest.importorskip("benchmarks.levels.acrobot")


def test_moves_as_gymnax():
    env, params = gymnax.make("Acrobot-v1")
    _, first = env.reset_env(jax.random.key(0), params)
    # Single steps, from states of all speeds: in a chaotic system errors of rounding grow.
    spread = jnp.array([3.0, 3.0, 12.0, 28.0])[:, None]
    states = spread * jax.random.uniform(jax.random.key(1), (4, 500), minval=-1.0)
    actions = jax.random.randint(jax.random.key(2), (500,), 0, 3)

    def theirs(state, action):
        at = first.replace(
            joint_angle1=state[0], joint_angle2=state[1], velocity_1=state[2], velocity_2=state[3]
        )
        seen, at, *_ = env.step_env(jax.random.key(3), at, action, params)
        return seen, -jnp.cos(at.joint_angle1) - jnp.cos(at.joint_angle1 + at.joint_angle2)

    seen, height = jax.vmap(theirs, (1, 0))(states, actions)
    own = acrobot.step(states, actions - 1.0)
    told = acrobot.observe(own, acrobot.Tasks(height, height), jnp.float32(0))[:, :6]
    np.testing.assert_allclose(told * jnp.array([1, 1, 1, 1, 3, 6]), seen, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(acrobot.tip(own), height, atol=1e-3)


def test_success_is_a_tip_over_the_height_within_the_limit():
    tasks = acrobot.Tasks(jnp.array([-2.5, -1.98, 1.9]), jnp.array([3.0, 0.0, 2.0]))
    window = acrobot.play(jax.random.key(0), acrobot.new_policy(jax.random.key(1)), tasks)
    np.testing.assert_array_equal(window.reached, [True, False, False])
    np.testing.assert_array_equal(window.running.sum(0), [1, 0, 2])


@pytest.mark.parametrize("arm", ["uniform", "auto-pass_gain-features", "rates-variance"])
def test_a_small_run_is_resumed(arm, monkeypatch, tmp_path, capsys):
    for name, value in {"UPDATES": 8, "LIMITS": (4, 8), "STEPS": 8, "LAST": 16}.items():
        monkeypatch.setattr(acrobot, name, value)
    out = tmp_path / "runs.jsonl"
    given = ["acrobot", "--arms", arm, "--seeds", "0", "1", "--estimators", "maxrl"]
    monkeypatch.setattr("sys.argv", [*given, "--out", str(out)])
    acrobot.main()
    acrobot.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["seed"] for r in records] == [0, 1]
    assert all(0 <= r["final"] <= 1 and r["steps"] <= 8 * 8 * 16 * 8 for r in records)
    monkeypatch.setattr("sys.argv", [*given, "--out", str(out), "--table"])
    acrobot.main()
    assert arm in capsys.readouterr().out
