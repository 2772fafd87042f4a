"""Models whose Hessian is a formula: its eigenvalues, its zeros, the kind of its critical point."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk

KEY = jax.random.key(0)

single = pytest.mark.parametrize("dtype", ["float32"], indirect=True)
double = pytest.mark.parametrize("dtype", ["float64"], indirect=True)


@pytest.mark.slow
@single
def test_softmax_regression_is_flat_along_the_shifts_of_its_logits(dtype, eps):
    """One zero mode for each feature and one for the bias, and no other.

    Every x comes with every label, so that equal probabilities are the minimum.
    """
    features, classes = 4, 3
    x = np.repeat(np.random.default_rng(0).normal(size=(20, features)), classes, axis=0)
    batch = {"x": jnp.asarray(x, dtype), "label": jnp.tile(jnp.arange(classes), 20)}
    params = {"b": jnp.zeros(classes, dtype), "w": jnp.zeros((features, classes), dtype)}

    def predict(params, batch):
        return batch["x"] @ params["w"] + params["b"]

    def criterion(logits, batch):
        taken = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1)
        return -jnp.mean(taken)

    problem = gk.Problem(predict=predict, criterion=criterion)
    ones = np.column_stack([np.ones(len(x)), x])
    single_output = np.eye(classes) / classes - 1 / classes**2
    exact = np.kron(ones.T @ ones / len(x), single_output)
    rounding = 20 * eps * np.linalg.norm(exact, 2)
    H, G = (make(problem, params, batch) for make in (gk.hessian, gk.gauss_newton))

    point = gk.observe(problem, params, batch)
    found = gk.critical_point(H, point.grad, key=KEY)
    assert (found.kind, found.negative) == ("degenerate", 0)
    pairs = gk.eigsh(H, H.dimension, key=KEY, tol=50 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(exact), atol=rounding)
    assert np.sum(np.abs(pairs.values) <= found.resolution) == features + 1
    v = jax.tree.map(lambda x: x[-1], pairs.vectors)
    product, flat = ravel_pytree(G @ v)[0], np.asarray(ravel_pytree(v)[0], float)
    np.testing.assert_allclose(product, exact @ flat, atol=rounding)
    zero = jax.tree.map(lambda v: v[: features + 1], pairs.vectors)
    for leaf in jax.tree.leaves(zero):  # the same for every class
        np.testing.assert_allclose(leaf - leaf[..., :1], 0, atol=1e3 * eps)


@pytest.mark.slow
@single
def test_least_squares_has_the_squares_of_the_singular_values(dtype, eps):
    features = 60
    rng = np.random.default_rng(2)
    X = rng.normal(size=(2 * features, features)) * np.linspace(1, 3, features)
    batch = {"x": jnp.asarray(X, dtype), "y": jnp.asarray(rng.normal(size=2 * features), dtype)}

    def loss(params, batch):
        residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return jnp.sum(residual**2) / (2 * residual.size)

    params = {"b": jnp.zeros((), dtype), "w": jnp.zeros(features, dtype)}
    A = gk.hessian(loss, params, batch)
    exact = np.linalg.svd(np.column_stack([np.ones(len(X)), X]), compute_uv=False)[::-1] ** 2
    exact /= len(X)
    pairs = gk.eigsh(A, 4, which="BE", key=KEY, tol=1e-5)
    assert pairs.converged.all()
    errors = np.abs(np.asarray(pairs.values) - exact[[0, 1, -2, -1]])
    assert (errors <= np.asarray(pairs.residuals) + 20 * eps * exact[-1]).all()
    interval = gk.condition_number(A, key=KEY)
    kappa = exact[-1] / exact[0]
    assert interval.lower <= kappa <= interval.upper
    assert interval.value == pytest.approx(kappa, rel=1e3 * eps * kappa)


def linear_network(widths, dtype):
    """‖W_L ⋯ W_1 − S‖² / 2 at W = 0, where S has the singular values 3, 2, 1."""
    S = np.zeros((widths[-1], widths[0]))
    np.fill_diagonal(S, [3, 2, 1])
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in S.shape)
    S = jnp.asarray(U @ S @ V.T, dtype)

    def loss(params, batch):
        product = jnp.eye(widths[0], dtype=dtype)
        for W in params:
            product = jnp.matmul(W, product, precision="highest")
        return jnp.sum((product - S) ** 2) / 2

    params = [jnp.zeros(shape, dtype) for shape in zip(widths[1:], widths[:-1], strict=True)]
    return gk.hessian(loss, params, None), gk.observe(gk.Problem(loss), params, None).grad


@pytest.mark.slow
@double
def test_two_linear_layers_have_a_saddle_at_zero(dtype, eps):
    """Each singular value ±σ, once for each hidden unit; the rest is flat."""
    hidden = 4
    A, grad = linear_network((5, hidden, 3), dtype)
    sigma = np.repeat([1.0, 2.0, 3.0], hidden)
    exact = np.sort(np.concatenate([-sigma, np.zeros(2 * hidden), sigma]))
    pairs = gk.eigsh(A, A.dimension, key=KEY, tol=50 * eps)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values, exact, atol=20 * eps * 3)
    point = gk.critical_point(A, grad, key=KEY)
    assert (point.kind, point.negative, point.gradient_norm) == ("saddle", 3 * hidden, 0)


@pytest.mark.slow
@single
def test_three_linear_layers_are_flat_to_second_order_at_zero(dtype):
    A, grad = linear_network((5, 4, 4, 3), dtype)
    point = gk.critical_point(A, grad, key=KEY)
    assert (point.kind, point.negative, point.resolution) == ("degenerate", 0, 0)
    assert point.ends.converged.all()
    assert not np.any(point.ends.values)
    assert not np.any(point.ends.residuals)
