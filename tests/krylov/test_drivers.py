from __future__ import annotations

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.krylov import drivers, lanczos

DIAGONAL = np.concatenate([np.linspace(-1, 1, 40), [4.0, 9.0]]).astype(np.float32)
KEY = jax.random.key(0)


def streamed():
    """An operator that cannot be traced, and how often it was called."""
    calls = []

    def matvec(v):
        calls.append(1)
        return jax.tree.map(lambda x: jnp.asarray(DIAGONAL * np.asarray(x)), v)

    return gk.Operator(matvec, {"x": jnp.zeros(42)}, traceable=False), calls


def traced():
    return gk.Operator(lambda v: jax.tree.map(lambda x: DIAGONAL * x, v), {"x": jnp.zeros(42)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimate",
    [
        lambda A: gk.eigsh(A, 3, key=KEY),
        lambda A: gk.eigsh(A, 3, key=KEY, basis=10),
        lambda A: gk.density(A, key=KEY, probes=2, steps=5),
        lambda A: gk.trace(A, key=KEY),
        lambda A: gk.trace(A, key=KEY, method="xtrace", max_products=30),
        lambda A: gk.diagonal(A, key=KEY, probes=5),
        lambda A: gk.frobenius_norm(A, key=KEY, max_products=20),
        lambda A: gk.logdet(A, key=KEY, shift=2.0, steps=10),
        lambda A: gk.cg(A + 2.0, {"x": jnp.ones(42)}),
        lambda A: gk.minres(A, {"x": jnp.ones(42)}),
        lambda A: gk.spectrum(A, key=KEY, probes=2, steps=5, check=False),
        lambda A: gk.condition_number(A, key=KEY),
    ],
)
def test_an_operator_that_cannot_be_traced_gives_the_same_numbers(estimate):
    A, calls = streamed()
    found, expected = estimate(A), estimate(traced())
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if np.ndim(x) == 0:
            np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-2)
    if hasattr(found, "products"):
        assert len(calls) == found.products == expected.products


def test_algebra_keeps_what_cannot_be_traced_out_of_jit():
    A, _ = streamed()
    v = {"x": jnp.ones(42)}
    np.testing.assert_allclose(((2.0 * A + 1.0) @ v)["x"], 2 * DIAGONAL + 1, rtol=1e-6)
    np.testing.assert_allclose(((A - traced()) @ v)["x"], 0, atol=1e-6)
    np.testing.assert_allclose(A.dense(), np.diag(DIAGONAL), rtol=1e-6)
    assert not A.restrict(lambda path: True).traceable
    assert gk.check_operator(A, key=KEY).ok
    with pytest.raises(TypeError, match="cannot be traced; apply it outside jit"):
        jax.jit(lambda v: A @ v)(v)


def convolution():
    kernel = jnp.linspace(-1, 1, 9).reshape(1, 1, 3, 3)
    kernel = kernel + kernel[:, :, ::-1, ::-1]  # symmetric, and so is the operator

    def matvec(v):
        image = v.reshape(1, 1, 8, 8)
        return jax.lax.conv(image, kernel, (1, 1), "SAME").reshape(-1)

    return gk.Operator(matvec, jnp.zeros(64))


@pytest.mark.slow
def test_convolutions_are_looped_over_from_the_host_on_a_cpu(monkeypatch):
    A = convolution()
    hidden = gk.Operator(lambda v: jax.lax.cond(True, A.matvec, A.matvec, v), A.domain)
    assert A.loops_on_host is hidden.loops_on_host is (jax.default_backend() == "cpu")
    assert not traced().loops_on_host
    calls = []
    original = drivers.on_host
    monkeypatch.setattr(
        drivers, "on_host", lambda *args, **options: calls.append(1) or original(*args, **options)
    )
    pairs = gk.eigsh(A, 2, key=KEY)
    assert len(calls) == (2 if A.loops_on_host else 0)  # the search and the residuals
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(A.dense())[-2:], rtol=1e-4)
    inside = jax.jit(lambda key: gk.eigsh(A, 2, key=key))(KEY)
    np.testing.assert_allclose(inside.values, pairs.values, rtol=1e-4)


def test_a_step_apart_from_its_products_gives_the_same_state():
    A = traced()
    whole = lanczos.lanczos(A, None, steps=10, key=KEY, drive=gk.on_host)
    drive = functools.partial(gk.on_host, state_on=jax.devices()[0])
    apart = lanczos.lanczos(A, None, steps=10, key=KEY, drive=drive)
    np.testing.assert_allclose(apart.H, whole.H, atol=1e-5)


@pytest.mark.slow
def test_the_state_lies_on_another_device_than_the_operator():
    program = """
import functools, os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, gradkit as gk
first, second = jax.devices()
d = jax.device_put(jnp.linspace(0, 1, 200) ** 4, first)
A = gk.Operator(jax.tree_util.Partial(jnp.multiply, d), d)
seen = set()
def watch(state):
    seen.update(d for x in jax.tree.leaves(state) for d in x.devices())
drive = functools.partial(gk.on_host, state_on=second, watch=watch)
pairs = gk.eigsh(A, 2, key=jax.random.key(0), drive=drive, basis=20)
assert seen == {second}, seen
assert pairs.converged.all()
assert abs(np.asarray(pairs.values) - np.asarray(d[-2:])).max() < 1e-4
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
