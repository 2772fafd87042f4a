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


def assert_decomposition(s, A, M, atol):
    """`A V = V T + R C` with orthonormal [V R], R none where V spans the space."""
    j, n = int(s.step), A.dimension
    basis = rows(s.basis)[: min(j + s.block, n)]
    V, R = basis[:j], basis[j:]
    T = np.asarray(s.projection(), np.float64)[:j, :j]
    C = np.asarray(s.coupling, np.float64)[: len(R), :j]
    np.testing.assert_allclose(M @ V.T, V.T @ T + R.T @ C, atol=atol)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=atol)


def scale(name):
    return max(np.abs(SPECTRA[name]).max(), 1)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("steps", "block"), [(1, 1), (7, 1), (40, 1), (1, 3), (20, 3), (40, 3)])
def test_the_decomposition_holds(operator_with, eps, name, steps, block):
    A, M, _ = oracle = operator_with(SPECTRA[name])
    v0, flat_v0 = oracle.vector(1)
    s = lanczos.lanczos(A, v0, steps=steps, key=jax.random.key(2), block=block)
    assert_decomposition(s, A, M, atol=100 * eps * scale(name))
    assert s.step == steps
    np.testing.assert_allclose(rows(s.basis)[0], flat_v0 / np.linalg.norm(flat_v0), atol=10 * eps)


def test_one_start_gives_a_tridiagonal_projection_several_a_band(operator_with, eps):
    A, *_ = oracle = operator_with(SPECTRA["spread"])
    for block in (1, 3):
        v0, _ = oracle.vector(1)
        s = lanczos.lanczos(A, v0, steps=20, key=jax.random.key(2), block=block)
        T = np.asarray(s.projection())
        outside = np.abs(np.subtract.outer(np.arange(20), np.arange(20))) > block
        np.testing.assert_allclose(T[outside], 0, atol=100 * 10 * eps)
        assert np.abs(np.diagonal(T, block)).min() > 0.01


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", SPECTRA)
def test_all_steps_give_all_eigenvalues_multiple_ones_included(operator_with, eps, name, block):
    A, M, _ = oracle = operator_with(SPECTRA[name])
    v0, _ = oracle.vector(1)
    s = lanczos.lanczos(A, v0, steps=40, key=jax.random.key(2), block=block)
    values = np.linalg.eigvalsh(np.asarray(s.projection(), np.float64))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(M), atol=200 * eps * scale(name))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2])
def test_a_restart_keeps_the_decomposition_and_the_steps_go_on(operator_with, eps, block):
    A, M, _ = oracle = operator_with(SPECTRA["outliers"])
    s = lanczos.lanczos(A, oracle.vector(1)[0], steps=12, key=jax.random.key(2), block=block)
    theta, S = np.linalg.eigh(np.asarray(s.projection()))
    for _ in range(3):
        kept = lanczos.restarted(s, jnp.asarray(theta[-5:]), jnp.asarray(S[:, -5:]), s.began)
        assert kept.step == 5
        assert_decomposition(kept, A, M, atol=100 * 100 * eps)
        s = gk.in_jit(lanczos.step, A, kept, until=lanczos.stops)
        assert_decomposition(s, A, M, atol=100 * 100 * eps)
        theta, S = np.linalg.eigh(np.asarray(s.projection()))
    np.testing.assert_allclose(theta[-5:], SPECTRA["outliers"][-5:], rtol=1e3 * eps)


@pytest.mark.slow
def test_room_for_more_rows_changes_nothing(operator_with, eps):
    A, M, _ = oracle = operator_with(SPECTRA["spread"])
    s = lanczos.lanczos(A, oracle.vector(1)[0], steps=8, key=jax.random.key(2), block=2)
    more = lanczos.extended(s, rows=14)
    assert_decomposition(more, A, M, atol=1e3 * eps)
    more = gk.in_jit(lanczos.step, A, more, until=lanczos.stops)
    whole = lanczos.lanczos(A, oracle.vector(1)[0], steps=14, key=jax.random.key(2), block=2)
    np.testing.assert_allclose(more.H, whole.H, atol=1e5 * eps)


def test_a_start_at_an_eigenvector_goes_on(operator_with, eps):
    A, M, unravel = operator_with(SPECTRA["spread"])
    dtype = A.domain["a"].dtype
    v0 = unravel(jnp.asarray(np.linalg.eigh(M)[1][:, 0], dtype))
    s = lanczos.lanczos(A, v0, steps=10, key=jax.random.key(0))
    assert_decomposition(s, A, M, atol=1e3 * eps)
    alpha = np.diag(s.projection())
    assert alpha[0] == pytest.approx(-3, abs=1e3 * eps)
    assert np.abs(alpha[1:]).max() > 0.1


def test_both_drivers_give_the_same(operator_with, eps):
    A, *_ = oracle = operator_with(SPECTRA["outliers"])
    v0, _ = oracle.vector(1)
    key = jax.random.key(2)
    jitted = lanczos.lanczos(A, v0, steps=12, key=key)
    hosted = lanczos.lanczos(A, v0, steps=12, key=key, drive=gk.on_host)
    np.testing.assert_allclose(jitted.H, hosted.H, atol=1e4 * eps)


@pytest.mark.slow
def test_a_narrow_basis_holds_the_decomposition_to_its_own_precision(operator_with):
    A, M, _ = operator_with(SPECTRA["spread"])
    s = lanczos.init(A, None, jax.random.key(0), rows=12, dtype=jnp.bfloat16)
    s = gk.in_jit(lanczos.step, A, s, until=lanczos.stops)
    assert {x.dtype for x in jax.tree.leaves(s.basis)} == {jnp.dtype(jnp.bfloat16)}
    assert_decomposition(s, A, M, atol=2**-7 * scale("spread"))


@pytest.mark.parametrize("steps", [0, 41])
def test_steps_out_of_range_are_refused(operator_with, steps):
    A, *_ = oracle = operator_with(SPECTRA["spread"])
    with pytest.raises(ValueError, match=f"expected 1 to 40, the dimension, got {steps}"):
        lanczos.lanczos(A, oracle.vector(0)[0], steps=steps, key=jax.random.key(0))


@pytest.mark.slow
def test_three_terms_agree_with_reorthogonalization_while_nothing_has_converged(operator_with, eps):
    A, *_ = oracle = operator_with(SPECTRA["spread"])
    v0, _ = oracle.vector(3)
    full = lanczos.lanczos(A, v0, steps=8, key=jax.random.key(0))
    s = three_term.init(v0, rows=8)
    vectors = []
    for _ in range(8):
        vectors.append(flat(s.v))
        s = three_term.step(A, s)
    np.testing.assert_allclose(s.alpha, np.diag(full.projection()), atol=1e4 * eps)
    np.testing.assert_allclose(s.beta[:-1], np.diag(full.projection(), 1), atol=1e4 * eps)
    assert s.beta[-1] == pytest.approx(float(full.coupling[0, -1]), abs=1e4 * eps)
    np.testing.assert_allclose(np.array(vectors), rows(full.basis)[:8], atol=1e5 * eps)


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
