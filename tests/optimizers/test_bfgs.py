from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.optimizers.bfgs import bfgs, ravelled, scale_by_bfgs, unravelled

SPECTRUM = np.geomspace(0.5, 5, 8)


def flat(a):
    return np.asarray(ravel_pytree(a)[0], np.float64)


def banana(x, batch=None):
    """Rosenbrock's function on a tree, with its minimum at 1."""
    del batch
    a, b = x["a"], x["b"][0]
    return 5 * (b - a[0] ** 2) ** 2 + (1 - a[0]) ** 2 + (a[1] - b) ** 2


def start(dtype):
    return {"a": jnp.asarray([-1.2, 0.5], dtype), "b": [jnp.asarray(1.0, dtype)]}


def steps_of(tx, loss, x, steps, batch=None):
    """Yields parameters, gradient and state after each update, with the parameters before it."""

    @jax.jit
    def step(x, state):
        point = gk.observe(loss, x, batch)
        updates, following = tx.update(point.grad, state, x, **point.extras)
        return optax.apply_updates(x, updates), following, point.grad

    state = tx.init(x)
    for _ in range(steps):
        after, state, grad = step(x, state)
        yield x, grad, state
        x = after


def exact_steps(tx, oracle, x, steps):
    """Descends ½ xᵀAx by exact line searches; yields g, d and the state of the direction."""
    A, state = oracle.matrix, tx.init(x)
    update = jax.jit(tx.update)
    for _ in range(steps):
        g = A @ flat(x)
        cast = oracle.unravel(jnp.asarray(g, ravel_pytree(x)[0].dtype))
        d, state = update(cast, state, x)
        v = flat(d)
        yield g, v, state
        alpha = (g @ v) / (v @ A @ v)
        x = jax.tree.map(lambda x, d, a=alpha: x - jnp.asarray(a, x.dtype) * d, x, d)


def test_the_matrix_satisfies_the_secant_equation_and_stays_positive_definite(dtype, eps):
    before = None
    for x, g, state in steps_of(bfgs(), banana, start(dtype), 30):
        x, g, H = flat(x), flat(g), np.asarray(state.H, np.float64)
        scale = np.abs(H).max()
        np.testing.assert_allclose(H, H.T, atol=eps * scale)
        if before is not None and state.pairs:
            s, y = x - before[0], g - before[1]
            np.testing.assert_allclose(H @ y, s, atol=50 * eps * scale * np.linalg.norm(y))
            assert np.linalg.eigvalsh(H).min() > 0
        before = x, g
    assert state.pairs >= 15
    assert np.linalg.norm(g) < 1e3 * eps


@pytest.mark.parametrize("self_scaling", [False, True])
def test_the_update_is_the_formula_of_the_book(self_scaling, operator_with, eps):
    """After H was scaled by sᵀH⁻¹s / sᵀy where that is larger than 1."""
    oracle = operator_with(SPECTRUM)
    x, _ = oracle.vector(1)
    H = before = None
    tx = scale_by_bfgs(self_scaling=self_scaling)
    path, factors = [], []
    state, update = tx.init(x), jax.jit(tx.update)
    for k in range(6):
        g = oracle.operator @ x
        d, state = update(g, state, x)
        path.append((flat(x), flat(g)))
        if before is not None:
            s, y = path[-1][0] - before[0], path[-1][1] - before[1]
            rho, I = 1 / (s @ y), np.eye(len(s))  # noqa: E741
            if H is None:
                H = (s @ y) / (y @ y) * I
            elif self_scaling:
                factors.append(s @ np.linalg.solve(H, s) / (s @ y))
                H = H * max(1, factors[-1])
            V = I - rho * np.outer(y, s)
            H = V.T @ H @ V + rho * np.outer(s, s)
            np.testing.assert_allclose(state.memory.H, H, atol=1e3 * eps * np.abs(H).max())
            g64 = path[-1][1]
            np.testing.assert_allclose(
                flat(d), H @ g64, atol=1e3 * eps * np.abs(H).max() * np.linalg.norm(g64)
            )
        before = path[-1]
        x = jax.tree.map(lambda x, d, k=k: x - (1 + 0.8 * (k % 2)) * d, x, d)
    assert not self_scaling or (max(factors) > 1 and min(factors) < 1)


