"""The leading eigenpair of an operator, followed from one measurement to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.operators import Operator
from gradkit.tree import wide

PyTree = Any

# Products that every measurement makes, however good its start: they let a direction that has
# overtaken the one followed grow out of the noise, from one measurement to the next.
LEAST_PRODUCTS = 4


class Leading(NamedTuple):
    """`‖A x − eigenvalue x‖ = residual`: the largest eigenvalue found, and its unit vector x."""

    eigenvalue: jax.Array
    residual: jax.Array
    vector: PyTree


def unknown(params: PyTree) -> Leading:
    """Returns what is known before the first measurement: a zero vector."""
    nothing = jnp.full((), jnp.nan, tree.scalar_dtype(params))
    return Leading(nothing, jnp.array(nothing), tree.wide_zeros(params))


class _Search(NamedTuple):
    """`‖A x − λ x‖ = residual` and `⟨x, A p⟩ = 0`, with x, p and w orthonormal.

    Attributes:
        x, p, w: the eigenvector so far; the direction in which it changed last; the next one, which
            is the residual. Zeros where there is none yet.
        Ax, Ap: products.
        G: diag(λ, ⟨p, A p⟩).
        scale: the largest |⟨·, A ·⟩| met, at most ‖A‖.
        goes_on: whether w has anything that x and p have not.
        products: how many were made.
    """

    x: PyTree
    p: PyTree
    w: PyTree
    Ax: PyTree
    Ap: PyTree
    G: jax.Array
    residual: jax.Array
    scale: jax.Array
    goes_on: jax.Array
    products: jax.Array


@jax.jit
def largest(
    A: Operator, root: PyTree | None, start: PyTree, *, noise: jax.Array, tol: float, most: int
) -> tuple[Leading, jax.Array]:
    """Returns the largest eigenvalue of A, or of diag(root) A diag(root), and the products spent.

    The search begins at the last eigenvector and some noise, whose seed is given. A start that is
    not finite is left out, and so is zero, as before the first search: the noise alone remains.
    """
    w = tree.hashed_normal(noise, start)
    w = tree.scaled(tol / tree.norm(w), w)
    usable = jnp.isfinite(tree.norm(start))
    w = jax.tree.map(lambda x, n: jnp.where(usable, x, 0) + n, start, w)
    zero, dtype = jax.tree.map(jnp.zeros_like, w), tree.scalar_dtype(w)
    begin = _Search(
        x=zero,
        p=zero,
        w=tree.scaled(1 / tree.norm(w), w),
        Ax=zero,
        Ap=zero,
        G=jnp.zeros((2, 2), dtype),
        residual=jnp.zeros((), dtype),
        scale=jnp.zeros((), dtype),
        goes_on=jnp.array(True),
        products=jnp.zeros((), jnp.int32),
    )

    def unfinished(s):
        rough = (s.residual > tol * s.scale) | (s.products < LEAST_PRODUCTS)
        return s.goes_on & rough & (s.products < most)

    s = jax.lax.while_loop(unfinished, lambda s: _step(A, root, s), begin)
    return Leading(s.G[0, 0], s.residual, s.x), s.products


def _step(A: Operator, root: PyTree | None, s: _Search) -> _Search:
    """Rayleigh–Ritz on x, p and w: three vectors know nearly all that the whole history would."""
    basis = s.x, s.p, s.w
    products = s.Ax, s.Ap, _product(A, root, s.w)
    g = jnp.stack([tree.inner(v, products[2]) for v in basis]).astype(s.G.dtype)
    G = jnp.zeros((3, 3), s.G.dtype).at[:2, :2].set(s.G).at[2, :].set(g).at[:, 2].set(g)
    scale = jnp.maximum(s.scale, jnp.max(jnp.abs(G)))
    there = jnp.array([s.products > 0, s.products > 1, True])
    low = -4 * scale  # below all Ritz values: a vector that is not there is never chosen
    values, Y = jnp.linalg.eigh(G + jnp.diag(jnp.where(there, 0, low)))
    value, y = values[2], Y[:, 2]
    rest = jnp.linalg.norm(y[1:])
    unit = jnp.where(rest > 0, y[1:] / jnp.where(rest > 0, rest, 1), jnp.array([0, 1], y.dtype))
    z = jnp.array([-rest, *(y[0] * unit)])  # of p: orthogonal to y, and nearest to what is new in x

    x, p, Ax, Ap = (_combined(c, vs) for vs in (basis, products) for c in (y, z))
    w = r = tree.add_scaled(Ax, -value, x)
    for _ in range(2):  # twice is enough
        w = tree.scaled(1 / tree.norm(w), w)
        for v in (x, p):
            w = tree.add_scaled(w, -tree.inner(v, w), v)
    new = tree.norm(w)
    return _Search(
        *(x, p, tree.scaled(1 / new, w), Ax, Ap),
        G=jnp.diag(jnp.array([value, z @ G @ z])),
        residual=tree.norm(r).astype(s.residual.dtype),
        scale=scale,
        goes_on=new > 0.5,
        products=s.products + 1,
    )


def _product(A: Operator, root: PyTree | None, v: PyTree) -> PyTree:
    v = v if root is None else _times(root, v)
    Av = jax.tree.map(wide, A.matvec(optax.tree.cast_like(v, A.domain)))
    return Av if root is None else _times(root, Av)


def _times(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: (x * y).astype(y.dtype), a, b)


def _combined(c: jax.Array, vectors: tuple[PyTree, PyTree, PyTree]) -> PyTree:
    return jax.tree.map(lambda x, p, w: (c[0] * x + c[1] * p + c[2] * w).astype(x.dtype), *vectors)
