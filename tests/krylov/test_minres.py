from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import minres as scipy_minres

import gradkit as gk
from gradkit.krylov.minres import minres

INDEFINITE = np.concatenate([np.linspace(-5, -1, 10), np.linspace(1, 20, 20)])
SINGULAR = np.concatenate([np.zeros(5), INDEFINITE])
SEMIDEFINITE = np.concatenate([np.zeros(5), np.linspace(1, 20, 30)])


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


def diagonal(values):
    d = jnp.asarray(values)
    return gk.Operator(Partial(jnp.multiply, d), d)


def watched(method, *args, **kwargs):
    states = []
    drive = functools.partial(gk.on_host, watch=lambda q: states.append(jax.tree.map(np.array, q)))
    return method(*args, drive=drive, **kwargs), states


@pytest.mark.parametrize("drive", [gk.in_jit, gk.on_host])
def test_solves_an_indefinite_system_and_states_its_residual(operator_with, eps, drive):
    A, M, _ = oracle = operator_with(INDEFINITE)
    b, right = oracle.vector(1)
    tol, size = 1e3 * eps, np.linalg.norm(right)
    solve = minres(A, b, tol=tol, drive=drive)
    assert solve.converged
    residual = np.linalg.norm(right - M @ flat(solve.x))
    assert residual <= 2 * tol * size
    assert solve.residual_norm == pytest.approx(residual, abs=20 * 50 * eps * size)
    np.testing.assert_allclose(flat(solve.x), np.linalg.solve(M, right), atol=2 * tol * size)
    assert solve.products == solve.steps + 1


def test_a_consistent_singular_system_gets_its_shortest_solution(operator_with, eps):
    A, M, _ = oracle = operator_with(SINGULAR)
    like, y = oracle.vector(2)
    b = A @ like
    solve = minres(A, b, tol=1e3 * eps)
    assert solve.converged
    expected = np.linalg.lstsq(M, M @ y, rcond=1e-5)[0]
    np.testing.assert_allclose(flat(solve.x), expected, atol=1e5 * eps)


@pytest.mark.parametrize("eigenvalues", [SINGULAR, SEMIDEFINITE])
def test_an_inconsistent_system_stops_at_least_squares_and_is_not_converged(
    operator_with, eps, eigenvalues
):
    A, M, _ = oracle = operator_with(eigenvalues)
    b, right = oracle.vector(3)
    solve = minres(A, b, tol=1e-4, max_steps=1000)
    least = np.linalg.norm(right - M @ np.linalg.lstsq(M, right, rcond=1e-5)[0])
    residual = np.linalg.norm(right - M @ flat(solve.x))
    assert residual == pytest.approx(least, rel=1e2 * eps)
    assert solve.steps <= 40
    assert not solve.converged


def test_agrees_with_scipy_step_by_step(operator_with, eps):
    A, M, _ = oracle = operator_with(INDEFINITE)
    b, right = oracle.vector(4)
    iterates = []
    scipy_minres(M, right, rtol=1e-12, maxiter=12, callback=lambda x: iterates.append(x.copy()))
    _, states = watched(minres, A, b, tol=0.0, max_steps=12)
    for ours, theirs in zip(states, iterates, strict=True):
        np.testing.assert_allclose(flat(ours.x), theirs, atol=1e4 * eps)


def test_the_residual_is_the_least_of_its_krylov_space_and_falls(operator_with, eps):
    A, M, _ = oracle = operator_with(INDEFINITE)
    b, right = oracle.vector(5)
    _, states = watched(minres, A, b, tol=0.0, max_steps=12)
    norms, K = [np.linalg.norm(right)], np.empty((len(right), 0))
    for q in states:
        power = M @ K[:, -1] if K.size else right
        K = np.linalg.qr(np.column_stack([K, power / np.linalg.norm(power)]))[0]
        least = np.linalg.norm(right - M @ K @ np.linalg.lstsq(M @ K, right)[0])
        assert q.r_norm == pytest.approx(least, rel=1e4 * eps)
        assert q.phi == pytest.approx(q.r_norm, rel=1e4 * eps)
        np.testing.assert_allclose(flat(q.r), right - M @ flat(q.x), atol=1e4 * eps)
        norms.append(float(q.r_norm))
    assert (np.diff(norms) <= 1e2 * eps * norms[0]).all()


def test_curvature_is_the_least_rayleigh_quotient_of_the_residuals(operator_with, eps):
    A, M, _ = oracle = operator_with(INDEFINITE)
    b, right = oracle.vector(6)
    solve, states = watched(minres, A, b, tol=0.0, max_steps=10)
    residuals = [right] + [flat(q.r) for q in states[:-1]]
    quotients = [r @ M @ r / (r @ r) for r in residuals]
    assert solve.curvature == pytest.approx(min(quotients), rel=1e4 * eps)
    assert min(quotients) < 0


def test_curvature_sees_what_cg_sees(operator_with):
    for lowest, seed in ((-0.5, 7), (0.5, 8)):
        A, *_ = oracle = operator_with(np.concatenate([[lowest], np.linspace(1, 20, 29)]))
        b, _ = oracle.vector(seed)
        assert (minres(A, b).curvature < 0) == (gk.cg(A, b).curvature < 0) == (lowest < 0)


