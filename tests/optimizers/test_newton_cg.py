from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def run(tx, loss, params, steps, batch=None):
    @jax.jit
    def step(params, state):
        point = gk.observe(loss, params, batch, curvature=gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, gk.metrics(state)


def test_one_undamped_step_reaches_the_minimum_of_a_quadratic(dtype, eps):
    H = jnp.asarray(np.diag([1.0, 4.0, 9.0]) + 0.5, dtype)
    b = jnp.asarray([1.0, -2.0, 3.0], dtype)
    tx = gk.newton_cg(1.0, damping=0.0, tol=10 * eps)
    x, _ = run(tx, lambda x, _: x @ H @ x / 2 - b @ x, jnp.zeros(3, dtype), 1)
    np.testing.assert_allclose(x, np.linalg.solve(np.asarray(H, float), b), atol=500 * eps)


@pytest.mark.slow
def test_the_direction_is_the_damped_newton_step(network, eps):
    tx = gk.scale_by_newton_cg(damping=5.0, tol=100 * eps, max_steps=200)
    point = gk.observe(network.loss, network.params, network.batch, curvature=gk.hessian)
    d, state = tx.update(point.grad, tx.init(network.params), network.params, **point.extras)
    g, _ = jax.flatten_util.ravel_pytree(point.grad)
    damped = network.hessian + 5.0 * np.eye(len(g))
    assert np.linalg.eigvalsh(damped).min() > 0
    expected = np.linalg.solve(damped, np.asarray(g, float))
    actual, _ = jax.flatten_util.ravel_pytree(d)
    np.testing.assert_allclose(actual, expected, atol=1e4 * eps * np.linalg.norm(expected))
    assert gk.metrics(state)["cg_curvature"] > 0


def test_converges_quadratically_near_a_minimum():
    with jax.enable_x64(True):

        def loss(x, _):
            return jnp.sum(jnp.cosh(x - jnp.array([1.0, -0.5])))

        tx = gk.newton_cg(1.0, damping=0.0, tol=1e-14)
        errors = []
        for steps in (1, 2, 3):
            x, _ = run(tx, loss, jnp.array([1.5, -1.0]), steps)
            errors.append(float(jnp.max(jnp.abs(x - jnp.array([1.0, -0.5])))))
    assert errors[1] < errors[0] ** 2
    assert errors[2] < max(errors[1] ** 2, 1e-15)


def test_minimizes_rosenbrock_where_gradient_descent_crawls():
    def rosenbrock(x, _):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    start = jnp.array([-1.2, 1.0])
    x, metrics = run(gk.newton_cg(tol=1e-2), rosenbrock, start, 30)
    np.testing.assert_allclose(x, 1.0, atol=1e-3)
    assert metrics["products"] > 30
    assert metrics["evaluations"] > 15
    descended, _ = run(gk.sgd(1e-3), rosenbrock, start, 120)  # as many products and gradients
    assert rosenbrock(descended, None) > 1.0


def test_follows_the_gradient_where_the_curvature_is_negative():
    tx = gk.scale_by_newton_cg(damping=0.0)
    point = gk.observe(lambda x, _: -jnp.sum(x**2), jnp.array([1.0, 2.0]), None, gk.hessian)
    d, state = tx.update(point.grad, tx.init(point.grad), point.grad, **point.extras)
    np.testing.assert_allclose(d, point.grad)
    assert gk.metrics(state)["cg_curvature"] == pytest.approx(-2)
    assert gk.metrics(state)["negative_curvature"] == 1


def test_products_are_counted_as_they_are_made(network):
    calls = []

    def counted(problem, params, batch):
        H = gk.hessian(problem, params, batch)

        def matvec(v):
            jax.debug.callback(lambda: calls.append(1))
            return H.matvec(v)

        return gk.Operator(matvec, params)

    tx = gk.scale_by_newton_cg(max_steps=5)
    point = gk.observe(network.loss, network.params, network.batch, curvature=counted)
    _, state = tx.update(point.grad, tx.init(network.params), network.params, **point.extras)
    jax.effects_barrier()
    assert len(calls) == gk.metrics(state)["products"]


def test_what_it_needs_is_named_when_it_is_missing(network):
    tx = gk.newton_cg()
    grad = network.params
    with pytest.raises(TypeError, match="scale_by_newton_cg needs the extra argument 'curvature'"):
        tx.update(grad, tx.init(grad), grad)
    H = gk.hessian(network.loss, network.params, network.batch)
    with pytest.raises(TypeError, match="line_search needs the extra argument 'value'"):
        tx.update(grad, tx.init(grad), grad, curvature=lambda: H)


@pytest.mark.slow
def test_curvature_may_be_gauss_newton(network):
    """Positive semidefinite where the Hessian is not: no step falls back to the gradient."""
    x, y = network.batch["x"], network.batch["y"]

    def predict(params, batch):
        h = jnp.tanh(batch["x"] @ params["layers"][0]["w"] + params["layers"][0]["b"])
        return h @ params["layers"][1]["w"] + params["layers"][1]["b"]

    problem = gk.Problem(
        predict=predict, criterion=lambda z, batch: jnp.mean((z - batch["y"]) ** 2)
    )
    tx, params = gk.newton_cg(), network.params
    state, batch = tx.init(params), {"x": x, "y": y}
    before = problem.value(params, batch)

    @jax.jit
    def step(params, state):
        point = gk.observe(problem, params, batch, curvature=gk.gauss_newton)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    for _ in range(10):
        params, state = step(params, state)
        assert gk.metrics(state)["cg_curvature"] > 0
        assert gk.metrics(state)["negative_curvature"] == 0
    assert problem.value(params, batch) < before / 2
