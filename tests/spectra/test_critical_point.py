from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.spectra.critical_point import critical_point

KEY = jax.random.key(5)
UP, DOWN = np.linspace(1, 20, 30), np.linspace(-20, -1, 30)


def zero(A):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), A.domain)


def diagonal(values):
    d = jnp.asarray(values)
    return gk.Operator(Partial(jnp.multiply, d), d)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eigenvalues", "kind", "negative"),
    [
        (UP, "minimum", 0),
        (DOWN, "maximum", 30),
        (np.concatenate([DOWN[:3], UP[3:]]), "saddle", 3),
        (np.concatenate([DOWN[:3], np.zeros(5), UP[8:]]), "saddle", 3),
        (np.concatenate([np.zeros(5), UP[5:]]), "degenerate", 0),
        (np.concatenate([np.zeros(5), DOWN[5:]]), "degenerate", 25),
        (np.zeros(30), "degenerate", 0),
        (np.full(30, 2.0), "minimum", 0),
    ],
)
def test_a_quadratic_is_what_it_is(operator_with, eigenvalues, kind, negative):
    A, M, _ = operator_with(eigenvalues)
    point = critical_point(A, zero(A), key=KEY)
    assert point.kind == kind, point.evidence
    assert point.negative == negative
    assert point.gradient_norm == 0
    exact = np.linalg.eigvalsh(M)[[0, -1]]
    np.testing.assert_allclose(point.ends.values, exact, atol=point.resolution + 1e-12)
    assert f"all 30), {negative} of them negative" in point.evidence


def test_the_evidence_says_what_a_degenerate_point_is_not(operator_with):
    for eigenvalues, said in (
        (np.concatenate([np.zeros(5), UP[5:]]), "not a maximum"),
        (np.concatenate([np.zeros(5), DOWN[5:]]), "not a minimum"),
    ):
        A, *_ = operator_with(eigenvalues)
        assert said in critical_point(A, zero(A), key=KEY).evidence


@pytest.mark.slow
def test_a_monkey_saddle_is_degenerate_and_a_saddle_is_not():
    def monkey(p, batch):
        return p["x"] ** 3 - 3 * p["x"] * p["y"] ** 2

    def saddle(p, batch):
        return p["x"] ** 2 - 3 * p["y"] ** 2

    origin = {"x": jnp.zeros(()), "y": jnp.zeros(())}
    for loss, kind, negative in ((monkey, "degenerate", 0), (saddle, "saddle", 1)):
        point = gk.observe(gk.Problem(loss), origin, None)
        H = gk.hessian(loss, origin, None)
        found = critical_point(H, point.grad, key=KEY)
        assert (found.kind, found.negative) == (kind, negative)
    way_down = found.ends.vectors
    assert abs(way_down["y"][0]) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_a_gradient_above_the_tolerance_is_not_critical(operator_with):
    A, *_ = oracle = operator_with(UP)
    g, flat = oracle.vector(1)
    point = critical_point(A, g, key=KEY)
    assert point.kind == "not_critical"
    assert point.gradient_norm == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    assert "not within the tolerance 1.0e-05" in point.evidence
    assert critical_point(A, g, key=KEY, tol=100.0).kind == "minimum"


@pytest.mark.parametrize(("value", "kind"), [(2.0, "minimum"), (-2.0, "maximum")])
def test_one_dimension(dtype, value, kind):
    point = critical_point(diagonal(np.full(1, value, dtype)), jnp.zeros(1, dtype), key=KEY)
    assert (point.kind, point.negative) == (kind, int(value < 0))


@pytest.mark.slow
def test_negative_eigenvalues_of_a_network_are_counted(network):
    H = gk.hessian(network.loss, network.params, network.batch)
    g = gk.observe(gk.Problem(network.loss), network.params, network.batch).grad
    exact = np.linalg.eigvalsh(network.hessian)
    point = critical_point(H, g, key=KEY, tol=10.0)
    assert point.kind == "saddle"
    assert point.negative == (exact < -point.resolution).sum() > 0
    norm = np.linalg.norm(np.asarray(ravel_pytree(g)[0], np.float64))
    assert point.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert critical_point(H, g, key=KEY).kind == "not_critical"


def test_both_drives_agree(operator_with):
    A, *_ = operator_with(np.concatenate([DOWN[:3], UP[3:]]))
    inside, outside = (
        critical_point(A, zero(A), key=KEY, drive=drive) for drive in (gk.in_jit, gk.on_host)
    )
    assert (inside.kind, inside.negative) == (outside.kind, outside.negative) == ("saddle", 3)


def test_a_large_saddle_has_at_least_so_many_negative_eigenvalues():
    values = np.concatenate([np.linspace(-1, 3, 2000), [-9.0, -8.0, 30.0]]).astype(np.float32)
    point = critical_point(diagonal(values), jnp.zeros_like(values), key=KEY)
    assert point.kind == "saddle"
    assert 2 <= point.negative <= (values < 0).sum()
    assert f"at least {point.negative} of them negative" in point.evidence
    assert "did not converge" not in point.evidence


@pytest.mark.slow
def test_a_large_minimum_is_claimed_only_where_the_residual_allows():
    clear = np.concatenate([np.random.default_rng(0).uniform(2, 3, 2000), [1.0, 9.0]])
    point = critical_point(diagonal(clear.astype(np.float32)), jnp.zeros(2002), key=KEY)
    assert point.kind == "minimum"
    assert "100 steps for 2002" in point.evidence

    close = np.concatenate([np.linspace(1e-4, 1, 2000), [9.0]]).astype(np.float32)
    short = critical_point(diagonal(close), jnp.zeros(2001), key=KEY, steps=20)
    assert short.kind == "degenerate"
    assert "the ends did not converge" in short.evidence


def test_nan_is_never_a_kind_that_claims_something(dtype):
    A = diagonal(np.full(20, np.nan, dtype))
    point = critical_point(A, jnp.zeros(20, dtype), key=KEY)
    assert (point.kind, point.negative) == ("degenerate", 0)
    assert "nan" in point.evidence
    good = diagonal(np.ones(20, dtype))
    assert critical_point(good, jnp.full(20, np.nan, dtype), key=KEY).kind == "not_critical"


def test_wrong_arguments_are_refused(dtype):
    A = diagonal(np.ones(20, dtype))
    with pytest.raises(ValueError, match="structure, shapes and dtypes"):
        critical_point(A, jnp.zeros(3, dtype), key=KEY)
    with pytest.raises(ValueError, match="steps: expected 1 to 20"):
        critical_point(A, jnp.zeros(20, dtype), key=KEY, steps=21)
