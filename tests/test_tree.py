from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy.stats import kstest

from gradkit import tree


def nested(seed, dtype=jnp.float32):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": jax.random.normal(a, (2, 3), dtype),
        "b": (jax.random.normal(b, (), dtype), [jax.random.normal(c, (4,), dtype), None]),
    }


def test_inner_and_norm_equal_those_of_the_ravelled_tree(dtype, eps):
    a, b = nested(0, dtype), nested(1, dtype)
    x, y = np.asarray(ravel_pytree(a)[0], float), np.asarray(ravel_pytree(b)[0], float)
    assert tree.inner(a, b) == pytest.approx(x @ y, abs=20 * eps)
    assert tree.norm(a) == pytest.approx(np.linalg.norm(x), rel=20 * eps)
    assert tree.inner(a, b).dtype == dtype


def test_inner_of_complex_trees_is_that_of_pairs_of_reals():
    a, b = jnp.array([1 + 2j, 3j]), jnp.array([2 - 1j, 1 + 1j])
    assert tree.inner(a, b) == pytest.approx(1 * 2 + 2 * -1 + 3 * 1)
    assert jnp.isrealobj(tree.inner(a, b))


@pytest.mark.parametrize("low", [jnp.float16, jnp.bfloat16])
def test_low_precision_is_accumulated_in_float32(low):
    leaves = [jnp.ones(1000, low)] * 200
    assert tree.norm(leaves) == pytest.approx(np.sqrt(200_000.0), rel=1e-6)
    assert tree.norm([300 * jnp.ones(3, low)]) == pytest.approx(300 * np.sqrt(3), rel=1e-2)


def test_add_scaled_keeps_the_dtypes_of_its_first_argument():
    a = {"h": jnp.ones(2, jnp.bfloat16), "s": jnp.ones((), jnp.float32)}
    result = tree.add_scaled(a, jnp.float32(0.5), a)
    assert jax.tree.map(lambda x: x.dtype, result) == jax.tree.map(lambda x: x.dtype, a)
    assert result["s"] == 1.5


def test_random_unit_has_norm_one_and_the_domain_of_its_argument(dtype, eps):
    domain = tree.shapes(nested(0, dtype))
    v = tree.random_unit(jax.random.key(3), domain)
    assert tree.shapes(v) == domain
    assert tree.norm(v) == pytest.approx(1.0, rel=10 * eps)


@pytest.mark.slow
@given(rows=st.integers(1, 5), seed=st.integers(0, 100))
def test_basis_project_and_combine_are_adjoint(rows, seed):
    V = tree.empty_basis(rows, nested(0))
    for j in range(rows):
        V = tree.basis_set(V, j, nested(seed + j))
    v, c = nested(seed + 50), jax.random.normal(jax.random.key(seed), (rows,))
    left = tree.inner(tree.basis_combine(V, c), v)
    assert left == pytest.approx(float(c @ tree.basis_project(V, v)), rel=1e-4, abs=1e-4)


def test_basis_combine_with_a_matrix_is_a_basis():
    V = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), nested(0))
    S = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    combined = tree.basis_combine(V, S)
    expected = jax.tree.map(lambda x: jnp.stack([4 * x, 5 * x]), nested(0))
    for x, y in zip(jax.tree.leaves(combined), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_path_names_are_dotted():
    paths = [tree.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(nested(0))]
    assert paths == ["a", "b.0", "b.1.0"]


def test_hashed_numbers_are_normal_and_without_pattern():
    domain = {"a": jnp.zeros((100, 100)), "b": jnp.zeros(20_000), "c": jnp.zeros(())}
    draws = [tree.hashed_normal(jnp.uint32(seed), domain) for seed in (0, 1)]
    for v in draws:
        assert tree.shapes(v) == tree.shapes(domain)
        assert kstest(np.asarray(ravel_pytree(v)[0]), "norm").pvalue > 0.01
    first, second = draws
    b = first["b"].reshape(2, 100, 100)
    vectors = np.concatenate([first["a"], first["a"].T, *b, b[0].T, second["a"], second["a"].T])
    correlations = np.corrcoef(vectors) - np.eye(len(vectors))
    assert np.abs(correlations).max() < 6 / np.sqrt(100)
    assert correlations.std() == pytest.approx(1 / np.sqrt(99), rel=0.02)


@pytest.mark.slow
def test_hashed_numbers_are_finite_however_many():
    """Of 24 bits all ones made an infinity: one in 17 million numbers."""
    draw = jax.jit(lambda seed: jnp.max(jnp.abs(tree.hashed_normal(seed, jnp.zeros(2**25)))))
    assert 5 < draw(jnp.uint32(0)) < 6
    assert 5 < draw(jnp.uint32(1)) < 6


def test_random_units_are_isotropic():
    domain = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    draw = jax.jit(jax.vmap(lambda key: ravel_pytree(tree.random_unit(key, domain))[0]))
    vectors = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)), float)
    covariance = vectors.T @ vectors / len(vectors)
    np.testing.assert_allclose(covariance, np.eye(7) / 7, atol=5 * 0.2 / np.sqrt(20_000))
    np.testing.assert_allclose(vectors.mean(axis=0), 0, atol=5 * 0.4 / np.sqrt(20_000))
