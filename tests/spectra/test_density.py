from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import gradkit as gk

BULK = np.concatenate([np.random.default_rng(0).normal(size=110) ** 2, [8, 11, 15, 30.0, 42]])


def mean_w1(nodes, weights, eigenvalues):
    nodes, weights = np.asarray(nodes, float), np.asarray(weights, float)
    return wasserstein_distance(nodes.ravel(), eigenvalues, weights.ravel() / len(nodes))


@pytest.mark.parametrize("drive", [gk.in_jit, gk.on_host])
def test_a_probe_is_a_gauss_quadrature_of_the_operator(operator_with, eps, drive):
    A, M, _ = operator_with(BULK)
    d = gk.density(A, key=jax.random.key(0), probes=200, steps=12, drive=drive)
    assert d.nodes.shape == d.weights.shape == (200, 12)
    assert d.products == 2400
    np.testing.assert_allclose(d.weights.sum(axis=1), 1, atol=50 * eps)
    nodes, weights = np.asarray(d.nodes, float), np.asarray(d.weights, float)
    for power in (1, 2, 5):
        estimates = np.sum(weights * nodes**power, axis=1)
        error = np.std(estimates, ddof=1) / np.sqrt(200)
        truth = np.trace(np.linalg.matrix_power(M, power)) / len(M)
        assert abs(estimates.mean() - truth) < 4 * error + 1e4 * eps * truth


def test_as_many_steps_as_dimensions_give_the_eigenvalues(operator_with, eps):
    eigenvalues = np.array([-4.0, -1, 0, 2, 3, 5, 8, 13, 21])
    A, *_ = operator_with(eigenvalues)
    d = gk.density(A, key=jax.random.key(0), probes=3, steps=9)
    error = np.asarray(d.weights) * np.abs(np.asarray(d.nodes) - eigenvalues)
    assert error.sum(axis=1).max() <= 100 * eps * 21


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "probes"), [(5, 2), (20, 4), (60, 10)])
def test_the_bound_covers_the_true_distance_at_its_stated_rate(operator_with, steps, probes):
    A, M, _ = operator_with(BULK)
    exact = np.linalg.eigvalsh(M)
    many = jax.jit(
        jax.vmap(functools.partial(_density, A, probes=probes, steps=steps)),
    )(jax.random.split(jax.random.key(7), 100))
    covered = [
        mean_w1(nodes, weights, exact) <= bound
        for nodes, weights, bound in zip(many.nodes, many.weights, many.w1_bound, strict=True)
    ]
    assert np.mean(covered) >= 0.95


def _density(A, key, *, probes, steps):
    return gk.density(A, key=key, probes=probes, steps=steps)


@pytest.mark.slow
def test_the_bound_shrinks_with_steps_and_probes(operator_with):
    A, *_ = operator_with(BULK)
    bounds = [
        float(gk.density(A, key=jax.random.key(0), probes=p, steps=s).w1_bound)
        for p, s in ((2, 5), (2, 40), (20, 40))
    ]
    assert bounds[0] > bounds[1] > bounds[2]


@pytest.mark.slow
def test_the_curve_is_a_density_with_its_spread(operator_with):
    A, *_ = operator_with(BULK)
    d = gk.density(A, key=jax.random.key(0), probes=6, steps=30)
    low, high = d.support
    grid = jnp.linspace(low - 6 * d.width, high + 6 * d.width, 4000)
    curve, spread = d.curve(grid), d.spread(grid)
    assert jnp.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert (curve >= 0).all()
    assert (spread >= 0).all()
    assert spread.max() > 0
    wide = d.curve(grid, width=3.0)
    assert wide.max() < curve.max()


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0])
def test_a_single_point_is_a_narrow_peak_without_error(operator_with, value):
    A, *_ = operator_with(np.full(20, value))
    d = gk.density(A, key=jax.random.key(0), probes=4, steps=10)
    assert d.w1_bound <= 1e-4
    grid = jnp.linspace(value - 10 * d.width, value + 10 * d.width, 2001)
    assert jnp.trapezoid(d.curve(grid), grid) == pytest.approx(1, abs=1e-3)
    assert grid[jnp.argmax(d.curve(grid))] == pytest.approx(value, abs=1e-2)


def test_more_steps_than_dimensions_stay_inside_the_spectrum(operator_with):
    eigenvalues = np.linspace(2, 3, 10)
    A, *_ = operator_with(eigenvalues)
    d = gk.density(A, key=jax.random.key(0), probes=5, steps=40)
    assert d.nodes.min() >= 2 - 1e-4
    assert d.nodes.max() <= 3 + 1e-4
    assert mean_w1(d.nodes, d.weights, eigenvalues) <= d.w1_bound


@pytest.mark.parametrize("arguments", [{"probes": 0}, {"steps": 0}])
def test_counts_below_one_are_refused(operator_with, arguments):
    A, *_ = operator_with(np.ones(8))
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}: expected at least 1, got 0"):
        gk.density(A, key=jax.random.key(0), **arguments)
