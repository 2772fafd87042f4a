from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from gradkit.curvature.batches import micro_batched, streamed

KEY = jax.random.key(4)


def predict(params, batch):
    first, second = params["layers"]
    h = jnp.tanh(batch["x"] @ first["w"] + first["b"])
    return params["scale"] * (h @ second["w"] + second["b"])


def criterion(out, batch):
    return jnp.mean((out - batch["y"]) ** 2)


PROBLEM = gk.Problem(predict=predict, criterion=criterion)  # the network's loss
IN_FLOAT32 = pytest.mark.parametrize("dtype", ["float32"], indirect=True)
IN_FLOAT64 = pytest.mark.parametrize("dtype", ["float64"], indirect=True)
FISHER = {"key": KEY, "likelihood": "normal", "samples": 3}


def part(batch, start, stop):
    return jax.tree.map(lambda x: x[start:stop], batch)


def parts(batch, *sizes):
    ends = np.cumsum(sizes)
    return [part(batch, end - size, end) for end, size in zip(ends, sizes, strict=True)]


@pytest.fixture
def exact(network):
    """The matrices of all 20 examples, in float64, derived by hand."""
    params, batch = jax.tree.map(lambda x: np.asarray(x, np.float64), (network[1], network[2]))
    (first, second), scale = params["layers"], params["scale"]
    h = np.tanh(batch["x"] @ first["w"] + first["b"])
    z, ones = h @ second["w"] + second["b"], np.eye(2)
    by_b = scale * (1 - h**2)[:, None, :] * second["w"].T  # example, output, hidden unit
    blocks = [
        by_b,
        batch["x"][:, None, :, None] * by_b[:, :, None, :],
        np.broadcast_to(scale * ones, (20, 2, 2)),
        scale * h[:, None, :, None] * ones[:, None, :],
        z[:, :, None],
    ]
    J = np.concatenate([x.reshape(20, 2, -1) for x in blocks], axis=2)
    g = np.einsum("eoi,eo->ei", J, scale * z - batch["y"])  # of the mean of two squares
    return {
        gk.hessian: network.hessian,
        gk.gauss_newton: np.einsum("eoi,eoj->ij", J, J) / 20,
        gk.empirical_fisher: g.T @ g / 20,
    }


CURVATURES = [gk.hessian, gk.gauss_newton, gk.empirical_fisher]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curvature", "size"),
    [*itertools.product(CURVATURES, [7]), (gk.hessian, 1), (gk.hessian, 20), (gk.hessian, 1000)],
)
def test_micro_batches_make_the_operator_of_all_data(network, exact, eps, curvature, size):
    A = micro_batched(curvature, size)(PROBLEM, network.params, network.batch)
    atol = 100 * eps * np.abs(exact[curvature]).max()
    np.testing.assert_allclose(A.dense(), exact[curvature], atol=atol)
    assert A.traceable


@pytest.mark.parametrize("curvature", CURVATURES)
def test_a_loader_makes_the_operator_of_all_data(network, exact, eps, curvature):
    loader = parts(jax.tree.map(np.asarray, network.batch), 8, 8, 4)
    A = streamed(curvature)(PROBLEM, network.params, loader)
    atol = 100 * eps * np.abs(exact[curvature]).max()
    np.testing.assert_allclose(A.dense(), exact[curvature], atol=atol)
    assert not A.traceable
    both = streamed(micro_batched(curvature, 3))(PROBLEM, network.params, loader)
    np.testing.assert_allclose(both.dense(), exact[curvature], atol=atol)


@pytest.mark.slow
def test_micro_batches_under_jit(network, eps):
    """One compiled loop, whether the operator is made inside, or made outside and handed in."""
    curvature = micro_batched(gk.hessian, 7)

    def product(params, batch):
        return curvature(PROBLEM, params, batch) @ params

    A = curvature(PROBLEM, network.params, network.batch)
    expected = network.hessian @ np.asarray(ravel_pytree(network.params)[0], np.float64)
    made_inside = jax.jit(product)(network.params, network.batch)
    handed_in = jax.jit(lambda A, v: A @ v)(A, network.params)
    for got in (made_inside, handed_in):
        atol = 100 * eps * np.abs(expected).max()
        np.testing.assert_allclose(ravel_pytree(got)[0], expected, atol=atol)
    assert " scan[" in str(jax.make_jaxpr(product)(network.params, network.batch))


