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


def predict(params, batch, activation=jnp.tanh):
    first, second = params["layers"]
    h = activation(batch["x"] @ first["w"] + first["b"])
    return params["scale"] * (h @ second["w"] + second["b"])


def categorical(z, batch):
    target = jax.nn.softmax(batch["y"])
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(z), axis=-1))


def bernoulli(z, batch):
    return jnp.mean(jnp.sum(jax.nn.softplus(z) - (batch["y"] > 0) * z, axis=-1))


def normal(z, batch):
    return jnp.mean(jnp.sum((z - batch["y"]) ** 2, axis=-1)) / 2


CRITERIA = {"categorical": categorical, "bernoulli": bernoulli, "normal": normal}
PROBLEMS = {name: gk.Problem(predict=predict, criterion=c) for name, c in CRITERIA.items()}


def custom(params, batch):
    return jnp.mean(jnp.sum((predict(params, batch, tanh) - batch["y"]) ** 2, axis=-1)) / 2


@pytest.fixture
def per_example(network):
    """The gradients gᵢ of `normal` in float64, one a row."""
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), (network.params, network.batch)
        )
        flat, unravel = ravel_pytree(params)

        def losses(theta):
            residuals = predict(unravel(theta), batch) - batch["y"]
            return jnp.sum(residuals**2, axis=-1) / 2

        return np.asarray(jax.jit(jax.jacobian(losses))(flat))


@pytest.mark.slow
@pytest.mark.parametrize("problem", [PROBLEMS["normal"], custom], ids=["plain", "custom_vjp"])
def test_empirical_fisher_is_the_second_moment_of_the_gradients(network, per_example, eps, problem):
    exact = per_example.T @ per_example / len(per_example)
    for linearize in (True, False):
        F = gk.empirical_fisher(problem, network.params, network.batch, linearize=linearize)
        np.testing.assert_allclose(F.dense(), exact, atol=100 * eps * np.abs(exact).max())


@pytest.mark.parametrize("build", [gk.empirical_fisher, gk.empirical_fisher_diagonal])
def test_empirical_fisher_wants_examples(build, network):
    nothing = jax.tree.map(lambda x: x[:0], network.batch)
    with pytest.raises(ValueError, match=f"{build.__name__}: the batch holds no examples"):
        build(network.loss, network.params, nothing)


@pytest.mark.slow
def test_empirical_fisher_wants_a_common_axis_of_examples(network):
    for extra in (jnp.ones(7), jnp.float32(1)):
        batch = {**network.batch, "extra": extra}
        with pytest.raises(ValueError, match=r"batch: expected.*\(examples, ...\), got extra \("):
            gk.empirical_fisher(network.loss, network.params, batch)
    with pytest.raises(ValueError, match="got none"):
        gk.empirical_fisher(network.loss, network.params, None)


@pytest.mark.parametrize("likelihood", CRITERIA)
def test_mean_over_labels_is_the_gauss_newton_matrix(network, likelihood):
    """Each component of F v, over 200 independent draws, within 4 standard errors of G v."""
    problem, params, batch = PROBLEMS[likelihood], network.params, network.batch
    flat, unravel = ravel_pytree(params)
    v = unravel(jnp.asarray(np.random.default_rng(3).normal(size=flat.size), flat.dtype))
    exact = ravel_pytree(gk.gauss_newton(problem, params, batch) @ v)[0]

    @jax.jit
    def product(key):
        F = gk.fisher(problem, params, batch, key=key, likelihood=likelihood, samples=20)
        return ravel_pytree(F @ v)[0]

    draws = np.asarray(jax.lax.map(product, jax.random.split(jax.random.key(0), 200)))
    z = (draws.mean(axis=0) - exact) / (draws.std(axis=0, ddof=1) / np.sqrt(len(draws)))
    assert np.abs(z).max() < 4
    assert draws.std(axis=0).max() < np.abs(exact).max()  # the draws are no excuse


def test_fisher_repeats_is_symmetric_and_semidefinite(network, eps):
    problem, args = PROBLEMS["categorical"], (network.params, network.batch)
    options = {"key": jax.random.key(2), "likelihood": "categorical", "samples": 2}
    F = gk.fisher(problem, *args, **options)
    first, again = F.dense(), F.dense()
    np.testing.assert_array_equal(first, again)
    scale = np.abs(first).max()
    np.testing.assert_allclose(first, first.T, atol=20 * eps * scale)
    assert np.linalg.eigvalsh(np.asarray(first, np.float64)).min() > -100 * eps * scale
    recomputed = gk.fisher(problem, *args, **options, linearize=False).dense()
    np.testing.assert_allclose(first, recomputed, atol=100 * eps * scale)


def test_fisher_takes_places_and_trees_of_outputs():
    """An example's score is one vector over places and leaves: independent labels in each."""
    x = jnp.asarray(np.random.default_rng(4).normal(size=(6, 2)), jnp.float32)

    def heads(w, x):
        z = x[:, :, None] * w[0]
        return {"places": z, "whole": z[..., 0], "classes": jnp.argmax(z, axis=-1)}

    def criterion(out, x):
        squares = jnp.sum(out["places"] ** 2, axis=(1, 2)) + jnp.sum(out["whole"] ** 2, axis=1)
        return jnp.mean(squares) / 2

    problem, w = gk.Problem(predict=heads, criterion=criterion), [jnp.array([1.0, -2.0, 0.5])]
    G = gk.gauss_newton(problem, w, x).dense()
    F = gk.fisher(problem, w, x, key=jax.random.key(5), likelihood="normal", samples=20_000)
    assert np.linalg.norm(F.dense() - G) < 0.02 * np.linalg.norm(G)


