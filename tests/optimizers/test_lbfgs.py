from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.bfgs import scale_by_bfgs
from gradkit.optimizers.lbfgs import lbfgs, scale_by_lbfgs, two_loops

SPECTRUM = np.geomspace(0.5, 5, 8)


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


def path(oracle, steps):
    """Points and gradients on a quadratic, as trees: those of no method at all."""
    for k in range(steps):
        x, _ = oracle.vector(k)
        yield x, oracle.operator @ x


def dense(points, gamma):
    """H of all pairs of points and gradients in float64, by the formula of the book, from γI."""
    H = gamma * np.eye(len(points[0][0]))
    for (x, g), (x_next, g_next) in itertools.pairwise(points):
        s, y = x_next - x, g_next - g
        rho = 1 / (s @ y)
        V = np.eye(len(s)) - rho * np.outer(y, s)
        H = V.T @ H @ V + rho * np.outer(s, s)
    return H


@pytest.mark.parametrize("memory_size", [1, 3, 10])
def test_the_product_is_that_of_the_matrix_made_of_the_last_pairs(memory_size, operator_with, eps):
    """Also before the memory is full, and after it has gone round."""
    oracle = operator_with(SPECTRUM)
    tx = scale_by_lbfgs(memory_size)
    update, points = jax.jit(tx.update), []
    state = tx.init(oracle.vector(0)[0])
    for x, g in path(oracle, 8):
        d, state = update(g, state, x)
        points.append((flat(x), flat(g)))
        if len(points) > 1:
            s, y = (b - a for a, b in zip(points[-2], points[-1], strict=True))
            H = dense(points[-memory_size - 1 :], (s @ y) / (y @ y))
            expected = H @ points[-1][1]
            tolerance = 200 * eps * np.abs(H).max() * np.linalg.norm(points[-1][1])
            np.testing.assert_allclose(flat(d), expected, atol=tolerance)
    assert state.pairs.stored == min(memory_size, 7)


@pytest.mark.slow
def test_with_enough_memory_it_is_bfgs_with_the_same_beginning(operator_with, eps):
    oracle = operator_with(SPECTRUM)
    short, long = scale_by_lbfgs(10), scale_by_bfgs(self_scaling=False)
    x, _ = oracle.vector(0)
    one, two = short.init(x), long.init(x)
    updates = jax.jit(short.update), jax.jit(long.update)
    gamma = None
    for x, g in path(oracle, 7):
        _, one = updates[0](g, one, x)
        d, two = updates[1](g, two, x)
        if two.pairs == 1:
            gamma = two.scale
        if two.pairs:
            product = two_loops(one.pairs, g, gamma)
            tolerance = 1e3 * eps * np.linalg.norm(flat(g))
            np.testing.assert_allclose(flat(product), flat(d), atol=tolerance)
    assert two.pairs == 6


def test_ends_in_n_exact_steps_on_a_quadratic(operator_with, eps):
    oracle = operator_with(SPECTRUM)
    A, tx = oracle.matrix, scale_by_lbfgs(len(SPECTRUM))
    x, _ = oracle.vector(2)
    state, update, norms = tx.init(x), jax.jit(tx.update), []
    for _ in range(len(SPECTRUM) + 1):
        g = oracle.operator @ x
        norms.append(np.linalg.norm(flat(g)))
        d, state = update(g, state, x)
        alpha = (flat(g) @ flat(d)) / (flat(d) @ A @ flat(d))
        x = jax.tree.map(lambda x, d, a=alpha: x - jnp.asarray(a, x.dtype) * d, x, d)
    assert norms[-2] > 1e-4 * norms[0]
    assert norms[-1] < 1e4 * eps * norms[0]


@pytest.mark.parametrize("scale_init_precond", [True, False])
def test_directions_are_those_of_optax_on_a_convex_problem(scale_init_precond):
    rng = np.random.default_rng(0)
    X, t = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=30) > 0, float)

    def loss(w):
        return jnp.sum(jax.nn.softplus(X @ w) - t * (X @ w)) + w @ w / 2

    with jax.enable_x64(True):
        X, t = np.asarray(X, np.float64), np.asarray(t, np.float64)
        ours = scale_by_lbfgs(3, scale_init_precond)
        theirs = optax.scale_by_lbfgs(3, scale_init_precond)
        w = jnp.ones(4, np.float64)
        states = [ours.init(w), theirs.init(w)]
        updates = [jax.jit(ours.update), jax.jit(theirs.update)]
        for _ in range(7):
            g = jax.grad(loss)(w)
            d, states[0] = updates[0](g, states[0], w)
            expected, states[1] = updates[1](g, states[1], w)
            np.testing.assert_allclose(d, expected, rtol=1e-8, atol=1e-10)
            w = w - (0.5 if scale_init_precond else 0.05) * d
    assert states[0].pairs.stored == 3


