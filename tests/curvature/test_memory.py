from __future__ import annotations

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import gradkit as gk
from gradkit.curvature import hessian, memory

KEY = jax.random.key(0)
W, X = [jnp.ones((3, 3), jnp.float32)] * 2, jnp.ones((7, 3), jnp.float32)


def predict(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


PROBLEM = gk.Problem(predict=predict, criterion=lambda z, x: jnp.mean(jnp.sum(z**2, 1)) / 2)
CURVATURES = {
    "hessian": (gk.hessian, {}),
    "gauss_newton": (gk.gauss_newton, {}),
    "empirical_fisher": (gk.empirical_fisher, {}),
    "fisher": (gk.fisher, {"key": KEY, "likelihood": "normal"}),
}
every_curvature = pytest.mark.parametrize("name", CURVATURES)


def held(arrays) -> int:
    """The bytes of the buffers that there are."""
    buffers = {x.unsafe_buffer_pointer(): x.nbytes for x in jax.tree.leaves(arrays)}
    return sum(buffers.values())


@pytest.fixture
def memory_of(monkeypatch):
    """Sets the memory that there is."""
    return lambda size: monkeypatch.setattr(memory, "device_bytes", lambda: size)


def test_residuals_are_counted_to_the_byte():
    args = PROBLEM, W, X
    kept = hessian._linearized(*args)
    assert memory.residual_bytes(hessian._linearized, *args) == held(kept) > 7 * 3 * 4


@every_curvature
def test_keeps_what_takes_a_quarter_of_the_memory_and_no_more(name, memory_of):
    curvature, options = CURVATURES[name]
    limit = 4 * held(curvature(PROBLEM, W, X, linearize=True, **options).matvec)

    def products(A):
        return str(jax.make_jaxpr(A.matvec)(W)).count("dot_general[")

    explicit = [products(curvature(PROBLEM, W, X, linearize=b, **options)) for b in (True, False)]
    assert explicit[0] < explicit[1]
    chosen = []
    for size in (limit, limit - 1):
        memory_of(size)
        chosen.append(products(curvature(PROBLEM, W, X, **options)))
    assert chosen == explicit


@every_curvature
@pytest.mark.parametrize("size", [10**9, 1])
def test_the_choice_is_made_under_jit_and_gives_the_same(name, size, memory_of):
    curvature, options = CURVATURES[name]
    memory_of(size)
    chosen = []

    def product(params, x, v):
        A = curvature(PROBLEM, params, x, **options)
        chosen.append(jax.tree.structure(A.matvec))
        return A @ v

    jitted, eager = jax.jit(product)(W, X, W), product(W, X, W)
    for a, b in zip(jitted, eager, strict=True):
        assert jnp.allclose(a, b, rtol=1e-5)
    recomputed = curvature(PROBLEM, W, X, linearize=False, **options).matvec
    assert [c == jax.tree.structure(recomputed) for c in chosen] == [size == 1] * 2


@pytest.mark.parametrize(("size", "most"), [(10**9, 1), (1, 2)])
def test_choosing_traces_nothing_again(size, most, memory_of):
    """The trace that counts the residuals is the one that makes them."""
    traces = []

    def loss(params, x):
        traces.append(1)
        return jnp.sum(predict(params, x) ** 2)

    memory_of(size)
    for factor in (1.0, 2.0, 3.0):
        gk.hessian(loss, W, factor * X) @ W
    assert len(traces) == most
    gk.hessian(loss, W, jnp.ones((8, 3)))
    assert len(traces) == most + 1


def test_a_device_tells_its_memory_and_a_machine_does(monkeypatch):
    measure = memory.device_bytes.__wrapped__
    assert measure() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 2**28
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 123, "bytes_in_use": 5})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert measure() == 123


def test_gauss_newton_counts_the_criterions_residuals_too():
    """Of a criterion with a large matrix: its Hessian is kept, and so it is counted."""
    M = jnp.ones((3, 50))
    problem = gk.Problem(predict=predict, criterion=lambda z, x: jnp.sum(jnp.tanh(z @ M)))
    args = [gk.gauss_newton(p, W, X, linearize=True).matvec for p in (PROBLEM, problem)]
    small, large = (held(a) for a in args)
    assert large - small >= 7 * 50 * 4
