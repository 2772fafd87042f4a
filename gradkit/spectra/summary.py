"""All of a spectrum in one call."""

from __future__ import annotations

from typing import NamedTuple

import jax

from gradkit.krylov.drivers import Drive, in_jit
from gradkit.operators import Operator
from gradkit.spectra.condition import Interval, interval
from gradkit.spectra.density import Density, density
from gradkit.spectra.extremes import Eigenpairs, Wanted, eigenpairs, search


class Spectrum(NamedTuple):
    """What was learned of an operator, each part with its error.

    Attributes:
        largest: the `top` largest eigenpairs, ascending.
        smallest: the `bottom` smallest, ascending.
        density: the spectral density.
        condition: interval for the condition number.
        products: products with the operator in all.
    """

    largest: Eigenpairs
    smallest: Eigenpairs
    density: Density
    condition: Interval
    products: jax.Array


def spectrum(
    A: Operator,
    *,
    key: jax.Array,
    top: int = 5,
    bottom: int = 5,
    probes: int = 10,
    steps: int = 80,
    tol: float | jax.Array = 1e-5,
    drive: Drive = in_jit,
) -> Spectrum:
    """Returns both ends of the spectrum of A, its density and its condition number.

    One Lanczos run serves both ends and the condition number.

    Cost: as `eigsh` with k = top + bottom, and `density`.

    Args:
        A: symmetric operator of dimension n.
        key: random key.
        top: how many of the largest eigenvalues.
        bottom: how many of the smallest; more than there are is all.
        probes: start vectors for the density.
        steps: Lanczos steps a probe.
        tol: eigenpairs are converged at a residual of tol times the largest |θ|.
        drive: `gk.in_jit` (default) or `gk.on_host`, which shows progress.

    Raises:
        ValueError: top, bottom, probes or steps out of range.
    """
    n = A.dimension
    for name, value in (("top", top), ("bottom", bottom)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    largest, smallest = Wanted(largest=min(top, n)), Wanted(smallest=min(bottom, n))
    both = Wanted(smallest=bottom, largest=top) if top + bottom < n else Wanted(largest=n)
    ends_key, density_key = jax.random.split(key)
    found = search(A, both, key=ends_key, tol=tol, drive=drive)
    curve = density(A, key=density_key, probes=probes, steps=steps, drive=drive)
    return Spectrum(
        largest=eigenpairs(A, found, wanted=largest),
        smallest=eigenpairs(A, found, wanted=smallest),
        density=curve,
        condition=interval(found.krylov, n),
        products=found.krylov.step + min(top, n) + min(bottom, n) + curve.products,
    )
