"""Saddle-free Newton: the curvature taken by its absolute value, so that saddles repel."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count, needs_params, required
from gradkit.krylov.models import Reduced, saddle_free_step
from gradkit.krylov.subspace import grown
from gradkit.optimizers.lengths import stepping
from gradkit.states import Work
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm

REACH = 100.0


class SaddleFreeState(NamedTuple):
    """The last direction, and `work` of all updates so far.

    Attributes:
        rows: dimension of the Krylov space.
        residual: of |T| d = g there, relative to ‖g‖.
        lowest: the smallest eigenvalue met [loss/param²].
        first: ‖g‖ of the first update.
        work: of all updates so far.
    """

    rows: jax.Array
    residual: jax.Array
    lowest: jax.Array
    first: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the last space, the smallest eigenvalue met in it."""
        return {
            "rows": self.rows,
            "residual": self.residual,
            "lowest_curvature": self.lowest,
        }


@transformation
def scale_by_saddle_free(
    damping: optax.ScalarOrSchedule = 0.0,
    *,
    tol: optax.ScalarOrSchedule = 0.1,
    basis: int = 100,
) -> Link:
    """Scales a gradient g to d = (|H| + αI)⁻¹ g in a Krylov space, |H| = Q |Λ| Qᵀ.

    Where H is positive definite d is Newton's direction; along negative curvature it goes away from
    the saddle that Newton's goes to. With `tol=0` the space holds all of H that g leads to, up to
    `basis` dimensions: for no more parameters than these, d is exact.

    At a saddle with g = 0, d is zero; where g has no part along the negative curvature, as on the
    way straight to a saddle, neither has d. From anywhere beside such points it leaves.

    Source: Dauphin et al. (2014), "Identifying and attacking the saddle point problem in
    high-dimensional non-convex optimization", algorithm 1.
    Differs: the space ends where the residual is at most min(tol, √(‖g‖ / ‖g₀‖)) ‖g‖, g₀ the
    first gradient; along an eigenvector no step is longer than 100 max(‖θ‖, 1), which tells what to
    do where there is no curvature; no minimization over the space, for which a line search stands
    behind.

    Cost: one gradient to linearize and at most `basis` products; basis + 4 trees of memory.

    Args:
        damping: α [loss/param²].
        tol: largest relative residual of |H| d = g.
        basis: most dimensions of the space.

    Raises:
        TypeError: `update` was called without the extra argument `curvature`.
        ValueError: `basis` is not a positive whole number.
    """
    needs_count(basis, "basis", member="scale_by_saddle_free")

    def init(params, step):
        scalars = (jnp.zeros((), tree.scalar_dtype(params)) for _ in range(3))
        return SaddleFreeState._make([jnp.zeros((), jnp.int32), *scalars, Work.none()])

    def update(updates, state, params, h, **extra):
        A = required(extra, "curvature", member="scale_by_saddle_free")()
        needs_params(params, member="scale_by_saddle_free")
        dtype = state.first.dtype
        g = optax.tree.cast_like(updates, A.domain)
        if A.dimension == 0:
            return g, state
        g_norm = scaled_norm(g).value.astype(dtype)
        first = jnp.where(state.first > 0, state.first, g_norm)
        goal = jnp.minimum(h.tol, jnp.sqrt(g_norm / jnp.where(first > 0, first, 1)))
        damping = h.damping.astype(dtype)
        reach = REACH * jnp.maximum(scaled_norm(params).value.astype(dtype), 1)
        space = grown(A, g, rows=basis, tol=goal, solve=Partial(_minimizer, damping, reach))
        reduced = Reduced.of(space.projection(), space.g_norm, space.rows)
        d = space.combined(-saddle_free_step(reduced, damping, reach), g)
        unusable = ~jnp.isfinite(g_norm)
        d = optax.tree.where(unusable, g, d)
        return d, SaddleFreeState(
            rows=space.lanczos.step,
            residual=space.residual.astype(dtype),
            lowest=reduced.theta[0].astype(dtype),
            first=jnp.where(unusable, state.first, first),
            work=state.work.plus(products=space.products),
        )

    return link(init, update, damping=damping, tol=tol)


@transformation
def saddle_free(
    learning_rate: optax.ScalarOrSchedule | None = None,
    damping: optax.ScalarOrSchedule = 0.0,
    *,
    tol: optax.ScalarOrSchedule = 0.1,
    basis: int = 100,
) -> Link:
    """Saddle-free Newton: θ ← θ − η (|H| + damping · I)⁻¹ g.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`, with `curvature=gk.hessian`.

    Source: Dauphin et al. (2014), algorithm 1.
    Differs: see `scale_by_saddle_free`.

    Cost: one gradient, at most `basis` products and the line search's evaluations an update.

    Args:
        learning_rate: η, a number or a schedule; None (default) searches the line.
        damping: multiple of the identity added to |H| [loss/param²].
        tol: largest relative residual of the linear system.
        basis: most dimensions of the Krylov space.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: `basis` is not a positive whole number.
    """
    direction = scale_by_saddle_free(damping, tol=tol, basis=basis)
    return stepping(direction, learning_rate, line_search()).named("saddle_free")


def _minimizer(damping: jax.Array, reach: jax.Array, reduced: Reduced) -> jax.Array:
    """The rule by which the space grows."""
    return saddle_free_step(reduced, damping, reach)
