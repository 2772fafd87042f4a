"""Step by step equal to optax on the same gradients, on a nested tree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)

PAIRS = {
    "sgd": (gk.sgd(0.1), optax.sgd(0.1)),
    "sgd, momentum": (gk.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "sgd, nesterov": (gk.sgd(0.1, 0.9, True), optax.sgd(0.1, 0.9, True)),
    "sgd, schedule": (gk.sgd(SCHEDULE, 0.9), optax.sgd(SCHEDULE, 0.9)),
    "rmsprop": (gk.rmsprop(0.01), optax.rmsprop(0.01)),
    "rmsprop, eps outside": (
        gk.rmsprop(0.01, eps=1e-3, eps_in_sqrt=False),
        optax.rmsprop(0.01, eps=1e-3, eps_in_sqrt=False),
    ),
    "rmsprop, corrected": (
        gk.rmsprop(0.01, bias_correction=True, initial_scale=0.5),
        optax.rmsprop(0.01, bias_correction=True, initial_scale=0.5),
    ),
    "rmsprop, momentum": (
        gk.rmsprop(SCHEDULE, momentum=0.9, nesterov=True),
        optax.rmsprop(SCHEDULE, momentum=0.9, nesterov=True),
    ),
    "rmsprop, centered": (
        gk.rmsprop(0.01, eps=1e-3, centered=True),
        optax.rmsprop(0.01, eps=1e-3, centered=True),
    ),
    "adam": (gk.adam(0.01), optax.adam(0.01)),
    "adam, variants": (
        gk.adam(SCHEDULE, 0.8, 0.99, 1e-4, 1e-6, nesterov=True),
        optax.adam(SCHEDULE, 0.8, 0.99, 1e-4, 1e-6, nesterov=True),
    ),
    "adamw": (gk.adamw(0.01, weight_decay=0.1), optax.adamw(0.01, weight_decay=0.1)),
    "adamw, mask": (
        gk.adamw(0.01, weight_decay=0.1, mask={"a": True, "b": False}),
        optax.adamw(0.01, weight_decay=0.1, mask={"a": True, "b": False}),
    ),
    "add_decayed_weights, schedule": (
        gk.add_decayed_weights(SCHEDULE, mask=lambda p: jax.tree.map(lambda x: x.ndim > 0, p)),
        optax.add_decayed_weights(SCHEDULE, mask=lambda p: jax.tree.map(lambda x: x.ndim > 0, p)),
    ),
    "clip_by_global_norm": (gk.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)),
    "clip": (gk.clip(0.3), optax.clip(0.3)),
    "adaptive_grad_clip": (
        gk.adaptive_grad_clip(0.1, eps=0.5),
        optax.adaptive_grad_clip(0.1, eps=0.5),
    ),
    "adagrad": (gk.adagrad(0.1), optax.adagrad(0.1)),
    "adagrad, from zero": (gk.adagrad(0.1, 0.0, 1e-3), optax.adagrad(0.1, 0.0, 1e-3)),
    "adadelta": (gk.adadelta(), optax.adadelta(1.0)),
    "adadelta, decay": (
        gk.adadelta(0.5, 0.95, 1e-4, 0.1, {"a": True, "b": False}),
        optax.adadelta(0.5, 0.95, 1e-4, 0.1, {"a": True, "b": False}),
    ),
    "proximal step": (gk.proximal_step(0.1), optax.sgd(0.1)),
    "apply_if_finite": (
        gk.apply_if_finite(gk.adam(0.01), 3),
        optax.apply_if_finite(optax.adam(0.01), 3),
    ),
    "masked, kept": (
        gk.masked(gk.sgd(0.1), {"a": True, "b": False}, unselected="keep"),
        optax.masked(optax.sgd(0.1), {"a": True, "b": False}),
    ),
}


def tree_of(key, dtype):
    a, b, c = jax.random.split(key, 3)
    return {
        "a": jax.random.normal(a, (3, 2), dtype),
        "b": [jax.random.normal(b, (), dtype), jax.random.normal(c, (5,), dtype)],
    }


@pytest.mark.parametrize("name", PAIRS)
def test_thirty_steps_are_equal(name, dtype):
    ours, theirs = PAIRS[name]
    params = tree_of(jax.random.key(100), dtype)
    state, expected_state = ours.init(params), theirs.init(params)
    update, expected_update = jax.jit(ours.update), jax.jit(theirs.update)
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    for i in range(30):
        gradient = tree_of(jax.random.key(i), dtype)
        step, state = update(gradient, state, params)
        expected, expected_state = expected_update(gradient, expected_state, params)
        for x, y in zip(jax.tree.leaves(step), jax.tree.leaves(expected), strict=True):
            assert x.dtype == y.dtype == dtype
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_mu_dtype_is_the_dtype_of_the_first_moment_only():
    params = {"w": jnp.ones(3)}
    state = gk.scale_by_adam(mu_dtype="bfloat16").init(params)
    assert state.mu["w"].dtype == jnp.bfloat16
    assert state.nu["w"].dtype == jnp.float32


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_get_accurate_updates(low):
    gradients = [jax.random.normal(jax.random.key(i), (50,)) for i in range(5)]
    for factory in (gk.adam, gk.adamw, gk.rmsprop, gk.sgd):
        tx = factory(0.1)
        params = {low: jnp.ones(50, low), jnp.float32: jnp.ones(50)}
        states = {dtype: tx.init(p) for dtype, p in params.items()}
        for gradient in gradients:
            rounded = gradient.astype(low)
            steps = {}
            for dtype, state in states.items():
                steps[dtype], states[dtype] = tx.update(rounded.astype(dtype), state, params[dtype])
        assert steps[low].dtype == low
        difference = jnp.abs(steps[low].astype(jnp.float32) - steps[jnp.float32])
        assert difference.max() <= 20 * jnp.finfo(low).eps * jnp.abs(steps[jnp.float32]).max()


@pytest.mark.parametrize(
    "shape", [(), (3,), (1, 3), (3, 1), (2, 3), (2, 3, 4), (1, 3, 1), (2, 1, 3, 4)]
)
def test_units_are_those_of_optax(shape):
    params = jax.random.normal(jax.random.key(0), shape)
    grads = jax.random.normal(jax.random.key(1), shape)
    ours, theirs = gk.adaptive_grad_clip(0.1), optax.adaptive_grad_clip(0.1)
    found, _ = ours.update(grads, ours.init(params), params)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
