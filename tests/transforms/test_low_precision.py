"""Moments in few bits: what is kept of them, and that training does not notice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.transforms.low_precision import Packed, quantized, randomly_rounded, unpacked

KINDS = pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.int8])


def spread(shape, seed=0):
    """Numbers of both signs over ten decades, some of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-10, 0, size=shape)
    return jnp.asarray(np.where(rng.random(shape) < 0.1, 0, x), jnp.float32)


def nodes(state):
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Packed))
    return [x for x in found if isinstance(x, Packed)]


def size_of(state):
    return sum(x.nbytes for x in jax.tree.leaves(state))


@pytest.mark.parametrize("shape", [(7, 100), (3, 64), (1000,), (2, 3, 50), (5, 1), ()])
def test_eight_bits_keep_the_nearest_fourth_root_the_largest_and_no_more_zeros(shape):
    x = spread(shape)
    packed = quantized(x, 64)
    y = unpacked(packed, 64)
    assert packed.codes.dtype == jnp.int8
    assert packed.codes.shape == y.shape == shape
    np.testing.assert_array_equal(y == 0, x == 0)
    np.testing.assert_array_equal(jnp.sign(y), jnp.sign(x))
    rows = np.atleast_1d(np.asarray(x, np.float64))
    width = -(-rows.shape[-1] // np.atleast_1d(packed.scales).shape[-1])
    assert width <= 64
    for start in range(0, rows.shape[-1], width):
        block = np.abs(rows[..., start : start + width])
        got = np.abs(np.atleast_1d(np.asarray(y, np.float64))[..., start : start + width])
        top = np.maximum(block.max(axis=-1, keepdims=True), 1e-30)
        np.testing.assert_allclose(got.max(axis=-1), block.max(axis=-1), rtol=1e-6)
        level = 127 * (block / top) ** 0.25
        apart = np.abs(127 * (got / top) ** 0.25 - level)
        assert (apart <= np.where(level < 1, 1, 0.5) + 1e-3).all()  # never down to zero


def test_random_rounding_is_to_a_neighbor_and_right_in_the_mean():
    x = spread((50, 20)) + 1e-12
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.vmap(lambda key: randomly_rounded(x, key))(keys).astype(jnp.float32)
    down = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFF0000), jnp.float32
    )
    up = jnp.max(jnp.abs(drawn), axis=0)
    assert bool(jnp.all((drawn == down) | (jnp.abs(drawn) == up)))
    gap = up - jnp.abs(down)
    error = (jnp.mean(drawn, axis=0) - x) / jnp.where(gap == 0, 1, gap)
    assert float(jnp.max(jnp.abs(error))) < 5 * 0.5 / 20  # five standard errors of 400 coins
    assert abs(float(jnp.mean(error * jnp.sign(x)))) < 5 * 0.5 / np.sqrt(400 * 1000)


