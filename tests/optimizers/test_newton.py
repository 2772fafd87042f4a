from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.newton import newton, scale_by_newton


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="curvature")
def advanced(tx, loss, params, state, curvature=gk.hessian):
    point = gk.observe(loss, params, None, curvature)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state


def run(tx, loss, params, steps, **options):
    state = tx.init(params)
    for _ in range(steps):
        params, state = advanced(tx, loss, params, state, **options)
    return params, state


def direction(A, g, damping=0.0):
    """What the member makes of a gradient, and its state."""
    tx = scale_by_newton(damping)
    return jax.jit(lambda g: tx.update(g, tx.init(g), g, curvature=lambda: A))(g)


def flat(a):
    return np.asarray(ravel_pytree(a)[0], np.float64)


def matrix(M):
    M = jnp.asarray(M)
    return gk.Operator(
        jax.tree_util.Partial(functools.partial(jnp.matmul, precision="highest"), M), M[0]
    )


@pytest.mark.parametrize("eigenvalues", [np.geomspace(1, 100, 9), np.linspace(-3, 4.5, 9)])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_direction_solves_the_damped_system(operator_with, eps, eigenvalues, damping):
    oracle = operator_with(eigenvalues)
    g, g_flat = oracle.vector(1)
    d, state = direction(oracle.operator, g, damping)
    damped = oracle.matrix + damping * np.eye(len(g_flat))
    expected = np.linalg.solve(damped, g_flat)
    condition = np.linalg.cond(damped)
    assert jax.tree.structure(d) == jax.tree.structure(g)
    np.testing.assert_allclose(
        flat(d), expected, atol=50 * eps * condition * np.linalg.norm(expected)
    )
    values = np.linalg.eigvalsh(damped)
    metrics = gk.metrics(state)
    assert metrics["positive_curvatures"] == np.sum(values > 0)
    assert metrics["negative_curvatures"] == np.sum(values < 0)
    assert metrics["zero_curvatures"] == 0
    assert metrics["products"] == len(g_flat)


def test_one_step_reaches_the_minimum_of_a_quadratic(dtype, eps):
    H = jnp.asarray(np.diag([1.0, 4.0, 9.0]) + 0.5, dtype)
    b = jnp.asarray([1.0, -2.0, 3.0], dtype)
    start = jnp.asarray([5.0, 6.0, 7.0], dtype)
    x, _ = run(newton(1.0), lambda x, _: x @ H @ x / 2 - b @ x, start, 1)
    np.testing.assert_allclose(x, np.linalg.solve(np.asarray(H, float), b), atol=200 * eps)


def test_one_gauss_newton_step_solves_linear_least_squares(dtype, eps):
    rng = np.random.default_rng(0)
    X, y = jnp.asarray(rng.normal(size=(12, 4)), dtype), jnp.asarray(rng.normal(size=12), dtype)
    fit = gk.Problem(predict=lambda w, _: X @ w - y, criterion=lambda r, _: jnp.sum(r**2) / 2)
    w, _ = run(newton(1.0), fit, jnp.ones(4, dtype), 1, curvature=gk.gauss_newton)
    expected = np.linalg.lstsq(np.asarray(X, float), np.asarray(y, float), rcond=None)[0]
    np.testing.assert_allclose(w, expected, atol=200 * eps)


def test_gauss_newton_with_a_line_search_fits_a_curve():
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 4.0, 30)
        y = 3 * jnp.exp(-0.7 * t)
        fit = gk.Problem(
            predict=lambda x, _: x[0] * jnp.exp(-x[1] * t) - y,
            criterion=lambda r, _: jnp.sum(r**2) / 2,
        )
        start = jnp.array([1.0, 3.0])
        x, state = run(newton(None), fit, start, 15, curvature=gk.gauss_newton)
        np.testing.assert_allclose(x, [3.0, 0.7], rtol=1e-12)
        assert gk.metrics(state)["evaluations"] > 5


def test_the_error_squares_in_each_step():
    with jax.enable_x64(True):
        minimum = jnp.array([1.0, -0.5])

        def loss(x, _):
            y = x - minimum
            return jnp.sum(jnp.exp(y) - y) + y[0] ** 2 * y[1] ** 2

        errors = []
        for steps in (1, 2, 3, 4):
            x, _ = run(newton(1.0), loss, minimum + jnp.array([0.4, 0.3]), steps)
            errors.append(float(jnp.linalg.norm(x - minimum)))
    order = np.diff(np.log(errors))
    np.testing.assert_allclose(order[1:] / order[:-1], 2, atol=0.25)
    assert errors[-1] < 1e-8


def saddle(x, _):
    return 5 * x[0] ** 2 - x[1] ** 2


def monkey_saddle(x, _):
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


def test_undamped_it_goes_to_the_saddle_that_gradient_descent_leaves():
    start = jnp.array([0.5, 0.01])
    at_saddle, state = run(newton(1.0), saddle, start, 1)
    np.testing.assert_allclose(at_saddle, 0, atol=1e-6)
    assert gk.metrics(state)["negative_curvatures"] == 1
    descended, _ = run(gk.sgd(0.05), saddle, start, 40)
    assert abs(descended[0]) < 1e-6
    assert descended[1] > 0.3


