"""Minimizers of models of a loss on a Krylov space, from a small matrix and without products.

On V h the loss is modelled by `g₁ h₁ + hᵀT h / 2` with g₁ = ‖g‖. T is diagonalized once; each
radius or weight then costs a scalar equation, `‖h(s)‖ = …` with hᵢ(s) = −cᵢ / (θᵢ − θ₁ + s). The
unknown is the distance s = λ + θ₁ from the pole, not λ, so that nothing cancels near it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree

MOST = 60  # steps of Newton's method on a scalar equation; 5 are usual
SMALL = 48  # rows up to which `eigh` takes 0.1 ms on a CPU; 100 take 2


class Reduced(NamedTuple):
    """`T = S diag(θ) Sᵀ` and `c = Sᵀ e₁ g₁`, θ ascending.

    Attributes:
        theta: θ, shape (m,). S: shape (m, m).
        c: shape (m,); zero for rows that are not part of the space, which lie above the others.
    """

    theta: jax.Array
    S: jax.Array
    c: jax.Array

    @classmethod
    def of(cls, T: jax.Array, g_norm: Any, rows: Any = None) -> Reduced:
        """Returns T diagonalized.

        Args:
            T: symmetric, shape (m, m).
            g_norm: g₁.
            rows: how many of the first rows are part of the space, all by default; the others must
                be decoupled from them, and larger.
        """
        if rows is None:
            theta, S = jnp.linalg.eigh(T)
            part = jnp.ones(theta.size, bool)
        else:
            theta, S = _leading(T, rows)
            part = jnp.arange(theta.size) < rows
            theta = jnp.where(part, theta, theta[jnp.maximum(rows - 1, 0)])
        noise = jnp.finfo(T.dtype).eps  # of an entry of S
        return cls(theta, S, jnp.where(part & (jnp.abs(S[0]) > noise), g_norm * S[0], 0))

    @property
    def gaps(self) -> jax.Array:
        """θᵢ − θ₁."""
        return self.theta - self.theta[0]

    @property
    def rounding(self) -> jax.Array:
        """Magnitude up to which an eigenvalue counts as zero."""
        eps = jnp.finfo(self.theta.dtype).eps
        return self.c.size * eps * jnp.maximum(jnp.abs(self.theta[0]), jnp.abs(self.theta[-1]))

    def at(self, s: jax.Array) -> jax.Array:
        """Returns h(s) in eigenvectors; 0 / 0 counts as 0."""
        d = self.gaps + s
        return jnp.where(self.c == 0, 0, -self.c / jnp.where(d > 0, d, 0))

    def step(self, u: jax.Array, s: jax.Array, shift: jax.Array) -> ModelStep:
        """Returns the step with coefficients u in eigenvectors, where (T + λ) h = −e₁ g₁."""
        norm = tree.root(jnp.sum(u**2))
        reduction = (jnp.sum((self.gaps + s) * u**2) + shift * norm**2) / 2
        h = jnp.matmul(self.S, u, precision=jax.lax.Precision.HIGHEST)
        return ModelStep(h, shift, norm, reduction)


class ModelStep(NamedTuple):
    """A step in coordinates of the basis.

    Attributes:
        h: shape (m,).
        shift: λ of (T + λI) h = −e₁ g₁; zero for a step that was cut short.
        norm: ‖h‖.
        reduction: by how much the model falls.
    """

    h: jax.Array
    shift: jax.Array
    norm: jax.Array
    reduction: jax.Array


def trust_region_step(reduced: Reduced, radius: float | jax.Array) -> ModelStep:
    """Returns the minimizer of g₁ h₁ + hᵀT h / 2 in ‖h‖ ≤ radius, globally.

    `(T + λI) h = −e₁ g₁`, `λ ≥ max(0, −θ₁)` and `λ (radius − ‖h‖) = 0`.

    Source: Moré & Sorensen (1983), "Computing a trust region step"; Conn, Gould & Toint (2000),
    algorithm 7.3.1 with its hard case.
    Differs: by eigenvalues instead of Cholesky factors; in s instead of λ; an eigenvalue that is
    zero to rounding has no curvature to follow, so that the step of minimal norm is taken.

    Args:
        reduced: the model.
        radius: a positive number.
    """
    radius = jnp.asarray(radius, reduced.c.dtype)
    lowest = reduced.theta[0]
    least = jnp.maximum(lowest, 0)  # s there is λ = 0, or the pole
    inner = reduced.at(least)
    fits = _norm(inner) <= radius
    below = jnp.max(jnp.abs(reduced.c) / radius - reduced.gaps)  # as |cᵢ| / (dᵢ + s) ≤ ‖h‖ = radius

    def newton(s):
        norm, slope = _norm_and_slope(reduced, s)
        return s + (norm / radius - 1) * norm / slope  # on 1/‖h‖, concave: from below to the root

    s = jnp.where(fits, least, _climbed(newton, jnp.maximum(least, below)))
    u = jnp.where(fits, inner, reduced.at(s))
    # The hard case: along the first eigenvector to the boundary.
    hard = fits & (lowest < -reduced.rounding)
    rest = tree.root(jnp.maximum(radius - _norm(inner), 0) * (radius + _norm(inner)))
    u = u.at[0].add(jnp.where(hard, rest, 0))
    return reduced.step(u, s, jnp.maximum(s - lowest, 0))


def cubic_step(reduced: Reduced, sigma: float | jax.Array) -> ModelStep:
    """Returns the minimizer of g₁ h₁ + hᵀT h / 2 + σ ‖h‖³ / 3, globally.

    `(T + λI) h = −e₁ g₁` with `λ = σ ‖h‖ ≥ −θ₁`. The reduction is that of the cubic model.

    Source: Cartis, Gould & Toint (2011), "Adaptive cubic regularisation methods for unconstrained
    optimization. Part I", section 6.1.
    Differs: by eigenvalues instead of Cholesky factors, and in s instead of λ.

    Args:
        reduced: the model.
        sigma: σ, positive.
    """
    sigma = jnp.asarray(sigma, reduced.c.dtype)
    theta, lowest = reduced.theta, reduced.theta[0]
    least = jnp.maximum(lowest, 0)
    product = sigma * jnp.abs(reduced.c)
    # (θᵢ + λ) λ ≥ σ |cᵢ|, as |cᵢ| / (θᵢ + λ) ≤ ‖h‖ = λ / σ; for the first in terms of s.
    root = tree.root(theta**2 + 4 * product)
    lam = jnp.where(theta > 0, _ratio(2 * product, theta + root), (root - theta) / 2)
    first = jnp.where(lowest < 0, _ratio(2 * product[0], root[0] - lowest), (lowest + root[0]) / 2)
    rounding = 4 * jnp.finfo(theta.dtype).eps * jnp.abs(lowest)
    below = jnp.maximum(jnp.maximum(least, first), jnp.max(lam) + lowest - rounding)

    def newton(s):
        norm, slope = _norm_and_slope(reduced, s)
        shift = s - lowest
        value = 1 / norm - sigma / shift  # concave and rising: from below to the root
        rise = slope / norm**2 + sigma / shift**2
        return s - value / rise

    inner = reduced.at(least)
    hard = (lowest < -reduced.rounding) & (sigma * _norm(inner) <= -lowest)
    s = jnp.where(hard, 0, _climbed(newton, below))
    u = jnp.where(hard, inner, reduced.at(s))
    wanted = -lowest / sigma
    rest = tree.root(jnp.maximum(wanted - _norm(inner), 0) * (wanted + _norm(inner)))
    u = u.at[0].add(jnp.where(hard, rest, 0))
    shift = jnp.where(lowest > 0, sigma * _norm(u), s - lowest)  # either without cancellation
    step = reduced.step(u, s, jnp.maximum(shift, 0))
    return step._replace(reduction=step.reduction - sigma * step.norm**3 / 3)


def saddle_free_step(
    reduced: Reduced, damping: float | jax.Array, reach: float | jax.Array
) -> jax.Array:
    """Returns −(|T| + damping)⁻¹ e₁ g₁, in coordinates of the basis.

    Source: Dauphin et al. (2014), "Identifying and attacking the saddle point problem in
    high-dimensional non-convex optimization", algorithm 1.
    Differs: along an eigenvector no step is longer than `reach`.

    Args:
        reduced: the model.
        damping: added to the magnitudes [the operator's unit].
        reach: a length, which tells what to do where there is no curvature.
    """
    size = jnp.maximum(jnp.abs(reduced.theta), reduced.rounding) + damping
    length = jnp.where(size > 0, jnp.abs(reduced.c) / jnp.where(size > 0, size, 1), jnp.inf)
    u = jnp.where(reduced.c == 0, 0, -jnp.sign(reduced.c) * jnp.minimum(length, reach))
    return jnp.matmul(reduced.S, u, precision=jax.lax.Precision.HIGHEST)


def steihaug_step(T: jax.Array, g_norm: Any, radius: float | jax.Array, rows: Any) -> ModelStep:
    """Returns where the path of conjugate gradients ends, or leaves the ball ‖h‖ ≤ radius.

    It leaves along a direction of non-positive curvature at the latest.

    Source: Steihaug (1983); Toint (1981); Nocedal & Wright (2006), algorithm 7.2.
    Differs: in coordinates of a Krylov space, by the factors L D Lᵀ of T, all rows of which are
    used.

    Args:
        T: symmetric and tridiagonal, shape (m, m).
        g_norm: g₁.
        radius: a positive number.
        rows: how many of the first rows are part of the space.
    """
    radius = jnp.asarray(radius, T.dtype)
    diagonal, below = jnp.diagonal(T), jnp.append(jnp.diagonal(T, -1), 0)
    unit = jnp.where(g_norm > 0, g_norm, 1)  # in which ‖g‖ = 1
    eps, top = jnp.finfo(T.dtype).eps, jnp.max(jnp.abs(T))

    def go_on(path):
        *_, step, left = path
        return ~left & (step < rows)

    def advance(path):
        x, w, z, ratio, reduction, j, _ = path
        delta = diagonal[j] - ratio * below[j - 1]  # T = L D Lᵀ; `ratio` is 0 in the first row
        w = (-ratio * w).at[j].set(1)
        p = z * w  # pᵀT p = z² δ, and the slope along p is −z²
        positive = delta > eps * top
        tau = unit / jnp.where(positive, delta, 1)
        far = _to_boundary(x, p, radius)
        left = ~positive | (tau >= far)
        tau = jnp.where(left, far, tau)
        fall = z**2 * tau * (unit - tau * delta / 2)
        ratio = below[j] / jnp.where(positive, delta, 1)
        following = -ratio * z
        done = left | (jnp.abs(following) <= eps)
        return x + tau * p, w, following, ratio, reduction + fall, j + 1, done

    zero, none = jnp.zeros((), T.dtype), jnp.zeros((), jnp.int32)
    x = jnp.zeros_like(T[0])
    start = (x, x, zero - 1, zero, zero, none, jnp.asarray(g_norm == 0))
    h, *_, reduction, _, _ = jax.lax.while_loop(go_on, advance, start)
    return ModelStep(h, zero, _norm(h), reduction)


def _leading(T: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and vectors of T, of whose leading block alone where that has all the rows."""
    m = len(T)
    if m < 1.5 * SMALL:
        return jnp.linalg.eigh(T)

    def block(size):
        theta, S = jnp.linalg.eigh(T[:size, :size])
        full = jnp.eye(m, dtype=S.dtype).at[:size, :size].set(S)
        return jnp.concatenate([theta, jnp.full(m - size, theta[-1])]), full

    return jax.lax.cond(rows <= SMALL, lambda: block(SMALL), lambda: block(m))


def _to_boundary(x: jax.Array, p: jax.Array, radius: jax.Array) -> jax.Array:
    """τ ≥ 0 with ‖x + τ p‖ = radius."""
    xp, pp = jnp.sum(x * p), jnp.sum(p * p)
    left = jnp.maximum(radius - _norm(x), 0) * (radius + _norm(x))
    root = tree.root(xp**2 + pp * left)
    return jnp.where(xp > 0, _ratio(left, xp + root), _ratio(root - xp, pp))


def _climbed(newton: Any, s: jax.Array) -> jax.Array:
    """The limit of Newton's method from below the root, where it rises to it."""

    def go_on(search):
        s, before, steps = search
        rises = s - before > 2 * jnp.finfo(s.dtype).eps * s
        return (rises | (steps == 0)) & (steps < MOST)

    def advance(search):
        s, _, steps = search
        following = newton(s)
        return jnp.where(following > s, following, s), s, steps + 1

    return jax.lax.while_loop(go_on, advance, (s, s, jnp.zeros((), jnp.int32)))[0]


def _norm_and_slope(reduced: Reduced, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """‖h(s)‖ and −d‖h‖/ds."""
    d = reduced.gaps + s
    u = reduced.at(s)
    norm = _norm(u)
    return norm, jnp.sum(jnp.where(reduced.c == 0, 0, u**2 / d)) / norm


def _norm(u: jax.Array) -> jax.Array:
    return tree.root(jnp.sum(u**2))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """The quotient of two numbers that are not negative, 0 where both are."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
