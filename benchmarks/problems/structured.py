"""Functions of matrices, surfaces, bands and networks from the CUTEst collection.

Source: N. I. M. Gould, D. Orban and Ph. L. Toint, CUTEst: a constrained and unconstrained testing
environment with safe threads, Computational Optimization and Applications 60 (2015) 545–557; each
function bears its name there, followed by the number of variables.
Differs: eigencls takes Wilkinson's matrix with |i| on its diagonal, lminsurf has only the inner
heights as variables, mancino adds its cubes as Spedicato does, and scaled_broyden_banded scales the
variables of problem 31 of Moré, Garbow and Hillstrom by up to e^12.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from . import mgh
from .chains import ALPHA, stretch
from .problem import Unconstrained, counting, general, like, squares

Array = jax.Array

BETA = (1.0, 1.5, 1.0, 0.1, 1.5, 2.0, 1.0, 1.5, 3.0, 2.0, 1.0, 3.0, 0.1, 1.5, 0.15, 2.0, 1.0, 0.1)
BETA += (3.0, 0.1, 1.2, 1.0, 0.1, 2.0, 1.2, 3.0, 1.5, 3.0, 2.0, 1.0, 1.2, 2.0, 1.0)
SUPPLY = (5, 5, 5, 2.5, 6, 6, 5, 6, 10, 6, 5, 9, 2, 7, 2.5, 6, 5, 2, 9, 2, 5, 5, 2.5, 5, 6, 10, 7)
SUPPLY += (10, 6, 5, 4, 4, 4)
NETWORK = """
-31 1; -1 2 3; -2 4 5; -4 6 7; -6 8 9; -8 10 11; -10 12 13; -12 14 15; -11 -13 -14 16 17; -16 18 19
-9 -18 20; -5 -20 -21; -19 22 23 24; -23 25 26; -7 -25 27 28; -28 29 30; -29 31 32; -32 33 34
-3 -33 35; -35 21 36; -36 37 38; -30 -37 39; -38 -39 40; -40 41 42; -41 43 44 50; -44 45 46 47
-46 48; -42 -45 -48 -50 49; -26 -34 -43; -15 -17 -24 -47; -49; -22; -27
"""


def _curly(x: Array, band: int) -> Array:
    total = jnp.cumsum(jnp.pad(x, (1, 0)))
    ends = np.minimum(np.arange(x.size) + band + 1, x.size)
    q = total[ends] - total[:-1]
    return jnp.sum(q**4 - 20 * q**2 - 0.1 * q)


def curly10(x: Array) -> Array:
    return _curly(x, 10)


def scurly10(x: Array) -> Array:
    return _curly(x * like(stretch(x.size, 12), x), 10)


def _eigenvalues(matrix: np.ndarray) -> Callable[[Array], Array]:
    n = len(matrix)
    upper = np.triu_indices(n)

    def residuals(x: Array) -> Array:
        table = x.reshape(n, n + 1)
        values, vectors = table[:, 0], table[:, 1:]
        product = vectors @ (values[:, None] * vectors.T) - like(matrix, x)
        return jnp.concatenate(
            [product[upper], (vectors @ vectors.T - jnp.eye(n, dtype=x.dtype))[upper]]
        )

    return residuals


def _area(z: Array) -> Array:
    p = len(z) - 1
    falling, rising = z[:-1, :-1] - z[1:, 1:], z[1:, :-1] - z[:-1, 1:]
    return jnp.sum(jnp.sqrt(1 + p**2 * (falling**2 + rising**2) / 2)) / p**2


def _frame(p: int) -> np.ndarray:
    i = np.arange(p) / (p - 1)
    plane = 1 + 4 * i[:, None] + 8 * i
    plane[1:-1, 1:-1] = 0
    return plane


def fminsurf(x: Array) -> Array:
    p = round(x.size**0.5)
    return _area(x.reshape(p, p)) + jnp.sum(x) ** 2 / p**4


def fminsrf2(x: Array) -> Array:
    p = round(x.size**0.5)
    z = x.reshape(p, p)
    return _area(z) + z[p // 2 - 1, p // 2 - 1] ** 2 / p**2


def lminsurf(x: Array) -> Array:
    p = round(x.size**0.5)
    return _area(like(_frame(p + 2), x).at[1:-1, 1:-1].set(x.reshape(p, p)))


def _dense(x: Array) -> Array:
    p = round(x.size**0.5)
    return x.reshape(p, p)


def _root(p: int, *, singular: bool) -> np.ndarray:
    root = np.sin(np.arange(1.0, p * p + 1) ** 2).reshape(p, p)
    if singular:
        root[2, 0] = 0
    return root


def msqrtals(x: Array) -> Array:
    X, B = _dense(x), _root(round(x.size**0.5), singular=False)
    return jnp.ravel(X @ X - like(B @ B, x))


def msqrtbls(x: Array) -> Array:
    X, B = _dense(x), _root(round(x.size**0.5), singular=True)
    return jnp.ravel(X @ X - like(B @ B, x))


def spmsrtls(x: Array) -> Array:
    m = (x.size + 2) // 3
    band = np.nonzero(np.abs(np.arange(m) - np.arange(m)[:, None]) <= 1)
    B = np.zeros((m, m))
    B[band] = np.sin(np.arange(1.0, x.size + 1) ** 2)
    X = jnp.zeros((m, m), x.dtype).at[band].set(x)
    return jnp.ravel(X @ X - like(B @ B, x))


def mancino(x: Array) -> Array:
    n, i = x.size, index(x)
    v = jnp.sqrt(x**2 + i[:, None] / i)
    waves = v * (jnp.sin(jnp.log(v)) ** 5 + jnp.cos(jnp.log(v)) ** 5)
    return 14 * n * x + (i - n / 2) ** 3 + jnp.sum(waves * (1 - jnp.eye(n, dtype=x.dtype)), axis=1)


def _mancino_start(n: int) -> np.ndarray:
    i = np.arange(1, n + 1)
    v = np.sqrt(i[:, None] / i)
    waves = v * (np.sin(np.log(v)) ** 5 + np.cos(np.log(v)) ** 5)
    total = (i - n / 2) ** 3 + np.sum(waves * (1 - np.eye(n)), axis=1)
    return -14 * n / ((14 * n) ** 2 - 36 * (n - 1) ** 2) * total


def ncb20b(x: Array) -> Array:
    n, windows = x.size, np.arange(x.size - 19)[:, None] + np.arange(20)
    bulk = jnp.sum((x / (1 + x**2))[windows], axis=1)
    weighted = 10 * jnp.sum(bulk**2 / counting(n - 19, x))
    return 2 * n + weighted - 0.2 * jnp.sum(x[windows]) + 100 * jnp.sum(x**4)


def scaled_broyden_banded(x: Array) -> Array:
    return mgh.broyden_banded(x * like(stretch(x.size, 12), x))


def sensors(x: Array) -> Array:
    s = jnp.sin(x)
    return -jnp.sum((s[:, None] * s * jnp.sin(x[:, None] - x)) ** 2)


def vareigvl(x: Array) -> Array:
    n = x.size - 1
    i = np.arange(1, n + 1)
    gap = i - i[:, None]
    A = np.where(np.abs(gap) <= 6, np.sin(i * i[:, None]) * np.exp(-(gap**2) / n**2), 0)
    y, mu = x[:-1], x[-1]
    return jnp.sum((like(A, x) @ y - mu * y) ** 2) / 2 + jnp.sum(y**2) ** 1.5 / 1.5


def _flows(x: Array) -> Array:
    matrix = np.zeros((33, 50))
    for row, group in enumerate(NETWORK.strip().replace("\n", ";").split(";")):
        for arc in map(int, group.split()):
            matrix[row, abs(arc) - 1] = np.sign(arc)
    return like(matrix, x) @ x + like(SUPPLY, x)


def tointgor(x: Array) -> Array:
    arcs, t = jnp.abs(x), _flows(x)
    nodes = t**2 * jnp.where(t < 0, 1, jnp.log1p(jnp.maximum(t, 0)))
    return like(ALPHA, x) @ (arcs * jnp.log1p(arcs)) + like(BETA, x) @ nodes


def tointpsp(x: Array) -> Array:
    t = _flows(x)
    nodes = jnp.where(t >= 0.1, 1 / jnp.maximum(t, 0.1), 20 - 100 * t)
    return like(ALPHA, x) @ (x - 5) ** 2 + like(BETA, x) @ nodes


def tointqor(x: Array) -> Array:
    return like(ALPHA, x) @ x**2 + like(BETA, x) @ _flows(x) ** 2


def index(x: Array) -> Array:
    return counting(x.size, x)


def _eigenproblems(n: int) -> list[Unconstrained]:
    chain = np.eye(n, k=1) + np.eye(n, k=-1)
    matrices = {
        "als": np.diag(np.arange(1.0, n + 1)),
        "bls": 2 * np.eye(n) - chain,
        "cls": np.diag(np.abs(np.arange(n) - n // 2).astype(float)) + chain,
    }
    start = np.column_stack([np.ones(n), np.eye(n)]).ravel()
    return [
        squares(f"eigen{kind}_{start.size}", _eigenvalues(matrix), start, 0.0)
        for kind, matrix in matrices.items()
    ]


def problems() -> list[Unconstrained]:
    """One problem for each function, with 10 to 196 variables."""
    i = np.arange(1, 101)
    broken = _root(7, singular=True) - 0.8 * _root(7, singular=False)
    almost = 0.2 * np.sin(np.arange(1.0, 101) ** 2)
    return [
        *_eigenproblems(7),
        squares("mancino_100", mancino, _mancino_start(100), 0.0),
        squares("msqrtals_49", msqrtals, 0.2 * _root(7, singular=False).ravel(), 0.0),
        squares("msqrtbls_49", msqrtbls, broken.ravel(), 0.0),
        squares("scaled_broyden_banded_10", scaled_broyden_banded, -1 / stretch(10, 12), 0.0),
        squares("spmsrtls_100", spmsrtls, almost, 0.0),
        general("curly10_100", curly10, 1e-4 * i / 101),
        general("scurly10_100", scurly10, 1e-4 * i * stretch(100, 12) / 101),
        general("fminsurf_144", fminsurf, _frame(12).ravel(), 1.0),
        general("fminsrf2_144", fminsrf2, _frame(12).ravel(), 1.0),
        general("lminsurf_100", lminsurf, np.zeros(100), 9.0),
        general("ncb20b_50", ncb20b, np.zeros(50)),
        general("sensors_10", sensors, np.arange(1, 11) / 10),
        general("tointgor_50", tointgor, np.zeros(50)),
        general("tointpsp_50", tointpsp, np.zeros(50)),
        general("tointqor_50", tointqor, np.zeros(50)),
        general("vareigvl_50", vareigvl, np.append(np.ones(49), 0), 0.0),
    ]
