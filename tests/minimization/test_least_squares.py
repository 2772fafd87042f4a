"""Least squares against closed forms and the certified values of NIST."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

import gradkit as gk

METHODS = ("levenberg_marquardt", "gauss_newton", "trust_region")
REGRESSIONS = {r.name: r for r in problems.regressions()}


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_is_fitted_in_closed_form(method, dtype, eps):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), rng.normal(size=30)

    def residuals(w, X, y):
        return {"fit": X @ w["w"] - y}

    given = jnp.asarray(X, dtype), jnp.asarray(y, dtype)
    found = gk.least_squares(
        residuals, {"w": jnp.zeros(4, dtype)}, method=method, args=given, tol=100 * eps
    )
    exact, rss = np.linalg.lstsq(X, y, rcond=None)[:2]
    assert bool(found.converged), found.message
    np.testing.assert_allclose(found.params["w"], exact, atol=1e3 * eps)
    np.testing.assert_allclose(found.value, rss[0] / 2, rtol=1e3 * eps)
    np.testing.assert_allclose(found.aux["fit"], X @ exact - y, atol=1e3 * eps)
    if method != "trust_region":
        assert found.steps <= 10


@pytest.mark.parametrize("name", ["misra1a", "thurber", "rat43", "kirby2", "hahn1", "eckerle4"])
@pytest.mark.parametrize("start", [0, 1])
def test_regressions_of_nist_reach_six_certified_digits(name, start):
    regression = REGRESSIONS[name]
    with jax.enable_x64(True):
        found = gk.least_squares(
            problems.residuals(regression), jnp.asarray(regression.starts[start]), tol=1e-12
        )
        certified = np.asarray(regression.certified)
        error = np.max(np.abs(found.params - certified) / np.abs(certified))
        assert error <= 1e-6, found.message
        np.testing.assert_allclose(2 * found.value, regression.rss, rtol=1e-9)


def test_the_gauss_newton_matrix_takes_no_second_derivative():
    """Residuals whose derivative has none of its own."""

    @jax.custom_vjp
    def cubes(x):
        return x**3

    def backward(x, u):
        return (jax.lax.stop_gradient(3 * x**2) * u,)

    cubes.defvjp(lambda x: (x**3, x), backward)
    found = gk.least_squares(lambda x: cubes(x) - 8.0, jnp.array([1.0, 3.0]), tol=1e-5)
    np.testing.assert_allclose(found.params, 2.0, rtol=1e-4)


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="least_squares: residuals must be a function"):
        gk.least_squares(3.0, jnp.ones(2))
    with pytest.raises(TypeError, match="floating-point outputs"):
        gk.least_squares(lambda x: jnp.arange(3), jnp.ones(2))
