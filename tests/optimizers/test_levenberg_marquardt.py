from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.levenberg_marquardt import levenberg_marquardt

DENSE = levenberg_marquardt(solver="dense")
LANCZOS = levenberg_marquardt(solver="lanczos")
SOLVERS = {"dense": DENSE, "lanczos": LANCZOS}


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="curvature")
def advanced(tx, loss, params, state, batch, curvature=gk.hessian) -> Any:
    point = gk.observe(loss, params, batch, curvature)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state, point.value


def run(tx, loss, params, steps, batch=None, **options):
    """Where the updates lead, the losses on the way and the state."""
    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = advanced(tx, loss, params, state, batch, **options)
        losses.append(float(value))
    return params, np.array(losses), state


def flat(a):
    return np.asarray(ravel_pytree(a)[0], np.float64)


def squares(residuals):
    return gk.Problem(predict=residuals, criterion=lambda r, _: jnp.sum(jnp.square(r)) / 2)


def rosenbrock(x, units=1.0):
    x = units * x
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


ROSENBROCK = squares(lambda x, units: rosenbrock(x, units))

LOSSES = {
    "rosenbrock": lambda x: jnp.sum(rosenbrock(x) ** 2) / 2,
    "offset": lambda x: 1e4 + jnp.sum(rosenbrock(x) ** 2) / 2,
    "saddle": lambda x: 5 * x[0] ** 2 - x[1] ** 2 + x[1] ** 4,
    "plane": lambda x: (x[0] + x[1] - 1) ** 2,
    "linear": jnp.sum,
    "barrier": lambda x: jnp.sum(10 * x - jnp.log(x)),
    "roots": lambda x: jnp.sum(jnp.sqrt(x)),
}


def any_of_them(x, name):
    """One loss with a switch in it, which is compiled once for all tests."""
    return jax.lax.switch(name, list(LOSSES.values()), x)


def descend(solver, name, start, steps):
    number = jnp.asarray(list(LOSSES).index(name))
    return run(SOLVERS[solver], any_of_them, jnp.asarray(start), steps, number)


@pytest.mark.parametrize("eigenvalues", [np.geomspace(1, 100, 9), np.linspace(-3, 4.5, 9)])
@pytest.mark.parametrize("scaling", [True, False])
def test_the_step_solves_the_damped_system(operator_with, eps, eigenvalues, scaling):
    """(A + (α − min(λ, 0)) D) d = g with λ the lowest eigenvalue of A relative to D."""
    oracle, alpha = operator_with(eigenvalues), 0.3
    A, n = oracle.matrix, len(oracle.matrix)
    x, _ = oracle.vector(0)
    g, g_flat = oracle.vector(1)
    diagonal = np.abs(np.diag(A))
    root = np.sqrt(diagonal if scaling else np.full(n, diagonal.max()))
    lowest = min(np.linalg.eigvalsh(A / np.outer(root, root))[0], 0)
    damped = A + (alpha - lowest) * np.diag(root**2)
    expected = np.linalg.solve(damped, g_flat)
    tx = levenberg_marquardt(alpha, solver="dense", scaling=scaling)

    @jax.jit
    def update(g):  # of a loss that falls as the model foretells
        start = ravel_pytree(x)[0]

        def value_fn(y):
            d = start - ravel_pytree(y)[0]
            high = functools.partial(jnp.matmul, precision="highest")
            return high(high(d, jnp.asarray(A, d.dtype)), d) / 2 - high(ravel_pytree(g)[0], d)

        extras = {"value": value_fn(x), "grad": g, "value_fn": value_fn}
        return tx.update(g, tx.init(x), x, curvature=lambda: oracle.operator, **extras)

    step, state = update(g)
    condition = np.linalg.cond(damped / np.outer(root, root))
    tolerance = 100 * eps * condition * np.linalg.norm(expected)
    np.testing.assert_allclose(flat(step), -expected, atol=tolerance)
    metrics = gk.metrics(state)
    assert metrics["ratio"] == pytest.approx(1, abs=1e4 * eps)
    assert metrics["damping"] == pytest.approx(alpha / 10, rel=1e3 * eps)
    assert metrics["products"] == n