def test_a_preconditioner_needs_fewer_steps_and_keeps_the_solution(dtype, eps):
    d = jnp.asarray(np.logspace(0, 3, 50) * np.where(np.arange(50) % 3, 1, -1), dtype)
    u = jnp.ones(50, dtype)
    A = gk.Operator(Partial(_rank_one_more, d), u)
    inverse = diagonal(1 / jnp.abs(d))
    tol = 3e2 * eps
    plain = minres(A, u, tol=tol)
    solve, states = watched(minres, A, u, tol=tol, preconditioner=inverse)
    assert solve.converged
    assert solve.steps <= 15 < plain.steps
    M = np.diag(np.asarray(d, np.float64)) + 0.1
    right, P = np.ones(50), np.diag(np.asarray(1 / jnp.abs(d), np.float64))
    expected = np.linalg.solve(M, right)
    np.testing.assert_allclose(solve.x, expected, atol=1e5 * eps)
    residuals = [right] + [np.asarray(q.r, np.float64) for q in states[:-1]]
    quotients = [r @ P @ M @ P @ r / (r @ P @ r) for r in residuals]
    assert solve.curvature == pytest.approx(min(quotients), rel=1e-2)
    for q in states[:4]:
        r = right - M @ np.asarray(q.x, np.float64)
        np.testing.assert_allclose(q.r, r, atol=1e4 * eps)
        assert q.phi == pytest.approx(np.sqrt(r @ P @ r), abs=1e2 * eps)


def test_the_scale_of_a_preconditioner_does_not_matter(dtype, eps):
    d = jnp.asarray(np.arange(-3, 9) + 0.5, dtype)
    for scale in (1e-8, 1e8):
        solve = minres(
            diagonal(d),
            jnp.ones_like(d),
            tol=1e2 * eps,
            preconditioner=diagonal(scale / jnp.abs(d)),
        )
        assert solve.converged
        assert solve.steps <= 3


def _rank_one_more(d, v):
    return d * v + 0.1 * jnp.sum(v)


def test_an_eigenvector_is_solved_in_one_step(operator_with, eps):
    A, M, unravel = operator_with(INDEFINITE)
    values, vectors = np.linalg.eigh(M)
    b = unravel(jnp.asarray(vectors[:, 3], jax.tree.leaves(A.domain)[0].dtype))
    solve = minres(A, b, tol=1e3 * eps)
    assert solve.steps == 1
    assert solve.converged
    assert solve.curvature == pytest.approx(values[3], rel=1e3 * eps)
    np.testing.assert_allclose(flat(solve.x), vectors[:, 3] / values[3], atol=1e3 * eps)


@pytest.mark.parametrize("value", [-4.0, 0.5])
def test_one_dimension(dtype, value):
    solve = minres(diagonal(np.full(1, value, dtype)), jnp.ones(1, dtype))
    assert solve.converged
    assert solve.steps == 1
    assert float(solve.x[0]) == 1 / value


def test_a_right_hand_side_in_the_null_space_leaves_zero():
    solve = minres(diagonal(np.array([0.0, 1.0, -2.0], np.float32)), jnp.array([3.0, 0, 0]))
    assert not flat(solve.x).any()
    assert not solve.converged
    assert solve.steps == 1
    assert solve.residual_norm == 3


def test_the_step_limit_is_kept(operator_with):
    A, *_ = oracle = operator_with(INDEFINITE)
    b, _ = oracle.vector(9)
    solve = minres(A, b, tol=1e-6, max_steps=4)
    assert solve.steps == 4
    assert not solve.converged


def test_a_tolerance_below_rounding_ends_where_rounding_does(operator_with, eps):
    A, M, _ = oracle = operator_with(SINGULAR)
    like, y = oracle.vector(10)
    solve = minres(A, A @ like, tol=0.0)
    assert solve.steps < 60
    assert solve.residual_norm <= 1e2 * eps * np.linalg.norm(M @ y)


def test_a_zero_right_hand_side_is_solved_by_zero(operator_with):
    A, *_ = operator_with(INDEFINITE)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), A.domain)
    solve = minres(A, zero)
    assert solve.converged
    assert solve.steps == 0
    assert not flat(solve.x).any()
    assert solve.curvature == jnp.inf


@pytest.mark.parametrize("drive", [gk.in_jit, gk.on_host])
def test_nan_ends_the_solve_and_is_visible(drive):
    solve = minres(diagonal(np.full(4, np.nan, np.float32)), jnp.ones(4), drive=drive)
    assert not solve.converged
    assert solve.steps == 1
    assert jnp.isnan(solve.residual_norm)
    assert not flat(solve.x).any()


def test_is_the_same_under_jit_and_vmap(operator_with, eps):
    A, *_ = oracle = operator_with(INDEFINITE)
    rights = [oracle.vector(seed)[0] for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rights)
    solves = jax.jit(jax.vmap(lambda b: minres(A, b, tol=1e3 * eps)))(stacked)
    for i, b in enumerate(rights):
        one = minres(A, b, tol=1e3 * eps)
        batched = jax.tree.map(lambda x, i=i: x[i], solves.x)
        np.testing.assert_allclose(flat(batched), flat(one.x), atol=1e4 * eps)
        assert solves.converged[i]


def test_a_wrong_right_hand_side_is_refused(operator_with):
    A, *_ = operator_with(INDEFINITE)
    with pytest.raises(ValueError, match="structure, shapes and dtypes"):
        minres(A, jnp.ones(30))
