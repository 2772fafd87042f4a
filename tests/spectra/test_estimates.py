from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import gradkit as gk
from gradkit.tree import random_signs

SIMILAR = np.linspace(-0.5, 2, 40)
POSITIVE = np.linspace(0.5, 4, 40)
DECAYING = 100 / np.arange(1, 41) ** 2.0
SEEDS = 400
KEY = jax.random.key(0)

ESTIMATORS = {
    "hutchinson": functools.partial(gk.trace, method="hutchinson", tol=0.05),
    "hutch++": functools.partial(gk.trace, tol=0.05),
    "xtrace": functools.partial(gk.trace, method="xtrace", tol=0.05),
    "frobenius_norm": gk.frobenius_norm,
    "diagonal": functools.partial(gk.diagonal, probes=20),
    "logdet": functools.partial(gk.logdet, shift=0.5),
}

single = pytest.mark.parametrize("dtype", ["float32"], indirect=True)  # nothing hangs on precision


def over_seeds(estimate, A):
    """The estimates of many seeds: value and standard error, a row of float64 numbers a seed."""

    @jax.jit
    def run(A, keys):
        def one(key):
            e = estimate(A, key=key)
            return ravel_pytree(e.value)[0], ravel_pytree(e.stderr)[0]

        return jax.lax.map(one, keys)

    return [np.asarray(x, float) for x in run(A, jax.random.split(jax.random.key(3), SEEDS))]


def assert_honest(values, errors, truth):
    """Whether truth ± 2 stderr and the size of the error are right.

    At a true coverage of 0.93, 0.86 of 400 seeds are missed with probability below 1e-6; half the
    standard error would cover less than 0.75.
    """
    covered = np.mean(np.abs(values - truth) <= 2 * errors, axis=0)
    size = np.sqrt(np.mean((values - truth) ** 2, axis=0) / np.mean(errors**2, axis=0))
    assert covered.min() >= 0.86
    assert size.min() >= 0.7
    assert size.max() <= 1.3


@pytest.mark.slow
@single
@pytest.mark.parametrize(
    ("method", "eigenvalues", "max_products"),
    [
        ("hutchinson", SIMILAR, 8),
        ("hutchinson", DECAYING, 40),
        ("hutch++", SIMILAR, 24),
        ("hutch++", DECAYING, 40),
        ("xtrace", SIMILAR, 40),
        ("xtrace", DECAYING, 40),
        ("xtrace", DECAYING, 20),
    ],
)
def test_the_trace_has_the_error_it_states(operator_with, method, eigenvalues, max_products):
    A, M, _ = operator_with(eigenvalues)
    estimate = functools.partial(gk.trace, method=method, tol=0.0, max_products=max_products)
    assert_honest(*over_seeds(estimate, A), np.trace(M))


def test_the_trace_has_the_error_it_states_when_stopped_by_it(operator_with):
    A, M, _ = operator_with(POSITIVE)
    estimate = functools.partial(gk.trace, method="hutchinson", tol=0.02)
    assert_honest(*over_seeds(estimate, A), np.trace(M))


def test_the_diagonal_has_the_error_it_states(operator_with):
    A, M, _ = operator_with(SIMILAR)
    estimate = functools.partial(gk.diagonal, probes=12)
    assert_honest(*over_seeds(estimate, A), np.diag(M))


def test_the_frobenius_norm_has_the_error_it_states(operator_with):
    A, M, _ = operator_with(SIMILAR)
    estimate = functools.partial(gk.frobenius_norm, tol=0.0, max_products=20)
    assert_honest(*over_seeds(estimate, A), np.linalg.norm(M))


def test_the_logdet_has_the_error_it_states(operator_with):
    A, M, _ = operator_with(POSITIVE)
    estimate = functools.partial(gk.logdet, probes=8, steps=16, shift=0.25)
    truth = np.linalg.slogdet(M + 0.25 * np.eye(40))[1]
    assert_honest(*over_seeds(estimate, A), truth)


