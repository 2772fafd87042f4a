"""`minimize` against closed forms and SciPy: values, counts, trees, jit, vmap, history, drivers."""

from __future__ import annotations

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import gradkit as gk

METHODS = ("lbfgs", "bfgs", "nonlinear_cg", "newton_cg", "trust_region", "levenberg_marquardt")


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quartic(x, target):
    """Convex, on a tree with leaves of no and of zero dimensions."""
    near = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2 + (a - b) ** 4 / 4), x, target)
    return sum(jax.tree.leaves(near))


def nested(dtype):
    return {
        "w": jnp.arange(6, dtype=dtype).reshape(2, 3) / 3,
        "b": [jnp.asarray(-1.0, dtype), jnp.zeros((0, 2), dtype)],
    }


def start(n, dtype=jnp.float64):
    return jnp.where(jnp.arange(n) % 2 == 0, -1.2, 1.0).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_reaches_the_minimum_that_scipy_reaches(method):
    with jax.enable_x64(True):
        found = gk.minimize(rosenbrock, start(2), method=method, tol=1e-8)
        theirs = scipy.optimize.minimize(
            lambda x: float(rosenbrock(x)), np.asarray(start(2)), jac=jax.grad(rosenbrock), tol=1e-9
        )
        assert gk.Status(int(found.status)) is gk.Status.GRADIENT, found.message
        assert np.max(np.abs(found.grad)) <= 1e-8
        np.testing.assert_allclose(found.params, theirs.x, atol=1e-6)
        np.testing.assert_allclose(found.value, rosenbrock(found.params), atol=1e-20)
        np.testing.assert_allclose(found.grad, jax.grad(rosenbrock)(found.params), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_on_a_nested_tree_in_both_precisions(method, dtype, eps):
    target = nested(dtype)
    zeros = jax.tree.map(jnp.zeros_like, target)
    found = gk.minimize(quartic, zeros, method=method, args=(target,), tol=100 * eps)
    assert bool(found.converged), found.message
    assert jax.tree.map(jnp.shape, found.params) == jax.tree.map(jnp.shape, target)
    for x, t in zip(jax.tree.leaves(found.params), jax.tree.leaves(target), strict=True):
        assert x.dtype == t.dtype
        np.testing.assert_allclose(x, t, atol=100 * eps)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_counted_is_what_is_called(method):
    """Against callbacks in the loss, in its gradient and in the derivative of that."""
    called = {"value": 0, "gradient": 0, "product": 0}

    def count(what, *of):
        jax.debug.callback(lambda *_: called.__setitem__(what, called[what] + 1), *of)

    @jax.custom_vjp
    def fun(x):
        count("value")
        return rosenbrock(x)

    def forward(x):
        return fun(x), x

    @jax.custom_jvp
    def gradient(x):
        count("gradient")
        return jax.grad(rosenbrock)(x)

    @gradient.defjvp
    def product(primals, tangents):
        (x,), (v,) = primals, tangents
        count("product", v)
        return gradient(x), jax.hessian(rosenbrock)(x) @ v

    fun.defvjp(forward, lambda x, u: (u * gradient(x),))
    with jax.enable_x64(True):
        found = gk.minimize(fun, start(2), method=method, tol=1e-6)
        jax.effects_barrier()
    assert bool(found.converged)
    assert int(found.evaluations) == called["value"]
    assert int(found.gradients) == called["gradient"]
    assert int(found.products) == called["product"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lbfgs", "newton_cg", "trust_region"])
def test_jit_and_vmap_give_what_single_calls_give(method, dtype, eps):
    starts = jax.random.normal(jax.random.key(0), (5, 4), dtype)
    solve = functools.partial(gk.minimize, rosenbrock, method=method, tol=100 * eps, max_steps=60)
    together = jax.jit(jax.vmap(solve))(starts)
    for i, x0 in enumerate(starts):
        alone = solve(x0)
        if dtype == np.float64:  # in float32 rounding decides on a step more or less
            assert together.steps[i] == alone.steps
            assert together.status[i] == alone.status
        assert together.value[i] <= alone.value + 100 * eps
        np.testing.assert_allclose(together.params[i], alone.params, atol=100 * eps**0.5)


@pytest.mark.slow
def test_vmap_over_problems_and_starts_stops_each_in_its_time():
    with jax.enable_x64(True):
        kappas = jnp.array([1.0, 1e2, 1e4])

        def solve(kappa):
            return gk.minimize(lambda x, k: x[0] ** 2 + k * x[1] ** 2, jnp.ones(2), args=kappa)

        found = jax.vmap(solve)(kappas)
        alone = [solve(kappa) for kappa in kappas]
    assert found.steps.tolist() == [int(a.steps) for a in alone]
    assert len(set(found.steps.tolist())) > 1
    assert bool(found.converged.all())


@pytest.mark.slow
def test_sixty_four_starts_in_one_compiled_call():
    with jax.enable_x64(True):
        starts = jax.random.normal(jax.random.key(1), (64, 10))
        found = jax.jit(jax.vmap(lambda x: gk.minimize(rosenbrock, x)))(starts)
        assert bool(found.converged.all())
        assert float(jnp.max(jnp.abs(jax.vmap(jax.grad(rosenbrock))(found.params)))) <= 1e-6


@pytest.mark.slow
def test_any_optimizer_is_a_method():
    def bowl(x):
        return jnp.sum((x - jnp.arange(3.0)) ** 2)

    for method in (gk.chain(gk.clip_by_global_norm(1.0), gk.sgd(0.1)), optax.adam(0.1), "rmsprop"):
        found = gk.minimize(bowl, jnp.zeros(3), method=method, tol=1e-3, max_steps=3000)
        assert bowl(found.params) < 1e-2, found.message
        assert found.evaluations >= found.steps
    with jax.enable_x64(True):
        theirs = gk.minimize(rosenbrock, start(2), method=optax.lbfgs())
        assert bool(theirs.converged)
        assert theirs.evaluations > theirs.steps + 1  # those of its line search are counted


@pytest.mark.slow
def test_auxiliary_values_history_and_drivers():
    with jax.enable_x64(True):
        seen = []
        watch = functools.partial(gk.on_host, watch=lambda walk: seen.append(int(walk.steps)))
        found = gk.minimize(
            lambda x: (rosenbrock(x), {"double": 2 * x}),
            start(2),
            has_aux=True,
            history=100,
            drive=watch,
        )
        compiled = gk.minimize(rosenbrock, start(2))
        initial = rosenbrock(start(2))
    steps = int(found.steps)
    np.testing.assert_array_equal(found.aux["double"], 2 * np.asarray(found.params))
    assert seen == list(range(1, steps + 1))
    assert np.isfinite(found.history.value).sum() == steps + 1
    np.testing.assert_allclose(found.history.value[0], initial)
    np.testing.assert_allclose(found.history.gradient_norm[steps], np.max(np.abs(found.grad)))
    assert np.all(np.diff(found.history.work[: steps + 1]) > 0.99)
    np.testing.assert_array_equal(found.params, compiled.params)
    assert found.evaluations == compiled.evaluations + 1  # aux at the point returned


@pytest.mark.slow
def test_the_budget_and_the_limit_of_steps_are_kept():
    with jax.enable_x64(True):
        spent = gk.minimize(rosenbrock, start(10), budget=20)
        assert gk.Status(int(spent.status)) is gk.Status.EVALUATION_LIMIT
        assert 20 <= spent.gradient_equivalents < 30
        three = gk.minimize(rosenbrock, start(10), max_steps=3)
        assert gk.Status(int(three.status)) is gk.Status.STEP_LIMIT
        assert three.steps == 3
        assert three.value < rosenbrock(start(10))


@pytest.mark.slow
def test_names_of_scipy_find_the_same():
    with jax.enable_x64(True):
        ours = gk.minimize(rosenbrock, start(2), method="bfgs")
        named = gk.minimize(rosenbrock, start(2), method="BFGS")
    np.testing.assert_array_equal(named.x, ours.params)
    assert (named.fun, named.nit, named.nfev) == (ours.value, ours.steps, ours.evaluations)
    assert (named.njev, named.nhev) == (ours.gradients, ours.products)
    assert bool(named.success)
    np.testing.assert_array_equal(named.jac, ours.grad)


def test_the_methods_are_the_public_optimizers():
    index = (pathlib.Path(gk.__file__).parent / "__init__.pyi").read_text()
    public = set(re.findall(r"from gradkit\.optimizers\.(\w+) import \1 as", index))
    with pytest.raises(ValueError, match="There are") as error:
        gk.minimize(rosenbrock, jnp.ones(2), method="none of them")
    assert set(str(error.value).partition("There are ")[2].split(", ")) == public


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"unknown method 'lbgfs'; did you mean 'lbfgs'\?"):
        gk.minimize(rosenbrock, jnp.ones(2), method="lbgfs")
    with pytest.raises(TypeError, match=r"minimize: the leaves of x0 .* got\n.*int32\[2\]"):
        gk.minimize(rosenbrock, jnp.ones(2, jnp.int32))
    with pytest.raises(TypeError, match="must return a scalar"):
        gk.minimize(lambda x: x, jnp.ones(2))
    with pytest.raises(TypeError, match="fun must be a function"):
        gk.minimize(3.0, jnp.ones(2))
    with pytest.raises(TypeError, match="method must be a name or a gradient transformation"):
        gk.minimize(rosenbrock, jnp.ones(2), method=7)
