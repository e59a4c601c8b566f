"""The tasks whose Thompson draws fall nearest the target, without drawing every task's.

In: Beta posteriors and a target p*. Out: the `count` tasks of smallest |p^ - p*| with
their draws, distributed as if every p^ ~ Beta(alpha, beta) had been drawn and sorted.

Only draws near the target matter, and there a race finds them in order of distance. Let
f be a task's density and 2 f(x) <= c e^(-c w) for |x - p*| <= w. A Poisson process in the
distance d, of rate c for each task, is run from 0 outwards. When it first hits a task, at
distance d, a fair coin takes x = p* + d or p* - d, and the task is accepted there with
probability f(x) / (c e^(-c d) / 2); later hits of the same task are ignored. So the task is
accepted in dx with probability (c e^(-c d) / 2) (f(x) / (c e^(-c d) / 2)) dx = f(x) dx, just
as its p^ falls there: accepted means p^ = x, not accepted up to w means |p^ - p*| > w. Tasks
are independent, and the first `count` accepted are the nearest. The processes of all tasks
together are one process of rate sum(c): its points cost a few hundred random numbers, and a
walk down a tree of partial sums of c finds the task that each point hits.

Where thinning stops before `count` are accepted (small pools, posteriors so narrow that the
bound on w leaves no room), the remaining tasks are drawn directly, given that they lie
outside of what was explored; that is exact too, and costs a draw for every task.

"Exact" is up to rounding: in float32, hits fall on a task with a relative error below 1e-5
in their rate, and are accepted with one below 1e-6 (1 + (alpha + beta) / 1e3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bots_jax.choice.batch import lowest
from bots_jax.numerics.beta_density import log_beta_density
from bots_jax.numerics.beta_draws import beta as draw_beta
from bots_jax.numerics.control_flow import lazy_cond
from bots_jax.numerics.random_bits import key_words, open_uniform, turn_bits
from bots_jax.numerics.short_lists import (
    columns,
    of_part,
    part_sums,
    pass_by,
    seen_before,
    total_of,
)
from bots_jax.sharding import BLOCK, block_sums
from bots_jax.types import Array

# c over twice the bound on the density. More widens the w for which thinning holds
# (c w <= log of this), and lowers the share of hits that are accepted.
_SLACK = 1.15
_LARGEST_HAZARD = 0.139  # below log(_SLACK)
# Tasks of a leaf of the tree, and summands of its other nodes.
FANOUT, _STEP = BLOCK, 8
# Chunks of hits after which thinning gives up.
_MOST_CHUNKS = 8
# Tasks from whose posteriors the first window is guessed.
_PROBE = 4096


class Candidate(NamedTuple):
    """What a hit turned out to be."""

    task_ids: Array  # i32[P]
    alpha: Array  # f[P]
    beta: Array  # f[P]
    rate: Array  # f[P], c of that task
    runs: Array  # bool[P], False where the hit is void


class Result(NamedTuple):
    """The tasks accepted, nearest first."""

    task_ids: Array  # i32[count], -1 where too few were found
    draws: Array  # f[count], p^; 0 where too few were found
    found: Array  # i32
    explored: Array  # f, every accepted task up to this distance was found

    @property
    def valid(self) -> Array:
        """bool[count]: which places hold a task."""
        return jnp.arange(self.task_ids.shape[0], dtype=jnp.int32) < self.found


def density_bound(alpha: Array, beta: Array, target: Array, width: Array) -> Array:
    """A bound on the Beta(alpha, beta) density over [target - width, target + width].

    For alpha, beta >= 1, with nu = alpha + beta - 2 and the mode at (alpha - 1) / nu,

        f(x) <= C(x) (nu + 2)^(1/2) exp(-2 nu (x - mode)^2)
        C(x) = (.43 + .338 x (1 - x)) / (x (1 - x))^(1/2)

    as the relative entropy of mode and x is at least 2 (x - mode)^2; the constant was found
    numerically (largest excess .992, for counts to 1e5). Below 1 it is false, and
    f_{a, b}(x) = f_{a + 1, b}(x) a / ((a + b) x), and alike for b, repairs it. It is looser
    than the density itself by 1.3 in the median, and by 4 at most near the mode.

    Args:
      alpha, beta: f[...], positive.
      target: f, p*. width: f, at most a quarter of the distance from p* to 0 and to 1.
    """
    low, high = target - width, target + width
    few_a, few_b = alpha < 1, beta < 1
    a = jnp.where(few_a, alpha + 1, alpha)
    b = jnp.where(few_b, beta + 1, beta)
    repair = jnp.where(few_a, alpha / ((alpha + beta) * low), 1)
    repair *= jnp.where(few_b, beta / ((a + beta) * (1 - high)), 1)
    nu = (a - 1) + (b - 1)
    # Where nu = 0 the mode is nowhere, and the exponent 0 whatever it is.
    mode = (a - 1) / jnp.maximum(nu, jnp.finfo(nu.dtype).tiny)
    off = jnp.maximum(jnp.abs(mode - target) - width, 0)
    spread = jnp.minimum(low * (1 - low), high * (1 - high))
    constant = (0.43 + 0.338 * spread) / jnp.sqrt(spread)
    return repair * constant * jnp.sqrt(nu + 2) * jnp.exp(-2 * nu * off * off)


def hit_rate(alpha: Array, beta: Array, target: Array, width: Array) -> Array:
    """c of each task, good up to the distance `width` and to `longest_race`."""
    return 2 * _SLACK * density_bound(alpha, beta, target, width)


def longest_race(width: Array, largest_rate: Array) -> Array:
    """The distance up to which 2 f(x) <= c e^(-c d) for every task."""
    return jnp.minimum(width, _LARGEST_HAZARD / largest_rate)


def nearest(
    rng_key: Array, alpha: Array, beta: Array, allowed: Array, target: Array, count: int
) -> tuple[Array, Array, Array]:
    """The `count` allowed tasks whose draws are nearest the target.

    Args:
      rng_key: consumed.
      alpha, beta: f[C]. allowed: bool[C].
      target: f, p*. count: static.

    Returns:
      i32[count] ids, nearest first, -1 where too few are allowed; f[count] draws;
      bool[count] valid.
    """
    race_key, direct_key = jax.random.split(rng_key)

    def measure(width: Array) -> tuple[Array, Array]:
        # Tied to the width, or XLA moves what does not depend on it out of the loop over
        # widths, into half a dozen arrays of the pool's size.
        a, b, free, _ = lax.optimization_barrier((alpha, beta, allowed, width))
        rates = jnp.where(free, hit_rate(a, b, target, width), 0)
        return block_sums(rates), jnp.max(rates)

    def identify(bits: Array, window: Window, blocks: Array) -> Candidate:
        ids = blocks[:, None] * FANOUT + jnp.arange(FANOUT, dtype=jnp.int32)[None]
        at = jnp.minimum(ids, alpha.shape[0] - 1)
        a, b = alpha[at], beta[at]
        free = allowed[at] & (ids < alpha.shape[0])
        rates = jnp.where(free, hit_rate(a, b, target, window.width), 0)
        lane, rate = pick_lane(rates, bits[0])
        task = jnp.minimum(blocks * FANOUT + lane, alpha.shape[0] - 1)
        return Candidate(task, alpha[task], beta[task], rate, rate > 0)

    # A gather, not a slice with a stride, for which devices would exchange all they hold.
    probe = jnp.arange(0, alpha.shape[0], max(1, alpha.shape[0] // _PROBE), dtype=jnp.int32)
    at_target = hit_rate(alpha[probe], beta[probe], target, jnp.zeros_like(target))
    guess = jnp.mean(jnp.where(allowed[probe], at_target, 0)) * alpha.shape[0]
    window = choose_window(measure, guess, target, count)
    result = run(key_words(race_key), window, identify, target, count)
    direct = _Direct(direct_key, alpha, beta, allowed, target)
    # Tied to the result, or XLA moves the draws of all tasks, which do not depend on it, in
    # front of the loop that seldom turns: under vmap they would be made at every call.
    result = lazy_cond(
        result.found < count,
        lambda result: _finish(*lax.optimization_barrier((_looped(direct), result))),
        result,
    )
    return result.task_ids, result.draws, result.valid


def nearest_of_all(
    rng_key: Array, alpha: Array, beta: Array, allowed: Array, target: Array, count: int
) -> tuple[Array, Array, Array]:
    """The same by drawing every task: for pools so small that a race would not get far."""
    draw_key, tie_key = jax.random.split(rng_key)
    draws = draw_beta(draw_key, alpha, beta)
    ids, valid = lowest(tie_key, jnp.abs(draws - target), allowed, count)
    return ids, draws[jnp.minimum(ids, draws.shape[0] - 1)], valid


class Window(NamedTuple):
    """Where a race is run."""

    block_rates: Array  # f[n], sums of c over blocks of tasks
    width: Array  # f, the width that c was computed for
    length: Array  # f, the distance at which thinning stops


def choose_window(
    measure: Callable[[Array], tuple[Array, Array]],
    guess: Array,
    target: Array,
    count: int,
) -> Window:
    """Choose the width so that the window is long enough, before anything random is drawn.

    Args:
      measure: width -> f[n] sums of the rates c by block, and the largest c of any task.
      guess: f, about what the rates sum to.
      target: f. count: tasks to find.
    """
    hits = 3 * count + 64  # enough if at least 40% of them are accepted
    widest = jnp.minimum(target, 1 - target) / 4
    smallest = jnp.asarray(1e-7, target.dtype)
    width = jnp.clip(1.5 * hits / jnp.maximum(guess, 1e-20), smallest, widest)

    def survey(carry: tuple[Window, Array]) -> tuple[Window, Array]:
        width = carry[0].width
        blocks, largest = measure(width)
        length = longest_race(width, jnp.maximum(largest, jnp.finfo(width.dtype).tiny))
        short = (width * jnp.sum(blocks) < hits) & (length >= width) & (width < widest)
        wider = jnp.where(short, jnp.minimum(4 * width, widest), width)
        return Window(blocks, wider, length), short

    # Begun from nothing: a first survey in front of the loop would be compiled once more.
    blocks = jax.eval_shape(measure, width)[0]
    nowhere = Window(jnp.zeros(blocks.shape, blocks.dtype), width, width)
    return lax.while_loop(lambda carry: carry[1], survey, (nowhere, jnp.asarray(True)))[0]


def pick(weights: Array, uniform: Array) -> Array:
    """i32[P]: an index of each row of f[P, FANOUT], drawn in proportion to its weights."""
    parts = columns(part_sums(weights, _STEP))
    part, over = pass_by(parts, uniform * total_of(parts))
    return part * _STEP + pass_by(columns(of_part(weights, part, _STEP)), over)[0]


def pick_lane(rates: Array, bits: Array) -> tuple[Array, Array]:
    """i32[P]: a task of each block f[P, FANOUT], drawn by its rate; and that rate, f[P]."""
    rates = lax.optimization_barrier(rates)  # or each sum in `pick` would compute them anew
    lane = pick(rates, open_uniform(bits, rates.dtype))
    return lane, of_lane(rates, lane)


def of_lane(values: Array, lane: Array) -> Array:
    """[P]: the entry of each row of [P, FANOUT] at i32[P]."""
    return jnp.take_along_axis(values, lane[:, None], axis=1)[:, 0]


class _Tree(NamedTuple):
    """Sums of _STEP, of _STEP of those, and so on: level after level, from the root down."""

    nodes: Array  # f[n, _STEP]
    first: tuple[int, ...]  # of each level, its first node


def _grow_tree(block_rates: Array) -> _Tree:
    levels = [_in_steps(block_rates)]
    while levels[0].shape[0] > 1:
        levels.insert(0, _in_steps(jnp.sum(levels[0], axis=1)))
    sizes = [level.shape[0] for level in levels]
    first = tuple(sum(sizes[:depth]) for depth in range(len(sizes)))
    return _Tree(jnp.concatenate(levels), first)


def _in_steps(values: Array) -> Array:
    """[n, _STEP]: of [C], with zeros at the end."""
    return jnp.pad(values, (0, -values.shape[0] % _STEP)).reshape(-1, _STEP)


def _uniforms(tree: _Tree) -> int:
    """How many a walk down the tree takes."""
    return -(-len(tree.first) // 2)


def _descend(tree: _Tree, uniforms: Array) -> Array:
    """i32[P]: blocks drawn in proportion to their rates, from the root down.

    A uniform serves two levels, what is over in the first being the threshold in the second;
    for more it would be too coarse.

    Args:
      uniforms: f[`_uniforms`, P].
    """
    first = jnp.asarray(tree.first, jnp.int32)

    def down(depth: Array, place: tuple[Array, Array]) -> tuple[Array, Array]:
        at, over = place
        children = columns(tree.nodes[first[depth] + at])
        fresh = uniforms[depth // 2] * total_of(children)
        step, over = pass_by(children, jnp.where(depth % 2 == 0, fresh, over))
        return at * _STEP + step, over

    # In a loop, so that what a level has found is not worked out anew by all that follows.
    top = jnp.zeros(uniforms.shape[1], jnp.int32), jnp.zeros_like(uniforms[0])
    return lax.fori_loop(0, len(tree.first), down, top)[0]


class _Progress(NamedTuple):
    chunk: Array  # i32
    distance: Array  # f, of the last hit
    hit_ids: Array  # i32[_MOST_CHUNKS, P], in the rows of the chunks so far
    result: Result


def run(
    words: Array,
    window: Window,
    identify: Callable[[Array, Window, Array], Candidate],
    target: Array,
    count: int,
) -> Result:
    """Thin to the end of the window, or until `count` are accepted.

    Args:
      words: u32[2], from `key_words`.
      window: from `choose_window`.
      identify: (u[2, P] random bits, window, i32[P] blocks) -> Candidate, a task of each block
        drawn in proportion to its rate.
      target: f. count: static.
    """
    tree = _grow_tree(window.block_rates)
    total = jnp.sum(tree.nodes[0])
    dtype = total.dtype
    hits = 2 * count + 64

    def advance(progress: _Progress) -> _Progress:
        bits = turn_bits(words, progress.chunk, (_uniforms(tree) + 5, hits), dtype)
        log_uniforms = jnp.log(open_uniform(bits[:2], dtype))
        steps = -log_uniforms[0] / total
        distance = progress.distance + jnp.cumsum(steps)
        blocks = _descend(tree, open_uniform(bits[5:], dtype))
        candidate = identify(bits[3:5], window, blocks)
        side = jnp.where(bits[2] & 1 == 0, 1, -1).astype(dtype)
        accepted = _accept(candidate, target, distance, side, log_uniforms[1])
        ids = jnp.where(candidate.runs, candidate.task_ids, -1)
        first = ~_hit_before(ids, progress)
        accepted &= first & candidate.runs & (distance <= window.length)
        draws = target + side * distance
        result = _append(progress.result, candidate.task_ids, draws, accepted)
        explored = jnp.minimum(distance[-1], window.length)
        result = result._replace(explored=explored)
        hit_ids = lax.dynamic_update_index_in_dim(progress.hit_ids, ids, progress.chunk, 0)
        return _Progress(progress.chunk + 1, distance[-1], hit_ids, result)

    def goes_on(progress: _Progress) -> Array:
        more = (progress.result.found < count) & (progress.chunk < _MOST_CHUNKS)
        return more & (progress.distance < window.length) & (total > 0)

    zero = jnp.zeros((), dtype)
    nobody = Result(
        jnp.full((count,), -1, jnp.int32), jnp.zeros((count,), dtype), jnp.int32(0), zero
    )
    start = _Progress(jnp.int32(0), zero, jnp.zeros((_MOST_CHUNKS, hits), jnp.int32), nobody)
    return lax.while_loop(goes_on, advance, start).result


def _accept(
    candidate: Candidate, target: Array, distance: Array, side: Array, log_height: Array
) -> Array:
    """Whether the hit task's own draw falls where it was hit."""
    log_density = log_beta_density(candidate.alpha, candidate.beta, target, side * distance)
    rate = jnp.where(candidate.runs, candidate.rate, 1)
    log_offered = jnp.log(rate / 2) - rate * distance
    return log_height <= log_density - log_offered


