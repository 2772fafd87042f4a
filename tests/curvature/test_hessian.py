from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


@pytest.mark.slow
@pytest.mark.parametrize("linearize", [True, False])
def test_equals_the_dense_hessian(network, eps, linearize):
    H = gk.hessian(network.loss, network.params, network.batch, linearize=linearize).dense()
    scale = np.abs(network.hessian).max()
    np.testing.assert_allclose(H, network.hessian, atol=100 * eps * scale)
    np.testing.assert_allclose(H, H.T, atol=20 * eps * scale)


@pytest.mark.slow
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


@jax.custom_vjp
def product(c, g):
    return c * g


product.defvjp(lambda c, g: (c * g, (c, g)), lambda cg, u: (cg[1] * u, cg[0] * u))


@jax.custom_vjp
def calls_itself(x):
    return jnp.sin(x)


calls_itself.defvjp(lambda x: (calls_itself(x), jnp.cos(x)), lambda c, g: (c * g,))


@jax.custom_vjp
def calls_another(x):
    return jnp.sin(x)


calls_another.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, g: (product(c, g),))


def plainly(sine, x):
    return sine(x)


def in_a_scan(sine, x):
    return jax.lax.scan(lambda x, _: (sine(x), None), x, None, length=1)[0]


def in_a_cond(sine, x):
    return jax.lax.cond(x[0] > -9, sine, jnp.cos, x)


def rematerialized(sine, x):
    return jax.checkpoint(sine)(x)


@pytest.mark.parametrize("around", [plainly, in_a_scan, in_a_cond, rematerialized])
@pytest.mark.parametrize("sine", [jnp.sin, calls_itself, calls_another])
def test_a_custom_vjp_without_a_forward_derivative(sine, around, eps, dtype):
    """f = Σ x₀ sin²(x): what calls a custom_vjp in its rules is differentiated in reverse twice."""
    x = jnp.asarray([0.3, -1.2, 2.0], dtype)

    def loss(x, batch):
        return x[0] * jnp.sum(around(sine, x) ** 2)

    t = np.asarray(x, np.float64)
    exact = np.diag(2 * t[0] * np.cos(2 * t))
    exact[0] += np.sin(2 * t)
    exact[:, 0] += np.sin(2 * t)
    for linearize in (True, False):
        H = gk.hessian(loss, x, None, linearize=linearize)
        np.testing.assert_allclose(H.dense(), exact, atol=50 * eps)
    in_jit = jax.jit(lambda x: gk.hessian(loss, x, None) @ x)(x)
    np.testing.assert_allclose(in_jit, exact @ t, atol=50 * eps)


def test_in_reverse_complex_parameters_count_as_pairs_of_reals():
    def loss(z, sine):
        return jnp.sum(sine(jnp.abs(z) ** 2) + jnp.real(z * jnp.array([1j, 2.0])) ** 2)

    z, v = jnp.array([1 + 2j, 0.5 - 1j]), jnp.array([0.3 - 1j, 2.0 + 0.1j])
    expected = gk.hessian(lambda z, _: loss(z, jnp.sin), z, None) @ v
    for linearize in (True, False):
        H = gk.hessian(lambda z, _: loss(z, calls_itself), z, None, linearize=linearize)
        np.testing.assert_allclose(H @ v, expected, rtol=1e-5)


@pytest.mark.parametrize("sine", [jnp.sin, calls_itself])
@pytest.mark.parametrize(("linearize", "first", "inner"), [(True, 2, 6), (False, 4, 9)])
def test_costs_the_matrix_products_that_the_docstring_says(sine, linearize, first, inner):
    """8 without linearizing: XLA leaves out one of the 9, whose result nobody reads."""

    def loss(weights, x):
        for w in weights:
            x = sine(x @ w)
        return jnp.sum(x**4)

    weights, x = [jnp.ones((2, 2))] * 3, jnp.ones((5, 2))
    H = gk.hessian(loss, weights, x, linearize=linearize)
    text = str(jax.make_jaxpr(H.matvec)(weights))
    assert text.count("dot_general[") == first + 2 * inner


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
