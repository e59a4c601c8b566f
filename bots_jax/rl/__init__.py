"""A small Flax policy finetuned by policy gradient on the tasks that a selector chooses.

In comes a pool of verifiable tasks and a selector; out comes a trained policy and the record
of every step. `import bots_jax` does not import this package: it needs flax and optax.

tasks -> policy -> rollouts -> policy_gradient, put together in `loop`; `warmup` makes the
base policy and the reference checkpoints.
"""
