"""Adaptive cubic regularization: the minimizer of a quadratic model plus σ ‖p‖³ / 3."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count
from gradkit.krylov.models import Reduced, cubic_step, trust_region_step
from gradkit.krylov.subspace import grown
from gradkit.optimizers.modelled import ACCEPT, GOOD, LONGER, POOR, Last, Local, tried
from gradkit.searches.acceptance import Found, Rules
from gradkit.transforms.link import Link, link, transformation

SHARE = 0.03  # of σ ‖p‖³ in −gᵀp, from which on σ keeps the step short
UP, DOWN = 2.0, 4.0  # factors on σ


class CubicState(NamedTuple):
    """The weight of the update to come, and the last update.

    Attributes:
        sigma: σ [loss/param³]; 0 before the first update where it was not given.
        least: the smallest σ.
        last: the last update.
    """

    sigma: jax.Array
    least: jax.Array
    last: Last

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes σ."""
        return {"sigma": self.sigma}


@transformation
def cubic(
    sigma: float | None = None,
    *,
    tol: optax.ScalarOrSchedule = 0.1,
    basis: int = 100,
    max_trials: int = 30,
) -> Link:
    """Cubic regularization: θ ← θ + p, p the minimizer of gᵀp + pᵀH p / 2 + σ ‖p‖³ / 3.

    The cubic term bounds what the quadratic model leaves out, and σ is adapted to it: a step is
    taken if the loss falls by a part ρ ≥ 10⁻⁴ of what the model says. The step follows negative
    curvature, and so leaves saddles; near a minimum it is Newton's. The model is minimized in a
    Krylov space of H and g, in which a rejected step costs one loss.

    It takes its steps as they are: no learning rate belongs behind it. Its `update` takes what
    `observe` returns: `tx.update(point.grad, state, params, **point.extras)`, with
    `curvature=gk.hessian`.

    Source: Cartis, Gould & Toint (2011), "Adaptive cubic regularisation methods for unconstrained
    optimization. Part I", algorithm 2.1, ARC.
    Differs: after a rejection σ is that of the step at the minimum of a parabola, within
    [0.1, 0.5] ‖p‖, and doubles at least; where ρ ≥ 0.9 and σ keeps the step short, σ / 4 is tried
    in the same space while the loss falls. Both reductions have 10 ε |f| added, so that steps
    within the rounding of f are taken as the model has them: whether to stop there is for the
    gradient to say. A loss that is not finite is a rejection. Once θ + p = θ, or after
    `max_trials`, the update is zero and counted as a failure, as it is where loss or gradient are
    not finite. Where H g is not finite the model is linear but for the cube.

    Cost: one gradient to linearize, at most `basis` products, one loss a trial; basis + 5 trees of
    memory.

    Args:
        sigma: the first σ [loss/param³]; ‖g‖ / ‖θ‖² by default, with 1 for ‖θ‖ where that is 0.
        tol: largest residual of the model's minimizer relative to ‖g‖; min(tol, √(‖g‖ / ‖g₀‖)) is
            asked for, g₀ the first gradient, which makes convergence superlinear.
        basis: most dimensions of the space.
        max_trials: most steps to try in an update.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: σ is not positive, or a count not a whole number.
    """
    if sigma is not None and not sigma > 0:
        raise ValueError(f"cubic: sigma must be positive, got {sigma!r}")
    needs_count(basis, "basis", member="cubic")
    needs_count(max_trials, "max_trials", member="cubic")

    def init(params, step):
        start = jnp.full((), sigma or 0, tree.scalar_dtype(params))
        return CubicState(start, jnp.zeros_like(start), Last.none(params))

    def update(updates, state, params, h, **extra):
        here = Local.of(updates, params, extra, "cubic")
        if here.A.dimension == 0:
            return updates, state
        start = jnp.where(state.sigma > 0, state.sigma, here.g_norm / here.size**2)
        least = jnp.where(state.least > 0, state.least, jnp.finfo(start.dtype).eps * start)
        space = grown(
            here.A,
            here.g,
            rows=basis,
            radius=0,
            tol=state.last.forcing(here, h.tol),
            solve=Partial(_minimizer, start),
        )
        reduced = Reduced.of(space.projection(), space.g_norm, space.rows)

        def tighter(trial, q):
            inside = trust_region_step(reduced, q * trial.norm)
            return jnp.maximum(UP * trial.control, inside.shift / inside.norm)

        def limited(step, sigma):
            return sigma * step.norm**3 > SHARE * -space.g_norm * step.h[0]

        rules = Rules(
            accept=ACCEPT,
            good=LONGER,
            tighter=tighter,
            looser=lambda trial: jnp.maximum(trial.control / DOWN, least),
            max_steps=max_trials,
        )
        solve = Partial(cubic_step, reduced)
        step, found = tried(here, space, solve, limited, rules, start)
        return step, CubicState(
            sigma=jnp.where(here.usable, _adapted(found, least), state.sigma),
            least=jnp.where(here.usable, least, state.least),
            last=state.last.followed(here, space, found),
        )

    return link(init, update, steps=True, tol=tol)


def _minimizer(sigma: jax.Array, reduced: Reduced) -> jax.Array:
    """The rule by which the space grows."""
    return cubic_step(reduced, sigma).h


def _adapted(found: Found, least: jax.Array) -> jax.Array:
    """The weight after the trials."""
    sigma, rho = found.trial.control, found.ratio
    after = jnp.where(rho < POOR, UP * sigma, jnp.where(rho > GOOD, sigma / DOWN, sigma))
    return jnp.maximum(jnp.where(found.accepted, after, found.control), least)
