from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import eigsh as scipy_eigsh

import gradkit as gk

SPECTRA = {
    "outliers": np.concatenate([np.linspace(-0.5, 0.5, 55), [-6, 5, 20, 50, 100]]),
    "multiple": np.repeat([-2.0, 1.0, 2.0, 7.0], 15),
    "identity": np.ones(60),
    "zero": np.zeros(60),
    "rank one": 3 * np.eye(1, 60)[0],
}


def wanted(eigenvalues, k, which):
    ascending = np.sort(eigenvalues)
    if which == "LA":
        return ascending[-k:]
    if which == "SA":
        return ascending[:k]
    if which == "BE":
        return np.concatenate([ascending[: k // 2], ascending[len(ascending) - (k - k // 2) :]])
    return np.sort(ascending[np.argsort(np.abs(ascending))[-k:]])


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ["LA", "SA", "BE", "LM"])
def test_equals_the_dense_eigenvalues(operator_with, eps, name, which):
    A, M, _ = operator_with(SPECTRA[name])
    pairs = gk.eigsh(A, 5, which=which, key=jax.random.key(1), tol=30 * eps)
    scale = max(np.abs(SPECTRA[name]).max(), 1)
    assert pairs.converged.all()
    expected = wanted(np.linalg.eigvalsh(M), 5, which)
    np.testing.assert_allclose(pairs.values, expected, atol=500 * eps * scale)


def test_residuals_are_those_of_the_returned_vectors(operator_with, eps):
    A, M, _ = operator_with(SPECTRA["outliers"])
    pairs = gk.eigsh(A, 4, key=jax.random.key(1), tol=1e-3)
    V = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors), np.float64)
    residuals = np.linalg.norm(V @ M - np.asarray(pairs.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(pairs.residuals, residuals, rtol=0.05, atol=500 * 100 * eps)
    np.testing.assert_allclose(V @ V.T, np.eye(4), atol=100 * eps)
    exact = np.linalg.eigvalsh(M)
    for value, residual in zip(np.asarray(pairs.values), residuals, strict=True):
        assert np.abs(exact - value).min() <= residual + 50 * 100 * eps


@pytest.mark.slow
def test_agrees_with_scipy(operator_with):
    A, M, _ = operator_with(SPECTRA["outliers"])
    for which in ("LA", "SA", "BE", "LM"):
        pairs = gk.eigsh(A, 4, which=which, key=jax.random.key(1), tol=1e-6)
        theirs = np.sort(scipy_eigsh(M, k=4, which=which)[0])
        np.testing.assert_allclose(pairs.values, theirs, rtol=2e-5, atol=1e-4)


def test_vectors_are_trees_like_the_domain(operator_with):
    A, *_ = operator_with(SPECTRA["outliers"])
    vectors = gk.eigsh(A, 3, key=jax.random.key(0)).vectors
    for leaf, x in zip(jax.tree.leaves(vectors), jax.tree.leaves(A.domain), strict=True):
        assert leaf.shape == (3, *x.shape)
        assert leaf.dtype == x.dtype


@pytest.mark.slow
def test_too_few_products_are_said_not_hidden(operator_with):
    A, *_ = operator_with(np.linspace(0, 1, 60))
    pairs = gk.eigsh(A, 5, key=jax.random.key(0), max_products=20, tol=1e-6)
    assert pairs.products == 20
    assert not pairs.converged.all()
    assert (np.asarray(pairs.residuals)[~np.asarray(pairs.converged)] > 1e-6).all()


@pytest.mark.slow
def test_a_start_near_the_answer_needs_fewer_products(operator_with):
    A, *_ = operator_with(np.linspace(0, 1, 60) ** 2)
    cold = gk.eigsh(A, 1, key=jax.random.key(0), tol=1e-4)
    v0 = jax.tree.map(lambda x: x[0], cold.vectors)
    warm = gk.eigsh(A, 1, key=jax.random.key(0), tol=1e-4, v0=v0)
    assert warm.converged.all()
    assert warm.products < cold.products


@pytest.mark.slow
def test_all_eigenvalues_and_a_single_dimension(operator_with, dtype, eps):
    A, M, _ = operator_with(np.linspace(-1, 1, 9))
    pairs = gk.eigsh(A, 9, key=jax.random.key(0))
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(M), atol=50 * eps)
    one = gk.eigsh(gk.Operator(lambda v: 3 * v, jnp.zeros((), dtype)), 1, key=jax.random.key(0))
    assert one.values == pytest.approx(3)
    assert one.converged.all()


def test_the_host_driver_gives_the_same_and_is_watched_at_each_product(operator_with, eps):
    A, *_ = operator_with(SPECTRA["outliers"])
    seen = []
    drive = functools.partial(gk.on_host, watch=seen.append)
    hosted = gk.eigsh(A, 4, key=jax.random.key(1), drive=drive)
    jitted = gk.eigsh(A, 4, key=jax.random.key(1))
    np.testing.assert_allclose(hosted.values, jitted.values, atol=500 * 100 * eps)
    assert len(seen) == hosted.products


@pytest.mark.slow
def test_works_inside_jit_and_on_a_network(network, eps):
    @jax.jit
    def largest(params):
        A = gk.hessian(network.loss, params, network.batch)
        return gk.eigsh(A, 3, key=jax.random.key(0), tol=1e-5)

    pairs = largest(network.params)
    expected = np.linalg.eigvalsh(network.hessian)[-3:]
    np.testing.assert_allclose(pairs.values, expected, rtol=1e3 * eps)
    assert pairs.converged.all()


def test_nan_is_never_called_converged():
    A = gk.Operator(lambda v: v * jnp.nan, jnp.ones(30))
    pairs = gk.eigsh(A, 2, key=jax.random.key(0))
    assert not pairs.converged.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: expected 1 to 60"),
        ({"k": 61}, "k: expected 1 to 60"),
        ({"k": 3, "which": "SM"}, "which: expected one of LA, SA, BE, LM, got 'SM'"),
        ({"k": 5, "max_products": 9}, "max_products: expected at least 10"),
        ({"k": 5, "basis": 6}, "basis: expected at least 7"),
        ({"k": 5, "block": 61}, "block: expected 1 to 60"),
    ],
)
def test_arguments_out_of_range_are_refused(operator_with, arguments, message):
    A, *_ = operator_with(SPECTRA["zero"])
    with pytest.raises(ValueError, match=message):
        gk.eigsh(A, key=jax.random.key(0), **arguments)


