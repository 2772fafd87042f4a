"""Gradients whose squares, or whose norm, are larger than any number of their dtype."""

from __future__ import annotations

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradkit as gk
from gradkit import tree
from gradkit.transforms.norms import bounded, scaled_norm

LARGEST = float(np.finfo(np.float32).max)
SHAPE = np.array([[1.0, -0.5, 0.0], [0.25, 1.0, -1.0]])
NUMBERS = ["float32", "bfloat16", "float16", "float64"]


def updated(tx, grads, params=None):
    params = jax.tree.map(jnp.ones_like, grads) if params is None else params
    return tx.update(grads, tx.init(params), params)


def in_float64(a):
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float64), a)


@functools.cache
def clipping(name, dtype):
    """A clip, compiled once: the limits of all are 10⁻²."""
    limit = 1e-2 if name != "adaptive_grad_clip" else (1e-2, 1e-3)
    tx = getattr(gk, name)(*np.atleast_1d(limit).tolist())
    params = {"w": jnp.ones(SHAPE.shape, dtype) / 2**0.5, "b": jnp.ones(1, dtype)}
    return jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])


def parts_of(name, a):
    """The parts of a tree that the clip takes by themselves."""
    if name == "clip_by_global_norm":
        return [np.concatenate([a["w"].ravel(), a["b"]])]
    if name == "clip_by_leaf_norm":
        return [a["w"].ravel(), a["b"]]
    return [*a["w"].T, a["b"]]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_leaf_norm", "adaptive_grad_clip"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_finite_gradient_of_any_size_is_clipped_to_the_limit(name, dtype, data):
    with jax.enable_x64(dtype == "float64"):
        info = jnp.finfo(dtype)
        lowest = int(info.minexp) + 2  # 1/4 of it is a normal number
        exponents = st.integers(lowest, int(info.maxexp))
        sizes = [data.draw(exponents), data.draw(exponents)]
        largest = float(info.max)
        w, b = (min(2.0 ** min(e, 1023), largest) if e < info.maxexp else largest for e in sizes)
        g = {"w": jnp.asarray(SHAPE * w, dtype), "b": jnp.asarray([b], dtype)}
        clipped = in_float64(clipping(name, dtype)(g))
        tolerance = 10 * float(info.eps)
        for before, after in zip(
            parts_of(name, in_float64(g)), parts_of(name, clipped), strict=True
        ):
            top = np.abs(before).max()
            if top == 0:
                assert not after.any()
                continue
            direction = before / top
            direction, size = direction / np.linalg.norm(direction), np.linalg.norm(direction)
            norm = min(size * top, 1e-2) if size < 1e-2 / top else 1e-2
            error = np.abs(after - norm * direction).max()
            assert error <= tolerance * norm + float(info.smallest_subnormal)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_a_gradient_with_the_largest_number_everywhere_is_clipped(dtype):
    with jax.enable_x64(dtype == "float64"):
        g = jnp.full((50, 20), jnp.finfo(dtype).max, dtype)
        for tx in (gk.clip_by_global_norm(1.0), gk.clip_by_leaf_norm(1.0)):
            clipped, state = jax.jit(functools.partial(updated, tx))(g)
            np.testing.assert_allclose(in_float64(clipped), 1000**-0.5, rtol=0.01)
            assert gk.metrics(state)["clipped"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_part_nan_beside_the_largest_numbers(bad):
    g = {"a": jnp.array([[LARGEST, bad], [1.0, 1.0]]), "b": jnp.full(2, LARGEST)}
    every, _ = updated(gk.clip_by_global_norm(1.0), g)
    assert jax.tree.all(jax.tree.map(lambda x: jnp.isnan(x).all(), every))
    leaf, _ = updated(gk.clip_by_leaf_norm(1.0), g)
    assert jnp.isnan(leaf["a"]).all()
    np.testing.assert_allclose(leaf["b"], 0.5**0.5, rtol=1e-6)
    unit, _ = updated(gk.adaptive_grad_clip(1.0), g)
    np.testing.assert_allclose(unit["a"][:, 0], [2**0.5, 0], rtol=1e-6, atol=1e-6)
    assert jnp.isnan(unit["a"][:, 1]).all()


def test_ordinary_gradients_are_clipped_bit_for_bit_by_one_factor():
    g = jnp.asarray(np.random.default_rng(0).normal(size=(30, 40)), jnp.float32)
    clipped, state = updated(gk.clip_by_global_norm(1.0), g)
    norm = jnp.sqrt(jnp.sum(g * g))
    np.testing.assert_array_equal(clipped, 1.0 / norm * g)
    assert gk.metrics(state)["norm_before_clipping"] == norm


@given(exponent=st.integers(-120, 127))
def test_the_published_norm_is_right_wherever_it_is_a_number(exponent):
    size = 2.0**exponent
    g = jnp.float32([0.5 * size, 0.25 * size])
    _, state = updated(gk.clip_by_global_norm(1.0), g)
    expected = float(np.float32(0.3125**0.5)) * size
    assert gk.metrics(state)["norm_before_clipping"] == pytest.approx(expected, rel=1e-6)
    _, state = updated(gk.monitor(), g)
    assert gk.metrics(state)["update_norm"] == pytest.approx(expected, rel=1e-6)


def test_a_norm_that_is_no_number_is_published_as_infinite():
    _, state = updated(gk.clip_by_global_norm(1.0), jnp.full(4, LARGEST))
    assert jnp.isposinf(gk.metrics(state)["norm_before_clipping"])


def test_leaves_of_several_dtypes_are_clipped_together():
    with jax.enable_x64():
        g = {"a": jnp.full(2, 2.0**100, jnp.float32), "b": jnp.full(2, 2.0**100, jnp.float64)}
        clipped, _ = updated(gk.clip_by_global_norm(1.0), g)
        np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-6)
        np.testing.assert_allclose(clipped["b"], 0.5, rtol=1e-12)


