"""The slice holds the loss itself, on the plane of the two steepest directions."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.runner.config import Spectrum
from gradkit.runner.slice import POINTS, loss_slice
from gradkit.runner.subject import Subject


def subject_of(loss, params, batch=None):
    return Subject(
        label="test",
        folder=Path("nowhere"),
        problem=gk.Problem(loss),
        params=params,
        batch=batch,
        data="batch",
        step=None,
        plain=True,
        defaults=Spectrum(),
        seed=0,
        likelihood=None,
    )


def sliced(one, k=2, **options):
    largest = gk.eigsh(gk.hessian(one.problem, one.params, one.batch), k, key=jax.random.key(0))
    gradient = jax.grad(one.problem.value)(one.params, one.batch)
    return largest, *loss_slice(one, largest, gradient=gradient, **options)


@pytest.mark.slow
def test_the_values_are_the_loss_at_the_points(network):
    one = subject_of(network.loss, network.params, network.batch)
    largest, about, arrays = sliced(one)
    assert about["eigenvalues"] == largest.values[::-1].tolist()
    assert (about["points"], about["reach"]) == (POINTS, arrays["a"][-1])
    np.testing.assert_array_equal(arrays["a"], -arrays["a"][::-1])
    v, w = (jax.tree.map(lambda x, i=i: x[i], largest.vectors) for i in (1, 0))
    eps = float(np.finfo(largest.values.dtype).eps)
    for i, j in itertools.product((0, 5, 16, 27), repeat=2):
        a, b = arrays["a"][i], arrays["b"][j]
        there = jax.tree.map(lambda p, v, w, a=a, b=b: p + a * v + b * w, one.params, v, w)
        expected = network.loss(there, network.batch)
        assert arrays["loss"][i, j] == pytest.approx(float(expected), rel=200 * eps)
    rise = arrays["loss"][[0, -1, 16, 16], [16, 16, 0, -1]] - arrays["loss"][16, 16]
    assert (rise > 0).all()


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_same(network):
    one = subject_of(network.loss, network.params, network.batch)
    whole, parts = sliced(one)[2], sliced(one, micro_batch=7)[2]
    rtol = 100 * np.finfo(one.params["scale"].dtype).eps
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=rtol)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_range_is_where_the_loss_rises(size):
    def loss(x, _):
        return size * (1 + 2 * x[0] ** 2 + x[1] ** 2 / 2 + jnp.sum(x**2) / 8)

    _, about, arrays = sliced(subject_of(loss, jnp.zeros(5)))
    middle = POINTS // 2
    lowest = arrays["loss"][middle, 0] / arrays["loss"][middle, middle]
    assert lowest * (1 + 1e-5) >= 1 + 4
    assert lowest <= 1 + 4 * 4
    assert about["reach"] == 4.0


@pytest.mark.slow
def test_the_range_ends_before_the_loss_is_not_finite():
    def loss(x, _):
        return jnp.where(jnp.abs(x).max() < 0.7, jnp.sum(x**2 * jnp.arange(1, 4)), jnp.inf) + 1

    _, about, arrays = sliced(subject_of(loss, jnp.zeros(3)))
    assert about["reach"] == 0.5
    assert np.isfinite(arrays["loss"]).all()


@pytest.mark.slow
def test_there_is_no_slice_of_a_line_or_of_a_point_alone():
    assert sliced(subject_of(lambda x, _: x[0] ** 2, jnp.ones(1)), k=1)[1:] == (None, {})

    def point(x, _):
        return jnp.where(jnp.all(x == 0), jnp.sum(x**2), jnp.nan)

    assert sliced(subject_of(point, jnp.zeros(3)))[1:] == (None, {})
