from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


@pytest.mark.slow
def test_the_gradient_is_that_at_the_highest_point_nearby(network, eps):
    params, rho = network.params, 0.3
    point = gk.observe(network.loss, params, network.batch)
    tx = gk.sharpness_aware(gk.sgd(1.0), rho)
    u, state = tx.update(point.grad, tx.init(params), params, **point.extras)
    g, unravel = ravel_pytree(point.grad)
    there = unravel(ravel_pytree(params)[0] + rho * g / jnp.linalg.norm(g))
    value, expected = jax.value_and_grad(network.loss)(there, network.batch)
    expected, _ = ravel_pytree(expected)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(ravel_pytree(u)[0], -expected, atol=200 * eps * scale)
    metrics = gk.metrics(state)
    np.testing.assert_allclose(metrics["sharpness_rise"], value - point.value, rtol=1e3 * eps)
    assert metrics["gradients"] == metrics["evaluations"] == 1


def test_the_rise_on_a_quadratic_is_that_of_slope_and_curvature():
    H = np.diag([1.0, 3.0, -2.0])
    x = jnp.array([1.0, 2.0, 3.0])
    point = gk.observe(lambda x, _: x @ jnp.asarray(H, x.dtype) @ x / 2, x, None)
    tx = gk.sharpness_aware(gk.sgd(1.0), rho=0.1)
    _, state = tx.update(point.grad, tx.init(x), x, **point.extras)
    g = H @ np.asarray(x, float)
    unit = g / np.linalg.norm(g)
    expected = 0.1 * np.linalg.norm(g) + 0.1**2 / 2 * unit @ H @ unit
    np.testing.assert_allclose(gk.metrics(state)["sharpness_rise"], expected, rtol=1e-5)


def test_any_transformation_may_be_within_and_keeps_its_state():
    def loss(x, _):
        return jnp.sum(x**4)

    inner = gk.adam(0.1)
    tx, x = gk.sharpness_aware(inner, rho=0.2), jnp.array([1.0, -1.0])
    state, alone = tx.init(x), inner.init(x)
    for _ in range(3):
        point = gk.observe(loss, x, None)
        u, state = tx.update(point.grad, state, x, **point.extras)
        g = jax.grad(loss)(x + 0.2 * point.grad / jnp.linalg.norm(point.grad), None)
        expected, alone = inner.update(g, alone, x)
        np.testing.assert_allclose(u, expected, rtol=1e-5)
        x = x + u
    state = gk.set_hyperparams(state, rho=0.0)
    point = gk.observe(loss, x, None)
    u, _ = tx.update(point.grad, state, x, **point.extras)
    np.testing.assert_allclose(u, inner.update(point.grad, alone, x)[0], rtol=1e-5)


def test_a_gradient_of_zero_goes_nowhere():
    x = jnp.zeros(2)
    point = gk.observe(lambda x, _: jnp.sum(x**2), x, None)
    tx = gk.sharpness_aware(gk.sgd(1.0))
    u, state = tx.update(point.grad, tx.init(x), x, **point.extras)
    np.testing.assert_array_equal(u, 0)
    assert gk.metrics(state)["sharpness_rise"] == 0


def test_it_needs_the_loss():
    tx, x = gk.sharpness_aware(gk.sgd(0.1)), jnp.ones(2)
    with pytest.raises(TypeError, match="sharpness_aware needs the extra argument 'value'"):
        tx.update(x, tx.init(x), x)
