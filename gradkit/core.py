"""Problem, Point and observe: what a loss looks like at the parameters, for those who ask."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit.operators import Operator

PyTree = Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss to minimize: `Problem(loss)` or `Problem(predict=..., criterion=...)`.

    Args:
        loss: `loss(params, batch) -> scalar`, or `-> (scalar, aux)` with `has_aux=True`.
        predict: `predict(params, batch) -> outputs`, the model.
        criterion: `criterion(outputs, batch) -> scalar`, convex in the outputs for a Gauss–Newton
            operator to be positive semidefinite.
        has_aux: whether `loss` returns a pair. With `predict` the auxiliary value is the outputs.

    Raises:
        TypeError: neither of the two forms was given, or both.
    """

    loss: Callable | None = None
    _: dataclasses.KW_ONLY
    predict: Callable | None = None
    criterion: Callable | None = None
    has_aux: bool = False

    def __post_init__(self):
        given = (self.loss is not None, self.predict is not None, self.criterion is not None)
        if given not in ((True, False, False), (False, True, True)):
            names = [n for n, g in zip(("loss", "predict", "criterion"), given, strict=True) if g]
            raise TypeError(
                "Problem takes either loss, or predict and criterion together; got "
                + (" and ".join(names) or "nothing")
            )

    def value_and_aux(self, params: PyTree, batch: PyTree) -> tuple[jax.Array, Any]:
        """Returns the loss and its auxiliary value: the outputs of `predict` where there is one."""
        if self.predict is not None and self.criterion is not None:
            aux = self.predict(params, batch)
            value = self.criterion(aux, batch)
        else:
            result = self.loss(params, batch)  # pyright: ignore[reportOptionalCall]
            value, aux = result if self.has_aux else (result, None)
        if isinstance(value, tuple) or jnp.shape(value) != ():
            came = (
                "a tuple: a loss that returns (value, aux) needs Problem(loss, has_aux=True)"
                if isinstance(value, tuple)
                else f"shape {jnp.shape(value)}: average it over the batch, as jnp.mean does"
            )
            raise TypeError(f"the loss must return a scalar, got {came}")
        return value, aux

    def value(self, params: PyTree, batch: PyTree) -> jax.Array:
        """Returns the loss alone, a scalar."""
        return self.value_and_aux(params, batch)[0]


def as_problem(problem: Problem | Callable) -> Problem:
    """Returns the problem itself, or the problem of a plain `loss(params, batch)`."""
    if isinstance(problem, Problem):
        return problem
    if callable(problem):
        return Problem(problem)
    raise TypeError(
        "expected a gk.Problem or a function loss(params, batch) -> scalar, "
        f"got {type(problem).__name__}"
    )


class Point(NamedTuple):
    """The loss at some parameters: what an optimizer may know of it.

    Attributes:
        value: the loss, a scalar.
        grad: its gradient, a tree like the parameters [loss/param].
        aux: the loss's auxiliary value; the model's outputs for a `predict` problem.
        extras: the keyword arguments of `update`: `value`, `grad`, `value_fn(params) -> scalar`,
            and, where asked for, `curvature() -> Operator` and `key`.
    """

    value: jax.Array
    grad: PyTree
    aux: Any
    extras: dict[str, Any]


def observe(
    problem: Problem | Callable,
    params: PyTree,
    batch: PyTree,
    curvature: Callable[..., Operator] | None = None,
    *,
    key: jax.Array | None = None,
) -> Point:
    """Returns value and gradient of the problem at `params`, with the means to learn more.

    A `Point` is a pytree and crosses `jit`. Members that do not ask for curvature pay nothing.

    Cost: one gradient.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`.
        params: tree of parameters.
        batch: whatever the problem takes.
        curvature: `gk.hessian` or another function (problem, params, batch) -> Operator.
        key: random key for members that draw random numbers.

    Returns:
        A `Point`; pass it on as `tx.update(point.grad, state, params, **point.extras)`.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> point = gk.observe(lambda x, _: jnp.sum(x**4), jnp.array([1.0, 2.0]), None, gk.hessian)
        >>> point.value, point.grad
        (Array(17., dtype=float32), Array([ 4., 32.], dtype=float32))
        >>> point.extras["curvature"]() @ jnp.ones(2)
        Array([12., 48.], dtype=float32)
    """
    problem = as_problem(problem)
    evaluate = jax.value_and_grad(problem.value_and_aux, has_aux=True)
    (value, aux), grad = evaluate(params, batch)
    extras = {"value": value, "grad": grad, "value_fn": Partial(_value_at, problem, batch)}
    if curvature is not None:
        extras["curvature"] = Partial(curvature, problem, params, batch)
    if key is not None:
        extras["key"] = key
    return Point(value, grad, aux, extras)


def _value_at(
    problem: Problem,
    batch: PyTree,
    params: PyTree,
    *,
    curvature: Any = None,  # optax's line searches hand every extra they do not know on to value_fn
    key: Any = None,
) -> jax.Array:
    del curvature, key
    return problem.value(params, batch)


def required(extras: dict[str, Any], name: str, *, member: str) -> Any:
    """Returns the extra argument `name` of `update`, for the member of a chain that needs it.

    Raises:
        TypeError: it was not passed; the message names both and shows the call.
    """
    if extras.get(name) is None:
        given = ", ".join(sorted(extras)) or "none"
        raise TypeError(
            f"{member} needs the extra argument {name!r}, got {given}. Pass what observe returns:\n"
            "  point = gk.observe(problem, params, batch, curvature=gk.hessian)\n"
            "  updates, state = tx.update(point.grad, state, params, **point.extras)"
        )
    return extras[name]


def metrics(state: PyTree) -> dict[str, jax.Array]:
    """Returns the scalars that the members of a chain publish about their last update.

    A state publishes by having a method `metrics() -> dict[str, scalar]`; the scalars are fields it
    keeps anyway, so unread metrics cost nothing. Of two members that publish the same name, the
    second appears as `name_2`.

    Args:
        state: an optimizer state, however nested.
    """

    def publishes(node):
        return hasattr(type(node), "metrics")

    collected: dict[str, jax.Array] = {}
    seen: collections.Counter[str] = collections.Counter()
    for node in filter(publishes, jax.tree.leaves(state, is_leaf=publishes)):
        for name, value in node.metrics().items():
            seen[name] += 1
            collected[name if seen[name] == 1 else f"{name}_{seen[name]}"] = value
    return collected
