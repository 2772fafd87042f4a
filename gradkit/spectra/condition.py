"""The condition number of an operator, as the interval it is known to lie in."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradkit.krylov.drivers import Drive
from gradkit.krylov.lanczos import lanczos
from gradkit.operators import Operator
from gradkit.spectra.ritz import RitzValues, ritz_values

EXACT_DIMENSION = 500  # up to here all n Lanczos steps are taken, n² numbers of memory
STEPS = 100
FAILURE = 0.05  # probability with which a probabilistic bound may be exceeded

BASES = (
    "all eigenvalues, to rounding",
    "extreme Ritz values of a random start, upper bound with probability 0.95",
    "Ritz values with residuals: a lower bound only, the smallest |eigenvalue| is not resolved",
    "singular to working precision: a lower bound only",
    "not finite: the operator or its products hold NaN or infinity",
)


class Interval(NamedTuple):
    """`lower <= value <= upper` for max |λᵢ| / min |λⱼ|.

    Attributes:
        value: best estimate; the lower bound where only that is known.
        lower, upper: bounds; `upper` is infinite where none is known.
        code: index into `BASES`.
    """

    value: jax.Array
    lower: jax.Array
    upper: jax.Array
    code: jax.Array

    @property
    def basis(self) -> str:
        """What the bounds rest on, in words."""
        return BASES[int(self.code)]


def condition_number(
    A: Operator, *, key: jax.Array, shift: float | jax.Array = 0.0, drive: Drive | None = None
) -> Interval:
    """Returns an interval for the condition number max |λᵢ| / min |λⱼ| of A + shift · I.

    For a positive definite operator this is λ_max / λ_min. Up to 500 dimensions all eigenvalues
    are computed. Beyond, Ritz values with residuals give a lower bound; an upper one is known only
    if A + shift · I is found to be definite, by the bound on extreme Ritz values of a random start.

    Source: Kuczyński & Woźniakowski (1992), "Estimating the largest eigenvalue by the power and
    Lanczos algorithms with a random start", theorem 4.2.
    Differs: their bound, stated for λ_max of a positive semidefinite matrix relative to λ_max, is
    used for both ends relative to λ_max − λ_min, as Krylov spaces do not change with a shift.

    Cost: min(n, 500) products and trees of memory up to n = 500, else 100 of each.

    Args:
        A: symmetric operator of dimension n.
        key: random key of the start vector.
        shift: a multiple of the identity to add [the operator's unit].
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.
    """
    n = A.dimension
    steps = n if n <= EXACT_DIMENSION else STEPS
    krylov = lanczos(A, None, steps=steps, key=key, drive=drive)
    return interval(ritz_values(krylov, krylov.step), n, shift)


@jax.jit
def interval(ritz: RitzValues, n: int | jax.Array, shift: float | jax.Array = 0.0) -> Interval:
    """Returns what a decomposition from a random start says of an operator of dimension n.

    Args:
        ritz: the Ritz values of A.
        n: the dimension of A.
        shift: a multiple of the identity to add to A.
    """
    theta, residuals, degree = ritz
    genuine = jnp.isfinite(residuals)
    lowest, highest = theta[0], theta[jnp.sum(genuine) - 1]
    eps = jnp.finfo(theta.dtype).eps
    rounding = degree * eps * jnp.maximum(jnp.abs(lowest), jnp.abs(highest))
    magnitude = jnp.abs(theta + shift)
    largest = jnp.max(jnp.where(genuine, magnitude, 0))
    smallest = jnp.min(jnp.where(genuine, magnitude, jnp.inf))

    # Every Ritz value has an eigenvalue within its residual.
    near = jnp.min(jnp.where(genuine, magnitude + residuals, jnp.inf)) + rounding
    far = jnp.max(jnp.where(genuine, magnitude - residuals, 0)) - rounding
    lower = jnp.maximum(jnp.where(near > 0, far / near, jnp.where(far > 0, jnp.inf, 1)), 1)

    # An eigenvalue may lie outside [lowest, highest] by δ, with probability FAILURE at either end.
    complete = degree >= n
    decay = jnp.log(1.648 * jnp.sqrt(n) * 2 / FAILURE) / (2 * degree - 1)
    share = jnp.minimum(decay**2, 0.5)
    delta = jnp.where(complete, 0, share / (1 - 2 * share) * (highest - lowest)) + rounding
    definite = (lowest + shift > delta) | (highest + shift < -delta)
    least = jnp.where(complete | definite, smallest - delta, 0)
    bounded = least > 0
    upper = jnp.where(bounded, (largest + delta) / jnp.where(bounded, least, 1), jnp.inf)

    value = jnp.where(bounded, largest / jnp.where(bounded, smallest, 1), lower)
    singular = near <= 2 * rounding
    unbounded = jnp.where(singular | complete, 3, 2)
    code = jnp.where(bounded, jnp.where(complete, 0, 1), unbounded)
    code = jnp.where(jnp.isfinite(largest + smallest), code, 4)
    return Interval(value, lower, upper, code)