def _hit_before(ids: Array, progress: _Progress) -> Array:
    """bool[P]: whether an earlier hit, of this chunk or of those before, was on the same task."""

    def compare(chunk: Array, found: Array) -> Array:
        return found | jnp.any(ids[:, None] == progress.hit_ids[chunk][None, :], axis=1)

    return lax.fori_loop(0, progress.chunk, compare, seen_before(ids))


def _append(result: Result, ids: Array, draws: Array, accepted: Array) -> Result:
    count = result.task_ids.shape[0]
    # Counted in floats, as the distances are added up: one thing less to compile.
    counted = jnp.cumsum(accepted.astype(draws.dtype)).astype(jnp.int32)
    place = result.found + counted - 1
    place = jnp.where(accepted, place, count)
    return result._replace(
        task_ids=result.task_ids.at[place].set(ids, mode="drop"),
        draws=result.draws.at[place].set(draws, mode="drop"),
        found=jnp.minimum(result.found + jnp.sum(accepted, dtype=jnp.int32), count),
    )


class _Direct(NamedTuple):
    """What it takes to draw every task."""

    rng_key: Array
    alpha: Array
    beta: Array
    allowed: Array
    target: Array


def _looped(direct: _Direct) -> _Direct:
    """The same within a loop of one turn, where JAX's check for keys used twice expects many."""
    return direct._replace(rng_key=jax.random.clone(direct.rng_key))