def test_complex_gradients_are_clipped():
    clipped, _ = updated(gk.clip_by_global_norm(1.0), jnp.array([3e30 + 4e30j, 0]))
    np.testing.assert_allclose(clipped, [0.6 + 0.8j, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "size", [0.0, LARGEST, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-30, 1.0, 1e30))]
)
@pytest.mark.parametrize(
    "tx", [gk.clip_by_global_norm(1.0), gk.clip_by_leaf_norm(1.0), gk.adaptive_grad_clip(0.1)]
)
def test_derivatives_through_a_clip_are_finite(tx, size):
    @jax.jit
    def total(x):
        u, _ = tx.update(x, tx.init(x), jnp.ones_like(x))
        return jnp.sum(u * jnp.array([1.0, 2.0]))

    x = jnp.array([size, 0.0])
    for derivative in (jax.grad(total), jax.jacfwd(total)):
        assert jnp.isfinite(derivative(x)).all()
        both = jax.vmap(derivative)(jnp.stack([x, jnp.array([1.0, 0.5])]))
        assert jnp.isfinite(both).all()
        np.testing.assert_allclose(both[0], derivative(x), rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, LARGEST])
def test_a_spike_is_clipped_to_its_limit_whatever_its_size(size):
    tx = gk.guard_spikes(gk.scale_by_learning_rate(1.0), action="clip", warmup=3)
    x = jnp.ones(3)
    step = jax.jit(lambda g, state: tx.update(g, state, x))
    state = tx.init(x)
    for _ in range(5):
        _, state = step(x, state)
    u, state = step(jnp.full(3, size), state)
    assert gk.metrics(state)["spikes"] == 1
    np.testing.assert_allclose(u, -np.exp(6e-2) * np.ones(3), rtol=1e-3)
    u, state = step(x, state)
    np.testing.assert_array_equal(u, -x)


@pytest.mark.parametrize("size", [1e-25, 1e20, LARGEST])
def test_sharpness_aware_takes_the_direction_of_any_gradient(size):
    tx = gk.sharpness_aware(gk.sgd(1.0), rho=0.5)
    x = jnp.array([1.0, 1.0])
    found = {}

    def value_fn(x):
        found["at"] = x
        return jnp.sum(x)

    with jax.disable_jit():
        tx.update(jnp.array([size, -size]), tx.init(x), x, value=value_fn(x), value_fn=value_fn)
    at = jax.tree.leaves(found["at"])[0]
    at = getattr(at, "primal", at)
    np.testing.assert_allclose(at, [1 + 0.125**0.5, 1 - 0.125**0.5], rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, LARGEST])
def test_weights_that_a_step_makes_huge_are_projected(size):
    w = jnp.ones((2, 2))
    u, _ = updated(gk.project_max_norm(1.0), jnp.array([[size, 0.0], [size, 0.0]]), w)
    np.testing.assert_allclose((w + u)[:, 0], 0.5**0.5, rtol=1e-6)
    np.testing.assert_allclose((w + u)[:, 1], 0.5**0.5, rtol=1e-6)


@pytest.mark.parametrize("top", [LARGEST, 2.0**127, 1.0, 2.0**-126])
def test_the_unit_of_a_tree_and_its_inverse_are_normal_numbers(top):
    unit = tree.scale(jnp.array([top, -top]))
    assert jnp.isfinite(unit)
    assert 1 / unit >= np.finfo(np.float32).tiny
    assert 2**-2 <= top / float(unit) <= 4
    assert math.frexp(float(unit))[0] == 0.5