def test_what_bfloat16_holds_and_what_is_not_finite_stays_as_it_is():
    x = jnp.asarray([0.0, 1.0, -2.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    rounded = randomly_rounded(x, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(rounded, x)


@pytest.mark.parametrize(("kind", "bytes_each"), [(jnp.bfloat16, 4), (jnp.int8, 2 + 8 / 256)])
def test_the_bytes_a_parameter(kind, bytes_each):
    params = {"w": jnp.zeros((64, 512)), "v": jnp.zeros((4, 2048))}
    tx = gk.low_precision(gk.adamw(1e-3), kind)
    count = optax.tree.size(params)
    assert size_of(tx.init(params)) / count == pytest.approx(bytes_each, rel=2e-3)
    assert size_of(gk.adamw(1e-3).init(params)) / count == pytest.approx(8, rel=2e-3)


@KINDS
def test_only_large_trees_like_the_parameters_are_packed(kind):
    params = {"w": jnp.zeros((40, 40)), "b": jnp.zeros(40)}
    packed = nodes(gk.low_precision(gk.scale_by_soap(), kind, min_size=1000).init(params))
    assert [x.codes.shape for x in packed] == [(40, 40)] * 2  # m and v, no factors or bases
    assert not nodes(gk.low_precision(gk.adam(), kind).init(params))


@KINDS
@pytest.mark.parametrize(
    "factory",
    [
        gk.adam,
        gk.sgd,
        *(pytest.param(f, marks=pytest.mark.slow) for f in (optax.adam, gk.soap, gk.adahessian)),
    ],
)
def test_training_goes_as_in_float32(kind, factory):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(512, 16)), rng.normal(size=(16, 8))
    x = jnp.asarray(x * np.geomspace(1, 0.1, 16), jnp.float32)
    y = jnp.tanh(x @ jnp.asarray(w, jnp.float32))

    def loss(params, batch):
        x, y = batch
        return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2)

    keys = jax.random.split(jax.random.key(0))
    params = {"in": jax.random.normal(keys[0], (16, 64)) / 4}
    params["out"] = jax.random.normal(keys[1], (64, 8)) / 8
    options = {"momentum": 0.9} if factory is gk.sgd else {}

    def trained(wrap, seed):
        tx = optax.with_extra_args_support(wrap(factory(0.01, **options)))

        def step(number, carry):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), number)
            rows = jax.random.choice(key, 512, (64,))
            batch = x[rows], y[rows]
            point = gk.observe(loss, params, batch, gk.hessian, key=key)
            updates, state = tx.update(point.grad, state, params, **point.extras)
            return optax.apply_updates(params, updates), state

        end, _ = jax.lax.fori_loop(0, 300, step, (params, tx.init(params)))
        return loss(end, (x, y))

    plain = np.log([float(jax.jit(lambda s=s: trained(lambda tx: tx, s))()) for s in range(3)])
    narrow = np.log(
        [
            float(
                jax.jit(lambda s=s: trained(lambda tx: gk.low_precision(tx, kind, min_size=1), s))()
            )
            for s in range(3)
        ]
    )
    assert (
        plain.mean() < np.log(float(loss(params, (x, y)))) - 1
    )  # there is something to keep up with
    spread = max(plain.std(ddof=1), 0.03)
    assert abs(narrow.mean() - plain.mean()) < 4 * spread / np.sqrt(3) + 0.05


@KINDS
def test_it_is_one_of_a_chain_like_any_other(kind):
    params = {"w": jnp.ones((8, 8)), "b": (jnp.ones(3), jnp.ones(()))}
    tx = gk.chain(
        gk.clip(1.0), gk.low_precision(gk.scale_by_adam(b1=0.5), kind, min_size=8), gk.sgd(0.1)
    )
    state = tx.init(params)
    assert float(gk.hyperparams(state)["b1"]) == 0.5
    grads = jax.tree.map(lambda x: 0.3 * x, params)
    step = jax.jit(tx.update)
    for _ in range(3):
        eager, _ = tx.update(grads, state, params)
        updates, following = step(grads, state, params)
        assert jax.tree.structure(following) == jax.tree.structure(state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), updates, eager)
        state = following
    assert step._cache_size() == 1
    assert len(nodes(state)) == 2
    flat = gk.to_flat_dict(state)
    back = gk.from_flat_dict(flat, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    empty = gk.low_precision(gk.adam(), kind)
    assert empty.update({}, empty.init({}), {})[0] == {}


def test_the_codes_are_sharded_as_the_parameter():
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(3)}
    shardings = gk.state_shardings(gk.low_precision(gk.adam(), jnp.int8, min_size=100), params)
    (mu, _) = nodes(shardings)
    assert mu.codes == params["w"].sharding


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="dtype must be bfloat16 or int8, got float16"):
        gk.low_precision(gk.adam(), jnp.float16)
    with pytest.raises(ValueError, match="block_size must be a positive whole number, got 0"):
        gk.low_precision(gk.adam(), jnp.int8, block_size=0)
    with pytest.raises(ValueError, match="min_size must be a positive whole number, got -1"):
        gk.low_precision(gk.adam(), min_size=-1)


def test_the_first_codes_are_computed_when_it_runs():
    """Not when it is compiled, where XLA would take minutes for a large leaf."""
    init = jax.jit(gk.low_precision(gk.adam(), "int8").init)
    w = jnp.zeros((64, 1024))
    compiled = init.lower(w).compile()
    assert compiled.cost_analysis().get("flops", 0) > w.size / 2
    small = [x for x in jax.tree.leaves(compiled(w)) if x.dtype == jnp.int8]
    assert [x.shape for x in small] == [w.shape, w.shape]
    assert not any(np.any(x) for x in small)
