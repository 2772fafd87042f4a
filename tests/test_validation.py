"""Every function that takes parameters names the leaves that cannot be one, and what to do."""

from __future__ import annotations

import functools
import inspect

import equinox as eqx
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.validation import MOST_LINES, check_arguments, check_parameters, list_bad_leaves

X = jnp.array([[1.0, 2.0], [0.5, -1.0]])
KEY = jax.random.key(0)


def predict(params, x):
    return jnp.tanh(x @ params["w"] + params["layers"][0]["b"])


PROBLEM = gk.Problem(predict=predict, criterion=lambda z, x: jnp.mean(z**2))


def with_leaf(leaf):
    return {"w": jnp.array([0.3, -0.2]), "layers": [{"b": leaf}]}


GOOD = with_leaf(jnp.array(0.5))
FISHER = {"key": KEY, "likelihood": "normal"}


def product(build, *rest, **options):
    """The function of the parameters that builds an operator and applies it."""
    return lambda params: build(PROBLEM, params, *(rest or (X,)), **options) @ GOOD


def observe(params, **options):
    point = gk.observe(PROBLEM, params, X, gk.hessian, **options)
    return point.value, point.grad, point.extras["curvature"]() @ GOOD


def minimize(params):
    found = gk.minimize(PROBLEM.value, params, args=X, max_steps=2)
    return found.params, found.value


def least_squares(params):
    found = gk.least_squares(predict, params, args=X, max_steps=2)
    return found.params, found.value


def taylor_check(params, curvature=gk.hessian, data=X):
    A, grad = curvature(PROBLEM, GOOD, data), gk.observe(PROBLEM, GOOD, X).grad
    check = gk.taylor_check(lambda p: PROBLEM.value(p, X), A, grad, params, learning_rates=[0.1])
    return check.predicted, check.actual


def operator(params):
    return gk.Operator(functools.partial(jax.tree.map, lambda v: 2 * v), params) @ GOOD


# Each takes parameters, and returns numbers.
TAKERS = {
    "hessian": product(gk.hessian),
    "hessian, recomputed": product(gk.hessian, linearize=False),
    "gauss_newton": product(gk.gauss_newton),
    "fisher": product(gk.fisher, **FISHER),
    "fisher_diagonal": lambda params: gk.fisher_diagonal(PROBLEM, params, X, **FISHER),
    "empirical_fisher": product(gk.empirical_fisher),
    "empirical_fisher_diagonal": lambda params: gk.empirical_fisher_diagonal(PROBLEM, params, X),
    "micro_batched": product(gk.micro_batched(gk.gauss_newton, 1)),
    "streamed": product(gk.streamed(gk.hessian), [X[:1], X[1:]]),
    "observe": observe,
    "observe, micro-batches": functools.partial(observe, micro_batches=2),
    "minimize": minimize,
    "least_squares": least_squares,
    "taylor_check": taylor_check,
    "taylor_check, streamed": functools.partial(
        taylor_check, curvature=gk.streamed(gk.hessian), data=[X]
    ),
    "Operator": operator,
}

BAD = {
    "integer": (jnp.arange(3), "int32[3]"),
    "NumPy integer": (np.int64(3), "int64[]"),
    "int": (3, "an int (3)"),
    "boolean": (jnp.array([True]), "bool[1]"),
    "bool": (True, "a bool (True)"),
    "key": (KEY, "key<fry>[], a random key"),
    "float0": (np.zeros(2, jax.dtypes.float0), "float0[2]"),
    "function": (jax.nn.relu, "a function (relu)"),
    "partial": (functools.partial(jax.nn.relu), "a function (relu)"),
    "str": ("tanh", "a str ('tanh')"),
    "dtype of that name": ("float32", "a str ('float32')"),
    "class": (jnp.float32, "a class (float32)"),
    "dtype": (np.dtype("float32"), "a dtype (float32)"),
    "object": (object(), "an object"),
    "array of objects": (np.array([None]), "object[1]"),
}


def error_of(function, *args):
    with pytest.raises(TypeError) as caught:
        function(*args)
    error = caught.value
    assert len(str(error)) < 1200
    assert error.__cause__ is None
    assert error.__context__ is None
    return str(error)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_leaf_is_named_with_a_remedy(taker, kind):
    leaf, described = BAD[kind]
    message = error_of(TAKERS[taker], with_leaf(leaf))
    assert message.startswith(f"{taker.split(',')[0]}: ")
    assert f"\n  layers.0.b: {described}\n" in message
    assert "\n  w" not in message
    assert "eqx.filter(model, eqx.is_inexact_array)" in message
    assert "nnx.state(model, nnx.Param)" in message