@IN_FLOAT64
def test_micro_batches_stand_where_a_curvature_does(network, eps):
    """In `observe`, under jit, down to the steps of an optimizer."""
    tx, ends = gk.newton_cg(), []
    for curvature in (gk.gauss_newton, micro_batched(gk.gauss_newton, 7)):

        @jax.jit
        def step(params, state, curvature=curvature):
            point = gk.observe(PROBLEM, params, network.batch, curvature)
            updates, _ = tx.update(point.grad, state, params, **point.extras)
            return updates

        ends.append(ravel_pytree(step(network.params, tx.init(network.params)))[0])
    plain, batched = ends
    np.testing.assert_allclose(batched, plain, atol=1e4 * eps * np.abs(plain).max())
    assert np.abs(plain).max() > 1e-3


@pytest.mark.slow
@IN_FLOAT32
def test_what_is_random_is_drawn_for_each_part_and_kept(network, eps):
    params, (whole, left) = network.params, parts(network.batch, 12, 8)
    each = [
        gk.fisher(PROBLEM, params, batch, **FISHER | {"key": jax.random.fold_in(KEY, i)}) @ params
        for i, batch in enumerate((whole, left))
    ]
    first, second = (np.asarray(ravel_pytree(product)[0]) for product in each)
    expected = (12 * first + 8 * second) / 20
    assert np.linalg.norm(first - second) > 0.01 * np.linalg.norm(expected)
    curvature = micro_batched(gk.fisher, 12)
    point = gk.observe(
        *(PROBLEM, params, network.batch), micro_batched(functools.partial(gk.fisher, **FISHER), 12)
    )
    for F in (
        curvature(PROBLEM, params, network.batch, **FISHER),
        functools.partial(curvature, **FISHER)(PROBLEM, params, network.batch),
        point.extras["curvature"](),
        streamed(gk.fisher)(PROBLEM, params, [whole, left], **FISHER),
    ):
        for product in (F @ params, F @ params):
            atol = 100 * eps * np.abs(expected).max()
            np.testing.assert_allclose(ravel_pytree(product)[0], expected, atol=atol)


def test_micro_batches_take_the_memory_of_one():
    def product(curvature):
        def of(w, x):
            return curvature(lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 4), w, x) @ w

        w, x = jnp.ones((50, 50)), jnp.ones((4096, 50))
        return jax.jit(of).lower(w, x).compile().memory_analysis().temp_size_in_bytes

    assert product(micro_batched(gk.hessian, 64)) < product(gk.hessian) / 20
    assert product(micro_batched(gk.hessian, 60)) < product(gk.hessian) / 20  # ragged


@IN_FLOAT32
def test_is_traced_once_for_all_data_of_a_shape(network):
    traces = []

    def loss(params, batch):
        traces.append(batch["x"].shape)
        return network.loss(params, batch)

    counts = []
    for factor in (1.0, 2.0, 3.0):
        params, batch = jax.tree.map(lambda x, f=factor: f * x, (network.params, network.batch))
        micro_batched(gk.hessian, 7)(loss, params, batch) @ params  # made anew, and yet the same
        counts.append(len(traces))
    assert counts[0] == counts[2]

    traces.clear()
    for factor in (1.0, 2.0):
        params = jax.tree.map(lambda x, f=factor: f * x, network.params)
        A = streamed(gk.hessian)(loss, params, parts(network.batch, 9, 9, 2))
        A @ params
        A @ params
    assert sorted(traces) == [(2, 4), (9, 4)]


def convolved(params, batch):
    x = jax.lax.conv_general_dilated(batch["x"], params["k"], (1, 1), "SAME")
    return jnp.mean((jnp.sum(jnp.tanh(x), (1, 2, 3)) - batch["y"]) ** 2)


@pytest.fixture
def convolution(dtype):
    rng = np.random.default_rng(5)
    params = {"k": jnp.asarray(rng.normal(size=(1, 1, 3, 2)), dtype)}
    x, y = rng.normal(size=(11, 1, 5, 5)), rng.normal(size=11)
    return params, {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype)}


