"""Exact Beta draws for whole arrays, faster than `jax.random.beta`.

In: a key and parameters. Out: draws, pairs (x, 1 - x), or log-odds; see
`numerics/beta_draws.py` for how.
"""

from bots_jax.numerics.beta_draws import beta, beta_log_odds, beta_pair

__all__ = ["beta", "beta_log_odds", "beta_pair"]