@pytest.mark.slow
def test_the_krylov_step_has_the_residual_it_was_asked_for(network, eps):
    """d solves (A + μ I) d = g in the Krylov space: μ is known from dᵀ(A d + μ d) = gᵀd."""
    tx = levenberg_marquardt(solver="lanczos", tol=1e-3)
    params, before = network.params, network.loss(network.params, network.batch)
    state, A = tx.init(params), network.hessian
    for k in range(10):
        following, state, _ = advanced(tx, network.loss, params, state, network.batch)
        if k == 0:
            d = flat(params) - flat(following)
            g = flat(jax.grad(network.loss)(params, network.batch))
            mu = (d @ g - d @ A @ d) / (d @ d)
            residual = np.linalg.norm(A @ d + mu * d - g) / np.linalg.norm(g)
            assert residual <= 1e-3 + 1e4 * eps
            assert mu > -np.linalg.eigvalsh(A)[0]
            assert gk.metrics(state)["products"] <= len(g)
        params = following
    assert network.loss(params, network.batch) < before / 2
    assert gk.metrics(state)["failures"] == 0
    assert jax.tree.structure(params) == jax.tree.structure(network.params)


@pytest.mark.parametrize("solver", SOLVERS)
def test_minimizes_rosenbrock_and_never_raises_the_loss(solver):
    with jax.enable_x64(True):
        x, losses, state = descend(solver, "rosenbrock", [-1.2, 1.0], 40)
        np.testing.assert_allclose(x, 1, atol=1e-9)
        assert (np.diff(losses) <= 10 * np.finfo(float).eps * losses[:-1]).all()
        assert gk.metrics(state)["failures"] == 0
        assert gk.metrics(state)["damping"] < 1e-6
        assert losses[0] == pytest.approx(12.1)


def test_the_damping_follows_the_gain_ratio():
    """Rejected: times 2, 4, 8 … Accepted: times max(1/10, 1 − (2ρ − 1)³)."""
    with jax.enable_x64(True):
        x = jnp.array([-1.2, 1.0])
        state: Any = DENSE.init(x)
        rejections = set()
        for _ in range(12):
            was = gk.metrics(state), state.memory.scale
            after, state, value = advanced(
                DENSE, ROSENBROCK, x, state, jnp.ones(2), curvature=gk.gauss_newton
            )
            now, D = gk.metrics(state), np.asarray(state.memory.scale)
            rejected = int(now["evaluations"] - was[0]["evaluations"]) - 1
            alpha = float(was[0]["damping"]) * 2.0 ** (rejected * (rejected + 1) / 2)
            J = np.asarray(jax.jacobian(rosenbrock)(x))
            G, g = J.T @ J, J.T @ np.asarray(rosenbrock(x))
            d = np.asarray(x - after)
            np.testing.assert_allclose((G + alpha * np.diag(D)) @ d, g, atol=1e-9 * np.abs(g).max())
            fall = value - ROSENBROCK.value(after, jnp.ones(2))
            ratio = float(fall / (g @ d - d @ G @ d / 2))
            assert now["ratio"] == pytest.approx(ratio, rel=1e-6)
            alpha *= max(0.1, 1 - (2 * ratio - 1) ** 3)
            assert now["damping"] == pytest.approx(alpha, rel=1e-5)
            np.testing.assert_allclose(np.maximum(was[1], np.diag(G)), D, rtol=1e-12)
            rejections.add(rejected)
            x = after
    assert len(rejections) > 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_path_is_that_of_any_multiple_of_the_loss(solver):
    def loss(x, factor):
        return factor * (jnp.sum(rosenbrock(x) ** 2) + jnp.prod(x))

    with jax.enable_x64(True):
        start = jnp.array([-1.2, 1.0, 0.3])
        x, *_ = run(SOLVERS[solver], loss, start, 8, jnp.asarray(1.0))
        for factor in (1e-12, 1e6):
            y, *_ = run(SOLVERS[solver], loss, start, 8, jnp.asarray(factor))
            np.testing.assert_allclose(y, x, rtol=1e-9)
        assert jnp.max(jnp.abs(x - start)) > 0.1


