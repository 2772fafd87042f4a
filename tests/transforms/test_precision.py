"""Low precision: finite, accurate, one compilation, and progress with small steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

LOW = [jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("low", LOW)
def test_the_global_norm_is_that_of_float32(low):
    grads = [jnp.full(10_000, 10.0, low) for _ in range(20)]
    tx = gk.clip_by_global_norm(1e9)
    _, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(state.norm, np.sqrt(200 * 1000 * 100.0), rtol=1e-6)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("gradient", [0.0, 1e-4, 1.0, 1e3])
def test_adam_is_finite_and_right_from_zero_to_large_gradients(low, gradient):
    tx, exact = gk.scale_by_adam(), gk.scale_by_adam()
    g = jnp.full(3, gradient, low)
    state, wide_state = tx.init(g), exact.init(g.astype(jnp.float32))
    for _ in range(5):
        u, state = tx.update(g, state)
        expected, wide_state = exact.update(g.astype(jnp.float32), wide_state)
    assert u.dtype == low
    np.testing.assert_allclose(u.astype(jnp.float32), expected, rtol=2 * float(jnp.finfo(low).eps))


def test_b2_does_not_become_one_in_bfloat16():
    params = jnp.ones(3, jnp.bfloat16)
    tx = gk.adam(jnp.bfloat16(0.125), b2=0.999)
    updates, _ = tx.update(params, tx.init(params))
    np.testing.assert_allclose(updates.astype(jnp.float32), -0.125, rtol=1e-2)


@pytest.mark.parametrize("grad_dtype", [*LOW, jnp.float32])
@pytest.mark.parametrize("dtype", [*LOW, jnp.float32])
@pytest.mark.parametrize("rate", [0.1, optax.linear_schedule(0.1, 0.0, 9)], ids=["number", "rate"])
def test_one_compilation_for_each_combination_of_dtypes(dtype, grad_dtype, rate):
    params, grads = jnp.ones(3, dtype), jnp.ones(3, grad_dtype)
    tx = gk.chain(gk.clip_by_global_norm(1.0), gk.adamw(rate), gk.average_params(0.9))
    step, state = jax.jit(tx.update), tx.init(params)
    for _ in range(3):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert step._cache_size() == 1
    assert params.dtype == dtype
    assert updates.dtype == jnp.promote_types(dtype, grad_dtype)


def test_moments_have_the_dtype_of_their_slot():
    params = jnp.ones(3, jnp.bfloat16)
    plain = gk.adamw().init(params)
    assert plain.mu.dtype == plain.nu.dtype == jnp.float32
    chosen = gk.adamw(mu_dtype="bfloat16", nu_dtype="float16").init(params)
    assert (chosen.mu.dtype, chosen.nu.dtype) == (jnp.bfloat16, jnp.float16)
    _, following = gk.adamw(mu_dtype="bfloat16", nu_dtype="float16").update(params, chosen, params)
    assert (following.mu.dtype, following.nu.dtype) == (jnp.bfloat16, jnp.float16)


def descend(tx, params, steps):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


WRAPPERS = {
    "plain": lambda: gk.sgd(1e-4),
    "master_weights": lambda: gk.master_weights(gk.sgd(1e-4)),
    "stochastic_rounding": lambda: gk.chain(gk.sgd(1e-4), gk.stochastic_rounding(0)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_small_steps_of_bfloat16_parameters_are_not_lost(name):
    """1 − 1e-4 is 1 in bfloat16: without help nothing ever moves."""
    params, _ = descend(WRAPPERS[name](), jnp.ones(1000, jnp.bfloat16), 200)
    mean = float(jnp.mean(params.astype(jnp.float32)))
    assert params.dtype == jnp.bfloat16
    if name == "plain":
        assert mean == 1.0
    else:
        assert mean == pytest.approx(0.98, abs=2e-3)


@pytest.mark.slow
def test_master_weights_are_the_float32_run_rounded():
    loss = lambda p: jnp.sum((p - jnp.array([0.3, -1.7, 2.1])) ** 2)  # noqa: E731
    low, wide = jnp.array([1.0, 1.0, -1.0], jnp.bfloat16), jnp.array([1.0, 1.0, -1.0])
    tx, plain = gk.master_weights(gk.adam(0.01)), gk.adam(0.01)
    state, wide_state = tx.init(low), plain.init(wide)
    for _ in range(50):
        grads = jax.grad(loss)(low.astype(jnp.float32))
        updates, state = tx.update(grads.astype(jnp.bfloat16), state, low)
        low = optax.apply_updates(low, updates)
        step, wide_state = plain.update(
            grads.astype(jnp.bfloat16).astype(jnp.float32), wide_state, wide
        )
        wide = wide + step
        np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))


def test_a_parameter_changed_from_outside_is_taken_over():
    tx = gk.master_weights(gk.sgd(1e-4))
    params, state = descend(tx, jnp.ones(3, jnp.bfloat16), 5)
    moved = params.at[1].set(7.0)
    _, state = tx.update(jnp.ones(3, jnp.bfloat16), state, moved)
    np.testing.assert_allclose(state.master, [0.9994, 7 - 1e-4, 0.9994], rtol=1e-6)


@pytest.mark.slow
def test_master_weights_hold_members_that_call_the_loss():
    def loss(p, _):
        return jnp.sum((p.astype(jnp.float32) - 3) ** 4)

    params = jnp.ones(2, jnp.bfloat16)
    tx = gk.master_weights(gk.newton_cg())
    state = tx.init(params)
    for _ in range(12):
        point = gk.observe(loss, params, None, gk.hessian)
        updates, state = tx.update(point.grad, state, params, **point.extras)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params.astype(jnp.float32), 3.0, atol=0.15)


def test_stochastic_rounding_is_right_in_the_mean_and_never_far():
    n, step = 100_000, 0.3 * 2.0**-7  # 0.3 of a unit in the last place above 1
    params = jnp.ones(n, jnp.bfloat16)
    tx = gk.chain(gk.scale_by_learning_rate(step, flip_sign=False), gk.stochastic_rounding(1))
    updates, _ = tx.update(jnp.ones(n, jnp.bfloat16), tx.init(params), params)
    rounded = np.float64(optax.apply_updates(params, updates))
    assert set(np.unique(rounded)) == {1.0, 1 + 2.0**-7}
    spread = np.sqrt(0.3 * 0.7 / n) * 2.0**-7
    assert abs(rounded.mean() - 1 - step) < 4 * spread
    again, _ = tx.update(jnp.ones(n, jnp.bfloat16), tx.init(params), params)
    np.testing.assert_array_equal(updates, again)


def test_stochastic_rounding_leaves_float32_alone_and_refuses_float16():
    tx = gk.stochastic_rounding(0)
    u = jnp.array([1e-9, 0.3])
    np.testing.assert_array_equal(tx.update(u, tx.init(u), jnp.ones(2))[0], u)
    with pytest.raises(TypeError, match="expected bfloat16 or float32, got float16"):
        tx.update(u, tx.init(u), jnp.ones(2, jnp.float16))
