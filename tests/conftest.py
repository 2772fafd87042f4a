"""Problems and operators whose answers are known, on nested trees, in both precisions."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

# Compiling, not running, is what the tests pay, and these halve it. Without the last, the first two
# mix fused and plain multiply-adds, and float64 loses digits. XLA_FLAGS="" gives what users have.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX",
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from jax.flatten_util import ravel_pytree

import gradkit as gk

settings.register_profile("gradkit", deadline=None, derandomize=True)  # examples compile
settings.load_profile("gradkit")


def pytest_collection_modifyitems(items):
    """A float64 twin of a test in float32 is for `make test-all`."""
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        if params and "float64" in (params.get("dtype"), params.get("precision")):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_is_given_back():
    """Every program compiled holds memory maps, of which Linux allows a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def eps(dtype) -> float:
    return float(np.finfo(dtype).eps)


class Oracle(NamedTuple):
    """An operator, and the matrix it is, in float64."""

    operator: gk.Operator
    matrix: np.ndarray
    unravel: Callable

    def vector(self, seed: int):
        """A random tree in the domain, and the same as a flat float64 array."""
        flat = np.random.default_rng(seed).normal(size=len(self.matrix))
        v = self.unravel(jnp.asarray(flat, jax.tree.leaves(self.operator.domain)[0].dtype))
        return v, np.asarray(ravel_pytree(v)[0], np.float64)


@pytest.fixture
def operator_with(dtype):
    """Makes an operator with given eigenvalues on a nested tree of at least 8 numbers."""

    def make(eigenvalues, seed: int = 0) -> Oracle:
        eigenvalues = np.asarray(eigenvalues, np.float64)
        n = len(eigenvalues)
        Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
        matrix = (Q * eigenvalues) @ Q.T
        matrix = (matrix + matrix.T) / 2
        M = jnp.asarray(matrix, dtype)
        domain = {
            "a": jnp.zeros((2, 3), dtype),
            "b": [jnp.zeros((), dtype), {"c": jnp.zeros(n - 7, dtype)}],
        }
        _, unravel = ravel_pytree(domain)
        operator = gk.Operator(jax.tree_util.Partial(_product, M), domain)
        return Oracle(operator, np.asarray(M, np.float64), unravel)

    return make


def _product(M, v):
    flat, unravel = ravel_pytree(v)
    return unravel(jnp.matmul(M, flat, precision="highest"))


class Network(NamedTuple):
    """A small tanh network with a squared loss, and its exact Hessian in float64."""

    loss: Callable
    params: dict
    batch: dict
    hessian: np.ndarray


@pytest.fixture
def network(dtype) -> Network:
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.normal(size=shape)

    params = {
        "layers": [{"w": draw(4, 3), "b": draw(3)}, {"w": draw(3, 2) / 2, "b": draw(2)}],
        "scale": np.array(0.7),
    }
    batch = {"x": draw(20, 4), "y": draw(20, 2)}

    def loss(params, batch):
        h = jnp.tanh(batch["x"] @ params["layers"][0]["w"] + params["layers"][0]["b"])
        out = params["scale"] * (h @ params["layers"][1]["w"] + params["layers"][1]["b"])
        return jnp.mean((out - batch["y"]) ** 2)

    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
        exact = jax.hessian(lambda theta: loss(unravel(theta), batch))(flat)
        hessian = np.asarray((exact + exact.T) / 2)
    params, batch = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, batch))
    return Network(loss, params, batch, hessian)
