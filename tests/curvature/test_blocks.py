from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradkit as gk
from gradkit.curvature.blocks import layer

PARAMS = {
    "hidden": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3) / 7},
    "head": jnp.linspace(1, 2, 3),
}
BATCH = jax.random.normal(jax.random.key(0), (5, 2))
ORDER = ["head"] * 3 + ["hidden"] * 9  # of the dense matrix


def loss(params, x):
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((h @ params["head"]) ** 2)


def test_blocks_are_those_of_the_dense_matrix():
    H = gk.hessian(loss, PARAMS, BATCH)
    dense, order = np.asarray(H.dense()), np.array(ORDER)
    blocks = gk.blocks(H)
    assert list(blocks) == ["head", "hidden"]
    for name, block in blocks.items():
        inside = order == name
        np.testing.assert_allclose(block.dense(), dense[np.ix_(inside, inside)], rtol=1e-5)


@pytest.mark.parametrize("traceable", [True, False])
def test_the_block_diagonal_has_nothing_else(traceable):
    H = gk.hessian(loss, PARAMS, BATCH)
    A = gk.Operator(H.matvec, H.domain, traceable)
    order = np.array(ORDER)
    expected = np.where(order[:, None] == order, np.asarray(H.dense()), 0)
    D = gk.block_diagonal(A)
    assert D.traceable is traceable
    np.testing.assert_allclose(D.dense(), expected, rtol=1e-5, atol=1e-6)
    assert gk.check_operator(D, key=jax.random.key(0)).ok


def test_any_grouping_of_paths_will_do():
    H = gk.hessian(loss, PARAMS, BATCH)
    blocks = gk.blocks(H, by=lambda path: "biases" if path.endswith("bias") else "weights")
    assert {name: block.dimension for name, block in blocks.items()} == {"weights": 9, "biases": 3}
    pairs = gk.eigsh(blocks["biases"], 1, key=jax.random.key(0))
    bias = np.asarray(H.dense())[3:6, 3:6]
    assert pairs.values[0] == pytest.approx(np.linalg.eigvalsh(bias)[-1], rel=1e-4)


def test_layers_are_named_by_their_path():
    assert layer("hidden.kernel") == "hidden"
    assert layer("layers.0.kernel.value") == "layers.0"
    assert layer("head") == "head"
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    H = gk.hessian(lambda p, x: sum(jnp.sum(q**2) for q in jax.tree.leaves(p)), nnx.state(model), 0)
    assert list(gk.blocks(H)) == ["bias", "kernel"]  # of a model that is one layer, its leaves
