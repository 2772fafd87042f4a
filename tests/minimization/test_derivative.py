"""Derivatives of a solution in the arguments, against closed forms and finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk


def ridge(w, args):
    X, y, penalty = args["X"], args["y"], jnp.exp(args["log_penalty"])
    return jnp.sum((X @ w["w"] - y) ** 2) / 2 + penalty * jnp.sum(w["w"] ** 2) / 2


def data(dtype):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), rng.normal(size=20)
    return {
        "X": jnp.asarray(X, dtype),
        "y": jnp.asarray(y, dtype),
        "log_penalty": jnp.asarray(0.3, dtype),
        "ignored": jnp.arange(3),
    }


def closed(args):
    X, y = args["X"], args["y"]
    return jnp.linalg.solve(X.T @ X + jnp.exp(args["log_penalty"]) * jnp.eye(4), X.T @ y)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
def test_forward_and_reverse_agree_with_the_closed_form(method):
    with jax.enable_x64(True):
        args = data(jnp.float64)

        def solve(y, log_penalty):
            given = {**args, "y": y, "log_penalty": log_penalty}
            w0 = {"w": jnp.zeros(4)}
            return gk.minimize(ridge, w0, args=given, method=method, tol=1e-10).params["w"]

        def exact(y, log_penalty):
            return closed({**args, "y": y, "log_penalty": log_penalty})

        at = args["y"], args["log_penalty"]
        for mode in (jax.jacfwd, jax.jacrev):
            ours, theirs = mode(solve, argnums=(0, 1))(*at), jax.jacrev(exact, argnums=(0, 1))(*at)
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-8)
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-8)


@pytest.mark.slow
def test_the_value_has_the_derivative_of_the_envelope_also_under_jit(dtype, eps):
    args = data(dtype)

    def least(log_penalty):
        given = {**args, "log_penalty": log_penalty}
        return gk.minimize(ridge, {"w": jnp.zeros(4, dtype)}, args=given, tol=100 * eps).value

    w = np.asarray(closed(args), np.float64)
    expected = np.exp(0.3) * w @ w / 2
    np.testing.assert_allclose(jax.jit(jax.grad(least))(args["log_penalty"]), expected, rtol=1e-4)


@pytest.mark.slow
def test_a_batch_of_derivatives():
    with jax.enable_x64(True):

        def root(a):
            return gk.minimize(lambda x, a: (x**2 - a) ** 2, jnp.asarray(1.0), args=a).params

        a = jnp.array([1.5, 2.0, 3.0])
        np.testing.assert_allclose(jax.vmap(jax.grad(root))(a), 0.5 / np.sqrt(a), rtol=1e-5)


@pytest.mark.slow
def test_of_many_minimizers_the_derivative_is_the_shortest():
    with jax.enable_x64(True):

        def solve(a):
            x0 = jnp.array([3.0, -1.0])
            return gk.minimize(lambda x, a: (x[0] * x[1] - a) ** 2, x0, args=a, tol=1e-10).params

        x, dx = solve(2.0), jax.jacfwd(solve)(2.0)
        normal = np.array([x[1], x[0]])  # of the curve x₀ x₁ = a
        np.testing.assert_allclose(dx, normal / (normal @ normal), rtol=1e-5)


@pytest.mark.slow
def test_where_there_is_no_derivative_it_is_not_a_number():
    """At a = 1 every x₁ is a minimizer, elsewhere none is."""
    with jax.enable_x64(True):

        def solve(a):
            x0 = jnp.array([1.0, 1.0])
            return gk.minimize(lambda x, a: x[0] ** 2 + (a - 1) * x[1], x0, args=a).params

        assert np.isnan(jax.jacfwd(solve)(1.0)).all()
