"""The Krylov space of an operator and a gradient, grown until a model of the loss is minimized."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit import tree
from gradkit.krylov import lanczos
from gradkit.krylov.drivers import Drive, chosen
from gradkit.krylov.lanczos import Lanczos
from gradkit.krylov.models import Reduced
from gradkit.operators import Operator

PyTree = Any

PACE = 10  # beyond the reach of the recurrence one row in so many is followed by a test


class Path(NamedTuple):
    """Conjugate gradients in coordinates of the basis, by the recurrence of T = L D Lᵀ.

    Their iterate y, with T y = −e₁ on the rows so far, is the sum of (zᵢ / δᵢ) wᵢ, `wᵢ₊₁ = eᵢ₊₁ −
    (βᵢ / δᵢ) wᵢ` their directions. |z| is the norm of their residual.

    Attributes:
        delta: δ, the last pivot. beta: β, below it. z: z of the row to come.
        ww, yw, yy: wᵀw, yᵀw and yᵀy.
        inside: whether every pivot was positive and ‖y‖ within the radius.
    """

    delta: jax.Array
    beta: jax.Array
    z: jax.Array
    ww: jax.Array
    yw: jax.Array
    yy: jax.Array
    inside: jax.Array


class Subspace(NamedTuple):
    """`A V = V T + β v eᵀ` and `V e₁ ‖g‖ = g`: on V h the loss has the model ‖g‖ h₁ + hᵀT h / 2.

    Attributes:
        lanczos: V and T.
        g_norm: ‖g‖.
        residual: relative to ‖g‖, of the minimizer at the last test; infinite before one.
        path, radius, goal, solve, due, stopped: of the rule that ends the growth.
    """

    lanczos: Lanczos
    g_norm: jax.Array
    residual: jax.Array
    path: Path
    radius: jax.Array
    goal: jax.Array
    solve: Partial | None
    due: jax.Array
    stopped: jax.Array

    @property
    def rows(self) -> jax.Array:
        """How many vectors V has: g alone, with T = 0, where its product was not finite."""
        return jnp.maximum(self.lanczos.step, 1)

    @property
    def products(self) -> jax.Array:
        """Products with the operator, one that was not finite included."""
        return self.lanczos.step + jnp.isnan(self.residual)

    def projection(self) -> jax.Array:
        """Returns T, with rows not done that are decoupled and larger than all that are."""
        T = self.lanczos.projection()
        largest = jnp.max(jnp.sum(jnp.abs(T), axis=1))  # Gershgorin
        padding = jnp.where(largest > 0, 1.01 * largest, 1)
        return T + jnp.diag(jnp.where(jnp.arange(len(T)) < self.rows, 0, padding))

    def combined(self, h: jax.Array, like: PyTree) -> PyTree:
        """Returns V h, a tree with the dtypes of `like`."""
        h = jnp.where(jnp.arange(h.size) < self.rows, h, 0)
        return tree.basis_combine(self.lanczos.basis, jnp.append(h, 0), like)


def grown(
    A: Operator,
    g: PyTree,
    *,
    rows: int,
    radius: float | jax.Array = jnp.inf,
    tol: float | jax.Array = 0.0,
    solve: Partial | None = None,
    drive: Drive | None = None,
) -> Subspace:
    """Returns the Krylov space of A and g, as large as the minimizer of a model on it needs.

    The rule: while T is positive definite and −T⁻¹ e₁ ‖g‖ shorter than the radius, that is the
    minimizer and a recurrence tells its residual. From there on it is what `solve` returns, with
    the residual |β hⱼ|, computed after every row at first and later after one row in ten. The
    growth ends where the residual is at most tol ‖g‖.

    Source: Gould, Lucidi, Roma & Toint (1999), "Solving the trust-region subproblem using the
    Lanczos method", algorithm 5.1.
    Differs: all vectors are kept and reorthogonalized; a product that is not finite ends the growth
    with the rows before it.

    Cost: one product a row; rows + 3 trees of memory.

    Args:
        A: symmetric operator of dimension n.
        g: the gradient, a tree like the operator's domain.
        rows: most rows, cut to n.
        radius: beyond which the path of conjugate gradients is left.
        tol: largest residual relative to ‖g‖; 0 grows to all rows there are.
        solve: the model reduced to the space -> coordinates h of its minimizer there. None ends the
            growth where the path is left.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.
    """
    A.check(g)
    state = init(g, tol, radius, solve, rows=max(min(rows, A.dimension), 1))
    return chosen(drive)(step, A, state, until=stops)


@functools.partial(jax.jit, static_argnames="rows")
def init(g: PyTree, tol: Any, radius: Any, solve: Partial | None, *, rows: int) -> Subspace:
    """Returns the state before the first row."""
    dtype = tree.scalar_dtype(g)
    unit = tree.scale(g)
    v = tree.scaled(1 / unit, g)
    length = tree.norm(v)
    usable = (length > 0) & jnp.isfinite(length)
    v = jax.tree.map(lambda x: jnp.where(usable, x / length, 0).astype(x.dtype), v)
    zero, one, never = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.zeros((), jnp.int32)
    return Subspace(
        lanczos=Lanczos(
            basis=tree.basis_set(tree.empty_basis(rows + 1, v), 0, v),
            H=jnp.zeros((rows + 1, rows), dtype),
            step=never,
            began=never,
            seed=jnp.zeros((), jnp.uint32),
        ),
        g_norm=(unit * length).astype(dtype),
        residual=jnp.asarray(jnp.inf, dtype),
        path=Path(one, zero, -one, zero, zero, zero, jnp.ones((), bool)),
        radius=jnp.asarray(radius, dtype),
        goal=jnp.asarray(tol, dtype),
        solve=solve,
        due=never,
        stopped=~usable,
    )


def step(A: Operator, s: Subspace) -> Subspace:
    """One row, and the test of the rule."""
    j = s.lanczos.step
    krylov, sound = _sound(lanczos.step(A, s.lanczos), j)
    alpha, beta = krylov.H[j, j], krylov.H[j + 1, j]
    top = jnp.max(jnp.abs(krylov.H))
    path = _advanced(s.path, alpha, beta, top, s.radius / s.g_norm)
    following = s._replace(lanczos=krylov, path=path)
    if s.solve is None:
        due, residual = s.due, jnp.where(path.inside, jnp.abs(path.z), jnp.inf)
    else:
        test = sound & ~path.inside & ((j + 1 >= s.due) | (beta <= 0))
        due = jnp.where(test, j + 2 + j // PACE, s.due)
        residual = jax.lax.cond(
            test, _residual, lambda s: jnp.full_like(s.g_norm, jnp.inf), following
        )
        residual = jnp.where(path.inside, jnp.abs(path.z), residual)
    exhausted = beta <= 10 * jnp.finfo(beta.dtype).eps * top
    left = ~path.inside if s.solve is None else False
    return following._replace(
        residual=jnp.where(sound, residual, jnp.nan).astype(s.residual.dtype),
        due=due,
        stopped=~sound | exhausted | (residual <= s.goal) | left,
    )


def stops(s: Subspace) -> jax.Array:
    """Whether the rule is met or every row is done."""
    return s.stopped | (s.lanczos.step >= s.lanczos.rows)


def _residual(s: Subspace) -> jax.Array:
    assert s.solve is not None
    last = s.rows - 1
    h = s.solve(Reduced.of(s.projection(), s.g_norm, s.rows))
    return jnp.abs(s.lanczos.H[s.rows, last] * (h[last] / s.g_norm))


def _sound(krylov: Lanczos, j: jax.Array) -> tuple[Lanczos, jax.Array]:
    """The decomposition without its last row if that is not finite, and whether it is."""
    sound = jnp.all(jnp.isfinite(krylov.H[:, j]))
    basis = jax.tree.map(lambda V: V.at[j + 1].set(jnp.where(sound, V[j + 1], 0)), krylov.basis)
    H = krylov.H.at[:, j].set(jnp.where(sound, krylov.H[:, j], 0))
    return krylov._replace(basis=basis, H=H, step=jnp.where(sound, j + 1, j)), sound


def _advanced(path: Path, alpha: Any, beta: Any, top: Any, radius: Any) -> Path:
    """The path one row on, T and y in the unit in which ‖g‖ = 1."""
    ratio = path.beta / path.delta
    delta = alpha - ratio * path.beta
    positive = delta > jnp.finfo(delta.dtype).eps * top
    delta = jnp.where(positive, delta, 1)
    ww = 1 + ratio**2 * path.ww
    yw = -ratio * path.yw
    zeta = path.z / delta
    yy = path.yy + zeta * (2 * yw + zeta * ww)
    inside = path.inside & positive & (tree.root(yy) < radius)
    return Path(delta, beta, -path.z * beta / delta, ww, yw + zeta * ww, yy, inside)
