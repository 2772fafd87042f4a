"""What kind of critical point a point is: minimum, maximum, saddle or degenerate, and why."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax

from gradkit import tree
from gradkit.krylov.drivers import Drive
from gradkit.krylov.lanczos import lanczos
from gradkit.operators import Operator
from gradkit.spectra.condition import EXACT_DIMENSION, STEPS
from gradkit.spectra.extremes import Eigenpairs, Wanted, eigenpairs, ended
from gradkit.spectra.ritz import RitzValues, ritz_values, zero_tol
from gradkit.validation import check_parameters

PyTree = Any
Kind = Literal["minimum", "maximum", "saddle", "degenerate", "not_critical"]


class CriticalPoint(NamedTuple):
    """`g = 0` and every λ > 0: minimum; every λ < 0: maximum; both signs: saddle, zeros or not.

    Else degenerate: an eigenvalue is zero, or not told from zero, and the others have one sign.

    Attributes:
        kind: "minimum", "maximum", "saddle", "degenerate" or "not_critical".
        gradient_norm: ‖g‖ [loss/param].
        negative: how many eigenvalues lie below −resolution; a lower bound if the evidence says so.
        evidence: a sentence with the numbers that the kind rests on.
        ends: the smallest and the largest eigenpair; one pair in one dimension. The first vector is
            the way down from a saddle.
        resolution: eigenvalues of at most this magnitude count as zero [loss/param²].
    """

    kind: Kind
    gradient_norm: float
    negative: int
    evidence: str
    ends: Eigenpairs
    resolution: float


def critical_point(
    A: Operator,
    grad: PyTree,
    *,
    key: jax.Array,
    tol: float = 1e-5,
    steps: int | None = None,
    drive: Drive | None = None,
) -> CriticalPoint:
    """Returns the kind of the point with Hessian A and gradient `grad`, with its evidence.

    A saddle is certain: two Rayleigh quotients of opposite sign, beyond the resolution, prove it. A
    minimum or a maximum is claimed only if the eigenvalue nearest to zero is beyond the resolution
    by more than its residual, and rests on no eigenvalue outside the extreme Ritz values of a
    random start. Where that is not known the kind is "degenerate", and the evidence says whether
    more steps might tell. With NaN it is "not_critical" or "degenerate".

    Returns Python strings and numbers: call it from the host, not inside `jit`.

    Source: Lanczos with full reorthogonalization; for `negative`, Cauchy interlacing: A has at
    least as many eigenvalues below any number as it has Ritz values there.
    Differs: the resolution is 10 √n ε max |θ|, ε the machine precision.

    Cost: `steps` + 2 products and `steps` + 3 trees of memory.

    Args:
        A: symmetric operator of dimension n, the Hessian.
        grad: the gradient at the same point, a tree like the operator's domain.
        key: random key of the start vector.
        tol: gradient norm up to which the point counts as critical [loss/param].
        steps: Lanczos steps, 1 to n; n by default up to 500 dimensions, and 100 beyond.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Raises:
        ValueError: steps out of range, or `grad` not in the operator's domain.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.array([2.0, 1.0, -1.0]) * v, jnp.zeros(3))
        >>> point = gk.critical_point(A, jnp.zeros(3), key=jax.random.key(0))
        >>> point.kind, point.negative
        ('saddle', 1)
    """
    A.check(grad)
    n = A.dimension
    if steps is None:
        steps = n if n <= EXACT_DIMENSION else STEPS
    krylov = lanczos(A, None, steps=steps, key=key, drive=drive)
    ritz = ritz_values(krylov, krylov.step)
    wanted = Wanted(smallest=1, largest=1) if n > 1 else Wanted(largest=1)
    ends = eigenpairs(A, ended(krylov, zero_tol(n, ritz.values.dtype)), wanted=wanted, drive=drive)
    return classified(grad, ends, ritz, n, tol=tol)


def classified(
    grad: PyTree, ends: Eigenpairs, ritz: RitzValues, n: int, *, tol: float
) -> CriticalPoint:
    """Returns what kind of point has this gradient, these extreme eigenpairs and Ritz values."""
    check_parameters(grad, member="critical_point", name="the leaves of grad")
    resolution, negative = float(ritz.resolution(n)), int(ritz.negative(n))
    gradient_norm = float(tree.norm(tree.as_arrays(grad)))
    kind = _kind(gradient_norm <= tol, ends, resolution)
    steps = int(ritz.degree)
    evidence = _evidence(gradient_norm, tol, ends, resolution, negative, steps, n)
    return CriticalPoint(kind, gradient_norm, negative, evidence, ends, resolution)


def _kind(critical: bool, ends: Eigenpairs, resolution: float) -> Kind:
    low, high = float(ends.values[0]), float(ends.values[-1])
    low_error, high_error = float(ends.residuals[0]), float(ends.residuals[-1])
    if not critical:
        return "not_critical"
    if low < -resolution and high > resolution:
        return "saddle"
    if low - low_error > resolution:
        return "minimum"
    if high + high_error < -resolution:
        return "maximum"
    return "degenerate"


def _evidence(
    gradient_norm: float,
    tol: float,
    ends: Eigenpairs,
    resolution: float,
    negative: int,
    steps: int,
    n: int,
) -> str:
    (low, *_), (low_error, *_) = ends.values.tolist(), ends.residuals.tolist()
    (*_, high), (*_, high_error) = ends.values.tolist(), ends.residuals.tolist()
    complete = steps == n
    basis = f"all {n}" if complete else f"the extreme Ritz values of {steps} steps for {n}"
    evidence = (
        f"gradient norm {gradient_norm:.1e}, {'at most' if gradient_norm <= tol else 'not within'} "
        f"the tolerance {tol:.1e}; eigenvalues from {low:.3g} ± {low_error:.1e} to {high:.3g} ± "
        f"{high_error:.1e} ({basis}), {'' if complete else 'at least '}{negative} of them negative "
        f"beyond the resolution {resolution:.1e}"
    )
    if low < -resolution <= high <= resolution:
        evidence += "; not a minimum, as one is negative"
    if high > resolution >= low >= -resolution:
        evidence += "; not a maximum, as one is positive"
    if not complete and not bool(ends.converged.all()):
        evidence += "; the ends did not converge, more steps may tell more"
    return evidence