def test_ends_in_n_exact_steps_on_a_quadratic_with_the_inverse(operator_with, eps):
    oracle = operator_with(SPECTRUM)
    n = len(SPECTRUM)
    x, _ = oracle.vector(2)
    norms = []
    for g, _, after in exact_steps(scale_by_bfgs(self_scaling=False), oracle, x, n + 1):
        norms.append(np.linalg.norm(g))
        state = after
    assert norms[-2] > 1e-4 * norms[0]
    assert norms[-1] < 1e4 * eps * norms[0]
    inverse = np.linalg.inv(oracle.matrix)
    np.testing.assert_allclose(state.memory.H, inverse, atol=2e4 * eps * np.abs(inverse).max())


def test_converges_superlinearly():
    with jax.enable_x64(True):
        errors, x_star = [], None
        xs = [flat(x) for x, *_ in steps_of(bfgs(), banana, start(np.float64), 40)]
        x_star = xs[-1]
        errors = np.array([np.linalg.norm(x - x_star) for x in xs])
    near = np.flatnonzero((errors < 0.5) & (errors > 1e-13))
    rates = errors[near[1:]] / errors[near[:-1]]
    assert len(near) > 5
    assert rates[-1] < 0.05
    assert rates[-1] < rates[0] / 5


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter(scale):
    """In float32, where yᵀy leaves the range."""

    def run(c):
        return [
            flat(x) for x, *_ in steps_of(bfgs(), lambda x, _: c * banana(x), start(np.float32), 12)
        ]

    for one, other in zip(run(1.0), run(np.float32(scale)), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-3)


def test_nothing_is_learnt_from_a_loss_that_changes():
    def loss(x, batch):
        return jnp.sum((batch @ x) ** 2) + jnp.sum(x**4)

    tx, x = gk.chain(scale_by_bfgs(), gk.scale_by_learning_rate(0.1)), jnp.ones(2)

    @jax.jit
    def step(x, state, batch):
        point = gk.observe(loss, x, batch)
        updates, state = tx.update(point.grad, state, x, **point.extras)
        return optax.apply_updates(x, updates), state

    state, seen = tx.init(x), []
    for k in (0, 0, 0, 1, 1):
        x, state = step(x, state, jnp.asarray([[1.0, 2.0], [k, 1.0]]))
        metrics = gk.metrics(state)
        seen.append((int(metrics["pairs"]), int(metrics["function_changes"])))
    assert seen == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]


def test_a_pair_of_negative_curvature_is_refused_and_the_matrix_kept():
    tx = scale_by_bfgs()
    update = jax.jit(tx.update)
    x = jnp.asarray([1.0, 2.0])
    state = tx.init(x)
    _, state = update(jnp.asarray([2.0, 1.0]), state, x)
    _, state = update(jnp.asarray([1.0, 1.0]), state, x - jnp.asarray([1.0, 0]))
    kept = state.memory.H
    _, state = update(jnp.asarray([1.5, 1.0]), state, x - jnp.asarray([2.0, 0]))
    assert gk.metrics(state)["refused_pairs"] == 1
    np.testing.assert_array_equal(state.memory.H, kept)


def test_damping_keeps_the_matrix_positive_definite_where_the_curvature_is_negative():
    def loss(x, _):
        return jnp.sum(jnp.cos(x)) + 0.1 * jnp.sum(x**2)

    plain = damped = None
    for options in ({}, {"damping": 0.2}):
        tx = gk.chain(scale_by_bfgs(**options), gk.scale_by_learning_rate(0.1))
        *_, (_, _, state) = steps_of(tx, loss, jnp.asarray([0.1, 0.2, 0.3]), 8)
        plain, damped = damped, state
    assert gk.metrics(plain)["refused_pairs"] > 0
    assert gk.metrics(damped)["refused_pairs"] == 0
    assert gk.metrics(damped)["pairs"] == 7
    H = np.asarray(damped.scale_by_bfgs.H, np.float64)
    assert np.linalg.eigvalsh(H).min() > 0


