"""What estimates claim of their errors, over many keys, where the truth has a formula."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import wasserstein_distance

import gradkit as gk

SIDE = 7  # of the square Laplacian

pytestmark = pytest.mark.parametrize("dtype", ["float32"], indirect=True)


def diagonal(values, dtype):
    d = jnp.asarray(values, dtype)
    return gk.Operator(Partial(jnp.multiply, d), d)


def laplacian(side, dtype):
    return gk.Operator(_laplacian, jax.ShapeDtypeStruct((side, side), dtype))


def _laplacian(v):
    padded = jnp.pad(v, 1)
    return 4 * v - padded[2:, 1:-1] - padded[:-2, 1:-1] - padded[1:-1, 2:] - padded[1:-1, :-2]


def laplacian_eigenvalues(side):
    line = 2 - 2 * np.cos(np.arange(1, side + 1) * np.pi / (side + 1))
    return np.sort(np.add.outer(line, line).ravel())


LAPLACIAN = laplacian_eigenvalues(SIDE)
STRAKOS = 0.1 + np.arange(48) / 47 * 99.9 * 0.8 ** np.arange(47, -1, -1)
MULTIPLE = np.repeat([-1.0, 0.0, 0.5, 4.0], [10, 25, 10, 3])


def over_keys(estimate, *operators, keys):
    """What `estimate(A, key=key)` gives for many keys, with a leading axis, for each operator."""
    run = jax.jit(lambda A, keys: jax.lax.map(lambda key: estimate(A, key=key), keys))
    keys = jax.random.split(jax.random.key(11), keys)
    return [jax.tree.map(np.asarray, run(A, keys)) for A in operators]


@pytest.mark.parametrize(
    ("estimate", "truth"),
    [
        (functools.partial(gk.trace, tol=0.0, max_products=16, method="hutchinson"), 4 * SIDE**2),
        (functools.partial(gk.trace, tol=0.0, max_products=24), 4 * SIDE**2),
        (functools.partial(gk.trace, tol=0.0, max_products=24, method="xtrace"), 4 * SIDE**2),
        (functools.partial(gk.diagonal, probes=16), np.full(SIDE**2, 4.0)),
        (
            functools.partial(gk.frobenius_norm, tol=0.0, max_products=16),
            np.sqrt(20 * SIDE**2 - 4 * SIDE),
        ),
        (functools.partial(gk.logdet, probes=8, steps=16), np.sum(np.log(LAPLACIAN))),
    ],
    ids=["hutchinson", "hutch++", "xtrace", "diagonal", "frobenius_norm", "logdet"],
)
def test_two_standard_errors_cover_a_laplacian(dtype, estimate, truth):
    """At a true coverage of 0.95 less than 0.9 of 200 keys has a probability of 1e-3."""
    (found,) = over_keys(estimate, laplacian(SIDE, dtype), keys=200)
    value, stderr = (x.reshape(200, -1).astype(float) for x in (found.value, found.stderr))
    assert np.mean(np.abs(value - truth) <= 2 * stderr, axis=0).min() >= 0.9
    assert np.mean(np.abs(value - truth)) >= np.mean(stderr) / 2  # nor is it far too wide


@pytest.mark.parametrize(("probes", "steps"), [(1, 1), (3, 1), (1, 2), (8, 20), (2, 60)])
def test_the_bound_of_a_density_covers(dtype, probes, steps):
    estimate = functools.partial(gk.density, probes=probes, steps=steps)
    spectra = (STRAKOS, MULTIPLE)
    operators = (diagonal(exact, dtype) for exact in spectra)
    for exact, found in zip(spectra, over_keys(estimate, *operators, keys=100), strict=True):
        distances = [
            wasserstein_distance(nodes.ravel(), exact, weights.ravel().astype(float))
            for nodes, weights in zip(found.nodes, found.weights, strict=True)
        ]
        assert np.mean(distances <= found.w1_bound) >= 0.95


@pytest.mark.slow
def test_the_interval_of_a_small_condition_number_always_covers(dtype):
    spectra = (STRAKOS, np.linspace(-3, 5, 48), np.geomspace(1e-4, 1, 48), -np.linspace(1, 9, 48))
    spectra = [exact.astype(dtype) for exact in spectra]
    operators = (diagonal(exact, dtype) for exact in spectra)
    for exact, found in zip(
        spectra, over_keys(gk.condition_number, *operators, keys=100), strict=True
    ):
        truth = np.abs(exact).max() / np.abs(exact).min()
        assert ((found.lower <= truth) & (truth <= found.upper)).all()
        assert (found.upper <= 1.5 * found.lower).all()


def test_the_interval_of_a_large_condition_number_knows_what_it_does_not_know(dtype):
    """With the next eigenvalue close to the smallest, both bounds; crowded there, the lower one."""
    close = np.concatenate([[0.4], np.linspace(0.41, 2, 500)])
    crowded = np.geomspace(1e-3, 1, 501)
    for exact, known in ((close, True), (crowded, False)):
        A, truth = diagonal(exact, dtype), exact[-1] / exact[0]
        for seed in range(5):
            interval = gk.condition_number(A, key=jax.random.key(seed))
            assert interval.lower <= truth <= interval.upper
            assert interval.lower >= truth / 10
            assert np.isfinite(interval.upper) == known


@pytest.mark.parametrize(("name", "which"), [("strakos", "LM"), ("multiple", "BE")])
def test_an_eigenvalue_lies_within_every_residual(dtype, eps, name, which):
    exact = {"strakos": STRAKOS, "multiple": MULTIPLE}[name]
    A = diagonal(exact, dtype)
    estimate = functools.partial(gk.eigsh, k=4, which=which, tol=1e-4, max_products=24)
    (found,) = over_keys(estimate, A, keys=100)
    values, residuals = found.values.astype(float), found.residuals.astype(float)
    scale = np.abs(exact).max()
    distance = np.abs(exact[:, None, None] - values).min(axis=0)
    assert (distance <= residuals + 20 * eps * scale).all()
    assert (residuals[found.converged] <= 1.01e-4 * scale).all()
    assert np.abs(values).max() <= scale * (1 + 20 * eps)


def test_a_converged_largest_eigenvalue_is_the_largest(dtype, eps):
    exact = np.concatenate([np.linspace(0, 1, 87), [1.02, 1.04, 1.06]]).astype(dtype)
    estimate = functools.partial(gk.eigsh, k=3, tol=1e-3, max_products=53)
    (found,) = over_keys(estimate, diagonal(exact, dtype), keys=100)
    assert found.converged.all()
    assert (np.abs(found.values - exact[-3:]) <= found.residuals + 20 * eps).all()


def test_a_minimum_is_never_claimed_over_a_negative_eigenvalue(dtype):
    """100 steps for 501 dimensions; −0.001 stands alone but for 0.001, or before a crowd."""
    alone = np.concatenate([[-1e-3, 1e-3], np.linspace(0.5, 1, 499)])
    crowded = np.concatenate([[-1e-3], np.linspace(1e-3, 1, 500)])
    for exact in (alone, crowded):
        A, grad = diagonal(exact, dtype), jnp.zeros(501, dtype)
        for seed in range(5):
            point = gk.critical_point(A, grad, key=jax.random.key(seed))
            assert (point.kind, point.negative) == ("saddle", 1), point.evidence
