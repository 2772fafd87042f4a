from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk

KEY = jax.random.key(0)
CURVATURES = np.array([4.0, 0.5, -2.0, 1e-3])


def bent(x, batch):
    """A function with the Hessian diag(CURVATURES)."""
    del batch
    return jnp.sum(jnp.asarray(CURVATURES, x.dtype) * x**2) / 2


def point_of(loss, x, batch=None, **asked):
    return gk.observe(loss, x, batch, **({"curvature": gk.hessian, "key": KEY} | asked))


def updates_of(tx, loss, x, steps, rate=0.1):
    """The updates of so many steps x ← x − rate u, and the last state."""

    @jax.jit
    def step(x, state):
        point = point_of(loss, x)
        u, state = tx.update(point.grad, state, x, **point.extras)
        return x - rate * u, state, u

    state, found = tx.init(x), []
    for _ in range(steps):
        x, state, u = step(x, state)
        found.append(np.asarray(u, np.float64))
    return np.stack(found), state


def averaged_diagonal(tx, problem, params, batch, count, **asked):
    """The plain mean of so many measured diagonals at the same parameters."""
    point = gk.observe(problem, params, batch, **asked)

    @jax.jit
    def measured(state):
        def again(_, state):
            return tx.update(point.grad, state, params, **point.extras)[1]

        return jax.lax.fori_loop(0, count, again, state)

    return ravel_pytree(measured(tx.init(params)).diagonal)[0]


@pytest.mark.slow
def test_hutchinsons_diagonal_is_within_its_standard_error_of_the_exact_one(network):
    count = 400
    mean = gk.scale_by_sophia(b2=lambda step: step / (step + 1), every=1)
    nu = averaged_diagonal(
        mean, network.loss, network.params, network.batch, count, curvature=gk.hessian, key=KEY
    )
    H = network.hessian
    off = np.sqrt(np.sum(H**2, axis=1) - np.diag(H) ** 2)  # of one probe
    z = (np.asarray(nu, np.float64) - np.diag(H)) / (off / np.sqrt(count))
    assert np.abs(z).max() < 5
    assert 0.5 < np.mean(z**2) < 1.8


def test_adahessian_divides_by_the_root_of_the_averaged_squares_of_diagonals():
    tx = gk.scale_by_adahessian(b1=0.8, b2=0.9, eps=1e-3, power=0.5)
    x = np.array([1.0, -2.0, 3.0, 4.0])
    found, _ = updates_of(tx, bent, jnp.asarray(x), 5)
    m, v = np.zeros(4), np.zeros(4)
    for t, u in enumerate(found, start=1):
        m = 0.8 * m + 0.2 * CURVATURES * x
        v = 0.9 * v + 0.1 * CURVATURES**2
        expected = m / (1 - 0.8**t) / ((v / (1 - 0.9**t)) ** 0.25 + 1e-3)
        np.testing.assert_allclose(u, expected, rtol=2e-5)
        x = x - 0.1 * u


def test_adahessian_makes_newtons_step_with_the_absolute_curvature(dtype, eps):
    x = jnp.asarray([1.0, -2.0, 3.0, 4.0], dtype)
    point = point_of(bent, x)
    tx = gk.scale_by_adahessian(b1=0.5, b2=0.5, eps=0.0)
    u, _ = tx.update(point.grad, tx.init(x), x, **point.extras)
    np.testing.assert_allclose(u, np.sign(CURVATURES) * np.asarray(x), rtol=20 * eps)


def test_of_a_kernel_the_diagonal_is_averaged_over_its_places():
    scales = jnp.arange(1.0, 55.0).reshape(3, 3, 2, 3)
    kernel = jnp.ones_like(scales)
    point = point_of(lambda p, _: jnp.sum(scales * p**2) / 2, kernel)
    tx = gk.scale_by_adahessian(eps=0.0)
    u, _ = tx.update(point.grad, tx.init(kernel), kernel, **point.extras)
    np.testing.assert_allclose(u, scales / scales.mean(axis=(0, 1)), rtol=1e-5)