@pytest.mark.slow
@IN_FLOAT64
def test_convolutions_are_looped_over_from_python_on_a_cpu(convolution, eps, monkeypatch):
    params, batch = convolution
    exact = np.asarray(jax.hessian(convolved)(params, batch)["k"]["k"]).reshape(6, 6)
    curvature, atol = micro_batched(gk.hessian, 4), 1000 * eps * np.abs(exact).max()
    A = curvature(convolved, params, batch)
    assert not A.traceable
    np.testing.assert_allclose(A.dense(), exact, atol=atol)
    traced = []

    def product(params, batch):
        traced.append(curvature(convolved, params, batch))
        return traced[-1] @ params

    expected = exact @ np.asarray(params["k"]).ravel()
    got = jax.jit(product)(params, batch)["k"].ravel()
    np.testing.assert_allclose(got, expected, atol=10 * atol)
    assert traced[0].traceable
    assert str(jax.make_jaxpr(product)(params, batch)).count(" scan[") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert curvature(convolved, params, batch).traceable


class Loader:
    """Gives its batches anew whenever it is iterated, and counts how often."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@IN_FLOAT32
def test_a_product_is_one_pass(network):
    loader = Loader(parts(network.batch, 10, 10))
    A = streamed(gk.hessian)(network.loss, network.params, loader)
    assert loader.passes == 0
    first = A @ network.params
    again = (2.0 * A + 1.0) @ network.params
    assert loader.passes == 2
    expected = jax.tree.map(lambda x, v: 2 * x + v, first, network.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), again, expected)


@IN_FLOAT32
def test_a_function_makes_an_iterator_for_each_product(network):
    A = streamed(gk.hessian)(
        network.loss, network.params, lambda: (part(network.batch, i, i + 5) for i in (0, 5))
    )
    full = gk.hessian(network.loss, network.params, part(network.batch, 0, 10))
    np.testing.assert_allclose(A.dense(), full.dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@IN_FLOAT64
def test_methods_take_a_loader(network, eps):
    """A solution, a block and the check of an operator that is read from the host."""
    A = streamed(gk.hessian)(network.loss, network.params, parts(network.batch, 15, 5))
    exact, tol = np.linalg.eigvalsh(network.hessian), 1000 * eps
    shift, flat = 1.0 - exact[0], ravel_pytree(network.params)[0]
    x = gk.cg(A + shift, network.params, tol=tol, max_steps=200).x
    solution = np.linalg.solve(network.hessian + shift * np.eye(len(exact)), np.float64(flat))
    kappa = (exact[-1] + shift) / (exact[0] + shift)
    error = np.linalg.norm(np.asarray(ravel_pytree(x)[0]) - solution)
    assert error < kappa * 10 * tol * np.linalg.norm(solution)

    block = A.restrict(lambda path: path == "scale")
    np.testing.assert_allclose(block.dense(), network.hessian[-1:, -1:], rtol=1000 * eps)
    check = gk.check_operator(A, key=KEY)
    assert check.ok, check.report()


def test_sums_are_kept_in_float32():
    """In bfloat16 a sum of ones stays at 256."""

    def loss(theta, x):
        return jnp.sum(jnp.mean(x, 0) * theta**2) / 2

    theta, ones = jnp.ones(3, jnp.bfloat16), np.ones((1000, 3), np.float32)
    loader = [ones[:1]] * 1000
    for A in (
        streamed(gk.hessian)(loss, theta, loader),
        micro_batched(gk.hessian, 1)(loss, theta, ones),
    ):
        product = A @ theta
        assert product.dtype == jnp.bfloat16
        np.testing.assert_array_equal(product, theta)


def test_a_weight_of_ones_own(network):
    """A mean over tokens that are not padding: a batch weighs as many as it has."""
    rng = np.random.default_rng(6)
    x, mask = rng.normal(size=(9, 5, 4)).astype(np.float32), rng.random((9, 5)) < 0.4
    mask[:, 0] = True

    def loss(w, batch):
        errors = jnp.sum(jnp.tanh(batch["x"] @ w) ** 2, -1)
        return jnp.sum(errors * batch["mask"]) / jnp.sum(batch["mask"])

    w, data = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), {"x": x, "mask": mask}
    exact = gk.hessian(loss, w, data).dense()
    by_token = streamed(gk.hessian, weight=lambda batch: batch["mask"].sum())
    np.testing.assert_allclose(by_token(loss, w, parts(data, 2, 7)).dense(), exact, atol=1e-6)
    by_example = streamed(gk.hessian)(loss, w, parts(data, 2, 7)).dense()
    assert np.abs(by_example - exact).max() > 1e-3


@IN_FLOAT32
def test_a_streamed_product_is_not_traced(network):
    A = streamed(gk.hessian)(network.loss, network.params, [network.batch])
    for matvec in (lambda v: A @ v, A.matvec, lambda v: A @ network.params):
        with pytest.raises(TypeError, match=r"cannot be traced.* outside jit"):
            jax.jit(matvec)(network.params)


@IN_FLOAT32
def test_what_can_be_iterated_only_once_is_refused(network):
    batches, make = parts(network.batch, 10, 10), streamed(gk.hessian)
    for once in (iter(batches), (b for b in batches), zip(batches, batches, strict=True)):
        with pytest.raises(TypeError, match=r"a function without .* which ends"):
            make(network.loss, network.params, once)
    for one in (network.batch, network.batch["x"]):
        with pytest.raises(TypeError, match=r"one batch; see gk.micro_batched"):
            make(network.loss, network.params, one)
    with pytest.raises(TypeError, match="got int"):
        make(network.loss, network.params, 3)


@IN_FLOAT32
def test_a_loader_that_gives_too_little_is_refused(network):
    def product(loader, **options):
        return (
            streamed(gk.hessian, **options)(network.loss, network.params, loader) @ network.params
        )

    with pytest.raises(ValueError, match="gave no batch"):
        product([])
    with pytest.raises(ValueError, match="batch 1 has the weight 0"):
        product([network.batch, part(network.batch, 0, 0)])
    with pytest.raises(ValueError, match="batch 0 has the weight nan"):
        product([network.batch], weight=lambda batch: jnp.nan)
    with pytest.raises(ValueError, match=r"batch 0, without a weight .* got x \(20, 4\), y \(\)"):
        product([network.batch | {"y": 0.0}])


@IN_FLOAT32
def test_passes_that_differ_are_refused(network):
    batches = parts(network.batch, 10, 6, 4)
    growing = Loader(batches[:2])
    A = streamed(gk.hessian)(network.loss, network.params, growing)
    A @ network.params
    growing.batches = batches
    with pytest.raises(ValueError, match=r"gave 20 examples, the first one 16"):
        A @ network.params
    generator = iter(batches)
    A = streamed(gk.hessian)(network.loss, network.params, lambda: generator)
    A @ network.params
    with pytest.raises(ValueError, match=r"gave 0 examples, the first one 20"):
        A @ network.params


@IN_FLOAT32
def test_a_loader_that_draws_anew_is_caught(network):
    draws = np.random.default_rng(7)

    def batches():
        yield part(network.batch, 0, 10)
        rows = draws.permutation(20)[:5]
        yield jax.tree.map(lambda x: x[rows], network.batch)

    check = gk.check_operator(streamed(gk.hessian)(network.loss, network.params, batches), key=KEY)
    assert not check.ok
    assert check.repeatability > check.tolerance
    assert "shuffled" in check.report()


@IN_FLOAT32
def test_micro_batches_say_what_they_want(network):
    for size in (0, -3, 2.0, None):
        with pytest.raises(ValueError, match="size must be a positive whole number"):
            micro_batched(gk.hessian, size)  # pyright: ignore
    make = micro_batched(gk.hessian, 5)
    with pytest.raises(ValueError, match=r"the data: expected .* y \(3,\)"):
        make(network.loss, network.params, network.batch | {"y": jnp.ones(3)})
    with pytest.raises(ValueError, match="holds no examples"):
        make(network.loss, network.params, part(network.batch, 0, 0))
    with pytest.raises(TypeError, match=r"gk.Problem or a function"):
        make(3, network.params, network.batch)


@IN_FLOAT32
def test_nan_is_a_value(network):
    params = jax.tree.map(lambda x: x * jnp.nan, network.params)
    for A in (
        micro_batched(gk.hessian, 7)(network.loss, params, network.batch),
        streamed(gk.hessian)(network.loss, params, [network.batch]),
    ):
        assert jnp.isnan(ravel_pytree(A @ network.params)[0]).all()
