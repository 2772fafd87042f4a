"""Functions of any dimension from Andrei's collection.

Source: N. Andrei, An unconstrained optimization test functions collection, Advanced Modeling and
Optimization 10 (2008) 147–161. Functions that run over disjoint pairs of variables take x_1, x_3, …
as `a` and x_2, x_4, … as `b`; those that run along a chain take neighbors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Unconstrained, counting, general, squares

Array = jax.Array


def index(x: Array) -> Array:
    return counting(x.size, x)


def extended_freudenstein_roth(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    left = -13 + a + ((5 - b) * b - 2) * b
    return jnp.concatenate([left, -29 + a + ((b + 1) * b - 14) * b])


def extended_white_holst(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([10 * (b - a**3), 1 - a])


def extended_beale(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([1.5 - a * (1 - b), 2.25 - a * (1 - b**2), 2.625 - a * (1 - b**3)])


def extended_penalty(x: Array) -> Array:
    return jnp.append(x[:-1] - 1, jnp.sum(x**2) - 0.25)


def perturbed_quadratic(x: Array) -> Array:
    return jnp.sum(index(x) * x**2) + jnp.sum(x) ** 2 / 100


def raydan_1(x: Array) -> Array:
    return jnp.sum(index(x) / 10 * (jnp.exp(x) - x))


def raydan_2(x: Array) -> Array:
    return jnp.sum(jnp.exp(x) - x)


def diagonal_1(x: Array) -> Array:
    return jnp.sum(jnp.exp(x) - index(x) * x)


def diagonal_2(x: Array) -> Array:
    return jnp.sum(jnp.exp(x) - x / index(x))


def diagonal_3(x: Array) -> Array:
    return jnp.sum(jnp.exp(x) - index(x) * jnp.sin(x))


def diagonal_4(x: Array) -> Array:
    return (jnp.sum(x[::2] ** 2) + 100 * jnp.sum(x[1::2] ** 2)) / 2


def diagonal_5(x: Array) -> Array:
    return jnp.sum(jnp.logaddexp(x, -x))


def diagonal_9(x: Array) -> Array:
    return jnp.sum(jnp.exp(x[:-1]) - index(x)[:-1] * x[:-1]) + 1e4 * x[-1] ** 2


def hager(x: Array) -> Array:
    return jnp.sum(jnp.exp(x) - jnp.sqrt(index(x)) * x)


def generalized_tridiagonal_1(x: Array) -> Array:
    return jnp.concatenate([x[:-1] + x[1:] - 3, (x[:-1] - x[1:] + 1) ** 2])


def extended_tridiagonal_1(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([a + b - 3, (a - b + 1) ** 2])


def generalized_tridiagonal_2(x: Array) -> Array:
    y = jnp.pad(x, 1)
    return (5 - 3 * x - x**2) * x - y[:-2] - 3 * y[2:] + 1


def extended_tridiagonal_2(x: Array) -> Array:
    a, b = x[:-1], x[1:]
    return jnp.sum((a * b - 1) ** 2 + 0.1 * (a + 1) * (b + 1))


def extended_three_exponentials(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.sum(jnp.exp(a + 3 * b - 0.1) + jnp.exp(a - 3 * b - 0.1) + jnp.exp(-a - 0.1))


def extended_himmelblau(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([a**2 + b - 11, a + b**2 - 7])


def generalized_white_holst(x: Array) -> Array:
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 3), 1 - x[:-1]])


def generalized_psc1(x: Array) -> Array:
    a, b = x[:-1], x[1:]
    return jnp.sum((a**2 + b**2 + a * b) ** 2 + jnp.sin(a) ** 2 + jnp.cos(b) ** 2)


def extended_psc1(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.sum((a**2 + b**2 + a * b) ** 2 + jnp.sin(a) ** 2 + jnp.cos(b) ** 2)


def full_hessian_1(x: Array) -> Array:
    total = jnp.cumsum(x)[1:]
    return jnp.append(x[0] - 3 - 2 * total**2, x[0] - 3)


def full_hessian_2(x: Array) -> Array:
    return jnp.append(jnp.cumsum(x)[1:] - 1, x[0] - 5)


def extended_block_diagonal_1(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([a**2 + b - 2, jnp.exp(a - 1) - b])


def extended_maratos(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.sum(a + 100 * (a**2 + b**2 - 1) ** 2)


def extended_cliff(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.sum(((a - 3) / 100) ** 2 - (a - b) + jnp.exp(20 * (a - b)))


def perturbed_quadratic_diagonal(x: Array) -> Array:
    return jnp.sum(x) ** 2 + jnp.sum(index(x) * x**2) / 100


def extended_hiebert(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([a - 10, a * b - 50000])


def quadratic_1(x: Array) -> Array:
    return jnp.sum(index(x) * x**2) / 2 - x[-1]


def quadratic_2(x: Array) -> Array:
    return jnp.sum(index(x) * (x**2 - 1) ** 2) / 2 - x[-1]


def extended_quadratic_penalty_1(x: Array) -> Array:
    return jnp.append(x[:-1] ** 2 - 2, jnp.sum(x**2) - 0.5)


def extended_quadratic_penalty_2(x: Array) -> Array:
    return jnp.append(x[:-1] ** 2 - jnp.sin(x[:-1]), jnp.sum(x**2) - 100)


def extended_exponential_penalty(x: Array) -> Array:
    gap = x[::2] - x[1::2]
    return jnp.concatenate([jnp.exp(gap) - 5, gap * (gap - 11)])


def partial_perturbed_quadratic(x: Array) -> Array:
    return x[0] ** 2 + jnp.sum(index(x) * x**2 + jnp.cumsum(x) ** 2 / 100)


def almost_perturbed_quadratic(x: Array) -> Array:
    return jnp.sum(index(x) * x**2) + (x[0] + x[-1]) ** 2 / 100


def tridiagonal_perturbed_quadratic(x: Array) -> Array:
    inner = index(x)[1:-1] * x[1:-1] ** 2
    return x[0] ** 2 + jnp.sum(inner + (x[:-2] + x[1:-1] + x[2:]) ** 2)


def staircase_1(x: Array) -> Array:
    return jnp.cumsum(x)


def staircase_2(x: Array) -> Array:
    return jnp.cumsum(x) - index(x)


def generalized_cube(x: Array) -> Array:
    return jnp.append(10 * (x[1:] - x[:-1] ** 3), x[0] - 1)


def nonscomp(x: Array) -> Array:
    return jnp.append(2 * (x[1:] - x[:-1] ** 2), x[0] - 1)


def extended_denschnb(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([a - 2, (a - 2) * b, b + 1])


def extended_denschnf(x: Array) -> Array:
    a, b = x[::2], x[1::2]
    return jnp.concatenate([2 * (a + b) ** 2 + (a - b) ** 2 - 8, 5 * a**2 + (b - 3) ** 2 - 9])


def sine(x: Array) -> Array:
    return jnp.sum(jnp.sin(x[:-1] ** 2 - x[1:] / 2))


def generalized_quartic(x: Array) -> Array:
    return jnp.concatenate([x[:-1], x[1:] + x[:-1] ** 2])


def _pairs(a: float, b: float, n: int) -> np.ndarray:
    return np.tile([a, b], n // 2)


def problems(n: int = 100) -> list[Unconstrained]:
    """The collection in dimension `n`, even; the hardest ones in a smaller one."""
    ones, i = np.ones(n), np.arange(1, n + 1)
    least_squares = [
        (extended_freudenstein_roth, _pairs(0.5, -2, n), 0.0),
        (extended_white_holst, _pairs(-1.2, 1, n), 0.0),
        (extended_beale, _pairs(1, 0.8, n), 0.0),
        (extended_penalty, i, None),
        (generalized_tridiagonal_1, 2 * ones, None),
        (extended_tridiagonal_1, 2 * ones, 0.0),
        (generalized_tridiagonal_2, -ones, 0.0),
        (extended_himmelblau, ones, 0.0),
        (generalized_white_holst, _pairs(-1.2, 1, 10), 0.0),
        (full_hessian_1, 0.01 * np.ones(50), 0.0),
        (full_hessian_2, 0.01 * ones, 0.0),
        (extended_block_diagonal_1, 0.1 * ones, 0.0),
        (extended_hiebert, np.zeros(10), 0.0),
        (extended_quadratic_penalty_1, ones, None),
        (extended_quadratic_penalty_2, ones, 0.0),
        (extended_exponential_penalty, 1.5 * ones, None),
        (staircase_1, ones, 0.0),
        (staircase_2, 0 * ones, 0.0),
        (generalized_cube, _pairs(-1.2, 1, 10), 0.0),
        (nonscomp, 3 * ones, 0.0),
        (extended_denschnb, ones, 0.0),
        (extended_denschnf, _pairs(2, 0, n), 0.0),
        (generalized_quartic, ones, 0.0),
    ]
    others = [
        (perturbed_quadratic, ones / 2, 0.0),
        (raydan_1, ones, n * (n + 1) / 20),
        (raydan_2, ones, float(n)),
        (diagonal_1, ones / n, float(np.sum(i - i * np.log(i)))),
        (diagonal_2, 1 / i, float(np.sum((1 + np.log(i)) / i))),
        (diagonal_3, ones, None),
        (diagonal_4, ones, 0.0),
        (diagonal_5, 1.1 * ones, n * float(np.log(2))),
        (diagonal_9, ones, float(np.sum((i - i * np.log(i))[:-1]))),
        (hager, ones, float(np.sum(np.sqrt(i) - np.sqrt(i) * np.log(i) / 2))),
        (extended_tridiagonal_2, ones, None),
        (extended_three_exponentials, 0.1 * ones, None),
        (generalized_psc1, _pairs(3, 0.1, n), None),
        (extended_psc1, _pairs(3, 0.1, n), None),
        (extended_maratos, _pairs(1.1, 0.1, n), None),
        (extended_cliff, _pairs(0, -1, n), None),
        (perturbed_quadratic_diagonal, ones / 2, 0.0),
        (quadratic_1, ones, -1 / (2 * n)),
        (quadratic_2, ones / 2, None),
        (partial_perturbed_quadratic, ones / 2, 0.0),
        (almost_perturbed_quadratic, ones / 2, 0.0),
        (tridiagonal_perturbed_quadratic, ones / 2, 0.0),
        (sine, np.ones(4), -3.0),
    ]
    local = {extended_freudenstein_roth: (n / 2 * 48.98425367924,)}
    built = [
        squares(f"{f.__name__}_{len(x0)}", f, x0, best, local=local.get(f, ()))
        for f, x0, best in least_squares
    ]
    return built + [general(f"{f.__name__}_{len(x0)}", f, x0, best) for f, x0, best in others]
