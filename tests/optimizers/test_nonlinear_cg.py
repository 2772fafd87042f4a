from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.nonlinear_cg import METHODS, nonlinear_cg, scale_by_nonlinear_cg

SPECTRUM = np.geomspace(0.5, 5, 8)
BOTH = pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, "float64") for method in METHODS), ("hager_zhang", "float32")],
    indirect=["dtype"],
)


class Regression(NamedTuple):
    """A small loss of a batch, on a nested tree."""

    loss: Callable
    params: dict
    batch: dict


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 4)))
    y = jnp.tanh(x @ jnp.arange(4.0)) + 0.5 + 0.1 * jnp.asarray(rng.normal(size=20))
    params = {"w": [jnp.ones(4) / 4], "b": jnp.zeros(())}

    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["w"][0]) + params["b"] - batch["y"]) ** 2)

    return Regression(loss, params, {"x": x, "y": y})


def flat(a):
    return np.asarray(ravel_pytree(a)[0], np.float64)


def exact_steps(method, oracle, x, steps):
    """Gradients and directions on ½ xᵀAx with exact line searches, and the last state."""
    A, tx = oracle.matrix, scale_by_nonlinear_cg(method)
    state, update, gradients, directions = tx.init(x), jax.jit(tx.update), [], []
    for _ in range(steps):
        g = oracle.operator @ x
        d, state = update(g, state, x)
        gradients.append(flat(g))
        directions.append(flat(d))
        alpha = (flat(g) @ flat(d)) / (flat(d) @ A @ flat(d))
        x = jax.tree.map(lambda x, d, a=alpha: x - jnp.asarray(a, x.dtype) * d, x, d)
    return np.array(gradients), np.array(directions), state


@BOTH
def test_on_a_quadratic_all_are_linear_conjugate_gradients(method, operator_with, eps):
    oracle = operator_with(SPECTRUM)
    n, A = len(SPECTRUM), oracle.matrix
    x, x0 = oracle.vector(2)
    gradients, directions, state = exact_steps(method, oracle, x, n + 1)
    norms = np.linalg.norm(gradients, axis=1)
    assert norms[n - 1] > 1e-4 * norms[0]
    assert norms[n] < 1e4 * eps * norms[0]

    unit = (
        directions[:n]
        / np.sqrt(np.einsum("ki,ij,kj->k", directions[:n], A, directions[:n]))[:, None]
    )
    successive = np.einsum("ki,ij,kj->k", unit[1:], A, unit[:-1])
    np.testing.assert_allclose(successive, 0, atol=1e3 * eps)

    r, p = A @ x0, A @ x0  # the same by the textbook, in float64
    for g, d in zip(gradients[:n], directions[:n], strict=True):
        np.testing.assert_allclose(g, r, atol=1e3 * eps * norms[0])
        cosine = d @ p / np.linalg.norm(d) / np.linalg.norm(p)
        assert cosine == pytest.approx(1, abs=1e4 * eps)
        following = r - (r @ r) / (p @ A @ p) * A @ p
        r, p = following, following + (following @ following) / (r @ r) * p
    assert state.counts.refused == 0


def textbook(method, g, g_before, d_before):
    """β of a direction that has the sign of descent."""
    y = g - g_before
    match method:
        case "fletcher_reeves":
            return g @ g / (g_before @ g_before)
        case "polak_ribiere":
            return g @ y / (g_before @ g_before)
        case "polak_ribiere_plus":
            return max(g @ y / (g_before @ g_before), 0)
        case "hestenes_stiefel":
            return g @ y / (d_before @ y)
        case "dai_yuan":
            return g @ g / (d_before @ y)
        case "hager_zhang":
            dy = d_before @ y
            beta = (y - 2 * d_before * (y @ y) / dy) @ g / dy
            return max(beta, 0.4 * (d_before @ g_before) / (d_before @ d_before))


