from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


def predict(params, batch):
    first, second = params["layers"]
    h = jnp.tanh(batch["x"] @ first["w"] + first["b"])
    return params["scale"] * (h @ second["w"] + second["b"])


def criterion(outputs, batch):
    return jnp.mean((outputs - batch["y"]) ** 2)


PROBLEM = gk.Problem(predict=predict, criterion=criterion)


def trained(tx, params, batch, steps, **observed):
    @jax.jit
    def step(params, state):
        point = gk.observe(PROBLEM, params, batch, **observed)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state

    state, states = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        states.append(state)
    return params, states


def one_update(tx, params, batch, curvature=gk.gauss_newton, **observed):
    point = gk.observe(PROBLEM, params, batch, curvature=curvature, **observed)
    d, state = tx.update(point.grad, tx.init(params), params, **point.extras)
    return ravel_pytree(point.grad)[0], d, state


@pytest.mark.slow
def test_the_direction_is_the_damped_gauss_newton_step(network, eps):
    params, batch = network.params, network.batch
    g, _, state = one_update(gk.hessian_free(1.0, tol=0.0, max_steps=200), params, batch)
    G = np.asarray(gk.gauss_newton(PROBLEM, params, batch).dense(), np.float64)
    expected = -np.linalg.solve(G + np.eye(len(g)), np.asarray(g, np.float64))
    tolerance = 1e3 * eps * np.linalg.cond(G + np.eye(len(g)))
    np.testing.assert_allclose(
        ravel_pytree(state.direction)[0], expected, atol=tolerance * np.linalg.norm(expected)
    )
    assert state.cg_residual < tolerance


@pytest.mark.slow
def test_the_gain_ratio_is_that_of_the_damped_model(network, eps):
    params, batch = network.params, network.batch
    g, d, state = one_update(gk.hessian_free(3.0), params, batch)
    G = np.asarray(gk.gauss_newton(PROBLEM, params, batch).dense(), np.float64)
    flat = np.asarray(ravel_pytree(d)[0], np.float64)
    model = g @ flat + flat @ (G + 3.0 * np.eye(len(g))) @ flat / 2
    fell = network.loss(optax.apply_updates(params, d), batch) - network.loss(params, batch)
    assert state.ratio == pytest.approx(float(fell / model), rel=1e5 * eps)


@pytest.mark.parametrize(("damping", "grows"), [(1e-6, True), (10.0, False)])
def test_the_damping_grows_where_the_model_is_bad_and_falls_where_it_is_good(damping, grows):
    def loss(x, _):
        return jnp.sum(jnp.sqrt(1 + x**2))  # Newton's step from 3 leads to −27

    x = jnp.full(3, 3.0)
    tx = gk.hessian_free(damping)
    point = gk.observe(loss, x, None, curvature=gk.hessian)
    _, state = tx.update(point.grad, tx.init(x), x, **point.extras)
    assert (state.ratio < 0.25) == grows
    assert state.damping == pytest.approx(damping * (1.5 if grows else 2 / 3), rel=1e-6)


def test_walks_back_over_iterates_while_the_loss_falls():
    """The curvature is right along x, and a hundred times too small along y."""

    def loss(point, _):
        return 50 * (point["x"] - 1) ** 2 + (point["y"] - 1) ** 2 / 2

    def too_flat(problem, params, batch):
        return gk.Operator(lambda v: {"x": 100 * v["x"], "y": 0.01 * v["y"]}, params)

    start, tx = {"x": jnp.zeros(()), "y": jnp.zeros(())}, gk.hessian_free(1e-6, max_steps=2)
    point = gk.observe(loss, start, None, curvature=too_flat)
    d, state = tx.update(point.grad, tx.init(start), start, **point.extras)
    assert state.direction["y"] > 90  # where conjugate gradients end
    assert state.cg_kept == 1
    assert state.rate == 1
    assert d["x"] == pytest.approx(1, abs=0.01)  # where they were after one step
    assert d["y"] == pytest.approx(0.01, rel=0.01)


