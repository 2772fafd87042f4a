"""The largest eigenvalue of the Hessian, followed during training, against dense eigenvalues."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.transforms.leading import LEAST_PRODUCTS
from gradkit.transforms.sharpness import track_sharpness


def dense_hessian(loss, params, batch):
    """The Hessian as a function of the parameters, differentiated in float64."""
    with jax.enable_x64(True):
        batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), batch)
        _, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float64), params))
        dense = jax.jit(jax.hessian(lambda theta: loss(unravel(theta), batch)))

    def hessian(params):
        with jax.enable_x64(True):
            return np.asarray(dense(flat(params)))

    return hessian


def flat(a):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(a)])


def logistic(params, batch):
    """A loss of few leaves, soon compiled, and the same function in every test."""
    z = batch["x"] @ params["w"] + params["b"]
    return jnp.mean(jax.nn.softplus(z) - batch["y"] * z) + 0.1 * jnp.sum(params["w"] ** 4)


_rng = np.random.default_rng(0)
BATCH = {"x": _rng.normal(size=(40, 5)), "y": _rng.integers(0, 2, 40).astype(float)}
PARAMS = {"w": np.arange(5.0) / 5, "b": np.array(1.0)}


def start(dtype=jnp.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (PARAMS, BATCH))


@functools.cache
def dense_logistic():
    return dense_hessian(logistic, PARAMS, BATCH)


def advance(tx, loss, batch, params, state, curvature=gk.hessian) -> Any:
    point = gk.observe(loss, params, batch, curvature=curvature)
    updates, state = tx.update(point.grad, state, params, **point.extras)
    return optax.apply_updates(params, updates), state, updates


def measure(A, state, tx):
    """One update in which A is the curvature."""
    v = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), A.domain)
    return tx.update(v, state, v, curvature=lambda: A)[1]


def diagonal(values, dtype=jnp.float32):
    d = jnp.asarray(values, dtype)
    return gk.Operator(Partial(jnp.multiply, d), d)


@pytest.mark.slow
def test_they_are_the_largest_eigenvalues_along_a_training(network, eps):
    tx = track_sharpness(gk.adam(0.03), every=5, tol=1e-3, max_products=100)
    hessian = dense_hessian(network.loss, network.params, network.batch)
    params, state = network.params, tx.init(network.params)
    for k in range(21):
        before = params
        params, state, updates = advance(tx, network.loss, network.batch, params, state)
        if k % 5 == 0:
            H, found = hessian(before), gk.metrics(state)
            exact, size = np.linalg.eigvalsh(H)[-1], np.linalg.norm(H, 2)
            assert found["sharpness_step"] == k
            assert exact - found["sharpness_residual"] <= found["sharpness"] + 100 * eps * size
            assert found["sharpness"] <= exact + 100 * eps * size
            assert found["sharpness_residual"] <= 1e-3 * size
            v = flat(state.track_sharpness.curvature.vector)
            assert np.linalg.norm(v) == pytest.approx(1, abs=100 * eps)
            residual = np.linalg.norm(H @ v - float(found["sharpness"]) * v)
            assert found["sharpness_residual"] == pytest.approx(residual, abs=1e3 * eps * size)
            m = mean(state, network.loss, before, network.batch)
            assert is_preconditioned_as(updates, m, H, state, rounding=1e3 * eps)


MOMENTS = {
    "adam": lambda: gk.adam(0.03, b1=0.8, b2=0.95, eps=1e-3),
    "adamw": lambda: gk.adamw(0.03, weight_decay=0.0),
    "rmsprop": lambda: gk.rmsprop(0.03, decay=0.9, eps=1e-3),
    "optax's adam": lambda: optax.adam(0.03),
    "optax's rmsprop": lambda: optax.rmsprop(0.03),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(0.03, b1=0.7, b2=0.9, eps=1e-2),
    "scheduled": lambda: gk.adam(0.03, b1=lambda k: 0.9 - 0.01 * k),
    "chained": lambda: gk.chain(gk.clip_by_global_norm(1e6), gk.adam(0.03)),
    "chained by optax": lambda: optax.chain(optax.clip(1e6), gk.adam(0.03, b1=0.5)),
    "accumulated": lambda: gk.accumulate(gk.adam(0.03), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_the_preconditioner_is_that_of_the_update_made(name):
    """The update is −η P⁻¹ m: P is read off it, and P^(−1/2) H P^(−1/2) made dense."""
    params, batch = start()
    tx = track_sharpness(MOMENTS[name](), every=1, tol=1e-3)
    state = tx.init(params)
    for _ in range(2):
        before = params
        params, state, updates = advance(tx, logistic, batch, params, state)
        if flat(updates).any():
            m = mean(state, logistic, before, batch)
            assert is_preconditioned_as(updates, m, dense_logistic()(before), state)
        else:  # nothing emitted yet, so that there is no P
            assert jnp.isnan(gk.metrics(state)["preconditioned_sharpness"])


def is_preconditioned_as(updates, m, H, state, rounding=1e-4):
    """Whether the metric is λ_max of the dense P^(−1/2) H P^(−1/2), with P = −0.03 m / updates."""
    P = -0.03 * flat(m) / flat(updates)
    M = H / np.sqrt(P[:, None] * P)
    size, exact = np.linalg.norm(M, 2), np.linalg.eigvalsh(M)[-1]
    found = gk.metrics(state)
    value, residual = (found[f"preconditioned_sharpness{end}"] for end in ("", "_residual"))
    tight = residual <= (1e-3 + rounding) * size
    return tight and exact - residual - rounding * size <= value <= exact + rounding * size


def mean(state, loss, params, batch):
    """The first moment in a state; without one, the gradient."""
    has_one = [n for n in jax.tree.leaves(state, is_leaf=_has_mean) if _has_mean(n)]
    return has_one[0].mu if has_one else jax.grad(loss)(params, batch)


def _has_mean(node):
    return {"mu", "nu"} <= {*getattr(node, "_fields", ())}


@pytest.mark.parametrize(
    "inner",
    [
        gk.sgd(0.1),
        gk.partition({"one": gk.adam(), "two": gk.adam()}, {"w": "one", "b": "two"}),
        gk.masked(gk.adam(), {"w": True, "b": False}, unselected="zero"),
        optax.masked(optax.adam(0.1), {"w": True, "b": False}),
    ],
)
def test_without_one_second_moment_over_all_parameters_there_is_no_preconditioner(inner):
    params, batch = start()
    tx = track_sharpness(inner)
    _, state, _ = advance(tx, logistic, batch, params, tx.init(params))
    names = {"sharpness", "sharpness_residual", "sharpness_step", "sharpness_products"}
    assert gk.metrics(tx.init(params)).keys() == gk.metrics(state).keys() == names
    exact = np.linalg.eigvalsh(dense_logistic()(params))[-1]
    assert gk.metrics(state)["sharpness"] == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("inner", [gk.adam, gk.newton_cg, lambda: optax.sgd(0.1, momentum=0.9)])
def test_the_updates_are_bit_for_bit_those_of_the_inner_transformation(inner):
    params, batch = start()
    runs = []
    for tx in (inner(), track_sharpness(inner(), every=2)):
        step = jax.jit(functools.partial(advance, tx, logistic, batch))
        runs.append([(params, tx.init(params), None)])
        for _ in range(4):
            runs[-1].append(step(*runs[-1][-1][:2]))
    for (a, _, u), (b, _, v) in zip(*runs, strict=True):
        for x, y in zip(*map(jax.tree.leaves, ((a, u), (b, v))), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


def counted(calls):
    def curvature(problem, params, batch):
        H = gk.hessian(problem, params, batch)

        def matvec(v):
            jax.debug.callback(lambda: calls.append(1))
            return H.matvec(v)

        return gk.Operator(matvec, params)

    return curvature


def test_it_measures_at_its_steps_alone_and_keeps_the_last_values_in_between():
    params, batch = start()
    calls, tx = [], track_sharpness(gk.adam(0.01), every=3)
    state, last, spent = tx.init(params), {}, []
    step = jax.jit(functools.partial(advance, tx, logistic, batch, curvature=counted(calls)))
    assert gk.metrics(state)["sharpness_step"] == -1
    assert jnp.isnan(gk.metrics(state)["sharpness"])
    for k in range(9):
        params, state, _ = step(params, state)
        jax.effects_barrier()
        found = jax.tree.map(float, gk.metrics(state))
        assert found["sharpness_products"] == len(calls)
        assert found["sharpness_step"] == k - k % 3
        assert (found == last) == (k % 3 > 0)
        last = found
        spent.append(len(calls))
    assert spent[-1] - spent[0] <= 2 * 2 * (LEAST_PRODUCTS + 1)  # two warm measurements of two


def test_a_direction_that_overtakes_the_one_followed_is_found(dtype):
    """Also where no coupling leads there: 5,000 numbers, and two that cross at the 20th."""
    bulk = np.abs(np.random.default_rng(0).normal(size=5000)) / 20
    bulk[:8] = np.linspace(3, 8, 8)
    tx = track_sharpness(gk.sgd(), every=1)
    state = tx.init(jnp.zeros(5000, dtype))
    errors = []
    for k in range(35):
        bulk[100], bulk[200] = 10, 5 + k / 4
        state = measure(diagonal(bulk, dtype), state, tx)
        errors.append(1 - float(gk.metrics(state)["sharpness"]) / bulk.max())
    assert max(errors) < 0.2
    assert max(errors[:20] + errors[30:]) < 0.01
    assert gk.metrics(state)["sharpness_products"] < 5 * 35


@pytest.mark.parametrize(
    "values",
    [
        *([-3.0], [-5.0, -2.0], [0.0, 0.0], [2.0, 2.0]),
        *(np.linspace(-7, -1, 12), np.linspace(-9, 1e-3, 12), np.r_[np.full(11, 3.0), 2.0]),
        *(1e-12 * np.arange(1.0, 13), 1e12 * np.arange(-6.0, 6)),
    ],
)
def test_it_is_the_largest_whatever_the_signs_sizes_and_dimensions(values, dtype, eps):
    tx = track_sharpness(gk.sgd(), every=1, tol=100 * eps, max_products=60)
    state = measure(diagonal(values, dtype), tx.init(jnp.zeros(len(values), dtype)), tx)
    found, scale = gk.metrics(state), np.abs(values).max()
    assert found["sharpness"] == pytest.approx(max(values), abs=1e3 * eps * scale)
    assert found["sharpness_residual"] <= 1e3 * eps * scale
    assert gk.metrics(measure(diagonal(values, dtype), state, tx))["sharpness_step"] == 1


def test_operators_on_nested_trees(operator_with, eps):
    oracle = operator_with(np.r_[np.linspace(-4, 2, 30), 5.0, 5.5])
    tx = track_sharpness(gk.sgd(), every=1, tol=1e3 * eps, max_products=200)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), oracle.operator.domain)
    found = gk.metrics(measure(oracle.operator, tx.init(zero), tx))
    assert found["sharpness"] == pytest.approx(np.linalg.eigvalsh(oracle.matrix)[-1], rel=1e3 * eps)
    assert found["sharpness_products"] < 40


def test_nan_is_shown_and_the_next_measurement_begins_anew():
    tx = track_sharpness(gk.adam(0.1), every=1)
    good, bad = diagonal([1.0, 2.0, 8.0]), diagonal([1.0, jnp.nan, 8.0])
    state = measure(good, tx.init(jnp.zeros(3)), tx)
    state = measure(bad, state, tx)
    found = gk.metrics(state)
    eigenvalues = {name for name in found if name.endswith("sharpness")}
    assert all(jnp.isnan(found[name]) for name in eigenvalues)
    recovered = gk.metrics(measure(good, state, tx))
    assert recovered["sharpness"] == pytest.approx(8, rel=1e-3)
    assert all(jnp.isfinite(recovered[name]) for name in eigenvalues)
    spent = recovered["sharpness_products"] - found["sharpness_products"]
    assert spent <= 2 * LEAST_PRODUCTS


def test_jit_equals_eager_and_the_state_keeps_its_structure(dtype, eps):
    params, batch = start(dtype)
    tx = track_sharpness(gk.adam(0.01), every=2)
    eager = jitted = params, tx.init(params)
    step = functools.partial(advance, tx, logistic, batch)
    compiled = jax.jit(step)
    for _ in range(3):
        eager, jitted = step(*eager)[:2], compiled(*jitted)[:2]
        assert types(eager[1]) == types(jitted[1]) == types(tx.init(params))
    found = [gk.metrics(state) for _, state in (eager, jitted)]
    for name in found[0]:
        scale = abs(float(found[0][name.removesuffix("_residual")]))
        assert found[0][name] == pytest.approx(float(found[1][name]), abs=1e4 * eps * scale)


def types(state):
    leaves, structure = jax.tree.flatten(state)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


@pytest.mark.slow
def test_vmap_equals_one_by_one():
    tx = track_sharpness(gk.adam(0.1), every=2)
    step = functools.partial(advance, tx, lambda x, _: jnp.sum(x**4), None)
    starts = jnp.arange(1.0, 13.0).reshape(3, 4)
    runs = [(starts, jax.vmap(tx.init)(starts)), *((x, tx.init(x)) for x in starts)]
    together = jax.jit(jax.vmap(step))
    for _ in range(3):
        runs = [f(*run)[:2] for f, run in zip((together, step, step, step), runs, strict=True)]
    found, *alone = (gk.metrics(state) for _, state in runs)
    for i in range(3):
        for name in ("sharpness", "preconditioned_sharpness", "sharpness_step"):
            np.testing.assert_allclose(found[name][i], alone[i][name], rtol=1e-4)


@pytest.mark.slow
def test_low_precision_parameters_have_their_eigenvector_in_float32():
    params, batch = start(jnp.bfloat16)
    tx = track_sharpness(gk.adam(0.01))
    _, state, updates = advance(tx, logistic, batch, params, tx.init(params))
    vectors = state.track_sharpness.curvature.vector, state.track_sharpness.preconditioned.vector
    assert {x.dtype for x in jax.tree.leaves(vectors)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    exact = np.linalg.eigvalsh(dense_logistic()(PARAMS))[-1]
    assert gk.metrics(state)["sharpness"] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: gk.chain(gk.clip_by_global_norm(1e6), tx),
        lambda tx: optax.chain(optax.clip(1e6), tx),
        lambda tx: gk.accumulate(tx, 1),
        gk.stack_small_leaves,
        gk.master_weights,
    ],
)
def test_it_works_within_others(around):
    params, batch = start()
    tx = around(track_sharpness(gk.sgd(0.01)))
    _, state, _ = advance(tx, logistic, batch, params, tx.init(params))
    exact = np.linalg.eigvalsh(dense_logistic()(PARAMS))[-1]
    assert gk.metrics(state)["sharpness"] == pytest.approx(exact, rel=1e-2)


@pytest.mark.slow
def test_the_eigenvectors_are_sharded_like_the_parameters_in_both_modes():
    """On two virtual devices, which must be asked for before JAX is imported."""
    script = textwrap.dedent(
        """
        import jax, jax.numpy as jnp, gradkit as gk
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from gradkit.transforms.sharpness import track_sharpness
        tx = track_sharpness(gk.adam(0.1))
        weights = jnp.arange(16.0).reshape(8, 2)

        def update(params, state):
            point = gk.observe(lambda p, w: jnp.sum(w * p**2), params, weights, gk.hessian)
            return tx.update(point.grad, state, params, **point.extras)[1]

        for mode in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2,), ("x",), axis_types=(mode,))
            split = NamedSharding(mesh, P("x"))
            with jax.set_mesh(mesh):
                params = jax.device_put(jnp.ones((8, 2)), split)
                assert gk.state_shardings(tx, params).curvature.vector == split
                state = jax.jit(update)(params, tx.init(params))
            for found in (state.curvature, state.preconditioned):
                assert found.vector.sharding.is_equivalent_to(split, 2), found.vector.sharding
            assert abs(float(state.curvature.eigenvalue) - 30) < 0.1, state.curvature
        print("both modes")
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "both modes\n", done.stderr[-2000:]


