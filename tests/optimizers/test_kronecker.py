from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.kronecker import Cut, every_matrix

BOTH = pytest.mark.parametrize("factory", [gk.scale_by_shampoo, gk.scale_by_soap])


def draws(shape, count, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=shape))  # unequal, so that no two eigenvalues are near
    return [np.asarray(scales * rng.normal(size=shape), dtype) for _ in range(count)]


def updated(tx, gradients, like=None):
    """The update of each gradient in turn, and the last state."""
    like = gradients[0] if like is None else like
    state, found = tx.init(jax.tree.map(jnp.asarray, like)), []
    step = jax.jit(tx.update)
    for g in gradients:
        u, state = step(jax.tree.map(jnp.asarray, g), state)
        found.append(u)
    return found, state


def unfolded(g, axis):
    return np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)


def times(g, matrices):
    """g multiplied along each of its axes by a matrix."""
    for axis, P in enumerate(matrices):
        g = np.moveaxis(np.tensordot(P, g, axes=(1, axis)), 0, axis)
    return g


def soap_by_the_paper(gradients, every, b1=0.95, b2=0.95, eps=1e-8):
    shape = gradients[0].shape
    M, V = np.zeros(shape), np.zeros(shape)
    factors = [np.zeros((n, n)) for n in shape]
    bases = []
    for t, G in enumerate(gradients):
        M = b1 * M + (1 - b1) * G
        grams = [unfolded(G, k) @ unfolded(G, k).T for k in range(G.ndim)]
        factors = [b2 * L + (1 - b2) * gram for L, gram in zip(factors, grams, strict=True)]
        if t == 0:
            bases = [np.linalg.eigh(L)[1][:, ::-1] for L in factors]
        elif t % every == 0:
            for k, (L, Q) in enumerate(zip(factors, bases, strict=True)):
                order = np.argsort(-np.diag(Q.T @ L @ Q))
                V = np.take(V, order, axis=k)
                bases[k] = np.linalg.qr((L @ Q)[:, order])[0]
        back = [Q.T for Q in bases]
        V = b2 * V + (1 - b2) * times(G, back) ** 2
        c1, c2 = 1 - b1 ** (t + 1), 1 - b2 ** (t + 1)
        adam = G / (np.abs(G) + eps)
        N = times(M, back) / c1 / (np.sqrt(V / c2) + eps)
        yield adam if t == 0 else times(N, bases)


def shampoo_by_the_paper(gradients, every, b1=0.9, b2=0.999):
    shape = gradients[0].shape
    M, factors, roots = np.zeros(shape), [np.zeros((n, n)) for n in shape], []
    for t, G in enumerate(gradients):
        M = b1 * M + (1 - b1) * G
        grams = [unfolded(G, k) @ unfolded(G, k).T for k in range(G.ndim)]
        factors = [b2 * L + (1 - b2) * gram for L, gram in zip(factors, grams, strict=True)]
        if t % every == 0:
            roots = []
            for L in factors:
                values, Q = np.linalg.eigh(L / (1 - b2 ** (t + 1)))
                values = np.maximum(values, 0) + 1e-6 * values[-1]
                roots.append((Q * values ** (-1 / (2 * G.ndim))) @ Q.T)
        yield times(M / (1 - b1 ** (t + 1)), roots)


@pytest.mark.parametrize("shape", [(5, 5), (3, 4, 5)])  # of full rank, or bases are not unique
def test_soap_is_the_papers_recurrence(shape):
    with jax.enable_x64(True):
        gradients = draws(shape, 12)
        found, _ = updated(gk.scale_by_soap(every=3), gradients)
        for u, expected in zip(found, soap_by_the_paper(gradients, 3), strict=True):
            np.testing.assert_allclose(u, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 5)])
def test_shampoo_without_grafting_is_the_papers_recurrence(shape):
    with jax.enable_x64(True):
        gradients = draws(shape, 8)
        found, _ = updated(gk.scale_by_shampoo(every=3, grafting=False), gradients)
        for u, expected in zip(found, shampoo_by_the_paper(gradients, 3), strict=True):
            np.testing.assert_allclose(u, expected, rtol=1e-9, atol=1e-9)


def test_the_first_update_of_shampoo_is_the_orthogonal_factor_of_the_gradient():
    (G,) = draws((5, 5), 1, dtype="float32")
    (u,), _ = updated(gk.scale_by_shampoo(grafting=False), [G])
    U, s, Vt = np.linalg.svd(np.asarray(G, np.float64))
    damped = s / np.sqrt(s**2 + 1e-6 * s[0] ** 2)  # (s² + ridge)^(-1/4), twice, times s
    np.testing.assert_allclose(u, (U * damped) @ Vt, atol=1e-3)


def test_soap_is_adam_in_coordinates_that_turn_with_the_gradients():
    """U G Vᵀ in the place of G turns the updates alike, once there are bases."""
    with jax.enable_x64(True):
        gradients = draws((4, 5), 8)
        rng = np.random.default_rng(1)
        U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (4, 5))
        plain, _ = updated(gk.scale_by_soap(every=2), gradients)
        turned, _ = updated(gk.scale_by_soap(every=2), [U @ G @ V.T for G in gradients])
        for u, v in zip(plain[1:], turned[1:], strict=True):
            np.testing.assert_allclose(v, U @ np.asarray(u) @ V.T, atol=1e-6)


