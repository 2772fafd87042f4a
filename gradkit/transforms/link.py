"""Link: what every transformation of gradkit is."""

from __future__ import annotations

import collections
import functools
import inspect
import numbers
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import tree, values
from gradkit.states import Driven, LinkState
from gradkit.transforms import compiled, leaves
from gradkit.transforms.views import with_data
from gradkit.validation import check_parameters

PyTree = Any
P = ParamSpec("P")

_NAMED = inspect.Parameter.VAR_KEYWORD


class Now(NamedTuple):
    """What a member is told of the update that it is part of.

    Attributes:
        step: the number of updates before.
        dtypes: of the updates as they came in, a tree like them; None where no member asks.
    """

    step: jax.Array
    dtypes: PyTree


class Traits(NamedTuple):
    """What is known of a link without calling it.

    Attributes:
        cast: (updates, incoming updates, params) -> updates in the dtypes that leave.
        leafwise: the name of a member that looks at whole leaves, at their shapes or their paths;
            None where the tree might as well be one long vector.
        evaluates: whether its state has a `gradkit.core.Known` of the loss where its updates lead.
        steps: params -> for each leaf, whether its update leaves as a step to add to the parameter,
            True, or as a gradient, False; None where that is not known, or is meant to be so.
        passes_on: the name of a member that may leave some leaves gradients; None for none.
    """

    cast: Callable[[PyTree, PyTree, PyTree], PyTree] = tree.cast_updates
    leafwise: str | None = None
    evaluates: bool = False
    steps: Callable[[PyTree], list[bool | None]] = lambda params: [False] * _count(params)
    passes_on: str | None = None


