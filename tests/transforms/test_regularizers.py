"""Proximal steps, projections, noise and centering: by closed form and by property."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradkit as gk


def minimize(loss, params, tx, steps):
    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]


@pytest.mark.parametrize("l2", [0.0, 0.4], ids=["lasso", "elastic net"])
def test_the_proximal_step_reaches_the_closed_form_on_an_orthonormal_design(l2, dtype, eps):
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(40, 8)))[0]
    y = X @ np.array([3, -2, 0.4, 0, 0, 1, -0.2, 0.1]) + 0.1 * rng.normal(size=40)
    design, target = jnp.asarray(X, dtype), jnp.asarray(y, dtype)

    def loss(theta):
        return jnp.sum((design @ theta - target) ** 2) / 2

    tx = gk.proximal_step(0.5, l1=0.5, l2=l2)
    theta = np.asarray(minimize(loss, jnp.ones(8, dtype), tx, 200))
    z = X.T @ y
    expected = np.sign(z) * np.maximum(np.abs(z) - 0.5, 0) / (1 + l2)
    np.testing.assert_allclose(theta, expected, atol=100 * eps)
    np.testing.assert_array_equal(theta == 0, expected == 0)  # exact zeros


@pytest.mark.slow
@given(
    x=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5),
    l1=st.floats(0, 5),
    eta=st.floats(0.01, 1),
)
def test_prox_shrinks_and_gives_exact_zeros(x, l1, eta):
    params = jnp.array(x, jnp.float32)
    tx = gk.proximal_step(eta, l1=l1)
    updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    after = np.asarray(params + updates)
    assert (np.abs(after) <= np.abs(params) + 1e-6).all()
    assert (after[np.abs(np.asarray(params)) < 0.999 * eta * l1] == 0).all()
    np.testing.assert_allclose(
        np.abs(after), np.maximum(np.abs(params) - np.float32(eta) * l1, 0), atol=1e-5
    )


def test_without_a_penalty_the_step_is_that_of_gradient_descent(dtype, eps):
    params, grads = {"a": jnp.ones(3, dtype)}, {"a": jnp.arange(3, dtype=dtype)}
    tx, plain = gk.proximal_step(0.1), gk.sgd(0.1)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = plain.update(grads, plain.init(params), params)
    np.testing.assert_allclose(updates["a"], expected["a"], rtol=20 * eps, atol=2 * eps)


def test_the_mask_leaves_the_others_alone_and_nan_is_not_hidden():
    params = {"kernel": jnp.array([0.01, jnp.nan]), "bias": jnp.array([0.01])}
    tx = gk.proximal_step(1.0, l1=0.1, mask="kernel")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    assert after["kernel"][0] == 0
    assert jnp.isnan(after["kernel"][1])
    assert after["bias"] == params["bias"]


@given(scale=st.floats(0.01, 100), limit=st.floats(0.1, 10))
def test_max_norm_bounds_each_units_incoming_weights(scale, limit):
    params = {"kernel": scale * jnp.cos(jnp.arange(12.0).reshape(4, 3)), "bias": jnp.full(3, 1e3)}
    tx = gk.project_max_norm(limit)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    moved = params["kernel"] + 1
    norms, free = (np.linalg.norm(x, axis=0) for x in (after["kernel"], moved))
    np.testing.assert_allclose(norms, np.minimum(free, limit), rtol=1e-4)
    assert (after["bias"] == params["bias"] + 1).all()


def test_max_norm_counts_all_axes_but_the_last_of_a_convolution():
    params = jnp.ones((3, 3, 2, 5))
    tx = gk.project_max_norm(1.0)
    updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    norms = jnp.sqrt(jnp.sum((params + updates) ** 2, axis=(0, 1, 2)))
    np.testing.assert_allclose(norms, 1.0, rtol=1e-6)


def test_noise_has_the_variance_stated_and_goes_on_where_it_was():
    tx = gk.add_noise(0.5, 0.55, key=3)
    zeros = jnp.zeros(20_000)
    state = tx.init(zeros)
    for t in range(1, 4):
        noise, state = tx.update(zeros, state)
        variance = 0.5 / t**0.55
        assert float(jnp.var(noise)) == pytest.approx(variance, rel=5 * np.sqrt(2 / 20_000))
    resumed, _ = tx.update(zeros, tx.init(zeros, step=2))
    np.testing.assert_array_equal(resumed, noise)


def test_two_leaves_of_a_shape_get_different_noise():
    zeros = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    noise, _ = (tx := gk.add_noise(1.0, 0.0)).update(zeros, tx.init(zeros))
    assert (noise["a"] != noise["b"]).all()


@pytest.mark.parametrize("unit_axis", [-1, 0, 1])
def test_centering_makes_each_units_mean_zero(unit_axis, dtype, eps):
    g = {"kernel": jnp.arange(12, dtype=dtype).reshape(4, 3), "bias": jnp.ones(3, dtype)}
    tx = gk.centralize(unit_axis=unit_axis)
    centered, _ = tx.update(g, tx.init(g))
    means = g["kernel"].mean(1 if unit_axis == 0 else 0, keepdims=True)
    np.testing.assert_allclose(centered["kernel"], g["kernel"] - means, atol=20 * eps)
    assert (centered["bias"] == 1).all()


def test_units_are_centered_along_optaxs_axis_by_default():
    g = jax.random.normal(jax.random.key(0), (3, 4, 5))
    ours, theirs = gk.centralize(), optax.centralize()
    expected, _ = theirs.update(g, theirs.init(g))
    np.testing.assert_allclose(ours.update(g, ours.init(g))[0], expected, rtol=1e-6, atol=1e-6)


def test_decay_in_its_three_places():
    """Coupled through the loss, times the rate, and fully decoupled: by their formulas."""
    params, g, w, eta = jnp.array([2.0, -1.0]), jnp.array([0.3, 0.1]), 0.1, 0.5
    adam, rate = gk.scale_by_adam(), gk.scale_by_learning_rate(eta)
    decay = gk.add_decayed_weights

    def after(*members):
        tx = gk.chain(*members)
        return params + tx.update(g, tx.init(params), params)[0]

    u = adam.update(g, adam.init(params))[0]
    coupled = adam.update(g + w * params, adam.init(params))[0]
    np.testing.assert_allclose(after(decay(w), adam, rate), params - eta * coupled, rtol=1e-6)
    np.testing.assert_allclose(
        after(adam, decay(w), rate), (1 - eta * w) * params - eta * u, rtol=1e-6
    )
    np.testing.assert_allclose(
        after(adam, rate, decay(w, flip_sign=True)), (1 - w) * params - eta * u, rtol=1e-6
    )