@BOTH
def test_vectors_and_leaves_without_axes_are_adams(factory):
    gradients = [{"v": g[:, 0], "m": g, "s": g[0, 0]} for g in draws((4, 3), 4, dtype="float32")]
    tx = factory(b1=0.9, b2=0.99, axes=lambda path, shape: ())
    found, state = updated(tx, gradients)
    expected, _ = updated(gk.scale_by_adam(b1=0.9, b2=0.99), gradients)
    assert not jax.tree.leaves((state.factors, state.matrices))
    for u, a in zip(found, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), u, a)


def test_which_axes_have_a_factor():
    assert every_matrix("w", (4, 3)) == (0, 1)
    assert every_matrix("k", (3, 3, 1, 8)) == (0, 1, 3)
    assert every_matrix("b", (4,)) == every_matrix("b", (1, 4)) == every_matrix("s", ()) == ()
    params = {"table": jnp.ones((20, 4)), "w": jnp.ones((4, 4))}
    tx = gk.scale_by_soap(axes=lambda path, shape: (-1,) if path == "table" else (0, 1))
    shapes = jax.tree.map(jnp.shape, tx.init(params).factors)
    assert shapes == {"table": ((1, 4, 4),), "w": ((1, 4, 4), (1, 4, 4))}


def test_grafting_gives_each_leaf_the_norm_of_adams_update():
    gradients = [{"a": g, "b": g[:2] ** 2} for g in draws((4, 3), 5, dtype="float32")]
    found, _ = updated(gk.scale_by_shampoo(), gradients)
    bare, _ = updated(gk.scale_by_shampoo(grafting=False), gradients)
    adam, _ = updated(gk.scale_by_adam(), gradients)
    for u, s, a in zip(found, bare, adam, strict=True):
        for name in ("a", "b"):
            length = np.linalg.norm(a[name])
            np.testing.assert_allclose(np.linalg.norm(u[name]), length, rtol=1e-5)
            direction = s[name] / np.linalg.norm(s[name])
            np.testing.assert_allclose(u[name] / length, direction, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (5, 4), (1, 7, 3)])
def test_cut_leaves_come_back_whole(shape):
    x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    cut = Cut.of("w", shape, 3, every_matrix)
    blocks = cut.blocked(x)
    assert blocks.shape == (cut.blocks, *cut.widths)
    assert max(cut.widths[axis] for axis in cut.axes) <= 3
    np.testing.assert_array_equal(cut.whole(blocks), x)


@pytest.mark.parametrize(
    "factory", [lambda **k: gk.scale_by_shampoo(grafting=False, **k), gk.scale_by_soap]
)
@pytest.mark.parametrize(("rows", "columns"), [((4, 4), (3, 3)), ((4, 3), (4, 4))])
def test_each_block_is_as_a_leaf_of_its_own(factory, rows, columns):
    with jax.enable_x64(True):
        gradients = draws((sum(rows), sum(columns)), 6)

        def pieces(g):
            return [
                p for part in np.split(g, rows[:1]) for p in np.split(part, columns[:1], axis=1)
            ]

        whole, _ = updated(factory(every=2, block_size=4), gradients)
        apart, _ = updated(factory(every=2), [pieces(g) for g in gradients])
        for u, parts in zip(whole, apart, strict=True):
            for piece, part in zip(pieces(np.asarray(u)), parts, strict=True):
                np.testing.assert_allclose(piece, part, atol=1e-7)


@BOTH
def test_matrices_are_float32_for_narrow_parameters_and_renewed_at_their_interval(factory):
    params = {"w": jnp.ones((4, 3), jnp.bfloat16)}
    gradients = [{"w": jnp.asarray(g, jnp.bfloat16)} for g in draws((4, 3), 5)]
    tx, states = factory(every=3), []
    state = tx.init(params)
    for g in gradients:
        u, state = jax.jit(tx.update)(g, state, params)
        states.append(state)
    assert u["w"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((state.factors, state.matrices))} == {
        np.dtype("float32")
    }
    renewed = [
        not np.array_equal(a.matrices["w"][0], b.matrices["w"][0])
        for a, b in itertools.pairwise(states)
    ]
    assert renewed == [False, False, True, False]


def test_a_gradient_of_zero_gives_no_update():
    for factory in (gk.scale_by_shampoo, gk.scale_by_soap):
        found, _ = updated(factory(every=1), [np.zeros((3, 4), "float32")] * 3)
        np.testing.assert_array_equal(found, 0)


@BOTH
def test_bad_arguments_are_refused(factory):
    with pytest.raises(ValueError, match="block_size must be a positive whole number, got 0"):
        factory(block_size=0)
    with pytest.raises(ValueError, match="every must be a positive whole number"):
        factory(every=2.5)