class Link(optax.GradientTransformationExtraArgs):
    """A gradient transformation that can share a step counter.

    By itself it is optax's protocol: `init(params, step=0) -> state`, with the number of updates
    before this one for a run that goes on elsewhere, and `update(updates, state, params, **extra)`.
    A chain, or another transformation around it, calls `start` and `advance` instead, which are
    told the step and keep none.

    It is a value: it is copied as itself, pickles where its arguments do, and is equal to one that
    was made alike, so that what takes it as a static argument compiles once.

    Attributes:
        name: the field that holds its state in a chain's.
        start: (params, step) -> state.
        advance: (updates, state, params, now, extra) -> (updates, state). Updates pass from link to
            link in float32 at least.
        traits: what is known of it.
        recipe: the function that made it and its arguments, by name; None for a link of one's own.
    """

    name: str
    start: Callable[[PyTree, jax.Array], PyTree]
    advance: Callable[..., tuple[PyTree, PyTree]]
    traits: Traits
    recipe: tuple[Callable, tuple, dict[str, Any]] | None
    _members: tuple[str, ...] | None

    def __new__(  # noqa: D102
        cls,
        name: str,
        start: Callable,
        advance: Callable,
        members: tuple[str, ...] | None = None,
        traits: Traits | None = None,
        recipe: tuple[Callable, tuple, dict[str, Any]] | None = None,
    ):
        names = (name,) if members is None else members
        whole, parts = state_type((*names, "step")), state_type(names)
        traits = traits or Traits()

        def init(params, step=0):
            params, others = leaves.split(params)
            if traits.passes_on:
                _refuse_raw_gradients(name, traits, params)
            step = jnp.array(step, jnp.int32)
            state = start(params, step)
            if jax.tree.leaves(others) and _keeps(start, params, others, step):
                check_parameters(others, member=name)
            return _unshared(whole(*((state,) if members is None else state), step), params)

        def update(updates, state, params=None, **extra):
            check_state(state, (*names, "step"))
            updates, params, missing = leaves.checked(updates, params, member=name)
            if missing is not None and not _keeps(start, params, missing, state[-1]):
                leaves.refuse_missing(updates, missing, member=name)
            inner = state[0] if members is None else parts(*state[:-1])
            now = Now(state[-1], jax.tree.map(operator.attrgetter("dtype"), updates))
            try:
                following, inner = advance(updates, inner, params, now, with_data(extra))
            except (ValueError, TypeError, AttributeError) as error:
                if missing is not None or (params is None and leaves.is_about_trees(error)):
                    leaves.refuse_missing(updates, missing, member=name)
                raise
            inner = (inner,) if members is None else inner
            count = one_more(state[-1])
            return traits.cast(following, updates, params), whole(*inner, count)

        self = super().__new__(cls, init, update)
        self.name, self.start, self.advance, self.traits = name, start, advance, traits
        self._members, self.recipe = members, recipe
        return self

    def named(self, name: str) -> Link:
        """Returns the same link under another name."""
        recipe = (Link.named, (self, name), {})
        return Link(name, self.start, self.advance, self._members, self.traits, recipe)

    def made_by(self, factory: Callable, args: tuple, kwargs: dict[str, Any]) -> Link:
        """Returns the same link, which is what the function returns for these arguments."""
        recipe = factory, args, kwargs
        return Link(self.name, self.start, self.advance, self._members, self.traits, recipe)

    def _replace(self, **fields: Any) -> optax.GradientTransformationExtraArgs:  # pyright: ignore
        """Returns optax's tuple with other functions: they keep a state of their own."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)._replace(**fields)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Link) or None in (self.recipe, other.recipe):
            return self is other
        return self._hash == other._hash and values.equal(self._value, other._value)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self) if self.recipe is None else self._hash

    @functools.cached_property
    def _value(self) -> tuple:
        factory, args, kwargs = self.recipe  # pyright: ignore[reportGeneralTypeIssues]
        signature = inspect.signature(factory)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        arguments = [  # in order, which matters to the members of a chain
            tuple(value.items()) if signature.parameters[name].kind is _NAMED else value
            for name, value in given.arguments.items()
        ]
        return factory, self.name, arguments

    @functools.cached_property
    def _hash(self) -> int:
        factory, name, arguments = self._value
        return hash((factory, name, *map(values.hash_of, arguments)))

    def __copy__(self) -> Link:
        return self

    def __deepcopy__(self, memo: dict) -> Link:
        return self

    def __reduce__(self) -> tuple:
        if self.recipe is not None:
            return _made, self.recipe
        return Link, (self.name, self.start, self.advance, self._members, self.traits)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return self.__reduce__()


def transformation(factory: Callable[P, Link]) -> Callable[P, Link]:
    """Makes what a public function returns a value: equal to, and pickled as, its call."""

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Link:
        return factory(*args, **kwargs).made_by(make, args, kwargs)

    return make


def _made(factory: Callable, args: tuple, kwargs: dict[str, Any]) -> Link:
    return factory(*args, **kwargs)


class Hyperparams:
    """A link's hyperparameters at one update, as attributes, and `step`, the updates before it.

    Attributes:
        now: the step, and in which dtypes the updates came in.
    """

    now: Now

    def __init__(self, values: dict[str, jax.Array], exact: dict[str, tuple], now: Now):
        self._exact, self.now = exact, now
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> jax.Array:
        raise AttributeError(f"no hyperparameter {name!r}")

    @property
    def step(self) -> jax.Array:
        """The number of updates before this one."""
        return self.now.step

    def complement(self, name: str) -> jax.Array:
        """Returns 1 − β, for a β given as a number without the rounding of β to float32.

        Near 1 that rounding is large: in float32, 1 − 0.999 is 1.3e-5 off.
        """
        beta = getattr(self, name)
        if name in self._exact:
            exact, rest = self._exact[name]
            return rest - (beta - jnp.asarray(exact, beta.dtype))
        return 1 - beta

    def bias(self, name: str, age: jax.Array) -> jax.Array:
        """Returns 1 − βᵗ, the total weight of an average that has seen `age` updates and this."""
        return 1 - integer_power(getattr(self, name), age + 1)

    def averaged(self, name: str, mean: PyTree, x: PyTree) -> PyTree:
        """Returns the tree β mean + (1 − β) x, in float32 at least."""
        beta, rest = getattr(self, name), self.complement(name)
        return jax.tree.map(lambda m, x: beta * tree.wide(m) + rest * tree.wide(x), mean, x)


def integer_power(beta: Any, t: jax.Array) -> jax.Array:
    """Returns βᵗ for a whole number t, by the same program for all of them.

    Of a number that is not traced JAX makes a product of its own for each exponent.
    """
    beta = jnp.asarray(beta)
    return jax.lax.pow(beta, jnp.asarray(t).astype(beta.dtype))


def no_updates() -> jax.Array:
    """Returns a member's own count of updates before the first, in a buffer of its own."""
    return jnp.zeros((), jnp.int32)


@functools.partial(jax.jit, inline=True)
def one_more(count: Any) -> jax.Array:
    """Returns the count after another update; at the largest number it stays."""
    return jnp.asarray(optax.safe_increment(count))


