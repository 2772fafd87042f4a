"""The iterates of conjugate gradients on a quadratic, from a warm start, some of them kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import tree
from gradkit.krylov import cg
from gradkit.krylov.drivers import Drive, chosen
from gradkit.operators import Operator

PyTree = Any

GROWTH = 1.3  # iterates are kept at steps ⌈1.3ʲ⌉
LEAST_WINDOW, WINDOW = 10, 0.1  # steps over which progress is measured: at least, and of all steps


class Iterates(NamedTuple):
    """`values[j] = ½ xⱼᵀA xⱼ − bᵀxⱼ` for the iterates xⱼ = `row(j)`, falling in j while A > 0.

    Attributes:
        rows: the iterates, with a leading axis; those after `last` are zero.
        values: shape (rows,).
        last: the place of the final iterate.
        steps: of conjugate gradients. products: with A, the one that the warm start took included.
        residual_norm: ‖b − A x‖ at the final iterate, as the recurrence has it.
        curvature: the smallest pᵀAp / pᵀp met, infinite without any; not positive ended the steps.
    """

    rows: PyTree
    values: jax.Array
    last: jax.Array
    steps: jax.Array
    products: jax.Array
    residual_norm: jax.Array
    curvature: jax.Array

    def row(self, j: Any, like: PyTree) -> PyTree:
        """Returns iterate j in the dtypes of a tree."""
        return tree.basis_row(self.rows, j, like)


class State(NamedTuple):
    """`x = x₀ + y`, with y and its residual those of `solve`, conjugate gradients from y = 0."""

    solve: cg.State
    start: PyTree
    b: PyTree
    history: jax.Array
    rows: PyTree
    values: jax.Array
    last: jax.Array
    slots: jax.Array
    tol: jax.Array


def iterates(
    A: Operator,
    b: PyTree,
    start: PyTree,
    *,
    tol: float | jax.Array = 5e-4,
    max_steps: int = 100,
    preconditioner: Operator | None = None,
    drive: Drive | None = None,
) -> Iterates:
    """Minimizes φ(x) = ½ xᵀA x − bᵀx by conjugate gradients until φ falls slowly.

    The steps end at step i with φ(xᵢ) < 0 and φ(xᵢ) − φ(xᵢ₋ₖ) > k tol φ(xᵢ), where
    k = max(10, ⌈i/10⌉), at a residual of the size of rounding, at a direction whose curvature is
    not positive, or after `max_steps`. What is kept are the iterates at steps ⌈1.3ʲ⌉, and the
    final one.

    Source: Martens (2010), "Deep learning via Hessian-free optimization", sections 4.4 and 4.6.

    Cost: one product a step and one for the start; 6 trees of memory and one for each iterate kept,
    of 100 steps 14.

    Args:
        A: symmetric operator.
        b: right-hand side, a tree like the operator's domain.
        start: x₀, a tree like b.
        tol: least progress of φ in a step, relative to φ.
        max_steps: most steps.
        preconditioner: operator M ≈ A⁻¹, symmetric positive definite.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.
    """
    A.check(b)
    A.check(start)
    operators = (A, preconditioner)
    state = _init(operators, b, start, A @ start, tol, max_steps=max_steps)
    return _result(chosen(drive)(_step, operators, state, until=_stops))


def _slots(max_steps: int) -> np.ndarray:
    """At each step, whether its iterate is kept: 1 or 0."""
    powers = np.ceil(GROWTH ** np.arange(1 + np.log(max(max_steps, 2)) / np.log(GROWTH)))
    return np.isin(np.arange(max_steps + 1), powers).astype(np.int32)


def _init(
    operators: tuple, b: PyTree, start: PyTree, product: PyTree, tol: Any, *, max_steps: int
) -> State:
    b, start = jax.tree.map(jnp.copy, (b, start))  # the buffers of a state are given up
    rounding = jnp.finfo(tree.scalar_dtype(b)).eps
    solve = cg.init(operators, optax.tree.sub(b, product), rounding, max_steps)
    dtype = solve.rz.dtype
    slots = _slots(max_steps)
    phi = _quadratic(start, solve.r, b)
    rows = tree.empty_basis(int(slots.sum()) + 1, b)
    return State(
        solve=solve,
        start=start,
        b=b,
        history=jnp.full(max_steps + 1, phi, dtype),
        rows=tree.basis_set(rows, 0, start),
        values=jnp.zeros(int(slots.sum()) + 1, dtype).at[0].set(phi),
        last=jnp.zeros((), jnp.int32),
        slots=jnp.asarray(slots),
        tol=jnp.array(tol, dtype),
    )


def _step(operators: tuple[Operator, Operator | None], s: State) -> State:
    """One step of conjugate gradients; its iterate takes the place of one not to be kept."""
    solve = cg.step(operators, s.solve)
    x = optax.tree.add(s.start, solve.x)
    phi = _quadratic(x, solve.r, s.b)
    kept = jnp.where(s.solve.step > 0, s.slots[s.solve.step], 0)  # whether the one before is
    place = s.last + kept
    return s._replace(
        solve=solve,
        history=s.history.at[solve.step].set(phi),
        rows=tree.basis_set(s.rows, place, x),
        values=s.values.at[place].set(phi),
        last=place,
    )


def _stops(s: State) -> jax.Array:
    i, phi = s.solve.step, s.history[s.solve.step]
    k = jnp.maximum(LEAST_WINDOW, jnp.ceil(WINDOW * i).astype(jnp.int32))
    before = s.history[jnp.maximum(i - k, 0)]
    slow = (i > k) & (phi < 0) & (phi - before > k * s.tol * phi)
    return slow | cg.stops(s.solve)


def _result(s: State) -> Iterates:
    return Iterates(
        rows=s.rows,
        values=s.values,
        last=s.last,
        steps=s.solve.step,
        products=s.solve.step + 1,
        residual_norm=s.solve.r_norm,
        curvature=s.solve.curvature,
    )


def _quadratic(x: PyTree, r: PyTree, b: PyTree) -> jax.Array:
    return -tree.inner(x, optax.tree.add(r, b)) / 2  # r = b − A x