def test_the_monkey_saddle_halves_its_distance_in_each_step(dtype, eps):
    """Its Hessian is linear in x, and g = H x / 2."""
    x = jnp.asarray([0.8, 0.3], dtype)
    after, _ = run(newton(1.0), monkey_saddle, x, 8)
    np.testing.assert_allclose(after, np.asarray(x) / 2**8, rtol=100 * eps)


def test_damping_above_the_lowest_eigenvalue_leaves_the_saddle():
    x, state = run(newton(1.0, damping=4.0), saddle, jnp.array([0.5, 0.01]), 8)
    assert gk.metrics(state)["negative_curvatures"] == 0
    assert x[1] > 0.5
    assert abs(x[0]) < 0.01


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_a_singular_matrix_gives_a_solution_that_is_finite(operator_with, eps, rank):
    oracle = operator_with(np.concatenate([np.zeros(9 - rank), np.linspace(1, 2, rank)]))
    _, v = oracle.vector(2)
    image = oracle.matrix @ v
    g = oracle.unravel(jnp.asarray(image, oracle.vector(0)[0]["a"].dtype))
    d, state = direction(oracle.operator, g)
    np.testing.assert_allclose(oracle.matrix @ flat(d), image, atol=200 * eps)
    assert np.linalg.norm(flat(d)) <= 3 * np.linalg.norm(v)
    assert gk.metrics(state)["zero_curvatures"] == 9 - rank


def test_parameters_of_different_units_do_not_drown_each_other(dtype, eps):
    units = 10.0 ** np.array([-6, 0, 5, -3, 2])
    M = np.array(np.eye(5) + 0.3)
    scaled = jnp.asarray(units[:, None] * M * units, dtype)
    g = jnp.asarray(units * np.arange(1, 6), dtype)
    d, state = direction(matrix(scaled), g)
    expected = np.linalg.solve(M, np.arange(1, 6)) / units
    np.testing.assert_allclose(d, expected, rtol=300 * eps)
    assert gk.metrics(state)["zero_curvatures"] == 0


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_direction_is_that_of_any_multiple_of_the_loss(operator_with, eps, factor):
    oracle = operator_with(np.linspace(-3, 4.5, 9))
    g, _ = oracle.vector(1)
    alone, _ = direction(oracle.operator, g)
    times = jax.tree.map(lambda x: (factor * x).astype(x.dtype), g)
    together, _ = direction(factor * oracle.operator, times)
    np.testing.assert_allclose(flat(together), flat(alone), rtol=1e3 * eps, atol=1e3 * eps)


def test_what_is_not_finite_is_not_hidden_and_does_not_move_a_search():
    g = jnp.array([1.0, jnp.nan])
    d, _ = direction(matrix(np.eye(2, dtype=np.float32)), g)
    assert jnp.isnan(d).all()
    d, _ = direction(matrix(np.full((2, 2), np.nan, np.float32)), jnp.ones(2))
    assert jnp.isnan(d).all()
    start = jnp.array([-1.0, 2.0])
    x, state = run(newton(None), lambda x, _: jnp.sum(jnp.sqrt(x)), start, 1)
    np.testing.assert_array_equal(x, start)
    assert gk.metrics(state)["failures"] == 1


def test_leaves_of_every_kind_keep_their_dtypes():
    with jax.enable_x64(True):
        params = {
            "none": jnp.zeros((0, 3)),
            "scalar": jnp.asarray(2.0, jnp.float32),
            "wide": jnp.array([1.0, 2.0]),
        }

        def loss(p, _):
            return (p["scalar"] - 3) ** 2 + jnp.sum((p["wide"] + p["scalar"]) ** 2)

        x, _ = run(newton(1.0), loss, params, 1)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), x) == jax.tree.map(
            lambda a: (a.shape, a.dtype), params
        )
        assert x["scalar"] == 3
        np.testing.assert_allclose(x["wide"], -3, rtol=1e-12)
        nothing = {"none": jnp.zeros((0, 3))}
        still, _ = run(newton(1.0), lambda p, _: jnp.sum(p["none"]), nothing, 1)
        assert still["none"].shape == (0, 3)


@pytest.mark.slow
def test_vmap_equals_one_by_one(dtype, eps):
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), dtype)

    def two_steps(x):
        return run(newton(1.0), monkey_saddle, x, 2)[0]

    together = jax.vmap(two_steps)(starts)
    alone = jnp.stack([two_steps(x) for x in starts])
    np.testing.assert_allclose(together, alone, rtol=200 * eps)
    np.testing.assert_allclose(together, starts / 4, rtol=200 * eps)


def test_what_it_needs_is_named_when_it_is_missing_or_wrong():
    g = jnp.ones(2)
    tx = newton(1.0)
    with pytest.raises(TypeError, match="scale_by_newton needs the extra argument 'curvature'"):
        tx.update(g, tx.init(g), g)
    z = jnp.ones(2, jnp.complex64)
    A = gk.Operator(lambda v: 2 * v, z)
    with pytest.raises(TypeError, match=r"expects real parameters, got complex64; gk\.newton_cg"):
        tx.update(z, tx.init(z), z, curvature=lambda: A)