@BOTH
def test_beta_is_that_of_the_textbook(method, operator_with, eps):
    """On steps that are far from exact, without Powell's restarts."""
    oracle = operator_with(SPECTRUM)
    tx = scale_by_nonlinear_cg(method, orthogonality=1e9)
    x, _ = oracle.vector(3)
    state, update, before, betas = tx.init(x), jax.jit(tx.update), None, []
    for k in range(6):
        g = oracle.operator @ x
        out, state = update(g, state, x)
        d = -flat(g)
        if before is not None:
            beta = textbook(method, flat(g), *before)
            d = d + beta * before[1]
            if -d @ flat(g) <= 0:  # no descent
                beta, d = 0.0, -flat(g)
            assert state.beta == pytest.approx(beta, rel=1e4 * eps, abs=1e3 * eps)
            betas.append(beta)
        np.testing.assert_allclose(-flat(state.direction), d, atol=1e3 * eps * np.linalg.norm(d))
        assert flat(out) @ d == pytest.approx(
            -np.linalg.norm(flat(out)) * np.linalg.norm(d), rel=1e-5
        )
        before = flat(g), -flat(state.direction)
        x = jax.tree.map(lambda x, d, k=k: x - (0.4 + 0.1 * k) * d, x, out)
    assert np.count_nonzero(betas) >= 1


def test_the_first_trial_is_what_the_last_exact_step_predicts(operator_with, eps):
    """α₋ g₋ᵀd₋ / gᵀd: whatever part of the exact step was gone."""
    oracle = operator_with(SPECTRUM)
    A, tx = oracle.matrix, scale_by_nonlinear_cg("fletcher_reeves", orthogonality=1e9)
    update = jax.jit(tx.update)
    for part in (0.3, 1.0, 1.4):
        x, _ = oracle.vector(3)
        g = oracle.operator @ x
        d, state = update(g, tx.init(x), x)
        exact = (flat(g) @ flat(d)) / (flat(d) @ A @ flat(d))
        x = jax.tree.map(lambda x, d, a=part * exact: x - jnp.asarray(a, x.dtype) * d, x, d)
        following = oracle.operator @ x
        e, state = update(following, state, x)
        fall = exact * (flat(g) @ flat(d))
        assert flat(following) @ flat(e) == pytest.approx(fall, rel=1e4 * eps)


@pytest.mark.parametrize("method", METHODS)
def test_minimizes_rosenbrocks_function(method):
    def loss(x, _):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    tx = nonlinear_cg(method=method)

    def step(carry, _):
        x, state = carry
        point = gk.observe(loss, x, None)
        updates, state = tx.update(point.grad, state, x, **point.extras)
        return (optax.apply_updates(x, updates), state), point.value

    with jax.enable_x64(True):
        x = jnp.asarray([-1.2, 1.0], np.float64)
        (x, state), values = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=120))(x)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(x, 1, atol=1e-4)
    assert gk.metrics(state)["refused_pairs"] == 0


def after(tx, gradients, points):
    state, update = tx.init(points[0]), jax.jit(tx.update)
    d = None
    for g, x in zip(gradients, points, strict=True):
        d, state = update(g, state, x)
    return d, state


def arrays(*rows):
    return [jnp.asarray(row) for row in rows]


def test_gradients_that_are_not_orthogonal_restart_the_classical_ones():
    points = arrays([1.0, 2.0], [0.5, 2.5])
    for angle, restarts in ((0.15, False), (0.25, True)):
        gradients = arrays([1.0, 0.0], [angle, 1.0])
        _, state = after(scale_by_nonlinear_cg("dai_yuan"), gradients, points)
        assert (state.beta == 0) == restarts
        assert state.counts.restarts == 0


def test_a_direction_that_does_not_descend_restarts():
    points = arrays([1.0, 2.0], [0.0, 2.0])
    gradients = arrays([1.0, 0.0], [-2.0, 0.1])
    tx = scale_by_nonlinear_cg("fletcher_reeves", orthogonality=1e9)
    d, state = after(tx, gradients, points)  # β = 4.01, d = [2.01, 0.1]
    assert (state.beta, state.counts.restarts) == (0, 1)
    np.testing.assert_allclose(d / d[1], gradients[-1] / gradients[-1][1], rtol=1e-5)
    assert d @ gradients[-1] > 0


