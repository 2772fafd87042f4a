from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.cubic import cubic


@functools.partial(jax.jit, static_argnums=(0, 1))
def advanced(tx, loss, params, state):
    point = gk.observe(loss, params, None, gk.hessian)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state, optax.tree.norm(point.grad)


def run(tx, loss, params, steps, tol=0.0):
    state = tx.init(params)
    for k in range(steps):
        params, state, norm = advanced(tx, loss, params, state)
        if norm <= tol:
            return params, k, state
    return params, steps, state


def rosenbrock(x, _):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x, _):
    powers = jnp.arange(1, 4, dtype=x.dtype)
    return jnp.sum((jnp.array([1.5, 2.25, 2.625], x.dtype) - x[0] * (1 - x[1] ** powers)) ** 2)


def quartic(x, _):
    return jnp.sum(x**4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "start"), [(rosenbrock, [-1.2, *[1.0] * 9]), (beale, [1.0, 1.0])], ids=["r", "b"]
)
def test_reaches_a_minimum_of_classical_problems(loss, start):
    with jax.enable_x64(True):
        x, steps, state = run(cubic(), loss, jnp.array(start), 100, 1e-9)
        assert steps < 100
        assert np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(x, None)))[0] > 0
        assert state.last.failures == 0


def test_a_step_minimizes_the_cubic_model(dtype, eps):
    """With its whole space: g + H p + σ ‖p‖ p = 0, H + σ ‖p‖ I positive semidefinite."""
    H = np.diag([1.0, -4.0, 9.0]) + 0.5
    A, b = jnp.asarray(H, dtype), jnp.asarray([1.0, -2.0, 3.0], dtype)
    tx = cubic(100.0, tol=0.0, max_trials=1)  # a longer step falls further
    p, _, state = run(tx, lambda x, _: x @ A @ x / 2 - b @ x, jnp.zeros(3, dtype), 1)
    p, size = np.asarray(p, float), float(jnp.linalg.norm(p))
    np.testing.assert_allclose(H @ p + 100 * size * p, b, atol=200 * eps)
    assert np.linalg.eigvalsh(H)[0] + 100 * size >= 0
    assert state.last.ratio > 1  # the model lies above


@pytest.mark.slow
def test_near_a_minimum_the_step_is_newtons():
    with jax.enable_x64(True):
        start = jnp.array([1.02, 1.03])
        newton = start - jnp.linalg.solve(
            jax.hessian(rosenbrock)(start, None), jax.grad(rosenbrock)(start, None)
        )
        x, _, _ = run(cubic(1e-9, tol=0.0), rosenbrock, start, 1)
        np.testing.assert_allclose(x, newton, atol=1e-9)
        tx = cubic(tol=1e-12)
        one, two, three = (
            float(jnp.max(jnp.abs(run(tx, rosenbrock, start, k)[0] - 1))) for k in (3, 4, 5)
        )
    assert two < one**1.4 or two < 1e-12
    assert three < max(two**1.4, 1e-12)


def test_follows_negative_curvature_out_of_a_saddle(dtype):
    def loss(x, _):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    x, _, _ = run(cubic(), loss, jnp.array([1.0, 1e-3], dtype), 30)
    np.testing.assert_allclose(jnp.abs(x), [0, np.sqrt(0.5)], atol=1e-3)


@pytest.mark.slow
def test_a_loss_beyond_a_boundary_is_a_rejection(dtype, eps):
    def loss(x, _):
        return jnp.sum(10 * x - jnp.log(x))  # NaN for x < 0

    start = jnp.array([1.0, 5.0], dtype)
    tx = cubic(1e-6)
    x, steps, state = run(tx, loss, start, 40)
    np.testing.assert_allclose(x, 0.1, rtol=100 * eps)
    assert state.last.failures == 0
    assert state.last.work.evaluations > steps + 1
    nowhere, _, state = run(tx, loss, jnp.nan * start, 1)
    assert jnp.isnan(nowhere).all()
    assert (state.last.failures, state.last.work.evaluations) == (1, 0)
    assert state.sigma == pytest.approx(1e-6)


@pytest.mark.slow
def test_iterates_do_not_depend_on_the_unit_of_the_loss():
    with jax.enable_x64(True):
        start, tx = jnp.array([-1.2, 1.0, 1.0]), cubic()
        one, _, _ = run(tx, rosenbrock, start, 12)
        other, _, _ = run(tx, lambda x, _: 2.0**-40 * rosenbrock(x, None), start, 12)
        np.testing.assert_allclose(other, one, rtol=1e-9)


@pytest.mark.slow
def test_flat_and_singular_hessians_are_no_obstacle(dtype, eps):
    tx = cubic()
    x, _, state = run(tx, lambda x, _: (x[0] + x[1] - 3) ** 2, jnp.ones(3, dtype), 12)
    np.testing.assert_allclose(x, [1.5, 1.5, 1.0], atol=100 * eps)
    x, _, state = run(tx, quartic, jnp.array([1.0, -2.0], dtype), 30)
    assert jnp.max(jnp.abs(x)) <= 1e-3
    x, _, state = run(tx, quartic, jnp.zeros(2, dtype), 1)
    assert (*state.last.work, state.last.failures) == (0, 0, 0, 0)


def test_arguments_are_checked():
    for arguments in ({"sigma": 0.0}, {"basis": 0}, {"max_trials": 1.5}):
        with pytest.raises(ValueError, match="cubic"):
            cubic(**arguments)
