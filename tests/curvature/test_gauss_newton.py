from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk


@jax.custom_vjp
def tanh(x):
    return jnp.tanh(x)


tanh.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, g: (g * (1 - y**2),))


def predict_with(activation):
    """The outputs of the fixture's network, in a tree with a leaf that is no float."""

    def predict(params, batch):
        first, second = params["layers"]
        h = activation(batch["x"] @ first["w"] + first["b"])
        z = params["scale"] * (h @ second["w"] + second["b"])
        return {"z": z, "rest": [jnp.argmax(z, -1), z[:, 0] ** 2]}

    return predict


def criterion(outputs, batch):
    labels, squares = outputs["rest"]
    z = jax.nn.log_softmax(outputs["z"])
    weight = 1 + labels  # an integer: held constant
    return -jnp.mean(weight * z[:, 0]) + jnp.mean((squares - batch["y"][:, 1]) ** 2)


@pytest.fixture
def problem():
    return gk.Problem(predict=predict_with(jnp.tanh), criterion=criterion)


@pytest.fixture
def custom():
    return gk.Problem(predict=predict_with(tanh), criterion=criterion)


@jax.custom_vjp
def multiplied(c, g):
    return c * g


multiplied.defvjp(lambda c, g: (c * g, (c, g)), lambda cg, u: (cg[1] * u, cg[0] * u))


@jax.custom_vjp
def nested(x):
    return jnp.tanh(x)


nested.defvjp(lambda x: (nested(x), nested(x)), lambda y, g: (multiplied(1 - y**2, g),))


@pytest.fixture
def deep():
    """Custom rules that call custom rules, in the model and in the criterion."""

    def strange(outputs, batch):
        labels, squares = outputs["rest"]
        return criterion({"z": jnp.arctanh(nested(outputs["z"])), "rest": [labels, squares]}, batch)

    return gk.Problem(predict=predict_with(nested), criterion=strange)


@pytest.fixture
def exact(network):
    """Jᵀ H_c J from jax.jacobian and jax.hessian in float64, labels as constants."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), (network.params, network.batch)
        )
        flat, unravel = ravel_pytree(params)
        labels = predict_with(jnp.tanh)(params, batch)["rest"][0]

        def floats(theta):
            out = predict_with(jnp.tanh)(unravel(theta), batch)
            return jnp.concatenate([out["z"], out["rest"][1][:, None]], axis=1).ravel()

        def loss(z):
            z = z.reshape(-1, 3)
            return criterion({"z": z[:, :2], "rest": [labels, z[:, 2]]}, batch)

        J, H = jax.jit(jax.jacobian(floats))(flat), jax.jit(jax.hessian(loss))(floats(flat))
        return np.asarray(J.T @ H @ J)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["problem", "custom", "deep"])
def test_equals_the_dense_matrix(network, exact, eps, model, request):
    problem, scale = request.getfixturevalue(model), np.abs(exact).max()
    for linearize in (True, False):
        G = gk.gauss_newton(problem, network.params, network.batch, linearize=linearize).dense()
        np.testing.assert_allclose(G, exact, atol=100 * eps * scale)
        np.testing.assert_allclose(G, G.T, atol=20 * eps * scale)
        assert np.linalg.eigvalsh(np.asarray(G, np.float64)).min() > -100 * eps * scale


@pytest.mark.slow
def test_is_the_same_under_jit(network, problem, eps):
    def product(params, v):
        return gk.gauss_newton(problem, params, network.batch) @ v

    eager = ravel_pytree(product(network.params, network.params))[0]
    jitted = ravel_pytree(jax.jit(product)(network.params, network.params))[0]
    np.testing.assert_allclose(eager, jitted, atol=100 * eps * np.abs(eager).max())


def test_is_the_hessian_of_a_linear_model(network, eps):
    problem = gk.Problem(
        predict=lambda p, b: b["x"] @ p["w"] + p["b"],
        criterion=lambda z, b: jnp.mean(jnp.sum(jax.nn.softplus(z) - b["y"] * z, axis=-1)),
    )
    params = network.params["layers"][0]
    params = {"w": params["w"][:, :2], "b": params["b"][:2]}
    G = gk.gauss_newton(problem, params, network.batch).dense()
    H = gk.hessian(problem, params, network.batch).dense()
    np.testing.assert_allclose(G, H, atol=50 * eps * np.abs(H).max())


def test_complex_parameters_count_as_pairs_of_real_ones():
    def predict(w, x):
        return jnp.abs(x @ w) ** 2

    problem = gk.Problem(predict=predict, criterion=lambda z, x: jnp.sum(z**2) / 2)
    x, w = jnp.array([[1.0, 2.0j], [0.5j, 1.0]]), jnp.array([1.0 + 1.0j, -0.5j])
    v = jnp.array([0.3 - 1.0j, 2.0 + 0.1j])
    G = gk.gauss_newton(problem, w, x)

    def pair(u):
        return jnp.concatenate([u.real, u.imag])

    J = jax.jacobian(lambda u: predict(u[:2] + 1j * u[2:], x))(pair(w))
    np.testing.assert_allclose(pair(G @ v), J.T @ J @ pair(v), rtol=1e-5)


def test_is_built_once_for_all_batches_of_a_shape(network):
    traces = []

    def predict(params, batch):
        traces.append(1)
        return predict_with(jnp.tanh)(params, batch)

    problem = gk.Problem(predict=predict, criterion=criterion)
    for factor in (1.0, 2.0, 3.0):
        batch = jax.tree.map(lambda x, f=factor: f * x, network.batch)
        gk.gauss_newton(problem, network.params, batch) @ network.params
    assert len(traces) == 1


@pytest.mark.parametrize("activation", [jnp.tanh, tanh])
@pytest.mark.parametrize(("linearize", "first", "inner"), [(True, 2, 4), (False, 3, 5)])
def test_costs_the_matrix_products_that_the_docstring_says(activation, linearize, first, inner):
    def predict(weights, x):
        for w in weights:
            x = activation(x @ w)
        return x

    problem = gk.Problem(predict=predict, criterion=lambda z, x: jnp.sum(z**4))
    weights = [jnp.ones((2, 2))] * 3
    G = gk.gauss_newton(problem, weights, jnp.ones((5, 2)), linearize=linearize)
    text = str(jax.make_jaxpr(G.matvec)(weights))
    assert text.count("dot_general[") == first + 2 * inner


def test_wants_a_problem_with_outputs(network):
    for problem, got in ((network.loss, "a function"), (gk.Problem(network.loss), r"Problem\(l")):
        with pytest.raises(TypeError, match=f"predict=..., criterion=...\\), got .*{got}"):
            gk.gauss_newton(problem, network.params, network.batch)
    with pytest.raises(TypeError, match=r"gk.Problem or a function"):
        gk.gauss_newton(3, network.params, network.batch)  # pyright: ignore


def test_wants_outputs_that_can_be_differentiated():
    problem = gk.Problem(predict=lambda p, b: jnp.argmax(p), criterion=lambda z, b: z * 1.0)
    with pytest.raises(TypeError, match="floating-point outputs to differentiate, got int32"):
        gk.gauss_newton(problem, jnp.ones(3), None)


def test_nan_is_a_value(network, problem):
    params = jax.tree.map(lambda x: x * jnp.nan, network.params)
    product = gk.gauss_newton(problem, params, network.batch) @ network.params
    assert jnp.isnan(ravel_pytree(product)[0]).all()
