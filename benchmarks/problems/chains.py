"""Functions of variable dimension from the CUTEst collection, taken with 5 to 300 variables.

Source: N. I. M. Gould, D. Orban and Ph. L. Toint, CUTEst: a constrained and unconstrained testing
environment with safe threads, Computational Optimization and Applications 60 (2015) 545–557; each
function bears its name there, followed by the number of variables.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from . import mgh
from .problem import Unconstrained, counting, general, like, squares

Array = jax.Array


def index(x: Array) -> Array:
    return counting(x.size, x)


ALPHA = (1.25, 1.4, 2.4, 1.4, 1.75, 1.2, 2.25, 1.2, 1.0, 1.1, 1.5, 1.6, 1.25, 1.25, 1.2, 1.2, 1.4)
ALPHA += (0.5, 0.5, 1.25, 1.8, 0.75, 1.25, 1.4, 1.6, 2.0, 1.0, 1.6, 1.25, 2.75, 1.25, 1.25, 1.25)
ALPHA += (3.0, 1.5, 2.0, 1.25, 1.4, 1.8, 1.5, 2.2, 1.4, 1.5, 1.25, 2.0, 1.5, 1.25, 1.4, 0.6, 1.5)


def arwhead(x: Array) -> Array:
    return jnp.sum((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4 * x[:-1] + 3)


def bdqrtic(x: Array) -> Array:
    a, b, c, d, e = x[:-4], x[1:-3], x[2:-2], x[3:-1], x[-1]
    mixed = a**2 + 2 * b**2 + 3 * c**2 + 4 * d**2 + 5 * e**2
    return jnp.concatenate([3 - 4 * a, mixed])


def biggsb1(x: Array) -> Array:
    return jnp.diff(x, prepend=like([1.0], x), append=like([1.0], x))


def boxpower(x: Array) -> Array:
    return x[0] ** 2 + jnp.sum((x[0] + x[1:-1] + x[-1]) ** 2) + x[-1] ** 20


def broydn7d(x: Array) -> Array:
    y, half = jnp.pad(x, 1), x.size // 2
    tridiagonal = (3 - 2 * x) * x - y[:-2] - 2 * y[2:] + 1
    return jnp.sum(jnp.abs(tridiagonal) ** (7 / 3)) + jnp.sum(
        jnp.abs(x[:half] + x[half:]) ** (7 / 3)
    )


def chainwoo(x: Array) -> Array:
    a, b, c, d = x[:-3:2], x[1:-2:2], x[2:-1:2], x[3::2]
    valleys = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return 1 + jnp.sum(valleys + 10 * (b + d - 2) ** 2 + (b - d) ** 2 / 10)


def chnrosnb(x: Array) -> Array:
    return jnp.concatenate([4 * like(ALPHA, x)[1 : x.size] * (x[:-1] - x[1:] ** 2), x[1:] - 1])


def errinros(x: Array) -> Array:
    weight = 16 * like(ALPHA, x)[1 : x.size] ** 2
    return jnp.concatenate([x[:-1] - weight * x[1:] ** 2, x[1:] - 1])


def cosine(x: Array) -> Array:
    return jnp.sum(jnp.cos(x[:-1] ** 2 - x[1:] / 2))


def cragglvy(x: Array) -> Array:
    a, b, c, d = x[:-3:2], x[1:-2:2], x[2:-1:2], x[3::2]
    powers = (jnp.exp(a) - b) ** 4 + 100 * (b - c) ** 6 + (jnp.tan(c - d) + c - d) ** 4
    return jnp.sum(powers + a**8 + (d - 1) ** 2)


DIXMAAN = {  # alpha, beta, gamma, delta; powers of i / n
    "a": (1, 0, 0.125, 0.125, (0, 0, 0, 0)),
    "b": (1, 0.0625, 0.0625, 0.0625, (0, 0, 0, 0)),
    "c": (1, 0.125, 0.125, 0.125, (0, 0, 0, 0)),
    "d": (1, 0.26, 0.26, 0.26, (0, 0, 0, 0)),
    "e": (1, 0, 0.125, 0.125, (1, 0, 0, 1)),
    "f": (1, 0.0625, 0.0625, 0.0625, (1, 0, 0, 1)),
    "g": (1, 0.125, 0.125, 0.125, (1, 0, 0, 1)),
    "h": (1, 0.26, 0.26, 0.26, (1, 0, 0, 1)),
    "i": (1, 0, 0.125, 0.125, (2, 0, 0, 2)),
    "j": (1, 0.0625, 0.0625, 0.0625, (2, 0, 0, 2)),
    "k": (1, 0.125, 0.125, 0.125, (2, 0, 0, 2)),
    "l": (1, 0.26, 0.26, 0.26, (2, 0, 0, 2)),
    "m": (1, 0, 0.125, 0.125, (2, 1, 1, 2)),
    "n": (1, 0.0625, 0.0625, 0.0625, (2, 1, 1, 2)),
    "o": (1, 0.125, 0.125, 0.125, (2, 1, 1, 2)),
    "p": (1, 0.26, 0.26, 0.26, (2, 1, 1, 2)),
}


def dixmaan(letter: str) -> Callable[[Array], Array]:
    alpha, beta, gamma, delta, powers = DIXMAAN[letter]

    def fun(x: Array) -> Array:
        m, s = x.size // 3, index(x) / x.size
        a, b, c, d = (s**k for k in powers)
        ends = gamma * c[: 2 * m] * x[: 2 * m] ** 2 * x[m:] ** 4
        curve = beta * b[:-1] * x[:-1] ** 2 * (x[1:] + x[1:] ** 2) ** 2
        far = delta * d[:m] * x[:m] * x[2 * m :]
        return 1 + alpha * jnp.sum(a * x**2) + jnp.sum(curve) + jnp.sum(ends) + jnp.sum(far)

    return fun


def dixon3dq(x: Array) -> Array:
    return jnp.concatenate([x[:1] - 1, jnp.diff(x)[1:], x[-1:] - 1])


def dqdrtic(x: Array) -> Array:
    return jnp.sum(x[:-2] ** 2 + 100 * x[1:-1] ** 2 + 100 * x[2:] ** 2)


def edensch(x: Array) -> Array:
    a, b = x[:-1], x[1:]
    return 16 + jnp.sum((a - 2) ** 4 + (a * b - 2 * b) ** 2 + (b + 1) ** 2)


def eg2(x: Array) -> Array:
    return jnp.sum(jnp.sin(x[0] + x[:-1] ** 2 - 1)) + jnp.sin(x[-1] ** 2) / 2


def engval1(x: Array) -> Array:
    return jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4 * x[:-1] + 3)


def extrosnb(x: Array) -> Array:
    return jnp.append(10 * (x[1:] - x[:-1] ** 2), x[0] - 1)


def fletcbv2(x: Array) -> Array:
    h = 1 / (x.size + 1)
    chain = jnp.sum(jnp.diff(jnp.pad(x, 1)) ** 2) / 2
    return chain - h**2 * jnp.sum(2 * x + jnp.cos(x)) - x[-1]


def fletchcr(x: Array) -> Array:
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), x[:-1] - 1])


def freuroth(x: Array) -> Array:
    a, b = x[:-1], x[1:]
    left = -13 + a + ((5 - b) * b - 2) * b
    return jnp.concatenate([left, -29 + a + ((b + 1) * b - 14) * b])


def genhumps(x: Array) -> Array:
    bumps = (jnp.sin(20 * x[:-1]) * jnp.sin(20 * x[1:])) ** 2
    return jnp.sum(bumps + 0.05 * (x[:-1] ** 2 + x[1:] ** 2))


def genrose(x: Array) -> Array:
    return jnp.concatenate([jnp.ones(1, x.dtype), 10 * (x[1:] - x[:-1] ** 2), x[1:] - 1])


def hilbertb(x: Array) -> Array:
    i = np.arange(1, x.size + 1)
    return x @ like(1 / (i + i[:, None] - 1) + 10 * np.eye(x.size), x) @ x / 2


def liarwhd(x: Array) -> Array:
    return jnp.concatenate([2 * (x**2 - x[0]), x - 1])


def luksan11ls(x: Array) -> Array:
    a, b = x[:-1], x[1:]
    return jnp.concatenate([20 * a / (1 + a**2) - 10 * b, a - 1])


def _fives(x: Array) -> tuple[Array, ...]:
    s = (x.size - 2) // 3
    return tuple(x[k : k + 3 * s : 3] for k in range(5))


def luksan12ls(x: Array) -> Array:
    a, b, c, d, e = _fives(x)
    steep = [10 * (a**2 - b), d * a**2 + jnp.sin(d - e) - 10, b + c**4 * d**2 - 20]
    return jnp.concatenate([*steep, c - 1, (d - 1) ** 2, (e - 1) ** 3])


def luksan13ls(x: Array) -> Array:
    a, b, c, d, e = _fives(x)
    steep = [10 * (a**2 - b), 10 * (b**2 - c), (c - d) ** 2, (d - e) ** 2]
    return jnp.concatenate([*steep, a + b**2 + c - 30, b - c**2 + d - 10, a * e - 10])


def luksan14ls(x: Array) -> Array:
    a, b, c, d, e = _fives(x)
    steep = [10 * (a**2 - b), 10 * (b**2 - e)]
    return jnp.concatenate([*steep, b + c - 2, d - 1, e - 1, a + 3 * b, c + d - 2 * e])


def luksan17ls(x: Array) -> Array:
    k = counting(4, x)
    window = x[2 * np.arange((x.size - 2) // 2)[:, None] + np.arange(4)]
    waves = jnp.sin(window) @ -jnp.outer(k**2, k) + jnp.cos(window) @ jnp.outer(k, k**2)
    return jnp.ravel(waves - like([30.6, 72.2, 124.4, 187.4], x))


def luksan22ls(x: Array) -> Array:
    a, b, c = x[:-2], x[1:-1], x[2:]
    bells = 2 * jnp.exp(-((a - b) ** 2)) + jnp.exp(-2 * (b - c) ** 2)
    ends = jnp.stack([x[0] - 1, 10 * x[-2] ** 2])
    return jnp.concatenate([ends, 10 * (a**2 - b), bells])


def modbeale(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    beale = [1.5 - a * (1 - b), 2.25 - a * (1 - b**2), 2.625 - a * (1 - b**3)]
    return jnp.concatenate([*beale, 50**0.5 * (6 * b[:-1] - a[1:])])


def noncvxu2(x: Array) -> Array:
    total = _scattered(x, (3, 2), (7, 3))
    return jnp.sum(total**2 + 4 * jnp.cos(total))


def noncvxun(x: Array) -> Array:
    total = _scattered(x, (2, 1), (3, 1))
    return jnp.sum(total**2 + 4 * jnp.cos(total))


def _scattered(x: Array, *places: tuple[int, int]) -> Array:
    """x_i plus the x_j with j - 1 = (k i - shift) mod n."""
    i = np.arange(1, x.size + 1)
    return x + sum(x[(k * i - shift) % x.size] for k, shift in places)


def nondia(x: Array) -> Array:
    return jnp.append(10 * (x[0] - x[:-1] ** 2), x[0] - 1)


def nondquar(x: Array) -> Array:
    quartic = jnp.sum((x[:-2] + x[1:-1] + x[-1]) ** 4)
    return quartic + (x[0] - x[1]) ** 2 + (x[-2] - x[-1]) ** 2


def oscipath(x: Array) -> Array:
    return jnp.append(500**0.5 * (x[1:] - 2 * x[:-1] ** 2 + 1), (x[0] - 1) / 2)


def power(x: Array) -> Array:
    return jnp.sum(index(x) * x**2) ** 2


def qing(x: Array) -> Array:
    return x**2 - index(x)


def quartc(x: Array) -> Array:
    return (x - index(x)) ** 2


def schmvett(x: Array) -> Array:
    a, b, c = x[:-2], x[1:-1], x[2:]
    waves = jnp.sin((np.pi * b + c) / 2) + jnp.exp(-(((a + c) / b - 2) ** 2))
    return -jnp.sum(1 / (1 + (a - b) ** 2) + waves)


def scosine(x: Array) -> Array:
    return cosine(x * like(stretch(x.size, 12), x))


def sscosine(x: Array) -> Array:
    return cosine(x * like(stretch(x.size, 6), x))


def stretch(n: int, logarithm: float) -> np.ndarray:
    """Scales from 1 to the exponential of the logarithm."""
    return np.exp(logarithm * np.arange(n) / (n - 1))


def sinquad2(x: Array) -> Array:
    inner = jnp.sin(x[1:-1] - x[-1]) - x[0] ** 2 + x[1:-1] ** 2
    return jnp.concatenate([inner, jnp.stack([(x[0] - 1) ** 2, x[-1] ** 2 - x[0] ** 2])])


def sparsine(x: Array) -> Array:
    total = _scattered(jnp.sin(x), (2, 1), (3, 1), (5, 1), (7, 1), (11, 1))
    return jnp.sum(index(x) * total**2) / 2


def sparsqur(x: Array) -> Array:
    total = _scattered(x**2, (2, 1), (3, 1), (5, 1), (7, 1), (11, 1))
    return jnp.sum(index(x) * total**2) / 8


def testquad(x: Array) -> Array:
    return jnp.sum(index(x) * x**2)


def tointgss(x: Array) -> Array:
    a, b, c = x[:-2], x[1:-1], x[2:]
    bell = jnp.exp(-((a - b) ** 2) / (0.1 + c**2))
    return jnp.sum((10 / (x.size - 2) + c**2) * (2 - bell))


def tquartic(x: Array) -> Array:
    return jnp.append(x[0] ** 2 - x[1:] ** 2, x[0] - 1)


def tridia(x: Array) -> Array:
    return jnp.sum(index(x)[1:] * (2 * x[1:] - x[:-1]) ** 2) + (x[0] - 1) ** 2


def trigon1(x: Array) -> Array:
    i = index(x)
    return jnp.sum(jnp.cos(x)) + i * (jnp.cos(x) + jnp.sin(x)) - (x.size + i)


def problems() -> list[Unconstrained]:
    """One problem for each function, most of them with 100 variables."""
    ones, i = np.ones(100), np.arange(1, 101)
    alternating = np.tile([1, -1], 50)
    valley = np.tile([-1.2, 1], 50)
    least_squares = [
        (bdqrtic, ones, None),
        (biggsb1, 0 * ones, 0.0),
        (chnrosnb, -np.ones(50), 0.0),
        (errinros, -np.ones(50), None),
        (dixon3dq, -ones, 0.0),
        (extrosnb, -np.ones(10), 0.0),
        (fletchcr, 0 * ones, 0.0),
        (freuroth, np.append([0.5, -2], np.zeros(98)), None),
        (genrose, i / 101, 1.0),
        (liarwhd, 4 * ones, 0.0),
        (luksan11ls, -0.8 * ones, 0.0),
        (luksan12ls, -np.ones(98), None),
        (luksan13ls, -np.ones(98), None),
        (luksan14ls, -np.ones(98), None),
        (luksan17ls, np.tile([-0.8, 1.2, -1.2, 0.8], 25), None),
        (luksan22ls, valley, None),
        (modbeale, ones, 0.0),
        (nondia, -ones, 0.0),
        (oscipath, np.append(-1, np.ones(4)), 0.0),
        (mgh.penalty_1, i, None),
        (mgh.penalty_2, ones / 2, None),
        (qing, ones, 0.0),
        (quartc, 2 * ones, 0.0),
        (sinquad2, 0.1 * np.ones(50), 0.0),
        (tquartic, 0.1 * ones, 0.0),
        (trigon1, 0.1 * np.ones(10), 0.0),
        (mgh.variably_dimensioned, 1 - np.arange(1, 201) / 200, 0.0),
        (mgh.wood, np.tile([-3, -1, -3, -1], 25), 0.0),
    ]
    others = [
        (arwhead, ones, 0.0),
        (boxpower, 0.99 * np.ones(10), 0.0),
        (broydn7d, np.ones(50), None),
        (chainwoo, np.append([-3, -1, -3, -1], -2 * np.ones(96)), 1.0),
        (cosine, ones, -99.0),
        (cragglvy, np.append(1, 2 * np.ones(99)), None),
        (dqdrtic, 3 * ones, 0.0),
        (edensch, 8 * ones, None),
        (eg2, 0 * ones, None),
        (engval1, 2 * ones, None),
        (fletcbv2, i / 101, None),
        (genhumps, np.append(-506, -506.2 * np.ones(4)), 0.0),
        (hilbertb, -3 * np.ones(50), 0.0),
        (noncvxu2, np.arange(1, 11), None),
        (noncvxun, np.arange(1, 51), None),
        (nondquar, alternating, 0.0),
        (power, ones, 0.0),
        (schmvett, ones / 2, -294.0),
        (scosine, 1 / stretch(10, 12), -9.0),
        (sscosine, 1 / stretch(100, 6), -99.0),
        (sparsine, ones / 2, 0.0),
        (sparsqur, ones / 2, 0.0),
        (testquad, ones, 0.0),
        (tointgss, 3 * np.ones(50), None),
        (tridia, ones, 0.0),
    ]
    local = {luksan12ls: (4292.196891,), luksan22ls: (868.9404775,)}
    built = [
        squares(f"{f.__name__}_{len(x0)}", f, x0, best, local=local.get(f, ()))
        for f, x0, best in least_squares
    ]
    built += [general(f"{f.__name__}_{len(x0)}", f, x0, best) for f, x0, best in others]
    start = 2 * np.ones(300)
    return built + [general(f"dixmaan{k}_300", dixmaan(k), start, 1.0) for k in DIXMAAN]
