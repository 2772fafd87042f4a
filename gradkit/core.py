"""Problem, Point and observe: what a loss looks like at the parameters, for those who ask."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.operators import Operator
from gradkit.validation import check_parameters

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
            and, where asked for, `curvature() -> Operator`, `diagonal() -> tree` and `key`.
    """

    value: jax.Array
    grad: PyTree
    aux: Any
    extras: dict[str, Any]


class Known(NamedTuple):
    """Loss and gradient that a line search has computed where its update leads.

    Attributes:
        mark: `tree.mark` of those parameters and of the loss's arguments, by which `observe` tells
            that it is there.
        value: the loss. grad: its gradient, a tree like the parameters.
    """

    mark: jax.Array
    value: jax.Array
    grad: PyTree

    @classmethod
    def nothing(cls, params: PyTree) -> Known:
        """Returns what is known before the first update: a loss of infinity, as in optax's states.

        `optax.value_and_grad_from_state` computes loss and gradient where it finds that.
        """
        zeros = jax.tree.map(jnp.zeros_like, params)
        return cls(
            jnp.zeros(2, jnp.uint32), jnp.full((), jnp.inf, tree.scalar_dtype(params)), zeros
        )


def known(state: PyTree) -> Known | None:
    """Returns what the last update in a state computed, or None where it keeps none."""

    def is_known(node):
        return isinstance(node, Known)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_known) if is_known(node)]
    return found[0] if len(found) == 1 else None


def observe(
    problem: Problem | Callable,
    params: PyTree,
    batch: PyTree,
    curvature: Callable[..., Operator] | None = None,
    *,
    diagonal: Callable[..., PyTree] | None = None,
    key: jax.Array | None = None,
    micro_batches: int | None = None,
    state: PyTree = None,
) -> Point:
    """Returns value and gradient of the problem at `params`, with the means to learn more.

    A `Point` is a pytree and crosses `jit`. Members that do not ask for curvature pay nothing. The
    gradient of a complex parameter x + iy is ∂f/∂x + i ∂f/∂y, the direction of ascent, where
    `jax.grad` has its conjugate.

    Cost: one gradient. With `micro_batches`, the memory of one of them.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`.
        params: tree of floating-point parameters.
        batch: whatever the problem takes.
        curvature: `gk.hessian` or another function (problem, params, batch) -> Operator.
        diagonal: a function (problem, params, batch) -> tree like the parameters, an estimate of a
            curvature's diagonal, for members that precondition by it.
        key: random key for members that draw random numbers.
        micro_batches: split every array of the batch into so many equal parts along its first axis,
            and take the mean of loss, gradient and curvature over the parts, one after the other.
            A random key in the batch becomes one for each part.
            The problem must be a mean over examples. `aux` has a leading axis for the parts.
        state: an optimizer's state. Where its line search has left loss and gradient at exactly
            these parameters and this batch, they are not computed again, and `aux` costs one loss.
            What the problem reads besides parameters and batch must not have changed.

    Returns:
        A `Point`; pass it on as `tx.update(point.grad, state, params, **point.extras)`.

    Raises:
        TypeError: a leaf of `params` is not a floating-point array or number, and the message names
            it; or the loss is not a scalar.
        ValueError: `micro_batches` does not divide the batch.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> point = gk.observe(lambda x, _: jnp.sum(x**4), jnp.array([1.0, 2.0]), None, gk.hessian)
        >>> point.value, point.grad
        (Array(17., dtype=float32), Array([ 4., 32.], dtype=float32))
        >>> point.extras["curvature"]() @ jnp.ones(2)
        Array([12., 48.], dtype=float32)
    """
    problem = as_problem(problem)
    check_parameters(params, member="observe")
    params = tree.as_arrays(params)
    if micro_batches is None:
        value_fn, curvature_at, evaluate, parts = _value_at, curvature, _evaluated, _value_and_aux
        diagonal_at = diagonal
    else:
        batch = _split(batch, micro_batches)
        value_fn, curvature_at = _mean_value_at, Partial(_mean_curvature, curvature)
        diagonal_at = Partial(_mean_diagonal, diagonal)
        evaluate, parts = _mean_evaluated, _mean_value_and_aux
    value_fn = Partial(value_fn, problem, batch)
    before = known(state)
    if before is None or tree.Shapes.of(before.grad) != tree.Shapes.of(params):
        value, grad, aux = evaluate(problem, params, batch)
    else:
        value, grad, aux = _recalled(before, value_fn, evaluate, parts, problem, params, batch)
    extras = {"value": value, "grad": grad, "value_fn": value_fn}
    if curvature is not None:
        extras["curvature"] = Partial(curvature_at, problem, params, batch)
    if diagonal is not None:
        extras["diagonal"] = Partial(diagonal_at, problem, params, batch)
    if key is not None:
        extras["key"] = key
    return Point(value, grad, aux, extras)


def _evaluated(problem: Problem, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree, Any]:
    evaluate = jax.value_and_grad(problem.value_and_aux, has_aux=True)
    (value, aux), grad = evaluate(params, batch)
    return value, jax.tree.map(jnp.conj, grad), aux


def _value_and_aux(problem: Problem, params: PyTree, batch: PyTree) -> tuple[jax.Array, Any]:
    return problem.value_and_aux(params, batch)


def _recalled(
    before: Known,
    value_fn: Partial,
    evaluate: Callable,
    parts: Callable,
    problem: Problem,
    params: PyTree,
    batch: PyTree,
) -> tuple[jax.Array, PyTree, Any]:
    """What `evaluate` returns, from what is known if it is of these parameters and this batch."""
    value, grad, aux = jax.eval_shape(evaluate, problem, params, batch)

    def recall():
        recalled = optax.tree.cast_like((before.value, before.grad), (value, grad))
        return *recalled, parts(problem, params, batch)[1] if jax.tree.leaves(aux) else aux

    same = jnp.all(before.mark == tree.mark((params, value_fn)))
    return jax.lax.cond(same, recall, lambda: evaluate(problem, params, batch))


