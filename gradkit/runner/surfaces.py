"""Functions of a few parameters to minimize, without data: tasks that a config can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.runner.data.dataset import Dataset
from gradkit.runner.errors import UserError
from gradkit.runner.tasks import Task


def quadratic(eigenvalues: Sequence[float] = (1.0, 10.0, 100.0), seed: int = 0) -> Task:
    """½ xᵀAx with these eigenvalues of A, in random directions, from 1 in each of them."""
    n = len(eigenvalues)
    V, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    A = jnp.asarray(V * np.array(eigenvalues, float) @ V.T, float)
    return _surface(lambda x: x @ A @ x / 2, V.sum(axis=1).tolist(), n)


def rosenbrock(start: Sequence[float] = (-1.2, 1.0), a: float = 1.0, b: float = 100.0) -> Task:
    """(a − x)² + b (y − x²)²: a bent valley, its minimum 0 at (a, a²).

    Source: Rosenbrock (1960).
    """
    return _surface(lambda p: (a - p[0]) ** 2 + b * (p[1] - p[0] ** 2) ** 2, start)


def himmelblau(start: Sequence[float] = (0.0, 0.0)) -> Task:
    """(x² + y − 11)² + (x + y² − 7)²: four minima of 0, with saddles between.

    Source: Himmelblau (1972).
    """
    return _surface(lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2, start)


def beale(start: Sequence[float] = (1.0, 1.0)) -> Task:
    """Σ (cᵢ − x (1 − yⁱ))² with c = 1.5, 2.25, 2.625: plateaus, its minimum 0 at (3, ½).

    Source: Beale (1958); Moré, Garbow and Hillstrom (1981), problem 5.
    """
    c = jnp.array([1.5, 2.25, 2.625])
    return _surface(lambda p: jnp.sum((c - p[0] * (1 - p[1] ** jnp.arange(1, 4))) ** 2), start)


def saddle(start: Sequence[float] = (1.0, 1e-3)) -> Task:
    """½ (x² − y²) + ¼ y⁴: a saddle at the origin, minima of −¼ at (0, ±1)."""
    return _surface(lambda p: (p[0] ** 2 - p[1] ** 2) / 2 + p[1] ** 4 / 4, start)


def ravine(start: Sequence[float] = (8.0, 1.0), ratio: float = 50.0) -> Task:
    """½ (x² + ratio · y²): steep across, flat along, its minimum 0 at the origin."""
    return _surface(lambda p: (p[0] ** 2 + ratio * p[1] ** 2) / 2, start)


def plateau(start: Sequence[float] = (3.5, 2.5)) -> Task:
    """1 − exp(−(x² + y²)/2): flat but for a hole, its minimum 0 at the origin."""
    return _surface(lambda p: 1 - jnp.exp(-(p[0] ** 2 + p[1] ** 2) / 2), start)


def cliff(start: Sequence[float] = (5.0, -2.0), steps: int = 50) -> Task:
    """(σ(h) − 0.7)², h a recurrent unit after h ← x σ(h) + y from ½: a wall of two memories.

    Its minima of 0 are along y = σ⁻¹(0.7) − 0.7 x, for x below 1/0.21 where that memory is stable.

    Source: Pascanu, Mikolov and Bengio (2013), section 2.3 and figure 6.
    """

    def error(p: jax.Array) -> jax.Array:
        h = jax.lax.fori_loop(0, steps, lambda _, h: p[0] * jax.nn.sigmoid(h) + p[1], 0.5)
        return (jax.nn.sigmoid(h) - 0.7) ** 2

    return _surface(error, start)


def _surface(
    function: Callable[[jax.Array], jax.Array], start: Sequence[float], n: int = 2
) -> Task:
    if len(start) != n:
        raise UserError(f"task.start: expected {n} numbers, got {len(start)}")

    def coordinate(i: int) -> Callable[[Any, Any], jax.Array]:
        return lambda point, _: point[i]

    names = "xyz" if n <= 3 else ()
    return Task(
        data=Dataset.none(),
        init=lambda key: jnp.array(start, float),
        predict=lambda params, batch: params,
        criterion=lambda point, batch: function(point),
        metrics={name: coordinate(i) for i, name in enumerate(names[:n])},
    )
