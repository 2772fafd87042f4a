"""Newton's method, exact: the Hessian written out and its linear system solved."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import tree
from gradkit.core import required
from gradkit.optimizers.lengths import stepping
from gradkit.states import Work
from gradkit.transforms.line_search import line_search
from gradkit.transforms.link import Link, link, transformation

PyTree = Any


class NewtonState(NamedTuple):
    """The last matrix: how many eigenvalues it had above, below and at its resolution.

    Attributes:
        positive, negative, zero: counts of eigenvalues of H + αI by sign, summing to n. None of
            the second and the third means that the direction is one of descent.
        work: of all updates so far.
    """

    positive: jax.Array
    negative: jax.Array
    zero: jax.Array
    work: Work

    def metrics(self) -> dict[str, jax.Array]:
        """Publishes the counts."""
        return {f"{name}_curvatures": getattr(self, name) for name in self._fields[:3]}


@transformation
def scale_by_newton(damping: optax.ScalarOrSchedule = 0.0) -> Link:
    """Scales a gradient g to d = (H + αI)⁻¹ g, to rounding.

    H is written out and decomposed into eigenvalues, of which those at the resolution of the dtype
    are left out: where H is singular, d is a solution of least squares, and finite. Eigenvalues
    come with the signs that no triangular factorization shows, as the state has them.

    Undamped, it is drawn to every critical point alike, saddles and maxima too, as those of the
    quadratic model are all it knows. Damping above −λ_min makes d a direction of descent.

    Source: Nocedal & Wright (2006), section 3.3; Ruiz (2001) for the units.
    Differs: rows and columns are brought to a largest entry near 1 first, by powers of two, so that
    parameters of different units do not drown each other; the resolution, n ε of the largest
    eigenvalue, is of that matrix. A gradient or a Hessian that is not finite gives NaN throughout.

    Cost: one gradient to linearize, n products, 3 n² numbers of memory, O(n³) operations.

    Args:
        damping: α [loss/param²]; 0 is Newton's own step.

    Raises:
        TypeError: `update` was called without the extra argument `curvature`, or with parameters
            that are complex.
    """

    def init(params, step):
        none = jnp.zeros((), jnp.int32)
        return NewtonState(none, none, none, Work.none())

    def update(updates, state, params, h, **extra):
        A = required(extra, "curvature", member="scale_by_newton")()
        _needs_real(A.domain)
        n = A.dimension
        if n == 0:
            return updates, state
        g, unravel = tree.ravel(optax.tree.cast_like(updates, A.domain))
        H = tree.wide(A.dense())
        d, values, resolution = _solution(H + h.damping.astype(H.dtype) * jnp.eye(n), tree.wide(g))
        positive, negative = jnp.sum(values > resolution), jnp.sum(values < -resolution)
        return unravel(d.astype(g.dtype)), NewtonState(
            positive=positive.astype(jnp.int32),
            negative=negative.astype(jnp.int32),
            zero=(n - positive - negative).astype(jnp.int32),
            work=state.work.plus(products=n),
        )

    return link(init, update, damping=damping)


@transformation
def newton(
    learning_rate: optax.ScalarOrSchedule | None = None,
    damping: optax.ScalarOrSchedule = 0.0,
) -> Link:
    """Newton's method: θ ← θ − η (H + damping · I)⁻¹ g, for small problems.

    One step reaches the minimum of a quadratic; near a minimum with positive definite H the error
    squares in each step. With η = 1 it may diverge from afar, or go to a saddle: see
    `scale_by_newton`. The line search (default) refuses what goes up, and stays where H is
    indefinite and −d no way down: `gk.levenberg_marquardt` goes on there. Its
    `update` takes what `observe` returns:
    `tx.update(point.grad, state, params, **point.extras)`, with `curvature=gk.hessian`; with
    `gk.gauss_newton` it is the Gauss–Newton method.

    Source: Nocedal & Wright (2006), section 3.3.

    Cost: n products and O(n³) operations an update.

    Args:
        learning_rate: η, a number or a schedule; None (default) searches the line.
        damping: multiple of the identity added to H [loss/param²].

    Raises:
        TypeError: `update` was called without the extra arguments of `observe`.
    """
    return stepping(scale_by_newton(damping), learning_rate, line_search()).named("newton")


def _solution(H: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """H⁺ g in the units in which H is near 1, the eigenvalues there, and their resolution."""
    H = (H + H.T) / 2
    unit = jnp.max(jnp.abs(H))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    s = _equilibrating(jnp.abs(H / unit))
    values, Q = jnp.linalg.eigh(s[:, None] * (H / unit) * s, symmetrize_input=False)
    resolution = len(g) * jnp.finfo(H.dtype).eps * jnp.max(jnp.abs(values))
    resolved = jnp.abs(values) > resolution
    kept = resolved | jnp.isnan(values)
    highest = jax.lax.Precision.HIGHEST
    along = jnp.matmul(s * g, Q, precision=highest)
    along = jnp.where(kept, along / jnp.where(kept, values, 1), 0)
    return s * jnp.matmul(Q, along, precision=highest) / unit, values, resolution


def _equilibrating(H: jax.Array) -> jax.Array:
    """Powers of two with which every row of s H s has a largest entry near 1."""

    def halve(_, s):
        row = jnp.max(s[:, None] * H * s, axis=1)
        return s / jnp.sqrt(jnp.where(row > 0, row, 1))  # halves the logarithm of what is off

    s = jax.lax.fori_loop(0, 10, halve, jnp.ones_like(H[0]))
    return jnp.ldexp(jnp.ones_like(s), jnp.frexp(s)[1])


def _needs_real(domain: PyTree) -> None:
    for x in jax.tree.leaves(domain):
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(
                "scale_by_newton writes the Hessian out and expects real parameters, got "
                f"{x.dtype}; gk.newton_cg needs products only and takes both"
            )
