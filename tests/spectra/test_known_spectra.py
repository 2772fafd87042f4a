"""Matrices whose spectra are known by a formula, applied without ever being written down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.stats import wasserstein_distance

import gradkit as gk

KEY = jax.random.key(0)

single = pytest.mark.parametrize("dtype", ["float32"], indirect=True)
double = pytest.mark.parametrize("dtype", ["float64"], indirect=True)


def diagonal(values, dtype):
    d = jnp.asarray(values, dtype)
    return gk.Operator(Partial(jnp.multiply, d), d)


def moments(density, power):
    """The mean of a power of the eigenvalues, and its standard error over the probes."""
    nodes, weights = np.asarray(density.nodes, float), np.asarray(density.weights, float)
    each = np.sum(weights * nodes**power, axis=1)
    return each.mean(), each.std(ddof=1) / np.sqrt(len(each))


def w1(density, eigenvalues):
    """Wasserstein-1 distance of a density to equally weighted eigenvalues or quantiles."""
    nodes, weights = np.asarray(density.nodes, float), np.asarray(density.weights, float)
    return wasserstein_distance(nodes.ravel(), eigenvalues, weights.ravel())


def rows(vectors):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(vectors), np.float64)


# Strakoš (1991): eigenvalues that crowd at the lower end, on which Lanczos loses orthogonality.


def strakos(n=48, smallest=0.1, largest=100.0, rho=0.8):
    i = np.arange(1, n + 1)
    return smallest + (i - 1) / (n - 1) * (largest - smallest) * rho ** (n - i)


@pytest.mark.parametrize(
    ("dtype", "k", "basis"),
    [("float32", 48, None), ("float64", 10, 24)],
    indirect=["dtype"],
)
def test_strakos_eigenvalues_are_found_once_each(dtype, eps, k, basis):
    exact = strakos()[-k:]
    pairs = gk.eigsh(diagonal(strakos(), dtype), k, key=KEY, tol=30 * eps, basis=basis)
    assert pairs.converged.all()
    values, residuals = (np.asarray(x, float) for x in (pairs.values, pairs.residuals))
    rounding = 20 * eps * 100
    distances = np.abs(exact[:, None] - strakos())
    gaps = np.min(np.where(distances > 0, distances, np.inf), axis=1)
    assert (np.abs(values - exact) <= residuals**2 / gaps + rounding).all()
    V = rows(pairs.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(k), atol=100 * eps)


@single
def test_strakos_copies_share_the_weight_of_their_eigenvalue(dtype):
    """60 steps in 48 dimensions, without reorthogonalization: there are copies of the largest."""
    density = gk.density(diagonal(strakos(), dtype), key=KEY, probes=60, steps=60)
    for power in (1, 2, 3):
        mean, error = moments(density, power)
        assert abs(mean - np.mean(strakos() ** power)) <= 4 * error
    nodes, weights = np.asarray(density.nodes, float), np.asarray(density.weights, float)
    for value in strakos()[-4:]:
        near = np.abs(nodes - value) < 1e-3
        assert near.sum(axis=1).max() > 1
        each = np.sum(weights * near, axis=1)
        assert abs(each.mean() - 1 / 48) <= 4 * each.std(ddof=1) / np.sqrt(60)


# Wilkinson (1965): simple eigenvalues, of which the largest agree in pairs to 14 digits.


def wilkinson(m, dtype):
    d = jnp.abs(jnp.arange(-m, m + 1, dtype=dtype))
    dense = (
        np.diag(np.abs(np.arange(-m, m + 1.0))) + np.eye(2 * m + 1, k=1) + np.eye(2 * m + 1, k=-1)
    )
    return gk.Operator(Partial(_plus_neighbors, d), d), np.linalg.eigvalsh(dense)


def _plus_neighbors(d, v):
    return (d * v).at[1:].add(v[:-1]).at[:-1].add(v[1:])


def test_wilkinson_pairs_are_two_each(dtype, eps):
    A, exact = wilkinson(10, dtype)
    assert exact[-1] - exact[-2] < 1e-13
    pairs = gk.eigsh(A, 21, key=KEY, tol=30 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact, atol=20 * eps * exact[-1])
    V = rows(pairs.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(21), atol=100 * eps)


@double
def test_wilkinson_pairs_are_two_each_to_blocks_of_two(dtype):
    A, exact = wilkinson(40, dtype)
    pairs = gk.eigsh(A, 6, key=KEY, tol=1e-5, block=2)
    assert pairs.converged.all()
    assert pairs.products < 81
    np.testing.assert_allclose(pairs.values, exact[-6:], atol=1e-5 * exact[-1])


# Laplacians with Dirichlet ends: sums of 2 − 2 cos(kπ / (n + 1)) over the axes.


def laplacian(shape, dtype):
    return gk.Operator(_laplacian, jax.ShapeDtypeStruct(shape, dtype))


def _laplacian(v):
    w = 2 * v.ndim * v
    for axis in range(v.ndim):
        padded = jnp.pad(v, [(int(other == axis),) * 2 for other in range(v.ndim)])
        w -= jax.lax.slice_in_dim(padded, 2, None, axis=axis)
        w -= jax.lax.slice_in_dim(padded, 0, -2, axis=axis)
    return w


def laplacian_eigenvalues(shape):
    total = np.zeros(1)
    for n in shape:
        total = np.add.outer(total, 2 - 2 * np.cos(np.arange(1, n + 1) * np.pi / (n + 1))).ravel()
    return np.sort(total)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float32", (64,)), ("float32", (8, 8)), ("float64", (4, 4, 4))],
    indirect=["dtype"],
)
def test_small_laplacians_have_all_their_eigenvalues_as_often_as_they_are(dtype, eps, shape):
    exact = laplacian_eigenvalues(shape)
    n = exact.size
    pairs = gk.eigsh(laplacian(shape, dtype), n, key=KEY)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact, atol=20 * eps * exact[-1])
    V = rows(pairs.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(n), atol=100 * eps)


@double
def test_a_block_finds_copies_before_the_space_is_exhausted(dtype):
    shape = (4, 4, 4)
    exact = laplacian_eigenvalues(shape)
    pairs = gk.eigsh(laplacian(shape, dtype), 4, which="BE", key=KEY, tol=1e-5, block=3)
    expected = exact[[0, 1, -2, -1]]
    assert pairs.converged.all()
    assert pairs.products < exact.size
    np.testing.assert_allclose(pairs.values, expected, atol=1e-5 * exact[-1])


@double
def test_a_single_start_leaves_out_copies_only(dtype):
    """It sees one vector of each eigenspace, others by rounding: no gap, nor one too many."""
    exact = laplacian_eigenvalues((8, 8))
    pairs = gk.eigsh(laplacian((8, 8), dtype), 4, key=KEY, tol=1e-5)
    assert pairs.converged.all()
    values, near = np.asarray(pairs.values, float), 1e-5 * exact[-1]
    for value in exact[exact >= values[0] - near]:
        found, copies = (np.sum(np.abs(x - value) <= near) for x in (values, exact))
        assert 1 <= found <= copies


@pytest.mark.slow
@single
@pytest.mark.parametrize("shape", [(1000, 1000), (100, 100, 100)])
def test_a_million_dimensions_in_few_products(dtype, eps, shape):
    A, exact, axes = laplacian(shape, dtype), laplacian_eigenvalues(shape), len(shape)
    n, rounding = exact.size, 50 * eps * exact[-1]

    pairs = gk.eigsh(A, 3, key=KEY, max_products=23, tol=1e-5, basis=12)
    values, residuals = (np.asarray(x, float) for x in (pairs.values, pairs.residuals))
    V = np.asarray(pairs.vectors, float)
    AV = np.stack([A @ v for v in pairs.vectors]).astype(float)
    true = np.linalg.norm(AV.reshape(3, n) - values[:, None] * V.reshape(3, n), axis=1)
    np.testing.assert_allclose(residuals, true, rtol=1e-3, atol=rounding)
    assert (nearest(exact, values) <= residuals + rounding).all()
    assert 0.97 * exact[-1] < values[-1] <= exact[-1] + rounding
    assert pairs.products == 23
    assert (np.asarray(pairs.converged) == (residuals <= 1e-5 * values[-1])).all()
    assert not pairs.converged.any()

    density = gk.density(A, key=KEY, probes=2, steps=12)
    assert w1(density, exact) <= density.w1_bound < exact[-1] / 4
    for power in (1, 2):
        error = np.sqrt(2 * np.var(exact**power) / (2 * n))  # of the mean over 2 probes
        truth = 2 * axes if power == 1 else 4 * axes**2 + 2 * np.sum(1 - 1 / np.array(shape))
        assert np.mean(exact**power) == pytest.approx(truth, rel=1e-12)
        assert abs(moments(density, power)[0] - truth) <= 5 * error + rounding * exact[-1]

    trace = gk.trace(A, key=KEY, method="hutchinson")
    assert abs(trace.value - 2 * axes * n) <= 4 * trace.stderr
    assert trace.converged


def nearest(exact, values):
    """The distance of each value to the eigenvalue nearest to it."""
    i = np.clip(np.searchsorted(exact, values), 1, exact.size - 1)
    return np.minimum(np.abs(exact[i] - values), np.abs(exact[i - 1] - values))


# Random matrices: Wigner's semicircle, the law of Marchenko and Pastur, outliers of Baik, Ben Arous
# and Péché. The largest eigenvalue has the fluctuations of Tracy and Widom: mean −1.2, deviation
# 1.3 of their unit.


def from_matrix(M, dtype):
    M = jnp.asarray(M, dtype)
    return gk.Operator(Partial(_product, M), jax.ShapeDtypeStruct((len(M),), dtype))


def _product(M, v):
    return jnp.matmul(M, v, precision="highest")


def covariance(X, dtype):
    """X Xᵀ / m, by one product with X and one with Xᵀ."""
    X = jnp.asarray(X, dtype)
    return gk.Operator(Partial(_covariance, X), jax.ShapeDtypeStruct((len(X),), dtype))


def _covariance(X, v):
    Xv = jnp.matmul(X.T, v, precision="highest")
    return jnp.matmul(X, Xv, precision="highest") / X.shape[1]


def quantiles(density, low, high, n=4000):
    """Points that stand for equal shares of a law on [low, high]."""
    angle = np.linspace(0, np.pi, 100_001)  # square roots at the edges become smooth
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    share = np.concatenate([[0], np.cumsum(density((x[1:] + x[:-1]) / 2) * np.diff(x))])
    assert share[-1] == pytest.approx(1, abs=1e-6)
    return np.interp((np.arange(n) + 0.5) / n, share, x)


def assert_near_law(density, law, n):
    """A probe has variance F(1 − F) · 2/n ≤ 1/(2n) at a point; the matrix errs by log(n) / n."""
    length = law[-1] - law[0]
    finite = length * np.log(n) / n
    distance = w1(density, law)
    assert distance <= density.w1_bound + finite
    assert distance <= length / np.sqrt(2 * n * len(density.nodes)) + finite


@pytest.mark.slow
@single
def test_the_semicircle(dtype):
    n = 500
    G = np.random.default_rng(0).normal(size=(n, n))
    A = from_matrix((G + G.T) / np.sqrt(2 * n), dtype)
    found = gk.spectrum(
        A, key=KEY, top=1, bottom=1, probes=8, steps=40, tol=1e-3, basis=40, check=False
    )
    law = quantiles(lambda x: np.sqrt(4 - x**2) / (2 * np.pi), -2, 2)
    assert_near_law(found.density, law, n)
    unit = n ** (-2 / 3)
    assert abs(found.largest.values[0] - 2 + 1.2 * unit) <= 4 * 1.3 * unit
    assert abs(found.smallest.values[0] + 2 - 1.2 * unit) <= 4 * 1.3 * unit
    assert found.condition.upper == np.inf


@single
def test_the_law_of_marchenko_and_pastur(dtype):
    n, m, gamma = 500, 1000, 0.5
    X = np.random.default_rng(0).normal(size=(n, m))
    A = from_matrix(X @ X.T / m, dtype)
    found = gk.spectrum(
        A, key=KEY, top=1, bottom=1, probes=8, steps=40, tol=1e-3, basis=40, check=False
    )
    low, high = (1 - np.sqrt(gamma)) ** 2, (1 + np.sqrt(gamma)) ** 2

    def law(x):
        return np.sqrt((high - x) * (x - low)) / (2 * np.pi * gamma * x)

    assert_near_law(found.density, quantiles(law, low, high), n)
    lower_unit, unit = edge_units(n, m)
    assert abs(found.largest.values[0] - high + 1.2 * unit) <= 4 * 1.3 * unit
    assert abs(found.smallest.values[0] - low - 1.2 * lower_unit) <= 4 * 1.3 * lower_unit
    assert found.condition.lower <= np.linalg.cond(X) ** 2 <= found.condition.upper


def edge_units(n, m):
    """Johnstone (2001), and its mirror image at the lower edge."""
    roots = np.sqrt(m) + np.array([-1, 1]) * np.sqrt(n)
    return np.abs(roots * np.cbrt(1 / np.sqrt(n) + np.array([-1, 1]) / np.sqrt(m))) / m


@single
@pytest.mark.parametrize("spike", [1.3, 3.0, 6.0])
def test_a_spike_leaves_the_bulk_above_its_threshold_only(dtype, spike):
    """Baik & Silverstein (2006); Paul (2007) for deviation and angle."""
    n, m = 500, 1000
    gamma, edge, unit = n / m, (1 + np.sqrt(n / m)) ** 2, edge_units(n, m)[1]
    X = np.random.default_rng(1).normal(size=(n, m))
    X[0] *= np.sqrt(spike)
    pairs = gk.eigsh(covariance(X, dtype), 2, key=KEY, tol=1e-3)
    assert pairs.converged.all()
    second, first = np.asarray(pairs.values, float)
    cosine = float(pairs.vectors[1, 0] ** 2)
    if spike < 1 + np.sqrt(gamma):
        assert abs(first - edge + 1.2 * unit) <= 4 * 1.3 * unit
        assert cosine < 0.1
        return
    excess = gamma / (spike - 1) ** 2
    outlier = spike * (1 + gamma / (spike - 1))
    assert abs(first - outlier) <= 4 * spike * np.sqrt(2 * (1 - excess) / m)
    assert abs(second - edge + 1.2 * unit) <= 4 * 1.3 * unit
    assert cosine == pytest.approx((1 - excess) / (1 + gamma / (spike - 1)), abs=0.1)
