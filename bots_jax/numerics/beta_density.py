"""The logarithm of the Beta density in float32, without cancellation.

In: parameters and a point. Out: log f, to 1e-6 (1 + (alpha + beta) / 1e3).
"""

from __future__ import annotations

import jax.numpy as jnp

from bots_jax.types import Array

# Stirling's series for log Gamma is used from here on; smaller parameters are raised to it.
_STIRLING = 8.0


def log_beta_density(alpha: Array, beta: Array, target: Array, offset: Array) -> Array:
    """log of the Beta(alpha, beta) density at x = target + offset, in (0, 1).

    Differences of `lgamma` in float32 err by 4e-4 at 160 pseudo-counts and .6 at 1e5. Here,
    with p = a / (a + b) and everything measured from p,

        log f = a log(x / p) + b log((1 - x) / (1 - p)) + log(a b / (2 pi (a + b))) / 2
                - log(x (1 - x)) - S(a) - S(b) + S(a + b),

    S the remainder of Stirling's series, and the first two terms as
    a phi((x - p) / p) + b phi((p - x) / (1 - p)), phi(u) = log(1 + u) - u, whose linear parts
    cancel. Parameters below 8 are raised by f_{a,b}(x) = f_{a+1,b}(x) a / ((a + b) x).
    """
    x = target + offset
    a, log_a = _raised(alpha, beta, x)
    b, log_b = _raised(beta, a, 1 - x)
    total = a + b
    p, q = a / total, b / total
    away = ((target * b - (1 - target) * a) / total) + offset
    entropy = a * _log1p_minus(away / p) + b * _log1p_minus(-away / q)
    scale = 0.5 * jnp.log(a * q / (2 * jnp.pi)) - jnp.log(x * (1 - x))
    remainder = _stirling(a) + _stirling(b) - _stirling(total)
    return entropy + scale - remainder + log_a + log_b


def _raised(a: Array, b: Array, x: Array) -> tuple[Array, Array]:
    """a + 8 where a < 8, and the log of what that does to the density."""
    small = a < _STIRLING
    base = jnp.where(small, a, 1)  # where it is not raised nothing may overflow
    log_factor = jnp.zeros_like(base)
    for start in (0, 4):  # in two products, or a tiny a with a large b would underflow
        factor = jnp.ones_like(base)
        for step in range(start, start + 4):
            factor *= (base + step) / ((base + b + step) * x)
        log_factor += jnp.log(factor)
    return jnp.where(small, a + _STIRLING, a), jnp.where(small, log_factor, 0)


def _stirling(z: Array) -> Array:
    """log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2, for z >= 8."""
    inverse = 1 / z
    square = inverse * inverse
    series = 1 / 1260 - square * (1 / 1680 - square * (1 / 1188 - square * (691 / 360360)))
    return inverse * (1 / 12 - square * (1 / 360 - square * series))


def _log1p_minus(u: Array) -> Array:
    """log(1 + u) - u for u > -1, without the cancellation at small u.

    With s = u / (2 + u), log(1 + u) = 2 (s + s^3 / 3 + s^5 / 5 + ...), and 2 s - u = -u s.
    """
    near = jnp.abs(u) < 0.5
    small = jnp.where(near, u, 0)
    s = small / (2 + small)
    square = s * s
    tail = jnp.zeros_like(s)
    for power in range(33 if s.dtype == jnp.float64 else 17, 1, -2):
        tail = square * (tail + 1 / power)
    far = jnp.where(near, 0, u)
    return jnp.where(near, s * (2 * tail - small), jnp.log1p(far) - far)