@pytest.mark.parametrize("member", ["fisher", "empirical_fisher"])
def test_is_built_once_for_all_batches_of_a_shape(network, member):
    traces = []

    def traced(params, batch):
        traces.append(1)
        return predict(params, batch)

    problem, counts = gk.Problem(predict=traced, criterion=normal), []
    for factor in (1.0, 2.0, 3.0):
        batch = jax.tree.map(lambda x, f=factor: f * x, network.batch)
        options = {"key": jax.random.key(0), "likelihood": "normal"} if member == "fisher" else {}
        getattr(gk, member)(problem, network.params, batch, **options) @ network.params
        counts.append(len(traces))
    assert counts[0] == counts[-1]


@pytest.mark.parametrize(("linearize", "products"), [(True, 2 + 4), (False, 3 + 5)])
def test_costs_what_gauss_newton_does(network, linearize, products):
    problem, args = PROBLEMS["normal"], (network.params, network.batch)
    options = {"key": jax.random.key(0), "likelihood": "normal", "samples": 2}
    for F in (
        gk.fisher(problem, *args, **options, linearize=linearize),
        gk.empirical_fisher(problem, *args, linearize=linearize),
    ):
        text = str(jax.make_jaxpr(F.matvec)(network.params))
        assert text.count("dot_general[") == products


def test_fisher_says_what_it_wants():
    def of(outputs, key=jax.random.key(0), **options):  # noqa: B008
        problem = gk.Problem(predict=lambda p, b: outputs * p, criterion=lambda z, b: jnp.sum(z))
        return gk.fisher(problem, jnp.float32(1), None, key=key, **options)

    with pytest.raises(ValueError, match="'categorical', 'bernoulli', 'normal', got 'poisson'"):
        of(jnp.ones(3), likelihood="poisson")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        of(jnp.ones(3), likelihood="normal", samples=0)
    with pytest.raises(ValueError, match=r"\(examples, ..., classes\), got \(3,\)"):
        of(jnp.ones(3), likelihood="categorical")
    with pytest.raises(ValueError, match=r"\(examples, ...\), got \(\)"):
        of(jnp.ones(()), likelihood="normal")
    with pytest.raises(TypeError, match=r"fisher needs the model's outputs.*got a function"):
        gk.fisher(
            lambda p, b: jnp.sum(p),  # pyright: ignore
            *(jnp.ones(3), None),
            key=jax.random.key(0),
            likelihood="normal",
        )


@pytest.mark.parametrize("at_once", [1, 7, 20, 1000])
def test_the_diagonal_of_the_empirical_fisher_matrix(network, eps, monkeypatch, at_once):
    """Of 20 examples: one by one, in parts with a rest, in one part, and with room for more."""
    size = sum(x.size for x in jax.tree.leaves(network.params))
    monkeypatch.setattr("gradkit.curvature.fisher._AT_ONCE", at_once * size)
    given = network.loss, network.params, network.batch
    found = ravel_pytree(gk.empirical_fisher_diagonal(*given))[0]
    matrix = gk.empirical_fisher(*given).dense()
    np.testing.assert_allclose(found, jnp.diag(matrix), rtol=500 * eps, atol=eps)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "normal"])
def test_the_fisher_diagonal_is_within_its_standard_error_of_the_exact_one(likelihood):
    rng, count = np.random.default_rng(0), 2000
    criteria = {
        "categorical": lambda z, _: -jnp.mean(jax.nn.log_softmax(z)[:, 0]),
        "bernoulli": lambda z, _: jnp.mean(jnp.sum(jax.nn.softplus(z), axis=1)),
        "normal": lambda z, _: jnp.mean(jnp.sum(z**2, axis=1)) / 2,
    }
    problem = gk.Problem(
        predict=lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], criterion=criteria[likelihood]
    )
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=(4, 3)))}
    x = jnp.asarray(rng.normal(size=(25, 3)))

    def sampled(key):
        D = gk.fisher_diagonal(problem, params, x, key=key, likelihood=likelihood)
        return ravel_pytree(D)[0]

    samples = np.asarray(jax.jit(jax.vmap(sampled))(jax.random.split(jax.random.key(1), count)))
    exact = np.diag(np.asarray(gk.gauss_newton(problem, params, x).dense()))
    stderr = samples.std(axis=0, ddof=1) / np.sqrt(count)
    assert (samples >= 0).all()
    assert (np.abs(samples.mean(axis=0) - exact) < 4.5 * stderr).all()


def test_the_fisher_diagonal_needs_outputs_and_a_likelihood_it_knows():
    with pytest.raises(TypeError, match="fisher_diagonal needs the model's outputs"):
        gk.fisher_diagonal(
            gk.Problem(lambda p, b: p.sum()), jnp.ones(2), None, key=None, likelihood="normal"
        )
    problem = gk.Problem(predict=lambda p, x: x @ p, criterion=lambda z, x: jnp.mean(z**2))
    with pytest.raises(ValueError, match=r"expected one of .*'normal', got 'poisson'"):
        gk.fisher_diagonal(
            problem, jnp.ones(1), jnp.ones((2, 1)), key=jax.random.key(0), likelihood="poisson"
        )
