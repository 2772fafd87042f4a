"""The Hessian of a loss as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, primitives, subjaxprs
from jax.tree_util import Partial

from gradkit.core import Problem, as_problem
from gradkit.curvature.memory import fits
from gradkit.operators import Operator
from gradkit.validation import check_parameters

PyTree = Any


def hessian(
    problem: Problem | Callable, params: PyTree, batch: PyTree, *, linearize: bool | None = None
) -> Operator:
    """Returns the operator H v = ∇(∇f(θ)ᵀ v), the Hessian of the loss on one batch at `params`.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian", as forward-over-reverse
    differentiation: the derivative of the gradient in the direction v.

    Differs: where a rule of a `jax.custom_vjp` calls a function that has one, often itself, the
    gradient has no forward derivative. It is differentiated in reverse then, which gives Hᵀ v.

    Cost: with `linearize`, one gradient and its residuals (all activations of the batch) kept in
    memory, then 6 matrix products a dense layer for each product; without, no memory between
    products, and 8 matrix products a layer. Reverse over reverse makes as many, and is slower on
    convolutions on a CPU.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`. Anything random in it must be
            frozen, or the map is not linear: pass fixed keys and batch statistics in the batch.
        params: tree of floating-point parameters θ.
        batch: whatever the problem takes; weighting is the loss's own.
        linearize: linearize the gradient once and re-apply it, or recompute it in each product. By
            default the former if the residuals, counted from their shapes as if on one device,
            take a quarter of the device's memory at most (of the machine's, for a CPU).

    Returns:
        An `Operator` on trees like `params` [loss/param²], equal to `jax.hessian` to rounding.

    Raises:
        TypeError: a leaf of `params` is not a floating-point array or number; the message names it.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> H = gk.hessian(lambda x, batch: batch * x[0] ** 2 * x[1], jnp.array([1.0, 3.0]), 2.0)
        >>> H @ jnp.array([1.0, 0.0])
        Array([12.,  4.], dtype=float32)
    """
    args = as_problem(problem), params, batch
    check_parameters(params, member="hessian")
    keep = fits(_linearized, *args) if linearize is None else linearize
    return Operator(_linearized(*args) if keep else Partial(_product, *args), params)


@jax.jit
def _linearized(problem: Problem, params: PyTree, batch: PyTree) -> Callable:
    return linearized(Partial(_gradient_and_value, problem, batch), params)[2]


def observed(problem: Problem, params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree, Operator]:
    """Returns loss, gradient and linearized Hessian at `params`, from one gradient."""
    value, grad, product = linearized(Partial(_gradient_and_value, problem, batch), params)
    return value, grad, Operator(product, params)


def _product(problem: Problem, params: PyTree, batch: PyTree, v: PyTree) -> PyTree:
    gradient = Partial(_gradient, problem, batch)

    @jax.jit
    def forward(v):
        return jax.jvp(gradient, (params,), (v,))[1]  # not linearized: scans keep less

    if _has_no_value(forward.trace(v).jaxpr.jaxpr):
        return _in_reverse(gradient, params)(v)
    return forward(v)


def linearized(
    gradient_and_value: Callable[[PyTree], tuple[PyTree, Any]], params: PyTree
) -> tuple[Any, PyTree, Callable]:
    """Returns a value, its gradient, and v ↦ H v as a pytree of residuals."""
    grad, product, value = jax.linearize(gradient_and_value, params, has_aux=True)
    if _has_no_value(jax.make_jaxpr(product)(params).jaxpr):
        product = _in_reverse(lambda theta: gradient_and_value(theta)[0], params)
    return value, grad, product


def _has_no_value(jaxpr: Jaxpr) -> bool:
    """Whether it holds the forward derivative of a `custom_vjp`: one to transpose, not to run."""
    here = any(equation.primitive is primitives.custom_lin_p for equation in jaxpr.eqns)
    return here or any(map(_has_no_value, subjaxprs(jaxpr)))


def _in_reverse(gradient: Callable[[PyTree], PyTree], params: PyTree) -> Callable:
    """v ↦ Hᵀ v, which needs no forward derivative."""
    return Partial(_transposed, jax.vjp(gradient, params)[1])


def _transposed(pullback: Callable, v: PyTree) -> PyTree:
    (product,) = pullback(jax.tree.map(jnp.conj, v))  # of complex leaves vjp has the conjugates
    return jax.tree.map(jnp.conj, product)


def _gradient(problem: Problem, batch: PyTree, params: PyTree) -> PyTree:
    return _gradient_and_value(problem, batch, params)[0]


def _gradient_and_value(
    problem: Problem, batch: PyTree, params: PyTree
) -> tuple[PyTree, jax.Array]:
    value, grad = jax.value_and_grad(problem.value)(params, batch)
    return jax.tree.map(jnp.conj, grad), value  # of complex leaves jax.grad has the conjugate