@pytest.mark.slow
def test_the_host_driver_leaves_its_arguments_alone(operator_with, dtype):
    A, *_ = oracle = operator_with(SPECTRA["outliers"])
    tol, (v0, _) = jnp.asarray(1e-3, dtype), oracle.vector(0)
    gk.eigsh(A, 2, key=jax.random.key(0), tol=tol, v0=v0, drive=gk.on_host)
    gk.cg(A + 10.0, v0, tol=tol, drive=gk.on_host)
    assert not any(x.is_deleted() for x in jax.tree.leaves((A, v0, tol)))


@pytest.mark.slow
def test_the_basis_grows_as_it_must_and_gives_the_same_numbers():
    """As under jit, where it has its full size from the start."""
    spectrum = jnp.concatenate([jnp.linspace(0, 1, 290), jnp.linspace(1.001, 1.1, 10)])
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, spectrum), spectrum)
    grown = gk.eigsh(A, 4, key=jax.random.key(0), tol=1e-5)
    whole = jax.jit(lambda key: gk.eigsh(A, 4, key=key, tol=1e-5))(jax.random.key(0))
    assert grown.converged.all()
    assert grown.products == whole.products > 48 + 4
    np.testing.assert_allclose(grown.values, whole.values, rtol=1e-5)
    np.testing.assert_allclose(grown.values, spectrum[-4:], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["LA", "SA", "BE", "LM"])
