"""The environments of the suite, by the names of the command line.

`ENVIRONMENTS` maps a name to "module:factory"; a module is imported when its environment
is asked for, as the finetune loop needs more packages than the others.
"""

ENVIRONMENTS = {
    "replay": "bots_jax.bench.environments.replay:replay_environment",
    "predict": "bots_jax.bench.environments.predict:predict_environment",
    "simulation": "bots_jax.bench.environments.simulation:simulation_environment",
    "worlds": "bots_jax.bench.environments.worlds:worlds_environment",
    "finetune": "bots_jax.bench.environments.finetune:finetune_environment",
}
