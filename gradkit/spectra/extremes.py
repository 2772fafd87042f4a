"""Eigenvalues at the ends of a spectrum, each with its residual."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov import lanczos
from gradkit.krylov.drivers import Drive, chosen
from gradkit.krylov.lanczos import Lanczos
from gradkit.operators import Operator
from gradkit.spectra.ritz import SMALL_BLOCK, led_to, ritz

PyTree = Any
Which = Literal["LA", "SA", "BE", "LM"]

CHECK_EVERY = 10  # steps between two tests for convergence: each costs a small dense eigh


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
    """A Lanczos decomposition on its way to k converged Ritz pairs.

    Attributes:
        krylov: the decomposition.
        tol: tolerance of a converged pair.
        found: whether all pairs have converged.
        products: products so far; `most`, to spend.
    """

    krylov: Lanczos
    tol: jax.Array
    found: jax.Array
    products: jax.Array
    most: jax.Array


def eigsh(
    A: Operator,
    k: int = 5,
    *,
    which: Which = "LA",
    key: jax.Array,
    tol: float | jax.Array = 1e-5,
    max_products: int | None = None,
    v0: PyTree | Eigenpairs | None = None,
    basis: int | Basis | None = None,
    block: int = 1,
    drive: Drive | None = None,
) -> Eigenpairs:
    """Returns k eigenpairs at the ends of the spectrum of A, with residuals.

    An eigenvalue is found as often as it is multiple, up to `block` times; further copies, and such
    as agree to within tol, are found only where the Krylov space of random starts is exhausted. A
    residual cannot fall below the rounding of a product, which in float32 may be 1e-6 of the
    largest |θ| and more for a loss near zero.

    Source: Lanczos with full reorthogonalization; Parlett (1998), chapter 13. With `basis`, thick
    restarts of Wu & Simon (2000); with `block`, the band method of Ruhe (1979).
    Differs: a breakdown goes on in a new random direction; values are Rayleigh quotients of the
    vectors returned.

    Cost: one product a step and k for the residuals; at most `max_products` + block + 4 trees of
    memory, outside `jit` at most thrice the steps taken, or 48; with `basis` that many + block + 4,
    and a third more at a restart; 2 k more at the end.

    Args:
        A: symmetric operator of dimension n.
        k: how many, 1 to n.
        which: "LA" largest, "SA" smallest, "BE" both ends (k // 2 smallest, the rest largest), "LM"
            largest in magnitude, as SciPy's `eigsh`.
        key: random key of the start vector.
        tol: converged means a residual of at most tol times the largest |θ|.
        max_products: most products to spend; by default the smaller of n + k and 20 k + 100, or ten
            times the latter where a basis bounds the memory.
        v0: start vector, or eigenpairs found earlier for a warm start; random by default.
            Eigenvectors orthogonal to it are not found.
        basis: most vectors to keep, or `gk.Basis(size, dtype)`. Twice k and more converge well.
        block: start vectors in all, those beside v0 at random.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        `Eigenpairs`, in ascending order whatever `which`.

    Raises:
        ValueError: k, which, max_products, basis or block out of range, or v0 not in the operator's
            domain.

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
    state = search(
        A,
        wanted,
        key=key,
        tol=tol,
        max_products=max_products,
        v0=v0,
        basis=basis,
        block=block,
        drive=drive,
    )
    return eigenpairs(A, state, wanted=wanted, drive=drive)


class Basis(NamedTuple):
    """How the vectors of a search are kept.

    Attributes:
        size: how many; the search restarts when there are so many.
        dtype: in which they are stored; the operator's by default. In bfloat16 they take half the
            memory, but on a CPU, where XLA computes with wide copies of them. Residuals below 2⁻⁹
            of the largest |θ| cannot be had; the error of an eigenvalue is of the order of its
            residual squared over its distance from the others.
    """

    size: int | None = None
    dtype: Any = None


class Wanted(NamedTuple):
    """Which Ritz values: so many of the smallest, the largest, or the largest in magnitude."""

    smallest: int = 0
    largest: int = 0
    magnitude: int = 0

    def padded(self, extra: int) -> Wanted:
        """Returns so many more of the same kinds, in proportion."""
        k = sum(self)
        return Wanted(*(count + extra * count // k for count in self))

    def outwards(self, theta: jax.Array, j: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Returns for each end how far out the theta are, and how far out the last one wanted."""
        i = self.indices(theta, j)
        ends = (
            (-theta, i[: self.smallest]),
            (theta, i[len(i) - self.largest :]),
            (jnp.abs(theta), i[: self.magnitude]),
        )
        return [(key, jnp.min(key[at])) for key, at in ends if len(at)]

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
    v0: PyTree | Eigenpairs | None = None,
    basis: int | Basis | None = None,
    block: int = 1,
    drive: Drive | None = None,
) -> Search:
    """Returns the decomposition in which `eigsh` finds its pairs; arguments as there.

    Outside `jit` the basis begins small and doubles as it must: a step costs four passes over all
    of it. When it may not grow further, it is restarted with the best Ritz vectors.
    """
    n, k = A.dimension, sum(wanted)
    basis = basis if isinstance(basis, Basis) else Basis(basis)
    most, most_rows = limits(n, k, max_products, basis.size, block)
    traced = tree.traced(A, key, tol, v0)
    grows = basis.size is None and not traced
    rows = first_rows(k, most_rows) if grows else most_rows
    krylov = lanczos.init(A, _starts(A, v0, block), key, rows=rows, block=block, dtype=basis.dtype)
    none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    state = Search(krylov, jnp.array(tol, krylov.H.dtype), no, none, jnp.full_like(none, most))

    def run(state):
        return chosen(drive, owned=True)(_advance(wanted, v0 is None), A, state, until=_stops)

    state = run(state)
    while rows < most_rows and not state.found:
        rows = min(2 * rows, most_rows)
        state = run(state._replace(krylov=lanczos.extended(state.krylov, rows=rows)))
    if most_rows == min(most, n):
        return state
    if traced:
        again = functools.partial(_restarted, wanted=wanted)
        return jax.lax.while_loop(lambda s: ~_ends(s), lambda s: run(again(s)), state)
    while not _ends(state):
        state = run(_restarted(state, wanted=wanted))
    return state


def ended(krylov: Lanczos, tol: jax.Array) -> Search:
    """Returns the search that a decomposition would be the end of."""
    return Search(krylov, tol, jnp.ones((), bool), krylov.step, krylov.step)


def first_rows(k: int, most: int) -> int:
    """Returns the rows of a basis that begins small, to double until it has so many at most."""
    return min(max(SMALL_BLOCK, 3 * k), most) if most >= 2 * SMALL_BLOCK else most


def limits(n: int, k: int, max_products: int | None, size: int | None, block: int):
    """Returns the most products before the residuals, and the most rows of the basis."""
    if max_products is None:
        max_products = min(n + k, 20 * k + 100) if size is None else 10 * (20 * k + 100)
    if max_products < 2 * k:
        raise ValueError(
            f"max_products: expected at least {2 * k}, k steps and k residuals, got {max_products}"
        )
    if not 1 <= block <= n:
        raise ValueError(f"block: expected 1 to {n}, the dimension of the operator, got {block}")
    least = min(k + block + 1, n)
    if size is not None and size < least:
        raise ValueError(
            f"basis: expected at least {least}, k + block + 1 vectors to restart with, got {size}"
        )
    most = max_products - k
    return most, min(most, n, n if size is None else size)


def _starts(A: Operator, v0: PyTree | Eigenpairs | None, block: int) -> PyTree | None:
    """At most `block` start vectors: v0, or sums of the eigenvectors found earlier."""
    if v0 is None:
        return None
    if not isinstance(v0, Eigenpairs):
        A.check(v0)
        return jax.tree.map(lambda x: x[None], tree.as_arrays(v0))
    A.check(jax.eval_shape(lambda V: jax.tree.map(lambda x: x[0], V), v0.vectors))
    k = v0.values.size
    sums = jnp.arange(k)[:, None] % block == jnp.arange(min(block, k))
    return tree.basis_combine(v0.vectors, sums.astype(v0.values.dtype))


@functools.cache
def _advance(wanted: Wanted, thorough: bool) -> Callable[[Operator, Search], Search]:
    def converged(s: Lanczos, tol: jax.Array) -> jax.Array:
        theta, S, residuals = ritz(s)
        goal = tol * _scale(theta, residuals)
        small = residuals <= goal
        latest = led_to(s, S)
        ends = wanted.outwards(theta, s.step) if thorough else []
        settled = [_settled(s, *end, small, latest, goal) for end in ends]
        return functools.reduce(
            jnp.logical_and, settled, jnp.all(small[wanted.indices(theta, s.step)])
        )

    def advance(A: Operator, state: Search) -> Search:
        s = lanczos.step(A, state.krylov)
        state = state._replace(krylov=s, products=state.products + 1)
        due = (s.step % CHECK_EVERY == 0) & (s.step >= sum(wanted)) | _stops(state)
        no = jnp.zeros((), bool)
        return state._replace(found=jax.lax.cond(due, converged, lambda *_: no, s, state.tol))

    return advance


def _settled(
    s: Lanczos,
    outwards: jax.Array,
    last: jax.Array,
    small: jax.Array,
    latest: jax.Array,
    goal: jax.Array,
) -> jax.Array:
    """Whether no further copy of an eigenvalue would be among those wanted at one end.

    Beyond an exhausted space a new direction meets every eigenvalue that is left. The outermost of
    those it has led to must have converged; and where it has led to all it can, they must not lie
    further out than the last one wanted, or the next direction may find them again.
    """
    outermost = jnp.argmax(jnp.where(latest, outwards, -jnp.inf))
    further = outwards[outermost] > last + goal
    return small[outermost] & ~(s.exhausted & further)


def _stops(state: Search) -> jax.Array:
    return _ends(state) | lanczos.stops(state.krylov)


def _ends(state: Search) -> jax.Array:
    return state.found | (state.products >= state.most)


def _restarted(state: Search, *, wanted: Wanted) -> Search:
    """Keeps the wanted Ritz vectors and a third as many of the others as there is room for."""
    s = state.krylov
    return state._replace(krylov=lanczos.restarted(s, *_worth_keeping(s, wanted=wanted)))


@functools.partial(jax.jit, static_argnames="wanted")
def _worth_keeping(s: Lanczos, *, wanted: Wanted) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ritz values, their coefficients in V, and which is the first of the last new direction."""
    kept = wanted.padded((s.rows - s.block - sum(wanted)) // 3)
    theta, S, _ = ritz(s)
    i = kept.indices(theta, s.step)
    latest = led_to(s, S)[i]
    i = i[jnp.argsort(latest)]  # those before the last new direction first
    return theta[i], S[:, i], jnp.sum(~latest)


def _scale(theta: jax.Array, residuals: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(jnp.isfinite(residuals), jnp.abs(theta), 0))


class _Measured(NamedTuple):
    """Pairs of which the first i have their Rayleigh quotient and residual."""

    pairs: Eigenpairs
    i: jax.Array


def eigenpairs(
    A: Operator, state: Search, *, wanted: Wanted, drive: Drive | None = None
) -> Eigenpairs:
    """Returns the wanted Ritz pairs of a search, with residuals measured by one product each."""
    pairs, scale = _ritz_pairs(state, A.domain, wanted=wanted)
    measured = _Measured(pairs, jnp.zeros_like(state.products))
    pairs = chosen(drive, owned=True)(_measure, A, measured, until=_all_measured).pairs
    return _ascending(pairs, state.tol, scale)


@jax.jit
def _ascending(pairs: Eigenpairs, tol: jax.Array, scale: jax.Array) -> Eigenpairs:
    """The pairs in order: Rayleigh quotients of nearly equal Ritz values may have changed it."""
    order = jnp.argsort(pairs.values)
    values, residuals = pairs.values[order], pairs.residuals[order]
    vectors = jax.tree.map(lambda x: x[order], pairs.vectors)
    return Eigenpairs(values, vectors, residuals, residuals <= tol * scale, pairs.products)


def _ritz_pairs(state: Search, domain: PyTree, *, wanted: Wanted) -> tuple[Eigenpairs, jax.Array]:
    shapes, structure = jax.tree.flatten(domain)
    return _ritz_pairs_like(state, wanted=wanted, shapes=tuple(shapes), structure=structure)


@functools.partial(jax.jit, static_argnames=("wanted", "shapes", "structure"))
def _ritz_pairs_like(state: Search, *, wanted: Wanted, shapes: tuple, structure: Any):
    s = state.krylov
    theta, S, residuals = ritz(s)
    i = wanted.indices(theta, s.step)
    vectors = lanczos.combined(s, S[:, i], structure.unflatten(shapes))
    norms = jnp.sqrt(jax.vmap(tree.inner)(vectors, vectors))
    vectors = jax.vmap(tree.scaled)(1 / norms, vectors)
    pairs = Eigenpairs(theta[i], vectors, residuals[i], residuals[i] < 0, state.products + i.size)
    return pairs, _scale(theta, residuals)


def _measure(A: Operator, s: _Measured) -> _Measured:
    pairs, i = s
    x = tree.basis_row(pairs.vectors, i, A.domain)
    y = A.matvec(x)
    theta = tree.inner(x, y)  # the Rayleigh quotient, x being a unit vector
    residual = tree.norm(tree.add_scaled(y, -theta, x))
    values, residuals = pairs.values.at[i].set(theta), pairs.residuals.at[i].set(residual)
    return _Measured(pairs._replace(values=values, residuals=residuals), i + 1)


def _all_measured(s: _Measured) -> jax.Array:
    return s.i >= s.pairs.values.size