@pytest.mark.parametrize("block", [1, 3])
def test_a_bounded_basis_restarts_and_finds_the_same(operator_with, eps, which, block):
    """Each of some 20 restarts rounds the basis by √14 ε, hence the tolerance."""
    A, M, _ = operator_with(np.linspace(-1, 2, 60) ** 3)
    pairs = gk.eigsh(A, 4, which=which, key=jax.random.key(1), tol=100 * eps, basis=14, block=block)
    assert pairs.converged.all()
    assert pairs.products > 14 + 4
    expected = wanted(np.linalg.eigvalsh(M), 4, which)
    np.testing.assert_allclose(pairs.values, expected, atol=500 * eps * 8)


def test_a_bounded_basis_is_never_exceeded_inside_and_outside_jit():
    diagonal = jnp.linspace(0, 1, 400) ** 2
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    rows = []

    def drive(step, A, state, *, until):
        if hasattr(state, "krylov"):
            rows.append(len(state.krylov.basis))
        return gk.in_jit(step, A, state, until=until)

    options = {"key": jax.random.key(0), "tol": 1e-5, "basis": 20}
    outside = gk.eigsh(A, 3, **options, drive=drive)
    inside = jax.jit(lambda key: gk.eigsh(A, 3, **{**options, "key": key}))(jax.random.key(0))
    assert max(rows) == 20 + 1
    assert len(rows) > 3
    assert outside.converged.all()
    np.testing.assert_allclose(outside.values, inside.values, rtol=1e-5)
    np.testing.assert_allclose(outside.values, diagonal[-3:], rtol=1e-4)


@pytest.mark.slow
def test_the_budget_holds_over_restarts():
    diagonal = jnp.linspace(0, 1, 400)
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    pairs = gk.eigsh(A, 3, key=jax.random.key(0), tol=1e-6, basis=10, max_products=47)
    assert pairs.products == 47
    assert not pairs.converged.all()


@pytest.mark.parametrize("copies", [2, 3])
def test_a_block_finds_as_many_copies_as_it_has_start_vectors(eps, dtype, copies):
    """From one start vector a copy comes only of rounding, long after the first."""
    diagonal = jnp.concatenate([jnp.linspace(0, 1, 500), jnp.repeat(jnp.array([3.0, 5.0]), copies)])
    diagonal = diagonal.astype(dtype)
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    options = {"key": jax.random.key(0), "tol": 1e-4, "max_products": 60}
    pairs = gk.eigsh(A, 2 * copies, block=copies, **options)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, np.repeat([3.0, 5.0], copies), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2])
def test_earlier_pairs_are_a_warm_start(network, block):
    A = gk.hessian(network.loss, network.params, network.batch)
    cold = gk.eigsh(A, 3, key=jax.random.key(0), tol=1e-4, block=block)
    moved = jax.tree.map(lambda x: x * (1 + 1e-5), network.params)
    B = gk.hessian(network.loss, moved, network.batch)
    warm = gk.eigsh(B, 3, key=jax.random.key(1), tol=1e-3, block=block, v0=cold)
    assert warm.converged.all()
    assert warm.products < cold.products
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-2)


def test_a_basis_in_bfloat16_costs_the_digits_that_it_says():
    diagonal = jnp.concatenate([jnp.linspace(0, 1, 500), jnp.array([3.0, 5.0])])
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    basis = gk.Basis(30, jnp.bfloat16)
    pairs = gk.eigsh(A, 2, key=jax.random.key(0), tol=2**-8, basis=basis)
    assert pairs.converged.all()
    assert {x.dtype for x in jax.tree.leaves(pairs.vectors)} == {jnp.dtype(jnp.float32)}
    bound = np.asarray(pairs.residuals) ** 2 / 2 + 1e-5
    assert (np.abs(np.asarray(pairs.values) - [3.0, 5.0]) <= bound).all()
