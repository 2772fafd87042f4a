"""Three-term Lanczos: the tridiagonal T alone, in four trees of memory, for quadrature."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.operators import Operator

PyTree = Any


class ThreeTerm(NamedTuple):
    """`A v_j = β_{j−1} v_{j−1} + α_j v_j + β_j v_{j+1}`, for the last j as for all before.

    Without reorthogonalization the vectors lose their orthogonality once an eigenvalue has
    converged, and T gains copies of it. The quadrature rule of T is as accurate all the same
    (Greenbaum 1989): use it for densities and traces of functions, not for eigenpairs.

    Attributes:
        v, before: v_j and v_{j−1}, trees.
        alpha: shape (m,). beta: shape (m,), zero from the step at which the space was exhausted.
        step: how many rows are done.
    """

    v: PyTree
    before: PyTree
    alpha: jax.Array
    beta: jax.Array
    step: jax.Array


def init(v0: PyTree, *, rows: int) -> ThreeTerm:
    """Returns the state before the first of `rows` steps from v0, normalized here."""
    dtype = tree.scalar_dtype(v0)
    return ThreeTerm(
        v=tree.scaled(1 / tree.norm(v0), v0),
        before=jax.tree.map(jnp.zeros_like, v0),
        alpha=jnp.zeros(rows, dtype),
        beta=jnp.zeros(rows, dtype),
        step=jnp.zeros((), jnp.int32),
    )


def step(A: Operator, s: ThreeTerm) -> ThreeTerm:
    """One row of the recurrence; after exhaustion, rows of zeros that carry no weight.

    Source: Paige (1972), the stable variant: β v_{j−1} is subtracted before α is formed.

    Cost: one product; four trees of memory.
    """
    j = s.step
    w = A.matvec(s.v)
    w = tree.add_scaled(w, -s.beta[j - 1], s.before)  # beta[-1] is zero at the first step
    alpha = tree.inner(s.v, w)
    w = tree.add_scaled(w, -alpha, s.v)
    beta = tree.norm(w)
    alphas = s.alpha.at[j].set(alpha)
    scale = jnp.maximum(jnp.max(jnp.abs(alphas)), jnp.max(s.beta))  # at most ‖A‖
    tiny = 4 * jnp.finfo(beta.dtype).eps * scale
    exhausted = (beta <= tiny) & jnp.isfinite(tiny)
    inverse = jnp.where(exhausted, 0, 1 / beta)
    return ThreeTerm(
        v=tree.scaled(inverse, w),
        before=s.v,
        alpha=alphas,
        beta=s.beta.at[j].set(jnp.where(exhausted, 0, beta)),
        step=j + 1,
    )