def _finish(direct: _Direct, result: Result) -> Result:
    """Draw the tasks that were not accepted, given that they lie beyond what was explored."""
    count, size = result.task_ids.shape[0], direct.alpha.shape[0]
    # A barrier counts as a use.
    draw_key, tie_key = jax.random.split(_looped(direct).rng_key)
    draws = draw_outside(draw_key, direct.alpha, direct.beta, direct.target, result.explored)
    place = jnp.where(result.valid, result.task_ids, size)
    draws = draws.at[place].set(result.draws, mode="drop")
    ids, valid = lowest(tie_key, jnp.abs(draws - direct.target), direct.allowed, count)
    return Result(
        jnp.where(valid, ids, -1),
        jnp.where(valid, draws[ids], 0),
        jnp.sum(valid, dtype=jnp.int32),
        result.explored,
    )


def draw_outside(
    rng_key: Array, alpha: Array, beta: Array, target: Array, explored: Array
) -> Array:
    """f[M]: draws from Beta(alpha, beta) given that they are over `explored` from the target.

    A draw falls within the distance that a race may explore with probability at most
    _LARGEST_HAZARD, so a few rounds settle all.
    """

    def inside(draws: Array) -> Array:
        return jnp.abs(draws - target) <= explored

    def redraw(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        draws, attempt = carry
        fresh = draw_beta(jax.random.fold_in(rng_key, attempt), alpha, beta)
        return jnp.where(inside(draws), fresh, draws), attempt + 1

    # At the start every draw is the target itself, hence to be redrawn.
    start = jnp.full(alpha.shape, target), jnp.int32(0)
    return lax.while_loop(lambda carry: jnp.any(inside(carry[0])), redraw, start)[0]
