"""Least squares: the parameters for which residuals are smallest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import Problem
from gradkit.curvature.gauss_newton import observed
from gradkit.krylov.drivers import Drive
from gradkit.minimization.minimize import Applied, Result, run, transformation
from gradkit.minimization.status import Stops

PyTree = Any


def least_squares(
    residuals: Callable,
    x0: PyTree,
    *,
    method: str | optax.GradientTransformation = "levenberg_marquardt",
    tol: float | jax.Array = 1e-6,
    max_steps: int | jax.Array = 1000,
    args: Any = (),
    function_tol: float | jax.Array = 0.0,
    step_tol: float | jax.Array = 0.0,
    budget: float | jax.Array = jnp.inf,
    history: int = 0,
    drive: Drive | None = None,
) -> Result:
    """Returns the x that minimizes ½ Σ rᵢ(x)², with the residuals r there as `aux`.

    It is `gk.minimize` with the Gauss–Newton matrix JᵀJ for the Hessian, which no second derivative
    enters. All that is said there of statuses, derivatives, `jit` and `vmap` holds here.

    Source: Levenberg (1944); Marquardt (1963); Nocedal & Wright (2006), chapter 10.

    Cost: that of the method; one evaluation of the residuals and one pullback a point.

    Args:
        residuals: residuals(x, *args) -> array, or any tree of arrays.
        x0: start, a tree of floating-point arrays or numbers.
        method: `"levenberg_marquardt"`; `"gauss_newton"`, its undamped step with a line search; or
            any other that `gk.minimize` takes.
        tol: of the gradient Jᵀr.
        max_steps: most updates.
        args: further arguments of `residuals`, a tuple of trees, or one that is no tuple: of
            arrays, numbers and random keys.
        function_tol: also stop where a step lowers f by at most this times f; 0 for never.
        step_tol: also stop where a step changes x by at most this times ‖x‖∞; 0 for never.
        budget: most gradient-equivalents to spend, to within one step.
        history: of how many points to record loss, gradient norm and work.
        drive: `gk.in_jit` (default), or `gk.on_host`.

    Returns:
        A `gk.Result`; `value` is ½ Σ rᵢ².

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> t = jnp.array([0.0, 1.0, 2.0])
        >>> def residuals(x, t):
        ...     return x[0] + x[1] * t - (3 * t + 2)
        >>> found = gk.least_squares(residuals, jnp.zeros(2), args=t)
        >>> bool(jnp.allclose(found.params, jnp.array([2.0, 3.0]))), bool(found.converged)
        (True, True)
    """
    if not callable(residuals):
        raise TypeError(f"least_squares: residuals must be a function, got {residuals!r}")
    problem = Problem(predict=Applied(residuals), criterion=_half_square)
    stops = Stops(tol, function_tol, step_tol, max_steps, budget)
    tx = transformation("newton" if method == "gauss_newton" else method)
    walk = {"history": history, "drive": drive}
    return run(problem, tx, x0, args, stops, observed, member="least_squares", **walk)


def _half_square(r: PyTree, args: tuple) -> jax.Array:
    del args
    return tree.inner(r, r) / 2