def test_the_norm_under_vmap_is_that_of_each():
    x = jnp.array([[1.0, 2.0], [1e30, 1e30], [1e-30, 0.0], [0.0, 0.0], [jnp.inf, 0.0]])
    together = jax.jit(jax.vmap(lambda x: scaled_norm(x).value))(x)
    apart = [scaled_norm(row).value for row in x]
    np.testing.assert_array_equal(together, jnp.stack(apart))


def test_bounds_leave_alone_what_is_ordinary_or_not_finite():
    x = jnp.array([1e17, -3.0, 0.0, jnp.inf, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(bounded(x), x)
    assert bounded(jnp.float32(-LARGEST)) == -(2.0**60)
    z = bounded(jnp.array([3e30 - 4e30j, 1 + 1j]))
    np.testing.assert_allclose(z / jnp.abs(z), [0.6 - 0.8j, (1 + 1j) / 2**0.5], rtol=1e-6)
    assert z[1] == 1 + 1j
    assert bounded(jnp.float16(60000)).dtype == jnp.float32


@pytest.mark.parametrize("size", [1e20, LARGEST])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad", "soap"])
def test_the_first_step_along_a_huge_gradient_is_that_along_a_large_one(name, size):
    tx, x = getattr(gk, name)(1.0), jnp.zeros(3)
    direction = jnp.array([1.0, -1.0, 0.0])
    huge, _ = updated(tx, size * direction, x)
    large, _ = updated(tx, 1e10 * direction, x)
    np.testing.assert_allclose(huge, large, rtol=1e-5)


GIVEN = {
    **dict.fromkeys(("inner", "fast_optimizer"), gk.adam(0.1)),
    **dict.fromkeys(("clipping", "max_delta", "max_norm", "learning_rate", "eta", "gamma"), 0.1),
    "every": 2,
    "decay": 0.9,
    "mask": "w",
    "unselected": "zero",
    "transforms": {"few": gk.adam(0.1), "more": gk.sgd(0.1)},
    "param_labels": {"w": "few", "b": "more"},
}
"""The arguments that transformations must be given."""


def transformations():
    for name in gk.__all__:
        room = gk._INDEX[name].split(".")[1]
        if room not in ("transforms", "optimizers"):
            continue
        signature = inspect.signature(getattr(gk, name))
        if signature.return_annotation == "Link":
            yield name


def made(name):
    factory = getattr(gk, name)
    if name == "chain":
        return gk.chain(gk.clip_by_global_norm(1.0), gk.monitor(), gk.adam(0.1))
    parameters = inspect.signature(factory).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty or p.name == "unselected"]
    return factory(**{name: GIVEN[name] for name in needed})


def loss(params, batch):
    outputs = batch @ params["w"] + params["b"]
    return jnp.mean(jax.nn.softplus(outputs) - 0.3 * outputs) + 0.1 * jnp.mean(params["w"] ** 2)


def finite(a):
    numbers = [x for x in jax.tree.leaves(a) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.isfinite(x).all()) for x in numbers)


def test_there_are_transformations_to_test():
    assert {"chain", "adam", "clip", "soap", "lbfgs", "sharpness_aware"} <= set(transformations())


@pytest.mark.parametrize("name", list(transformations()))
def test_a_state_recovers_from_a_huge_gradient(name):
    """What it sees is what `observe` found but for one gradient, along which nothing moves.

    Figures about the update with that gradient may be infinite, as they may be no numbers.
    """
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    start = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.zeros(4)}
    tx = made(name)

    @jax.jit
    def step(params, state, along):
        point = gk.observe(loss, params, batch, gk.hessian, key=jax.random.key(0))
        grad = jax.tree.map(lambda g, h: jnp.where(h == 0, g, h), point.grad, along)
        u, state = tx.update(grad, state, params, **point.extras | {"grad": grad})
        return u, state, jax.tree.map(lambda p, u: p + 0.01 * u, params, u)

    none = jax.tree.map(jnp.zeros_like, start)
    for size in (1e20, LARGEST):
        row = jnp.array([size, -size, size, 1.0])
        huge = none | {"w": none["w"].at[0].set(row)}
        params, state = start, tx.init(start)
        for _ in range(2):
            _, state, params = step(params, state, none)
        _, state, _ = step(params, state, huge)
        moved = False
        for _ in range(3):
            u, state, params = step(params, state, none)
            assert finite(u), (size, u)
            assert finite(state), (size, state)
            moved |= any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(u))
        assert moved, size
