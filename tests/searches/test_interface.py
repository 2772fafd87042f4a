"""What `step_length` takes and gives back, whichever the method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.searches.methods import METHODS, method_named
from gradkit.searches.step_length import step_length

every_method = pytest.mark.parametrize("method", METHODS)


def parabola(a):
    return (a - 3) ** 2


@every_method
def test_aux_is_that_of_the_step(method):
    def phi(a):
        aux = {"alpha": a, "count": jnp.int32(7), "tree": [jnp.ones((2, 0)), a * jnp.ones(3), None]}
        return parabola(a), aux

    run = jax.jit(lambda a: step_length(phi, method=method, initial=a, has_aux=True, max_steps=9))
    for start in (1.0, 50.0):
        found = jax.device_get(run(start))
        assert found.satisfied
        assert found.aux["alpha"] == found.alpha
        np.testing.assert_array_equal(found.aux["tree"][1], np.full(3, found.alpha))
        assert (found.aux["count"], found.aux["tree"][2]) == (7, None)
    failed = step_length(lambda a: (a, a + 2), method=method, has_aux=True)
    assert (failed.alpha, failed.aux) == (0, 2)


@every_method
def test_eager_is_compiled(method):
    eager = step_length(parabola, method=method, initial=50.0)
    inside = jax.jit(lambda: step_length(parabola, method=method, initial=50.0))()
    np.testing.assert_allclose(np.array(eager[:5]), np.array(inside[:5]), rtol=1e-6)
    assert eager.aux is None


@every_method
def test_the_dtype_is_that_of_the_line(method):
    with jax.enable_x64(True):
        for target, dtype in (
            (np.float32(3), np.float32),
            (np.float64(3), np.float64),
            (jnp.bfloat16(3), np.float32),
        ):
            found = jax.jit(lambda t: step_length(lambda a: (a - t) ** 2, method=method))(target)
            assert {x.dtype for x in found[:3]} == {np.dtype(dtype)}
            assert found.satisfied
            assert found.evaluations.dtype == np.int32


def test_a_half_precision_value_is_coarse_and_still_searched():
    found = step_length(lambda a: ((a - 3) ** 2 + 1).astype(jnp.bfloat16), initial=8.0)
    assert found.satisfied
    assert found.alpha.dtype == jnp.float32
    assert abs(found.alpha - 3) < 2.8


@every_method
def test_the_line_is_compiled_once_for_its_start_and_once_for_its_trials(method):
    program = jax.jit(
        lambda a: step_length(lambda t: jnp.tanh(t - 1) * t, method=method, initial=a)
    )
    assert program.lower(1.0).as_text().count("stablehlo.tanh") == 2


@every_method
def test_most_trials_may_be_traced(method):
    run = jax.jit(lambda n: step_length(lambda a: jnp.abs(a - 1e-9), method=method, max_steps=n))
    found = run(3)
    assert (found.evaluations, found.satisfied) == (3, False)
    assert found.alpha == 0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hager-zhang", "hager_zhang"),
        ("MoreThuente", "more_thuente"),
        ("backtrack", "backtracking"),
    ],
)
def test_an_unknown_method_names_the_nearest(name, near):
    with pytest.raises(
        ValueError, match=f"expected one of .*, got '{name}'; did you mean '{near}'"
    ):
        step_length(parabola, method=name)  # pyright: ignore[reportArgumentType]
    assert method_named(near) is METHODS[near]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"initial": 0.0}, "initial: expected a number above 0"),
        ({"initial": float("nan")}, "initial: expected"),
        ({"decrease": 0.5}, "decrease: expected a number above 0 and below 0.5, got 0.5"),
        ({"curvature": 1.0}, "curvature: expected"),
        ({"decrease": 0.2, "curvature": 0.1}, "curvature: expected at least decrease = 0.2"),
        ({"shrink": 1}, "shrink: expected"),
        ({"max_steps": 0}, "max_steps: expected"),
    ],
)
def test_numbers_out_of_their_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        step_length(parabola, **options)


def test_backtracking_has_no_use_for_the_curvature_condition():
    assert step_length(parabola, method="backtracking", decrease=0.2, curvature=0.1).satisfied


@pytest.mark.parametrize("phi", [lambda a: (a, a), lambda a: a * jnp.ones(3), lambda a: 1])
def test_a_line_that_is_no_real_scalar_is_refused(phi):
    with pytest.raises(TypeError, match="expected a real scalar"):
        step_length(phi)
