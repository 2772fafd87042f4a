"""MINRES: the smallest residual of A x = b in each Krylov space, for any symmetric operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.krylov.cg import Solve, in_range, rescaled, result
from gradkit.krylov.drivers import Drive, chosen
from gradkit.operators import Operator

PyTree = Any


class State(NamedTuple):
    """`r = b − A x` and `√(rᵀM r) = phi`, the least that x in the Krylov space can reach.

    u and v = M u are the next Lanczos vectors, uᵀv = 1, and beta is the entry of T before them; d
    is the last direction of x; c, s, delta, epsilon are handed on by the QR factorization of T.
    """

    x: PyTree
    r: PyTree
    u: PyTree
    u_before: PyTree
    v: PyTree | None
    d: PyTree
    d_before: PyTree
    beta: jax.Array
    c: jax.Array
    s: jax.Array
    delta: jax.Array
    epsilon: jax.Array
    phi: jax.Array
    norm: jax.Array
    r_norm: jax.Array
    goal: jax.Array
    step: jax.Array
    max_steps: jax.Array
    curvature: jax.Array
    stopped: jax.Array


def minres(
    A: Operator,
    b: PyTree,
    *,
    tol: float | jax.Array = 1e-5,
    max_steps: int | jax.Array | None = None,
    preconditioner: Operator | None = None,
    drive: Drive | None = None,
) -> Solve:
    """Solves A x = b from x = 0 by the minimum residual method: A may be indefinite or singular.

    ‖r‖ falls from step to step, r = b − A x; with a preconditioner M, √(rᵀM r) does. If b is not in
    the range of A, the method stops at a least-squares solution, which need not be the shortest:
    `converged` is False, as the residual is not small, and `steps` is below `max_steps`.

    Source: Paige & Saunders (1975); Choi, Paige & Saunders (2011); for the curvature Liu & Roosta
    (2022), "MINRES: from negative curvature detection to monotonicity properties".
    Differs: stops on ‖r‖ with a preconditioner too, by a recurrence for r; on ‖A r‖ ≤ √ε ‖A‖ ‖r‖, ε
    the machine precision, whatever `tol`; without a preconditioner, on ‖r‖ ≤ ε ‖A‖ ‖x‖ as well.

    Cost: one product a step and one at the end; 6 trees of memory besides b, 7 preconditioned.

    Args:
        A: symmetric operator.
        b: right-hand side, a tree like the operator's domain.
        tol: relative tolerance: stop at ‖b − A x‖ ≤ tol ‖b‖.
        max_steps: most directions to use; 5 times the dimension by default.
        preconditioner: operator M ≈ |A|⁻¹, symmetric positive definite.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        A `Solve`. Its `curvature` is the smallest rᵀAr / rᵀr among the residuals r met; with a
        preconditioner, (Mr)ᵀA(Mr) / rᵀMr. It is not positive as soon as A is not positive definite
        on the Krylov space; the method goes on. With NaN, x is the last iterate before it.

    Raises:
        ValueError: b does not have the structure, shapes and dtypes of the operator's domain.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([1.0, -2.0, 4.0]) * v, jnp.zeros(3))
        >>> solve = gk.minres(A, jnp.array([1.0, 1.0, 1.0]))
        >>> solve.x.round(3), bool(solve.converged), bool(solve.curvature < 0)
        (Array([ 1.  , -0.5 ,  0.25], dtype=float32), True, True)
    """
    A.check(b)
    if max_steps is None:  # rounding delays the solution beyond step n
        max_steps = min(5 * A.dimension, jnp.iinfo(jnp.int32).max)
    operators = (A, preconditioner)
    b, unit = in_range(b)
    state = init(operators, b, tol, max_steps)
    return rescaled(result(A, b, chosen(drive)(step, operators, state, until=stops)), unit)


@jax.jit
def init(operators: tuple[Operator, Operator | None], b: PyTree, tol: Any, max_steps: Any) -> State:
    """Returns the state at x = 0."""
    zero = jnp.zeros((), tree.scalar_dtype(b))
    u, v, beta = _normalized(operators[1], b)
    return State(
        x=optax.tree.zeros_like(b),
        r=jax.tree.map(jnp.copy, b),
        u=u,
        u_before=optax.tree.zeros_like(b),
        v=v,
        d=optax.tree.zeros_like(b),
        d_before=optax.tree.zeros_like(b),
        beta=zero,
        c=zero - 1,
        s=zero,
        delta=zero,
        epsilon=zero,
        phi=beta,
        norm=zero,
        r_norm=tree.norm(b),
        goal=jnp.asarray(tol, zero.dtype) * tree.norm(b),
        step=jnp.zeros((), jnp.int32),
        max_steps=jnp.asarray(max_steps, jnp.int32),
        curvature=zero + jnp.inf,
        stopped=jnp.zeros((), bool),
    )


def step(operators: tuple[Operator, Operator | None], q: State) -> State:
    """One row of Lanczos, one rotation of its tridiagonal T, one direction."""
    A, M = operators
    v = q.u if q.v is None else q.v
    p = tree.add_scaled(A.matvec(v), -q.beta, q.u_before)
    alpha = tree.inner(v, p)
    u, v_next, beta = _normalized(M, tree.add_scaled(p, -alpha, q.u))
    delta = q.c * q.delta + q.s * alpha  # the rotations before, on the new column of T
    gamma_bar = q.s * q.delta - q.c * alpha
    delta_bar, epsilon = -q.c * beta, q.s * beta
    gamma = jnp.hypot(gamma_bar, beta)  # the new rotation
    c, s = gamma_bar / gamma, beta / gamma
    eps = jnp.finfo(gamma.dtype).eps
    norm = jnp.maximum(q.norm, jnp.sqrt(q.beta**2 + alpha**2 + beta**2))  # at most ‖A‖
    gain = jnp.hypot(gamma_bar, delta_bar)  # ‖A r‖ / ‖r‖ at the x before
    moves = gain > jnp.sqrt(eps) * norm  # rounding lets A r of a least-squares r fall no further

    d = tree.add_scaled(tree.add_scaled(v, -q.epsilon, q.d_before), -delta, q.d)
    d = tree.scaled(1 / gamma, d)
    x = tree.add_scaled(q.x, c * q.phi, d)
    phi = s * q.phi
    r = tree.add_scaled(tree.scaled(s**2, q.r), -phi * c, u)
    r_norm = tree.norm(r)
    floor = eps * norm * tree.norm(x) if M is None else 0  # all that rounding allows
    return q._replace(
        x=optax.tree.where(moves, x, q.x),
        r=r,
        u=u,
        u_before=q.u,
        v=v_next,
        d=d,
        d_before=q.d,
        beta=beta,
        c=c,
        s=s,
        delta=delta_bar,
        epsilon=epsilon,
        phi=phi,
        norm=norm,
        r_norm=r_norm,
        step=q.step + 1,
        curvature=jnp.minimum(q.curvature, -q.c * gamma_bar),
        stopped=~moves | (r_norm <= floor),
    )


def stops(q: State) -> jax.Array:
    """Whether the residual is small, in the null space or NaN, or the steps are used up."""
    return ~(q.r_norm > q.goal) | (q.step >= q.max_steps) | q.stopped


def _normalized(M: Operator | None, p: PyTree) -> tuple[PyTree, PyTree | None, jax.Array]:
    """Returns u = p / β, v = M u (None without M) and β = √(pᵀM p)."""
    z = p if M is None else M.matvec(p)
    beta = jnp.sqrt(tree.inner(p, z))
    inverse = jnp.where(beta == 0, 0, 1 / beta)
    return tree.scaled(inverse, p), None if M is None else tree.scaled(inverse, z), beta
