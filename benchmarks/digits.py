"""Networks on scikit-learn's 1,797 digits: data, models, training and the exact spectrum."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import gradkit as gk

PyTree = Any


def digits() -> dict[str, jax.Array]:
    """All of them, pixels between 0 and 1."""
    data: Any = load_digits()
    return {
        "x": jnp.asarray(data.data / 16, jnp.float32),
        "y": jnp.asarray(data.target, jnp.int32),
    }


def clusters(width: int, examples: int) -> dict[str, jax.Array]:
    """Made-up data: ten clusters that overlap."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, examples)
    centers = random.standard_normal((10, width)) / width**0.5
    x = 2 * centers[labels] + random.standard_normal((examples, width)) / width**0.5
    return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(labels, jnp.int32)}


def dense_layers(widths: tuple[int, ...]) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), len(widths))
    return [
        {"w": jax.random.normal(key, (m, n)) / jnp.sqrt(m), "b": jnp.zeros(n)}
        for key, (m, n) in zip(keys, itertools.pairwise(widths), strict=False)
    ]


def perceptron(params: PyTree, batch: PyTree) -> jax.Array:
    """Scores of a multilayer perceptron with tanh."""
    h = batch["x"]
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["w"] + layer["b"])
    return h @ params[-1]["w"] + params[-1]["b"]


CONVOLVED = (16, 32)  # channels: 8 × 8 × 16, halved, 4 × 4 × 32


def conv_layers() -> PyTree:
    c, d = CONVOLVED
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        "conv1": {"w": jax.random.normal(keys[0], (3, 3, 1, c)) / 3, "b": jnp.zeros(c)},
        "conv2": {
            "w": jax.random.normal(keys[1], (3, 3, c, d)) / (9 * c) ** 0.5,
            "b": jnp.zeros(d),
        },
        "dense": {
            "w": jax.random.normal(keys[2], (16 * d, 10)) / (16 * d) ** 0.5,
            "b": jnp.zeros(10),
        },
    }


def convolutional(params: PyTree, batch: PyTree) -> jax.Array:
    """Scores of two convolutions with tanh, a mean over 2 × 2 between them, and a dense layer."""

    def convolved(layer, h):
        dimensions = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            h, layer["w"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return jnp.tanh(h + layer["b"])

    h = convolved(params["conv1"], batch["x"].reshape(-1, 8, 8, 1))
    h = h.reshape(-1, 4, 2, 4, 2, CONVOLVED[0]).mean(axis=(2, 4))
    h = convolved(params["conv2"], h).reshape(len(h), -1)
    return h @ params["dense"]["w"] + params["dense"]["b"]


def cross_entropy(scores: jax.Array, batch: PyTree) -> jax.Array:
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch["y"]))


PERCEPTRON = gk.Problem(predict=perceptron, criterion=cross_entropy)
CONVOLUTIONAL = gk.Problem(predict=convolutional, criterion=cross_entropy)


def trained(problem: gk.Problem, params: PyTree, batch: PyTree, *, steps: int, rate: float) -> Any:
    """The parameters after so many steps of Adam on the whole batch, and the loss there."""
    tx = gk.adam(rate)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        point = gk.observe(problem, params, batch)
        updates, state = tx.update(point.grad, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    for _ in range(steps):  # on the host: convolutions are slow inside a compiled loop
        params, state = step(params, state)
    return params, float(problem.value(params, batch))


def exact_eigenvalues(problem: gk.Problem, params: PyTree, batch: PyTree) -> np.ndarray:
    """All eigenvalues of the Hessian in float64, from its matrix: n products and `eigvalsh`."""
    with jax.enable_x64(True):

        def wide(x):
            return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

        params, batch = jax.tree.map(wide, (params, batch))
        return np.linalg.eigvalsh(np.asarray(gk.hessian(problem, params, batch).dense()))
