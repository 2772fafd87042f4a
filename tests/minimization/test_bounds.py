"""Bounds: against SciPy's L-BFGS-B, and by the conditions that a minimum within them meets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import gradkit as gk

METHODS = ("lbfgs", "bfgs")


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_it_ends_where_scipy_does(method):
    n = 10
    lower, upper = np.full(n, -0.5), np.where(np.arange(n) % 3 == 0, 0.6, 2.0)
    with jax.enable_x64(True):
        theirs = scipy.optimize.minimize(
            lambda x: float(rosenbrock(x)),
            np.zeros(n),
            jac=lambda x: np.asarray(jax.grad(rosenbrock)(x)),
            method="L-BFGS-B",
            bounds=list(zip(lower, upper, strict=True)),
            options={"ftol": 0, "gtol": 1e-10},
        )
        found = gk.minimize(rosenbrock, jnp.zeros(n), method=method, bounds=(lower, upper))
        assert bool(found.converged), found.message
        np.testing.assert_allclose(found.params, theirs.x, atol=1e-5)
        x, g = np.asarray(found.params), np.asarray(found.grad)
    assert np.all((lower <= x) & (x <= upper))
    free = (lower < x) & (x < upper)
    assert 0 < free.sum() < n
    assert np.max(np.abs(g[free])) <= 1e-6
    assert np.all(g[x == lower] >= 0)
    assert np.all(g[x == upper] <= 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_is_met_exactly_on_a_nested_tree(method, dtype):
    target = {"a": jnp.asarray([2.0, -3.0], dtype), "b": jnp.asarray(0.5, dtype)}
    zeros = jax.tree.map(jnp.zeros_like, target)

    def bowl(x):
        return sum(jnp.sum((x[k] - target[k]) ** 2) for k in x)

    upper = {"a": jnp.asarray([1.0, 1.0], dtype), "b": 0.25}
    found = gk.minimize(bowl, zeros, method=method, bounds=(-1.0, upper))
    assert bool(found.converged)
    np.testing.assert_array_equal(found.params["a"], [1, -1])
    np.testing.assert_array_equal(found.params["b"], 0.25)
    within = gk.minimize(bowl, zeros, method=method, bounds=(None, None))
    np.testing.assert_allclose(within.params["a"], target["a"], rtol=1e-5)


def test_a_start_outside_is_brought_in_and_a_loss_is_never_asked_outside():
    def root(x):
        return jnp.sum(jnp.sqrt(x + 0.1)) + jnp.sum((x - 2) ** 2)  # NaN below −0.1

    found = gk.minimize(root, jnp.array([-5.0, 7.0]), bounds=(0.0, 3.0), history=50)
    assert bool(found.converged)
    steps = int(found.steps) + 1
    assert np.isfinite(found.history.value[:steps]).all()


@pytest.mark.slow
def test_what_is_held_at_a_bound_has_no_derivative():
    weights = jnp.array([1.0, 2.0])

    def solve(a):
        def bowl(x, a):
            return jnp.sum(weights * (x - a) ** 2)

        return gk.minimize(bowl, jnp.zeros(2), bounds=(None, 1.0), args=a).params

    with jax.enable_x64(True):
        jacobian = jax.jacrev(solve)(jnp.array([0.5, 3.0]))
        np.testing.assert_allclose(jacobian, [[1, 0], [0, 0]], atol=1e-12)


@pytest.mark.slow
def test_under_vmap_over_bounds():
    def solve(upper):
        return gk.minimize(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(3), bounds=(None, upper)).x

    uppers = jnp.array([0.25, 0.5, 2.0])[:, None] * jnp.ones(3)
    np.testing.assert_allclose(jax.vmap(solve)(uppers)[:, 0], [0.25, 0.5, 1.0], rtol=1e-6)


def test_mistakes_are_named():
    x0 = {"w": jnp.zeros(3)}

    def bowl(x):
        return jnp.sum(x["w"] ** 2)

    with pytest.raises(ValueError, match=r"bounds: expected a pair \(lower, upper\)"):
        gk.minimize(bowl, x0, bounds=3.0)
    with pytest.raises(ValueError, match=r"lower one must be a tree like x0\n  w: expected shape"):
        gk.minimize(bowl, x0, bounds=({"w": jnp.zeros(2)}, None))
    with pytest.raises(ValueError, match="a lower bound is above the upper one, or NaN, in w"):
        gk.minimize(bowl, x0, bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match="bounds are for the methods 'lbfgs' and 'bfgs'"):
        gk.minimize(bowl, x0, method="newton_cg", bounds=(0.0, 1.0))
