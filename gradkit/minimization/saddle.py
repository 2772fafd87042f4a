"""Whether a stationary point has a direction of negative curvature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import Problem
from gradkit.curvature.hessian import observed
from gradkit.krylov import three_term

PyTree = Any

STEPS = 20  # of Lanczos


def negative_curvature(
    problem: Problem, params: PyTree, args: PyTree, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns whether the Hessian has a negative eigenvalue, and the products spent on that.

    Yes is certain: a Rayleigh quotient is negative by more than its rounding. No means that 20
    steps of Lanczos from a random start met none: all there are in up to 20 dimensions.

    Cost: one gradient and min(n, 20) products if `wanted`; none if not.
    """
    n = optax.tree.size(params)
    rows = min(n, STEPS)
    none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    if not rows:
        return none

    def look():
        A = observed(problem, params, args)[2]
        v0 = tree.hashed_normal(jnp.uint32(0), params)
        s = three_term.init(v0, rows=rows)
        s = jax.lax.fori_loop(0, rows, lambda _, s: three_term.step(A, s), s)
        off = s.beta[:-1]
        T = jnp.diag(s.alpha) + jnp.diag(off, 1) + jnp.diag(off, -1)
        ritz = jnp.linalg.eigvalsh(T)
        resolution = 10 * n**0.5 * jnp.finfo(ritz.dtype).eps * jnp.max(jnp.abs(ritz))
        return ritz[0] < -resolution, jnp.int32(rows)

    return jax.lax.cond(wanted, look, lambda: none)
