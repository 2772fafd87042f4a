"""Layers stacked along an axis are treated as the layers apart."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

LAYERS = 3
SHAPES = {"w": (4, 5), "b": (5,), "conv": (2, 3, 4)}


def layer(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    each = zip(SHAPES.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape, dtype) for (name, shape), key in each}


def apart(seed, dtype):
    return {
        "layers": [layer(10 * seed + i, dtype) for i in range(LAYERS)],
        "head": layer(99, dtype),
    }


def stack(tree, axis):
    together = jax.tree.map(lambda *xs: jnp.stack(xs, axis), *tree["layers"])
    return {"layers": together, "head": tree["head"]}


MEMBERS = {
    "clip_by_leaf_norm": functools.partial(gk.clip_by_leaf_norm, 0.5),
    "adaptive_grad_clip": functools.partial(gk.adaptive_grad_clip, 0.1),
    "adaptive_grad_clip, axis": functools.partial(gk.adaptive_grad_clip, 0.1, axis=-1),
    "shampoo": functools.partial(gk.shampoo, 0.1, every=2),
    "shampoo, cut": functools.partial(gk.shampoo, 0.1, every=2, block_size=3),
    "shampoo, not grafted": functools.partial(gk.scale_by_shampoo, every=2, grafting=False),
    "soap": functools.partial(gk.soap, 0.1, every=2),
    "soap, cut": functools.partial(gk.soap, 0.1, every=2, block_size=3),
    "soap, one axis": functools.partial(
        gk.scale_by_soap, every=2, axes=lambda path, shape: (len(shape) - 1,)
    ),
}


QUICK = ("clip_by_leaf_norm", "adaptive_grad_clip", "soap")


@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS],
)
def test_stacked_layers_are_updated_as_the_layers_apart(name, axis, dtype, eps):
    say = "layers.*" if axis == 0 else {"layers.*": axis}
    stacked, plain = MEMBERS[name](stacked=say), MEMBERS[name]()
    params = apart(0, dtype)
    state, expected_state = stacked.init(stack(params, axis)), plain.init(params)
    update, expected_update = jax.jit(stacked.update), jax.jit(plain.update)
    for step in range(1, 5):
        grads = apart(step, dtype)
        u, state = update(stack(grads, axis), state, stack(params, axis))
        expected, expected_state = expected_update(grads, expected_state, params)
        for x, y in zip(*map(jax.tree.leaves, (u, stack(expected, axis))), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e5 * eps, atol=1e3 * eps)
    assert jax.tree.structure(state) == jax.tree.structure(stacked.init(stack(params, axis)))


def test_axes_may_come_from_a_function_of_the_parameters():
    params = stack(apart(0, jnp.float32), 0)
    rule = gk.by_path(lambda path, leaf: 0 if path.startswith("layers") else False)
    by_function, by_pattern = (gk.clip_by_leaf_norm(0.5, stacked=s) for s in (rule, "layers.*"))
    u, _ = by_function.update(params, by_function.init(params), params)
    expected, _ = by_pattern.update(params, by_pattern.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, u, expected)


def test_axes_may_be_a_prefix_of_the_parameters():
    params = stack(apart(0, jnp.float32), 0)
    expected = gk.clip_by_leaf_norm(0.5, stacked="layers.*")
    expected, _ = expected.update(params, expected.init(params), params)
    for other in (None, False):
        by_prefix = gk.clip_by_leaf_norm(
            0.5, stacked=lambda _, other=other: {"layers": 0, "head": other}
        )
        u, _ = by_prefix.update(params, by_prefix.init(params), params)
        jax.tree.map(np.testing.assert_array_equal, u, expected)


def test_axes_of_another_tree_are_refused_at_init():
    params = stack(apart(0, jnp.float32), 0)
    tx = gk.clip_by_leaf_norm(0.5, stacked=lambda _: {"layers": 0})
    with pytest.raises(ValueError, match="clip_by_leaf_norm: stacked must give a tree like"):
        tx.init(params)


@pytest.mark.parametrize("name", ["shampoo", "soap", "soap, cut"])
def test_a_huge_gradient_of_stacked_layers_is_as_one_of_the_layers_apart(name):
    """Its bound is for the size of one layer."""
    stacked, plain = MEMBERS[name](stacked="layers.*"), MEMBERS[name]()
    params = apart(0, jnp.float32)
    state, expected_state = stacked.init(stack(params, 0)), plain.init(params)
    update, expected_update = jax.jit(stacked.update), jax.jit(plain.update)
    for size in (1.0, 1e30, 1.0, 1.0):
        grads = jax.tree.map(lambda x, size=size: size * x, apart(1, jnp.float32))
        u, state = update(stack(grads, 0), state, stack(params, 0))
        expected, expected_state = expected_update(grads, expected_state, params)
        for x, y in zip(*map(jax.tree.leaves, (u, stack(expected, 0))), strict=True):
            assert np.isfinite(x).all()
            np.testing.assert_allclose(x, y, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("factory", [gk.scale_by_shampoo, gk.scale_by_soap])
def test_a_state_of_stacked_layers_holds_those_of_the_layers(factory):
    stacked, plain = factory(every=2, stacked="layers.w"), factory(every=2)
    grads = [apart(step, jnp.float32) for step in range(3)]
    params = stack(apart(0, jnp.float32), 0)
    whole = {"layers": {"w": params["layers"]["w"]}}
    state = stacked.init(whole)
    alone = [plain.init(layer(0)["w"]) for _ in range(LAYERS)]
    for g in grads:
        each = [g["layers"][i]["w"] for i in range(LAYERS)]
        _, state = jax.jit(stacked.update)({"layers": {"w": jnp.stack(each)}}, state)
        alone = [jax.jit(plain.update)(x, s)[1] for x, s in zip(each, alone, strict=True)]
    kept = state[0].memory
    for i, one in enumerate(alone):
        one = one[0].memory
        for name in ("m", "v"):
            mine = getattr(kept, name)["layers"]["w"][i]
            np.testing.assert_allclose(mine, getattr(one, name), rtol=1e-3, atol=1e-5)
        for name in ("factors", "matrices"):
            for mine, its in zip(
                getattr(kept, name)["layers"]["w"], getattr(one, name), strict=True
            ):
                np.testing.assert_allclose(mine[i], its[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        ("blocks.*", r"no leaf matches 'blocks\.\*'"),
        ({"layers.b": 2}, r"got 2 for layers\.b of shape \(3, 5\)"),
        ({"layers.b": True}, r"got True for layers\.b"),
        ({"layers.b": "first"}, r"got 'first' for layers\.b"),
    ],
)
@pytest.mark.parametrize("name", ["clip_by_leaf_norm", "adaptive_grad_clip", "soap", "shampoo"])
def test_axes_that_do_not_fit_are_named(name, stacked, message):
    params = stack(apart(0, jnp.float32), 0)
    tx = MEMBERS[name](stacked=stacked)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params)


def test_layers_that_are_not_said_to_be_stacked_are_one_leaf():
    params = {"layers": jnp.ones((3, 4))}
    whole, each = gk.clip_by_leaf_norm(1.0), gk.clip_by_leaf_norm(1.0, stacked="layers")
    u, _ = whole.update(params, whole.init(params))
    np.testing.assert_allclose(jnp.linalg.norm(u["layers"]), 1, rtol=1e-6)
    u, _ = each.update(params, each.init(params))
    np.testing.assert_allclose(jnp.linalg.norm(u["layers"], axis=1), 1, rtol=1e-6)
