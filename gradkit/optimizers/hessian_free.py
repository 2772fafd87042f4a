"""Hessian-free optimization: damped Gauss–Newton steps by conjugate gradients, for networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count, needs_positive
from gradkit.krylov.iterates import Iterates, iterates
from gradkit.operators import Operator
from gradkit.optimizers.modelled import Local
from gradkit.searches.acceptance import ratio
from gradkit.states import Work
from gradkit.transforms.link import Link, link, transformation

PyTree = Any

POOR, GOOD = 0.25, 0.75  # gain ratio below which the damping grows, and above which it falls
CHANGE = 1.5  # by which it does
FALL, SHRINK, MAX_TRIALS = 1e-2, 0.8, 60  # Armijo's condition, and the search for it


class HessianFreeState(NamedTuple):
    """What the last update has found, and where the next begins.

    Attributes:
        damping: λ of the next update [loss/param²].
        direction: the final iterate of the last conjugate gradients, a tree like the parameters.
        ratio: ρ, of the true decrease of the loss to the model's; −inf where it is not finite.
        rate: of the step that was taken, 0 for none.
        cg_steps: of the last update. cg_kept: the place among its kept iterates that was chosen,
            counted from the last.
        cg_residual: ‖(B + λI) d + g‖ / ‖g‖ at its final iterate.
        negative_curvature: updates in which a direction of curvature ≤ 0 ended conjugate gradients.
        failures: updates without a step: the loss fell along none, though the gradient is not zero.
        work: of all updates so far.
    """

    damping: jax.Array
    direction: PyTree
    ratio: jax.Array
    rate: jax.Array
    cg_steps: jax.Array
    cg_kept: jax.Array
    cg_residual: jax.Array
    negative_curvature: jax.Array
    failures: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes everything but the direction and the work."""
        return {k: v for k, v in self._asdict().items() if k not in ("direction", "work")}


@transformation
def hessian_free(
    damping: float = 1.0,
    *,
    decay: optax.ScalarOrSchedule = 0.95,
    tol: optax.ScalarOrSchedule = 5e-4,
    max_steps: int = 100,
    power: float = 0.75,
) -> Link:
    """Hessian-free: θ ← θ + α d, with d from conjugate gradients on ½ dᵀ(B + λI) d + gᵀd.

    B is what `curvature` gives, `gk.gauss_newton` as a rule; it may be of another batch than the
    gradient, larger or smaller. Conjugate gradients begin at `decay` times the direction of the
    last update, end where the model falls slowly, and are walked back over iterates while the loss
    falls. λ grows where the model foretells the loss badly, ρ < ¼, and falls where it does well,
    ρ > ¾. It is a whole optimizer: no learning rate or line search follows it.

    With the extra argument `diagonal`, such as from `gk.observe(..., diagonal=
    gk.empirical_fisher_diagonal)`, M = (diagonal + λ)^-power preconditions conjugate gradients.

    Source: Martens (2010), "Deep learning via Hessian-free optimization", section 4; Martens &
    Sutskever (2012), "Training deep and recurrent networks with Hessian-free optimization".
    Differs: ρ allows for a rounding of 10 ε |f|. Curvature that is not positive, which a Hessian
    may have and a Gauss–Newton matrix not, ends conjugate gradients and lets λ grow; where their
    very first direction has it, d = −g. A gradient that
    is not finite, or a search without an accepted rate, moves nothing, counts as a failure, and
    lets the next conjugate gradients begin at 0.

    Cost: one gradient to linearize, at most max_steps + 1 products, an evaluation for each iterate
    that is walked back over and each rate that is tried; 8 trees of memory and log₁.₃(max_steps)
    for iterates.

    Args:
        damping: λ of the first update [loss/param²].
        decay: of the direction at which conjugate gradients begin; 0 begins at 0.
        tol: least progress of the model in a step of theirs, relative to its value.
        max_steps: most steps of theirs.
        power: of the preconditioner.

    Raises:
        TypeError: `update` was called without `value`, `value_fn` or `curvature`.
        ValueError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> fit = gk.Problem(
        ...     predict=lambda x, t: x[0] * jnp.exp(-x[1] * t) - 2.0 * jnp.exp(-0.5 * t),
        ...     criterion=lambda residuals, t: jnp.sum(residuals**2) / 2,
        ... )
        >>> x, t = jnp.array([1.0, 1.0]), jnp.arange(5.0)
        >>> tx = gk.hessian_free()
        >>> state = tx.init(x)
        >>> for _ in range(30):
        ...     point = gk.observe(fit, x, t, curvature=gk.gauss_newton)
        ...     updates, state = tx.update(point.grad, state, x, **point.extras)
        ...     x = x + updates
        >>> x.round(2)
        Array([2. , 0.5], dtype=float32)
    """
    needs_count(max_steps, "max_steps", member="hessian_free")
    needs_positive(damping, "damping", member="hessian_free")

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        scalars = {name: jnp.zeros((), dtype) for name in ("ratio", "rate", "cg_residual")}
        names = ("cg_steps", "cg_kept", "negative_curvature", "failures")
        return HessianFreeState(
            damping=jnp.full((), damping, dtype),
            direction=optax.tree.zeros_like(params),
            **scalars,
            **{name: jnp.zeros((), jnp.int32) for name in names},
            work=Work.none(),
        )

    def update(updates, state, params, h, **extra):
        here = Local.of(updates, params, extra, "hessian_free")
        f, g_norm, usable, lam = here.value, here.g_norm, here.usable, state.damping
        zeros = optax.tree.zeros_like(here.g)
        g = optax.tree.where(usable, here.g, zeros)

        found = iterates(
            here.A + lam,
            optax.tree.scale(-1, g),
            optax.tree.where(usable, tree.scaled(h.decay, state.direction), zeros),
            tol=h.tol,
            max_steps=max_steps,
            preconditioner=_preconditioner(extra.get("diagonal"), lam, power),
        )

        def loss(alpha, d):
            return here.value_fn(tree.add_scaled(params, alpha, d)).astype(f.dtype)

        j, f_j, walked = _walked_back(found, lambda d: loss(1, d), g)
        d = found.row(j, g)
        rho = jnp.where(usable, ratio(f, f_j, -found.values[j]), 0)
        bent = found.curvature <= 0
        steepest = bent & (found.steps <= 1)
        d = optax.tree.where(steepest, optax.tree.scale(-1, g), d)
        f_j = jax.lax.cond(steepest, lambda: loss(1, d), lambda: f_j)
        alpha, accepted, tried = _searched(f, f_j, tree.inner(g, d), lambda a: loss(a, d), usable)

        growth = jnp.where((rho < POOR) | bent, CHANGE, jnp.where(rho > GOOD, 1 / CHANGE, 1))
        eps = jnp.finfo(lam.dtype).eps
        following = jnp.clip(lam * growth, eps**2, 1 / eps).astype(lam.dtype)
        residual = found.residual_norm / jnp.where(g_norm > 0, g_norm, 1)
        return optax.tree.where(accepted, tree.scaled(alpha, d), zeros), HessianFreeState(
            damping=jnp.where(usable, following, lam),
            direction=optax.tree.where(accepted, found.row(found.last, g), zeros),
            ratio=rho.astype(lam.dtype),
            rate=jnp.where(accepted, alpha, 0).astype(lam.dtype),
            cg_steps=found.steps,
            cg_kept=found.last - j,
            cg_residual=residual.astype(lam.dtype),
            negative_curvature=state.negative_curvature + bent,
            failures=state.failures + (~accepted & (g_norm != 0)),
            work=state.work.plus(
                evaluations=walked + steepest + tried + ("diagonal" in extra),
                gradients=int("diagonal" in extra),
                products=found.products,
            ),
        )

    return link(init, update, steps=True, decay=decay, tol=tol)


