from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.krylov.iterates import iterates

POSITIVE = np.geomspace(0.01, 50, 60)
STEEP = np.geomspace(1e-3, 1, 60)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


def kept_rows(found, like):
    return [flat(found.row(j, like)) for j in range(int(found.last) + 1)]


@pytest.mark.parametrize("drive", [gk.in_jit, gk.on_host])
def test_the_values_are_those_of_the_quadratic_and_fall(operator_with, eps, drive):
    A, M, _ = oracle = operator_with(POSITIVE)
    (b, b_flat), (start, _) = oracle.vector(1), oracle.vector(2)
    found = iterates(A, b, start, max_steps=40, drive=drive)
    rows = kept_rows(found, b)
    phi = np.array([x @ M @ x / 2 - b_flat @ x for x in rows])
    scale = max(np.linalg.norm(M, 2) * x @ x for x in rows)
    np.testing.assert_allclose(found.values[: len(rows)], phi, atol=100 * eps * scale)
    assert np.all(np.diff(phi) < 0)
    assert found.products == found.steps + 1


def test_the_kept_iterates_are_those_of_conjugate_gradients(operator_with, eps):
    A, M, _ = oracle = operator_with(POSITIVE)
    (b, b_flat), (start, x0) = oracle.vector(1), oracle.vector(2)
    found = iterates(A, b, start, tol=0.0, max_steps=10)
    steps = [1, 2, 3, 4, 5, 7, 9, 10]  # ⌈1.3ʲ⌉ and the last
    x, r = x0.copy(), b_flat - M @ x0
    p, expected = r.copy(), []
    for _ in range(10):
        alpha = r @ r / (p @ M @ p)
        x, following = x + alpha * p, r - alpha * M @ p
        p, r = following + following @ following / (r @ r) * p, following
        expected.append(x)
    rows = kept_rows(found, b)
    assert len(rows) == len(steps)
    for step, row in zip(steps, rows, strict=True):
        np.testing.assert_allclose(row, expected[step - 1], atol=1e4 * eps * np.linalg.norm(x))
    assert found.residual_norm == pytest.approx(np.linalg.norm(r), rel=1e5 * eps)


def test_ends_where_the_quadratic_falls_slowly(operator_with):
    A, *_ = oracle = operator_with(STEEP)
    b, _ = oracle.vector(1)
    zero = jax.tree.map(jnp.zeros_like, b)
    loose, tight = (iterates(A, b, zero, tol=tol, max_steps=200) for tol in (0.1, 1e-4))
    assert 10 < loose.steps < tight.steps < 200
    # φ at step i − 10 and φ at the end differ by at most 10 tol of it.
    exact = iterates(A, b, zero, tol=0.0, max_steps=int(loose.steps) - 10)
    end, before = loose.values[loose.last], exact.values[exact.last]
    assert end - before > 10 * 0.1 * end


def test_a_start_at_the_solution_stays_there(operator_with, eps):
    A, M, unravel = oracle = operator_with(np.linspace(1, 5, 20))
    b, b_flat = oracle.vector(1)
    solution = np.linalg.solve(M, b_flat)
    start = unravel(jnp.asarray(solution, jax.tree.leaves(b)[0].dtype))
    found = iterates(A, b, start, max_steps=50)
    row = kept_rows(found, b)[-1]
    np.testing.assert_allclose(row, solution, atol=100 * eps * np.linalg.norm(solution))


def test_a_direction_of_negative_curvature_ends_the_steps(operator_with):
    A, *_ = oracle = operator_with(np.linspace(-1, 5, 30))
    b, _ = oracle.vector(1)
    found = iterates(A, b, jax.tree.map(jnp.zeros_like, b), max_steps=50)
    assert found.curvature <= 0
    assert found.steps < 30
    assert all(np.isfinite(row).all() for row in kept_rows(found, b))


def test_the_exact_inverse_as_preconditioner_takes_one_step(dtype, eps):
    scales = jnp.asarray([1.0, 10.0, 1e3, 1e4], dtype)
    A = gk.Operator(lambda v: scales * v, scales)
    M = gk.Operator(lambda v: v / scales, scales)
    found = iterates(A, jnp.ones_like(scales), jnp.zeros_like(scales), preconditioner=M)
    np.testing.assert_allclose(found.row(0, scales), 1 / scales, rtol=10 * eps)


def test_another_tree_is_refused(operator_with):
    A, *_ = operator_with(POSITIVE)
    with pytest.raises(ValueError, match="expected"):
        iterates(A, jnp.zeros(3), jnp.zeros(3))
