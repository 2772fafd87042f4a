from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.spectra.dynamics import dynamics
from gradkit.spectra.extremes import Eigenpairs
from gradkit.spectra.step_sizes import stability_limit, step_sizes


def trajectory(A, tx, theta, steps):
    """Parameters before each step on ½ θᵀAθ and after the last, a flat float64 row each."""

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(A @ theta, state, theta)
        return (optax.apply_updates(theta, updates), state), ravel_pytree(theta)[0]

    _, rows = jax.jit(lambda c: jax.lax.scan(step, c, length=steps + 1))((theta, tx.init(theta)))
    return np.asarray(rows, np.float64)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def positive_definite(seed):
    """A random quadratic on a nested tree, condition 120, with a gap at either end."""
    rng = np.random.default_rng(seed)
    n = 14
    values = np.concatenate([[0.5], rng.uniform(2, 45, n - 2), [60.0]])
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    M = jnp.asarray((Q * values) @ Q.T)
    theta, unravel = ravel_pytree({"a": jnp.ones((2, 3)), "b": [jnp.ones(7), jnp.ones(())]})

    def product(M, v):
        return unravel(M @ ravel_pytree(v)[0])

    A = gk.Operator(Partial(product, M), unravel(theta))
    return A, unravel(jnp.asarray(rng.normal(size=n))), np.linalg.eigvalsh(np.asarray(M))


