"""Whether the second-order Taylor expansion foretells what a gradient step does to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from gradkit import tree
from gradkit.krylov.drivers import Drive, chosen
from gradkit.operators import Operator
from gradkit.validation import check_parameters

PyTree = Any

ROUNDINGS = 4  # of the loss, relative to itself; one that cancels inside has more


class TaylorCheck(NamedTuple):
    """`predicted = −ε gᵀg + ½ ε² gᵀHg`, and `actual = f(θ − ε g) − f(θ)`, for each ε.

    Attributes:
        learning_rates: ε.
        predicted: like `learning_rates` [loss].
        first_order: −ε gᵀg alone [loss].
        actual: like `learning_rates` [loss].
        rounding: what rounding alone may make of `actual`: that of the loss and of θ − ε g [loss].
        curvature: gᵀHg / gᵀg, that along the gradient; 0 for a zero gradient [loss/param²].
        break_even: 2 gᵀg / gᵀHg, beyond which a step is predicted to raise the loss; infinite where
            the curvature is not positive.
    """

    learning_rates: jax.Array
    predicted: jax.Array
    first_order: jax.Array
    actual: jax.Array
    rounding: jax.Array
    curvature: jax.Array
    break_even: jax.Array

    @property
    def remainder(self) -> jax.Array:
        """`actual − predicted`: up to rounding it falls as ε³ if g and H are those of f."""
        return self.actual - self.predicted


class Evaluations(NamedTuple):
    """The losses after the first `done` of the steps."""

    values: jax.Array
    done: jax.Array


def taylor_check(
    value_fn: Callable[[PyTree], jax.Array],
    A: Operator,
    grad: PyTree,
    params: PyTree,
    *,
    learning_rates: ArrayLike,
    drive: Drive | None = None,
) -> TaylorCheck:
    """Returns the predicted and the true change of the loss by the gradient step −ε g, for each ε.

    Source: Goodfellow, Bengio & Courville (2016), "Deep learning", equation 8.10.
    Differs: rounding is estimated to first order, as 4 ε_f (|f(θ)| + |f(θ − ε g)|) of the loss and
    ½ Σ ε_θ |gᵢ| (|θᵢ| + ε |gᵢ|) of the parameters, ε_f and ε_θ the precision of their dtypes.

    Cost: one product and an evaluation of the loss for each ε and one more; four trees of memory.

    Args:
        value_fn: f, a function params -> scalar: `gk.observe(...).extras["value_fn"]`. With an
            operator that is not traceable it need not be either: it is called from Python.
        A: H, the curvature of f at `params`.
        grad: g, the gradient at `params`.
        params: θ.
        learning_rates: ε, of any shape.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        A `TaylorCheck`. NaN in the loss or the products are values in it.

    Raises:
        TypeError: `value_fn` is no function, or does not return a scalar; or a leaf of `params` is
            not a floating-point array or number.
        ValueError: `grad` is not in the operator's domain, or `params` differ from it.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> params = jnp.array([1.0, 2.0])
        >>> point = gk.observe(lambda x, _: jnp.sum(x**2), params, None, gk.hessian)
        >>> H, f = point.extras["curvature"](), point.extras["value_fn"]
        >>> check = gk.taylor_check(f, H, point.grad, params, learning_rates=[0.5, 1.0, 1.5])
        >>> check.predicted.tolist(), check.actual.tolist(), float(check.break_even)
        ([-5.0, 0.0, 15.0], [-5.0, 0.0, 15.0], 1.0)
    """
    if not callable(value_fn):
        raise TypeError(f"value_fn: expected a function of params, got {type(value_fn).__name__}")
    check_parameters(params, member="taylor_check")
    A.check(grad)
    params, grad = tree.as_arrays((params, grad))
    if differing := tree.differences(A.domain, params):
        raise ValueError("params: not like the operator's domain\n" + "\n".join(differing))
    dtype = tree.scalar_dtype((params, grad))
    rates = jnp.asarray(learning_rates, dtype)
    tried = jnp.append(jnp.zeros((), dtype), rates.ravel())
    if A.traceable:
        f = value_fn if isinstance(value_fn, Partial) else Partial(value_fn)
        value = _needs_real_scalar(jax.eval_shape(f, params))
        start = Evaluations(jnp.zeros(tried.shape, value.dtype), jnp.array(0))
        operands = A, f, params, grad, tried
        values = chosen(drive)(_evaluate, operands, start, until=_stops).values
    else:
        values = jnp.stack([_needs_real_scalar(value_fn(_moved(params, e, grad))) for e in tried])
    u = _of_size_one(grad)
    return _compare(u, A @ u, grad, params, rates, values)


def _needs_real_scalar(value: Any) -> Any:
    one = jax.tree.leaves(value) == [value] and jnp.shape(value) == ()
    if not (one and jnp.issubdtype(jnp.result_type(value), jnp.floating)):
        raise TypeError(f"value_fn: expected a function that returns a real scalar, got {value}")
    return value


def _moved(params: PyTree, epsilon: jax.Array, g: PyTree) -> PyTree:
    return tree.add_scaled(params, -epsilon, g)


def _evaluate(operands: tuple, s: Evaluations) -> Evaluations:
    _, f, params, grad, rates = operands
    value = f(_moved(params, rates[s.done], grad))
    return Evaluations(s.values.at[s.done].set(value), s.done + 1)


def _stops(s: Evaluations) -> jax.Array:
    return s.done >= s.values.size


@jax.jit
def _of_size_one(g: PyTree) -> PyTree:
    """g scaled by a power of 2, so that its squares neither underflow nor overflow."""
    _, exponent = jnp.frexp(optax.tree.norm(jax.tree.map(tree.wide, g), ord="inf"))
    return tree.scaled(jnp.ldexp(1.0, -exponent), g)


@jax.jit
def _compare(
    u: PyTree, Hu: PyTree, g: PyTree, params: PyTree, epsilon: jax.Array, values: jax.Array
) -> TaylorCheck:
    uu, eps = tree.inner(u, u), jnp.finfo(values.dtype).eps
    curvature = tree.inner(u, Hu) / jnp.where(uu == 0, 1, uu)
    values = tree.wide(values)
    first_order = -epsilon * tree.inner(g, g)
    before, after = values[0], values[1:].reshape(epsilon.shape)
    blurred = jax.tree.map(
        lambda p, d: jnp.finfo(p.dtype).eps / 2 * jnp.abs(tree.wide(d)), params, g
    )
    standing, moving = (tree.inner(blurred, jax.tree.map(jnp.abs, x)) for x in (params, g))
    return TaylorCheck(
        learning_rates=epsilon,
        predicted=-first_order * (epsilon * curvature / 2 - 1),
        first_order=first_order,
        actual=after - before,
        rounding=ROUNDINGS * eps * (jnp.abs(before) + jnp.abs(after))
        + standing
        + jnp.abs(epsilon) * moving,
        curvature=curvature,
        break_even=jnp.where(curvature <= 0, jnp.inf, 2 / curvature),
    )
