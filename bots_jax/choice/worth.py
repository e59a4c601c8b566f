"""What a task is worth to the gradient: a function of its rate p and of the rollouts of a group.

In: `auto(worth=...)`, a name or a function. Out: a `Worth`, which `choice/mixed.py` and
`grouped/mixed.py` score tasks by. Each is at most 1, so that `breadth` is a price in one unit.
m is the group's size throughout: `auto(group=...)`, where that is given.

=========  ===================================  ===============================================
name       W(p, m)                              advantages that it suits
=========  ===================================  ===============================================
mixed      1 - p^m - (1 - p)^m                  over the group's standard deviation: grpo
variance   4 p (1 - p)                          not divided: dr_grpo, rloo
pass_gain  1 - (1 - p)^m - p, scaled to 1       over the group's mean: maxrl (arXiv 2602.02710)
=========  ===================================  ===============================================

Of a policy that solves the task with p = logistic(t) the expected step in t is E sum_i A_i R_i / m.
That is p (1 - p) (1 - 1 / m) for dr_grpo, and pass_gain, what m tries solve and one does not, for
maxrl. For grpo it is E sqrt(k (m - k)) / m with k successes; the chance that it is not 0 is flat in
the middle, and so is nearly as good there and spreads the choice.

Of what is not known the best is hoped: `optimistic` moves the rate to where the worth is largest.
That is 1/2 for the first two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bots_jax.belief.logit_normal import Expected, optimistic_rate
from bots_jax.checks import check_choice
from bots_jax.types import Array

WORTHS = ("mixed", "variance", "pass_gain")
_BITS = 7  # of m
_GRID = np.arange(1, 256, dtype=np.float32) / 256  # rates at which a user's function is looked at
_TRIED = (2, 8, 64)  # rollouts at which it is

WorthFn = Callable[[Array, Array], Array]  # (p f[...], m f[]) -> W f[...] in [0, 1]


class Worth(NamedTuple):
    """A worth, as choices ask for it; static."""

    name: str
    lack: WorthFn  # 1 - W
    peak: Callable[[Array], Array] | None  # m -> logit of the rate of largest worth; None for 0


def optimistic(worth: Worth, expected: Expected, rollouts: Array) -> Array:
    """f[...]: the rate nearer to the best one, the less is known the more."""
    if worth.peak is None:
        return optimistic_rate(expected)
    best = worth.peak(rollouts).astype(expected.shared.dtype)
    return optimistic_rate(expected, best)


def find_worth(worth: str | WorthFn) -> Worth:
    """The worth of that name, or of a user's function.

    Raises:
      ValueError: where the name is not known, or the function cannot be hashed, cannot be
        called with arrays, or is not in [0, 1].
    """
    if isinstance(worth, str):
        return _NAMED[check_choice("worth", worth, WORTHS)]
    if not callable(worth):
        raise ValueError(
            f"worth={worth!r} must be one of {', '.join(WORTHS)}, or a function of p and m"
        )
    try:
        hash(worth)
    except TypeError:
        raise ValueError(f"worth={worth!r} cannot be hashed: give a plain function") from None
    for rollouts in _TRIED:
        _check_values(worth, rollouts)
    return Worth(_name_of(worth), _Lack(worth), _Peak(worth))


def _check_values(worth: WorthFn, rollouts: int) -> None:
    with jax.ensure_compile_time_eval():
        rate = jnp.asarray(np.r_[np.float32(0), _GRID, np.float32(1)])
        try:
            found = np.asarray(worth(rate, jnp.float32(rollouts)))
        except Exception as error:
            raise ValueError(
                f"worth={_name_of(worth)}: it must take arrays p f[...] and m f[], and use "
                f"jax.numpy: {type(error).__name__}: {error}"
            ) from error
    if found.shape != rate.shape:
        raise ValueError(
            f"worth={_name_of(worth)} returned shape {found.shape} for p of shape {rate.shape}: "
            "return a number for each p"
        )
    outside = ~((found >= 0) & (found <= 1))
    if outside.any():
        at = int(np.argmax(outside))
        raise ValueError(
            f"worth={_name_of(worth)} is {found[at]} at p={float(rate[at]):.3g}, m={rollouts}, and "
            "must lie in [0, 1], the unit of breadth: divide it by its largest value"
        )


def _name_of(worth: Any) -> str:
    return f"{getattr(worth, '__module__', '')}.{getattr(worth, '__qualname__', repr(worth))}"


@dataclasses.dataclass(frozen=True)
class _Lack:
    """1 - W of a user's function."""

    worth: WorthFn

    def __call__(self, rate: Array, rollouts: Array) -> Array:
        value = jnp.asarray(self.worth(rate, rollouts)).astype(rate.dtype)
        # No score may outweigh the floor, and none may be lost: what is no number is worth nothing.
        return 1 - jnp.clip(jnp.nan_to_num(value, nan=0.0), 0, 1)


