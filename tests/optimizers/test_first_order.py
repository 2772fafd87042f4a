"""Momentum and adaptive methods by the formulas of their papers, written out beside them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def rosenbrock(x, _):
    return jnp.sum(10 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def path(tx, loss, start, steps):
    """The parameters after each update."""

    @jax.jit
    def step(x, state):
        point = gk.observe(loss, x, None)
        updates, state = tx.update(point.grad, state, x, **point.extras)
        return optax.apply_updates(x, updates), state

    x, state, points = start, tx.init(start), []
    for _ in range(steps):
        x, state = step(x, state)
        points.append(np.asarray(x, np.float64))
    return np.array(points), state


def test_nesterovs_method_is_its_recurrence(dtype, eps):
    start = jnp.asarray([-0.5, 0.3, 0.2], dtype)
    points, _ = path(gk.nesterov(0.01, 0.8), rosenbrock, start, 15)
    gradient = jax.jit(jax.grad(rosenbrock))
    x, v = start, jnp.zeros_like(start)
    for point in points:
        v = 0.8 * v - 0.01 * gradient(x + 0.8 * v, None)
        x = x + v
        np.testing.assert_allclose(point, x, rtol=300 * eps, atol=30 * eps)


@pytest.mark.parametrize("loss", [rosenbrock, lambda x, _: jnp.sum(jnp.cosh(x))])
def test_the_one_evaluation_form_tracks_the_interim_points(loss, dtype, eps):
    """On any function, with constant rate and momentum: φ = θ + μ v."""
    start, mu = jnp.asarray([-0.5, 0.3, 0.2], dtype), 0.8
    points, _ = path(gk.nesterov(0.01, mu), loss, start, 15)
    one, _ = path(gk.sgd(0.01, mu, nesterov=True), loss, start, 15)
    velocities = np.diff(points, axis=0, prepend=np.asarray(start)[None])
    np.testing.assert_allclose(one, points + mu * velocities, rtol=1e3 * eps, atol=100 * eps)


def test_under_a_schedule_the_two_forms_differ():
    start, rate = jnp.array([-0.5, 0.3, 0.2]), gk.warmup_exponential(0.02, steps=15, end=1e-3)
    points, _ = path(gk.nesterov(rate, 0.8), rosenbrock, start, 15)
    one, _ = path(gk.sgd(rate, 0.8, nesterov=True), rosenbrock, start, 15)
    velocities = np.diff(points, axis=0, prepend=np.asarray(start)[None])
    assert np.abs(one - points - 0.8 * velocities).max() > 1e-3


def test_on_a_linear_function_looking_ahead_is_plain_momentum(dtype, eps):
    """The gradient is the same everywhere: the one-evaluation form is still a step ahead."""
    start = jnp.asarray([1.0, -2.0], dtype)

    def loss(x, _):
        return jnp.dot(x, jnp.asarray([0.5, 1.0], dtype))

    ahead, _ = path(gk.nesterov(0.1, 0.5), loss, start, 6)
    plain, _ = path(gk.sgd(0.1, 0.5), loss, start, 6)
    one, _ = path(gk.sgd(0.1, 0.5, nesterov=True), loss, start, 6)
    np.testing.assert_allclose(ahead, plain, rtol=100 * eps)
    assert (one < plain).all()


def test_velocity_is_its_recurrence_and_heavy_ball_only_while_the_rate_is_constant(dtype, eps):
    start = jnp.asarray([-0.5, 0.3], dtype)
    points, _ = path(gk.velocity(0.01, 0.9), rosenbrock, start, 10)
    ball, _ = path(gk.sgd(0.01, 0.9), rosenbrock, start, 10)
    np.testing.assert_allclose(points, ball, rtol=300 * eps, atol=30 * eps)
    rate = gk.step_decay(0.01, at=(5,), factor=0.1)
    points, _ = path(gk.velocity(rate, 0.9), rosenbrock, start, 10)
    ball, _ = path(gk.sgd(rate, 0.9), rosenbrock, start, 10)
    np.testing.assert_allclose(points[:5], ball[:5], rtol=300 * eps, atol=30 * eps)
    assert np.abs(points[5:] - ball[5:]).max() > 1e-3


def test_the_heavy_ball_ends_at_its_effective_rate():
    """A constant gradient moves by η / (1 − μ) a step; the average form by η."""
    g = jnp.array([1.0, -2.0])
    for link, factor in ((gk.heavy_ball(0.9), 10.0), (gk.ema(0.9, debias=False), 1.0)):
        tx = gk.chain(link, gk.scale_by_learning_rate(0.1))
        state = tx.init(g)
        for _ in range(200):
            step, state = tx.update(g, state)
        np.testing.assert_allclose(step, -0.1 * factor * g, rtol=1e-5)


def test_adagrad_in_its_textbook_form(dtype, eps):
    rng = np.random.default_rng(0)
    tx = gk.adagrad(0.5, 0.0, eps=1e-3, eps_in_sqrt=False)
    state, r = tx.init(jnp.zeros(3, dtype)), np.zeros(3)
    for g in rng.normal(size=(5, 3)):
        step, state = tx.update(jnp.asarray(g, dtype), state)
        r = r + g**2
        np.testing.assert_allclose(step, -0.5 * g / (1e-3 + np.sqrt(r)), rtol=100 * eps)


def test_adadelta_is_its_algorithm_and_needs_no_rate(dtype, eps):
    rng = np.random.default_rng(0)
    tx = gk.adadelta(rho=0.95, eps=1e-4)
    state, r, x = tx.init(jnp.zeros(3, dtype)), np.zeros(3), np.zeros(3)
    for g in rng.normal(size=(5, 3)):
        step, state = tx.update(jnp.asarray(g, dtype), state, jnp.zeros(3, dtype))
        r = 0.95 * r + 0.05 * g**2
        expected = -np.sqrt(x + 1e-4) / np.sqrt(r + 1e-4) * g
        x = 0.95 * x + 0.05 * expected**2
        np.testing.assert_allclose(step, expected, rtol=200 * eps)


def test_the_variants_of_adam():
    g = jnp.array([0.3, -2.0, 1e-3])
    first = lambda **arguments: gk.scale_by_adam(**arguments).update(  # noqa: E731
        g, gk.scale_by_adam(**arguments).init(g)
    )[0]
    np.testing.assert_allclose(first(), jnp.sign(g), rtol=1e-4)
    inside = first(eps=0.0, eps_root=1e-2)
    np.testing.assert_allclose(inside, g / jnp.sqrt(g**2 + 1e-2), rtol=1e-4)
    plain = first(bias_correction=False)
    np.testing.assert_allclose(plain, 0.1 * g / (jnp.sqrt(1e-3 * g**2) + 1e-8), rtol=1e-4)
    np.testing.assert_allclose(first(eps=1e4), g / 1e4, rtol=1e-3)  # momentum


def test_a_decay_that_follows_a_schedule_is_in_force():
    tx = gk.ema(lambda step: jnp.where(step == 0, 0.5, 0.0), debias=False)
    state = tx.init(jnp.zeros(1))
    for x, expected in ((4.0, 2.0), (3.0, 3.0)):
        mean, state = tx.update(jnp.array([x]), state)
        np.testing.assert_allclose(mean, expected)