def _preconditioner(diagonal: Callable | None, lam: jax.Array, power: float) -> Operator | None:
    """M = (D + λ)^-power."""
    if diagonal is None:
        return None
    D = diagonal()
    scales = jax.tree.map(lambda x: ((tree.wide(x) + lam) ** -power).astype(x.dtype), D)
    return Operator(Partial(optax.tree.mul, scales), D)


def _walked_back(
    found: Iterates, loss: Callable[[PyTree], jax.Array], like: PyTree
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The iterate before which the loss rises again, its loss, and how many were evaluated."""

    def loss_at(j):
        return loss(found.row(j, like))

    def go_on(s):
        j, value, before, _ = s
        return (j > 0) & ((before <= value) | ~jnp.isfinite(value))

    def back(s):
        j, _, before, count = s
        return j - 1, before, loss_at(jnp.maximum(j - 2, 0)), count + 1

    last = found.last
    start = (last, loss_at(last), loss_at(jnp.maximum(last - 1, 0)), jnp.full((), 2, jnp.int32))
    j, value, _, count = jax.lax.while_loop(go_on, back, start)
    return j, value, count


def _searched(
    f: jax.Array, f_1: jax.Array, slope: jax.Array, loss: Callable, usable: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest rate 0.8ᵏ that lowers the loss as Armijo asks, whether there is one, trials."""

    def lowers(alpha, value):
        return value <= f + FALL * alpha * slope.astype(f.dtype)

    def go_on(s):
        alpha, value, count = s
        return usable & ~lowers(alpha, value) & (count < MAX_TRIALS)

    def shorter(s):
        alpha, _, count = s
        return SHRINK * alpha, loss(SHRINK * alpha), count + 1

    start = (jnp.ones_like(f), f_1, jnp.zeros((), jnp.int32))
    alpha, value, count = jax.lax.while_loop(go_on, shorter, start)
    return alpha, usable & lowers(alpha, value) & (slope < 0), count