def test_sophia_clips_what_it_divides_by_the_averaged_diagonal():
    tx = gk.scale_by_sophia(b1=0.5, b2=0.7, gamma=0.5, every=3)
    x = np.array([1.0, -2.0, 3.0, 4.0])
    found, state = updates_of(tx, bent, jnp.asarray(x), 7)
    m, h = np.zeros(4), np.zeros(4)
    for t, u in enumerate(found):
        m = 0.5 * m + 0.5 * CURVATURES * x
        if t % 3 == 0:
            h = 0.7 * h + 0.3 * CURVATURES
        ratio = m / np.maximum(0.5 * h, 1e-12)
        np.testing.assert_allclose(u, np.clip(ratio, -1, 1), rtol=2e-5)
        x = x - 0.1 * u
    metrics = gk.metrics(state)
    assert metrics["diagonals"] == 3
    assert metrics["products"] == 3
    np.testing.assert_allclose(metrics["clipped"], np.mean(np.abs(ratio) > 1))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("name", ["scale_by_adahessian", "scale_by_sophia"])
def test_jit_and_eager_measure_the_same_diagonals(name, every):
    def loss(x, _):
        return jnp.sum(jnp.cos(jnp.outer(x, x)))

    tx, x = getattr(gk, name)(every=every), jnp.array([0.3, -1.0, 2.0])
    point = point_of(loss, x)
    state = eager = tx.init(x)
    step = jax.jit(lambda g, s, extras: tx.update(g, s, x, **extras))
    for _ in range(5):
        state = step(point.grad, state, point.extras)[1]
        eager = tx.update(point.grad, eager, x, **point.extras)[1]
    assert gk.metrics(state)["diagonals"] == gk.metrics(eager)["diagonals"] == 1 + 4 // every
    np.testing.assert_allclose(state.diagonal, eager.diagonal, rtol=1e-5, atol=1e-5)


def test_a_state_begun_elsewhere_measures_at_its_first_update():
    tx = gk.scale_by_sophia(every=10)
    x = jnp.ones(4)
    point = point_of(bent, x)
    _, state = tx.update(point.grad, tx.init(x, step=7), x, **point.extras)
    assert gk.metrics(state)["diagonals"] == 1


def test_sophia_g_takes_the_diagonal_that_is_given():
    problem = gk.Problem(
        predict=lambda w, batch: batch["x"] @ w,
        criterion=lambda z, batch: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(z, batch["y"])
        ),
    )
    keys = jax.random.split(KEY, 3)
    w = jax.random.normal(keys[0], (4, 3))
    batch = {"x": jax.random.normal(keys[1], (50, 4)), "y": jnp.zeros(50, int)}
    diagonal = functools.partial(gk.fisher_diagonal, key=keys[2], likelihood="categorical")
    point = gk.observe(problem, w, batch, diagonal=diagonal)
    tx = gk.scale_by_sophia(b2=0.0)
    _, state = tx.update(point.grad, tx.init(w), w, **point.extras)
    np.testing.assert_allclose(state.diagonal, diagonal(problem, w, batch))
    assert gk.metrics(state)["gradients"] == 1
    assert gk.metrics(state)["products"] == 0


@pytest.mark.parametrize("factory", [gk.adahessian, gk.sophia])
def test_what_is_missing_is_named_with_the_call_that_gives_it(factory):
    x = jnp.ones(4)
    tx, point = factory(), gk.observe(bent, x, None, gk.hessian)
    with pytest.raises(TypeError, match=r"needs the extra argument 'key'.*\n.*key=key\)"):
        tx.update(point.grad, tx.init(x), x, **point.extras)


@pytest.mark.parametrize("factory", [gk.adahessian, gk.sophia])
def test_the_interval_is_a_positive_whole_number(factory):
    with pytest.raises(ValueError, match="every must be a positive whole number, got 0"):
        factory(every=0)