def test_every_public_function_of_parameters_is_tried_here():
    def takes_parameters(value):
        named = inspect.signature(value).parameters.keys()
        return not issubclass(type(value), type) and bool({"params", "x0"} & named)

    public = {name for name in gk.__all__ if takes_parameters(getattr(gk, name))}
    public -= {"state_shardings"}  # which needs leaves with a sharding, and names one without
    assert public <= {taker.split(",")[0] for taker in TAKERS}


NUMBERS = {
    "float": 0.5,
    "NumPy scalar": np.float32(0.5),
    "NumPy array": np.array(0.5, np.float32),
    "wider than the default": np.array(0.5),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_numbers_among_parameters_are_as_good_as_arrays(taker):
    expected = TAKERS[taker](GOOD)
    for number in NUMBERS.values():
        got = TAKERS[taker]({"w": np.array([0.3, -0.2]), "layers": [{"b": number}]})
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_numbers_are_vectors_too():
    A = gk.Operator(functools.partial(jax.tree.map, lambda v: 2 * v), GOOD)
    streamed = gk.streamed(gk.hessian)(PROBLEM, GOOD, [X])
    v = with_leaf(0.5)
    np.testing.assert_array_equal((A @ v)["layers"][0]["b"], 1.0)
    np.testing.assert_array_equal((streamed @ v)["w"], (streamed @ GOOD)["w"])
    np.testing.assert_allclose(gk.cg(A, v).x["layers"][0]["b"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(gk.minres(A, v).x["layers"][0]["b"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(gk.eigsh(A, 1, key=KEY, v0=v).values, [2.0], rtol=1e-6)
    assert gk.critical_point(A, with_leaf(0.5), key=KEY).kind == "not_critical"


@pytest.mark.parametrize("leaf", [jax.nn.relu, "tanh", jnp.arange(3), KEY])
def test_a_vector_that_is_none_is_named(leaf):
    A = gk.Operator(lambda v: v, GOOD)
    v = with_leaf(leaf)
    for use in (
        lambda: A @ v,
        lambda: gk.cg(A, v),
        lambda: gk.minres(A, v),
        lambda: gk.eigsh(A, 1, key=KEY, v0=v),
        lambda: gk.critical_point(A, v, key=KEY),
        lambda: gk.taylor_check(lambda p: 0.0, A, v, GOOD, learning_rates=[0.1]),
    ):
        with pytest.raises((TypeError, ValueError), match=r"layers\.0\.b: ") as caught:
            use()
        assert len(str(caught.value)) < 1200


def test_observe_sees_that_a_number_has_changed():
    def loss(x, batch):
        return (x - batch) ** 2

    tx, x = gk.lbfgs(), jnp.array(3.0)
    point = gk.observe(loss, x, 1.0)
    updates, state = tx.update(point.grad, tx.init(x), x, **point.extras)
    reached = jnp.asarray(x + updates)
    for x, batch in ((reached, 1.0), (float(reached) + 1, 1.0), (reached, 2.0)):
        there = gk.observe(loss, x, batch, state=state)
        assert float(there.value) == pytest.approx((float(x) - batch) ** 2, abs=1e-6)


def test_a_model_of_equinox_and_one_of_flax():
    model = eqx.nn.MLP(2, 1, 3, 1, key=KEY)  # a tree, and callable besides
    message = error_of(gk.hessian, lambda m, x: jnp.mean(jax.vmap(m)(x)), model, X)
    assert "\n  activation: a function (relu)\n" in message

    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x):
        return jnp.mean(jax.vmap(eqx.combine(params, rest))(x) ** 2)

    assert float(gk.observe(loss, params, X).value) == pytest.approx(float(loss(params, X)))
    Hv = gk.hessian(loss, params, X) @ params
    assert jax.tree.structure(Hv) == jax.tree.structure(params)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer, self.dropout = nnx.Linear(2, 1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    net = Net(nnx.Rngs(0))
    message = error_of(gk.observe, lambda p, x: 0.0, nnx.state(net), X)
    assert "dropout.rngs.key.value: key<fry>[], a random key" in message
    assert not list_bad_leaves(nnx.state(net, nnx.Param))


class Distance(eqx.Module):
    """A function that holds an array, and so has no hash."""

    center: jax.Array

    def __call__(self, x):
        return jnp.sum((x - self.center) ** 2)

    def residuals(self, x):
        return x - self.center


def test_a_function_that_is_a_tree_is_minimized():
    distance, x0 = Distance(jnp.array([1.0, 2.0])), jnp.zeros(2)
    np.testing.assert_allclose(gk.minimize(distance, x0).params, [1.0, 2.0], rtol=1e-5)
    found = gk.least_squares(distance.residuals, x0, max_steps=100)
    np.testing.assert_allclose(found.params, [1.0, 2.0], rtol=1e-2)
    other = gk.minimize(Distance(jnp.array([3.0, 4.0])), x0)  # not mistaken for the first
    np.testing.assert_allclose(other.params, [3.0, 4.0], rtol=1e-5)


ARGUMENTS = {
    "function": (jax.nn.relu, "a function (relu)"),
    "str": ("tanh", "a str ('tanh')"),
    "class": (jnp.float32, "a class (float32)"),
    "dtype": (np.dtype("float32"), "a dtype (float32)"),
    "array of text": (np.array("x"), "<U1[]"),
    "array of objects": (np.array([None]), "object[1]"),
}


@pytest.mark.parametrize("function", [gk.minimize, gk.least_squares])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_an_argument_that_is_no_array_is_named(function, kind):
    leaf, described = ARGUMENTS[kind]

    def refuses(args, path):
        with pytest.raises(TypeError) as caught:
            function(lambda x, *_: jnp.sum(x), jnp.ones(2), args=args)
        message = str(caught.value)
        assert len(message) < 1200
        assert message.startswith(f"{function.__name__}: args must be")
        assert f"\n  {path}: {described}\n" in message
        assert "eqx.filter(model, eqx.is_array)" in message

    refuses(({"scale": leaf}, 1.0), "args.0.scale")
    refuses({"scale": leaf}, "args.scale")
    refuses(leaf, "args")


def test_integers_and_keys_are_arguments():
    def loss(x, t, n, key, mask):
        noise = 0 * jax.random.normal(key, x.shape)
        return jnp.sum((x - t) ** 2) / n + jnp.sum(jnp.where(mask, x**2, noise))

    t, rest = jnp.array([1.0, 2.0]), (2, KEY, np.array([True, False]))

    def solve(t, rest):
        return gk.minimize(loss, jnp.zeros(2), args=(t, *rest)).params

    expected = [1 / 3, 2.0]  # x (1/n + mask) = t / n
    arrays = jax.tree.map(jnp.asarray, rest)
    np.testing.assert_allclose(solve(t, rest), expected, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(solve)(t, arrays), expected, rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda t, rest: solve(t, rest).sum()))(t, arrays)
    np.testing.assert_allclose(gradient, [1 / 3, 1.0], rtol=1e-4)


def test_integers_and_keys_are_arguments_of_residuals():
    def residuals(x, t, n, key):
        return n * x - t + 0 * jax.random.normal(key)

    def solve(t):
        return gk.least_squares(residuals, jnp.zeros(2), args=(t, jnp.array([1, 2]), KEY)).params

    x, derivative = jax.jvp(solve, (jnp.array([1.0, 2.0]),), (jnp.ones(2),))
    np.testing.assert_allclose(x, [1.0, 1.0], rtol=1e-4)
    np.testing.assert_allclose(derivative, [1.0, 0.5], rtol=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        None,
        optax.MaskedNode(),
        {"a": None, "b": (optax.MaskedNode(), 1.0)},
        jnp.ones(2, jnp.bfloat16),
        jnp.ones(2, jnp.complex64),
        1j,
        np.float64(1.0),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    ],
)
def test_what_can_be_a_parameter(params):
    assert list_bad_leaves(params) == []
    check_parameters(params, member="hessian")
    check_arguments(params, member="minimize")


def test_a_bare_leaf_and_many():
    assert list_bad_leaves(jax.nn.relu) == ["  the parameter: a function (relu)"]
    lines = list_bad_leaves([3] * (MOST_LINES + 2))
    assert len(lines) == MOST_LINES + 1
    assert lines[0] == "  0: an int (3)"
    assert lines[-1] == "  ... and 2 more"
    assert list_bad_leaves("x" * 1000) == [f"  the parameter: a str ('{'x' * 36}...)"]


def test_traced_leaves_are_told_by_their_types():
    seen = []
    jax.make_jaxpr(lambda p: seen.extend(list_bad_leaves(p)))({"x": 1.0, "n": 1, "key": KEY})
    assert seen == ["  key: key<fry>[], a random key", "  n: int32[]"]
    with pytest.raises(TypeError, match=r"\n  layers\.0\.b: int32\[\]\n"):
        jax.jit(lambda p: gk.hessian(PROBLEM, p, X) @ GOOD)(with_leaf(jnp.array(1)))


def test_an_operator_on_shapes_and_complex_numbers():
    shapes = jax.eval_shape(lambda: {"x": jnp.zeros(2), "z": jnp.zeros(1, jnp.complex64)})
    A = gk.Operator(lambda v: v, shapes)
    v = {"x": jnp.ones(2), "z": jnp.array([1j])}
    np.testing.assert_array_equal((A @ v)["z"], v["z"])
