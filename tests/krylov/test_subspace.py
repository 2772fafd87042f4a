from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.krylov.models import cubic_step, trust_region_step
from gradkit.krylov.subspace import grown

POSITIVE = np.linspace(1, 10, 20)
INDEFINITE = np.linspace(-3, 10, 20)


def in_ball(radius, reduced):
    return trust_region_step(reduced, radius).h


def with_cube(sigma, reduced):
    return cubic_step(reduced, sigma).h


def dense(space):
    """V, T and β of a space, in float64, and a function from coordinates to flat vectors."""
    j = int(space.rows)
    basis = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(space.lanczos.basis), np.float64)
    return basis[:j], np.asarray(space.projection(), np.float64)[:j, :j]


def test_a_space_holds_the_decomposition(operator_with, eps):
    A, M, _ = oracle = operator_with(INDEFINITE)
    g, flat = oracle.vector(1)
    space = grown(A, g, rows=12, radius=1.0, solve=Partial(in_ball, 1.0))
    V, T = dense(space)
    assert space.rows == 12
    assert space.products == 12
    np.testing.assert_allclose(V @ V.T, np.eye(12), atol=50 * eps)
    np.testing.assert_allclose(V @ M @ V.T, T, atol=50 * 10 * eps)
    np.testing.assert_allclose(space.g_norm * V[0], flat, atol=50 * eps)
    h = np.arange(12.0)
    combined, _ = ravel_pytree(space.combined(jnp.asarray(h, space.g_norm.dtype), g))
    np.testing.assert_allclose(combined, h @ V, atol=500 * eps)


@pytest.mark.slow
@pytest.mark.parametrize("tol", [0.3, 1e-3])
def test_inside_the_radius_it_ends_where_conjugate_gradients_do(operator_with, eps, tol):
    A, M, _ = oracle = operator_with(POSITIVE)
    g, flat = oracle.vector(1)
    space = grown(A, g, rows=20, tol=tol)
    V, T = dense(space)
    h = -np.linalg.solve(T, float(space.g_norm) * np.eye(len(T))[0])
    residual = np.linalg.norm(M @ (h @ V) + flat) / np.linalg.norm(flat)
    assert residual <= tol * (1 + 1e4 * eps)
    assert float(space.residual) == pytest.approx(residual, rel=1e4 * eps)
    assert space.products == gk.cg(A, g, tol=tol).steps


@pytest.mark.parametrize("rule", [in_ball, with_cube])
@pytest.mark.parametrize("spectrum", [POSITIVE, INDEFINITE], ids=["positive", "indefinite"])
def test_it_ends_where_the_minimizer_of_the_model_has_a_small_residual(
    operator_with, eps, rule, spectrum
):
    A, M, _ = oracle = operator_with(spectrum)
    g, flat = oracle.vector(1)
    bound = jnp.asarray(0.2, jnp.result_type(*jax.tree.leaves(g)))
    radius = bound if rule is in_ball else 0.0
    space = grown(A, g, rows=20, tol=1e-2, radius=radius, solve=Partial(rule, bound))
    V, T = dense(space)
    assert 3 <= len(T) < 20
    norm = np.linalg.norm(flat)
    values, S = np.linalg.eigh(T)
    shifts = np.linspace(max(0, -values[0]), 1e3, 200_001)[1:]
    lengths = np.linalg.norm(norm * S[0] / (values + shifts[:, None]), axis=1)
    wanted = 0.2 if rule is in_ball else shifts / 0.2
    shift = shifts[np.argmin(np.abs(lengths - wanted))]
    h = -S @ (norm * S[0] / (values + shift))
    residual = np.linalg.norm(M @ (h @ V) + shift * (h @ V) + flat) / norm
    assert residual <= 1.05e-2  # the shift is on a grid
    assert space.residual <= 1e-2


def test_without_a_solver_it_ends_where_the_path_is_left(operator_with):
    for spectrum, share in ((POSITIVE, 0.9), (INDEFINITE, np.inf)):
        A, M, _ = oracle = operator_with(spectrum)
        g, flat = oracle.vector(1)
        radius = share * np.linalg.norm(np.linalg.solve(M, flat))
        space = grown(A, g, rows=20, radius=radius)
        _, T = dense(space)
        assert 1 < len(T) < 20
        before, now = (
            np.linalg.norm(np.linalg.solve(T[:j, :j], np.linalg.norm(flat) * np.eye(j)[0]))
            for j in (len(T) - 1, len(T))
        )
        assert np.linalg.eigvalsh(T[:-1, :-1])[0] > 0
        assert before < radius
        assert now >= radius or np.linalg.eigvalsh(T)[0] <= 0


def test_an_exhausted_space_ends(operator_with, eps):
    A, M, _ = oracle = operator_with(np.repeat([1.0, -2.0, 3.0], 7))
    g, _ = oracle.vector(1)
    space = grown(A, g, rows=21, radius=0.1, solve=Partial(in_ball, 0.1))
    V, T = dense(space)
    assert len(T) == 3
    np.testing.assert_allclose(M @ V.T, V.T @ T, atol=200 * eps)


def test_the_space_does_not_depend_on_the_unit_of_the_loss(operator_with, eps):
    A, *_ = oracle = operator_with(INDEFINITE)
    g, _ = oracle.vector(1)
    for unit in (2.0**-80, 2.0**80):
        small = grown(A, jax.tree.map(lambda x, unit=unit: unit * x, g), rows=6)
        for a, b in zip(
            jax.tree.leaves(small.lanczos.basis),
            jax.tree.leaves(grown(A, g, rows=6).lanczos.basis),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=100 * eps)
        assert float(small.g_norm) == pytest.approx(unit * np.linalg.norm(oracle.vector(1)[1]))


def test_a_product_that_is_not_finite_ends_the_growth_with_the_rows_before(dtype):
    def matvec(v):
        failing = jnp.where(jnp.abs(v[3]) > 0, jnp.nan, 0)  # in the fourth row
        return 3 * v + failing - jnp.pad(v[1:], (0, 1)) - jnp.pad(v[:-1], (1, 0))

    g = jnp.zeros(6, dtype).at[0].set(2)
    space = grown(gk.Operator(matvec, g), g, rows=6)
    assert (int(space.rows), int(space.products)) == (3, 4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(space.lanczos))
    first = grown(gk.Operator(lambda v: jnp.nan * v, g), g, rows=6)
    assert (int(first.rows), int(first.products)) == (1, 1)
    assert first.projection()[0, 0] == 0
    np.testing.assert_allclose(first.combined(jnp.ones(6, dtype), g), g / 2)


def test_no_gradient_no_products(dtype):
    A = gk.Operator(lambda v: v, jnp.zeros(4, dtype))
    for g in (jnp.zeros(4, dtype), jnp.full(4, jnp.nan, dtype), jnp.full(4, jnp.inf, dtype)):
        space = grown(A, g, rows=4)
        assert space.products == 0
        np.testing.assert_array_equal(space.combined(jnp.zeros(4, dtype), g), 0)
