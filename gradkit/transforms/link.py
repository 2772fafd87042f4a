"""Link: what every transformation of gradkit is, and how foreign ones join."""

from __future__ import annotations

import collections
import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.operators import Operator
from gradkit.states import Driven, LinkState

PyTree = Any


class Link(optax.GradientTransformationExtraArgs):
    """A gradient transformation that can share a step counter.

    By itself it is optax's protocol: `init(params, step=0) -> state`, with the number of updates
    before this one for a run that goes on elsewhere, and `update(updates, state, params, **extra)`.
    A chain, or another transformation around it, calls `start` and `advance` instead, which are
    told the step and keep none.

    Attributes:
        name: the field that holds its state in a chain's.
        start: (params, step) -> state.
        advance: (updates, state, params, step, extra) -> (updates, state). Updates pass from link
            to link in float32 at least.
        cast: (updates, incoming updates, params) -> updates in the dtypes that leave.
        leafwise: the name of a member that looks at whole leaves, at their shapes or their paths;
            None where the tree might as well be one long vector.
        evaluates: whether its state has a `gradkit.core.Known` of the loss where its updates lead.
    """

    name: str
    start: Callable[[PyTree, jax.Array], PyTree]
    advance: Callable[..., tuple[PyTree, PyTree]]
    cast: Callable[[PyTree, PyTree, PyTree], PyTree]
    leafwise: str | None
    evaluates: bool
    _members: tuple[str, ...] | None

    def __new__(  # noqa: D102
        cls,
        name: str,
        start: Callable,
        advance: Callable,
        members: tuple[str, ...] | None = None,
        *,
        cast: Callable = tree.cast_updates,
        leafwise: str | None = None,
        evaluates: bool = False,
    ):
        names = (name,) if members is None else members
        whole, parts = state_type((*names, "step")), state_type(names)

        def init(params, step=0):
            step = jnp.array(step, jnp.int32)
            state = start(params, step)
            return whole(*((state,) if members is None else state), step)

        def update(updates, state, params=None, **extra):
            check_state(state, (*names, "step"))
            _check_alike(updates, params)
            inner = state[0] if members is None else parts(*state[:-1])
            following, inner = advance(updates, inner, params, state[-1], extra)
            inner = (inner,) if members is None else inner
            return cast(following, updates, params), whole(*inner, optax.safe_increment(state[-1]))

        self = super().__new__(cls, init, update)
        self.name, self.start, self.advance, self.cast = name, start, advance, cast
        self._members, self.leafwise, self.evaluates = members, leafwise, evaluates
        return self

    def named(self, name: str) -> Link:
        """Returns the same link under another name."""
        about = {"cast": self.cast, "leafwise": self.leafwise, "evaluates": self.evaluates}
        return Link(name, self.start, self.advance, self._members, **about)


class Hyperparams:
    """A link's hyperparameters at one update, as attributes, and `step`, the updates before it."""

    step: jax.Array

    def __init__(self, given: dict[str, Any], values: dict[str, jax.Array], step: jax.Array):
        self._given = given
        self.__dict__.update(values, step=step)

    def __getattr__(self, name: str) -> jax.Array:
        raise AttributeError(f"no hyperparameter {name!r}")

    def complement(self, name: str) -> jax.Array:
        """Returns 1 − β, for a β given as a number without the rounding of β to float32.

        Near 1 that rounding is large: in float32, 1 − 0.999 is 1.3e-5 off.
        """
        beta, given = getattr(self, name), self._given[name]
        if isinstance(given, numbers.Real):
            return (1 - float(given)) - (beta - jnp.asarray(float(given), beta.dtype))
        return 1 - beta

    def bias(self, name: str, since: Any) -> jax.Array:
        """Returns 1 − βᵗ, the total weight of an average that was zero before step `since`."""
        return 1 - getattr(self, name) ** (self.step - since + 1)

    def averaged(self, name: str, mean: PyTree, x: PyTree) -> PyTree:
        """Returns the tree β mean + (1 − β) x, in float32 at least."""
        beta, rest = getattr(self, name), self.complement(name)
        return jax.tree.map(lambda m, x: beta * tree.wide(m) + rest * tree.wide(x), mean, x)


def link(
    init: Callable | None,
    update: Callable,
    /,
    *,
    around: Link | None = None,
    leafwise: bool = False,
    evaluates: bool = False,
    cast: Callable | None = None,
    **hyperparams: Any,
) -> Link:
    """Returns the link whose rule is `update`, named for the function that defines it.

    Args:
        init: (params, step) -> memory, a NamedTuple of arrays; None for nothing to remember.
        update: (updates, memory, params, h, **extra) -> (updates, memory), h a `Hyperparams`.
        around: the link that this one wraps; `cast` and `leafwise` are its own then.
        leafwise: whether the rule looks at whole leaves, at their shapes or their paths.
        evaluates: of `Link`.
        cast: of `Link`.
        **hyperparams: numbers, arrays, or schedules: functions of the step. A number goes into the
            state at `init` and is taken from there, so that it can be changed; arrays, traced or
            not, and schedules are in force themselves, and the state records them.

    Raises:
        TypeError: a hyperparameter is none of these.
    """
    name = update.__qualname__.partition(".")[0]
    for key, given in hyperparams.items():
        number = isinstance(given, numbers.Real | np.ndarray | jax.Array)
        if isinstance(given, bool) or not (number or callable(given)):
            raise TypeError(
                f"{name}: {key} must be a number, an array or a schedule (a function of the step), "
                f"got {given!r}"
            )

    def value(given, step, dtype):
        return jnp.array(given(step) if callable(given) else given, dtype)

    def start(params, step):
        dtype = tree.scalar_dtype(params)
        values = {k: value(given, step, dtype) for k, given in hyperparams.items()}
        kept = {k: Driven(v) if _drives(hyperparams[k]) else v for k, v in values.items()}
        return LinkState(kept, () if init is None else init(params, step))

    def advance(updates, state, params, step, extra):
        kept = {}
        for key, given in hyperparams.items():
            old = state.hyperparams[key]
            was = old.value if isinstance(old, Driven) else old
            now = value(given, step, was.dtype) if _drives(given) else was
            kept[key] = Driven(now) if isinstance(old, Driven) else now
        values = {k: v.value if isinstance(v, Driven) else v for k, v in kept.items()}
        h = Hyperparams(hyperparams, values, step)
        updates, memory = update(updates, state.memory, params, h, **extra)
        return updates, LinkState(kept, memory)

    inner = around or Link(name, start, advance)
    looks = name if leafwise else inner.leafwise
    about = {"cast": cast or inner.cast, "leafwise": looks, "evaluates": evaluates}
    return Link(name, start, advance, **about)


