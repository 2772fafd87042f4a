from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


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


def test_it_counts_every_product(network):
    calls = []

    def matvec(v):
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(lambda x: 2 * x, v)

    A = gk.Operator(matvec, network.params)
    found = gk.spectrum(A, key=jax.random.key(0), top=2, bottom=2, probes=3, steps=4)
    jax.effects_barrier()
    assert len(calls) == found.products


@pytest.mark.parametrize("n", [1, 2, 5])
def test_tiny_operators_give_what_there_is(dtype, n):
    values = jnp.arange(1.0, n + 1, dtype=dtype)
    A = gk.Operator(lambda v: values * v, values)
    found = gk.spectrum(A, key=jax.random.key(0), probes=2)
    np.testing.assert_allclose(found.largest.values, values, rtol=1e-5)
    np.testing.assert_allclose(found.smallest.values, values, rtol=1e-5)
    assert found.condition.value == pytest.approx(n, rel=1e-4)


@pytest.mark.parametrize("name", ["top", "bottom"])
def test_counts_below_one_are_refused(network, name):
    A = gk.hessian(network.loss, network.params, network.batch)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        gk.spectrum(A, key=jax.random.key(0), **{name: 0})
