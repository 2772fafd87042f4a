from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.spectra.condition import BASES


def true(eigenvalues, shift=0.0):
    magnitude = np.abs(np.asarray(eigenvalues) + shift)
    return magnitude.max() / magnitude.min()


@pytest.mark.parametrize(
    "eigenvalues", [np.linspace(1, 30, 40), np.linspace(-7, 5, 40), np.full(10, -2.0)]
)
def test_small_problems_are_exact_to_rounding(operator_with, eps, eigenvalues):
    A, M, _ = operator_with(eigenvalues)
    interval = gk.condition_number(A, key=jax.random.key(0))
    exact = true(np.linalg.eigvalsh(M))
    assert interval.lower <= exact <= interval.upper
    assert interval.value == pytest.approx(exact, rel=1e3 * eps * exact)
    assert interval.upper - interval.lower <= 1e3 * eps * exact**2
    assert interval.basis == BASES[0]


def test_the_shift_is_added_to_the_eigenvalues(operator_with, eps):
    A, M, _ = operator_with(np.linspace(-1, 30, 40))
    exact = true(np.linalg.eigvalsh(M), 1.5)
    interval = gk.condition_number(A, key=jax.random.key(0), shift=1.5)
    assert interval.lower <= exact <= interval.upper
    assert interval.value == pytest.approx(exact, rel=1e3 * eps * exact)


@pytest.mark.parametrize("rank", [0, 5, 39])
def test_a_singular_operator_has_no_upper_bound(operator_with, rank):
    A, *_ = operator_with(np.concatenate([np.zeros(40 - rank), np.linspace(1, 2, rank)]))
    interval = gk.condition_number(A, key=jax.random.key(0))
    assert interval.upper == np.inf
    assert not jnp.isnan(interval.value)
    assert interval.basis == BASES[3]


def diagonal(values):
    d = jnp.asarray(values)
    return gk.Operator(jax.tree_util.Partial(jnp.multiply, d), d)


@pytest.mark.slow
def test_large_definite_operators_get_an_interval_that_covers_at_its_stated_rate(dtype):
    values = np.concatenate([np.random.default_rng(0).uniform(1, 3, 2000), [25.0, 40.0]])
    A = diagonal(values.astype(dtype))
    many = jax.jit(
        jax.vmap(functools.partial(_interval, A, shift=0.5)),
    )(jax.random.split(jax.random.key(1), 100))
    exact = true(values, 0.5)
    assert np.mean((many.lower <= exact) & (exact <= many.upper)) >= 0.95
    assert (np.asarray(many.code) == 1).all()
    assert (np.asarray(many.upper) <= 1.5 * exact).all()


def _interval(A, key, shift):
    return gk.condition_number(A, key=key, shift=shift)


def test_large_indefinite_operators_get_a_lower_bound_only(dtype):
    values = np.random.default_rng(0).uniform(-1, 3, 2000).astype(dtype)
    interval = gk.condition_number(diagonal(values), key=jax.random.key(0))
    assert interval.lower <= true(values)
    assert interval.upper == np.inf
    assert interval.value == interval.lower >= 3
    assert interval.basis == BASES[2]


def test_nan_is_named():
    interval = gk.condition_number(diagonal(np.full(20, np.nan)), key=jax.random.key(0))
    assert interval.basis == BASES[4]
