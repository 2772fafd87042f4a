"""Each link by its own formula and its own properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradkit as gk
from gradkit import tree

FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
VECTORS = st.lists(FINITE, min_size=1, max_size=4).map(lambda x: jnp.array(x, jnp.float32))


def outputs(tx, gradients, params=None):
    params = gradients[0] if params is None else params
    state = tx.init(params)
    results = []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        results.append(update)
    return results


@given(value=FINITE, decay=st.floats(0, 0.999), steps=st.integers(1, 6))
def test_the_corrected_average_of_a_constant_is_the_constant(value, decay, steps):
    x = jnp.float32(value)
    for y in outputs(gk.ema(decay), [x] * steps):
        assert y == pytest.approx(value, rel=2e-4, abs=1e-6)


def test_the_average_is_its_sum(dtype, eps):
    xs = np.random.default_rng(0).normal(size=(6, 3))
    results = outputs(gk.ema(0.7, debias=False), [jnp.asarray(x, dtype) for x in xs])
    for t in range(6):
        expected = sum(0.3 * 0.7 ** (t - i) * xs[i] for i in range(t + 1))
        np.testing.assert_allclose(results[t], expected, atol=20 * eps)


def test_average_and_correction_as_separate_links_are_the_corrected_average(dtype, eps):
    xs = [jnp.asarray(x, dtype) for x in np.random.default_rng(0).normal(size=(6, 3))]
    separate = outputs(gk.chain(gk.ema(0.9, debias=False), gk.bias_correction(0.9)), xs)
    for x, y in zip(separate, outputs(gk.ema(0.9), xs), strict=True):
        np.testing.assert_allclose(x, y, rtol=10 * eps)


def test_adam_is_the_quotient_of_two_corrected_averages(dtype, eps):
    xs = [jnp.asarray(x, dtype) for x in np.random.default_rng(1).normal(size=(6, 3))]
    first = outputs(gk.ema(0.9), xs)
    second = outputs(gk.ema(0.999), [x**2 for x in xs])
    for u, m, v in zip(outputs(gk.scale_by_adam(), xs), first, second, strict=True):
        np.testing.assert_allclose(u, m / (jnp.sqrt(v) + 1e-8), rtol=50 * eps)


@pytest.mark.slow
@given(x=VECTORS, factor=st.floats(0.1, 100))
def test_adam_does_not_see_the_scale_of_the_gradient(x, factor):
    x = x + jnp.where(x >= 0, 1, -1)
    plain = outputs(gk.scale_by_adam(eps=0.0), [x, -2 * x])
    scaled = outputs(gk.scale_by_adam(eps=0.0), [factor * x, -2 * factor * x])
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.slow
@given(x=VECTORS, a=st.floats(-10, 10))
def test_momentum_is_linear(x, a):
    y = jnp.cos(jnp.arange(len(x), dtype=jnp.float32))
    tx = gk.sgd(0.1, momentum=0.9, nesterov=True)
    combined = outputs(tx, [x + a * y, a * x])
    first, second = outputs(tx, [x, a * x]), outputs(tx, [a * y, 0 * x])
    for whole, one, other in zip(combined, first, second, strict=True):
        np.testing.assert_allclose(whole, one + other, rtol=1e-4, atol=1e-2)


def test_heavy_ball_before_and_after_the_rate_differ_only_under_a_schedule(dtype, eps):
    xs = [jnp.asarray(x, dtype) for x in np.random.default_rng(2).normal(size=(5, 3))]
    rate, ball = gk.scale_by_learning_rate, gk.heavy_ball(0.9)
    before = outputs(gk.chain(ball, rate(0.1)), xs)
    after = outputs(gk.chain(rate(0.1), ball), xs)
    np.testing.assert_allclose(before, after, rtol=100 * eps, atol=10 * eps)
    decaying = optax.exponential_decay(0.1, 1, 0.5)
    before = outputs(gk.chain(ball, rate(decaying)), xs)
    after = outputs(gk.chain(rate(decaying), ball), xs)
    assert np.abs(np.array(before) - np.array(after)).max() > 0.01


@given(x=VECTORS, limit=st.floats(1e-3, 1e3))
def test_clipping_never_raises_the_norm_and_never_turns(x, limit):
    gradients = {"a": x, "b": [2 * x]}
    (clipped,) = outputs(gk.clip_by_global_norm(limit), [gradients])
    norm, after = float(tree.norm(gradients)), float(tree.norm(clipped))
    assert after <= min(norm, limit) * (1 + 1e-5)
    if norm <= limit:
        assert (clipped["a"] == x).all()
    else:
        assert after == pytest.approx(limit, rel=1e-4)
        np.testing.assert_allclose(clipped["a"] * (norm / limit), x, rtol=1e-3, atol=1e-3)


def test_clipping_publishes_what_it_did():
    tx = gk.clip_by_global_norm(1.0)
    _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    assert gk.metrics(state) == {"norm_before_clipping": 5.0, "clipped": True}
    _, state = tx.update(jnp.array([0.3, 0.4]), state)
    assert not gk.metrics(state)["clipped"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("clip", [gk.clip_by_global_norm, gk.clip_by_leaf_norm])
def test_clipping_does_not_hide_a_norm_that_is_not_finite(clip, bad):
    (clipped,) = outputs(clip(1.0), [jnp.array([bad, 1.0])])
    assert jnp.isnan(clipped).all()


def test_a_zero_gradient_is_clipped_to_zero():
    (clipped,) = outputs(gk.clip_by_global_norm(1.0), [jnp.zeros(3)])
    assert not clipped.any()


@given(x=VECTORS, limit=st.floats(0, 10))
def test_clip_bounds_every_element(x, limit):
    (clipped,) = outputs(gk.clip(limit), [x])
    np.testing.assert_allclose(clipped, np.clip(x, -limit, limit), rtol=1e-6)


def test_decay_shrinks_the_weights_as_decoupled_decay_says(dtype, eps):
    params = jnp.asarray([1.0, -2.0], dtype)
    tx = gk.adamw(0.1, weight_decay=0.5)
    plain = gk.adam(0.1)
    grad = jnp.asarray([0.3, 0.4], dtype)
    decayed, _ = tx.update(grad, tx.init(params), params)
    adam, _ = plain.update(grad, plain.init(params), params)
    np.testing.assert_allclose(params + decayed, (1 - 0.1 * 0.5) * params + adam, rtol=20 * eps)


def test_decay_without_parameters_is_refused_with_the_call():
    tx = gk.add_decayed_weights(0.1)
    with pytest.raises(ValueError, match=r"update\(updates, state, params\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_the_rate_of_a_schedule_is_published_and_kept_in_float32():
    tx = gk.scale_by_learning_rate(lambda step: 0.1 / (step + 1))
    state = tx.init(jnp.ones(2, jnp.bfloat16))
    for t in range(3):
        update, state = tx.update(jnp.ones(2, jnp.bfloat16), state)
        assert gk.metrics(state)["learning_rate"] == pytest.approx(0.1 / (t + 1))
        assert state.learning_rate.dtype == jnp.float32
        assert update.dtype == jnp.bfloat16


def search(loss, x, direction, **options):
    tx = gk.line_search(**options)
    point = gk.observe(loss, x, None)
    update, state = tx.update(direction, tx.init(x), x, **point.extras)
    return update, gk.metrics(state)


def test_line_search_takes_the_first_halving_that_lowers_enough():
    def loss(x, _):
        return 50 * jnp.sum(x**2)

    x = jnp.array([1.0])
    update, metrics = search(loss, x, jax.grad(loss)(x, None))
    # f(1 − 100 α) ≤ 50 − 1e-4 · α · 10⁴ holds from α = 2⁻⁶ on
    assert metrics["learning_rate"] == 2.0**-6
    assert metrics["evaluations"] == 7
    assert metrics["failures"] == 0
    assert loss(x + update, None) <= 50 - 1e-4 * 2.0**-6 * 1e4


def test_line_search_shrinks_away_from_nan_and_infinity():
    def loss(x, _):
        return jnp.sum(10 * x - jnp.log(x))

    x = jnp.array([0.5])
    update, metrics = search(loss, x, jax.grad(loss)(x, None))
    assert jnp.isfinite(update).all()
    assert (x + update > 0).all()
    assert loss(x + update, None) < loss(x, None)
    assert metrics["failures"] == 0


@pytest.mark.parametrize(("direction", "failures"), [(-1.0, 1), (np.nan, 1), (0.0, 0)])
def test_line_search_without_descent_stays_and_says_so(direction, failures):
    x = jnp.array([1.0])
    update, metrics = search(lambda x, _: jnp.sum(x**2), x, jnp.array([direction]))
    assert update == 0
    assert metrics["failures"] == failures
    assert metrics["learning_rate"] == 0
    assert metrics["evaluations"] == 0


def test_line_search_gives_up_after_its_trials():
    x = jnp.array([1.0])
    update, metrics = search(lambda x, _: jnp.sum(x**2), x, jnp.array([1e30]), max_steps=5)
    assert update == 0
    assert metrics["evaluations"] == 5
    assert metrics["failures"] == 1


def test_chain_is_associative(dtype):
    xs = [jnp.asarray(x, dtype) for x in np.random.default_rng(3).normal(size=(4, 3))]
    a, b, c = gk.clip(0.5), gk.heavy_ball(0.9), gk.scale_by_learning_rate(0.1)
    flat = outputs(gk.chain(a, b, c), xs)
    np.testing.assert_array_equal(flat, outputs(gk.chain(gk.chain(a, b), c), xs))
    np.testing.assert_array_equal(flat, outputs(gk.chain(a, gk.chain(b, c)), xs))


def test_chain_of_nothing_changes_nothing():
    (update,) = outputs(gk.chain(), [jnp.array([1.0, 2.0])])
    np.testing.assert_array_equal(update, [1, 2])


def test_chain_refuses_what_is_no_transformation_with_its_place():
    with pytest.raises(TypeError, match=r"member 1 must be .* got function; call it: adam\(...\)"):
        gk.chain(gk.clip(1.0), gk.adam)
    with pytest.raises(TypeError, match="member 0 must be a gradient transformation, got float"):
        gk.chain(0.1)


def test_chain_refuses_the_state_of_another_chain():
    one, two = gk.chain(gk.clip(1.0)), gk.chain(gk.clip(1.0), gk.sgd())
    with pytest.raises(ValueError, match=r"fields \(clip, sgd, step\); got one of \(clip, step\)"):
        two.update(jnp.ones(2), one.init(jnp.ones(2)))
