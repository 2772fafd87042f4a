"""Levenberg–Marquardt: damped Newton and Gauss–Newton steps, the damping adapted to their gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from gradkit import tree
from gradkit.core import needs_count, needs_params, needs_positive, required
from gradkit.krylov.models import Reduced
from gradkit.krylov.subspace import grown
from gradkit.operators import Operator
from gradkit.states import Work
from gradkit.transforms.link import Link, link, transformation
from gradkit.transforms.norms import scaled_norm

PyTree = Any

DENSE_DIMENSION = 20  # up to here the matrix is written out, unless a solver is named
ACCEPTED = 1e-4  # least gain ratio of a step that is taken
LEAST_FALL = 0.1  # by which the damping falls at most from one update to the next


class LevenbergMarquardtState(NamedTuple):
    """What the last update has found, and where the next begins.

    Attributes:
        damping: α of the next update, a multiple of D.
        ratio: ρ of the last trial, of the true decrease to the model's; −inf for no number.
        failures: updates without an accepted trial: zero, though the gradient is not.
        scale: the diagonal of D, a tree or one number for all; zero before the first update.
        steepest: the largest ‖g‖ so far.
        work: of all updates so far.
    """

    damping: jax.Array
    ratio: jax.Array
    failures: jax.Array
    scale: PyTree
    steepest: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes damping, ratio and failures."""
        return {"damping": self.damping, "ratio": self.ratio, "failures": self.failures}


class Model(NamedTuple):
    """The quadratic model gᵀd − dᵀA d / 2 of the decrease, in coordinates y that diagonalize it.

    gᵀd = Σ slopesᵢ yᵢ, dᵀA d = Σ valuesᵢ yᵢ², dᵀD d = Σ yᵢ².

    Attributes:
        values: shape (m,). slopes: shape (m,).
        resolution: magnitude up to which one of `values` counts as zero.
        step: (y, like) -> d, a tree.
    """

    values: jax.Array
    slopes: jax.Array
    resolution: jax.Array
    step: Callable[[jax.Array, PyTree], PyTree]

    def damped(self, alpha: jax.Array) -> jax.Array:
        """Returns y of (A + (α − min(λ, 0)) D) d = g, λ the lowest value."""
        lowest = jnp.minimum(jnp.min(self.values), 0)
        return self.slopes / (self.values - lowest + alpha + self.resolution)

    def decrease(self, y: jax.Array) -> jax.Array:
        """Returns gᵀd − dᵀA d / 2."""
        return jnp.sum(y * (self.slopes - self.values * y / 2))


class Trials(NamedTuple):
    """The search for a damping whose step lowers the loss."""

    alpha: jax.Array
    growth: jax.Array
    ratio: jax.Array
    y: jax.Array
    accepted: jax.Array
    evaluations: jax.Array
    gradients: jax.Array