@single
def test_a_tolerance_is_met_and_costs_what_it_must(operator_with):
    A, M, _ = operator_with(POSITIVE)
    loose, tight = (gk.trace(A, key=KEY, tol=tol, method="hutchinson") for tol in (0.05, 0.01))
    assert loose.converged
    assert tight.converged
    assert tight.stderr <= 0.01 * tight.value
    assert tight.products > 4 * loose.products
    assert abs(tight.value - np.trace(M)) <= 4 * tight.stderr


@pytest.mark.slow
@single
def test_a_tolerance_out_of_reach_is_a_value(operator_with):
    A, *_ = operator_with(np.linspace(-1, 1, 40))
    for estimate in (
        gk.trace(A, key=KEY, max_products=30),
        gk.trace(A, key=KEY, max_products=30, method="hutchinson"),
        gk.trace(A, key=KEY, max_products=30, method="xtrace"),
        gk.frobenius_norm(A, key=KEY, max_products=30, tol=1e-4),
    ):
        assert estimate.products == 30
        assert not estimate.converged
        assert np.isfinite(estimate.value)


def test_xtrace_is_exact_on_a_low_rank_and_says_so(operator_with, eps):
    A, *_ = operator_with(np.concatenate([np.zeros(36), [-2, 1, 3, 40]]))
    estimate = gk.trace(A, key=KEY, method="xtrace", tol=0.0)
    assert estimate.value == pytest.approx(42, abs=200 * eps * 40)
    assert estimate.stderr <= 200 * eps * 40
    assert estimate.products <= 12


@pytest.mark.slow
@single
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_the_others_beat_signs_where_few_eigenvalues_dominate(operator_with, method):
    A, M, _ = operator_with(DECAYING)
    signs, ranged = (
        gk.trace(A, key=KEY, tol=0.0, max_products=32, method=method)
        for method in ("hutchinson", method)
    )
    assert ranged.stderr < signs.stderr / 10
    assert abs(ranged.value - np.trace(M)) < signs.stderr / 5


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_multiples_of_the_identity_are_exact(dtype, eps, method):
    A = gk.Operator(Partial(_times, 3.0), {"a": jnp.zeros(30, dtype)})
    estimate = gk.trace(A, key=KEY, method=method)
    assert estimate.value == pytest.approx(90, rel=300 * eps)
    assert estimate.stderr <= (0 if method == "hutchinson" else 300 * eps * 90)
    assert estimate.converged


def _times(factor, v):
    return jax.tree.map(lambda x: factor * x, v)


@pytest.mark.slow
def test_a_diagonal_operator_has_no_error(dtype, eps):
    d = {"a": jnp.arange(1, 7, dtype=dtype).reshape(2, 3), "b": [jnp.asarray(9.0, dtype)]}
    A = gk.Operator(Partial(_entrywise, d), d)
    flat = np.asarray(ravel_pytree(d)[0], float)
    diagonal = gk.diagonal(A, key=KEY, probes=5)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), diagonal.value, d))
    assert not ravel_pytree(diagonal.stderr)[0].any()
    assert diagonal.products == 5
    for estimate, truth in (
        (gk.trace(A, key=KEY, method="hutchinson"), flat.sum()),
        (gk.frobenius_norm(A, key=KEY), np.linalg.norm(flat)),
    ):
        assert estimate.value == pytest.approx(truth, rel=10 * eps)
        assert estimate.stderr == 0
        assert estimate.products == 8
    logdet = gk.logdet(A, key=KEY, probes=20, steps=7)
    assert abs(logdet.value - np.log(flat).sum()) <= 4 * logdet.stderr


def _entrywise(d, v):
    return jax.tree.map(lambda d, v: d * v, d, v)


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_dimension_and_the_zero_operator_are_exact(dtype, eps, name, value):
    truth = np.log(value + 0.5) if name == "logdet" else value
    A = gk.Operator(Partial(_times, value), jnp.zeros((1,), dtype))
    estimate = ESTIMATORS[name](A, key=KEY)
    assert np.asarray(estimate.value).item() == pytest.approx(truth, rel=20 * eps)
    assert np.asarray(estimate.stderr).item() <= 20 * eps * abs(truth)
    assert estimate.converged


