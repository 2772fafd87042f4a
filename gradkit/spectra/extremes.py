"""Eigenvalues at the ends of a spectrum, each with its residual."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov import lanczos
from gradkit.krylov.drivers import Drive, in_jit
from gradkit.krylov.lanczos import Lanczos
from gradkit.operators import Operator

PyTree = Any
Which = Literal["LA", "SA", "BE", "LM"]

CHECK_EVERY = 10  # steps between two tests for convergence: each costs a small dense eigh
# Rows of the first basis, and of the smallest eigh: 0.1 ms on a CPU, where 200 take 10 ms and more.
SMALL_BLOCK = 48


class Eigenpairs(NamedTuple):
    """`‖A vᵢ − θᵢ vᵢ‖ = residualsᵢ`: an eigenvalue of A lies within residualsᵢ of θᵢ.

    Attributes:
        values: θ, shape (k,), ascending.
        vectors: basis of the k unit vectors: each leaf has k rows.
        residuals: shape (k,), measured by one product each.
        converged: shape (k,), whether the residual is at most tol times the largest |θ| met.
        products: products with A that all this took.
    """

    values: jax.Array
    vectors: PyTree
    residuals: jax.Array
    converged: jax.Array
    products: jax.Array


class Search(NamedTuple):
    """A Lanczos decomposition on its way to k converged Ritz pairs."""

    krylov: Lanczos
    tol: jax.Array
    found: jax.Array


def eigsh(
    A: Operator,
    k: int = 5,
    *,
    which: Which = "LA",
    key: jax.Array,
    tol: float | jax.Array = 1e-5,
    max_products: int | None = None,
    v0: PyTree | None = None,
    drive: Drive = in_jit,
) -> Eigenpairs:
    """Returns k eigenpairs at the ends of the spectrum of A, with residuals.

    Source: Lanczos with full reorthogonalization; Parlett (1998), chapter 13.
    Differs: a breakdown goes on in a new random direction, so that multiple eigenvalues are found.

    Cost: one product a step and k for the residuals; at most `max_products` + 3 trees of memory,
    outside `jit` at most twice the steps taken, or 48.

    Args:
        A: symmetric operator of dimension n.
        k: how many, 1 to n.
        which: "LA" largest, "SA" smallest, "BE" both ends (k // 2 smallest, the rest largest), "LM"
            largest in magnitude, as SciPy's `eigsh`.
        key: random key of the start vector.
        tol: converged means a residual of at most tol times the largest |θ|.
        max_products: most products to spend; by default the smaller of n + k and 20 k + 100.
        v0: start vector; random by default. Eigenvectors orthogonal to it are not found.
        drive: `gk.in_jit` (default) or `gk.on_host`, which shows progress.

    Returns:
        `Eigenpairs`, in ascending order whatever `which`.

    Raises:
        ValueError: k, which or max_products out of range, or v0 not in the operator's domain.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.arange(100.0) * v, jnp.zeros(100))
        >>> pairs = gk.eigsh(A, 3, key=jax.random.key(0))
        >>> [round(float(value), 3) for value in pairs.values], bool(pairs.converged.all())
        ([97.0, 98.0, 99.0], True)
    """
    n = A.dimension
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 to {n}, the dimension of the operator, got {k}")
    if which not in _WANTED:
        raise ValueError(f"which: expected one of {', '.join(_WANTED)}, got {which!r}")
    wanted = _WANTED[which](k)
    state = search(A, wanted, key=key, tol=tol, max_products=max_products, v0=v0, drive=drive)
    return eigenpairs(A, state, wanted=wanted)


class Wanted(NamedTuple):
    """Which Ritz values: so many of the smallest, the largest, or the largest in magnitude."""

    smallest: int = 0
    largest: int = 0
    magnitude: int = 0

    def indices(self, theta: jax.Array, j: jax.Array) -> jax.Array:
        """Returns where they are among the first j of the ascending theta, in ascending order."""
        i = jnp.arange(theta.size)
        at_ends = (i < self.smallest) | (i >= j - self.largest)
        score = jnp.where(i < j, jnp.abs(theta) if self.magnitude else at_ends, -1)
        return jnp.sort(jax.lax.top_k(score, sum(self))[1])


_WANTED = {
    "LA": lambda k: Wanted(largest=k),
    "SA": lambda k: Wanted(smallest=k),
    "BE": lambda k: Wanted(smallest=k // 2, largest=k - k // 2),
    "LM": lambda k: Wanted(magnitude=k),
}


def search(
    A: Operator,
    wanted: Wanted,
    *,
    key: jax.Array,
    tol: float | jax.Array,
    max_products: int | None = None,
    v0: PyTree | None = None,
    drive: Drive = in_jit,
) -> Search:
    """Returns the decomposition in which `eigsh` finds its pairs; arguments as there.

    Outside `jit` the basis begins small and doubles as it must: a step costs four passes over all
    of it.
    """
    n, k = A.dimension, sum(wanted)
    most = min(n + k, 20 * k + 100) if max_products is None else max_products
    if most < 2 * k:
        raise ValueError(
            f"max_products: expected at least {2 * k}, k steps and k residuals, got {most}"
        )
    most_rows = min(most - k, n)
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((A, key, tol, v0)))
    begins_small = most_rows >= 2 * SMALL_BLOCK and not traced
    rows = min(max(SMALL_BLOCK, 3 * k), most_rows) if begins_small else most_rows
    krylov = lanczos.init(A, v0, key, rows=rows)
    state = Search(krylov, jnp.array(tol, krylov.alpha.dtype), jnp.zeros((), bool))
    state = drive(_advance(wanted), A, state, until=_stops)
    while rows < most_rows and not state.found:
        rows = min(2 * rows, most_rows)
        state = state._replace(krylov=lanczos.extended(state.krylov, rows=rows))
        state = drive(_advance(wanted), A, state, until=_stops)
    return state


def ritz(s: Lanczos) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns θ, S, ρ: Ritz values ascending, their coefficients in V, residual norms.

    `T S = S diag(θ)` and `‖A V S − V S diag(θ)‖` is ρ column by column. Of m rows only the first
    j = `s.step` are genuine: the others lie above all of those and have ρ = inf.
    """
    margin = jnp.abs(s.alpha) + s.beta + jnp.roll(s.beta, 1)  # Gershgorin
    padding = 1.01 * jnp.max(margin) + jnp.finfo(margin.dtype).tiny
    T, m = s.tridiagonal(padding), s.alpha.size

    def leading(rows):
        theta, S = jnp.linalg.eigh(T[:rows, :rows])
        theta = jnp.concatenate([theta, jnp.full(m - rows, padding)])
        return theta, jnp.eye(m, dtype=S.dtype).at[:rows, :rows].set(S)

    sizes = _block_sizes(m)
    enough = jnp.searchsorted(jnp.array(sizes), s.step)
    theta, S = jax.lax.switch(enough, [functools.partial(leading, rows) for rows in sizes])
    residuals = s.residual * jnp.abs(S[s.step - 1])
    genuine = jnp.arange(theta.size) < s.step
    return theta, S, jnp.where(genuine, residuals, jnp.inf)


def _block_sizes(rows: int) -> tuple[int, ...]:
    """Sizes at which `eigh` is compiled: the time of a large one is wasted on a few steps."""
    sizes = [SMALL_BLOCK]
    while sizes[-1] < rows / 2:
        sizes.append(2 * sizes[-1])
    return (*(size for size in sizes if size < rows / 1.5), rows)


@functools.cache
def _advance(wanted: Wanted) -> Callable[[Operator, Search], Search]:
    def converged(s: Lanczos, tol: jax.Array) -> jax.Array:
        theta, _, residuals = ritz(s)
        return jnp.all(residuals[wanted.indices(theta, s.step)] <= tol * _scale(theta, residuals))

    def advance(A: Operator, state: Search) -> Search:
        s = lanczos.step(A, state.krylov)
        due = (s.step % CHECK_EVERY == 0) & (s.step >= sum(wanted)) | lanczos.stops(s)
        no = jnp.zeros((), bool)
        found = jax.lax.cond(due, converged, lambda *_: no, s, state.tol)
        return Search(s, state.tol, found)

    return advance


def _stops(state: Search) -> jax.Array:
    return state.found | lanczos.stops(state.krylov)


def _scale(theta: jax.Array, residuals: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(jnp.isfinite(residuals), jnp.abs(theta), 0))


@functools.partial(jax.jit, static_argnames="wanted")
def eigenpairs(A: Operator, state: Search, *, wanted: Wanted) -> Eigenpairs:
    """Returns the wanted Ritz pairs of a search, with residuals measured by one product each."""
    s = state.krylov
    theta, S, residuals = ritz(s)
    i = wanted.indices(theta, s.step)
    values, vectors = theta[i], tree.basis_combine(s.V, S[:, i])

    def residual(pair):
        value, v = pair
        return tree.norm(tree.add_scaled(A.matvec(v), -value, v))

    measured = jax.lax.map(residual, (values, vectors))
    converged = measured <= state.tol * _scale(theta, residuals)
    return Eigenpairs(values, vectors, measured, converged, s.step + i.size)
