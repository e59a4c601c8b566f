"""Features of tasks, computed from prompts, the policy's hidden states, or levels.

In: N prompts or levels. Out: f32[N, F] of mean 0 and variance 1. A regression on them tells
tasks apart before any has been tried, as pass rates of reference models do.
"""

from bots_jax.features.levels import of_levels
from bots_jax.features.states import hidden_states
from bots_jax.features.text import text

__all__ = ["hidden_states", "of_levels", "text"]
