"""Functions of two to ten variables from the CUTEst collection.

Source: N. I. M. Gould, D. Orban and Ph. L. Toint, CUTEst: a constrained and unconstrained testing
environment with safe threads, Computational Optimization and Applications 60 (2015) 545–557; each
function bears its name there.
Differs: the mixed term of sisser is negative, as first printed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Unconstrained, counting, general, like, squares

Array = jax.Array

GROWTH_T = (8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 25)
GROWTH = (
    8,
    8.4305,
    9.5294,
    10.4627,
    12,
    13.0205,
    14.5949,
    16.1078,
    18.0596,
    20.4569,
    24.25,
    32.9863,
)
HATFLDD_T = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
HATFLDD = (1.751, 1.561, 1.391, 1.239, 1.103, 0.981, 0.925, 0.8721, 0.8221, 0.7748)
HATFLDE = (1.561, 1.473, 1.391, 1.313, 1.239, 1.169, 1.103, 1.04, 0.981, 0.925, 0.8721)
HATFLDE += (0.8221, 0.7748, 0.73, 0.6877, 0.6477, 0.6099, 0.5741, 0.5403, 0.5084, 0.4782)
HIMMELBF_A = (0, 0.000428, 0.001, 0.00161, 0.00209, 0.00348, 0.00525)
HIMMELBF_B = (7.391, 11.18, 16.44, 16.20, 22.20, 24.02, 31.32)
YFITU = (
    21.158931,
    17.591719,
    14.046854,
    10.519732,
    7.0058392,
    3.5007293,
    0,
    -3.5007293,
    -7.0058392,
)
YFITU += (-10.519732, -14.046854, -17.591719, -21.158931)
YFITU += (-24.753206, -28.379405, -32.042552, -35.747869)
PALMER1_T = (0, 0.174533, 0.349066, 0.523599, 0.698132, 0.872665, 1.047198, 1.134464, 1.218612)
PALMER1_T += (1.308997, 1.396263, 1.483530, 1.570796, 1.658063, 1.745329, 1.788963, 1.8325957)
PALMER1_T += (1.8762289,)
PALMER1 = (88.3995, 83.4221, 70.1630, 52.3664, 33.6988, 16.9321, 4.6841, 1.188045, 0, 1.538330)
PALMER1 += (6.2614, 14.6126, 27.038816, 43.96947, 65.77963, 78.596218, 92.733676, 108.18086)
PALMER3_T = (0, 0.174533, 0.349066, 0.523599, 0.698132, 0.766531, 0.872665, 1.047198, 1.221730)
PALMER3_T += (1.396263, 1.570796, 1.658063)
PALMER3 = (9.8919, 8.5519, 5.5191, 2.3029, 0.2177, 0, 0.59447, 4.6547, 13.4575, 28.2034, 50.46046)
PALMER3 += (64.87939,)
PALMER7_T = (0, 0.139626, 0.261799, 0.436332, 0.565245, 0.512942, 0.610865, 0.785398, 0.959931)
PALMER7_T += (1.134464, 1.308997, 1.483530, 1.658063)
PALMER7 = (4.419446, 3.564931, 2.139067, 0.404686, 0, 0.035152, 0.146813, 2.718058, 9.474417)
PALMER7 += (26.132221, 41.451561, 72.283164, 117.630959)


def allinitu(x: Array) -> Array:
    a, b, c, d = x
    linear = c + d - 4 + a**2 + b**2 + (c + d) ** 2 + 2 * jnp.sin(c) ** 2 + (a * b) ** 2
    quartic = (d - 1) ** 2 + b**4 + (c**2 + (d + a) ** 2) ** 2 + jnp.sin(d) ** 4
    return linear + quartic + (a - 4 + jnp.sin(d) ** 2 + (b * c) ** 2) ** 2


def brkmcc(x: Array) -> Array:
    a, b = x
    curve = 1 - a**2 / 4 - b**2
    return (a - 2) ** 2 + (b - 1) ** 2 + 0.04 / curve + 5 * (a - 2 * b + 1) ** 2


def cliff(x: Array) -> Array:
    a, b = x
    return ((a - 3) / 100) ** 2 - (a - b) + jnp.exp(20 * (a - b))


def clusterls(x: Array) -> Array:
    a, b = x
    return jnp.stack([(a - b**2) * (a - jnp.sin(b)), (jnp.cos(b) - a) * (b - jnp.cos(a))])


def cube(x: Array) -> Array:
    return jnp.stack([x[0] - 1, 10 * (x[1] - x[0] ** 3)])


def denschna(x: Array) -> Array:
    return jnp.stack([x[0] ** 2, x[0] + x[1], jnp.expm1(x[1])])


def denschnb(x: Array) -> Array:
    a, b = x
    return jnp.stack([a - 2, (a - 2) * b, b + 1])


def denschnc(x: Array) -> Array:
    a, b = x
    return jnp.stack([a**2 + b**2 - 2, jnp.exp(a - 1) + b**3 - 2])


def denschnd(x: Array) -> Array:
    a, b, c = x
    return jnp.stack([a**2 + b**3 - c**4, 2 * a * b * c, 2 * a * b - 3 * b * c + a * c])


def denschne(x: Array) -> Array:
    a, b, c = x
    return jnp.stack([a, b + b**2, jnp.expm1(c)])


def denschnf(x: Array) -> Array:
    a, b = x
    return jnp.stack([2 * (a + b) ** 2 + (a - b) ** 2 - 8, 5 * a**2 + (b - 3) ** 2 - 9])


def devgla1(x: Array) -> Array:
    t = (counting(24, x) - 1) / 10
    data = 60.137 * 1.371**t * jnp.sin(3.112 * t + 1.761)
    return x[0] * x[1] ** t * jnp.sin(t * x[2] + x[3]) - data


def eggcrate(x: Array) -> Array:
    return jnp.concatenate([x, 5 * jnp.sin(x)])


def engval2(x: Array) -> Array:
    a, b, c = x
    spheres = [a**2 + b**2 + c**2 - 1, a**2 + b**2 + (c - 2) ** 2 - 1]
    planes = [a + b + c - 1, a + b - c + 1]
    return jnp.stack([*spheres, *planes, 3 * b**2 + a**3 + (5 * c - a + 1) ** 2 - 36])


def expfit(x: Array) -> Array:
    t = counting(10, x) / 4
    return x[0] * jnp.exp(t * x[1]) - t


def growthls(x: Array) -> Array:
    t = like(GROWTH_T, x)
    return x[0] * t ** (x[1] + jnp.log(t) * x[2]) - like(GROWTH, x)


def hairy(x: Array) -> Array:
    a, b = x
    fur = 30 * (jnp.sin(7 * a) * jnp.cos(7 * b)) ** 2
    return fur + 100 * (jnp.sqrt(0.01 + (a - b) ** 2) + jnp.sqrt(0.01 + a**2))


def loghairy(x: Array) -> Array:
    return jnp.log1p(hairy(x) / 100)


def hatfldd(x: Array) -> Array:
    t = like(HATFLDD_T, x)
    return jnp.exp(t * x[2]) - x[0] * jnp.exp(t * x[1]) + like(HATFLDD, x)


def hatflde(x: Array) -> Array:
    t = 0.25 + counting(21, x) / 20
    return jnp.exp(t * x[2]) - x[0] * jnp.exp(t * x[1]) + like(HATFLDE, x)


def hatfldfl(x: Array) -> Array:
    return x[0] + x[1] * x[2] ** counting(3, x) - like([0.032, 0.056, 0.099], x)


def _dipole(a: Array, c: Array, t: Array, v: Array) -> Array:
    """The moments of (a + ic)(t + iv)^k, k = 0 … 3, real parts before imaginary parts."""
    moments = [a, c]
    for _ in range(3):
        a, c = a * t - c * v, a * v + c * t
        moments += [a, c]
    return jnp.stack(moments)


def heart6ls(x: Array) -> Array:
    a, c, t, u, v, w = x
    sums = like([-0.816, -0.017, -1.826, -0.754, -4.839, -3.259, -14.023, 15.467], x)
    return (_dipole(a, c, t, v) + _dipole(-0.816 - a, -0.017 - c, u, w) - sums)[2:]


def heart8ls(x: Array) -> Array:
    a, b, c, d, t, u, v, w = x
    sums = like([-0.69, -0.044, -1.57, -1.31, -2.65, 2.0, -12.6, 9.48], x)
    return _dipole(a, c, t, v) + _dipole(b, d, u, w) - sums


def himmelbb(x: Array) -> Array:
    a, b = x
    return (a * b * (1 - a) * (1 - b - a * (1 - a) ** 5)) ** 2


def himmelbcls(x: Array) -> Array:
    a, b = x
    return jnp.stack([b + a**2 - 11, a + b**2 - 7])


def himmelbf(x: Array) -> Array:
    t = like(HIMMELBF_A, x)
    model = (x[0] ** 2 + t * x[1] ** 2 + t**2 * x[2] ** 2) / (1 + t * x[3] ** 2)
    return 100 * (model / like(HIMMELBF_B, x) - 1)


def himmelbg(x: Array) -> Array:
    a, b = x
    return jnp.exp(-a - b) * (2 * a**2 + 3 * b**2)


def himmelbh(x: Array) -> Array:
    a, b = x
    return -3 * a - 2 * b + 2 + a**3 + b**2


def humps(x: Array) -> Array:
    return jnp.prod(jnp.sin(20 * x)) ** 2 + 0.05 * jnp.sum(x**2)


def maratosb(x: Array) -> Array:
    return x[0] + 1e6 * (jnp.sum(x**2) - 1) ** 2


def mexhat(x: Array) -> Array:
    a, b = x
    valley = 1e4 * (b - a**2) ** 2 + (a - 1) ** 2 - 0.02
    return 1e5 * valley**2 - 2 * (a - 1) ** 2


def palmer1c(x: Array) -> Array:
    t, weight = like(PALMER1_T, x), like([1.0] + [2**0.5] * 17, x)
    return weight * (jnp.polyval(x[::-1], t**2) - like(PALMER1, x))


def palmer3c(x: Array) -> Array:
    t, weight = like(PALMER3_T, x), like([1.0] + [2**0.5] * 11, x)
    return weight * (jnp.polyval(x[::-1], t**2) - like(PALMER3, x))


def palmer7c(x: Array) -> Array:
    return jnp.polyval(x[::-1], like(PALMER7_T, x) ** 2) - like(PALMER7, x)


def powellsqls(x: Array) -> Array:
    a, b = x
    return jnp.stack([a**2, 10 * a / (a + 0.1) + 2 * b**2])


def price4(x: Array) -> Array:
    a, b = x
    return jnp.stack([2 * a**3 * b - b**3, 6 * a - b**2 + b])


def recipels(x: Array) -> Array:
    a, b, c = x
    return jnp.stack([a - 5, b**2, c / (b - a)])


def s308(x: Array) -> Array:
    a, b = x
    return jnp.stack([a**2 + a * b + b**2, jnp.sin(a), jnp.cos(b)])


def sineval(x: Array) -> Array:
    return jnp.stack([1000**0.5 * (x[1] - jnp.sin(x[0])), x[0] / 2])


def sisser(x: Array) -> Array:
    a, b = x
    return 3 * a**4 - 2 * (a * b) ** 2 + 3 * b**4


def snail(x: Array) -> Array:
    radius, angle = jnp.hypot(x[0], x[1]), jnp.arctan2(x[1], x[0])
    spiral = 1 + 1.5 * radius - 0.5 * radius * jnp.cos(radius - angle)
    return radius**2 / (1 + radius**2) * spiral


def waysea1(x: Array) -> Array:
    a, b = x
    return jnp.stack([a**6 + b**4 - 17, 2 * a + b - 4])


def yfitu(x: Array) -> Array:
    part = (counting(17, x) - 1) / 16
    return x[2] * jnp.tan(x[0] * (1 - part) + x[1] * part) - like(YFITU, x)


def zangwil2(x: Array) -> Array:
    a, b = x
    return (16 * a**2 + 16 * b**2 - 8 * a * b - 56 * a - 256 * b + 991) / 15


def problems() -> list[Unconstrained]:
    """One problem for each function."""
    least_squares = [
        (clusterls, (0, 0), 0.0),
        (cube, (-1.2, 1), 0.0),
        (denschna, (1, 1), 0.0),
        (denschnb, (1, 1), 0.0),
        (denschnc, (2, 3), 0.0),
        (denschnd, (10, 10, 10), 0.0),
        (denschne, (2, 3, -8), 0.0),
        (denschnf, (2, 0), 0.0),
        (devgla1, (2, 2, 2, 2), 0.0),
        (eggcrate, (1, 2), 0.0),
        (engval2, (1, 2, 0), 0.0),
        (expfit, (0, 0), None),
        (growthls, (100, 0, 0), None),
        (hatfldd, (1, -1, 0), None),
        (hatflde, (1, -1, 0), None),
        (hatfldfl, (1.2, -1.2, 0.98), 0.0),
        (heart6ls, (0, 0, 1, 1, 1, 1), 0.0),
        (heart8ls, (0, 1, 0, 1, 1, 1, 1, 1), 0.0),
        (himmelbcls, (1, 1), 0.0),
        (himmelbf, (2.7, 90, 1500, 10), None),
        (palmer1c, np.ones(8), None),
        (palmer3c, np.ones(8), None),
        (palmer7c, np.ones(8), None),
        (powellsqls, (3, 1), 0.0),
        (price4, (1, 5), 0.0),
        (recipels, (2, 5, 1), 0.0),
        (s308, (3, 0.1), None),
        (sineval, (4.712389, -1), 0.0),
        (waysea1, (1, 5), 0.0),
        (yfitu, (0.6, -0.6, 20), None),
    ]
    others = [
        (allinitu, np.zeros(4), None),
        (brkmcc, (2, 2), None),
        (cliff, (0, -1), None),
        (hairy, (-5, -7), 20.0),
        (loghairy, (-500, -700), math.log(1.2)),
        (himmelbb, (-1.2, 1), 0.0),
        (himmelbg, (0.5, 0.5), 0.0),
        (himmelbh, (0, 2), -1.0),
        (humps, (-506, -506.2), 0.0),
        (maratosb, (1.1, 0.1), None),
        (mexhat, (0.86, 0.72), None),
        (sisser, (1, 0.1), 0.0),
        (snail, (10, 10), 0.0),
        (zangwil2, (3, 8), -18.2),
    ]
    local = {"eggcrate": (9.488197339106257,), "hatfldfl": (0.019**2 / 6,)}
    built = [
        squares(f.__name__, f, x0, best, local=local.get(f.__name__, ()))
        for f, x0, best in least_squares
    ]
    return built + [general(f.__name__, f, x0, best) for f, x0, best in others]
