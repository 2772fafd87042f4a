"""Activations, initializers and models are what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import preprocessing

from gradkit.runner import activations, initializers
from gradkit.runner.catalog import catalog
from gradkit.runner.errors import UserError
from gradkit.runner.making import made
from gradkit.runner.members import Member
from gradkit.runner.models import Sizes, mlp, polynomial

X = np.linspace(-4, 4, 41)
KEY = jax.random.key(0)
FORMULAS = {
    "relu": ({}, np.maximum(X, 0)),
    "leaky_relu": ({"negative_slope": 0.2}, np.where(X > 0, X, 0.2 * X)),
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
        ("relu", "he_normal", True),
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


def test_the_first_outputs_are_the_shares_of_the_classes():
    shares = np.array([0.7, 0.2, 0.1])
    net = mlp(Sizes((4,), 3, shares), class_bias=True, kernel_init=initializers.zeros())
    scores = net(nnx.Rngs(0))(jnp.ones((2, 4)))
    np.testing.assert_allclose(jax.nn.softmax(scores), [shares, shares], rtol=1e-6)


def test_maxout_halves_the_inputs_of_the_next_layer():
    net = mlp(Sizes((4,), 3, None), hidden=(6, 8), activation=activations.maxout())(nnx.Rngs(0))
    assert [layer.kernel.shape for layer in net.layers] == [(4, 6), (3, 8), (4, 3)]
    assert net(jnp.ones((5, 4))).shape == (5, 3)


@pytest.mark.parametrize("basis", ["powers", "legendre"])
@pytest.mark.parametrize("degree", [0, 1, 2, 14, 20])
def test_a_polynomial_is_numpys(degree, basis):
    net = polynomial(Sizes((1,), 2, None), degree, basis)(nnx.Rngs(0))
    x = np.linspace(-1, 1, 21)
    assert not net(jnp.asarray(x)[:, None]).any()
    coefficients = np.random.default_rng(0).normal(size=(degree + 1, 2))
    net.coefficients[...] = jnp.asarray(coefficients)
    value = {"powers": np.polynomial.polynomial.polyval, "legendre": np.polynomial.legendre.legval}
    expected = value[basis](x, coefficients).T
    np.testing.assert_allclose(net(jnp.asarray(x)[:, None]), expected, atol=2e-5)


def test_a_polynomial_of_several_inputs_has_every_product():
    features = preprocessing.PolynomialFeatures(3)
    x = np.random.default_rng(0).uniform(-1, 1, (9, 4))
    expected = features.fit_transform(x)
    found = polynomial(Sizes((2, 2), 1, None), 3)(nnx.Rngs(0)).terms(x.reshape(9, 2, 2))
    assert found.shape == expected.shape
    for row, wanted in zip(np.asarray(found), expected, strict=True):
        np.testing.assert_allclose(np.sort(row), np.sort(wanted), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": 1.0}, "model: mlp refuses its arguments: dropout: expected a share from 0 to"),
        ({"hidden": (3, 0)}, "hidden: expected whole numbers > 0, got [3, 0]"),
        ({"class_bias": True}, "class_bias: needs a score for each class, and bias: true"),
    ],
)
def test_values_that_no_model_can_have(arguments, words):
    with pytest.raises(UserError) as error:
        made(Member("mlp", arguments), Sizes((4,), 1, None), kind="model")
    assert words in str(error.value)
