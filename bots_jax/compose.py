"""Compose a selector from a pool, a belief and a choice.

In: a `BeliefModel` (what is believed of each task), a `Choice` (what each is worth), and
the static plan of a batch. Out: a `Selector`. The pool (visits, eligibility, pending
evidence, quotas, growth) is written once, in `pool/visits.py` and `choice/batch.py`, for all.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from bots_jax.checks import check_choice, check_count, host_numbers, is_concrete
from bots_jax.choice.batch import Plan, Ranking, as_mask, check_quotas, choose, lowest, make_plan
from bots_jax.numerics.arithmetic import safe_ratio
from bots_jax.numerics.compiling import is_small, jit_changes
from bots_jax.numerics.control_flow import sequencing_zero
from bots_jax.pool import visits
from bots_jax.pool.evidence import (
    Rows,
    as_ids,
    as_rows,
    in_few_sizes,
    take_evidence,
    validate_evidence,
)
from bots_jax.pool.features import encode
from bots_jax.pool.reference import (
    FEATURES_DTYPES,
    Reference,
    TaskFeatures,
    as_given,
    check_numbering,
    expand_reference,
    make_reference,
    reference_dtype,
)
from bots_jax.pool.visits import Evaluated, StepEvidence, over_evaluated
from bots_jax.settings import ALWAYS_OBEYED, check_settings, merge_settings, refuse_ignored
from bots_jax.sharding import beside, constrain_sharding, total
from bots_jax.types import (
    AdvanceFn,
    Array,
    ArrayLike,
    Belief,
    Evidence,
    Info,
    InitFn,
    PyTree,
    Recipe,
    Selection,
    Selector,
    Settings,
    State,
)

# Rows with pending evidence that are kept track of: what a few batches bring in one step.
TOUCHED_PER_SELECTED, _LEAST_TOUCHED = 4, 256


class BeliefInfo(NamedTuple):
    """What a belief reports about a step, for `Info`."""

    capability: Array  # f[D], or f[1] for all domains alike
    implicit_weight: Array  # f
    implicit_error: Array  # f


class BeliefModel(NamedTuple):
    """A belief about every task: pure functions over its own pytree.

    init(settings, reference, num_domains) -> belief
    fuse(belief, settings, reference, fused) -> (belief, BeliefInfo); one time step
    predict(state, rows) -> Belief; rows i32[...] or slice(None)
    draw(rng_key, state) -> f[C], one draw of each p

    The two are asked with the whole state: what is believed may rest on domains and features.
    The pytree has a method restart(settings, rows i32[A], active bool[C]) -> pytree that makes
    those rows new, for `add_tasks`; rows >= C are dropped. `active` are the tasks that there were
    before: what new ones take from the others is theirs, not that of empty rows.
    """

    init: Callable[[Settings, Reference, int], PyTree]
    fuse: Callable[[PyTree, Settings, Reference, StepEvidence], tuple[PyTree, BeliefInfo]]
    predict: Callable[[State, Any], Belief]
    draw: Callable[[Array, State], Array]


class Choice(NamedTuple):
    """A choice: the function that scores each task, and how the scores are used.

    score(rng_key, model, state) -> (f[C] scores, lower is better; f[C] draws to report)
    best(rng_key, model, state, allowed bool[C], count) -> (i32[count] ids, f[count] draws,
      bool[count] valid): the best of the allowed, where there is a quicker way to find them
      than to score all.
    """

    score: Callable[[Array, BeliefModel, State], tuple[Array, Array]]
    best: Callable[[Array, BeliefModel, State, Array, int], tuple[Array, Array, Array]] | None = (
        None
    )


def _ranking(rng_key: Array, choice: Choice, model: BeliefModel, state: State) -> Ranking:
    """The choice as a function that takes the best of any part of the pool."""
    if choice.best is not None:
        quick = choice.best
        return lambda key, allowed, count: quick(key, model, state, allowed, count)
    scores, draws = choice.score(rng_key, model, state)
    rows = (_capacity(state),)
    for name, value in (("scores", scores), ("draws", draws)):
        if np.shape(value) != rows:
            raise ValueError(
                f"Choice.score returned {name} of shape {np.shape(value)}, expected {rows}: one "
                "for each row of the pool"
            )

    def rank(key: Array, allowed: Array, count: int) -> tuple[Array, Array, Array]:
        ids, valid = lowest(key, scores, allowed, count)
        return ids, draws[jnp.minimum(ids, draws.shape[0] - 1)], valid

    return rank


class Shared(TypedDict, total=False):
    """The keyword arguments that every factory takes and passes on to `compose`.

    exploration: share of the batch drawn uniformly, between 0 and 1; default 0.
    quotas: tasks of each domain in a batch, summing to B; None (default): no quotas.
    num_domains: D, where `init` cannot count the domains because they are traced.
    expiry: close visits older than this many steps; None (default): never.
    keep_open: whether a visit stays open over `advance` until its m rollouts are in, so that their
      rest may come in later steps; default False: the step that fuses some of them ends it.
    dtype: float32 or float64; None follows the reference, float32 without one.
    """

    exploration: float
    quotas: Sequence[int] | None
    num_domains: int | None
    expiry: int | None
    keep_open: bool
    dtype: Any


_DEFAULTS: Shared = {"exploration": 0.0, "keep_open": False}  # the others are None


def plan_of(batch_size: int, shared: Shared) -> Plan:
    """The composition of a batch; raises for an argument that no factory has.

    Raises:
      TypeError: naming the argument.
      ValueError: naming the argument and its value.
    """
    for name in sorted(set(shared) - set(Shared.__annotations__)):
        raise TypeError(
            f"got an unexpected keyword argument {name!r}; every factory takes "
            f"{', '.join(Shared.__annotations__)} beside its own"
        )
    given: Shared = {**_DEFAULTS, **shared}
    return make_plan(batch_size, given["exploration"], given.get("quotas"))


F = TypeVar("F", bound=Callable[..., Selector])


def factory(make: F) -> F:
    """Decorator: makes a factory's selectors hashable, comparable and picklable.

    An identical build is the same object while it lives, so that nothing is compiled twice. Where
    an argument is traced or cannot be hashed, a selector is equal to itself alone.
    """
    signature = inspect.signature(make)
    spelt_out = _spelt_out(signature)
    expected = spelt_out if "shared" in signature.parameters else signature
    # Weak, so that what nobody uses is forgotten with all that was compiled for it.
    made: weakref.WeakValueDictionary[Any, Selector] = weakref.WeakValueDictionary()

    @functools.wraps(make)
    def build(*args: Any, **given: Any) -> Selector:
        try:
            bound = expected.bind(*args, **given)
        except TypeError as error:
            names = ", ".join(expected.parameters)
            raise TypeError(f"{make.__name__}: {error}; it takes, by name, {names}") from None
        bound.apply_defaults()
        arguments = bound.arguments
        key = _frozen(arguments)
        if key is None:
            return make(*args, **given)
        found = made.get(key)
        if found is None:
            recipe = Recipe(build, tuple(sorted(arguments.items())), key)
            found = made[key] = dataclasses.replace(make(*args, **given), recipe=recipe)
        return found

    build.__signature__ = spelt_out  # type: ignore[attr-defined]
    return build  # type: ignore[return-value]


def _spelt_out(signature: inspect.Signature) -> inspect.Signature:
    """The signature with the arguments of `Shared` in place of **shared, for help and command."""
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(own) < len(signature.parameters):
        own += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name))
            for name in Shared.__annotations__
        ]
    return signature.replace(parameters=own)


def _frozen(arguments: Mapping[str, Any]) -> Any:
    """The arguments as a hashable value that tells 1 from True; None where there is none."""

    def freeze(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value).__name__, tuple(freeze(part) for part in value)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            if not is_concrete(value):
                raise TypeError("traced")
            array = np.asarray(value)
            return type(value).__name__, array.dtype.str, array.shape, array.tobytes()
        hash(value)
        return type(value).__name__, value

    try:
        x64 = bool(jax.config.read("jax_enable_x64"))
        return x64, tuple((name, freeze(value)) for name, value in sorted(arguments.items()))
    except TypeError:
        return None


def compose(
    *,
    name: str,
    model: BeliefModel,
    choice: Choice,
    settings: Settings,
    batch_size: int,
    static: Mapping[str, Any] | None = None,
    obeys: Collection[str] | None = None,
    features_dtype: str | None = None,
    **shared: Unpack[Shared],
) -> Selector:
    """Make a `Selector` from the shared pool, a belief and a choice.

    Each function is compiled once a shape. Values are checked before that, where they
    can be looked at; inside jit, scan and vmap they cannot, and invalid rows are ignored
    and counted in `Info.invalid` instead.

    Args:
      name: of the strategy, for checkpoints and reports.
      model, choice: the two parts that make the strategy.
      settings: the factory's numbers, every field given.
      batch_size: B, tasks a step.
      static: further static settings that a checkpoint must agree with.
      obeys: fields of `Settings` that have an effect here besides `settings.ALWAYS_OBEYED`; others
        are refused by `init(settings=...)`. None: none is refused.
      features_dtype: what features are stored in, one of `pool.reference.FEATURES_DTYPES`; None
        for the state's dtype, or float16 from 200,000 tasks on.
      shared: see `Shared`.

    Raises:
      ValueError: naming the argument and its value.
    """
    plan = plan_of(batch_size, shared)
    expiry = None if (age := shared.get("expiry")) is None else check_count("expiry", age)
    dtype = None if (wanted := shared.get("dtype")) is None else _check_dtype(wanted)

    keep_open = bool(shared.get("keep_open", _DEFAULTS["keep_open"]))
    described = {"strategy": name, **plan._asdict(), "expiry": expiry, **(static or {})}
    if keep_open:
        described["keep_open"] = True
    count = (
        None if (given := shared.get("num_domains")) is None else check_count("num_domains", given)
    )
    _check_features_dtype(features_dtype, described)
    told = None if obeys is None else frozenset(obeys) | frozenset(ALWAYS_OBEYED)
    init = _init_of(model, settings, plan, described, told, count, dtype, features_dtype)
    traced = _traced_functions(model, choice, plan, expiry, keep_open)

    def select(
        rng_key: Array, state: State, eligible: ArrayLike | None = None
    ) -> tuple[State, Selection]:
        check_state(state)
        mask = beside(as_mask(eligible, _capacity(state)), state.pool.trials)
        return traced.select(check_key(rng_key), state, mask)

    def observe(state: State, evidence: Evidence) -> State:
        return traced.observe(state, admit_rows(state, evidence))

    def update(state: State, evidence: Evidence) -> tuple[State, Info]:
        return traced.update(state, admit_rows(state, evidence))

    def abandon(state: State, task_ids: ArrayLike) -> State:
        return traced.abandon(state, check_ids(state, task_ids))

    def predict(state: State, task_ids: ArrayLike | None = None) -> Belief:
        return traced.predict(state, None if task_ids is None else check_ids(state, task_ids))

    functions = (init, select, observe, traced.advance, update, abandon, predict)
    return Selector(*functions, described, obeys=told)


def _init_of(
    model: BeliefModel,
    base: Settings,
    plan: Plan,
    static: Mapping[str, Any],
    obeys: frozenset[str] | None,
    num_domains: int | None,
    dtype: Any,
    features_dtype: str | None,
) -> InitFn:
    """`init`, on the host: everything that a user gives is checked, then laid out."""

    def init(
        reference: ArrayLike | None = None,
        settings: Settings | Mapping[str, ArrayLike] | None = None,
        num_tasks: int | None = None,
        reference_trials: ArrayLike | None = None,
        domains: ArrayLike | None = None,
        capacity: int | None = None,
        features: Any = None,
    ) -> State:
        reference, reference_trials, domains = as_given(reference, reference_trials, domains)
        reference = with_features(reference, features, static)
        float_dtype = reference_dtype(dtype, reference)
        numbers = settings_of(base, settings, float_dtype)
        refuse_ignored(settings, obeys, static["strategy"])
        rates, trials, domains = expand_reference(reference, reference_trials, domains)
        known, tasks = make_reference(
            rates, trials, num_tasks, capacity, float_dtype, features_dtype
        )
        rows = known.rates.shape[1]
        _check_room(tasks, rows, plan.batch_size, grows=capacity is not None)
        domain, count = _make_domains(domains, tasks, num_domains)
        check_quotas(plan, count)
        touched_capacity = max(TOUCHED_PER_SELECTED * plan.batch_size, _LEAST_TOUCHED)
        track_expiry = static["expiry"] is not None
        tasks_state = visits.make_pool(
            tasks, rows, domain, count, float_dtype, touched_capacity, track_expiry
        )
        return own_buffers(State(numbers, tasks_state, known, model.init(numbers, known, count)))

    return init


class _Traced(NamedTuple):
    """The functions of a selector over arrays alone, jitted."""

    select: Callable[[Array, State, Array | None], tuple[State, Selection]]
    observe: Callable[[State, Rows], State]
    advance: AdvanceFn
    update: Callable[[State, Rows], tuple[State, Info]]
    abandon: Callable[[State, Array], State]
    predict: Callable[[State, Array | None], Belief]


def _traced_functions(
    model: BeliefModel, choice: Choice, plan: Plan, expiry: int | None, keep_open: bool
) -> _Traced:
    """What a selector does, each function compiled once a shape."""

    @jit_changes
    def select_arrays(
        state: State, rng_key: Array, eligible: Array | None
    ) -> tuple[State, Selection]:
        score_key, choice_key = jax.random.split(rng_key)
        rank = _ranking(score_key, choice, model, state)
        allowed = visits.selectable(state.pool, eligible)
        ids, draws, valid = choose(choice_key, rank, allowed, state.pool.domain, plan)
        opened, visit = visits.open_visits(state.pool, ids, valid)
        selection = Selection(ids, draws, valid, visit)
        return constrain_sharding((state._replace(pool=opened), selection), state)

    @jit_changes
    def observe_arrays(state: State, evidence: Rows) -> tuple[State, None]:
        observed = visits.observe(state.pool, evidence, state.settings.rollouts)
        return constrain_sharding((state._replace(pool=observed), None), state)

    @jit_changes
    def advance_arrays(state: State) -> tuple[State, Info]:
        closed, fused, counts = visits.close_step(state.pool, expiry, keep_open)
        belief, told = model.fuse(state.belief, state.settings, state.reference, fused)
        info = make_info(fused, counts, told)
        belief_is_done = sequencing_zero((closed.visit, belief, info), info.trials.dtype)
        closed = visits.clear_pending(closed, fused, belief_is_done)
        return constrain_sharding((state._replace(pool=closed, belief=belief), info), state)

    @jit_changes
    def update_arrays(state: State, evidence: Rows) -> tuple[State, Info]:
        return advance_arrays(observe(state, evidence))

    @jit_changes
    def abandon_arrays(state: State, task_ids: Array) -> tuple[State, None]:
        closed = visits.abandon(state.pool, task_ids)
        return constrain_sharding((state._replace(pool=closed), None), state)

    @jax.jit
    def predict(state: State, task_ids: Array | None) -> Belief:
        return model.predict(state, slice(None) if task_ids is None else task_ids)

    def select(rng_key: Array, state: State, eligible: Array | None) -> tuple[State, Selection]:
        return select_arrays(state, rng_key, eligible)

    def observe(state: State, evidence: Rows) -> State:
        return observe_arrays(state, evidence)[0]

    def advance(state: State) -> tuple[State, Info]:
        check_state(state)
        return advance_arrays(state)

    def update(state: State, evidence: Rows) -> tuple[State, Info]:
        # Two programs are compiled sooner than one, and have the bits of two calls. In a large pool
        # each would write the arrays of all tasks once.
        if is_small((state, evidence)):
            return advance(observe(state, evidence))
        return update_arrays(state, evidence)

    def abandon(state: State, task_ids: Array) -> State:
        return abandon_arrays(state, task_ids)[0]

    return _Traced(select, observe, advance, update, abandon, predict)


def check_ids(state: State, task_ids: ArrayLike) -> Array:
    """Task ids as i32; raises on the host if they are out of range."""
    check_state(state)
    check_no_batch(task_ids)
    return as_ids("task_ids", beside(task_ids, state.pool.trials), _capacity(state))


def check_no_batch(task_ids: Any) -> None:
    """Raise if a whole batch was given for its ids."""
    if isinstance(task_ids, Selection):
        raise ValueError("task_ids is a Selection, expected i32[...]: give its task_ids")


def check_state(state: Any) -> None:
    """Raise if the arguments of a function were swapped."""
    if not isinstance(state, State):
        raise ValueError(
            f"state is a {type(state).__name__}, expected a bots_jax.State: the order is "
            "select(rng_key, state), update(state, evidence), predict(state, task_ids)"
        )


def _capacity(state: State) -> int:
    return int(state.pool.active.shape[-1])


def admit_rows(state: State, evidence: Evidence) -> Rows:
    """Evidence as arrays; raises if values on the host are impossible.

    Arrays of a device are not looked at, or each call would wait for it: their rows that make no
    sense are ignored and counted in `Info.invalid`, as in traced code.
    """
    check_state(state)
    evidence = take_evidence(evidence)
    validate_evidence(evidence, _capacity(state))
    evidence = beside(in_few_sizes(evidence), state.pool.trials)
    return as_rows(evidence, state.pool.trials.dtype)


def check_key(rng_key: Array) -> Array:
    """Check a random key; raises ValueError."""
    if isinstance(rng_key, State):
        raise ValueError("rng_key is a State: the order is select(rng_key, state)")
    dtype = getattr(rng_key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32):
        raise ValueError(f"rng_key={rng_key!r} is not a random key: use jax.random.key(seed)")
    return rng_key


def _check_dtype(dtype: Any) -> jnp.dtype:
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype={dtype} must be float32 or float64")
    if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("dtype=float64 needs jax.config.update('jax_enable_x64', True) first")
    return dtype


def _check_features_dtype(dtype: str | None, static: Mapping[str, Any]) -> None:
    if dtype is None:
        return
    check_choice("features_dtype", dtype, FEATURES_DTYPES)
    if not can_use_features(static):
        raise ValueError(
            f"features_dtype={dtype!r} has no effect with estimator={static.get('estimator')!r}, "
            "which looks at no features: leave it out, or use estimator='glm'"
        )


# Estimators of ours that look at references alone.
_WITHOUT_FEATURES = (None, "linear", "linear_ls", "logit", "none")


def can_use_features(static: Mapping[str, Any]) -> bool:
    """Whether a selector with this `static` can use features of tasks."""
    return static.get("estimator") not in _WITHOUT_FEATURES or static.get("reads") == "embeddings"


def with_features(reference: Any, features: Any, static: Mapping[str, Any]) -> Any:
    """The reference, with features if any are given, for a selector that can use them."""
    if features is None:
        return reference
    if not can_use_features(static):
        raise ValueError(
            f"features are of no use to strategy={static['strategy']!r}: leave them out and give "
            "num_tasks, or use bots_jax.auto, or bots(estimator='glm')"
        )
    if isinstance(reference, TaskFeatures):
        raise ValueError("features were given beside reference=TaskFeatures(...): give one of them")
    rates = expand_reference(reference, None, None)[0]
    return TaskFeatures(rates, *encode(features))


def own_buffers(state: State) -> State:
    """The state without shared buffers, so that it can be donated; traced states pass."""
    if not is_concrete(state):
        return state
    seen: set[int] = set()

    def own(leaf: Array) -> Array:
        known = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.array(leaf) if known else leaf

    return State(*jax.tree.map(own, tuple(state)))


def settings_of(
    base: Settings, given: Settings | Mapping[str, ArrayLike] | None, dtype: jnp.dtype
) -> Settings:
    """The factory's settings overridden by those of `init`, checked, in the state's dtype."""
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(Settings._fields))
        if unknown:
            raise ValueError(
                f"settings has unknown {unknown[0]!r}: choose from {', '.join(Settings._fields)}"
            )
        given = Settings(**given)
    if not isinstance(given, Settings | None):
        raise ValueError(f"settings={given!r} must be a bots_jax.Settings or a mapping")
    merged = base if given is None else merge_settings(base, given)
    check_settings(merged)
    # A copy of each: an array of the user's must not be donated together with the state.
    narrowed = Settings(*(jnp.array(value, dtype) for value in merged))
    check_settings(narrowed)  # 1e-46 is 0 in float32, and 1 - 1e-9 is 1
    return narrowed


def _check_room(num_tasks: int, capacity: int, batch_size: int, grows: bool) -> None:
    available = capacity if grows else num_tasks
    if available < batch_size:
        raise ValueError(
            f"batch_size={batch_size} exceeds the pool of {available} tasks: lower it, add "
            "tasks, or give init(capacity=...) to a pool that will grow"
        )


def _make_domains(
    domains: ArrayLike | None, num_tasks: int, num_domains: int | None
) -> tuple[Array | None, int]:
    """i32[N] domains and D."""
    if domains is None:
        return None, 1
    array = host_numbers("domains", domains, copy=False)
    if array.shape != (num_tasks,) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"domains has shape {array.shape} and dtype {array.dtype}, "
            f"expected integers [{num_tasks}]"
        )
    if is_concrete(array):
        array = values = np.asarray(array)  # on the host also what is spread over a mesh
        if num_domains is None:
            num_domains = int(values.max()) + 1
            check_numbering(num_domains, num_tasks)
        if values.min() < 0 or values.max() >= num_domains:
            raise ValueError(
                f"domains must lie in [0, {num_domains}), got {values.min()} to "
                f"{values.max()}: raise num_domains"
            )
    elif num_domains is None:
        raise ValueError("domains are traced, so num_domains must be given to the factory")
    return jnp.asarray(array.astype(jnp.int32)), num_domains


def make_info(fused: StepEvidence, counts: visits.Counts, told: BeliefInfo) -> Info:
    """The `Info` of a step."""

    def totals(batch: Evaluated) -> tuple[Array, Array, Array, Array]:
        tried = (batch.trials > 0) & jnp.asarray(batch.rolled_out)
        evaluated, informative = (
            jnp.sum(which, dtype=jnp.int32) for which in (tried, tried & jnp.asarray(batch.mixed))
        )
        successes, trials = (jnp.where(tried, x, 0) for x in (batch.successes, batch.trials))
        return evaluated, informative, total(successes), total(trials)

    evaluated, mixed, successes, trials = over_evaluated(fused, totals)
    dtype = trials.dtype
    # A belief that knows of no domains reports a single number.
    capability = jnp.broadcast_to(told.capability.astype(dtype), (fused.num_domains,))
    return Info(
        evaluated=evaluated,
        trials=trials,
        success_rate=safe_ratio(successes, trials),
        effective_task_ratio=safe_ratio(mixed.astype(dtype), evaluated.astype(dtype)),
        stale=counts.stale,
        unsolicited=counts.unsolicited,
        invalid=counts.invalid,
        expired=counts.expired,
        in_flight=counts.in_flight,
        capability=capability[0] if fused.domain is None else capability,
        implicit_weight=told.implicit_weight,
        implicit_error=told.implicit_error,
        displaced=jnp.zeros((), jnp.int32),
    )
