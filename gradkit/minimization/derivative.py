"""The derivative of a minimizer with respect to what the loss depends on besides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import tree
from gradkit.core import Problem
from gradkit.curvature.hessian import observed
from gradkit.krylov.minres import minres
from gradkit.minimization.bounds import Bounds
from gradkit.operators import Operator

PyTree = Any


def solution(
    problem: Problem, solve: Callable[[PyTree], Any], args: PyTree, bounds: Bounds | None = None
) -> Any:
    """Returns solve(args), a result whose `params` have derivatives with respect to `args`.

    Source: the implicit function theorem on ∇f(x, args) = 0: ẋ = −H⁻¹ (∂∇f/∂args) ȧrgs.

    Differs: what is held at a bound stays there: its derivative is zero. NaN where MINRES does not
    solve the system to √ε, as where there is no derivative.

    Cost: forward and in reverse, one linearization and the products of one `gk.minres`.
    """

    @jax.custom_jvp
    def solved(args):
        return solve(args)

    @solved.defjvp
    def derivative(primals, tangents):
        (args,), (change,) = primals, tangents
        result = solve(args)
        x = result.params

        def gradient(args):
            return jax.grad(problem.value)(x, args)

        b = jax.jvp(gradient, (args,), (change,))[1]
        A = observed(problem, x, args)[2]
        if bounds is not None:
            free = bounds.free(x, result.grad)
            A, b = _restricted(A, free), jax.tree.map(jnp.multiply, free, b)
        eps = float(jnp.finfo(tree.scalar_dtype(x)).eps)

        def solver(_, b):
            solve = minres(A, b, tol=10 * eps)
            solved = solve.residual_norm <= eps**0.5 * tree.norm(b)
            return jax.tree.map(lambda v: jnp.where(solved, v, jnp.nan), solve.x)

        minus = jax.tree.map(lambda v: -v, b)
        dx = jax.lax.custom_linear_solve(A.matvec, minus, solver, symmetric=True)
        _, dvalue = jax.jvp(problem.value, (x, args), (dx, change))
        still = jax.tree.map(_zero, result)
        return result, still._replace(params=dx, value=dvalue.astype(result.value.dtype))

    return solved(args)


def _restricted(A: Operator, free: PyTree) -> Operator:
    """A on what is free, the identity on what is not."""

    def matvec(v):
        Av = A.matvec(jax.tree.map(jnp.multiply, free, v))
        return jax.tree.map(lambda f, x, y: jnp.where(f > 0, y, x), free, v, Av)

    return Operator(matvec, A.domain)


def _zero(x: jax.Array) -> Any:
    """The zero tangent of an array."""
    dtype = jax.dtypes.float0
    return x * 0 if jnp.issubdtype(x.dtype, jnp.inexact) else np.zeros(x.shape, dtype)