@pytest.mark.parametrize("seed", range(3))
def test_advised_steps_have_the_rates_they_claim(float64, seed):
    A, theta, values = positive_definite(seed)
    advice = step_sizes(values[-1], values[0])
    steps = 1200

    def seen(tx):
        size = np.linalg.norm(trajectory(A, tx, theta, steps), axis=1)
        return (size[steps] / size[steps // 2]) ** (2 / steps)

    assert seen(gk.sgd(advice.fastest)) == pytest.approx(float(advice.fastest_rate), rel=1e-6)
    slowest = 1 - values[0] / values[-1]
    assert seen(gk.sgd(advice.descent)) == pytest.approx(slowest, rel=1e-6)
    # The double roots at both ends cost a factor of at most 2 between t and 2t.
    steps = 200
    with_momentum = seen(gk.sgd(advice.heavy_ball, momentum=advice.momentum))
    assert 1 <= with_momentum / advice.heavy_ball_rate <= 2 ** (2 / steps)
    assert advice.heavy_ball_rate == pytest.approx(float(advice.momentum) ** 0.5, rel=1e-12)
    assert advice.heavy_ball_rate < advice.fastest_rate < slowest


def test_the_advised_steps_are_the_closed_forms_and_the_best_there_are(dtype, eps):
    L, m = 9.0, 4.0
    advice = step_sizes(jnp.asarray(L, dtype), jnp.asarray(m, dtype))
    expected = (L, m, 1 / L, 2 / L, 2 / 13, 5 / 13, (2 / 5) ** 2, (1 / 5) ** 2, 1 / 5)
    np.testing.assert_allclose(advice, expected, rtol=8 * eps)
    assert all(x.dtype == dtype for x in advice)
    values = jnp.linspace(m, L, 50, dtype=dtype)

    def worst(eta, mu):
        return jnp.max(dynamics(values, learning_rate=eta, momentum=mu, steps=1).rate)

    slack = 1 + 10 * eps**0.5  # of a double root
    assert worst(advice.fastest, 0.0) == pytest.approx(float(advice.fastest_rate), rel=8 * eps)
    assert worst(advice.heavy_ball, advice.momentum) <= advice.heavy_ball_rate * slack
    etas, mus = (x.ravel() for x in jnp.meshgrid(jnp.linspace(0.05, 0.3, 41), jnp.arange(20) / 20))
    rates = jax.jit(jax.vmap(worst))(etas.astype(dtype), mus.astype(dtype))
    assert (rates >= advice.heavy_ball_rate / slack).all()
    assert (rates[mus == 0] >= advice.fastest_rate * (1 - 8 * eps)).all()


def average(learning_rate, momentum):
    return gk.chain(gk.ema(momentum, debias=False), gk.scale_by_learning_rate(learning_rate))


@pytest.mark.parametrize(
    ("make", "momentum", "ema"),
    [(gk.sgd, 0.0, False), (gk.sgd, 0.9, False), (average, 0.9, True), (average, 0.3, True)],
)
def test_just_below_the_limit_a_quadratic_converges_and_just_above_it_diverges(
    float64, make, momentum, ema
):
    A, theta, values = positive_definite(0)
    limit = stability_limit(values[-1], momentum=momentum, ema=ema)

    def growth(factor):
        rows = trajectory(A, make(factor * limit, momentum=momentum), theta, 1000)
        return np.linalg.norm(rows[-1]) / np.linalg.norm(rows[0])

    assert growth(1.99 / 2) < 0.01
    assert growth(2.01 / 2) > 100


def test_stability_limits_of_the_literature():
    assert float(stability_limit(0.01)) == pytest.approx(200)
    assert float(stability_limit(0.01, momentum=0.9)) == pytest.approx(380)
    assert float(stability_limit(0.01, momentum=0.9, ema=True)) == pytest.approx(3800)
    np.testing.assert_array_equal(
        stability_limit(jnp.array([0.0, -1.0, jnp.nan])), [np.inf, np.inf, np.nan]
    )
    with pytest.raises(ValueError, match="momentum: expected 0 <= momentum < 1, got 1"):
        stability_limit(1.0, momentum=1)


def test_descent_is_guaranteed_for_logistic_regression(float64):
    rng = np.random.default_rng(0)
    X, y = (
        jnp.asarray(rng.normal(size=(60, 5)) * [1, 2, 0.5, 1, 3]),
        jnp.asarray(rng.random(60) > 0.4),
    )
    problem = gk.Problem(
        lambda p, _: jnp.mean(optax.sigmoid_binary_cross_entropy(X @ p["w"] + p["b"], y))
    )
    with_ones = np.hstack([np.asarray(X), np.ones((60, 1))])
    advice = step_sizes(np.linalg.eigvalsh(with_ones.T @ with_ones / 60)[-1] / 4)  # σ' <= 1/4
    eta = advice.descent
    params = {"w": jnp.asarray(rng.normal(size=5) * 3), "b": jnp.zeros(())}
    point = gk.observe(problem, params, None)
    drops = []
    for _ in range(30):
        params = jax.tree.map(lambda p, g: p - eta * g, params, point.grad)
        after = gk.observe(problem, params, None)
        guaranteed = eta / 2 * optax.tree.norm(point.grad, squared=True)
        drops.append((point.value - after.value) / guaranteed)
        point = after
    assert min(drops) >= 1
    assert max(drops) <= 2  # by convexity


def test_on_the_top_eigenvector_the_guaranteed_descent_is_what_happens(float64):
    eta = step_sizes(8.0).descent
    theta = 3.0
    drop = 4 * theta**2 - 4 * (theta - eta * 8 * theta) ** 2
    assert drop == pytest.approx(float(eta) / 2 * (8 * theta) ** 2, rel=1e-14)


def pairs(values, residuals, dtype=np.float32):
    values, residuals = jnp.asarray(values, dtype), jnp.asarray(residuals, dtype)
    return Eigenpairs(values, jnp.eye(len(values)), residuals, residuals < 1, jnp.array(9))


def test_errors_make_every_figure_careful(dtype, eps):
    largest, smallest = pairs([8.0, 9.0], [0.1, 0.5], dtype), pairs([2.0, 3.0], [0.25, 0.1], dtype)
    advice = step_sizes(largest, smallest)
    np.testing.assert_array_equal(advice, step_sizes(9.5, 1.75))
    both = step_sizes(largest, smallest, error=0.5)
    np.testing.assert_allclose(both, step_sizes(10.0, 1.25), rtol=4 * eps)
    # Whatever the eigenvalues are within their errors, no figure promises too much.
    for true in np.linspace([8.5, 1.75], [9.5, 2.25], 5):
        values = jnp.linspace(true[1], true[0], 30, dtype=dtype)
        assert advice.descent <= (1 + eps) / true[0]
        assert advice.stability_limit <= (1 + eps) * 2 / true[0]
        found = dynamics(values, learning_rate=advice.fastest, steps=1)
        assert (found.rate <= advice.fastest_rate * (1 + 8 * eps)).all()
        found = dynamics(values, learning_rate=advice.heavy_ball, momentum=advice.momentum, steps=1)
        assert (found.rate <= advice.heavy_ball_rate * (1 + 10 * eps**0.5)).all()


NONE = ("fastest", "fastest_rate", "heavy_ball", "momentum", "heavy_ball_rate")


@pytest.mark.parametrize(
    ("largest", "smallest", "error", "limit", "reason"),
    [
        (4.0, None, 0.0, 0.5, "not known without the smallest eigenvalue"),
        (4.0, 0.0, 0.0, 0.5, "none, as the smallest eigenvalue is not positive beyond its error"),
        (3.0, 0.5, 1.0, 0.5, "none, as the smallest eigenvalue is not positive beyond its error"),
        (4.0, -9.0, 0.0, 0.5, "none, as the smallest eigenvalue is not positive beyond its error"),
        (0.0, -9.0, 0.0, np.inf, "none, as no curvature is positive"),
        (-1.0, -9.0, 0.0, np.inf, "none, as no curvature is positive"),
        (4.0, np.nan, 0.0, 0.5, "not known, as the smallest eigenvalue is not a number"),
        (np.nan, 1.0, 0.0, np.nan, "not known, as the largest eigenvalue is not finite"),
        (4.0, np.float32(5), 0.0, 0.5, "not known, as the smallest eigenvalue lies above the lar"),
    ],
)
def test_what_does_not_apply_is_nan_with_a_reason(largest, smallest, error, limit, reason):
    advice = step_sizes(largest, smallest, error=error)
    np.testing.assert_array_equal([advice.stability_limit, 2 * advice.descent], limit)
    assert all(np.isnan(getattr(advice, name)) for name in NONE)
    head, descent, stable, fastest, heavy_ball = advice.report().splitlines()
    assert head.startswith("eigenvalues: ")
    assert fastest.startswith(f"fastest: {reason}")
    assert heavy_ball.startswith(f"heavy ball: {reason}")
    for line in (descent, stable):
        assert ("learning rate" in line) == np.isfinite(limit)
        assert ("unlimited" in line) == (limit == np.inf)


def test_the_report_names_values_rates_and_sources():
    head, *lines = step_sizes(9.0, 4.0).report().splitlines()
    assert head == "eigenvalues: 4 to 9, errors included"
    for line, said in zip(
        lines,
        [
            ("descent: learning rate 0.1111, rate 0.5556: ", "Nesterov 2018"),
            ("stability limit: learning rate 0.2222: ", "Polyak 1987"),
            ("fastest: learning rate 0.1538, rate 0.3846: ", "Nesterov 2018"),
            ("heavy ball: learning rate 0.16, momentum 0.04, rate 0.2: ", "Polyak 1964"),
        ],
        strict=True,
    ):
        assert line.startswith(said[0])
        assert said[1] in line


def test_advice_comes_from_eigenpairs_with_their_residuals_under_jit(operator_with):
    @jax.jit
    def advise(A, key):
        both = gk.eigsh(A, 4, which="BE", key=key, tol=1e-2)
        return both, step_sizes(both, both)

    A, M, _ = operator_with(np.linspace(1, 30, 40))
    both, advice = advise(A, jax.random.key(0))
    exact = np.linalg.eigvalsh(M)
    assert advice.largest == pytest.approx(float(both.values[-1] + both.residuals[-1]), rel=1e-6)
    assert advice.smallest <= exact[0] <= exact[-1] <= advice.largest
    assert advice.fastest == pytest.approx(2 / 31, rel=0.01)


def test_step_sizes_refuse_what_is_no_eigenvalue():
    with pytest.raises(ValueError, match=r"largest: .* got shape \(3,\); of eigenvalues in ascend"):
        step_sizes(jnp.ones(3))
    with pytest.raises(ValueError, match="smallest: expected at most the largest, 1, got 2"):
        step_sizes(1, 2)
    with pytest.raises(ValueError, match="error: expected 0 or a positive number, got -1"):
        step_sizes(2.0, 1.0, error=-1)
