from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


@pytest.mark.slow
def test_every_part_agrees_with_the_dense_hessian(network, eps):
    A = gk.hessian(network.loss, network.params, network.batch)
    found = gk.spectrum(A, key=jax.random.key(0), top=3, bottom=2, probes=5, steps=20)
    exact = np.linalg.eigvalsh(network.hessian)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found.largest.values, exact[-3:], atol=500 * eps * scale)
    np.testing.assert_allclose(found.smallest.values, exact[:2], atol=500 * eps * scale)
    assert found.largest.converged.all()
    assert found.smallest.converged.all()
    assert found.density.nodes.shape == (5, 20)
    magnitude = np.abs(exact)
    kappa = magnitude.max() / magnitude.min()
    assert found.condition.lower <= kappa * (1 + 1e3 * eps * kappa) <= found.condition.upper * 1.01


@pytest.mark.slow
def test_it_counts_every_product(network):
    calls = []

    def matvec(v):
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(lambda x: 2 * x, v)

    A = gk.Operator(matvec, network.params)
    found = gk.spectrum(A, key=jax.random.key(0), top=2, bottom=2, probes=3, steps=4)
    jax.effects_barrier()
    assert len(calls) == found.products


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 5])
def test_tiny_operators_give_what_there_is(dtype, n):
    values = jnp.arange(1.0, n + 1, dtype=dtype)
    A = gk.Operator(lambda v: values * v, values)
    found = gk.spectrum(A, key=jax.random.key(0), probes=2)
    np.testing.assert_allclose(found.largest.values, values, rtol=1e-5)
    np.testing.assert_allclose(found.smallest.values, values, rtol=1e-5)
    assert found.condition.value == pytest.approx(n, rel=1e-4)


@pytest.mark.slow
def test_counts_and_moments_come_from_the_same_products(dtype):
    exact = np.concatenate([np.linspace(-1, -0.1, 30), np.linspace(0.1, 2, 270), [20.0]])
    diagonal = jnp.asarray(exact, dtype)
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    found = gk.spectrum(A, key=jax.random.key(0), top=1, bottom=2, probes=20, steps=40)
    negative = found.negative
    assert 2 <= negative.at_least <= 30
    assert abs(negative.estimate - 30) <= 4 * negative.stderr + negative.quadrature
    assert 0 < negative.stderr < 10
    assert abs(found.trace.value - exact.sum()) <= 4 * found.trace.stderr
    assert abs(found.frobenius.value - np.linalg.norm(exact)) <= 4 * found.frobenius.stderr
    assert 0 < found.frobenius.stderr < found.frobenius.value
    shifted = found.shifted_condition(1.5)
    assert shifted.lower <= 21.5 / 0.5 <= shifted.upper < 60
    assert found.condition.upper == np.inf


@pytest.mark.slow
def test_without_probes_there_is_one_short_run(dtype):
    diagonal = jnp.concatenate([jnp.linspace(-0.1, 1, 500), jnp.array([9.0])]).astype(dtype)
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    options = {"top": 1, "bottom": 1, "probes": 0, "max_products": 42, "check": False}
    found = gk.spectrum(A, key=jax.random.key(0), tol=1e-6, **options)
    assert found.products <= 42
    assert found.density is None
    assert found.negative.at_least >= 1
    assert np.isnan(found.negative.estimate)
    assert np.isnan(found.trace.value)
    assert not found.trace.converged
    condition = found.shifted_condition(0.2)
    assert condition.lower <= 9.2 / 0.1 <= condition.upper < np.inf


@pytest.mark.slow
def test_what_is_no_symmetric_operator_is_refused_with_its_cause(network):
    A = gk.Operator(lambda v: jax.tree.map(jnp.abs, v), network.params)
    with pytest.raises(ValueError, match=r"linearity .* the map is not linear"):
        gk.spectrum(A, key=jax.random.key(0))
    found = gk.spectrum(A, key=jax.random.key(0), top=1, bottom=1, probes=0, check=False)
    assert np.isfinite(found.largest.values).all()


@pytest.mark.slow
@pytest.mark.parametrize("values", [[-1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [-3.0], [0.0, 1.0]])
def test_the_kind_of_point_is_that_of_its_own_function(dtype, values):
    diagonal = jnp.asarray(values, dtype)
    A = gk.Operator(jax.tree_util.Partial(jnp.multiply, diagonal), diagonal)
    grad = jnp.zeros_like(diagonal)
    found = gk.spectrum(A, key=jax.random.key(0), probes=0).critical_point(grad)
    alone = gk.critical_point(A, grad, key=jax.random.key(0))
    assert found.kind == alone.kind
    assert found.negative == alone.negative == sum(value < 0 for value in values)
    np.testing.assert_allclose(found.ends.values, alone.ends.values, atol=1e-5)
    moved = gk.spectrum(A, key=jax.random.key(0), probes=0).critical_point(grad + 1)
    assert moved.kind == "not_critical"


@pytest.mark.slow
def test_it_works_inside_jit(network):
    @jax.jit
    def both(params):
        A = gk.hessian(network.loss, params, network.batch)
        return gk.spectrum(A, key=jax.random.key(0), top=1, bottom=1, probes=4, steps=10)

    found = both(network.params)
    exact = np.linalg.eigvalsh(network.hessian)
    assert found.largest.values[0] == pytest.approx(exact[-1], rel=1e-3)
    assert found.dimension == len(exact)


@pytest.mark.parametrize("name", ["top", "bottom"])
def test_counts_below_one_are_refused(network, name):
    A = gk.hessian(network.loss, network.params, network.batch)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        gk.spectrum(A, key=jax.random.key(0), **{name: 0})
