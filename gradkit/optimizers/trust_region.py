"""Trust region: the minimizer of a quadratic model in a ball that grows and shrinks."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count, needs_params, required
from gradkit.krylov.models import Reduced, steihaug_step, trust_region_step
from gradkit.krylov.subspace import grown
from gradkit.searches.acceptance import Found, Rules, Trial, until_accepted
from gradkit.states import Work
from gradkit.transforms.link import Link, link

SOLVERS = ("gltr", "steihaug")
ACCEPT = 1e-4  # ρ of a step that is taken
POOR, GOOD = 0.25, 0.75  # ρ below which the radius shrinks, and above which it may grow
LONGER = 0.9  # ρ above which a longer step is tried in the same space


class TrustRegionState(NamedTuple):
    """The radius of the update to come, and the last update.

    Attributes:
        radius: Δ [param]; 0 before the first update where it was not given.
        first: ‖g₀‖, of the first gradient [loss/param].
        ratio: ρ, of the reduction of the loss to that of the model, at the last step.
        trials: how many steps were tried. rows: dimension of their Krylov space.
        failures: updates in which none was accepted.
        work: of all updates so far.
    """

    radius: jax.Array
    first: jax.Array
    ratio: jax.Array
    trials: jax.Array
    rows: jax.Array
    failures: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes all but the first gradient's norm."""
        names = ("radius", "ratio", "trials", "rows", "failures")
        return {name: getattr(self, name) for name in names}


def trust_region(
    radius: float | None = None,
    *,
    max_radius: float = math.inf,
    solver: str = "gltr",
    tol: optax.ScalarOrSchedule = 0.1,
    basis: int = 100,
    max_trials: int = 30,
) -> Link:
    """Trust-region Newton: θ ← θ + p, p the minimizer of gᵀp + pᵀH p / 2 in ‖p‖ ≤ Δ.

    A step is taken if the loss falls by a part ρ ≥ 10⁻⁴ of what the model says. It follows negative
    curvature to the boundary, and so leaves saddles. The model is minimized in a Krylov space of H
    and g: `"gltr"` globally, in a space that grows on behind the boundary; `"steihaug"` along the
    path of conjugate gradients, which ends there. A step that is rejected costs one loss, as the
    next is found in the same space.

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
        solver: "gltr" or "steihaug".
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
        scalars = (jnp.zeros_like(start) for _ in range(2))
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))
        return TrustRegionState._make([start, *scalars, *counts, Work.none()])

    def update(updates, state, params, h, **extra):
        value, value_fn, curvature = (
            required(extra, name, member="trust_region")
            for name in ("value", "value_fn", "curvature")
        )
        needs_params(params, member="trust_region")
        A = curvature()
        if A.dimension == 0:
            return updates, state
        g = optax.tree.cast_like(updates, params)
        g_norm, size = tree.norm(g), tree.norm(params)
        usable = (g_norm > 0) & jnp.isfinite(g_norm) & jnp.isfinite(value)
        first = jnp.where(state.first > 0, state.first, g_norm)
        guess = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
        start = jnp.minimum(jnp.where(state.radius > 0, state.radius, guess), max_radius)
        space = grown(
            A,
            g,
            rows=basis,
            radius=start,
            tol=jnp.minimum(h.tol, jnp.sqrt(g_norm / first)),
            solve=Partial(_minimizer, start) if solver == "gltr" else None,
        )
        solve = _solver(solver, space)

        def attempt(radius):
            step = solve(radius)
            p = space.combined(step.h, g)
            there = tree.add_scaled(params, 1, p)
            return Trial(
                control=radius,
                value=value_fn(there),
                reduction=step.reduction,
                slope=space.g_norm * step.h[0],
                norm=step.norm,
                limited=step.norm > 0.99 * radius,
                moves=tree.largest(optax.tree.sub(there, params)) > 0,
                carried=step.h,
            )

        rules = Rules(
            accept=ACCEPT,
            good=LONGER,
            tighter=lambda trial, q: q * trial.norm,
            looser=lambda trial: jnp.minimum(2 * trial.control, max_radius),
            max_steps=max_trials,
        )
        found = until_accepted(attempt, value, start, rules, usable)
        step = space.combined(jnp.where(found.accepted, found.trial.carried, 0), g)
        return step, TrustRegionState(
            radius=jnp.where(usable, _adapted(found, max_radius), state.radius),
            first=jnp.where(usable, first, state.first),
            ratio=found.ratio,
            trials=found.trials,
            rows=space.lanczos.step,
            failures=state.failures + (~found.accepted & (g_norm != 0)),
            work=state.work.plus(evaluations=found.trials, products=space.products),
        )

    return link(init, update, tol=tol)


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


def _adapted(found: Found, max_radius: float) -> jax.Array:
    """The radius after the trials."""
    trial, rho = found.trial, found.ratio
    wider = jnp.where((rho > GOOD) & trial.limited, 2 * trial.control, trial.control)
    accepted = jnp.minimum(jnp.where(rho < POOR, trial.norm / 4, wider), max_radius)
    return jnp.where(found.accepted, accepted, found.control)
