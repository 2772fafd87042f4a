"""Activations and initializers are what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradkit.runner import activations, initializers
from gradkit.runner.catalog import catalog
from gradkit.runner.making import made
from gradkit.runner.members import Member
from gradkit.runner.models import Sizes, mlp

X = np.linspace(-4, 4, 41)
KEY = jax.random.key(0)
FORMULAS = {
    "relu": ({}, np.maximum(X, 0)),
    "leaky_relu": ({"negative_slope": 0.2}, np.where(X > 0, X, 0.2 * X)),
    "prelu": ({"negative_slope": 0.3}, np.where(X > 0, X, 0.3 * X)),
    "elu": ({"alpha": 2.0}, np.where(X > 0, X, 2 * np.expm1(X))),
    "selu": ({}, 1.0507 * np.where(X > 0, X, 1.67326 * np.expm1(X))),
    "gelu": ({}, X / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)))),
    "silu": ({}, X / (1 + np.exp(-X))),
    "softplus": ({}, np.log1p(np.exp(X))),
    "tanh": ({}, np.tanh(X)),
    "sigmoid": ({}, 1 / (1 + np.exp(-X))),
    "softmax": ({}, np.exp(X) / np.exp(X).sum()),
    "linear": ({}, X),
    "step": ({}, np.where(X > 0, 1, 0)),
    "lecun_tanh": ({}, 1.7159 * np.tanh(2 * X / 3)),
    "modified_tanh": (
        {"a": 0.5, "b": 1.5, "c": 1.0, "d": 2.0},
        (np.exp(0.5 * X) - np.exp(-1.5 * X)) / (np.exp(X) + np.exp(-2 * X)),
    ),
    "gaussian": ({}, np.exp(-(X**2))),
    "maxout": ({"pieces": 41}, np.array([4.0])),
}


def test_every_activation_has_its_formula_here():
    assert FORMULAS.keys() == {e.name for e in catalog().values() if e.kind == "activation"}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name):
    arguments, expected = FORMULAS[name]
    found = made(Member(name, arguments), kind="activation")(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_the_modified_tanh_is_tanh_and_never_overflows():
    function = activations.modified_tanh()
    np.testing.assert_allclose(function(jnp.asarray(X)), np.tanh(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(function(jnp.array([-1e4, 1e4])), [-1, 1])


def test_self_normalizing_activations_keep_mean_and_variance():
    x = jax.random.normal(KEY, (400, 300))
    for key in jax.random.split(KEY, 30):
        x = activations.selu()(x @ initializers.lecun_normal()(key, (300, 300), jnp.float32))
    assert abs(float(x.mean())) < 0.15
    assert float(x.var()) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    ("name", "arguments", "variance"),
    [
        ("normal", {"stddev": 0.3}, 0.09),
        ("uniform", {"bound": 0.3}, 0.03),
        ("lecun_normal", {}, 1 / 200),
        ("glorot_uniform", {"gain": 4.0}, 16 * 2 / 500),
        ("glorot_normal", {}, 2 / 500),
        ("he_normal", {}, 2 / 200),
        ("he_uniform", {}, 2 / 200),
        ("orthogonal", {"gain": 2.0}, 4 / 300),
        ("sparse", {"nonzero": 20, "stddev": 2.0}, 4 * 20 / 200),
        ("constant", {"value": 0.7}, 0),
        ("zeros", {}, 0),
    ],
)
def test_an_initializer_has_its_variance(name, arguments, variance):
    draw = made(Member(name, arguments), kind="initializer")
    weights = np.asarray(draw(KEY, (200, 300), jnp.float32), float)
    assert weights.var() == pytest.approx(variance, rel=0.03, abs=1e-12)
    assert weights.mean() == pytest.approx(arguments.get("value", 0), abs=0.01)


def test_every_initializer_is_tested():
    (mark,) = test_an_initializer_has_its_variance.pytestmark
    tested = {name for name, _, _ in mark.args[1]}
    assert tested == {e.name for e in catalog().values() if e.kind == "initializer"}


@pytest.mark.parametrize(
    ("activation", "initializer", "keeps"),
    [
        ("tanh", "glorot_normal", True),
        ("tanh", "glorot_uniform", True),
        ("relu", "he_normal", True),
        ("relu", "he_uniform", True),
        ("linear", "orthogonal", True),
        ("selu", "lecun_normal", True),
        ("relu", "lecun_normal", False),
        ("tanh", "normal", False),
    ],
)
def test_the_variance_through_depth(activation, initializer, keeps):
    act = made(Member(activation), kind="activation")
    draw = made(Member(initializer), kind="initializer")
    x = jax.random.normal(KEY, (200, 256))
    for key in jax.random.split(KEY, 20):
        x = act(x @ draw(key, (256, 256), jnp.float32))
    deviation = float(jnp.sqrt(jnp.mean(x**2)))
    assert (deviation > 0.1) == keeps
    assert deviation < 10


def test_a_sparse_unit_has_exactly_so_many_inputs():
    weights = initializers.sparse(7)(KEY, (50, 90), jnp.float32)
    assert ((weights != 0).sum(axis=0) == 7).all()
    assert len({tuple(np.flatnonzero(w)) for w in np.asarray(weights).T}) > 80
    with pytest.raises(ValueError, match="at least nonzero=15 inputs, got shape"):
        initializers.sparse()(KEY, (10, 3), jnp.float32)


def test_orthogonal_columns():
    weights = np.asarray(initializers.orthogonal(3.0)(KEY, (40, 20), jnp.float32))
    np.testing.assert_allclose(weights.T @ weights, 9 * np.eye(20), atol=1e-5)


def test_weights_all_the_same_stay_so_and_drawn_ones_do_not():
    x, y = jax.random.normal(KEY, (50, 4)), jax.random.normal(KEY, (50, 1))

    def different(initializer):
        net = mlp(Sizes((4,), 1, None), (6,), activations.tanh(), initializer)(nnx.Rngs(0))
        graph, params = nnx.split(net)
        slope = jax.jit(jax.grad(lambda p: jnp.mean((nnx.merge(graph, p)(x) - y) ** 2)))
        for _ in range(10):
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope(params))
        units = np.asarray(nnx.merge(graph, params).layers[0].kernel[...])
        return np.linalg.matrix_rank(units, tol=1e-5)

    assert different(initializers.constant(0.3)) == 1
    assert different(initializers.zeros()) == 0
    assert different(initializers.lecun_normal()) == 4


def test_a_small_positive_bias_begins_with_every_relu_active():
    def active(bias):
        sizes, init = Sizes((20,), 1, None), initializers.normal(0.01)
        net = mlp(sizes, (300,), kernel_init=init, bias_init=initializers.constant(bias))
        return (net(nnx.Rngs(0)).layers[0](jax.random.normal(KEY, (50, 20))) > 0).mean()

    assert active(0.3) == 1
    assert active(0.0) == pytest.approx(0.5, abs=0.05)
