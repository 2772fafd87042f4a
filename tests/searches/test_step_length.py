from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradkit.searches.line import Rules, Trial, along
from gradkit.searches.methods import METHODS
from gradkit.searches.step_length import NOISE, step_length

WOLFE = ["more_thuente", "hager_zhang"]
every_method = pytest.mark.parametrize("method", METHODS)
both_wolfe = pytest.mark.parametrize("method", WOLFE)


def search(phi, start=1.0, **options):
    """The step that a compiled search finds, as NumPy numbers."""
    found = jax.jit(lambda a: step_length(phi, initial=a, **options))(start)
    return jax.device_get(found)


def line(c, a, xp=jnp):
    """A quartic and a wave: bounded below where c[3] > 0. Returns its five terms."""
    wave = c[4] * xp.cos(c[5] * a + c[6])
    return [c[0] * a, c[1] * a**2, c[2] * a**3, c[3] * a**4, wave]


def phi_of(c):
    return lambda a: sum(line(c, a))


@functools.cache
def program(method):
    return jax.jit(
        lambda c, start, options: step_length(phi_of(c), method=method, initial=start, **options)
    )


def search_line(method, c, start, *, decrease=1e-4, curvature=0.9, shrink=0.5, max_steps=20):
    """The step along a `line`, in the dtype of c; one program for all tests."""
    c = jnp.asarray(c)
    rules = {"decrease": decrease, "curvature": curvature, "shrink": shrink}
    options = {name: jnp.asarray(rule, c.dtype) for name, rule in rules.items()}
    options["max_steps"] = jnp.int32(max_steps)
    return jax.device_get(program(method)(c, jnp.asarray(start, c.dtype), options))


def slope_terms(c, a):
    wave = -c[4] * c[5] * np.sin(c[5] * a + c[6])
    return [c[0], 2 * c[1] * a, 3 * c[2] * a**2, 4 * c[3] * a**3, wave]