def as_link(tx: optax.GradientTransformation) -> Link:
    """Returns a transformation of optax, or of anyone, as a link; a link as it is.

    It keeps its own counter. With a step at `init`, those of its schedules begin there too.
    """
    if isinstance(tx, Link):
        return tx
    names = (getattr(f, "__qualname__", "").partition(".<locals>") for f in (tx.init, tx.update))
    name = next((outer for outer, inside, _ in names if inside), "member").rpartition(".")[2]
    whole = optax.with_extra_args_support(tx)

    def start(params, step):
        def begin(node):
            return optax.ScaleByScheduleState(step) if _is_schedule(node) else node

        return jax.tree.map(begin, tx.init(params), is_leaf=_is_schedule)

    def advance(updates, state, params, step, extra):
        return whole.update(updates, state, params, **extra)

    name = name.removesuffix("_fn")
    return Link(name, start, advance, leafwise=name)  # for all we know


def seen_from_inside(
    extra: dict[str, Any], inward: Callable, outward: Callable, tangent: Callable
) -> dict[str, Any]:
    """Returns the extra arguments of `update` for a member whose parameters are another tree.

    Args:
        extra: as they came.
        inward: a tree like the parameters -> one like the member's.
        outward: the member's parameters -> the parameters.
        tangent: a change of the member's parameters -> that of the parameters; linear.
    """
    inner = dict(extra)
    if extra.get("grad") is not None:
        inner["grad"] = inward(extra["grad"])
    if (value_fn := extra.get("value_fn")) is not None:

        def value_at(value_fn, params, **more):
            return value_fn(outward(params), **more)

        value = Partial(value_at, value_fn)  # the batch stays in sight of what marks it
        vars(value)["__signature__"] = inspect.signature(value_fn)  # optax's searches read it
        inner["value_fn"] = value
    if (curvature := extra.get("curvature")) is not None:

        def seen():
            A = curvature()
            domain = jax.eval_shape(inward, A.domain)
            return Operator(lambda v: inward(A @ tangent(v)), domain)

        inner["curvature"] = seen
    if (diagonal := extra.get("diagonal")) is not None:
        inner["diagonal"] = lambda: inward(diagonal())
    return inner


@functools.cache
def state_type(names: tuple[str, ...]) -> type:
    """Returns the NamedTuple with these fields: one type for each tuple of names.

    An attribute that only one of the fields has is reached without naming the field.
    """
    fields: type = collections.namedtuple("ChainState", names)
    methods = {
        "__reduce__": lambda self: (_rebuilt, (names, tuple(self))),
        "__getattr__": _from_the_one_member,
    }
    return type("ChainState", (fields,), {"__slots__": (), **methods})


def _from_the_one_member(state: Any, name: str) -> Any:
    if not name.startswith("_"):
        having = [m for m in state if isinstance(m, tuple) and hasattr(m, name)]
        if len(having) == 1:
            return getattr(having[0], name)
    fields = ", ".join(state._fields)
    raise AttributeError(f"no {name!r} in this state, or in more than one of its fields ({fields})")


def check_state(state: Any, names: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless the state is a NamedTuple with these fields."""
    fields = getattr(state, "_fields", None)
    if fields != names:
        what = f"one of ({', '.join(fields)})" if fields else f"a {type(state).__name__}"
        raise ValueError(
            f"the state must be what this transformation's own init returned, with the fields "
            f"({', '.join(names)}); got {what}"
        )


def _check_alike(updates: PyTree, params: PyTree) -> None:
    if params is None:
        return
    leaves, structure = jax.tree.flatten(params)
    same = structure == jax.tree.structure(updates) and all(
        jnp.shape(p) == jnp.shape(u) for p, u in zip(leaves, jax.tree.leaves(updates), strict=True)
    )
    if not same and (lines := tree.differences(params, updates)):
        more = ["  ..."] * (len(lines) > 8)
        raise ValueError(
            "update: the updates must be a tree like the parameters\n" + "\n".join(lines[:8] + more)
        )


def _rebuilt(names: tuple[str, ...], values: tuple) -> tuple:
    return state_type(names)(*values)


def _drives(given: Any) -> bool:
    """Whether the value is the caller's at each update, as with `optax.inject_hyperparams`."""
    return callable(given) or isinstance(given, np.ndarray | jax.Array)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
