"""The Frobenius norm of an operator, with its standard error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov.drivers import Drive
from gradkit.operators import Operator
from gradkit.spectra.samples import FEWEST, root_of, sampled, settled
from gradkit.spectra.trace import Estimate

PyTree = Any


def frobenius_norm(
    A: Operator,
    *,
    key: jax.Array,
    tol: float | jax.Array = 0.01,
    max_products: int = 1000,
    drive: Drive | None = None,
) -> Estimate:
    """Returns ‖A‖_F = √(Σ λᵢ²), the root of the mean of ‖Az‖² over random signs z.

    Source: Hutchinson (1990) for tr A² = E ‖Az‖²; Rice (2007), section 4.6, for the error of its
    root by the delta method, stderr(‖A‖_F) = stderr(‖A‖_F²) / (2 ‖A‖_F).
    Differs: stops by the standard error as `trace` does, with the same effect on its coverage.

    Cost: at most `max_products` products; two trees of memory.

    Args:
        A: symmetric operator.
        key: random key of the probes.
        tol: converged means a standard error of at most tol · ‖A‖_F; 0 spends all products.
        max_products: most products to spend.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        An `Estimate` [the operator's unit]. A tolerance not met and NaN are values in it.

    Raises:
        ValueError: fewer products than a standard error needs.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([1.0, 2.0, 2.0]) * v, jnp.zeros(3))
        >>> estimate = gk.frobenius_norm(A, key=jax.random.key(0))
        >>> float(estimate.value), float(estimate.stderr)
        (3.0, 0.0)
    """
    if max_products < FEWEST:
        raise ValueError(
            f"max_products: expected at least {FEWEST}, which a standard error needs, "
            f"got {max_products}"
        )
    twice = 2 * tol  # the relative error of the square is twice that of the norm
    s = sampled(
        _squared_image, A, key=key, tol=twice, most=max_products, until=settled, drive=drive
    )
    value, stderr = root_of(s.value, s.stderr)
    return Estimate(value, stderr, s.probes, (stderr <= tol * value) & jnp.isfinite(value))


def _squared_image(A: Operator, z: PyTree) -> jax.Array:
    Az = A.matvec(z)
    return tree.inner(Az, Az)