def random_lines(count, dtype):
    """Lines that fall at 0 and are bounded below, and first trials from 1e-3 to 100."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(10 * count, 7))
    c[:, 3] = np.abs(c[:, 3]) + 0.1
    slopes = c[:, 0] - c[:, 4] * c[:, 5] * np.sin(c[:, 6])
    starts = 10 ** rng.uniform(-3, 2, count)
    return c[slopes < -0.1][:count].astype(dtype), starts.astype(dtype)


@both_wolfe
def test_the_minimizer_of_a_quadratic_is_found_by_the_second_trial(method, dtype, eps):
    c = np.array([-6.8, 2, 0, 0, 5.78, 0, 0], dtype)  # 2 (a − 1.7)²
    for start in (3.5, 40.0, 1000.0):
        found = search_line(method, c, start, curvature=0.1)
        assert found.alpha == pytest.approx(1.7, rel=10 * start * eps)
        assert {found.alpha.dtype, found.value.dtype, found.slope.dtype} == {dtype}
        assert (found.evaluations, found.satisfied) == (2, True)


@every_method
def test_a_first_trial_at_the_minimizer_is_taken(method, dtype):
    c = np.array([-4, 6, -4, 1, -2, 0, 0], dtype)  # (a − 1)⁴ − 3
    found = search_line(method, c, 1, curvature=1e-3)
    assert (found.alpha, found.value, found.evaluations, found.satisfied) == (1, -3, 1, True)


def test_backtracking_takes_the_first_power_that_armijo_allows(dtype):
    lines, starts = random_lines(20, dtype)
    for c, start in zip(lines, starts, strict=True):
        found = search_line("backtracking", c, start, decrease=0.3, shrink=0.7, max_steps=60)
        c64 = np.asarray(c, np.float64)
        f0, slope0 = sum(line(c64, 0.0, np)), sum(slope_terms(c64, 0.0))
        alphas = float(start) * 0.7 ** np.arange(60)
        passes = [sum(line(c64, a, np)) <= f0 + 0.3 * a * slope0 for a in alphas]
        assert found.satisfied
        assert found.evaluations == np.argmax(passes) + 1
        assert found.alpha == pytest.approx(alphas[np.argmax(passes)], rel=1e-5)


def nan_slope(a):
    return jnp.sqrt(a - a)


def parabola(a):
    return (a - 1.4) ** 2


WALLS = [  # φ, φ(0), φ′(0), and where φ ends to be a number with a slope
    (lambda a: 10 * (2 - a) - jnp.log(2 - a), 20 - np.log(2), -9.5, 2.0),  # 10x − log x
    (lambda a: -jnp.sqrt(1 - a) - 2 * a, -1, -1.5, 1.0),
    (lambda a: jnp.where(a > 1.5, jnp.inf, parabola(a)), 1.96, -2.8, 1.5),
    (lambda a: jnp.where(a > 1.5, -jnp.inf, parabola(a)), 1.96, -2.8, 1.5),
    (lambda a: jnp.where(a > 1.5, jnp.nan, parabola(a)), 1.96, -2.8, 1.5),
    (lambda a: jax.lax.cond(a > 1.5, nan_slope, parabola, a), 1.96, -2.8, 1.5),
]


def one_of(lines):
    """(k, α) -> the value of line k, which is one program for all."""
    return lambda k, a: jax.lax.switch(k, [phi for phi, *_ in lines], a)


@every_method
def test_trials_beyond_a_boundary_fail_and_shrink_the_step(method, dtype):
    def run(k, start):
        return step_length(
            lambda a: one_of(WALLS)(k, a),
            method=method,
            initial=start,
            curvature=0.2,
            max_steps=30,
        )

    compiled = jax.jit(run)
    for k, (_, f0, slope0, end) in enumerate(WALLS[:-1] if method == "backtracking" else WALLS):
        for start in (1.0, 3.0, 1000.0):
            found = jax.device_get(compiled(k, dtype.type(start)))
            assert found.satisfied
            assert 0 < found.alpha <= end
            assert np.isfinite(found.value)
            assert found.value < f0
            if method != "backtracking":
                assert abs(found.slope) <= 0.2 * abs(slope0)


@both_wolfe
def test_a_line_that_falls_as_far_as_its_wall_ends_unsatisfied_close_to_it(method, dtype):
    found = search(lambda a: jnp.sqrt(1 - a), dtype.type(3), method=method, max_steps=90)
    assert not found.satisfied
    assert found.evaluations < 90
    assert 1 - 1e-3 < found.alpha < 1
    assert np.isfinite([found.value, found.slope]).all()


@both_wolfe
def test_a_trial_without_a_slope_is_not_what_is_returned(method):
    found = search(lambda a: jnp.sqrt(1 - a), method=method, max_steps=1)
    assert (found.alpha, found.value, found.slope) == (0, 1, -0.5)
    assert (found.evaluations, found.satisfied) == (1, False)


NOT_FALLING = [
    (lambda a: a + 1,),
    (lambda a: 0 * a,),
    (lambda a: -(a**2),),
    (lambda a: jnp.log(a - 5),),  # NaN
    (lambda a: jnp.inf - a,),
    (lambda a: -jnp.inf - a,),
    (lambda a: -jnp.sqrt(a),),  # slope −∞
    (nan_slope,),
]


@every_method
def test_a_line_that_does_not_fall_at_zero_gets_no_trial(method):
    run = jax.jit(lambda k: step_length(lambda a: one_of(NOT_FALLING)(k, a), method=method))
    for k, (phi,) in enumerate(NOT_FALLING):
        found = jax.device_get(run(k))
        assert (found.alpha, found.evaluations, found.satisfied) == (0, 0, False)
        np.testing.assert_array_equal(found.value, phi(jnp.float32(0)))


@every_method
def test_a_traced_first_trial_that_makes_no_sense_is_not_made(method):
    starts = np.array([0.0, -1.0, np.inf, np.nan], np.float32)
    found = jax.vmap(lambda a: step_length(lambda t: (t - 1) ** 2, method=method, initial=a))(
        starts
    )
    for field in (found.alpha, found.evaluations, found.satisfied):
        np.testing.assert_array_equal(field, np.zeros(4))


@both_wolfe
@pytest.mark.parametrize("bend", [0.0, 1.0])
def test_an_unbounded_line_ends_at_its_lowest_trial(method, bend, dtype):
    c = np.array([-1, -bend, 0, 0, 0, 0, 0], dtype)
    found = search_line(method, c, 1.0, max_steps=15)
    alpha = np.float64(found.alpha)
    assert (found.evaluations, found.satisfied) == (15, False)
    assert alpha > 4**14
    assert found.value == pytest.approx(-alpha - bend * alpha**2, rel=1e-6)


@both_wolfe
def test_expansion_ends_where_numbers_do(method):
    found = search_line(method, np.array([-1, 0, 0, 0, 0, 0, 0], np.float32), 1.0, max_steps=500)
    assert not found.satisfied
    assert found.evaluations < 200
    assert 1e8 < found.alpha < np.inf  # where α⁴ is no number
    assert found.value == -found.alpha


@every_method
def test_steep_exponentials(method, dtype):
    """Values go up to the largest numbers and beyond."""

    def run(rate, start):
        def phi(a):
            return jnp.exp(rate * a) - 2 * rate * a

        return step_length(phi, method=method, initial=start, max_steps=30)

    compiled = jax.jit(run)
    for rate in (1.0, 30.0, 500.0):
        for reach in (60.0, 80.0, 800.0):
            found = jax.device_get(compiled(dtype.type(rate), dtype.type(reach / rate)))
            slope0 = rate - 2 * rate
            assert found.satisfied
            assert found.value <= 1 + 1e-4 * found.alpha * slope0 + 1e-6
            assert method == "backtracking" or abs(found.slope) <= 0.9 * abs(slope0)


@every_method
def test_the_scale_of_the_line_does_not_matter(method, dtype, eps):
    lines, starts = random_lines(16, dtype)
    run = jax.jit(
        jax.vmap(
            lambda c, a, scale: step_length(
                lambda t: scale * phi_of(c)(t), method=method, initial=a, curvature=0.1
            ),
            (0, 0, None),
        )
    )
    plain = run(lines, starts, dtype.type(1))
    for scale in (2.0**-40, 2.0**40):  # only exponents change
        scaled = run(lines, starts, dtype.type(scale))
        np.testing.assert_array_equal(scaled.alpha, plain.alpha)
        np.testing.assert_array_equal(scaled.evaluations, plain.evaluations)
    scaled = run(lines, starts, dtype.type(1e-12))
    np.testing.assert_array_equal(scaled.evaluations, plain.evaluations)
    np.testing.assert_allclose(scaled.alpha, plain.alpha, rtol=1e4 * eps)


@every_method
def test_64_lines_at_once_are_those_one_by_one(method, dtype, eps):
    """A line that is finished no longer changes while others go on."""
    lines, starts = random_lines(64, dtype)

    options = {"curvature": dtype.type(0.1), "max_steps": 40}

    def run(c, a):
        return step_length(phi_of(c), method=method, initial=a, **options)

    together = jax.device_get(jax.jit(jax.vmap(run))(lines, starts))
    one_by_one = [search_line(method, c, a, **options) for c, a in zip(lines, starts, strict=True)]
    assert together.satisfied.all()
    assert len(set(together.evaluations)) > 3
    np.testing.assert_array_equal(together.evaluations, [f.evaluations for f in one_by_one])
    np.testing.assert_allclose(together.alpha, [f.alpha for f in one_by_one], rtol=1e4 * eps)


def coarse(a):
    """A quadratic on top of 10⁴, in float32, all values beside φ(0) one ulp higher than that."""
    exact = 1e-4 * (a - 1) ** 2 * (1 - a / 8)
    return 1e4 + exact + jax.lax.stop_gradient(1e-3 * (a > 0))


def searched(method, noise):
    def phi(a):
        value, slope = jax.value_and_grad(coarse)(a)
        return value, slope, None

    value, slope, _ = phi(jnp.float32(0))
    start = Trial(jnp.float32(0), value, slope)
    rules = Rules(decrease=0.1, curvature=0.1, shrink=0.5, noise=noise)
    run = functools.partial(along, phi, start, None, METHODS[method], rules)
    return jax.device_get(jax.jit(lambda a: run(alpha=a, max_steps=60))(jnp.float32(3.7)))


@both_wolfe
def test_slopes_decide_where_values_differ_by_rounding(method):
    found = searched(method, noise=NOISE * np.finfo(np.float32).eps * 1e4)
    slope0 = jax.grad(coarse)(0.0)
    assert found.trial.value > coarse(jnp.float32(0))
    assert found.satisfied
    assert found.trials <= 6
    assert abs(jax.grad(coarse)(found.trial.alpha)) <= 0.1 * abs(slope0)


@every_method
def test_without_noise_armijo_cannot_be_met_there_and_the_start_is_what_is_left(method):
    found = searched(method, noise=0.0)
    assert (found.trial.alpha, found.trial.value, found.satisfied) == (0, 1e4, False)
    assert np.isfinite(found.trial.slope)
    assert found.trials <= 60


@st.composite
def falling_lines(draw):
    number = st.integers(-400, 400).map(lambda n: n / 100)
    c = np.array([draw(number) for _ in range(7)])
    if sum(slope_terms(c, 0.0)) > 0:
        c[:5] = -c[:5]
    return c, 10 ** draw(st.floats(-3, 3, width=32)), draw(st.sampled_from([0.01, 0.1, 0.9]))


@every_method
@pytest.mark.parametrize("name", ["float32", "float64"])
@given(case=falling_lines())
def test_what_is_called_satisfied_is(method, name, case):
    dtype = np.dtype(name)
    c, start, c2 = case
    c, start = c.astype(dtype), dtype.type(start)
    with jax.enable_x64(name == "float64"):
        found = search_line(method, c, start, curvature=c2)
    c, alpha = c.astype(np.float64), np.float64(found.alpha)
    terms, slopes = line(c, alpha, np), slope_terms(c, alpha)
    start_terms, start_slopes = line(c, 0.0, np), slope_terms(c, 0.0)
    f, f0, slope, slope0 = map(sum, (terms, start_terms, slopes, start_slopes))
    eps = np.finfo(dtype).eps
    phase = 1 + abs(c[5] * alpha) + abs(c[6])  # what rounding of an angle makes of a cosine
    rounding = 20 * eps * phase * sum(np.abs(terms + start_terms))
    slope_rounding = 20 * eps * phase * (sum(np.abs(slopes + start_slopes)) + abs(c[4] * c[5]))
    rounding += NOISE * eps * abs(f0)
    assert np.isfinite(alpha)
    assert alpha >= 0
    assert found.value == pytest.approx(f, abs=rounding)
    assert f <= f0 + rounding
    if found.satisfied:
        assert alpha > 0
        assert f <= f0 + 1e-4 * alpha * slope0 + rounding
        assert method == "backtracking" or abs(slope) <= c2 * abs(slope0) + slope_rounding
