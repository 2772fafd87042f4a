from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.trust_region import trust_region

SOLVERS = ("gltr", "steihaug")


@functools.partial(jax.jit, static_argnums=(0, 1))
def advanced(tx, loss, params, state):
    point = gk.observe(loss, params, None, gk.hessian)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state, optax.tree.norm(point.grad)


def run(tx, loss, params, steps, tol=0.0):
    """Where the updates lead, how many there were, and the state."""
    state = tx.init(params)
    for k in range(steps):
        params, state, norm = advanced(tx, loss, params, state)
        if norm <= tol:
            return params, k, state
    return params, steps, state


def rosenbrock(x, _):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def wood(x, _):
    a, b, c, d = x
    return (
        100 * (b - a**2) ** 2
        + (1 - a) ** 2
        + 90 * (d - c**2) ** 2
        + (1 - c) ** 2
        + 10 * (b + d - 2) ** 2
        + (b - d) ** 2 / 10
    )


def beale(x, _):
    powers = jnp.arange(1, 4, dtype=x.dtype)
    return jnp.sum((jnp.array([1.5, 2.25, 2.625], x.dtype) - x[0] * (1 - x[1] ** powers)) ** 2)


def quartic(x, _):
    return jnp.sum(x**4)


CLASSICS = {
    "rosenbrock": (rosenbrock, [-1.2, *[1.0] * 9]),
    "wood": (wood, [-3.0, -1.0, -3.0, -1.0]),
    "beale": (beale, [1.0, 1.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", CLASSICS)
def test_reaches_a_minimum_of_classical_problems(name, solver):
    with jax.enable_x64(True):
        loss, start = CLASSICS[name]
        x, steps, state = run(trust_region(solver=solver), loss, jnp.array(start), 100, 1e-9)
        H = np.asarray(jax.hessian(loss)(x, None))
        assert steps < 100
        assert np.linalg.eigvalsh(H)[0] > 0
        assert state.last.failures == 0
        if name != "rosenbrock":  # which has another minimum
            assert loss(x, None) < 1e-18


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_reaches_the_minimum_of_a_quadratic_within_the_radius(solver, dtype, eps):
    H = jnp.asarray(np.diag([1.0, 4.0, 9.0]) + 0.5, dtype)
    b = jnp.asarray([1.0, -2.0, 3.0], dtype)

    def loss(x, _):
        return x["x"] @ H @ x["x"] / 2 - b @ x["x"]

    start = {"x": jnp.zeros(3, dtype), "none": jnp.zeros((0, 2), dtype)}
    minimum = np.linalg.solve(np.asarray(H, float), b)
    x, _, _ = run(trust_region(10.0, solver=solver, tol=0.0), loss, start, 1)
    np.testing.assert_allclose(x["x"], minimum, atol=100 * eps)
    x, _, state = run(trust_region(0.1, max_radius=0.1, solver=solver), loss, start, 1)
    assert optax.tree.norm(x) == pytest.approx(0.1, rel=10 * eps)
    assert state.radius == pytest.approx(0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_follows_negative_curvature_out_of_a_saddle(solver, dtype):
    def loss(x, _):
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    x, _, _ = run(trust_region(solver=solver), loss, jnp.array([1.0, 1e-3], dtype), 30)
    np.testing.assert_allclose(jnp.abs(x), [0, np.sqrt(0.5)], atol=1e-3)


@pytest.mark.slow
def test_a_singular_hessian_is_no_obstacle(dtype, eps):
    def loss(x, _):
        return (x[0] + x[1] - 3) ** 2 + 0 * x[2]

    x, _, _ = run(trust_region(), loss, jnp.ones(3, dtype), 5)
    np.testing.assert_allclose(x, [1.5, 1.5, 1.0], atol=20 * eps)
    with jax.enable_x64(True):  # linear convergence to a minimum with H = 0: by 2/3 a step
        x, _, _ = run(trust_region(), quartic, jnp.array([1.0, -2.0]), 30)
        assert 0 < jnp.max(jnp.abs(x)) <= 2 * (2 / 3) ** 29


def test_a_loss_beyond_a_boundary_is_a_rejection(dtype, eps):
    def loss(x, _):
        return jnp.sum(10 * x - jnp.log(x))  # NaN for x < 0

    x, steps, state = run(trust_region(100.0), loss, jnp.array([1.0, 5.0], dtype), 30)
    np.testing.assert_allclose(x, 0.1, rtol=100 * eps)
    assert state.last.failures == 0
    assert state.last.work.evaluations > steps + 3


def test_a_loss_that_is_not_finite_anywhere_else_moves_nothing(dtype):
    def loss(x, _):
        return jnp.sum(x) / jnp.where(jnp.all(x == 1), 1, 0)

    start = jnp.ones(2, dtype)
    tx = trust_region()
    x, _, state = run(tx, loss, start, 2)
    np.testing.assert_array_equal(x, start)
    assert state.last.failures == 2
    assert jnp.isfinite(state.radius)
    before, (_, state, _) = tx.init(start), advanced(tx, loss, jnp.nan * start, tx.init(start))
    assert state.last.failures == 1
    assert state.last.work.evaluations == before.last.work.evaluations
    assert state.radius == before.radius


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_iterates_do_not_depend_on_the_unit_of_the_loss(solver):
    with jax.enable_x64(True):
        start = jnp.array(CLASSICS["wood"][1])
        tx = trust_region(solver=solver)
        one, _, _ = run(tx, wood, start, 12)
        other, _, _ = run(tx, lambda x, _: 2.0**-40 * wood(x, None), start, 12)
        np.testing.assert_allclose(other, one, rtol=1e-9)


def test_converges_in_float32_on_top_of_a_large_offset():
    """Differences of losses are rounding; the steps are the model's then."""
    start = jnp.array([-1.2, 1.0], jnp.float32)
    x, _, _ = run(trust_region(), lambda x, _: rosenbrock(x, None) + 1e4, start, 60)
    first = jnp.linalg.norm(jax.grad(rosenbrock)(start, None))
    assert jnp.linalg.norm(jax.grad(rosenbrock)(x, None)) <= 1e-5 * first


def test_converges_superlinearly():
    with jax.enable_x64(True):

        def loss(x, _):
            return jnp.sum(jnp.cosh(x - jnp.array([1.0, -0.5])) + jnp.sin(x[0] - 1) ** 4)

        errors, tx = [], trust_region(tol=1e-12)
        for steps in (2, 3, 4):
            x, _, _ = run(tx, loss, jnp.array([1.5, -1.0]), steps)
            errors.append(float(jnp.max(jnp.abs(x - jnp.array([1.0, -0.5])))))
    assert errors[1] < errors[0] ** 1.4  # order 3/2, by √(‖g‖ / ‖g₀‖)
    assert errors[2] < max(errors[1] ** 1.4, 1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_it_asks_for_is_counted(solver):
    asked = {"products": 0, "evaluations": 0}

    def count(name):
        asked[name] += 1

    def counted(problem, params, batch):
        H = gk.hessian(problem, params, batch)

        def matvec(v):
            jax.debug.callback(lambda: count("products"))
            return H.matvec(v)

        return gk.Operator(matvec, params)

    tx, x = trust_region(solver=solver), jnp.array([-1.2, 1.0, 1.0])

    @jax.jit
    def step(x, state):
        point = gk.observe(rosenbrock, x, None, counted)

        def value_fn(x):
            jax.debug.callback(lambda: count("evaluations"))
            return rosenbrock(x, None)

        updates, state = tx.update(point.grad, state, x, **{**point.extras, "value_fn": value_fn})
        return x + updates, state

    state = tx.init(x)
    for _ in range(8):
        x, state = step(x, state)
    jax.effects_barrier()
    told = gk.metrics(state)
    assert {name: int(told[name]) for name in asked} == asked
    assert asked["evaluations"] > 8


def test_nothing_is_asked_for_where_the_gradient_is_zero():
    x, _, state = run(trust_region(), quartic, jnp.zeros(3), 1)
    np.testing.assert_array_equal(x, 0)
    assert (state.last.failures, *state.last.work) == (0, 0, 0, 0)


@pytest.mark.slow
def test_many_starts_at_once_are_as_one_by_one():
    with jax.enable_x64(True):
        tx, starts = trust_region(), jnp.array([[-1.2, 1.0], [0.5, 2.0], [1.0, 1.0]])

        def once(x):
            return advanced(tx, rosenbrock, x, tx.init(x))[:2]

        together, states = jax.vmap(once)(starts)
        for number, start in enumerate(starts):
            x, state = once(start)
            np.testing.assert_allclose(together[number], x, rtol=1e-9)
            assert states.last.work.products[number] == state.last.work.products


def test_arguments_are_checked():
    for arguments in ({"solver": "newton"}, {"radius": 0.0}, {"basis": 0}, {"max_trials": 1.5}):
        with pytest.raises(ValueError, match="trust_region"):
            trust_region(**arguments)
    tx = trust_region()
    with pytest.raises(TypeError, match="trust_region needs the extra argument"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