def test_a_step_that_moved_nothing_restarts():
    points = arrays([1.0, 2.0], [0.5, 1.0], [0.5, 1.0])
    gradients = arrays([1.0, 8.0], [0.5, 4.0], [0.5, 4.0])
    d, state = after(scale_by_nonlinear_cg(), gradients, points)
    assert (state.beta, state.counts.restarts) == (0, 1)
    np.testing.assert_allclose(d, (0.25 + 4) / (0.25 + 16) * gradients[-1], rtol=1e-5)


def test_a_pair_of_negative_curvature_restarts_and_counts():
    points = arrays([1.0, 2.0], [0.0, 2.0])
    gradients = arrays([1.0, 1.0], [2.0, 1.0])
    d, state = after(scale_by_nonlinear_cg(), gradients, points)
    assert (state.beta, state.counts.refused) == (0, 1)
    np.testing.assert_allclose(d / d[1], [2, 1], rtol=1e-5)


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    points = arrays([1.0, 2.0], [2.0, 4.0], [3.0, 6.0])
    (bad,) = arrays([jnp.nan, 1.0])
    _, before = after(scale_by_nonlinear_cg(), points[:2], points[:2])
    d, following = after(scale_by_nonlinear_cg(), [*points[:2], bad], points)
    np.testing.assert_array_equal(d, bad)
    pairs = zip(jax.tree.leaves(following.memory), jax.tree.leaves(before.memory), strict=True)
    for a, b in pairs:
        assert (a == b).all() or a.shape == ()
    assert following.counts == before.counts


@pytest.mark.parametrize("method", ["fletcher_reeves", "hager_zhang"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter_in_float32(method, scale):
    tx = gk.chain(scale_by_nonlinear_cg(method), gk.scale_by_learning_rate(0.7))
    H = jnp.asarray(np.diag([1.0, 4.0, 9.0]) + 0.5, jnp.float32)

    def run(c):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(c * (H @ x), state, x)
            return (x + updates, state), x

        x = jnp.asarray([1.0, -2.0, 3.0])
        return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=6)[1])(x)

    np.testing.assert_allclose(run(np.float32(scale)), run(np.float32(1)), atol=1e-3)


def test_a_batch_that_changes_makes_it_gradient_descent(regression):
    tx = gk.chain(scale_by_nonlinear_cg(), gk.scale_by_learning_rate(0.1))
    other = {**regression.batch, "y": regression.batch["y"].at[3].add(1e-3)}

    @jax.jit
    def step(params, state, batch):
        point = gk.observe(regression.loss, params, batch)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    params, state, seen = regression.params, tx.init(regression.params), []
    for batch in (regression.batch, regression.batch, other, other):
        params, state = step(params, state, batch)
        metrics = gk.metrics(state)
        seen.append((bool(metrics["beta"] == 0), int(metrics["function_changes"])))
    assert seen == [(True, 0), (False, 0), (True, 1), (False, 1)]


def test_many_starts_in_one_compiled_call():
    tx = nonlinear_cg()

    def loss(x, _):
        return jnp.sum(jnp.cosh(x - jnp.arange(3.0))) + jnp.sum(x) ** 2 / 2

    def reached(x):
        def step(carry, _):
            x, state = carry
            point = gk.observe(loss, x, None)
            updates, state = tx.update(point.grad, state, x, **point.extras)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=15)
        return jnp.max(jnp.abs(jax.grad(loss)(x, None)))

    starts = jnp.arange(12.0).reshape(4, 3) / 3
    assert (jax.jit(jax.vmap(reached))(starts) < 1e-4).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="got 'hagerzhang'; did you mean 'hager_zhang'"):
        nonlinear_cg(method="hagerzhang")
    with pytest.raises(ValueError, match="line_search finds the learning rate"):
        nonlinear_cg(0.1, linesearch=gk.line_search())