@pytest.mark.slow
def test_the_next_conjugate_gradients_begin_at_the_last_direction(network):
    """A first step that is told to stop at once is worth its start."""
    params, batch = network.params, network.batch
    tx = gk.hessian_free(1.0, decay=1.0)
    point = gk.observe(PROBLEM, params, batch, curvature=gk.gauss_newton)
    _, state = tx.update(point.grad, tx.init(params), params, **point.extras)
    short = gk.hessian_free(1.0, decay=1.0, max_steps=1)
    again = state.memory._replace(damping=jnp.ones_like(state.damping))
    warm, _ = short.update(
        point.grad, state._replace(hessian_free=state[0]._replace(memory=again)), params,
        **point.extras,
    )  # fmt: skip
    cold, _ = short.update(point.grad, short.init(params), params, **point.extras)
    after = [float(network.loss(optax.apply_updates(params, d), batch)) for d in (warm, cold)]
    assert after[0] < after[1]


def test_learns_a_network_in_few_updates_where_gradient_descent_takes_many(network):
    params, batch = network.params, network.batch
    start = network.loss(params, batch)
    reached, states = trained(gk.hessian_free(), params, batch, 40, curvature=gk.gauss_newton)
    slow, _ = trained(gk.sgd(0.1), params, batch, 1000)
    assert network.loss(reached, batch) < network.loss(slow, batch) < start
    last = states[-1]
    assert last.failures == 0
    assert last.negative_curvature == 0
    assert last.work.products == sum(int(s.cg_steps) + 1 for s in states)


def test_the_diagonal_preconditions(dtype):
    """Scales of the parameters as far apart as 10⁶ cost plain conjugate gradients their progress.

    With power 1 the diagonal of a diagonal curvature is its inverse: one step.
    """
    scales = jnp.asarray(np.geomspace(1e-3, 1e3, 40), dtype)

    def loss(x, _):
        return jnp.sum(scales * (x - 1) ** 2) / 2

    def steps(**observed):
        x = jnp.zeros_like(scales)
        point = gk.observe(loss, x, None, curvature=gk.hessian, **observed)
        tx = gk.hessian_free(1e-6, power=1.0)
        updates, state = tx.update(point.grad, tx.init(x), x, **point.extras)
        return int(state.cg_steps), float(loss(updates, None))

    plain, left = steps()
    few, reached = steps(diagonal=lambda problem, params, batch: scales)
    assert few <= 12 < plain  # the end of progress is seen after ten steps without
    assert reached < 1e-3 * left


@pytest.mark.slow
def test_the_diagonal_crosses_wrappers_and_micro_batches(network, eps):
    params, batch = network.params, network.batch
    observed = {"curvature": gk.gauss_newton, "diagonal": gk.empirical_fisher_diagonal}
    tx = gk.hessian_free(max_steps=3)
    alone, _ = trained(tx, params, batch, 1, **observed)
    inside, _ = trained(
        gk.masked(tx, jax.tree.map(lambda _: True, params)), params, batch, 1, **observed
    )
    parts, _ = trained(tx, params, batch, 1, micro_batches=4, **observed)
    without, _ = trained(tx, params, batch, 1, curvature=gk.gauss_newton)
    far = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), alone, without)
    assert max(jax.tree.leaves(far)) > 1e-4
    for other in (inside, parts):
        for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, atol=1e5 * eps)


def test_negative_curvature_is_counted_and_the_loss_falls_all_the_same():
    def loss(x, _):
        return jnp.sum(x**4 / 4 - x**2 / 2)

    x, tx = jnp.array([0.1, -0.2, 0.05]), gk.hessian_free(1e-3)

    @jax.jit
    def step(x, state):
        point = gk.observe(loss, x, None, curvature=gk.hessian)
        updates, state = tx.update(point.grad, state, x, **point.extras)
        return x + updates, state

    state = tx.init(x)
    for _ in range(60):
        x, state = step(x, state)
    assert state.negative_curvature > 0
    np.testing.assert_allclose(jnp.abs(x), 1, atol=1e-3)


def test_a_zero_gradient_moves_nothing_and_is_no_failure():
    x, tx = jnp.zeros(3), gk.hessian_free()
    point = gk.observe(lambda x, _: jnp.sum(x**2), x, None, curvature=gk.hessian)
    updates, state = tx.update(point.grad, tx.init(x), x, **point.extras)
    assert not updates.any()
    assert state.failures == 0
    assert all(jnp.isfinite(v) for v in gk.metrics(state).values())


def test_what_it_needs_is_told():
    x, tx = jnp.ones(3), gk.hessian_free()
    with pytest.raises(TypeError, match="hessian_free needs the extra argument 'value'"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="damping must be a positive number, got 0"):
        gk.hessian_free(0)
    with pytest.raises(ValueError, match="max_steps must be a positive whole number, got 0"):
        gk.hessian_free(max_steps=0)
