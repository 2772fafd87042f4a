"""What the ends of a spectrum say about step sizes: safe, fastest and too large."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradkit.spectra.dynamics import needs_momentum
from gradkit.spectra.extremes import Eigenpairs
from gradkit.tree import wide


class Advice(NamedTuple):
    """`descent = 1 / λ_max`, `stability_limit = 2 / λ_max`, and the best rates on [λ_min, λ_max].

    All hold for every spectrum within the two bounds. NaN marks what does not apply, infinity what
    no curvature limits; `report()` says why.

    Attributes:
        largest, smallest: the bounds for λ_max and λ_min, errors included; `smallest` is −infinity
            where nothing is known [loss/param²].
        descent: learning rate whose step lowers the loss by at least η/2 ‖g‖².
        stability_limit: learning rate beyond which gradient descent diverges.
        fastest, fastest_rate: learning rate at which gradient descent is fastest in the worst
            case, and the factor by which a step multiplies the distance to the minimum.
        heavy_ball, momentum, heavy_ball_rate: the same for `gk.sgd(heavy_ball, momentum=momentum)`.
    """

    largest: jax.Array
    smallest: jax.Array
    descent: jax.Array
    stability_limit: jax.Array
    fastest: jax.Array
    fastest_rate: jax.Array
    heavy_ball: jax.Array
    momentum: jax.Array
    heavy_ball_rate: jax.Array

    def report(self) -> str:
        """Returns a line for each figure: its value, its rate, and the theorem behind it."""
        f = {name: float(value) for name, value in self._asdict().items()}
        unlimited, none = _why_not(f["largest"], f["smallest"])
        descent = "" if none else f", rate {1 - f['smallest'] * f['descent']:.4g}"
        lines = (
            ("eigenvalues", "", f"{f['smallest']:.4g} to {f['largest']:.4g}, errors included"),
            (
                "descent",
                unlimited,
                f"learning rate {f['descent']:.4g}{descent}: the loss falls by η/2 ‖g‖² at least, "
                "if no eigenvalue on the way exceeds λ_max (Nesterov 2018, lemma 1.2.3)",
            ),
            (
                "stability limit",
                unlimited,
                f"learning rate {f['stability_limit']:.4g}: beyond it |1 − η λ_max| > 1, and "
                "gradient descent diverges (Polyak 1987, section 1.4)",
            ),
            (
                "fastest",
                none,
                f"learning rate {f['fastest']:.4g}, rate {f['fastest_rate']:.4g}: "
                "(κ − 1) / (κ + 1) for strongly convex functions (Nesterov 2018, theorem 2.1.15)",
            ),
            (
                "heavy ball",
                none,
                f"learning rate {f['heavy_ball']:.4g}, momentum {f['momentum']:.4g}, rate "
                f"{f['heavy_ball_rate']:.4g}: (√κ − 1) / (√κ + 1) in the long run on quadratics "
                "(Polyak 1964); elsewhere it may cycle (Lessard, Recht & Packard 2016)",
            ),
        )
        return "\n".join(f"{name}: {why_not or figure}" for name, why_not, figure in lines)


def step_sizes(
    largest: Eigenpairs | ArrayLike,
    smallest: Eigenpairs | ArrayLike | None = None,
    *,
    error: float | jax.Array = 0.0,
) -> Advice:
    """Returns learning rates and momentum for a loss whose Hessian has these extreme eigenvalues.

    λ_max is taken larger by its error, and λ_min smaller, so that each figure holds for whatever
    they are. The figures are exact for a quadratic, and elsewhere as good as the Hessian is
    constant on the way. That no eigenvalue lies beyond a Ritz value and its residual rests on the
    random start of `gk.eigsh`.

    Source: Nesterov (2018), "Lectures on convex optimization", lemma 1.2.3 and theorem 2.1.15;
    Polyak (1964) for the heavy ball, η = (2 / (√λ_max + √λ_min))² and
    μ = ((√λ_max − √λ_min) / (√λ_max + √λ_min))².
    Differs: Nesterov's lemma is used with λ_max for the Lipschitz constant max |λ|: only positive
    curvature can make a gradient step raise the loss.

    Cost: none.

    Args:
        largest: λ_max, or the `Eigenpairs` whose last it is, which bring their residual
            [loss/param²].
        smallest: λ_min, or the `Eigenpairs` whose first it is. Without it, or where it is not
            positive beyond its error, there is no fastest step and no heavy ball.
        error: by how much either may be off, besides a residual.

    Returns:
        `Advice`, and with `.report()` the reasons.

    Raises:
        ValueError: an array instead of a number, a negative error, or the smallest above the
            largest.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> H = gk.Operator(lambda v: jnp.array([1.0, 4.0, 9.0]) * v, jnp.zeros(3))
        >>> found = gk.spectrum(H, key=jax.random.key(0), probes=2)
        >>> advice = gk.step_sizes(found.largest, found.smallest)
        >>> [round(float(x), 4) for x in (advice.descent, advice.fastest, advice.fastest_rate)]
        [0.1111, 0.2, 0.8]
        >>> [round(float(x), 4) for x in (advice.heavy_ball, advice.momentum)]
        [0.25, 0.25]
    """
    for name, value in (("largest", largest), ("smallest", smallest), ("error", error)):
        if value is not None and not isinstance(value, Eigenpairs) and jnp.shape(value) != ():
            raise ValueError(
                f"{name}: expected a number or what gk.eigsh returns, got shape {jnp.shape(value)};"
                " of eigenvalues in ascending order take the last and the first"
            )
    given = [x for x in (smallest, largest) if isinstance(x, int | float)]
    if len(given) == 2 and given[0] > given[1]:
        raise ValueError(f"smallest: expected at most the largest, {given[1]}, got {given[0]}")
    if isinstance(error, int | float) and error < 0:
        raise ValueError(f"error: expected 0 or a positive number, got {error}")
    lower, upper = -jnp.inf, largest
    if isinstance(largest, Eigenpairs):
        upper = largest.values[-1] + largest.residuals[-1]
    if isinstance(smallest, Eigenpairs):
        lower = smallest.values[0] - smallest.residuals[0]
    elif smallest is not None:
        lower = smallest
    return _advice(upper, lower, error)


@jax.jit
def _advice(upper: Any, lower: Any, error: Any) -> Advice:
    dtype = jnp.promote_types(jnp.result_type(upper, lower, error), jnp.float32)
    L = jnp.asarray(upper + error, dtype)
    m = jnp.asarray(lower - error, dtype)
    limit = stability_limit(L)
    root, small_root = (jnp.sqrt(jnp.maximum(x, 0)) for x in (L, m))
    figures = (
        2 / (L + m),
        (L - m) / (L + m),
        (2 / (root + small_root)) ** 2,
        ((L - m) / (root + small_root) ** 2) ** 2,
        (L - m) / (root + small_root) ** 2,
    )
    applies = (m > 0) & (m <= L)
    return Advice(L, m, limit / 2, limit, *(jnp.where(applies, x, jnp.nan) for x in figures))


def stability_limit(
    sharpness: ArrayLike, *, momentum: float | jax.Array = 0.0, ema: bool = False
) -> jax.Array:
    """Returns the learning rate beyond which a mode of curvature `sharpness` diverges.

    2 (1 + μ) / λ for v ← μ v + g, and 2 (1 + μ) / ((1 − μ) λ) for the average v ← μ v + (1 − μ) g.
    The formula reads both ways: of a learning rate it gives the curvature that it can bear, about
    which λ_max hovers at the edge of stability.

    Source: Polyak (1964); Cohen et al. (2021), "Gradient descent on neural networks typically
    occurs at the edge of stability"; Cohen et al. (2022), "Adaptive gradient methods at the edge of
    stability", for Adam: `ema` with μ = b1 and the λ_max of its preconditioned Hessian, 38 / η
    at b1 = 0.9.

    Args:
        sharpness: λ, any shape [loss/param²]; or a learning rate.
        momentum: μ, 0 ≤ μ < 1.
        ema: the velocity is an average of gradients, as `gk.ema` and Adam have it, not a sum.

    Returns:
        Like `sharpness`: infinite where that is not positive, as no learning rate is then the first
        to diverge: at zero none does, below zero all do.

    Raises:
        ValueError: momentum out of range.

    Example:
        >>> import gradkit as gk
        >>> float(gk.stability_limit(0.5)), float(gk.stability_limit(0.5, momentum=0.5))
        (4.0, 6.0)
        >>> round(float(gk.stability_limit(0.1, momentum=0.9, ema=True)))
        380
    """
    needs_momentum(momentum)
    curvature = wide(jnp.asarray(sharpness))
    limit = 2 * (1 + momentum) / ((1 - momentum if ema else 1) * curvature)
    return jnp.where(curvature <= 0, jnp.inf, limit)


def _why_not(largest: float, smallest: float) -> tuple[str, str]:
    """Why nothing limits the step, and why none is best; empty where something does, or one is."""
    if not np.isfinite(largest):
        reason = "not known, as the largest eigenvalue is not finite"
        return reason, reason
    if largest <= 0:
        return "unlimited, as no curvature is positive", "none, as no curvature is positive"
    if np.isnan(smallest):
        return "", "not known, as the smallest eigenvalue is not a number"
    if smallest > largest:
        return "", "not known, as the smallest eigenvalue lies above the largest"
    if smallest == -np.inf:
        return "", "not known without the smallest eigenvalue"
    if smallest <= 0:
        return "", "none, as the smallest eigenvalue is not positive beyond its error"
    return "", ""
