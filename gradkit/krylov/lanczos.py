"""Lanczos with two-pass reorthogonalization: an orthonormal basis on which A is tridiagonal."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.krylov.drivers import Drive, in_jit
from gradkit.operators import Operator

PyTree = Any


class Lanczos(NamedTuple):
    """`A V = V T + β v eᵀ` and `VᵀV = I`, with e the last unit vector and Vᵀv = 0.

    V is written as a basis of row vectors. After j of m steps the identity holds for the first j
    rows; the rest of V, alpha and beta are zeros.

    Attributes:
        V: basis of m vectors.
        alpha: diagonal of T, shape (m,).
        beta: shape (m,): beta[i] couples rows i and i + 1 of T; beta[j − 1] is the β of the
            identity. Zero where the space was exhausted and the method went on in a new direction.
        v: the next basis vector.
        step: j, how many rows are done.
        seed: of the new directions, unsigned 32-bit.
    """

    V: PyTree
    alpha: jax.Array
    beta: jax.Array
    v: PyTree
    step: jax.Array
    seed: jax.Array

    def tridiagonal(self, padding: float | jax.Array = 0.0) -> jax.Array:
        """Returns T, shape (m, m), with `padding` on the diagonal of rows not yet done."""
        row = jnp.arange(self.alpha.size)
        alpha = jnp.where(row < self.step, self.alpha, padding)
        beta = jnp.where(row[:-1] + 1 < self.step, self.beta[:-1], 0)
        return jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1)

    @property
    def residual(self) -> jax.Array:
        """The β of the identity, ‖A V − V T‖: zero before the first step."""
        return jnp.where(self.step > 0, self.beta[self.step - 1], 0)


def lanczos(
    A: Operator, v0: PyTree | None, *, steps: int, key: jax.Array, drive: Drive = in_jit
) -> Lanczos:
    """Returns the decomposition after `steps` steps from v0.

    Source: Lanczos (1950); Golub & Van Loan (2013), algorithm 10.1.1, with the two-pass classical
    Gram–Schmidt of Giraud, Langou & Rozložník (2005).
    Differs: where the Krylov space is exhausted, β = 0 is recorded and the method goes on in a
    random direction orthogonal to the basis, so that multiple eigenvalues are found in full.

    Cost: one product a step; steps + 3 trees of memory; 4 passes over the basis a step.

    Args:
        A: symmetric operator of dimension n.
        v0: start vector, a tree like the operator's domain; None for a random one.
        steps: how many, at most n.
        key: random key of the start and of the directions after a breakdown.
        drive: `gk.in_jit` (default) or `gk.on_host`.

    Raises:
        ValueError: more steps than dimensions, or v0 not in the operator's domain.
    """
    if not 1 <= steps <= A.dimension:
        raise ValueError(f"steps: expected 1 to {A.dimension}, the dimension, got {steps}")
    return drive(step, A, init(A, v0, key, rows=steps), until=stops)


@functools.partial(jax.jit, static_argnames="rows")
def init(A: Operator, v0: PyTree | None, key: jax.Array, *, rows: int) -> Lanczos:
    """Returns the state before the first of at most `rows` steps from v0, or at random."""
    start_key, seed_key = jax.random.split(key)
    if v0 is None:
        v0 = tree.random_unit(start_key, A.domain)
    A.check(v0)
    dtype = tree.scalar_dtype(v0)
    return Lanczos(
        V=tree.empty_basis(rows, v0),
        alpha=jnp.zeros(rows, dtype),
        beta=jnp.zeros(rows, dtype),
        v=tree.scaled(1 / tree.norm(v0), v0),
        step=jnp.zeros((), jnp.int32),
        seed=jax.random.bits(seed_key, (), jnp.uint32),
    )


def step(A: Operator, s: Lanczos) -> Lanczos:
    """One row: v joins the basis, and what A v adds to it becomes the next v."""
    V = tree.basis_set(s.V, s.step, s.v)
    w = A.matvec(s.v)
    w, h = _orthogonalize(V, w)
    w, g = _orthogonalize(V, w)  # twice is enough
    alpha = s.alpha.at[s.step].set((h + g)[s.step])
    beta = tree.norm(w)
    scale = jnp.maximum(jnp.max(jnp.abs(alpha)), jnp.max(s.beta))  # at most ‖A‖
    exhausted = beta <= 4 * jnp.finfo(beta.dtype).eps * scale
    v = jax.lax.cond(
        exhausted,
        lambda: _new_direction(V, s.seed + s.step.astype(jnp.uint32), s.v),
        lambda: tree.scaled(1 / beta, w),
    )
    beta = s.beta.at[s.step].set(jnp.where(exhausted, 0, beta))
    return s._replace(V=V, alpha=alpha, beta=beta, v=v, step=s.step + 1)


@functools.partial(jax.jit, static_argnames="rows")
def extended(s: Lanczos, *, rows: int) -> Lanczos:
    """Returns the same decomposition with room for so many rows."""

    def leaf(x):
        return jnp.concatenate([x, jnp.zeros((rows - len(x), *x.shape[1:]), x.dtype)])

    return s._replace(V=jax.tree.map(leaf, s.V), alpha=leaf(s.alpha), beta=leaf(s.beta))


def stops(s: Lanczos) -> jax.Array:
    """Whether every row is done."""
    return s.step >= s.alpha.size


def _orthogonalize(V: PyTree, w: PyTree) -> tuple[PyTree, jax.Array]:
    h = tree.basis_project(V, w)
    return optax.tree.sub(w, tree.basis_combine(V, h)), h


def _new_direction(V: PyTree, seed: jax.Array, like: PyTree) -> PyTree:
    v = tree.hashed_normal(seed, like)
    for _ in range(2):
        v, _h = _orthogonalize(V, v)
        v = tree.scaled(1 / tree.norm(v), v)
    return v
