"""Multiples of an operator and of a right-hand side: thresholds must be relative.

The factors are 1e-12 and 1e12 as powers of two, which change no digit by themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import gradkit as gk

KEY = jax.random.key(0)
N = 24
SMALL, LARGE = 2.0**-40, 2.0**40

single = pytest.mark.parametrize("dtype", ["float32"], indirect=True)


def from_matrix(M, dtype):
    return gk.Operator(
        Partial(_product, jnp.asarray(M, dtype)), jax.ShapeDtypeStruct((len(M),), dtype)
    )


def _product(M, v):
    return jnp.matmul(M, v, precision="highest")


def rotated(eigenvalues):
    n = len(eigenvalues)
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    return (Q * eigenvalues) @ Q.T


INDEFINITE = rotated(np.concatenate([np.linspace(-2, -1, 8), np.linspace(1, 5, N - 8)]))
POSITIVE = rotated(np.linspace(1, 30, N))
SINGULAR = rotated(np.concatenate([np.zeros(3), np.linspace(1, 30, N - 3)]))


def of_eigsh(A, b):
    pairs = gk.eigsh(A, 5, which="BE", key=KEY)
    return [(1, pairs.values), (1, pairs.residuals), (0, pairs.converged), (0, pairs.products)]


def of_density(A, b):
    density = gk.density(A, key=KEY, probes=3, steps=12)
    means = jnp.sum(density.weights * density.nodes, axis=1)
    return [(1, means), (1, jnp.array(density.support)), (1, density.w1_bound)]


def of_curve(A, b):
    density = gk.density(A, key=KEY, probes=3, steps=12)
    low, high = density.support
    grid = jnp.linspace(low - high / 9, high + high / 9, 50)
    return [(1, density.width), (-1, density.curve(grid)), (-1, density.spread(grid))]


def of_condition_number(A, b):
    interval = gk.condition_number(A, key=KEY)
    regular = interval.upper < np.inf
    return [(0, interval.code), (0, jnp.where(regular, jnp.array(interval[:3]), jnp.inf))]


def of_critical_point(A, b):
    point = gk.critical_point(A, jnp.zeros_like(b), key=KEY)
    kinds = ["minimum", "maximum", "saddle", "degenerate"]
    counts = jnp.array([kinds.index(point.kind), point.negative])
    return [(0, counts), (1, point.resolution), (1, point.ends.values)]


def of_solve(solve):
    def quantities(A, b):
        s = solve(A, b)
        return [(-1, s.x), (0, s.residual_norm), (0, s.converged), (0, s.steps), (1, s.curvature)]

    return quantities


def of_estimate(estimate, **arguments):
    def quantities(A, b):
        e = estimate(A, key=KEY, **arguments)
        return [(1, e.value), (1, e.stderr), (0, e.products), (0, e.converged)]

    return quantities


QUANTITIES = {
    "eigsh": of_eigsh,
    "density": of_density,
    "curve": of_curve,
    "condition_number": of_condition_number,
    "critical_point": of_critical_point,
    "cg": of_solve(gk.cg),
    "minres": of_solve(gk.minres),
    "hutchinson": of_estimate(gk.trace, method="hutchinson"),
    "hutch++": of_estimate(gk.trace, max_products=60),
    "xtrace": of_estimate(gk.trace, method="xtrace"),
    "frobenius_norm": of_estimate(gk.frobenius_norm),
    "diagonal": of_estimate(gk.diagonal, probes=10),
}


@single
@pytest.mark.parametrize("factor", [SMALL, LARGE])
@pytest.mark.parametrize("name", QUANTITIES)
def test_a_multiple_of_an_operator_has_multiples_of_its_numbers(dtype, eps, name, factor):
    """The power says what each number is multiplied by; LAPACK's eigh keeps no digits exactly."""
    b = jnp.arange(1.0, N + 1, dtype=dtype)
    for M in (POSITIVE,) if name == "cg" else (INDEFINITE, POSITIVE, SINGULAR):
        A, rounding = from_matrix(M, dtype), 100 * eps * np.linalg.norm(M, 2)
        one = QUANTITIES[name](jnp.asarray(1, dtype) * A, b)
        many = QUANTITIES[name](jnp.asarray(factor, dtype) * A, b)
        for (power, got), (_, expected) in zip(many, one, strict=True):
            got = np.asarray(got, float) / factor**power
            expected = np.asarray(expected, float)
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=rounding)


