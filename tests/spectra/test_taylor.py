from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.spectra.taylor import taylor_check


def diagonal(values):
    d = jnp.asarray(values)
    return gk.Operator(Partial(jnp.multiply, d), d)


def quadratic(oracle):
    """f = ½ θᵀMθ + 3 as value_fn, and as a function of float64 arrays."""
    A = oracle.operator

    def f(theta):
        products = jax.tree.map(jnp.multiply, theta, A.matvec(theta))
        return sum(jnp.sum(x) for x in jax.tree.leaves(products)) / 2 + 3

    return f, lambda x: x @ oracle.matrix @ x / 2 + 3


def test_on_a_quadratic_the_prediction_is_exact_and_the_loss_rises_beyond_break_even(
    operator_with, eps
):
    A, M, _ = oracle = operator_with(np.concatenate([[-2.0, 0.0], np.linspace(1, 20, 20)]))
    theta, flat = oracle.vector(1)
    f, exact = quadratic(oracle)
    g = A @ theta
    flat_g = np.asarray(ravel_pytree(g)[0], np.float64)
    break_even = 2 * flat_g @ flat_g / (flat_g @ M @ flat_g)
    rates = break_even * np.array([0.0, 0.1, 0.5, 0.99, 1.01, 2.0])
    check = taylor_check(f, A, g, theta, learning_rates=rates)
    assert check.break_even == pytest.approx(break_even, rel=100 * eps)
    assert check.curvature == pytest.approx(2 / break_even, rel=100 * eps)
    assert (np.abs(check.remainder) <= check.rounding).all()
    change = [exact(flat - rate * flat_g) - exact(flat) for rate in rates]
    assert (np.abs(check.actual - np.array(change)) <= check.rounding).all()
    assert (check.rounding < 1e3 * eps * exact(flat)).all()
    np.testing.assert_allclose(check.first_order, -rates * (flat_g @ flat_g), rtol=100 * eps)
    lowered = check.actual < -check.rounding
    assert lowered.tolist() == [False, True, True, True, False, False]
    assert (check.actual > check.rounding).tolist() == [False, False, False, False, True, True]


@pytest.mark.slow
def test_on_a_network_it_agrees_with_float64_and_the_remainder_is_of_third_order(network, dtype):
    point = gk.observe(gk.Problem(network.loss), network.params, network.batch, gk.hessian)
    H, f = point.extras["curvature"](), point.extras["value_fn"]
    rates = np.array([1e-8, 1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.04, 1.0])
    check = taylor_check(f, H, point.grad, network.params, learning_rates=rates)
    flat_g = np.asarray(ravel_pytree(point.grad)[0], np.float64)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x, np.float64)), (network.params, network.batch)
        )
        flat, unravel = ravel_pytree(wide[0])

        def loss(rate):
            return network.loss(unravel(flat - float(rate) * flat_g), wide[1])

        exact_rates = np.asarray(check.learning_rates, np.float64)
        change = np.array([loss(rate) - loss(0) for rate in exact_rates])
    gg, gHg = flat_g @ flat_g, flat_g @ network.hessian @ flat_g
    rough = dtype == np.float32
    assert check.curvature == pytest.approx(gHg / gg, rel=1e-4 if rough else 1e-6)
    np.testing.assert_allclose(
        check.predicted, -rates * gg + rates**2 / 2 * gHg, rtol=1e-4 if rough else 1e-6
    )
    errors = np.abs(check.actual - change)
    assert (errors <= check.rounding).all()
    if rough:  # in float64 the reference may be the same bits
        assert errors.max() > 0.005 * np.min(check.rounding)
    third = np.asarray(check.remainder, np.float64)[4:7]
    if not rough:
        assert np.log2(third[1:] / third[:-1]) == pytest.approx(3, abs=0.1)
    assert (np.abs(check.remainder) <= check.rounding)[:2].all()


