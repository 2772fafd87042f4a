"""The Hessian of a loss as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit.core import Problem, as_problem
from gradkit.operators import Operator

PyTree = Any


def hessian(
    problem: Problem | Callable, params: PyTree, batch: PyTree, *, linearize: bool = True
) -> Operator:
    """Returns the operator H v = ∇(∇f(θ)ᵀ v), the Hessian of the loss on one batch at `params`.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian", as forward-over-reverse
    differentiation: the derivative of the gradient in the direction v.

    Cost: with `linearize`, one gradient and its residuals (all activations of the batch) kept in
    memory, then 6 matrix products a dense layer for each product; without, no memory between
    products, and 8 matrix products a layer.

    Args:
        problem: a `Problem`, or a plain `loss(params, batch)`. Anything random in it must be
            frozen, or the map is not linear: pass fixed keys and batch statistics in the batch.
        params: tree of floating-point parameters θ.
        batch: whatever the problem takes; weighting is the loss's own.
        linearize: linearize the gradient once and re-apply it (default), or recompute it in each
            product, for models whose residuals do not fit in memory.

    Returns:
        An `Operator` on trees like `params` [loss/param²], equal to `jax.hessian` to rounding.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> H = gk.hessian(lambda x, batch: batch * x[0] ** 2 * x[1], jnp.array([1.0, 3.0]), 2.0)
        >>> H @ jnp.array([1.0, 0.0])
        Array([12.,  4.], dtype=float32)
    """
    build = _linearized if linearize else _recomputed
    return Operator(build(as_problem(problem), params, batch), params)


@jax.jit
def _linearized(problem: Problem, params: PyTree, batch: PyTree) -> Callable:
    return jax.linearize(Partial(_gradient, problem, batch), params)[1]


def _recomputed(problem: Problem, params: PyTree, batch: PyTree) -> Partial:
    return Partial(_product, problem, params, batch)


def _product(problem: Problem, params: PyTree, batch: PyTree, v: PyTree) -> PyTree:
    return jax.jvp(Partial(_gradient, problem, batch), (params,), (v,))[1]


def _gradient(problem: Problem, batch: PyTree, params: PyTree) -> PyTree:
    grad = jax.grad(problem.value)(params, batch)
    return jax.tree.map(jnp.conj, grad)  # of complex leaves jax.grad has the conjugate
