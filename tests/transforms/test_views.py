"""The loss as members see it: with the data that `update` was given, in whatever they are in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

X = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0])}


def f(params, y, *, weight=1.0):
    return weight * jnp.sum((params["a"] - y) ** 2) + jnp.sum(params["b"] ** 4)


def own(params):
    return f(params, 1.0, weight=2.0)


SEARCHES = {
    "line_search": lambda: gk.chain(gk.scale_by_rms(), gk.line_search()),
    "lbfgs": gk.lbfgs,
    "nesterov": gk.nesterov,
    "optax's search": lambda: gk.chain(gk.scale_by_adam(), optax.scale(-1.0), zoom()),
    "optax's lbfgs": optax.lbfgs,
    "masked": lambda: gk.masked(gk.lbfgs(), "a", unselected="zero"),
    "partition": lambda: gk.partition({"a": gk.lbfgs(), "b": gk.sgd()}, {"a": "a", "b": "b"}),
    "lookahead": lambda: gk.lookahead(gk.lbfgs()),
    "sharpness_aware": lambda: gk.sharpness_aware(gk.sgd()),
}


def zoom():
    return optax.scale_by_zoom_linesearch(max_linesearch_steps=10)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_data_of_the_loss_are_passed_on_by_name(name, jitted):
    tx = gk.chain(SEARCHES[name]())
    state = tx.init(X)
    value, grad = jax.value_and_grad(own)(X)
    known = {"value": value, "grad": grad}

    def update(y, weight):
        return tx.update(grad, state, X, **known, value_fn=f, y=y, weight=weight)[0]

    found = (jax.jit(update) if jitted else update)(jnp.float32(1.0), jnp.float32(2.0))
    expected, _ = tx.update(grad, state, X, **known, value_fn=own)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


def test_data_that_are_missing_are_named_at_update():
    tx = gk.lbfgs()
    value, grad = jax.value_and_grad(own)(X)
    known = {"value": value, "grad": grad, "value_fn": f}
    with pytest.raises(TypeError, match="value_fn needs 'y' beside the parameters, got grad"):
        tx.update(grad, tx.init(X), X, **known)
    with pytest.raises(TypeError, match=r"got grad, value, value_fn, yy; pass .* y=y"):
        tx.update(grad, tx.init(X), X, **known, yy=1.0)
    tx.update(grad, tx.init(X), X, **known, y=1.0)


@pytest.mark.parametrize("key", [False, True])
def test_a_loss_may_take_a_key(key):
    def noisy(params, key=None):
        return own(params) + (0.0 if key is None else 100.0)

    tx = gk.chain(gk.scale_by_rms(), gk.line_search())
    value, grad = jax.value_and_grad(own)(X)
    extras = {"value": value, "grad": grad, "value_fn": noisy}
    updates, _ = tx.update(
        grad, tx.init(X), X, **extras, **({"key": jax.random.key(0)} if key else {})
    )
    assert bool((updates["a"] != 0).any()) is not key


LOOPS = {
    "chain": lambda: gk.chain(gk.scale_by_lbfgs(), gk.line_search("hager_zhang")),
    "more_thuente": lambda: gk.chain(gk.scale_by_rms(), gk.line_search("more_thuente")),
    "lbfgs": gk.lbfgs,
    "bfgs": gk.bfgs,
    "nonlinear_cg": gk.nonlinear_cg,
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_optaxs_loop_for_line_searches_works_by_changing_names_alone(name, jitted):
    tx, x = LOOPS[name](), jnp.array([3.0, -2.0])

    def loss(x):
        return jnp.sum(jnp.array([1.0, 5.0]) * (x - 1) ** 2) + jnp.sum((x - 1) ** 4)

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(x, state):
        value, grad = value_and_grad(x, state=state)
        updates, state = tx.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state, value, grad

    step = jax.jit(step) if jitted else step
    state = tx.init(x)
    for _ in range(12):
        expected = jax.value_and_grad(loss)(x)
        x, state, *found = step(x, state)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x, 1, atol=0.2 if name == "more_thuente" else 1e-3)