@single
@pytest.mark.parametrize("factor", [SMALL, LARGE])
@pytest.mark.parametrize("solve", [gk.cg, gk.minres])
def test_a_multiple_of_a_right_hand_side_has_a_multiple_of_its_solution(dtype, eps, solve, factor):
    A = jnp.asarray(1, dtype) * from_matrix(POSITIVE, dtype)
    b = jnp.arange(1.0, N + 1, dtype=dtype)
    one, many = solve(A, b), solve(A, factor * b)
    assert (many.converged, many.steps) == (one.converged, one.steps) == (True, one.steps)
    np.testing.assert_allclose(many.x / factor, one.x, rtol=1e-3, atol=100 * eps * 24)
    assert many.curvature == pytest.approx(float(one.curvature), rel=1e-3)


@single
def test_the_logdet_of_a_multiple_is_shifted(dtype):
    A = from_matrix(POSITIVE, dtype)
    one, small, large = (
        gk.logdet(jnp.asarray(c, dtype) * A, key=KEY, steps=N) for c in (1, SMALL, LARGE)
    )
    assert one.converged
    for estimate, shift in ((small, np.log(SMALL)), (large, np.log(LARGE))):
        assert estimate.converged
        assert estimate.value - N * shift == pytest.approx(float(one.value), abs=1e-2)
        assert estimate.stderr == pytest.approx(float(one.stderr), rel=1e-3)


# 1e-18 and 1e18, whose squares float32 does not hold: there may be no answer, but no false one.

below_and_beyond = pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
GEOMETRIC = np.geomspace(1, 1000, N)


def out_of_range(factor, dtype):
    return jnp.asarray(factor, dtype) * from_matrix(rotated(GEOMETRIC), dtype)


@single
@below_and_beyond
def test_eigenpairs_out_of_range_are_right_or_not_converged(dtype, factor):
    """In 60 dimensions, as a short run loses little orthogonality."""
    exact = np.geomspace(1, 100, 60)
    A = jnp.asarray(factor, dtype) * from_matrix(rotated(exact), dtype)
    (_, values), _, (_, converged), _ = of_eigsh(A, None)
    error = np.abs(np.asarray(values, float) / factor - exact[[0, 1, -3, -2, -1]])
    assert (error[np.asarray(converged)] <= 0.05).all()


@single
@below_and_beyond
def test_a_minimum_out_of_range_is_a_minimum_or_degenerate(dtype, factor):
    point = gk.critical_point(out_of_range(factor, dtype), jnp.zeros(N, dtype), key=KEY)
    assert point.kind in ("minimum", "degenerate"), point.evidence


@single
@below_and_beyond
def test_a_condition_number_out_of_range_is_bounded_rightly_or_not(dtype, factor):
    interval = gk.condition_number(out_of_range(factor, dtype), key=KEY)
    assert interval.lower <= 1010  # residuals below 1e-19 are lost
    assert interval.upper >= 999


@single
@below_and_beyond
def test_a_density_out_of_range_is_near_or_not_finite(dtype, factor):
    density = gk.density(out_of_range(factor, dtype), key=KEY, probes=3, steps=12)
    means = np.sum(np.asarray(density.weights * density.nodes / factor, float), axis=1)
    bound = float(density.w1_bound) / factor
    assert abs(means.mean() - GEOMETRIC.mean()) <= bound or not np.isfinite(bound)
    assert float(density.nodes.max()) / factor <= 1001 or not np.isfinite(bound)


@single
@below_and_beyond
@pytest.mark.parametrize("name", ["hutchinson", "hutch++", "xtrace", "frobenius_norm"])
def test_an_estimate_out_of_range_is_near_or_not_converged(dtype, factor, name):
    truth = np.linalg.norm(GEOMETRIC) if name == "frobenius_norm" else GEOMETRIC.sum()
    (_, value), (_, stderr), _, (_, converged) = QUANTITIES[name](out_of_range(factor, dtype), None)
    error = abs(float(value) / factor - truth)
    assert error <= 5 * float(stderr) / factor + 1e-5 * truth or not converged


@single
@below_and_beyond
@pytest.mark.parametrize("solve", [gk.cg, gk.minres])
def test_a_solve_out_of_range_is_one_or_not_converged(dtype, factor, solve):
    b = np.linspace(1, 2, N)
    A = jnp.asarray(1, dtype) * from_matrix(POSITIVE, dtype)
    solution = solve(A, jnp.asarray(factor * b, dtype))
    residual = np.linalg.norm(b - POSITIVE @ (np.asarray(solution.x, float) / factor))
    assert residual <= 3e-5 * np.linalg.norm(b) or not solution.converged
