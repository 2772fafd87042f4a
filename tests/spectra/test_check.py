from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.tree_util import Partial

import gradkit as gk
from gradkit.spectra.check import check_operator

KEY = jax.random.key(3)
DOMAIN = {"layers": [{"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}]}


def scaled(v):
    return jax.tree.map(lambda x: 3 * x, v)


def lines(check):
    return {line.split()[0]: line for line in check.report().splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("linearize", [True, False])
def test_a_hessian_passes(network, linearize):
    H = gk.hessian(network.loss, network.params, network.batch, linearize=linearize)
    check = check_operator(H, key=KEY)
    assert check.ok, check.report()
    assert check.repeatability == 0
    assert "rounding" in check.report()
    assert "fresh" not in check.report()


@pytest.mark.parametrize(
    "eigenvalues", [np.zeros(30), np.ones(30), np.concatenate([np.zeros(29), [1e6]])]
)
def test_any_symmetric_matrix_passes(operator_with, eigenvalues):
    A, *_ = operator_with(eigenvalues)
    check = check_operator(A, key=KEY)
    assert check.ok, check.report()


def test_a_million_dimensions_pass_and_a_small_asymmetry_does_not():
    d = jnp.asarray(np.random.default_rng(0).normal(size=1_000_000).astype(np.float32))
    good = check_operator(gk.Operator(Partial(jnp.multiply, d), d), key=KEY)
    assert good.ok, good.report()
    assert good.tolerance < 2e-4
    bad = check_operator(gk.Operator(Partial(_lopsided, d), d), key=KEY)
    assert not bad.ok
    assert bad.linearity < bad.tolerance < bad.symmetry


def _lopsided(d, v):
    return d * v + 0.05 * jnp.roll(v, 1)


def test_symmetry_is_the_share_of_what_is_not_symmetric(dtype):
    rng = np.random.default_rng(1)
    M = rng.normal(size=(200, 200))
    for skew in (0.01, 0.3):
        mixed = (M + M.T) / 2 + skew * (M - M.T) / 2
        A = gk.Operator(Partial(jnp.matmul, jnp.asarray(mixed, dtype)), jnp.zeros(200, dtype))
        defects = [float(check_operator(A, key=jax.random.key(s)).symmetry) for s in range(8)]
        share = np.linalg.norm(mixed - mixed.T) / np.linalg.norm(mixed)
        assert share / 4 < np.median(defects) < share


@jax.custom_jvp
def normalized(h):
    return h / jnp.std(h, axis=0)


@normalized.defjvp
def _normalized_jvp(primals, tangents):
    (h,), (t,) = primals, tangents
    return normalized(h), t / jnp.std(h, axis=0)  # forgets that the statistics move with h


@pytest.mark.slow
def test_a_custom_derivative_that_forgets_a_term_is_not_symmetric(network):
    def loss(params, batch):
        h = normalized(batch["x"] @ params["layers"][0]["w"])
        return jnp.mean((h @ params["layers"][1]["w"] - batch["y"]) ** 2)

    check = check_operator(gk.hessian(loss, network.params, network.batch), key=KEY)
    assert not check.ok
    assert "custom derivative" in lines(check)["symmetry"]
    assert lines(check)["linearity"].endswith(f"{float(check.linearity):.1e}")


@pytest.mark.parametrize(
    "matvec",
    [
        lambda v: jax.tree.map(lambda x: 3 * x + 0.1, v),
        lambda v: jax.tree.map(jnp.abs, v),
        lambda v: jax.tree.map(lambda x: jnp.clip(x, -1, 1), v),
        lambda v: jax.tree.map(lambda x: x + 1e-3 * x**3, v),
    ],
    ids=["added term", "absolute value", "clip", "cubic"],
)
def test_a_map_that_is_not_linear_is_caught(matvec):
    check = check_operator(gk.Operator(matvec, DOMAIN), key=KEY)
    assert not check.ok
    assert "not linear" in lines(check)["linearity"]
    assert check.repeatability == 0


def assert_not_repeatable(A):
    check = check_operator(A, key=KEY)
    assert not check.ok
    assert check.repeatability > 0.1
    assert "dropout" in lines(check)["repeatability"]
    return check


def test_a_host_operator_that_draws_anew_is_caught():
    class Streaming:
        """A product over whatever the loader gives next."""

        domain = gk.Operator(scaled, DOMAIN).domain

        def __init__(self, batches):
            self.batches = batches

        def __matmul__(self, v):
            batch = next(self.batches)
            return jax.tree.map(lambda x: batch * x, v)

    check = assert_not_repeatable(Streaming(itertools.count(1.0)))
    assert "cause above" in lines(check)["linearity"]
    check = check_operator(Streaming(itertools.repeat(2.0)), key=KEY)
    assert check.ok, check.report()


def test_state_inside_compiled_products_is_caught():
    count = itertools.count()

    def matvec(v):
        seed = io_callback(lambda: np.int32(next(count)), jax.ShapeDtypeStruct((), np.int32))
        keep = jax.random.bernoulli(jax.random.key(seed), 0.5, v["layers"][0]["w"].shape)
        return {"layers": [{"w": keep * v["layers"][0]["w"], "b": v["layers"][0]["b"]}]}

    assert_not_repeatable(gk.Operator(matvec, DOMAIN))


def test_python_state_frozen_by_compilation_is_caught():
    batches = itertools.count(1.0)

    def matvec(v):
        batch = next(batches)
        return jax.tree.map(lambda x: batch * x, v)

    A = gk.Operator(matvec, DOMAIN)
    v = jax.tree.map(jnp.ones_like, A.domain)
    np.testing.assert_array_equal(*[jax.tree.leaves(A @ v)[0] for _ in range(2)])
    assert_not_repeatable(A)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_leaf_that_is_not_finite_is_named(value):
    def matvec(v):
        return {"layers": [{"w": 2 * v["layers"][0]["w"], "b": value * v["layers"][0]["b"]}]}

    check = check_operator(gk.Operator(matvec, DOMAIN), key=KEY)
    assert not check.ok
    assert "layers.0.b" in lines(check)["NaN"]
    assert "layers.0.w" not in check.report()
    assert jax.tree.leaves(check.nan) == [True, False]


def test_the_numbers_are_values_under_jit(network, eps):
    @jax.jit
    def inside(key):
        check = check_operator(gk.Operator(scaled, DOMAIN), key=key)
        return check, check.ok

    check, ok = inside(KEY)
    assert ok
    assert "symmetry" in check.report()
