"""The test problems keep to their sources: starts, values, minimizers, certificates."""

from __future__ import annotations

from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from problems import andrei, chains, mgh, small, structured
from scipy.optimize import minimize

UNCONSTRAINED = {p.name: p for p in problems.unconstrained()}
REGRESSIONS = problems.regressions()

MINIMIZERS = {  # where the least value is attained, as the sources print it
    "mgh01_rosenbrock": (1, 1),
    "mgh02_freudenstein_roth": (5, 4),
    "mgh04_brown_badly_scaled": (1e6, 2e-6),
    "mgh05_beale": (3, 0.5),
    "mgh07_helical_valley": (1, 0, 0),
    "mgh11_gulf": (50, 25, 1.5),
    "mgh12_box": (1, 10, 1),
    "mgh13_powell_singular": 0,
    "mgh14_wood": 1,
    "mgh18_biggs_exp6": (1, 10, 1, 5, 4, 3),
    "mgh21_rosenbrock_100": 1,
    "mgh22_powell_singular_100": 0,
    "mgh25_variably_dimensioned_100": 1,
    "mgh27_brown_almost_linear_10": 1,
    "mgh32_linear_full_rank_10": -1,
    "hatfldfl": (0.032 - 0.024 * 24 / 19, 0.024 * 24**2 / (19 * 43), 43 / 24),
    "devgla1": (60.137, 1.371, 3.112, 1.761),
    "himmelbcls": (3, 2),
    "hairy": 0,
    "humps": 0,
    "snail": 0,
    "zangwil2": (4, 9),
    "extended_white_holst_100": 1,
    "extended_himmelblau_100": (3, 2) * 50,
    "extended_freudenstein_roth_100": (5, 4) * 50,
    "extended_hiebert_10": (10, 5000) * 5,
    "staircase_2_100": 1,
    "raydan_1_100": 0,
    "diagonal_1_100": np.log(np.arange(1, 101)),
    "diagonal_5_100": 0,
    "hager_100": np.log(np.arange(1, 101)) / 2,
    "quadratic_1_100": np.append(np.zeros(99), 0.01),
    "arwhead_100": np.append(np.ones(99), 0),
    "biggsb1_100": 1,
    "chnrosnb_50": 1,
    "dixmaana_300": 0,
    "fletchcr_100": 1,
    "genrose_100": 1,
    "luksan11ls_100": 1,
    "oscipath_5": 1,
    "qing_100": np.sqrt(np.arange(1, 101)),
    "quartc_100": np.arange(1, 101),
    "variably_dimensioned_200": 1,
}
AT_START = {  # values at the standard start, published or given by other implementations
    "mgh01_rosenbrock": 24.2,
    "mgh02_freudenstein_roth": 400.5,
    "mgh03_powell_badly_scaled": 1.13526171734838,
    "mgh04_brown_badly_scaled": 999998000003.0,
    "mgh05_beale": 14.203125,
    "mgh06_jennrich_sampson": 4171.306,
    "mgh07_helical_valley": 2500.0,
    "mgh08_bard": 41.68170,
    "mgh09_gaussian": 3.888107e-6,
    "mgh10_meyer": 1.693608e9,
    "mgh11_gulf": 12.11071,
    "mgh12_box": 1031.154,
    "mgh13_powell_singular": 215.0,
    "mgh14_wood": 19192.0,
    "mgh15_kowalik_osborne": 5.313172e-3,
    "mgh16_brown_dennis": 7926693.0,
    "mgh17_osborne_1": 0.8790263,
    "mgh18_biggs_exp6": 0.7790701,
    "mgh19_osborne_2": 2.093420,
    "mgh20_watson_6": 30.0,
    "mgh25_variably_dimensioned_10": 2198551.0,
    "mgh30_broyden_tridiagonal_10": 21.0,
    "allinitu": 13.0,
    "himmelbcls": 106.0,
    "chnrosnb_50": 7635.84,
    "bdqrtic_100": 21696.0,
    "dixmaana_300": 2851.0,
    "errinros_50": 110181.776,
    "growthls": 85962.429,
    "hatfldd": 25.2430323,
    "hatflde": 45.2064959,
    "himmelbf": 29053.0024,
    "palmer1c": 345295024.0,
    "palmer3c": 8121974.24,
    "palmer7c": 3205127.22,
    "tointgor_50": 5073.786,
    "tointpsp_50": 1827.70857,
    "tointqor_50": 2335.28750,
    "yfitu": 2340.41959,
}

PRINTED = {  # least values to the digits printed
    "mgh06_jennrich_sampson": "124.362",
    "mgh08_bard": "8.21487e-3",
    "mgh09_gaussian": "1.12793e-8",
    "mgh10_meyer": "87.9458",
    "mgh15_kowalik_osborne": "3.07505e-4",
    "mgh16_brown_dennis": "85822.2",
    "mgh17_osborne_1": "5.46489e-5",
    "mgh19_osborne_2": "4.01377e-2",
    "mgh20_watson_6": "2.28767e-3",
    "mgh20_watson_9": "1.39976e-6",
    "mgh20_watson_12": "4.72238e-10",
    "mgh23_penalty_1_4": "2.24997e-5",
    "mgh23_penalty_1_10": "7.08765e-5",
    "mgh24_penalty_2_4": "9.37629e-6",
    "mgh24_penalty_2_10": "2.93660e-4",
    "mgh35_chebyquad_8": "3.51687e-3",
    "cliff": "0.199786",
    "brkmcc": "0.16904",
    "errinros_50": "39.9041",
    "bdqrtic_100": "378.769",
    "cragglvy_100": "32.27",
    "freuroth_100": "11965",
    "tointgor_50": "1373.905",
    "tointpsp_50": "225.560",
    "penalty_2_100": "97096.1",
}