@transformation
def levenberg_marquardt(
    damping: float = 1e-3,
    *,
    solver: Literal["dense", "lanczos"] | None = None,
    scaling: bool = True,
    tol: float = 0.1,
    basis: int = 50,
    max_trials: int = 15,
) -> Link:
    """Levenberg–Marquardt: θ ← θ − (A + αD)⁻¹ g, with α raised until the loss falls.

    A is what `curvature` gives: with `gk.gauss_newton` of a sum of squares this is the method of
    Levenberg and Marquardt, with `gk.hessian` Newton's method regularized. α falls where the
    quadratic model foretells the loss well, and with α → 0 the last steps are Newton's. It is a
    whole optimizer: no learning rate or line search follows it.

    D is a diagonal: with the dense solver the largest |Aᵢᵢ| so far of each parameter, so that the
    units of the parameters do not matter; else one number for all, the present scale of A. Where A
    has a negative eigenvalue λ relative to D, α counts from −λ.

    Source: Marquardt (1963); Moré (1978) for D; Nielsen (1999) and Madsen, Nielsen & Tingleff
    (2004), algorithm 3.16, for α.
    Differs: α falls by a factor of 10 at most, not 3. The trials of an update share one
    decomposition of A. Where the foretold decrease is of the size of rounding, 10 ε |f|, the true
    one is taken from the slopes at both ends, (gᵀd + g₊ᵀd) / 2. For large problems A is projected
    on a Krylov space of g, as large as the damped step on it needs to satisfy the whole system to a
    relative residual of min(tol, √(‖g‖ / largest ‖g‖ so far)). A loss that is not finite fails the
    trial; a matrix that is not finite counts as zero. A gradient that is not finite, or no accepted
    trial, moves nothing and counts as a failure.

    Cost: one gradient to linearize and n products (dense; 3 n² numbers of memory), or at most
    `basis` products (lanczos; basis + 3 trees); one evaluation a trial, with a gradient where
    rounding decides.

    Args:
        damping: α of the first trial, a multiple of D.
        solver: "dense" writes A out and decomposes it, "lanczos" uses products only; by default
            the former up to 20 parameters.
        scaling: with the dense solver, whether D has an entry for each parameter.
        tol: largest relative residual of the Krylov solver.
        basis: most vectors of it.
        max_trials: most trials an update.

    Raises:
        TypeError: `update` was called without `value`, `grad`, `value_fn` or `curvature`, or the
            dense solver was asked for parameters that are complex.
        ValueError: an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp, gradkit as gk
        >>> fit = gk.Problem(
        ...     predict=lambda x, t: x[0] * jnp.exp(-x[1] * t) - 2.0 * jnp.exp(-0.5 * t),
        ...     criterion=lambda residuals, t: jnp.sum(residuals**2) / 2,
        ... )
        >>> x, t = jnp.array([1.0, 1.0]), jnp.arange(5.0)
        >>> tx = gk.levenberg_marquardt()
        >>> state = tx.init(x)
        >>> for _ in range(10):
        ...     point = gk.observe(fit, x, t, curvature=gk.gauss_newton)
        ...     updates, state = tx.update(point.grad, state, x, **point.extras)
        ...     x = x + updates
        >>> x.round(3)
        Array([2. , 0.5], dtype=float32)
    """
    _check(damping, solver, tol)
    needs_count(basis, "basis", member="levenberg_marquardt")
    needs_count(max_trials, "max_trials", member="levenberg_marquardt")

    def dense(params):
        return solver == "dense" or (solver is None and optax.tree.size(params) <= DENSE_DIMENSION)

    def init(params, step):
        dtype = tree.scalar_dtype(params)
        zero = jnp.zeros((), dtype)
        return LevenbergMarquardtState(
            damping=jnp.full((), damping, dtype),
            ratio=zero,
            failures=jnp.zeros((), jnp.int32),
            scale=tree.wide_zeros(params) if scaling and dense(params) else zero,
            steepest=zero,
            work=Work.none(),
        )

    def update(updates, state, params, h, **extra):
        needs_params(params, member="levenberg_marquardt")
        f, g, value_fn, curvature = (
            required(extra, name, member="levenberg_marquardt")
            for name in ("value", "grad", "value_fn", "curvature")
        )
        if not optax.tree.size(params):
            return updates, state
        g = optax.tree.cast_like(updates, params)
        g_norm = scaled_norm(g).value.astype(state.steepest.dtype)
        steepest = jnp.fmax(state.steepest, jnp.where(jnp.isfinite(g_norm), g_norm, 0))
        if dense(params):
            model, scale, products = _whole(curvature(), g, state.scale)
        else:
            forcing = jnp.minimum(tol, jnp.sqrt(g_norm / jnp.where(steepest > 0, steepest, 1)))
            model, scale, products = _projected(
                curvature(), g, state.damping, state.scale, rows=basis, tol=forcing
            )
        usable = jnp.all(jnp.isfinite(model.slopes)) & jnp.any(model.slopes != 0)

        def gain(y, decrease):
            return _gain(value_fn, params, g, f.astype(decrease.dtype), model.step(y, g), decrease)

        start = state.damping.astype(model.values.dtype)
        found = _searched(model, gain, start, jnp.where(usable, max_trials, 0))
        step = model.step(jnp.where(found.accepted, -found.y, 0), g)
        eps = jnp.finfo(g_norm.dtype).eps
        following = jnp.clip(found.alpha, eps, 1 / eps).astype(g_norm.dtype)
        return step, LevenbergMarquardtState(
            damping=jnp.where(usable, following, state.damping),
            ratio=found.ratio.astype(g_norm.dtype),
            failures=state.failures + (~found.accepted & (g_norm != 0)),
            scale=jax.tree.map(lambda new, old: new.astype(old.dtype), scale, state.scale),
            steepest=steepest,
            work=state.work.plus(found.evaluations, found.gradients, products),
        )

    return link(init, update, steps=True)


def _whole(A: Operator, g: PyTree, scale: PyTree) -> tuple[Model, PyTree, int]:
    """The model on all of the space, the diagonal of D and the products made."""
    _needs_real(A.domain)
    n = A.dimension
    g_flat = tree.wide(tree.ravel(g)[0])
    before, unravel = tree.ravel(scale)
    H = tree.wide(A.dense())
    H = jnp.where(jnp.all(jnp.isfinite(H)), (H + H.T) / 2, 0)
    diagonal = jnp.abs(jnp.diag(H))
    D = jnp.maximum(before, diagonal if before.size == n else jnp.max(diagonal))
    scale = unravel(D.astype(before.dtype))
    s = 1 / jnp.sqrt(jnp.where(D > 0, D, _unit(jnp.max(D), g_flat)))
    s = jnp.broadcast_to(s, (n,)).astype(H.dtype)
    values, Q = jnp.linalg.eigh(s[:, None] * H * s, symmetrize_input=False)

    def step(y, like):
        flat, unravel = tree.ravel(like)
        return unravel((s * _product(Q, y)).astype(flat.dtype))

    resolution = n * jnp.finfo(H.dtype).eps * jnp.max(jnp.abs(values))
    return Model(values, _product(s * g_flat, Q), resolution, step), scale, n


