"""Trust region: the minimizer of a quadratic model in a ball that grows and shrinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count
from gradkit.krylov.models import ModelStep, Reduced, steihaug_step, trust_region_step
from gradkit.krylov.subspace import grown
from gradkit.optimizers.modelled import ACCEPT, GOOD, LONGER, POOR, Last, Local, tried
from gradkit.searches.acceptance import Found, Rules
from gradkit.transforms.link import Link, link, transformation

SOLVERS = ("steihaug", "gltr")


class TrustRegionState(NamedTuple):
    """The radius of the update to come, and the last update.

    Attributes:
        radius: Δ [param]; 0 before the first update where it was not given.
        last: the last update.
    """

    radius: jax.Array
    last: Last

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the radius."""
        return {"radius": self.radius}


@transformation
def trust_region(
    radius: float | None = None,
    *,
    max_radius: float = math.inf,
    solver: str = "steihaug",
    tol: optax.ScalarOrSchedule = 0.1,
    basis: int = 100,
    max_trials: int = 30,
) -> Link:
    """Trust-region Newton: θ ← θ + p, p the minimizer of gᵀp + pᵀH p / 2 in ‖p‖ ≤ Δ.

    A step is taken if the loss falls by a part ρ ≥ 10⁻⁴ of what the model says. It follows negative
    curvature to the boundary, and so leaves saddles. The model is minimized in a Krylov space of H
    and g: `"steihaug"` (default) along the path of conjugate gradients, which ends at the boundary;
    `"gltr"` globally, in a space that grows on behind it. Far from a minimum the model is not worth
    so many products: of 40 hard problems Steihaug's solved 31 on the budget on which GLTR solved
    27. A step that is rejected costs one loss, as the next is found in the same space.

    It takes its steps as they are: no learning rate belongs behind it. Its `update` takes what
    `observe` returns: `tx.update(point.grad, state, params, **point.extras)`, with
    `curvature=gk.hessian`.

    Source: Nocedal & Wright (2006), algorithm 4.1; Gould, Lucidi, Roma & Toint (1999); Steihaug
    (1983).
    Differs: after a rejection Δ is that of the minimum of a parabola, within [0.1, 0.5] ‖p‖; where
    ρ ≥ 0.9 on the boundary, 2 Δ is tried in the same space while the loss falls. Both reductions
    have 10 ε |f| added, so that steps within the rounding of f are taken as the model has them
    (Conn, Gould & Toint 2000, section 17.4.2): whether to stop there is for the gradient to say. A
    loss that is not finite is a rejection. Once θ + p = θ, or after `max_trials`, the update is
    zero and counted as a failure, as it is where loss or gradient are not finite. Where H g is not
    finite the model is linear.

    Cost: one gradient to linearize, at most `basis` products, one loss a trial; basis + 5 trees of
    memory.

    Args:
        radius: the first Δ [param]; ‖θ‖ by default, or 1 where that is 0.
        max_radius: the largest Δ.
        solver: "steihaug" or "gltr".
        tol: largest residual of the model's minimizer relative to ‖g‖; min(tol, √(‖g‖ / ‖g₀‖)) is
            asked for, g₀ the first gradient, which makes convergence superlinear.
        basis: most dimensions of the space.
        max_trials: most steps to try in an update.

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
        ValueError: the solver is unknown, a radius not positive, or a count not a whole number.
    """
    if solver not in SOLVERS:
        raise ValueError(f"trust_region: solver must be one of {SOLVERS}, got {solver!r}")
    for name, given in (("radius", radius), ("max_radius", max_radius)):
        if given is not None and not given > 0:
            raise ValueError(f"trust_region: {name} must be positive, got {given!r}")
    needs_count(basis, "basis", member="trust_region")
    needs_count(max_trials, "max_trials", member="trust_region")

    def init(params, step):
        start = jnp.full((), radius or 0, tree.scalar_dtype(params))
        return TrustRegionState(start, Last.none(params))

    def update(updates, state, params, h, **extra):
        here = Local.of(updates, params, extra, "trust_region")
        if here.A.dimension == 0:
            return updates, state
        start = jnp.minimum(jnp.where(state.radius > 0, state.radius, here.size), max_radius)
        space = grown(
            here.A,
            here.g,
            rows=basis,
            radius=start,
            tol=state.last.forcing(here, h.tol),
            solve=Partial(_minimizer, start) if solver == "gltr" else None,
        )
        rules = Rules(
            accept=ACCEPT,
            good=LONGER,
            tighter=lambda trial, q: q * trial.norm,
            looser=lambda trial: jnp.minimum(2 * trial.control, max_radius),
            max_steps=max_trials,
        )
        step, found = tried(here, space, _solver(solver, space), _at_boundary, rules, start)
        after = jnp.where(here.usable, _adapted(found, max_radius), state.radius)
        return step, TrustRegionState(after, state.last.followed(here, space, found))

    return link(init, update, steps=True, tol=tol)


def _solver(solver, space):
    """radius -> step in the space."""
    T = space.projection()
    if solver == "steihaug":
        return lambda radius: steihaug_step(T, space.g_norm, radius, space.rows)
    reduced = Reduced.of(T, space.g_norm, space.rows)
    return lambda radius: trust_region_step(reduced, radius)


def _minimizer(radius: jax.Array, reduced: Reduced) -> jax.Array:
    """The rule by which the space grows."""
    return trust_region_step(reduced, radius).h


def _at_boundary(step: ModelStep, radius: jax.Array) -> jax.Array:
    return step.norm > 0.99 * radius


def _adapted(found: Found, max_radius: float) -> jax.Array:
    """The radius after the trials."""
    trial, rho = found.trial, found.ratio
    wider = jnp.where((rho > GOOD) & trial.limited, 2 * trial.control, trial.control)
    accepted = jnp.minimum(jnp.where(rho < POOR, trial.norm / 4, wider), max_radius)
    return jnp.where(found.accepted, accepted, found.control)
