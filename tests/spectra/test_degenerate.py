"""Operators, starts and systems at the edge: nothing is NaN, found twice or lost without a word."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import gradkit as gk

KEY = jax.random.key(0)
N = 24

single = pytest.mark.parametrize("dtype", ["float32"], indirect=True)

SPECTRA = {
    "zero": np.zeros(N),
    "identity": np.ones(N),
    "rank one": np.where(np.arange(N) < N - 1, 0.0, 5.0),
    "projection": np.repeat([0.0, 1.0], [N - 7, 7]),
    "2, 3 and 5 times": np.repeat([-1.0, 0.5, 2.0, 3.0], [N - 10, 2, 3, 5]),
}
every_spectrum = pytest.mark.parametrize("name", SPECTRA)


def diagonal(values, dtype):
    d = jnp.asarray(values, dtype)
    return gk.Operator(Partial(jnp.multiply, d), d)


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


def assert_orthonormal(vectors, eps):
    V = np.asarray(vectors, np.float64)
    np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=100 * eps)


@every_spectrum
def test_all_eigenpairs_as_often_as_they_are(dtype, eps, name):
    exact = SPECTRA[name]
    pairs = gk.eigsh(from_matrix(rotated(exact), dtype), N, key=KEY, tol=50 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact, atol=50 * eps * np.abs(exact).max())
    assert_orthonormal(pairs.vectors, eps)


@single
@every_spectrum
def test_a_block_finds_as_many_copies_also_restarted(dtype, eps, name):
    exact = SPECTRA[name]
    A = from_matrix(rotated(exact), dtype)
    pairs = gk.eigsh(A, 5, key=KEY, tol=50 * eps, block=5, basis=12)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact[-5:], atol=50 * eps * 5)
    assert_orthonormal(pairs.vectors, eps)


@single
def test_further_copies_are_found_where_the_space_is_exhausted(dtype):
    """Five distinct eigenvalues, so after five steps, with most of the products to spend left."""
    exact = np.repeat([-2.0, 1.0, 2.0, 5.0, 7.0], 12)
    pairs = gk.eigsh(from_matrix(rotated(exact), dtype), 4, key=KEY)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact[-4:], atol=1e-4)


@single
@every_spectrum
def test_more_steps_than_dimensions_weigh_every_eigenvalue_rightly(dtype, eps, name):
    exact = SPECTRA[name]
    density = gk.density(from_matrix(rotated(exact), dtype), key=KEY, probes=60, steps=N + 10)
    nodes, weights = np.asarray(density.nodes, float), np.asarray(density.weights, float)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=50 * eps)
    scale = np.abs(exact).max()
    assert exact.min() - 100 * eps * scale <= nodes.min()
    assert nodes.max() <= exact.max() + 100 * eps * scale
    for value in np.unique(exact):
        share = np.sum(weights * (np.abs(nodes - value) <= 1e-3), axis=1)
        error = share.std(ddof=1) / np.sqrt(len(share))
        assert abs(share.mean() - np.mean(exact == value)) <= 4 * error + 50 * eps


@single
@pytest.mark.parametrize(
    ("name", "kind", "negative", "condition"),
    [
        ("zero", "degenerate", 0, np.inf),
        ("identity", "minimum", 0, 1.0),
        ("rank one", "degenerate", 0, np.inf),
        ("projection", "degenerate", 0, np.inf),
        ("2, 3 and 5 times", "saddle", N - 10, 6.0),
    ],
)
def test_kind_and_condition_number(dtype, eps, name, kind, negative, condition):
    A = from_matrix(rotated(SPECTRA[name]), dtype)
    point = gk.critical_point(A, jnp.zeros(N, dtype), key=KEY)
    assert (point.kind, point.negative) == (kind, negative)
    interval = gk.condition_number(A, key=KEY)
    assert interval.lower <= interval.value <= interval.upper
    assert interval.lower <= condition <= interval.upper
    if np.isfinite(condition):
        assert interval.upper - interval.lower <= 1e3 * eps * condition**2


@single
@every_spectrum
def test_the_trace_of_few_distinct_eigenvalues(dtype, eps, name):
    exact = SPECTRA[name]
    A = from_matrix(rotated(exact), dtype)
    estimate = gk.trace(A, key=KEY, tol=0.0, max_products=40)
    error = 4 * estimate.stderr + 500 * eps * np.abs(exact).sum()
    assert abs(estimate.value - exact.sum()) <= error


@single
@pytest.mark.parametrize("value", [0.0, -2.0])
def test_one_dimension_has_one_point(dtype, eps, value):
    A = diagonal([value], dtype)
    density = gk.density(A, key=KEY, probes=2, steps=7)
    mean = np.sum(np.asarray(density.nodes * density.weights, float), axis=1)
    np.testing.assert_allclose(mean, value, rtol=10 * eps)
    assert density.w1_bound <= 20 * eps * abs(value)
    interval = gk.condition_number(A, key=KEY)
    assert interval.lower <= 1 <= interval.upper
    assert (interval.upper == np.inf) == (value == 0)


# Starts.


def test_a_start_at_an_eigenvector_goes_on_to_the_others(dtype, eps):
    exact = np.linspace(-1, 3, N)
    A = diagonal(exact, dtype)
    v0 = jnp.zeros(N, dtype).at[5].set(7.0)
    pairs = gk.eigsh(A, 3, key=KEY, v0=v0, tol=30 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact[-3:], atol=50 * eps * 3)
    assert_orthonormal(pairs.vectors, eps)


@single
def test_a_start_in_an_invariant_subspace_goes_on_to_the_others(dtype, eps):
    """The largest eigenvalue is in it, the next three are not, and it ends after three steps."""
    exact = np.linspace(-1, 3, N)
    v0 = jnp.zeros(N, dtype).at[jnp.array([0, 3, N - 1])].set(1.0)
    pairs = gk.eigsh(diagonal(exact, dtype), 4, key=KEY, v0=v0, tol=30 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact[-4:], atol=50 * eps * 3)


@single
def test_a_start_orthogonal_to_the_answer_finds_eigenpairs_all_the_same(dtype, eps):
    """All of them, if all are asked for; else none that is none, and none twice."""
    exact = np.linspace(-1, 3, N)
    A = diagonal(exact, dtype)
    v0 = jnp.ones(N, dtype).at[N - 1].set(0.0)
    everything = gk.eigsh(A, N, key=KEY, v0=v0)
    assert everything.converged.all()
    np.testing.assert_allclose(everything.values, exact, atol=50 * eps * 3)
    some = gk.eigsh(A, 3, key=KEY, v0=v0, tol=30 * eps)
    assert some.converged.all()
    found = np.searchsorted(exact, np.asarray(some.values, float) - 1e-3)
    np.testing.assert_allclose(some.values, exact[found], atol=50 * eps * 3)
    assert len(set(found)) == 3
    assert found[0] >= N - 4


@single
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_length_of_a_start_does_not_matter(dtype, eps, scale):
    exact = np.linspace(-1, 3, N)
    v0 = scale * jnp.arange(1.0, N + 1, dtype=dtype)
    pairs = gk.eigsh(diagonal(exact, dtype), 3, key=KEY, v0=v0, tol=30 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact[-3:], atol=50 * eps * 3)


@single
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_start_that_is_none_is_not_called_converged(dtype, value):
    v0 = jnp.full(N, value, dtype)
    pairs = gk.eigsh(diagonal(np.linspace(-1, 3, N), dtype), 3, key=KEY, v0=v0)
    assert not pairs.converged.any()


# Solves.


@single
@pytest.mark.parametrize("solve", [gk.cg, gk.minres])
@pytest.mark.parametrize("name", ["identity", "rank one", "projection"])
def test_a_right_hand_side_in_an_eigenspace_takes_one_step(dtype, eps, solve, name):
    M = rotated(SPECTRA[name])
    A, value = from_matrix(M, dtype), SPECTRA[name][-1]
    b = jnp.asarray(M @ np.arange(1.0, N + 1), dtype)
    solution = solve(A, b, tol=100 * eps, max_steps=3 * N)
    assert solution.converged
    assert solution.steps == 1
    np.testing.assert_allclose(solution.x, b / value, atol=100 * eps * float(jnp.abs(b).max()))


@single
@pytest.mark.parametrize("solve", [gk.cg, gk.minres])
def test_the_zero_operator_solves_nothing_and_says_so(dtype, solve):
    b = jnp.arange(1.0, N + 1, dtype=dtype)
    solution = solve(diagonal(np.zeros(N), dtype), b)
    assert not solution.converged
    assert not np.any(solution.x)
    assert solution.residual_norm == jnp.linalg.norm(b)
    assert solution.curvature <= 0
    assert solution.steps <= 2


@single
@pytest.mark.parametrize("solve", [gk.cg, gk.minres])
def test_an_inconsistent_system_is_not_solved(dtype, eps, solve):
    """A projection and a right-hand side with a part outside its range, of norm 2."""
    d = np.repeat([1.0, 0.0], [7, N - 7])
    b = jnp.asarray(np.where(d > 0, np.arange(N), 0), dtype).at[-4:].set(1.0)
    solution = solve(diagonal(d, dtype), b)
    assert not solution.converged
    assert np.isfinite(solution.x).all()
    assert 2 - 10 * eps <= solution.residual_norm <= jnp.linalg.norm(b)