REACHED = (  # a quasi-Newton method comes to the least value from near the start
    "mgh05_beale",
    "brkmcc",
    "allinitu",
    "diagonal_3_100",
    "extended_tridiagonal_2_100",
    "tointqor_50",
)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@jax.jit
def at_minimizers():
    return {k: UNCONSTRAINED[k].fun(jnp.asarray(x)) for k, x in points().items()}


def points() -> dict[str, np.ndarray]:
    return {
        name: np.broadcast_to(np.asarray(x, dtype=np.float64), UNCONSTRAINED[name].n)
        for name, x in MINIMIZERS.items()
    }


def test_names_are_distinct_and_there_are_enough_of_them():
    assert len(UNCONSTRAINED) == len(problems.unconstrained()) >= 180
    assert {name[:5] for name in UNCONSTRAINED} >= {f"mgh{k:02d}" for k in range(1, 36)}
    assert len({r.name for r in REGRESSIONS}) == 27


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("which", [mgh, small, andrei, chains, structured])
def test_starts_are_finite_in_the_dtype_of_the_variables(which, dtype):
    chosen = which.problems()

    @jax.jit
    def observed(starts):
        return [jax.value_and_grad(p.fun)(x) for p, x in zip(chosen, starts, strict=True)]

    found = observed([jnp.asarray(p.x0, dtype) for p in chosen])
    for problem, (value, grad) in zip(chosen, found, strict=True):
        assert problem.x0.shape == grad.shape == (problem.n,), problem.name
        assert value.dtype == grad.dtype == dtype, problem.name
        assert value.shape == (), problem.name
        assert np.isfinite(value), problem.name
        assert np.all(np.isfinite(grad)), problem.name
        if dtype == "float64":
            assert problem.best < value, problem.name
            if problem.name in AT_START:
                assert value == pytest.approx(AT_START[problem.name], rel=1e-6), problem.name


def test_every_published_start_value_belongs_to_a_problem():
    assert set(AT_START) | set(PRINTED) | set(MINIMIZERS) | set(REACHED) <= set(UNCONSTRAINED)


def test_residuals_are_a_vector_whose_squares_add_up():
    chosen = [p for p in UNCONSTRAINED.values() if p.residuals is not None]
    assert len(chosen) >= 100
    for problem in chosen:
        assert problem.residuals is not None
        terms = jax.eval_shape(problem.residuals, jnp.asarray(problem.x0, jnp.float32))
        assert terms.dtype == np.float32, problem.name
        assert terms.ndim == 1, problem.name
        assert problem.best >= 0, problem.name
    x = jnp.asarray([-1.2, 1.0])
    problem = UNCONSTRAINED["mgh01_rosenbrock"]
    np.testing.assert_array_equal(problem.residuals(x), [10 * (1 - 1.2**2), 2.2])
    assert problem.fun(x) == jnp.sum(problem.residuals(x) ** 2)


def test_least_values_are_attained_at_the_published_minimizers():
    found = at_minimizers()
    assert set(found) == set(MINIMIZERS)
    for name, value in found.items():
        best = UNCONSTRAINED[name].best
        assert abs(value - best) <= 1e-13 * abs(best) + 1e-24, name


@pytest.mark.parametrize("name", PRINTED)
def test_least_values_have_the_printed_digits(name):
    printed = Decimal(PRINTED[name])
    unit = 10.0 ** int(printed.as_tuple().exponent)
    assert abs(UNCONSTRAINED[name].best - float(printed)) <= unit


@pytest.mark.parametrize("name", REACHED)
def test_least_values_agree_with_a_quasi_newton_method(name):
    problem = UNCONSTRAINED[name]
    both = jax.jit(jax.value_and_grad(problem.fun))

    def observed(x):
        value, grad = both(jnp.asarray(x))
        return float(value), np.asarray(grad)

    start = problem.x0 + 0.01 * np.random.default_rng(0).standard_normal(problem.n)
    found = minimize(observed, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    assert abs(found.fun - problem.best) <= 1e-6 * max(1.0, abs(problem.best))


@pytest.mark.slow
def test_regressions_attain_the_certified_sums_of_squares():
    @jax.jit
    def certified():
        terms = [problems.residuals(r) for r in REGRESSIONS]
        b = [jnp.asarray(r.certified) for r in REGRESSIONS]
        return [(f(x), jax.jacfwd(f)(x)) for f, x in zip(terms, b, strict=True)]

    for regression, (terms, jacobian) in zip(REGRESSIONS, certified(), strict=True):
        # parameters of eleven digits move the terms by up to this
        slack = np.abs(jacobian) @ (5e-11 * np.abs(regression.certified))
        error = abs(float(jnp.sum(terms**2)) - regression.rss)
        assert error <= 1e-9 * regression.rss + float(np.sum(slack**2)), regression.name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regressions_start_finite_and_above_the_certified_sums(dtype):
    @jax.jit
    def sums():
        return [
            [jnp.sum(problems.residuals(r)(jnp.asarray(b, dtype)) ** 2) for b in r.starts]
            for r in REGRESSIONS
        ]

    for regression, values in zip(REGRESSIONS, sums(), strict=True):
        assert regression.level in ("lower", "average", "higher")
        assert len(regression.x) == len(regression.y) > len(regression.certified)
        for value in values:
            assert value.dtype == dtype, regression.name
            assert regression.rss < value < np.inf, regression.name