@pytest.mark.slow
def test_converges_to_what_optax_finds(regression):
    def run(tx, steps):
        @jax.jit
        def step(carry, _):
            params, state = carry
            point = gk.observe(regression.loss, params, regression.batch)
            updates, state = tx.update(point.grad, state, params, **point.extras)
            return (optax.apply_updates(params, updates), state), point.value

        start = regression.params, tx.init(regression.params)
        (_, state), values = jax.lax.scan(step, start, length=steps)
        return values, state

    ours, state = run(lbfgs(), 60)
    theirs, _ = run(optax.lbfgs(), 60)
    assert ours[-1] < ours[0] / 2
    assert ours[-1] < theirs[-1] * 1.1
    assert gk.metrics(state)["refused_pairs"] == 0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter_in_float32(scale):
    """A gradient of 1e-12 has a square that leaves the range of float32 in the product yᵀy sᵀs."""
    tx = gk.chain(scale_by_lbfgs(4), gk.scale_by_learning_rate(0.5))
    H = jnp.asarray(np.diag([1.0, 4.0, 9.0]) + 0.5, jnp.float32)

    def run(c):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(c * (H @ x), state, x)
            return (x + updates, state), x

        x = jnp.asarray([1.0, -2.0, 3.0])
        return jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=12)[1])(x)

    np.testing.assert_allclose(run(np.float32(scale)), run(np.float32(1)), atol=1e-4)


def test_nothing_is_learnt_from_a_batch_that_changes(regression):
    tx = gk.chain(scale_by_lbfgs(), gk.scale_by_learning_rate(0.1))
    other = {**regression.batch, "y": regression.batch["y"].at[3].add(1e-3)}

    @jax.jit
    def step(params, state, batch):
        point = gk.observe(regression.loss, params, batch)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state, point.grad, updates

    params, state, seen = regression.params, tx.init(regression.params), []
    for batch in (regression.batch, regression.batch, regression.batch, other, other):
        params, state, grad, updates = step(params, state, batch)
        metrics = gk.metrics(state)
        seen.append((int(metrics["pairs"]), int(metrics["function_changes"])))
        if batch is other and metrics["pairs"] == 0:
            cosine = flat(grad) @ flat(updates)
            cosine /= np.linalg.norm(flat(grad)) * np.linalg.norm(flat(updates))
            assert cosine == pytest.approx(-1, abs=1e-5)  # steepest descent
    assert seen == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    assert gk.metrics(state)["restarts"] == 0


def test_without_the_loss_every_pair_is_taken():
    tx, x = scale_by_lbfgs(), jnp.asarray([1.0, 2.0])
    _, state = tx.update(x, tx.init(x), x)
    _, state = tx.update(5 * x, state, 2 * x)
    assert (state.pairs.stored, state.counts.changes) == (1, 0)


def three_updates(tx, gradients, points):
    state, update = tx.init(points[0]), jax.jit(tx.update)
    for g, x in zip(gradients, points, strict=True):
        d, state = update(g, state, x)
    return d, state


def test_a_pair_of_negative_curvature_is_refused_and_the_memory_kept():
    points = [jnp.asarray(x) for x in ([1.0, 2.0], [0.0, 2.0], [-1.0, 2.0])]
    gradients = [jnp.asarray(g) for g in ([2.0, 1.0], [1.0, 1.0], [1.5, 1.0])]
    d, state = three_updates(scale_by_lbfgs(), gradients, points)
    assert (state.pairs.stored, state.counts.refused) == (1, 1)
    np.testing.assert_allclose(d, gradients[-1], rtol=1e-5)  # the curvature known is 1


def test_a_pair_is_refused_by_its_cosine_not_by_its_size():
    """y nearly orthogonal to s is noise; y of 1e-12 along s is not."""
    points = [jnp.asarray(x) for x in ([1.0, 2.0], [0.0, 2.0])]
    for y, stored in (((-1e-12, 0.0), 1), ((-1e-2, 1.0), 0)):
        g = jnp.asarray([0.0, 0.0])
        gradients = [g, g + jnp.asarray(y)]
        _, state = three_updates(scale_by_lbfgs(min_cosine=0.1), gradients, points)
        assert state.pairs.stored == stored