@dataclasses.dataclass(frozen=True)
class _Peak:
    """Where a user's function is largest: the middle of such rates."""

    worth: WorthFn

    def __call__(self, rollouts: Array) -> Array:
        rate = jnp.asarray(_GRID, jnp.result_type(rollouts))
        lack = _Lack(self.worth)(rate, rollouts)
        best = jnp.mean(rate, where=lack <= jnp.min(lack) + 1e-5)
        return jnp.log(best / (1 - best))


# --- the named ones -------------------------------------------------------------------------


def prob_zero_advantage(rate: Array, rollouts: Array) -> Array:
    """1 - V = p^m + (1 - p)^m, for m rounded to a whole number in [1, 127].

    Near 0 it is resolved more finely than V is near 1.
    """
    count = _whole(rollouts)
    return _power(rate, count) + _power(1 - rate, count)


def chance_of_mixed_group(alpha: Array, beta: Array, group: int | Array) -> Array:
    """Chance that a group of `group` rollouts is neither all right nor all wrong.

        E V = 1 - B(alpha + G, beta) / B(alpha, beta) - B(alpha, beta + G) / B(alpha, beta)

    with V = 1 - p^G - (1 - p)^G and p ~ Beta(alpha, beta). For whole G both quotients are
    products, B(a + G, b) / B(a, b) = prod (a + i) / (a + b + i) over i = 0, ..., G - 1. The
    larger of the two is near 1 where V is small, so what it lacks to 1 is summed up by
    itself; 1 minus the product would be noise in float32.

    Of many tasks alike this is the share of mixed groups, where V at their mean rate is not: at a
    mean of .11, 32 rollouts and tasks of which half are never solved, V at the mean is .98.

    Args:
      alpha, beta: f[...], not negative, and not both 0.
      group: G; an integer, or a number that may be traced, which is rounded.

    Returns:
      f[...] in (0, 1): positive, so that it has a logarithm.
    """
    rare, total = jnp.minimum(alpha, beta), alpha + beta

    def one_more(i: Array | int, chances: tuple[Array, Array]) -> tuple[Array, Array]:
        all_rare, some_rare = chances
        i = jnp.asarray(i, total.dtype)
        some_rare += rare / (total + i) * (1 - some_rare)
        return all_rare * (rare + i) / (total + i), some_rare

    chances = (jnp.ones_like(total), jnp.zeros_like(total))
    if isinstance(group, int):  # unrolled, so that it is one pass over the tasks
        for i in range(group):
            chances = one_more(i, chances)
    else:
        times = jnp.round(group).astype(jnp.int32)
        chances = lax.fori_loop(jnp.int32(0), times, one_more, chances)
    all_rare, some_rare = chances
    return jnp.maximum(some_rare - all_rare, jnp.finfo(total.dtype).tiny)


def _lack_of_variance(rate: Array, rollouts: Array) -> Array:
    """(1 - 2 p)^2."""
    return jnp.square(1 - 2 * rate)


def _lack_of_pass_gain(rate: Array, rollouts: Array) -> Array:
    """1 - (q - q^m) / its maximum, q = 1 - p."""
    wrong, count = 1 - rate, _whole(rollouts)
    best = jnp.exp(_log_of_best(rollouts)).astype(rate.dtype)
    most = jnp.maximum(best * (1 - 1 / _at_least_two(rollouts)), jnp.finfo(rate.dtype).tiny)
    return 1 - (wrong - _power(wrong, count)) / most.astype(rate.dtype)


def _peak_of_pass_gain(rollouts: Array) -> Array:
    log_wrong = _log_of_best(rollouts)
    return jnp.log(-jnp.expm1(log_wrong)) - log_wrong


def _log_of_best(rollouts: Array) -> Array:
    """log q at which q - q^m is largest: m q^(m - 1) = 1."""
    count = _at_least_two(rollouts)
    return -jnp.log(count) / (count - 1)


def _at_least_two(rollouts: Array) -> Array:
    """m as a float. (One try is all that one try solves: pass_gain is 0 everywhere.)"""
    return jnp.maximum(_whole(rollouts), 2).astype(jnp.result_type(rollouts))


def _whole(rollouts: Array) -> Array:
    return jnp.clip(jnp.round(rollouts), 1, 2**_BITS - 1).astype(jnp.int32)


def _power(base: Array, count: Array) -> Array:
    """base^count by squaring.

    Seven products, in a pass over all tasks, where a logarithm and an exponential would be most of
    what the pass costs.
    """
    power = jnp.ones_like(base)
    for bit in range(_BITS):
        power = jnp.where((count >> bit) & 1 == 1, power * base, power)
        base = base * base
    return power


MIXED = Worth("mixed", prob_zero_advantage, None)
_NAMED = {
    "mixed": MIXED,
    "variance": Worth("variance", _lack_of_variance, None),
    "pass_gain": Worth("pass_gain", _lack_of_pass_gain, _peak_of_pass_gain),
}
