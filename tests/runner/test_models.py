"""Each model is what its docstring says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import signal, spatial
from sklearn import cluster, preprocessing

import gradkit as gk
from gradkit.runner import activations, initializers, tasks
from gradkit.runner.config import Config
from gradkit.runner.errors import UserError
from gradkit.runner.making import made
from gradkit.runner.members import Member
from gradkit.runner.models import Sizes, conv, mlp, polynomial, rbf, transformer
from gradkit.runner.networks.attention import rotated
from gradkit.tree import path_name, random_unit

KEY = jax.random.key(0)


def built(**fields: Any):
    return tasks.build(Config(**{"optimizer": {"name": "adam"}, **fields}))


def with_state(task):
    return task.data.train | {"state": task.init_state(KEY)}


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


@pytest.mark.slow
def test_gates_begin_open_and_learn_to_close():
    sizes, x = Sizes((4,), 3, None), jax.random.normal(KEY, (7, 4))
    plain = mlp(sizes, (6, 5), activations.tanh())(nnx.Rngs(0))
    gated = mlp(sizes, (6, 5), activations.tanh(), gate_bias=5.0)(nnx.Rngs(0))
    for layer, same in zip(gated.layers, plain.layers, strict=True):
        layer.kernel[...] = same.kernel[...]
    h, open_share = x, 1 / (1 + np.exp(-5))
    for layer in plain.layers[:-1]:
        h = open_share * jnp.tanh(layer(h))
    np.testing.assert_allclose(gated(x), plain.layers[-1](h), rtol=1e-5)
    np.testing.assert_allclose(gated(x), plain(x), atol=0.05)
    slopes = nnx.grad(lambda net: jnp.sum(net(x) ** 2))(gated)
    assert jnp.any(slopes["gates"][1]["kernel"][...] != 0)
    gated.gates[0].bias[...] = jnp.full(6, -100.0)
    np.testing.assert_allclose(gated(x), gated(0 * x), atol=1e-7)


def test_each_layer_learns_a_slope_of_its_own():
    net = mlp(Sizes((4,), 3, None), (6, 5), activations.prelu(0.3))(nnx.Rngs(0))
    slopes = nnx.grad(lambda net: jnp.sum(net(jnp.ones((2, 4))) ** 2))(net)["activations"]
    first, second = (float(slopes[i]["negative_slope"][...]) for i in range(2))
    assert first != second != 0
    net.activations[0].negative_slope[...] = jnp.array(1.0)
    assert net.activations[1].negative_slope[...] == pytest.approx(0.3)


WINE = {"source": "wine", "preprocess": "standardize"}


def bumps(net, x):
    centers, widths = np.asarray(net.centers[...], float), np.exp(net.log_widths[...])
    away = np.linalg.norm(x[:, None] - centers, axis=-1)
    return np.exp(-((away / widths) ** 2) / 2)


def test_radial_weights_solve_least_squares_on_bumps_around_k_means():
    task = built(data=WINE, model={"name": "rbf", "units": 9}, loss="squared_error")
    x, targets = task.data.x_train.astype(float), np.eye(3)[task.data.y_train]
    sizes = Sizes((13,), 3, np.ones(3) / 3, task.data.train)
    net = rbf(sizes, 9)(nnx.Rngs(0))
    found = cluster.KMeans(9, random_state=0).fit(x)
    np.testing.assert_allclose(net.centers[...], found.cluster_centers_, rtol=1e-5)
    between = np.sort(spatial.distance.cdist(found.cluster_centers_, found.cluster_centers_))
    np.testing.assert_allclose(np.exp(net.log_widths[...]), between[:, 1], rtol=1e-5)
    design = np.hstack([bumps(net, x), np.ones((len(x), 1))])
    best = design @ np.linalg.lstsq(design, targets)[0]
    np.testing.assert_allclose(net(jnp.asarray(x, jnp.float32)), best, atol=1e-4)
    params = task.init(KEY)
    assert gk.tree.norm(jax.grad(task.problem.value)(params, with_state(task))) < 1e-4


def test_two_stages_train_the_weights_alone_and_three_everything():
    names = [
        {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(task.init(KEY))}
        for task in (built(data=WINE, model={"name": "rbf", "stages": n}) for n in (2, 3))
    ]
    weights = {"output.kernel.value", "output.bias.value"}
    assert names == [weights, weights | {"centers.value", "log_widths.value"}]


@pytest.mark.parametrize("pooling", ["max", "average", "stride"])
def test_a_convolutional_network_is_scipys(pooling):
    net = conv(Sizes((9, 6), 3, None), (2, 4), pooling=pooling)(nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(9, 6))
    maps = [x]
    for layer in net.convolutions:
        kernel = np.asarray(layer.kernel[...], float)
        maps = [
            np.maximum(
                sum(
                    signal.correlate2d(m, kernel[:, :, i, o], mode="same")
                    for i, m in enumerate(maps)
                ),
                0,
            )
            for o in range(kernel.shape[-1])
        ]
        h, w = (n // 2 for n in maps[0].shape)
        fold = {"max": np.max, "average": np.mean}.get(pooling)
        maps = [
            fold(m[: 2 * h, : 2 * w].reshape(h, 2, w, 2), axis=(1, 3)) if fold else m[::2, ::2]
            for m in maps
        ]
    expected = np.stack(maps, axis=-1).ravel() @ np.asarray(net.output.kernel[...], float)
    np.testing.assert_allclose(net(jnp.asarray(x[None]))[0], expected, atol=1e-5)


def text(positions="learned", length=8):
    model = transformer(Sizes((length,), 11, None), 2, 16, 2, positions=positions)
    return model(nnx.Rngs(0))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_transformer_sees_no_token_to_come_and_all_before(positions):
    net = nnx.jit(text(positions))
    x = jnp.arange(8)[None]
    scores = net(x)
    for place in range(8):
        moved = np.abs(net(x.at[0, place].set(10)) - scores).max(axis=(0, 2))
        np.testing.assert_array_equal(moved[:place], 0)
        assert (moved[place:] > 0).all()
    assert scores.shape == (1, 8, 11)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(KEY, (2, 6))
    rows = [rotated(jnp.broadcast_to(v, (10, 1, 6)))[:, 0] for v in (q, k)]
    products = np.asarray(rows[0] @ rows[1].T)
    for shift in range(-9, 10):
        np.testing.assert_allclose(np.diag(products, shift), np.diag(products, shift)[0], rtol=2e-5)
    assert products[0, 0] == pytest.approx(float(q @ k), rel=1e-5)
    assert abs(products[0, 3] - products[3, 0]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["attention", "dense"])
def test_each_part_of_a_block_adds_to_what_it_reads_normalized(silent):
    block = text().blocks[0]
    layer = block.attention.out if silent == "attention" else block.down
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    x = jax.random.normal(KEY, (2, 8, 16))
    added = [np.asarray(block(inputs) - inputs) for inputs in (x, 3 * x + 1)]
    np.testing.assert_allclose(*added, atol=2e-5)
    assert added[0].std() > 0.1


TEXT = {"source": {"name": "python_text", "characters": 400, "length": 8}}
CURVED = {
    "conv": ("digits", {"channels": [3, 4], "activation": "tanh"}),
    "conv, batch norm": ("digits", {"name": "conv", "channels": [3], "batch_norm": True}),
    "transformer": (TEXT, {"width": 8, "heads": 2, "layers": 1}),
    "transformer, rotary": (TEXT, {"width": 8, "heads": 2, "layers": 1, "positions": "rotary"}),
    "rbf": (WINE, {"units": 5, "stages": 3}),
    "polynomial": (WINE, {}),
    "mlp": (WINE, {"gate_bias": 2.0, "activation": "prelu"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVED)
def test_hessian_products_are_those_of_reverse_mode(name):
    data, model = CURVED[name]
    data = data if isinstance(data, dict) else {"source": data}
    task = built(data=data, model={"name": name.partition(",")[0], **model})
    batch = jax.tree.map(lambda x: x[:9], task.data.train)
    params = jax.jit(task.init)(KEY)
    batch |= {"state": task.init_state(KEY)} if task.init_state else {}
    v = random_unit(KEY, params)

    @jax.jit
    def both(params, batch):
        product = gk.hessian(task.problem, params, batch) @ v
        slope = jax.grad(task.problem.value)
        expected = jax.grad(lambda p: optax.tree.vdot(slope(p, batch), v))(params)
        return optax.tree.norm(expected), optax.tree.norm(optax.tree.sub(product, expected))

    size, difference = both(params, batch)
    assert 1e-3 < size < 1e3
    assert difference < 1e-4 * size


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("mlp", {"dropout": 1.0}, "mlp refuses its arguments: dropout: expected a share from 0 to"),
        ("mlp", {"hidden": (3, 0)}, "hidden: expected whole numbers > 0, got [3, 0]"),
        ("mlp", {"class_bias": True}, "class_bias: needs a score for each class, and bias: true"),
        ("polynomial", {"degree": -1}, "degree: expected 0 or more, got -1"),
        ("rbf", {"stages": 1}, "stages: expected 2 or 3, got 1"),
        ("rbf", {"units": 6}, "units: expected 2 to 5, the different inputs, got 6"),
        ("conv", {}, "channels: expected images of 4 pixels or more a side to halve 2 times, got"),
        ("transformer", {"heads": 3}, "width: expected a multiple of heads=3, got 64"),
        (
            "transformer",
            {"width": 6, "heads": 2, "positions": "rotary"},
            "multiple of heads=2, and an even number for each with rotary positions, got 6",
        ),
    ],
)
def test_values_that_no_model_can_have(name, arguments, words):
    train = {"x": np.eye(5, 4, dtype=np.float32), "y": np.zeros((5, 1), np.float32)}
    with pytest.raises(UserError) as error:
        made(Member(name, arguments), Sizes((4,), 1, None, train), kind="model")
    assert words in str(error.value)