def test_damping_takes_the_pairs_of_negative_curvature(dtype, eps):
    """y becomes θ y + (1 − θ) B s with sᵀy = 0.2 sᵀB s, here with B = 1/t of the first step."""
    points = [jnp.asarray(x, dtype) for x in ([1.0, 2.0], [0.5, 1.5])]
    gradients = [jnp.asarray(g, dtype) for g in ([3.0, 3.0], [4.0, 3.5])]
    tx = scale_by_lbfgs(damping=0.2)
    d, state = three_updates(tx, gradients[:1], points[:1])
    _, state = three_updates(tx, gradients, points)
    s, y, d, g = (
        np.asarray(v, float)
        for v in (points[1] - points[0], gradients[1] - gradients[0], d, gradients[0])
    )
    Bs = g * np.linalg.norm(s) / np.linalg.norm(d) * -1
    theta = 0.8 * (s @ Bs) / (s @ Bs - s @ y)
    expected = theta * y + (1 - theta) * Bs
    assert s @ y < 0
    assert s @ expected == pytest.approx(0.2 * (s @ Bs))
    np.testing.assert_allclose(state.pairs.y[0], expected / np.linalg.norm(expected), atol=10 * eps)
    ratio = np.linalg.norm(s) / np.linalg.norm(expected)
    assert state.pairs.ratio[0] == pytest.approx(ratio, rel=20 * eps)


def test_a_step_that_moved_nothing_restarts():
    points = [jnp.asarray(x) for x in ([1.0, 2.0], [0.5, 1.0], [0.5, 1.0])]
    gradients = [jnp.asarray(g) for g in ([1.0, 8.0], [0.5, 4.0], [0.5, 4.0])]
    d, state = three_updates(scale_by_lbfgs(), gradients, points)
    assert (state.pairs.stored, state.counts.restarts) == (0, 1)
    gamma = (0.25 + 4) / (0.25 + 16)
    np.testing.assert_allclose(d, gamma * gradients[-1], rtol=1e-5)


def test_a_direction_that_does_not_descend_is_replaced(dtype):
    """Infinity minus infinity, of a pair whose curvature is next to nothing."""
    tiny = jnp.finfo(dtype).tiny
    points = [jnp.asarray(x, dtype) for x in ([1.0, 2.0], [0.0, 2.0])]
    gradients = [jnp.asarray(g, dtype) for g in ([0.0, 1.0], [-3 * tiny, 1.0])]
    d, state = three_updates(scale_by_lbfgs(), gradients, points)
    assert jnp.isfinite(d).all()
    assert d @ gradients[-1] > 0
    assert (state.pairs.stored == 0) == (state.counts.restarts == 1)


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    points = [jnp.asarray([k, 2.0 * k]) for k in (1.0, 2.0, 3.0)]
    bad = jnp.asarray([jnp.nan, 1.0])
    _, before = three_updates(scale_by_lbfgs(3), points[:2], points[:2])
    d, after = three_updates(scale_by_lbfgs(3), [*points[:2], bad], points)
    np.testing.assert_array_equal(d, bad)
    for a, b in zip(jax.tree.leaves(after.memory), jax.tree.leaves(before.memory), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_direction_has_length_one_whatever_the_scale_and_wherever(dtype, eps):
    update = jax.jit(scale_by_lbfgs().update)
    x = jnp.asarray([1e3, -1e3], dtype)
    for scale in (1e-30, 1.0, 1e30):
        g = scale * jnp.asarray([3.0, -4.0], dtype)
        d, _ = update(g, scale_by_lbfgs().init(g), x)
        np.testing.assert_allclose(d, [0.6, -0.8], rtol=10 * eps)


def test_leaves_without_numbers_and_of_mixed_dtypes(dtype):
    x = {
        "none": jnp.zeros((0, 2), dtype),
        "half": jnp.ones(2, jnp.bfloat16),
        "one": jnp.ones((), dtype),
    }
    tx = gk.chain(scale_by_lbfgs(2), gk.scale_by_learning_rate(0.5))
    state = tx.init(x)
    types = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    update = jax.jit(tx.update)
    for _ in range(4):
        g = jax.tree.map(lambda a: 2 * a, x)
        updates, state = update(g, state, x)
        x = optax.apply_updates(x, updates)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == types
    assert max(float(jnp.abs(a).max(initial=0)) for a in jax.tree.leaves(x)) < 0.2


def test_a_search_of_optax_may_take_its_place(regression):
    tx = lbfgs(linesearch=optax.scale_by_backtracking_linesearch(max_backtracking_steps=20))

    @jax.jit
    def step(params, state):
        point = gk.observe(regression.loss, params, regression.batch)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        return optax.apply_updates(params, updates), state, point.value

    params, state = regression.params, tx.init(regression.params)
    values = []
    for _ in range(10):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < values[0]
    assert all(b <= a for a, b in itertools.pairwise(values))


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="scale_by_lbfgs: memory_size must be a positive whole"):
        scale_by_lbfgs(0)
    with pytest.raises(ValueError, match="scale_by_lbfgs: damping must be a number from 0"):
        scale_by_lbfgs(damping=-0.1)
    with pytest.raises(ValueError, match="line_search finds the learning rate"):
        lbfgs(0.1, linesearch=gk.line_search())