def link(
    init: Callable | None,
    update: Callable,
    /,
    *,
    around: Link | None = None,
    leafwise: bool = False,
    evaluates: bool = False,
    steps: bool = False,
    compiles: bool = True,
    traits: dict[str, Any] | None = None,
    **hyperparams: Any,
) -> Link:
    """Returns the link whose rule is `update`, named for the function that defines it.

    Args:
        init: (params, step) -> memory, a NamedTuple of arrays; None for nothing to remember.
        update: (updates, memory, params, h, **extra) -> (updates, memory), h a `Hyperparams`. It
            is called with the extra arguments that it names, with all if there is an `**extra`.
        around: the link that this one wraps; its traits are its own then.
        leafwise: whether the rule looks at whole leaves, at their shapes or their paths.
        evaluates: of `Traits`.
        steps: whether what leaves are steps to add to the parameters.
        compiles: whether it is compiled outside `jit`; not where it runs other links, which do so.
        traits: other `Traits`.
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
    given_exactly = {
        key: (float(given), 1 - float(given))
        for key, given in hyperparams.items()
        if isinstance(given, numbers.Real)
    }
    asks = _asks_for(update)

    def value(given, step, dtype):
        return jnp.array(given(step) if callable(given) else given, dtype)

    def start(params, step):
        dtype = tree.scalar_dtype(params)
        values = {k: value(given, step, dtype) for k, given in hyperparams.items()}
        kept = {k: Driven(v) if _drives(hyperparams[k]) else v for k, v in values.items()}
        return LinkState(kept, () if init is None else init(params, step))

    def rule(params, updates, memory, values, exact, step, **extra):
        return update(updates, memory, params, Hyperparams(values, exact, Now(step, None)), **extra)

    alone = values.Static(rule)

    def advance(updates, state, params, now, extra):
        kept = {}
        for key, given in hyperparams.items():
            old = state.hyperparams[key]
            was = old.present if isinstance(old, Driven) else old
            present = value(given, now.step, was.dtype) if _drives(given) else was
            kept[key] = Driven(present) if isinstance(old, Driven) else present
        inside = {k: v.present if isinstance(v, Driven) else v for k, v in kept.items()}
        seen = extra if asks is None else {k: v for k, v in extra.items() if k in asks}
        if (
            not compiles
            or around is not None
            or tree.traced(updates, state, params, now.step, inside, seen)
        ):
            h = Hyperparams(inside, given_exactly, now)
            updates, memory = update(updates, state.memory, params, h, **seen)
        else:
            args = updates, state.memory, inside, given_exactly, now.step
            updates, memory = compiled.call(alone, seen, params, *args)
        return updates, LinkState(kept, memory)

    inner = around.traits if around else Traits()
    about = inner._replace(evaluates=evaluates, **(traits or {}))
    if leafwise:
        about = about._replace(leafwise=name)
    if steps:
        about = about._replace(steps=lambda params: [True] * _count(params))
    return Link(name, start, advance, traits=about)


def _asks_for(update: Callable) -> set[str] | None:
    """The extra arguments that a rule names; None for one that takes them all."""
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind is p.VAR_KEYWORD and p.name != "_" for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


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


def _rebuilt(names: tuple[str, ...], values: tuple) -> tuple:
    return state_type(names)(*values)


def _count(params: PyTree) -> int:
    return len(jax.tree.leaves(params))


def _unshared(state: PyTree, params: PyTree) -> PyTree:
    """The state with each leaf in a buffer of its own: it may be donated with the parameters."""
    seen = {id(leaf) for leaf in jax.tree.leaves(params)}

    def leaf(x):
        if id(x) in seen:
            return jnp.array(x)
        seen.add(id(x))
        return x

    return jax.tree.map(leaf, state)


def _keeps(start: Callable, params: PyTree, others: PyTree, step: jax.Array) -> bool:
    """Whether a state keeps anything for other leaves beside the parameters, were they such."""
    scalars = jax.tree.map(lambda leaf: jnp.zeros(getattr(leaf, "shape", ())), others)
    both = jax.tree.map(
        lambda p, o: o if p is None else p, params, scalars, is_leaf=lambda x: x is None
    )
    with_others, without = (jax.eval_shape(start, p, step) for p in (both, params))
    return jax.tree.structure(with_others) != jax.tree.structure(without)


def _refuse_raw_gradients(name: str, traits: Traits, params: PyTree) -> None:
    """Raises a `ValueError` where some leaves would leave as steps and others as gradients."""
    steps = traits.steps(params)
    if not (True in steps and False in steps):
        return
    paths = [tree.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    raw = [path for path, flag in zip(paths, steps, strict=True) if flag is False]
    which = ", ".join(raw[:4]) + ", ..." * (len(raw) > 4)
    raise ValueError(
        f"{name}: {which} would get raw gradients for updates, which lead up the loss: "
        f"gk.{traits.passes_on} leaves them out of a whole optimizer, one that ends in a learning "
        "rate. Say unselected='zero' to leave them where they are, or 'keep' to pass them on:\n"
        '  gk.masked(tx, mask, unselected="zero")\n'
        '  gk.masked(tx, mask, unselected="keep")'
    )


def _drives(given: Any) -> bool:
    """Whether the value is the caller's at each update, as with `optax.inject_hyperparams`."""
    return callable(given) or isinstance(given, np.ndarray | jax.Array)
