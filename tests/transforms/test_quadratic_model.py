from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


def flat(a):
    return np.asarray(ravel_pytree(a)[0], np.float64)


def walked(tx, loss, x, steps, curvature=gk.hessian):
    """The updates of so many steps, the points they start at, and the last state."""

    @jax.jit
    def step(x, state):
        point = gk.observe(loss, x, None, curvature=curvature)
        u, state = tx.update(point.grad, state, x, **point.extras)
        return jax.tree.map(jnp.add, x, u), state, u, point.grad

    state, found = tx.init(x), []
    for _ in range(steps):
        before = x
        x, state, u, g = step(x, state)
        found.append((flat(before), flat(g), flat(u)))
    return found, x, state


def observed(problem, network, params):
    return gk.observe(problem, params, network.batch, curvature=gk.hessian)


@pytest.mark.slow
def test_the_model_is_least_in_the_plane_of_the_direction_and_the_last_update(network, eps):
    """The gradient of the damped model at d, (|A| + λ) d + g, is orthogonal to both."""
    lam, params = 0.7, network.params
    problem = gk.Problem(network.loss)
    direction = gk.scale_by_adam()
    tx = gk.chain(direction, gk.scale_by_quadratic_model(lam))
    state, adam, last = tx.init(params), direction.init(params), None
    for _ in range(3):
        point = observed(problem, network, params)
        A = np.asarray(point.extras["curvature"]().dense(), np.float64)
        lam = float(state.damping)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        delta, adam = direction.update(point.grad, adam, params)
        delta, d, g = flat(delta), flat(updates), flat(point.grad)
        plane = np.linalg.qr(np.stack([delta] + ([] if last is None else [last]), axis=1))[0]
        theta, Q = np.linalg.eigh(plane.T @ A @ plane)
        M = (Q * (np.abs(theta) + lam)) @ Q.T
        expected = -plane @ np.linalg.solve(M, plane.T @ g)
        tolerance = 1e4 * eps * np.linalg.norm(expected)
        np.testing.assert_allclose(d, expected, atol=tolerance)
        combined = -state.rate * delta + (0 if last is None else state.momentum * last)
        np.testing.assert_allclose(combined, d, atol=10 * tolerance)
        foretold = g @ d + (plane.T @ d) @ M @ (plane.T @ d) / 2
        following = jax.tree.map(jnp.add, params, updates)
        reached = network.loss(following, network.batch)
        true = float(reached) - float(point.value)
        np.testing.assert_allclose(
            state.ratio, true / foretold, atol=10 * eps * float(point.value) / abs(foretold) + 1e-4
        )
        params, last = following, d


def test_with_the_gradient_it_is_conjugate_gradients_on_a_quadratic(dtype, eps):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    H = (Q * np.array([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])) @ Q.T
    b = rng.normal(size=6)
    A = jnp.asarray(H, dtype)
    found, x, state = walked(
        gk.scale_by_quadratic_model(damping=eps**2),
        lambda x, _: x @ A @ x / 2 - jnp.asarray(b, dtype) @ x,
        jnp.zeros(6, dtype),
        6,
    )
    steps = [u for _, _, u in found]
    for u, v in itertools.pairwise(steps):
        assert abs(u @ H @ v) <= 1e3 * eps * np.sqrt((u @ H @ u) * (v @ H @ v))
    np.testing.assert_allclose(x, np.linalg.solve(H, b), atol=1e4 * eps)
    metrics = gk.metrics(state)
    assert metrics["products"] == 12
    assert metrics["evaluations"] == 6
    assert metrics["negative_curvature"] == 0


def test_the_damping_follows_the_gain_ratio():
    """On a quadratic the model is exact but for λ: ρ > ¾ for a small one, and it falls."""
    tx = gk.scale_by_quadratic_model(1e-3)
    _, _, state = walked(tx, lambda x, _: jnp.sum(x**2), jnp.array([1.0, 2.0]), 1)
    assert state.ratio > 0.99
    np.testing.assert_allclose(state.damping, 1e-3 * 19 / 20, rtol=1e-6)
    _, _, state = walked(tx, lambda x, _: jnp.sum(jnp.sqrt(x**2 + 1e-4)), jnp.array([0.01]), 1)
    assert state.ratio < 0.25
    np.testing.assert_allclose(state.damping, 1e-3 * 20 / 19, rtol=1e-6)


def test_long_updates_are_shortened_in_the_metric_of_the_curvature():
    H = np.diag([1.0, 4.0])
    tx = gk.scale_by_quadratic_model(1e-6, max_length=0.5)
    found, _, state = walked(
        tx, lambda x, _: x @ jnp.asarray(H, x.dtype) @ x / 2, jnp.array([4.0, 1.0]), 1
    )
    d = found[0][2]
    np.testing.assert_allclose(d @ H @ d, 0.25, rtol=1e-5)
    assert state.length > 0.5


def test_negative_curvature_counts_by_its_absolute_value():
    tx = gk.scale_by_quadratic_model(1e-3)
    found, _, state = walked(tx, lambda x, _: -(x[0] ** 2), jnp.array([0.5]), 1)
    np.testing.assert_allclose(found[0][2], 0.5 * 2 / 2.001, rtol=1e-5)
    assert gk.metrics(state)["negative_curvature"] == 1


def test_it_trains_a_network_behind_a_scaling(network):
    tx = gk.chain(gk.scale_by_soap(), gk.scale_by_quadratic_model())
    problem, params, state = gk.Problem(network.loss), network.params, tx.init(network.params)

    @jax.jit
    def step(params, state):
        point = observed(problem, network, params)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return jax.tree.map(jnp.add, params, updates), state

    for _ in range(40):
        params, state = step(params, state)
    assert network.loss(params, network.batch) < 0.8 * network.loss(network.params, network.batch)


def test_the_damping_is_a_positive_number():
    with pytest.raises(ValueError, match="damping must be a positive number, got 0"):
        gk.scale_by_quadratic_model(0.0)