@single
def test_the_logdet_is_nan_where_the_operator_is_not_positive(operator_with):
    for eigenvalues in (SIMILAR, np.zeros(40)):
        A, *_ = operator_with(eigenvalues)
        estimate = gk.logdet(A, key=KEY, steps=20)
        assert np.isnan(estimate.value)
        assert not estimate.converged
        assert gk.logdet(A, key=KEY, steps=20, shift=1.0).converged


@pytest.mark.slow
@single
def test_too_few_steps_for_the_logdet_are_reported(operator_with):
    A, M, _ = operator_with(np.geomspace(1e-4, 1, 40))
    few, all_of_them = (gk.logdet(A, key=KEY, probes=40, steps=s) for s in (4, 50))
    truth = np.linalg.slogdet(M)[1]
    assert not few.converged
    assert few.value > truth
    assert all_of_them.converged
    assert abs(all_of_them.value - truth) <= 4 * all_of_them.stderr


@single
@pytest.mark.parametrize("name", ESTIMATORS)
def test_nan_is_reported_and_stops_the_loop(dtype, name):
    A = gk.Operator(Partial(_times, np.nan), jnp.zeros((1,), dtype))
    estimate = ESTIMATORS[name](A, key=KEY)
    assert not estimate.converged
    assert np.isnan(estimate.value).all()
    assert name in ("diagonal", "logdet") or estimate.products <= 2


@single
@pytest.mark.parametrize("name", ESTIMATORS)
def test_host_loop_and_jit_give_the_same_numbers(operator_with, eps, name):
    A, *_ = operator_with(POSITIVE)
    estimate = ESTIMATORS[name]
    compiled = jax.jit(lambda A, key: estimate(A, key=key))(A, KEY)
    looped = estimate(A, key=KEY, drive=gk.on_host)
    assert looped.products == compiled.products
    assert looped.converged == compiled.converged
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e4 * eps, atol=2e4 * eps),
        (looped.value, looped.stderr),
        (compiled.value, compiled.stderr),
    )
    assert not KEY.is_deleted()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_numbers_are_float32_at_least(name):
    A = gk.Operator(Partial(_times, 2.0), {"a": jnp.zeros((3, 5), jnp.bfloat16)})
    estimate = ESTIMATORS[name](A, key=KEY)
    for leaf in jax.tree.leaves((estimate.value, estimate.stderr)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


def test_probes_are_independent_signs(dtype):
    domain = {"a": jnp.zeros((7, 9), dtype), "b": [jnp.zeros((), dtype), jnp.zeros(136, dtype)]}
    draw = jax.jit(jax.vmap(lambda key: random_signs(key, domain)))
    leaves = jax.tree.leaves(draw(jax.random.split(KEY, 1000)))
    assert all(leaf.dtype == dtype for leaf in leaves)
    Z = np.concatenate([np.asarray(leaf, float).reshape(1000, -1) for leaf in leaves], axis=1)
    assert set(np.unique(Z)) == {-1.0, 1.0}
    for pairs in (Z.T @ Z / np.sqrt(1000), Z @ Z.T / np.sqrt(200)):
        off = pairs[np.triu_indices(len(pairs), 1)]
        assert abs(off).max() < 6
        assert off.std() == pytest.approx(1, abs=0.05)
        assert abs(off.mean()) < 6 / np.sqrt(off.size)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("trace", {"max_products": 11}, "max_products: expected at least 12"),
        ("trace", {"max_products": 7, "method": "xtrace"}, "max_products: expected at least 8"),
        ("trace", {"method": "exact"}, "method: expected one of hutchinson, hutch"),
        ("frobenius_norm", {"max_products": 1}, "max_products: expected at least 4"),
        ("diagonal", {"probes": 1}, "probes: expected at least 4"),
        ("logdet", {"probes": 1}, "probes: expected at least 4"),
        ("logdet", {"steps": 1}, "steps: expected at least 2"),
    ],
)
def test_arguments_out_of_range_are_refused(name, arguments, message):
    A = gk.Operator(Partial(_times, 2.0), jnp.zeros(8))
    with pytest.raises(ValueError, match=message):
        getattr(gk, name)(A, key=KEY, **arguments)
