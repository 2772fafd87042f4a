"""The 35 problems of Moré, Garbow and Hillstrom.

Source: J. J. Moré, B. S. Garbow and K. E. Hillstrom, Testing unconstrained optimization software,
ACM Transactions on Mathematical Software 7 (1981) 17–41. Numbers in the names are the paper's.
Every problem is a sum of squares; the printed minimum values were refined to double precision.
Differs: problem 11 has |y_i − x_2| for the misprinted product; problem 35 with n = 10 has a lower
minimum than the printed one, which stands among the local ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Unconstrained, counting, like, squares

Array = jax.Array

BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)
GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521)
MEYER = (34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744)
MEYER += (8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872)
KOWALIK_Y = (0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
KOWALIK_U = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)
OSBORNE_1 = """
0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.850 0.818 0.784 0.751 0.718 0.685 0.658 0.628 0.603
0.580 0.558 0.538 0.522 0.506 0.490 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.420 0.414 0.411
0.406
"""
OSBORNE_2 = """
1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 0.606
0.602 0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.500 0.423
0.395 0.375 0.372 0.391 0.396 0.405 0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668
0.645 0.632 0.591 0.559 0.597 0.625 0.739 0.710 0.729 0.720 0.636 0.581 0.428 0.292 0.162 0.098
0.054
"""


def rosenbrock(x: Array) -> Array:
    odd, even = x[::2], x[1::2]
    return jnp.concatenate([10 * (even - odd**2), 1 - odd])


def freudenstein_roth(x: Array) -> Array:
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x: Array) -> Array:
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


def brown_badly_scaled(x: Array) -> Array:
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


def beale(x: Array) -> Array:
    return like([1.5, 2.25, 2.625], x) - x[0] * (1 - x[1] ** counting(3, x))


def jennrich_sampson(x: Array) -> Array:
    i = counting(10, x)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x: Array) -> Array:
    turn = jnp.arctan(x[1] / x[0]) / (2 * math.pi) + jnp.where(x[0] < 0, 0.5, 0.0)
    return jnp.stack([10 * (x[2] - 10 * turn), 10 * (jnp.hypot(x[0], x[1]) - 1), x[2]])


def bard(x: Array) -> Array:
    u = counting(15, x)
    return like(BARD, x) - (x[0] + u / ((16 - u) * x[1] + jnp.minimum(u, 16 - u) * x[2]))


def gaussian(x: Array) -> Array:
    t = (8 - counting(15, x)) / 2
    y = like((*GAUSSIAN, 0.3989, *reversed(GAUSSIAN)), x)
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - y


def meyer(x: Array) -> Array:
    t = 45 + 5 * counting(16, x)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - like(MEYER, x)


def gulf(x: Array) -> Array:
    t = np.arange(1, 100) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(like(y, x) - x[1]) ** x[2]) / x[0]) - like(t, x)


def box(x: Array) -> Array:
    t = counting(10, x) / 10
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (jnp.exp(-t) - jnp.exp(-10 * t))


def powell_singular(x: Array) -> Array:
    a, b, c, d = x.reshape(-1, 4).T
    terms = [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]
    return jnp.concatenate(terms)


def wood(x: Array) -> Array:
    a, b, c, d = x.reshape(-1, 4).T
    valleys = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    return jnp.concatenate([*valleys, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


def kowalik_osborne(x: Array) -> Array:
    u = like(KOWALIK_U, x)
    return like(KOWALIK_Y, x) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x: Array) -> Array:
    t = counting(20, x) / 5
    return (x[0] + t * x[1] - jnp.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - jnp.cos(t)) ** 2


def osborne_1(x: Array) -> Array:
    t = 10 * (counting(33, x) - 1)
    y = like(np.array(OSBORNE_1.split(), float), x)
    return y - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs_exp6(x: Array) -> Array:
    t = counting(13, x) / 10
    y = jnp.exp(-t) - 5 * jnp.exp(-10 * t) + 3 * jnp.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


def osborne_2(x: Array) -> Array:
    t = (counting(65, x) - 1) / 10
    y = like(np.array(OSBORNE_2.split(), float), x)
    bells = jnp.exp(-((t[:, None] - x[8:]) ** 2) * x[5:8]) @ x[1:4]
    return y - (x[0] * jnp.exp(-t * x[4]) + bells)


def watson(x: Array) -> Array:
    t, j = np.arange(1, 30)[:, None] / 29, np.arange(x.size)
    value = like(t**j, x) @ x
    slope = like(j * t ** np.maximum(j - 1, 0), x) @ x
    return jnp.concatenate([slope - value**2 - 1, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


def penalty_1(x: Array) -> Array:
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


def penalty_2(x: Array) -> Array:
    n, a = x.size, 1e-5**0.5
    i = counting(n, x)[1:]
    y = jnp.exp(i / 10) + jnp.exp((i - 1) / 10)
    growth = jnp.exp(x / 10)
    ends = [x[0] - 0.2, jnp.sum((n - counting(n, x) + 1) * x**2) - 1]
    steps = [a * (growth[1:] + growth[:-1] - y), a * (growth[1:] - math.exp(-0.1))]
    return jnp.concatenate([*steps, jnp.stack(ends)])


def variably_dimensioned(x: Array) -> Array:
    tilt = jnp.sum(counting(x.size, x) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([tilt, tilt**2])])


def trigonometric(x: Array) -> Array:
    return x.size - jnp.sum(jnp.cos(x)) + counting(x.size, x) * (1 - jnp.cos(x)) - jnp.sin(x)


def brown_almost_linear(x: Array) -> Array:
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


def discrete_boundary(x: Array) -> Array:
    h = 1 / (x.size + 1)
    y = jnp.pad(x, 1)
    return 2 * x - y[:-2] - y[2:] + h**2 * (x + h * counting(x.size, x) + 1) ** 3 / 2


def discrete_integral(x: Array) -> Array:
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    kernel = np.minimum(t, t[:, None]) * (1 - np.maximum(t, t[:, None])) * h / 2
    return x + like(kernel, x) @ (x + like(t, x) + 1) ** 3


def broyden_tridiagonal(x: Array) -> Array:
    y = jnp.pad(x, 1)
    return (3 - 2 * x) * x - y[:-2] - 2 * y[2:] + 1


def broyden_banded(x: Array) -> Array:
    n, pull = x.size, jnp.pad(x * (1 + x), (5, 1))
    near = sum(pull[k : k + n] for k in (0, 1, 2, 3, 4, 6))
    return x * (2 + 5 * x**2) + 1 - near


def linear_full_rank(x: Array) -> Array:
    return jnp.pad(x, (0, x.size)) - jnp.sum(x) / x.size - 1


def linear_rank_1(x: Array) -> Array:
    return counting(2 * x.size, x) * jnp.sum(counting(x.size, x) * x) - 1


def linear_rank_1_zeros(x: Array) -> Array:
    n = x.size
    inner = jnp.sum(counting(n, x)[1:-1] * x[1:-1])
    rows = jnp.arange(2 * n).at[-1].set(0).astype(x.dtype)
    return rows * inner - 1


def chebyquad(x: Array) -> Array:
    n, t = x.size, 2 * x - 1
    polynomials = [jnp.ones_like(t), t]
    while len(polynomials) <= n:
        polynomials.append(2 * t * polynomials[-1] - polynomials[-2])
    integrals = [0 if i % 2 else -1 / (i**2 - 1) for i in range(1, n + 1)]
    return jnp.mean(jnp.stack(polynomials[1:]), axis=1) - like(integrals, x)


def _discrete_start(n: int) -> np.ndarray:
    t = np.arange(1, n + 1) / (n + 1)
    return t * (t - 1)


def _small() -> list[Unconstrained]:
    osborne_start = (1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5)
    return [
        squares("mgh01_rosenbrock", rosenbrock, (-1.2, 1), 0.0),
        squares(
            "mgh02_freudenstein_roth", freudenstein_roth, (0.5, -2), 0.0, local=(48.98425367924,)
        ),
        squares("mgh03_powell_badly_scaled", powell_badly_scaled, (0, 1), 0.0),
        squares("mgh04_brown_badly_scaled", brown_badly_scaled, (1, 1), 0.0),
        squares("mgh05_beale", beale, (1, 1), 0.0),
        squares("mgh06_jennrich_sampson", jennrich_sampson, (0.3, 0.4), 124.36218235561478),
        squares("mgh07_helical_valley", helical_valley, (-1, 0, 0), 0.0),
        squares("mgh08_bard", bard, (1, 1, 1), 8.214877306578959e-3, local=(17.4286,)),
        squares("mgh09_gaussian", gaussian, (0.4, 1, 0), 1.127932769618864e-8),
        squares("mgh10_meyer", meyer, (0.02, 4000, 250), 87.94585517052369),
        squares("mgh11_gulf", gulf, (5, 2.5, 0.15), 0.0),
        squares("mgh12_box", box, (0, 10, 20), 0.0),
        squares("mgh13_powell_singular", powell_singular, (3, -1, 0, 1), 0.0),
        squares("mgh14_wood", wood, (-3, -1, -3, -1), 0.0),
        squares(
            "mgh15_kowalik_osborne",
            kowalik_osborne,
            (0.25, 0.39, 0.415, 0.39),
            3.0750560384923723e-4,
            local=(1.02734e-3,),
        ),
        squares("mgh16_brown_dennis", brown_dennis, (25, 5, -5, -1), 85822.20162635625),
        squares("mgh17_osborne_1", osborne_1, (0.5, 1.5, -1, 0.01, 0.02), 5.464894697482349e-5),
        squares("mgh18_biggs_exp6", biggs_exp6, (1, 2, 1, 1, 1, 1), 0.0, local=(5.655649925e-3,)),
        squares("mgh19_osborne_2", osborne_2, osborne_start, 4.013773629354768e-2),
    ]


def problems() -> list[Unconstrained]:
    """All 35 problems; those of variable dimension in one to three dimensions."""
    found = _small()

    def add(
        number: int, residuals: Callable[[Array], Array], start, best: dict[int, float], local=()
    ):
        for n, value in best.items():
            name = f"mgh{number}_{residuals.__name__}_{n}"
            found.append(squares(name, residuals, start(n), value, local=local))

    add(
        20,
        watson,
        np.zeros,
        {6: 2.2876700535523643e-3, 9: 1.399760138093614e-6, 12: 4.722381101624467e-10},
    )
    add(21, rosenbrock, lambda n: np.tile([-1.2, 1], n // 2), {10: 0.0, 100: 0.0})
    add(22, powell_singular, lambda n: np.tile([3, -1, 0, 1], n // 4), {12: 0.0, 100: 0.0})
    add(
        23,
        penalty_1,
        lambda n: np.arange(1, n + 1),
        {4: 2.2499775008999372e-5, 10: 7.08765146709037e-5},
    )
    add(
        24, penalty_2, lambda n: np.full(n, 0.5), {4: 9.376293007355444e-6, 10: 2.93660537456746e-4}
    )
    add(25, variably_dimensioned, lambda n: 1 - np.arange(1, n + 1) / n, {10: 0.0, 100: 0.0})
    add(26, trigonometric, lambda n: np.full(n, 1 / n), {10: 0.0}, local=(2.795056121877694e-5,))
    add(26, trigonometric, lambda n: np.full(n, 1 / n), {100: 0.0})
    add(27, brown_almost_linear, lambda n: np.full(n, 0.5), {10: 0.0, 50: 0.0}, local=(1.0,))
    add(28, discrete_boundary, _discrete_start, {10: 0.0, 100: 0.0})
    add(29, discrete_integral, _discrete_start, {10: 0.0, 100: 0.0})
    add(30, broyden_tridiagonal, lambda n: -np.ones(n), {10: 0.0, 100: 0.0})
    add(31, broyden_banded, lambda n: -np.ones(n), {10: 0.0, 100: 0.0})
    add(32, linear_full_rank, np.ones, {10: 10.0, 100: 100.0})
    add(33, linear_rank_1, np.ones, {10: 190 / 41})
    add(34, linear_rank_1_zeros, np.ones, {10: 227 / 37})
    add(35, chebyquad, lambda n: np.arange(1, n + 1) / (n + 1), {8: 3.5168737256779277e-3, 9: 0.0})
    tenth = np.arange(1, 11) / 11
    found.append(squares("mgh35_chebyquad_10", chebyquad, tenth, local=(6.5039548e-3,)))
    return found
