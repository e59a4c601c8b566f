"""The belief of strategies that only count: BOTS with nothing forgotten or inferred."""

from __future__ import annotations

from bots_jax.beta_belief import beta_belief, beta_rules
from bots_jax.checks import check_settings
from bots_jax.compose import merge_settings
from bots_jax.implicit import none
from bots_jax.selector import PRESETS
from bots_jax.types import ArrayLike, Settings

COUNTING = beta_belief(beta_rules(none()))


def counting_settings(rollouts: ArrayLike) -> Settings:
    """The numbers of a counting belief: lambda = rho = 0, prior Beta(1, 1)."""
    given = Settings(rollouts=rollouts, forgetting=0.0, implicit_weight=0.0)
    check_settings(given)
    return merge_settings(PRESETS["paper"]["settings"], given)
