from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk

POSITIVE = np.linspace(1, 50, 30)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


@pytest.mark.parametrize("drive", [gk.in_jit, gk.on_host])
def test_solves_the_system_and_states_its_residual(operator_with, eps, drive):
    A, M, _ = oracle = operator_with(POSITIVE)
    b, x = oracle.vector(1)
    tol = 1e3 * eps
    solve = gk.cg(A, b, tol=tol, drive=drive)
    assert solve.converged
    residual = np.linalg.norm(x - M @ flat(solve.x))
    assert residual <= 2 * tol * np.linalg.norm(x)
    assert solve.residual_norm == pytest.approx(residual, abs=50 * 50 * eps * np.linalg.norm(x))
    np.testing.assert_allclose(flat(solve.x), np.linalg.solve(M, x), atol=tol * np.linalg.norm(x))
    assert solve.products == solve.steps + 1


def test_takes_as_many_steps_as_there_are_distinct_eigenvalues(operator_with):
    A, *_ = oracle = operator_with([2.0] * 10 + [5.0] * 10 + [9.0] * 10)
    b, _ = oracle.vector(2)
    assert gk.cg(A, b, tol=1e-5).steps == 3


def test_directions_are_conjugate_and_residuals_orthogonal(operator_with, eps):
    A, M, _ = oracle = operator_with(POSITIVE)
    b, _ = oracle.vector(3)
    directions, residuals = [], []

    def watch(s):
        directions.append(flat(s.p))
        residuals.append(flat(s.r))

    gk.cg(A, b, max_steps=8, tol=0.0, drive=functools.partial(gk.on_host, watch=watch))
    assert len(directions) == 8
    P, R = np.array(directions), np.array(residuals)
    conjugacy = P @ M @ P.T / np.sqrt(np.outer(*[np.einsum("ij,jk,ik->i", P, M, P)] * 2))
    orthogonality = R @ R.T / np.outer(*[np.linalg.norm(R, axis=1)] * 2)
    np.testing.assert_allclose(conjugacy, np.eye(8), atol=1e4 * eps)
    np.testing.assert_allclose(orthogonality, np.eye(8), atol=1e4 * eps)


def test_an_exact_preconditioner_solves_in_one_step(operator_with, eps):
    A, M, unravel = oracle = operator_with(POSITIVE)
    b, _ = oracle.vector(4)
    inverse = jnp.asarray(np.linalg.inv(M), jax.tree.leaves(b)[0].dtype)
    preconditioner = gk.Operator(
        lambda v: unravel(jnp.matmul(inverse, ravel_pytree(v)[0], precision="highest")), A.domain
    )
    solve = gk.cg(A, b, tol=1e3 * eps, preconditioner=preconditioner)
    assert solve.steps == 1
    assert solve.converged


def test_a_diagonal_preconditioner_needs_fewer_steps(dtype):
    d = jnp.asarray(np.logspace(0, 4, 50), dtype)
    u = jnp.ones(50, dtype)
    A = gk.Operator(lambda v: d * v + 0.1 * u * jnp.sum(u * v), u)
    inverse = gk.Operator(lambda v: v / d, u)
    plain = gk.cg(A, u, tol=1e-4, max_steps=500)
    preconditioned = gk.cg(A, u, tol=1e-4, max_steps=500, preconditioner=inverse)
    assert preconditioned.converged
    assert preconditioned.steps <= 5 < plain.steps


def test_negative_curvature_is_reported_and_stops_the_solve(operator_with):
    A, M, _ = oracle = operator_with(np.linspace(-5, 20, 30))
    b, x = oracle.vector(5)
    solve = gk.cg(A, b, tol=1e-6)
    assert solve.curvature < 0
    assert solve.curvature >= -5.001
    assert not solve.converged
    assert solve.residual_norm == pytest.approx(np.linalg.norm(x - M @ flat(solve.x)), rel=1e-3)


def test_negative_curvature_at_the_first_direction_leaves_zero(operator_with):
    A, *_ = oracle = operator_with(-POSITIVE)
    b, x = oracle.vector(6)
    solve = gk.cg(A, b)
    assert solve.steps == 1
    assert solve.curvature < 0
    assert not flat(solve.x).any()
    assert solve.residual_norm == pytest.approx(np.linalg.norm(x), rel=1e-5)


def test_the_step_limit_is_kept(operator_with):
    A, *_ = oracle = operator_with(POSITIVE)
    b, _ = oracle.vector(7)
    solve = gk.cg(A, b, tol=1e-12, max_steps=4)
    assert solve.steps == 4
    assert not solve.converged


def test_a_zero_right_hand_side_is_solved_by_zero(operator_with):
    A, *_ = operator_with(POSITIVE)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), A.domain)
    solve = gk.cg(A, zero)
    assert solve.converged
    assert solve.steps == 0
    assert not flat(solve.x).any()


def test_nan_ends_the_solve_and_is_visible():
    A = gk.Operator(lambda v: v * jnp.nan, jnp.ones(4))
    solve = gk.cg(A, jnp.ones(4))
    assert not solve.converged
    assert solve.steps <= 4
    assert jnp.isnan(solve.residual_norm)


def test_is_the_same_under_jit_and_vmap(operator_with, eps):
    A, *_ = oracle = operator_with(POSITIVE)
    rights = [oracle.vector(seed)[0] for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rights)
    solves = jax.jit(jax.vmap(lambda b: gk.cg(A, b, tol=1e3 * eps)))(stacked)
    for i, b in enumerate(rights):
        one = gk.cg(A, b, tol=1e3 * eps)
        batched = jax.tree.map(lambda x, i=i: x[i], solves.x)
        np.testing.assert_allclose(flat(batched), flat(one.x), atol=1e4 * eps)


def test_a_wrong_right_hand_side_is_refused(operator_with):
    A, *_ = operator_with(POSITIVE)
    with pytest.raises(ValueError, match="structure, shapes and dtypes"):
        gk.cg(A, jnp.ones(30))