def _projected(
    A: Operator, g: PyTree, damping: jax.Array, scale: jax.Array, *, rows: int, tol: jax.Array
) -> tuple[Model, jax.Array, jax.Array]:
    """The same on a Krylov space of g."""
    shift = damping * scale
    test = Partial(_on_space, damping, shift)
    space = grown(A + shift, g, rows=rows, tol=tol, solve=test)
    reduced = Reduced.of(space.projection(), space.g_norm, space.rows)
    model, unit = _reduced(reduced, shift)

    def step(y, like):
        return space.combined(model.step(y, None), like)

    return model._replace(step=step), unit, space.products


def _on_space(damping: jax.Array, shift: jax.Array, reduced: Reduced) -> jax.Array:
    """The step in coordinates of the basis, from what is known of A + shift · I."""
    model, _ = _reduced(reduced, shift)
    return model.step(-model.damped(damping.astype(model.values.dtype)), None)


def _reduced(reduced: Reduced, shift: jax.Array) -> tuple[Model, jax.Array]:
    """The model in coordinates of the basis, and D."""
    theta = reduced.theta - shift
    unit = jnp.max(jnp.abs(theta))
    D = jnp.where(unit > 0, unit, _unit(unit, reduced.c))
    resolution = theta.size * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(reduced.theta)) / D

    def step(y, like):
        del like
        return _product(reduced.S, y) / jnp.sqrt(D)

    return Model(theta / D, reduced.c / jnp.sqrt(D), resolution, step), unit


def _unit(largest: jax.Array, g: jax.Array) -> jax.Array:
    """What stands for a curvature of zero: the largest there is, or else one of the scale of g."""
    top = jnp.max(jnp.abs(g))
    return jnp.where(largest > 0, largest, jnp.where(top > 0, top, 1))


def _gain(
    value_fn: Callable, params: PyTree, g: PyTree, f: jax.Array, d: PyTree, decrease: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """By how much the loss falls at θ − d, NaN where it may not be so, and by slopes or not."""
    there = tree.add_scaled(params, -1, d)
    noise = 10 * jnp.finfo(f.dtype).eps * jnp.abs(f)
    slight = decrease <= noise

    def by_slopes():
        value, grad = jax.value_and_grad(value_fn)(there)
        slopes = tree.inner(g, d) + tree.inner(jax.tree.map(jnp.conj, grad), d)
        return value.astype(f.dtype), (slopes / 2).astype(f.dtype)

    def by_values():
        value = value_fn(there).astype(f.dtype)
        return value, f - value

    value, gain = jax.lax.cond(slight, by_slopes, by_values)
    return jnp.where(value <= f + noise, gain, jnp.nan), slight


def _searched(model: Model, gain: Callable, alpha: jax.Array, most: jax.Array) -> Trials:
    """Trials with growing α until one is accepted."""

    def go_on(s):
        return ~s.accepted & (s.evaluations < most)

    def attempt(s):
        y = model.damped(s.alpha)
        decrease = model.decrease(y)
        actual, by_slopes = gain(y, decrease)
        ratio = actual / decrease
        ratio = jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)
        accepted = ratio > ACCEPTED
        fall = jnp.maximum(LEAST_FALL, 1 - (2 * ratio - 1) ** 3)
        return Trials(
            alpha=s.alpha * jnp.where(accepted, fall, s.growth),
            growth=2 * s.growth,
            ratio=ratio,
            y=y,
            accepted=accepted,
            evaluations=s.evaluations + 1,
            gradients=s.gradients + by_slopes,
        )

    none = jnp.zeros((), jnp.int32)
    growth = jnp.full_like(alpha, 2)
    y, rejected = jnp.zeros_like(model.slopes), jnp.zeros((), bool)
    start = Trials(alpha, growth, jnp.zeros_like(alpha), y, rejected, none, none)
    return jax.lax.while_loop(go_on, attempt, start)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check(damping: Any, solver: Any, tol: Any) -> None:
    for name, value in (("damping", damping), ("tol", tol)):
        needs_positive(value, name, member="levenberg_marquardt")
    if solver not in ("dense", "lanczos", None):
        raise ValueError(
            f"levenberg_marquardt: solver must be 'dense', 'lanczos' or None, got {solver!r}"
        )


def _needs_real(domain: PyTree) -> None:
    for x in jax.tree.leaves(domain):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(
                "levenberg_marquardt: the dense solver expects real parameters, got "
                f"{x.dtype}; solver='lanczos' takes both"
            )
