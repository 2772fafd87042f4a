from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.krylov import lanczos, three_term

SPECTRA = {
    "spread": np.linspace(-3, 10, 40),
    "outliers": np.concatenate([np.linspace(-0.1, 0.1, 35), [5, 20, 50, 80, 100]]),
    "multiple": np.repeat([1.0, 2.0, 3.0, 7.0], 10),
    "identity": np.ones(40),
    "zero": np.zeros(40),
    "rank one": np.eye(1, 40)[0],
}


def rows(V):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(V), np.float64)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_decomposition_holds(operator_with, eps, name, steps):
    A, M, _ = oracle = operator_with(SPECTRA[name])
    v0, _ = oracle.vector(1)
    s = lanczos.lanczos(A, v0, steps=steps, key=jax.random.key(2))
    V, T = rows(s.V), np.asarray(s.tridiagonal(), np.float64)
    r = float(s.residual) * flat(s.v)
    e = np.eye(steps)[-1]
    scale = max(np.abs(SPECTRA[name]).max(), 1)
    np.testing.assert_allclose(M @ V.T, V.T @ T + np.outer(r, e), atol=100 * eps * scale)
    np.testing.assert_allclose(V @ V.T, np.eye(steps), atol=50 * eps)
    assert s.step == steps


@pytest.mark.parametrize("name", SPECTRA)
def test_all_steps_give_all_eigenvalues_multiple_ones_included(operator_with, eps, name):
    A, M, _ = oracle = operator_with(SPECTRA[name])
    v0, _ = oracle.vector(1)
    s = lanczos.lanczos(A, v0, steps=40, key=jax.random.key(2))
    values = np.linalg.eigvalsh(np.asarray(s.tridiagonal(), np.float64))
    scale = max(np.abs(SPECTRA[name]).max(), 1)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(M), atol=200 * eps * scale)


def test_a_start_at_an_eigenvector_goes_on(operator_with, eps):
    A, M, unravel = operator_with(SPECTRA["spread"])
    dtype = A.domain["a"].dtype
    v0 = unravel(jnp.asarray(np.linalg.eigh(M)[1][:, 0], dtype))
    s = lanczos.lanczos(A, v0, steps=10, key=jax.random.key(0))
    V = rows(s.V)
    np.testing.assert_allclose(V @ V.T, np.eye(10), atol=1e3 * eps)
    assert np.isfinite(np.asarray(s.alpha)).all()
    assert s.alpha[0] == pytest.approx(-3, abs=1e3 * eps)
    assert np.abs(np.asarray(s.alpha[1:])).max() > 0.1


def test_both_drivers_give_the_same(operator_with, eps):
    A, *_ = oracle = operator_with(SPECTRA["outliers"])
    v0, _ = oracle.vector(1)
    key = jax.random.key(2)
    jitted = lanczos.lanczos(A, v0, steps=12, key=key)
    hosted = lanczos.lanczos(A, v0, steps=12, key=key, drive=gk.on_host)
    np.testing.assert_allclose(jitted.alpha, hosted.alpha, atol=1e4 * eps)
    np.testing.assert_allclose(jitted.beta, hosted.beta, atol=1e4 * eps)


@pytest.mark.parametrize("steps", [0, 41])
def test_steps_out_of_range_are_refused(operator_with, steps):
    A, *_ = oracle = operator_with(SPECTRA["spread"])
    with pytest.raises(ValueError, match=f"expected 1 to 40, the dimension, got {steps}"):
        lanczos.lanczos(A, oracle.vector(0)[0], steps=steps, key=jax.random.key(0))


def test_three_terms_agree_with_reorthogonalization_while_nothing_has_converged(operator_with, eps):
    A, *_ = oracle = operator_with(SPECTRA["spread"])
    v0, _ = oracle.vector(3)
    full = lanczos.lanczos(A, v0, steps=8, key=jax.random.key(0))
    s = three_term.init(v0, rows=8)
    vectors = []
    for _ in range(8):
        vectors.append(flat(s.v))
        s = three_term.step(A, s)
    np.testing.assert_allclose(s.alpha, full.alpha, atol=1e4 * eps)
    np.testing.assert_allclose(s.beta, full.beta, atol=1e4 * eps)
    np.testing.assert_allclose(np.array(vectors), rows(full.V), atol=1e5 * eps)


def test_every_step_of_three_terms_keeps_its_identity(operator_with, eps):
    A, M, _ = oracle = operator_with(SPECTRA["outliers"])
    s = three_term.init(oracle.vector(4)[0], rows=60)
    for j in range(60):
        before, v = flat(s.before), flat(s.v)
        following = three_term.step(A, s)
        beta = float(s.beta[j - 1]) if j else 0.0
        left = M @ v
        right = beta * before + float(following.alpha[j]) * v
        right = right + float(following.beta[j]) * flat(following.v)
        np.testing.assert_allclose(left, right, atol=100 * 100 * eps)
        s = following


def test_three_terms_end_quietly_when_the_space_is_exhausted(dtype):
    A = gk.Operator(lambda v: 2 * v, jnp.zeros(5, dtype))
    s = three_term.init(jnp.arange(1.0, 6.0, dtype=dtype), rows=6)
    for _ in range(6):
        s = three_term.step(A, s)
    np.testing.assert_allclose(s.alpha, [2, 0, 0, 0, 0, 0], rtol=1e-6)
    assert not np.asarray(s.beta).any()
    assert not flat(s.v).any()
