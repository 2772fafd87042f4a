"""Adaptive cubic regularization: the minimizer of a quadratic model plus σ ‖p‖³ / 3."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count, needs_params, required
from gradkit.krylov.models import Reduced, cubic_step, trust_region_step
from gradkit.krylov.subspace import grown
from gradkit.searches.acceptance import Found, Rules, Trial, until_accepted
from gradkit.states import Work
from gradkit.transforms.link import Link, link

ACCEPT = 1e-4  # ρ of a step that is taken
POOR, GOOD = 0.25, 0.75  # ρ below which σ grows, and above which it shrinks
LONGER = 0.9  # ρ above which a longer step is tried in the same space
SHARE = 0.03  # of σ ‖p‖³ in −gᵀp, from which on σ keeps the step short
UP, DOWN = 2.0, 4.0  # factors on σ


class CubicState(NamedTuple):
    """The weight of the update to come, and the last update.

    Attributes:
        sigma: σ [loss/param³]; 0 before the first update where it was not given.
        least: the smallest σ.
        first: ‖g₀‖, of the first gradient [loss/param].
        ratio: ρ, of the reduction of the loss to that of the model, at the last step.
        trials: how many steps were tried. rows: dimension of their Krylov space.
        failures: updates in which none was accepted.
        work: of all updates so far.
    """

    sigma: jax.Array
    least: jax.Array
    first: jax.Array
    ratio: jax.Array
    trials: jax.Array
    rows: jax.Array
    failures: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes σ, ρ, trials, rows and failures."""
        names = ("sigma", "ratio", "trials", "rows", "failures")
        return {name: getattr(self, name) for name in names}


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
        scalars = (jnp.zeros_like(start) for _ in range(3))
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))
        return CubicState._make([start, *scalars, *counts, Work.none()])

    def update(updates, state, params, h, **extra):
        value, value_fn, curvature = (
            required(extra, name, member="cubic") for name in ("value", "value_fn", "curvature")
        )
        needs_params(params, member="cubic")
        A = curvature()
        if A.dimension == 0:
            return updates, state
        g = optax.tree.cast_like(updates, params)
        g_norm, size = tree.norm(g), tree.norm(params)
        eps = jnp.finfo(g_norm.dtype).eps
        usable = (g_norm > 0) & jnp.isfinite(g_norm) & jnp.isfinite(value)
        first = jnp.where(state.first > 0, state.first, g_norm)
        guess = g_norm / jnp.where((size > 0) & jnp.isfinite(size), size, 1) ** 2
        start = jnp.where(state.sigma > 0, state.sigma, guess)
        least = jnp.where(state.least > 0, state.least, eps * start)
        space = grown(
            A,
            g,
            rows=basis,
            radius=0,
            tol=jnp.minimum(h.tol, jnp.sqrt(g_norm / first)),
            solve=Partial(_minimizer, start),
        )
        reduced = Reduced.of(space.projection(), space.g_norm, space.rows)

        def attempt(sigma):
            step = cubic_step(reduced, sigma)
            slope = space.g_norm * step.h[0]
            p = space.combined(step.h, g)
            there = tree.add_scaled(params, 1, p)
            return Trial(
                control=sigma,
                value=value_fn(there),
                reduction=step.reduction,
                slope=slope,
                norm=step.norm,
                limited=step.shift * step.norm**2 > SHARE * -slope,
                moves=tree.largest(optax.tree.sub(there, params)) > 0,
                carried=step.h,
            )

        def tighter(trial, q):
            inside = trust_region_step(reduced, q * trial.norm)
            return jnp.maximum(UP * trial.control, inside.shift / inside.norm)

        rules = Rules(
            accept=ACCEPT,
            good=LONGER,
            tighter=tighter,
            looser=lambda trial: jnp.maximum(trial.control / DOWN, least),
            max_steps=max_trials,
        )
        found = until_accepted(attempt, value, start, rules, usable)
        step = space.combined(jnp.where(found.accepted, found.trial.carried, 0), g)
        return step, CubicState(
            sigma=jnp.where(usable, _adapted(found, least), state.sigma),
            least=jnp.where(usable, least, state.least),
            first=jnp.where(usable, first, state.first),
            ratio=found.ratio,
            trials=found.trials,
            rows=space.lanczos.step,
            failures=state.failures + (~found.accepted & (g_norm != 0)),
            work=state.work.plus(evaluations=found.trials, products=space.products),
        )

    return link(init, update, tol=tol)


def _minimizer(sigma: jax.Array, reduced: Reduced) -> jax.Array:
    """The rule by which the space grows."""
    return cubic_step(reduced, sigma).h


def _adapted(found: Found, least: jax.Array) -> jax.Array:
    """The weight after the trials."""
    sigma, rho = found.trial.control, found.ratio
    after = jnp.where(rho < POOR, UP * sigma, jnp.where(rho > GOOD, sigma / DOWN, sigma))
    return jnp.maximum(jnp.where(found.accepted, after, found.control), least)
