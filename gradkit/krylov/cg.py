"""Conjugate gradients: A x = b for a positive definite operator, and what was met if it is not."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.krylov.drivers import Drive, chosen
from gradkit.operators import Operator

PyTree = Any


class Solve(NamedTuple):
    """`‖b − A x‖ = residual_norm`, computed by one more product at the returned x.

    Attributes:
        x: the solution, a tree like b. When the curvature met was not positive, the last iterate
            before it: zero if the very first direction had it.
        residual_norm: ‖b − A x‖, a scalar.
        steps: directions used.
        products: products with A, the one that measured the residual included.
        converged: whether `residual_norm <= tol ‖b‖`.
        curvature: the smallest pᵀAp / pᵀp among the directions p met, infinite without any; not
            positive means that A is not positive definite. `cg` stops there, `minres` goes on.
    """

    x: PyTree
    residual_norm: jax.Array
    steps: jax.Array
    products: jax.Array
    converged: jax.Array
    curvature: jax.Array


class State(NamedTuple):
    """`r = b − A x`, `z = M r`, `rz = rᵀz`; p is conjugate to the directions before it."""

    x: PyTree
    r: PyTree
    p: PyTree
    rz: jax.Array
    r_norm: jax.Array
    goal: jax.Array
    step: jax.Array
    max_steps: jax.Array
    curvature: jax.Array
    largest: jax.Array
    stopped: jax.Array


def cg(
    A: Operator,
    b: PyTree,
    *,
    tol: float | jax.Array = 1e-5,
    max_steps: int | jax.Array | None = None,
    preconditioner: Operator | None = None,
    drive: Drive | None = None,
) -> Solve:
    """Solves A x = b from x = 0 by preconditioned conjugate gradients.

    Source: Hestenes & Stiefel (1952); Nocedal & Wright (2006), algorithm 5.3.
    Differs: stops at a direction with pᵀAp ≤ ε·(largest curvature met)·pᵀp, ε the machine
    precision, instead of dividing by it, and reports the curvature; the residual returned is
    computed afresh.

    Cost: one product a step and one at the end; 4 trees of memory besides b.

    Args:
        A: symmetric operator.
        b: right-hand side, a tree like the operator's domain.
        tol: relative tolerance: stop at ‖b − A x‖ ≤ tol ‖b‖.
        max_steps: most directions to use; the dimension by default.
        preconditioner: operator M ≈ A⁻¹, symmetric positive definite.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        A `Solve`. No convergence, negative curvature and NaN are values in it.

    Raises:
        ValueError: b does not have the structure, shapes and dtypes of the operator's domain.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.zeros(3))
        >>> solve = gk.cg(A, jnp.array([1.0, 1.0, 1.0]))
        >>> solve.x.round(3), bool(solve.converged), int(solve.steps)
        (Array([1.  , 0.5 , 0.25], dtype=float32), True, 3)
    """
    A.check(b)
    max_steps = min(A.dimension, jnp.iinfo(jnp.int32).max) if max_steps is None else max_steps
    operators = (A, preconditioner)
    b, unit = in_range(b)
    state = init(operators, b, tol, max_steps)
    return rescaled(result(A, b, chosen(drive)(step, operators, state, until=stops)), unit)


@jax.jit
def in_range(b: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns b in a unit in which its squares neither underflow nor overflow, and that unit.

    That is 1 where they are far from doing so.
    """
    unit = tree.scale(b)
    unit = jnp.where((unit > 2.0**20) | (unit < 2.0**-20), unit, 1)
    return tree.scaled(1 / unit, b), unit


@jax.jit
def rescaled(solve: Solve, unit: jax.Array) -> Solve:
    """Returns the solution for a right-hand side that is `unit` times as large."""
    residual_norm = (unit * solve.residual_norm).astype(solve.residual_norm.dtype)
    return solve._replace(x=tree.scaled(unit, solve.x), residual_norm=residual_norm)


@jax.jit
def init(operators: tuple[Operator, Operator | None], b: PyTree, tol: Any, max_steps: Any) -> State:
    """Returns the state at x = 0."""
    _, M = operators
    z = b if M is None else M.matvec(b)
    dtype = tree.scalar_dtype(b)
    b_norm = tree.norm(b)
    return State(
        x=optax.tree.zeros_like(b),
        r=jax.tree.map(jnp.copy, b),
        p=jax.tree.map(jnp.copy, z),
        rz=tree.inner(b, z),
        r_norm=b_norm,
        goal=jnp.asarray(tol, dtype) * b_norm,
        step=jnp.zeros((), jnp.int32),
        max_steps=jnp.asarray(max_steps, jnp.int32),
        curvature=jnp.asarray(jnp.inf, dtype),
        largest=jnp.zeros((), dtype),
        stopped=jnp.zeros((), bool),
    )


def step(operators: tuple[Operator, Operator | None], s: State) -> State:
    """One direction of the recurrence."""
    A, M = operators
    Ap = A.matvec(s.p)
    pAp, pp = tree.inner(s.p, Ap), tree.inner(s.p, s.p)
    curvature = pAp / pp
    largest = jnp.maximum(s.largest, curvature)
    positive = curvature > jnp.finfo(pAp.dtype).eps * largest
    alpha = jnp.where(positive, s.rz / pAp, 0)
    x = tree.add_scaled(s.x, alpha, s.p)
    r = tree.add_scaled(s.r, -alpha, Ap)
    z = r if M is None else M.matvec(r)
    rz = tree.inner(r, z)
    p = tree.add_scaled(z, rz / s.rz, s.p)  # β = rᵀz / (rᵀz of the step before)
    return s._replace(
        x=x,
        r=r,
        p=p,
        rz=rz,
        r_norm=tree.norm(r),
        step=s.step + 1,
        curvature=jnp.minimum(s.curvature, curvature),
        largest=largest,
        stopped=~positive,
    )


def stops(s: State) -> jax.Array:
    """Whether the residual is small, the steps are used up or the curvature was not positive."""
    return (s.r_norm <= s.goal) | (s.step >= s.max_steps) | s.stopped


def result(A: Operator, b: PyTree, s: Any) -> Solve:
    """Returns what a state has reached, of `cg` or `minres`: one product measures its residual."""
    return _result(b, s, A @ s.x)


@jax.jit
def _result(b: PyTree, s: Any, Ax: PyTree) -> Solve:
    residual_norm = tree.norm(optax.tree.sub(b, Ax))
    return Solve(
        x=s.x,
        residual_norm=residual_norm,
        steps=s.step,
        products=s.step + 1,
        converged=residual_norm <= s.goal,
        curvature=s.curvature,
    )
