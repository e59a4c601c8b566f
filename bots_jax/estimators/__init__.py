"""Estimators of implicit evidence; `bots_jax.implicit` has them by name."""