def test_rounding_of_short_parameters_is_counted():
    """bfloat16 parameters and a loss in float32: the step is lost, and the check says so."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.bfloat16)

    def f(x):
        return jnp.sum(x.astype(jnp.float32) ** 2) / 2

    A = gk.Operator(lambda v: v, x)
    rates = np.array([1e-4, 1e-3, 0.01, 0.1, 1.0])
    check = taylor_check(f, A, x, x, learning_rates=rates)
    exact = np.asarray(x, np.float64)
    change = ((1 - rates) ** 2 - 1) / 2 * (exact @ exact)
    errors = np.abs(check.actual - change)
    assert check.actual[0] == 0
    assert (errors <= check.rounding).all()
    assert (check.rounding[:-1] <= 50 * errors[:-1]).all()
    assert (errors[:4] > 4 * np.finfo(np.float32).eps * 2 * f(x)).all()  # that of the loss alone
    assert check.curvature == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e15, 0.0])
def test_curvature_does_not_depend_on_the_size_of_the_gradient(size):
    A = diagonal(np.array([1.0, 3.0, -1.0], np.float32))
    g = jnp.asarray([size, 2 * size, size], jnp.float32)
    check = taylor_check(lambda x: 0 * jnp.sum(x), A, g, jnp.zeros(3), learning_rates=0.1)
    assert check.curvature == pytest.approx(2.0 if size else 0.0, rel=1e-6)
    assert check.break_even == pytest.approx(1.0 if size else np.inf, rel=1e-6)
    assert check.predicted == pytest.approx(-0.54 * size**2, rel=1e-6, abs=1e-40)


def test_without_positive_curvature_no_step_breaks_even_and_nan_stays_nan(dtype):
    theta = jnp.asarray([1.0, -2.0, 0.5], dtype)

    def check(sign, g):
        A = diagonal(jnp.full(3, sign, dtype))
        return taylor_check(lambda x: sign * x @ x / 2, A, g, theta, learning_rates=[1.0, 3.0])

    down = check(-1.0, -theta)
    assert down.break_even == np.inf
    assert (down.actual < 0).all()
    assert check(0.0, 0 * theta).break_even == np.inf
    broken = check(1.0, theta * np.nan)
    for figure in (broken.curvature, broken.break_even, broken.predicted, broken.actual):
        assert np.isnan(figure).all()


def test_it_runs_under_jit_on_the_host_and_for_any_shape_of_rates(dtype, eps):
    params = {"a": jnp.arange(1.0, 4, dtype=dtype), "b": [jnp.asarray(0.5, dtype)]}
    problem = gk.Problem(lambda p, batch: jnp.sum(p["a"] ** 4) * p["b"][0] + batch * p["b"][0] ** 2)
    point = gk.observe(problem, params, 3.0, gk.hessian)
    rates = np.array([[0.01, 0.1, 1.0], [0.02, 0.2, 2.0]]) / 100

    def run(point, params, rates, drive=gk.in_jit):
        H, f = point.extras["curvature"](), point.extras["value_fn"]
        return taylor_check(f, H, point.grad, params, learning_rates=rates, drive=drive)

    plain = run(point, params, rates)
    assert plain.actual.shape == plain.predicted.shape == plain.rounding.shape == (2, 3)
    for other in (
        jax.jit(run)(point, params, rates),
        run(point, params, rates, drive=gk.on_host),
    ):
        assert (np.abs(other.actual - plain.actual) <= plain.rounding).all()
        np.testing.assert_allclose(other.predicted, plain.predicted, rtol=100 * eps)
    single = run(point, params, 0.001)
    assert single.actual.shape == ()
    assert abs(single.actual - plain.actual[0, 1]) <= single.rounding


def test_operators_and_losses_that_cannot_be_traced_are_called_from_python(operator_with):
    A, *_ = oracle = operator_with(np.linspace(1, 20, 20))
    theta, _ = oracle.vector(1)
    f, _ = quadratic(oracle)

    def on_host(function):
        def call(x):
            assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
            return function(x)

        return call

    B = gk.Operator(on_host(A.matvec), A.domain, traceable=False)
    rates, g = np.array([[0.01], [0.1], [0.2]]), A @ theta
    check = taylor_check(on_host(f), B, g, theta, learning_rates=rates)
    expected = taylor_check(f, A, g, theta, learning_rates=rates)
    np.testing.assert_allclose(check.predicted, expected.predicted, rtol=1e-5)
    assert (np.abs(check.actual - expected.actual) <= expected.rounding).all()
    assert check.actual.shape == (3, 1)


def test_the_check_refuses_what_does_not_fit_together():
    A, x = diagonal(jnp.ones(3)), jnp.ones(3)
    for value_fn, error, message in (
        (3.0, TypeError, "value_fn: expected a function of params, got float"),
        (lambda x: x, TypeError, "value_fn: expected a function that returns a real scalar"),
        (lambda x: None, TypeError, "value_fn: expected a function that returns a real"),
        (lambda x: (x[0], x), TypeError, "value_fn: expected a function that returns a real"),
    ):
        with pytest.raises(error, match=message):
            taylor_check(value_fn, A, x, x, learning_rates=0.1)
    with pytest.raises(ValueError, match="structure, shapes and dtypes of the operator's domain"):
        taylor_check(jnp.sum, A, jnp.ones(2), x, learning_rates=0.1)
    with pytest.raises(ValueError, match="params: not like the operator's domain"):
        taylor_check(jnp.sum, A, x, jnp.ones(2), learning_rates=0.1)
