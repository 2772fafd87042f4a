from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.saddle_free import saddle_free, scale_by_saddle_free


@functools.partial(jax.jit, static_argnums=(0, 1))
def advanced(tx, loss, params, state):
    point = gk.observe(loss, params, None, gk.hessian)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state


def run(tx, loss, params, steps):
    state = tx.init(params)
    for _ in range(steps):
        params, state = advanced(tx, loss, params, state)
    return params, state


def saddle(x, _):
    return 5 * x[0] ** 2 - x[1] ** 2


def monkey_saddle(x, _):
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_direction_is_the_gradient_by_absolute_curvature(network, eps, damping):
    tx = scale_by_saddle_free(damping, tol=0.0)
    point = gk.observe(network.loss, network.params, network.batch, gk.hessian)
    d, state = tx.update(point.grad, tx.init(network.params), network.params, **point.extras)
    values, Q = np.linalg.eigh(network.hessian)
    g = np.asarray(ravel_pytree(point.grad)[0], float)
    # Undamped, singular directions of H are not resolved: compare |H| d with g.
    d = np.asarray(ravel_pytree(d)[0], float)
    absolute = (Q * (np.abs(values) + damping)) @ Q.T
    size = np.abs(values).max() * np.linalg.norm(d)
    np.testing.assert_allclose(absolute @ d, g, atol=100 * eps * size)
    assert values[0] < 0
    assert float(state.lowest) == pytest.approx(values[0], abs=100 * eps * np.abs(values).max())


def test_where_the_curvature_is_positive_it_is_newtons(dtype, eps):
    H = np.diag([1.0, 4.0, 9.0]) + 0.5
    A, b = jnp.asarray(H, dtype), jnp.asarray([1.0, -2.0, 3.0], dtype)
    tx = saddle_free(1.0, tol=0.0)
    x, state = run(tx, lambda x, _: x @ A @ x / 2 - b @ x, jnp.zeros(3, dtype), 1)
    np.testing.assert_allclose(x, np.linalg.solve(H, b), atol=100 * eps)
    assert gk.metrics(state)["products"] == 3


@pytest.mark.slow
def test_a_loose_tolerance_takes_fewer_products(operator_with):
    A, M, _ = oracle = operator_with(np.append(np.linspace(1, 2, 30), -1.5))
    g, flat = oracle.vector(0)
    values, Q = np.linalg.eigh(M)
    for tol, most in ((0.1, 10), (1e-3, 20)):
        tx = scale_by_saddle_free(tol=tol)
        d, state = tx.update(g, tx.init(g), g, curvature=lambda: A)
        residual = Q @ (np.abs(values) * (Q.T @ np.asarray(ravel_pytree(d)[0], float))) - flat
        assert np.linalg.norm(residual) <= 3 * tol * np.linalg.norm(flat)
        assert 2 <= state.work.products <= most


@pytest.mark.slow
@pytest.mark.parametrize("loss", [saddle, monkey_saddle])
def test_leaves_a_saddle_from_any_perturbed_start_where_newton_stays(dtype, loss):
    """Newton's own step goes to the saddle."""
    tx = saddle_free(0.5)
    for angle in np.linspace(0.1, 6.2, 5):
        start = jnp.asarray([np.cos(angle), np.sin(angle)], dtype) * 1e-3
        H, g = jax.hessian(loss)(start, None), jax.grad(loss)(start, None)
        newton = start - jnp.linalg.solve(H, g)
        assert jnp.linalg.norm(newton) < 0.6 * jnp.linalg.norm(start)
        x, _ = run(tx, loss, start, 40)
        assert loss(x, None) < loss(start, None)
        assert jnp.linalg.norm(x) > 100 * jnp.linalg.norm(start)


@pytest.mark.slow
def test_on_the_way_straight_to_a_saddle_nothing_points_aside(dtype):
    """The gradient has no part along the negative curvature, nor has the Krylov space."""
    x, state = run(saddle_free(1.0), saddle, jnp.array([1.0, 0.0], dtype), 1)
    np.testing.assert_allclose(x, 0, atol=1e-6)
    x, state = run(saddle_free(1.0), saddle, x * 0, 1)
    np.testing.assert_array_equal(x, 0)
    assert gk.metrics(state)["products"] == 0


def test_trains_a_deep_linear_network_past_its_saddle():
    """At zero all weights are at a saddle of order three."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = [jnp.asarray(0.05 * rng.normal(size=(2, 2))) for _ in range(3)]

        def loss(params, _):
            a, b, c = params
            return jnp.sum((a @ b @ c - jnp.diag(jnp.array([2.0, 1.0]))) ** 2) / 2

        assert loss(params, None) == pytest.approx(2.5, rel=1e-2)
        reached, state = run(saddle_free(), loss, params, 60)
        assert loss(reached, None) < 1e-10
        assert gk.metrics(state)["failures"] <= 60


@pytest.mark.slow
def test_minimizes_rosenbrock_whatever_the_unit_of_the_loss():
    def rosenbrock(x, _):
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    with jax.enable_x64(True):
        start, tx = jnp.array([-1.2, 1.0]), saddle_free()
        x, _ = run(tx, rosenbrock, start, 40)
        np.testing.assert_allclose(x, 1.0, atol=1e-9)
        one, _ = run(tx, rosenbrock, start, 6)
        other, _ = run(tx, lambda x, _: 2.0**-40 * rosenbrock(x, None), start, 6)
        np.testing.assert_allclose(other, one, rtol=1e-9)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="scale_by_saddle_free: basis"):
        saddle_free(basis=0)
    tx = scale_by_saddle_free()
    with pytest.raises(TypeError, match="scale_by_saddle_free needs the extra argument"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