def test_what_is_missing_or_out_of_range_is_named():
    tx, params = track_sharpness(gk.adam()), jnp.ones(2)
    state = tx.init(params)
    with pytest.raises(TypeError, match="track_sharpness needs the extra argument 'curvature'"):
        tx.update(params, state, params)
    wrongs: dict[str, Any] = {"every": 0, "max_products": 2.5, "tol": 0.0}
    for name, wrong in wrongs.items():
        with pytest.raises(ValueError, match=f"{name} must be a positive .*number, got {wrong}"):
            track_sharpness(gk.sgd(), **{name: wrong})


class TestScaleBySharpness:
    @pytest.mark.slow
    def test_the_rate_is_the_factor_over_the_largest_eigenvalue(self, network):
        tx = gk.scale_by_sharpness(0.5, tol=1e-3, max_products=60)
        point = gk.observe(network.loss, network.params, network.batch, gk.hessian)
        u, state = tx.update(point.grad, tx.init(network.params), network.params, **point.extras)
        top = np.linalg.eigvalsh(network.hessian)[-1]
        np.testing.assert_allclose(gk.metrics(state)["sharpness"], top, rtol=1e-3)
        rate = gk.metrics(state)["sharpness_rate"]
        np.testing.assert_allclose(rate, 0.5 / top, rtol=1e-3)
        for a, g in zip(jax.tree.leaves(u), jax.tree.leaves(point.grad), strict=True):
            np.testing.assert_allclose(a, -rate * g, rtol=1e-5)
        assert gk.metrics(state)["products"] >= LEAST_PRODUCTS

    def test_each_step_on_a_quadratic_lowers_it_as_the_rate_promises(self):
        scales = jnp.array([1.0, 7.0, 30.0])

        def loss(x, _):
            return jnp.sum(scales * x**2) / 2

        tx, x = gk.scale_by_sharpness(), jnp.ones(3)
        state = tx.init(x)
        for _ in range(12):
            point = gk.observe(loss, x, None, gk.hessian)
            u, state = tx.update(point.grad, state, x, **point.extras)
            promised = point.value - jnp.sum(point.grad**2) / (2 * 30)
            assert loss(x + u, None) <= promised + 1e-5 * abs(point.value)
            x = x + u
        assert gk.metrics(state)["products"] <= 2 * 20

    def test_where_no_curvature_is_positive_the_rate_is_the_largest_allowed(self):
        tx, x = gk.scale_by_sharpness(max_learning_rate=0.25), jnp.ones(2)
        point = gk.observe(lambda x, _: -jnp.sum(x**2), x, None, gk.hessian)
        u, _ = tx.update(point.grad, tx.init(x), x, **point.extras)
        np.testing.assert_allclose(u, -0.25 * point.grad)

    def test_curvature_that_is_not_finite_is_not_hidden(self):
        tx, x = gk.scale_by_sharpness(), jnp.array([0.0, 1.0])
        point = gk.observe(lambda x, _: jnp.sum(jnp.sqrt(x)), x, None, gk.hessian)
        u, _ = tx.update(jnp.ones(2), tx.init(x), x, **point.extras)
        assert jnp.isnan(u).all()

    def test_bad_arguments_are_refused(self):
        with pytest.raises(ValueError, match="scale_by_sharpness: every must be a positive whole"):
            gk.scale_by_sharpness(every=0)
        with pytest.raises(ValueError, match="scale_by_sharpness: tol must be a positive number"):
            gk.scale_by_sharpness(tol=0.0)
