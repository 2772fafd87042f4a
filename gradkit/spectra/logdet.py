"""The log-determinant of a positive definite operator, with its standard error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from gradkit.krylov import three_term
from gradkit.krylov.drivers import Drive
from gradkit.operators import Operator
from gradkit.spectra.density import Density, density
from gradkit.spectra.samples import FEWEST, mean_of
from gradkit.spectra.trace import Estimate


def logdet(
    A: Operator,
    *,
    key: jax.Array,
    shift: float | jax.Array = 0.0,
    probes: int = 10,
    steps: int = 50,
    drive: Drive | None = None,
) -> Estimate:
    """Returns log det(A + shift · I) = tr log(A + shift · I) by stochastic Lanczos quadrature.

    Each probe gives n Σ w log(θ + shift), with the nodes θ and weights w of its quadrature; value
    and standard error are those of their mean. The error of the quadrature comes on top of that.
    It is never negative, falls with every step, and as ((√κ − 1) / (√κ + 1))^(2 steps) at least,
    κ the condition number. It is judged by half as many steps: `converged` is whether these change
    the value by no more than one standard error.

    Source: Ubaru, Chen & Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature", algorithm 1.
    Differs: probes are uniform on the sphere; the comparison with half the steps.

    Cost: probes · steps products; five trees of memory.

    Args:
        A: symmetric operator of dimension n.
        key: random key of the probes.
        shift: a multiple of the identity to add [the operator's unit].
        probes: how many start vectors; four times as many halve the standard error.
        steps: Lanczos steps a probe, at least 2.
        drive: `gk.in_jit` or `gk.on_host`; by default what suits the operator.

    Returns:
        An `Estimate`, dimensionless. Its value is NaN where a node θ + shift is not positive to
        working precision: then neither is A + shift · I.

    Raises:
        ValueError: fewer probes than a standard error needs, or fewer than 2 steps.

    Example:
        >>> import jax, jax.numpy as jnp, gradkit as gk
        >>> A = gk.Operator(lambda v: jnp.linspace(1, 4, 1000) * v, jnp.zeros(1000))
        >>> estimate = gk.logdet(A, key=jax.random.key(0))
        >>> truth = float(jnp.log(jnp.linspace(1, 4, 1000)).sum())
        >>> bool(abs(estimate.value - truth) < 4 * estimate.stderr), bool(estimate.converged)
        (True, True)
    """
    if probes < FEWEST:
        raise ValueError(
            f"probes: expected at least {FEWEST}, which a standard error needs, got {probes}"
        )
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, to compare half with all, got {steps}")
    rules = density(A, key=key, probes=probes, steps=steps, drive=drive)
    return _logdet(rules, A.dimension, shift)


@jax.jit
def _logdet(rules: Density, n: int | jax.Array, shift: float | jax.Array) -> Estimate:
    theta, weights = rules.nodes + shift, rules.weights
    eps = jnp.finfo(theta.dtype).eps
    positive = jnp.min(theta) > eps * jnp.max(jnp.abs(rules.nodes))
    logs = jnp.where(positive, jnp.log(theta), jnp.nan)
    samples = n * jnp.sum(weights * logs, axis=1)
    value, stderr = mean_of(samples)

    coarse, coarse_weights = jax.lax.map(_halved, (theta, weights))
    coarse_value = n * jnp.mean(jnp.sum(coarse_weights * jnp.log(coarse), axis=1))
    rounding = theta.shape[1] * eps * n * jnp.max(jnp.abs(logs))
    converged = jnp.abs(coarse_value - value) <= stderr + rounding
    return Estimate(value, stderr, rules.products, converged)


def _halved(rule: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns the Gauss rule of half the nodes, by Lanczos on the discrete measure of all."""
    theta, weights = rule
    rows = len(theta) // 2
    A = Operator(Partial(jnp.multiply, theta), theta)
    state = three_term.init(jnp.sqrt(weights), rows=rows)
    state = jax.lax.fori_loop(0, rows, lambda _, s: three_term.step(A, s), state)
    off = jnp.diag(state.beta[:-1], 1)
    nodes, S = jnp.linalg.eigh(jnp.diag(state.alpha) + off + off.T)
    return jnp.clip(nodes, jnp.min(theta), jnp.max(theta)), S[0] ** 2
