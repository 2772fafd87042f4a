"""Hard inputs, each with the status it must end in; and what every status promises."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.minimization.status import CONVERGED, MESSAGES

S = gk.Status
METHODS = ("lbfgs", "nonlinear_cg", "trust_region")
OTHERS = ("bfgs", "newton_cg", "cubic", "saddle_free", "levenberg_marquardt")

_since_cleared = itertools.count(1)


@pytest.fixture(autouse=True)
def _compiled_code_is_given_back():
    """Now and then, as each test compiles functions of its own."""
    yield
    if next(_since_cleared) % 15 == 0:
        jax.clear_caches()


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def saddle(x):
    """A saddle at 0, minima of −¼ at (0, ±1/√2)."""
    return x[0] ** 2 - x[1] ** 2 + x[1] ** 4


def barrier(x):
    """NaN for x ≤ 0, with the minimum at 1/10."""
    return jnp.sum(10 * x - jnp.where(x > 0, jnp.log(x), jnp.nan))


def wall(x):
    """+∞ for x ≤ −1, with the minimum near −0.4."""
    inside = x > -1
    log = jnp.log(jnp.where(inside, x + 1, 1))
    return jnp.sum(jnp.where(inside, (x + 0.5) ** 2 - log / 10, jnp.inf))


def scaled_bowl(condition):
    return lambda x: jnp.sum(jnp.logspace(0, np.log10(condition), 6) * (x - 1) ** 2) / 2


CASES = {
    "NaN at the start": (lambda x: jnp.sum(x) * jnp.nan, [1.0, 2.0], {S.NONFINITE_START}),
    "+inf at the start": (lambda x: jnp.sum(x) + jnp.inf, [1.0, 2.0], {S.NONFINITE_START}),
    "NaN beyond a boundary": (barrier, [1.0], {S.GRADIENT}),
    "far from a boundary": (barrier, [5.0], {S.GRADIENT}),
    "+inf beyond a boundary": (wall, [3.0], {S.GRADIENT}),
    "a minimum at the start": (lambda x: jnp.sum(x**2), [0.0, 0.0], {S.GRADIENT}),
    "no gradient at a saddle": (saddle, [0.0, 0.0], {S.SADDLE}),
    "a maximum": (lambda x: -jnp.sum(x**2) + jnp.sum(x**4), [0.0, 0.0], {S.SADDLE}),
    "quartic": (lambda x: jnp.sum(x**4), [1.0, 2.0], {S.GRADIENT}),
    "singular": (lambda x: (x[0] + x[1] - 1) ** 2, [3.0, 2.0], {S.GRADIENT}),
    "unbounded": (lambda x: -jnp.sum(x**2), [1.0, 2.0], {S.UNBOUNDED}),
    "linear": (lambda x: x[0] + 2 * x[1], [1.0, 2.0], {S.UNBOUNDED}),
    "condition 1e6": (scaled_bowl(1e6), [0.0] * 6, {S.GRADIENT}),
    "constant": (lambda x: 0 * jnp.sum(x) + 3, [1.0, 2.0], {S.GRADIENT}),
    "no parameters": (lambda x: jnp.sum(x), [], {S.GRADIENT}),
}


PAIRS = [(method, name) for method in ("lbfgs", "trust_region") for name in CASES]
PAIRS += [
    (method, name)
    for method in (*OTHERS, "nonlinear_cg")
    for name in ("NaN beyond a boundary", "no gradient at a saddle", "unbounded")
]


def solve(method, fun, x0, **options):
    return gk.minimize(fun, jnp.asarray(x0, jnp.float64), method=method, **options)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_hard_inputs_end_as_they_must(method, name):
    fun, x0, expected = CASES[name]
    with jax.enable_x64(True):
        found = solve(method, fun, x0)
        assert S(int(found.status)) in expected, found.message
        assert np.isfinite(found.params).all()
        if S(int(found.status)) is not S.NONFINITE_START:
            assert np.isfinite(found.value)
            np.testing.assert_allclose(found.value, fun(found.params), rtol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_on_the_stable_manifold_of_a_saddle_it_says_so_or_leaves(method):
    with jax.enable_x64(True):
        found = solve(method, saddle, [1.0, 0.0])
        status = S(int(found.status))
        assert status is S.SADDLE or (status is S.GRADIENT and found.value < -0.2499)
        left = solve(method, saddle, [1.0, 1e-3])
        assert S(int(left.status)) is S.GRADIENT
        np.testing.assert_allclose(left.value, -0.25, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_condition_of_1e12_is_solved_or_confessed(method):
    with jax.enable_x64(True):
        found = solve(method, scaled_bowl(1e12), [0.0] * 6, max_steps=300)
        honest = {S.STEP_LIMIT, S.NO_PROGRESS, S.SEARCH_FAILED}
        status = S(int(found.status))
        assert status in honest or (status is S.GRADIENT and np.max(np.abs(found.grad)) <= 1e-6)
        assert found.value < scaled_bowl(1e12)(jnp.zeros(6))


@pytest.mark.parametrize("method", METHODS)
def test_where_there_is_no_derivative_it_does_not_claim_convergence(method):
    def kinks(x):
        return jnp.abs(x[0] - 0.3) + 2 * jnp.abs(x[1] + 0.7)

    with jax.enable_x64(True):
        found = solve(method, kinks, [1.0, 2.0], max_steps=200)
        if S(int(found.status)) in CONVERGED:
            np.testing.assert_allclose(found.params, [0.3, -0.7], atol=1e-12)
        assert found.value <= kinks(jnp.array([1.0, 2.0]))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-12, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_loss_ends_where_the_loss_does(method, factor):
    with jax.enable_x64(True):
        found = solve(method, rosenbrock, [-1.2, 1.0])
        scaled = solve(method, lambda x: factor * rosenbrock(x), [-1.2, 1.0])
        assert S(int(scaled.status)) in (S.GRADIENT, S.NO_PROGRESS)
        np.testing.assert_allclose(scaled.params, found.params, atol=1e-3)
        assert abs(int(scaled.steps) - int(found.steps)) <= 10


@pytest.mark.parametrize("method", METHODS)
def test_after_three_steps_the_best_point_is_returned(method):
    with jax.enable_x64(True):
        found = solve(method, rosenbrock, [-1.2, 1.0], max_steps=3, history=4)
        assert S(int(found.status)) is S.STEP_LIMIT
        np.testing.assert_array_equal(found.value, np.nanmin(found.history.value))
        np.testing.assert_allclose(found.value, rosenbrock(found.params), rtol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_solving_again_from_the_solution_takes_no_step(method):
    with jax.enable_x64(True):

        def offset(x):
            return rosenbrock(x) + 1

        found = solve(method, offset, [-1.2, 1.0])
        again = solve(method, offset, found.params)
        assert S(int(again.status)) is S.GRADIENT
        assert again.steps == 0


def test_a_diverging_optimizer_returns_the_best_point():
    found = gk.minimize(lambda x: jnp.sum(x**4), jnp.ones(2), method=gk.sgd(10.0), max_steps=50)
    assert S(int(found.status)) is S.DIVERGED
    np.testing.assert_array_equal(found.params, 1.0)


@pytest.mark.slow
def test_the_other_tests_of_convergence_hold_where_they_are_claimed():
    with jax.enable_x64(True):
        by_function = solve("lbfgs", rosenbrock, [-1.2, 1.0], tol=0, function_tol=1e-2, history=200)
        assert S(int(by_function.status)) is S.FUNCTION
        before, last = by_function.history.value[by_function.steps - 1 : by_function.steps + 1]
        assert 0 <= before - last <= 1e-2 * last
        by_step = solve("bfgs", rosenbrock, [-1.2, 1.0], tol=0, step_tol=1e-3)
        assert S(int(by_step.status)) is S.STEP
        np.testing.assert_allclose(by_step.params, 1, atol=1e-2)


def test_every_status_has_a_message_and_a_meaning():
    assert set(MESSAGES) == set(S)
    for status in S:
        assert f"{status.name}:" in S.__doc__


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_in_float32_a_stall_is_noticed_and_nothing_is_nan(method):
    x0 = jnp.array([-1.2, 1.0], jnp.float32)
    found = gk.minimize(rosenbrock, x0, method=method, tol=0.0, history=500)
    assert S(int(found.status)) in (S.NO_PROGRESS, S.SEARCH_FAILED, S.GRADIENT)
    values = np.asarray(found.history.value)[: int(found.steps) + 1]
    assert np.isfinite(values).all()
    np.testing.assert_allclose(found.params, 1, atol=2e-3)
    norms = np.asarray(found.history.gradient_norm)[: int(found.steps) + 1]
    last = max(np.argmin(values), np.argmin(norms))
    assert int(found.steps) - last <= 20


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_in_float32_a_loss_with_an_offset_reaches_a_small_gradient(method):
    def offset(x):
        return rosenbrock(x) + 1e4

    x0 = jnp.array([-1.2, 1.0], jnp.float32)
    start = float(jnp.max(jnp.abs(jax.grad(offset)(x0))))
    found = gk.minimize(offset, x0, method=method, tol=1e-5)
    assert float(jnp.max(jnp.abs(found.grad))) <= 1e-5 * start
