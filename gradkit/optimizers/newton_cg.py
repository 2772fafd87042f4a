"""Newton's method with the linear system solved by conjugate gradients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import required
from gradkit.krylov.cg import cg
from gradkit.optimizers.lengths import stepping
from gradkit.states import Work
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm


class NewtonCgState(NamedTuple):
    """The last solve, and the work of all updates so far.

    `negative_curvature` counts the updates in which a direction of curvature ≤ 0 ended the solve.
    """

    steps: jax.Array
    residual_norm: jax.Array
    curvature: jax.Array
    negative_curvature: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the last solve's steps, residual and curvature, and the count."""
        return {
            "cg_steps": self.steps,
            "cg_residual": self.residual_norm,
            "cg_curvature": self.curvature,
            "negative_curvature": self.negative_curvature,
        }


@transformation
def scale_by_newton_cg(
    damping: optax.ScalarOrSchedule = 1e-3,
    *,
    tol: optax.ScalarOrSchedule = 0.5,
    max_steps: int = 50,
) -> Link:
    """Scales a gradient g to d ≈ (H + αI)⁻¹ g, by conjugate gradients.

    Source: Nocedal & Wright (2006), algorithm 7.1, "line search Newton–CG".
    Differs: the system is damped by α; CG stops at min(tol, √‖g‖) ‖g‖ as theirs does, or after
    `max_steps`. As theirs, CG stops at a direction of non-positive curvature and keeps what it has:
    the gradient itself if that was the first direction.

    Cost: one gradient to linearize and at most max_steps + 1 products; 5 trees of memory.

    Args:
        damping: α [loss/param²]; 0 is Newton's own step, which is drawn to saddles too.
        tol: largest relative residual of the solve.
        max_steps: most steps of CG.

    Raises:
        TypeError: `update` was called without the extra argument `curvature`.
    """

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        return NewtonCgState(
            steps=jnp.zeros((), jnp.int32),
            residual_norm=jnp.zeros((), dtype),
            curvature=jnp.zeros((), dtype),
            negative_curvature=jnp.zeros((), jnp.int32),
            work=Work.none(),
        )

    def update(updates, state, params, h, **extra):
        curvature = required(extra, "curvature", member="scale_by_newton_cg")
        g = optax.tree.cast_like(updates, params)
        forcing = jnp.minimum(h.tol, jnp.sqrt(scaled_norm(g).value))
        solve = cg(curvature() + h.damping, g, tol=forcing, max_steps=max_steps)
        first = (solve.steps <= 1) & ~(solve.curvature > 0)
        d = optax.tree.where(first, g, solve.x)
        return d, NewtonCgState(
            steps=solve.steps,
            residual_norm=solve.residual_norm.astype(state.residual_norm.dtype),
            curvature=solve.curvature.astype(state.curvature.dtype),
            negative_curvature=state.negative_curvature + (solve.curvature <= 0),
            work=state.work.plus(products=solve.products),
        )

    return link(init, update, damping=damping, tol=tol)


@transformation
def newton_cg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    damping: optax.ScalarOrSchedule = 1e-3,
    *,
    tol: optax.ScalarOrSchedule = 0.5,
    max_steps: int = 50,
) -> Link:
    """Newton–CG: θ ← θ − α d, with d ≈ (H + damping · I)⁻¹ g and α from a line search.

    Its `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`, with `curvature=gk.hessian`.

    Source: Nocedal & Wright (2006), algorithm 7.1.

    Cost: one gradient, at most max_steps + 1 products and the line search's evaluations an update.

    Args:
        learning_rate: a number or a schedule for α; None (default) searches the line.
        damping: multiple of the identity added to H [loss/param²].
        tol: largest relative residual of the solve.
        max_steps: most steps of CG.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
    """
    direction = scale_by_newton_cg(damping, tol=tol, max_steps=max_steps)
    return stepping(direction, learning_rate, line_search()).named("newton_cg")
