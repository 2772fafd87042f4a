"""Models as the libraries have them: each operator against the dense matrix in float64."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.curvature.batches import micro_batched, streamed

EPS = float(np.finfo(np.float32).eps)
KEY = jax.random.key(2)
RNG = np.random.default_rng(8)
IMAGES = {
    "x": RNG.normal(size=(6, 4, 4, 1)).astype(np.float32),
    "y": RNG.integers(3, size=6).astype(np.int32),
}


def cross_entropy(logits, batch):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["y"]])


class Model(NamedTuple):
    problem: gk.Problem
    params: dict


def model(predict, params) -> Model:
    return Model(gk.Problem(predict=predict, criterion=cross_entropy), params)


class Linen(nn.Module):
    """Convolution, batch normalization and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(2, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = jnp.tanh(x).reshape(len(x), -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.norm(self.hidden(x.reshape(len(x), -1))))
        return self.out(self.dropout(x))


@functools.cache
def linen_variables():
    """Parameters, and statistics that are not those of a fresh model."""
    module = Linen()
    variables = jax.jit(module.init, static_argnames="train")(KEY, IMAGES["x"], train=False)
    train = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    _, following = train(variables, 3 * IMAGES["x"] + 1, rngs={"dropout": KEY})
    return variables["params"], following["batch_stats"]


def linen(train=False, key=lambda: KEY):
    params, stats = linen_variables()

    def predict(params, batch):
        variables = {"params": params, "batch_stats": stats}
        apply = functools.partial(Linen().apply, variables, batch["x"], train)
        if train:
            return apply(rngs={"dropout": key()}, mutable=["batch_stats"])[0]
        return apply()

    return model(predict, params)


def of_nnx(train=False, copy=True):
    module = Nnx(nnx.Rngs(0))
    module(3 * IMAGES["x"] + 1)  # statistics
    if not train:
        module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def predict(params, batch):
        return nnx.merge(graphdef, params, rest, copy=copy)(batch["x"])

    return model(predict, params)


def equinox():
    mlp = eqx.nn.MLP(16, 3, 4, 1, activation=jnp.tanh, key=KEY)
    params, static = eqx.partition(mlp, eqx.is_inexact_array)

    def predict(params, batch):
        return jax.vmap(eqx.combine(params, static))(batch["x"].reshape(-1, 16))

    return model(predict, params)


def scanned():
    def predict(params, batch):
        def layer(h, w):
            return jnp.tanh(h @ w), None

        h, _ = jax.lax.scan(
            jax.checkpoint(layer), batch["x"].reshape(-1, 16)[:, :4], params["layers"]
        )
        return h @ params["out"]

    layers, out = RNG.normal(size=(3, 4, 4)), RNG.normal(size=(4, 3))
    return model(predict, {"layers": np.float32(layers), "out": np.float32(out)})


MODELS = {
    "linen": linen,
    "linen-dropout": functools.partial(linen, train=True),
    "nnx": of_nnx,
    "nnx-dropout": functools.partial(of_nnx, train=True),
    "equinox": equinox,
    "scan": scanned,
}


def matrices(problem, params, batch, dtype="float64"):
    """The Hessian and the Gauss–Newton matrix from `jax.hessian` and `jax.jacobian`."""
    with jax.enable_x64(dtype == "float64"):
        params, batch = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), dtype if x.dtype != np.int32 else x.dtype),
            (params, batch),
        )
        flat, unravel = ravel_pytree(params)

        @jax.jit
        def both(theta):
            z = problem.predict(unravel(theta), batch)
            J = jax.jacobian(lambda p: problem.predict(unravel(p), batch).ravel())(theta)
            M = jax.hessian(lambda z_: problem.criterion(z_.reshape(z.shape), batch))(z.ravel())
            return jax.hessian(lambda p: problem.value(unravel(p), batch))(theta), J.T @ M @ J

        return tuple(map(np.asarray, both(flat)))


