"""The diagonal of an operator, with a standard error for each entry."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov.drivers import Drive
from gradkit.operators import Operator
from gradkit.spectra.samples import FEWEST, full, sampled
from gradkit.spectra.trace import Estimate

PyTree = Any


def diagonal(
    A: Operator, *, key: jax.Array, probes: int = 100, drive: Drive | None = None
) -> Estimate:
    """Returns the diagonal of A, the mean of z ⊙ Az over random signs z.

    The error of an entry is that of the rest of its row, √(Σⱼ≠ᵢ Aᵢⱼ² / probes); a diagonal A is
    found exactly.

    Source: Bekas, Kokiopoulou & Saad (2007), "An estimator for the diagonal of a matrix", with
    probes of ±1, whose denominator Σ z ⊙ z is the number of probes.

    Cost: one product a probe; four trees of memory, in float32 at least.

    Args:
        A: symmetric operator.
        key: random key of the probes.
        probes: how many; four times as many halve the error.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        An `Estimate` whose value and standard error are trees like the domain [the operator's
        unit]; `converged` is whether all entries are finite.

    Raises:
        ValueError: fewer probes than a standard error needs.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.zeros(3))
        >>> estimate = gk.diagonal(A, key=jax.random.key(0), probes=10)
        >>> estimate.value, estimate.stderr
        (Array([1., 2., 4.], dtype=float32), Array([0., 0., 0.], dtype=float32))
    """
    if probes < FEWEST:
        raise ValueError(
            f"probes: expected at least {FEWEST}, which a standard error needs, got {probes}"
        )
    s = sampled(_entries, A, key=key, most=probes, until=full, drive=drive)
    finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), (s.mean, s.squares))
    return Estimate(s.value, s.stderr, s.probes, jax.tree.reduce(jnp.logical_and, finite))


def _entries(A: Operator, z: PyTree) -> PyTree:
    return jax.tree.map(lambda z, Az: tree.wide(z) * tree.wide(Az), z, A.matvec(z))
