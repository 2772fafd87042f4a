from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.linalg

from gradkit.krylov.models import (
    Reduced,
    cubic_step,
    saddle_free_step,
    steihaug_step,
    trust_region_step,
)

SIZE = 8


def spread(rng):
    """A tridiagonal matrix, its entries over six orders of magnitude."""
    on, off = rng.normal(size=SIZE), np.abs(rng.normal(size=SIZE - 1))
    off = off * 10 ** rng.uniform(-3, 3)
    return np.diag(on * 10 ** rng.uniform(-3, 3)) + np.diag(off, 1) + np.diag(off, -1)


def positive(rng):
    T = spread(rng)
    return tridiagonal(T @ T.T)


def singular(rng):
    T = spread(rng) @ np.diag([1.0] * (SIZE - 1) + [0.0])
    return tridiagonal(T @ T.T)


def tridiagonal(A):
    """Of the same eigenvalues, with e₁ in its place."""
    T = np.triu(scipy.linalg.hessenberg(A), -1)
    return np.tril(T, 1)


def zero(rng):
    return np.zeros((SIZE, SIZE))


def hard(rng):
    """The lowest eigenvectors have no part in the gradient e₁."""
    return np.diag([1.0, *rng.normal(size=SIZE - 1) - 3])


def nearly_hard(rng):
    T = hard(rng)
    T[0, 1] = T[1, 0] = 1e-9 * rng.normal()
    return T


MATRICES = (spread, positive, singular, zero, hard, nearly_hard)


@pytest.fixture
def cases(dtype):
    """Matrices, gradient norms, and radii or weights over eight orders of magnitude."""
    rng = np.random.default_rng(7)
    T = np.stack([make(rng) for make in MATRICES for _ in range(20)])
    weights = 10 ** rng.uniform(-4, 4, size=(2, len(T)))
    return T.astype(dtype), *weights.astype(dtype)


@jax.jit
def in_ball(T, g_norm, radius):
    return trust_region_step(Reduced.of(T, g_norm), radius)


@jax.jit
def with_cube(T, g_norm, sigma):
    return cubic_step(Reduced.of(T, g_norm), sigma)


@jax.jit
def along_path(T, g_norm, radius):
    return steihaug_step(T, g_norm, radius, len(T))


def each(make, cases):
    """The cases, each with its step."""
    steps = jax.device_get(jax.jit(jax.vmap(make))(*cases))
    for number, case in enumerate(zip(*cases, strict=True)):
        yield *case, type(steps)(*(field[number] for field in steps))


class Wide:
    """A step and its matrix in float64."""

    def __init__(self, T, g_norm, step):
        self.T, self.h = np.asarray(T, float), np.asarray(step.h, float)
        self.shift, self.g = float(step.shift), float(g_norm)
        self.norm = np.linalg.norm(self.h)
        self.values = np.linalg.eigvalsh(self.T)
        self.top = np.abs(self.values).max()

        self.size = self.g + (self.top + self.shift) * self.norm
        """Of the terms of the residual: what its rounding is relative to."""

    def stationary(self, eps):
        """(T + λI) h = −e₁ g₁ and T + λI ⪰ 0, backward stable."""
        residual = self.T @ self.h + self.shift * self.h + self.g * np.eye(SIZE)[0]
        assert np.linalg.norm(residual) <= 10 * eps * self.size
        assert self.shift >= 0
        assert self.shift >= -self.values[0] - 10 * eps * self.top

    def reduces_by(self, reduction, eps, sigma=0.0):
        """The model falls by so much, to the residual along h."""
        quadratic = -self.g * self.h[0] - self.h @ self.T @ self.h / 2
        expected = quadratic - sigma * self.norm**3 / 3
        np.testing.assert_allclose(reduction, expected, atol=10 * eps * self.size * self.norm)


def test_a_trust_region_step_is_the_global_minimizer(cases, eps):
    for T, g_norm, radius, step in each(in_ball, cases):
        wide = Wide(T, g_norm, step)
        wide.stationary(eps)
        assert wide.norm <= radius * (1 + 10 * eps)
        if wide.shift > 100 * eps * wide.top:  # beyond rounding of T the ball is filled
            assert wide.norm == pytest.approx(radius, rel=10 * eps)
        wide.reduces_by(step.reduction, eps)
        assert step.norm == pytest.approx(wide.norm, rel=10 * eps)


def test_a_cubic_step_is_the_global_minimizer(cases, eps):
    for T, g_norm, sigma, step in each(with_cube, cases):
        wide = Wide(T, g_norm, step)
        wide.stationary(eps)
        assert wide.shift == pytest.approx(sigma * wide.norm, rel=100 * eps)
        wide.reduces_by(step.reduction, eps, float(sigma))


def test_a_steihaug_step_lies_on_the_path_of_conjugate_gradients(cases, eps):
    best = [step.reduction for *_, step in each(in_ball, cases)]
    for (T, g_norm, radius, step), most in zip(each(along_path, cases), best, strict=True):
        wide = Wide(T, g_norm, step)
        assert wide.norm <= radius * (1 + 10 * eps)
        wide.reduces_by(step.reduction, eps)
        curvature = float(T[0, 0])  # at least as low as the Cauchy point
        far = float(radius) if curvature <= 0 else min(float(radius), wide.g / curvature)
        cauchy = wide.g * far - curvature * far**2 / 2
        assert step.reduction >= cauchy * (1 - 100 * eps)
        assert step.reduction <= most + 10 * eps * wide.size * wide.norm