def assert_close(A, exact):
    np.testing.assert_allclose(A.dense(), exact, atol=200 * EPS * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_operators_are_the_dense_matrices(name):
    problem, params = MODELS[name]()
    # In float64 dropout would draw other numbers.
    H, G = matrices(problem, params, IMAGES, "float32" if "dropout" in name else "float64")
    assert np.linalg.norm(H - G) > 1e-3 * np.linalg.norm(G)
    A = gk.hessian(problem, params, IMAGES)
    assert_close(A, H)
    assert_close(gk.gauss_newton(problem, params, IMAGES), G)
    if "dropout" not in name:  # whose statistics are those of the batch
        assert_close(micro_batched(gk.gauss_newton, 4)(problem, params, IMAGES), G)

    check = gk.check_operator(A, key=KEY)
    assert check.ok, check.report()
    paths = []
    A.restrict(lambda path: bool(paths.append(path)) or True)
    block = A.restrict(lambda path: path == paths[0])
    n = block.dimension
    assert 0 < n < A.dimension
    np.testing.assert_allclose(block.dense(), H[:n, :n], atol=200 * EPS * np.abs(H).max())


@pytest.mark.slow
def test_batch_statistics_make_another_operator_that_micro_batches_do_not_have():
    """It is the Hessian of a loss in which examples see each other: nothing in it is wrong."""
    training, frozen = (nnx_model(train) for train in (True, False))
    H, K = (gk.hessian(p, params, IMAGES).dense() for p, params in (training, frozen))
    problem, params = training
    in_parts = micro_batched(gk.hessian, 3)(problem, params, IMAGES).dense()
    scale = np.abs(H).max()
    assert np.abs(H - K).max() > 0.01 * scale
    assert np.abs(H - in_parts).max() > 0.01 * scale


def nnx_model(train):
    """Without dropout, so that batch normalization alone makes the difference."""
    module = Nnx(nnx.Rngs(0))
    module.eval()
    module.norm.use_running_average = not train
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    return model(lambda p, b: nnx.merge(graphdef, p, rest, copy=True)(b["x"]), params)


def test_nnx_without_a_copy_says_what_is_not_frozen():
    problem, params = of_nnx(train=True, copy=False)
    with pytest.raises(TraceContextError, match="BatchStat"):
        gk.hessian(problem, params, IMAGES)


@pytest.mark.slow
def test_fresh_dropout_keys_are_caught():
    seeds = itertools.count()
    problem, params = linen(train=True, key=lambda: jax.random.key(next(seeds)))

    def loss(theta, x):
        keep = jax.random.bernoulli(jax.random.key(next(seeds)), 0.5, x.shape)
        return jnp.mean(jnp.tanh((x * keep) @ theta) ** 2)

    for A in (
        gk.hessian(problem, params, IMAGES, linearize=False),
        micro_batched(gk.hessian, 6)(loss, jnp.ones((1, 1)), IMAGES["x"]),
    ):
        check = gk.check_operator(A, key=KEY)
        assert not check.ok
        assert "fresh dropout keys" in check.report()


def test_a_linearization_keeps_the_dropout_of_its_trace():
    seeds = itertools.count()
    problem, params = linen(train=True, key=lambda: jax.random.key(next(seeds)))
    A = gk.hessian(problem, params, IMAGES, linearize=True)
    assert gk.check_operator(A, key=KEY).ok
    frozen, _ = linen(train=True, key=lambda: jax.random.key(0))
    assert_close(A, matrices(frozen, params, IMAGES, "float32")[0])


def test_auxiliary_values_may_be_integers():
    problem, params = equinox()

    def loss(params, batch):
        value, z = problem.value_and_aux(params, batch)
        return value, {"correct": jnp.sum(jnp.argmax(z, -1) == batch["y"]), "z": z}

    H = gk.hessian(gk.Problem(loss, has_aux=True), params, IMAGES)
    assert_close(H, matrices(problem, params, IMAGES)[0])


@pytest.mark.slow
def test_bfloat16_parameters_stay_so_and_products_are_right_to_their_digits():
    problem, params = equinox()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    v = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), x.dtype), half)
    flat = np.asarray(ravel_pytree(v)[0], np.float64)
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    H, G = matrices(problem, half, IMAGES)
    for curvature, exact in ((gk.hessian, H), (gk.gauss_newton, G)):
        for A in (
            curvature(problem, half, IMAGES),
            micro_batched(curvature, 4)(problem, half, IMAGES),
            streamed(curvature)(problem, half, [IMAGES]),
        ):
            product, structure = jax.tree.flatten(A @ v)
            assert structure == jax.tree.structure(half)
            assert {x.dtype for x in product} == {jnp.dtype(jnp.bfloat16)}
            error = np.asarray(ravel_pytree(product)[0], np.float64) - exact @ flat
            assert np.linalg.norm(error) < 4 * eps * np.linalg.norm(exact @ flat)
