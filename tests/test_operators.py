from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk

LAMBDA = np.linspace(-1, 3, 12)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


def test_product_equals_the_matrix_product(operator_with, eps):
    A, M, _ = oracle = operator_with(LAMBDA)
    v, x = oracle.vector(1)
    np.testing.assert_allclose(flat(A @ v), M @ x, atol=50 * eps * np.linalg.norm(x))


def test_dense_is_the_matrix(operator_with, eps):
    A, M, _ = operator_with(LAMBDA)
    np.testing.assert_allclose(A.dense(), M, atol=10 * eps)
    assert A.dimension == 12


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda A: A + 0.5, lambda M: M + 0.5 * np.eye(12)),
        (lambda A: 0.5 + A, lambda M: M + 0.5 * np.eye(12)),
        (lambda A: A - 0.5, lambda M: M - 0.5 * np.eye(12)),
        (lambda A: 3 * A, lambda M: 3 * M),
        (lambda A: -A, lambda M: -M),
        (lambda A: A + 2 * A, lambda M: 3 * M),
        (lambda A: A - A, lambda M: 0 * M),
        (lambda A: jnp.float32(2.0) * A + jnp.float32(1.0), lambda M: 2 * M + np.eye(12)),
    ],
)
def test_algebra_is_that_of_matrices(operator_with, eps, build, expected):
    A, M, _ = operator_with(LAMBDA)
    np.testing.assert_allclose(build(A).dense(), expected(M), atol=50 * eps)


def test_restrict_is_the_diagonal_block(operator_with, eps):
    A, M, _ = operator_with(LAMBDA)
    block = A.restrict(lambda path: path.startswith("b"))
    assert block.domain["a"] is None
    np.testing.assert_allclose(block.dense(), M[6:, 6:], atol=10 * eps)
    np.testing.assert_allclose((block + 1.0).dense(), M[6:, 6:] + np.eye(6), atol=10 * eps)


def test_restrict_to_nothing_names_the_paths(operator_with):
    A, *_ = operator_with(LAMBDA)
    with pytest.raises(ValueError, match=r"no leaf was selected from a, b\.0, b\.1\.c"):
        A.restrict(lambda path: "bias" in path)


@pytest.mark.slow
def test_crosses_jit_and_shares_compiled_code(network):
    apply = jax.jit(lambda A, v: A @ v)
    for factor in (1.0, 2.0, 3.0):
        params = jax.tree.map(lambda x, f=factor: f * x, network.params)
        A = gk.hessian(network.loss, params, network.batch) + factor
        np.testing.assert_allclose(flat(apply(A, params)), flat(A @ params), rtol=1e-4, atol=1e-4)
    assert apply._cache_size() == 1


def test_a_wrong_vector_is_refused_with_the_leaf_named(operator_with, dtype):
    A, *_ = oracle = operator_with(LAMBDA)
    v, _ = oracle.vector(0)
    with pytest.raises(ValueError, match=rf"a: expected {dtype}\[2, 3\], got {dtype}\[3, 2\]"):
        A @ {**v, "a": v["a"].T}
    with pytest.raises(ValueError, match=r"a: expected .*, got no leaf"):
        A @ {"b": v["b"]}


def test_operators_on_different_domains_do_not_add(operator_with):
    A, B = operator_with(LAMBDA).operator, operator_with(np.ones(9)).operator
    with pytest.raises(ValueError, match="same domain"):
        A + B


def test_a_matrix_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match="lambda v: M @ v"):
        gk.Operator(np.eye(3), jnp.zeros(3))


@pytest.mark.parametrize("other", [np.ones(12), {"a": 1}, "2", None])
def test_what_is_neither_operator_nor_scalar_is_refused(operator_with, other):
    A, *_ = operator_with(LAMBDA)
    with pytest.raises(TypeError, match="adds to another operator or to a scalar"):
        _ = A + other
    with pytest.raises(TypeError, match="is multiplied by a scalar"):
        _ = A * other
