from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


@pytest.mark.parametrize("linearize", [True, False])
def test_equals_the_dense_hessian(network, eps, linearize):
    H = gk.hessian(network.loss, network.params, network.batch, linearize=linearize).dense()
    scale = np.abs(network.hessian).max()
    np.testing.assert_allclose(H, network.hessian, atol=100 * eps * scale)
    np.testing.assert_allclose(H, H.T, atol=20 * eps * scale)


def test_is_the_same_under_jit(network, eps):
    def product(params, v):
        return gk.hessian(network.loss, params, network.batch) @ v

    eager, jitted = (
        product(network.params, network.params),
        jax.jit(product)(network.params, network.params),
    )
    scale = np.abs(network.hessian).max()
    for x, y in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(x, y, atol=100 * eps * scale)


def test_is_built_once_for_all_parameters_of_a_shape(network):
    traces = []

    def loss(params, batch):
        traces.append(1)
        return network.loss(params, batch)

    for factor in (1.0, 2.0, 3.0):
        params = jax.tree.map(lambda x, f=factor: f * x, network.params)
        gk.hessian(loss, params, network.batch) @ network.params
    assert len(traces) == 1


def test_takes_a_problem_with_outputs(network):
    problem = gk.Problem(
        predict=lambda p, b: b["x"] @ p, criterion=lambda out, b: jnp.mean((out - b["y"]) ** 2)
    )
    x, y = network.batch["x"], network.batch["y"]
    H = gk.hessian(problem, jnp.zeros((4, 2), x.dtype), {"x": x, "y": y}).dense()
    expected = np.kron(np.asarray(x).T @ np.asarray(x), np.eye(2)) / 20
    np.testing.assert_allclose(H, expected, rtol=1e-5, atol=1e-6)


def test_a_custom_vjp_is_differentiated_through():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))
    H = gk.hessian(lambda p, _: jnp.sum(cube(p)), jnp.array([1.0, 2.0]), None)
    np.testing.assert_allclose(H.dense(), np.diag([6.0, 12.0]), rtol=1e-6)


def test_nan_is_a_value(network):
    params = jax.tree.map(lambda x: x * jnp.nan, network.params)
    product = gk.hessian(network.loss, params, network.batch) @ network.params
    assert jnp.isnan(ravel_pytree(product)[0]).all()


def test_complex_parameters_count_as_pairs_of_reals():
    def of_complex(z, _):
        return jnp.sum(jnp.abs(z) ** 4 + jnp.real(z * jnp.array([1j, 2.0])) ** 2)

    def of_pairs(xy, _):
        return of_complex(xy[0] + 1j * xy[1], None)

    z, v = jnp.array([1 + 2j, 0.5 - 1j]), jnp.array([0.3 - 1j, 2.0 + 0.1j])
    for linearize in (True, False):
        product = gk.hessian(of_complex, z, None, linearize=linearize) @ v
        pairs = [jnp.stack([x.real, x.imag]) for x in (z, v)]
        expected = gk.hessian(of_pairs, pairs[0], None) @ pairs[1]
        np.testing.assert_allclose(product, expected[0] + 1j * expected[1], rtol=1e-5)