def test_a_step_that_moved_nothing_restarts():
    tx = scale_by_bfgs()
    update = jax.jit(tx.update)
    x = jnp.asarray([1.0, 2.0])
    _, state = update(x, tx.init(x), x)
    _, state = update(jnp.asarray([0.5, 4.0]), state, jnp.asarray([0.5, 1.0]))
    g = jnp.asarray([0.5, 4.0])
    d, state = update(g, state, jnp.asarray([0.5, 1.0]))
    metrics = gk.metrics(state)
    assert (metrics["pairs"], metrics["restarts"]) == (0, 1)
    np.testing.assert_allclose(d / jnp.linalg.norm(d), g / jnp.linalg.norm(g), rtol=1e-5)
    assert jnp.linalg.norm(d) > 0


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    tx = scale_by_bfgs()
    update = jax.jit(tx.update)
    x = jnp.asarray([1.0, 2.0])
    _, state = update(x, tx.init(x), x)
    _, state = update(2 * x, state, 2 * x)
    d, after = update(jnp.asarray([jnp.nan, 1.0]), state, 3 * x)
    assert jnp.isnan(d[0])
    for a, b in zip(jax.tree.leaves(after.memory), jax.tree.leaves(state.memory), strict=True):
        np.testing.assert_array_equal(a, b)


def test_trees_of_all_kinds_are_ravelled_and_back(dtype):
    domain = {
        "empty": jnp.zeros((0, 3), dtype),
        "number": jnp.asarray(2.0, dtype),
        "complex": jnp.asarray([1 + 2j, 3 - 1j], jnp.result_type(dtype, jnp.complex64)),
        "half": jnp.asarray([[1.0, 2.0]], jnp.bfloat16),
    }
    vector = ravelled(domain)
    assert vector.shape == (7,)
    assert vector.dtype == dtype
    for a, b in zip(
        jax.tree.leaves(unravelled(vector, domain)), jax.tree.leaves(domain), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_complex_parameters_are_pairs_of_real_ones():
    c, z = jnp.asarray([1.0, 5.0]), jnp.asarray([1 + 2j, -2 + 1j])
    pairs = jnp.stack([z.real, z.imag])
    one = steps_of(bfgs(), lambda z, _: jnp.sum(c * jnp.abs(z - 1j) ** 2), z, 4)
    two = steps_of(bfgs(), lambda p, _: jnp.sum(c * (p[0] ** 2 + (p[1] - 1) ** 2)), pairs, 4)
    for (z, *_), (p, *_) in zip(one, two, strict=True):
        np.testing.assert_allclose(jnp.stack([z.real, z.imag]), p, atol=1e-4)


@pytest.mark.slow
def test_many_starts_in_one_compiled_call():
    def reached(x):
        tx = bfgs()

        def step(carry, _):
            x, state = carry
            point = gk.observe(banana, x, None)
            updates, state = tx.update(point.grad, state, x, **point.extras)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=30)
        return jnp.linalg.norm(ravel_pytree(jax.grad(banana)(x))[0])

    starts = jax.tree.map(
        lambda x: x + 0.1 * jnp.arange(3.0).reshape(3, *[1] * x.ndim), start(np.float32)
    )
    assert (jax.jit(jax.vmap(reached))(starts) < 1e-2).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="scale_by_bfgs: damping must be a number from 0"):
        scale_by_bfgs(damping=1.0)
    with pytest.raises(ValueError, match="line_search finds the learning rate"):
        bfgs(0.1, gk.line_search())
    tx = scale_by_bfgs()
    with pytest.raises(ValueError, match="scale_by_bfgs needs the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
