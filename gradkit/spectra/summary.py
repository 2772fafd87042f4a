"""All of a spectrum in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import tree
from gradkit.krylov.drivers import Drive
from gradkit.operators import Operator
from gradkit.spectra.check import check_operator
from gradkit.spectra.condition import Interval, interval
from gradkit.spectra.critical_point import CriticalPoint, classified
from gradkit.spectra.density import Density, density
from gradkit.spectra.extremes import Basis, Eigenpairs, Wanted, eigenpairs, search
from gradkit.spectra.memory import ALL, Memory, fitting
from gradkit.spectra.ritz import RitzValues, ritz_values
from gradkit.spectra.samples import FEWEST, mean_of, root_of
from gradkit.spectra.trace import Estimate

PyTree = Any


class Negatives(NamedTuple):
    """How many eigenvalues lie below −resolution.

    Attributes:
        at_least: so many are certain, up to rounding: there are as many Ritz values (Cauchy).
        estimate: by the density; NaN without one.
        stderr: its standard error over the probes.
        quadrature: by how much the quadrature may be off besides, the weight of the two nodes
            next to −resolution (Chebyshev, Markov, Stieltjes).
        resolution: eigenvalues of at most this magnitude count as zero [the operator's unit].
    """

    at_least: jax.Array
    estimate: jax.Array
    stderr: jax.Array
    quadrature: jax.Array
    resolution: jax.Array


class Spectrum(NamedTuple):
    """What was learned of an operator, each part with its error.

    Attributes:
        largest: the `top` largest eigenpairs, ascending.
        smallest: the `bottom` smallest, ascending.
        density: the spectral density; None without probes.
        condition: interval for the condition number.
        negative: the number of negative eigenvalues.
        trace, frobenius: trace and Frobenius norm from the products of the density; NaN where
            there are fewer than 4 probes.
        ritz: the Ritz values that ends, condition number and `negative` rest on.
        dimension: n.
        products: products with the operator in all.
        memory: how the vectors were kept within `memory_limit`; None without one.
    """

    largest: Eigenpairs
    smallest: Eigenpairs
    density: Density | None
    condition: Interval
    negative: Negatives
    trace: Estimate
    frobenius: Estimate
    ritz: RitzValues
    dimension: int
    products: jax.Array
    memory: Memory | None = None

    def shifted_condition(self, shift: float | jax.Array) -> Interval:
        """Returns the interval for the condition number of A + shift · I, without a product."""
        return interval(self.ritz, self.dimension, shift)

    def critical_point(self, grad: PyTree, *, tol: float = 1e-5) -> CriticalPoint:
        """Returns the kind of the point with this Hessian and gradient, without a product.

        Args:
            grad: the gradient at the same point, a tree like the operator's domain.
            tol: gradient norm up to which the point counts as critical [loss/param].
        """
        ends = ((self.smallest, 0), (self.largest, -1))[-min(2, self.dimension) :]
        values, vectors, residuals, converged = (
            jax.tree.map(lambda *x: jnp.stack(x), *field)
            for field in zip(*(_picked(pairs, i) for pairs, i in ends), strict=True)
        )
        pairs = Eigenpairs(values, vectors, residuals, converged, self.products)
        return classified(grad, pairs, self.ritz, self.dimension, tol=tol)


def _picked(pairs: Eigenpairs, i: int) -> list[PyTree]:
    fields = pairs.values, pairs.vectors, pairs.residuals, pairs.converged
    return [jax.tree.map(lambda x: x[i], field) for field in fields]


def spectrum(
    A: Operator,
    *,
    key: jax.Array,
    top: int = 5,
    bottom: int = 5,
    probes: int = 10,
    steps: int = 80,
    tol: float | jax.Array = 1e-5,
    max_products: int | None = None,
    basis: int | Basis | None = None,
    memory_limit: float | None = None,
    check: bool = True,
    drive: Drive | None = None,
) -> Spectrum:
    """Returns both ends of the spectrum of A, its density and all that follows from them.

    One Lanczos run serves both ends, the condition number and the count of negative eigenvalues;
    the probes of the density serve trace, Frobenius norm and the estimate of that count.

    Cost: as `eigsh` with k = top + bottom, and then `density`; 4 products for the check.

    Args:
        A: symmetric operator of dimension n.
        key: random key.
        top: how many of the largest eigenvalues.
        bottom: how many of the smallest; more than there are is all.
        probes: start vectors for the density; 0 for none.
        steps: Lanczos steps a probe.
        tol: eigenpairs are converged at a residual of tol times the largest |θ|.
        max_products: most products to spend on the ends, as for `eigsh`.
        basis: most vectors to keep, as for `eigsh`.
        memory_limit: the most bytes of a device's memory to take besides the operator's own
            arrays, outside `jit`: `basis` is chosen by it, and `memory` of the result says how.
            Vectors split over devices are counted so in Explicit mode, else as if whole.
            Compiles one product more, of which XLA tells what it takes.
        check: test the operator first, by `check_operator`; left out inside `jit`.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Raises:
        ValueError: top, bottom, probes or steps out of range, or the operator failed the check: it
            is not linear, not symmetric, not repeatable, or its products are not finite; nothing
            fits `memory_limit`, or it is given inside `jit` or with `basis`.
    """
    n = A.dimension
    for name, value, least in (("top", top, 1), ("bottom", bottom, 1), ("probes", probes, 0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    check_key, ends_key, density_key = jax.random.split(key, 3)
    traced, memory = tree.traced(A, key), None
    if memory_limit is not None:
        if traced or basis is not None:
            came = "within jit" if traced else "with basis"
            raise ValueError(f"memory_limit: chooses the basis outside jit; got it {came}")
        memory, drive = fitting(
            A, memory_limit, top=min(top, n), bottom=min(bottom, n), most=max_products, drive=drive
        )
        basis = None if memory.strategy == ALL else memory.basis
    checked = check and not traced
    if checked:
        _require_sound(A, check_key)
    largest, smallest = Wanted(largest=min(top, n)), Wanted(smallest=min(bottom, n))
    both = Wanted(smallest=bottom, largest=top) if top + bottom < n else Wanted(largest=n)
    found = search(
        A, both, key=ends_key, tol=tol, max_products=max_products, basis=basis, drive=drive
    )
    ritz = ritz_values(found.krylov, jnp.minimum(found.products, found.krylov.rows))
    ends = [eigenpairs(A, found, wanted=wanted, drive=drive) for wanted in (largest, smallest)]
    found = found._replace(krylov=None)  # its basis is given back
    curve = None
    if probes:
        curve = density(A, key=density_key, probes=probes, steps=steps, drive=drive)
    spent = found.products + min(top, n) + min(bottom, n) + (4 if checked else 0)
    return Spectrum(
        *ends,
        density=curve,
        condition=interval(ritz, n),
        negative=_negatives(curve, ritz, n),
        trace=_moment(curve, n, power=1),
        frobenius=_moment(curve, n, power=2),
        ritz=ritz,
        dimension=n,
        products=spent if curve is None else spent + curve.products,
        memory=memory,
    )


def _require_sound(A: Operator, key: jax.Array) -> None:
    check = check_operator(A, key=key)
    if not check.ok:
        raise ValueError(
            "the operator is not a symmetric linear map that gives the same product twice, and has "
            f"no spectrum to compute (check=False goes on all the same):\n{check.report()}"
        )


def _negatives(curve: Density | None, ritz: RitzValues, n: int) -> Negatives:
    resolution = ritz.resolution(n)
    estimate = stderr = quadrature = jnp.full_like(resolution, jnp.nan)
    if curve is not None:
        below = curve.nodes < -resolution
        counts = n * jnp.sum(jnp.where(below, curve.weights, 0), axis=1)
        estimate, stderr = mean_of(counts)
        last, weights = jnp.sum(below, axis=1), jnp.pad(curve.weights, ((0, 0), (1, 1)))
        beside = jnp.take_along_axis(weights, jnp.stack([last, last + 1], axis=1), axis=1)
        quadrature = n * jnp.mean(jnp.sum(beside, axis=1))
    return Negatives(ritz.negative(n), estimate, stderr, quadrature, resolution)


def _moment(curve: Density | None, n: int, *, power: int) -> Estimate:
    """(Σ λᵖ)^(1/p): vᵀA v and vᵀA²v of each probe are moments of its quadrature rule."""
    if curve is None or len(curve.nodes) < FEWEST:
        nan = jnp.asarray(jnp.nan)
        return Estimate(nan, nan, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    mean, stderr = mean_of(n * jnp.sum(curve.weights * curve.nodes**power, axis=1))
    if power == 2:
        mean, stderr = root_of(mean, stderr)
    return Estimate(mean, stderr, curve.products, jnp.isfinite(mean))