def test_steihaug_takes_newtons_step_inside_and_half_of_the_best_reduction_outside(dtype, eps):
    """Yuan (2000): for a positive definite matrix, at least half."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        on = 2 + rng.uniform(size=SIZE)
        off = rng.uniform(size=SIZE - 1)
        T = (np.diag(on) + np.diag(off, 1) + np.diag(off, -1)).astype(dtype)
        newton = -np.linalg.solve(T.astype(float), np.eye(SIZE)[0])
        inside = along_path(T, dtype.type(1), dtype.type(1e3))
        np.testing.assert_allclose(inside.h, newton, atol=100 * eps)
        for share in (0.9, 0.5, 0.01):
            radius = dtype.type(share * np.linalg.norm(newton))
            path, best = (f(T, dtype.type(1), radius) for f in (along_path, in_ball))
            assert best.reduction / 2 <= path.reduction <= best.reduction * (1 + 10 * eps)
            assert path.norm == pytest.approx(radius, rel=10 * eps)


def test_the_hard_case_goes_along_the_lowest_eigenvector_to_the_boundary(dtype, eps):
    T = np.diag([1.0, -2.0, 3.0]).astype(dtype)
    step = in_ball(T, dtype.type(1), dtype.type(5))
    assert step.shift == pytest.approx(2.0, rel=eps)
    expected = [-1 / 3, np.sqrt(25 - 1 / 9), 0]
    np.testing.assert_allclose(np.abs(step.h), np.abs(expected), atol=20 * eps)
    cubic = with_cube(T, dtype.type(1), dtype.type(0.5))
    assert cubic.norm == pytest.approx(4.0, rel=10 * eps)  # λ = 2 = σ ‖h‖
    assert cubic.h[0] == pytest.approx(-1 / 3, rel=10 * eps)


def test_a_singular_matrix_has_the_step_of_minimal_norm(dtype, eps):
    T = np.diag([2.0, 0.0, 3.0]).astype(dtype)
    step = in_ball(T, dtype.type(1), dtype.type(100))
    np.testing.assert_allclose(step.h, [-0.5, 0, 0], atol=10 * eps)
    flat = in_ball(0 * T, dtype.type(2), dtype.type(100))
    np.testing.assert_allclose(flat.h, [-100.0, 0, 0], rtol=10 * eps)
    assert flat.reduction == pytest.approx(200, rel=10 * eps)


@pytest.mark.slow
def test_rows_that_are_not_done_have_no_part(dtype, eps):
    rng = np.random.default_rng(5)
    for m in (12, 80):  # beyond a size, few rows have a smaller matrix of their own
        T = np.diag(rng.normal(size=m))
        T[:5, :5] = spread(rng)[:5, :5]
        T[5:, 5:] = np.eye(m - 5) * 1.1 * np.abs(T).sum(axis=1).max()
        T = T.astype(dtype)
        for make in (trust_region_step, cubic_step):
            step = jax.jit(lambda T, g, rows, make=make: make(Reduced.of(T, g, rows), g / 10))(
                T, dtype.type(3), 5
            )
            expected = jax.jit(lambda T, g, make=make: make(Reduced.of(T, g), g / 10))(
                T[:5, :5], dtype.type(3)
            )
            scale = np.linalg.norm(expected.h)
            np.testing.assert_allclose(step.h[:5], expected.h, atol=1e3 * eps * scale)
            np.testing.assert_array_equal(step.h[5:], 0)


def test_a_saddle_free_step_takes_eigenvalues_by_magnitude(dtype, eps):
    rng = np.random.default_rng(2)
    T = np.diag(rng.normal(size=SIZE)) + 0.1
    values, vectors = np.linalg.eigh(T)
    for damping, reach in ((0.0, np.inf), (0.5, np.inf), (0.0, 0.3)):
        reduced = Reduced.of(T.astype(dtype), dtype.type(2))
        step = saddle_free_step(reduced, dtype.type(damping), dtype.type(reach))
        u = np.clip(2 * vectors[0] / (np.abs(values) + damping), -reach, reach)
        scale = np.linalg.norm(u) * np.abs(values).max() / np.abs(values).min()
        np.testing.assert_allclose(step, -vectors @ u, atol=10 * eps * scale)
    flat = saddle_free_step(Reduced.of(0 * T.astype(dtype), dtype.type(2)), 0.0, 3.0)
    np.testing.assert_allclose(flat, [-3.0, *[0.0] * (SIZE - 1)], atol=10 * eps)


def test_steps_do_not_depend_on_the_unit_of_the_loss(dtype, eps):
    rng = np.random.default_rng(4)
    T, tiny = spread(rng).astype(dtype), dtype.type(2.0**-40)
    for make, weight in ((in_ball, dtype.type(1)), (along_path, dtype.type(1)), (with_cube, tiny)):
        step = make(T, dtype.type(1), dtype.type(0.1))
        small = make(tiny * T, tiny, weight * dtype.type(0.1))
        np.testing.assert_allclose(small.h, step.h, rtol=100 * eps, atol=100 * eps * step.norm)
        np.testing.assert_allclose(small.reduction, tiny * step.reduction, rtol=1e3 * eps)