def _value_at(
    problem: Problem,
    batch: PyTree,
    params: PyTree,
    *,
    curvature: Any = None,  # optax's line searches hand every extra they do not know on to value_fn
    diagonal: Any = None,
    key: Any = None,
) -> jax.Array:
    del curvature, diagonal, key
    return problem.value(params, batch)


def apply_gradients(train_state: Any, point: Point, **changes: Any) -> Any:
    """Returns flax linen's `TrainState` one update on, with the extra arguments of the point.

    `TrainState.apply_gradients` hands its transformation none of them.

    Args:
        train_state: a `flax.training.train_state.TrainState`, or what has its fields.
        point: what `observe` returned at `train_state.params`.
        **changes: other fields to replace, such as `batch_stats`.
    """
    updates, opt_state = train_state.tx.update(
        point.grad, train_state.opt_state, train_state.params, **point.extras
    )
    params = optax.apply_updates(train_state.params, updates)
    following = {"step": train_state.step + 1, "params": params, "opt_state": opt_state}
    return train_state.replace(**following, **changes)


def _split(batch: PyTree, parts: int) -> PyTree:
    """The batch with a new leading axis of so many micro-batches, each with random keys anew."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch) if not _is_key(leaf)}
    if len(sizes) != 1 or () in sizes or min(sizes)[0] % parts or not min(sizes)[0]:
        raise ValueError(
            f"micro_batches={parts} must divide the first axis of every array of the batch, got "
            f"{', '.join(str(size[0]) if size else 'a scalar' for size in sorted(sizes))}"
        )

    def part(leaf):
        if _is_key(leaf):
            return jax.random.split(leaf, parts)
        return jnp.reshape(leaf, (parts, -1, *jnp.shape(leaf)[1:]))

    return jax.tree.map(part, batch)


def _is_key(leaf: Any) -> bool:
    """Whether this is a single random key, as a batch has for dropout."""
    return jnp.shape(leaf) == () and tree.is_key(leaf)


def _mean(function: Callable, batches: PyTree) -> tuple[PyTree, PyTree]:
    """The mean over the batches of the function's first result, and every one of its second."""
    count = len(jax.tree.leaves(batches)[0])
    shape = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batches))[0]

    def add(total, part):
        result, aside = function(part)
        return jax.tree.map(lambda t, r: t + r / count, total, result), aside

    zeros = tree.zeros(shape)
    return jax.lax.scan(add, zeros, batches)


def _mean_evaluated(
    problem: Problem, params: PyTree, batches: PyTree
) -> tuple[jax.Array, PyTree, Any]:
    def evaluate(part):
        value, grad, aux = _evaluated(problem, params, part)
        return (value, grad), aux

    (value, grad), aux = _mean(evaluate, batches)
    return value, grad, aux


def _mean_value_and_aux(problem: Problem, params: PyTree, batches: PyTree) -> tuple[jax.Array, Any]:
    return _mean(lambda part: problem.value_and_aux(params, part), batches)


def _mean_value_at(
    problem: Problem,
    batches: PyTree,
    params: PyTree,
    *,
    curvature: Any = None,
    diagonal: Any = None,
    key: Any = None,
) -> jax.Array:
    del curvature, diagonal, key
    return _mean(lambda part: (problem.value(params, part), None), batches)[0]


def _mean_curvature(
    curvature: Callable[..., Operator], problem: Problem, params: PyTree, batches: PyTree
) -> Operator:
    return Operator(Partial(_mean_product, Partial(curvature, problem), params, batches), params)


def _mean_diagonal(
    diagonal: Callable[..., PyTree], problem: Problem, params: PyTree, batches: PyTree
) -> PyTree:
    return _mean(lambda part: (diagonal(problem, params, part), None), batches)[0]


def _mean_product(curvature: Callable, params: PyTree, batches: PyTree, v: PyTree) -> PyTree:
    return _mean(lambda part: (curvature(params, part) @ v, None), batches)[0]


def required(extras: dict[str, Any], name: str, *, member: str) -> Any:
    """Returns the extra argument `name` of `update`, for the member of a chain that needs it.

    Raises:
        TypeError: it was not passed; the message names both and shows the call.
    """
    if extras.get(name) is None:
        given = ", ".join(sorted(extras)) or "none"
        near = difflib.get_close_matches(name, extras, n=1)
        hint = f" (is {near[0]!r} misspelt?)" if near else ""
        asked = "curvature=gk.hessian" + (", key=key" if name == "key" else "")
        raise TypeError(
            f"{member} needs the extra argument {name!r}, got {given}{hint}. "
            "Pass what observe returns:\n"
            f"  point = gk.observe(problem, params, batch, {asked})\n"
            "  updates, state = tx.update(point.grad, state, params, **point.extras)"
        )
    return extras[name]


def needs_count(value: Any, name: str, *, member: str) -> None:
    """Raises a `ValueError` unless the argument is a positive whole number."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{member}: {name} must be a positive whole number, got {value!r}")


def needs_positive(value: Any, name: str, *, member: str) -> None:
    """Raises a `ValueError` unless the argument is a positive number."""
    if not isinstance(value, numbers.Real) or not float(value) > 0:
        raise ValueError(f"{member}: {name} must be a positive number, got {value!r}")


def needs_params(params: PyTree, *, member: str) -> None:
    """Raises a `ValueError` if `update` was called without the parameters."""
    if params is None:
        raise ValueError(f"{member} needs the parameters: call update(updates, state, params)")
