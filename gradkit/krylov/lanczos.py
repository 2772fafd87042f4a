"""Lanczos with two-pass reorthogonalization: an orthonormal basis on which A is a small matrix."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.krylov.drivers import Drive, chosen
from gradkit.operators import Operator

PyTree = Any


class Lanczos(NamedTuple):
    """`A V = V T + R C` and `VᵀV = I`, with R the next vectors, orthonormal and orthogonal to V.

    From one start vector T is tridiagonal, R has one vector and C one row, zero but for its last
    entry. Bases are written as row vectors.

    Attributes:
        basis: m + b rows. After j of m steps the first j are V and the next b are R, b the number
            of start vectors; the rest are zeros.
        H: shape (m + b, m). Column i has the coefficients of A vᵢ in the basis, of which the last,
            b rows below the diagonal, is the norm of what was left for a new row: zero where the
            space was exhausted and the method went on in a new direction.
        step: j, how many rows are done.
        began: the last row of V that was a new direction, to 100 ε ‖A‖; 0 without any.
        seed: of the new directions, unsigned 32-bit.
    """

    basis: PyTree
    H: jax.Array
    step: jax.Array
    began: jax.Array
    seed: jax.Array

    @property
    def rows(self) -> int:
        """m, the most steps there is room for."""
        return self.H.shape[1]

    @property
    def block(self) -> int:
        """b, the number of start vectors."""
        return self.H.shape[0] - self.H.shape[1]

    def projection(self, padding: float | jax.Array = 0.0) -> jax.Array:
        """Returns T = VᵀA V, shape (m, m), with `padding` on the diagonal of rows not yet done."""
        done = jnp.arange(self.rows) < self.step
        T = jnp.triu(self.H[: self.rows])
        T = jnp.where(done & done[:, None], T + jnp.triu(T, 1).T, 0)
        return T + jnp.diag(jnp.where(done, 0, padding))

    @property
    def exhausted(self) -> jax.Array:
        """Whether the row to come is a new direction, of chance or of rounding, to 100 ε ‖A‖.

        V holds all that its start vectors lead to then.
        """
        before = jnp.where(jnp.arange(self.rows) < self.step, jnp.abs(self.H[self.step]), 0)
        small = 100 * jnp.finfo(self.H.dtype).eps * jnp.max(jnp.abs(self.H))
        return (self.step > 0) & (jnp.max(before) <= small)

    @property
    def coupling(self) -> jax.Array:
        """C, shape (b, m): zero before the first step."""
        C = jax.lax.dynamic_slice_in_dim(self.H, self.step, self.block)
        return jnp.where(jnp.arange(self.rows) < self.step, C, 0)


def lanczos(
    A: Operator,
    v0: PyTree | None,
    *,
    steps: int,
    key: jax.Array,
    block: int = 1,
    drive: Drive | None = None,
) -> Lanczos:
    """Returns the decomposition after `steps` steps from v0.

    Source: Lanczos (1950); Golub & Van Loan (2013), algorithm 10.1.1, with the two-pass classical
    Gram–Schmidt of Giraud, Langou & Rozložník (2005); from several start vectors the band method of
    Ruhe (1979), which multiplies one vector at a time.
    Differs: T is the projection that Gram–Schmidt has computed anyway. Where the Krylov space is
    exhausted, the method goes on in a random direction orthogonal to the basis, so that multiple
    eigenvalues are found in full.

    Cost: one product a step; steps + block + 2 trees of memory; 4 passes over the basis a step.

    Args:
        A: symmetric operator of dimension n.
        v0: start vector, a tree like the operator's domain; None for a random one.
        steps: how many, at most n.
        key: random key of the start and of the directions after a breakdown.
        block: start vectors in all, those beside v0 at random.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Raises:
        ValueError: more steps than dimensions, or v0 not in the operator's domain.
    """
    if not 1 <= steps <= A.dimension:
        raise ValueError(f"steps: expected 1 to {A.dimension}, the dimension, got {steps}")
    if v0 is not None:
        A.check(v0)
        v0 = jax.tree.map(lambda x: x[None], v0)
    state = init(A, v0, key, rows=steps, block=block)
    return chosen(drive)(step, A, state, until=stops)


@functools.partial(jax.jit, static_argnames=("rows", "block", "dtype"))
def init(
    A: Operator,
    starts: PyTree | None,
    key: jax.Array,
    *,
    rows: int,
    block: int = 1,
    dtype: Any = None,
) -> Lanczos:
    """Returns the state before the first of at most `rows` steps.

    Args:
        A: symmetric operator.
        starts: basis of at most `block` start vectors, or None; those missing are random.
        key: random key of these, and of the directions after a breakdown.
        rows: m. block: b. dtype: of the stored basis; the domain's by default.
    """
    seeds = jax.random.bits(key, (block + 1,), jnp.uint32)
    basis = tree.empty_basis(rows + block, A.domain, dtype)
    given = 0 if starts is None else len(jax.tree.leaves(starts)[0])
    for i in range(block):
        if i < given:
            v = tree.basis_row(starts, i, A.domain)
        else:
            v = tree.hashed_normal(seeds[i], A.domain)
        before = jax.tree.map(lambda rows, i=i: rows[:i], basis)
        v = tree.scaled(1 / tree.norm(v), v)
        v = _orthogonal(before, v) if i else v
        basis = tree.basis_set(basis, i, v)
    return Lanczos(
        basis=basis,
        H=jnp.zeros((rows + block, rows), tree.scalar_dtype(A.domain)),
        step=jnp.zeros((), jnp.int32),
        began=jnp.zeros((), jnp.int32),
        seed=seeds[block],
    )


def step(A: Operator, s: Lanczos) -> Lanczos:
    """One row: v joins V, and what A v adds to the basis becomes its new last vector."""
    j, b = s.step, s.block
    w = A.matvec(tree.basis_row(s.basis, j, A.domain))
    w, h = _orthogonalize(s.basis, w)
    w, g = _orthogonalize(s.basis, w)  # twice is enough
    h += g
    beta = tree.norm(w)
    scale = jnp.maximum(jnp.max(jnp.abs(s.H)), jnp.max(jnp.abs(h)))  # at most ‖A‖
    complete = j + b >= A.dimension
    tiny = 4 * jnp.finfo(beta.dtype).eps * scale
    exhausted = complete | ((beta <= tiny) & jnp.isfinite(tiny))
    v = jax.lax.cond(
        exhausted,
        lambda: _new_direction(s, w, complete),
        lambda: tree.scaled(1 / beta, w),
    )
    H = s.H.at[:, j].set(h).at[j + b, j].set(jnp.where(exhausted, 0, beta))
    began = jnp.where(s.exhausted, j, s.began)
    return s._replace(basis=tree.basis_set(s.basis, j + b, v), H=H, step=j + 1, began=began)


def stops(s: Lanczos) -> jax.Array:
    """Whether every row is done."""
    return s.step >= s.rows


@functools.partial(jax.jit, static_argnames="rows")
def extended(s: Lanczos, *, rows: int) -> Lanczos:
    """Returns the same decomposition with room for so many rows."""

    def leaf(x):
        more = rows + s.block - len(x)
        return jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))

    H = jnp.pad(s.H, ((0, rows - s.rows), (0, rows - s.rows)))
    return s._replace(basis=jax.tree.map(leaf, s.basis), H=H)


def combined(s: Lanczos, S: jax.Array, domain: PyTree | None = None) -> PyTree:
    """Returns V S, a basis of the p vectors with coefficients S, shape (m, p), in V.

    Cost: p trees of memory.
    """
    S = jnp.pad(S, ((0, s.block), (0, 0)))  # a part of the basis would be a copy of it
    return tree.basis_combine(s.basis, S, domain)


def restarted(s: Lanczos, theta: jax.Array, S: jax.Array, began: jax.Array) -> Lanczos:
    """Returns the decomposition shortened to p Ritz vectors V S, with the same R.

    `A (V S) = (V S) diag(θ) + R (C S)`, from which the steps go on.

    Cost: p + b trees of memory; the buffers of s are given up, and written over.

    Source: Wu & Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue
    problems".

    Args:
        s: a decomposition.
        theta: p Ritz values.
        S: their coefficients in V, shape (m, p), zero for rows not done.
        began: which of them is the first that the last new direction led to.
    """
    return _begun_with(s, theta, *_kept(s, S), began)


@jax.jit
def _kept(s: Lanczos, S: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
    """V S, R and C S: all that is read before the basis is written over."""
    R = jax.tree.map(lambda rows: jax.lax.dynamic_slice_in_dim(rows, s.step, s.block), s.basis)
    return combined(s, S), R, jnp.matmul(s.coupling, S, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, donate_argnames="s")
def _begun_with(
    s: Lanczos, theta: jax.Array, kept: PyTree, R: PyTree, C: jax.Array, began: jax.Array
) -> Lanczos:
    p, b = theta.size, s.block

    def leaf(rows, kept, R):
        return rows.at[:p].set(kept).at[p : p + b].set(R).at[p + b :].set(0)

    H = jnp.zeros_like(s.H).at[:p, :p].set(jnp.diag(theta)).at[p : p + b, :p].set(C)
    step, seed = jnp.full_like(s.step, p), s.seed + jnp.uint32(s.rows)
    basis = jax.tree.map(leaf, s.basis, kept, R)
    return Lanczos(basis, H, step=step, began=began.astype(step.dtype), seed=seed)


def _orthogonalize(basis: PyTree, w: PyTree) -> tuple[PyTree, jax.Array]:
    h = tree.basis_project(basis, w)
    return optax.tree.sub(w, tree.basis_combine(basis, h, w)), h


def _orthogonal(basis: PyTree, v: PyTree) -> PyTree:
    """A unit vector: what of v is orthogonal to the basis."""

    def again(_, v):
        v, _h = _orthogonalize(basis, v)
        return tree.scaled(1 / tree.norm(v), v)

    return jax.lax.fori_loop(0, 2, again, v)  # compiles faster than twice the same


def _new_direction(s: Lanczos, like: PyTree, complete: jax.Array) -> PyTree:
    """A random unit vector orthogonal to the basis, zero where that spans the whole space."""
    v = tree.hashed_normal(s.seed + s.step.astype(jnp.uint32), like)
    return jax.tree.map(lambda x: jnp.where(complete, 0, x), _orthogonal(s.basis, v))