def test_with_scaling_the_units_of_the_parameters_do_not_matter():
    with jax.enable_x64(True):
        units, start = jnp.array([1e-6, 1e3]), jnp.array([-1.2, 1.0])
        fit = functools.partial(run, curvature=gk.gauss_newton, steps=8)
        x, *_ = fit(DENSE, ROSENBROCK, start, batch=jnp.ones(2))
        z, *_ = fit(DENSE, ROSENBROCK, start / units, batch=units)
        np.testing.assert_allclose(units * z, x, rtol=1e-8)
        unscaled = levenberg_marquardt(scaling=False)
        z, *_ = fit(unscaled, ROSENBROCK, start / units, batch=units)
        assert jnp.max(jnp.abs(units * z - x)) > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_leaves_the_neighborhood_of_a_saddle(solver, dtype):
    x, losses, _ = descend(solver, "saddle", np.array([0.5, 1e-3], dtype), 30)
    assert losses[-1] == pytest.approx(-0.25, abs=1e-6)
    assert abs(x[1]) == pytest.approx(0.5**0.5, abs=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_singular_matrix_is_no_trouble(solver, dtype, eps):
    x, losses, _ = descend(solver, "plane", np.array([0.3, 0.2], dtype), 10)
    np.testing.assert_allclose(x, [0.55, 0.45], atol=50 * eps)
    assert losses[-1] < 10 * eps**2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_loss_falls_without_end_and_stays_finite(solver):
    x, losses, _ = descend(solver, "linear", [1.0, 1.0], 5)
    assert (np.diff(losses) < 0).all()
    assert jnp.isfinite(x).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_trials_beyond_a_boundary_fail_and_shorten_the_step(solver):
    with jax.enable_x64(True):
        x, losses, state = descend(solver, "barrier", [5.0, 0.3], 2)
        assert gk.metrics(state)["evaluations"] > 2
        assert losses[1] < losses[0]
        x, _, state = descend(solver, "barrier", [5.0, 0.3], 40)
        np.testing.assert_allclose(x, 0.1, rtol=1e-6)
        assert gk.metrics(state)["failures"] == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_not_finite_moves_nothing_and_is_counted(solver):
    x, _, state = descend(solver, "roots", [-1.0, 2.0], 2)
    np.testing.assert_array_equal(x, [-1.0, 2.0])
    metrics = gk.metrics(state)
    assert metrics["failures"] == 2
    assert metrics["evaluations"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_rounding_hides_the_decrease_the_slopes_decide(solver):
    """In float32, 10⁴ + f has no digit left of the last five of f."""
    x, _, state = descend(solver, "offset", [-1.2, 1.0], 40)
    np.testing.assert_allclose(x, 1, atol=1e-3)
    assert gk.metrics(state)["gradients"] > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_work_is_counted_as_it_is_done_and_a_loss_that_never_falls_is_a_failure(solver):
    calls = {"products": 0, "evaluations": 0}

    def count(name):
        calls[name] += 1

    x, tx = jnp.array([-1.2, 1.0, 0.5]), levenberg_marquardt(solver=solver, max_trials=5)
    point = gk.observe(ROSENBROCK, x, jnp.ones(3), gk.hessian)
    H = gk.hessian(ROSENBROCK, x, jnp.ones(3)).dense()

    def matvec(v):
        jax.debug.callback(count, "products")
        return H @ v

    def value_fn(y):
        jax.debug.callback(count, "evaluations")
        return point.value + 1

    extras = point.extras | {"value_fn": value_fn, "curvature": lambda: gk.Operator(matvec, x)}
    step, state = jax.jit(lambda s: tx.update(point.grad, s, x, **extras))(tx.init(x))
    jax.effects_barrier()
    np.testing.assert_array_equal(step, 0)
    metrics = gk.metrics(state)
    assert calls == {name: metrics[name] for name in calls}
    assert metrics["evaluations"] == 5
    assert metrics["products"] == 3 if solver == "dense" else 1 <= metrics["products"] <= 3
    assert metrics["gradients"] == 0
    assert metrics["failures"] == 1
    assert metrics["damping"] == pytest.approx(1e-3 * 2**15, rel=1e-5)


def test_vmap_equals_one_by_one():
    with jax.enable_x64(True):
        starts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

        @jax.jit
        def after(x):
            state = DENSE.init(x)
            for _ in range(2):
                x, state, _ = advanced(
                    DENSE, ROSENBROCK, x, state, jnp.ones(2), curvature=gk.gauss_newton
                )
            return x, gk.metrics(state)["evaluations"]

        together, counts = jax.vmap(after)(starts)
        alone = [after(x) for x in starts]
        np.testing.assert_allclose(together, [x for x, _ in alone], rtol=1e-10)
        np.testing.assert_array_equal(counts, [count for _, count in alone])
        assert len(set(np.asarray(counts).tolist())) > 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_leaves_of_every_kind_keep_their_dtypes(solver):
    with jax.enable_x64(True):
        params = {
            "none": jnp.zeros((0, 3)),
            "scalar": jnp.asarray(2.0, jnp.float32),
            "wide": jnp.array([1.0, 2.0]),
        }

        def loss(p, _):
            return (p["scalar"] - 3) ** 2 + jnp.sum((p["wide"] + p["scalar"]) ** 2)

        def types(a):
            return jax.tree.map(lambda x: (x.shape, x.dtype), a)

        x, _, state = run(SOLVERS[solver], loss, params, 12)
        assert types(x) == types(params)
        np.testing.assert_allclose(x["wide"], -3, rtol=1e-5)
        assert types(state) == types(SOLVERS[solver].init(params))
        nothing = {"none": jnp.zeros((0, 3))}
        updates: Any
        updates, state = SOLVERS[solver].update(
            nothing,
            SOLVERS[solver].init(nothing),
            nothing,
            value=jnp.zeros(()),
            grad=nothing,
            value_fn=lambda p: jnp.sum(p["none"]),
            curvature=lambda: gk.Operator(lambda v: v, nothing),
        )
        assert updates["none"].shape == (0, 3)
        assert gk.metrics(state)["failures"] == 0


def test_the_solver_is_chosen_by_the_number_of_parameters():
    few: Any = levenberg_marquardt().init(jnp.ones(20))
    many: Any = levenberg_marquardt().init(jnp.ones(21))
    assert few.memory.scale.shape == (20,)
    assert many.memory.scale.shape == ()


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="damping must be a positive number, got 0"):
        levenberg_marquardt(0)
    with pytest.raises(ValueError, match="solver must be 'dense', 'lanczos' or None, got 'cg'"):
        levenberg_marquardt(solver="cg")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="max_trials must be a positive whole number"):
        levenberg_marquardt(max_trials=0)
    x = jnp.ones(2)
    with pytest.raises(TypeError, match="levenberg_marquardt needs the extra argument 'value'"):
        DENSE.update(x, DENSE.init(x), x)
    z = jnp.ones(2, jnp.complex64)
    point = gk.observe(lambda z, _: jnp.sum(jnp.abs(z) ** 2), z, None, gk.hessian)
    with pytest.raises(TypeError, match="expects real parameters, got complex64"):
        DENSE.update(point.grad, DENSE.init(z), z, **point.extras)
