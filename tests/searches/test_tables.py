"""The six functions of Moré & Thuente (1994), tables 1 to 6, each from four first trials."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.searches.step_length import step_length

STARTS = np.array([1e-3, 1e-1, 1e1, 1e3])


def _first(a, xp, beta=2.0):
    return -a / (a**2 + beta)


def _second(a, xp, beta=0.004):
    return (a + beta) ** 5 - 2 * (a + beta) ** 4


def _third(a, xp, beta=0.01, waves=39):
    x = a.real
    flat = xp.where(x <= 1, 1 - a, a - 1)
    kink = xp.where(abs(x - 1) < beta, (a - 1) ** 2 / (2 * beta) + beta / 2, flat)
    return kink + 2 * (1 - beta) / (waves * np.pi) * xp.sin(waves * np.pi / 2 * a)


def _yanai(a, xp, b1, b2):
    g1, g2 = (np.sqrt(1 + b**2) - b for b in (b1, b2))
    return g1 * xp.sqrt((1 - a) ** 2 + b2**2) + g2 * xp.sqrt(a**2 + b1**2)


TABLES = {  # the function, μ of sufficient decrease and η of curvature
    "1": (_first, 1e-3, 1e-1),
    "2": (_second, 1e-1, 1e-1),
    "3": (_third, 1e-1, 1e-1),
    "4": (functools.partial(_yanai, b1=1e-3, b2=1e-3), 1e-3, 1e-3),
    "5": (functools.partial(_yanai, b1=1e-2, b2=1e-3), 1e-3, 1e-3),
    "6": (functools.partial(_yanai, b1=1e-3, b2=1e-2), 1e-3, 1e-3),
}


def value_and_slope(f, alpha):
    """In NumPy, the slope by a complex step: nothing of what is tested."""
    h = 1e-30
    return f(np.complex128(alpha), np).real, f(np.complex128(alpha + h * 1j), np).imag / h


@functools.cache
def found(method, table):
    f, mu, eta = TABLES[table]

    @jax.jit
    def search(start):
        return step_length(
            lambda a: f(a, jnp),
            method=method,
            initial=start,
            decrease=mu,
            curvature=eta,
            max_steps=40,
        )

    with jax.enable_x64(True):
        return [jax.device_get(search(start)) for start in STARTS]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("method", ["more_thuente", "hager_zhang"])
def test_the_wolfe_conditions_hold_in_every_case(method, table):
    f, mu, eta = TABLES[table]
    f0, slope0 = value_and_slope(f, 0.0)
    for step in found(method, table):
        value, slope = value_and_slope(f, step.alpha)
        rounding = 8 * np.finfo(np.float64).eps * max(abs(value), abs(f0))
        assert step.satisfied
        assert abs(slope) <= -eta * slope0 * (1 + 1e-6)
        assert value <= f0 + mu * step.alpha * slope0 + rounding
        assert step.value == pytest.approx(value, rel=1e-12)
        assert step.slope == pytest.approx(slope, rel=1e-4, abs=1e-12)


# MINPACK-2's code takes 179 for all.
@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("more_thuente", 179), ("hager_zhang", 280)])
def test_all_cases_together_stay_within_their_trials(method, most):
    assert sum(int(step.evaluations) for table in TABLES for step in found(method, table)) <= most


@pytest.mark.parametrize("table", TABLES)
def test_more_thuente_goes_the_way_of_minpack(table):
    minpack = pytest.importorskip("scipy.optimize._dcsrch")
    f, mu, eta = TABLES[table]
    for start, step in zip(STARTS, found("more_thuente", table), strict=True):
        tried = []

        def phi(alpha, tried=tried):
            tried.append(alpha)
            return value_and_slope(f, alpha)[0]

        search = minpack.DCSRCH(
            phi, lambda alpha: value_and_slope(f, alpha)[1], mu, eta, 1e-14, 0.0, 1e50
        )
        alpha, *_ = search(start)
        assert int(step.evaluations) == len(tried) - 1  # φ(0)
        assert step.alpha == pytest.approx(alpha, rel=1e-7)
