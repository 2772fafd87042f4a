"""XTrace: the trace on the range of random products, and an unbiased estimate of the rest."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from gradkit import tree
from gradkit.operators import Operator
from gradkit.spectra.samples import standard_error

PyTree = Any

CHECK_EVERY = 8  # probes between two estimates: each projects all probes anew


class State(NamedTuple):
    """`A ωⱼ = Q Rⱼ`, `H = Qᵀ A Q` for the columns j < `step`, Q orthonormal.

    Attributes:
        Q: basis of trees. R, H: shape (rows, rows). energy: ωⱼᵀAωⱼ, shape (rows,).
        step: how many columns are done. products: products used.
        exhausted: whether Q spans the range of A, to rounding.
        value, stderr: the estimate when last made; `stderr` is infinite before.
        earlier: the standard error of the estimate before.
        tol: stop at a standard error of tol · |value|, twice in succession.
    """

    Q: PyTree
    R: jax.Array
    H: jax.Array
    energy: jax.Array
    step: jax.Array
    products: jax.Array
    exhausted: jax.Array
    value: jax.Array
    stderr: jax.Array
    earlier: jax.Array
    tol: jax.Array


@functools.partial(jax.jit, static_argnames="rows")
def init(A: Operator, tol: Any, *, rows: int) -> State:
    """Returns the state before the first of `rows` probes."""
    dtype = tree.scalar_dtype(A.domain)
    zero = jnp.zeros((), jnp.int32)
    square = jnp.zeros((rows, rows), dtype)
    return State(
        Q=tree.empty_basis(rows, A.domain),
        R=square,
        H=square.copy(),
        energy=jnp.zeros(rows, dtype),
        step=zero,
        products=zero.copy(),
        exhausted=jnp.zeros((), bool),
        value=jnp.zeros((), dtype),
        stderr=jnp.array(jnp.inf, dtype),
        earlier=jnp.array(jnp.inf, dtype),
        tol=jnp.array(tol, dtype),
    )


def step(operands: tuple[Operator, jax.Array], s: State) -> State:
    """One probe ω: its product joins the range, unless it lies in it already.

    Cost: two products; Gram–Schmidt twice against all columns.
    """
    A, key = operands
    j = s.step
    omega = _probe(key, j, A)
    y = A.matvec(omega)
    c = tree.basis_project(s.Q, y)
    q = tree.add_scaled(y, -1, tree.basis_combine(s.Q, c))
    again = tree.basis_project(s.Q, q)
    q = tree.add_scaled(q, -1, tree.basis_combine(s.Q, again))
    rest = tree.norm(q)
    R = s.R.at[:, j].set((c + again).at[j].set(rest))
    scale = jnp.sqrt(jnp.max(jnp.sum(R**2, axis=0)))
    tiny = 10 * jnp.finfo(rest.dtype).eps * scale
    exhausted = ((rest <= tiny) & jnp.isfinite(tiny)) | (j >= A.dimension)
    Q = tree.basis_set(s.Q, j, tree.scaled(jnp.where(exhausted, 0, 1 / rest), q))
    q = jax.tree.map(lambda rows: rows[j], Q)
    h = tree.basis_project(Q, A.matvec(q))
    s = s._replace(
        Q=Q,
        R=R,
        H=s.H.at[:, j].set(h).at[j, :].set(h),
        energy=s.energy.at[j].set(tree.inner(omega, y)),
        step=jnp.where(exhausted, j, j + 1),
        products=s.products + 2,
        exhausted=exhausted,
    )
    due = (s.step % CHECK_EVERY == 0) | (s.step == len(s.energy)) | exhausted | ~jnp.isfinite(rest)
    return jax.lax.cond(due, _estimate, lambda A, key, s: s, A, key, s)


def stops(s: State) -> jax.Array:
    """Whether the tolerance is met, the range or the rows are used up, or hope is lost."""
    met = jnp.maximum(s.stderr, s.earlier) <= s.tol * jnp.abs(s.value)
    return met | s.exhausted | (s.step >= len(s.energy)) | ~jnp.isfinite(s.value)


def _probe(key: jax.Array, j: jax.Array, A: Operator) -> PyTree:
    return tree.random_unit(jax.random.fold_in(key, j), A.domain)


def _estimate(A: Operator, key: jax.Array, s: State) -> State:
    """Returns the state with the mean of the estimates that leave one probe out each.

    Source: Epperly, Tropp & Webber (2024), section 2 and, for the normalization that makes
    multiples of the identity exact, section 2.3. Without probe i the range is Q less a direction
    sᵢ ∝ R⁻ᵀeᵢ, and ωᵢ is independent of it: trᵢ = tr H − sᵢᵀH sᵢ + (n − m + 1) rᵢᵀA rᵢ / rᵢᵀrᵢ
    for rᵢ = ωᵢ − Q xᵢ, xᵢ = (I − sᵢ sᵢᵀ) Qᵀωᵢ.
    Differs: QᵀAωᵢ is the column Rᵢ, as A is symmetric; on an exhausted range the trace is that of
    H, its error rounding. The deviation is that of Student's t, and its square is multiplied by
    1 + 3m/n: the estimates share their probes, and their spread alone was measured to give that
    much too little, to about a third, for linear and algebraic spectra and any m/n up to 3/4.
    """
    rows, m, n = len(s.energy), s.step, A.dimension
    kept = jnp.arange(rows) < m
    W = jax.lax.map(lambda j: tree.basis_project(s.Q, _probe(key, j, A)), jnp.arange(rows)).T
    R = jnp.where(kept, s.R / jnp.max(jnp.abs(s.R)), jnp.eye(rows, dtype=s.R.dtype))
    S = solve_triangular(R, jnp.eye(rows, dtype=R.dtype), trans="T")
    S = S / jnp.linalg.norm(S, axis=0)

    def quadratic(X):
        return jnp.sum(X * jnp.matmul(s.H, X, precision="highest"), axis=0)

    X = W - S * jnp.sum(S * W, axis=0)
    rAr = s.energy - 2 * jnp.sum(X * s.R, axis=0) + quadratic(X)
    rr = 1 - jnp.sum(X**2, axis=0)
    traces = jnp.trace(s.H) - quadratic(S) + (n - m + 1) * rAr / rr
    mean = jnp.sum(jnp.where(kept, traces, 0)) / m
    squares = (1 + 3 * m / n) * jnp.sum(jnp.where(kept, (traces - mean) ** 2, 0))
    return s._replace(
        value=jnp.where(s.exhausted, jnp.trace(s.H), mean),
        stderr=jnp.where(s.exhausted, 0, standard_error(squares, m)),
        earlier=s.stderr,
    )
